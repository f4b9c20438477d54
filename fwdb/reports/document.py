"""`Report`: what a notebook holds in its hands, and the page and folder it is saved to.

A page opens offline, asks no outside address for anything, has no script, and holds nothing that
changes from run to run on the same data.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from fwdb import charts
from fwdb.arguments import checks_arguments
from fwdb.charts.words import figure, plural
from fwdb.errors import UnknownName
from fwdb.reports import catalogue, files
from fwdb.reports.facts import REFUSALS
from fwdb.reports.parameters import Accepted, spelled
from fwdb.reports.results import WORDS, Result, Table

if TYPE_CHECKING:
    from fwdb.database import Database

ROWS_SHOWN = 20
_COLOURS = {"ok": "#0072B2", "warning": "#E69F00", "critical": "#D55E00", "no_data": "#6b7785"}
_UNITS = {"ms": "ms", "seconds": "s", "bytes": "bytes", "percent": "%", "at": "UTC"}


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of pages, with the words they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fwdb.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        figure=figure, heading=heading, words=WORDS, table_rows=table_rows, is_number=is_number
    )
    environment.globals["shown"] = ROWS_SHOWN
    environment.filters["code"] = code
    environment.filters["utc"] = lambda text: str(text).replace("T", " ").replace("Z", " UTC")
    return environment


def code(text: str) -> Markup:
    """A sentence with its `names` in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def heading(column: str) -> str:
    """A column's name for people: `mean_ms` is `mean (ms)`, `sampled_at` is `sampled (UTC)`."""
    name, _, unit = column.rpartition("_")
    known = name and unit in _UNITS
    return f"{name.replace('_', ' ')} ({_UNITS[unit]})" if known else column.replace("_", " ")


def table_rows(table: Table, most: int = ROWS_SHOWN) -> list[list[tuple[str, bool]]]:
    """The first rows as (text, is a number) for each cell."""
    names = table.columns
    columns = [[_cell(v) for v in table.frame[c].head(most).astype(object)] for c in names]
    numeric = [is_number(table, name) for name in names]
    return [list(zip(row, numeric, strict=True)) for row in zip(*columns, strict=True)]


def is_number(table: Table, column: str) -> bool:
    """Whether a column is set as numbers are."""
    dtype = table.frame[column].dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _cell(value: Any) -> str:
    """A table's cell; missing values are blank, long texts are cut."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    text = "" if isinstance(value, float) and not math.isfinite(value) else figure(value)
    return text if len(text) <= 160 else text[:159] + "…"


def page(result: Result) -> str:
    """The whole page of a report."""
    drawn = [(n, Markup(charts.to_svg(f, name=n))) for n, f in result.charts.items()]  # noqa: S704
    template, parameters = templates().get_template("report.html.j2"), spelled(result.parameters)
    return template.render(result=result, parameters=parameters, charts=drawn)


def part(name: str, **values: Any) -> str:
    """One piece of a page by the name of its macro, for the cells of a notebook."""
    module: Any = templates().get_template("parts.html.j2").module
    return str(getattr(module, name)(**values))


@dataclass(frozen=True)
class View:
    """A piece of a report: `text` for a terminal, HTML for a notebook."""

    text: str
    html: str = field(repr=False)

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
        return f"{self.table.title} ({plural(len(self.frame), 'row')})"

    def _repr_html_(self) -> str:
        html = part("data_table", table=self.table, most=10)
        rest = f"<p>The first 10 of {figure(len(self.frame))} rows.</p>"
        return html + rest * (len(self.frame) > 10)


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
        state, summary, shown = self.result.verdict, self.result.summary, self.result.ranked
        lines = [f"  {WORDS[check.status].lower():15} {check.sentence}" for check in shown]
        html = part("banner", state=state, summary=summary, checks=shown)
        html += part("check_table", checks=shown)
        style = f"border-left: 6px solid {_COLOURS[state]}; padding-left: 12px"
        text = "\n".join([f"{WORDS[state].upper()}: {summary}", *lines])
        return View(text, f'<div style="{style}">{html}</div>')

    @property
    def kpis(self) -> View:
        """The key figures."""
        lines = []
        for kpi in self.result.kpis:
            value = WORDS[kpi.status] if kpi.value is None else figure(kpi.value, kpi.unit)
            lines.append(f"{kpi.label:42} {value:>14}{'  ' * bool(kpi.note)}{kpi.note}")
        return View("\n".join(lines), part("kpi_table", kpis=self.result.kpis))

    def chart(self, name: str) -> ChartView:
        """The chart of this name. Raises `UnknownName`."""
        return ChartView(name, self._known("chart", name, self.result.charts))

    def table(self, name: str) -> TableView:
        """The table of this name; its `frame` has all rows. Raises `UnknownName`."""
        return TableView(self._known("table", name, {t.name: t for t in self.result.tables}))

    def _known(self, kind: str, name: str, found: Any) -> Any:
        if name not in found:
            raise UnknownName(kind, name, found, where=f"report '{self.result.report}'")
        return found[name]

    @property
    def how_to_read(self) -> View:
        """What the figures mean and where the lines are."""
        return _terms(self.result.how_to_read)

    @property
    def provenance(self) -> View:
        """Window, parameters, sources and what they could tell."""
        return _terms(self.result.sources)

    def save(self, out: str | Path | None = None) -> Saved:
        """Writes `report.html`, `results.json` and `tables/*.csv`; returns where they are.

        The folder is `<out>/<report name>`; `out` is FWDB_REPORT_DIR, else `reports` in the
        project. It appears whole, in place of an earlier one. Raises `ReportError` when it
        cannot be written.
        """
        parent, name = Path(out) if out is not None else files.default_folder(), self.result.report
        with files.workspace(parent) as space:
            for table in self.result.tables:
                files.write(space / name / table.file, table.csv())
            files.write(space / name / "results.json", self.result.json())
            files.write(space / name / "report.html", page(self.result))
            files.place(space / name, parent / name)
        return Saved(parent / name, len(self.result.tables))


def _terms(pairs: Iterable[tuple[str, str]]) -> View:
    """Terms with their explanation."""
    text = "\n".join(f"{term}: {text}" for term, text in pairs)
    return View(text, part("reading_list", pairs=pairs))


@checks_arguments
def open_report(name: str, *, db: Database | None = None, **given: Any) -> Report:
    """Asks the databases what the report `name` wants to know, and judges the answers.

    `given` are the parameters of the report. `db` is used as it is and stays open; without it a
    read-only connection is opened and closed. A database that does not answer takes away its
    half of the report, and a check says so.
    Raises `UnknownName` and `ParameterError` before any database is asked.
    """
    asked = catalogue.accept(name, given)
    if db is not None:
        return _build(name, db, asked)
    catalogue.declared()  # refuses a wrong FWDB_LIMITS
    from fwdb.database import connect

    with connect(role="report", application_name=f"fwdb-report-{name}") as own:
        return _build(name, own, asked)


def _build(name: str, db: Database, asked: Accepted) -> Report:
    facts = catalogue.gather(name, db, asked)
    found: Result = catalogue.module(name).build(facts)
    seal = _seal(db) if "postgres" in facts.up else ()
    return Report(
        replace(
            found,
            sources=(*found.sources, *seal),
            how_to_read=catalogue.how_to_read(name, lambda line, at: facts.lines[line].text(at)),
            title=catalogue.title(name),
            roles={f"{name}.{rule.subject}": rule.role for rule in catalogue.rules(name)},
        )
    )


def _seal(db: Database) -> tuple[tuple[str, str], ...]:
    """The head of the audit seal as a source: a copy that nobody can take back."""
    try:
        sealed = db.audit.sealed()
    except REFUSALS:
        return ()  # a report about something else does not fail for it
    if sealed is None or sealed.head is None:
        return ()
    key = f"signed with key {sealed.key_id}" if sealed.key_id else "not signed"
    rows, at = figure(sealed.total_rows), f"{sealed.sealed_at:%Y-%m-%dT%H:%MZ}"
    line = f"head {sealed.head} of seal {sealed.number}, {rows} rows up to {at}, {key}"
    return (("Audit seal", line),)
