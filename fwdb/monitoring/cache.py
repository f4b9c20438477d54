"""How many of the blocks that were asked for were found in the server's own memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fwdb.errors import FwdbError
from fwdb.measure import Measure, Status, measured, unmeasured
from fwdb.monitoring.history import History
from fwdb.monitoring.sessions import server_status
from fwdb.stores import MongoStore, PostgresStore

UNIT = "ratio"

# Below this a handful of first reads decides the ratio, and it says nothing about the memory.
LEAST_BLOCKS = 1000

SUBJECTS = {"postgres": "database", "mongodb": "server"}  # of the stored counters
SOURCES = {
    "postgres": "difference of two readings of pg_stat_database",
    "mongodb": "difference of two readings of serverStatus.wiredTiger.cache",
}


@dataclass(frozen=True, slots=True)
class CacheReading:
    """Counters of one moment: blocks found in memory, and blocks that had to be read."""

    read_at: datetime
    found: int
    read: int
    read_ms: float | None = None
    reset_at: datetime | None = None
    started_at: datetime | None = None


def postgres_counters(store: PostgresStore) -> dict[str, Any]:
    """`database_counters.sql`, ready for JSON."""
    row = store.rows("database_counters")[0]
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def mongodb_counters(store: MongoStore) -> dict[str, Any]:
    """What is kept of serverStatus, ready for JSON; without the constants of SecantusDB."""
    status = server_status(store)
    kept: dict[str, Any] = {
        "read_at": datetime.now(UTC).isoformat(),
        "uptime_seconds": float(status["uptime"]),
        "connections": int(status["connections"]["current"]),
        "operations": {name: int(n) for name, n in status.get("opcounters", {}).items()},
    }
    cache = status.get("wiredTiger", {}).get("cache")
    if cache:
        kept["pages_requested"] = int(cache["pages requested from the cache"])
        kept["pages_read"] = int(cache["pages read into cache"])
    return kept


def reading(database: str, counters: Mapping[str, Any]) -> CacheReading | None:
    """The cache's part of `counters`, or None when the server has no such counters."""
    read_at = datetime.fromisoformat(counters["read_at"]).astimezone(UTC)
    if database == "postgres":
        return CacheReading(
            read_at,
            int(counters["hit_blocks"]),
            int(counters["read_blocks"]),
            float(counters["read_ms"]) if counters["io_timed"] else None,
            _time(counters["stats_reset"]),
            _time(counters["server_started_at"]),
        )
    if "pages_requested" not in counters:
        return None
    requested, read = int(counters["pages_requested"]), int(counters["pages_read"])
    uptime = timedelta(seconds=counters["uptime_seconds"])
    return CacheReading(read_at, max(0, requested - read), read, started_at=read_at - uptime)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def stored(history: History, database: str, reading_id: int) -> CacheReading | None:
    """The cache's part of a stored reading, or None when it has none."""
    for row in history.rows("stored_counters", reading_id=reading_id):
        if (row["database"], row["subject"]) == (database, SUBJECTS[database]):
            return reading(database, json.loads(row["counters"]))
    return None


def ratio(database: str, first: CacheReading, second: CacheReading) -> Measure:
    """Found in memory ÷ asked for, between two readings."""
    source, since = SOURCES[database], first.read_at
    found, read = second.found - first.found, second.read - first.read
    restarted = second.started_at is not None and second.started_at > first.read_at
    # PostgreSQL keeps its counters over an orderly restart, MongoDB does not.
    anew = (
        (database == "mongodb" and restarted)
        or found < 0
        or read < 0
        or first.reset_at != second.reset_at
    )
    if anew:
        found, read = second.found, second.read
        began = second.reset_at or second.started_at
        since = max(since, began) if began else since
    window = (since, second.read_at)
    asked = found + read
    if asked < LEAST_BLOCKS:
        return unmeasured(
            "no_data",
            f"{asked or 'no'} block{'' if asked == 1 else 's'} were asked for in the window; a "
            f"ratio needs {LEAST_BLOCKS:,}",
            UNIT,
            database,
            source,
            window=window,
        )
    remark = f"{read:,} of {asked:,} blocks read"
    if first.read_ms is not None and second.read_ms is not None and read:
        spent = second.read_ms - (0.0 if anew else first.read_ms)
        remark += f", {spent / read:.3f} ms each"
    elif database == "postgres" and read:
        remark += ", their time not measured (track_io_timing is off)"
    if anew:
        remark += "; the counters began anew within the window"
    elif restarted:
        remark += "; the server was restarted within the window"
    return measured(found / asked, UNIT, database, source, remark=remark, window=window)


def none(
    database: str, status: Status, reason: str, window: tuple[datetime, datetime] | None = None
) -> Measure:
    """No ratio, and why."""
    return unmeasured(status, reason, UNIT, database, SOURCES[database], window=window)


class Cache:
    """The cache ratio of the two stores, over a window of the history or sampled live."""

    def __init__(self, postgres: PostgresStore, mongodb: MongoStore, history: History) -> None:
        self._postgres = postgres
        self._mongodb = mongodb
        self._history = history

    def window(self, database: str, since: datetime, until: datetime | None) -> Measure:
        """From the first stored reading of the window to now, or to the last before `until`."""
        if unable := self._unable(database):
            return unable
        end = until or datetime.now(UTC)
        if absence := self._history.absence():
            return none(database, "no_data", absence, (since, end))
        edges = self._history.edges(since, end, ["light", "full"])
        found = [stored(self._history, database, edge.reading_id) for edge in edges]
        readings = [one for one in found if one is not None]
        if until is None and readings and (now := self._now(database)):
            readings = [readings[0], now]
        if len(readings) < 2:
            reason = (
                f"{'one reading' if readings else 'no reading'} was stored in this window; run "
                "'fwdb monitor', or sample with live_seconds"
            )
            return none(database, "no_data", reason, (since, end))
        return ratio(database, readings[0], readings[1])

    def live(self, database: str, seconds: float) -> Measure:
        """Within the next `seconds`."""
        if unable := self._unable(database):
            return unable
        first = self._now(database)
        time.sleep(seconds)
        second = self._now(database)
        assert first is not None
        assert second is not None
        return ratio(database, first, second)

    def window_both(self, since: datetime, until: datetime | None) -> list[Measure]:
        """The ratio of PostgreSQL and that of MongoDB, which may not answer."""
        found = [self.window("postgres", since, until)]
        try:
            found.append(self.window("mongodb", since, until))
        except FwdbError as error:
            found.append(none("mongodb", "not_available", str(error)))
        return found

    def live_both(self, seconds: float) -> list[Measure]:
        """The same within the next `seconds`, which both are watched for."""
        try:
            unable = self._unable("mongodb")
            begun = None if unable else self._now("mongodb")
        except FwdbError as error:
            unable, begun = none("mongodb", "not_available", str(error)), None
        found = [self.live("postgres", seconds)]
        try:
            ended = self._now("mongodb") if begun else None
        except FwdbError as error:
            unable, ended = none("mongodb", "not_available", str(error)), None
        if begun and ended:
            return [*found, ratio("mongodb", begun, ended)]
        assert unable is not None
        return [*found, unable]

    def _unable(self, database: str) -> Measure | None:
        """A `Measure` that says so when the server has no counters of its cache."""
        if database == "mongodb" and self._now(database) is None:
            kind = "SecantusDB" if self._mongodb.is_secantus else "this server"
            return none(database, "not_available", f"{kind} tells nothing about its cache")
        return None

    def _now(self, database: str) -> CacheReading | None:
        counters = (
            postgres_counters(self._postgres)
            if database == "postgres"
            else mongodb_counters(self._mongodb)
        )
        return reading(database, counters)
