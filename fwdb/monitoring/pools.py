"""The connection pools of this process, and those of all processes in the history."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import pandas as pd

from fwdb.monitoring.history import History
from fwdb.stores import PoolStats, frames

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
    "opened": "int64",
    "utilisation_percent": "float64",
    "status": "string",
    "reason": "string",
}


def pools(stats: Iterable[PoolStats]) -> pd.DataFrame:
    """A row per pool; see `Monitor.pool`."""
    rows = []
    for pool in stats:
        bounded = pool.capacity is not None
        rows.append(
            [getattr(pool, name) for name in list(POOL_COLUMNS)[:-2]] + ["ok", ""]
            if bounded
            else [getattr(pool, name) for name in list(POOL_COLUMNS)[:-2]]
            + ["not_applicable", "the pool has no upper limit, so no share of it is in use"]
        )
    return frames.from_rows(list(POOL_COLUMNS), rows, POOL_COLUMNS)


def pool_history(history: History, since: datetime, until: datetime) -> pd.DataFrame:
    """The stored samples of a window; see `Monitor.pool_history`."""
    return history.frame("pool_history", since=since, until=until)
