"""The statements of both stores that took longest in a window."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from fwdb.errors import FwdbError
from fwdb.monitoring import statements
from fwdb.monitoring.commands import CommandWindow
from fwdb.monitoring.differences import HIDDEN, Shape, StatementReading, difference
from fwdb.monitoring.history import History
from fwdb.monitoring.measure import Status
from fwdb.stores import CommandStats, PostgresStore, frames

COLUMNS = {
    "database": "string",
    "query_id": "string",
    "statement": "string",
    "calls": "int64",
    "errors": "Int64",
    "total_ms": "float64",
    "mean_ms": "float64",
    "stddev_ms": "float64",
    "rows": "int64",
    "share_percent": "float64",
    "hit_blocks": "Int64",
    "read_blocks": "Int64",
    "read_ms": "float64",
    "temp_bytes": "Int64",
    "lower_bound": "bool",
}

_BLOCK_BYTES = 8192  # of PostgreSQL, unless compiled otherwise
_GONE = "(text no longer kept by the server)"


@dataclass(slots=True)
class Half:
    """What one store contributes: its rows, or why there are none."""

    database: str
    status: Status = "ok"
    reason: str = ""
    window: tuple[datetime, datetime] | None = None
    rows: list[list[Any]] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    error: FwdbError | None = None


def failed(database: str, error: FwdbError) -> Half:
    """The half of a store that gave an error instead of an answer."""
    return Half(database, "not_available", str(error), error=error)


def postgres_window(
    store: PostgresStore, history: History, since: datetime, until: datetime | None
) -> Half:
    """PostgreSQL's statements between the first stored reading of the window and its end.

    The end is this moment, or the last stored reading before `until`.
    """
    if absence := history.absence():
        return Half("postgres", "no_data", absence)
    edges = history.edges(since, until or datetime.now(UTC), ["full"])
    advice = "run 'fwdb monitor', which takes one every 5 minutes, or sample with live_seconds"
    if not edges:
        return Half("postgres", "no_data", f"no reading was stored in this window: {advice}")
    if until is not None and len(edges) == 1:
        return Half(
            "postgres",
            "no_data",
            f"only one reading was stored in this window, and it takes two: {advice}",
        )
    first = statements.read_stored(history, edges[0])
    if until is None:
        second, recorder = statements.read_now(store)
        hidden = recorder.hidden
    else:
        second, hidden = statements.read_stored(history, edges[1]), ""
    half = _postgres(store, history, first, second)
    half.attrs["readings"] = [edge.reading_id for edge in edges[: 1 if until is None else 2]]
    half.attrs["hidden"] = hidden
    return half


def postgres_live(store: PostgresStore, seconds: float) -> Half:
    """PostgreSQL's statements within the next `seconds`, without any history."""
    first, _ = statements.read_now(store)
    time.sleep(seconds)
    second, recorder = statements.read_now(store)
    half = _postgres(store, None, first, second)
    half.attrs["hidden"] = recorder.hidden
    return half


def _postgres(
    store: PostgresStore, history: History | None, first: StatementReading, second: StatementReading
) -> Half:
    shapes, coverage = difference(first, second)
    texts = statements.texts(store, history, shapes)
    shown = [
        shape
        for shape in shapes.values()
        if shape.query_id != HIDDEN and not statements.is_own(texts.get(shape.query_id, ""))
    ]
    hidden = shapes.get(HIDDEN)
    total = sum(shape.total_ms for shape in shown) + (hidden.total_ms if hidden else 0.0)
    io_timed = first.io_timed and second.io_timed
    return Half(
        "postgres",
        window=(first.read_at, second.read_at),
        rows=[
            _postgres_row(shape, texts.get(shape.query_id, _GONE), total, io_timed=io_timed)
            for shape in shown
        ],
        attrs={
            "coverage": {
                "complete": coverage.complete,
                "sentence": coverage.sentence,
                "dealloc": coverage.dealloc,
                "restarted": coverage.restarted,
                "lost": coverage.lost,
                "unknown": coverage.unknown,
                "server_restarted": coverage.server_restarted,
            },
            "totals": {
                "statements": len(shown),
                "calls": sum(shape.calls for shape in shown) + (hidden.calls if hidden else 0),
                "total_ms": total,
            },
            "read_time": "ok" if io_timed else "not measured (track_io_timing is off)",
        },
    )


def _postgres_row(shape: Shape, text: str, total: float, *, io_timed: bool) -> list[Any]:
    mean, deviation = moments(shape.calls, shape.total_ms, shape.squares_ms2)
    return [
        "postgres",
        str(shape.query_id),
        text,
        shape.calls,
        None,  # pg_stat_statements counts no statement that failed
        shape.total_ms,
        mean,
        deviation,
        shape.row_count,
        100 * shape.total_ms / total if total else 0.0,
        shape.hit_blocks,
        shape.read_blocks,
        shape.read_ms if io_timed else None,
        shape.temp_blocks * _BLOCK_BYTES,
        shape.lower_bound,
    ]


def mongodb_half(found: CommandWindow) -> Half:
    """MongoDB's commands, as the processes that sent them timed them."""
    if not found.commands:
        return Half("mongodb", "no_data", found.reason, attrs={"coverage": found.coverage})
    total = sum(command.total_ms for command in found.commands)
    return Half(
        "mongodb",
        window=found.window,
        rows=[_mongodb_row(command, total) for command in found.commands],
        attrs={
            "coverage": found.coverage,
            "totals": {
                "statements": len(found.commands),
                "calls": sum(command.calls for command in found.commands),
                "total_ms": total,
            },
        },
    )


def _mongodb_row(command: CommandStats, total: float) -> list[Any]:
    mean, deviation = moments(command.calls, command.total_ms, command.squares_ms2)
    identity = "\0".join((command.command, command.namespace, command.shape))
    return [
        "mongodb",
        hashlib.sha256(identity.encode()).hexdigest()[:16],
        command.shape,
        command.calls,
        command.errors,
        command.total_ms,
        mean,
        deviation,
        command.documents,
        100 * command.total_ms / total if total else 0.0,
        None,
        None,
        None,
        None,
        False,
    ]


def moments(calls: int, total_ms: float, squares_ms2: float) -> tuple[float, float]:
    """Mean and population standard deviation from the sums of times and of their squares."""
    mean = total_ms / calls
    return mean, math.sqrt(max(0.0, squares_ms2 / calls - mean * mean))


def combined(
    halves: Iterable[Half], *, min_ms: float, top: int, asked: Mapping[str, datetime | None]
) -> pd.DataFrame:
    """One frame of both halves, heaviest total first; see `Monitor.slow_queries`."""
    halves = list(halves)
    if not any(half.window for half in halves):
        for half in halves:
            if half.error:
                raise half.error
    rows = [row for half in halves for row in half.rows]
    frame = frames.from_rows(list(COLUMNS), rows, COLUMNS)
    frame = frame[frame["mean_ms"] >= min_ms]
    frame = frame.sort_values(["total_ms", "query_id"], ascending=[False, True]).head(top)
    frame = frame.reset_index(drop=True)
    windows = [half.window for half in halves if half.window]
    missing = {half.database: half.reason for half in halves if half.status != "ok"}
    frame.attrs.update(
        status="ok" if windows else "no_data",
        reason="" if windows else "; ".join(missing.values()),
        missing=missing,
        statuses={half.database: half.status for half in halves},
        asked=dict(asked),
        window={
            "since": min(window[0] for window in windows),
            "until": max(window[1] for window in windows),
        }
        if windows
        else dict(asked),
        windows={half.database: half.window for half in halves if half.window},
    )
    for name in ("coverage", "totals", "readings", "hidden", "read_time"):
        frame.attrs[name] = {
            half.database: half.attrs[name] for half in halves if half.attrs.get(name)
        }
    return frame
