"""Faults as they happen: each function makes one, and yields who is to blame while it lasts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from fwdb import config
from fwdb.database import Database
from fwdb.errors import DuplicateKey, PoolExhausted, Transient
from fwdb.monitoring import relations
from fwdb.reports import health_checks, health_relations, pool_checks
from fwdb.stores import MongoStore, PostgresStore

# What the sentences of a fault are filled with, and maybe the `db` that is to report it.
Facts = dict[str, Any]
ME = os.getpid()


@dataclass(frozen=True)
class Scene:
    """What a fault has to work with."""

    db: Database
    patch: pytest.MonkeyPatch
    wait_until: Callable[..., None]

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.db.postgres.execute(sa.text(statement))

    def hour_ago(self) -> None:
        """What was sampled till now, an hour ago."""
        self.run(
            "UPDATE monitoring.readings SET read_at = read_at - interval '61 minutes', details = "
            "details || CASE WHEN details ? 'commands_since' THEN jsonb_build_object("
            "'commands_since', CAST(details ->> 'commands_since' AS timestamptz) "
            "- interval '61 minutes') ELSE '{}' END"
        )


@contextmanager
def application(db: Database, name: str, **update: Any) -> Iterator[Database]:
    """The same databases as another program sees them."""
    settings = config.settings().model_copy(update=update)
    url = db.postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with Database(
        PostgresStore(url, application_name=name, settings=settings),
        MongoStore(db.mongodb._given.get_secret_value(), application_name=name, settings=settings),
        settings=settings,
    ) as found:
        yield found


def thresholds(**update: Any) -> config.Thresholds:
    return config.settings().thresholds.model_copy(update=update)


def in_threads(*jobs: Callable[[], object]) -> ExitStack:
    """Runs `jobs` at once; leaving waits for them."""
    stack = ExitStack()
    for job in jobs:
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        stack.callback(thread.join)
    return stack


def pid(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


# -- connections ----------------------------------------------------------------------------------


@contextmanager
def lock_chain(scene: Scene) -> Iterator[Facts]:
    """A migration locks users, the shop locks avatars and waits for users, a job for avatars."""
    scene.patch.setattr(pool_checks, "BLOCKED_WARNING", 0.01)
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


@contextmanager
def idle_in_transaction(scene: Scene) -> Iterator[Facts]:
    scene.patch.setattr(pool_checks, "HELD_WARNING", 0.01)
    with application(scene.db, "forgetful") as db, db.postgres.transaction() as connection:
        facts = {"pid": pid(connection)}
        connection.execute(sa.text("SELECT count(*) FROM shared.users WHERE email = 'b@c.d'"))
        yield facts


@contextmanager
def leaked_connection(scene: Scene) -> Iterator[Facts]:
    with application(scene.db, "leaky", thresholds=thresholds(leak_seconds=0.01)) as db:
        lost = db.postgres.engine.connect()
        yield {"db": db}
        lost.close()


@contextmanager
def pool_too_small(scene: Scene) -> Iterator[Facts]:
    """Four callers with one connection between them."""
    with application(scene.db, "crowded", pool_size=1, pool_max_overflow=0) as db:
        db.postgres.ping()
        db.monitor.sample()

        def work() -> None:
            for _ in range(15):
                db.postgres.rows(sa.text("SELECT pg_sleep(0.01)"))

        in_threads(*[work] * 4).close()
        db.monitor.sample()
        yield {"me": ME}


@contextmanager
def queue_with_timeouts(scene: Scene) -> Iterator[Facts]:
    """One caller keeps the only connection, two wait for it in vain."""
    update = {"pool_size": 1, "pool_max_overflow": 0, "pool_timeout_seconds": 0.05}
    with application(scene.db, "queueing", **update) as db:
        with db.postgres.connection():

            def fail() -> None:
                with pytest.raises(PoolExhausted):
                    db.postgres.ping()

            in_threads(fail, fail).close()
            db.monitor.sample()
        yield {"me": ME}


@contextmanager
def limit_of_the_database(scene: Scene) -> Iterator[Facts]:
    """Reached long before that of the server."""
    name = scene.db.postgres.url.database
    scene.run(f"ALTER DATABASE {name} CONNECTION LIMIT 1")
    yield {"name": name}


# -- statements -----------------------------------------------------------------------------------

_SUM = sa.text("SELECT sum(n) FROM orders WHERE buyer = :b")


@contextmanager
def missing_index(scene: Scene) -> Iterator[Facts]:
    """A table without one, asked by a column, and no window to compare with."""
    scene.run(
        "CREATE TABLE orders AS SELECT n, n % 5000 AS buyer FROM generate_series(1, 100000) n",
        "ANALYZE orders",
    )
    scene.db.monitor.sample("full")
    for buyer in range(10):
        scene.db.postgres.rows(_SUM, b=buyer)
    yield {}


@contextmanager
def spill_to_disk(scene: Scene) -> Iterator[Facts]:
    scene.run("CREATE TABLE orders AS SELECT n FROM generate_series(1, 60000) n")
    scene.db.monitor.sample("full")
    with scene.db.postgres.transaction():
        scene.run("SET LOCAL work_mem = '64kB'")
        for _ in range(3):
            scene.run("SELECT n FROM orders ORDER BY -n LIMIT 1 OFFSET 50000")
    yield {}


@contextmanager
def slower_statement(scene: Scene) -> Iterator[Facts]:
    """A function that everybody calls was replaced by one that takes ten times as long."""

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


@contextmanager
def once_for_each_row(scene: Scene) -> Iterator[Facts]:
    """The lines of forty orders, one statement for each, thirty times over."""
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


@contextmanager
def collection_scan(scene: Scene) -> Iterator[Facts]:
    """A field without an index, in a collection that has grown."""
    orders = scene.db.mongodb.collection("orders")
    orders.insert_many({"buyer": n % 997, "text": "x" * 100} for n in range(3000))
    scene.db.monitor.sample("full")
    scene.hour_ago()  # with what made the database
    for buyer in range(3):
        list(orders.find({"buyer": buyer}))
    yield {}


# -- servers --------------------------------------------------------------------------------------


@contextmanager
def vacuum_held(scene: Scene) -> Iterator[Facts]:
    """One long transaction, which may still see every row that was there when it began."""
    scene.patch.setattr(health_checks, "HELD_WARNING", 0.05)
    with (
        application(scene.db, "forgotten") as db,
        db.postgres.transaction(isolation="repeatable read") as connection,
    ):
        yield {"pid": connection.execute(sa.text("SELECT pg_backend_pid() FROM pg_class")).scalar()}


@contextmanager
def bloat(scene: Scene) -> Iterator[Facts]:
    scene.run(
        "CREATE TABLE bloated (n int) WITH (autovacuum_enabled = off)",
        "INSERT INTO bloated SELECT generate_series(1, 30000)",
        "DELETE FROM bloated WHERE n <= 15000",
    )
    with scene.db.postgres.connection() as connection:
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        connection.execute(sa.text("SELECT 1"))
    yield {}


@contextmanager
def disabled_trigger(scene: Scene) -> Iterator[Facts]:
    scene.run(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER watch BEFORE INSERT ON shared.users FOR EACH ROW EXECUTE FUNCTION "
        "nothing()",
        "ALTER TABLE shared.users DISABLE TRIGGER watch",
    )
    yield {}


@contextmanager
def schema_behind(scene: Scene) -> Iterator[Facts]:
    scene.run("DELETE FROM monitoring.alembic_version")
    yield {}


@contextmanager
def bad_indexes(scene: Scene) -> Iterator[Facts]:
    """One that could not be built, and two alike."""
    scene.patch.setattr(health_relations, "INDEX_BYTES", 500_000)
    scene.run(
        "CREATE TABLE t (a int, b int)",
        "INSERT INTO t SELECT n / 2, n FROM generate_series(1, 50000) n",
        "CREATE INDEX one ON t (a, b)",
        "CREATE INDEX two ON t (a, b)",
    )
    with pytest.raises(DuplicateKey):
        scene.run("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (a)")
    yield {}


@contextmanager
def unused_index(scene: Scene) -> Iterator[Facts]:
    """One that nobody ever used, since a time that is lowered here from a week to none."""
    scene.patch.setattr(health_relations, "INDEX_BYTES", 500_000)
    scene.patch.setattr(relations, "UNUSED_DAYS", 0)
    scene.run(
        "CREATE TABLE t AS SELECT a FROM generate_series(1, 50000) a",
        "CREATE INDEX forgotten ON t (a)",
    )
    yield {}


@contextmanager
def deadlock(scene: Scene) -> Iterator[Facts]:
    """Two sessions that lock the same two rows, each in its own order."""
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


@contextmanager
def setting_changed(scene: Scene) -> Iterator[Facts]:
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


@contextmanager
def read_only_database(scene: Scene) -> Iterator[Facts]:
    """As providers do when a disk is full."""
    name = scene.db.postgres.url.database
    scene.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    yield {}


@contextmanager
def slot_without_reader(scene: Scene) -> Iterator[Facts]:
    """Its replica is gone for good, and the log piles up."""
    scene.run("SELECT pg_create_physical_replication_slot('left_behind', true)")
    try:
        scene.run("CREATE TABLE much AS SELECT repeat('x', 500) t FROM generate_series(1, 4000)")
        limits = thresholds(lag_critical_bytes=1_000_000)
        with application(scene.db, "watcher", thresholds=limits) as db:
            yield {"db": db}
    finally:
        scene.run("SELECT pg_drop_replication_slot('left_behind')")
