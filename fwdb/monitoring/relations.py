"""Tables, collections and their indexes: how large, how they grow, what nobody needs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pandas as pd

from fwdb import queries
from fwdb.monitoring.context import Context, both_stores
from fwdb.monitoring.history import window
from fwdb.monitoring.readings import Row, Rows
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time

_STATES = queries.load("table_states").columns
TABLES = {
    **{name: _STATES[name] for name in ("database", "table", "total_bytes", "index_bytes")},
    "growth_bytes": "Int64",
    "growth_since_at": "timestamp",
    **_STATES,
}
INDEXES = {**queries.load("index_states").columns, "unused": "boolean"}

# A job that runs once a week must have had its turn before its index is called unused.
UNUSED_DAYS = 7

# Every collection is asked by itself, so a server of many thousands would be kept busy by it.
MOST_COLLECTIONS = 1000

SECANTUS_SIZES = "SecantusDB reads every document to tell a size, so it is not asked for any"
SECANTUS_SCANS = "SecantusDB does not count the use of its indexes"


def sizes(rows: Rows) -> dict[str, list[Any]]:
    """What a reading keeps of tables or collections, by name: total bytes, live and dead rows."""
    return {r["table"]: [r["total_bytes"], r["live_rows"], r.get("dead_rows")] for r in rows}


def tables(self: Context, since: Time = "24h") -> pd.DataFrame:
    """Tables and collections, now, the largest first of each store.

    `total_bytes` is the rows with indexes and out-of-line values, `growth_bytes` how much it
    grew since `growth_since_at`, the first full reading stored since `since`; missing
    without one. `dead_percent` are row versions nobody needs of all there are. The ages of
    the last vacuum and analyze are missing when there was none since the counters began;
    `transaction_age` counts transactions since the oldest row was frozen. SecantusDB has no
    sizes. ``attrs["missing"]``: per store what could not be told, and why. Raises the error
    of PostgreSQL when neither store can be asked.
    """
    start, _ = window(since, None)
    edges = []
    if not self.history.absence():
        edges = self.history.edges(start, datetime.now(UTC), "full")[:1]

    def grown(database: str, rows: Rows) -> Rows:
        for edge in edges:
            kept = self.history.stored(edge.reading_id, database, "tables")
            rows = [row | growth(row, kept, edge.read_at) for row in rows]
        return rows

    def ask_postgres() -> tuple[Rows, dict[str, str]]:
        rows = grown("postgres", self.postgres.rows("table_states"))
        return rows, {"missing": "" if rows else "there is no table"}

    def ask_mongodb() -> tuple[Rows, dict[str, str]]:
        rows = grown("mongodb", mongodb_tables(self.mongodb))
        sized = SECANTUS_SIZES if self.mongodb.is_secantus else ""
        return rows, {"missing": sized if rows else "there is no collection"}

    return both_stores(TABLES, {"postgres": ask_postgres, "mongodb": ask_mongodb})


def growth(row: Row, kept: Any, read_at: datetime) -> dict[str, Any]:
    """Bytes since a reading that kept `sizes`; a table that it did not have grew from nothing."""
    known = None if kept is None else kept.get(row["table"], [0])[0]
    if known is None or row.get("total_bytes") is None:
        return {}
    return {"growth_bytes": row["total_bytes"] - known, "growth_since_at": read_at}


def mongodb_tables(store: MongoStore) -> Rows:
    """The collections; on SecantusDB without sizes."""
    rows = []
    for name in _collections(store):
        row: dict[str, Any] = {"database": "mongodb", "table": name}
        with store.errors():
            if store.is_secantus:
                row["live_rows"] = store.collection(name).estimated_document_count()
            else:
                # storageSize is what documents take on disk, size what they would in memory.
                statistics = _statistics(store, name)
                row["index_bytes"] = int(statistics["totalIndexSize"])
                row["total_bytes"] = int(statistics["storageSize"]) + row["index_bytes"]
                row["live_rows"] = int(statistics["count"])
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("total_bytes", 0))


def _statistics(store: MongoStore, collection: str) -> Mapping[str, Any]:
    found = store.collection(collection).aggregate([{"$collStats": {"storageStats": {}}}])
    statistics: Mapping[str, Any] = next(iter(found))["storageStats"]
    return statistics


def _collections(store: MongoStore) -> list[str]:
    with store.errors():
        names: list[str] = store.database.list_collection_names(filter={"type": "collection"})
    kept = sorted(name for name in names if not name.startswith("system."))
    return kept[:MOST_COLLECTIONS]


def indexes(self: Context) -> pd.DataFrame:
    """Indexes of both stores, now, the largest first of each store.

    `scans` count since `counted_since_at`, on this server. `unused` is true only when that
    can be known: no scan for 7 days and more, not needed to keep rows unique, and no replica
    that may use it; missing otherwise, with the reason in ``attrs["unjudged"]``.
    `duplicate_of` names an index that answers the same questions. An index that is not valid
    costs writes and answers nothing. SecantusDB counts no use. Raises the error of
    PostgreSQL when neither store can be asked.
    """
    questions = {
        "postgres": partial(_postgres_indexes, self.postgres),
        "mongodb": partial(_mongodb_indexes, self.mongodb),
    }
    return both_stores(INDEXES, questions, "unjudged")


def _postgres_indexes(store: PostgresStore) -> tuple[Rows, dict[str, str]]:
    replicas = any(row["slot_type"] != "logical" for row in store.rows("replicas"))
    rows, now = store.rows("index_states"), datetime.now(UTC)
    reason = unjudgeable(rows, now, replicas=replicas)
    for row in rows:
        row["unused"] = unused(row, known=row["is_valid"] and not reason)
    return rows, {"unjudged": reason}


def unjudgeable(rows: Rows, now: datetime, *, replicas: bool) -> str:
    """Why no index of PostgreSQL can be called unused; empty when they can be judged."""
    if replicas:
        return "a replica counts its own scans, so an index without scans here may be in use there"
    since = rows[0]["counted_since_at"] if rows else None
    if since is not None and now - since < timedelta(days=UNUSED_DAYS):
        return (
            f"scans are counted since {since:%Y-%m-%d %H:%M} UTC, and an index that is not used "
            f"for fewer than {UNUSED_DAYS} days is not called unused"
        )
    if rows and since is None:
        return "the server does not tell since when it counts scans"
    return ""


def unused(row: Row, *, known: bool) -> bool | None:
    """An index that was scanned is used, whoever else counts; the contrary must be known."""
    if row["scans"] or row["is_needed"]:
        return False
    return True if known else None


def _mongodb_indexes(store: MongoStore) -> tuple[Rows, dict[str, str]]:
    """SecantusDB tells of no use: its counters are constants."""
    rows, now, secantus = [], datetime.now(UTC), store.is_secantus
    for name in _collections(store):
        collection = store.collection(name)
        with store.errors():
            listed, used, sizes = list(collection.list_indexes()), {}, {}
            if not secantus:
                used = {
                    s["name"]: s["accesses"] for s in collection.aggregate([{"$indexStats": {}}])
                }
                sizes = _statistics(store, name)["indexSizes"]
        for index in listed:
            kept = index["name"] == "_id_" or index.get("unique") or "expireAfterSeconds" in index
            row = {
                "database": "mongodb",
                "table": name,
                "index": index["name"],
                "index_bytes": sizes.get(index["name"]),
                "is_needed": bool(kept),
                "is_valid": True,
            }
            if accesses := used.get(index["name"]):
                since = accesses["since"].replace(tzinfo=UTC)
                row |= {"scans": int(accesses["ops"]), "counted_since_at": since}
                row["unused"] = unused(row, known=now - since >= timedelta(days=UNUSED_DAYS))
            rows.append(row)
    return rows, {"unjudged": SECANTUS_SCANS if secantus else ""}


def vacuum_holders(self: Context) -> pd.DataFrame:
    """Sessions, prepared transactions, slots and replicas that keep vacuum from removing dead
    rows, now; the one that keeps most first. `transaction_age` is how many transactions ago
    its view of the data began, `seconds` how long ago, missing where the server does not tell.
    """
    return self.postgres.frame("vacuum_holders")


def disabled_triggers(self: Context) -> pd.DataFrame:
    """Triggers of this database that somebody has switched off, now."""
    return self.postgres.frame("disabled_triggers")
