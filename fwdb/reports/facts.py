"""What one report knows: its window, the lines in force, answers by name, and what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import queries
from fwdb.charts.words import DATABASES, sentence, window_text
from fwdb.errors import (
    FeatureUnavailable,
    PermissionDenied,
    QueryError,
    QueryTimeout,
    StoreUnavailable,
    Transient,
)
from fwdb.reports.parameters import Window, iso
from fwdb.reports.results import Check, Kpi, Result, Shown, Status

if TYPE_CHECKING:
    from fwdb.config import Settings
    from fwdb.database import Database
    from fwdb.reports.check import Line

# What a question may end in without ending the report. Anything else is a fault of fwdb.
_REFUSED: dict[type[Exception], Status] = {
    StoreUnavailable: "not_available",
    FeatureUnavailable: "not_available",
    PermissionDenied: "not_measured",
    QueryTimeout: "not_measured",
    QueryError: "not_measured",
    Transient: "not_measured",
}
REFUSALS = tuple(_REFUSED)
# A report can wait longer than a caller of `health()`: a busy server has its say.
ANSWER_SECONDS = 5.0
_DTYPES = {"string": "str", "timestamp": "datetime64[us, UTC]", "bool": "boolean"}


@dataclass
class Facts:
    """What one report knows. `frames` are its answers by name: `facts["history"]`.

    `lines` are those of its checks by subject. `checks` and `kpis` collect what is found, and why
    something could not be. `before` is the window to compare with.
    """

    report: str
    db: Database
    window: Window
    parameters: Any
    settings: Settings
    lines: Mapping[str, Line]
    before: Window | None = None
    frames: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    kpis: list[Kpi] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        return self.frames[name]

    @property
    def live(self) -> bool:
        """Whether the window ends now, so that what is known of this moment only belongs to it."""
        return bool(self.parameters.until == "now")

    @property
    def end(self) -> datetime | None:
        """An open window ends with a reading taken now, any other with the last stored in it."""
        return None if self.live else self.window.until

    @property
    def edges(self) -> dict[str, Any]:
        """`since` and `until` of the window, as charts take them."""
        return {n: pd.Timestamp(getattr(self.window, n)) for n in ("since", "until")}

    @property
    def bounds(self) -> str:
        """The window as it could be typed."""
        return f"{iso(self.window.since)} to {iso(self.window.until)}"

    @property
    def span(self) -> str:
        """The window in words."""
        return window_text(**self.edges)

    @property
    def up(self) -> list[str]:
        """Databases that answer, of those that were looked at."""
        return [c.database for c in self.checks if c.id.endswith(".reachable") and c.status == "ok"]

    def limit(self, key: str) -> float:
        """The number of a line that is no line of a check: `facts.limit("sizing.fewest")`."""
        return self.lines[key].warning

    def reach(self, *databases: str) -> None:
        """Looks which of the databases answer at all; one check for each.

        With a deadline, so that a frozen server does not hold up the report, and beside the pool
        of the work, which may be full.
        """
        for store in self.db.monitor.health(timeout_seconds=ANSWER_SECONDS).stores:
            if store.database not in databases:
                continue
            name, action = DATABASES[store.database], ""
            status: Status = "ok"
            text = f"{name} answers."
            if store.status == "down":
                self.down.add(store.database)
                text = sentence(f"{name} is missing from this report: {store.reason}")
                status, action = "not_available", f"Bring {name} back and run the report again."
            check = Check(f"{self.report}.reachable", store.database, status, text, action=action)
            self.checks.append(check)

    def ask(
        self,
        subject: str,
        question: Callable[[], Any],
        without: Any = None,
        database: str = "postgres",
        *,
        live: bool = False,
    ) -> Any:
        """The answer, or `without` and a check that says why there is none.

        `without` may be the columns of an empty frame, or the query file that declares them. What
        is `live` is not asked of a window that has ended.
        """
        if database not in self.down and (self.live or not live):
            try:
                return question()
            except REFUSALS as error:
                self.refuse(subject, database, error)
        return empty(without) if isinstance(without, str | Mapping) else without

    def take(self, subject: str, *question: Any, **how: Any) -> Any:
        """As `ask`, and kept under the name of the subject."""
        self.frames[subject] = answer = self.ask(subject, *question, **how)
        return answer

    def refuse(self, subject: str, database: str, error: Exception) -> None:
        """Adds the check that says why a question was not answered."""
        status = next(s for kind, s in _REFUSED.items() if isinstance(error, kind))
        text, id = sentence(error), f"{self.report}.{subject}"
        self.checks.append(Check(id, database, status, text, refused=True))

    def refused(self, subject: str, database: str) -> bool:
        """Whether a question on this subject was not answered."""
        wanted = (f"{self.report}.{subject}", database)
        return any((c.id, c.database) == wanted for c in self.checks if c.refused)

    def result(
        self,
        tables: Iterable[Shown],
        charts: Mapping[str, Any],
        sources: tuple[tuple[str, str], ...],
    ) -> Result:
        """The result of what was found, with the tables made of the frames."""
        return Result(
            report=self.report,
            window=self.window,
            parameters=dataclasses.asdict(self.parameters),
            checks=tuple(self.checks),
            kpis=tuple(self.kpis),
            tables=tuple(table.of(self.frames) for table in tables),
            charts=charts,
            sources=sources,
        )


def empty(columns: str | Mapping[str, str], **more: str) -> pd.DataFrame:
    """A frame without rows: the columns of a query file by its name, or these with their types."""
    if isinstance(columns, str):
        columns = queries.load(columns).columns
    kinds = {**columns, **more}
    return pd.DataFrame({n: pd.Series(dtype=_DTYPES.get(k, k)) for n, k in kinds.items()})
