"""Readings: what one holds, who takes it, what becomes of it, and what a gap says of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from support.monitoring import NO_MONGODB, ask, do, set_back, stored, url_of

from fwdb import config, migrating
from fwdb.database import Database
from fwdb.errors import FeatureUnavailable, ParameterError, PermissionDenied
from fwdb.monitoring import Monitor
from fwdb.monitoring.sampler import LOCK, tidy
from fwdb.stores import MongoStore, PostgresStore

Watch = Callable[..., Monitor]

SHAPE = "designs.find({status: ?})"


@pytest.fixture
def monitor(db: Database) -> Monitor:
    return db.monitor


def lock(store: PostgresStore) -> None:
    """Be the sampler until the transaction ends."""
    ask(store, "SELECT pg_advisory_xact_lock(:area, :key)", area=LOCK[0], key=LOCK[1])


# -- one reading ----------------------------------------------------------------------------------


def subjects(store: PostgresStore) -> set[tuple[str, str]]:
    rows = ask(store, "SELECT database, subject FROM monitoring.counter_samples")
    return {(row["database"], row["subject"]) for row in rows}


def test_a_full_reading_holds_everything(db: Database, monitor: Monitor) -> None:
    """Pools, sessions, counters of both servers, statements with their texts, each text once."""
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
    assert stored(db.postgres, "session_samples") == sample.rows["sessions"] > 0
    assert stored(db.postgres, "command_samples") == sample.rows["commands"] > 0
    assert f"full reading {sample.reading_id}" in str(sample)
    for _ in range(4):  # at first the statements of this test are new themselves
        stored(db.postgres, "statement_texts")
        monitor.sample("full")
    before = stored(db.postgres, "statement_texts")
    sample = monitor.sample("full")
    assert stored(db.postgres, "statement_texts") == before > 0
    assert stored(db.postgres, "statement_samples") > sample.rows["statements"]


def test_what_cannot_be_read_is_noted_in_the_reading(db: Database, watch: Watch) -> None:
    """With the remedy; the rest is stored, and of a process without work no pool."""
    settings = config.settings().model_copy(update={"connect_timeout_seconds": 0.2})
    monitor = watch(
        db.postgres.twin(application_name="idle"), MongoStore(NO_MONGODB, settings=settings)
    )
    do(db.postgres, "DROP EXTENSION pg_stat_statements")
    sample = monitor.sample("full")

    assert sample.kind == "light"
    assert {database for database, _ in subjects(db.postgres)} == {"postgres"}
    assert "no answer from mongodb" in sample.missing["mongodb"]
    assert "CREATE EXTENSION pg_stat_statements" in sample.missing["statements"]
    assert sample.rows["sessions"] >= sample.rows["pools"] == 0


def test_readings_want_a_schema_that_takes_them(
    db: Database, postgres_database: Callable[..., str], role: Callable[..., Any], watch: Watch
) -> None:
    """Without it, on a read-only session, or without the right: one sentence with the remedy."""
    reader = role(db.postgres)
    do(db.postgres, f"GRANT USAGE ON SCHEMA monitoring TO {reader.url.username}")
    for store, error, words in (
        (PostgresStore(postgres_database()), FeatureUnavailable, "run 'fwdb migrate'"),
        (PostgresStore(url_of(db.postgres), read_only=True), FeatureUnavailable, "read-only"),
        (reader, PermissionDenied, f"GRANT .* TO {reader.url.username}"),
    ):
        monitor = watch(store, db.mongodb)
        with pytest.raises(error, match=words):
            monitor.sample()
        with pytest.raises(error, match=words), monitor.sampling():
            pass
        store.close()


# -- samplers -------------------------------------------------------------------------------------


def test_two_samplers_store_the_servers_once(db: Database, monitor: Monitor) -> None:
    """While one reads them the other stores its own process only."""
    db.users.count()
    with db.transaction():
        lock(db.postgres)
        sample = monitor.sample("full")

    assert sample.kind == "process"
    assert sample.rows["pools"] == stored(db.postgres, "pool_samples") >= 1
    assert stored(db.postgres, "session_samples") == 0
    assert stored(db.postgres, "statement_samples") == 0


def test_samplers_of_two_processes_take_turns(
    db: Database, monitor: Monitor, watch: Watch, wait_until: Callable[..., None]
) -> None:
    """Each stores its pools at every turn; the servers are read once per turn by one of them."""
    other_store = PostgresStore(url_of(db.postgres), application_name="other")
    other = watch(other_store, db.mongodb)
    db.users.count()
    other_store.ping()
    stop = threading.Event()
    turns = {"interval": 0.4, "full_every": 60, "stop": stop}
    threads = [threading.Thread(target=m.run, kwargs=turns, daemon=True) for m in (monitor, other)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(monitor.readings()) >= 8)
    stop.set()
    for thread in threads:
        thread.join()
    readings, pools = monitor.readings(), monitor.pool_history()
    servers = readings[readings["kind"] != "process"]
    other_store.close()

    assert readings["process"].nunique() == 2
    assert servers["read_at"].diff().dropna().min() >= pd.Timedelta(seconds=0.9 * 0.4)
    assert (servers["kind"] == "full").sum() == 1
    assert pools[pools["database"] == "postgres"]["process"].nunique() == 2


def test_sampling_leaves_a_first_and_a_last_full_reading(db: Database, monitor: Monitor) -> None:
    """So that the block can be asked about, however short it was."""
    with monitor.sampling(every=60):
        ask(db.postgres, "SELECT count(*) FROM shared.users, avatar.avatars")
    readings = monitor.readings()
    frame = monitor.slow_queries(since=readings["read_at"].iloc[0], min_ms=0, top=1000)

    assert readings["kind"].tolist() == ["full", "full"]
    assert frame["statement"].str.contains("avatar.avatars").any()


def test_sampling_goes_on_after_its_connection_was_cut(
    db: Database, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A restart of the server must not end the history."""
    with monitor.sampling(every=0.1):
        wait_until(lambda: len(monitor.readings()) >= 2)
        ask(
            db.postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "application_name = 'fwdb-monitor' AND datname = current_database()",
        )
        before = stored(db.postgres, "readings")
        wait_until(lambda: stored(db.postgres, "readings") >= before + 3)


def test_a_sampler_does_not_wait_behind_the_work(monitor: Monitor) -> None:
    """It has a name of its own, 100 ms for a lock, and 5 s for any answer; and it wants an
    interval that can be."""
    names = ("lock_timeout", "statement_timeout", "application_name")
    text = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    (row,) = ask(monitor.postgres, f"SELECT {text}")

    assert list(row.values()) == ["100ms", "4500ms", "fwdb-monitor"]
    with pytest.raises(ParameterError, match="'interval' is 0; give a number above 0"):
        monitor.run(interval=0)
    with pytest.raises(ParameterError, match="must not be smaller"):
        monitor.run(interval=30, full_every=5)


# -- thinned and removed --------------------------------------------------------------------------


def put(
    store: PostgresStore, age: timedelta, *, process: str = "a:1", kind: str = "light", **pool: Any
) -> int:
    """A reading of `age` with a pool and a command that was called twice since the one before."""
    at = datetime.now(UTC) - age
    reading_id = ask(
        store,
        "INSERT INTO monitoring.readings (read_at, kind, process, details) VALUES (:at, :kind, "
        ":process, jsonb_build_object('commands_since', CAST(:since AS text))) "
        "RETURNING reading_id",
        at=at,
        kind=kind,
        process=process,
        since=(at - timedelta(seconds=30)).isoformat(),
    )[0]["reading_id"]
    values = {"in_use": 1, "waiting": 0, "holds": 1, **pool, "id": reading_id, "shape": SHAPE}
    for text in (
        "INSERT INTO monitoring.pool_samples VALUES (:id, 'postgres', 10, :in_use, 0, 0, "
        ":waiting, 0, 0, 0, 0, 1, 0, 0, ARRAY[0], ARRAY[:holds], 5, ARRAY[1], 1)",
        "INSERT INTO monitoring.command_samples (reading_id, command, namespace, shape, calls, "
        "errors, total_ms, squares_ms2, max_ms, documents, histogram) VALUES "
        "(:id, 'find', 'x.designs', :shape, 2, 0, 8, 34, 5 + :in_use, 4, ARRAY[1, :holds])",
    ):
        statement = sa.text(text)
        store.execute(statement, {name: values[name] for name in statement._bindparams})
    return int(reading_id)


def an_hour_ago(days: float, minute: int) -> timedelta:
    """The age of a moment in the hour that was `days` ago, at this minute of it."""
    now = datetime.now(UTC)
    hour = (now - timedelta(days=days)).replace(minute=minute, second=0, microsecond=0)
    return now - hour


def test_old_readings_are_thinned_to_one_per_hour(db: Database, monitor: Monitor) -> None:
    """The last of each process and kind; younger ones stay. Sampling does it by itself."""
    old = [put(db.postgres, an_hour_ago(10, minute)) for minute in (5, 20, 50)]
    full = put(db.postgres, an_hour_ago(10, 30), kind="full")
    other = put(db.postgres, an_hour_ago(10, 10), process="shop@b:2")
    young = [put(db.postgres, an_hour_ago(2, minute)) for minute in (5, 20)]
    new = monitor.sample().reading_id
    left = ask(db.postgres, "SELECT reading_id FROM monitoring.readings ORDER BY 1")

    assert {row["reading_id"] for row in left} == {old[-1], full, other, *young, new}


def test_thinning_keeps_the_fullest_moment_and_every_command(
    db: Database, monitor: Monitor
) -> None:
    """A state is that of a moment, commands are sums since the reading before; differences of
    counters across the gap are what they were, and nothing is added twice."""
    put(db.postgres, an_hour_ago(10, 5), in_use=9, waiting=4, holds=10)
    put(db.postgres, an_hour_ago(10, 20), in_use=3, holds=20)
    last = put(db.postgres, an_hour_ago(10, 50), in_use=2, holds=30)
    put(db.postgres, an_hour_ago(9.9, 5), holds=100)
    began = datetime.now(UTC) - an_hour_ago(10, 5) - timedelta(seconds=30)
    before = monitor.pool_history(since="20d")["holds"].sum()
    for _ in range(2):
        monitor.tidy_at = 0
        monitor.sample()
    pool, command, reading = (
        ask(db.postgres, f"SELECT * FROM monitoring.{table} WHERE reading_id = :id", id=last)[0]
        for table in ("pool_samples", "command_samples", "readings")
    )
    history = monitor.pool_history(since="20d")
    since = datetime.fromisoformat(reading["details"]["commands_since"])

    assert (pool["in_use"], pool["waiting"], pool["hold_counts"]) == (9, 4, [30])
    assert (command["calls"], command["documents"], command["total_ms"]) == (6, 12, 24)
    assert (command["max_ms"], command["histogram"]) == (14, [3, 60])
    assert abs(since - began) < timedelta(seconds=5)
    assert before == 100
    assert history[history["process"] == "a:1"]["holds"].tolist() == [30, 70]


def test_what_is_too_old_is_removed_with_all_it_holds(db: Database, monitor: Monitor) -> None:
    """By FWDB_HISTORY_DAYS, by itself; not while another sampler is at it. Texts that no reading
    refers to any more go too, young readings stay."""
    old = put(db.postgres, timedelta(days=31))
    with db.transaction():
        lock(db.postgres)
        monitor.sample()
        tidy(monitor)
        monitor.tidy_at = 0
        assert stored(db.postgres, "readings", f"reading_id = {old}") == 1
    monitor.sample("full")
    assert stored(db.postgres, "readings", f"reading_id = {old}") == 0
    assert stored(db.postgres, "pool_samples", f"reading_id = {old}") == 0
    assert stored(db.postgres, "statement_texts") > 0

    set_back(db.postgres, "40 days")
    young = monitor.sample("light")
    assert monitor.prune(days=30) == 2
    assert monitor.readings(since="90d")["reading_id"].tolist() == [young.reading_id]
    assert stored(db.postgres, "statement_samples") == 0
    assert stored(db.postgres, "statement_texts") == 0


def test_a_large_backlog_is_dealt_with_in_parts(
    db: Database, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part at each turn, so that no reading waits long for it; the next turn goes on."""
    monkeypatch.setattr("fwdb.monitoring.sampler.MOST", 2)
    for minute in range(5):
        put(db.postgres, an_hour_ago(10, minute))
    counts = []
    for _ in range(3):
        monitor.sample()
        counts.append(stored(db.postgres, "readings", "read_at < now() - interval '1 day'"))

    assert counts == [3, 1, 1]
    assert stored(db.postgres, "command_samples", "calls = 10") == 1


# -- gaps -----------------------------------------------------------------------------------------


def test_a_gap_says_what_it_is(
    db: Database, monitor: Monitor, watch: Watch, postgres_database: Callable[..., str]
) -> None:
    """No schema, nothing ever, before the oldest, after the newest, readings without a used pool:
    each with what would help, and with columns of the same types."""
    bare = PostgresStore(postgres_database())
    without = watch(bare, db.mongodb)
    absent, never = without.pool_history(), monitor.pool_history(since="1h")
    empty = monitor.pool_durations(since="1h")
    figures = [without.cache_hit_ratio(), db.monitor.cache_hit_ratio()]
    for frame in (without.changes(), without.trends(), monitor.changes(), monitor.trends()):
        assert frame.empty
        assert frame.attrs["status"] == "no_data"
        assert "fwdb" in frame.attrs["reason"]
    put(db.postgres, timedelta(days=5))
    early = monitor.pool_history(since="20d", until="19d")
    late = monitor.pool_history(since="1h")
    twins = (store.twin(application_name="watcher") for store in (db.postgres, db.mongodb))
    watch(*twins).sample("full")
    unused = monitor.pool_history(since="1h")
    db.users.count()
    monitor.sample()
    full = monitor.pool_history(since="1h")
    bare.close()

    assert [measure.status for measure in figures] == ["no_data"] * 2
    assert "fwdb migrate" in figures[0].reason
    for frame, words in (
        (absent, "fwdb migrate"),
        (never, "no reading was ever stored; run 'fwdb monitor'"),
        (early, "ended before the oldest reading"),
        (early, "FWDB_HISTORY_DAYS"),
        (late, "no reading was stored since"),
        (late, "fwdb monitor"),
        (unused, "no pool that was used"),
        (unused, "db.monitor.sampling()"),
    ):
        assert frame.attrs["status"] == "no_data"
        assert words in frame.attrs["reason"]
        assert frame.dtypes.to_dict() == full.dtypes.to_dict()
    assert len(full) >= 1
    assert full.attrs["status"] == "ok"
    assert empty.dtypes.to_dict() == monitor.pool_durations(since="1h").dtypes.to_dict()


# -- a history in another database ----------------------------------------------------------------


@pytest.fixture
def reader(db: Database) -> Iterator[Callable[..., Database]]:
    """``reader(url)``: the same databases for a role that only reads, its history at `url`."""
    made: list[Database] = []

    def make(history_url: str | None) -> Database:
        update = {"history_url": SecretStr(history_url) if history_url else None}
        settings = config.settings().model_copy(update=update)
        options: dict[str, Any] = {"settings": settings, "read_only": True}
        store = PostgresStore(url_of(db.postgres), application_name="reader", **options)
        made.append(Database(store, db.mongodb, settings=settings))
        return made[-1]

    yield make
    for one in made:
        one.monitor.close()
        one.postgres.close()


def test_readings_of_a_read_only_database_are_kept_elsewhere(
    db: Database, reader: Callable[..., Database], postgres_database: Callable[..., str]
) -> None:
    """Pools, sessions, counters and statements with their texts; the watched one gets nothing."""
    elsewhere = postgres_database()
    history = PostgresStore(elsewhere)
    migrating.migrate(history, None)
    one = reader(elsewhere)
    one.monitor.sample("full")
    for _ in range(3):
        ask(one.postgres, "SELECT count(*) FROM shared.users, avatar.avatars")
    sample = one.monitor.sample("full")
    slow = one.monitor.slow_queries(since="1h", min_ms=0, top=1000)
    pools = one.monitor.pool_history(since="1h")

    assert sample.kind == "full"
    assert not sample.missing
    assert stored(history, "readings") == 2
    assert stored(history, "statement_samples") >= sample.rows["statements"] > 0
    assert stored(history, "statement_texts") > 0
    assert slow["statement"].str.contains("avatar.avatars").any()
    assert pools["process"].str.startswith("reader").all()
    assert stored(db.postgres, "readings") == 0
    history.close()


def test_a_history_that_takes_nothing_names_the_setting_that_helps(
    reader: Callable[..., Database],
) -> None:
    """Read-only as a replica is, or down; the watched database is well all the same."""
    with pytest.raises(FeatureUnavailable, match="FWDB_HISTORY_URL"):
        reader(None).monitor.sample()
    down = reader("postgresql://nobody:sesame@127.0.0.1:1/nothing")
    with pytest.raises(Exception, match="FWDB_HISTORY_URL") as refused:
        down.monitor.sample()
    assert "sesame" not in str(refused.value)
    assert down.health().stores[0].status == "up"
