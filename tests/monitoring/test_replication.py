"""A real replica beside the built-in PostgreSQL: made, paused, frozen, stopped, lost, told of."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import psycopg
import pytest
import sqlalchemy as sa
from support.embedded import DEBIAN_15, ask, pid, record, servers_over, store, up, watchers_of
from support.faults import judge
from support.monitoring import NOON

from fwdb import config, embedded
from fwdb.errors import FeatureUnavailable, ParameterError
from fwdb.monitoring import Monitor
from fwdb.monitoring.replication import (
    lost,
    members_lag,
    mongodb_rows,
    postgres_row,
    primary_lag,
    replica_lag,
)
from fwdb.reports import servers
from fwdb.reports.results import Check
from fwdb.stores import MongoStore, PostgresStore

SLOT = "fwdb_replica"


def up_pair(home: Path, **options: Any) -> embedded.Servers:
    return up(home, stores=("postgres",), replica=True, idle_minutes=0, **options)


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, embedded.Servers]]:
    """A primary with its replica, on each PostgreSQL there is."""
    home = tmp_path_factory.mktemp("pair") / ".fwdb"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "postgres15":
            if not (DEBIAN_15 / "pg_basebackup").exists():
                pytest.skip("no PostgreSQL 15: install Debian's postgresql-15")
            patch.setenv("FWDB_POSTGRES_BIN", str(DEBIAN_15))
        yield home, up_pair(home)
        embedded.remove(home)


@pytest.fixture
def primary(pair: tuple[Path, embedded.Servers]) -> Iterator[PostgresStore]:
    """The primary, with a table to write to and its replica caught up."""
    assert pair[1].postgres
    found = PostgresStore(pair[1].postgres.superuser or "")
    found.execute(sa.text("CREATE TABLE IF NOT EXISTS written (text text)"))
    yield found
    found.close()


@pytest.fixture
def monitor(primary: PostgresStore, mongodb: MongoStore, watch: Callable[..., Monitor]) -> Monitor:
    return watch(primary, mongodb)


def write(store: PostgresStore, rows: int = 2000) -> None:
    store.execute(
        sa.text("INSERT INTO written SELECT repeat('x', 1000) FROM generate_series(1, :n)"),
        {"n": rows},
    )


def the_replica(monitor: Monitor) -> pd.Series:
    frame = monitor.replicas()
    found = frame[(frame["database"] == "postgres") & (frame["slot"] == SLOT)]
    assert len(found) == 1
    return found.iloc[0]


def behind(monitor: Monitor) -> int | None:
    """Bytes; None before a replica that has just connected has answered."""
    found = the_replica(monitor)["behind_bytes"]
    return None if pd.isna(found) else int(found)


def reported(
    primary: PostgresStore, monitor: Monitor, limits: config.Thresholds
) -> dict[str, Check]:
    """What the report `health` says of the replicas, by check."""
    settings = config.settings().model_copy(update={"thresholds": limits})
    frames = {"replicas": monitor.replicas()}
    found = [
        c
        for rule in (servers.replicas, servers.replication)
        for c in judge("health", rule, frames, settings=settings).checks
    ]
    return {c.id: c for c in found if c.database == "postgres"}


def replica_url(pair: tuple[Path, embedded.Servers]) -> str:
    assert pair[1].replica
    return pair[1].replica.superuser or ""


# -- the three numbers, on a real replica ----------------------------------------------------------


def test_a_replica_that_is_well_is_a_row_with_all_its_numbers(
    monitor: Monitor, primary: PostgresStore, wait_until: Callable[..., None]
) -> None:
    """Nothing behind after it has replayed what was written; heard a moment ago."""
    write(primary)
    wait_until(lambda: behind(monitor) == 0)
    row = the_replica(monitor)

    assert (row["replica"], row["state"], row["status"]) == (SLOT, "streaming", "ok")
    assert 0 <= row["reply_age_seconds"] < 30
    assert row["retained_bytes"] >= 0
    assert monitor.replicas().attrs["lost"] == {}
    wait_until(lambda: monitor.replication_lag().value == 0)


def test_a_paused_replay_is_bytes_and_seconds_behind_and_still_answers(
    pair: tuple[Path, embedded.Servers],
    monitor: Monitor,
    primary: PostgresStore,
    wait_until: Callable[..., None],
) -> None:
    """The time before the pause, when nothing was written, does not count."""
    ask(replica_url(pair), "SELECT pg_wal_replay_pause()")
    try:
        before = time.monotonic()
        write(primary)
        wait_until(lambda: (behind(monitor) or 0) > 1_000_000)
        wait_until(lambda: monitor.replication_lag().value, what="a lag above 0")
        lag = monitor.replication_lag()
        elapsed = time.monotonic() - before
        assert lag.value is not None
        assert 0 < lag.value <= elapsed + 1
        assert the_replica(monitor)["reply_age_seconds"] < 30
        limits = config.Thresholds(lag_warning_bytes=1_000_000, lag_critical_bytes=10**9)
        found = reported(primary, monitor, limits)["health.replication"]
        assert found.status in ("warning", "critical")
        assert SLOT in found.sentence
        assert "pg_wal_replay_resume()" in found.action
    finally:
        ask(replica_url(pair), "SELECT pg_wal_replay_resume()")
    wait_until(lambda: behind(monitor) == 0)


def test_a_frozen_receiver_grows_silent_whatever_its_last_lag_was(
    pair: tuple[Path, embedded.Servers],
    monitor: Monitor,
    primary: PostgresStore,
    wait_until: Callable[..., None],
) -> None:
    """The replica itself says that it has replayed all it received."""
    receiver = next(
        child
        for child in psutil.Process(pid(pair[0], "replica")).children()
        if "walreceiver" in " ".join(child.cmdline())
    )
    receiver.suspend()
    try:
        write(primary)
        wait_until(lambda: (behind(monitor) or 0) > 1_000_000)
        first = the_replica(monitor)["reply_age_seconds"]
        wait_until(lambda: the_replica(monitor)["reply_age_seconds"] > first + 1)
        lag = monitor.replication_lag()
        standby = PostgresStore(replica_url(pair))
        naive = standby.rows(
            sa.text("SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AS replayed")
        )
        standby.close()

        assert naive[0]["replayed"], "which is the trap"
        assert lag.value is not None
        assert lag.value >= 1
        assert "no answer" in lag.reason
    finally:
        receiver.resume()
    wait_until(lambda: behind(monitor) == 0)


def test_a_replica_tells_of_itself(
    pair: tuple[Path, embedded.Servers],
    mongodb: MongoStore,
    watch: Callable[..., Monitor],
    wait_until: Callable[..., None],
) -> None:
    """Its receiver, when it last heard its primary, and what it has still to replay."""
    standby = PostgresStore(replica_url(pair))
    monitor = watch(standby, mongodb)
    wait_until(lambda: behind(monitor) == 0)
    row, lag = the_replica(monitor), monitor.replication_lag()
    settings = {r["name"]: r["value"] for r in standby.rows("server_settings")}
    figures = monitor.server_facts()
    monitor.tables(), monitor.indexes(), monitor.vacuum_holders()
    standby.close()

    assert bool(row["is_self"])
    assert figures["wraparound_percent"].status == "ok"
    assert settings["primary_conninfo"].startswith("(secret ")
    assert row["state"] == "streaming"
    assert 0 <= row["reply_age_seconds"] < 60
    assert lag.value == 0


def test_a_stopped_replica_is_lost_and_not_none(
    pair: tuple[Path, embedded.Servers],
    monitor: Monitor,
    primary: PostgresStore,
    wait_until: Callable[..., None],
) -> None:
    """Its slot tells; the log it will want is kept, and it catches up when it is back."""
    process = psutil.Process(pid(pair[0], "replica"))
    process.send_signal(signal.SIGINT)
    process.wait(20)
    wait_until(lambda: pd.isna(the_replica(monitor)["replica"]))
    write(primary)
    row, lag = the_replica(monitor), monitor.replication_lag()

    assert (row["status"], lag.status) == ("not_available", "not_available")
    assert SLOT in lag.reason
    assert row["retained_bytes"] > 1_000_000
    assert SLOT in monitor.replicas().attrs["lost"]["postgres"]
    found = reported(primary, monitor, config.Thresholds())["health.replicas"]
    assert found.status == "critical"
    assert SLOT in found.sentence
    assert f"pg_drop_replication_slot('{SLOT}')" in found.action
    port = record(pair[0], "replica")["port"]
    again = up_pair(pair[0])
    assert record(pair[0], "replica")["port"] == port
    assert again.replica
    wait_until(lambda: behind(monitor) == 0)
    rows = "SELECT count(*) FROM written"
    database = primary.url.database
    assert ask(again.replica.superuser.replace("fashion_wallet", str(database)), rows) == ask(
        again.postgres.superuser, rows
    )


# -- how many there should be ----------------------------------------------------------------------


def row(**changed: Any) -> dict[str, Any]:
    return {"replica": "a", "slot": None, "slot_type": None, "is_self": False, **changed}


@pytest.mark.parametrize(
    ("rows", "expected", "sentence"),
    [
        ([], None, ""),
        ([], 0, ""),
        ([], 2, "0 of 2 replicas are connected"),
        ([row()], 2, "1 of 2 replicas is connected"),
        ([row()], 1, ""),
        ([row(), row(replica=None, is_self=True)], 2, "1 of 2 replicas is connected"),
        ([row(replica=None, slot="s", slot_type="physical")], None, "of slot s is not connected"),
        ([row(replica=None, slot="s", slot_type="logical")], None, ""),
    ],
)
def test_a_lost_replica_is_told_from_none(
    rows: list[dict[str, Any]], expected: int | None, sentence: str
) -> None:
    """Only a slot, or the number there should be, tells that one is missing."""
    assert lost(rows, expected=expected).endswith(sentence)
    assert bool(lost(rows, expected=expected)) == bool(sentence)


def test_no_replica_is_not_the_same_as_a_replica_without_lag(
    db: Any, fifteen: PostgresStore, monkeypatch: pytest.MonkeyPatch, watch: Callable[..., Monitor]
) -> None:
    """Neither server of a test run has one; nor one that is lost, unless FWDB_EXPECTED_REPLICAS
    says how many there should be, or a slot tells that there was one."""
    for found in (db.monitor, watch(fifteen, db.mongodb)):
        lag = found.replication_lag()
        assert (lag.status, lag.value) == ("not_applicable", None)
    frame = db.monitor.replicas()
    assert frame.empty
    assert frame.attrs["missing"]["postgres"] == "no replica is connected"
    assert "one member" in frame.attrs["missing"]["mongodb"]
    assert frame.attrs["lost"] == {}
    assert db.monitor.replication_lag("mongodb").status == "not_applicable"

    monkeypatch.setenv("FWDB_EXPECTED_REPLICAS", "1")
    expecting = watch(db.postgres, db.mongodb, thresholds=config.Thresholds())
    lag = expecting.replication_lag()
    assert lag.status == "not_available"
    assert "0 of 1 replicas" in lag.reason
    assert "0 of 1" in expecting.replicas().attrs["lost"]["postgres"]

    slot = f"test_{time.time_ns()}"
    answer = "SELECT pg_create_physical_replication_slot(:slot, true)"
    db.postgres.rows(sa.text(answer), slot=slot)
    try:
        lag = db.monitor.replication_lag()
    finally:
        db.postgres.rows(sa.text("SELECT pg_drop_replication_slot(:slot)"), slot=slot)
    assert lag.status == "not_available"
    assert slot in lag.reason


# -- the lag by hand ------------------------------------------------------------------------------


def replica(**changed: Any) -> dict[str, Any]:
    return {
        "replica": "standby",
        "slot": None,
        "slot_type": None,
        "is_self": False,
        "state": "streaming",
        "sync_state": "async",
        "behind_bytes": 0,
        "replay_lag_seconds": None,
        "reply_age_seconds": 0.1,
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "seconds"),
    [
        ({"reply_age_seconds": 9.0}, 0.0),  # idle: it answers every 10 s only
        ({"replay_lag_seconds": 1.07}, 0.0),  # idle: the last figure stays for a while
        ({"behind_bytes": 4_300_000, "replay_lag_seconds": 2.15}, 2.15),  # replay paused
        (
            {"behind_bytes": 4_300_000, "replay_lag_seconds": 1.07, "reply_age_seconds": 4.1},
            4.1,  # receiver frozen: the last figure is stale
        ),
    ],
)
def test_the_lag_of_a_replica(changed: dict[str, Any], seconds: float) -> None:
    """Nothing left to replay is no lag; a silent replica is as late as it is silent."""
    lag = primary_lag([replica(), replica(**changed)])

    assert lag.value == pytest.approx(seconds)


def test_a_replica_without_figures_has_no_lag() -> None:
    """One that has just connected is neither lost nor up to date, and beside another one that is
    known it is left out; a role that may not see it gets nulls, which is not 0."""
    new = replica(state="startup", behind_bytes=None, reply_age_seconds=None)
    hidden = primary_lag([new | {"state": None}])

    assert lost([new], expected=1) == ""
    assert postgres_row(new)["status"] == "no_data"
    assert primary_lag([new]).status == "not_available"
    assert "just connected" in primary_lag([new]).reason
    assert primary_lag([new, replica(behind_bytes=9, replay_lag_seconds=2.0)]).value == 2.0
    assert hidden.status == "not_measured"
    assert "GRANT pg_monitor" in hidden.reason


@pytest.mark.parametrize(
    ("changed", "status", "value"),
    [
        ({}, "ok", 0.0),
        ({"is_replayed": False, "replay_age_seconds": 3.5}, "ok", 3.5),
        ({"replay_age_seconds": 900.0}, "ok", 0.0),  # all replayed on an idle primary
        ({"receiver_status": None, "receiver_age_seconds": None}, "not_available", None),
        ({"receiver_age_seconds": 120.0}, "not_available", None),
        ({"is_replayed": False, "replay_age_seconds": None}, "no_data", None),
    ],
)
def test_a_replica_that_is_asked_itself(
    changed: dict[str, Any], status: str, value: float | None
) -> None:
    """That it has replayed all it received means something while it hears the primary."""
    state = {
        "is_replica": True,
        "is_replayed": True,
        "replay_age_seconds": 0.2,
        "receiver_status": "streaming",
        "receiver_age_seconds": 2.0,
        **changed,
    }
    lag = replica_lag(state)

    assert (lag.status, lag.value) == (status, value)


def member(name: str, state: int, seconds: float | None = 0, **more: Any) -> dict[str, Any]:
    at = datetime(1970, 1, 1, tzinfo=UTC) if seconds is None else NOON + timedelta(seconds=seconds)
    states = {1: "PRIMARY", 2: "SECONDARY", 7: "ARBITER", 8: "(not reachable/healthy)"}
    return {"name": name, "state": state, "stateStr": states[state], "optimeDate": at, **more}


@pytest.mark.parametrize(
    ("members", "status", "value"),
    [
        ([member("a", 1, 0)], "not_applicable", None),
        ([member("a", 1, 0), member("b", 2, -3)], "ok", 3.0),
        ([member("a", 1, 0), member("b", 2, 2)], "ok", 0.0),  # never abs()
        ([member("a", 1, 0), member("b", 2, -3), member("c", 2, -8)], "ok", 8.0),
        ([member("a", 1, 0), member("late", 2, -3602)], "ok", 2.0),  # told to stay an hour behind
        ([member("a", 1, 0), member("late", 2, -9)], "ok", 0.0),
        ([member("a", 2, 0), member("b", 2, -3)], "not_available", None),  # no primary
        ([member("a", 1, 0), member("b", 8, None)], "not_available", None),  # down
        ([member("a", 1, 0), member("b", 2, None)], "not_available", None),  # never heard
        ([member("a", 1, 0), member("b", 7, None)], "not_applicable", None),  # an arbiter
    ],
)
def test_the_lag_of_a_replica_set(
    members: list[dict[str, Any]], status: str, value: float | None
) -> None:
    """Primary less secondary, and only where both are known."""
    lag = members_lag({"members": members}, {"late": 3600.0})

    assert (lag.status, lag.value) == (status, value)


# -- MongoDB in the same columns -------------------------------------------------------------------


def test_members_of_a_replica_set_are_rows_of_the_same_kind() -> None:
    """Lag never negative, a wanted delay left out, no arbiter; bytes are not known."""
    heard = {"lastHeartbeatRecv": NOON - timedelta(seconds=2)}
    members = [
        member("a", 1),
        member("b", 2, -3, **heard),
        member("c", 2, 2, **heard),
        member("late", 2, -3605, **heard),
        member("judge", 7, None, **heard),
        member("gone", 8, None, lastHeartbeatRecv=NOON - timedelta(seconds=90)),
    ]
    rows = {
        r["replica"]: r for r in mongodb_rows({"members": members, "date": NOON}, {"late": 3600.0})
    }

    assert set(rows) == {"b", "c", "late", "gone"}
    assert {n: rows[n].get("replay_lag_seconds") for n in rows} == {
        "b": 3.0,
        "c": 0.0,
        "late": 5.0,
        "gone": None,
    }
    assert rows["b"]["reply_age_seconds"] == 2.0
    assert rows["gone"]["reply_age_seconds"] == 90.0
    assert rows["gone"]["status"] == "not_available"
    assert all("behind_bytes" not in r for r in rows.values())
    # Without a primary there is nothing to compare with; an arbiter votes and holds nothing.
    headless = mongodb_rows({"members": [member("a", 2), member("b", 2)], "date": NOON}, {})
    assert [r["status"] for r in headless] == ["not_available"] * 2
    assert not any("replay_lag_seconds" in r for r in headless)
    for alone in ([member("a", 1)], [member("a", 1), member("j", 7, None)]):
        assert mongodb_rows({"members": alone, "date": NOON}, {}) == []


# -- the built-in replica --------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ".fwdb"
    yield path
    embedded.remove(path)


def test_a_replica_comes_only_when_asked_for_and_goes_with_its_primary(home: Path) -> None:
    """`up` alone starts none; `down` stops it, and no process is left."""
    plain = up(home, stores=("postgres",))
    assert plain.replica is None
    assert [one.store for one in embedded.status(home).stores] == ["postgres", "mongodb"]

    with_replica = up_pair(home)
    assert with_replica.replica
    assert with_replica.postgres == plain.postgres, "the primary went on as it was"
    status = store(home, "replica")
    assert status.running
    assert status.url
    assert "***" in status.url
    assert any(f.subject == "replica" and "runs" in f.sentence for f in embedded.doctor(home))
    for url in (with_replica.replica.owner, with_replica.replica.report):
        assert ask(url, "SELECT pg_is_in_recovery()") is True
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ask(with_replica.replica.owner, "CREATE TABLE t ()")
    assert up_pair(home) == with_replica, "joined as they run"

    assert embedded.down(home)
    assert servers_over(home) == {"postgres": [], "mongodb": [], "replica": []}
    assert store(home, "replica").reason == "stopped"


def test_a_replica_follows_over_crashes_of_either_server(
    home: Path, wait_until: Callable[..., None]
) -> None:
    """Killed both, started again: the same ports, and what is written arrives."""
    first = up_pair(home)
    assert first.postgres
    assert first.replica
    for name in ("replica", "postgres"):
        os.kill(pid(home, name), signal.SIGKILL)
    again = up_pair(home)
    assert again == first
    ask(first.postgres.superuser or "", "CREATE TABLE arrived ()")
    wait_until(lambda: ask(first.replica.owner, "SELECT to_regclass('arrived') IS NOT NULL"))


def test_a_replica_that_cannot_follow_is_copied_anew(
    home: Path, wait_until: Callable[..., None]
) -> None:
    """Its slot was dropped, so the log that it would need may be gone; lost passwords likewise."""
    first = up_pair(home)
    assert first.postgres
    embedded.down(home)
    up(home, stores=("postgres",))
    ask(first.postgres.superuser or "", f"SELECT pg_drop_replication_slot('{SLOT}')")
    (home / "secrets.json").unlink()
    embedded.down(home)
    said: list[str] = []
    again = up_pair(home, progress=said.append)
    assert again.postgres
    assert again.replica
    ask(again.postgres.superuser or "", "CREATE TABLE arrived ()")
    wait_until(lambda: ask(again.replica.owner, "SELECT to_regclass('arrived') IS NOT NULL"))

    assert any(s.startswith("Copying PostgreSQL") for s in said)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(first.replica.owner if first.replica else "", "SELECT 1")


def test_the_password_of_a_replica_is_in_no_statistics_and_no_log(home: Path) -> None:
    """Nor on a command line: only in files that their owner alone may read."""
    servers = up_pair(home)
    assert servers.postgres
    secret = json.loads((home / "secrets.json").read_text())["replica"]["fwdb_replication"]
    texts = ask(
        servers.postgres.superuser or "", "SELECT string_agg(query, ' ') FROM pg_stat_statements"
    )
    logs = "".join(path.read_text() for path in (home / "log").iterdir())
    data = Path(record(home, "replica")["data"])
    logs += "".join(path.read_text() for path in (data / "log").iterdir())
    pids = [pid(home, name) for name in ("replica", "postgres")]
    lines = [" ".join(psutil.Process(one).cmdline()) for one in pids]

    assert "SCRAM-SHA-256$" not in texts
    assert all(secret not in text for text in (texts, logs, *lines))
    assert (data / "fwdb.conf").stat().st_mode & 0o777 == 0o600


def test_a_replica_does_not_keep_idle_servers_up(
    home: Path, wait_until: Callable[..., None]
) -> None:
    """Its own connection to the primary is no client's."""
    up_pair(home)
    embedded.down(home)
    up(home, stores=("postgres",), replica=True, idle_minutes=0.1)
    wait_until(lambda: not watchers_of(home), timeout=60, what="the servers to stop by themselves")

    assert servers_over(home) == {"postgres": [], "mongodb": [], "replica": []}


def test_a_replica_without_its_primary_or_the_program_is_refused(
    home: Path,
) -> None:
    """Before anything is started, with the remedy; the primary runs all the same."""
    with pytest.raises(ParameterError, match="add 'postgres'"):
        embedded.up(home, stores=("mongodb",), replica=True)
    up(home, stores=("postgres",))
    state = json.loads((home / "state.json").read_text())
    state["servers"]["postgres"]["binary"] = str(home / "bin" / "postgres")
    (home / "state.json").write_text(json.dumps(state))
    with pytest.raises(FeatureUnavailable, match=r"has no pg_basebackup.*FWDB_POSTGRES_BIN"):
        up_pair(home)
    assert store(home, "postgres").running
    assert "replica" not in servers_over(home)
