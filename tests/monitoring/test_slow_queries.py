"""Statements of a window: right under resets, evictions, nesting and missing rights."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from support.monitoring import (
    NOON,
    NOWHERE,
    ask,
    do,
    entry,
    forget,
    found,
    reading,
    run,
    set_back,
    url_of,
)

from fwdb.errors import (
    FeatureUnavailable,
    FwdbError,
    ParameterError,
    StoreUnavailable,
    UnknownName,
)
from fwdb.monitoring import Monitor
from fwdb.monitoring.slow_queries import COLUMNS
from fwdb.monitoring.statements import HIDDEN, difference, moments
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.commands import MOST_SHAPES, CommandTimes, shape
from fwdb.stores.timing import QueryTimes

# -- the window ---------------------------------------------------------------------------------


def test_only_what_ran_in_the_window_counts(watched: PostgresStore, monitor: Monitor) -> None:
    """The server counts since its entry began; the window begins at the first reading in it, and
    a slow statement that was mended must not be reported for ever."""
    run(watched, "apples", 5)
    run(watched, "mended", 1, 0.15)
    monitor.sample("full")
    run(watched, "apples", 2)
    run(watched, "other", 1, 0.15)
    monitor.sample("full")
    second = monitor.readings()["read_at"].iloc[-1]
    run(watched, "apples", 3)
    slow = monitor.slow_queries(min_ms=100)

    assert found(monitor.slow_queries(min_ms=0), "apples")["calls"] == 5
    assert found(monitor.slow_queries(since=second, min_ms=0), "apples")["calls"] == 3
    assert len(slow) == found(slow, "other")["calls"] == 1
    # An end just now is now: a report fixes its end before it asks, and one reading is enough.
    assert found(monitor.slow_queries(until="10s", min_ms=0), "apples")["calls"] == 5


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
    set_back(watched)
    until = monitor.readings()["read_at"].iloc[1]
    frame = monitor.slow_queries(since="2h", until=until, min_ms=0)

    assert found(frame, "plums")["calls"] == 2
    assert frame.attrs["window"]["until"] == until


def during(work: Callable[[], None], watching: Monitor) -> pd.DataFrame:
    """Statements of a live window in which `work` is done, however busy the computer is."""

    def sleep(seconds: float) -> None:
        work()
        time.sleep(seconds)

    with patch("fwdb.monitoring.statements.time", SimpleNamespace(sleep=sleep)):
        return watching.slow_queries(live_seconds=0.5, min_ms=0)


def test_live_sampling_needs_no_history(
    watched: PostgresStore, mongodb: MongoStore, watch: Callable[..., Monitor]
) -> None:
    """Two readings in this process, also where nothing may be stored."""
    frame = during(lambda: run(watched, "cherries", 2, 0.05), watch(watched, mongodb))
    since, until = frame.attrs["windows"]["postgres"]

    assert found(frame, "cherries")["calls"] == 2
    assert timedelta(seconds=0.5) < until - since < timedelta(seconds=3)


@pytest.mark.parametrize("readings", [0, 1])
def test_a_window_without_two_readings_has_no_data(
    monitor: Monitor, watched: PostgresStore, readings: int
) -> None:
    """No rows, the same columns and types, and what would make data."""
    for _ in range(readings):
        monitor.sample("full")
    set_back(watched)
    frame = monitor.slow_queries(since="2h", until="30m")
    monitor.sample("full")
    run(watched, "grapes", 1)
    filled = monitor.slow_queries(min_ms=0)

    assert frame.empty
    assert len(filled)
    assert frame.attrs["status"] == "no_data"
    assert "fwdb monitor" in frame.attrs["missing"]["postgres"]
    assert frame.dtypes.to_dict() == filled.dtypes.to_dict()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "1h", "until": "2h"}, "since"),
        ({"top": 0}, "top"),
        ({"live_seconds": 0}, "live_seconds"),
        ({"order": "growth", "live_seconds": 1}, "live_seconds"),  # it has no window before
    ],
)
def test_a_window_that_cannot_be_is_refused(
    monitor: Monitor, arguments: dict[str, Any], word: str
) -> None:
    """By name, before anything is asked; an unknown choice with the nearest right one."""
    with pytest.raises(ParameterError, match=word):
        monitor.slow_queries(**arguments)
    with pytest.raises(UnknownName, match="did you mean 'total'"):
        monitor.slow_queries(order="totl")
    with pytest.raises(UnknownName, match="did you mean 'light'"):
        monitor.sample("lite")  # type: ignore[arg-type]


# -- counters that begin anew -------------------------------------------------------------------


def test_a_reset_of_all_between_the_readings(watched: PostgresStore, monitor: Monitor) -> None:
    """Counts what came after the reset, and says that it is a lower bound."""
    run(watched, "limes", 7)
    monitor.sample("full")
    ask(watched, "SELECT pg_stat_statements_reset()")
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
    text = "SELECT queryid AS id FROM pg_stat_statements WHERE query LIKE '%FROM lemons)%'"
    forget(watched, ask(watched, text)[0]["id"])
    # Without stats_since only a smaller count betrays the reset.
    again = 9 if watched.server_version >= 170000 else 4
    run(watched, "lemons", again)
    run(watched, "melons", 3)
    frame = monitor.slow_queries(min_ms=0)

    assert found(frame, "lemons")["calls"] == again
    assert found(frame, "lemons")["lower_bound"]
    assert found(frame, "melons")["calls"] == 3
    assert not found(frame, "melons")["lower_bound"]
    assert frame.attrs["coverage"]["postgres"]["restarted"] == 1


DAY_BEFORE, LATER = NOON - timedelta(days=1), NOON + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("first", "second", "calls", "lower_bound", "coverage"),
    [
        # 1 call before, 60 after an entry was dropped and came back: 60, not 59.
        (
            reading(0, entry(1)),
            reading(10, entry(60, 5), dealloc=3),
            {1: 60},
            True,
            {"restarted": 1, "dealloc": 3},
        ),
        # An entry that went away: nothing is known of its calls, that there were some is said.
        (reading(0, entry(5)), reading(10, dealloc=1), {}, False, {"lost": 1, "complete": False}),
        # A new one counts in full only if it began in the window, as far as that is known.
        (
            reading(0),
            reading(10, entry(4, 3), entry(9, -30, query_id=2), entry(6, None, query_id=3)),
            {1: 4, 3: 6},
            False,
            {"unknown": 1},
        ),
        # Before PostgreSQL 17 any smaller counter tells a reset: 8 calls after 5 may be new ones.
        (
            reading(0, entry(5, None, row_count=50)),
            reading(10, entry(8, None, row_count=8)),
            {1: 8},
            True,
            {"restarted": 1},
        ),
        # A sum of fractions that came out a hair smaller tells none.
        (
            reading(0, entry(5, None, total_ms=50.0)),
            reading(10, entry(5, None, total_ms=49.999999)),
            {},
            False,
            {"complete": True},
        ),
        # A reset of all is seen by its time, also by counters that grew past their old values.
        (
            reading(0, entry(5, None), stats_reset=DAY_BEFORE),
            reading(10, entry(9, None), stats_reset=LATER),
            {1: 9},
            True,
            {"emptied": True},
        ),
        # Statements inside functions are part of the one that called, maybe under the same id.
        (
            reading(0),
            reading(10, entry(2, 1), entry(500, 1, toplevel=False)),
            {1: 2},
            False,
            {"complete": True},
        ),
        # One statement of two roles is one row.
        (reading(0), reading(10, entry(1, 1), entry(3, 1, user_id=11)), {1: 4}, False, {}),
        # Hidden from only one of the readers: all it ever did would count as of the window.
        (reading(0), reading(10, entry(99, None, query_id=HIDDEN)), {}, False, {"unknown": 1}),
    ],
)
def test_the_difference_of_two_readings(
    first: Any, second: Any, calls: dict[int, int], lower_bound: bool, coverage: dict[str, Any]
) -> None:
    """What came in between, exactly or as a lower bound; times with the calls."""
    shapes, covered = difference(first, second)

    assert {key: row["calls"] for key, row in shapes.items()} == calls
    assert {key: row["total_ms"] for key, row in shapes.items()} == {
        key: 10.0 * n for key, n in calls.items()
    }
    assert all(row["lower_bound"] is lower_bound for row in shapes.values())
    assert coverage.items() <= covered.items()
    assert bool(covered["dealloc"]) == ("pg_stat_statements.max" in covered["sentence"])


def test_a_counter_that_a_reading_lacks_has_no_difference() -> None:
    """As in readings of before the column was added: not 0, and not all it ever counted."""
    shapes, _ = difference(reading(0, entry(5, wal_bytes=None)), reading(10, entry(8, wal_bytes=9)))

    assert (shapes[1]["calls"], shapes[1]["wal_bytes"]) == (3, None)


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
        monitor.health()
    run(watched, "dates", 1)
    frame = monitor.slow_queries(min_ms=0, top=1000)
    own = "monitoring|pg_stat|recovery|version_num"

    found(frame, "dates")
    assert frame[frame["statement"].str.contains(own, regex=True)]["statement"].tolist() == []


def test_a_nested_statement_is_part_of_its_caller(watched: PostgresStore, monitor: Monitor) -> None:
    """With track=all the server has an entry for it too."""
    do(
        watched,
        "CREATE OR REPLACE FUNCTION nap() RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.05), 1 FROM rest; END $$",
    )
    monitor.sample("full")
    with watched.transaction():
        do(watched, "SET LOCAL pg_stat_statements.track = 'all'")
        ask(watched, "SELECT nap()")
    frame = monitor.slow_queries(min_ms=0)
    inner = ask(watched, "SELECT toplevel FROM pg_stat_statements WHERE query LIKE '%rest%'")

    assert {"toplevel": False} in inner
    assert frame[frame["statement"].str.contains("nap()", regex=False)]["calls"].tolist() == [1]
    assert not frame["statement"].str.contains("rest").any()
    assert frame["share_percent"].sum() == pytest.approx(100)


def test_no_password_is_stored_or_shown(watched: PostgresStore, monitor: Monitor) -> None:
    """The server keeps the constants of CREATE ROLE and its like."""
    monitor.sample("full")
    role = f"test_password_{time.time_ns()}"
    do(
        watched,
        f"CREATE ROLE {role} PASSWORD 'swordfish''s'",
        f"ALTER ROLE {role} PASSWORD $word$swordfish$word$",
        f"CREATE SUBSCRIPTION {role} CONNECTION 'host=nowhere password=swordfish' "
        "PUBLICATION p WITH (connect = false, slot_name = NONE)",
        f"DROP SUBSCRIPTION {role}",
        f"DROP ROLE {role}",
    )
    monitor.sample("full")
    frame = monitor.slow_queries(min_ms=0, top=1000)
    kept = ask(watched, "SELECT statement FROM monitoring.statement_texts")

    assert sum(role in text for text in frame["statement"]) == 5
    texts = [*frame["statement"], *(row["statement"] for row in kept)]
    assert not any("swordfish" in text for text in texts)


@pytest.mark.parametrize(
    ("column", "setting"),
    [("read_ms", "track_io_timing"), ("plan_ms", "pg_stat_statements.track_planning")],
)
def test_a_time_is_missing_when_it_is_not_measured(
    watched: PostgresStore,
    mongodb: MongoStore,
    monitor: Monitor,
    watch: Callable[..., Monitor],
    column: str,
    setting: str,
) -> None:
    """0 ms would say that reading, or planning, is free."""
    for value, missing in (("off", True), ("on", False)):
        do(watched, f"ALTER DATABASE {watched.url.database} SET {setting} = {value}")
        watched.close()  # the sessions of the pool keep the setting they began with
        fresh = watch(watched, mongodb)
        fresh.sample("full")
        since = fresh.readings()["read_at"].iloc[-1]
        run(watched, "kiwis", 2)
        frame = fresh.slow_queries(since=since, min_ms=0)
        reason = frame.attrs["not_measured"]["postgres"].get(column, "")

        assert pd.isna(found(frame, "kiwis")[column]) is missing
        assert reason == (f"{setting} is off" if missing else "")
        assert missing or column == "read_ms" or found(frame, "kiwis")[column] > 0


def test_read_time_comes_from_the_column_of_this_version(watched: PostgresStore) -> None:
    """It was renamed with PostgreSQL 17, and would be 0 under the other name."""
    name = f"test_cold_{time.time_ns()}"
    do(
        watched,
        f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy",
        f"ALTER DATABASE {name} SET track_io_timing = on",
    )
    cold = PostgresStore(url_of(watched, database=name))
    do(cold, "CREATE EXTENSION pg_stat_statements")
    ask(cold, "SELECT count(*) FROM pg_description")
    counters = cold.frame("statement_counters")
    cold.close()
    do(watched, f"DROP DATABASE {name} WITH (FORCE)")

    assert counters["read_blocks"].sum() > 0
    assert counters["read_ms"].sum() > 0
    assert counters["stats_since"].notna().all() == (watched.server_version >= 170000)


def test_statements_hidden_from_the_role_are_said_and_not_shown(
    watched: PostgresStore,
    mongodb: MongoStore,
    role: Callable[..., PostgresStore],
    watch: Callable[..., Monitor],
) -> None:
    """With the GRANT that helps."""
    blind = role(watched)
    frame = during(lambda: run(watched, "hidden_one", 2, 0.05), watch(blind, mongodb))

    grant = f"GRANT pg_read_all_stats TO {blind.url.username}"
    assert grant in frame.attrs["hidden"]["postgres"]
    assert not frame["statement"].str.contains("hidden_one|insufficient", regex=True).any()


def test_a_database_without_the_extension_names_the_remedy(
    watched: PostgresStore, mongodb: MongoStore, watch: Callable[..., Monitor]
) -> None:
    """Nothing else is asked of it."""
    bare = PostgresStore(url_of(watched, database="template1"))
    with pytest.raises(FeatureUnavailable, match="CREATE EXTENSION pg_stat_statements"):
        watch(bare, mongodb).slow_queries(live_seconds=0.05)
    bare.close()


def test_the_other_stores_statements_come_when_one_is_down(
    mongodb: MongoStore, watch: Callable[..., Monitor]
) -> None:
    """And the missing half is named."""
    monitor = watch(PostgresStore(NOWHERE), mongodb)
    with pytest.raises(StoreUnavailable):
        monitor.slow_queries()
    mongodb.collection("things").insert_one({"name": "a"})
    frame = monitor.slow_queries(min_ms=0)

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
    watched: PostgresStore, monitor: Monitor, mongodb_database: str, watch: Callable[..., Monitor]
) -> None:
    """They are timed by the client that sends them, and reach others through the history."""
    worker_store = MongoStore(mongodb_database)
    worker = watch(watched, worker_store)
    for _ in range(2):
        worker_store.collection("things").insert_one({"n": 1})
        worker.sample()
    worker_store.close()
    frame = monitor.slow_queries(min_ms=0)

    assert frame[frame["statement"] == "things.insert(?)"].iloc[0]["calls"] == 2
    assert monitor.slow_queries(since="2h", until="90m", min_ms=0).empty


def test_commands_timed_before_the_window_stay_out(monitor: Monitor, mongodb: MongoStore) -> None:
    """A process that never stored them cannot say when they were sent."""
    mongodb.collection("things").insert_one({"n": 1})
    frame = monitor.slow_queries(since=datetime.now(UTC), min_ms=0)

    assert frame[frame["database"] == "mongodb"].empty
    assert "since before the window" in frame.attrs["missing"]["mongodb"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"find": "c", "filter": {"b": 1, "a": "x"}}, "c.find({a: ?, b: ?})"),
        (
            {"find": "c", "filter": {"a": {"$in": [1, 2, 3]}, "b": {"$gte": 1, "$lt": 5}}},
            "c.find({a: {$in: [?]}, b: {$gte: ?, $lt: ?}})",
        ),
        (
            {"find": "c", "filter": {"$or": [{"b": 1}, {"a": 2}, {"b": 9}]}, "hint": "ix"},
            "c.find({$or: [{a: ?} | {b: ?}]}).hint(ix)",
        ),
        (
            {"find": "c", "filter": {"a": {"x": 1}}, "sort": {"b": -1, "a": 1}},
            "c.find({a: ?}).sort({b: -1, a: 1})",
        ),
        (
            {"find": "c", "filter": {"l": {"$elemMatch": {"k": 1}}, "m": {"$not": {"$gt": 2}}}},
            "c.find({l: {$elemMatch: {k: ?}}, m: {$not: {$gt: ?}}})",
        ),
        (
            {"aggregate": "c", "pipeline": [{"$match": {"a": 1}}, {"$group": {"_id": "$a"}}]},
            "c.aggregate([$match {a: ?}, $group])",
        ),
        (
            {"update": "c", "updates": [{"q": {"_id": 1}, "u": {"$set": {"a": 1}, "$inc": {}}}]},
            "c.update({_id: ?}, {$inc, $set})",
        ),
        ({"update": "c", "updates": [{"q": {}, "u": {"a": 1}}]}, "c.update({}, ?)"),
        ({"delete": "c", "deletes": [{"q": {"a": 1}}]}, "c.delete({a: ?})"),
        ({"aggregate": 1, "pipeline": []}, "db.aggregate([])"),
    ],
)
def test_a_shape_keeps_what_was_asked_and_no_value(command: dict[str, Any], expected: str) -> None:
    """Two commands that differ in values only are one shape."""
    assert shape(next(iter(command)), command) == expected


def test_commands_that_failed_and_too_many_shapes_are_counted(mongodb: MongoStore) -> None:
    """They took time all the same; field names made from data must not fill the memory."""
    with pytest.raises(FwdbError), mongodb.errors():
        mongodb.collection("things").aggregate([{"$nonsense": 1}])
    (stats,) = mongodb.commands()
    times = CommandTimes(QueryTimes(slow_ms=100))
    for n in range(MOST_SHAPES + 50):
        times._add(("find", "db.c", f"shape {n}"), "find", 1.0, {}, "")
    many = times.stats()

    assert (stats.shape, stats.calls, stats.errors) == ("things.aggregate([$nonsense])", 1, 1)
    assert len(many) == MOST_SHAPES + 1
    assert (many[-1].shape, many[-1].calls) == ("(other shapes)", 50)
