"""What each store's statements did in a window, in the same terms for both."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fwdb.errors import FwdbError
from fwdb.measure import Status
from fwdb.monitoring import statements
from fwdb.monitoring.commands import CommandWindow
from fwdb.monitoring.differences import HIDDEN, Shape, StatementReading, difference
from fwdb.monitoring.history import History
from fwdb.monitoring.profiler import Profile
from fwdb.stores import CommandStats, PostgresStore

BLOCK_BYTES = 8192  # of PostgreSQL, unless compiled otherwise
_GONE = "(text no longer kept by the server)"
ADVICE = "run 'fwdb monitor', which takes one every 5 minutes, or sample with live_seconds"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement shape in a window; None is what its store, or its settings, cannot tell."""

    database: str
    query_id: str
    text: str
    calls: int
    errors: int | None
    total_ms: float
    squares_ms2: float
    rows: int | None
    hit_blocks: int | None = None
    read_blocks: int | None = None
    read_ms: float | None = None
    temp_bytes: int | None = None
    wal_bytes: int | None = None
    plan_ms: float | None = None
    docs_examined_per_call: float | None = None
    lower_bound: bool = False

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.calls

    @property
    def stddev_ms(self) -> float:
        return moments(self.calls, self.total_ms, self.squares_ms2)[1]

    @property
    def rows_per_call(self) -> float | None:
        return None if self.rows is None else self.rows / self.calls

    @property
    def blocks_per_call(self) -> float | None:
        """Blocks asked for per call, found in shared buffers or not."""
        if self.hit_blocks is None or self.read_blocks is None:
            return None
        return (self.hit_blocks + self.read_blocks) / self.calls

    @property
    def hit_ratio(self) -> float | None:
        """Blocks found in shared buffers ÷ blocks asked for; None when none were."""
        if not self.blocks_per_call or self.hit_blocks is None:
            return None
        return self.hit_blocks / (self.blocks_per_call * self.calls)

    @property
    def read_ms_per_block(self) -> float | None:
        """Time for one block that had to be read; None when none had to, or it is not timed."""
        return self.read_ms / self.read_blocks if self.read_ms and self.read_blocks else None


def moments(calls: int, total_ms: float, squares_ms2: float) -> tuple[float, float]:
    """Mean and population standard deviation from the sums of times and of their squares."""
    mean = total_ms / calls
    return mean, math.sqrt(max(0.0, squares_ms2 / calls - mean * mean))


@dataclass(slots=True)
class Half:
    """What one store contributes: its statements, or why there are none.

    `not_measured` says, per column, why its values are missing.
    """

    database: str
    status: Status = "ok"
    reason: str = ""
    window: tuple[datetime, datetime] | None = None
    statements: list[Statement] = field(default_factory=list)
    total_ms: float = 0.0
    calls: int = 0
    coverage: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    source: str = ""
    hidden: str = ""
    readings: list[int] = field(default_factory=list)
    error: FwdbError | None = None

    @property
    def totals(self) -> dict[str, Any]:
        """Of all statements of the window, whichever of them are shown."""
        if self.window is None:
            return {}
        return {
            "statements": len(self.statements),
            "calls": self.calls,
            "total_ms": self.total_ms,
        }


def failed(database: str, error: FwdbError) -> Half:
    """The half of a store that gave an error instead of an answer."""
    return Half(database, "not_available", str(error), error=error)


# -- PostgreSQL -----------------------------------------------------------------------------------


def postgres_window(
    store: PostgresStore, history: History, since: datetime, until: datetime | None
) -> Half:
    """PostgreSQL's statements between the first stored reading of the window and its end.

    The end is this moment, or the last stored reading before `until`.
    """
    if absence := history.absence():
        return Half("postgres", "no_data", absence)
    edges = history.edges(since, until or datetime.now(UTC), ["full"])
    if not edges:
        return Half("postgres", "no_data", f"no reading was stored in this window: {ADVICE}")
    if until is not None and len(edges) == 1:
        return Half(
            "postgres",
            "no_data",
            f"only one reading was stored in this window, and it takes two: {ADVICE}",
        )
    first = statements.read_stored(history, edges[0])
    if until is None:
        second, recorder = statements.read_now(store)
        hidden = recorder.hidden
    else:
        second, hidden = statements.read_stored(history, edges[1]), ""
    half = postgres_between(store, history, first, second)
    half.readings = [edge.reading_id for edge in edges[: 1 if until is None else 2]]
    half.hidden = hidden
    return half


def postgres_live(store: PostgresStore, seconds: float) -> Half:
    """PostgreSQL's statements within the next `seconds`, without any history."""
    first, _ = statements.read_now(store)
    time.sleep(seconds)
    second, recorder = statements.read_now(store)
    half = postgres_between(store, None, first, second)
    half.hidden = recorder.hidden
    return half


def postgres_between(
    store: PostgresStore, history: History | None, first: StatementReading, second: StatementReading
) -> Half:
    """PostgreSQL's statements between two readings."""
    shapes, coverage = difference(first, second)
    texts = statements.texts(store, history, shapes)
    counted = [s for s in shapes.values() if not statements.is_own(texts.get(s.query_id, ""))]
    not_measured = {
        "errors": "pg_stat_statements counts no statement that failed",
        "docs_examined_per_call": "MongoDB only",
    }
    if not (first.io_timed and second.io_timed):
        not_measured["read_ms"] = "track_io_timing is off"
    if not (first.plans_timed and second.plans_timed):
        not_measured["plan_ms"] = "pg_stat_statements.track_planning is off"
    return Half(
        "postgres",
        window=(first.read_at, second.read_at),
        statements=[
            _postgres_statement(s, texts.get(s.query_id, _GONE), not_measured)
            for s in counted
            if s.query_id != HIDDEN
        ],
        total_ms=sum(shape.total_ms for shape in counted),
        calls=sum(shape.calls for shape in counted),
        coverage=coverage.as_dict(),
        not_measured=not_measured,
        source="difference of two readings of pg_stat_statements",
    )


def _postgres_statement(shape: Shape, text: str, not_measured: dict[str, str]) -> Statement:
    return Statement(
        database="postgres",
        query_id=str(shape.query_id),
        text=text,
        calls=shape.calls,
        errors=None,
        total_ms=shape.total_ms,
        squares_ms2=shape.squares_ms2,
        rows=shape.row_count,
        hit_blocks=shape.hit_blocks,
        read_blocks=shape.read_blocks,
        read_ms=None if "read_ms" in not_measured else shape.read_ms,
        temp_bytes=shape.temp_blocks * BLOCK_BYTES,
        wal_bytes=shape.wal_bytes,
        plan_ms=None if "plan_ms" in not_measured else shape.plan_ms,
        lower_bound=shape.lower_bound,
    )


# -- MongoDB --------------------------------------------------------------------------------------

_POSTGRES_ONLY = dict.fromkeys(
    (
        *("hit_blocks", "read_blocks", "blocks_per_call", "hit_ratio", "read_ms"),
        *("temp_bytes", "wal_bytes", "plan_ms"),
    ),
    "MongoDB does not tell it per command",
)


def mongodb_half(found: CommandWindow, profile: Profile) -> Half:
    """MongoDB's commands: as the processes that sent them timed them, else as the server did.

    The clients see every command; the profiler those above its threshold, of all clients. What
    only the profiler knows is added to the commands that the clients timed.
    """
    examined = profile.docs_examined_per_call
    not_measured = dict(_POSTGRES_ONLY)
    counted = bool(found.commands)  # the clients count documents, the profiler not everywhere
    if not examined:
        not_measured["docs_examined_per_call"] = profile.examined_reason
    if found.commands:
        commands, window, coverage = found.commands, found.window, found.coverage
        source = "commands as their clients timed them"
    elif profile.commands:
        commands, window, source = profile.commands, profile.window, "system.profile"
        coverage = {"complete": False, "sentence": profile.sentence}
        if not profile.counted:
            not_measured["rows"] = "the profiler of this server does not count documents"
    else:
        # That nothing was timed is what helps first; the profiler is only the second source.
        reason = f"{found.reason}; {profile.reason}" if profile.reason else found.reason
        return Half("mongodb", "no_data", reason, coverage=found.coverage)
    return Half(
        "mongodb",
        window=window,
        statements=[
            _mongodb_statement(
                command, examined, counted=counted or _key(command) in profile.counted
            )
            for command in commands
        ],
        total_ms=sum(command.total_ms for command in commands),
        calls=sum(command.calls for command in commands),
        coverage=coverage,
        not_measured=not_measured,
        source=source,
    )


def _mongodb_statement(
    command: CommandStats, examined: dict[tuple[str, str, str], float], *, counted: bool
) -> Statement:
    key = _key(command)
    return Statement(
        database="mongodb",
        query_id=hashlib.sha256("\0".join(key).encode()).hexdigest()[:16],
        text=command.shape,
        calls=command.calls,
        errors=command.errors,
        total_ms=command.total_ms,
        squares_ms2=command.squares_ms2,
        rows=command.documents if counted else None,
        docs_examined_per_call=examined.get(key),
    )


def _key(command: CommandStats) -> tuple[str, str, str]:
    return command.command, command.namespace, command.shape
