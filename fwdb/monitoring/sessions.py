"""Sessions of the servers: who is connected, how many may be, and what they wait for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pandas as pd

from fwdb import queries
from fwdb.arguments import Count, Seconds
from fwdb.errors import FeatureUnavailable, PermissionDenied
from fwdb.measure import Measure, measured, unmeasured
from fwdb.monitoring.context import APPLICATION, Context, Database, both_stores, frame
from fwdb.monitoring.readings import Rows, server_status
from fwdb.monitoring.redaction import redacted_frame
from fwdb.stores import MongoStore, PostgresStore

COLUMNS = queries.load("sessions").columns

WAIT_COLUMNS = {
    "wait_type": "string",
    "wait_event": "string",
    "is_waiting": "boolean",
    "samples": "int64",
    "average_sessions": "float64",
    "share_percent": "float64",
}

# A look costs the server a third of a millisecond, so ten in a second are no load, and a wait of
# 100 ms is seen once on average.
SAMPLES_PER_SECOND = 10


def sessions(self: Context, database: Database | None = None) -> pd.DataFrame:
    """Sessions of the servers, now: one row per database, user, application and state.

    `oldest_seconds` is how long one of them is in this state, `waiting` those that are
    active and wait inside the server (for a lock, a latch or a buffer), `blocked` those that
    another session keeps from a lock; SecantusDB tells a number only. ``attrs["hidden"]``
    says what a role may not see, ``attrs["missing"]`` why a store could not be asked; raises
    its error when it was the only one asked.
    """
    questions = {
        "postgres": partial(postgres_sessions, self.postgres),
        "mongodb": partial(mongodb_sessions, self.mongodb),
    }
    wanted = questions if database is None else {database: questions[database]}
    return both_stores(COLUMNS, wanted, "hidden")


def postgres_sessions(store: PostgresStore) -> tuple[Rows, dict[str, str]]:
    """Rows of `sessions.sql`, and what is hidden of them."""
    rows = store.rows("sessions")
    hidden = sum(row["sessions"] for row in rows if row["state"] == "hidden")
    if not hidden:
        return rows, {}
    return rows, {
        "hidden": f"what {hidden} sessions of other roles do is hidden from this role: "
        "GRANT pg_read_all_stats TO it"
    }


def mongodb_sessions(store: MongoStore) -> tuple[Rows, dict[str, str]]:
    """Connections of the server by application, user and state; and what is hidden of them.

    One row with their number where the server does not tell what they do: SecantusDB shows idle
    ones as active, and a user without the privilege ``inprog`` sees only its own.
    """
    hidden = {}
    if not store.is_secantus:
        try:
            with store.errors():
                found = store.client.admin.aggregate(
                    [{"$currentOp": {"allUsers": True, "idleConnections": True}}], comment="fwdb"
                )
                return mongodb_connections(list(found)), {}
        except (PermissionDenied, FeatureUnavailable):
            hidden["hidden"] = (
                "what the connections of mongodb do is hidden from this user: grant it the role "
                "clusterMonitor"
            )
    current = int(server_status(store)["connections"]["current"])
    return [_connections(("", "", "open"), current)], hidden


def _connections(key: tuple[str, str, str], count: int = 0) -> dict[str, Any]:
    names = ("user_name", "application", "state")
    row = dict(zip(names, key, strict=True))
    return row | {
        "database": "mongodb",
        "database_name": "",
        "sessions": count,
        "oldest_seconds": None,
        "waiting": None,
        "blocked": None,
    }


def mongodb_connections(operations: Iterable[dict[str, Any]]) -> Rows:
    """Rows for `sessions` from what ``$currentOp`` answers: one entry per connection.

    Threads of the server itself have no `client`. A connection waits when its operation waits
    for a lock of another; who holds that the server does not tell.
    Source: https://www.mongodb.com/docs/manual/reference/operator/aggregation/currentOp/
    """
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for operation in operations:
        application = str(operation.get("appName", ""))
        if "client" not in operation or application == APPLICATION:
            continue
        user = str((operation.get("effectiveUsers") or [{}])[0].get("user", ""))
        key = (user, application, "active" if operation.get("active") else "idle")
        row = groups.setdefault(key, _connections(key) | {"waiting": 0})
        row["sessions"] += 1
        row["waiting"] += bool(operation.get("waitingForLock"))
        if operation.get("active") and "microsecs_running" in operation:
            seconds = operation["microsecs_running"] / 1e6
            row["oldest_seconds"] = max(seconds, row["oldest_seconds"] or 0.0)
    return sorted(groups.values(), key=lambda row: (-row["sessions"], row["application"]))


def session_limit(self: Context, database: Database = "postgres") -> Measure:
    """How many sessions the server takes from ordinary roles."""
    if database == "mongodb":
        return _mongodb_limit(self.mongodb)
    row = self.postgres.rows("session_limit")[0]
    remark = f"{row['max_connections']} less {row['reserved']} reserved"
    source = "max_connections less the reserved ones"
    return measured(row["usable"], "sessions", "postgres", source, remark=remark)


def _mongodb_limit(store: MongoStore) -> Measure:
    source, reason = "serverStatus.connections", "the server does not tell"
    if store.is_secantus:
        # connections.available is a constant 0 there: taken as a number, the server is full.
        reason = "SecantusDB does not tell how many connections it takes"
    else:
        connections = server_status(store).get("connections", {})
        if "available" in connections:
            limit = int(connections["current"]) + int(connections["available"])
            return measured(limit, "sessions", "mongodb", source)
    return unmeasured("not_available", reason, "sessions", "mongodb", source)


def session_limits(self: Context) -> pd.DataFrame:
    """Limits on PostgreSQL's sessions, of the server, databases and roles, fullest first."""
    return self.postgres.frame("session_limits")


def idle_transactions(self: Context) -> pd.DataFrame:
    """Sessions of PostgreSQL that are idle inside a transaction now, longest first.

    `idle_seconds` is since `statement` ended, whose values are shown as ``?``.
    """
    return redacted_frame(self.postgres.frame("idle_transactions"))


def blocking(self: Context) -> pd.DataFrame:
    """The blocking tree of PostgreSQL now: a row per session that waits for another's lock.

    `blocker_pid` is the session it waits for, `depth` how many are between it and the root,
    which waits for nobody, plus one; values in statements are shown as ``?``.
    """
    return redacted_frame(self.postgres.frame("blocking"))


def wait_events(
    self: Context, *, live_seconds: Seconds = 5, samples: Count | None = None
) -> pd.DataFrame:
    """What active sessions of PostgreSQL waited for, watched for `live_seconds`.

    Looks `samples` times, ten in a second unless given, and counts active sessions by wait
    event: `samples` is how often one was seen, `average_sessions` how many there were,
    `share_percent` its part of all. `is_waiting` is true for waits for another session;
    ``CPU`` waits for nothing. Idle sessions, which have a wait event too, are not there.
    """
    looks = samples or max(1, round(SAMPLES_PER_SECOND * live_seconds))
    counts: Counter[tuple[str, str, bool]] = Counter()
    seen: Counter[tuple[str, str, bool]] = Counter()
    since, began = datetime.now(UTC), time.monotonic()
    pause = threading.Event()
    for look in range(looks):
        # By the clock and not by pauses of one length: a look takes time itself.
        pause.wait(max(0.0, began + look * live_seconds / looks - time.monotonic()))
        for row in self.postgres.rows("wait_events"):
            key = (row["wait_type"], row["wait_event"], row["is_waiting"])
            counts[key] += row["sessions"]
            seen[key] += 1
    total = counts.total()
    rows = [
        dict(zip(WAIT_COLUMNS, (*key, seen[key], n / looks, 100 * n / total), strict=True))
        for key, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return frame(
        WAIT_COLUMNS,
        rows,
        samples=looks,
        window={"since": since, "until": datetime.now(UTC)},
        status="ok" if rows else "no_data",
        reason="" if rows else "no session of a client was active at any of the looks",
    )
