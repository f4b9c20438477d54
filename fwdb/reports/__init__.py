"""Reports: a notebook run on parameters, and the page, results and tables it leaves behind.

fwdb.report("pool", since="24h")          # runs notebooks/pool.ipynb into reports/pool/
report = fwdb.open_report("pool")         # the same facts, here, in a session or notebook
report.verdict; report.chart("pool"); report.table("pools").frame; report.save()
"""

from __future__ import annotations

from fwdb.reports.catalogue import known_parameters, names
from fwdb.reports.document import Report, open_report
from fwdb.reports.results import Check, Kpi, Result, Table
from fwdb.reports.run import Progress, RunResult, exit_code, report, suite

NAMES = names()

__all__ = [
    "NAMES",
    "Check",
    "Kpi",
    "Progress",
    "Report",
    "Result",
    "RunResult",
    "Table",
    "exit_code",
    "known_parameters",
    "open_report",
    "report",
    "suite",
]
