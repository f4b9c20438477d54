"""How many of the blocks that were asked for were found in the server's own memory."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from fwdb.arguments import Seconds
from fwdb.errors import FwdbError
from fwdb.measure import Measure, Status, Window, measured, unmeasured
from fwdb.monitoring import readings
from fwdb.monitoring.context import Context, Database, frame
from fwdb.monitoring.history import window
from fwdb.monitoring.readings import Reading, Rows, delta
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time

COLUMNS = {
    "database": "string",
    "counted": "string",
    "access": "string",
    "found_bytes": "Int64",
    "read_bytes": "Int64",
    "hit_ratio": "float64",
    "read_ms_per_block": "float64",
    "status": "string",
    "reason": "string",
}

# Below this a handful of first reads decides the ratio, and it says nothing about the memory.
LEAST_BLOCKS = 1000

SUBJECTS = {"postgres": "database", "mongodb": "server"}  # of the stored counters
SOURCES = {
    "postgres": "difference of two readings of pg_stat_database",
    "mongodb": "difference of two readings of serverStatus.wiredTiger.cache",
}
BLOCKS = {name: readings.DATABASE[name] for name in ("hit_blocks", "read_blocks", "read_ms")}

_ANEW = "the counters began anew within the window"
_UNTIMED = "not measured (track_io_timing is off)"


def cache_hit_ratio(
    self: Context,
    database: Database = "postgres",
    since: Time = "24h",
    until: Time | None = None,
    *,
    live_seconds: Seconds | None = None,
) -> Measure:
    """Blocks found in the server's memory ÷ blocks asked for, in the window; 0 to 1.

    The difference of two readings, never the sum since the server started. A block that
    PostgreSQL had to read may still have come from the system's cache: the remark has the
    time per block read. ``no_data`` when fewer than 1,000 blocks were asked for.
    """
    if live_seconds is not None:
        return _live(self, live_seconds, database)[0]
    return _past(self, database, *window(since, until))


def cache(
    self: Context,
    since: Time = "24h",
    until: Time | None = None,
    *,
    live_seconds: Seconds | None = None,
) -> pd.DataFrame:
    """The cache of both servers in the window, by kind of access.

    The rows ``this database`` are `cache_hit_ratio()`. PostgreSQL 16 and later have further
    rows for ``all databases`` together: ordinary reads (``normal``) apart from large scans
    (``bulkread``), loads (``bulkwrite``) and ``vacuum``, which are not meant to be found in
    memory. `hit_ratio` is bytes found in shared buffers ÷ bytes asked for, 0 to 1,
    `read_ms_per_block` the time of a block that was not found, missing when reads are not
    timed: near 0 it came from the system's cache. Source: differences of pg_stat_io. A
    MongoDB that cannot be asked is a row that says why; the error of PostgreSQL is raised.
    """
    if live_seconds is not None:
        begin = _io_now(self.postgres)
        ratios = _live(self, live_seconds, "postgres", "mongodb")
        edges = [*begin, *_io_now(self.postgres)]
    else:
        start, end = window(since, until)
        ratios = [_past(self, "postgres", start, end)]
        try:
            ratios.append(_past(self, "mongodb", start, end))
        except FwdbError as error:
            ratios.append(_none("mongodb", "not_available", str(error)))
        edges = []
        if not self.history.absence():
            last = end or datetime.now(UTC)
            edges = self.history.window("postgres", "io", start, last, "light", "full")
            edges = [*edges[:1], *_io_now(self.postgres)] if end is None else edges
    told: dict[str, Any] = {"counted": "this database", "access": "all"}
    rows = [
        told
        | {n: getattr(one, n) for n in ("database", "status", "reason")}
        | {"hit_ratio": one.value}
        for one in ratios
    ]
    if len(edges) == 2:
        rows[1:1] = by_access(*edges)
    return frame(COLUMNS, rows)


def now(store: PostgresStore | MongoStore) -> Reading | None:
    """The counters of this moment, or None from a server that counts no blocks."""
    if isinstance(store, PostgresStore):
        return readings.parsed(readings.database_counters(store))
    found = readings.parsed(readings.mongodb_counters(store))
    return found if "hit_blocks" in found.row else None


def ratio(database: str, first: Reading, second: Reading) -> Measure:
    """Found in memory ÷ asked for, between two readings."""
    between = delta(first, second, BLOCKS)
    found, read, spent = (between.row[name] for name in BLOCKS)
    since = first.read_at
    if between.anew:
        since = max(since, second.reset_at or second.started_at or since)
    asked, edges = found + read, (since, second.read_at)
    if asked < LEAST_BLOCKS:
        reason = (
            f"{asked or 'no'} block{'' if asked == 1 else 's'} were asked for in the window; a "
            f"ratio needs {LEAST_BLOCKS:,}"
        )
        return _none(database, "no_data", reason, edges)
    remark = f"{read:,} of {asked:,} blocks read"
    if database == "postgres" and read:
        timed = first.state["io_timed"] and second.state["io_timed"]
        remark += f", {spent / read:.3f} ms each" if timed else f", their time {_UNTIMED}"
    if between.anew:
        remark += f"; {_ANEW}"
    elif readings.restarted(first, second):
        remark += "; the server was restarted within the window"
    return measured(
        found / asked, "ratio", database, SOURCES[database], remark=remark, window=edges
    )


def by_access(first: Reading, second: Reading) -> Rows:
    """One row per kind of access with what happened between two readings of pg_stat_io."""
    between = delta(first, second, readings.IO)
    block = int(second.state["block_bytes"])
    rows = []
    for access, counted in between.rows.items():
        found, read = counted["found_bytes"], counted["read_bytes"]
        reasons = [_ANEW] if access in between.anew else []
        row: dict[str, Any] = {
            "database": "postgres",
            "counted": "all databases",
            "access": access,
            **counted,
            "status": "ok",
        }
        if found + read >= LEAST_BLOCKS * block:
            row["hit_ratio"] = found / (found + read)
        else:
            row["status"] = "no_data"
            reasons.append(f"fewer than {LEAST_BLOCKS:,} blocks were asked for")
        if read and first.state["io_timed"] and second.state["io_timed"]:
            row["read_ms_per_block"] = counted["read_ms"] / (read / block)
        elif read:
            reasons.append("reads are not timed (track_io_timing is off)")
        rows.append(row | {"reason": "; ".join(reasons)})
    return rows


def _past(self: Context, database: str, since: datetime, until: datetime | None) -> Measure:
    """From the first stored reading of the window to now, or to the last before `until`."""
    current = _now(self, database) if until is None or database == "mongodb" else None
    if isinstance(current, Measure):
        return current
    end = until or datetime.now(UTC)
    if absence := self.history.absence():
        return _none(database, "no_data", absence, (since, end))
    found = self.history.window(database, SUBJECTS[database], since, end, "light", "full")
    found = [reading for reading in found if "hit_blocks" in reading.row]
    if until is None and found and current:
        found = [found[0], current]
    if len(found) < 2:
        reason = (
            f"{'one reading' if found else 'no reading'} was stored in this window; run "
            "'fwdb monitor', or sample with live_seconds"
        )
        return _none(database, "no_data", reason, (since, end))
    return ratio(database, *found)


def _live(self: Context, seconds: float, *databases: str) -> list[Measure]:
    """The ratios of databases that are watched at the same time for the next `seconds`."""
    ask = _or_reason if len(databases) > 1 else _now
    begun = {database: ask(self, database) for database in databases}
    time.sleep(seconds)
    found = []
    for database, first in begun.items():
        end = first if isinstance(first, Measure) else ask(self, database)
        if isinstance(first, Reading) and isinstance(end, Reading):
            end = ratio(database, first, end)
        assert isinstance(end, Measure)
        found.append(end)
    return found


def _or_reason(self: Context, database: str) -> Reading | Measure:
    """As `_now`; a MongoDB that cannot be asked is a reason."""
    try:
        return _now(self, database)
    except FwdbError as error:
        if database == "postgres":
            raise
        return _none(database, "not_available", str(error))


def _now(self: Context, database: str) -> Reading | Measure:
    store = self.postgres if database == "postgres" else self.mongodb
    if found := now(store):
        return found
    kind = "SecantusDB" if self.mongodb.is_secantus else "this server"
    return _none(database, "not_available", f"{kind} tells nothing about its cache")


def _io_now(store: PostgresStore) -> list[Reading]:
    if store.server_version < readings.IO_MINIMUM:
        return []
    return [readings.parsed(readings.io_counters(store))]


def _none(database: str, status: Status, reason: str, edges: Window | None = None) -> Measure:
    return unmeasured(status, reason, "ratio", database, SOURCES[database], window=edges)
