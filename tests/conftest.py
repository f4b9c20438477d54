"""Real servers for every test: the built-in ones, started once per run.

FWDB_TEST_POSTGRES_URL and FWDB_TEST_MONGODB_URL name other servers to use, with accounts that
may create databases; FWDB_TEST_POSTGRES15_URL does so for the second PostgreSQL.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pymongo
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import config
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

# How long one example takes is no finding on a machine that does other work as well.
hypothesis.settings.register_profile("fwdb", deadline=None)
hypothesis.settings.load_profile("fwdb")

_DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
_numbers = itertools.count(1)

# Begun first, so that no process is left with one of them at the end.
_LONG = ("test_wheel.py", "test_reports_run.py", "test_alerts.py", "test_follower_crash.py")


# Fixtures behind which a server runs, or several other processes; `make test-fast` does without.
_SERVERS = {"servers", "postgres15", "home", "shared", "watched", "wheel"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        own = item.path.parent.name == "embedded"
        if own or _SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


@dataclass(frozen=True)
class Servers:
    """URLs of accounts that may create databases."""

    postgres: str
    mongodb: str


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No variable of the person who runs the tests reaches them, and Ctrl-C works in them."""
    # A shell starts background jobs with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = {k: v for k, v in os.environ.items() if k.startswith(("FWDB_TEST_", "FWDB_RUN_AS"))}
    saved = {k: v for k, v in os.environ.items() if k.startswith("FWDB_")}
    for name in saved.keys() - kept.keys():
        del os.environ[name]
    os.environ["FWDB_HOME"] = str(tmp_path_factory.mktemp("home") / ".fwdb")
    yield
    os.environ.pop("FWDB_HOME", None)
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """The command line, run in a test, leaves a handler that would end this process at once."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers(_environment: None) -> Iterator[Servers]:
    """The two servers of this run."""
    postgres = os.environ.get("FWDB_TEST_POSTGRES_URL")
    mongodb = os.environ.get("FWDB_TEST_MONGODB_URL")
    if postgres and mongodb:
        yield Servers(postgres, mongodb)
        return
    from fwdb import embedded

    running = embedded.up(owner_pid=os.getpid(), idle_minutes=0)
    assert running.postgres
    assert running.mongodb
    _unsafe(running.postgres.superuser)
    yield Servers(postgres or running.postgres.superuser, mongodb or running.mongodb.owner)
    embedded.remove()  # as root the data may lie outside of pytest's folder


@pytest.fixture(scope="session")
def postgres15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The superuser's URL of a PostgreSQL 15, the oldest that the tests meet."""
    if given := os.environ.get("FWDB_TEST_POSTGRES15_URL"):
        yield given
        return
    if not (_DEBIAN_15 / "initdb").exists():
        pytest.skip("no PostgreSQL 15: install Debian's postgresql-15")
    from fwdb import embedded

    home = tmp_path_factory.mktemp("fifteen") / ".fwdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWDB_POSTGRES_BIN", str(_DEBIAN_15))
        running = embedded.up(home, stores=("postgres",), owner_pid=os.getpid(), idle_minutes=0)
    assert running.postgres
    _unsafe(running.postgres.superuser)
    yield running.postgres.superuser
    embedded.remove(home)


@pytest.fixture
def postgres_database(servers: Servers) -> Iterator[Callable[..., str]]:
    """Makes empty databases: ``postgres_database()`` is the URL of a new one."""
    made: list[tuple[str, str]] = []

    def make(server: str | None = None, template: str | None = None) -> str:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        admin = server or servers.postgres
        _admin(admin, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        made.append((admin, name))
        return make_url(admin).set(database=name).render_as_string(hide_password=False)

    yield make
    for admin, name in made:
        _admin(admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def mongodb_database(servers: Servers) -> Iterator[str]:
    """The URL of a database that does not exist yet; what was made in it is dropped."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    url = _with_database(servers.mongodb, name)
    yield url
    with pymongo.MongoClient(url) as client:
        client.drop_database(name)


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    """The name of a PostgreSQL database that is migrated and seeded, to be copied."""
    from fwdb import migrating

    name = f"test_{os.getpid()}_template"
    _admin(servers.postgres, f"CREATE DATABASE {name}")
    url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
    mongodb = _with_database(servers.mongodb, name)
    with Database(PostgresStore(url), MongoStore(mongodb), settings=config.settings()) as database:
        migrating.migrate(database.postgres, None)
        database.seeder.seed_users()
        database.seeder.seed_avatars()
        database.seeder.seed_catalog_items()
    yield name
    _admin(servers.postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def db(
    template: str, postgres_database: Callable[..., str], mongodb_database: str
) -> Iterator[Database]:
    """A database of both stores, migrated and with the seed data, for one test."""
    from fwdb import migrating

    url = postgres_database(template=template)
    with Database(
        PostgresStore(url), MongoStore(mongodb_database), settings=config.settings()
    ) as database:
        migrating.migrate(None, database.mongodb)
        database.seeder.seed_designs()
        yield database


@pytest.fixture(scope="module")
def module_db(servers: Servers, template: str) -> Iterator[Database]:
    """Like `db`, but one for all tests of a file, which empty first what they count."""
    from fwdb import migrating

    name = f"test_{os.getpid()}_{next(_numbers)}"
    _admin(servers.postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
    mongodb = _with_database(servers.mongodb, name)
    with Database(PostgresStore(url), MongoStore(mongodb), settings=config.settings()) as database:
        migrating.migrate(None, database.mongodb)
        yield database
        database.mongodb.client.drop_database(name)
    _admin(servers.postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Polls until ``predicate()`` is true; fails when it never becomes so."""

    def wait(predicate: Callable[[], object], timeout: float = 10, what: str = "") -> None:
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s: {what or predicate}")
            time.sleep(0.02)

    return wait


def _unsafe(url: str) -> None:
    """Waits for no disk: these servers are thrown away. Tests of crashes start their own."""
    for setting in ("fsync", "full_page_writes"):
        _admin(url, f"ALTER SYSTEM SET {setting} = off")
    _admin(url, "SELECT pg_reload_conf()")


def _admin(url: str, statement: str) -> None:
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


def _with_database(url: str, name: str) -> str:
    """`url` with the database `name`; its accounts stay where they were made."""
    base, _, options = url.partition("?")
    scheme, _, rest = base.partition("://")
    hosts, _, database = rest.partition("/")
    if "@" in hosts and "authSource" not in options:
        options = f"authSource={database or 'admin'}" + (f"&{options}" if options else "")
    return f"{scheme}://{hosts}/{name}" + (f"?{options}" if options else "")
