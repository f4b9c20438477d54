"""Statements of a window: right under resets, evictions, nesting and missing rights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb import migrating
from fwdb.errors import (
    FeatureUnavailable,
    FwdbError,
    ParameterError,
    StoreUnavailable,
    UnknownName,
)
from fwdb.monitoring import Monitor
from fwdb.monitoring.differences import HIDDEN, StatementReading, difference
from fwdb.monitoring.slow_queries import COLUMNS
from fwdb.monitoring.windows import moments
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.commands import MOST_SHAPES, CommandTimes, shape
from fwdb.stores.timing import QueryTimes

WORDS = (
    "apples", "cherries", "dates", "figs", "hidden_one", "kiwis", "grapes", "lemons", "limes",
    "melons", "mended", "other", "pears", "plums", "rest",
)  # fmt: skip
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def watched(request: pytest.FixtureRequest, servers: Any) -> Iterator[PostgresStore]:
    """A migrated database of its own, on each PostgreSQL there is."""
    admin = (
        servers.postgres if request.param == "postgres18" else request.getfixturevalue("postgres15")
    )
    name = f"test_slow_{request.param}_{time.time_ns()}"
    server = PostgresStore(admin)
    server.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.url.set(database=name, drivername="postgresql")
    store = PostgresStore(url.render_as_string(hide_password=False))
    migrating.migrate(store, None)
    for word in WORDS:
        store.execute(sa.text(f"CREATE TABLE {word} ()"))
    yield store
    store.close()
    server.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.close()


@pytest.fixture
def mongodb(mongodb_database: str) -> Iterator[MongoStore]:
    store = MongoStore(mongodb_database)
    yield store
    store.close()


@pytest.fixture
def monitor(watched: PostgresStore, mongodb: MongoStore) -> Iterator[Monitor]:
    """Of a database without history and without counted statements."""
    watched.execute(sa.text("TRUNCATE monitoring.readings CASCADE"))
    watched.execute(sa.text("TRUNCATE monitoring.statement_texts"))
    forget(watched)
    found = Monitor(watched, mongodb)
    yield found
    found.close()


def forget(store: PostgresStore, query_id: int = 0) -> None:
    """Remove this database's entries from pg_stat_statements, or one of them."""
    store.rows(
        sa.text(
            "SELECT pg_stat_statements_reset(0, oid, :query_id) "
            "FROM pg_database WHERE datname = current_database()"
        ),
        query_id=query_id,
    )


def run(store: PostgresStore, word: str, times: int, seconds: float = 0) -> None:
    """The statement recognised by its table `word`: names of columns make no other statement."""
    statement = sa.text(f"SELECT pg_sleep(:seconds), (SELECT count(*) FROM {word})")
    for _ in range(times):
        store.rows(statement, seconds=seconds)


def found(frame: pd.DataFrame, word: str) -> pd.Series:
    rows = frame[frame["statement"].str.contains(f"FROM {word})", regex=False)]
    assert len(rows) == 1, rows
    return rows.iloc[0]


# -- the window ---------------------------------------------------------------------------------


def test_only_what_ran_in_the_window_counts(watched: PostgresStore, monitor: Monitor) -> None:
    """The server counts since its entry began; the window begins at the first reading in it."""
    run(watched, "apples", 5)
    monitor.sample("full")
    run(watched, "apples", 2)
    monitor.sample("full")
    second = monitor.readings()["read_at"].iloc[-1]
    run(watched, "apples", 3)

    assert found(monitor.slow_queries(min_ms=0), "apples")["calls"] == 5
    assert found(monitor.slow_queries(since=second, min_ms=0), "apples")["calls"] == 3


def test_a_statement_that_did_not_run_in_the_window_is_gone(
    watched: PostgresStore, monitor: Monitor
) -> None:
    """A slow statement that was mended must not be reported for ever."""
    run(watched, "mended", 1, 0.15)
    monitor.sample("full")
    run(watched, "other", 1, 0.15)
    frame = monitor.slow_queries(min_ms=100)

    assert len(frame) == 1
    assert found(frame, "other")["calls"] == 1


def test_mean_deviation_and_share_are_those_of_the_window(
    watched: PostgresStore, monitor: Monitor
) -> None:
    """Derived from sums: 20 and 220 ms give 120 and 100, whatever ran before."""
    run(watched, "pears", 3, 0.02)
    monitor.sample("full")
    run(watched, "pears", 1, 0.02)
    run(watched, "pears", 1, 0.22)
    run(watched, "rest", 1, 0.02)
    frame = monitor.slow_queries(min_ms=50)
    pears = found(frame, "pears")

    # A busy computer adds to each; with the three before, the mean would be 60.
    assert 120 <= pears["mean_ms"] < 180
    assert 70 < pears["stddev_ms"] < 130
    assert pears["total_ms"] == pytest.approx(2 * pears["mean_ms"])
    assert pears["rows"] == 2
    assert 75 < pears["share_percent"] < 97  # of 260 ms, the 20 below the line included
    assert frame.attrs["totals"]["postgres"]["total_ms"] > pears["total_ms"]


def test_a_closed_window_ends_at_its_last_reading(watched: PostgresStore, monitor: Monitor) -> None:
    """What ran after `until` is not in it."""
    for times in (0, 2, 4):
        run(watched, "plums", times)
        monitor.sample("full")
    watched.execute(sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '1 hour'"))
    until = monitor.readings()["read_at"].iloc[1]
    frame = monitor.slow_queries(since="2h", until=until, min_ms=0)

    assert found(frame, "plums")["calls"] == 2
    assert frame.attrs["window"]["until"] == until


def test_an_end_just_now_is_now(watched: PostgresStore, monitor: Monitor) -> None:
    """A report fixes its end before it asks; one stored reading is enough for it."""
    monitor.sample("full")
    run(watched, "figs", 2)

    assert found(monitor.slow_queries(until="10s", min_ms=0), "figs")["calls"] == 2


def test_live_sampling_needs_no_history(watched: PostgresStore, mongodb: MongoStore) -> None:
    """Two readings in this process, also where nothing may be stored."""
    monitor = Monitor(watched, mongodb)
    thread = threading.Timer(0.1, lambda: run(watched, "cherries", 2, 0.05))
    thread.start()
    frame = monitor.slow_queries(live_seconds=0.6, min_ms=0)
    thread.join()
    monitor.close()

    assert found(frame, "cherries")["calls"] == 2
    since, until = frame.attrs["windows"]["postgres"]
    assert timedelta(seconds=0.5) < until - since < timedelta(seconds=3)


@pytest.mark.parametrize("readings", [0, 1])
def test_a_window_without_two_readings_has_no_data(
    monitor: Monitor, watched: PostgresStore, readings: int
) -> None:
    """No rows, the same columns and types, and what would make data."""
    for _ in range(readings):
        monitor.sample("full")
    watched.execute(sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '1 hour'"))
    frame = monitor.slow_queries(since="2h", until="30m")
    filled = _filled(watched, monitor)

    assert frame.empty
    assert frame.attrs["status"] == "no_data"
    assert "fwdb monitor" in frame.attrs["missing"]["postgres"]
    assert frame.dtypes.to_dict() == filled.dtypes.to_dict()


def _filled(store: PostgresStore, monitor: Monitor) -> pd.DataFrame:
    monitor.sample("full")
    run(store, "grapes", 1)
    frame = monitor.slow_queries(min_ms=0)
    assert len(frame)
    return frame


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "1h", "until": "2h"}, "since"),
        ({"top": 0}, "top"),
        ({"live_seconds": 0}, "live_seconds"),
    ],
)
def test_a_window_that_cannot_be_is_refused(
    monitor: Monitor, arguments: dict[str, Any], word: str
) -> None:
    """By name, before anything is asked."""
    with pytest.raises(ParameterError, match=word):
        monitor.slow_queries(**arguments)


# -- counters that begin anew -------------------------------------------------------------------


def test_a_reset_of_all_between_the_readings(watched: PostgresStore, monitor: Monitor) -> None:
    """Counts what came after the reset, and says that it is a lower bound."""
    run(watched, "limes", 7)
    monitor.sample("full")
    watched.rows(sa.text("SELECT pg_stat_statements_reset()"))
    run(watched, "limes", 3)
    frame = monitor.slow_queries(min_ms=0)

    assert found(frame, "limes")["calls"] == 3
    assert found(frame, "limes")["lower_bound"]
    assert not frame.attrs["coverage"]["postgres"]["complete"]
    assert "reset" in frame.attrs["coverage"]["postgres"]["sentence"]


def test_a_reset_of_one_statement_between_the_readings(
    watched: PostgresStore, monitor: Monitor
) -> None:
    """The time of the last reset of all does not move then; the entry itself tells."""
    run(watched, "lemons", 7)
    run(watched, "melons", 2)
    monitor.sample("full")
    query_id = int(
        watched.rows(
            sa.text("SELECT queryid FROM pg_stat_statements WHERE query LIKE '%FROM lemons)%'")
        )[0]["queryid"]
    )
    forget(watched, query_id)
    recent = watched.server_version >= 170000
    # Without stats_since only a smaller count betrays the reset.
    again = 9 if recent else 4
    run(watched, "lemons", again)
    run(watched, "melons", 3)
    frame = monitor.slow_queries(min_ms=0)

    assert found(frame, "lemons")["calls"] == again
    assert found(frame, "lemons")["lower_bound"]
    assert found(frame, "melons")["calls"] == 3
    assert not found(frame, "melons")["lower_bound"]
    assert frame.attrs["coverage"]["postgres"]["restarted"] == 1


NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def reading(
    minutes: float, *entries: dict[str, Any], dealloc: int = 0, **more: Any
) -> StatementReading:
    return StatementReading(
        read_at=NOON + timedelta(minutes=minutes),
        server_started_at=more.get("server_started_at", NOON - timedelta(days=1)),
        stats_reset=more.get("stats_reset"),
        database_reset_at=more.get("database_reset_at"),
        dealloc=dealloc,
        max_entries=100,
        io_timed=True,
        plans_timed=False,
        transactions=more.get("transactions", 0),
        active_ms=more.get("active_ms", 0.0),
        rows=StatementReading.keyed(entries),
    )


def entry(calls: int, since: float | None = -60, **more: Any) -> dict[str, Any]:
    return {
        "user_id": 10,
        "database_id": 5,
        "toplevel": True,
        "query_id": 1,
        "calls": calls,
        "total_ms": 10.0 * calls,
        "squares_ms2": 100.0 * calls,
        "row_count": calls,
        "hit_blocks": calls,
        "read_blocks": 0,
        "read_ms": 0.0,
        "temp_blocks": 0,
        "wal_bytes": 0,
        "plan_ms": 0.0,
        "stats_since": None if since is None else NOON + timedelta(minutes=since),
        **more,
    }


def test_an_entry_that_was_dropped_and_came_back_counts_in_full() -> None:
    """1 call before, 60 after the return: 60, not 59."""
    shapes, coverage = difference(reading(0, entry(1)), reading(10, entry(60, 5), dealloc=3))

    assert shapes[1].calls == 60
    assert shapes[1].lower_bound
    assert (coverage.restarted, coverage.dealloc) == (1, 3)
    assert "pg_stat_statements.max" in coverage.sentence


def test_an_entry_that_went_away_is_counted_as_lost() -> None:
    """Nothing is known of its calls; that there were some, is said."""
    shapes, coverage = difference(reading(0, entry(5)), reading(10, dealloc=1))

    assert not shapes
    assert coverage.lost == 1
    assert not coverage.complete


def test_a_new_entry_counts_in_full_only_if_it_began_in_the_window() -> None:
    """An older one that the first reading did not show has an unknown part before the window."""
    shapes, coverage = difference(
        reading(0),
        reading(10, entry(4, 3), entry(9, -30, query_id=2), entry(6, None, query_id=3)),
    )

    assert {key: s.calls for key, s in shapes.items()} == {1: 4, 3: 6}
    assert coverage.unknown == 1


def test_before_postgres_17_a_smaller_counter_tells_a_reset() -> None:
    """In any of the counters: 8 calls after 5 may be 8 new ones."""
    first = reading(0, entry(5, None, row_count=50))
    shapes, _ = difference(first, reading(10, entry(8, None, row_count=8)))

    assert shapes[1].calls == 8
    assert shapes[1].lower_bound


def test_before_postgres_17_a_reset_of_all_is_seen_by_its_time() -> None:
    """Counters that grew past their old values again would hide it."""
    first = reading(0, entry(5, None), stats_reset=NOON - timedelta(days=1))
    second = reading(10, entry(9, None), stats_reset=NOON + timedelta(minutes=5))
    shapes, coverage = difference(first, second)

    assert shapes[1].calls == 9
    assert coverage.emptied


def test_statements_inside_functions_are_not_counted_twice() -> None:
    """Their time is in the statement that called the function, maybe under the same id."""
    first = reading(0)
    second = reading(10, entry(2, 1), entry(500, 1, toplevel=False))
    shapes, _ = difference(first, second)

    assert shapes[1].calls == 2


def test_one_statement_of_two_roles_is_one_row() -> None:
    """With the calls of both as weights."""
    first = reading(0)
    second = reading(10, entry(1, 1, total_ms=30.0), entry(3, 1, user_id=11, total_ms=10.0))
    shapes, _ = difference(first, second)

    assert (shapes[1].calls, shapes[1].total_ms) == (4, 40.0)


def test_entries_hidden_from_only_one_of_the_readers_are_unknown() -> None:
    """Else all they ever did would count as done in the window."""
    shapes, coverage = difference(reading(0), reading(10, entry(99, None, query_id=HIDDEN)))

    assert not shapes
    assert coverage.unknown == 1


def test_deviation_survives_a_long_past() -> None:
    """200 calls after 2,000,000, from sums alone."""
    past, now = 2_000_000, 200
    mean, deviation = moments(
        now,
        (past * 0.5 + now * 3.6) - past * 0.5,
        (past * 0.26 + now * (3.6**2 + 3.4**2)) - past * 0.26,
    )

    assert mean == pytest.approx(3.6, rel=1e-6)
    assert deviation == pytest.approx(3.4, rel=1e-4)


# -- what is shown ------------------------------------------------------------------------------


def test_fwdb_leaves_its_own_questions_out(watched: PostgresStore, monitor: Monitor) -> None:
    """Else watching would head the list on a quiet server."""
    monitor.sample("full")
    for _ in range(3):
        monitor.sample("full")
        monitor.sessions("postgres")
        monitor.replication_lag()
        monitor.pool_history()
    run(watched, "dates", 1)
    frame = monitor.slow_queries(min_ms=0, top=1000)

    found(frame, "dates")
    shown = frame[frame["statement"].str.contains("monitoring|pg_stat|recovery", regex=True)]
    assert shown["statement"].tolist() == []


def test_a_nested_statement_is_part_of_its_caller(watched: PostgresStore, monitor: Monitor) -> None:
    """With track=all the server has an entry for it too."""
    watched.execute(
        sa.text(
            "CREATE OR REPLACE FUNCTION nap() RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.05), 1 FROM rest; END $$"
        )
    )
    monitor.sample("full")
    with watched.transaction():
        watched.execute(sa.text("SET LOCAL pg_stat_statements.track = 'all'"))
        watched.rows(sa.text("SELECT nap()"))
    frame = monitor.slow_queries(min_ms=0)

    entries = watched.rows(
        sa.text("SELECT toplevel FROM pg_stat_statements WHERE query LIKE '%rest%'")
    )

    assert False in [entry["toplevel"] for entry in entries]
    assert frame[frame["statement"].str.contains("nap()", regex=False)]["calls"].tolist() == [1]
    assert not frame["statement"].str.contains("rest").any()
    assert frame["share_percent"].sum() == pytest.approx(100)


def test_no_password_is_stored_or_shown(watched: PostgresStore, monitor: Monitor) -> None:
    """The server keeps the constants of CREATE ROLE and its like."""
    monitor.sample("full")
    role = f"test_password_{time.time_ns()}"
    watched.execute(sa.text(f"CREATE ROLE {role} PASSWORD 'swordfish''s'"))
    watched.execute(sa.text(f"ALTER ROLE {role} PASSWORD $word$swordfish$word$"))
    watched.execute(
        sa.text(
            f"CREATE SUBSCRIPTION {role} CONNECTION 'host=nowhere password=swordfish' "
            "PUBLICATION p WITH (connect = false, slot_name = NONE)"
        )
    )
    watched.execute(sa.text(f"DROP SUBSCRIPTION {role}"))
    watched.execute(sa.text(f"DROP ROLE {role}"))
    monitor.sample("full")
    frame = monitor.slow_queries(min_ms=0, top=1000)
    stored = watched.rows(sa.text("SELECT statement FROM monitoring.statement_texts"))
    texts = [*frame["statement"], *(row["statement"] for row in stored)]

    assert sum(role in text for text in frame["statement"]) == 5
    assert not any("swordfish" in text for text in texts)


def test_read_time_is_missing_when_it_is_not_measured(
    watched: PostgresStore, mongodb: MongoStore, monitor: Monitor
) -> None:
    """0 ms would say that reading is free."""
    name = watched.url.database
    for setting, missing in (("off", True), ("on", False)):
        watched.execute(sa.text(f"ALTER DATABASE {name} SET track_io_timing = {setting}"))
        fresh = Monitor(watched, mongodb)
        fresh.sample("full")
        since = fresh.readings()["read_at"].iloc[-1]
        run(watched, "kiwis", 1)
        frame = fresh.slow_queries(since=since, min_ms=0)
        fresh.close()

        assert pd.isna(found(frame, "kiwis")["read_ms"]) is missing
        assert ("read_ms" in frame.attrs["not_measured"]["postgres"]) is missing


def test_read_time_comes_from_the_column_of_this_version(watched: PostgresStore) -> None:
    """It was renamed with PostgreSQL 17, and would be 0 under the other name."""
    name = f"test_cold_{time.time_ns()}"
    watched.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy"))
    watched.execute(sa.text(f"ALTER DATABASE {name} SET track_io_timing = on"))
    url = watched.url.set(database=name, drivername="postgresql")
    cold = PostgresStore(url.render_as_string(hide_password=False))
    cold.execute(sa.text("CREATE EXTENSION pg_stat_statements"))
    cold.rows(sa.text("SELECT count(*) FROM pg_description"))
    counters = cold.frame("statement_counters")
    cold.close()
    watched.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))

    assert counters["read_blocks"].sum() > 0
    assert counters["read_ms"].sum() > 0
    assert counters["stats_since"].notna().all() == (watched.server_version >= 170000)


def test_statements_hidden_from_the_role_are_said_and_not_shown(
    watched: PostgresStore, mongodb: MongoStore, monitor: Monitor
) -> None:
    """With the GRANT that helps."""
    role = f"test_blind_{time.time_ns()}"
    watched.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    url = watched.url.set(username=role, password="x", drivername="postgresql")
    blind = PostgresStore(url.render_as_string(hide_password=False))
    limited = Monitor(blind, mongodb)
    try:
        timer = threading.Timer(0.1, lambda: run(watched, "hidden_one", 2, 0.05))
        timer.start()
        frame = limited.slow_queries(live_seconds=0.6, min_ms=0)
        timer.join()
    finally:
        limited.close()
        blind.close()
        watched.execute(sa.text(f"DROP ROLE {role}"))

    assert f"GRANT pg_read_all_stats TO {role}" in frame.attrs["hidden"]["postgres"]
    assert not frame["statement"].str.contains("hidden_one|insufficient", regex=True).any()


def test_a_database_without_the_extension_names_the_remedy(
    watched: PostgresStore, mongodb: MongoStore
) -> None:
    """Nothing else is asked of it."""
    bare = PostgresStore(
        watched.url.set(database="template1", drivername="postgresql").render_as_string(
            hide_password=False
        )
    )
    monitor = Monitor(bare, mongodb)
    try:
        with pytest.raises(FeatureUnavailable, match="CREATE EXTENSION pg_stat_statements"):
            monitor.slow_queries(live_seconds=0.05)
    finally:
        monitor.close()
        bare.close()


def test_the_other_stores_statements_come_when_one_is_down(mongodb: MongoStore) -> None:
    """And the missing half is named."""
    down = PostgresStore(NOWHERE)
    monitor = Monitor(down, mongodb)
    with pytest.raises(StoreUnavailable):
        monitor.slow_queries()
    mongodb.collection("things").insert_one({"name": "a"})
    frame = monitor.slow_queries(min_ms=0)
    monitor.close()

    assert frame["statement"].tolist() == ["things.insert(?)"]
    assert "no answer from postgres" in frame.attrs["missing"]["postgres"]
    assert frame.attrs["status"] == "ok"


# -- MongoDB ------------------------------------------------------------------------------------


def test_commands_have_the_columns_of_statements(
    watched: PostgresStore, mongodb: MongoStore, monitor: Monitor
) -> None:
    """One row per shape, over values; further batches belong to the command that began them."""
    things = mongodb.collection("things")
    things.insert_many([{"kind": "a", "n": n} for n in range(300)])
    for kind in ("a", "b"):
        assert len(list(things.find({"kind": kind}).sort("n", -1))) in (0, 300)
    frame = monitor.slow_queries(min_ms=0)
    mine = frame[frame["database"] == "mongodb"].set_index("statement")

    assert list(frame.columns) == list(COLUMNS)
    row = mine.loc["things.find({kind: ?}).sort({n: -1})"]
    assert (row["calls"], row["rows"], row["errors"]) == (2, 300, 0)
    assert row["total_ms"] > 0
    assert mine.loc["things.insert(?)", "rows"] == 300
    assert mine["share_percent"].sum() == pytest.approx(100)
    assert pd.isna(row["read_ms"])


def test_a_report_sees_the_commands_of_the_process_that_worked(
    watched: PostgresStore, monitor: Monitor, mongodb_database: str
) -> None:
    """They are timed by the client that sends them, and reach others through the history."""
    worker_store = MongoStore(mongodb_database)
    worker = Monitor(watched, worker_store)
    for _ in range(2):
        worker_store.collection("things").insert_one({"n": 1})
        worker.sample()
    worker.close()
    worker_store.close()
    frame = monitor.slow_queries(min_ms=0)
    row = frame[frame["statement"] == "things.insert(?)"].iloc[0]

    assert row["calls"] == 2
    before = monitor.slow_queries(since="2h", until="90m", min_ms=0)
    assert before.empty


def test_commands_timed_before_the_window_stay_out(monitor: Monitor, mongodb: MongoStore) -> None:
    """A process that never stored them cannot say when they were sent."""
    mongodb.collection("things").insert_one({"n": 1})
    frame = monitor.slow_queries(since=datetime.now(UTC), min_ms=0)

    assert frame[frame["database"] == "mongodb"].empty
    assert "since before the window" in frame.attrs["missing"]["mongodb"]


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("find", {"find": "c", "filter": {"b": 1, "a": "x"}}, "c.find({a: ?, b: ?})"),
        (
            "find",
            {"find": "c", "filter": {"a": {"$in": [1, 2, 3]}, "b": {"$gte": 1, "$lt": 5}}},
            "c.find({a: {$in: [?]}, b: {$gte: ?, $lt: ?}})",
        ),
        (
            "find",
            {"find": "c", "filter": {"$or": [{"b": 1}, {"a": 2}, {"b": 9}]}, "hint": "ix"},
            "c.find({$or: [{a: ?} | {b: ?}]}).hint(ix)",
        ),
        (
            "find",
            {"find": "c", "filter": {"a": {"x": 1}}, "sort": {"b": -1, "a": 1}},
            "c.find({a: ?}).sort({b: -1, a: 1})",
        ),
        (
            "find",
            {"find": "c", "filter": {"l": {"$elemMatch": {"k": 1}}, "m": {"$not": {"$gt": 2}}}},
            "c.find({l: {$elemMatch: {k: ?}}, m: {$not: {$gt: ?}}})",
        ),
        (
            "aggregate",
            {"aggregate": "c", "pipeline": [{"$match": {"a": 1}}, {"$group": {"_id": "$a"}}]},
            "c.aggregate([$match {a: ?}, $group])",
        ),
        (
            "update",
            {"update": "c", "updates": [{"q": {"_id": 1}, "u": {"$set": {"a": 1}, "$inc": {}}}]},
            "c.update({_id: ?}, {$inc, $set})",
        ),
        ("update", {"update": "c", "updates": [{"q": {}, "u": {"a": 1}}]}, "c.update({}, ?)"),
        ("delete", {"delete": "c", "deletes": [{"q": {"a": 1}}]}, "c.delete({a: ?})"),
        ("aggregate", {"aggregate": 1, "pipeline": []}, "db.aggregate([])"),
    ],
)
def test_a_shape_keeps_what_was_asked_and_no_value(
    name: str, command: dict[str, Any], expected: str
) -> None:
    """Two commands that differ in values only are one shape."""
    assert shape(name, command) == expected


def test_failed_commands_are_counted_as_such(mongodb: MongoStore) -> None:
    """They took time all the same."""
    with pytest.raises(FwdbError), mongodb.errors():
        mongodb.collection("things").aggregate([{"$nonsense": 1}])
    (stats,) = mongodb.commands()

    assert (stats.shape, stats.calls, stats.errors) == ("things.aggregate([$nonsense])", 1, 1)


def test_the_number_of_shapes_is_bounded(mongodb: MongoStore) -> None:
    """Field names made from data must not fill the memory."""
    times = CommandTimes(QueryTimes(slow_ms=100))
    for n in range(MOST_SHAPES + 50):
        times._add(("find", "db.c", f"shape {n}"), "find", 1.0, {}, "")
    stats = times.stats()

    assert len(stats) == MOST_SHAPES + 1
    assert stats[-1].shape == "(other shapes)"
    assert stats[-1].calls == 50


def test_an_unknown_kind_of_reading_is_refused(monitor: Monitor) -> None:
    """With the nearest right name."""
    with pytest.raises(UnknownName, match="did you mean 'light'"):
        monitor.sample("lite")  # type: ignore[arg-type]
