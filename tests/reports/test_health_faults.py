"""Health in eight failure modes of real servers: right, and within a second and a half."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from support.embedded import pid, shared  # noqa: F401 a fixture

from fwdb import config, embedded, migrating
from fwdb.database import Database
from fwdb.migrating.mongodb import RECORDS
from fwdb.monitoring import Health, StoreHealth
from fwdb.stores import MongoStore, PostgresStore

NAMES = ("postgres", "mongodb")
LIMIT_SECONDS = 1.5


@pytest.fixture(scope="module")
def own_servers(shared: Path) -> embedded.Servers:  # noqa: F811
    """Servers that a test may stop and freeze, migrated."""
    running = embedded.up(shared, owner_pid=os.getpid(), idle_minutes=0)
    with connected(running) as db:
        migrating.migrate(db.postgres, db.mongodb)
    return running


@contextmanager
def connected(
    running: embedded.Servers, *, urls: dict[str, str] | None = None, **update: object
) -> Iterator[Database]:
    assert running.postgres
    assert running.mongodb
    settings = config.settings().model_copy(update=update)
    given = {"postgres": running.postgres.owner, "mongodb": running.mongodb.owner, **(urls or {})}
    with Database(
        PostgresStore(given["postgres"], settings=settings),
        MongoStore(given["mongodb"], settings=settings),
        settings=settings,
    ) as database:
        yield database


def asked(db: Database) -> Health:
    started = time.monotonic()
    health = db.health()
    assert time.monotonic() - started < LIMIT_SECONDS
    return health


def state(health: Health, name: str) -> StoreHealth:
    return next(store for store in health.stores if store.database == name)


def other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_server_is_down_and_comes_back(
    own_servers: embedded.Servers,
    shared: Path,  # noqa: F811
    name: str,
    wait_until: Callable[..., None],
) -> None:
    """Stopped by a signal, all its processes: connections stay open and nobody answers."""
    with connected(own_servers) as db:
        assert asked(db).status == "up"
        leader = psutil.Process(pid(shared, name))
        processes = [leader, *leader.children(recursive=True)]
        try:
            for process in processes:
                process.send_signal(signal.SIGSTOP)
            for _ in range(2):
                health = asked(db)
                assert state(health, name).status == "down"
                assert "within 1 s" in state(health, name).reason
                assert state(health, other(name)).status == "up"
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
        wait_until(lambda: state(db.health(), name).status == "up")


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_server_is_down_and_comes_back(
    own_servers: embedded.Servers,
    shared: Path,  # noqa: F811
    name: str,
    wait_until: Callable[..., None],
) -> None:
    """The kept connection is cut, and nobody listens any more."""
    with connected(own_servers) as db:
        assert asked(db).status == "up"
        embedded.down(shared, stores=(name,))
        try:
            health = asked(db)
            assert state(health, name).status == "down"
            assert state(health, other(name)).status == "up"
        finally:
            embedded.up(shared, stores=(name,), owner_pid=os.getpid(), idle_minutes=0)
        wait_until(lambda: state(db.health(), name).status == "up")


@pytest.mark.parametrize("name", NAMES)
def test_an_unreachable_server_is_down(own_servers: embedded.Servers, name: str) -> None:
    """It takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        port = listener.getsockname()[1]
        url = {"postgres": "postgresql", "mongodb": "mongodb"}[name]
        with connected(own_servers, urls={name: f"{url}://x@127.0.0.1:{port}/nothing"}) as db:
            health = asked(db)

    assert state(health, name).status == "down"
    assert state(health, other(name)).status == "up"


def test_an_exhausted_pool_is_degraded(own_servers: embedded.Servers) -> None:
    """The server answers on the connection kept for it."""
    with (
        connected(own_servers, pool_size=1, pool_max_overflow=0) as db,
        ExitStack() as held,
    ):
        held.enter_context(db.postgres.connection())
        postgres = state(asked(db), "postgres")

    assert postgres.status == "degraded"
    assert "all 1 connections" in postgres.reason


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_password_is_down_and_shown_nowhere(
    own_servers: embedded.Servers, name: str
) -> None:
    """With the reason that the server gave."""
    assert own_servers.postgres
    assert own_servers.mongodb
    right = {"postgres": own_servers.postgres.owner, "mongodb": own_servers.mongodb.owner}[name]
    account, _, rest = right.partition("@")
    wrong = f"{account.rpartition(':')[0]}:sesame@{rest}"
    with connected(own_servers, urls={name: wrong}) as db:
        health = asked(db)

    assert state(health, name).status == "down"
    assert "refused the" in state(health, name).reason
    assert "password" in state(health, name).reason
    assert "sesame" not in str(health)


def test_a_schema_behind_is_degraded_and_names_the_command(own_servers: embedded.Servers) -> None:
    """Of either store; after 'fwdb migrate' it is up."""
    with connected(own_servers) as db:
        migrating.downgrade(db.postgres, "0005")
        db.mongodb.database.drop_collection(RECORDS)
        health = asked(db)
        migrating.migrate(db.postgres, db.mongodb)
        after = asked(db)

    assert [store.status for store in health.stores] == ["degraded", "degraded"]
    assert all("run 'fwdb migrate'" in store.reason for store in health.stores)
    assert "at revision 0005" in state(health, "postgres").reason
    assert after.status == "up"
