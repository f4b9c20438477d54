"""Tables, collections and their indexes: how large, how they grow, what nobody needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from fwdb.errors import FwdbError
from fwdb.monitoring.history import History
from fwdb.stores import MongoStore, PostgresStore, frames

TABLES = {
    "database": "string",
    "table": "string",
    "total_bytes": "Int64",
    "index_bytes": "Int64",
    "growth_bytes": "Int64",
    "growth_since_at": "timestamp",
    "live_rows": "Int64",
    "dead_rows": "Int64",
    "dead_percent": "float64",
    "vacuum_age_seconds": "float64",
    "analyze_age_seconds": "float64",
    "transaction_age": "Int64",
    "scans": "Int64",
}
INDEXES = {
    "database": "string",
    "table": "string",
    "index": "string",
    "index_bytes": "Int64",
    "scans": "Int64",
    "used_at": "timestamp",
    "counted_since_at": "timestamp",
    "is_needed": "boolean",
    "is_valid": "boolean",
    "duplicate_of": "string",
    "unused": "boolean",
}

# A job that runs once a week must have had its turn before its index is called unused.
UNUSED_DAYS = 7

# Every collection is asked by itself, so a server of many thousands would be kept busy by it.
MOST_COLLECTIONS = 1000

SECANTUS_SIZES = "SecantusDB reads every document to tell a size, so it is not asked for any"
SECANTUS_SCANS = "SecantusDB does not count the use of its indexes"


@dataclass(frozen=True, slots=True)
class Stored:
    """Sizes that a reading left behind, by name: total bytes, live and dead rows."""

    read_at: datetime
    sizes: Mapping[str, list[Any]]


def postgres_sizes(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What a reading keeps of `table_states.sql`."""
    return {r["table_name"]: [r["total_bytes"], r["live_rows"], r["dead_rows"]] for r in rows}


def mongodb_sizes(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What a reading keeps of the collections."""
    return {r["table"]: [r["total_bytes"], r["live_rows"], None] for r in rows}


def stored(history: History, database: str, reading_id: int, read_at: datetime) -> Stored | None:
    """The sizes in a stored reading, or None when it has none."""
    for row in history.rows("stored_counters", reading_id=reading_id):
        if row["database"] == database and row["subject"] == "tables":
            return Stored(read_at, json.loads(row["counters"]))
    return None


def tables(
    postgres: PostgresStore, mongodb: MongoStore, before: Mapping[str, Stored | None]
) -> tuple[pd.DataFrame, list[FwdbError]]:
    """All tables and collections now, grown since `before`; and errors of a store that has none."""
    missing: dict[str, str] = {}
    problems: list[FwdbError] = []
    rows: list[dict[str, Any]] = []
    asked: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "postgres": lambda: _postgres_tables(postgres),
        "mongodb": lambda: mongodb_tables(mongodb),
    }
    for name, ask in asked.items():
        try:
            found = ask()
        except FwdbError as error:
            missing[name] = str(error)
            problems.append(error)
            continue
        earlier = before.get(name)
        rows += [row | _growth(row, earlier) for row in found]
        if not found:
            missing[name] = "there is no table" if name == "postgres" else "there is no collection"
    if "mongodb" not in missing and mongodb.is_secantus:
        missing["mongodb"] = SECANTUS_SIZES
    frame = frames.from_rows(list(TABLES), [[row.get(n) for n in TABLES] for row in rows], TABLES)
    frame.attrs["missing"] = missing
    return frame, problems


def _growth(row: Mapping[str, Any], earlier: Stored | None) -> dict[str, Any]:
    """Bytes since the earlier reading; a table that it did not have grew from nothing."""
    if earlier is None or row.get("total_bytes") is None:
        return {}
    known = earlier.sizes.get(row["table"], [0])[0]
    if known is None:
        return {}
    return {"growth_bytes": row["total_bytes"] - known, "growth_since_at": earlier.read_at}


def _postgres_tables(store: PostgresStore) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    found = []
    for row in store.rows("table_states"):
        versions = row["live_rows"] + row["dead_rows"]
        found.append(
            {
                **row,
                "database": "postgres",
                "table": row["table_name"],
                "dead_percent": 100 * row["dead_rows"] / versions if versions else None,
                "vacuum_age_seconds": _age(row["vacuumed_at"], now),
                "analyze_age_seconds": _age(row["analyzed_at"], now),
            }
        )
    return found


def _age(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def mongodb_tables(store: MongoStore) -> list[dict[str, Any]]:
    """The collections; on SecantusDB without sizes."""
    names = _collections(store)
    with store.errors():
        if store.is_secantus:
            counts = {n: store.collection(n).estimated_document_count() for n in names}
            return [{"database": "mongodb", "table": n, "live_rows": counts[n]} for n in names]
        found = []
        for name in names:
            # size counts documents as they are in memory, storageSize is what they take on disk.
            statistics = _statistics(store, name)
            indexes = int(statistics["totalIndexSize"])
            found.append(
                {
                    "database": "mongodb",
                    "table": name,
                    "total_bytes": int(statistics["storageSize"]) + indexes,
                    "index_bytes": indexes,
                    "live_rows": int(statistics["count"]),
                }
            )
    return sorted(found, key=lambda row: -row["total_bytes"])


def _statistics(store: MongoStore, collection: str) -> Mapping[str, Any]:
    found = store.collection(collection).aggregate([{"$collStats": {"storageStats": {}}}])
    statistics: Mapping[str, Any] = next(iter(found))["storageStats"]
    return statistics


def _collections(store: MongoStore) -> list[str]:
    with store.errors():
        names: list[str] = store.database.list_collection_names(filter={"type": "collection"})
    kept = sorted(name for name in names if not name.startswith("system."))
    return kept[:MOST_COLLECTIONS]


# -- indexes ------------------------------------------------------------------------------------


def indexes(postgres: PostgresStore, mongodb: MongoStore) -> tuple[pd.DataFrame, list[FwdbError]]:
    """All indexes now, and the errors of a store that could not be asked."""
    missing: dict[str, str] = {}
    unjudged: dict[str, str] = {}
    problems: list[FwdbError] = []
    rows: list[dict[str, Any]] = []
    try:
        replicas = any(row["slot_type"] != "logical" for row in postgres.rows("replicas"))
        found = postgres.rows("index_states")
        now = datetime.now(UTC)
        rows += [_postgres_index(row, now, replicas=replicas) for row in found]
        if reason := unjudgeable(found, now, replicas=replicas):
            unjudged["postgres"] = reason
    except FwdbError as error:
        missing["postgres"] = str(error)
        problems.append(error)
    try:
        rows += mongodb_indexes(mongodb)
        if mongodb.is_secantus:
            unjudged["mongodb"] = SECANTUS_SCANS
    except FwdbError as error:
        missing["mongodb"] = str(error)
        problems.append(error)
    frame = frames.from_rows(
        list(INDEXES), [[row.get(n) for n in INDEXES] for row in rows], INDEXES
    )
    frame.attrs.update(missing=missing, unjudged=unjudged)
    return frame, problems


def unjudgeable(rows: list[dict[str, Any]], now: datetime, *, replicas: bool) -> str:
    """Why no index of PostgreSQL can be called unused; empty when they can be judged."""
    if replicas:
        return "a replica counts its own scans, so an index without scans here may be in use there"
    since = rows[0]["counted_since"] if rows else None
    if since is not None and now - since < timedelta(days=UNUSED_DAYS):
        return (
            f"scans are counted since {since:%Y-%m-%d %H:%M} UTC, and an index that is not used "
            f"for fewer than {UNUSED_DAYS} days is not called unused"
        )
    if rows and since is None:
        return "the server does not tell since when it counts scans"
    return ""


def _postgres_index(row: Mapping[str, Any], now: datetime, *, replicas: bool) -> dict[str, Any]:
    judged = not unjudgeable([dict(row)], now, replicas=replicas)
    return {
        **row,
        "database": "postgres",
        "table": row["table_name"],
        "index": row["index_name"],
        "counted_since_at": row["counted_since"],
        # An index that was scanned is used, whoever else counts; the contrary must be known.
        "unused": False
        if row["scans"] or row["is_needed"]
        else True
        if judged and row["is_valid"]
        else None,
    }


def mongodb_indexes(store: MongoStore) -> list[dict[str, Any]]:
    """The indexes of all collections. SecantusDB tells of no use: its counters are constants."""
    found = []
    for name in _collections(store):
        with store.errors():
            listed = list(store.collection(name).list_indexes())
            used = (
                {}
                if store.is_secantus
                else {s["name"]: s for s in store.collection(name).aggregate([{"$indexStats": {}}])}
            )
            sizes: Mapping[str, int] = {}
            if not store.is_secantus:
                sizes = _statistics(store, name)["indexSizes"]
        found += [_mongodb_index(name, index, used, sizes) for index in listed]
    return found


def _mongodb_index(
    collection: str,
    index: Mapping[str, Any],
    used: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    accesses = used.get(index["name"], {}).get("accesses")
    needed = index["name"] == "_id_" or bool(index.get("unique"))
    row: dict[str, Any] = {
        "database": "mongodb",
        "table": collection,
        "index": index["name"],
        "index_bytes": sizes.get(index["name"]),
        "is_needed": needed or "expireAfterSeconds" in index,
        "is_valid": True,
    }
    if accesses is None:
        return row
    since = accesses["since"].replace(tzinfo=UTC)
    ops = int(accesses["ops"])
    long_enough = datetime.now(UTC) - since >= timedelta(days=UNUSED_DAYS)
    unused = False if ops or row["is_needed"] else True if long_enough else None
    return row | {"scans": ops, "counted_since_at": since, "unused": unused}
