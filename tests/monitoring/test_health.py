"""Up, degraded or down: right, and within the deadline, whatever the server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import sqlalchemy as sa
from support.urls import url_of

from fwdb import config, migrating
from fwdb.database import Database
from fwdb.errors import FwdbError
from fwdb.monitoring import Health, Monitor, StoreHealth
from fwdb.stores import MongoStore, PostgresStore


def store_health(health: Health, database: str) -> StoreHealth:
    return next(store for store in health.stores if store.database == database)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


@contextmanager
def watching(postgres: PostgresStore, mongodb: MongoStore) -> Iterator[Monitor]:
    monitor = Monitor(postgres, mongodb)
    try:
        yield monitor
    finally:
        monitor.close()


def test_both_stores_are_up(db: Database) -> None:
    """With the version and the time of one small question."""
    health = db.health()

    assert health.status == "up"
    assert [store.database for store in health.stores] == ["postgres", "mongodb"]
    for store in health.stores:
        assert store.reason == ""
        assert store.version
        assert store.latency_ms is not None
        assert 0 < store.latency_ms < 100


def test_a_full_pool_is_not_a_dead_database(db: Database) -> None:
    """The server answers; what is full is the pool of this process."""
    settings = config.settings().model_copy(update={"pool_size": 1, "pool_max_overflow": 1})
    url = url_of(db.postgres)
    small = PostgresStore(url, settings=settings)
    with ExitStack() as stack:
        monitor = stack.enter_context(watching(small, db.mongodb))
        for _ in range(2):
            stack.enter_context(small.connection())
        postgres = store_health(monitor.health(), "postgres")
    small.close()

    assert postgres.status == "degraded"
    assert "the server answers" in postgres.reason
    assert "all 2 connections" in postgres.reason


def test_a_stopped_server_is_down_and_the_other_is_up(db: Database) -> None:
    """Nobody listens: said at once, with the reason."""
    down = PostgresStore("postgresql://nobody:secret@127.0.0.1:1/nothing")
    with watching(down, db.mongodb) as monitor:
        health = monitor.health()
    postgres = store_health(health, "postgres")

    assert health.status == postgres.status == "down"
    assert "127.0.0.1:1/nothing" in postgres.reason
    assert "secret" not in str(health)
    assert postgres.latency_ms is None
    assert store_health(health, "mongodb").status == "up"


def test_a_frozen_server_is_down_within_the_deadline() -> None:
    """Both stores at once, and again: one thread per store, however often they are asked."""
    with silent_server() as port:
        postgres = PostgresStore(f"postgresql://nobody@127.0.0.1:{port}/nothing")
        mongodb = MongoStore(f"mongodb://127.0.0.1:{port}/nothing")
        with watching(postgres, mongodb) as monitor:
            for _ in range(3):
                started = time.monotonic()
                health = monitor.health()
                took = time.monotonic() - started

                assert [store.status for store in health.stores] == ["down", "down"]
                assert took < 1.5
            asking = [t for t in threading.enumerate() if t.name.startswith("fwdb-health-")]
            assert len(asking) <= 2


def test_a_server_that_freezes_after_it_was_well(
    db: Database, wait_until: Callable[..., None]
) -> None:
    """The kept connection is there and silent; when the server goes on, it is up again."""
    with forwarded(db.postgres) as (store, freeze):
        with watching(store, db.mongodb) as monitor:
            assert store_health(monitor.health(), "postgres").status == "up"
            freeze.set()
            postgres = store_health(monitor.health(timeout_seconds=0.3), "postgres")
            assert postgres.status == "down"
            assert "within 0.3 s" in postgres.reason
            freeze.clear()
            wait_until(lambda: store_health(monitor.health(), "postgres").status == "up")
        store.close()


@contextmanager
def forwarded(store: PostgresStore) -> Iterator[tuple[PostgresStore, threading.Event]]:
    """The same database through a wire that is silent while the event is set."""
    frozen, ended = threading.Event(), threading.Event()
    target = (store.url.host, store.url.port or 5432)
    open_sockets: list[socket.socket] = []

    def copy(source: socket.socket, sink: socket.socket) -> None:
        while not ended.is_set():
            try:
                block = source.recv(65536)
                while frozen.is_set() and not ended.is_set():
                    ended.wait(0.01)
                if not block:
                    break
                sink.sendall(block)
            except OSError:
                break
        for one in (source, sink):
            one.close()

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(target)
            open_sockets.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    url = store.url.set(drivername="postgresql", host="127.0.0.1", port=listener.getsockname()[1])
    try:
        yield PostgresStore(url.render_as_string(hide_password=False)), frozen
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for one in open_sockets:
            one.close()


def test_a_slow_answer_is_degraded(db: Database) -> None:
    """Slower than the system promises, with both figures."""
    thresholds = config.settings().thresholds.model_copy(update={"health_timeout_ms": 0.001})
    monitor = Monitor(db.postgres, db.mongodb, thresholds=thresholds)
    health = monitor.health()
    monitor.close()

    assert health.status == "degraded"
    assert "more than 0.001 ms" in health.stores[0].reason


def test_a_refused_login_is_down_with_the_reason(db: Database) -> None:
    """A role that does not exist; the password is not shown."""
    url = db.postgres.url.set(
        drivername="postgresql", username="test_no_such_role", password="sesame"
    )
    refused = PostgresStore(url.render_as_string(hide_password=False))
    with watching(refused, db.mongodb) as monitor:
        postgres = store_health(monitor.health(), "postgres")
    refused.close()

    assert postgres.status == "down"
    assert "refused" in postgres.reason or "does not exist" in postgres.reason
    assert "sesame" not in postgres.reason


def test_health_keeps_its_connections(db: Database) -> None:
    """It dials once and not at every question."""
    db.health()
    question = sa.text(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'fwdb-monitor' "
        "AND datname = current_database()"
    )
    first = {row["pid"] for row in db.postgres.rows(question)}
    for _ in range(3):
        db.health()

    assert first
    assert {row["pid"] for row in db.postgres.rows(question)} == first


def test_a_mistake_of_ours_is_not_a_dead_database(db: Database) -> None:
    """Only errors of a store make it down; others are raised where health was asked."""
    monitor = Monitor(db.postgres, db.mongodb)
    probes, _ = monitor._probes

    def broken() -> None:
        raise ZeroDivisionError

    probes["postgres"]._ask = broken  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        monitor.health()
    assert not issubclass(ZeroDivisionError, FwdbError)
    monitor.close()


def test_health_is_not_among_the_statements_of_the_work(db: Database) -> None:
    """Its questions are marked, or a check every few seconds would lead the list of statements."""
    db.monitor.sample("full")
    for _ in range(5):
        db.health()
    frame = db.monitor.slow_queries(since="1h", min_ms=0.0001, top=1000)
    texts = frame["statement"].str.cat(sep="\n") if len(frame) else ""

    assert "version_num" not in texts
    assert "pg_is_in_recovery" not in texts


def test_a_role_that_may_not_see_the_revision_is_not_degraded(db: Database) -> None:
    """It can do its own work; what it cannot see is no fault of the store."""
    role = f"test_blind_{time.time_ns()}"
    db.postgres.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    url = db.postgres.url.set(drivername="postgresql", username=role, password="x")
    blind = PostgresStore(url.render_as_string(hide_password=False))
    monitor = Monitor(blind, db.mongodb, behind=migrating.behind)
    try:
        states = [store_health(monitor.health(), "postgres") for _ in range(2)]
    finally:
        monitor.close()
        blind.close()
        db.postgres.execute(sa.text(f"DROP ROLE {role}"))

    assert [state.status for state in states] == ["up", "up"], states
