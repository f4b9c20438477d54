"""Statements of PostgreSQL by pg_stat_statements: readings of it, and what ran between two.

Entries are counted since they began, not since the reading before. An entry can begin anew (a
reset of all or of one), can be dropped to make room for others (eviction), and can come back.
PostgreSQL 17 and later say when each entry began (`stats_since`); before, only a counter that
went down tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb import queries
from fwdb.errors import FeatureUnavailable, FwdbError
from fwdb.measure import Status
from fwdb.monitoring import readings
from fwdb.monitoring.history import History, StoredReading
from fwdb.monitoring.readings import Reading, Row, Rows, delta
from fwdb.stores import PostgresStore
from fwdb.stores.timing import OWN

HIDDEN = 0  # the query id of all entries that the role may not see

COUNTERS = readings.counters("statement_counters")
INNER = ("squares_ms2", "row_count", "temp_blocks")  # these show as another column

BLOCK_BYTES = 8192  # of PostgreSQL, unless compiled otherwise

# That of PostgreSQL 14, with the level of a statement and the count of evictions. A server that
# was upgraded keeps the version it had until somebody updates the extension.
_OLDEST = (1, 9)

# What a stored reading keeps of the extension and of the counters beside it.
_KEPT = (
    *("server_started_at", "extension_version", "io_timed", "plans_timed", "max_entries"),
    *("dealloc", "stats_reset", "transactions", "active_ms", "database_reset_at"),
)

_ADVICE = "run 'fwdb monitor', which takes one every 5 minutes, or sample with live_seconds"


@dataclass(slots=True)
class StoreWindow:
    """What one store's statements did in a window, or why nothing is known of them.

    `statements` are rows of `slow_queries` with what is derived from their counters; `total_ms`
    and `calls` are those of all, hidden ones too. `not_measured` says, per column, why its
    values are missing.
    """

    database: str
    status: Status = "ok"
    reason: str = ""
    window: tuple[datetime, datetime] | None = None
    statements: Rows = field(default_factory=list)
    total_ms: float = 0.0
    calls: int = 0
    coverage: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    source: str = ""
    hidden: str = ""
    readings: list[int] = field(default_factory=list)
    error: FwdbError | None = None

    @property
    def totals(self) -> dict[str, Any]:
        """Of all statements of the window, whichever of them are shown."""
        sums = {"calls": self.calls, "total_ms": self.total_ms}
        return {"statements": len(self.statements), **sums} if self.window else {}


def moments(calls: int, total_ms: float, squares_ms2: float) -> tuple[float, float]:
    """Mean and population standard deviation from the sums of times and of their squares."""
    mean = total_ms / calls
    return mean, math.sqrt(max(0.0, squares_ms2 / calls - mean * mean))


def derived(row: Row) -> dict[str, Any]:
    """`row` with what follows from its counters; None is what they cannot tell."""
    calls, rows, temp = row["calls"], row.get("rows"), row.get("temp_bytes")
    hits, reads = row.get("hit_blocks"), row.get("read_blocks")
    mean, deviation = moments(calls, row["total_ms"], row["squares_ms2"])
    blocks = None if hits is None or reads is None else hits + reads
    return {
        **row,
        "mean_ms": mean,
        "stddev_ms": deviation,
        "rows_per_call": None if rows is None else rows / calls,
        "blocks_per_call": None if blocks is None else blocks / calls,
        "hit_ratio": hits / blocks if blocks else None,
        "read_ms_per_block": row["read_ms"] / reads if reads and row.get("read_ms") else None,
        "temp_kb_per_call": None if temp is None else temp / calls / 1024,
    }


# -- readings -------------------------------------------------------------------------------------


def recorder(store: PostgresStore) -> dict[str, Any]:
    """How statements are recorded here; makes the extension visible to this transaction.

    Call it inside ``store.transaction()``. Raises `FeatureUnavailable` when pg_stat_statements
    cannot be read, with what to do.
    """
    settings, where = store.rows("statement_settings")[0], f"at {store.address}"
    if not settings["preloaded"]:
        raise FeatureUnavailable(
            f"postgres {where} does not record statements: add pg_stat_statements to "
            "shared_preload_libraries, restart the server, and run CREATE EXTENSION "
            "pg_stat_statements in this database."
        )
    version = settings["extension_version"]
    if version is None:
        raise FeatureUnavailable(
            f"the database {where} lacks the extension pg_stat_statements: run CREATE "
            "EXTENSION pg_stat_statements in it."
        )
    if tuple(map(int, version.split("."))) < _OLDEST:
        raise FeatureUnavailable(
            f"the extension pg_stat_statements in the database {where} is version {version}: "
            "run ALTER EXTENSION pg_stat_statements UPDATE in it."
        )
    # The extension may be in a schema that is not searched.
    store.execute(
        sa.text(
            "SELECT set_config('search_path', concat_ws(', ', nullif(current_setting("
            f"'search_path'), ''), quote_ident(:schema)), true) {OWN}"
        ),
        {"schema": settings["extension_schema"]},
    )
    return settings | store.rows("statement_info")[0]


def kept(recorded: Row) -> dict[str, Any]:
    """What a stored reading keeps of what `recorder` found, ready for JSON."""
    return readings.jsonable({name: recorded[name] for name in _KEPT})


def read_now(store: PostgresStore) -> tuple[Reading, str]:
    """A reading of this moment, and what this role cannot see. Raises `FeatureUnavailable`."""
    with store.transaction():
        found = recorder(store)
        rows = store.rows("statement_counters")
    hidden, role = "", found["role_name"]
    if not found["sees_all"]:
        hidden = (
            f"statements of other roles are hidden from {role}: GRANT pg_read_all_stats TO {role}"
        )
    return reading(found["read_at"], kept(found), rows), hidden


def read_stored(history: History, stored: StoredReading) -> Reading:
    """A reading that was taken earlier."""
    names = ", ".join(queries.load("statement_counters").columns)
    text = f"SELECT {names} FROM monitoring.statement_samples WHERE reading_id = :id {OWN}"
    rows = history.store.rows(sa.text(text), id=stored.reading_id)
    return reading(stored.read_at, stored.details["statements"], rows)


def reading(read_at: datetime, details: Row, rows: Rows) -> Reading:
    """Without statements inside functions: their time is in that of the statement which called
    the function, and counting both would count it twice."""
    return Reading(
        read_at,
        {(r["user_id"], r["database_id"], r["query_id"]): r for r in rows if r["toplevel"]},
        details,
        readings.moment(details["server_started_at"]),
        readings.moment(details["stats_reset"]),
    )


def store_reading(watched: PostgresStore, history: Connection, reading_id: int) -> int:
    """Store all entries of this moment under `reading_id`; how many.

    Call it in a transaction of `watched` after `recorder`. The history may be in another
    database, so the entries travel through this process; texts, which are several times as dear
    as counters, are read for new entries only.
    """
    rows = watched.rows("statement_counters")
    readings.insert(
        history, "statement_samples", [{"reading_id": reading_id, **row} for row in rows]
    )
    known = history.execute(
        sa.text(
            "SELECT database_id, query_id FROM monitoring.statement_texts "
            f"WHERE query_id = ANY(:ids) {OWN}"
        ),
        {"ids": sorted({row["query_id"] for row in rows})},
    )
    found = {(row["database_id"], row["query_id"]) for row in rows} - {tuple(r) for r in known}
    if new := sorted({query_id for _, query_id in found} - {HIDDEN}):
        found_texts = watched.rows("statement_texts", query_ids=new)
        readings.insert(history, "statement_texts", found_texts)
    return len(rows)


def texts(store: PostgresStore, history: History | None, ids: Collection[int]) -> dict[int, str]:
    """The texts of the statements `ids`, stored ones first: reading them live is dear."""
    wanted = [query_id for query_id in ids if query_id != HIDDEN]
    rows = []
    if history is not None and wanted:
        rows = history.store.rows("stored_texts", query_ids=wanted)
    found: dict[int, str] = {row["query_id"]: row["statement"] for row in rows}
    if missing := [query_id for query_id in wanted if query_id not in found]:
        with store.transaction():
            recorder(store)
            rows = store.rows("statement_texts", query_ids=missing)
        found |= {row["query_id"]: row["statement"] for row in rows}
    return found


# -- how much of what ran a difference can show ----------------------------------------------------

# A full pg_stat_statements drops 5 % of its entries at once, and ten at least
# (USAGE_DEALLOC_PERCENT in contrib/pg_stat_statements/pg_stat_statements.c).
_DROPPED_SHARE, _DROPPED_LEAST = 0.05, 10

# An idle session hands its counters in up to 10 s late (PGSTAT_IDLE_INTERVAL in pgstat.c).
# Below a minute that would decide the estimate.
LEAST_WINDOW = timedelta(seconds=60)


def coverage(
    *,
    restarted: int = 0,
    lost: int = 0,
    unknown: int = 0,
    dealloc: int = 0,
    evicted: int = 0,
    max_entries: int = 0,
    emptied: bool = False,
    server_restarted: bool = False,
    calls: int = 0,
    total_ms: float = 0.0,
    transactions: int | None = None,
    active_ms: float | None = None,
    estimate: str = "",
) -> dict[str, Any]:
    """How much of what ran between two readings they can show, for ``attrs`` of a frame.

    `restarted` entries began anew, so that calls before are missing; `lost` ones are gone;
    `unknown` ones are older than the first reading, which did not have them, and are left out;
    `dealloc` is how often entries were dropped to make room, and `evicted` how many that were,
    about. `complete` is whether nothing is known to be missing, `sentence` what is.

    `calls` and `total_ms` are what is visible, of fwdb too. Beside them stand two counters of
    the database that no eviction touches. Sessions worked for `active_ms`, planning and sending
    included, so that `time_percent` is the least that was seen of the time: a bound.
    `calls_percent`, calls ÷ `transactions`, is no bound but an estimate: a transaction of several
    calls makes it too high, and the empty one that a pool sends to see whether a connection
    lives makes it too low. So there is one only when something is known to be missing, and
    fewer calls are visible than transactions. `estimate` says why there are no such numbers.
    """
    reasons = (
        (emptied, "all statistics were reset within the window"),
        (restarted, f"{_entries(restarted)} began anew"),
        (lost, f"{_entries(lost)} went away"),
        (
            dealloc,
            f"about {_entries(evicted)} evicted, in {dealloc} rounds, to make room "
            f"(raise pg_stat_statements.max from {max_entries})",
        ),
        (unknown, f"{_entries(unknown)} of unknown begin were left out"),
    )
    missing = ", ".join(text for there, text in reasons if there)
    calls_percent = time_percent = None
    seen, told = [], []
    if missing and transactions and calls < transactions:
        calls_percent = 100 * calls / transactions
        seen.append(
            f"about {calls_percent:.0f} % of the calls were seen ({calls:,} beside "
            f"{transactions:,} transactions)"
        )
    if active_ms:
        time_percent = min(100.0, 100 * total_ms / active_ms)
        seen.append(f"at least {time_percent:.0f} % of the time in statements was seen")
    if missing:
        told = [*filter(None, [", ".join(seen)]), f"totals are lower bounds: {missing}"]
    if server_restarted:
        told.append("the server was restarted within the window")
    return {
        "complete": not missing,
        "sentence": "; ".join(told),
        "seen": ", ".join(seen),
        "estimate": estimate,
        "restarted": restarted,
        "lost": lost,
        "unknown": unknown,
        "dealloc": dealloc,
        "evicted": evicted,
        "max_entries": max_entries,
        "emptied": emptied,
        "server_restarted": server_restarted,
        "calls": calls,
        "transactions": transactions,
        "calls_percent": calls_percent,
        "time_percent": time_percent,
    }


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _beside(first: Reading, second: Reading) -> dict[str, Any]:
    """What the state of the extension and of the database tells about the time between."""
    before, now = first.state, second.state
    emptied, most = _emptied(first, second), now["max_entries"]
    dealloc = now["dealloc"] if emptied else max(0, now["dealloc"] - before["dealloc"])
    found: dict[str, Any] = {
        "dealloc": dealloc,
        "evicted": dealloc * max(_DROPPED_LEAST, int(_DROPPED_SHARE * most)),
        "max_entries": most,
        "emptied": emptied,
        "server_restarted": readings.restarted(first, second),
    }
    transactions = now["transactions"] - before["transactions"]
    active_ms = now["active_ms"] - before["active_ms"]
    reset = _later(readings.moment(now["database_reset_at"]), first)
    if second.read_at - first.read_at < LEAST_WINDOW:
        found["estimate"] = "a window under one minute is too short to compare with other counters"
    elif reset or transactions < 0 or active_ms < 0:
        found["estimate"] = "the counters of the database were reset within the window"
    else:
        found |= {"transactions": transactions, "active_ms": active_ms}
    return found


def _emptied(first: Reading, second: Reading) -> bool:
    """Whether all entries were removed: by a reset, or by a restart that could not keep them."""
    if second.reset_at != first.reset_at and _later(second.reset_at, first):
        return True
    if not readings.restarted(first, second):
        return False
    if second.reset_at != first.reset_at or second.state["dealloc"] < first.state["dealloc"]:
        return True  # after a crash the time of the last reset is that of no reset
    if second.state["dealloc"] > first.state["dealloc"]:
        return False  # what fell or went away may have been evicted
    gone: int = sum(
        key not in second.rows or second.rows[key]["calls"] < row["calls"]
        for key, row in first.rows.items()
    )
    return gone > len(first.rows) / 2


def _later(time: datetime | None, first: Reading) -> bool:
    return time is not None and time > first.read_at


# -- windows --------------------------------------------------------------------------------------


def past(
    store: PostgresStore, history: History, since: datetime, until: datetime | None
) -> StoreWindow:
    """The statements between the first stored reading of the window and its end.

    The end is this moment, or the last stored reading before `until`.
    """
    if absence := history.absence():
        return StoreWindow("postgres", "no_data", absence)
    edges = history.edges(since, until or datetime.now(UTC), "full")
    if len(edges) < (1 if until is None else 2):
        reason = "no reading was stored in this window"
        if edges:
            reason = "only one reading was stored in this window, and it takes two"
        return StoreWindow("postgres", "no_data", f"{reason}: {_ADVICE}")
    used = edges[:1] if until is None else edges
    first = read_stored(history, used[0])
    second, hidden = read_now(store) if until is None else (read_stored(history, used[1]), "")
    found = _between(store, history, first, second, hidden)
    found.readings = [edge.reading_id for edge in used]
    return found


def live(store: PostgresStore, seconds: float) -> StoreWindow:
    """The statements of the next `seconds`, without any history."""
    first, _ = read_now(store)
    time.sleep(seconds)
    return _between(store, None, first, *read_now(store))


def difference(first: Reading, second: Reading) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """What ran between two readings, per query id over all roles, and their `coverage`."""
    known = _beside(first, second)
    # Hidden from the second reader only: all that those ever did would seem to be of the window.
    hidden = {key for key in second.rows if key[-1] == HIDDEN and key not in first.rows}
    seen = {key: row for key, row in second.rows.items() if key not in hidden}
    counted = delta(first, replace(second, rows=seen), COUNTERS, emptied=known["emptied"])
    shapes: dict[int, dict[str, Any]] = {}
    for key, row in counted.rows.items():
        if row["calls"]:
            sums = shapes.get(key[-1])
            lower_bound = key in counted.anew or bool(sums and sums["lower_bound"])
            shapes[key[-1]] = {
                name: value if sums is None else _sum(sums[name], value)
                for name, value in row.items()
            } | {"lower_bound": lower_bound}
    return shapes, coverage(
        **known,
        restarted=len(counted.anew),
        lost=counted.lost,
        unknown=counted.unknown + len(hidden),
        calls=sum(row["calls"] for row in shapes.values()),
        total_ms=sum(row["total_ms"] for row in shapes.values()),
    )


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def _between(
    store: PostgresStore, history: History | None, first: Reading, second: Reading, hidden: str
) -> StoreWindow:
    shapes, covered = difference(first, second)
    known = texts(store, history, shapes)
    counted = {id: row for id, row in shapes.items() if OWN not in known.get(id, "")}
    not_measured = {
        "errors": "pg_stat_statements counts no statement that failed",
        "docs_examined_per_call": "MongoDB only",
    }
    if not (first.state["io_timed"] and second.state["io_timed"]):
        not_measured["read_ms"] = "track_io_timing is off"
    if not (first.state["plans_timed"] and second.state["plans_timed"]):
        not_measured["plan_ms"] = "pg_stat_statements.track_planning is off"
    return StoreWindow(
        "postgres",
        window=(first.read_at, second.read_at),
        statements=[
            derived(
                {
                    **row,
                    "database": "postgres",
                    "query_id": str(query_id),
                    "statement": known.get(query_id, "(text no longer kept by the server)"),
                    "rows": row["row_count"],
                    "temp_bytes": row["temp_blocks"] * BLOCK_BYTES,
                    **dict.fromkeys(not_measured),
                }
            )
            for query_id, row in counted.items()
            if query_id != HIDDEN
        ],
        total_ms=sum(row["total_ms"] for row in counted.values()),
        calls=sum(row["calls"] for row in counted.values()),
        coverage=covered,
        not_measured=not_measured,
        source="difference of two readings of pg_stat_statements",
        hidden=hidden,
    )
