"""Pages: `report.html` of one result, and the index over all of them.

A page opens offline, asks no outside address for anything, has no script, and holds nothing that
changes from run to run on the same data.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from fwdb import charts
from fwdb.reports import notebook, words
from fwdb.reports.parameters import spelled
from fwdb.reports.results import WORDS, Result, Table, ranked

ROWS_SHOWN = 20


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fwdb.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        figure=words.figure,
        heading=words.heading,
        words=WORDS,
        table_rows=table_rows,
        is_number=is_number,
        shown=ROWS_SHOWN,
    )
    environment.filters["code"] = code
    environment.filters["utc"] = lambda text: str(text).replace("T", " ").replace("Z", " UTC")
    return environment


def code(text: str) -> Markup:
    """A sentence with its `names` in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def page(result: Result) -> str:
    """The whole page of a report."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            data=result.as_dict(),
            ranked=ranked(result.checks),
            parameters=spelled(result.parameters),
            charts=[
                (name, Markup(charts.to_svg(figure, name=name)))  # noqa: S704 our own drawing
                for name, figure in result.charts.items()
            ],
        )
    )


def part(name: str, **values: Any) -> str:
    """One piece of a page by the name of its macro, for the cells of a notebook."""
    module: Any = _environment().get_template("parts.html.j2").module
    return str(getattr(module, name)(**values))


def table_rows(table: Table, most: int = ROWS_SHOWN) -> list[list[tuple[str, bool]]]:
    """The first rows as (text, is a number) for each cell."""
    frame = table.frame[table.columns].head(most)
    numeric = [is_number(table, str(c)) for c in frame.columns]
    columns = [[words.cell(v) for v in frame[c].astype(object)] for c in frame.columns]
    return [list(zip(row, numeric, strict=True)) for row in zip(*columns, strict=True)]


def is_number(table: Table, column: str) -> bool:
    dtype = table.frame[column].dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


@dataclass(frozen=True)
class Entry:
    """One line of the index."""

    name: str
    title: str
    verdict: str
    summary: str
    since: str
    until: str
    run_at: str
    page: str


def index(folder: Path) -> str:
    """The page over all reports in `folder`, the worst verdict first."""
    order = ["failed", "critical", "warning", "no_data", "ok"]
    entries = sorted(_entries(folder), key=lambda e: (order.index(e.verdict), e.name))
    return _environment().get_template("index.html.j2").render(entries=entries)


def _entries(folder: Path) -> list[Entry]:
    found = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        run = _read(place / "run.json")
        results = _read(place / "results.json")
        if results and results.get("schema") == 1 and (place / "report.html").is_file():
            window = results["window"]
            found.append(
                Entry(
                    place.name,
                    _title(place.name) or place.name,
                    results["verdict"],
                    results["summary"],
                    window["since"],
                    window["until"],
                    run.get("finished_at", ""),
                    f"{place.name}/report.html",
                )
            )
        elif run.get("error"):
            found.append(
                Entry(
                    place.name,
                    _title(run.get("report", "")) or place.name,
                    "failed",
                    run["error"],
                    "",
                    "",
                    run.get("finished_at", ""),
                    f"{place.name}/executed.ipynb",
                )
            )
    return found


def _title(name: str) -> str:
    return notebook.title(name) if name in notebook.names() else ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none: the folder may hold other people's files."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
