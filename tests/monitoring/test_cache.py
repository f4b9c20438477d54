"""The cache ratio: that of the window, by kind of access, and never a number without blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.monitoring import NOON, ask, do, flush

from fwdb.database import Database
from fwdb.monitoring import Measure, Monitor, readings
from fwdb.monitoring.cache import by_access, ratio
from fwdb.monitoring.readings import Reading, parsed
from fwdb.stores import PostgresStore


def test_a_measure_has_a_value_exactly_when_it_is_ok() -> None:
    """Neither a number beside "not available" nor a missing one beside "ok"; as a sentence it is
    the number with its unit and remark, or the status with its reason."""
    for status, value in (
        ("ok", None),
        ("no_data", 0.0),
        ("not_applicable", 1.0),
        ("ok", math.nan),
    ):
        with pytest.raises(ValueError, match="measure"):
            Measure(value, "ratio", status, "", "postgres", "test")  # type: ignore[arg-type]
    measured = Measure(0.98765, "ratio", "ok", "3 of 100 blocks read", "postgres", "test")
    missing = Measure(None, "seconds", "not_applicable", "no replica", "postgres", "test")
    assert str(measured) == "0.9877 ratio (3 of 100 blocks read)"
    assert str(missing) == "not applicable: no replica"


# -- on the servers -------------------------------------------------------------------------------


def counted(store: PostgresStore) -> tuple[int, int]:
    row = store.rows("database_counters")[0]
    return row["hit_blocks"], row["read_blocks"]


def test_the_cache_of_a_window_comes_from_the_readings_at_its_ends(
    watched: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Rows by access from PostgreSQL 16 on; before, the database's own counters alone. A reset in
    between would make a difference negative."""
    do(watched, "DROP TABLE IF EXISTS wide", "CREATE TABLE wide (text text)")
    do(watched, "INSERT INTO wide SELECT repeat('x', 2000) FROM generate_series(1, 2000)")
    flush(watched)
    monitor.sample()
    before = counted(watched)
    # So much that what other sessions report late, the monitor's own too, is nothing beside it.
    with watched.connection() as connection:
        for _ in range(100):
            connection.execute(sa.text("SELECT count(*) FROM wide"))
    flush(watched)
    wait_until(lambda: counted(watched)[0] - before[0] > 25_000)
    found, after, frame = monitor.cache_hit_ratio(), counted(watched), monitor.cache()
    live = monitor.cache(live_seconds=0.01)
    hit, read = after[0] - before[0], after[1] - before[1]
    mine = frame[frame["database"] == "postgres"]
    accesses = mine[mine["counted"] == "all databases"]

    assert found.status == "ok"
    assert found.value == pytest.approx(hit / (hit + read), abs=0.02)
    assert "blocks read" in found.reason
    assert found.window is not None
    assert mine.iloc[0]["counted"] == "this database"
    assert mine.iloc[0]["hit_ratio"] == pytest.approx(found.value, abs=0.05)
    if watched.server_version >= 160000:
        assert accesses["access"].tolist() == ["bulkread", "bulkwrite", "normal", "vacuum"]
        assert accesses.set_index("access").loc["normal", "hit_ratio"] > 0.5
    else:
        assert accesses.empty
    assert frame.iloc[-1]["status"] == "not_available"  # SecantusDB
    assert live["access"].tolist() == frame["access"].tolist()

    ask(watched, "SELECT pg_stat_reset()")
    anew = monitor.cache_hit_ratio()
    assert anew.status == "no_data" or "began anew" in anew.reason
    assert anew.value is None or 0 <= anew.value <= 1


def test_reads_are_counted_in_bytes_and_not_in_operations(db: Database) -> None:
    """PostgreSQL 18 reads up to 16 blocks at once and counts that as one read."""
    store, text = db.postgres, "SELECT sum(reads) AS n FROM pg_stat_io WHERE context = 'normal'"
    do(
        store,
        "CREATE EXTENSION pg_buffercache",
        "CREATE TABLE cold AS SELECT repeat('x', 2000) AS text FROM generate_series(1, 8000)",
        "CHECKPOINT",
    )
    blocks = ask(store, "SELECT pg_relation_size('cold') / 8192 AS n")[0]["n"]
    flush(store)
    before, operations = readings.io_counters(store), ask(store, text)[0]["n"]
    read = counted(store)[1]
    with store.connection() as connection:
        connection.execute(sa.text("SELECT pg_buffercache_evict_relation('cold')"))
        connection.execute(sa.text("SELECT count(*) FROM cold"))
    flush(store)
    found = accesses(before, readings.io_counters(store))["normal"]

    assert found["read_bytes"] >= 0.9 * blocks * 8192
    assert counted(store)[1] - read >= 0.9 * blocks
    assert ask(store, text)[0]["n"] - operations < 0.5 * blocks, "which is the trap"
    assert found["hit_ratio"] < 0.6
    assert found["read_ms_per_block"] > 0


# -- two readings by hand -------------------------------------------------------------------------


def counters(minutes: float, found: int, read: int, **more: Any) -> Reading:
    at = (NOON + timedelta(minutes=minutes)).isoformat()
    kept = {"read_at": at, "stats_reset": None, "io_timed": "read_ms" in more, "read_ms": 0.0}
    return parsed(kept | {"hit_blocks": found, "read_blocks": read} | more)


@pytest.mark.parametrize(("found", "read"), [(0, 0), (3, 0), (0, 999)])
def test_too_few_blocks_are_no_ratio(found: int, read: int) -> None:
    """Nothing asked for is neither 0 nor 1."""
    measure = ratio("postgres", counters(0, 500, 500), counters(9, 500 + found, 500 + read))

    assert measure.status == "no_data"
    assert "1,000" in measure.reason


RESET = NOON + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("first", "second", "value", "words"),
    [
        # 0.9987 since the start and 0.9614 now are 0.085 in between.
        (counters(0, 998_700, 1_300), counters(9, 1_001_910, 35_860), 0.0850, "not measured"),
        # Counters that began anew, smaller or with another time of reset, count from there.
        (counters(0, 9000, 9000), counters(9, 3000, 1000), 0.75, "began anew"),
        (
            counters(0, 10, 10),
            counters(9, 3000, 1000, stats_reset=RESET.isoformat()),
            0.75,
            "began anew",
        ),
        # No milliseconds without track_io_timing.
        (counters(0, 0, 0, read_ms=0.0), counters(9, 1000, 1000, read_ms=500.0), 0.5, "0.500 ms"),
        (counters(0, 0, 0), counters(9, 1000, 1000), 0.5, "track_io_timing is off"),
    ],
)
def test_the_ratio_is_that_between_two_readings(
    first: Reading, second: Reading, value: float, words: str
) -> None:
    """Exact, or from where the counters began; with what a read cost where that is measured."""
    found = ratio("postgres", first, second)

    assert found.value == pytest.approx(value, abs=0.001)
    assert words in found.reason
    assert ("began anew" in found.reason) == (words == "began anew")
    assert found.window == (second.reset_at or NOON, NOON + timedelta(minutes=9))


def test_a_mongodb_that_was_restarted_counts_from_there() -> None:
    """Also when its counters are greater than before: they do not outlive it."""

    def answer(minutes: float, uptime: float, requested: int, read: int) -> Reading:
        at = (NOON + timedelta(minutes=minutes)).isoformat()
        pages = {"pages_requested": requested, "pages_read": read}
        return parsed({"read_at": at, "uptime_seconds": uptime, **pages})

    steady = ratio("mongodb", answer(0, 600, 5000, 1000), answer(10, 1200, 9000, 2000))
    restarted = ratio("mongodb", answer(0, 600, 100, 10), answer(10, 60, 9000, 2250))

    assert steady.value == restarted.value == pytest.approx(0.75)
    assert "began anew" in restarted.reason


def accesses(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["access"]: row for row in by_access(parsed(first), parsed(second))}


def io(found: int, read: int, ms: float = 0.0, **more: Any) -> dict[str, Any]:
    counts = {"normal": [found * 8192, read * 8192, ms], **more.pop("also", {})}
    kept = {"read_at": NOON.isoformat(), "stats_reset": None, "io_timed": True}
    return kept | {"block_bytes": 8192, "accesses": counts, **more}


def test_large_scans_do_not_spoil_the_ratio_of_the_working_set() -> None:
    """They are a row of their own."""
    scanned = io(99_000, 1_000, 50.0, also={"bulkread": [0, 100_000 * 8192, 900.0]})
    rows = accesses(io(0, 0), scanned)

    assert rows["normal"]["hit_ratio"] == pytest.approx(0.99)
    assert rows["normal"]["read_ms_per_block"] == pytest.approx(0.05)
    assert rows["bulkread"]["hit_ratio"] == 0


@pytest.mark.parametrize(
    ("first", "second", "ratio", "words"),
    [
        (io(0, 0), io(500, 100), None, "fewer than 1,000 blocks"),
        (io(0, 0), io(0, 0), None, "fewer than 1,000 blocks"),
        (io(9_000, 9_000), io(3_000, 1_000), 0.75, "began anew"),
        (io(0, 0), io(3_000, 1_000, stats_reset="2026-11-02"), 0.75, "began anew"),
        (io(0, 0), io(3_000, 1_000, io_timed=False), 0.75, "not timed"),
    ],
)
def test_a_row_without_a_number_says_why(
    first: dict[str, Any], second: dict[str, Any], ratio: float | None, words: str
) -> None:
    """Too little, a reset, reads that nobody timed."""
    row = accesses(first, second)["normal"]

    assert row.get("hit_ratio") == ratio
    assert (row["status"] == "ok") == (ratio is not None)
    assert words in row["reason"]
    assert second["io_timed"] or "read_ms_per_block" not in row
