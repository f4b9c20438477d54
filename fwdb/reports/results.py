"""What a report found: checks, figures and tables, the verdict, and `results.json`.

The file has the schema number 1 and nothing in it that is not data: no run time, no host, no id.
The same data and the same window give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from fwdb.reports.parameters import Value, Window, iso
from fwdb.stores.frames import as_csv

SCHEMA = 1
Status = Literal[
    "ok", "warning", "critical", "not_available", "not_applicable", "not_measured", "no_data"
]
Verdict = Literal["ok", "warning", "critical", "no_data"]
Judged = Literal["ok", "warning", "critical"]
Role = Literal["", "main", "news"]
JUDGED = ("ok", "warning", "critical")
NO_ROLES: Mapping[str, Role] = {}

WORDS: dict[str, str] = {
    "ok": "OK",
    "warning": "Warning",
    "critical": "Critical",
    "no_data": "No data",
    "not_available": "Not available",
    "not_applicable": "Not applicable",
    "not_measured": "Not measured",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, where the line is, and what to do.

    `id` is `report.subject`, `value` is None unless it was measured, `sentence` says the finding
    with its number, `action` what to do about it and is empty when there is nothing to do.
    """

    id: str
    database: str
    status: Status
    sentence: str
    value: float | None = None
    unit: str = ""
    threshold: float | None = None
    action: str = ""
    # Not a finding but a question that was not answered.
    refused: bool = field(default=False, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        return _chosen(self, "id database status value unit threshold sentence action")


@dataclass(frozen=True)
class Kpi:
    """One figure of the report's head; with a status other than ok, `note` says why."""

    id: str
    label: str
    value: float | None
    unit: str = ""
    status: Status = "ok"
    database: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return _chosen(self, "id label database status value unit note")


@dataclass(frozen=True, eq=False)
class Table:
    """A table to look into; `frame` is complete, a page shows its first rows.

    `shown` are the columns on the page, all when empty; the CSV file has every one.
    """

    name: str
    title: str
    frame: pd.DataFrame
    about: str = ""
    shown: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns on the page."""
        names = [str(c) for c in self.frame.columns]
        return [c for c in self.shown if c in names] or names

    @property
    def file(self) -> str:
        return f"tables/{self.name}.csv"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "file": self.file,
            "rows": len(self.frame),
            "columns": [str(c) for c in self.frame.columns],
        }

    def csv(self) -> str:
        """The rows as CSV: UTC times, no index, and no text that a spreadsheet would run."""
        return as_csv(self.frame)


@dataclass(frozen=True, eq=False)
class Result:
    """Everything a report says. `charts` hold figures by name, in the order of the page.

    `roles` are those of its checks by id: without the ``main`` one the others say little, and
    where all is well, what the ``news`` found is told.
    """

    report: str
    window: Window
    parameters: Mapping[str, Value]
    checks: tuple[Check, ...] = ()
    kpis: tuple[Kpi, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: Mapping[str, Any] = field(default_factory=dict)
    how_to_read: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    title: str = ""
    roles: Mapping[str, Role] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return verdict(self.checks, self.roles)

    @property
    def summary(self) -> str:
        """The verdict's reasons in one sentence."""
        return summary(self.checks, self.roles)

    def as_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return {
            "schema": SCHEMA,
            "report": self.report,
            "verdict": self.verdict,
            "summary": self.summary,
            "window": self.window.as_dict(),
            "parameters": {name: _plain(v) for name, v in self.parameters.items()},
            "checks": [c.as_dict() for c in sorted(self.checks, key=lambda c: (c.id, c.database))],
            "kpis": [k.as_dict() for k in self.kpis],
            "tables": [t.as_dict() for t in self.tables],
        }

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def verdict(checks: tuple[Check, ...], roles: Mapping[str, Role] = NO_ROLES) -> Verdict:
    """The worst of all checks that could be judged; `no_data` when none could.

    `no_data` also when all is well but the subject of the report itself was not measured.

    That a database answers says nothing about how it does, so it does not count as judged.
    A database that does not answer is a warning as long as the other one is judged: a report
    with half of its facts missing must not say that all is well.
    """
    states = {check.status for check in checks if not check.id.endswith(".reachable")}
    if not states & set(JUDGED):
        return "no_data"
    if "critical" in states:
        return "critical"
    if "warning" in states or _missing(checks):
        return "warning"
    subject = {check.status for check in checks if roles.get(check.id)}
    return "ok" if not subject or subject & set(JUDGED) else "no_data"


def _missing(checks: tuple[Check, ...]) -> list[Check]:
    return [c for c in checks if c.id.endswith(".reachable") and c.status == "not_available"]


def ranked(checks: tuple[Check, ...]) -> list[Check]:
    """Checks as a reader wants them: what is wrong first, what could not be seen next."""
    order = ["critical", "warning", "not_available", "no_data", "not_measured"]
    order += ["ok", "not_applicable"]
    return sorted(checks, key=lambda c: (order.index(c.status), c.id, c.database))


def summary(checks: tuple[Check, ...], roles: Mapping[str, Role] = NO_ROLES) -> str:
    """One sentence: the findings behind the verdict, at most three of them, and what is missing."""
    state = verdict(checks, roles)
    missing = _missing(checks)
    if state == "no_data":
        reasons = missing or [c for c in checks if roles.get(c.id)]
        reasons = reasons or [c for c in ranked(checks) if c.status not in JUDGED]
        if not reasons:
            return "Nothing was measured."
        return _join(reasons[:2])
    found = [c for c in ranked(checks) if c.status in ("critical", "warning")]
    if found or missing:
        text = _join([*found, *missing][:3])
        more = len(found) + len(missing) - 3
        return text if more <= 0 else f"{text[:-1]}; and {more} more."
    fine = [c for c in checks if c.status == "ok"]
    blind = sum(c.status in ("not_available", "not_measured", "no_data") for c in checks)
    unseen = f"; {blind} could not be measured" if blind else ""
    told = "".join(f"{c.sentence} " for c in fine if roles.get(c.id) == "news")
    return (
        f"{told}{len(fine)} check{' is' if len(fine) == 1 else 's are'} within the lines{unseen}."
    )


def _join(checks: list[Check]) -> str:
    parts = [c.sentence.rstrip(".") for c in checks]
    return "; ".join([*parts[:1], *(_inside(part) for part in parts[1:])]) + "."


def _inside(sentence: str) -> str:
    """A sentence as it goes on after a semicolon; names like PostgreSQL keep their capital."""
    word = sentence.partition(" ")[0]
    return sentence[:1].lower() + sentence[1:] if word[1:].islower() else sentence


def _chosen(of: object, names: str) -> dict[str, Any]:
    return {name: _plain(getattr(of, name)) for name in names.split()}


def _plain(value: object) -> Any:
    """A value as JSON has it: no NaN, no numpy, no digits that nobody measured."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return round(number, 6) if math.isfinite(number) else None
    return None if value is pd.NA else str(value)
