"""Sessions, cache ratio, replication and the history: never a number where there is none."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb import config, migrating
from fwdb.database import Database
from fwdb.errors import (
    FeatureUnavailable,
    ParameterError,
    PermissionDenied,
    StoreUnavailable,
    UnknownName,
)
from fwdb.monitoring import Measure, Monitor
from fwdb.monitoring.cache import ratio
from fwdb.monitoring.readings import Reading, mongodb_counters, parsed
from fwdb.monitoring.replication import members_lag, primary_lag, replica_lag
from fwdb.monitoring.sampler import LOCK
from fwdb.stores import MongoStore, PostgresStore

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def monitor(db: Database) -> Monitor:
    return db.monitor


@pytest.fixture(scope="module")
def fifteen(postgres15: str) -> Iterator[PostgresStore]:
    """A migrated database on PostgreSQL 15."""
    name = f"test_monitoring_{time.time_ns()}"
    server = PostgresStore(postgres15)
    server.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.url.set(database=name, drivername="postgresql")
    store = PostgresStore(url.render_as_string(hide_password=False))
    migrating.migrate(store, None)
    yield store
    store.close()
    server.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.close()


def url_of(store: PostgresStore, **changed: Any) -> str:
    url = store.url.set(drivername="postgresql", **changed)
    return str(url.render_as_string(hide_password=False))


# -- values with a status -----------------------------------------------------------------------


def test_a_measure_has_a_value_exactly_when_it_is_ok() -> None:
    """Neither a number beside "not available" nor a missing one beside "ok"."""
    for status, value in (
        ("ok", None),
        ("no_data", 0.0),
        ("not_applicable", 1.0),
        ("ok", math.nan),
    ):
        with pytest.raises(ValueError, match="measure"):
            Measure(value, "ratio", status, "", "postgres", "test")  # type: ignore[arg-type]


def test_a_measure_reads_as_a_sentence() -> None:
    """The number with its unit and remark, or the status with its reason."""
    measured = Measure(0.98765, "ratio", "ok", "3 of 100 blocks read", "postgres", "test")
    missing = Measure(None, "seconds", "not_applicable", "no replica", "postgres", "test")

    assert str(measured) == "0.9877 ratio (3 of 100 blocks read)"
    assert str(missing) == "not applicable: no replica"


# -- sessions -----------------------------------------------------------------------------------


def session(monitor: Monitor, state: str) -> pd.Series | None:
    frame = monitor.sessions("postgres")
    mine = frame[(frame["application"] == "worker") & (frame["state"] == state)]
    return mine.iloc[0] if len(mine) else None


@pytest.fixture
def worker(db: Database) -> Iterator[PostgresStore]:
    store = PostgresStore(url_of(db.postgres), application_name="worker")
    yield store
    store.close()


def test_an_idle_session_is_not_waiting(monitor: Monitor, worker: PostgresStore) -> None:
    """It has a wait event, ClientRead, and waits for nothing inside the server."""
    worker.ping()
    idle = session(monitor, "idle")

    assert idle is not None
    assert (idle["sessions"], idle["waiting"], idle["blocked"]) == (1, 0, 0)


def test_idle_in_transaction_is_as_old_as_its_last_statement(
    monitor: Monitor, worker: PostgresStore
) -> None:
    """Not as the transaction: that one may have worked until a moment ago."""
    with worker.transaction():
        worker.rows(sa.text("SELECT pg_sleep(0.6)"))
        idle = session(monitor, "idle in transaction")

        assert idle is not None
        assert idle["sessions"] == 1
        assert 0 <= idle["oldest_seconds"] < 0.6


def test_a_session_that_another_one_blocks_is_waiting(
    db: Database, monitor: Monitor, worker: PostgresStore, wait_until: Callable[..., None]
) -> None:
    """As blocked, because it wants a lock that somebody holds."""

    def write() -> None:
        with worker.connection():
            worker.execute(sa.text("LOCK TABLE shared.users IN SHARE MODE"))

    def blocked() -> bool:
        row = session(monitor, "active")
        return row is not None and bool(row["blocked"] == 1 and row["waiting"] == 1)

    with db.transaction():
        db.postgres.execute(sa.text("LOCK TABLE shared.users"))
        thread = threading.Thread(target=lambda: _in_transaction(worker, write), daemon=True)
        thread.start()
        wait_until(blocked)
    thread.join()


def _in_transaction(store: PostgresStore, work: Callable[[], None]) -> None:
    with store.transaction():
        work()


def test_sessions_of_others_are_hidden_and_not_left_out(
    db: Database, worker: PostgresStore
) -> None:
    """Without pg_read_all_stats; the GRANT that helps is named."""
    worker.ping()
    role = f"test_blind_{time.time_ns()}"
    db.postgres.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    blind = PostgresStore(url_of(db.postgres, username=role, password="x"))
    monitor = Monitor(blind, db.mongodb)
    try:
        frame = monitor.sessions("postgres")
    finally:
        monitor.close()
        blind.close()
        db.postgres.execute(sa.text(f"DROP ROLE {role}"))

    assert frame.loc[frame["state"] == "hidden", "sessions"].sum() >= 1
    assert "GRANT pg_read_all_stats" in frame.attrs["hidden"]["postgres"]


def test_the_limit_leaves_out_reserved_sessions(
    db: Database, monitor: Monitor, fifteen: PostgresStore
) -> None:
    """An ordinary role never gets those."""
    with ExitStack() as stack:
        other = Monitor(fifteen, db.mongodb)
        stack.callback(other.close)
        for store, asked in ((db.postgres, monitor), (fifteen, other)):
            settings = store.rows(
                sa.text(
                    "SELECT CAST(setting AS int) AS n FROM pg_settings WHERE name IN "
                    "('max_connections', 'superuser_reserved_connections', "
                    "'reserved_connections') ORDER BY name = 'max_connections' DESC"
                )
            )
            most, *reserved = [row["n"] for row in settings]

            assert asked.session_limit().value == most - sum(reserved)


def test_sessions_of_the_other_store_come_when_one_is_down(db: Database) -> None:
    """The missing half is named; when it was the only one asked, its error is raised."""
    down = PostgresStore("postgresql://nobody@127.0.0.1:1/nothing")
    monitor = Monitor(down, db.mongodb)
    frame = monitor.sessions()
    with pytest.raises(StoreUnavailable):
        monitor.sessions("postgres")
    monitor.close()

    assert frame["database"].tolist() == ["mongodb"]
    assert "no answer from postgres" in frame.attrs["missing"]["postgres"]


def test_an_unknown_database_is_refused(monitor: Monitor) -> None:
    """With the nearest right name, by each question that takes one."""
    for ask in (
        monitor.sessions,
        monitor.session_limit,
        monitor.cache_hit_ratio,
        monitor.replication_lag,
    ):
        with pytest.raises(UnknownName, match="did you mean 'postgres'"):
            ask("postgresql")


# -- SecantusDB: constants that look like data --------------------------------------------------


def test_no_constant_of_secantusdb_becomes_a_number(db: Database, monitor: Monitor) -> None:
    """connections.available is 0 there, and there is no cache and no second member."""
    if not db.mongodb.is_secantus:
        pytest.skip("the MongoDB of this run is not SecantusDB")
    measures = [
        monitor.session_limit("mongodb"),
        monitor.cache_hit_ratio("mongodb"),
        monitor.cache_hit_ratio("mongodb", live_seconds=0.05),
        monitor.replication_lag("mongodb"),
    ]

    assert [m.value for m in measures] == [None] * 4
    assert [m.status for m in measures] == ["not_available"] * 3 + ["not_applicable"]
    assert all(m.reason for m in measures)
    assert monitor.sessions("mongodb")["sessions"].item() >= 1
    assert not {"pages_requested", "available"} & mongodb_counters(db.mongodb).keys()


# -- cache --------------------------------------------------------------------------------------


def read_blocks(store: PostgresStore, times: int) -> None:
    """Ask for far more blocks than the threshold, all in memory after the first time."""
    store.execute(sa.text("CREATE TABLE IF NOT EXISTS wide (text text)"))
    with store.transaction():
        store.execute(
            sa.text("INSERT INTO wide SELECT repeat('x', 2000) FROM generate_series(1, 2000)")
        )
    with store.connection() as connection:
        for _ in range(times):
            connection.execute(sa.text("SELECT count(*) FROM wide"))
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        connection.execute(sa.text("SELECT 1"))


@pytest.mark.parametrize("server", ["postgres18", "postgres15"])
def test_the_cache_ratio_is_that_of_the_window(
    db: Database, server: str, request: pytest.FixtureRequest, wait_until: Callable[..., None]
) -> None:
    """From the counters at its ends, of which the first is stored."""
    store = db.postgres if server == "postgres18" else request.getfixturevalue("fifteen")
    monitor = Monitor(store, db.mongodb)
    try:
        monitor.sample()
        before = _counted(store)
        # So much that what other sessions report late, the monitor's own too, is nothing beside it.
        read_blocks(store, 100)
        wait_until(lambda: _counted(store)[0] - before[0] > 25_000)
        found = monitor.cache_hit_ratio()
        after = _counted(store)
    finally:
        monitor.close()
    hit, read = after[0] - before[0], after[1] - before[1]

    assert found.status == "ok"
    assert found.value == pytest.approx(hit / (hit + read), abs=0.02)
    assert "blocks read" in found.reason
    assert found.window is not None


def _counted(store: PostgresStore) -> tuple[int, int]:
    row = store.rows("database_counters")[0]
    return row["hit_blocks"], row["read_blocks"]


def counters(minutes: float, found: int, read: int, **more: Any) -> Reading:
    kept = {"stats_reset": None, "server_started_at": None, "io_timed": "read_ms" in more}
    kept |= {"read_at": (NOON + timedelta(minutes=minutes)).isoformat(), "read_ms": 0.0}
    return parsed(kept | {"hit_blocks": found, "read_blocks": read} | more)


def test_the_ratio_is_not_that_since_the_server_started() -> None:
    """0.9987 then and 0.9614 now are 0.085 in between."""
    found = ratio("postgres", counters(0, 998_700, 1_300), counters(9, 1_001_910, 35_860))

    assert found.value == pytest.approx(0.085, abs=0.001)


@pytest.mark.parametrize(("found", "read"), [(0, 0), (3, 0), (0, 999)])
def test_too_few_blocks_are_no_ratio(found: int, read: int) -> None:
    """Nothing asked for is neither 0 nor 1."""
    measure = ratio("postgres", counters(0, 500, 500), counters(9, 500 + found, 500 + read))

    assert measure.status == "no_data"
    assert "1,000" in measure.reason


def test_counters_that_began_anew_count_from_there() -> None:
    """Smaller than before, or with another time of reset; the window begins with them."""
    reset = NOON + timedelta(minutes=5)
    smaller = ratio("postgres", counters(0, 9000, 9000), counters(9, 3000, 1000))
    grown = ratio(
        "postgres", counters(0, 10, 10), counters(9, 3000, 1000, stats_reset=reset.isoformat())
    )

    assert smaller.value == grown.value == 0.75
    assert "began anew" in smaller.reason
    assert grown.window == (reset, NOON + timedelta(minutes=9))


def test_a_reset_between_the_readings_is_seen(db: Database, monitor: Monitor) -> None:
    """On a real server: the difference would be negative."""
    read_blocks(db.postgres, 5)
    monitor.sample()
    db.postgres.rows(sa.text("SELECT pg_stat_reset()"))
    found = monitor.cache_hit_ratio()

    assert found.status == "no_data" or "began anew" in found.reason
    assert found.value is None or 0 <= found.value <= 1


def test_reads_that_were_not_timed_are_not_fast() -> None:
    """No milliseconds without track_io_timing."""
    timed = ratio(
        "postgres",
        counters(0, 0, 0, read_ms=0.0),
        counters(9, 1000, 1000, read_ms=500.0),
    )
    untimed = ratio("postgres", counters(0, 0, 0), counters(9, 1000, 1000))

    assert "0.500 ms each" in timed.reason
    assert "not measured (track_io_timing is off)" in untimed.reason


def test_mongodb_counts_pages_and_forgets_them_at_a_restart() -> None:
    """Requested less read, from two answers of serverStatus."""

    def answer(minutes: float, uptime: float, requested: int, read: int) -> Reading:
        return parsed(
            {
                "read_at": (NOON + timedelta(minutes=minutes)).isoformat(),
                "uptime_seconds": uptime,
                "pages_requested": requested,
                "pages_read": read,
            }
        )

    steady = ratio("mongodb", answer(0, 600, 5000, 1000), answer(10, 1200, 9000, 2000))
    restarted = ratio("mongodb", answer(0, 600, 100, 10), answer(10, 60, 9000, 2250))

    assert steady.value == pytest.approx(0.75)
    assert restarted.value == pytest.approx(0.75)
    assert "began anew" in restarted.reason


def test_without_history_there_is_no_ratio(
    db: Database, postgres_database: Callable[..., str]
) -> None:
    """Neither with no reading nor without the schema; what would make data is said."""
    assert db.monitor.cache_hit_ratio().status == "no_data"
    bare = PostgresStore(postgres_database())
    monitor = Monitor(bare, db.mongodb)
    measure = monitor.cache_hit_ratio()
    monitor.close()
    bare.close()

    assert measure.status == "no_data"
    assert "fwdb migrate" in measure.reason


# -- replication --------------------------------------------------------------------------------


def test_an_idle_primary_without_replica_has_no_lag(
    db: Database, monitor: Monitor, fifteen: PostgresStore
) -> None:
    """No replica is not the same as a replica without lag."""
    other = Monitor(fifteen, db.mongodb)
    for asked in (monitor, other):
        lag = asked.replication_lag()

        assert lag.status == "not_applicable"
        assert lag.value is None
    other.close()


def test_a_slot_that_nobody_uses_is_a_lost_replica(db: Database, monitor: Monitor) -> None:
    """Its lag cannot be told; that is not "no replica"."""
    slot = f"test_{time.time_ns()}"
    db.postgres.rows(sa.text("SELECT pg_create_physical_replication_slot(:slot, true)"), slot=slot)
    try:
        lag = monitor.replication_lag()
    finally:
        db.postgres.rows(sa.text("SELECT pg_drop_replication_slot(:slot)"), slot=slot)

    assert lag.status == "not_available"
    assert slot in lag.reason


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


def test_a_replica_that_has_just_connected_has_no_lag_yet() -> None:
    """It is neither none nor up to date; beside another one that is known it is left out."""
    new = replica(state="startup", behind_bytes=None, reply_age_seconds=None)

    assert primary_lag([new]).status == "not_available"
    assert "just connected" in primary_lag([new]).reason
    assert primary_lag([new, replica(behind_bytes=9, replay_lag_seconds=2.0)]).value == 2.0


def test_a_role_that_may_not_see_replicas_measures_nothing() -> None:
    """Their columns are null then, which is not 0."""
    hidden = replica(state=None, behind_bytes=None, reply_age_seconds=None)
    lag = primary_lag([hidden])

    assert lag.status == "not_measured"
    assert "GRANT pg_monitor" in lag.reason


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


def member(name: str, state: int, seconds: float | None) -> dict[str, Any]:
    at = datetime(1970, 1, 1, tzinfo=UTC) if seconds is None else NOON + timedelta(seconds=seconds)
    return {"name": name, "state": state, "optimeDate": at}


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


def test_a_mongodb_of_one_member_has_no_lag(db: Database) -> None:
    """Asked of the real server."""
    assert db.monitor.replication_lag("mongodb").status == "not_applicable"


# -- readings -----------------------------------------------------------------------------------


def stored(store: PostgresStore, table: str) -> int:
    return int(store.rows(sa.text(f"SELECT count(*) AS n FROM monitoring.{table}"))[0]["n"])


def subjects(store: PostgresStore) -> set[tuple[str, str]]:
    rows = store.rows(sa.text("SELECT database, subject FROM monitoring.counter_samples"))
    return {(row["database"], row["subject"]) for row in rows}


def test_a_full_reading_holds_everything(db: Database, monitor: Monitor) -> None:
    """Pools, sessions, counters of both servers, statements with their texts."""
    db.users.count()
    db.designs.count()
    sample = monitor.sample("full")

    assert sample.kind == "full"
    assert not sample.missing
    assert sample.rows["pools"] == 2
    assert subjects(db.postgres) == {
        *(("postgres", subject) for subject in ("database", "io", "server", "settings", "tables")),
        ("mongodb", "server"),
    }
    assert sample.rows["statements"] == stored(db.postgres, "statement_samples") > 0
    assert stored(db.postgres, "statement_texts") > 0
    assert stored(db.postgres, "session_samples") == sample.rows["sessions"] > 0
    assert stored(db.postgres, "command_samples") == sample.rows["commands"] > 0
    assert f"full reading {sample.reading_id}" in str(sample)


def test_a_statement_text_is_stored_once(db: Database, monitor: Monitor) -> None:
    """However many readings count it."""
    for _ in range(4):  # at first the statements of this test are new themselves
        stored(db.postgres, "statement_texts")
        monitor.sample("full")
    before = stored(db.postgres, "statement_texts")
    sample = monitor.sample("full")

    assert stored(db.postgres, "statement_texts") == before
    assert stored(db.postgres, "statement_samples") > sample.rows["statements"]


def test_two_samplers_store_the_servers_once(db: Database, monitor: Monitor) -> None:
    """While one reads them the other stores its own process only."""
    db.users.count()
    with db.transaction():
        db.postgres.rows(
            sa.text("SELECT pg_advisory_xact_lock(:area, :key)"), area=LOCK[0], key=LOCK[1]
        )
        sample = monitor.sample("full")

    assert sample.kind == "process"
    assert sample.rows["pools"] >= 1
    assert stored(db.postgres, "session_samples") == 0
    assert stored(db.postgres, "statement_samples") == 0
    assert stored(db.postgres, "pool_samples") == sample.rows["pools"]


def test_samplers_of_two_processes_take_turns(
    db: Database, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Each stores its pools at every turn; the servers are read once per turn by one of them."""
    other_store = PostgresStore(url_of(db.postgres), application_name="other")
    other = Monitor(other_store, db.mongodb)
    db.users.count()
    other_store.ping()
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=m.run, kwargs={"interval": 0.4, "full_every": 60, "stop": stop}, daemon=True
        )
        for m in (monitor, other)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(monitor.readings()) >= 8)
    stop.set()
    for thread in threads:
        thread.join()
    readings = monitor.readings()
    servers = readings[readings["kind"] != "process"]
    pools = monitor.pool_history()
    other.close()
    other_store.close()

    assert readings["process"].nunique() == 2
    assert servers["read_at"].diff().dropna().min() >= pd.Timedelta(seconds=0.9 * 0.4)
    assert (servers["kind"] == "full").sum() == 1
    assert pools[pools["database"] == "postgres"]["process"].nunique() == 2


def test_sampling_leaves_a_first_and_a_last_full_reading(db: Database, monitor: Monitor) -> None:
    """So that the block can be asked about, however short it was."""
    with monitor.sampling(every=60):
        db.postgres.rows(sa.text("SELECT count(*) FROM shared.users, avatar.avatars"))
    kinds = monitor.readings()["kind"].tolist()
    since = monitor.readings()["read_at"].iloc[0]
    frame = monitor.slow_queries(since=since, min_ms=0, top=1000)

    assert kinds == ["full", "full"]
    assert frame["statement"].str.contains("avatar.avatars").any()


def test_sampling_goes_on_after_its_connection_was_cut(
    db: Database, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A restart of the server must not end the history."""
    with monitor.sampling(every=0.1):
        wait_until(lambda: len(monitor.readings()) >= 2)
        db.postgres.rows(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                "application_name = 'fwdb-monitor' AND datname = current_database()"
            )
        )
        before = stored(db.postgres, "readings")
        wait_until(lambda: stored(db.postgres, "readings") >= before + 3)


def test_a_sampler_does_not_wait_behind_the_work(db: Database, monitor: Monitor) -> None:
    """It has a name of its own, 100 ms for a lock, and 5 s for any answer."""
    row = monitor.postgres.rows(
        sa.text(
            "SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') "
            "AS statement, current_setting('application_name') AS name"
        )
    )[0]

    assert row == {"lock": "100ms", "statement": "4500ms", "name": "fwdb-monitor"}


def test_a_mongodb_that_is_down_is_noted_in_the_reading(db: Database) -> None:
    """PostgreSQL's part is stored all the same."""
    settings = config.settings().model_copy(update={"connect_timeout_seconds": 0.2})
    down = MongoStore("mongodb://127.0.0.1:1/nothing", settings=settings)
    monitor = Monitor(db.postgres, down)
    sample = monitor.sample()
    monitor.close()
    down.close()

    assert sample.kind == "light"
    assert {database for database, _ in subjects(db.postgres)} == {"postgres"}
    assert "no answer from mongodb" in sample.missing["mongodb"]


def test_a_database_without_statements_gives_a_light_reading(db: Database) -> None:
    """With the remedy; the rest is stored."""
    db.postgres.execute(sa.text("DROP EXTENSION pg_stat_statements"))
    sample = db.monitor.sample("full")

    assert sample.kind == "light"
    assert "CREATE EXTENSION pg_stat_statements" in sample.missing["statements"]
    assert sample.rows["sessions"] >= 0


def test_readings_want_a_schema_that_takes_them(
    db: Database, postgres_database: Callable[..., str]
) -> None:
    """Without it, on a read-only session, or without the right: one sentence with the remedy."""
    role = f"test_reader_{time.time_ns()}"
    db.postgres.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    db.postgres.execute(sa.text(f"GRANT USAGE ON SCHEMA monitoring TO {role}"))
    cases = [
        (PostgresStore(postgres_database()), FeatureUnavailable, "run 'fwdb migrate'"),
        (PostgresStore(url_of(db.postgres), read_only=True), FeatureUnavailable, "read-only"),
        (
            PostgresStore(url_of(db.postgres, username=role, password="x")),
            PermissionDenied,
            f"GRANT .* TO {role}",
        ),
    ]
    for store, error, words in cases:
        monitor = Monitor(store, db.mongodb)
        with pytest.raises(error, match=words):
            monitor.sample()
        with pytest.raises(error, match=words), monitor.sampling():
            pass
        monitor.close()
        store.close()
    db.postgres.execute(sa.text(f"DROP OWNED BY {role}"))
    db.postgres.execute(sa.text(f"DROP ROLE {role}"))


def test_old_readings_are_removed_with_all_they_hold(db: Database, monitor: Monitor) -> None:
    """And with texts that no reading refers to any more; young ones stay."""
    monitor.sample("full")
    db.postgres.execute(
        sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '40 days'")
    )
    young = monitor.sample("light")

    assert monitor.prune(days=30) == 1
    assert monitor.readings(since="90d")["reading_id"].tolist() == [young.reading_id]
    assert stored(db.postgres, "statement_samples") == 0
    assert stored(db.postgres, "statement_texts") == 0


def test_an_impossible_interval_is_refused(monitor: Monitor) -> None:
    """Before anything is stored."""
    with pytest.raises(ParameterError, match="'interval' is 0; give a number above 0"):
        monitor.run(interval=0)
    with pytest.raises(ParameterError, match="must not be smaller"):
        monitor.run(interval=30, full_every=5)
