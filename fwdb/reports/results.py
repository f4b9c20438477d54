"""What a report found: checks, figures and tables, the verdict, and `results.json`.

The file has the schema number 1 and nothing in it that is not data: no run time, no host, no id.
The same data and the same window give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from fwdb.charts.words import DATABASES
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

# As a reader wants them: what is wrong first, what could not be seen next.
WORDS: dict[str, str] = {
    "critical": "Critical",
    "warning": "Warning",
    "not_available": "Not available",
    "no_data": "No data",
    "not_measured": "Not measured",
    "ok": "OK",
    "not_applicable": "Not applicable",
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
    status: Status | Literal[""] = ""
    database: str = ""
    note: str = ""

    def filled(self, database: str, status: Status) -> Kpi:
        """With the database in id and label, and the status of its check unless it has its own."""
        id, label = self.id.format(database), self.label.format(DATABASES[database])
        return replace(self, id=id, label=label, database=database, status=self.status or status)

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
        columns = [str(c) for c in self.frame.columns]
        rows = {"rows": len(self.frame), "columns": columns}
        return {"name": self.name, "title": self.title, "file": self.file, **rows}

    def csv(self) -> str:
        """The rows as CSV: UTC times, no index, and no text that a spreadsheet would run."""
        return as_csv(self.frame)


@dataclass(frozen=True)
class Shown:
    """A table as a report declares it; title, about and columns may name texts of the facts.

    `columns` are those on the page, all when empty. The frame is that of the `frame` of the facts,
    or of the name of the table.
    """

    name: str
    title: str
    about: str
    columns: str = ""
    frame: str = ""

    def of(self, frames: Mapping[str, Any]) -> Table:
        """The table of these facts."""
        rows = frames[self.frame or self.name].reset_index(drop=True)
        texts = (text.format_map(frames) for text in (self.title, self.about, self.columns))
        title, about, columns = texts
        return Table(self.name, title, rows, about, tuple(columns.split()))


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
    def ranked(self) -> list[Check]:
        """The checks, what is wrong first."""
        return ranked(self.checks)

    @property
    def missing(self) -> list[Check]:
        """Of databases that do not answer."""
        reach = [c for c in self.checks if c.id.endswith(".reachable")]
        return [c for c in reach if c.status == "not_available"]

    @property
    def verdict(self) -> Verdict:
        """The worst of all checks that could be judged; `no_data` when none could.

        `no_data` also when all is well but the subject of the report itself was not measured.

        That a database answers says nothing about how it does, so it does not count as judged.
        A database that does not answer is a warning as long as the other one is judged: a report
        with half of its facts missing must not say that all is well.
        """
        states = {check.status for check in self.checks if not check.id.endswith(".reachable")}
        if not states & set(JUDGED):
            return "no_data"
        if "critical" in states:
            return "critical"
        if "warning" in states or self.missing:
            return "warning"
        subject = {check.status for check in self.checks if self.roles.get(check.id)}
        return "ok" if not subject or subject & set(JUDGED) else "no_data"

    @property
    def summary(self) -> str:
        """The verdict's reasons in one sentence: at most three findings, and what is missing."""
        if self.verdict == "no_data":
            reasons = self.missing or [c for c in self.checks if self.roles.get(c.id)]
            reasons = reasons or [c for c in self.ranked if c.status not in JUDGED]
            return _join(reasons[:2]) if reasons else "Nothing was measured."
        found = [c for c in self.ranked if c.status in ("critical", "warning")] + self.missing
        if found:
            text, more = _join(found[:3]), len(found) - 3
            return text if more <= 0 else f"{text[:-1]}; and {more} more."
        fine = [c for c in self.checks if c.status == "ok"]
        blind = len([c for c in self.checks if c.status not in ("ok", "not_applicable")])
        unseen = f"; {blind} could not be measured" if blind else ""
        told = "".join(f"{c.sentence} " for c in fine if self.roles.get(c.id) == "news")
        are = "check is" if len(fine) == 1 else "checks are"
        return f"{told}{len(fine)} {are} within the lines{unseen}."

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


def ranked(checks: Iterable[Check]) -> list[Check]:
    """Checks in the order of `WORDS`."""
    order = [*WORDS]
    return sorted(checks, key=lambda c: (order.index(c.status), c.id, c.database))


def _join(checks: list[Check]) -> str:
    """The sentences as one; after a semicolon names like PostgreSQL keep their capital."""
    first, *others = (c.sentence.rstrip(".") for c in checks)
    for text in others:
        word = text.partition(" ")[0]
        first += "; " + (text[:1].lower() + text[1:] if word[1:].islower() else text)
    return f"{first}."


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
