"""The report `health`: a fault is named with its culprit and remedy; without one all is well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.faults import check, judge

from fwdb import charts, reports
from fwdb.database import Database
from fwdb.monitoring import Measure, replication
from fwdb.reports import health, servers
from fwdb.reports.results import Check


def ask(db: Database, **given: Any) -> reports.Report:
    return reports.open_report("health", db=db, **given)


def test_healthy_servers_raise_nothing(db: Database) -> None:
    """Every check is ok or says why it cannot be judged; the matrix has a cell for each."""
    db.monitor.sample("full")
    db.users.count()
    db.monitor.sample("full")
    report = ask(db)
    wrong = [c for c in report.result.checks if c.status in ("warning", "critical")]

    labelled = {rule.subject for rule in health.CHECKS if rule.label}

    assert not wrong
    assert report.result.verdict == "ok"
    assert all(c.sentence.endswith(".") for c in report.result.checks)
    assert {c.id.partition(".")[2] for c in report.result.checks} <= {"reachable", *labelled}
    shown = health.matrix(list(report.result.checks))
    assert len(shown) == len({(c.id, c.database) for c in report.result.checks})
    assert set(report.result.charts) == {"health", "trends"}
    assert "reached" in charts.title_of(report.chart("trends").figure)
    assert report.table("tables").frame["table"].str.contains("audit.audit_logs").any()


def test_a_small_duplicate_index_is_no_fault(db: Database) -> None:
    """A few pages are not worth a sentence; a table has them all the same."""
    db.postgres.execute(sa.text("CREATE TABLE t (a int, b int)"))
    db.postgres.execute(sa.text("CREATE INDEX one ON t (a, b)"))
    db.postgres.execute(sa.text("CREATE INDEX two ON t (a, b)"))
    report = ask(db)
    frame = report.table("indexes").frame

    assert check(report, "duplicate_indexes").status == "ok"
    assert frame[frame["index"] == "two"]["duplicate_of"].tolist() == ["one"]


# -- replication -----------------------------------------------------------------------------------


def replica(**changed: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(replication.COLUMNS),
        "database": "postgres",
        "replica": "standby",
        "slot": "s",
        "state": "streaming",
        "is_self": False,
        "behind_bytes": 0,
        "reply_age_seconds": 1.0,
        "status": "ok",
        "retained_bytes": 0,
        "reason": "",
        **changed,
    }


def frame(rows: list[dict[str, Any]], **attrs: Any) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=list(replication.COLUMNS))
    found.attrs.update({"missing": {}, "lost": {}, **attrs})
    return found


def replicated(found: pd.DataFrame) -> list[Check]:
    """What is said of the replicas, then of how far each is behind."""
    checks = list[Check]()
    for rule in (servers.replicas, servers.replication):
        checks += judge("health", rule, {"replicas": found}).checks
    return checks


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({}, "ok", "Replica standby is 0 B behind, 0 s late, last heard 1 s ago"),
        ({"reply_age_seconds": 9.0}, "ok", "last heard 9 s ago"),
        ({"replay_lag_seconds": 7.0}, "ok", "0 s late"),  # the last figure of an idle replica
        ({"behind_bytes": 20_000_000}, "warning", "20 MB behind"),
        ({"behind_bytes": 90_000_000}, "critical", "90 MB behind"),
        ({"behind_bytes": 1, "replay_lag_seconds": 2.0}, "warning", "2 s late"),
        ({"behind_bytes": 1, "replay_lag_seconds": 6.0}, "critical", "6 s late"),
        ({"reply_age_seconds": 35.0}, "warning", "last heard 35 s ago"),
        ({"behind_bytes": 5, "reply_age_seconds": 61.0}, "critical", "last heard 61 s ago"),
        ({"status": "not_measured", "reason": "GRANT pg_monitor"}, "not_measured", "GRANT"),
    ],
)
def test_a_replica_is_judged_by_three_numbers(
    changed: dict[str, Any], status: str, words: str
) -> None:
    """The worst of them decides, and all are said."""
    there, found = replicated(frame([replica(**changed)]))

    assert (there.status, there.value) == ("ok", 1)
    assert found.status == status
    assert words in found.sentence.replace("\u202f", " ")
    assert bool(found.action) == (status in ("warning", "critical"))


def test_a_lost_replica_is_critical_and_none_is_not_applicable() -> None:
    """With the statement that drops the slot for good."""
    away = replica(replica=None, status="not_available", reason="no replica uses this slot")
    told = frame([away], lost={"postgres": "the replica of slot s is not connected"})
    (lost,) = replicated(told)
    missing = {"postgres": replication.NO_REPLICA, "mongodb": replication.ONE_MEMBER}
    none = replicated(frame([], missing=missing))

    assert lost.status == "critical"
    assert "pg_drop_replication_slot('s')" in lost.action
    assert [(c.database, c.status) for c in none] == [
        ("postgres", "not_applicable"),
        ("mongodb", "not_applicable"),
    ]


def test_members_of_mongodb_that_are_away_are_lost() -> None:
    """Its replica set knows how many there should be."""
    away = replica(
        database="mongodb",
        replica="b:27017",
        slot=None,
        status="not_available",
        reason="the member is down",
    )
    lost = replicated(frame([away, replica(database="mongodb")]))[0]

    assert lost.status == "critical"
    assert "b:27017: the member is down" in lost.sentence.lower()


def test_a_slot_that_keeps_much_log_is_named() -> None:
    """Before the disk is full."""
    kept = frame([replica(retained_bytes=500_000_000), replica(slot="t", retained_bytes=5)])
    (found,) = judge("health", servers.slots, {"replicas": kept}).checks

    assert found.status == "warning"
    assert found.sentence.startswith("Slot s, which a replica uses, keeps 500")


# -- figures ---------------------------------------------------------------------------------------


def measure(value: float | None, unit: str, status: str = "ok") -> Measure:
    return Measure(value, unit, status, "", "postgres", "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "subject", "status"),
    [
        ("wraparound_percent", 49.0, "wraparound", "ok"),
        ("wraparound_percent", 50.0, "wraparound", "warning"),
        ("wraparound_percent", 80.0, "wraparound", "critical"),
        ("deadlocks", 0.0, "deadlocks", "ok"),
        ("deadlocks", 1.0, "deadlocks", "warning"),
        ("rollback_percent", 9.0, "rollbacks", "ok"),
        ("rollback_percent", 10.0, "rollbacks", "warning"),
        ("rollback_percent", 50.0, "rollbacks", "critical"),
        ("checkpoints_requested_percent", 49.0, "checkpoints", "ok"),
        ("checkpoints_requested_percent", 51.0, "checkpoints", "warning"),
        ("deadlocks", None, "deadlocks", "no_data"),
    ],
)
def test_figures_are_judged_at_their_lines(
    name: str, value: float | None, subject: str, status: str
) -> None:
    """Just under and just over; without a value the reason."""
    units = {"deadlocks": "count", "wal_bytes": "bytes", "database_bytes": "bytes"}
    units |= {"growth_bytes": "bytes", "archive_age_seconds": "seconds"}
    units |= {"backup_age_seconds": "seconds"}
    names = ["wraparound_percent", "rollback_percent", "checkpoints_requested_percent", *units]
    found = {n: measure(None, units.get(n, "percent"), "no_data") for n in names}
    if value is not None:
        found[name] = measure(value, units.get(name, "percent"))
    (judged,) = judge("health", getattr(health, subject), {"counters": found}).checks

    assert judged.status == status
    assert bool(judged.action) == (status in ("warning", "critical"))


# -- windows and stores ----------------------------------------------------------------------------


def test_a_window_that_has_ended_holds_no_facts_of_this_moment(db: Database) -> None:
    """Sessions, replicas and tables of now say nothing about it."""
    for _ in range(2):
        db.monitor.sample("full")
    db.postgres.execute(
        sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '1 hour'")
    )
    until = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    report = ask(db, since="2h", until=until)
    subjects = {c.id.partition(".")[2] for c in report.result.checks}

    assert not subjects & {"sessions", "replicas", "dead_rows", "indexes", "answer", "vacuum_held"}
    assert check(report, "disk").status == "ok"
    assert report.table("tables").frame.empty


def test_without_history_the_present_is_reported_and_the_past_has_no_data(db: Database) -> None:
    """The window has no reading: what would make data is said."""
    report = ask(db)

    assert check(report, "deadlocks").status == "no_data"
    assert check(report, "cache").status == "no_data"
    assert "fwdb monitor" in check(report, "changes").sentence
    assert check(report, "dead_rows").status == "ok"
    assert charts.title_of(report.chart("trends").figure) == "There is no history to draw"
