"""The connection pools of this process, and who holds their connections."""

from __future__ import annotations

import math
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import pandas as pd

from fwdb.stores import BOUNDS_MS, Hold, PoolStats, frames

PERCENTILES = (50, 95, 99)

POOL_COLUMNS = {
    "database": "string",
    "capacity": "Int64",
    "in_use": "int64",
    "idle": "int64",
    "overflow": "int64",
    "waiting": "int64",
    "waiting_peak": "int64",
    "waits": "int64",
    "wait_ms": "float64",
    "timeouts": "int64",
    **{f"wait_p{percent}_ms": "float64" for percent in PERCENTILES},
    **{f"hold_p{percent}_ms": "float64" for percent in PERCENTILES},
    "hold_mean_ms": "float64",
    **{f"dial_p{percent}_ms": "float64" for percent in PERCENTILES},
    "opened": "int64",
    "closed": "int64",
    "invalidated": "int64",
    "utilisation_percent": "float64",
    "status": "string",
    "reason": "string",
}

HOLDER_COLUMNS = {
    "database": "string",
    "held_seconds": "float64",
    "thread": "string",
    "thread_id": "int64",
    "is_leak": "boolean",
    "call_site": "string",
}

THREAD_ENDED = "the thread ended and did not return the connection"


def pools(stats: Iterable[PoolStats]) -> pd.DataFrame:
    """A row per pool; see `Monitor.pool`."""
    rows = []
    for pool in stats:
        row = {name: getattr(pool, name, None) for name in POOL_COLUMNS}
        for name in ("wait", "hold", "dial"):
            durations = getattr(pool, name)
            for percent in PERCENTILES:
                row[f"{name}_p{percent}_ms"] = durations.percentile_ms(percent)
        row["hold_mean_ms"] = pool.hold.mean_ms
        row["status"], row["reason"] = _status(pool)
        rows.append(list(row.values()))
    return frames.from_rows(list(POOL_COLUMNS), rows, POOL_COLUMNS)


def _status(pool: PoolStats) -> tuple[str, str]:
    """Of the utilisation: the other numbers are always there."""
    if pool.capacity is None:
        return "not_applicable", "the pool has no upper limit, so no share of it is in use"
    return "ok", ""


def with_bounds(durations: pd.DataFrame) -> pd.DataFrame:
    """`pool_durations.sql` with the bounds of each bucket instead of its number."""
    bounds = [0.0, *BOUNDS_MS, math.inf]
    buckets = durations["bucket"].tolist()
    found = durations.assign(
        over_ms=pd.Series([bounds[n - 1] for n in buckets], durations.index, dtype="float64"),
        up_to_ms=pd.Series([bounds[n] for n in buckets], durations.index, dtype="float64"),
    )
    found = found[["database", "process", "subject", "over_ms", "up_to_ms", "durations"]]
    found.attrs.update(durations.attrs)
    return found


def holders(holds: Iterable[Hold], *, leak_seconds: float) -> pd.DataFrame:
    """A row per connection that is lent; see `Monitor.holders`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = sys._current_frames()
    rows = []
    for hold in sorted(holds, key=lambda hold: -hold.seconds):
        leak = hold.seconds >= leak_seconds
        frame = running.get(hold.thread_id)
        site = None
        if leak:
            site = THREAD_ENDED if frame is None else call_site(frame)
        name = names.get(hold.thread_id, "")
        rows.append([hold.database, hold.seconds, name, hold.thread_id, leak, site])
    return frames.from_rows(list(HOLDER_COLUMNS), rows, HOLDER_COLUMNS)


# Where code is that no one looks for when a connection is missing: fwdb, its libraries, Python.
_LIBRARIES = tuple(
    {str(Path(__file__).parents[1]), *(sysconfig.get_path(n) for n in ("stdlib", "purelib"))}
)


def call_site(frame: FrameType) -> str:
    """``file:line in function`` of the innermost frame that belongs to the program itself."""
    found = next((f for f in _outwards(frame) if _is_program(f)), frame)
    code = found.f_code
    return f"{code.co_filename}:{found.f_lineno} in {code.co_name}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_program(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith((*_LIBRARIES, "<frozen"))
