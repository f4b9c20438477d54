"""The catalogue of faults: made on real servers, each is named by its report with its culprit.

Two faults of the catalogue in docs/monitoring.md are made elsewhere because they need a replica:
`test_replication.py` pauses the replay of a real one and stops it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fault_helpers as faults
import psutil
import pytest
import sqlalchemy as sa
from embedded_helpers import ask, pid, up_postgres
from fault_helpers import Facts, Scene

from fwdb import config, embedded, migrating, reports
from fwdb.database import Database
from fwdb.reports import asking, pool_checks
from fwdb.reports.results import Check
from fwdb.seeding.operations import Operations
from fwdb.stores import MongoStore, PostgresStore

GENERIC_PLANS = 160000  # PostgreSQL plans a statement without its values from 16 on


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
    said: tuple[Said, ...]
    given: dict[str, Any] = field(default_factory=dict)


WINDOW = {"since": "1h"}

FAULTS = (
    Fault(
        "lock chain",
        faults.lock_chain,
        tuple(
            Said(
                check,
                "2 sessions wait for session {root} of migration, idle in transaction",
                "pg_terminate_backend({root})",
            )
            for check in ("pool.blocked", "health.blocked")
        ),
    ),
    Fault(
        "idle in transaction",
        faults.idle_in_transaction,
        (
            Said(
                "pool.idle_in_transaction",
                "Session {pid} of forgetful has been idle inside a transaction",
                "idle_in_transaction_session_timeout",
            ),
            Said(
                "pool.idle_in_transaction",
                "`SELECT count(*) FROM shared.users WHERE email = ?`",
                "pg_terminate_backend({pid})",
            ),
        ),
    ),
    Fault(
        "leaked connection",
        faults.leaked_connection,
        (
            Said(
                "pool.holders",
                "1 PostgreSQL connection of this process was not returned",
                "with db.postgres.connection()",
            ),
            Said("pool.holders", "test_faults.py:", "Return it"),
        ),
    ),
    Fault(
        "pool too small",
        faults.pool_too_small,
        (
            Said(
                "pool.sizing",
                "the one of crowded (process {me}) may open 1",
                "FWDB_POOL_MAX_OVERFLOW",
            ),
            Said(
                "pool.waiting",
                "Callers of crowded (process {me}) had to wait for a PostgreSQL connection",
                "Find what holds PostgreSQL connections",
            ),
        ),
    ),
    Fault(
        "queue with time-outs",
        faults.queue_with_timeouts,
        (
            Said(
                "pool.timeouts",
                "2 callers of queueing (process {me}) gave up waiting for a PostgreSQL connection",
                "free or add PostgreSQL connections",
            ),
            Said(
                "pool.utilisation",
                "The PostgreSQL pool of queueing (process {me}) was 100 % full",
                "Shorten its transactions",
            ),
        ),
    ),
    Fault(
        "limit of the database",
        faults.limit_of_the_database,
        (
            Said(
                "pool.session_limits",
                "sessions of the database {name} are taken",
                "ALTER DATABASE {name} CONNECTION LIMIT 2",
            ),
        ),
    ),
    Fault(
        "missing index",
        faults.missing_index,
        (
            Said(
                "slow_queries.mean",
                "`SELECT sum(n) FROM orders WHERE buyer = $1`",
                "CREATE INDEX CONCURRENTLY ON orders (buyer);",
            ),
        ),
        WINDOW | {"min_ms": 0.5},
    ),
    Fault(
        "spill to disk",
        faults.spill_to_disk,
        (
            Said(
                "slow_queries.spill",
                "`SELECT n FROM orders ORDER BY -n",
                "SET work_mem = '8MB'",
            ),
        ),
        WINDOW | {"order": "temp"},
    ),
    Fault(
        "slower statement",
        faults.slower_statement,
        (
            Said(
                "slow_queries.regression",
                "times as long (95 % ",
                "Look at what changed in the application",
            ),
            Said("slow_queries.regression", "for `SELECT price($1)`", "query_changes"),
        ),
        WINDOW | {"compare_since": "2h"},
    ),
    Fault(
        "N+1 pattern",
        faults.once_for_each_row,
        (
            Said(
                "slow_queries.repeated",
                "`SELECT id FROM lines WHERE order_id = $1` was called 1\u202f200 times, once for "
                "each row that `SELECT id FROM orders` returned (N+1)",
                "JOIN",
            ),
        ),
        WINDOW,
    ),
    Fault(
        "collection scan",
        faults.collection_scan,
        (
            Said(
                "slow_queries.mean",
                "`orders.find({{buyer: ?}})`",
                ".explain('executionStats')",
                database="mongodb",
            ),
        ),
        WINDOW | {"min_ms": 0.01},
    ),
    Fault(
        "long transaction",
        faults.vacuum_held,
        (
            Said(
                "health.vacuum_held",
                "forgotten (process {pid}) has kept vacuum from removing dead rows",
                "pg_terminate_backend({pid})",
            ),
        ),
    ),
    Fault(
        "bloat",
        faults.bloat,
        (
            Said(
                "health.dead_rows",
                "50 % of the row versions in public.bloated are dead: 15\u202f000",
                "VACUUM (ANALYZE) public.bloated",
            ),
        ),
    ),
    Fault(
        "disabled trigger",
        faults.disabled_trigger,
        (
            Said(
                "health.triggers",
                "Trigger watch of shared.users is switched off",
                "ALTER TABLE shared.users ENABLE TRIGGER watch",
            ),
        ),
    ),
    Fault(
        "schema behind",
        faults.schema_behind,
        (
            Said("health.schema", "The database has no revision of fwdb", "fwdb migrate"),
            Said("health.answer", "PostgreSQL is degraded", "fwdb health"),
        ),
    ),
    Fault(
        "bad indexes",
        faults.bad_indexes,
        (
            Said(
                "health.invalid_indexes",
                "Index broken of public.t",
                "DROP INDEX CONCURRENTLY public.broken",
            ),
            Said(
                "health.duplicate_indexes",
                "Index two of public.t",
                "DROP INDEX CONCURRENTLY public.two",
            ),
        ),
    ),
    Fault(
        "unused index",
        faults.unused_index,
        (
            Said(
                "health.unused_indexes",
                "Index forgotten of public.t (1.1\u202fMB) was not used",
                "DROP INDEX CONCURRENTLY public.forgotten",
            ),
        ),
    ),
    Fault(
        "deadlock",
        faults.deadlock,
        (Said("health.deadlocks", "1 deadlock in the window", "Take locks in one order"),),
    ),
    Fault(
        "setting changed",
        faults.setting_changed,
        (
            Said(
                "health.changes",
                "Changed in the window: log_min_duration_statement from 100ms to 123ms",
                "",
                status=("ok",),
            ),
        ),
    ),
    Fault(
        "read-only database",
        faults.read_only_database,
        (
            Said(
                "health.answer",
                "takes no writes unless a session asks for them (default_transaction_read_only",
                "fwdb health",
            ),
        ),
    ),
    Fault(
        "slot without a reader",
        faults.slot_without_reader,
        (
            Said(
                "health.slots",
                "Slot left_behind, which no replica uses, keeps",
                "pg_drop_replication_slot('left_behind')",
            ),
            Said(
                "health.replicas",
                "replica of slot left_behind is not connected",
                "pg_drop_replication_slot('left_behind')",
            ),
        ),
    ),
)


def checks_of(db: Database, said: Said, given: dict[str, Any]) -> list[Check]:
    report = reports.open_report(said.check.partition(".")[0], db=db, **given)
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
        assert any(sentence in c.sentence for c in found), found
        assert any(c.status in said.status and action in c.action for c in found), found
        assert all(bool(c.action) == (c.status != "ok") for c in found if c.status in said.status)


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
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.5)
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
    operations = Operations(db.postgres, db.mongodb, db.audit)
    offered = (*operations.reading(), *operations.writing(), *operations.designing())
    choices = [one for one in offered if one.name in WORK]

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(6):
            for operation in rng.sample(choices, len(choices)):
                operation.act(rng)

    db.monitor.sample("full")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    db.monitor.sample("full")
    # A busy machine is slow, which is no fault of ours: the line for a mean is far away.
    given: dict[str, dict[str, Any]] = {"slow_queries": {"min_ms": 60_000.0}}
    with faults.application(db, "idle") as idle:
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
    with monkeypatch.context() as patch, faults.lock_chain(Scene(db, patch, wait_until)):
        patch.setattr(pool_checks, "BLOCKED_WARNING", 3600.0)
        (check,) = checks_of(db, Said("health.blocked", "", ""), {})

    assert (check.status, check.value) == ("ok", 2)
