"""Sessions of the servers: who is connected, in which state, and how many may be."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fwdb.errors import FwdbError
from fwdb.monitoring.measure import Measure, measured, unmeasured
from fwdb.stores import MongoStore, PostgresStore, frames

COLUMNS = {
    "database": "string",
    "database_name": "string",
    "application": "string",
    "state": "string",
    "sessions": "int64",
    "oldest_seconds": "float64",
    "waiting": "Int64",
    "blocked": "Int64",
}

_UNIT = "sessions"


def postgres_sessions(store: PostgresStore) -> list[dict[str, Any]]:
    """Rows of `sessions.sql`."""
    return store.rows("sessions")


def mongodb_sessions(store: MongoStore) -> list[dict[str, Any]]:
    """One row: the server tells the number of connections, not what they do."""
    connections = server_status(store).get("connections", {})
    return [
        {
            "database": "mongodb",
            "database_name": "",
            "application": "",
            "state": "open",
            "sessions": int(connections["current"]),
            "oldest_seconds": None,
            "waiting": None,
            "blocked": None,
        }
    ]


def sessions(
    postgres: PostgresStore | None, mongodb: MongoStore | None
) -> tuple[pd.DataFrame, list[FwdbError]]:
    """Sessions of the given stores, and the errors of those that gave none."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    problems: list[FwdbError] = []
    hidden = 0
    if postgres is not None:
        try:
            found = postgres_sessions(postgres)
        except FwdbError as error:
            missing["postgres"] = str(error)
            problems.append(error)
        else:
            rows += found
            hidden = sum(row["sessions"] for row in found if row["state"] == "hidden")
    if mongodb is not None:
        try:
            rows += mongodb_sessions(mongodb)
        except FwdbError as error:
            missing["mongodb"] = str(error)
            problems.append(error)
    frame = frames.from_rows(
        list(COLUMNS), [[row[name] for name in COLUMNS] for row in rows], COLUMNS
    )
    frame.attrs.update(missing=missing, hidden={})
    if hidden:
        frame.attrs["hidden"]["postgres"] = (
            f"what {hidden} sessions of other roles do is hidden from this role: "
            "GRANT pg_read_all_stats TO it"
        )
    return frame, problems


def postgres_limit(store: PostgresStore) -> Measure:
    """Sessions that ordinary roles may open on the server."""
    row = store.rows("session_limit")[0]
    return measured(
        row["usable"],
        _UNIT,
        "postgres",
        "max_connections less the reserved ones",
        remark=f"{row['max_connections']} less {row['reserved']} reserved",
    )


def mongodb_limit(store: MongoStore) -> Measure:
    """Connections that the server takes."""
    source = "serverStatus.connections"
    if store.is_secantus:
        # connections.available is a constant 0 there: taken as a number, the server is full.
        return unmeasured(
            "not_available",
            "SecantusDB does not tell how many connections it takes",
            _UNIT,
            "mongodb",
            source,
        )
    connections = server_status(store).get("connections", {})
    if "available" not in connections:
        return unmeasured("not_available", "the server does not tell", _UNIT, "mongodb", source)
    limit = int(connections["current"]) + int(connections["available"])
    return measured(limit, _UNIT, "mongodb", source)


def server_status(store: MongoStore) -> dict[str, Any]:
    """The counters of the MongoDB server."""
    with store.errors():
        return dict(store.client.admin.command("serverStatus"))
