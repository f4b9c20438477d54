"""The lists of statements by what they cost, and what changed from one window to another."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from support.monitoring import NOON, ask, do, entry, reading, run, set_back, url_of
from test_slow_queries import during

from fwdb import embedded, migrating
from fwdb.errors import FeatureUnavailable, ParameterError
from fwdb.monitoring import Monitor
from fwdb.monitoring.slow_queries import (
    CHANGE_COLUMNS,
    COLUMNS,
    LEAST_RATIO,
    causes,
    changes,
    mean_ratio,
    whole_server,
)
from fwdb.monitoring.statements import derived, difference
from fwdb.stores import MongoStore, PostgresStore

# -- coverage in numbers --------------------------------------------------------------------------

SOON = NOON + timedelta(minutes=2)


def test_eviction_is_told_in_numbers() -> None:
    """248 of 838 calls visible, no reset and no counter that fell: only dealloc betrays it."""
    first = reading(0, entry(2), dealloc=5, transactions=1000, active_ms=5000.0)
    second = reading(10, entry(250), dealloc=44, transactions=1838, active_ms=13_000.0)
    shapes, coverage = difference(first, second)

    assert shapes[1]["calls"] == 248
    assert (coverage["dealloc"], coverage["evicted"]) == (39, 390)
    assert coverage["calls_percent"] == pytest.approx(100 * 248 / 838)
    assert coverage["time_percent"] == pytest.approx(31)  # 2,480 of 8,000 ms
    assert coverage["sentence"].startswith(
        "about 30 % of the calls were seen (248 beside 838 transactions), at least 31 % of the time"
    )
    assert "about 390 entries evicted" in coverage["sentence"]
    assert "pg_stat_statements.max from 100" in coverage["sentence"]


@pytest.mark.parametrize(
    ("minutes", "more", "words"),
    [
        (10, {"transactions": 20, "dealloc": 1}, ""),  # several calls in one transaction
        (10, {"transactions": 100}, ""),  # pools test connections by empty ones
        (0.5, {}, "too short"),  # sessions hand their counters in late
        (10, {"database_reset_at": NOON + timedelta(minutes=3)}, "were reset"),
        (10, {"transactions": -5}, "were reset"),
    ],
)
def test_no_estimate_where_the_other_counters_cannot_tell(
    minutes: float, more: dict[str, Any], words: str
) -> None:
    """Transactions alone prove no loss: they are neither more nor fewer than the calls for sure."""
    second = reading(minutes, entry(50), **({"transactions": 50, "active_ms": 900.0} | more))
    _, coverage = difference(reading(0, entry(0)), second)

    assert coverage["calls_percent"] is None
    assert coverage["transactions"] == (None if words else more["transactions"])
    assert coverage["time_percent"] == (None if words else pytest.approx(100 * 500 / 900))
    assert words in coverage["estimate"]
    assert bool(words) == bool(coverage["estimate"])


@pytest.mark.parametrize(("rare", "dealloc"), [(1, 1), (20, 0)])
def test_a_crash_empties_everything_without_a_reset(rare: int, dealloc: int) -> None:
    """Also an entry that grew past its old count, which before PostgreSQL 17 tells nothing.

    Most others that fell give it away, or the count of evictions that did.
    """
    more = [entry(10, None, query_id=id) for id in (2, 3)]
    first = reading(0, entry(5, None), *more, dealloc=1)
    entries = entry(9, None), entry(rare, None, query_id=2)
    shapes, coverage = difference(
        first, reading(10, *entries, dealloc=dealloc, server_started_at=SOON)
    )

    assert coverage["emptied"]
    assert shapes[1]["calls"] == 9
    assert "restarted" in coverage["sentence"]


def test_a_restart_alone_empties_nothing() -> None:
    """An orderly one keeps the counters, and fewer calls may be those of an evicted entry: else
    all that the others ever did would count as done in the window."""
    shapes, coverage = difference(
        reading(0, entry(5)), reading(10, entry(9), server_started_at=SOON)
    )
    first = reading(0, entry(500, None), entry(9, None, query_id=2))
    entries = entry(510, None), entry(3, None, query_id=2)
    evicted, beside = difference(first, reading(10, *entries, dealloc=1, server_started_at=SOON))
    _, quiet = difference(reading(0, entry(0)), reading(10, entry(50)))

    assert shapes[1]["calls"] == 4
    assert coverage["complete"]
    assert coverage["sentence"] == "the server was restarted within the window"
    assert not beside["emptied"]
    assert {id: row["calls"] for id, row in evicted.items()} == {1: 10, 2: 3}
    assert (quiet["complete"], quiet["sentence"]) == (True, ""), "nothing lost is nothing said"


def test_calls_of_the_window_stand_beside_transactions(
    watched: PostgresStore, monitor: Monitor
) -> None:
    """Read from the server, over a window that is long enough."""
    monitor.sample("full")
    set_back(watched, "5 minutes")
    run(watched, "apples", 3)
    coverage = monitor.slow_queries(min_ms=0).attrs["coverage"]["postgres"]

    assert coverage["transactions"] is not None
    assert coverage["estimate"] == ""
    assert coverage["calls"] >= 3
    assert coverage["time_percent"] is None or 0 < coverage["time_percent"] <= 100


@pytest.mark.parametrize("version", ["1.8", "1.9", "1.10", "1.11"])
def test_an_extension_older_than_its_server_is_read_as_it_is(
    watched: PostgresStore, mongodb: MongoStore, watch: Callable[..., Monitor], version: str
) -> None:
    """An upgrade of the server leaves the extension behind, with other columns and names."""
    known = (
        "SELECT 1 FROM pg_available_extension_versions WHERE name = 'pg_stat_statements' "
        "AND version = :version"
    )
    if not ask(watched, known, version=version):
        pytest.skip(f"this server has no version {version}")
    name = f"test_old_{time.time_ns()}"
    do(watched, f"CREATE DATABASE {name}")
    old = PostgresStore(url_of(watched, database=name))
    limited = watch(old, mongodb)
    try:
        do(old, f"CREATE EXTENSION pg_stat_statements VERSION '{version}'")
        if version == "1.8":
            needed = "ALTER EXTENSION pg_stat_statements UPDATE"
            with pytest.raises(FeatureUnavailable, match=needed):
                limited.slow_queries(live_seconds=0.05)
            return
        frame = during(lambda: ask(old, "SELECT pg_sleep(0.05)"), limited)
        slept = frame[frame["statement"].str.contains("pg_sleep")].iloc[0]

        assert (slept["calls"], slept["rows"], slept["wal_bytes"]) == (1, 1, 0)
        assert slept["mean_ms"] >= 50
    finally:
        limited.close()
        old.close()
        do(watched, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_full_pg_stat_statements_is_seen_by_its_evictions(
    tmp_path: Path, mongodb: MongoStore, watch: Callable[..., Monitor]
) -> None:
    """Room for 100, and 390 statements: no reset, no counter that fell, a third of the calls."""
    home = tmp_path / ".fwdb"

    def up() -> PostgresStore:
        running = embedded.up(home, stores=("postgres",), owner_pid=os.getpid(), idle_minutes=0)
        assert running.postgres
        return PostgresStore(running.postgres.superuser or "")

    try:
        admin = up()
        do(admin, "ALTER SYSTEM SET pg_stat_statements.max = 100")
        admin.close()
        embedded.down(home)
        store = up()
        migrating.migrate(store, None)
        crowded = watch(store, mongodb)
        crowded.sample("full")
        set_back(store)
        for n in range(390):
            for _ in range(2):
                ask(store, f"SELECT {', '.join(['1'] * (n % 39 + 1))} {'+ 1' * (n // 39)}")
        ask(store, "SELECT pg_stat_force_next_flush()")
        store.close()  # a session that ends hands its counters in
        frame = crowded.slow_queries(since="2h", min_ms=0)
        crowded.close()
        store.close()
    finally:
        embedded.remove(home)
    coverage = frame.attrs["coverage"]["postgres"]

    assert coverage["dealloc"] >= 20
    assert coverage["evicted"] == 10 * coverage["dealloc"]
    assert not coverage["emptied"]
    assert coverage["transactions"] >= 780
    assert coverage["calls_percent"] < 60
    assert "entries evicted" in coverage["sentence"]


# -- lists ----------------------------------------------------------------------------------------


def test_lists_are_sorted_by_what_they_are_about(watched: PostgresStore, monitor: Monitor) -> None:
    """And hold nothing that did not cost any of it."""
    monitor.sample("full")
    run(watched, "pears", 1, 0.5)
    for _ in range(3):
        ask(watched, "SELECT count(*) FROM plums")
    with watched.transaction():
        do(watched, "SET LOCAL work_mem = '64kB'")
        ask(
            watched,
            "SELECT count(*) FROM (SELECT n FROM generate_series(1, 30000) n ORDER BY -n)q",
        )
        do(
            watched,
            "CREATE TABLE scratch AS SELECT n FROM generate_series(1, 999) n",
            "DROP TABLE scratch",
        )
    orders = ("total", "mean", "calls", "io", "temp", "wal")
    by = {order: monitor.slow_queries(min_ms=0, order=order) for order in orders}
    plums = by["total"][by["total"]["statement"].str.contains("FROM plums", regex=False)].iloc[0]

    assert all(list(frame.columns) == list(COLUMNS) for frame in by.values())
    assert "pears" in by["mean"]["statement"].iloc[0]
    assert by["calls"]["calls"].is_monotonic_decreasing
    assert by["total"]["total_ms"].is_monotonic_decreasing
    assert by["temp"]["statement"].str.contains("generate_series").tolist() == [True]
    assert by["temp"]["temp_bytes"].iloc[0] > 100_000
    assert "CREATE TABLE scratch" in by["wal"]["statement"].iloc[0]
    assert by["wal"]["wal_bytes"].is_monotonic_decreasing
    assert by["wal"]["wal_bytes"].min() > 0
    assert by["io"].attrs["ordered_by"] in ("read_ms", "read_blocks")
    assert plums["rows_per_call"] == 1
    assert plums[["growth_ms"]].isna().all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"since": "2h", "compare_since": "3h"}, "overlaps"),
        ({"since": "2h", "compare_since": "1h"}, "overlaps"),
        ({"since": "1h", "compare_since": "4h", "compare_until": "5h"}, "empty"),
        ({"since": "1h", "compare_since": "last week"}, "compare_since"),
        ({"top": 0}, "top"),
    ],
)
def test_windows_that_cannot_be_compared_are_refused(
    monitor: Monitor, arguments: dict[str, Any], word: str
) -> None:
    """By name, before anything is asked."""
    with pytest.raises(ParameterError, match=word):
        monitor.query_changes(**arguments)


# -- two windows ----------------------------------------------------------------------------------


def test_two_windows_of_the_history_are_compared(
    watched: PostgresStore, monitor: Monitor, mongodb: MongoStore
) -> None:
    """New, vanished, slower with its cause, and too few calls to tell: both stores in one frame."""
    things = mongodb.collection("things")
    do(watched, "CREATE TABLE grown AS SELECT 1 AS n")
    text = sa.text("SELECT count(*) FROM grown WHERE n > 0")

    def work() -> None:
        for _ in range(30):
            watched.rows(text)

    monitor.sample("full")
    work()
    run(watched, "limes", 3)
    things.insert_one({"n": 1})
    monitor.sample("full")
    set_back(watched, "61 minutes")
    # What the samples say of the commands' own time must lie in the window as well.
    do(
        watched,
        "UPDATE monitoring.readings SET details = details || jsonb_build_object('commands_since', "
        "CAST(details ->> 'commands_since' AS timestamptz) - interval '1 hour')",
    )
    monitor.sample("full")
    do(watched, "INSERT INTO grown SELECT * FROM generate_series(1, 60000)")
    work()
    run(watched, "lemons", 2)
    things.delete_many({"n": 2})
    frame = monitor.query_changes(since="1h", compare_since="2h")
    kinds = dict(zip(frame["statement"], frame["change"], strict=True))
    slower = frame[frame["statement"].str.contains("count(*) FROM grown", regex=False)].iloc[0]
    extra = 30 * (slower["mean_ms"] - slower["mean_before_ms"])

    assert list(frame.columns) == list(CHANGE_COLUMNS)
    assert slower["change"] == "slower", frame
    assert slower["ratio"] > slower["ratio_low"] > LEAST_RATIO
    assert slower["calls"] == slower["calls_before"] == 30
    assert slower["extra_ms"] == pytest.approx(extra, rel=1e-6)
    assert "blocks per call" in slower["remark"]
    assert next(k for s, k in kinds.items() if "FROM lemons" in s) == "new"
    assert next(k for s, k in kinds.items() if "FROM limes" in s) == "vanished"
    assert kinds["things.insert(?)"] == "vanished"
    assert kinds["things.delete({n: ?})"] == "new"
    assert frame.attrs["whole_server"] == {}
    grown = monitor.slow_queries(since="1h", min_ms=0, order="growth", compare_since="2h")
    assert grown["growth_ms"].is_monotonic_decreasing
    assert grown["statement"].str.contains("FROM grown", regex=False).any()


def test_a_window_before_without_readings_is_said(watched: PostgresStore, monitor: Monitor) -> None:
    """Nothing to compare with must not make everything new."""
    monitor.sample("full")
    run(watched, "apples", 2)
    frame = monitor.query_changes(since="1h")

    assert frame.empty
    assert frame.attrs["status"] == "no_data"
    assert frame.attrs["missing"]["postgres"].startswith("the window before: no reading")


# -- the rule -------------------------------------------------------------------------------------


def statement(calls: int, mean_ms: float, *, cv: float = 1.0, **more: Any) -> dict[str, Any]:
    sums = {"total_ms": calls * mean_ms, "squares_ms2": calls * mean_ms**2 * (1 + cv**2)}
    return derived({"query_id": "1", "calls": calls, "rows": calls, **sums, **more})


def judge(before: dict[str, Any], now: dict[str, Any], total_ms: float = 0) -> dict[str, Any]:
    (change,), _ = changes([before], [now], total_ms or now["total_ms"], 1.0)
    return change


def times(rng: np.random.Generator, calls: int, scale: float = 1.0) -> dict[str, Any]:
    """Log-normal with cv 1, one in a hundred 20 times as long, and 10 % natural drift."""
    found = rng.lognormal(0, math.sqrt(math.log(2)), calls) * scale * math.exp(rng.normal(0, 0.1))
    found[rng.random(calls) < 0.01] *= 20
    sums = {"total_ms": float(found.sum()), "squares_ms2": float((found**2).sum())}
    return derived({"calls": calls, **sums})


@pytest.mark.parametrize(
    ("calls", "false_alarms", "power"), [(30, 2.8, 38), (100, 2.5, 50), (1000, 1.8, 85)]
)
def test_the_rule_has_the_promised_figures(calls: int, false_alarms: float, power: float) -> None:
    """Percent of 600 trials: alarms without a change at most, and doublings found at least."""
    rng = np.random.default_rng(7)

    def alarms(scale: float) -> float:
        ratios = [mean_ratio(times(rng, calls), times(rng, calls, scale)) for _ in range(600)]
        return 100 * sum(r is not None and r.low > LEAST_RATIO for r in ratios) / 600

    assert alarms(1) <= false_alarms
    assert alarms(2) >= power


@pytest.mark.parametrize(
    ("before", "now", "total_ms", "kind", "remark"),
    [
        (statement(1000, 10), statement(1000, 20), 0, "slower", ""),
        # Twice as slow, over 30 calls of that spread: not sure.
        (statement(30, 10, cv=2), statement(30, 20, cv=2), 0, "similar", ""),
        # However slow, 29 calls say nothing about a mean.
        (statement(1000, 10), statement(29, 1000), 0, "unjudged", "too few calls to judge (n=29)"),
        # Ten times as slow, and half a percent of the time of the server.
        (statement(100, 0.1, cv=0.1), statement(100, 1, cv=0.1), 20_000, "similar", "under 1%"),
        # No bound to a mean of 0, and no division by zero.
        (statement(50, 0), statement(50, 1), 0, "unjudged", "too few calls"),
    ],
)
def test_a_slower_statement_is_one_with_its_bound_above_the_line(
    before: dict[str, Any], now: dict[str, Any], total_ms: float, kind: str, remark: str
) -> None:
    """And with enough calls, and a cost that matters; else it is said why not."""
    change = judge(before, now, total_ms)

    assert change["change"] == kind
    assert remark in change["remark"]
    if kind == "slower":
        assert change["ratio"] == pytest.approx(2)
        assert change["extra_ms"] == pytest.approx(10_000)


def test_a_slower_server_is_not_a_list_of_regressions() -> None:
    """All slow by the same factor: one finding, and only who slowed by more is named. It takes
    more than half of the shapes, of four or more."""
    before = [statement(1000, 10, query_id=str(n)) for n in range(6)]
    now = [statement(1000, 20 if n < 5 else 90, query_id=str(n)) for n in range(6)]
    found, whole = changes(before, now, 190_000, 1)
    slow, same = (mean_ratio(statement(1000, 10), statement(1000, mean)) for mean in (20.0, 10.0))
    assert slow is not None
    assert same is not None

    assert whole == pytest.approx(2)
    assert [c["query_id"] for c in found if c["change"] == "slower"] == ["5"]
    assert all("whole server" in c["remark"] for c in found if c["change"] == "similar")
    assert whole_server([slow, slow, same, same]) is None
    assert whole_server([slow] * 3) is None
    assert whole_server([slow, slow, slow, same]) == pytest.approx(2)


def test_regressions_are_sorted_by_what_they_cost() -> None:
    """Not by their ratio, and after them what is new and gone."""
    before = {"1": (1000, 1), "2": (1000, 100), "3": (5, 1)}
    now = {"1": (1000, 9), "2": (1000, 200), "4": (50, 1)}
    first, second = (
        [statement(*one, query_id=id) for id, one in rows.items()] for rows in (before, now)
    )
    found, _ = changes(first, second, 209_000, 1)

    assert [(c["change"], c["query_id"]) for c in found] == [
        ("slower", "2"),
        ("slower", "1"),
        ("new", "4"),
        ("vanished", "3"),
    ]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"rows": 100}, {"rows": 5000}, "rows per call 1 → 50 (data)"),
        (
            {"hit_blocks": 1200, "read_blocks": 0},
            {"hit_blocks": 430_000, "read_blocks": 0},
            "blocks per call 12 → 4,300 (plan or data, maybe a lost index)",
        ),
        (
            {"hit_blocks": 990, "read_blocks": 10},
            {"hit_blocks": 500, "read_blocks": 500},
            "blocks found in memory 99 → 50 % (cache)",
        ),
        (
            {"read_blocks": 100, "hit_blocks": 0, "read_ms": 10.0},
            {"read_blocks": 100, "hit_blocks": 0, "read_ms": 400.0},
            "time per block read 0.1 → 4 ms (disk)",
        ),
        ({"temp_bytes": 0}, {"temp_bytes": 100 * 8192}, "temporary files 0 → 8 kB per call (spill"),
        (
            {"docs_examined_per_call": 10.0},
            {"docs_examined_per_call": 9000.0},
            "documents examined per call 10 → 9,000",
        ),
    ],
)
def test_a_cause_is_named_with_its_figures(
    before: dict[str, Any], now: dict[str, Any], words: str
) -> None:
    """What changed beside the time, and nothing that did not."""
    (said,) = causes(statement(100, 10, **before), statement(100, 20, **now), 1.0)

    assert said.startswith(words)


def test_more_calls_are_counted_per_time() -> None:
    """Twice as many in a window twice as long are not more."""
    assert causes(statement(100, 1), statement(200, 1), 2.0) == []
    assert causes(statement(100, 1), statement(400, 1), 2.0) == [
        "2.0 times as many calls (application)"
    ]


def test_what_cannot_be_told_is_missing() -> None:
    """No ratio of one call or a mean of 0; 0 of 0 blocks is neither all nor none."""
    none, some = ({"hit_blocks": h, "read_blocks": r} for h, r in ((0, 0), (30, 10)))

    assert mean_ratio(statement(50, 0), statement(50, 1)) is None
    assert mean_ratio(statement(1, 1), statement(50, 1)) is None
    assert [
        (found["blocks_per_call"], found["hit_ratio"])
        for found in (statement(10, 1, **none), statement(10, 1, **some))
    ] == [(0, None), (4, 0.75)]
