"""The two databases behind one shape: the only modules that touch drivers and pools."""

from fwdb.stores.commands import CommandStats
from fwdb.stores.mongodb import MongoStore
from fwdb.stores.pool import Hold, PoolStats
from fwdb.stores.postgres import PostgresStore, without_capture
from fwdb.stores.timing import BOUNDS_MS, Durations, QueryStats

__all__ = [
    "BOUNDS_MS",
    "CommandStats",
    "Durations",
    "Hold",
    "MongoStore",
    "PoolStats",
    "PostgresStore",
    "QueryStats",
    "without_capture",
]
