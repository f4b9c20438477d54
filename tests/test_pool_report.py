"""Faults of connections, made for real: the report names each with its culprit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from fwdb import config, reports
from fwdb.database import Database
from fwdb.reports import pool_checks
from fwdb.reports.opened import Report
from fwdb.reports.results import Check
from fwdb.stores import MongoStore, PostgresStore


@contextmanager
def application(db: Database, name: str, **update: Any) -> Iterator[Database]:
    """The same databases as another program sees them."""
    settings = config.settings().model_copy(update=update)
    url = db.postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with Database(
        PostgresStore(url, application_name=name, settings=settings),
        MongoStore(db.mongodb.url, application_name=name, settings=settings),
        settings=settings,
    ) as found:
        yield found


def pool_report(db: Database) -> Report:
    return reports.open_report("pool", db=db, since="1h", until="now")


def check(report: Report, subject: str, database: str = "postgres") -> Check:
    return next(
        c for c in report.result.checks if c.id == f"pool.{subject}" and c.database == database
    )


def work(db: Database, times: int = 40) -> None:
    """So many loans of both pools between two samples."""
    db.postgres.ping()
    db.mongodb.ping()
    db.monitor.sample()
    for _ in range(times):
        db.postgres.ping()
        db.mongodb.ping()
    db.monitor.sample()


def test_a_healthy_run_raises_nothing(db: Database) -> None:
    """Each check is fine, and the size of each pool is judged by Little's law."""
    work(db)
    report = pool_report(db)
    sizing = check(report, "sizing")

    assert report.result.verdict == "ok"
    assert not [c for c in report.result.checks if c.action]
    assert "checkouts/s × " in sizing.sentence
    assert "connections busy on average" in sizing.sentence
    assert sizing.threshold == 100
    assert check(report, "waiting").sentence == (
        "No caller had to wait for a PostgreSQL connection."
    )


def test_busy_on_average_is_rate_times_hold(db: Database) -> None:
    """From the samples' own figures; and the size that would do has room for chance."""
    with application(db, "shop") as shop:
        shop.postgres.ping()
        shop.monitor.sample()
        for _ in range(pool_checks.FEWEST_HOLDS):
            with shop.postgres.connection():
                time.sleep(0.005)
        shop.monitor.sample()
        report = pool_report(shop)
    pools = report.table("pools").frame
    row = pools[pools["database"] == "postgres"].iloc[0]

    assert row["mean_busy"] == pytest.approx(
        row["checkouts_per_second"] * row["hold_mean_ms"] / 1000
    )
    assert row["hold_mean_ms"] >= 5
    assert 0.3 < row["mean_busy"] <= 1
    assert check(report, "sizing").value in (2, 3, 4)


def test_a_pool_that_is_too_small_is_named_with_the_size_it_needs(db: Database) -> None:
    """Four callers with one connection between them."""
    with application(db, "crowded", pool_size=1, pool_max_overflow=0) as crowded:
        crowded.postgres.ping()
        crowded.monitor.sample()

        def busy() -> None:
            for _ in range(15):
                with crowded.postgres.connection():
                    time.sleep(0.01)

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        crowded.monitor.sample()
        report = pool_report(crowded)
    sizing, waiting = check(report, "sizing"), check(report, "waiting")

    assert (sizing.status, waiting.status) == ("warning", "warning")
    assert sizing.threshold == 1
    assert sizing.value is not None
    assert sizing.value > 1
    assert "FWDB_POOL_MAX_OVERFLOW" in sizing.action
    assert "99 in 100 within" in waiting.sentence
    assert waiting.value is not None
    assert waiting.value >= 3  # SQLAlchemy's pool is not fair: who returns one may be first again


def test_waits_behind_long_holds_are_not_the_pools_size(
    db: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """A caller that waited for a transaction to end is no reason for a larger pool."""
    monkeypatch.setattr(pool_checks, "LONG_HOLD_MS", 50)
    with application(db, "export", pool_size=3, pool_max_overflow=0) as export:
        export.postgres.ping()
        export.monitor.sample()
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(export.postgres.connection())
            late = threading.Thread(target=export.postgres.ping)
            late.start()
            wait_until(lambda: export.postgres.pool().waiting == 1)
            time.sleep(0.11)
        late.join()
        for _ in range(40):
            export.postgres.ping()
        db.postgres.execute(
            sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '9 seconds'")
        )
        export.monitor.sample()
        report = pool_report(export)
    sizing = check(report, "sizing")

    assert sizing.status == "ok"
    assert "The 1 waits came from 3 holds of over 50 ms, not from its size" in sizing.sentence
    assert "a larger pool would not help" in sizing.action


def test_a_lock_chain_is_named_with_its_root(
    db: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """The session at the root, what it does, and the statement that ends it."""
    monkeypatch.setattr(pool_checks, "BLOCKED_WARNING", 0.01)
    with application(db, "migration") as migration, application(db, "shop") as shop:

        def update() -> None:
            shop.postgres.execute(sa.text("UPDATE shared.users SET first_name = first_name"))

        with migration.postgres.transaction() as connection:
            connection.execute(sa.text("LOCK TABLE shared.users"))
            root = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            thread = threading.Thread(target=update)
            thread.start()
            wait_until(lambda: len(db.monitor.blocking()) == 1)
            report = pool_report(db)
        thread.join()
    blocked = check(report, "blocked")

    assert blocked.status == "warning"
    assert f"1 session waits for session {root} of migration, idle in transaction" in (
        blocked.sentence
    )
    assert f"pg_terminate_backend({root})" in blocked.action
    assert report.table("blocking").frame["application"].tolist() == ["shop"]


def test_an_idle_transaction_is_named_with_its_statement(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who, since when, and the last thing it said, without the values."""
    monkeypatch.setattr(pool_checks, "HELD_WARNING", 0.01)
    with application(db, "forgetful") as forgetful, forgetful.postgres.transaction() as connection:
        connection.execute(
            sa.text("SELECT id FROM shared.users WHERE email = 'ana@example.com' FOR UPDATE")
        )
        pid = connection.execute(sa.text("SELECT pg_backend_pid() AS pid")).scalar_one()
        connection.execute(sa.text("SELECT count(*) FROM shared.users WHERE email = 'b@c.d'"))
        time.sleep(0.02)
        report = pool_report(db)
    idle = check(report, "idle_in_transaction")

    assert idle.status == "warning"
    assert f"Session {pid} of forgetful" in idle.sentence
    assert "`SELECT count(*) FROM shared.users WHERE email = ?`" in idle.sentence
    assert "idle_in_transaction_session_timeout" in idle.action
    assert "example.com" not in report.result.json()


def test_a_leaked_connection_is_named_with_its_place(db: Database) -> None:
    """Of the process that makes the report: in a notebook, the one that leaks."""
    thresholds = config.settings().thresholds.model_copy(update={"leak_seconds": 0.01})
    with application(db, "leaky", thresholds=thresholds) as leaky:
        lost = leaky.postgres.engine.connect()
        time.sleep(0.02)
        report = pool_report(leaky)
        lost.close()
    leak = check(report, "holders")

    assert leak.status == "warning"
    assert "1 PostgreSQL connection of this process was not returned" in leak.sentence
    assert "test_pool_report.py:" in leak.sentence


def test_a_limit_of_the_database_is_named_before_the_servers(db: Database) -> None:
    """Almost reached: with the statement that raises it."""
    name = db.postgres.url.database
    db.postgres.execute(sa.text(f"ALTER DATABASE {name} CONNECTION LIMIT 1"))
    report = pool_report(db)
    limit = check(report, "session_limits")

    assert limit.status == "critical"
    assert f"sessions of the database {name} are taken" in limit.sentence
    assert f"ALTER DATABASE {name} CONNECTION LIMIT 2" in limit.action


def test_a_window_that_ended_earlier_asks_nothing_of_this_moment(db: Database) -> None:
    """Sessions and locks of now say nothing about then."""
    work(db)
    report = reports.open_report("pool", db=db, since="2h", until="1h")
    subjects = {c.id.partition(".")[2] for c in report.result.checks}

    assert not subjects & {"sessions", "blocked", "idle_in_transaction", "session_limits"}
    assert report.result.verdict == "no_data"
    assert "FWDB_HISTORY_DAYS" in report.result.summary
    assert report.table("blocking").frame.empty
