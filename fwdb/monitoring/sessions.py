"""Sessions of the servers: who is connected, in which state, and how many may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fwdb.errors import FeatureUnavailable, FwdbError, PermissionDenied
from fwdb.measure import Measure, measured, unmeasured
from fwdb.stores import MongoStore, PostgresStore, frames

COLUMNS = {
    "database": "string",
    "database_name": "string",
    "user_name": "string",
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


def mongodb_sessions(store: MongoStore) -> tuple[list[dict[str, Any]], str]:
    """Connections of the server by application, user and state; and what is hidden of them.

    One row with their number where the server does not tell what they do: SecantusDB shows idle
    ones as active, and a user without the privilege ``inprog`` sees only its own.
    """
    if not store.is_secantus:
        try:
            with store.errors():
                found = store.client.admin.aggregate(
                    [{"$currentOp": {"allUsers": True, "idleConnections": True}}], comment="fwdb"
                )
                return mongodb_connections(list(found)), ""
        except (PermissionDenied, FeatureUnavailable):
            hidden = (
                "what the connections of mongodb do is hidden from this user: grant it the role "
                "clusterMonitor"
            )
            return [_open_connections(store)], hidden
    return [_open_connections(store)], ""


def mongodb_connections(operations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for `sessions` from what ``$currentOp`` answers: one entry per connection.

    Threads of the server itself have no `client`. A connection waits when its operation waits
    for a lock of another; who holds that the server does not tell.
    Source: https://www.mongodb.com/docs/manual/reference/operator/aggregation/currentOp/
    """
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for operation in operations:
        if "client" not in operation or operation.get("appName") == "fwdb-monitor":
            continue
        users = operation.get("effectiveUsers") or [{}]
        key = (
            str(users[0].get("user", "")),
            str(operation.get("appName", "")),
            "active" if operation.get("active") else "idle",
        )
        row = groups.setdefault(
            key,
            {
                **_open(database="mongodb"),
                "user_name": key[0],
                "application": key[1],
                "state": key[2],
                "waiting": 0,
            },
        )
        row["sessions"] += 1
        row["waiting"] += bool(operation.get("waitingForLock"))
        if key[2] == "active" and "microsecs_running" in operation:
            seconds = operation["microsecs_running"] / 1e6
            row["oldest_seconds"] = max(seconds, row["oldest_seconds"] or 0.0)
    return sorted(groups.values(), key=lambda row: (-row["sessions"], row["application"]))


def _open_connections(store: MongoStore) -> dict[str, Any]:
    current = int(server_status(store)["connections"]["current"])
    return {**_open(database="mongodb"), "sessions": current}


def _open(*, database: str) -> dict[str, Any]:
    return {
        "database": database,
        "database_name": "",
        "user_name": "",
        "application": "",
        "state": "open",
        "sessions": 0,
        "oldest_seconds": None,
        "waiting": None,
        "blocked": None,
    }


def sessions(
    postgres: PostgresStore | None, mongodb: MongoStore | None
) -> tuple[pd.DataFrame, list[FwdbError]]:
    """Sessions of the given stores, and the errors of those that gave none."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    problems: list[FwdbError] = []
    hidden: dict[str, str] = {}
    if postgres is not None:
        try:
            found = postgres_sessions(postgres)
        except FwdbError as error:
            missing["postgres"] = str(error)
            problems.append(error)
        else:
            rows += found
            unseen = sum(row["sessions"] for row in found if row["state"] == "hidden")
            if unseen:
                hidden["postgres"] = (
                    f"what {unseen} sessions of other roles do is hidden from this role: "
                    "GRANT pg_read_all_stats TO it"
                )
    if mongodb is not None:
        try:
            connections, unknown = mongodb_sessions(mongodb)
        except FwdbError as error:
            missing["mongodb"] = str(error)
            problems.append(error)
        else:
            rows += connections
            if unknown:
                hidden["mongodb"] = unknown
    frame = frames.from_rows(
        list(COLUMNS), [[row[name] for name in COLUMNS] for row in rows], COLUMNS
    )
    frame.attrs.update(missing=missing, hidden=hidden)
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
