"""The workload: every kind of operation and refusal, a pool that fills, and a clean end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from fwdb import config, errors
from fwdb.audit import Audit
from fwdb.database import Database
from fwdb.models import audit_logs
from fwdb.seeding import POOL, WorkloadResult, run_workload
from fwdb.stores import MongoStore, PostgresStore

READING = {
    "get_user", "page_catalog", "recent_audit", "trail_of_user",
    "search_audit", "sort_audit", "count_by_hour",
}  # fmt: skip
WRITING = {"change_price", "create_avatar", "delete_avatar", "read_profile"}
DESIGNING = {
    "get_design", "designs_of_user", "edit_design", "create_design",
    "search_designs",
}  # fmt: skip
REFUSED = {"take_email_twice", "lock_item_twice", "count_for_too_long", "store_design_twice"}


@pytest.fixture
def small(db: Database, mongodb_database: str) -> Iterator[Database]:
    """The database with a little history and with pools that fill soon."""
    db.seeder.seed_scale(30, audit_rows=1_000)
    settings = config.settings().model_copy(update=dict(POOL))
    url = db.postgres.url.render_as_string(hide_password=False)
    with Database(
        PostgresStore(url, settings=settings, application_name="workload"),
        MongoStore(mongodb_database, settings=settings),
        settings=settings,
    ) as database:
        yield database


def run(db: Database, **options) -> WorkloadResult:
    return run_workload(db.postgres, db.mongodb, db.audit, **options)


def in_transaction(db: Database) -> int:
    """Sessions of the workload that are in a transaction, as another session sees them."""
    statement = sa.text(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'workload'"
        " AND datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid()"
    )
    return db.postgres.rows(statement)[0]["n"]


def rows_of_trail(db: Database) -> int:
    statement = sa.select(sa.func.count().label("n")).select_from(audit_logs)
    return db.postgres.rows(statement)[0]["n"]


def test_everything_happens(small, db):
    """Each kind of operation is done, each kind of error met, readings are recorded, the pool
    fills.
    """
    before, said = rows_of_trail(db), []
    used, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            pool = small.postgres.pool()
            used.append((pool.utilisation_percent, pool.waiting))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = run(small, seconds=6, progress=said.append)
    finally:
        over.set()
        watcher.join()

    assert set(result.operations) == READING | WRITING | DESIGNING | REFUSED | {"hold_connection"}
    assert set(result.errors) == {"DuplicateKey", "Transient", "QueryTimeout"}
    assert sum(result.errors.values()) >= sum(result.operations[name] for name in REFUSED)
    assert result.seconds >= 6
    assert rows_of_trail(db) - before >= result.operations["read_profile"] > 0
    assert len(said) == 4
    # Nearly full for a part of the time only, and for a while more than full.
    high = sum(percent >= 80 for percent, _ in used) / len(used)
    assert 0.1 < high < 0.7
    assert max(waiting for _, waiting in used) > 0
    assert small.postgres.pool().in_use == 0
    assert in_transaction(db) == 0


def test_every_change_is_in_the_trail_once_with_who_made_it(small, db):
    """The workload writes no row of a change itself; the last one names the price that stands."""
    result = run(small, seconds=2, readers=0, writers=2)

    prices = db.postgres.rows(
        sa.text("""
            SELECT DISTINCT ON (i.id) i.price, CAST(a.new_values ->> 'price' AS integer) AS audited
            FROM catalog.catalog_items AS i JOIN audit.audit_logs AS a ON a.entity_id = i.id
            WHERE a.new_values ? 'price' AND a.action = 'UPDATE'
            ORDER BY i.id, a.created_at DESC, a.id DESC
        """)
    )
    trail = db.postgres.rows(
        sa.text("""
            SELECT entity_type, action, count(*) AS n, count(DISTINCT entity_id) AS entities,
                   bool_and(user_id IS NOT NULL AND ip_address IS NOT NULL) AS named
            FROM audit.audit_logs WHERE origin = 'trigger' AND reason IS DISTINCT FROM 'seed data'
            GROUP BY 1, 2
        """)
    )
    assert result.operations["change_price"] > 0
    assert prices
    assert all(row["price"] == row["audited"] for row in prices)
    assert {(row["entity_type"], row["action"]) for row in trail} == {
        ("CatalogItem", "UPDATE"),
        ("Avatar", "CREATE"),
        ("Avatar", "DELETE"),
    }
    assert all(row["named"] for row in trail)
    (made,) = (row for row in trail if row["action"] == "CREATE")
    assert made["n"] == made["entities"] >= result.operations["create_avatar"]


def test_designs_say_who_changed_them(small, db):
    """In the field that the follower of changes reads; the workload records no design itself."""
    logged = sa.text("SELECT count(*) AS n FROM audit.audit_logs WHERE entity_type = 'Design'")
    before = db.postgres.rows(logged)
    result = run(small, seconds=2, readers=0, writers=0)

    marks = [
        document["_audit"]
        for document in db.mongodb.collection("designs").find({"_audit.by": {"$exists": True}})
    ]
    assert len(marks) >= result.operations["create_design"] > 0
    assert all(mark.keys() == {"by", "ip", "userAgent", "nonce"} for mark in marks)
    assert len({mark["nonce"] for mark in marks}) == len(marks)
    assert db.postgres.rows(logged) == before


def test_an_event_stops_it_at_once(small, db, wait_until):
    """Long before its time, with no transaction left open."""
    stop = threading.Event()
    results: list[WorkloadResult] = []
    runner = threading.Thread(
        target=lambda: results.append(run(small, seconds=600, stop=stop)), daemon=True
    )
    runner.start()
    try:
        wait_until(lambda: small.postgres.pool().opened > 0)
    finally:
        stopped = time.monotonic()
        stop.set()
        runner.join(30)

    assert not runner.is_alive()
    assert time.monotonic() - stopped < 5  # the slow statements that ran may end, by 2 s
    assert results[0].seconds < 60
    assert in_transaction(db) == 0


def test_an_interrupt_stops_it_and_goes_on_to_the_caller(small, db):
    """Ctrl-C ends the threads before the caller hears of it."""

    def interrupt(sentence: str) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(small, seconds=2, progress=interrupt)

    assert not [t.name for t in threading.enumerate() if t.name.startswith("workload")]
    assert small.postgres.pool().in_use == 0
    assert in_transaction(db) == 0


def test_it_ends_after_the_most_operations(small):
    """Bounded in number as well as in time."""
    result = run(small, seconds=600, most_operations=40)

    assert sum(result.operations.values()) == 40


def test_an_error_that_was_not_meant_ends_it_and_is_raised(small, db, monkeypatch):
    """A trail that cannot be written is no part of the demonstration."""

    class Broken(Audit):
        def log_read(self, *arguments: object, **who: object) -> None:  # type: ignore[override]
            raise errors.InvalidData("the trail is broken.")

    with pytest.raises(errors.InvalidData, match="the trail is broken"):
        run_workload(small.postgres, small.mongodb, Broken(small.postgres), seconds=10)

    assert in_transaction(db) == 0


def test_a_refusal_that_does_not_come_is_an_error(small, monkeypatch):
    """The workload says so when the database takes what it should refuse."""
    monkeypatch.setattr("fwdb.seeding.workload._ENDLESS", sa.text("SELECT 1"))

    with pytest.raises(errors.FwdbError, match="'count_for_too_long' was to meet QueryTimeout"):
        run(small, seconds=10)


def test_a_large_pool_is_not_filled(db):
    """A hundred connections may be all a server has, so nobody holds them for show."""
    result = run(db, seconds=1)

    assert "hold_connection" not in result.operations


def test_without_data_it_says_what_to_do(db):
    """There is nobody to read or to change."""
    db.seeder.clear_all(confirm=True)

    with pytest.raises(errors.ParameterError, match=r"there are no users .*'fwdb seed'"):
        run(db, seconds=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seconds": 0}, "'seconds' is 0; give a number above 0 up to 86,400."),
        ({"seconds": -1}, "'seconds' is -1; give a number above 0 up to 86,400."),
        (
            {"seconds": float("nan")},
            "'seconds' is nan; give a number above 0 up to 86,400.",
        ),
        ({"readers": 65}, "'readers' is 65; give a whole number from 0 to 64."),
        ({"writers": -1}, "'writers' is -1; give a whole number from 0 to 64."),
        (
            {"most_operations": 0},
            "'most_operations' is 0; give a whole number from 1 to 10,000,000.",
        ),
    ],
)
def test_a_number_out_of_range_is_refused(options, sentence):
    """Before a server is asked anything."""
    postgres = PostgresStore("postgresql://127.0.0.1:1/none")
    mongodb = MongoStore("mongodb://127.0.0.1:1/none")

    with pytest.raises(errors.ParameterError) as refusal:
        run_workload(postgres, mongodb, Audit(postgres), **options)

    assert str(refusal.value) == f"run_workload(): {sentence}"
