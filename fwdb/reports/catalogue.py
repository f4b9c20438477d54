"""The reports there are: of each its notebook and module, and the lines of all their checks."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb import config
from fwdb.errors import ReportError, UnknownName
from fwdb.reports import parameters
from fwdb.reports.check import Line, Rule
from fwdb.reports.facts import Facts

if TYPE_CHECKING:
    from fwdb.config import Settings
    from fwdb.database import Database

# Of "how to read this": a term with its text, and in it a figure that a limit or parameter has.
_TERM = re.compile(r"\*\*(?P<term>.+?)\*\*<br>\n(?P<text>(?:.+\n?)+)")
_FIGURE = re.compile(r"\[[^\]]+\]\(#(?P<line>[\w.]+)\.(?P<status>warning|critical)\)")


@functools.cache
def names() -> tuple[str, ...]:
    """The reports there are: every notebook that takes parameters."""
    folder = config.resource("notebooks")
    return tuple(p.stem for p in sorted(folder.glob("*.ipynb")) if "parameters" in _cells(p))


def path(name: str) -> Path:
    """The notebook of a report. Raises `UnknownName` when there is no such report."""
    if name not in names():
        raise UnknownName("report", name, names())
    return config.resource("notebooks") / f"{name}.ipynb"


def source(name: str, cell: str) -> str:
    """What stands in a cell of the notebook of a report."""
    return _cells(config.resource("notebooks") / f"{name}.ipynb")[cell]


@functools.cache
def _cells(notebook: Path) -> dict[str, str]:
    """The source of the cells of a notebook by their ids."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"the notebook {notebook} cannot be read ({error}).") from error
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def title(name: str) -> str:
    """The title of a report, which is the heading of its notebook."""
    return source(name, "title").partition("\n")[0].removeprefix("# ")


def how_to_read(name: str, figure: Callable[[str, str], str]) -> tuple[tuple[str, str], ...]:
    """The terms of a report with their explanation, from the cell of that name of its notebook.

    A figure such as ``[80](#utilisation.warning)`` is shown as `figure` has it now.
    """
    text = _FIGURE.sub(lambda m: figure(*m.group("line", "status")), source(name, "how-to-read"))
    return tuple((m["term"], " ".join(m["text"].split("\n")).strip()) for m in _TERM.finditer(text))


def module(report: str) -> Any:
    """The module of a report: its `Parameters`, its `CHECKS`, and `build`, from facts to result."""
    return importlib.import_module(f"fwdb.reports.{report}")


def rules(report: str) -> tuple[Rule, ...]:
    """The checks of a report."""
    found: tuple[Rule, ...] = module(report).CHECKS
    return found


def known_parameters(name: str) -> Mapping[str, parameters.Parameter]:
    """The parameters a report takes, by name. Raises `UnknownName`."""
    path(name)
    return parameters.declared(module(name).Parameters)


def accept(name: str, given: Mapping[str, object]) -> parameters.Accepted:
    """The parameters of a report, checked. Raises as `parameters.accept` does."""
    return parameters.accept(name, known_parameters(name), given)


def gather(report: str, db: Database, asked: parameters.Accepted) -> Facts:
    """Facts to begin with, with the lines in force. Raises as `declared` does."""
    chosen, start = module(report).Parameters(**asked.values), f"{report}."
    every = declared(db.settings, **{report: chosen})
    lines = {one.id.removeprefix(start): one for one in every if one.id.startswith(start)}
    return Facts(report, db, asked.window, chosen, db.settings, lines, asked.before)


def declared(settings: Settings | None = None, **given: object) -> list[Line]:
    """Every line of every check, as it is in force, in the order of the reports.

    `given` are the parameters of reports by name, where they are not the default. Raises
    `UnknownName` when FWDB_LIMITS names a line that there is not.
    """
    settings, found = settings or config.settings(), list[Line]()
    for report in names():
        chosen = given.get(report) or module(report).Parameters()
        for rule in rules(report):
            for key, limits in rule.lines.items():
                found.append(limits.line(f"{report}.{key}", rule.databases, settings, chosen))
    settable = [one.id for one in found if one.variable.startswith("FWDB_")]
    for id in settings.limits or {}:
        if id not in settable:
            raise UnknownName("limit", id, settable, where="FWDB_LIMITS")
    return found
