"""The difference of two readings of pg_stat_statements: what ran between them.

Entries are counted since they began, not since the reading before. An entry can begin anew (a
reset of all or of one), can be dropped to make room for others (eviction), and can come back.
PostgreSQL 17 and later say when each entry began (`stats_since`); before, only a counter that
went down tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fwdb.monitoring.coverage import Coverage, between

Key = tuple[int, int, bool, int]  # role, database, toplevel, query id

HIDDEN = 0  # the query id of all entries that the role may not see

COUNTERS = (
    "calls",
    "total_ms",
    "squares_ms2",
    "row_count",
    "hit_blocks",
    "read_blocks",
    "read_ms",
    "temp_blocks",
    "wal_bytes",
    "plan_ms",
)
# Sums of fractions may come out a hair smaller when nothing happened; whole numbers may not.
_EXACT = ("calls", "row_count", "hit_blocks", "read_blocks", "temp_blocks", "wal_bytes")


@dataclass(frozen=True, slots=True)
class StatementReading:
    """All entries at one moment, and the state of the extension then."""

    read_at: datetime
    server_started_at: datetime
    stats_reset: datetime | None
    database_reset_at: datetime | None
    dealloc: int
    max_entries: int
    io_timed: bool
    plans_timed: bool
    transactions: int
    active_ms: float
    rows: Mapping[Key, Mapping[str, Any]]

    @staticmethod
    def keyed(rows: Iterable[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
        """`rows` by what identifies an entry."""
        return {(r["user_id"], r["database_id"], r["toplevel"], r["query_id"]): r for r in rows}


@dataclass(slots=True)
class Shape:
    """One statement in the window, over all roles that ran it as a client."""

    query_id: int
    calls: int = 0
    total_ms: float = 0.0
    squares_ms2: float = 0.0
    row_count: int = 0
    hit_blocks: int = 0
    read_blocks: int = 0
    read_ms: float = 0.0
    temp_blocks: int = 0
    wal_bytes: int = 0
    plan_ms: float = 0.0
    lower_bound: bool = False

    def add(self, counters: Mapping[str, Any], *, lower_bound: bool) -> None:
        """Count `counters` in."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + counters[name])
        self.lower_bound = self.lower_bound or lower_bound


def difference(
    first: StatementReading, second: StatementReading
) -> tuple[dict[int, Shape], Coverage]:
    """What ran between two readings, per query id, and how far it can be told.

    Statements inside functions are left out: their time is part of the statement that called
    the function, and counting both would count it twice.
    """
    coverage = between(first, second)
    shapes: dict[int, Shape] = {}
    for key, now in second.rows.items():
        if not key[2]:
            continue
        before = first.rows.get(key)
        found = _delta(before, now, first.read_at, emptied=coverage.emptied)
        if found is None:
            coverage.unknown += 1
            continue
        counters, began_anew = found
        coverage.restarted += began_anew
        if counters["calls"]:
            shape = shapes.setdefault(key[3], Shape(key[3]))
            shape.add(counters, lower_bound=began_anew)
            coverage.calls += counters["calls"]
            coverage.total_ms += counters["total_ms"]
    gone = [key for key in first.rows if key[2] and key not in second.rows]
    coverage.lost = len(gone)
    return shapes, coverage


def _delta(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], since: datetime, *, emptied: bool
) -> tuple[Mapping[str, Any], bool] | None:
    """Counters since the first reading and whether the entry began anew; None if unknowable."""
    began = now["stats_since"]
    if before is None and now["query_id"] == HIDDEN:
        return None  # the first reader saw more than the second one
    if before is None:
        # Without stats_since: what was not there at the first reading began after it.
        return (now, False) if began is None or began >= since else None
    anew = (
        emptied or any(now[name] < before[name] for name in _EXACT)
        if began is None
        else began != before["stats_since"]
    )
    if anew:
        return now, True
    return {name: now[name] - before[name] for name in COUNTERS}, False
