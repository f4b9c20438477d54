"""Every statement and command is counted, once, whoever runs it, under a bounded name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import psycopg
import pymongo
import pytest
import sqlalchemy as sa
from support.urls import url_of

from fwdb import config, errors
from fwdb.database import Database
from fwdb.metrics.series import QUERY_BOUNDS_MS
from fwdb.stores import BOUNDS_MS, MongoStore, PostgresStore, commands, timing
from fwdb.stores.errors import ERROR_TYPES, error_type
from fwdb.stores.timing import LONGEST_NAME, MOST_NAMES, QueryTimes, operation

TWICE = {"_id": 1}
SEED_BOUNDS = {1, 10, 50, 100, 500, 1000, 5000, 10000}


class Counts:
    """What a store counted since this was made."""

    def __init__(self, store: PostgresStore | MongoStore) -> None:
        self._store = store
        self._before = self._read()

    def _read(self) -> dict[tuple[str, str], int]:
        return {(t.operation, t.status): t.times.count for t in self._store.query_stats().series}

    def __call__(self) -> dict[str, int]:
        """New operations by name, those that failed with a ``!``."""
        return {
            name + ("!" if status == "error" else ""): count - self._before.get((name, status), 0)
            for (name, status), count in self._read().items()
            if count > self._before.get((name, status), 0)
        }


def small(db: Database, **settings: Any) -> PostgresStore:
    """A store of its own on the database, with other settings."""
    url = url_of(db.postgres)
    return PostgresStore(url, settings=config.settings().model_copy(update=settings))


@pytest.fixture
def postgres(module_db: Database) -> Iterator[PostgresStore]:
    """A store of its own, so that nothing else is counted in it."""
    store = small(module_db)
    yield store
    store.close()


def test_repositories_feed_the_counts_without_doing_anything(module_db):
    """Of both stores, under the name of the statement or command."""
    users, designs = Counts(module_db.postgres), Counts(module_db.mongodb)

    module_db.users.count()
    module_db.users.find(role="designer")
    module_db.designs.find(status="draft")
    module_db.designs.count()

    assert users() == {"select": 2}
    assert designs() == {"find": 1, "aggregate": 1}


def test_every_way_through_the_store_is_counted(postgres):
    """Rows, many rows at once, frames and loads by COPY, transactions and savepoints."""
    counted = Counts(postgres)
    postgres.execute(sa.text("CREATE TEMPORARY TABLE colours (name text, shade integer)"))
    table = sa.table("colours", sa.column("name"), sa.column("shade"))
    with postgres.transaction() as connection:
        connection.execute(sa.insert(table), [{"name": "red", "shade": n} for n in range(3)])
        with postgres.transaction():
            postgres.execute(sa.text("UPDATE colours SET shade = shade + 1"))
    postgres.copy("colours", pd.DataFrame({"name": ["blue"], "shade": [4]}))
    assert len(postgres.frame(sa.select(table))) == 4
    postgres.execute(sa.text("DELETE FROM colours"))

    assert counted() == {
        "ddl": 1,
        "insert": 1,
        "transaction": 2,  # the savepoint and its release
        "update": 1,
        "copy": 2,
        "delete": 1,
    }


def test_what_is_not_a_callers_own_is_not_counted(postgres):
    """What SQLAlchemy asks at the first connection, other engines of the process. Statements that
    hold their values add no names, and long ones no memory."""
    assert postgres.query_stats().errors == dict.fromkeys(ERROR_TYPES, 0), "for increase()"
    other = sa.create_engine(postgres.url)
    with other.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    other.dispose()
    with postgres.connection() as connection:
        for n in range(20):
            connection.exec_driver_sql(f"SELECT {n}")
        before = timing._remembered.cache_info().currsize
        connection.exec_driver_sql("SELECT '" + "x" * 20_000 + "'")

    assert timing._remembered.cache_info().currsize == before
    assert [(t.operation, t.times.count) for t in postgres.query_stats().series] == [("select", 21)]


def test_questions_about_the_servers_are_not_counted(module_db):
    """Those of the monitor, of health, of the metrics themselves, and marked ones."""
    module_db.metrics.text()
    counted = [Counts(module_db.postgres), Counts(module_db.mongodb)]

    module_db.monitor.pool()
    module_db.monitor.sessions()
    module_db.monitor.replication_lag()
    module_db.health()
    module_db.metrics.text()
    module_db.postgres.rows("database_counters")
    with module_db.mongodb.errors():
        list(module_db.mongodb.collection("designs").find({}, comment="fwdb"))

    assert [counts() for counts in counted] == [{}, {}]


def test_further_batches_are_commands_of_their_own(module_db):
    """Each of them takes the server's time, under its own name."""
    collection = module_db.mongodb.collection("batches")
    with module_db.mongodb.errors():
        collection.insert_many([{"n": n} for n in range(30)])
    counted = Counts(module_db.mongodb)

    with module_db.mongodb.errors():
        assert len(list(collection.find({}, batch_size=10))) == 30

    found = counted()
    assert found.pop("find") == 1
    assert found == {"getMore": found["getMore"]}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "select"),
        ("\n  -- why\n  select 1", "select"),
        ("/* why\n (insert) */ (SELECT 1) UNION SELECT 2", "select"),
        ("VALUES (1)", "select"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "select"),
        ("WITH a AS (INSERT INTO b VALUES (')') RETURNING 1) UPDATE c SET d = 1", "update"),
        ('WITH "select" AS (SELECT 1) DELETE FROM a', "delete"),
        ("with a as materialized (select 1) -- insert\n merge into b using a on true", "merge"),
        ("INSERT INTO a SELECT 1", "insert"),
        ("ALTER TABLE a ADD b int", "ddl"),
        ("SAVEPOINT a", "transaction"),
        ("SET x = 1", "set"),
        ("LISTEN a", "other"),
        ("", "other"),
        ("ждать", "other"),
    ],
)
def test_the_operation_of_a_statement(statement, expected):
    """What it does, not the first word that looks like it."""
    assert operation(statement) == expected
    assert expected in timing.OPERATIONS


def test_names_of_commands_come_from_a_closed_set(module_db):
    """A command that a caller invents is `other`."""
    counted = Counts(module_db.mongodb)

    with pytest.raises(errors.FwdbError), module_db.mongodb.errors():
        module_db.mongodb.database.command("ana@example.com")

    assert counted() == {"other!": 1}
    assert {"find", "other", "connect"} <= set(commands.OPERATIONS)


def test_a_time_at_a_bound_belongs_to_it():
    """`le` means at most; what lies beyond all bounds is in the last bucket. Bounds of the existing
    service are there: rules name them."""
    assert set(BOUNDS_MS) >= set(QUERY_BOUNDS_MS) >= SEED_BOUNDS
    assert list(QUERY_BOUNDS_MS) == sorted(QUERY_BOUNDS_MS)
    times = QueryTimes(slow_ms=100)
    for seconds in (0.001, 0.0010001, 10.0, 11.0):
        times.add("select", seconds)

    found = times.read().series[0].times
    assert found.counts[BOUNDS_MS.index(1)] == 1
    assert found.counts[BOUNDS_MS.index(2.5)] == 1
    assert found.counts[BOUNDS_MS.index(10000)] == found.counts[BOUNDS_MS.index(30000)] == 1
    assert found.total_ms == pytest.approx(21_002.0001)


def test_slow_operations_are_counted_from_the_threshold_on(module_db):
    """FWDB_SLOW_QUERY_MS, 100 ms unless set; a quick one is not among them."""
    store = small(module_db)
    store.rows(sa.text("SELECT 1 AS one"))
    before = store.query_stats().slow

    store.rows(sa.text("SELECT 1 AS one FROM pg_sleep(0.12)"))

    assert (before, store.query_stats().slow) == (0, 1)
    store.close()

    times = QueryTimes(slow_ms=100)
    times.add("select", 0.0999)
    times.add("select", 0.1)
    assert times.read().slow == 1


def test_no_count_is_lost_between_threads():
    """Eight threads that append, while another reads all the time."""
    times = QueryTimes(slow_ms=100)

    def work() -> None:
        for _ in range(5000):
            times.add("select", 0.002)

    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work) for _ in range(8)]
        while not all(one.done() for one in working):
            times.read()

    (timed,) = times.read().series
    assert timed.times.count == 40_000
    assert timed.times.total_ms == pytest.approx(80_000)


# -- errors ---------------------------------------------------------------------------------------


def duplicate_user(db: Database) -> None:
    row = db.users.first(email="admin@fashionwallet.com")
    assert row is not None
    db.users.create(email=row.email, password_hash="x" * 60, first_name="A", last_name="B")


def unknown_owner(db: Database) -> None:
    db.avatars.create(user_id="0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", name="x", measurements={})


def too_long(db: Database) -> None:
    with db.postgres.transaction(timeout_ms=20):
        db.postgres.rows(sa.text("SELECT pg_sleep(5)"))


def read_only(db: Database) -> None:
    with db.postgres.transaction(read_only=True):
        db.postgres.execute(sa.text("DELETE FROM shared.users"))


def in_mongodb(ask: Callable[[Any], Any]) -> Callable[[Database], None]:
    """What raises the store's errors for `ask` of its database."""

    def fails(db: Database) -> None:
        with db.mongodb.errors():
            ask(db.mongodb.database)

    return fails


@pytest.mark.parametrize(
    ("database", "fails", "expected"),
    [
        ("postgres", duplicate_user, "unique_violation"),
        ("postgres", unknown_owner, "foreign_key"),
        ("postgres", too_long, "timeout"),
        ("postgres", read_only, "permission"),
        ("postgres", lambda db: db.frame("SELECT nothing FROM nowhere"), "syntax"),
        ("postgres", lambda db: db.postgres.rows(sa.text("SELECT 1 / 0 AS x")), "invalid_data"),
        ("mongodb", in_mongodb(lambda d: d.twice.insert_many([TWICE, TWICE])), "unique_violation"),
        ("mongodb", in_mongodb(lambda d: d.command("nothingOfTheKind")), "syntax"),
        ("mongodb", in_mongodb(lambda d: list(d.designs.aggregate([{"$nothing": {}}]))), "syntax"),
        ("mongodb", in_mongodb(lambda d: d.designs.insert_one({"name": 5})), "invalid_data"),
    ],
)
def test_a_failure_is_counted_once_by_its_cause(module_db, database, fails, expected):
    """And as an operation with the status `error`: the two counts agree."""
    store = module_db.postgres if database == "postgres" else module_db.mongodb
    counted, before = Counts(store), store.query_stats().errors

    with pytest.raises(errors.FwdbError):
        fails(module_db)

    after = store.query_stats().errors
    assert {word: n - before[word] for word, n in after.items() if n != before[word]} == {
        expected: 1
    }
    assert sum(n for name, n in counted().items() if name.endswith("!")) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # Told by SQLSTATE, never by words that depend on the server's language.
        (psycopg.errors.LockNotAvailable(), "lock_timeout"),
        (psycopg.errors.DeadlockDetected(), "deadlock"),
        (psycopg.errors.SerializationFailure(), "serialization"),
        (psycopg.errors.DiskFull(), "resources"),
        (psycopg.errors.AdminShutdown(), "connection"),
        (psycopg.errors.InvalidPassword(), "authentication"),
        (pymongo.errors.AutoReconnect("x"), "connection"),
        (pymongo.errors.NetworkTimeout("x"), "timeout"),
        (pymongo.errors.OperationFailure("x", code=112), "serialization"),
        (pymongo.errors.OperationFailure("x", code=18), "authentication"),
        (pymongo.errors.OperationFailure("x", code=10107), "connection"),
        (pymongo.errors.OperationFailure("ana@example.com", code=123456), "other"),
        (errors.StaleVersion("x"), "serialization"),
        (KeyError("ana@example.com"), "other"),
        (KeyboardInterrupt(), "other"),
    ],
)
def test_every_error_has_a_word_out_of_the_closed_set(error, expected):
    """No message, which may quote a value, becomes a label."""
    assert error_type(error) == expected
    assert expected in ERROR_TYPES


def test_no_connection_is_a_failed_operation(module_db):
    """A server that is down shows in the counts of errors too; a full pool is a cause of its own:
    it is this process that ran out."""
    settings = config.settings().model_copy(update={"connect_timeout_seconds": 0.2})
    for store in (
        PostgresStore("postgresql://nobody@127.0.0.1:1/nothing", settings=settings),
        MongoStore("mongodb://127.0.0.1:1/nothing", settings=settings),
    ):
        with pytest.raises(errors.StoreUnavailable):
            store.ping()
        stats = store.query_stats()
        assert stats.errors["connection"] == 1
        assert [(t.operation, t.status) for t in stats.series] == [("connect", "error")]
        store.close()

    store = small(module_db, pool_size=1, pool_max_overflow=0, pool_timeout_seconds=0.1)
    with store.connection(), pytest.raises(errors.PoolExhausted):
        store.rows(sa.text("SELECT 1 AS one"))
    assert store.query_stats().errors["pool_timeout"] == 1
    store.close()


# -- track ----------------------------------------------------------------------------------------


def test_a_tracked_call_counts_once_with_all_inside(module_db):
    """Another one inside too: no operation is counted under two names. Afterwards all count. The
    other store is not part of it, nor what another thread does meanwhile."""
    users, designs = Counts(module_db.postgres), Counts(module_db.mongodb)
    track = module_db.metrics.track

    found = track("postgres", "findUsers", lambda: module_db.users.find())
    with track("postgres", "outer"), track("postgres", "inner"):
        module_db.users.count()
        module_db.designs.count()
        other = threading.Thread(target=module_db.users.count, daemon=True)
        other.start()
        other.join()
    module_db.users.count()

    assert len(found) == 3
    assert users() == {"findUsers": 1, "outer": 1, "select": 2}
    assert designs() == {"aggregate": 1}


def test_track_decorates_and_may_be_entered_again(module_db):
    """Each call counts, and a function may call itself."""

    @module_db.metrics.track("mongodb", "countDown")
    def count_down(n: int) -> int:
        return count_down(n - 1) if n else 7

    counted = Counts(module_db.mongodb)
    assert [count_down(3), count_down(0)] == [7, 7]
    assert counted() == {"countDown": 2}


def test_an_error_inside_is_counted_by_its_cause_and_raised(module_db):
    """One that the call handles itself is none of it."""
    counted, before = Counts(module_db.postgres), module_db.postgres.query_stats().errors

    with pytest.raises(errors.DuplicateKey), module_db.metrics.track("postgres", "signUp"):
        duplicate_user(module_db)
    with module_db.metrics.track("postgres", "signUp"), pytest.raises(errors.DuplicateKey):
        duplicate_user(module_db)
    with pytest.raises(ZeroDivisionError):
        module_db.metrics.track("postgres", "signUp", lambda: 1 // 0)

    after = module_db.postgres.query_stats().errors
    assert counted() == {"signUp": 1, "signUp!": 2}
    assert {word: n - before[word] for word, n in after.items() if n != before[word]} == {
        "unique_violation": 1,
        "other": 1,
    }


def test_names_beyond_the_first_hundred_are_other(postgres):
    """And it is counted how often that happened; known names stay themselves."""
    for n in range(MOST_NAMES + 5):
        with postgres.times.track(f"user {n}"):
            pass
    with postgres.times.track("user 3"):
        pass
    with postgres.times.track("x" * (LONGEST_NAME + 1)):
        pass

    stats = postgres.query_stats()
    counts = {t.operation: t.times.count for t in stats.series}
    assert len(counts) == MOST_NAMES + 1
    assert counts["user 3"] == 2
    assert counts["other"] == stats.folded == 6


@pytest.mark.parametrize(
    ("database", "name", "said"),
    [("postgress", "find", "postgres"), ("postgres", "", "findUser"), ("mongodb", 5, "findUser")],
)
def test_a_wrong_name_is_refused_with_the_remedy(module_db, database, name, said):
    with pytest.raises(errors.ParameterError, match=said):
        module_db.metrics.track(database, name)
