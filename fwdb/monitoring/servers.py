"""The servers themselves: sizes and ages, what happened in a window, and what was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from fwdb.errors import PermissionDenied
from fwdb.measure import Measure, Status, Window, measured, unmeasured
from fwdb.monitoring import readings
from fwdb.monitoring.context import Context, frame
from fwdb.monitoring.history import History, window
from fwdb.monitoring.readings import Reading, Row, Rows, delta
from fwdb.stores import PostgresStore
from fwdb.timespan import Time

CHANGES = {
    "database": "string",
    "noticed_at": "timestamp",
    "what": "string",
    "name": "string",
    "before": "string",
    "after": "string",
}
TRENDS = {
    "read_at": "timestamp",
    "database": "string",
    "measure": "string",
    "value": "float64",
    "unit": "string",
}

# Transaction numbers are compared modulo 2**32, so a row older than half of that would seem to be
# of the future; the server stops before (documentation, "Preventing Transaction ID Wraparound").
WRAPAROUND = 2**31

# Below these, a handful of transactions or checkpoints makes a share that says nothing.
LEAST_TRANSACTIONS = 100
LEAST_CHECKPOINTS = 4

# Values are stored again after this time, so that removing old readings keeps the last ones.
SETTINGS_EVERY = timedelta(days=1)
SHIPPED = "(as shipped)"

# MongoDB tells only how long it has been up, to a second, and takes its time to answer.
START_TOLERANCE = timedelta(seconds=5)

NO_BACKUP = "PostgreSQL keeps no record of base backups; ask the tool that makes them"
PAST = "it is known for this moment only, and this window ended earlier"
NONE_STORED = "no full reading was stored in this window; run 'fwdb monitor'"

# Figures of `server_facts`, their units and sources.
_HISTORY = "monitoring history"
_DATABASE = "difference of two readings of pg_stat_database"
_FIGURES = {
    "database_bytes": ("bytes", "pg_database_size"),
    "wraparound_percent": ("percent", "pg_database.datfrozenxid"),
    "archive_age_seconds": ("seconds", "pg_stat_archiver"),
    "backup_age_seconds": ("seconds", "pg_stat_archiver"),
    "growth_bytes": ("bytes", "pg_database_size"),
    "wal_written_bytes": ("bytes", "pg_current_wal_lsn"),
    "checkpoints_requested_percent": (
        "percent",
        "difference of two readings of pg_stat_checkpointer, or pg_stat_bgwriter",
    ),
    "deadlocks": ("count", _DATABASE),
    "rollback_percent": ("percent", _DATABASE),
    "temp_bytes": ("bytes", _DATABASE),
    "wal_bytes": ("bytes", "pg_ls_waldir"),
}
_STATE = tuple(_FIGURES)[:4]
_OVER_WINDOW = tuple(_FIGURES)[4:7]
_HAPPENED = tuple(_FIGURES)[7:10]

# -- figures ------------------------------------------------------------------------------------


def server_facts(
    self: Context, since: Time = "24h", until: Time | None = None
) -> dict[str, Measure]:
    """Single figures about PostgreSQL, by name.

    Of this moment, or of the last reading before `until`: ``database_bytes``, ``wal_bytes``
    (this moment only), ``wraparound_percent`` (age of the oldest transaction or multixact of
    2³¹), ``archive_age_seconds``, ``backup_age_seconds`` (known only when the archive tells).
    Over the window: ``growth_bytes``, ``wal_written_bytes``,
    ``checkpoints_requested_percent`` of all checkpoints, ``deadlocks``,
    ``rollback_percent`` of all transactions, ``temp_bytes``.
    """
    start, end = window(since, until)
    absence, last = self.history.absence(), end or datetime.now(UTC)
    facts: list[Reading] = []
    counters: list[Reading] = []
    if not absence:
        facts = self.history.window("postgres", "server", start, last, "full")
        counters = self.history.window("postgres", "database", start, last, "light", "full")
    if end is None:
        facts = [*facts[:1], readings.parsed(readings.server_facts(self.postgres))]
        counters = [*counters[:1], readings.parsed(readings.database_counters(self.postgres))]
    return {
        **state(facts[-1] if facts else None),
        **over_window(facts, absence),
        **happened(counters, absence),
        "wal_bytes": _log_size(self.postgres)
        if end is None
        else _none("wal_bytes", "no_data", PAST, source=_HISTORY),
    }


def _ok(name: str, value: float, remark: str = "", edges: Window | None = None) -> Measure:
    unit, source = _FIGURES[name]
    return measured(value, unit, "postgres", source, remark=remark, window=edges)


def _none(
    name: str, status: Status, reason: str, edges: Window | None = None, *, source: str = ""
) -> Measure:
    unit, usual = _FIGURES[name]
    return unmeasured(status, reason, unit, "postgres", source or usual, window=edges)


def _log_size(store: PostgresStore) -> Measure:
    """Disk that the write-ahead log takes."""
    try:
        row = store.rows("wal_files")[0]
    except PermissionDenied:
        reason = "this role may not look at the files of the log: GRANT pg_monitor TO it"
        return _none("wal_bytes", "not_measured", reason)
    remark = f"{row['wal_files']} files; max_wal_size is {row['max_wal_bytes'] // 1024**2:,} MB"
    return _ok("wal_bytes", row["wal_bytes"], remark)


def state(now: Reading | None) -> dict[str, Measure]:
    """What one reading of `server_facts.sql` tells: size, wraparound, archive and backup."""
    if now is None:
        return {name: _none(name, "no_data", NONE_STORED, source=_HISTORY) for name in _STATE}
    row, archived_at = now.row, readings.moment(now.row["archived_at"])
    age = 100 * max(row["transaction_age"], row["multixact_age"]) / WRAPAROUND
    oldest = f"{row['transaction_age']:,} transactions in {row['transaction_database']}"
    remark = ""
    if row["archive_failures"]:
        failed = row["archive_failed_at"]
        remark = f"{row['archive_failures']:,} attempts failed, the last at {failed}"
    # The server itself notes a base backup only by the file that it archives at the end.
    backup = _none("backup_age_seconds", "not_available", NO_BACKUP, source=_HISTORY)
    if archived_at is not None:
        since = max(0.0, (now.read_at - archived_at).total_seconds())
        archive = _ok("archive_age_seconds", since, remark)
        if str(row["archived_file"] or "").endswith(".backup"):
            backup = _ok("backup_age_seconds", since, "a base backup was the last thing archived")
    else:
        reason = remark or "no file was archived yet"
        archive = _none("archive_age_seconds", "no_data", reason)
    if not row["archiving"]:
        reason = "the server archives no log (archive_mode is off)"
        archive = _none("archive_age_seconds", "not_applicable", reason)
    return {
        "database_bytes": _ok("database_bytes", row["database_bytes"]),
        "wraparound_percent": _ok("wraparound_percent", age, oldest),
        "archive_age_seconds": archive,
        "backup_age_seconds": backup,
    }


def over_window(facts: Sequence[Reading], absence: str) -> dict[str, Measure]:
    """Growth, log written, and checkpoints between two readings of `server_facts.sql`."""
    if len(facts) < 2:
        reason = absence or NONE_STORED
        return {name: _none(name, "no_data", reason, source=_HISTORY) for name in _OVER_WINDOW}
    first, last = facts[0], facts[-1]
    edges = (first.read_at, last.read_at)
    growth = last.row["database_bytes"] - first.row["database_bytes"]
    counted = delta(first, last, readings.counters("server_facts")).row
    timed, requested = (n or 0 for n in counted.values())
    found = {"growth_bytes": _ok("growth_bytes", growth, edges=edges)}
    name = "checkpoints_requested_percent"
    found[name] = _share(name, requested, timed + requested, LEAST_CHECKPOINTS, edges)
    name, then, now = "wal_written_bytes", first.row["wal_position"], last.row["wal_position"]
    if then is None or now is None:
        reason = "a replica writes no log of its own"
        found[name] = _none(name, "not_applicable", reason, edges, source=_HISTORY)
    else:
        found[name] = _ok(name, max(0, now - then), edges=edges)
    return found


def happened(counters: Sequence[Reading], absence: str) -> dict[str, Measure]:
    """Deadlocks, rollbacks and temporary files between two readings of `database_counters.sql`."""
    if len(counters) < 2:
        reason = absence or "no reading was stored in this window; run 'fwdb monitor'"
        return {name: _none(name, "no_data", reason) for name in _HAPPENED}
    first, last = counters[0], counters[-1]
    edges, between = (first.read_at, last.read_at), delta(first, last, readings.DATABASE)
    counted = between.row
    remark = "the counters began anew within the window" if between.anew else ""
    found = {n: _ok(n, counted[n], remark, edges) for n in ("deadlocks", "temp_bytes")}
    name, all_ended = "rollback_percent", counted["commits"] + counted["rollbacks"]
    found[name] = _share(name, counted["rollbacks"], all_ended, LEAST_TRANSACTIONS, edges)
    return found


def _share(name: str, part: int, of: int, least: int, edges: Window) -> Measure:
    """`part` in percent of all `of` the window, for which it takes a `least` number of them."""
    what = "checkpoints" if name.startswith("checkpoints") else "transactions"
    if of < least:
        reason = f"{of} {what} in the window; {least} make a share"
        return _none(name, "no_data", reason, edges)
    return _ok(name, 100 * part / of, f"{part:,} of {of:,} {what}", edges)


def profiler_level(self: Context) -> Measure:
    """The level of MongoDB's profiler on this database: 0 off, 1 slow operations, 2 all."""
    try:
        with self.mongodb.errors():
            found = self.mongodb.database.command({"profile": -1})
    except PermissionDenied:
        reason = "this user may not read the profiler's level: grant it dbAdmin on the database"
        return unmeasured("not_measured", reason, "level", "mongodb", "profile")
    remark = f"slow from {found['slowms']} ms on" if found.get("was") == 1 else ""
    return measured(found["was"], "level", "mongodb", "profile", remark=remark)


# -- changes --------------------------------------------------------------------------------------


def changes(self: Context, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
    """Settings and versions of PostgreSQL, and starts of both servers, that the stored
    readings of the window show; one row per change, oldest first.

    `noticed_at` is the first reading with the new value: it changed between the one before
    and this one. A value that may hold a secret shows as a fingerprint. ``attrs``: `status`
    and `reason`.
    """
    start, end = window(since, until)
    span, rows = (start, end or datetime.now(UTC)), []
    if not (reason := self.history.absence()):
        stored = self.history.store.rows("stored_settings", since=start, until=span[1])
        rows = [row for row in setting_changes(stored) if row["noticed_at"] >= start]
        for subject in ("database", "server"):
            rows += starts(self.history.each(subject, *span))
        if not self.history.edges(*span, "full"):
            reason = NONE_STORED
    # Each start once, however many subjects have seen it.
    unique = {(r["database"], r["what"], r["name"], r["after"]): r for r in reversed(rows)}
    rows = sorted(unique.values(), key=lambda r: (r["noticed_at"], r["database"], r["name"]))
    return frame(CHANGES, rows, status="no_data" if reason else "ok", reason=reason)


def settings_reading(store: PostgresStore, history: History) -> dict[str, Any]:
    """What a reading keeps of the settings: a fingerprint, and the values when they are new."""
    rows = store.rows("server_settings")
    values = {row["name"]: row["value"] for row in rows}
    sees_all = bool(rows and rows[0]["sees_all"])
    text = json.dumps([sees_all, values], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    found: dict[str, Any] = {"fingerprint": fingerprint, "sees_all": sees_all}
    now = datetime.now(UTC)
    last = history.store.rows("stored_settings", since=now, until=now)
    if (
        not last
        or json.loads(last[-1]["counters"]).get("fingerprint") != fingerprint
        or now - last[-1]["read_at"] >= SETTINGS_EVERY
    ):
        found["values"] = values
    return found


def setting_changes(rows: Iterable[Row]) -> Rows:
    """What changed from one row of `stored_settings.sql` to the next.

    Readings of roles that see different settings are not compared.
    """
    found: Rows = []
    last: dict[bool, Mapping[str, str]] = {}
    for row in rows:
        counters = json.loads(row["counters"])
        values = counters["values"]
        before = last.get(counters["sees_all"], values)
        last[counters["sees_all"]] = values
        found += [
            {
                "database": "postgres",
                "noticed_at": row["read_at"],
                "what": "version" if name == "server_version" else "setting",
                "name": name,
                "before": before.get(name, SHIPPED),
                "after": values.get(name, SHIPPED),
            }
            for name in sorted(values.keys() | before.keys())
            if before.get(name, SHIPPED) != values.get(name, SHIPPED)
        ]
    return found


def starts(stored: Iterable[tuple[str, datetime, Reading]]) -> Rows:
    """Starts of the servers between one stored reading and the next."""
    return [
        {
            "database": database,
            "noticed_at": read_at,
            "what": "start",
            "name": "server",
            "before": f"{before.started_at:%Y-%m-%d %H:%M:%S}",
            "after": f"{now.started_at:%Y-%m-%d %H:%M:%S}",
        }
        for database, read_at, before, now, _ in _pairs(stored)
        if before.started_at and now.started_at
        if now.started_at - before.started_at > START_TOLERANCE
    ]


def _pairs(
    stored: Iterable[tuple[str, datetime, Reading]],
) -> Iterator[tuple[str, datetime, Reading, Reading, float]]:
    """Each stored reading with the one before it of the same database, and the seconds between."""
    last: dict[str, tuple[datetime, Reading]] = {}
    for database, at, now in stored:
        if database in last:
            earlier, before = last[database]
            yield database, at, before, now, (at - earlier).total_seconds()
        last[database] = at, now


# -- trends ---------------------------------------------------------------------------------------

# Name in the counters, what it is called as a rate, its unit.
_RATES = (
    ("commits", "transactions_per_second", "per second"),
    ("rollbacks", "rollbacks_per_second", "per second"),
    ("temp_bytes", "temp_bytes_per_second", "bytes per second"),
    ("wal_position", "wal_bytes_per_second", "bytes per second"),
)
_COUNTED = {**readings.DATABASE, "wal_position": "int64"}


def trends(self: Context, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
    """Rates and sizes over the window, one row per measure and stored reading.

    `measure` is ``transactions_per_second`` (MongoDB: operations), ``rollbacks_per_second``,
    ``temp_bytes_per_second``, ``wal_bytes_per_second``, ``cache_hit_ratio`` or
    ``database_bytes``; rates are those since the reading before. ``attrs``: `status` and
    `reason`.
    """
    start, end = window(since, until)
    rows: list[tuple[Any, ...]] = []
    if not (reason := self.history.absence()):
        for subject in ("database", "server"):
            stored = list(self.history.each(subject, start, end or datetime.now(UTC)))
            rows += _rates(stored)
            rows += [
                (at, database, "database_bytes", float(size), "bytes")
                for database, at, one in stored
                if (size := one.row.get("database_bytes")) is not None
            ]
        if not rows:
            reason = "fewer than two readings were stored in this window; run 'fwdb monitor'"
    named = [dict(zip(TRENDS, row, strict=True)) for row in rows]
    return frame(TRENDS, named, status="no_data" if reason else "ok", reason=reason)


def _rates(stored: Iterable[tuple[str, datetime, Reading]]) -> Iterator[tuple[Any, ...]]:
    for database, at, before, now, seconds in _pairs(stored):
        between = delta(before, now, _COUNTED)
        # Counters that went down began anew: what happened in between is not known.
        if between.anew or seconds <= 0:
            continue
        counted = between.row
        for name, measure, unit in _RATES:
            if counted[name] is not None:
                yield at, database, measure, counted[name] / seconds, unit
        hits, reads = counted["hit_blocks"], counted["read_blocks"]
        # A point of a line wants less than a verdict, and still not a handful.
        if hits is not None and hits + reads >= 100:
            yield at, database, "cache_hit_ratio", hits / (hits + reads), "ratio"
