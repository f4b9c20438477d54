"""The two databases behind one shape: the only modules that touch drivers and pools."""

from fwdb.stores.commands import CommandStats
from fwdb.stores.mongodb import MongoStore
from fwdb.stores.pools import PoolStats
from fwdb.stores.postgres import PostgresStore
from fwdb.stores.timings import QueryStats

__all__ = ["CommandStats", "MongoStore", "PoolStats", "PostgresStore", "QueryStats"]
