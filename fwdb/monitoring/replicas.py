"""A row per replica of both stores: three numbers that together tell how it does.

Bytes behind, the age of its last answer, and the lag. None alone is enough: a replica whose
receiver hangs keeps its last lag, an idle one answers seldom, and bytes say nothing about time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import pandas as pd

from fwdb.errors import FwdbError
from fwdb.monitoring.replication import (
    CONNECTING,
    HIDDEN,
    NO_SET,
    PRIMARY,
    SECONDARY,
    behind,
    delays,
    lost,
    replica_set,
    unset,
)
from fwdb.stores import MongoStore, PostgresStore, frames

COLUMNS = {
    "database": "string",
    "replica": "string",
    "slot": "string",
    "state": "string",
    "sync_state": "string",
    "is_self": "boolean",
    "behind_bytes": "Int64",
    "reply_age_seconds": "float64",
    "replay_lag_seconds": "float64",
    "retained_bytes": "Int64",
    "unused_seconds": "float64",
    "status": "string",
    "reason": "string",
}

_ARBITER = 7  # a member without data
# Why a store has no rows although it could be asked.
NO_REPLICA = "no replica is connected"
ONE_MEMBER = "the set has one member with data"
NONE = (NO_REPLICA, ONE_MEMBER, NO_SET)

_NO_BYTES = "MongoDB tells the time of the last operation, not bytes"


def replicas(
    postgres: PostgresStore, mongodb: MongoStore, *, expected: int | None
) -> tuple[pd.DataFrame, list[FwdbError]]:
    """The replicas of both stores, and the errors of those that could not be asked."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    problems: list[FwdbError] = []
    away: dict[str, str] = {}
    try:
        found = postgres.rows("replicas")
        rows += [_postgres_row(row) for row in found]
        away["postgres"] = lost(found, expected=expected)
        if not found:
            missing["postgres"] = away["postgres"] or NO_REPLICA
    except FwdbError as error:
        missing["postgres"] = str(error)
        problems.append(error)
    try:
        status = replica_set(mongodb)
        members = [] if status is None else mongodb_rows(status, delays(mongodb, status))
        rows += members
        if not members:
            missing["mongodb"] = NO_SET if status is None else ONE_MEMBER
    except FwdbError as error:
        missing["mongodb"] = str(error)
        problems.append(error)
    frame = frames.from_rows(
        list(COLUMNS), [[row.get(name) for name in COLUMNS] for row in rows], COLUMNS
    )
    frame.attrs.update(missing=missing, lost={name: text for name, text in away.items() if text})
    return frame, problems


def _postgres_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `replicas.sql` with what its numbers are worth."""
    status, reason = "ok", ""
    if row["is_self"] and row["state"] is None:
        status, reason = "not_available", "this replica is not connected to its primary"
    elif row["replica"] is None and not row["is_self"]:
        status, reason = "not_available", "no replica uses this slot"
    elif row["state"] is None:
        status, reason = "not_measured", HIDDEN
    elif row["behind_bytes"] is None:
        status, reason = "no_data", CONNECTING
    behind_bytes = row["behind_bytes"]
    return {
        **row,
        "database": "postgres",
        "behind_bytes": None if behind_bytes is None else max(0, behind_bytes),
        "status": status,
        "reason": reason,
    }


def mongodb_rows(
    status: Mapping[str, Any], delayed: Mapping[str, float]
) -> Sequence[dict[str, Any]]:
    """The members with data, but the primary, from an answer of replSetGetStatus."""
    members = [m for m in status["members"] if m["state"] != _ARBITER]
    if len(members) < 2:
        return []
    primary = next((m for m in members if m["state"] == PRIMARY), None)
    return [_member(status, primary, m, delayed) for m in members if m is not primary]


def _member(
    status: Mapping[str, Any],
    primary: Mapping[str, Any] | None,
    member: Mapping[str, Any],
    delayed: Mapping[str, float],
) -> dict[str, Any]:
    heard = member.get("lastHeartbeatRecv")
    row: dict[str, Any] = {
        "database": "mongodb",
        "replica": member["name"],
        "state": str(member.get("stateStr", member["state"])).lower(),
        "is_self": bool(member.get("self", False)),
        "status": "ok",
        "reason": _NO_BYTES,
    }
    if heard is not None and not unset(heard) and "date" in status:
        age = (status["date"].replace(tzinfo=UTC) - heard.replace(tzinfo=UTC)).total_seconds()
        row["reply_age_seconds"] = max(0.0, age)
    if primary is None or unset(primary.get("optimeDate")):
        return row | {"status": "not_available", "reason": "the replica set has no primary now"}
    if member["state"] != SECONDARY or unset(member.get("optimeDate")):
        return row | {"status": "not_available", "reason": f"the member is {row['state']}"}
    return row | {"replay_lag_seconds": behind(primary, member, delayed)}
