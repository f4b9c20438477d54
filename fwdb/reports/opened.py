"""`Report`: what a notebook holds in its hands."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb import config
from fwdb.arguments import checks_arguments
from fwdb.errors import UnknownName
from fwdb.reports import files, parameters, render, views
from fwdb.reports.parameters import Parameter, Value, Window
from fwdb.reports.results import TITLES, Result
from fwdb.reports.sealed import with_seal

if TYPE_CHECKING:
    from fwdb.database import Database

NAMES = tuple(TITLES)
Build = Callable[["Database", Window, Mapping[str, Value]], Result]


def notebook(name: str) -> Path:
    """The notebook of a report. Raises `UnknownName` when there is no such report."""
    if name not in NAMES:
        raise UnknownName("report", name, NAMES)
    return config.resource("notebooks") / f"{name}.ipynb"


@functools.cache
def known_parameters(name: str) -> Mapping[str, Parameter]:
    """The parameters a report takes, by name, as its notebook declares them."""
    return parameters.declared(notebook(name))


@dataclass(frozen=True)
class Saved:
    """The folder a report was saved to. Its text names no folder: notebooks are passed on."""

    folder: Path
    tables: int

    def __repr__(self) -> str:
        return f"{self.folder.name}: report.html, results.json and {self.tables} tables are saved."


class Report:
    """One report over one window: verdict, key figures, charts, tables, and where it comes from.

    Each piece shows itself in a notebook cell and as plain text. `result` holds the values
    behind them. Nothing is written until `save()`.
    """

    def __init__(self, result: Result) -> None:
        self.result = result

    def __repr__(self) -> str:
        return f"Report {self.result.report!r}: {self.result.verdict}. {self.result.summary}"

    def _repr_html_(self) -> str:
        return self.verdict.html

    @property
    def verdict(self) -> views.View:
        """The verdict, its reasons, and every check."""
        return views.verdict(self.result)

    @property
    def kpis(self) -> views.View:
        """The key figures."""
        return views.kpis(self.result.kpis)

    def chart(self, name: str) -> views.ChartView:
        """The chart of this name. Raises `UnknownName`."""
        if name not in self.result.charts:
            raise UnknownName("chart", name, self.result.charts, where=self._where)
        return views.ChartView(name, self.result.charts[name])

    def table(self, name: str) -> views.TableView:
        """The table of this name; its `frame` has all rows. Raises `UnknownName`."""
        found = {table.name: table for table in self.result.tables}
        if name not in found:
            raise UnknownName("table", name, found, where=self._where)
        return views.TableView(found[name])

    @property
    def how_to_read(self) -> views.View:
        """What the figures mean and where the lines are."""
        return views.pairs(self.result.how_to_read)

    @property
    def provenance(self) -> views.View:
        """Window, parameters, sources and what they could tell."""
        return views.pairs(self.result.sources)

    @property
    def _where(self) -> str:
        return f"report '{self.result.report}'"

    def save(self, out: str | Path | None = None) -> Saved:
        """Writes `report.html`, `results.json` and `tables/*.csv`; returns where they are.

        The folder is `<out>/<report name>`; `out` is FWDB_REPORT_DIR, else `reports` in the
        project. It appears whole, in place of an earlier one. Raises `ReportError` when it
        cannot be written.
        """
        parent = Path(out) if out is not None else default_folder()
        target = parent / self.result.report
        with files.workspace(parent) as space:
            built = space / self.result.report
            write_result(self.result, built)
            files.place(built, target)
        return Saved(target, len(self.result.tables))


def write_result(result: Result, folder: Path) -> None:
    """The artefacts of a result, into `folder`."""
    for table in result.tables:
        files.write(folder / table.file, table.csv())
    files.write(folder / "results.json", result.json())
    files.write(folder / "report.html", render.page(result))


def default_folder() -> Path:
    """Where reports go: FWDB_REPORT_DIR, else `reports` here, or above when this is `notebooks`."""
    configured = config.settings().report_dir
    if configured is not None:
        return configured
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "reports"


@checks_arguments
def open_report(name: str, *, db: Database | None = None, **given: Any) -> Report:
    """Asks the databases what the report `name` wants to know, and judges the answers.

    `given` are the parameters of the report's notebook. `db` is used as it is and stays open;
    without it a read-only connection is opened and closed. A database that does not answer
    takes away its half of the report, and a check says so.
    Raises `UnknownName` and `ParameterError` before any database is asked.
    """
    values = parameters.check(name, known_parameters(name), given)
    window = parameters.window(str(values["since"]), str(values["until"]))
    build: Build = importlib.import_module(f"fwdb.reports.{name}").build
    if db is not None:
        return Report(with_seal(db, build(db, window, values)))
    from fwdb.database import connect

    with connect(role="report", application_name=f"fwdb-report-{name}") as own:
        return Report(with_seal(own, build(own, window, values)))
