"""The report `pool`: sizes, waits and sessions; its faults are in `test_faults.py`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from support.faults import application, check, lower

from fwdb import reports
from fwdb.database import Database
from fwdb.reports import Report

FEWEST = 30  # holds that say something about a rate


def pool_report(db: Database) -> Report:
    return reports.open_report("pool", db=db, since="1h", until="now")


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
    """Each check is fine, and the size of each pool is judged by Little's law.

    However much was lent before the first sample: no rate and no mean can be told from that.
    """
    for _ in range(FEWEST):
        db.postgres.ping()
        db.mongodb.ping()
    for _ in range(2):
        db.monitor.sample()
    early = pool_report(db)
    work(db)
    report = pool_report(db)

    for database in ("postgres", "mongodb"):
        assert check(early, "sizing", database).status == "no_data"
        assert "Too few" in check(early, "sizing", database).sentence
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
        for _ in range(FEWEST):
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


def test_waits_behind_long_holds_are_not_the_pools_size(
    db: Database, wait_until: Callable[..., None]
) -> None:
    """A caller that waited for a transaction to end is no reason for a larger pool."""
    with application(db, "export", pool_size=3, pool_max_overflow=0) as export:
        lower(export, "pool.sizing.long_hold=50")
        export.postgres.ping()
        export.monitor.sample()
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(export.postgres.connection())
            late = threading.Thread(target=export.postgres.ping, daemon=True)
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


def test_a_window_that_ended_earlier_asks_nothing_of_this_moment(db: Database) -> None:
    """Sessions and locks of now say nothing about then."""
    work(db)
    report = reports.open_report("pool", db=db, since="2h", until="1h")
    subjects = {c.id.partition(".")[2] for c in report.result.checks}

    assert not subjects & {"sessions", "blocked", "idle_in_transaction", "session_limits"}
    assert report.result.verdict == "no_data"
    assert "FWDB_HISTORY_DAYS" in report.result.summary
    assert report.table("blocking").frame.empty
