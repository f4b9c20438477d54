"""What a notebook cell shows: rich in Jupyter, plain text everywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.reports import render, words
from fwdb.reports.results import WORDS, Check, Kpi, Result, Table, ranked

_COLOURS = {"ok": "#0072B2", "warning": "#E69F00", "critical": "#D55E00", "no_data": "#6b7785"}


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
        count = len(self.frame)
        return f"{self.table.title} ({count} row{'' if count == 1 else 's'})"

    def _repr_html_(self) -> str:
        html = render.part("data_table", table=self.table, most=10)
        if len(self.frame) > 10:
            html += f"<p>The first 10 of {words.figure(len(self.frame))} rows.</p>"
        return html


def verdict(result: Result) -> View:
    """The verdict with its reasons."""
    shown = ranked(result.checks)
    lines = [f"{WORDS[result.verdict].upper()}: {result.summary}"]
    lines += [f"  {_line(check)}" for check in shown]
    colour = _COLOURS[result.verdict]
    html = render.part("banner", state=result.verdict, summary=result.summary, checks=shown)
    html += render.part("check_table", checks=shown)
    return View(
        "\n".join(lines),
        f'<div style="border-left: 6px solid {colour}; padding-left: 12px">{html}</div>',
    )


def _line(check: Check) -> str:
    return f"{WORDS[check.status].lower():15} {check.sentence}"


def kpis(found: tuple[Kpi, ...]) -> View:
    """The key figures."""
    lines = []
    for kpi in found:
        shown = words.figure(kpi.value, kpi.unit) if kpi.value is not None else WORDS[kpi.status]
        note = f"  {kpi.note}" if kpi.note else ""
        lines.append(f"{kpi.label:42} {shown:>14}{note}")
    return View("\n".join(lines), render.part("kpi_table", kpis=found))


def pairs(found: tuple[tuple[str, str], ...]) -> View:
    """Terms with their explanation."""
    return View(
        "\n".join(f"{term}: {text}" for term, text in found),
        render.part("reading_list", pairs=found),
    )
