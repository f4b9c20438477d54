"""The servers at scrape time: what is not known is absent, and one question hides no other."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from support.urls import url_of

from fwdb.errors import FwdbError, QueryError
from fwdb.metrics import probes
from fwdb.metrics.series import BY_NAME, POOL_STATES, PROBES, SERIES
from fwdb.stores import PostgresStore

DOWN_POSTGRES = "postgresql://ana:s3cret@127.0.0.1:1/nothing"


def test_every_series_of_the_contract_and_no_other(module_db, scrape):
    """Names, types and labels are those of the list, and so are the words of probes and states."""
    module_db.users.count()
    exposed = scrape(module_db)
    samples = [sample for family in exposed.families for sample in family.samples]
    for label, words in (("probe", PROBES), ("state", POOL_STATES)):
        assert {s.labels[label] for s in samples if label in s.labels} == set(words)

    for family in exposed.families:
        name = family.name + ("_total" if family.type == "counter" else "")
        series = BY_NAME[name]
        assert (family.type, family.documentation) == (series.kind, series.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(series.labels)
    assert len(exposed.families) == len(SERIES)


def test_what_is_not_known_is_absent(scrape, monkeypatch, alone):
    """No replica has no lag; the built-in MongoDB does not tell of its cache; the first scrape has
    nothing to compare with, and an idle server no ratio: 0 would be an alarm, 1 a lie. Questions
    were answered all the same. Replicas that should be there are told beside those that are."""
    with alone() as db:
        exposed = scrape(db)
        assert scrape(db).each("db_cache_hit_ratio") == []
    monkeypatch.setenv("FWDB_EXPECTED_REPLICAS", "2")
    with alone() as db:
        expecting = scrape(db)

    assert exposed.each("db_replication_lag_seconds") == []
    assert exposed.each("db_cache_hit_ratio") == []
    assert exposed.each("db_cache_reads_total", database="mongodb") == []
    assert exposed.each("db_replication_replicas") == [0, 0]
    assert exposed.each("db_replication_replicas_expected") == []
    assert expecting.each("db_replication_replicas_expected") == [2]
    assert exposed.each("db_schema_current") == [1]
    assert exposed.each("fwdb_probe_success") == [1] * 10
    assert exposed.each("db_health_status") == [1, 1]
    assert exposed.each("db_health_degraded") == [0, 0]


def test_the_cache_ratio_is_that_of_the_time_between_scrapes(db, scrape, wait_until):
    """And the counter behind it grows by what was asked for."""
    db.postgres.execute(sa.text("CREATE TABLE wide AS SELECT generate_series(1, 200000) AS n"))
    before = scrape(db)

    def found() -> list[float]:
        db.postgres.rows(sa.text("SELECT count(*) AS n FROM wide"))
        return scrape(db).each("db_cache_hit_ratio", database="postgres")

    wait_until(found, what="the server's statistics arrive late")
    after = scrape(db)

    (ratio,) = after.each("db_cache_hit_ratio", database="postgres")
    assert 0 < ratio <= 1
    reads = "db_cache_reads_total"
    assert after(reads, result="hit") - before(reads, result="hit") >= 800


def test_the_ratio_covers_thirty_seconds_or_the_time_since_the_scrape_before():
    """Two scrapers a second apart see the same window, not the last second."""
    clock = [0.0]
    window = probes._Window()

    def base(at: float) -> float | None:
        clock[0] = at
        return window.before(at)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        found = [base(at) for at in (0, 1, 15, 29, 30, 31, 45, 200)]

    assert found == [None, 0, 0, 0, 0, 1, 15, 45]


def test_a_server_that_is_down_hides_nothing_else(scrape, alone):
    """It shows as down and as questions that failed; the other store and all counts stay."""
    with alone(DOWN_POSTGRES) as db:
        db.designs.count()
        db.metrics.track("postgres", "findUser", lambda: None)
        exposed = scrape(db)

    assert exposed.each("db_health_status", database="postgres") == [0]
    assert exposed.each("db_health_status", database="mongodb") == [1]
    for probe in ("cache", "replication", "schema", "audit"):
        assert exposed.each("fwdb_probe_success", database="postgres", probe=probe) == [0]
    assert exposed.each("fwdb_probe_success", probe="health") == [1, 1]
    assert exposed.each("fwdb_probe_success", database="mongodb") == [1, 1, 1, 1]
    for name in ("db_cache_reads_total", "db_schema_current", "db_replication_replicas"):
        assert exposed.each(name, database="postgres") == []
    assert exposed("db_queries_total", operation="findUser") == 1
    assert exposed("db_queries_total", database="mongodb") == 1


def test_gauges_of_a_server_that_went_away_do_not_stay(scrape, monkeypatch, alone):
    """The last value of a dead server is not its value now; counts only grow."""
    with alone() as watched:
        watched.users.count()
        alive = scrape(watched)
        watched.metrics._probes.postgres.close()
        monkeypatch.setattr(watched.metrics._probes, "postgres", PostgresStore(DOWN_POSTGRES))
        dead = scrape(watched)

    assert alive.each("db_schema_current") == [1]
    assert dead.each("db_schema_current") == []
    assert len(alive.each("fwdb_audit_months_ahead")) == 1
    assert dead.each("fwdb_audit_months_ahead") == []
    assert dead.each("db_cache_reads_total", database="postgres") == []
    last = "fwdb_probe_last_success_timestamp_seconds"
    assert dead.each(last, probe="schema") == alive.each(last, probe="schema")
    assert dead("db_queries_total", operation="select") == 1


def test_a_silent_server_costs_the_deadline_and_one_thread(scrape, monkeypatch, alone):
    """However often it is scraped: a question that is open is waited for, not asked again."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        port = listener.getsockname()[1]
        with alone(f"postgresql://x@127.0.0.1:{port}/x", f"mongodb://127.0.0.1:{port}") as db:
            monkeypatch.setattr(probes, "DEADLINE_SECONDS", 0.2)
            for _ in range(3):
                exposed = scrape(db)
            asking = [t for t in threading.enumerate() if t.name.startswith("fwdb-metrics-")]

    assert exposed("fwdb_probe_success") == 0
    assert exposed.each("db_health_status") == []  # not known yet within this short deadline
    assert len(exposed.each("db_connection_pool_size")) == 8
    assert len(asking) <= 10


def test_eight_scrapes_at_once_ask_once():
    """All others wait for the one that asks and take its answers."""
    asked, begun, again = [], threading.Barrier(8, timeout=30), threading.Event()

    def ask() -> int:
        asked.append(1)
        if len(asked) > 1:
            again.set()
        again.wait(0.2)
        return len(asked)

    def read() -> int:
        begun.wait()
        return shared.read()

    shared = probes.Shared(ask, 30)
    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(read) for _ in range(8)]]
    shared.max_age = -1

    assert (found, shared.read()) == ([1] * 8, 2)


@pytest.mark.parametrize("error", [QueryError("refused"), KeyError("unforeseen")])
def test_trouble_is_logged_once_and_again_after_it_was_well(error, caplog):
    """Not at every scrape, and never to the caller: whatever goes wrong, the rest is scraped."""
    failing = [True]

    def ask() -> list[probes.Reading]:
        if failing[0]:
            raise error
        return []

    probe = probes.ScrapeProbe("cache", ("postgres",), ask)
    with caplog.at_level(logging.WARNING):
        for state in (True, True, False, True):
            failing[0] = state
            success = ("fwdb_probe_success", ("postgres", "cache"), not state)
            assert success in probes.read([probe], 30)

    assert len(caplog.records) == 2
    assert all(bool(r.exc_info) == isinstance(error, KeyError) for r in caplog.records)


def test_pools_of_several_servers_are_full_and_not_more(scrape, alone, monkeypatch):
    """MongoDB's driver has a pool for each server, whose sum can pass the capacity of one."""
    with alone() as db:
        pool = dataclasses.replace(db.mongodb.pool(), capacity=3, in_use=5)
        monkeypatch.setattr(db.mongodb, "pool", lambda: pool)

        assert scrape(db)("db_connection_pool_utilization", database="mongodb") == 100


def test_a_pool_beyond_its_size_is_full_and_not_more(scrape, wait_until, alone):
    """In use out of all that it may open, never above 100 %, and who waits is counted."""
    settings = {"pool_size": 2, "pool_max_overflow": 1, "pool_timeout_seconds": 30}
    with alone(**settings) as db:
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(db.postgres.connection())
            waiter = threading.Thread(target=db.users.count, daemon=True)
            waiter.start()
            wait_until(lambda: db.postgres.pool().waiting)
            full = scrape(db)
        waiter.join()
        after = scrape(db)

    size, used = "db_connection_pool_size", "db_connection_pool_utilization"
    assert full.each(used, database="postgres") == [100]
    assert full.each("db_connection_pool_capacity", database="postgres") == [3]
    states = {s: full(size, database="postgres", state=s) for s in ("total", "active", "idle")}
    assert states == {"total": 3, "active": 3, "idle": 0}
    assert full(size, database="postgres", state="waiting") == 1
    assert full("db_health_degraded", database="postgres") == 1
    assert full("db_health_status", database="postgres") == 1
    assert after(size, database="postgres", state="waiting") == 0
    assert after("db_connection_pool_waits_total", database="postgres") == 1
    waited = after("db_connection_pool_waited_seconds_total", database="postgres")
    assert after("db_connection_pool_wait_duration_seconds_sum", database="postgres") == waited > 0
    counts = {
        part: after(f"db_connection_pool_{part}_duration_seconds_count", database="postgres")
        for part in ("wait", "hold", "dial")
    }
    assert counts == {"wait": 1, "hold": 4, "dial": 3}
    buckets = after.each("db_connection_pool_hold_duration_seconds_bucket", database="postgres")
    assert buckets == sorted(buckets)
    assert buckets[-1] == 4


def test_a_pool_without_a_limit_has_no_utilisation(module_db, scrape, alone):
    """No share of what has no end is in use."""
    joined = "&" if "?" in url_of(module_db.mongodb) else "?"
    unlimited = f"{url_of(module_db.mongodb)}{joined}maxPoolSize=0"
    with alone(mongodb=unlimited) as db:
        db.designs.count()
        exposed = scrape(db)

    assert exposed.each("db_connection_pool_utilization", database="mongodb") == []
    assert exposed.each("db_connection_pool_capacity", database="mongodb") == []
    assert exposed.each("db_connection_pool_size", database="mongodb", state="total") == [1]


def test_an_older_server_answers_every_question(postgres15, scrape, alone):
    """One without fwdb's schema too: that is known, and said."""
    with alone(postgres15) as db:
        db.postgres.rows(sa.text("SELECT 1 AS one"))
        exposed = scrape(db)

    assert set(exposed.each("fwdb_probe_success")) == {1}
    assert exposed.each("db_schema_current") == [0]
    assert exposed("db_cache_reads_total", database="postgres") > 0
    assert exposed("db_queries_total", database="postgres") == 1


def test_the_first_scrapes_of_many_threads_make_one_pool(alone):
    """Each question has a connection, and each scrape takes the same ones."""
    count = sa.text(
        "SELECT count(*) AS n FROM pg_stat_activity "
        "WHERE application_name = 'fwdb-metrics' AND datname = current_database()"
    )
    with alone() as db:
        before = db.postgres.rows(count)[0]["n"]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: db.metrics.text(), range(8)))

        assert 1 <= db.postgres.rows(count)[0]["n"] - before <= 3


def test_audit_entries_and_folded_names_are_counted(scrape, alone):
    """Entries by action, and those that could not be written, which somebody must hear of; and
    names beyond the first hundred, so that somebody notices that they are made from data."""
    id = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
    with alone() as db:
        db.audit.log_read("User", id)
        db.audit.log_create("Avatar", id, {"name": "x"})
        with db.transaction():
            db.postgres.execute(sa.text("SET TRANSACTION READ ONLY"))
            with pytest.raises(FwdbError):
                db.audit.log_read("User", id)
        for n in range(103):
            db.metrics.track("mongodb", f"user {n}", lambda: None)
        exposed = scrape(db)

    counted = {a: exposed("fwdb_audit_records_total", action=a) for a in ("READ", "CREATE")}
    assert counted == {"READ": 1, "CREATE": 1}
    assert exposed.each("fwdb_audit_records_total", action="DELETE") == [0]
    assert exposed("fwdb_audit_failures_total") == 1
    assert exposed("fwdb_labels_folded_total", metric="db_query_duration_seconds") == 3
    assert exposed("db_queries_total", operation="other") == 3


def test_what_the_trail_lacks_is_told_by_kind(db, scrape):
    """A right that somebody gave, a month that is missing, a change that nobody claims. Catalogs
    are read anew after a time only: a scrape must not ask for every column each time."""
    db.audit.log_create("Avatar", "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", {"name": "x"})
    rows = db.postgres.rows("audit_coverage_months", months=3)
    db.postgres.execute(sa.text(f"DROP TABLE {rows[2]['table_name']}"))
    name = "fwdb_audit_uncovered"
    assert scrape(db).each(name, kind="right") == [0]
    db.postgres.execute(sa.text("GRANT UPDATE (reason) ON audit.audit_logs TO PUBLIC"))
    assert scrape(db).each(name, kind="right") == [0]
    db.metrics._probes._trail.max_age = -1
    exposed = scrape(db)

    assert exposed.each(name, kind="right") == [1]
    assert exposed.each(name, kind="partition_ahead") == [0]
    assert exposed.each(name, database="mongodb", kind="follower") == [1]
    assert exposed.each("fwdb_audit_months_ahead") == [1]
    assert exposed("fwdb_audit_changes_without_actor") >= 1
    for absent in ("follower_lag_seconds", "gaps", "seal_age_seconds"):
        assert exposed.each(f"fwdb_audit_{absent}") == []
