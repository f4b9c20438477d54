"""The lists of statements by what they cost, and what changed from one window to another."""

from __future__ import annotations

import math
import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from test_slow_queries import (  # noqa: F401 fixtures
    NOON,
    entry,
    found,
    mongodb,
    monitor,
    reading,
    run,
    watched,
)

from fwdb import embedded, migrating
from fwdb.errors import FeatureUnavailable, ParameterError, UnknownName
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


def test_eviction_is_told_in_numbers() -> None:
    """248 of 838 calls visible, no reset and no counter that fell: only dealloc betrays it."""
    first = reading(0, entry(2), dealloc=5, transactions=1000, active_ms=5000.0)
    second = reading(10, entry(250), dealloc=44, transactions=1838, active_ms=13_000.0)
    shapes, coverage = difference(first, second)

    assert shapes[1]["calls"] == 248
    assert (coverage.dealloc, coverage.evicted) == (39, 390)
    assert coverage.calls_percent == pytest.approx(100 * 248 / 838)
    assert coverage.time_percent == pytest.approx(31)  # 2,480 of 8,000 ms
    assert coverage.sentence.startswith(
        "about 30 % of the calls were seen (248 beside 838 transactions), at least 31 % of the time"
    )
    assert "about 390 entries evicted" in coverage.sentence
    assert "pg_stat_statements.max from 100" in coverage.sentence


@pytest.mark.parametrize(
    ("transactions", "dealloc"),
    [(20, 1), (100, 0)],
    ids=["several calls in one", "pools test connections by empty ones"],
)
def test_transactions_alone_prove_no_loss(transactions: int, dealloc: int) -> None:
    """They are neither more nor fewer than the calls for sure: no estimate where none helps."""
    first = reading(0, entry(0), transactions=0)
    second = reading(10, entry(50), transactions=transactions, active_ms=900.0, dealloc=dealloc)
    _, coverage = difference(first, second)

    assert coverage.transactions == transactions
    assert coverage.calls_percent is None
    assert coverage.time_percent == pytest.approx(100 * 500 / 900)


def test_nothing_lost_is_nothing_said() -> None:
    """A sentence about the coverage means that something is missing."""
    _, coverage = difference(reading(0, entry(0)), reading(10, entry(50)))

    assert coverage.complete
    assert coverage.sentence == ""


@pytest.mark.parametrize(
    ("minutes", "more", "words"),
    [
        (0.5, {}, "too short"),
        (10, {"database_reset_at": NOON + timedelta(minutes=3)}, "were reset"),
        (10, {"transactions": -5}, "were reset"),
    ],
)
def test_no_estimate_where_the_other_counters_cannot_tell(
    minutes: float, more: dict[str, Any], words: str
) -> None:
    """Sessions hand their counters in late, and a reset makes them begin anew."""
    second = reading(minutes, entry(9), **({"transactions": 50} | more))
    _, coverage = difference(reading(0, entry(1)), second)

    assert coverage.transactions is coverage.calls_percent is coverage.time_percent is None
    assert words in coverage.estimate


@pytest.mark.parametrize(("rare", "dealloc"), [(1, 1), (20, 0)])
def test_a_crash_empties_everything_without_a_reset(rare: int, dealloc: int) -> None:
    """Also an entry that grew past its old count, which before PostgreSQL 17 tells nothing.

    Most others that fell give it away, or the count of evictions that did.
    """
    first = reading(
        0,
        entry(5, None),
        entry(10, None, query_id=2),
        entry(10, None, query_id=3),
        dealloc=1,
    )
    second = reading(
        10,
        entry(9, None),
        entry(rare, None, query_id=2),
        dealloc=dealloc,
        server_started_at=NOON + timedelta(minutes=2),
    )
    shapes, coverage = difference(first, second)

    assert coverage.emptied
    assert shapes[1]["calls"] == 9
    assert "restarted" in coverage.sentence


def test_an_eviction_beside_a_restart_is_no_crash() -> None:
    """Else all that the others ever did would count as done in the window."""
    first = reading(0, entry(500, None), entry(9, None, query_id=2))
    second = reading(
        10,
        entry(510, None),
        entry(3, None, query_id=2),
        dealloc=1,
        server_started_at=NOON + timedelta(minutes=2),
    )
    shapes, coverage = difference(first, second)

    assert not coverage.emptied
    assert {id: shape["calls"] for id, shape in shapes.items()} == {1: 10, 2: 3}


def test_an_orderly_restart_keeps_the_counters() -> None:
    """Then nothing is missing, and the restart is said all the same."""
    second = reading(10, entry(9), server_started_at=NOON + timedelta(minutes=2))
    shapes, coverage = difference(reading(0, entry(5)), second)

    assert shapes[1]["calls"] == 4
    assert coverage.complete
    assert coverage.sentence == "the server was restarted within the window"


def test_calls_of_the_window_stand_beside_transactions(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """Read from the server, over a window that is long enough."""
    monitor.sample("full")
    watched.execute(
        sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '5 minutes'")
    )
    run(watched, "apples", 3)
    coverage = monitor.slow_queries(min_ms=0).attrs["coverage"]["postgres"]

    assert coverage["transactions"] is not None
    assert coverage["estimate"] == ""
    assert coverage["calls"] >= 3
    assert coverage["time_percent"] is None or 0 < coverage["time_percent"] <= 100


@pytest.mark.parametrize("version", ["1.8", "1.9", "1.10", "1.11"])
def test_an_extension_older_than_its_server_is_read_as_it_is(
    watched: PostgresStore,  # noqa: F811
    mongodb: MongoStore,  # noqa: F811
    version: str,
) -> None:
    """An upgrade of the server leaves the extension behind, with other columns and names."""
    known = watched.rows(
        sa.text(
            "SELECT 1 FROM pg_available_extension_versions WHERE name = 'pg_stat_statements' "
            "AND version = :version"
        ),
        version=version,
    )
    if not known:
        pytest.skip(f"this server has no version {version}")
    name = f"test_old_{time.time_ns()}"
    watched.execute(sa.text(f"CREATE DATABASE {name}"))
    url = watched.url.set(database=name, drivername="postgresql")
    old = PostgresStore(url.render_as_string(hide_password=False))
    limited = Monitor(old, mongodb)
    try:
        old.execute(sa.text(f"CREATE EXTENSION pg_stat_statements VERSION '{version}'"))
        if version == "1.8":
            with pytest.raises(
                FeatureUnavailable, match="ALTER EXTENSION pg_stat_statements UPDATE"
            ):
                limited.slow_queries(live_seconds=0.05)
            return
        timer = threading.Timer(0.1, lambda: old.rows(sa.text("SELECT pg_sleep(0.05)")))
        timer.start()
        frame = limited.slow_queries(live_seconds=0.6, min_ms=0)
        timer.join()
        slept = frame[frame["statement"].str.contains("pg_sleep")].iloc[0]

        assert (slept["calls"], slept["rows"]) == (1, 1)
        assert slept["mean_ms"] >= 50
        assert slept["wal_bytes"] == 0
    finally:
        limited.close()
        old.close()
        watched.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_full_pg_stat_statements_is_seen_by_its_evictions(
    tmp_path: Path,
    mongodb: MongoStore,  # noqa: F811
) -> None:
    """Room for 100, and 390 statements: no reset, no counter that fell, a third of the calls."""
    home = tmp_path / ".fwdb"
    running = embedded.up(home, stores=("postgres",), owner_pid=os.getpid(), idle_minutes=0)
    try:
        assert running.postgres
        admin = PostgresStore(running.postgres.superuser)
        admin.execute(sa.text("ALTER SYSTEM SET pg_stat_statements.max = 100"))
        admin.close()
        embedded.down(home)
        running = embedded.up(home, stores=("postgres",), owner_pid=os.getpid(), idle_minutes=0)
        assert running.postgres
        store = PostgresStore(running.postgres.superuser)
        migrating.migrate(store, None)
        crowded = Monitor(store, mongodb)
        crowded.sample("full")
        store.execute(sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '1 h'"))
        for n in range(390):
            statement = sa.text(f"SELECT {', '.join(['1'] * (n % 39 + 1))} {'+ 1' * (n // 39)}")
            for _ in range(2):
                store.rows(statement)
        store.rows(sa.text("SELECT pg_stat_force_next_flush()"))
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


def test_lists_are_sorted_by_what_they_are_about(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """And hold nothing that did not cost any of it."""
    monitor.sample("full")
    run(watched, "pears", 1, 0.5)
    for _ in range(3):
        watched.rows(sa.text("SELECT count(*) FROM plums"))
    with watched.transaction():
        watched.execute(sa.text("SET LOCAL work_mem = '64kB'"))
        watched.rows(
            sa.text("SELECT count(*) FROM (SELECT n FROM generate_series(1, 30000) n ORDER BY -n)q")
        )
        watched.execute(sa.text("CREATE TABLE scratch AS SELECT n FROM generate_series(1, 999) n"))
        watched.execute(sa.text("DROP TABLE scratch"))
    by = {
        order: monitor.slow_queries(min_ms=0, order=order)
        for order in ("total", "mean", "calls", "io", "temp", "wal")
    }
    monitor.close()

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
    plums = by["total"][by["total"]["statement"].str.contains("FROM plums", regex=False)].iloc[0]
    assert plums["rows_per_call"] == 1
    assert pd.isna(plums["growth_ms"])


def test_blocks_and_their_ratio_are_missing_where_none_were_asked_for() -> None:
    """0 of 0 blocks is neither all nor none."""
    none = statement(10, 1, hit_blocks=0, read_blocks=0)
    some = statement(10, 1, hit_blocks=30, read_blocks=10)

    assert (none["blocks_per_call"], none["hit_ratio"]) == (0, None)
    assert (some["blocks_per_call"], some["hit_ratio"]) == (4, 0.75)


def test_planning_time_is_missing_when_it_is_not_measured(
    watched: PostgresStore,  # noqa: F811
    mongodb: MongoStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """0 ms would say that planning is free."""
    name = watched.url.database
    for setting, missing in (("off", True), ("on", False)):
        watched.execute(
            sa.text(f"ALTER DATABASE {name} SET pg_stat_statements.track_planning = {setting}")
        )
        watched.close()  # the sessions of the pool keep the setting they began with
        fresh = Monitor(watched, mongodb)
        fresh.sample("full")
        since = fresh.readings()["read_at"].iloc[-1]
        run(watched, "kiwis", 2)
        frame = fresh.slow_queries(since=since, min_ms=0)
        fresh.close()

        assert pd.isna(found(frame, "kiwis")["plan_ms"]) is missing
        reasons = frame.attrs["not_measured"]["postgres"]
        assert reasons.get("plan_ms", "").endswith("track_planning is off") is missing
        assert missing or found(frame, "kiwis")["plan_ms"] > 0


def test_an_unknown_order_names_the_nearest(monitor: Monitor) -> None:  # noqa: F811
    """Before anything is asked."""
    with pytest.raises(UnknownName, match="did you mean 'total'"):
        monitor.slow_queries(order="totl")


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
    monitor: Monitor,  # noqa: F811
    arguments: dict[str, Any],
    word: str,
) -> None:
    """By name, before anything is asked."""
    with pytest.raises(ParameterError, match=word):
        monitor.query_changes(**arguments)


def test_growth_needs_a_window_before(monitor: Monitor) -> None:  # noqa: F811
    """Which a live one does not have."""
    with pytest.raises(ParameterError, match="live_seconds"):
        monitor.slow_queries(order="growth", live_seconds=1)


# -- two windows ----------------------------------------------------------------------------------


def test_two_windows_of_the_history_are_compared(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
    mongodb: MongoStore,  # noqa: F811
) -> None:
    """New, vanished, slower with its cause, and too few calls to tell: both stores in one frame."""
    things = mongodb.collection("things")
    watched.execute(sa.text("CREATE TABLE grown AS SELECT 1 AS n"))
    asked = sa.text("SELECT count(*) FROM grown WHERE n > 0")

    def work() -> None:
        for _ in range(30):
            watched.rows(asked)

    monitor.sample("full")
    work()
    run(watched, "limes", 3)
    things.insert_one({"n": 1})
    monitor.sample("full")
    watched.execute(
        sa.text("UPDATE monitoring.readings SET read_at = read_at - interval '61 minutes'")
    )
    # What the samples say of the commands' own time must lie in the window as well.
    watched.execute(
        sa.text(
            "UPDATE monitoring.readings SET details = details || jsonb_build_object("
            "'commands_since', "
            "CAST(details ->> 'commands_since' AS timestamptz) - interval '1 hour')"
        )
    )
    monitor.sample("full")
    watched.execute(sa.text("INSERT INTO grown SELECT * FROM generate_series(1, 60000)"))
    work()
    run(watched, "lemons", 2)
    things.delete_many({"n": 2})
    frame = monitor.query_changes(since="1h", compare_since="2h")
    kinds = dict(zip(frame["statement"], frame["change"], strict=True))

    assert list(frame.columns) == list(CHANGE_COLUMNS)
    slower = frame[frame["statement"].str.contains("count(*) FROM grown", regex=False)].iloc[0]
    assert slower["change"] == "slower", frame
    assert slower["ratio"] > slower["ratio_low"] > LEAST_RATIO
    assert slower["calls"] == slower["calls_before"] == 30
    assert slower["extra_ms"] == pytest.approx(
        30 * (slower["mean_ms"] - slower["mean_before_ms"]), rel=1e-6
    )
    assert "blocks per call" in slower["remark"]
    assert next(k for s, k in kinds.items() if "FROM lemons" in s) == "new"
    assert next(k for s, k in kinds.items() if "FROM limes" in s) == "vanished"
    assert kinds["things.insert(?)"] == "vanished"
    assert kinds["things.delete({n: ?})"] == "new"
    assert frame.attrs["whole_server"] == {}
    grown = monitor.slow_queries(since="1h", min_ms=0, order="growth", compare_since="2h")
    assert grown["growth_ms"].is_monotonic_decreasing
    assert grown["statement"].str.contains("FROM grown", regex=False).any()


def test_a_window_before_without_readings_is_said(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """Nothing to compare with must not make everything new."""
    monitor.sample("full")
    run(watched, "apples", 2)
    frame = monitor.query_changes(since="1h")

    assert frame.empty
    assert frame.attrs["status"] == "no_data"
    assert frame.attrs["missing"]["postgres"].startswith("the window before: no reading")


# -- the rule -------------------------------------------------------------------------------------


def statement(
    calls: int, mean_ms: float, *, id: int = 1, cv: float = 1.0, **more: Any
) -> dict[str, Any]:
    row = {
        "query_id": str(id),
        "calls": calls,
        "total_ms": calls * mean_ms,
        "squares_ms2": calls * mean_ms**2 * (1 + cv**2),
        "rows": calls,
    }
    return derived(row | more)


def judge(before: dict[str, Any], now: dict[str, Any], **more: Any) -> dict[str, Any]:
    (change,), _ = changes(
        [before], [now], **({"total_ms": now["total_ms"], "lengths": 1.0} | more)
    )
    return change


def measured(times: Any) -> dict[str, Any]:
    total, squares = float(times.sum()), float((times**2).sum())
    return derived({"calls": len(times), "total_ms": total, "squares_ms2": squares})


def times(rng: np.random.Generator, calls: int, scale: float = 1.0) -> Any:
    """Log-normal with cv 1, one in a hundred 20 times as long, and 10 % natural drift."""
    found = rng.lognormal(0, math.sqrt(math.log(2)), calls) * scale * math.exp(rng.normal(0, 0.1))
    found[rng.random(calls) < 0.01] *= 20
    return found


@pytest.mark.parametrize(
    ("calls", "false_alarms", "power"), [(30, 2.8, 38), (100, 2.5, 50), (1000, 1.8, 85)]
)
def test_the_rule_has_the_promised_figures(calls: int, false_alarms: float, power: float) -> None:
    """Percent of 600 trials: alarms without a change at most, and doublings found at least."""
    rng = np.random.default_rng(7)

    def alarms(scale: float) -> float:
        ratios = (
            mean_ratio(measured(times(rng, calls)), measured(times(rng, calls, scale)))
            for _ in range(600)
        )
        return 100 * sum(r is not None and r.low > LEAST_RATIO for r in ratios) / 600

    assert alarms(1) <= false_alarms
    assert alarms(2) >= power


def test_a_slower_statement_is_one_with_its_bound_above_the_line() -> None:
    """Twice as slow over 1,000 calls is; over 30 of that spread it is not sure."""
    sure = judge(statement(1000, 10), statement(1000, 20))
    unsure = judge(statement(30, 10, cv=2), statement(30, 20, cv=2))

    assert sure["change"] == "slower"
    assert sure["ratio"] == pytest.approx(2)
    assert sure["extra_ms"] == pytest.approx(10_000)
    assert unsure["change"] == "similar"


def test_too_few_calls_are_said_and_not_judged() -> None:
    """However slow: 29 calls say nothing about a mean."""
    few = judge(statement(1000, 10), statement(29, 1000))

    assert few["change"] == "unjudged"
    assert few["remark"] == "too few calls to judge (n=29)"


def test_what_costs_nothing_is_no_regression() -> None:
    """Ten times as slow, and half a percent of the time of the server."""
    cheap = judge(statement(100, 0.1, cv=0.1), statement(100, 1, cv=0.1), total_ms=20_000)

    assert cheap["change"] == "similar"
    assert "under 1%" in cheap["remark"]


def test_a_slower_server_is_not_a_list_of_regressions() -> None:
    """All slow by the same factor: one finding, and only who slowed by more is named."""
    before = [statement(1000, 10, id=n) for n in range(6)]
    now = [statement(1000, 20, id=n) for n in range(5)] + [statement(1000, 90, id=5)]
    found, whole = changes(before, now, total_ms=190_000, lengths=1)

    assert whole == pytest.approx(2)
    assert [c["query_id"] for c in found if c["change"] == "slower"] == ["5"]
    assert all("whole server" in c["remark"] for c in found if c["change"] == "similar")


def test_half_of_the_shapes_or_a_few_of_them_are_not_the_server() -> None:
    """More than half, of four or more."""
    slow, same = (mean_ratio(statement(1000, 10), statement(1000, mean)) for mean in (20.0, 10.0))
    assert slow is not None
    assert same is not None

    assert whole_server([slow, slow, same, same]) is None
    assert whole_server([slow] * 3) is None
    assert whole_server([slow, slow, slow, same]) == pytest.approx(2)


def test_regressions_are_sorted_by_what_they_cost() -> None:
    """Not by their ratio, and after them what is new and gone."""
    before = [statement(1000, 1, id=1), statement(1000, 100, id=2), statement(5, 1, id=3)]
    now = [statement(1000, 9, id=1), statement(1000, 200, id=2), statement(50, 1, id=4)]
    found, _ = changes(before, now, total_ms=209_000, lengths=1)

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


def test_equal_times_have_no_ratio_to_judge_by() -> None:
    """A mean of 0 or one call: no bound, and no division by zero."""
    assert mean_ratio(statement(50, 0), statement(50, 1)) is None
    assert mean_ratio(statement(1, 1), statement(50, 1)) is None
    assert judge(statement(50, 0), statement(50, 1))["change"] == "unjudged"
