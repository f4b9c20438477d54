"""Facts about the servers: settings and what changed, disk, checkpoints, age of transactions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from fwdb.monitoring.cache import reading
from fwdb.monitoring.history import History
from fwdb.stores import PostgresStore, frames

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

# Values are stored again after this time, so that removing old readings keeps the last ones.
SETTINGS_EVERY = timedelta(days=1)
SHIPPED = "(as shipped)"

# MongoDB tells only how long it has been up, to a second, and takes its time to answer.
START_TOLERANCE = timedelta(seconds=5)


def server(store: PostgresStore) -> dict[str, Any]:
    """`server_facts.sql`, with the checkpoints from where this version counts them."""
    row = store.rows("server_facts")[0]
    if store.server_version >= 170000:
        row |= store.rows("checkpoints")[0]
    return row


def jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row ready for JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }


# -- settings -----------------------------------------------------------------------------------


def settings_reading(store: PostgresStore, history: History) -> dict[str, Any]:
    """What a reading keeps of the settings: a fingerprint, and the values when they are new."""
    rows = store.rows("server_settings")
    values = {row["name"]: row["value"] for row in rows}
    sees_all = bool(rows and rows[0]["sees_all"])
    text = json.dumps([sees_all, values], sort_keys=True)
    found: dict[str, Any] = {
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        "sees_all": sees_all,
    }
    now = datetime.now(UTC)
    last = history.rows("stored_settings", since=now, until=now)
    before = json.loads(last[-1]["counters"]) if last else {}
    if (
        before.get("fingerprint") != found["fingerprint"]
        or now - last[-1]["read_at"] >= SETTINGS_EVERY
    ):
        found["values"] = values
    return found


def setting_changes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What changed from one row of `stored_settings.sql` to the next.

    Readings of roles that see different settings are not compared.
    """
    found: list[dict[str, Any]] = []
    kept: dict[bool, Mapping[str, str]] = {}
    for row in rows:
        counters = json.loads(row["counters"])
        values, before = counters["values"], kept.get(counters["sees_all"])
        kept[counters["sees_all"]] = values
        if before is None:
            continue
        for name in sorted(values.keys() | before.keys()):
            old, new = before.get(name, SHIPPED), values.get(name, SHIPPED)
            if old != new:
                what = "version" if name == "server_version" else "setting"
                found.append(
                    {
                        "database": "postgres",
                        "noticed_at": row["read_at"],
                        "what": what,
                        "name": name,
                        "before": old,
                        "after": new,
                    }
                )
    return found


def starts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Starts of the servers between one row of `counter_history.sql` and the next."""
    found = []
    last: dict[str, datetime] = {}
    for row in rows:
        counters = json.loads(row["counters"])
        if "server_started_at" in counters:
            began = datetime.fromisoformat(counters["server_started_at"]).astimezone(UTC)
        else:
            at = datetime.fromisoformat(counters["read_at"]).astimezone(UTC)
            began = at - timedelta(seconds=counters["uptime_seconds"])
        before = last.get(row["database"])
        if before is not None and began - before > START_TOLERANCE:
            found.append(
                {
                    "database": row["database"],
                    "noticed_at": row["read_at"],
                    "what": "start",
                    "name": "server",
                    "before": f"{before:%Y-%m-%d %H:%M:%S}",
                    "after": f"{began:%Y-%m-%d %H:%M:%S}",
                }
            )
        last[row["database"]] = began
    return found


def changes(history: History, since: datetime, until: datetime) -> pd.DataFrame:
    """Settings, versions and starts of servers that changed in the window."""
    if reason := history.absence():
        rows: list[dict[str, Any]] = []
    else:
        span = {"since": since, "until": until}
        rows = setting_changes(history.rows("stored_settings", **span))
        rows = [row for row in rows if row["noticed_at"] >= since]
        for subject in ("database", "server"):
            found = history.rows("counter_history", subject=subject, **span)
            rows += starts(found)
        rows = _once(rows)
        if not history.edges(since, until, ["full"]):
            reason = "no full reading was stored in this window; run 'fwdb monitor'"
    frame = frames.from_rows(
        list(CHANGES), [[row[name] for name in CHANGES] for row in rows], CHANGES
    )
    frame.attrs.update(status="no_data" if reason else "ok", reason=reason)
    return frame


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each start once, however many subjects have seen it; in the order of time."""
    unique = {(r["database"], r["what"], r["name"], r["after"]): r for r in reversed(rows)}
    return sorted(unique.values(), key=lambda r: (r["noticed_at"], r["database"], r["name"]))


# -- trends -------------------------------------------------------------------------------------


def trends(history: History, since: datetime, until: datetime) -> pd.DataFrame:
    """Rates and sizes from one stored reading to the next."""
    rows: list[list[Any]] = []
    if not (reason := history.absence()):
        span = {"since": since, "until": until}
        for subject, points in (("database", _rates), ("server", _rates), ("server", _sizes)):
            rows += points(history.rows("counter_history", subject=subject, **span))
        if not rows:
            reason = "fewer than two readings were stored in this window; run 'fwdb monitor'"
    frame = frames.from_rows(list(TRENDS), rows, TRENDS)
    frame.attrs.update(status="no_data" if reason else "ok", reason=reason)
    return frame


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    found = []
    for row in rows:
        counters = json.loads(row["counters"])
        if "database_bytes" in counters:
            size = float(counters["database_bytes"])
            found.append([row["read_at"], row["database"], "database_bytes", size, "bytes"])
    return found


# Name in the counters, what it is called as a rate, its unit.
_RATES = (
    ("commits", "transactions_per_second", "per second"),
    ("rollbacks", "rollbacks_per_second", "per second"),
    ("temp_bytes", "temp_bytes_per_second", "bytes per second"),
    ("wal_position", "wal_bytes_per_second", "bytes per second"),
)


def _rates(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    found: list[list[Any]] = []
    last: dict[str, tuple[datetime, dict[str, Any]]] = {}
    for row in rows:
        counters = json.loads(row["counters"])
        if "operations" in counters:  # of MongoDB: all kinds together
            counters["commits"] = sum(counters["operations"].values())
        before = last.get(row["database"])
        last[row["database"]] = (row["read_at"], counters)
        if before is None:
            continue
        seconds = (row["read_at"] - before[0]).total_seconds()
        head = [row["read_at"], row["database"]]
        for name, measure, unit in _RATES:
            now, then = counters.get(name), before[1].get(name)
            # Counters that went down began anew: what happened in between is not known.
            if now is not None and then is not None and now >= then and seconds > 0:
                found.append([*head, measure, (now - then) / seconds, unit])
        if (ratio := _cache(row["database"], before[1], counters)) is not None:
            found.append([*head, "cache_hit_ratio", ratio, "ratio"])
    return found


def _cache(database: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    """Found ÷ asked for between two readings next to each other; None for too few blocks."""
    if not ({"hit_blocks", "pages_requested"} & now.keys() & before.keys()):
        return None
    first, second = reading(database, before), reading(database, now)
    assert first is not None
    assert second is not None
    found, read = second.found - first.found, second.read - first.read
    # A point of a line wants less than a verdict, and still not a handful.
    return found / (found + read) if found >= 0 and read >= 0 and found + read >= 100 else None
