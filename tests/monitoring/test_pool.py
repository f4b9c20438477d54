"""The pools of this process, and their history."""

from __future__ import annotations

import gc
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime

import pandas as pd
import pymongo
import pytest
import sqlalchemy as sa
from pymongo import monitoring as events
from support.urls import url_of

from fwdb import config
from fwdb.database import Database
from fwdb.errors import PoolExhausted
from fwdb.monitoring import Monitor
from fwdb.stores import BOUNDS_MS, Durations, MongoStore, PostgresStore
from fwdb.stores.pool import MongoPoolListener
from fwdb.stores.timing import Histogram

SMALL = {"pool_size": 2, "pool_max_overflow": 2, "pool_timeout_seconds": 0.3}


@pytest.fixture
def small(db: Database) -> Iterator[Database]:
    """The same databases through a pool of 2 connections and 2 beyond."""
    settings = config.settings().model_copy(update=SMALL)
    url = url_of(db.postgres)
    postgres = PostgresStore(url, settings=settings)
    mongodb = MongoStore(url_of(db.mongodb), settings=settings)
    with Database(postgres, mongodb, settings=settings) as database:
        yield database


def row(monitor: Monitor, database: str) -> pd.Series:
    frame = monitor.pool()
    return frame[frame["database"] == database].iloc[0]


def hold(store: PostgresStore, connections: int, held: ExitStack) -> None:
    for _ in range(connections):
        held.enter_context(store.connection())


def test_utilisation_is_in_use_of_capacity(small: Database) -> None:
    """Not of the connections that happen to be open: 3 of 3 open is 75 % when 4 may be."""
    with ExitStack() as held:
        hold(small.postgres, 3, held)
        pool = row(small.monitor, "postgres")

        assert (pool["capacity"], pool["in_use"], pool["overflow"]) == (4, 3, 1)
        assert pool["utilisation_percent"] == 75.0


def test_an_idle_connection_waits_for_nobody(small: Database) -> None:
    """The server shows it as waiting for its client; it is free to be used."""
    with ExitStack() as held:
        hold(small.postgres, 2, held)
    pool = row(small.monitor, "postgres")

    assert (pool["in_use"], pool["idle"]) == (0, 2)
    assert (pool["waiting"], pool["waiting_peak"], pool["waits"]) == (0, 0, 0)


def test_callers_without_a_connection_are_counted_while_they_wait(
    small: Database, wait_until: Callable[..., None]
) -> None:
    """Waiting now, the most there were, and those that gave up."""
    outcomes: list[str] = []

    def want() -> None:
        try:
            with small.postgres.connection():
                outcomes.append("served")
        except PoolExhausted:
            outcomes.append("gave up")

    with ExitStack() as held:
        hold(small.postgres, 4, held)
        threads = [threading.Thread(target=want, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: row(small.monitor, "postgres")["waiting"] == 3)
        wait_until(lambda: len(outcomes) == 3)
        for thread in threads:
            thread.join()
    pool = row(small.monitor, "postgres")

    assert outcomes == ["gave up"] * 3
    assert (pool["waiting"], pool["waiting_peak"]) == (0, 3)
    assert (pool["waits"], pool["timeouts"]) == (3, 3)
    assert pool["wait_ms"] >= 3 * 250


def test_an_unlimited_pool_has_no_utilisation(db: Database) -> None:
    """A share of no limit is nothing, neither 0 nor 100."""
    url = url_of(db.mongodb)
    url += ("&" if "?" in url else "?") + "maxPoolSize=0"
    mongodb = MongoStore(url)
    monitor = Monitor(db.postgres, mongodb)
    mongodb.ping()
    pool = row(monitor, "mongodb")
    monitor.close()
    mongodb.close()

    assert pd.isna(pool["capacity"])
    assert pd.isna(pool["utilisation_percent"])
    assert pool["status"] == "not_applicable"
    assert "no upper limit" in pool["reason"]


def test_the_monitor_takes_no_connection_of_the_pool_it_watches(small: Database) -> None:
    """It can ask the server while every connection is taken."""
    with ExitStack() as held:
        hold(small.postgres, 4, held)
        small.monitor.sessions("postgres")
        small.monitor.replication_lag()
        small.monitor.sample()

        assert row(small.monitor, "postgres")["waits"] == 0


def test_history_tells_what_each_sample_saw(small: Database) -> None:
    """A sample is the pool at that moment, under the name of its process."""
    with ExitStack() as held:
        hold(small.postgres, 3, held)
        small.monitor.sample()
    small.monitor.sample()
    frame = small.monitor.pool_history(since="1h")
    postgres = frame[frame["database"] == "postgres"]

    assert postgres["in_use"].tolist() == [3, 0]
    assert postgres["utilisation_percent"].tolist() == [75.0, 0.0]
    assert postgres["process"].nunique() == 1
    assert postgres["sampled_at"].is_monotonic_increasing
    assert frame.attrs["status"] == "ok"


def test_history_counts_waits_since_the_sample_before(small: Database) -> None:
    """The pool counts since it was made; a sum over samples must not count twice."""
    for rounds in (1, 0, 2):
        with ExitStack() as held:
            hold(small.postgres, 4, held)
            for _ in range(rounds):
                with pytest.raises(PoolExhausted), small.postgres.connection():
                    pass
        small.monitor.sample()
    frame = small.monitor.pool_history(since="1h")
    postgres = frame[frame["database"] == "postgres"]

    assert postgres["timeouts"].tolist() == [1, 0, 2]
    assert postgres["waits"].tolist() == [1, 0, 2]


def test_a_pool_that_was_never_used_is_not_stored(db: Database) -> None:
    """A process that only samples says nothing about the pools of those that work."""
    store = db.postgres.twin(application_name="sampler")
    mongodb = db.mongodb.twin(application_name="sampler")
    monitor = Monitor(store, mongodb)
    sample = monitor.sample()
    monitor.close()

    assert sample.rows["pools"] == 0


def test_a_window_without_samples_keeps_columns_and_types(small: Database) -> None:
    """And says what would make samples."""
    empty = small.monitor.pool_history(since="1h")
    with small.postgres.connection():
        small.monitor.sample()
    full = small.monitor.pool_history(since="1h")

    assert empty.attrs["status"] == "no_data"
    assert "fwdb monitor" in empty.attrs["reason"]
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert len(full) >= 1


def test_a_database_without_the_schema_has_no_history(
    postgres_database: Callable[..., str], db: Database
) -> None:
    """An answer without rows that names the command, not an error about a missing table."""
    store = PostgresStore(postgres_database())
    monitor = Monitor(store, db.mongodb)
    frame = monitor.pool_history()
    monitor.close()
    store.close()

    assert frame.empty
    assert "fwdb migrate" in frame.attrs["reason"]


# -- durations ------------------------------------------------------------------------------------


def test_a_percentile_is_the_bound_of_a_bucket() -> None:
    """An upper bound that is true, and no point between two bounds that nobody measured."""
    counting = Histogram()
    for milliseconds in [0.05] * 50 + [3.0] * 49 + [400.0]:
        counting.add(milliseconds / 1000)
    found = counting.read()

    assert found.count == 100
    assert found.total_ms == pytest.approx(50 * 0.05 + 49 * 3 + 400)
    assert [found.percentile_ms(p) for p in (50, 51, 99, 99.5)] == [0.1, 5, 5, 500]


@pytest.mark.parametrize(("seconds", "bound"), [(0.001, 1), (0.0010001, 2.5), (3600, math.inf)])
def test_a_bound_belongs_to_its_bucket(seconds: float, bound: float) -> None:
    """And what is beyond the last bound is said to be so."""
    counting = Histogram()
    counting.add(seconds)

    assert counting.read().percentile_ms(50) == bound


def test_no_durations_have_no_percentile() -> None:
    """Neither 0 nor the first bound."""
    assert Durations().percentile_ms(99) is None
    assert Durations().mean_ms is None


def test_the_buckets_hold_those_of_the_existing_service() -> None:
    """So that its dashboards can be drawn from ours."""
    assert {1, 10, 50, 100, 500, 1000, 5000, 10000} <= set(BOUNDS_MS)
    assert list(BOUNDS_MS) == sorted(BOUNDS_MS)


# -- waits, holds and dials -----------------------------------------------------------------------


def both(database: Database) -> list[PostgresStore | MongoStore]:
    return [database.postgres, database.mongodb]


def lend(store: PostgresStore | MongoStore) -> AbstractContextManager[object]:
    """A connection of the store, held for the time of the block."""
    if isinstance(store, PostgresStore):
        return store.connection()
    return _pinned(store)


@contextmanager
def _pinned(store: MongoStore) -> Iterator[None]:
    """pymongo lends a connection for a command only: hold one as the driver itself does."""
    server = store.client._get_topology().select_server(  # type: ignore[attr-defined]
        pymongo.server_selectors.any_server_selector, "test"
    )
    with store.errors(), server.pool.checkout():
        yield


def test_a_hold_is_counted_when_it_ends(small: Database) -> None:
    """With its time, in both pools."""
    for store in both(small):
        with lend(store):
            pass
        before = store.pool()
        with lend(store):
            assert store.pool().hold == before.hold
            time.sleep(0.03)
        hold = store.pool().hold

        assert hold.count == before.hold.count + 1
        assert hold.total_ms - before.hold.total_ms >= 29


def test_dialling_is_neither_waiting_nor_holding(small: Database) -> None:
    """A pool that opens connections for its first callers makes nobody wait."""
    for store in both(small):
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(lend(store))
            pool = store.pool()

            assert pool.in_use == 3
            assert (pool.waits, pool.waiting_peak) == (0, 0)
            assert pool.dial.count == pool.opened >= 3
            assert pool.dial.total_ms > 0


def test_a_slow_dial_is_no_wait(db: Database) -> None:
    """The connection is a dead end for a while; nor is it a hold when a broken one is replaced."""
    settings = config.settings().model_copy(update=SMALL)
    with slow_wire(db.postgres, seconds=0.2) as url:
        store = PostgresStore(url, settings=settings)
        with store.connection() as connection:
            pool = store.pool()
            connection.invalidate()
        with store.connection():
            pass
        after = store.pool()
        store.close()

    assert pool.dial.total_ms >= 190
    assert pool.waits == 0
    assert (after.opened, after.hold.count) == (2, 2)
    assert after.hold.total_ms < 190


def test_a_mongodb_caller_that_dials_after_the_queue_waited_for_the_queue_only() -> None:
    """The driver's own duration of a checkout is both."""
    server = ("localhost", 27017)
    listener = MongoPoolListener(1)
    out = events.ConnectionCheckedOutEvent
    listener.connection_created(events.ConnectionCreatedEvent(server, 1))
    listener.connection_ready(events.ConnectionReadyEvent(server, 1, 0.0))
    listener.connection_check_out_started(events.ConnectionCheckOutStartedEvent(server))
    listener.connection_checked_out(out(server, 1, 0.0))
    listener.connection_check_out_started(events.ConnectionCheckOutStartedEvent(server))
    time.sleep(0.03)
    assert listener.stats("mongodb").waiting == 1
    listener.connection_checked_in(events.ConnectionCheckedInEvent(server, 1))
    listener.connection_closed(events.ConnectionClosedEvent(server, 1, "error"))
    listener.connection_created(events.ConnectionCreatedEvent(server, 2))
    assert listener.stats("mongodb").waiting == 0
    time.sleep(0.3)
    listener.connection_ready(events.ConnectionReadyEvent(server, 2, 0.3))
    listener.connection_checked_out(out(server, 2, 0.33))
    pool = listener.stats("mongodb")

    assert pool.waits == 1
    assert 30 <= pool.wait_ms < 300
    assert pool.dial.total_ms >= 300
    assert (pool.opened, pool.closed, pool.invalidated, pool.in_use) == (2, 1, 1, 1)


@contextmanager
def slow_wire(store: PostgresStore, *, seconds: float) -> Iterator[str]:
    """The URL of the same database through a wire whose first word takes so long."""
    target = (store.url.host, store.url.port or 5432)
    listener = socket.create_server(("127.0.0.1", 0))
    pairs: list[socket.socket] = []

    def copy(source: socket.socket, sink: socket.socket, pause: float) -> None:
        time.sleep(pause)
        with suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(target)
                pairs.extend((near, far))
                for ends, pause in (((near, far), seconds), ((far, near), 0.0)):
                    threading.Thread(target=copy, args=(*ends, pause), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = store.url.set(drivername="postgresql", host="127.0.0.1", port=listener.getsockname()[1])
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for one in pairs:
            one.close()


@pytest.mark.parametrize("name", ["postgres", "mongodb"])
def test_a_wait_that_ends_well_is_measured(
    small: Database, name: str, wait_until: Callable[..., None]
) -> None:
    """Waiting now, the most there were, and for how long, in both pools alike."""
    store = getattr(small, name)
    served = threading.Event()

    def want() -> None:
        with lend(store):
            served.set()

    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(lend(store))
        thread = threading.Thread(target=want, daemon=True)
        thread.start()
        wait_until(lambda: store.pool().waiting == 1)
        time.sleep(0.05)
        assert not served.is_set()
    thread.join()
    pool = store.pool()

    assert (pool.waits, pool.waiting, pool.waiting_peak, pool.timeouts) == (1, 0, 1, 0)
    assert 50 <= pool.wait_ms < 300
    assert pool.wait.count == 1


def test_a_mongodb_pool_counts_those_that_gave_up(
    small: Database, wait_until: Callable[..., None]
) -> None:
    """Each checkout in vain: the driver tries a read a second time, which is one more."""
    outcomes: list[str] = []

    def want() -> None:
        try:
            small.designs.count()
        except PoolExhausted:
            outcomes.append("gave up")

    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(lend(small.mongodb))
        threads = [threading.Thread(target=want, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: small.mongodb.pool().waiting == 2)
        for thread in threads:
            thread.join()
    pool = small.mongodb.pool()

    assert outcomes == ["gave up"] * 2
    assert pool.timeouts in (2, 3, 4)
    assert pool.waits == pool.timeouts
    assert (pool.waiting, pool.waiting_peak) == (0, 2)
    assert pool.wait.percentile_ms(50) in (500, 250)


def test_closed_and_invalidated_connections_are_counted(small: Database) -> None:
    """One that the server cut is both; one that the pool gave up is closed."""
    small.postgres.ping()
    before = small.postgres.pool()
    killed = small.postgres.rows(sa.text("SELECT pg_backend_pid() AS pid"))[0]["pid"]
    small.monitor._store.rows(sa.text("SELECT pg_terminate_backend(:pid)"), pid=killed)
    small.postgres.ping()
    after = small.postgres.pool()

    assert after.invalidated == before.invalidated + 1
    assert after.closed == before.closed + 1
    assert after.opened == before.opened + 1
    small.postgres.close()
    assert small.postgres.pool().closed == after.opened


def test_a_pool_that_lost_a_connection_counts_it_back(small: Database) -> None:
    """The garbage collector returns what nobody closed."""
    connection = small.postgres.engine.connect()
    assert small.postgres.pool().in_use == 1
    del connection
    gc.collect()
    pool = small.postgres.pool()

    assert pool.in_use == 0
    assert small.postgres.holds() == []


# -- holders --------------------------------------------------------------------------------------


def test_a_holder_is_shown_with_its_thread_and_age(small: Database) -> None:
    """Of both pools, the oldest first; below the threshold without a place."""
    with lend(small.postgres):
        time.sleep(0.02)
        with lend(small.mongodb):
            held = small.monitor.holders()

    assert held["database"].tolist() == ["postgres", "mongodb"]
    assert held["thread"].unique().tolist() == [threading.current_thread().name]
    assert held["held_seconds"].is_monotonic_decreasing
    assert not held["is_leak"].any()
    assert held["call_site"].isna().all()
    assert small.monitor.holders().empty
    assert small.monitor.holders().dtypes.to_dict() == held.dtypes.to_dict()


def test_a_leak_is_shown_with_the_place_where_its_thread_is(
    small: Database, wait_until: Callable[..., None]
) -> None:
    """In the program's own code: not in a library, nor in Python."""
    stop = threading.Event()

    def forgetful_worker() -> None:
        with small.postgres.connection():
            stop.wait()

    thread = threading.Thread(target=forgetful_worker, name="worker 7", daemon=True)
    thread.start()
    wait_until(lambda: len(small.postgres.holds()) == 1)
    leak = small.monitor.holders(leak_seconds=0.001).iloc[0]
    stop.set()
    thread.join()

    assert leak["is_leak"]
    assert leak["thread"] == "worker 7"
    assert leak["call_site"].endswith("in forgetful_worker")
    assert __file__ in leak["call_site"]


def test_a_leak_of_a_thread_that_ended_is_named_as_such(small: Database) -> None:
    """Nobody is left who could return it."""
    lost: list[object] = []
    thread = threading.Thread(
        target=lambda: lost.append(small.postgres.engine.connect()), daemon=True
    )
    thread.start()
    thread.join()
    leak = small.monitor.holders(leak_seconds=0.0001).iloc[0]
    lost[0].close()  # type: ignore[attr-defined]

    assert leak["thread"] == ""
    assert "did not return" in leak["call_site"]


# -- history of durations -------------------------------------------------------------------------


def test_the_history_of_durations_is_that_of_the_window(small: Database) -> None:
    """Differences between readings, not what was before them."""
    for _ in range(5):
        small.postgres.ping()
    small.monitor.sample()
    since = datetime.now(UTC)
    with small.postgres.connection():
        time.sleep(0.02)
    small.monitor.sample()
    frame = small.monitor.pool_durations(since=since)
    holds = frame[(frame["database"] == "postgres") & (frame["subject"] == "hold")]
    history = small.monitor.pool_history(since=since)
    row = history[history["database"] == "postgres"].iloc[0]

    assert holds["durations"].sum() == 1
    assert (holds["over_ms"].item(), holds["up_to_ms"].item()) in [(10, 25), (25, 50), (50, 100)]
    assert row["holds"] == 1
    assert row["hold_ms"] >= 19
    assert row["seconds"] > 0


def test_pool_percentiles_come_with_the_pool(small: Database) -> None:
    """Missing where nothing happened: a pool in which nobody waited has no wait of 0 ms."""
    small.postgres.ping()
    pool = row(small.monitor, "postgres")

    assert pd.isna(pool["wait_p99_ms"])
    assert pool["hold_p50_ms"] <= pool["hold_p99_ms"]
    assert pool["dial_p99_ms"] > 0
    assert pool["hold_mean_ms"] > 0
