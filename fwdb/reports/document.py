"""`Report`: what a notebook holds in its hands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts, config
from fwdb.arguments import checks_arguments
from fwdb.errors import UnknownName
from fwdb.reports import check, files, notebook, parameters, render, words
from fwdb.reports.parameters import Parameter, Window
from fwdb.reports.results import WORDS, Result, Table, ranked

if TYPE_CHECKING:
    from fwdb.database import Database

NAMES = notebook.names()


def known_parameters(name: str) -> Mapping[str, Parameter]:
    """The parameters a report takes, by name. Raises `UnknownName`."""
    notebook.path(name)
    return parameters.declared(check.module(name).Parameters)


_COLOURS = {"ok": "#0072B2", "warning": "#E69F00", "critical": "#D55E00", "no_data": "#6b7785"}


@dataclass(frozen=True)
class View:
    """A piece of a report: `text` for a terminal, HTML for a notebook."""

    text: str
    html: str = field(repr=False)

    @classmethod
    def of(cls, pairs: tuple[tuple[str, str], ...]) -> View:
        """Terms with their explanation."""
        text = "\n".join(f"{term}: {text}" for term, text in pairs)
        return cls(text, render.part("reading_list", pairs=pairs))

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, eq=False)
class ChartView:
    """A chart: SVG in a notebook, its finding as text. `figure` is matplotlib's."""

    name: str
    figure: Any = field(repr=False)

    def __repr__(self) -> str:
        return charts.alt_text(self.figure)

    def _repr_svg_(self) -> str:
        return charts.to_svg(self.figure, name=self.name)


@dataclass(frozen=True, eq=False)
class TableView:
    """A table of a report; `frame` has all its rows, to go on with in pandas."""

    table: Table = field(repr=False)

    @property
    def frame(self) -> pd.DataFrame:
        return self.table.frame

    def __repr__(self) -> str:
        count = len(self.frame)
        return f"{self.table.title} ({count} row{'' if count == 1 else 's'})"

    def _repr_html_(self) -> str:
        html = render.part("data_table", table=self.table, most=10)
        if len(self.frame) > 10:
            html += f"<p>The first 10 of {words.figure(len(self.frame))} rows.</p>"
        return html


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
    def verdict(self) -> View:
        """The verdict, its reasons, and every check."""
        state, summary = self.result.verdict, self.result.summary
        shown = ranked(self.result.checks)
        lines = [f"  {WORDS[check.status].lower():15} {check.sentence}" for check in shown]
        html = render.part("banner", state=state, summary=summary, checks=shown)
        html += render.part("check_table", checks=shown)
        style = f"border-left: 6px solid {_COLOURS[state]}; padding-left: 12px"
        text = "\n".join([f"{WORDS[state].upper()}: {summary}", *lines])
        return View(text, f'<div style="{style}">{html}</div>')

    @property
    def kpis(self) -> View:
        """The key figures."""
        lines = []
        for kpi in self.result.kpis:
            value = WORDS[kpi.status] if kpi.value is None else words.figure(kpi.value, kpi.unit)
            lines.append(f"{kpi.label:42} {value:>14}{'  ' * bool(kpi.note)}{kpi.note}")
        return View("\n".join(lines), render.part("kpi_table", kpis=self.result.kpis))

    def chart(self, name: str) -> ChartView:
        """The chart of this name. Raises `UnknownName`."""
        if name not in self.result.charts:
            raise UnknownName("chart", name, self.result.charts, where=self._where)
        return ChartView(name, self.result.charts[name])

    def table(self, name: str) -> TableView:
        """The table of this name; its `frame` has all rows. Raises `UnknownName`."""
        found = {table.name: table for table in self.result.tables}
        if name not in found:
            raise UnknownName("table", name, found, where=self._where)
        return TableView(found[name])

    @property
    def how_to_read(self) -> View:
        """What the figures mean and where the lines are."""
        return View.of(self.result.how_to_read)

    @property
    def provenance(self) -> View:
        """Window, parameters, sources and what they could tell."""
        return View.of(self.result.sources)

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

    `given` are the parameters of the report. `db` is used as it is and stays open; without it a
    read-only connection is opened and closed. A database that does not answer takes away its
    half of the report, and a check says so.
    Raises `UnknownName` and `ParameterError` before any database is asked.
    """
    values = parameters.accept(name, known_parameters(name), given)
    window = parameters.window(str(values["since"]), str(values["until"]))
    chosen = check.module(name).Parameters(**values)
    if db is not None:
        return _build(name, db, window, chosen)
    check.declared()  # refuses a wrong FWDB_LIMITS
    from fwdb.database import connect

    with connect(role="report", application_name=f"fwdb-report-{name}") as own:
        return _build(name, own, window, chosen)


def _build(name: str, db: Database, window: Window, chosen: object) -> Report:
    facts = check.gather(name, db, window, chosen, db.settings)
    return Report(_with_seal(db, check.module(name).build(facts)))


def _with_seal(db: Database, result: Result) -> Result:
    """`result` with the head of the audit seal as a source: a copy that nobody can take back.

    As far as PostgreSQL answers and something was ever sealed.
    """
    reached = {(c.id, c.database): c.status for c in result.checks}
    if reached.get((f"{result.report}.reachable", "postgres")) != "ok":
        return result
    try:
        sealed = db.audit.sealed()
    except check.REFUSALS:
        return result  # a report about something else does not fail for it
    if sealed is None or sealed.head is None:
        return result
    key = f"signed with key {sealed.key_id}" if sealed.key_id else "not signed"
    line = (
        f"head {sealed.head} of seal {sealed.number}, {words.figure(sealed.total_rows)} rows up to "
        f"{sealed.sealed_at:%Y-%m-%dT%H:%MZ}, {key}"
    )
    return replace(result, sources=(*result.sources, ("Audit seal", line)))
