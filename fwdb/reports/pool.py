"""The report `pool`: do callers get a connection, and who holds them?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from fwdb import charts
from fwdb.charts import share
from fwdb.charts.canvas import DATABASES
from fwdb.reports.asking import Asking, judged, sentence, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import Kpi, Result, Table
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database
    from fwdb.monitoring import Measure

# Figures without a promise of the system behind them are those that work in practice:
WAITING_SAMPLES = 3  # one sample with a waiter is a moment, three are a pattern
SESSIONS_WARNING, SESSIONS_CRITICAL = 75.0, 90.0  # percent of what the server allows
HELD_WARNING, HELD_CRITICAL = 60.0, 300.0  # seconds idle inside a transaction

SHOWN = (
    "database",
    "process",
    "samples",
    "capacity",
    "peak_in_use",
    "peak_utilisation_percent",
    "samples_with_waiting",
    "waits",
    "timeouts",
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
    up = asking.up or ["postgres"]
    sessions, limits_of = NO_SESSIONS, dict.fromkeys(DATABASES)
    # Sessions are known for this moment only: a window that ended earlier has none.
    live = parameters["until"] == "now"
    if live:
        sessions = asking.ask("sessions", up[0], db.monitor.sessions, NO_SESSIONS)
        limits_of = {
            name: asking.ask("session_limit", name, partial(db.monitor.session_limit, name), None)
            for name in DATABASES
        }
    own = sessions[sessions["database"].astype(str) == "postgres"]
    limit = limits_of["postgres"]
    summary = summarise(history)
    kpis: list[Kpi] = []
    for database in DATABASES:
        _utilisation(
            asking,
            kpis,
            summary,
            database,
            limits.pool_warning_percent,
            limits.pool_critical_percent,
        )
    _waits(asking, kpis, summary)
    for database, measure in limits_of.items():
        _sessions(asking, kpis, sessions, database, measure)
    _holding(asking, own)
    reason = _reason(asking, history)
    moments = history["sampled_at"].nunique() if len(history) else 0
    return Result(
        report="pool",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(kpis),
        tables=(
            Table(
                "pools",
                "Pools by process",
                summary,
                "Every sampled pool, fullest first; capacity is the most it may open.",
                SHOWN,
            ),
            Table(
                "sessions",
                "Sessions of the servers",
                sessions,
                "Sessions of both servers now, by application and state, and how long the oldest "
                "has been in it; MongoDB tells their number only.",
            ),
            Table("samples", "Samples", history, "The history as it was sampled, oldest first."),
        ),
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
        }
        for (database, process), part in history.groupby(
            ["database", "process"], observed=True, dropna=False
        )
    ]
    frame = pd.DataFrame(rows, columns=None if rows else [*SHOWN])
    return frame.sort_values(
        ["peak_utilisation_percent", "database", "process"], ascending=[False, False, True]
    ).reset_index(drop=True)


def _most(values: pd.Series[int]) -> int | None:
    known = values.dropna()
    return int(known.max()) if len(known) else None


def _utilisation(
    asking: Asking,
    kpis: list[Kpi],
    summary: pd.DataFrame,
    database: str,
    warning: float,
    critical: float,
) -> None:
    name = DATABASES[database]
    known = summary[summary["database"] == database].dropna(subset=["peak_utilisation_percent"])
    label = f"Peak use of the {name} pool"
    if known.empty:
        sentence = f"No use of the {name} pool was sampled in this window."
        if not any(c.id == "pool.history" for c in asking.checks):
            asking.add(
                "utilisation",
                database,
                "no_data",
                sentence,
                unit="percent",
                action="Sample while the application runs: `fwdb monitor --interval 30`.",
            )
        kpis.append(Kpi(f"{database}_peak", label, None, "percent", "no_data", database, sentence))
        return
    peak = float(known["peak_utilisation_percent"].max())
    status = judged(peak, warning, critical)
    line = critical if status == "critical" else warning
    asking.add(
        "utilisation",
        database,
        status,
        f"The {name} pool was {peak:.0f} % full at its peak, "
        f"{'over' if status != 'ok' else 'under'} the line of {line:g} %.",
        value=peak,
        unit="percent",
        threshold=line,
        action=""
        if status == "ok"
        else f"Look into table `pools` for the process, shorten its transactions on {name}, "
        "and only then enlarge the pool.",
    )
    capacity = known["capacity"].dropna()
    note = f"of {figure(int(capacity.max()))} connections" if len(capacity) else ""
    kpis.append(Kpi(f"{database}_peak", label, peak, "percent", status, database, note))


def _waits(asking: Asking, kpis: list[Kpi], summary: pd.DataFrame) -> None:
    for database, part in summary.groupby("database", observed=True, sort=True):
        samples, timeouts = int(part["samples_with_waiting"].sum()), int(part["timeouts"].sum())
        name = DATABASES.get(str(database), str(database))
        status = judged(samples, WAITING_SAMPLES, float("inf"))
        text = f"Callers waited for a {name} connection in {samples} samples"
        if samples == 1:
            text = text.removesuffix("s")
        if not samples:
            text = f"Nobody was seen waiting for a {name} connection"
        asking.add(
            "waiting",
            str(database),
            status,
            f"{text}.",
            value=samples,
            unit="count",
            threshold=WAITING_SAMPLES,
            action=""
            if status == "ok"
            else f"Find what holds {name} connections at these moments; see chart `pool`.",
        )
        asking.add(
            "timeouts",
            str(database),
            "critical" if timeouts else "ok",
            f"{figure(timeouts)} callers gave up waiting for a {name} connection."
            if timeouts
            else f"No caller gave up waiting for a {name} connection.",
            value=timeouts,
            unit="count",
            threshold=1,
            action=f"Callers got errors: free or add {name} connections first of all."
            if timeouts
            else "",
        )
        kpis.append(
            Kpi(
                f"{database}_timeouts",
                f"Callers that gave up, {name}",
                timeouts,
                "count",
                "critical" if timeouts else "ok",
                str(database),
                f"{text}.",
            )
        )


def _sessions(
    asking: Asking, kpis: list[Kpi], sessions: pd.DataFrame, database: str, limit: Measure | None
) -> None:
    mine = sessions[sessions["database"].astype(str) == database]
    if mine.empty or limit is None or limit.value is None:
        return
    total, name = int(mine["sessions"].sum()), DATABASES[database]
    percent = 100 * total / limit.value
    status = judged(percent, SESSIONS_WARNING, SESSIONS_CRITICAL)
    asking.add(
        "sessions",
        database,
        status,
        f"{figure(total)} of {figure(limit.value)} sessions of {name} are taken, {share(percent)}.",
        value=percent,
        unit="percent",
        threshold=SESSIONS_CRITICAL if status == "critical" else SESSIONS_WARNING,
        action="" if status == "ok" else f"Close what idles on {name}; see table `sessions`.",
    )
    note = f"of {figure(limit.value)} that applications may open, this moment"
    kpis.append(
        Kpi(f"{database}_sessions", f"Sessions of {name}", total, "", status, database, note)
    )


def _holding(asking: Asking, sessions: pd.DataFrame) -> None:
    """Sessions of PostgreSQL that keep others from what they hold."""
    if sessions.empty:
        return
    held = sessions[sessions["state"].astype(str).str.startswith("idle in transaction")]
    oldest = float(held["oldest_seconds"].max()) if len(held) else 0.0
    status = judged(oldest, HELD_WARNING, HELD_CRITICAL)
    asking.add(
        "idle_in_transaction",
        "postgres",
        status,
        f"The oldest session idle inside a transaction has been so for {figure(oldest, 'seconds')}."
        if len(held)
        else "No session idles inside a transaction.",
        value=oldest,
        unit="seconds",
        threshold=HELD_CRITICAL if status == "critical" else HELD_WARNING,
        action="" if status == "ok" else "Find the code that waits inside a transaction.",
    )
    if "blocked" not in sessions:
        return
    blocked = int(sessions["blocked"].sum())
    asking.add(
        "blocked",
        "postgres",
        "warning" if blocked else "ok",
        f"{figure(blocked)} session{'s wait' if blocked != 1 else ' waits'} for a lock that "
        "another one holds."
        if blocked
        else "No session waits for a lock of another.",
        value=blocked,
        unit="count",
        threshold=1,
        action="Find who holds the lock: pg_blocking_pids() tells." if blocked else "",
    )


def _no_sessions(asking: Asking, *, live: bool) -> str:
    if not live:
        return ENDED
    if "postgres" in asking.down:
        return "PostgreSQL could not be asked."
    return "The server showed no session of an application."


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
            "Callers that asked for a connection and had none yet at the moment of the sample. "
            f"From {WAITING_SAMPLES} samples on it is a warning; one that gave up is critical.",
        ),
        (
            "A full pool",
            "is seldom too small: mostly a few transactions hold connections for too long. "
            "Shorten those first; more connections make the server slower, not faster.",
        ),
        (
            "Sessions",
            "What the server sees, from all applications. A session idle inside a transaction "
            f"holds locks and old rows: {HELD_WARNING:g} s is a warning, {HELD_CRITICAL:g} s "
            "critical.",
        ),
        (
            "Between two samples",
            "nothing is known: short peaks can be missed. Where several samples are missing the "
            "line is broken.",
        ),
    )
