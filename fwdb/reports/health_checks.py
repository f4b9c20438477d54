"""The checks of the report `health`: one function per subject, each with its figure and action."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from fwdb import migrating
from fwdb.charts import share
from fwdb.charts.canvas import DATABASES
from fwdb.monitoring import Measure
from fwdb.reports import pool_checks
from fwdb.reports.asking import Asking, judged, sentence
from fwdb.reports.results import Status
from fwdb.reports.words import figure

# Figures without a promise of the system behind them are those that work in practice:
HELD_WARNING, HELD_CRITICAL = 300.0, 1800.0  # seconds a transaction keeps vacuum from its work
KEPT_TRANSACTIONS = 1_000_000  # of a holder whose age in seconds is not known
SESSIONS_WARNING, SESSIONS_CRITICAL = 75.0, 90.0  # percent of what the server takes
ROLLBACKS_WARNING, ROLLBACKS_CRITICAL = 10.0, 50.0  # percent of all transactions
WRAPAROUND_WARNING, WRAPAROUND_CRITICAL = 50.0, 80.0  # percent of 2**31
CHANGES_NAMED = 3  # in a sentence; the table has all
REQUESTED_WARNING = 50.0  # percent of the checkpoints: most should come at their time

Figures = dict[str, Measure]


def measure(
    asking: Asking,
    subject: str,
    found: Measure,
    said: Callable[[str], str],
    *,
    warning: float | None = None,
    critical: float | None = None,
    action: str = "",
) -> None:
    """A figure as a check, judged by its lines; without a value its reason."""
    if found.value is None:
        asking.add(subject, found.database, found.status, sentence(found.reason), unit=found.unit)
        return
    infinite = float("inf")
    lines = (infinite if warning is None else warning, infinite if critical is None else critical)
    status = judged(found.value, *lines)
    line = critical if status == "critical" else warning
    remark = f" ({found.reason})" if found.reason else ""
    asking.add(
        subject,
        found.database,
        status,
        f"{said(figure(found.value, found.unit))}{remark}.",
        value=found.value,
        unit=found.unit,
        threshold=line,
        action="" if status == "ok" else action,
    )


def answers(asking: Asking) -> None:
    """Whether both take work now, and how quickly they answer."""
    for store in asking.db.monitor.health().stores:
        if store.database in asking.down:
            continue
        name = DATABASES[store.database]
        status: Status = {"up": "ok", "degraded": "warning"}.get(store.status, "critical")  # type: ignore[assignment]
        asking.add(
            "answer",
            store.database,
            status,
            f"{name} answered in {figure(store.latency_ms, 'ms')}."
            if status == "ok"
            else sentence(f"{name} is {store.status}: {store.reason}"),
            value=store.latency_ms,
            unit="ms",
            threshold=asking.db.settings.thresholds.health_timeout_ms,
            action="" if status == "ok" else "Run `fwdb health` again, and `fwdb report pool`.",
        )


def sessions(asking: Asking) -> None:
    """How full the servers are with sessions, and who waits for a lock."""
    monitor = asking.db.monitor
    for database in asking.up:
        limit = asking.ask("sessions", database, partial(monitor.session_limit, database), None)
        found = asking.ask("sessions", database, partial(monitor.sessions, database), None)
        if limit is None or found is None:
            continue
        if limit.value is None:
            asking.add("sessions", database, limit.status, sentence(limit.reason), unit="percent")
            continue
        total = int(found["sessions"].sum())
        percent = 100 * total / limit.value
        status = judged(percent, SESSIONS_WARNING, SESSIONS_CRITICAL)
        asking.add(
            "sessions",
            database,
            status,
            f"{figure(total)} of {figure(limit.value)} sessions of {DATABASES[database]} are "
            f"taken, {share(percent)}.",
            value=percent,
            unit="percent",
            threshold=SESSIONS_CRITICAL if status == "critical" else SESSIONS_WARNING,
            action="" if status == "ok" else "See who holds them: `fwdb report pool`.",
        )
    tree = asking.ask("blocked", "postgres", monitor.blocking, None)
    if tree is not None:
        pool_checks.blocked(asking, tree)


def holders(asking: Asking, found: pd.DataFrame) -> None:
    """Who keeps vacuum from removing dead rows."""
    if found.empty:
        asking.add("vacuum_held", "postgres", "ok", "Nothing keeps vacuum from its work.")
        return
    timed = found[found["seconds"].notna()]
    old = timed.sort_values("seconds").iloc[-1] if len(timed) else None
    seconds = 0.0 if old is None else float(old["seconds"])
    status = judged(seconds, HELD_WARNING, HELD_CRITICAL)
    first = found.iloc[0]
    kept = int(first["transaction_age"])
    if status == "ok" and kept >= KEPT_TRANSACTIONS:
        status, old = "warning", first
    worst = first if old is None else old
    what = f"{worst['holder']} {worst['name']}"
    since = f"for {figure(seconds, 'seconds')}" if old is not None and seconds else ""
    asking.add(
        "vacuum_held",
        "postgres",
        status,
        sentence(
            f"{what} has kept vacuum from removing dead rows {since}".rstrip()
            + f", {figure(int(worst['transaction_age']))} transactions back"
        ),
        value=seconds,
        unit="seconds",
        threshold=HELD_CRITICAL if status == "critical" else HELD_WARNING,
        action="" if status == "ok" else _release(worst),
    )


def _release(holder: pd.Series[Any]) -> str:
    name = str(holder["name"])
    if holder["holder"] == "prepared transaction":
        return f"End it: `COMMIT PREPARED '{name}'` or `ROLLBACK PREPARED '{name}'`."
    if holder["holder"] == "slot":
        return f"Bring its reader back, or drop it: `SELECT pg_drop_replication_slot('{name}')`."
    if holder["holder"] == "replica":
        return "End the long query on the replica, or set hot_standby_feedback = off there."
    pid = name.rpartition("process ")[2].rstrip(")")
    return f"Let it commit, or end it: `SELECT pg_terminate_backend({pid})`."


def figures(asking: Asking, found: Figures) -> None:
    """Sizes, ages, and what happened in the window."""
    measure(
        asking,
        "wraparound",
        found["wraparound_percent"],
        lambda v: f"The oldest transaction number is {v} of the way to wraparound",
        warning=WRAPAROUND_WARNING,
        critical=WRAPAROUND_CRITICAL,
        action="Find what holds vacuum back in table `holders`, then run `VACUUM (FREEZE)` in "
        "that database.",
    )
    measure(
        asking,
        "deadlocks",
        found["deadlocks"],
        lambda v: (
            {"0": "No deadlock", "1": "1 deadlock"}.get(v, f"{v} deadlocks") + " in the window"
        ),
        warning=1,
        action="Take locks in one order everywhere; the server's log has both statements.",
    )
    measure(
        asking,
        "rollbacks",
        found["rollback_percent"],
        lambda v: f"{v} of the transactions were rolled back",
        warning=ROLLBACKS_WARNING,
        critical=ROLLBACKS_CRITICAL,
        action="Look for the error behind them in the log of the application.",
    )
    measure(
        asking, "disk", found["database_bytes"], lambda v: f"The database takes {v}{_grown(found)}"
    )
    measure(asking, "log", found["wal_bytes"], lambda v: f"The write-ahead log takes {v}")
    measure(
        asking,
        "checkpoints",
        found["checkpoints_requested_percent"],
        lambda v: f"{v} of the checkpoints were forced by much writing",
        warning=REQUESTED_WARNING,
        action="Raise max_wal_size: `ALTER SYSTEM SET max_wal_size = '4GB'`, then "
        "`SELECT pg_reload_conf()`.",
    )
    archive, backup = found["archive_age_seconds"], found["backup_age_seconds"]
    measure(asking, "archive", archive, lambda v: f"The log was last archived {v} ago")
    measure(asking, "backup", backup, lambda v: f"The last base backup ended {v} ago")


def cache(asking: Asking, found: Measure) -> None:
    """Blocks found in memory, of those asked for in the window."""
    limits = asking.db.settings.thresholds
    good, alert = limits.cache_good_ratio, limits.cache_alert_ratio
    if found.value is None:
        asking.add("cache", found.database, found.status, sentence(found.reason), unit="ratio")
        return
    name = DATABASES[found.database]
    status = judged(found.value, good, alert, low_is_bad=True)
    # On the line is good: the promise is a ratio of this much and more.
    status = "ok" if found.value == good else status
    asking.add(
        "cache",
        found.database,
        status,
        # Cut, not rounded: 99.96 % is not all of them.
        f"{math.floor(1000 * found.value) / 10:g} % of the blocks {name} wanted were in its cache "
        f"({found.reason}).",
        value=found.value,
        unit="ratio",
        threshold=alert if status == "critical" else good,
        action=""
        if status == "ok"
        else "See what reads much in `fwdb report slow_queries`, table `load`, before giving "
        f"{name} memory.",
    )


def _grown(found: Figures) -> str:
    growth = found["growth_bytes"].value
    if not growth:
        return ""
    return f", {figure(abs(growth), 'bytes')} {'more' if growth > 0 else 'less'} than at the start"


def changes(asking: Asking, found: pd.DataFrame) -> None:
    """What changed in the window; none of it is a fault by itself."""
    if found.attrs.get("status") != "ok" and found.empty:
        asking.add(
            "changes",
            "postgres",
            "no_data",
            sentence(str(found.attrs.get("reason") or "no history")),
        )
        return
    for database in DATABASES:
        mine = found[found["database"] == database]
        if mine.empty and database != "postgres":
            continue
        said = ", ".join(_change(row) for _, row in mine.head(CHANGES_NAMED).iterrows())
        if len(mine) > CHANGES_NAMED:
            said += f", and {len(mine) - CHANGES_NAMED} more in table `changes`"
        asking.add(
            "changes",
            database,
            "ok",
            sentence(
                f"changed in the window: {said}"
                if said
                else "no setting and no version changed, and the server was not started anew"
            ),
            value=len(mine),
            unit="count",
        )


def _change(row: pd.Series[Any]) -> str:
    if row["what"] == "start":
        return f"the server was started anew at {row['after']} UTC"
    return f"{row['name']} from {row['before']} to {row['after']}"


def migrations(asking: Asking) -> None:
    """Whether both schemas are those of this release."""
    for database in asking.up:
        postgres = asking.db.postgres if database == "postgres" else None
        mongodb = asking.db.mongodb if database == "mongodb" else None
        found = asking.ask("schema", database, partial(migrating.pending, postgres, mongodb), None)
        if found is None:
            continue
        bad = [one for one in found if one.severity != "information"]
        hidden = [one for one in found if one.severity == "information"]
        if hidden and not bad:
            asking.add("schema", database, "not_measured", sentence(hidden[0].sentence))
            continue
        asking.add(
            "schema",
            database,
            "critical" if bad else "ok",
            sentence(bad[0].sentence)
            if bad
            else "The schema is that of this release"
            + (f", revision {migrating.head()}." if postgres else "."),
            value=len(bad),
            unit="count",
            threshold=1,
            action="Run `fwdb migrate`." if bad else "",
        )


def profiler(asking: Asking) -> None:
    """A profiler that writes down every operation slows each of them."""
    level = asking.ask("profiler", "mongodb", asking.db.monitor.profiler_level, None)
    if level is None:
        return
    measure(
        asking,
        "profiler",
        level,
        lambda v: f"The profiler of MongoDB is at level {v}",
        warning=2,
        action="Level 2 writes every operation down: `db.setProfilingLevel(1)` keeps slow ones.",
    )
