"""What a report found: checks, figures and tables, the verdict, and `results.json`.

The file has the schema number 1 and nothing in it that is not data: no run time, no host, no id.
The same data and the same window give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from fwdb.charts.words import DATABASES
from fwdb.reports.parameters import Value, Window
from fwdb.stores.frames import as_csv

Status = Literal[
    "ok", "warning", "critical", "not_available", "not_applicable", "not_measured", "no_data"
]
Judged = Literal["ok", "warning", "critical"]
Verdict = Literal["ok", "warning", "critical", "no_data"]
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
    `refused` is no finding but a question that was not answered.
    """

    id: str
    database: str
    status: Status
    sentence: str
    value: float | None = None
    unit: str = ""
    threshold: float | None = None
    action: str = ""
    refused: bool = field(default=False, repr=False, compare=False)


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

    def csv(self) -> str:
        """The rows as CSV: UTC times, no index, and no text that a spreadsheet would run."""
        return as_csv(self.frame)


@dataclass(frozen=True)
class Shown:
    """A table as a report declares it; its texts may name others of the facts, in braces.

    `columns` are those on the page, all when empty; `frame` is the name of the frame of the facts
    where it is not that of the table.
    """

    name: str
    title: str
    about: str
    columns: str = ""
    frame: str = ""

    def of(self, frames: Mapping[str, Any]) -> Table:
        """The table of these facts."""
        rows = frames[self.frame or self.name].reset_index(drop=True)
        title, about = self.title.format_map(frames), self.about.format_map(frames)
        return Table(self.name, title, rows, about, tuple(self.columns.format_map(frames).split()))


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
    def _missing(self) -> list[Check]:
        reach = [c for c in self.checks if c.id.endswith(".reachable")]
        return [c for c in reach if c.status == "not_available"]

    @property
    def verdict(self) -> Verdict:
        """The worst of all checks that could be judged; `no_data` when none could.

        `no_data` also when all is well but the subject of the report itself was not measured.
        That a database answers says nothing about how it does, so it does not count as judged. One
        that does not answer is a warning as long as the other one is judged: a report with half of
        its facts missing must not say that all is well.
        """
        states = {check.status for check in self.checks if not check.id.endswith(".reachable")}
        subject = {check.status for check in self.checks if self.roles.get(check.id)} or {"ok"}
        if not states & set(JUDGED):
            return "no_data"
        if "critical" in states:
            return "critical"
        if "warning" in states or self._missing:
            return "warning"
        return "ok" if subject & set(JUDGED) else "no_data"

    @property
    def summary(self) -> str:
        """The verdict's reasons in one sentence: at most three findings, and what is missing."""
        if self.verdict == "no_data":
            reasons = self._missing or [c for c in self.checks if self.roles.get(c.id)]
            reasons = reasons or [c for c in self.ranked if c.status not in JUDGED]
            return _join(reasons[:2]) if reasons else "Nothing was measured."
        found = [c for c in self.ranked if c.status in ("critical", "warning")] + self._missing
        if found:
            text, more = _join(found[:3]), len(found) - 3
            return text if more <= 0 else f"{text[:-1]}; and {more} more."
        fine = [c for c in self.checks if c.status == "ok"]
        blind = len([c for c in self.checks if c.status not in ("ok", "not_applicable")])
        told = "".join(f"{c.sentence} " for c in fine if self.roles.get(c.id) == "news")
        told += f"{len(fine)} {'check is' if len(fine) == 1 else 'checks are'} within the lines"
        return f"{told}; {blind} could not be measured." if blind else f"{told}."

    def as_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        checks = sorted(self.checks, key=lambda c: (c.id, c.database))
        check, kpi = "database status value unit threshold sentence action", "label database status"
        return {
            "schema": 1,
            "report": self.report,
            "verdict": self.verdict,
            "summary": self.summary,
            "window": self.window.as_dict(),
            "parameters": {name: _plain(value) for name, value in self.parameters.items()},
            "checks": [_chosen(one, f"id {check}") for one in checks],
            "kpis": [_chosen(one, f"id {kpi} value unit note") for one in self.kpis],
            "tables": [
                _chosen(one, "name title file")
                | {"rows": len(one.frame), "columns": [str(c) for c in one.frame.columns]}
                for one in self.tables
            ],
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
        ordinary = text.partition(" ")[0][1:].islower()
        first += "; " + (text[:1].lower() + text[1:] if ordinary else text)
    return f"{first}."


def _chosen(of: object, names: str) -> dict[str, Any]:
    return {name: _plain(getattr(of, name)) for name in names.split()}


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no numpy, no digits that nobody measured."""
    if value is None or value is pd.NA or isinstance(value, str | bool):
        return None if value is pd.NA else value
    if isinstance(value, int | np.integer):
        return int(value)
    return round(float(value), 6) if math.isfinite(value) else None
