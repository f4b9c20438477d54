"""The report `pool`: do callers get a connection, and who holds them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from fwdb import charts
from fwdb.charts.canvas import DATABASES
from fwdb.reports import pool_checks
from fwdb.reports.asking import Asking, sentence, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import Kpi, Result, Table
from fwdb.reports.words import figure
from fwdb.stores import BOUNDS_MS

if TYPE_CHECKING:
    from fwdb.database import Database
    from fwdb.monitoring import Measure

SHOWN = (
    "database",
    "process",
    "samples",
    "capacity",
    "peak_in_use",
    "peak_utilisation_percent",
    "waits",
    "timeouts",
    "checkouts_per_second",
    "hold_mean_ms",
    "mean_busy",
)
ENDED = "Sessions are known for this moment only, and this window ended earlier."
NO_HISTORY = utc_frame(
    {
        "sampled_at": "datetime64[us, UTC]",
        "database": "str",
        "process": "str",
        "capacity": "Int64",
        "in_use": "Int64",
        "idle": "Int64",
        "waiting": "Int64",
        "utilisation_percent": "float64",
        "waits": "int64",
        "wait_ms": "float64",
        "timeouts": "int64",
        "seconds": "float64",
        "holds": "int64",
        "hold_ms": "float64",
    }
)
NO_DURATIONS = utc_frame(
    {
        "database": "str",
        "process": "str",
        "subject": "str",
        "over_ms": "float64",
        "up_to_ms": "float64",
        "durations": "int64",
    }
)
NO_SESSIONS = utc_frame(
    {
        "database": "str",
        "application": "str",
        "state": "str",
        "sessions": "Int64",
        "oldest_seconds": "float64",
    }
)
NO_LIMITS = utc_frame({"scope": "str", "name": "str", "percent": "float64"})
NO_IDLE = utc_frame({"pid": "Int64", "idle_seconds": "float64", "statement": "str"})
NO_BLOCKED = utc_frame({"pid": "Int64", "root_pid": "Int64", "waited_seconds": "float64"})
NO_HOLDERS = utc_frame({"database": "str", "is_leak": "boolean", "call_site": "str"})


@dataclass(frozen=True)
class Now:
    """What is known of this moment only; empty for a window that ended earlier."""

    sessions: pd.DataFrame
    limits: pd.DataFrame
    idle: pd.DataFrame
    blocking: pd.DataFrame
    holders: pd.DataFrame
    most: dict[str, Measure | None]


def build(db: Database, window: Window, parameters: Mapping[str, Value]) -> Result:
    """The report over `window`, from the sampled history and the sessions of this moment."""
    asking = Asking("pool", db)
    asking.reach("postgres", "mongodb")
    limits = db.settings.thresholds
    history = asking.ask(
        "history",
        "postgres",
        lambda: db.monitor.pool_history(since=window.since, until=window.until),
        NO_HISTORY,
    )
    durations = asking.ask(
        "durations",
        "postgres",
        lambda: db.monitor.pool_durations(since=window.since, until=window.until),
        NO_DURATIONS,
    )
    live = parameters["until"] == "now"
    now = _now(asking, db) if live else NOTHING
    own = now.sessions[now.sessions["database"].astype(str) == "postgres"]
    limit = now.most["postgres"]
    summary = summarise(history)
    kpis: list[Kpi] = []
    for database in DATABASES:
        pool_checks.utilisation(
            asking,
            kpis,
            summary,
            database,
            limits.pool_warning_percent,
            limits.pool_critical_percent,
            str(history.attrs.get("reason", "")),
        )
    pool_checks.waits(asking, kpis, summary, durations)
    pool_checks.sizing(asking, kpis, summary, durations)
    for database, measure in now.most.items():
        pool_checks.sessions_taken(asking, kpis, now.sessions, database, measure)
    if live and "postgres" not in asking.down:
        pool_checks.limits_reached(asking, now.limits)
        pool_checks.idle_in_transaction(asking, now.idle)
        pool_checks.blocked(asking, now.blocking)
    pool_checks.leaks(asking, now.holders)
    reason = _reason(asking, history)
    moments = history["sampled_at"].nunique() if len(history) else 0
    seen = charts.window_text(pd.Timestamp(window.since), pd.Timestamp(window.until))
    return Result(
        report="pool",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(kpis),
        tables=_tables(summary, history, durations, now),
        charts={
            "pool": charts.pool(
                history,
                warning_percent=limits.pool_warning_percent,
                critical_percent=limits.pool_critical_percent,
                since=pd.Timestamp(window.since),
                until=pd.Timestamp(window.until),
                source="monitoring.pool_samples",
                reason=reason,
            ),
            **{
                name: charts.durations(
                    durations[durations["subject"].astype(str) == subject],
                    subject,
                    bounds=BOUNDS_MS,
                    source="monitoring.pool_samples",
                    window=seen,
                    reason=_no_durations(subject, history, reason),
                )
                for name, subject in (("waits", "wait"), ("holds", "hold"))
            },
            "sessions": charts.sessions(
                own,
                limit=limit.value if limit else None,
                source="pg_stat_activity",
                reason=_no_sessions(asking, live=live),
            ),
        },
        how_to_read=_how_to_read(limits.pool_warning_percent, limits.pool_critical_percent),
        sources=(
            ("Window", f"{iso(window.since)} to {iso(window.until)}"),
            (
                "Pools",
                f"monitoring history, {figure(len(history))} rows from {figure(moments)} moments; "
                "written by `fwdb monitor` and by every workload of the package",
            ),
            ("Sessions", "both servers at the end of the window" if live else ENDED),
        ),
    )


NOTHING = Now(NO_SESSIONS, NO_LIMITS, NO_IDLE, NO_BLOCKED, NO_HOLDERS, dict.fromkeys(DATABASES))


def _now(asking: Asking, db: Database) -> Now:
    monitor, up = db.monitor, asking.up or ["postgres"]
    return Now(
        sessions=asking.ask("sessions", up[0], monitor.sessions, NO_SESSIONS),
        limits=asking.ask("session_limits", "postgres", monitor.session_limits, NO_LIMITS),
        idle=asking.ask("idle_in_transaction", "postgres", monitor.idle_transactions, NO_IDLE),
        blocking=asking.ask("blocked", "postgres", monitor.blocking, NO_BLOCKED),
        holders=monitor.holders(),
        most={
            name: asking.ask("session_limit", name, partial(monitor.session_limit, name), None)
            for name in DATABASES
        },
    )


def _tables(
    summary: pd.DataFrame, history: pd.DataFrame, durations: pd.DataFrame, now: Now
) -> tuple[Table, ...]:
    return (
        Table(
            "pools",
            "Pools by process",
            summary,
            "Every sampled pool, fullest first; capacity is the most it may open, mean busy is "
            "checkouts per second × mean hold.",
            SHOWN,
        ),
        Table(
            "sessions",
            "Sessions of the servers",
            now.sessions,
            "Sessions of both servers now, by user, application and state, and how long the "
            "oldest has been in it.",
        ),
        Table(
            "limits",
            "Limits on sessions",
            now.limits,
            "Sessions of PostgreSQL against every limit that is set; reserved ones are taken off.",
        ),
        Table(
            "idle_transactions",
            "Idle inside a transaction",
            now.idle,
            "Sessions that hold a transaction open and do nothing, longest first.",
            (
                "pid",
                "application",
                "user_name",
                "idle_seconds",
                "transaction_seconds",
                "locks",
                "statement",
            ),
        ),
        Table(
            "blocking",
            "Blocking tree",
            now.blocking,
            "Sessions that wait for a lock, each with the session it waits for and the root.",
            (
                "pid",
                "application",
                "waited_seconds",
                "depth",
                "blocker_pid",
                "root_pid",
                "root_application",
                "root_state",
                "statement",
                "root_statement",
            ),
        ),
        Table(
            "holders",
            "Holders of connections",
            now.holders,
            "Connections that the process which made this report has lent, longest first.",
        ),
        Table("samples", "Samples", history, "The history as it was sampled, oldest first."),
        Table(
            "durations",
            "Waits, holds and dials",
            durations,
            "How many took how long, by bucket; a dial opens a new connection.",
        ),
    )


def summarise(history: pd.DataFrame) -> pd.DataFrame:
    """One row per pool: how full it was, how often somebody waited, and time-outs in the window."""
    rows = [
        {
            "database": str(database),
            "process": str(process),
            "samples": len(part),
            "capacity": _most(part["capacity"]),
            "peak_in_use": _most(part["in_use"]),
            "peak_utilisation_percent": part["utilisation_percent"].max(),
            "mean_utilisation_percent": part["utilisation_percent"].mean(),
            "waiting_peak": _most(part["waiting"]),
            "samples_with_waiting": int((part["waiting"].fillna(0) > 0).sum()),
            "waits": int(part["waits"].sum()),
            "wait_ms": float(part["wait_ms"].sum()),
            "timeouts": int(part["timeouts"].sum()),
            "holds": int(part["holds"].sum()),
            **_little(part),
        }
        for (database, process), part in history.groupby(
            ["database", "process"], observed=True, dropna=False
        )
    ]
    frame = pd.DataFrame(rows, columns=None if rows else [*SHOWN])
    return frame.sort_values(
        ["peak_utilisation_percent", "database", "process"], ascending=[False, False, True]
    ).reset_index(drop=True)


def _little(part: pd.DataFrame) -> dict[str, float | None]:
    """Little's law over the time between samples: rate × mean hold = busy on average."""
    timed = part[part["seconds"].fillna(0) > 0]
    seconds, holds = float(timed["seconds"].sum()), int(timed["holds"].sum())
    held = float(timed["hold_ms"].sum())
    return {
        "timed_holds": holds,
        "checkouts_per_second": holds / seconds if seconds else None,
        "hold_mean_ms": held / holds if holds else None,
        "mean_busy": held / 1000 / seconds if seconds else None,
    }


def _most(values: pd.Series[int]) -> int | None:
    known = values.dropna()
    return int(known.max()) if len(known) else None


def _no_sessions(asking: Asking, *, live: bool) -> str:
    if not live:
        return ENDED
    if "postgres" in asking.down:
        return "PostgreSQL could not be asked."
    return "The server showed no session of an application."


def _no_durations(subject: str, history: pd.DataFrame, reason: str) -> str:
    if not len(history):
        return reason
    if subject == "wait":
        return "Every caller found a connection at once, or could open another."
    return "No connection was returned between two samples."


def _reason(asking: Asking, history: pd.DataFrame) -> str:
    if "postgres" in asking.down:
        return "PostgreSQL, which keeps the history, could not be asked."
    refused = [c.sentence for c in asking.checks if c.id == "pool.history"]
    if refused:
        return refused[0]
    if not len(history) and history.attrs.get("reason"):
        return sentence(str(history.attrs["reason"]))
    if len(history):
        return "The sampled pools have no upper limit, so there is no share to draw."
    return "No sample was taken in this window: `fwdb monitor` takes one every 30 s."


def _how_to_read(warning: float, critical: float) -> tuple[tuple[str, str], ...]:
    return (
        (
            "Use of a pool",
            "Connections in use as a share of the most the pool may open. Idle connections are "
            f"not in use and wait for nobody. From {warning:g} % it is a warning, from "
            f"{critical:g} % critical.",
        ),
        (
            "Waiting",
            "Callers that queued because no connection was free and no further one could be "
            "opened; opening one is no wait. Every one is counted, not only those that a sample "
            f"saw. At {pool_checks.WAITED_WARNING:g} % of checkouts or from "
            f"{pool_checks.WAITING_SAMPLES} samples on it is a warning; one that gave up is "
            "critical.",
        ),
        (
            "Within",
            "Waits and holds are counted in buckets, so the bound of a bucket is given and no "
            "percentile between two bounds.",
        ),
        (
            "Busy on average",
            "Checkouts per second × mean hold (Little's law). The size that would do is the mean "
            "plus 2.33 times its root: 99 of 100 moments of independent callers need no more.",
        ),
        (
            "A full pool",
            "is seldom too small: mostly a few transactions hold connections for too long. "
            "Shorten those first; more connections make the server slower, not faster.",
        ),
        (
            "Sessions",
            "What the server sees, from all applications. A session idle inside a transaction "
            f"holds locks and old rows: {pool_checks.HELD_WARNING:g} s is a warning, "
            f"{pool_checks.HELD_CRITICAL:g} s critical.",
        ),
        (
            "Between two samples",
            "waits, holds and time-outs are counted, but how full a pool was is not known: short "
            "peaks can be missed. Where several samples are missing the line is broken.",
        ),
    )
