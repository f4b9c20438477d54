"""Up, degraded or down: right, and within the deadline, whatever the server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.monitoring import ask, url_of, wire

from fwdb import config, migrating
from fwdb.database import Database
from fwdb.errors import FwdbError
from fwdb.monitoring import Health, Monitor, StoreHealth
from fwdb.stores import MongoStore, PostgresStore

Watch = Callable[..., Monitor]


def store_health(health: Health, database: str) -> StoreHealth:
    return next(store for store in health.stores if store.database == database)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


def test_both_stores_are_up(db: Database) -> None:
    """With the version and the time of one small question, for which it dials once."""
    health, text = (
        db.health(),
        (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'fwdb-monitor' "
            "AND datname = current_database()"
        ),
    )
    first = ask(db.postgres, text)
    for _ in range(3):
        db.health()

    assert health.status == "up"
    assert [store.database for store in health.stores] == ["postgres", "mongodb"]
    for store in health.stores:
        assert store.reason == ""
        assert store.version
        assert store.latency_ms is not None
        assert 0 < store.latency_ms < 100
    assert len(first) >= 1
    assert ask(db.postgres, text) == first


def test_a_full_pool_is_not_a_dead_database(db: Database, watch: Watch) -> None:
    """The server answers; what is full is the pool of this process."""
    settings = config.settings().model_copy(update={"pool_size": 1, "pool_max_overflow": 1})
    small = PostgresStore(url_of(db.postgres), settings=settings)
    monitor = watch(small, db.mongodb)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(small.connection())
        postgres = store_health(monitor.health(), "postgres")
    small.close()

    assert postgres.status == "degraded"
    assert "the server answers" in postgres.reason
    assert "all 2 connections" in postgres.reason


def test_a_stopped_server_is_down_and_the_other_is_up(db: Database, watch: Watch) -> None:
    """Nobody listens: said at once, with the reason."""
    down = PostgresStore("postgresql://nobody:secret@127.0.0.1:1/nothing")
    health = watch(down, db.mongodb).health()
    postgres = store_health(health, "postgres")

    assert health.status == postgres.status == "down"
    assert "127.0.0.1:1/nothing" in postgres.reason
    assert "secret" not in str(health)
    assert postgres.latency_ms is None
    assert store_health(health, "mongodb").status == "up"


def test_a_frozen_server_is_down_within_the_deadline(watch: Watch) -> None:
    """Both stores at once, and again: one thread per store, however often they are asked."""
    with silent_server() as port:
        postgres = PostgresStore(f"postgresql://nobody@127.0.0.1:{port}/nothing")
        mongodb = MongoStore(f"mongodb://127.0.0.1:{port}/nothing")
        monitor = watch(postgres, mongodb)
        for _ in range(3):
            started = time.monotonic()
            health = monitor.health()
            took = time.monotonic() - started

            assert [store.status for store in health.stores] == ["down", "down"]
            assert took < 1.5
        asking = [t for t in threading.enumerate() if t.name.startswith("fwdb-health-")]
        assert len(asking) <= 2


def test_a_server_that_freezes_after_it_was_well(
    db: Database, watch: Watch, wait_until: Callable[..., None]
) -> None:
    """The kept connection is there and silent; when the server goes on, it is up again."""
    with wire(db.postgres) as (url, freeze):
        store = PostgresStore(url)
        monitor = watch(store, db.mongodb)
        assert store_health(monitor.health(), "postgres").status == "up"
        freeze.set()
        postgres = store_health(monitor.health(timeout_seconds=0.3), "postgres")
        assert postgres.status == "down"
        assert "within 0.3 s" in postgres.reason
        freeze.clear()
        wait_until(lambda: store_health(monitor.health(), "postgres").status == "up")
        store.close()


def test_a_slow_answer_is_degraded(db: Database, watch: Watch) -> None:
    """Slower than the system promises, with both figures."""
    thresholds = config.settings().thresholds.model_copy(update={"health_timeout_ms": 0.001})
    health = watch(db.postgres, db.mongodb, thresholds=thresholds).health()

    assert health.status == "degraded"
    assert "more than 0.001 ms" in health.stores[0].reason


def test_a_refused_login_is_down_with_the_reason(db: Database, watch: Watch) -> None:
    """A role that does not exist; the password is not shown."""
    login = {"username": "test_no_such_role", "password": "sesame"}
    refused = PostgresStore(url_of(db.postgres, **login))
    postgres = store_health(watch(refused, db.mongodb).health(), "postgres")
    refused.close()

    assert postgres.status == "down"
    assert "refused" in postgres.reason or "does not exist" in postgres.reason
    assert "sesame" not in postgres.reason


def test_a_mistake_of_ours_is_not_a_dead_database(db: Database, watch: Watch) -> None:
    """Only errors of a store make it down; others are raised where health was asked."""
    monitor = watch(db.postgres, db.mongodb)

    def broken() -> None:
        raise ZeroDivisionError

    monitor.probes["postgres"]._ask = broken  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        monitor.health()
    assert not issubclass(ZeroDivisionError, FwdbError)


def test_a_role_that_may_not_see_the_revision_is_not_degraded(
    db: Database, role: Callable[..., PostgresStore], watch: Watch
) -> None:
    """It can do its own work; what it cannot see is no fault of the store."""
    monitor = watch(role(db.postgres), db.mongodb, behind=migrating.behind)
    states = [store_health(monitor.health(), "postgres") for _ in range(2)]

    assert [state.status for state in states] == ["up", "up"], states
