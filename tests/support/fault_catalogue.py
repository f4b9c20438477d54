"""The catalogue of faults: how each is made, which checks name it, and what they are to say."""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from fwdb.errors import DuplicateKey, PoolExhausted, Transient
from fwdb.monitoring import relations
from support.faults import Facts, Scene, application, in_threads, pid, thresholds

ME = os.getpid()


@dataclass(frozen=True)
class Said:
    """What one check is to say: `sentence` has the culprit, `action` what helps."""

    check: str
    sentence: str
    action: str
    status: tuple[str, ...] = ("warning", "critical")
    database: str = "postgres"


@dataclass(frozen=True)
class Fault:
    """One fault: how it is made, what the reports say of it, and the parameters they are given."""

    name: str
    made: Callable[[Scene], AbstractContextManager[Facts]]
    said: list[Said]
    given: dict[str, Any]


FAULTS: list[Fault] = []
Make = Callable[[Scene], Iterator[Facts]]
_SAID = re.compile(r"(\w+\.\w+)(?: of (\w+))?( \(ok\))?: (.*?) =>(?: (.*))?")


def fault(
    *, given: dict[str, Any] | None = None, name: str = ""
) -> Callable[[Make], Callable[[Scene], AbstractContextManager[Facts]]]:
    """Adds a function that makes a fault, and yields who is to blame while it lasts.

    Its docstring has what is said of it: ``report.check: culprit in the sentence => what helps``.
    """

    def add(make: Make) -> Callable[[Scene], AbstractContextManager[Facts]]:
        said = list[Said]()
        for entry in re.split(r"\n(?=\w+\.\w+)", inspect.getdoc(make) or "")[1:]:
            found = _SAID.fullmatch(re.sub(r"\n\s+", " ", entry))
            assert found, entry
            check, database, ok, sentence, action = found.groups()
            status = ("ok",) if ok else ("warning", "critical")
            said.append(Said(check, sentence, action or "", status, database or "postgres"))
        made = contextmanager(make)
        FAULTS.append(Fault(name or make.__name__.replace("_", " "), made, said, given or {}))
        return made

    return add


# -- connections ----------------------------------------------------------------------------------


@fault()
def lock_chain(scene: Scene) -> Iterator[Facts]:
    """A migration locks users, the shop locks avatars and waits for users, a job for avatars.

    pool.blocked: 2 sessions wait for session {root} of migration, idle in transaction
        => pg_terminate_backend({root})
    health.blocked: 2 sessions wait for session {root} of migration, idle in transaction
        => pg_terminate_backend({root})
    """
    scene.limits("pool.blocked.seconds=0.01,health.blocked.seconds=0.01")
    with (
        application(scene.db, "migration") as migration,
        application(scene.db, "shop") as shop,
        application(scene.db, "job") as job,
    ):

        def buy() -> None:
            with shop.postgres.transaction() as connection:
                connection.execute(sa.text("LOCK TABLE avatar.avatars"))
                connection.execute(sa.text("SELECT count(*) FROM shared.users"))

        def read() -> None:
            job.postgres.rows(sa.text("SELECT count(*) FROM avatar.avatars"))

        waiting = scene.db.monitor.blocking
        # The root's transaction ends before the threads are waited for: it is left first.
        with ExitStack() as threads, migration.postgres.transaction() as connection:
            connection.execute(sa.text("LOCK TABLE shared.users"))
            root = pid(connection)
            threads.push(in_threads(buy))
            scene.wait_until(lambda: len(waiting()) == 1)
            threads.push(in_threads(read))
            scene.wait_until(lambda: len(waiting()) == 2)
            yield {"root": root}


@fault()
def idle_in_transaction(scene: Scene) -> Iterator[Facts]:
    """Idle in transaction.

    pool.idle_in_transaction: Session {pid} of forgetful has been idle inside a transaction
        => idle_in_transaction_session_timeout
    pool.idle_in_transaction: `SELECT count(*) FROM shared.users WHERE email = ?`
        => pg_terminate_backend({pid})
    """
    scene.limits("pool.idle_in_transaction=0.01")
    with application(scene.db, "forgetful") as db, db.postgres.transaction() as connection:
        facts = {"pid": pid(connection)}
        connection.execute(sa.text("SELECT count(*) FROM shared.users WHERE email = 'b@c.d'"))
        yield facts


@fault()
def leaked_connection(scene: Scene) -> Iterator[Facts]:
    """Leaked connection.

    pool.holders: 1 PostgreSQL connection of this process was not returned
        => with db.postgres.connection()
    pool.holders: test_faults.py: => Return it
    """
    with application(scene.db, "leaky", thresholds=thresholds(leak_seconds=0.01)) as db:
        lost = db.postgres.engine.connect()
        yield {"db": db}
        lost.close()


@fault()
def pool_too_small(scene: Scene) -> Iterator[Facts]:
    """Four callers with one connection between them.

    pool.sizing: the one of crowded (process {me}) may open 1 => FWDB_POOL_MAX_OVERFLOW
    pool.waiting: Callers of crowded (process {me}) had to wait for a PostgreSQL connection
        => Find what holds PostgreSQL connections
    """
    with application(scene.db, "crowded", pool_size=1, pool_max_overflow=0) as db:
        db.postgres.ping()
        db.monitor.sample()

        def work() -> None:
            for _ in range(15):
                db.postgres.rows(sa.text("SELECT pg_sleep(0.01)"))

        in_threads(*[work] * 4).close()
        db.monitor.sample()
        yield {"me": ME}


@fault(name="queue with time-outs")
def queue_with_timeouts(scene: Scene) -> Iterator[Facts]:
    """One caller keeps the only connection, two wait for it in vain.

    pool.timeouts: 2 callers of queueing (process {me}) gave up waiting for a PostgreSQL
        connection => free or add PostgreSQL connections
    pool.utilisation: The PostgreSQL pool of queueing (process {me}) was 100 % full
        => Shorten its transactions
    """
    update = {"pool_size": 1, "pool_max_overflow": 0, "pool_timeout_seconds": 0.05}
    with application(scene.db, "queueing", **update) as db:
        with db.postgres.connection():

            def fail() -> None:
                with pytest.raises(PoolExhausted):
                    db.postgres.ping()

            in_threads(fail, fail).close()
            db.monitor.sample()
        yield {"me": ME}


@fault()
def limit_of_the_database(scene: Scene) -> Iterator[Facts]:
    """Reached long before that of the server.

    pool.session_limits: sessions of the database {name} are taken
        => ALTER DATABASE {name} CONNECTION LIMIT 2
    """
    name = scene.db.postgres.url.database
    scene.run(f"ALTER DATABASE {name} CONNECTION LIMIT 1")
    yield {"name": name}


# -- statements -----------------------------------------------------------------------------------

_SUM = sa.text("SELECT sum(n) FROM orders WHERE buyer = :b")


@fault(given={"since": "1h", "min_ms": 0.5})
def missing_index(scene: Scene) -> Iterator[Facts]:
    """A table without one, asked by a column, and no window to compare with.

    slow_queries.mean: `SELECT sum(n) FROM orders WHERE buyer = $1`
        => CREATE INDEX CONCURRENTLY ON orders (buyer);
    """
    scene.run(
        "CREATE TABLE orders AS SELECT n, n % 5000 AS buyer FROM generate_series(1, 100000) n",
        "ANALYZE orders",
    )
    scene.db.monitor.sample("full")
    for buyer in range(10):
        scene.db.postgres.rows(_SUM, b=buyer)
    yield {}


@fault(given={"since": "1h", "order": "temp"})
def spill_to_disk(scene: Scene) -> Iterator[Facts]:
    """Spill to disk.

    slow_queries.spill: `SELECT n FROM orders ORDER BY -n => SET work_mem = '8MB'
    """
    scene.run("CREATE TABLE orders AS SELECT n FROM generate_series(1, 60000) n")
    scene.db.monitor.sample("full")
    with scene.db.postgres.transaction():
        scene.run("SET LOCAL work_mem = '64kB'")
        for _ in range(3):
            scene.run("SELECT n FROM orders ORDER BY -n LIMIT 1 OFFSET 50000")
    yield {}


@fault(given={"since": "1h", "compare_since": "2h"})
def slower_statement(scene: Scene) -> Iterator[Facts]:
    """A function that everybody calls was replaced by one that takes ten times as long.

    slow_queries.regression: times as long (95 % => Look at what changed around `SELECT price($1)`
    slow_queries.regression: for `SELECT price($1)` => query_changes
    """

    def price(milliseconds: int) -> None:
        scene.run(
            "CREATE OR REPLACE FUNCTION price(int) RETURNS int LANGUAGE plpgsql AS "
            f"'BEGIN PERFORM pg_sleep({milliseconds / 1000}); RETURN $1; END'"
        )
        for item in range(31):
            scene.db.postgres.rows(sa.text("SELECT price(:i)"), i=item)

    scene.db.monitor.sample("full")
    price(1)
    scene.db.monitor.sample("full")
    scene.hour_ago()
    scene.db.monitor.sample("full")
    price(10)
    yield {}


@fault(given={"since": "1h"}, name="N+1 pattern")
def once_for_each_row(scene: Scene) -> Iterator[Facts]:
    """The lines of forty orders, one statement for each, thirty times over.

    slow_queries.repeated: `SELECT id FROM lines WHERE order_id = $1` was called 1\u202f200 times,
        once for each row that `SELECT id FROM orders` returned (N+1) => JOIN
    """
    scene.run(
        "CREATE TABLE orders AS SELECT id FROM generate_series(1, 40) id",
        "CREATE TABLE lines AS SELECT id, id AS order_id FROM generate_series(1, 40) id",
    )
    scene.db.monitor.sample("full")
    lines = sa.text("SELECT id FROM lines WHERE order_id = :id")
    with scene.db.postgres.connection():
        for _ in range(30):
            for row in scene.db.postgres.rows(sa.text("SELECT id FROM orders")):
                scene.db.postgres.rows(lines, id=row["id"])
    yield {}


@fault(given={"since": "1h", "min_ms": 0.01})
def collection_scan(scene: Scene) -> Iterator[Facts]:
    """A field without an index, in a collection that has grown.

    slow_queries.mean of mongodb: `orders.find({{buyer: ?}})` => .explain('executionStats')
    """
    orders = scene.db.mongodb.collection("orders")
    orders.insert_many({"buyer": n % 997, "text": "x" * 100} for n in range(3000))
    scene.db.monitor.sample("full")
    scene.hour_ago()  # with what made the database
    for buyer in range(3):
        list(orders.find({"buyer": buyer}))
    yield {}


# -- servers --------------------------------------------------------------------------------------


@fault(name="long transaction")
def vacuum_held(scene: Scene) -> Iterator[Facts]:
    """One long transaction, which may still see every row that was there when it began.

    health.vacuum_held: forgotten (process {pid}) has kept vacuum from removing dead rows
        => pg_terminate_backend({pid})
    """
    scene.limits("health.vacuum_held=0.05")
    with (
        application(scene.db, "forgotten") as db,
        db.postgres.transaction(isolation="repeatable read") as connection,
    ):
        yield {"pid": connection.execute(sa.text("SELECT pg_backend_pid() FROM pg_class")).scalar()}


@fault()
def bloat(scene: Scene) -> Iterator[Facts]:
    """Bloat.

    health.dead_rows: 50 % of the row versions in public.bloated are dead: 15\u202f000
        => VACUUM (ANALYZE) public.bloated
    """
    scene.run(
        "CREATE TABLE bloated (n int) WITH (autovacuum_enabled = off)",
        "INSERT INTO bloated SELECT generate_series(1, 30000)",
        "DELETE FROM bloated WHERE n <= 15000",
    )
    with scene.db.postgres.connection() as connection:
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        connection.execute(sa.text("SELECT 1"))
    yield {}


@fault()
def disabled_trigger(scene: Scene) -> Iterator[Facts]:
    """Disabled trigger.

    health.triggers: Trigger watch of shared.users is switched off
        => ALTER TABLE shared.users ENABLE TRIGGER watch
    """
    scene.run(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER watch BEFORE INSERT ON shared.users FOR EACH ROW EXECUTE FUNCTION "
        "nothing()",
        "ALTER TABLE shared.users DISABLE TRIGGER watch",
    )
    yield {}


@fault()
def schema_behind(scene: Scene) -> Iterator[Facts]:
    """Schema behind.

    health.schema: The database has no revision of fwdb => fwdb migrate
    health.answer: PostgreSQL is degraded => fwdb health
    """
    scene.run("DELETE FROM monitoring.alembic_version")
    yield {}


@fault()
def bad_indexes(scene: Scene) -> Iterator[Facts]:
    """One that could not be built, and two alike.

    health.invalid_indexes: Index broken of public.t => DROP INDEX CONCURRENTLY public.broken
    health.duplicate_indexes: Index two of public.t => DROP INDEX CONCURRENTLY public.two
    """
    scene.limits("health.duplicate_indexes.size=500000")
    scene.run(
        "CREATE TABLE t (a int, b int)",
        "INSERT INTO t SELECT n / 2, n FROM generate_series(1, 50000) n",
        "CREATE INDEX one ON t (a, b)",
        "CREATE INDEX two ON t (a, b)",
    )
    with pytest.raises(DuplicateKey):
        scene.run("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (a)")
    yield {}


@fault()
def unused_index(scene: Scene) -> Iterator[Facts]:
    """One that nobody ever used, since a time that is lowered here from a week to none.

    health.unused_indexes: Index forgotten of public.t (1.1\u202fMB) was not used
        => DROP INDEX CONCURRENTLY public.forgotten
    """
    scene.limits("health.unused_indexes.size=500000")
    scene.patch.setattr(relations, "UNUSED_DAYS", 0)
    scene.run(
        "CREATE TABLE t AS SELECT a FROM generate_series(1, 50000) a",
        "CREATE INDEX forgotten ON t (a)",
    )
    yield {}


@fault()
def deadlock(scene: Scene) -> Iterator[Facts]:
    """Two sessions that lock the same two rows, each in its own order.

    health.deadlocks: 1 deadlock in the window => Take locks in one order
    """
    scene.db.monitor.sample("full")
    both = threading.Barrier(2, timeout=30)
    lock = sa.text("SELECT pg_advisory_xact_lock(:key)")

    def take(first: int, second: int) -> None:
        try:
            with scene.db.postgres.transaction() as connection:
                connection.execute(sa.text("SET LOCAL deadlock_timeout = '10ms'"))
                connection.execute(lock, {"key": first})
                both.wait()
                connection.execute(lock, {"key": second})
        except Transient:
            pass  # of one of the two, which is the fault

    in_threads(lambda: take(1, 2), lambda: take(2, 1)).close()
    yield {}


@fault()
def setting_changed(scene: Scene) -> Iterator[Facts]:
    """Setting changed.

    health.changes (ok): Changed in the window: log_min_duration_statement from 100ms to 123ms =>
    """
    scene.db.monitor.sample("full")
    try:
        _system(scene, "ALTER SYSTEM SET log_min_duration_statement = '123ms'")
        with application(scene.db, "later") as later:
            scene.wait_until(
                lambda: (
                    later.postgres.rows(sa.text("SHOW log_min_duration_statement"))[0][
                        "log_min_duration_statement"
                    ]
                    == "123ms"
                )
            )
            later.monitor.sample("full")
        yield {}
    finally:
        _system(scene, "ALTER SYSTEM RESET log_min_duration_statement")


def _system(scene: Scene, statement: str) -> None:
    with scene.db.postgres.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        connection.execute(sa.text(statement))
        connection.execute(sa.text("SELECT pg_reload_conf()"))


@fault(name="read-only database")
def read_only_database(scene: Scene) -> Iterator[Facts]:
    """As providers do when a disk is full.

    health.answer: takes no writes unless a session asks for them (default_transaction_read_only
        => fwdb health
    """
    name = scene.db.postgres.url.database
    scene.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    yield {}


@fault(name="slot without a reader")
def slot_without_reader(scene: Scene) -> Iterator[Facts]:
    """Its replica is gone for good, and the log piles up.

    health.slots: Slot left_behind, which no replica uses, keeps
        => pg_drop_replication_slot('left_behind')
    health.replicas: replica of slot left_behind is not connected
        => pg_drop_replication_slot('left_behind')
    """
    scene.run("SELECT pg_create_physical_replication_slot('left_behind', true)")
    try:
        scene.run("CREATE TABLE much AS SELECT repeat('x', 500) t FROM generate_series(1, 4000)")
        limits = thresholds(lag_critical_bytes=1_000_000)
        with application(scene.db, "watcher", thresholds=limits) as db:
            yield {"db": db}
    finally:
        scene.run("SELECT pg_drop_replication_slot('left_behind')")
