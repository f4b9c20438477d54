"""How far the replicas are behind, where there are any."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fwdb.errors import QueryError
from fwdb.measure import Measure, Status, measured, unmeasured
from fwdb.stores import MongoStore, PostgresStore

UNIT = "seconds"

NO_SET = "the server is not in a replica set"

HIDDEN = "this role may not see the replicas: GRANT pg_monitor TO it"

CONNECTING = "the replica has just connected, and has not answered yet"

_REPLICAS = "pg_stat_replication"
_RECOVERY = "pg_last_xact_replay_timestamp"
_MEMBERS = "replSetGetStatus"

# wal_receiver_status_interval, after which a replica that is well answers although nothing
# happens, and the primary's half of wal_sender_timeout, after which it asks.
_REPLY_SECONDS = 10
_MESSAGE_SECONDS = 30

# A replica that is well answers within this time after it is sent something. Until then an
# answer that is seconds old only says that nothing happened before.
_ANSWER_SECONDS = 0.5

PRIMARY, SECONDARY = 1, 2  # member states of replSetGetStatus
_OUTAGE_STATES = {6: "unknown", 8: "down", 9: "rolling back", 3: "recovering"}


def postgres_lag(store: PostgresStore, *, expected: int | None = None) -> Measure:
    """Seconds that the slowest replica of this server, or this replica itself, is behind."""
    state = store.rows("recovery")[0]
    if state["is_replica"]:
        return replica_lag(state)
    rows = store.rows("replicas")
    deadline = time.monotonic() + _ANSWER_SECONDS
    while any(_quiet(replica) for replica in rows) and time.monotonic() < deadline:
        time.sleep(0.05)
        rows = store.rows("replicas")
    return primary_lag(rows, expected=expected)


def primary_lag(rows: Sequence[Mapping[str, Any]], *, expected: int | None = None) -> Measure:
    """The lag as a primary sees it: rows of `replicas.sql`, and how many replicas there should be.

    A slot that nobody uses, and a replica that is expected and not there, are lost replicas.
    """
    replicas = [row for row in rows if row["replica"] is not None and not row["is_self"]]
    if any(replica["state"] is None for replica in replicas):
        return _none("not_measured", HIDDEN, "postgres", _REPLICAS)
    away = lost(rows, expected=expected)
    if not replicas and away:
        return _none("not_available", f"{away}, so its lag cannot be told", "postgres", _REPLICAS)
    if not replicas:
        return _none("not_applicable", "no replica is connected", "postgres", _REPLICAS)
    known = [replica for replica in replicas if replica["behind_bytes"] is not None]
    if not known:
        return _none("not_available", CONNECTING, "postgres", _REPLICAS)
    worst = max(known, key=_seconds)
    remark = f"{worst['replica']}: {worst['behind_bytes']:,} bytes behind"
    if _quiet(worst):
        remark += f", no answer for {worst['reply_age_seconds']:.0f} s"
    if away:
        remark += f"; {away}"
    return measured(_seconds(worst), UNIT, "postgres", _REPLICAS, remark=remark)


def lost(rows: Sequence[Mapping[str, Any]], *, expected: int | None = None) -> str:
    """Which replicas are missing, for the reader; empty when none is known to be.

    `rows` are those of `replicas.sql`. No replica at all is nothing lost: only a slot that nobody
    uses tells of one that was, or `expected`, how many there should be.
    """
    unused = [r["slot"] for r in rows if r["replica"] is None and r["slot_type"] == "physical"]
    if unused:
        names = ", ".join(unused)
        return f"the replica of slot {names} is not connected"
    there = sum(row["replica"] is not None and not row["is_self"] for row in rows)
    if expected is not None and there < expected:
        return f"{there} of {expected} replicas {'is' if there == 1 else 'are'} connected"
    return ""


def _seconds(replica: Mapping[str, Any]) -> float:
    """Lag of one replica: none when nothing is left to replay, whatever was measured last."""
    if replica["behind_bytes"] <= 0:
        return 0.0
    # The server's figure is that of the last answer: a replica that fell silent keeps it.
    silence = replica["reply_age_seconds"] if _quiet(replica) else 0.0
    return float(max(replica["replay_lag_seconds"] or 0.0, silence))


def _quiet(replica: Mapping[str, Any]) -> bool:
    """Whether a replica has something to replay and has not answered for a while."""
    behind, age = replica["behind_bytes"], replica["reply_age_seconds"]
    return bool(behind and age is not None and age > _ANSWER_SECONDS)


def replica_lag(state: Mapping[str, Any]) -> Measure:
    """The lag as a replica sees it: the row of `recovery.sql`.

    A replica that received nothing has nothing to replay, so that it says 0 is worth something
    only while the primary is heard.
    """
    silence = state["receiver_age_seconds"]
    if state["receiver_status"] != "streaming":
        return _none(
            "not_available",
            "this replica is not connected to its primary, so its lag cannot be told",
            "postgres",
            _RECOVERY,
        )
    if silence is None or silence > _MESSAGE_SECONDS + _REPLY_SECONDS:
        return _none(
            "not_available",
            f"this replica has not heard its primary for {silence or 0:.0f} s",
            "postgres",
            _RECOVERY,
        )
    if state["is_replayed"]:
        remark = "asked on the replica: all it received is replayed"
        return measured(0.0, UNIT, "postgres", _RECOVERY, remark=remark)
    if state["replay_age_seconds"] is None:
        return _none("no_data", "no transaction was replayed yet", "postgres", _RECOVERY)
    remark = "asked on the replica: age of the last replayed transaction"
    return measured(
        max(0.0, state["replay_age_seconds"]), UNIT, "postgres", _RECOVERY, remark=remark
    )


def mongodb_lag(store: MongoStore) -> Measure:
    """Seconds that the slowest secondary is behind the primary."""
    status = replica_set(store)
    if status is None:
        return _none("not_applicable", NO_SET, "mongodb", _MEMBERS)
    return members_lag(status, delays(store, status))


def replica_set(store: MongoStore) -> Mapping[str, Any] | None:
    """The answer of replSetGetStatus; None for a server that is in no replica set."""
    try:
        with store.errors():
            status: Mapping[str, Any] = store.client.admin.command("replSetGetStatus")
    except QueryError as error:
        if getattr(error.__cause__, "code", None) == 76:  # NoReplicationEnabled
            return None
        raise
    return status


def delays(store: MongoStore, status: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that members stay behind because they are told to, by name; those without are left
    out. Raises `PermissionDenied` for a role that may not read the configuration."""
    if len(status["members"]) < 2:
        return {}
    with store.errors():
        config = store.client.admin.command("replSetGetConfig")["config"]
    found = {m["host"]: float(m.get("secondaryDelaySecs", 0)) for m in config["members"]}
    return {host: delay for host, delay in found.items() if delay}


def members_lag(status: Mapping[str, Any], delayed: Mapping[str, float]) -> Measure:
    """The lag told by an answer of replSetGetStatus; `delayed` is what `delays` found."""
    members = status["members"]
    if len(members) < 2:
        return _none("not_applicable", "the replica set has one member only", "mongodb", _MEMBERS)
    primary = next((m for m in members if m["state"] == PRIMARY), None)
    if primary is None or unset(primary.get("optimeDate")):
        return _none("not_available", "the replica set has no primary now", "mongodb", _MEMBERS)
    known = {
        m["name"]: behind(primary, m, delayed)
        for m in members
        if m["state"] == SECONDARY and not unset(m.get("optimeDate"))
    }
    away = ", ".join(
        f"{m['name']} is {_OUTAGE_STATES[m['state']]}"
        for m in members
        if m["state"] in _OUTAGE_STATES
    )
    if not known:
        data_members = [m for m in members if m["state"] != 7]  # 7 is an arbiter: it has no data
        if len(data_members) < 2:
            return _none(
                "not_applicable", "no other member of the set has data", "mongodb", _MEMBERS
            )
        return _none("not_available", away or "no secondary is ready", "mongodb", _MEMBERS)
    worst = max(known, key=lambda name: known[name])
    remark = "; ".join(part for part in (worst, away) if part)
    return measured(known[worst], UNIT, "mongodb", _MEMBERS, remark=remark)


def behind(
    primary: Mapping[str, Any], member: Mapping[str, Any], delayed: Mapping[str, float]
) -> float:
    """Seconds from the last operation of a member to that of the primary, a wanted delay left out.

    Never below 0: the clocks of the two answers are not the same moment.
    """
    seconds = (primary["optimeDate"] - member["optimeDate"]).total_seconds()
    return max(0.0, float(seconds) - delayed.get(member["name"], 0.0))


def unset(moment: datetime | None) -> bool:
    """A member that was never heard has the first second of 1970."""
    return moment is None or moment.replace(tzinfo=UTC).timestamp() < 1


def _none(status: Status, reason: str, database: str, source: str) -> Measure:
    return unmeasured(status, reason, UNIT, database, source)
