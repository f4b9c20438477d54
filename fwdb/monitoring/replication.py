"""The replicas of both stores, and how far they are behind.

Bytes behind, the age of the last answer, and the lag together tell how a replica does. None alone
is enough: a replica whose receiver hangs keeps its last lag, an idle one answers seldom, and bytes
say nothing about time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pandas as pd

from fwdb import queries
from fwdb.errors import QueryError
from fwdb.measure import Measure, measured, unmeasured
from fwdb.monitoring.context import Context, Database, both_stores
from fwdb.monitoring.readings import Row, Rows
from fwdb.stores import MongoStore, PostgresStore

COLUMNS = {
    "database": "string",
    **queries.load("replicas").columns,
    "status": "string",
    "reason": "string",
}
del COLUMNS["slot_type"]

# Why a store has no rows although it could be asked.
NO_REPLICA = "no replica is connected"
ONE_MEMBER = "the set has one member with data"
NO_SET = "the server is not in a replica set"
NONE = (NO_REPLICA, ONE_MEMBER, NO_SET)

HIDDEN = "this role may not see the replicas: GRANT pg_monitor TO it"
CONNECTING = "the replica has just connected, and has not answered yet"
NO_PRIMARY = "the replica set has no primary now"

# wal_receiver_status_interval, after which a replica that is well answers although nothing
# happens, and the primary's half of wal_sender_timeout, after which it asks.
_REPLY_SECONDS = 10
_MESSAGE_SECONDS = 30

# A replica that is well answers within this time after it is sent something. Until then an
# answer that is seconds old only says that nothing happened before.
_ANSWER_SECONDS = 0.5

# Member states of replSetGetStatus.
_PRIMARY, _SECONDARY, _ARBITER = 1, 2, 7
_OUTAGE_STATES = {6: "unknown", 8: "down", 9: "rolling back", 3: "recovering"}

# The unit of a lag, who it is of, and where it comes from.
_PRIMARY_SIDE = ("seconds", "postgres", "pg_stat_replication")
_REPLICA_SIDE = ("seconds", "postgres", "pg_last_xact_replay_timestamp")
_MEMBERS = ("seconds", "mongodb", "replSetGetStatus")


def replication_lag(self: Context, database: Database = "postgres") -> Measure:
    """Seconds that the slowest replica is behind, now; ``not_applicable`` without replica.

    0 when it has replayed everything. A replica that has something to replay and is silent
    is as many seconds behind as it is silent, whatever it said last. `replicas()` has a row
    for each, with two more numbers.
    """
    if database == "mongodb":
        status = replica_set(self.mongodb)
        if status is None:
            return unmeasured("not_applicable", NO_SET, *_MEMBERS)
        return members_lag(status, delays(self.mongodb, status))
    state = self.postgres.rows("recovery")[0]
    if state["is_replica"]:
        return replica_lag(state)
    rows = self.postgres.rows("replicas")
    deadline = time.monotonic() + _ANSWER_SECONDS
    while any(map(_quiet, rows)) and time.monotonic() < deadline:
        time.sleep(0.05)
        rows = self.postgres.rows("replicas")
    return primary_lag(rows, expected=self.thresholds.expected_replicas)


def replicas(self: Context) -> pd.DataFrame:
    """The replicas of both stores, now: one row per replica and per unused replication slot.

    Three numbers tell how a replica does. `behind_bytes` is the log that it has not replayed
    (PostgreSQL), `reply_age_seconds` how long ago it was last heard (idle replicas answer
    every 10 s), `replay_lag_seconds` the last delay that was measured, missing when nothing
    was to be replayed; for MongoDB the time of the primary's last operation less that of the
    member, less a delay that the member is told to keep, never below 0. `retained_bytes` is
    the log that a slot keeps on the primary. Asked on a replica of PostgreSQL, the row with
    `is_self` is about itself. Arbiters and MongoDB's primary have no row.

    A row has ``not_available`` as its `status`, with the `reason`, when it has no replica
    behind it. ``attrs``: `missing`, per store why it has no rows; `lost`, per store which
    replicas are not there: an unused slot tells, or FWDB_EXPECTED_REPLICAS, how many
    PostgreSQL should have. Raises the error of PostgreSQL when neither store can be asked.
    """
    questions = {
        "postgres": partial(_postgres_rows, self.postgres, self.thresholds.expected_replicas),
        "mongodb": partial(_mongodb_rows, self.mongodb),
    }
    return both_stores(COLUMNS, questions, "lost")


def _postgres_rows(store: PostgresStore, expected: int | None) -> tuple[Rows, dict[str, str]]:
    rows = store.rows("replicas")
    away = lost(rows, expected=expected)
    missing = "" if rows else away or NO_REPLICA
    return [postgres_row(row) for row in rows], {"lost": away, "missing": missing}


def postgres_row(row: Row) -> dict[str, Any]:
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
    behind = row["behind_bytes"]
    return {
        **row,
        "database": "postgres",
        "behind_bytes": None if behind is None else max(0, behind),
        "status": status,
        "reason": reason,
    }


def lost(rows: Sequence[Row], *, expected: int | None = None) -> str:
    """Which replicas are missing, for the reader; empty when none is known to be.

    `rows` are those of `replicas.sql`. No replica at all is nothing lost: only a slot that nobody
    uses tells of one that was, or `expected`, how many there should be.
    """
    unused = [r["slot"] for r in rows if r["replica"] is None and r["slot_type"] == "physical"]
    if unused:
        return f"the replica of slot {', '.join(unused)} is not connected"
    there = sum(row["replica"] is not None and not row["is_self"] for row in rows)
    if expected is not None and there < expected:
        return f"{there} of {expected} replicas {'is' if there == 1 else 'are'} connected"
    return ""


def primary_lag(rows: Sequence[Row], *, expected: int | None = None) -> Measure:
    """The lag as a primary sees it: rows of `replicas.sql`, and how many replicas there should be.

    A slot that nobody uses, and a replica that is expected and not there, are lost replicas.
    """
    found = [row for row in rows if row["replica"] is not None and not row["is_self"]]
    if any(replica["state"] is None for replica in found):
        return unmeasured("not_measured", HIDDEN, *_PRIMARY_SIDE)
    away = lost(rows, expected=expected)
    if not found and away:
        return unmeasured("not_available", f"{away}, so its lag cannot be told", *_PRIMARY_SIDE)
    if not found:
        return unmeasured("not_applicable", NO_REPLICA, *_PRIMARY_SIDE)
    known = [replica for replica in found if replica["behind_bytes"] is not None]
    if not known:
        return unmeasured("not_available", CONNECTING, *_PRIMARY_SIDE)
    worst = max(known, key=_seconds)
    remark = f"{worst['replica']}: {worst['behind_bytes']:,} bytes behind"
    if _quiet(worst):
        remark += f", no answer for {worst['reply_age_seconds']:.0f} s"
    if away:
        remark += f"; {away}"
    return measured(_seconds(worst), *_PRIMARY_SIDE, remark=remark)


def _seconds(replica: Row) -> float:
    """Lag of one replica: none when nothing is left to replay, whatever was measured last."""
    if replica["behind_bytes"] <= 0:
        return 0.0
    # The server's figure is that of the last answer: a replica that fell silent keeps it.
    silence = replica["reply_age_seconds"] if _quiet(replica) else 0.0
    return float(max(replica["replay_lag_seconds"] or 0.0, silence))


def _quiet(replica: Row) -> bool:
    """Whether a replica has something to replay and has not answered for a while."""
    behind, age = replica["behind_bytes"], replica["reply_age_seconds"]
    return bool(behind and age is not None and age > _ANSWER_SECONDS)


def replica_lag(state: Row) -> Measure:
    """The lag as a replica sees it: the row of `recovery.sql`.

    A replica that received nothing has nothing to replay, so that it says 0 is worth something
    only while the primary is heard.
    """
    silence, age = state["receiver_age_seconds"], state["replay_age_seconds"]
    if state["receiver_status"] != "streaming":
        reason = "this replica is not connected to its primary, so its lag cannot be told"
        return unmeasured("not_available", reason, *_REPLICA_SIDE)
    if silence is None or silence > _MESSAGE_SECONDS + _REPLY_SECONDS:
        reason = f"this replica has not heard its primary for {silence or 0:.0f} s"
        return unmeasured("not_available", reason, *_REPLICA_SIDE)
    if state["is_replayed"]:
        remark = "asked on the replica: all it received is replayed"
        return measured(0.0, *_REPLICA_SIDE, remark=remark)
    if age is None:
        return unmeasured("no_data", "no transaction was replayed yet", *_REPLICA_SIDE)
    remark = "asked on the replica: age of the last replayed transaction"
    return measured(max(0.0, age), *_REPLICA_SIDE, remark=remark)


def replica_set(store: MongoStore) -> Row | None:
    """The answer of replSetGetStatus; None for a server that is in no replica set."""
    try:
        with store.errors():
            status: Row = store.client.admin.command("replSetGetStatus")
    except QueryError as error:
        if getattr(error.__cause__, "code", None) == 76:  # NoReplicationEnabled
            return None
        raise
    return status


def delays(store: MongoStore, status: Row) -> dict[str, float]:
    """Seconds that members stay behind because they are told to, by name; those without are left
    out. Raises `PermissionDenied` for a role that may not read the configuration."""
    if len(status["members"]) < 2:
        return {}
    with store.errors():
        config = store.client.admin.command("replSetGetConfig")["config"]
    found = {m["host"]: float(m.get("secondaryDelaySecs", 0)) for m in config["members"]}
    return {host: delay for host, delay in found.items() if delay}


def members_lag(status: Row, delayed: Mapping[str, float]) -> Measure:
    """The lag told by an answer of replSetGetStatus; `delayed` is what `delays` found."""
    members = status["members"]
    if len(members) < 2:
        return unmeasured("not_applicable", "the replica set has one member only", *_MEMBERS)
    primary = _primary(members)
    if primary is None:
        return unmeasured("not_available", NO_PRIMARY, *_MEMBERS)
    known = {m["name"]: _behind(primary, m, delayed) for m in members if _replays(m)}
    away = ", ".join(
        f"{m['name']} is {_OUTAGE_STATES[m['state']]}"
        for m in members
        if m["state"] in _OUTAGE_STATES
    )
    if not known:
        if sum(m["state"] != _ARBITER for m in members) < 2:
            return unmeasured("not_applicable", "no other member of the set has data", *_MEMBERS)
        return unmeasured("not_available", away or "no secondary is ready", *_MEMBERS)
    worst = max(known, key=lambda name: known[name])
    remark = "; ".join(part for part in (worst, away) if part)
    return measured(known[worst], *_MEMBERS, remark=remark)


def _mongodb_rows(store: MongoStore) -> tuple[Rows, dict[str, str]]:
    status = replica_set(store)
    if status is None:
        return [], {"missing": NO_SET}
    rows = mongodb_rows(status, delays(store, status))
    return rows, {} if rows else {"missing": ONE_MEMBER}


def mongodb_rows(status: Row, delayed: Mapping[str, float]) -> Rows:
    """The members with data, but the primary, from an answer of replSetGetStatus."""
    members = [m for m in status["members"] if m["state"] != _ARBITER]
    primary = _primary(members)
    others = [m for m in members if m["state"] != _PRIMARY]
    return [_member(status, primary, m, delayed) for m in others] if len(members) > 1 else []


def _member(
    status: Row, primary: Row | None, member: Row, delayed: Mapping[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "database": "mongodb",
        "replica": member["name"],
        "state": str(member.get("stateStr", member["state"])).lower(),
        "is_self": bool(member.get("self", False)),
        "status": "ok",
        "reason": "MongoDB tells the time of the last operation, not bytes",
    }
    heard: Any = member.get("lastHeartbeatRecv")
    if "date" in status and not _unset(heard):
        age = (status["date"].replace(tzinfo=UTC) - heard.replace(tzinfo=UTC)).total_seconds()
        row["reply_age_seconds"] = max(0.0, age)
    if primary is None:
        return row | {"status": "not_available", "reason": NO_PRIMARY}
    if not _replays(member):
        return row | {"status": "not_available", "reason": f"the member is {row['state']}"}
    return row | {"replay_lag_seconds": _behind(primary, member, delayed)}


def _primary(members: Sequence[Row]) -> Row | None:
    """The primary, if there is one that was heard."""
    found = (m for m in members if m["state"] == _PRIMARY and not _unset(m.get("optimeDate")))
    return next(found, None)


def _replays(member: Row) -> bool:
    return member["state"] == _SECONDARY and not _unset(member.get("optimeDate"))


def _behind(primary: Row, member: Row, delayed: Mapping[str, float]) -> float:
    """Seconds from the last operation of a member to that of the primary, a wanted delay left out.

    Never below 0: the clocks of the two answers are not the same moment.
    """
    seconds = (primary["optimeDate"] - member["optimeDate"]).total_seconds()
    return max(0.0, float(seconds) - delayed.get(member["name"], 0.0))


def _unset(moment: datetime | None) -> bool:
    """A member that was never heard has the first second of 1970."""
    return moment is None or moment.replace(tzinfo=UTC).timestamp() < 1
