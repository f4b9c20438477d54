"""The connection pools of this process."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

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
    measured = list(POOL_COLUMNS)[:-2]
    rows = [[*(getattr(pool, name) for name in measured), *_status(pool)] for pool in stats]
    return frames.from_rows(list(POOL_COLUMNS), rows, POOL_COLUMNS)


def _status(pool: PoolStats) -> tuple[str, str]:
    """Of the utilisation: the other numbers are always there."""
    if pool.capacity is None:
        return "not_applicable", "the pool has no upper limit, so no share of it is in use"
    return "ok", ""
