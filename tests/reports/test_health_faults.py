"""Health in eight failure modes of real servers: right, and within a second and a half."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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


@contextmanager
def frozen(home: Path, name: str) -> Iterator[str]:
    """Stopped by a signal, all its processes: connections stay open and nobody answers."""
    leader = psutil.Process(pid(home, name))
    processes = [leader, *leader.children(recursive=True)]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield "within 1 s"
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@contextmanager
def stopped(home: Path, name: str) -> Iterator[str]:
    """The kept connection is cut, and nobody listens any more."""
    embedded.down(home, stores=(name,))
    try:
        yield ""
    finally:
        embedded.up(home, stores=(name,), owner_pid=os.getpid(), idle_minutes=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [frozen, stopped])
def test_a_server_that_is_gone_is_down_and_comes_back(
    own_servers: embedded.Servers,
    shared: Path,  # noqa: F811
    fault: Callable[[Path, str], AbstractContextManager[str]],
    name: str,
    wait_until: Callable[..., None],
) -> None:
    """Each time it is asked, with the reason; the other one is up."""
    with connected(own_servers) as db:
        assert asked(db).status == "up"
        with fault(shared, name) as words:
            for _ in range(2):
                health = asked(db)
                assert state(health, name).status == "down"
                assert words in state(health, name).reason
                assert state(health, other(name)).status == "up"
        wait_until(lambda: state(db.health(), name).status == "up")


@pytest.mark.parametrize("name", NAMES)
def test_an_unreachable_server_is_down(own_servers: embedded.Servers, name: str) -> None:
    """It takes the connection and never says a word."""
    scheme = {"postgres": "postgresql", "mongodb": "mongodb"}[name]
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        url = f"{scheme}://x@127.0.0.1:{listener.getsockname()[1]}/nothing"
        with connected(own_servers, urls={name: url}) as db:
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
