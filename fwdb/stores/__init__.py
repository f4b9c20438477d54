"""The two databases behind one shape: the only modules that touch drivers and pools."""

from fwdb.stores.capture import without_capture
from fwdb.stores.commands import CommandStats
from fwdb.stores.durations import BOUNDS_MS, Durations, percentile_bound_ms
from fwdb.stores.mongodb import MongoStore
from fwdb.stores.pools import Hold, PoolStats
from fwdb.stores.postgres import PostgresStore
from fwdb.stores.timings import QueryStats

__all__ = [
    "BOUNDS_MS",
    "CommandStats",
    "Durations",
    "Hold",
    "MongoStore",
    "PoolStats",
    "PostgresStore",
    "QueryStats",
    "percentile_bound_ms",
    "without_capture",
]
