"""Asking two databases of which either may be down, slow or forbidden, without losing the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

from fwdb.charts.canvas import DATABASES
from fwdb.errors import (
    FeatureUnavailable,
    PermissionDenied,
    QueryError,
    QueryTimeout,
    StoreUnavailable,
    Transient,
)
from fwdb.reports.results import Check, Kpi, Status

if TYPE_CHECKING:
    from fwdb.database import Database
    from fwdb.monitoring import Measure

T = TypeVar("T")

# What a question may end in without ending the report. Anything else is a fault of fwdb.
REFUSALS: dict[type[Exception], Status] = {
    StoreUnavailable: "not_available",
    FeatureUnavailable: "not_available",
    PermissionDenied: "not_measured",
    QueryTimeout: "not_measured",
    QueryError: "not_measured",
    Transient: "not_measured",
}

# A report can wait longer than a caller of `health()`: a busy server has its say.
ANSWER_SECONDS = 5.0


@dataclass
class Asking:
    """The questions of one report; `checks` collects what could not be answered, and why."""

    report: str
    db: Database
    checks: list[Check] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def reach(self, *databases: str) -> None:
        """Looks which of the databases answer at all; one check for each.

        With a deadline, so that a frozen server does not hold up the report, and beside the pool
        of the work, which may be full.
        """
        for store in self.db.monitor.health(timeout_seconds=ANSWER_SECONDS).stores:
            if store.database not in databases:
                continue
            name = DATABASES[store.database]
            if store.status == "down":
                self.down.add(store.database)
                text = sentence(f"{name} is missing from this report: {store.reason}")
                action = f"Bring {name} back and run the report again."
                self.add("reachable", store.database, "not_available", text, action=action)
            else:
                self.add("reachable", store.database, "ok", f"{name} answers.")

    @property
    def up(self) -> list[str]:
        """Databases that answer, of those that were looked at."""
        return [c.database for c in self.checks if c.id.endswith(".reachable") and c.status == "ok"]

    def ask(self, subject: str, database: str, question: Callable[[], T], without: T) -> T:
        """The answer, or `without` and a check that says why there is none."""
        if database in self.down:
            return without
        try:
            return question()
        except tuple(REFUSALS) as error:
            status = next(s for kind, s in REFUSALS.items() if isinstance(error, kind))
            self.checks.append(
                Check(f"{self.report}.{subject}", database, status, sentence(str(error)))
            )
            return without

    def add(
        self, subject: str, database: str, status: Status, sentence: str, **more: object
    ) -> None:
        """A check of this report."""
        self.checks.append(
            Check(f"{self.report}.{subject}", database, status, sentence, **more)  # type: ignore[arg-type]
        )


def judged(value: float, warning: float, critical: float, *, low_is_bad: bool = False) -> Status:
    """`ok`, `warning` or `critical` for a value against its two lines; on the line is over it."""
    sign = -1 if low_is_bad else 1
    if sign * value >= sign * critical:
        return "critical"
    return "warning" if sign * value >= sign * warning else "ok"


def kpi(id: str, label: str, measure: Measure, note: str = "") -> Kpi:
    """A measure as a key figure, its reason in place of the note when it has no value."""
    return Kpi(
        id,
        label,
        measure.value,
        measure.unit,
        measure.status,
        measure.database,
        note or (sentence(measure.reason) if measure.reason else ""),
    )


def utc_frame(columns: dict[str, str]) -> pd.DataFrame:
    """An empty frame with these columns and types."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def sentence(text: str) -> str:
    """A remark as a sentence of its own: a capital, a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
