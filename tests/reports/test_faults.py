"""The catalogue of faults: made on real servers, each is named by its report with its culprit.

Two faults of the catalogue in docs/reports.md are made elsewhere because they need a replica:
`test_replication.py` pauses the replay of a real one and stops it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from support.embedded import ask, pid, up_postgres
from support.fault_catalogue import FAULTS, Fault, Said, lock_chain
from support.faults import Facts, Scene, application, lower

from fwdb import config, embedded, migrating, reports
from fwdb.database import Database
from fwdb.reports import facts as known
from fwdb.reports.results import Check
from fwdb.seeding.workload import Operations
from fwdb.stores import MongoStore, PostgresStore

GENERIC_PLANS = 160000  # PostgreSQL plans a statement without its values from 16 on

WINDOW = {"since": "1h"}


def checks_of(db: Database, said: Said, given: dict[str, Any]) -> list[Check]:
    report = reports.open_report(said.check.partition(".")[0], db=db, **given)
    assert "b@c.d" not in report.result.json()  # a value in a statement
    return [c for c in report.result.checks if (c.id, c.database) == (said.check, said.database)]


def assert_said(
    db: Database,
    expected: tuple[Said, ...],
    facts: Facts,
    wait_until: Callable[..., None],
    given: dict[str, Any] | None = None,
) -> None:
    """Each check says what it should, or will in a moment: servers count late."""
    for said in expected:
        sentence, action = said.sentence.format(**facts), said.action.format(**facts)
        found: list[Check] = []

        def named(said: Said = said, sentence: str = sentence, found: list[Check] = found) -> bool:
            found[:] = checks_of(db, said, given or {})
            return any(c.status in said.status and sentence in c.sentence for c in found)

        with suppress(pytest.fail.Exception):  # the assertions below say more
            wait_until(named, timeout=5)
        right = [c for c in found if sentence in c.sentence]
        assert right, found
        assert any(c.status in said.status and action in c.action for c in right), right
        assert all(c.action for c in right if c.status != "ok")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_with_its_culprit_and_what_helps(
    fault: Fault,
    db: Database,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., None],
) -> None:
    """By the right check of the right report, as a warning or worse."""
    if fault.name == "missing index" and db.postgres.server_version < GENERIC_PLANS:
        pytest.skip("needs the plans of PostgreSQL 16")
    with fault.made(Scene(db, monkeypatch, wait_until)) as facts:
        assert_said(facts.pop("db", db), fault.said, facts, wait_until, fault.given)


# -- a server of its own --------------------------------------------------------------------------

OLD = 1145 * 1_048_576  # transactions: begin of a file of pg_xact, which must exist within one


@pytest.fixture(scope="module")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A server with little memory, few statements to remember, and a long life behind it."""
    home = tmp_path_factory.mktemp("ailing") / ".fwdb"
    url = up_postgres(home, idle_minutes=0).superuser or ""
    programs = Path(psutil.Process(pid(home)).exe()).parent
    data = Path(ask(url, "SHOW data_directory"))
    embedded.down(home)
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(
            "shared_buffers = '1MB'\n"
            "pg_stat_statements.max = 100\n"
            "autovacuum_freeze_max_age = 2000000000\n"  # or vacuum would make it young at once
        )
    owner = data.stat()
    subprocess.run(
        [programs / "pg_resetwal", "-x", str(OLD), data],
        check=True,
        capture_output=True,
        **(
            {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
            if os.geteuid() == 0
            else {}
        ),
    )
    url = up_postgres(home, idle_minutes=0).superuser or ""
    with closing(PostgresStore(url)) as store:
        migrating.migrate(store, None)
    yield home, url
    embedded.remove(home)


@pytest.fixture
def ailing_db(ailing: tuple[Path, str], mongodb_database: str) -> Iterator[Database]:
    with Database(
        PostgresStore(ailing[1]), MongoStore(mongodb_database), settings=config.settings()
    ) as found:
        migrating.migrate(None, found.mongodb)
        yield found


def test_statements_that_are_forgotten_are_counted(
    ailing_db: Database, wait_until: Callable[..., None]
) -> None:
    """Three times as many as the server keeps: the report says that its totals are too low."""
    ailing_db.monitor.sample("full")
    with ailing_db.postgres.connection():
        for number in range(300):
            ailing_db.postgres.rows(
                sa.text(f"SELECT 1 AS n{number}, {number} AS m FROM pg_am a{number}")
            )
    said = Said(
        "slow_queries.coverage",
        "entries evicted",
        "ALTER SYSTEM SET pg_stat_statements.max = 200;",
    )
    assert_said(ailing_db, (said,), {}, wait_until, WINDOW)


def test_a_cache_that_is_too_small_is_named_with_who_reads(
    ailing_db: Database, wait_until: Callable[..., None]
) -> None:
    """The ratio, and the statement for which most blocks had to be read."""
    store = ailing_db.postgres
    store.execute(
        sa.text("CREATE TABLE wide AS SELECT repeat('x', 900) t FROM generate_series(1, 9000)")
    )
    ailing_db.monitor.sample("full")
    for _ in range(20):
        store.rows(sa.text("SELECT count(t) FROM wide"))
    said = (
        Said("slow_queries.cache", "`SELECT count(t) FROM wide` read ", "order=io"),
        Said(
            "health.cache", " % of the blocks PostgreSQL wanted were in its cache", "slow_queries"
        ),
    )
    assert_said(ailing_db, said, {}, wait_until, WINDOW)


def test_old_transaction_numbers_are_named_with_their_database(
    ailing_db: Database, wait_until: Callable[..., None]
) -> None:
    """More than half of the way to wraparound."""
    ailing_db.monitor.sample("full")
    said = Said("health.wraparound", "56 % of the way to wraparound (1,200,", "VACUUM (FREEZE)")
    assert_said(ailing_db, (said,), {}, wait_until)


def test_a_frozen_server_does_not_hold_up_a_report(
    ailing: tuple[Path, str],
    ailing_db: Database,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., None],
) -> None:
    """It is missing from it, with the reason; the other one is there."""
    monkeypatch.setattr(known, "ANSWER_SECONDS", 0.5)
    reports.open_report("health", db=ailing_db)  # leaves open connections behind
    leader = psutil.Process(pid(ailing[0]))
    processes = [leader, *leader.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        report = reports.open_report("health", db=ailing_db)
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    # The question that was open is answered now, and leaves its connection to be closed.
    wait_until(lambda: ailing_db.health().stores[0].status == "up")
    status = {(c.id, c.database): c for c in report.result.checks}

    gone = status["health.reachable", "postgres"]
    assert gone.status == "not_available"
    assert "no answer from postgres at 127.0.0.1" in gone.sentence
    assert status["health.answer", "mongodb"].status == "ok"
    assert report.result.verdict == "warning"


# -- and without a fault --------------------------------------------------------------------------


WORK = {
    *("get_user", "page_catalog", "recent_audit", "trail_of_user", "change_price", "read_profile"),
    *("create_avatar", "get_design", "designs_of_user", "edit_design"),
}  # of the workload: the rest is slow or fails on purpose


def test_a_healthy_run_raises_nothing_in_any_report(db: Database) -> None:
    """Readers, writers and an idle program.

    Not compared with a window before: of many statements one or two are slower by chance, and
    how seldom is measured in `test_query_changes.py`.
    """
    db.seeder.seed_scale(30, audit_rows=1_000)
    # The server is shared with other tests, whose statements fill what it can remember.
    db.postgres.rows(sa.text("SELECT pg_stat_statements_reset()"))
    operations = Operations(db.postgres, db.mongodb, db.audit)
    offered = (*operations.reading(), *operations.writing(), *operations.designing())
    choices = [one for one in offered if one.name in WORK]

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(6):
            for operation in rng.sample(choices, len(choices)):
                operation.act(rng)

    db.monitor.sample("full")
    with db.audit.following(), ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    db.monitor.sample("full")
    # A busy machine is slow, which is no fault of ours: the line for a mean is far away.
    given: dict[str, dict[str, Any]] = {"slow_queries": {"min_ms": 60_000.0}}
    with db.audit.following(), application(db, "idle") as idle:
        idle.postgres.ping()
        found = [
            reports.open_report(name, db=db, since="1h", **given.get(name, {}))
            for name in reports.NAMES
        ]

    assert len(choices) == len(WORK)
    for report in found:
        assert not [c for c in report.result.checks if c.status in ("warning", "critical")]
        assert report.result.verdict == "ok", report


def test_a_moments_wait_for_a_lock_is_no_fault(
    db: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """Busy servers have one at any time; `lock chain` lowers the line that it is under."""
    with monkeypatch.context() as patch, lock_chain(Scene(db, patch, wait_until)):
        lower(db, "health.blocked.seconds=3600:7200")
        (check,) = checks_of(db, Said("health.blocked", "", ""), {})

    assert (check.status, check.value) == ("ok", 2)
