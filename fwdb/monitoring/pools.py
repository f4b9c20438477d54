"""The connection pools of this process, and who holds their connections."""

from __future__ import annotations

import math
import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType

import pandas as pd

from fwdb.arguments import Seconds
from fwdb.monitoring.context import Context, frame
from fwdb.stores import BOUNDS_MS
from fwdb.timespan import Time

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


def pool(self: Context) -> pd.DataFrame:
    """The connection pools of this process, now; one row per store.

    `capacity` is the most connections it may open, `waiting` the callers that queue for one
    now and `waiting_peak` the most there were. Counts are since the pool was made, as are
    the percentiles of waits that were needed, holds that have ended and dials, which are no
    waits: the bound of `fwdb.stores.BOUNDS_MS` that so many percent did not exceed.
    `utilisation_percent` is in use ÷ capacity; it is missing, and `status`
    ``not_applicable``, for a pool without a limit. The monitor's own pools are left out.
    """
    rows = []
    for one in (store.pool() for store in self.watched):
        row = {name: getattr(one, name, None) for name in POOL_COLUMNS}
        for name in ("wait", "hold", "dial"):
            for percent in PERCENTILES:
                row[f"{name}_p{percent}_ms"] = getattr(one, name).percentile_ms(percent)
        row["hold_mean_ms"] = one.hold.mean_ms
        row |= {"status": "ok", "reason": ""}  # of the utilisation: other numbers are always there
        if one.capacity is None:
            row["status"] = "not_applicable"
            row["reason"] = "the pool has no upper limit, so no share of it is in use"
        rows.append(row)
    return frame(POOL_COLUMNS, rows)


def pool_history(self: Context, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
    """Stored samples of the pools of all processes in the window, oldest first.

    `waits`, `wait_ms`, `timeouts`, `holds` and `hold_ms` are those since the process's
    sample before, `seconds` ago. Without rows, ``attrs["reason"]`` says what would make some.
    """
    return self.history.frame("pool_history", since, until)


def pool_durations(self: Context, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
    """Waits, holds and dials of the pools in the window, counted by how long they took.

    A row per store, process, `subject` (``wait``, ``hold``, ``dial``) and used bucket, whose
    bounds are `over_ms` and `up_to_ms`, the last one ``inf``.
    """
    found = self.history.frame("pool_durations", since, until)
    bounds = pd.Series([0.0, *BOUNDS_MS, math.inf], dtype="float64")
    bucket = found["bucket"].to_numpy()
    found.insert(3, "over_ms", bounds.to_numpy()[bucket - 1])
    found.insert(4, "up_to_ms", bounds.to_numpy()[bucket])
    return found.drop(columns="bucket")


def holders(self: Context, *, leak_seconds: Seconds | None = None) -> pd.DataFrame:
    """Who holds connections of this process's pools now; a row per connection, oldest first.

    `thread` is the name of the thread that took it, empty when that has ended. From
    `leak_seconds` on (FWDB_LEAK_SECONDS, 60) `is_leak` is true and `call_site` tells where
    in the program that thread is at this moment, ``file:line in function``: a checkout notes
    no place, so that it costs nothing.
    """
    limit = self.thresholds.leak_seconds if leak_seconds is None else leak_seconds
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = sys._current_frames()
    rows = []
    holds = [hold for store in self.watched for hold in store.holds()]
    for hold in sorted(holds, key=lambda hold: -hold.seconds):
        leak, site = hold.seconds >= limit, None
        if leak:
            at = running.get(hold.thread_id)
            site = THREAD_ENDED if at is None else call_site(at)
        name, ident = names.get(hold.thread_id, ""), hold.thread_id
        cells = (hold.database, hold.seconds, name, ident, leak, site)
        rows.append(dict(zip(HOLDER_COLUMNS, cells, strict=True)))
    return frame(HOLDER_COLUMNS, rows)


# Where code is that no one looks for when a connection is missing: fwdb, its libraries, Python.
_LIBRARIES = tuple(
    {str(Path(__file__).parents[1]), *(sysconfig.get_path(n) for n in ("stdlib", "purelib"))}
)


def call_site(frame: FrameType) -> str:
    """``file:line in function`` of the innermost frame that belongs to the program itself."""
    found, outer = frame, frame.f_back
    while outer is not None and _is_library(found):
        found, outer = outer, outer.f_back
    if _is_library(found):
        found = frame
    return f"{found.f_code.co_filename}:{found.f_lineno} in {found.f_code.co_name}"


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((*_LIBRARIES, "<frozen"))
