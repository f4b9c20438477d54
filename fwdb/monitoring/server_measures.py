"""Single figures about PostgreSQL as a server: sizes, ages, and what happened in a window."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fwdb.errors import PermissionDenied
from fwdb.measure import Measure, Window, measured, unmeasured
from fwdb.monitoring import facts
from fwdb.monitoring.cache import postgres_counters
from fwdb.monitoring.history import History
from fwdb.stores import PostgresStore

# Transaction numbers are compared modulo 2**32, so a row older than half of that would seem to be
# of the future; the server stops before (documentation, "Preventing Transaction ID Wraparound").
WRAPAROUND = 2**31

# Below these, a handful of transactions or checkpoints makes a share that says nothing.
LEAST_TRANSACTIONS = 100
LEAST_CHECKPOINTS = 4

NO_BACKUP = "PostgreSQL keeps no record of base backups; ask the tool that makes them"
Counters = Mapping[str, Any]


def measures(
    store: PostgresStore, history: History, since: datetime, until: datetime | None
) -> dict[str, Measure]:
    """All figures of `Monitor.server_facts`, by name."""
    now = until is None
    found: dict[str, Measure] = {}
    live = facts.jsonable(facts.server(store)) if now else None
    end = until or datetime.now(UTC)
    absence = history.absence()
    first, last = (None, None) if absence else _edges(history, "server", ["full"], since, end)
    found |= state(live or last)
    found |= over_window(first, live or last, absence)
    begin, stop = (
        (None, None) if absence else _edges(history, "database", ["light", "full"], since, end)
    )
    found |= happened(begin, postgres_counters(store) if now else stop, absence)
    found["wal_bytes"] = log_size(store) if now else _none("bytes", "no_data", PAST)
    return found


PAST = "it is known for this moment only, and this window ended earlier"
NONE_STORED = "no full reading was stored in this window; run 'fwdb monitor'"


def _edges(
    history: History, subject: str, kinds: list[str], since: datetime, until: datetime
) -> tuple[Counters | None, Counters | None]:
    """The counters of a subject in the first and the last reading of the window."""
    found: list[Counters] = []
    for edge in history.edges(since, until, kinds):
        for row in history.rows("stored_counters", reading_id=edge.reading_id):
            if (row["database"], row["subject"]) == ("postgres", subject):
                found.append(json.loads(row["counters"]))
    return (found[0], found[-1]) if found else (None, None)


def log_size(store: PostgresStore) -> Measure:
    """Disk that the write-ahead log takes."""
    try:
        row = store.rows("wal_files")[0]
    except PermissionDenied:
        reason = "this role may not look at the files of the log: GRANT pg_monitor TO it"
        return _none("bytes", "not_measured", reason, source="pg_ls_waldir")
    remark = f"{row['wal_files']} files; max_wal_size is {row['max_wal_bytes'] // 1024**2:,} MB"
    return measured(row["wal_bytes"], "bytes", "postgres", "pg_ls_waldir", remark=remark)


def state(now: Counters | None) -> dict[str, Measure]:
    """What one reading tells: size, wraparound, archive and backup."""
    if now is None:
        names = {"database_bytes": "bytes", "wraparound_percent": "percent"}
        names |= {"archive_age_seconds": "seconds", "backup_age_seconds": "seconds"}
        return {name: _none(unit, "no_data", NONE_STORED) for name, unit in names.items()}
    age = max(now["transaction_age"], now["multixact_age"])
    return {
        "database_bytes": measured(now["database_bytes"], "bytes", "postgres", "pg_database_size"),
        "wraparound_percent": measured(
            100 * age / WRAPAROUND,
            "percent",
            "postgres",
            "pg_database.datfrozenxid",
            remark=f"{now['transaction_age']:,} transactions in {now['transaction_database']}",
        ),
        "archive_age_seconds": _archive(now),
        "backup_age_seconds": _backup(now),
    }


def _archive(now: Counters) -> Measure:
    source = "pg_stat_archiver"
    if not now["archiving"]:
        return _none(
            "seconds",
            "not_applicable",
            "the server archives no log (archive_mode is off)",
            source=source,
        )
    failures, failed = now["archive_failures"], now["archive_failed_at"]
    remark = f"{failures:,} attempts failed, the last at {failed}" if failures else ""
    if now["archived_at"] is None:
        return _none("seconds", "no_data", remark or "no file was archived yet", source=source)
    return measured(_age(now, "archived_at"), "seconds", "postgres", source, remark=remark)


def _backup(now: Counters) -> Measure:
    """The server itself notes a base backup only by the file that it archives at the end."""
    if str(now["archived_file"] or "").endswith(".backup"):
        remark = "a base backup was the last thing archived"
        return measured(
            _age(now, "archived_at"), "seconds", "postgres", "pg_stat_archiver", remark=remark
        )
    return _none("seconds", "not_available", NO_BACKUP)


def over_window(first: Counters | None, last: Counters | None, absence: str) -> dict[str, Measure]:
    """Growth, log written, and checkpoints between two readings."""
    if first is None or last is None or first["read_at"] == last["read_at"]:
        reason = absence or NONE_STORED
        return {
            name: _none(unit, "no_data", reason)
            for name, unit in (
                ("growth_bytes", "bytes"),
                ("wal_written_bytes", "bytes"),
                ("checkpoints_requested_percent", "percent"),
            )
        }
    window = (_moment(first["read_at"]), _moment(last["read_at"]))
    found = {
        "growth_bytes": measured(
            last["database_bytes"] - first["database_bytes"],
            "bytes",
            "postgres",
            "pg_database_size",
            window=window,
        ),
        "checkpoints_requested_percent": _checkpoints(first, last, window),
    }
    if first["wal_position"] is None or last["wal_position"] is None:
        reason = "a replica writes no log of its own"
        found["wal_written_bytes"] = _none("bytes", "not_applicable", reason, window=window)
    else:
        written = last["wal_position"] - first["wal_position"]
        found["wal_written_bytes"] = measured(
            max(0, written), "bytes", "postgres", "pg_current_wal_lsn", window=window
        )
    return found


def _checkpoints(first: Counters, last: Counters, window: Window) -> Measure:
    source = "difference of two readings of pg_stat_checkpointer, or pg_stat_bgwriter"
    names = ("checkpoints_timed", "checkpoints_requested")
    before = {name: first[name] or 0 for name in names}
    if first["checkpoints_reset"] != last["checkpoints_reset"]:
        before = dict.fromkeys(names, 0)
    timed, requested = (last[name] - before[name] for name in names)
    if timed + requested < LEAST_CHECKPOINTS:
        reason = f"{timed + requested} checkpoints in the window; {LEAST_CHECKPOINTS} make a share"
        return _none("percent", "no_data", reason, source=source, window=window)
    return measured(
        100 * requested / (timed + requested),
        "percent",
        "postgres",
        source,
        remark=f"{requested:,} of {timed + requested:,} checkpoints",
        window=window,
    )


def happened(first: Counters | None, last: Counters | None, absence: str) -> dict[str, Measure]:
    """Deadlocks, rollbacks and temporary files between two readings of `database_counters.sql`."""
    source = "difference of two readings of pg_stat_database"
    names = {"deadlocks": "count", "rollback_percent": "percent", "temp_bytes": "bytes"}
    if first is None or last is None or first["read_at"] == last["read_at"]:
        reason = absence or "no reading was stored in this window; run 'fwdb monitor'"
        return {n: _none(unit, "no_data", reason, source=source) for n, unit in names.items()}
    window = (_moment(first["read_at"]), _moment(last["read_at"]))
    keys = ("deadlocks", "commits", "rollbacks", "temp_bytes")
    anew = first["stats_reset"] != last["stats_reset"] or any(last[k] < first[k] for k in keys)
    counted = {k: last[k] if anew else last[k] - first[k] for k in keys}
    remark = "the counters began anew within the window" if anew else ""
    found = {
        name: measured(counted[name], names[name], "postgres", source, remark=remark, window=window)
        for name in ("deadlocks", "temp_bytes")
    }
    transactions = counted["commits"] + counted["rollbacks"]
    if transactions < LEAST_TRANSACTIONS:
        reason = f"{transactions} transactions in the window; {LEAST_TRANSACTIONS} make a share"
        found["rollback_percent"] = _none("percent", "no_data", reason, source=source)
    else:
        found["rollback_percent"] = measured(
            100 * counted["rollbacks"] / transactions,
            "percent",
            "postgres",
            source,
            remark=f"{counted['rollbacks']:,} of {transactions:,} transactions",
            window=window,
        )
    return found


def _age(now: Counters, name: str) -> float:
    return max(0.0, (_moment(now["read_at"]) - _moment(now[name])).total_seconds())


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _none(
    unit: str, status: Any, reason: str, *, source: str = "monitoring history", window: Any = None
) -> Measure:
    return unmeasured(status, reason, unit, "postgres", source, window=window)
