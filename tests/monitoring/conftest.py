"""Databases to watch, on each PostgreSQL there is, and monitors that are closed by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.monitoring import WORDS, do, forget, url_of

from fwdb import migrating
from fwdb.monitoring import Monitor
from fwdb.stores import MongoStore, PostgresStore


@contextmanager
def migrated(admin: str) -> Iterator[PostgresStore]:
    """A new database on the server, with the schema and nothing in it."""
    name, server = f"test_monitoring_{time.time_ns()}", PostgresStore(admin)
    do(server, f"CREATE DATABASE {name}")
    store = PostgresStore(url_of(server, database=name))
    migrating.migrate(store, None)
    yield store
    store.close()
    do(server, f"DROP DATABASE {name} WITH (FORCE)")
    server.close()


@pytest.fixture(scope="module")
def fifteen(postgres15: str) -> Iterator[PostgresStore]:
    """A migrated database on PostgreSQL 15."""
    with migrated(postgres15) as store:
        yield store


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def watched(request: pytest.FixtureRequest, servers: Any) -> Iterator[PostgresStore]:
    """A database of its own, with a table for each of `WORDS`."""
    recent = request.param == "postgres18"
    with migrated(servers.postgres if recent else request.getfixturevalue("postgres15")) as store:
        do(store, *(f"CREATE TABLE {word} ()" for word in WORDS))
        yield store


@pytest.fixture
def mongodb(mongodb_database: str) -> Iterator[MongoStore]:
    store = MongoStore(mongodb_database)
    yield store
    store.close()


@pytest.fixture
def watch() -> Iterator[Callable[..., Monitor]]:
    """``watch(postgres, mongodb, …)`` is a monitor of these."""
    with ExitStack() as stack:

        def make(*stores: Any, **options: Any) -> Monitor:
            monitor = Monitor(*stores, **options)
            stack.callback(monitor.close)
            return monitor

        yield make


@pytest.fixture
def monitor(watched: PostgresStore, mongodb: MongoStore, watch: Callable[..., Monitor]) -> Monitor:
    """Of a database without history and without counted statements."""
    do(watched, "TRUNCATE monitoring.readings, monitoring.statement_texts CASCADE")
    forget(watched)
    return watch(watched, mongodb)


@pytest.fixture
def role() -> Iterator[Callable[..., PostgresStore]]:
    """``role(store, "pg_monitor")`` is the database for a new role with that granted."""
    with ExitStack() as stack:

        def make(store: PostgresStore, granted: str = "") -> PostgresStore:
            name = f"test_role_{time.time_ns()}"
            do(store, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
            stack.callback(do, store, f"DROP OWNED BY {name}", f"DROP ROLE {name}")
            if granted:
                do(store, f"GRANT {granted} TO {name}")
            limited = PostgresStore(url_of(store, username=name, password="x"))
            stack.callback(limited.close)
            return limited

        yield make
