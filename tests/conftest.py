"""Real servers for every test: the built-in ones, started once per run.

FWDB_TEST_POSTGRES_URL and FWDB_TEST_MONGODB_URL name other servers to use, with accounts that
may create databases; FWDB_TEST_POSTGRES15_URL does so for the second PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pymongo
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from support.databases import MongoPool, PostgresPool, numbers

from fwdb import config
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

# How long one example takes is no finding on a machine that does other work as well.
hypothesis.settings.register_profile("fwdb", deadline=None)
hypothesis.settings.load_profile("fwdb")

_DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

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


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    """The name of a PostgreSQL database that is migrated and seeded, to be copied."""
    from fwdb import migrating

    name = f"test_{os.getpid()}_template"
    _admin(servers.postgres, f"CREATE DATABASE {name}")
    mongodb = _with_database(servers.mongodb, name)
    with _opened(servers, name, mongodb) as database:
        migrating.migrate(database.postgres, None)
        database.seeder.seed_users()
        database.seeder.seed_avatars()
        database.seeder.seed_catalog_items()
    yield name
    _admin(servers.postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_pool(servers: Servers, template: str) -> Iterator[PostgresPool]:
    """Copies of `template` that are emptied and used again."""
    pool = PostgresPool(servers.postgres, template)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def mongodb_pool(servers: Servers) -> Iterator[MongoPool]:
    """Migrated databases without documents that are emptied and used again."""
    from fwdb import migrating

    def prepare(url: str) -> None:
        with closing(MongoStore(url)) as store:
            migrating.migrate(None, store)

    pool = MongoPool(lambda name: _with_database(servers.mongodb, name), prepare)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def seed_designs(
    servers: Servers, postgres_pool: PostgresPool, mongodb_pool: MongoPool
) -> list[dict[str, Any]]:
    """The documents of the seed data, as they belong to the rows of `template`."""
    name, url = postgres_pool.take(), mongodb_pool.take()
    with _opened(servers, name, url) as database:
        database.seeder.seed_designs()
        designs = list(database.mongodb.collection("designs").find())
    postgres_pool.give_back(name)
    mongodb_pool.give_back(url)
    return designs


@pytest.fixture
def postgres_database(
    request: pytest.FixtureRequest, servers: Servers
) -> Iterator[Callable[..., str]]:
    """Makes databases: ``postgres_database()`` is the URL of a new one, without anything in it.

    With ``template=template`` it is migrated and has the seed data of PostgreSQL.
    """
    made: list[tuple[str, str]] = []
    taken: list[str] = []

    def make(server: str | None = None, template: str | None = None) -> str:
        admin = server or servers.postgres
        if server is None and template == f"test_{os.getpid()}_template":
            name = request.getfixturevalue("postgres_pool").take()
            taken.append(name)
        else:
            name = f"test_{os.getpid()}_{next(numbers)}"
            copied = f" TEMPLATE {template}" if template else ""
            _admin(admin, f"CREATE DATABASE {name}{copied}")
            made.append((admin, name))
        return make_url(admin).set(database=name).render_as_string(hide_password=False)

    yield make
    for name in taken:
        request.getfixturevalue("postgres_pool").give_back(name)
    for admin, name in made:
        _admin(admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def mongodb_database(request: pytest.FixtureRequest, servers: Servers) -> Iterator[str]:
    """The URL of the database of `db`, where a test uses that, else of one that does not exist yet.

    What was made in it is dropped.
    """
    if "db" in request.fixturenames:
        pool = request.getfixturevalue("mongodb_pool")
        url = pool.take()
        yield url
        pool.give_back(url)
        return
    url = _with_database(servers.mongodb, f"test_{os.getpid()}_{next(numbers)}")
    yield url
    with pymongo.MongoClient[Any](url) as client:
        client.drop_database(client.get_default_database())


@pytest.fixture
def db(
    servers: Servers,
    postgres_pool: PostgresPool,
    mongodb_database: str,
    seed_designs: list[dict[str, Any]],
) -> Iterator[Database]:
    """A database of both stores, migrated and with the seed data, for one test."""
    name = postgres_pool.take()
    with _opened(servers, name, mongodb_database) as database:
        database.mongodb.collection("designs").insert_many([dict(one) for one in seed_designs])
        yield database
    postgres_pool.give_back(name)


@pytest.fixture(scope="module")
def module_db(
    servers: Servers, postgres_pool: PostgresPool, mongodb_pool: MongoPool
) -> Iterator[Database]:
    """Like `db`, without designs, and one for all tests of a file, which empty what they count."""
    name, url = postgres_pool.take(), mongodb_pool.take()
    with _opened(servers, name, url) as database:
        yield database
    postgres_pool.give_back(name)
    mongodb_pool.give_back(url)


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


@contextmanager
def _opened(servers: Servers, name: str, mongodb: str) -> Iterator[Database]:
    """The database `name` of PostgreSQL and the one of the URL `mongodb`."""
    url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
    with Database(PostgresStore(url), MongoStore(mongodb), settings=config.settings()) as database:
        yield database


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
