"""The report `pool`: do callers get a connection, and who holds them?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.charts import duration, share
from fwdb.charts.canvas import DATABASES
from fwdb.reports import servers
from fwdb.reports.check import Facts, Finding, Found, Limits, check, empty, run
from fwdb.reports.parameters import since, until
from fwdb.reports.results import Kpi, Result, Status, Table
from fwdb.reports.words import figure, sentence, times
from fwdb.stores import BOUNDS_MS

if TYPE_CHECKING:
    from fwdb.monitoring import Measure

SHOWN = (
    *("database", "process", "samples", "capacity", "peak_in_use", "peak_utilisation_percent"),
    *("waits", "timeouts", "checkouts_per_second", "hold_mean_ms", "mean_busy"),
)
IDLE_SHOWN = (
    *("pid", "application", "user_name", "idle_seconds", "transaction_seconds", "locks"),
    "statement",
)
BLOCKING_SHOWN = (
    *("pid", "application", "waited_seconds", "depth", "blocker_pid", "root_pid"),
    *("root_application", "root_state", "statement", "root_statement"),
)
ENDED = "Sessions are known for this moment only, and this window ended earlier."
SAMPLE = "Sample while the application runs: `fwdb monitor --interval 30`."


@dataclass(frozen=True)
class Parameters:
    """What `pool` is asked with."""

    since: str = since("24h")
    until: str = until()


def build(facts: Facts) -> Result:
    """The report, from the sampled history and the sessions of this moment."""
    monitor, window, live = facts.db.monitor, facts.window, facts.live
    facts.reach("postgres", "mongodb")
    span = {"since": window.since, "until": window.until}
    history = facts.take("history", lambda: monitor.pool_history(**span), empty("pool_history"))
    nothing = empty("pool_durations", over_ms="float64", up_to_ms="float64")
    durations = facts.take("durations", lambda: monitor.pool_durations(**span), nothing)
    facts.frames["pools"] = summarise(history)
    _now(facts)
    run(facts, CHECKS)
    own = facts["sessions"][facts["sessions"]["database"].astype(str) == "postgres"]
    limit: Measure | None = facts["session_limit"].get("postgres")
    line, reason = facts.lines["utilisation"], _reason(facts, history)
    moments = history["sampled_at"].nunique() if len(history) else 0
    return facts.result(
        tables=_tables(facts),
        charts={
            "pool": charts.pool(
                history,
                warning_percent=line.warning,
                critical_percent=line.critical,
                **facts.edges,
                source="monitoring.pool_samples",
                reason=reason,
            ),
            **{
                name: charts.durations(
                    durations[durations["subject"].astype(str) == subject],
                    subject,
                    bounds=BOUNDS_MS,
                    source="monitoring.pool_samples",
                    window=facts.span,
                    reason=_no_durations(subject, history, reason),
                )
                for name, subject in (("waits", "wait"), ("holds", "hold"))
            },
            "sessions": charts.sessions(
                own,
                limit=limit.value if limit else None,
                source="pg_stat_activity",
                reason=_no_sessions(facts),
            ),
        },
        sources=(
            ("Window", facts.bounds),
            (
                "Pools",
                f"monitoring history, {figure(len(history))} rows from {figure(moments)} moments; "
                "written by `fwdb monitor` and by every workload of the package",
            ),
            ("Sessions", "both servers at the end of the window" if live else ENDED),
        ),
    )


def _now(facts: Facts) -> None:
    """What is known of this moment only; empty for a window that ended earlier."""
    monitor, up = facts.db.monitor, facts.up or ["postgres"]
    take = partial(facts.take, live=True)
    sessions = take("sessions", monitor.sessions, empty("sessions"), up[0])
    take("session_limits", monitor.session_limits, empty("session_limits"))
    take("idle_in_transaction", monitor.idle_transactions, empty("idle_transactions"))
    take("blocked", monitor.blocking, empty("blocking"))
    holders = monitor.holders()
    facts.frames["holders"] = holders if facts.live else holders.head(0)
    facts.frames["session_limit"] = {
        name: facts.ask("session_limit", partial(monitor.session_limit, name), None, name)
        for name in (DATABASES if facts.live else ())
    }
    taken = sessions.groupby(sessions["database"].astype(str))["sessions"].sum()
    facts.frames["taken"] = {str(name): int(count) for name, count in taken.items()}


def _tables(facts: Facts) -> tuple[Table, ...]:
    return (
        facts.table(
            "pools",
            "Pools by process",
            "Every sampled pool, fullest first; capacity is the most it may open, mean busy is "
            "checkouts per second × mean hold.",
            SHOWN,
        ),
        facts.table(
            "sessions",
            "Sessions of the servers",
            "Sessions of both servers now, by user, application and state, and how long the "
            "oldest has been in it.",
        ),
        facts.table(
            "limits",
            "Limits on sessions",
            "Sessions of PostgreSQL against every limit that is set; reserved ones are taken off.",
            frame=facts["session_limits"],
        ),
        facts.table(
            "idle_transactions",
            "Idle inside a transaction",
            "Sessions that hold a transaction open and do nothing, longest first.",
            IDLE_SHOWN,
            frame=facts["idle_in_transaction"],
        ),
        facts.table(
            "blocking",
            "Blocking tree",
            "Sessions that wait for a lock, each with the session it waits for and the root.",
            BLOCKING_SHOWN,
            frame=facts["blocked"],
        ),
        facts.table(
            "holders",
            "Holders of connections",
            "Connections that the process which made this report has lent, longest first.",
        ),
        facts.table(
            "samples",
            "Samples",
            "The history as it was sampled, oldest first.",
            frame=facts["history"],
        ),
        facts.table(
            "durations",
            "Waits, holds and dials",
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


def _no_sessions(facts: Facts) -> str:
    if not facts.live:
        return ENDED
    if "postgres" in facts.down:
        return "PostgreSQL could not be asked."
    return "The server showed no session of an application."


def _no_durations(subject: str, history: pd.DataFrame, reason: str) -> str:
    if not len(history):
        return reason
    if subject == "wait":
        return "Every caller found a connection at once, or could open another."
    return "No connection was returned between two samples."


def _reason(facts: Facts, history: pd.DataFrame) -> str:
    if "postgres" in facts.down:
        return "PostgreSQL, which keeps the history, could not be asked."
    if refused := [c.sentence for c in facts.checks if c.id == "pool.history"]:
        return refused[0]
    if len(history):
        return "The sampled pools have no upper limit, so there is no share to draw."
    if reason := history.attrs.get("reason"):
        return sentence(str(reason))
    return "No sample was taken in this window: `fwdb monitor` takes one every 30 s."


# -- pools -----------------------------------------------------------------------------------------
# Lines without a promise of the system behind them are those that work in practice.


def _of(pool: pd.Series[Any]) -> str:
    """` of shop (process 4711)`; its host is in table `pools`."""
    application, _, place = str(pool["process"]).rpartition("@")
    return f" of {application} (process {place.rpartition(':')[2].partition('#')[0]})"


def _whose(pools: pd.DataFrame, column: str) -> str:
    """The process that counted most in `column`; the sentence has the sum of all."""
    counted = pools[pools[column] > 0].sort_values(column)
    if counted.empty:
        return ""
    most = _of(counted.iloc[-1])
    return most if len(counted) == 1 else f", most of them{most},"


def _pools(facts: Facts) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The sampled pools of each database, with its name."""
    for database, part in facts["pools"].groupby("database", observed=True, sort=True):
        yield str(database), DATABASES.get(str(database), str(database)), part


USE = Limits("pool_warning_percent", "pool_critical_percent")


@check("utilisation", per="database", unit="percent", limits=USE, down=True, role="main")
def utilisation(facts: Facts, database: str) -> Found:
    """How full the fullest pool was at its peak."""
    name, pools = DATABASES[database], facts["pools"]
    known = pools[pools["database"] == database].dropna(subset=["peak_utilisation_percent"])
    kpi = partial(Kpi, f"{database}_peak", f"Peak use of the {name} pool")
    if known.empty:
        gap = str(facts["history"].attrs.get("reason", ""))
        text = f"No use of the {name} pool was sampled in this window{': ' * bool(gap)}{gap}."
        kpis = (kpi(None, "percent", "no_data", database, text),)
        if facts.refused("history", "postgres"):
            facts.kpis += kpis
            return None
        return Finding(text, action=SAMPLE, status="no_data", unit="percent", kpis=kpis)
    fullest = known.sort_values("peak_utilisation_percent").iloc[-1]
    peak, line = float(fullest["peak_utilisation_percent"]), facts.lines["utilisation"]
    status = line.judge(peak)
    over = status != "ok"
    capacity = known["capacity"].dropna()
    note = f"of {figure(int(capacity.max()))} connections" if len(capacity) else ""
    return Finding(
        f"The {name} pool{_of(fullest) if over else ''} was {peak:.0f} % full at its peak, "
        f"{'over' if over else 'under'} the line of {line.threshold(status):g} %.",
        peak,
        f"Shorten its transactions on {name}, and only then enlarge the pool.",
        kpis=(kpi(peak, "percent", status, database, note),),
    )


# One sample with a waiter is a moment, three are a pattern.
@check("waiting", unit="count", limits=Limits(3), share=Limits(1, unit="percent"))
def waiting(facts: Facts, database: str) -> Iterator[Finding]:
    """How often callers had to wait, and for how long."""
    line, often = facts.lines["waiting"], facts.lines["waiting.share"].warning
    for database, name, part in _pools(facts):
        count, samples = int(part["waits"].sum()), int(part["samples_with_waiting"].sum())
        percent = _waited_percent(part)
        status: Status = line.judge(samples)
        if status == "ok" and line.judge(count) != "ok" and percent >= often:
            status = "warning"
        remedy = f"Find what holds {name} connections at these moments; see chart `pool`."
        yield Finding(
            _waited(facts, database, name, part),
            count,
            "" if status == "ok" else remedy,
            status=status,
            database=database,
        )


def _waited_percent(pools: pd.DataFrame) -> float:
    """Waits of all checkouts, those in vain included."""
    checkouts = int(pools["holds"].sum()) + int(pools["timeouts"].sum())
    return 100 * int(pools["waits"].sum()) / checkouts if checkouts else 0.0


def _waited(facts: Facts, database: str, name: str, pools: pd.DataFrame) -> str:
    count, samples = int(pools["waits"].sum()), int(pools["samples_with_waiting"].sum())
    if not (count or samples):
        return f"No caller had to wait for a {name} connection."
    durations = facts["durations"]
    mine = durations[(durations["database"] == database) & (durations["subject"] == "wait")]
    ended = f", {bound_sentence(mine, 99)}" if len(mine) else ""
    seen = f"; {times(samples, 'sample')} saw one waiting" if samples else ""
    return (
        f"Callers{_whose(pools, 'waits')} had to wait for a {name} connection "
        f"{times(count, 'time')}, {share(_waited_percent(pools))} of checkouts{ended}{seen}."
    )


@check("timeouts", unit="count", limits=Limits(None, 1))
def timeouts(facts: Facts, database: str) -> Iterator[Finding]:
    """How often callers waited in vain."""
    for database, name, part in _pools(facts):
        count = int(part["timeouts"].sum())
        status = facts.lines["timeouts"].judge(count)
        text = f"No caller gave up waiting for a {name} connection."
        if count:
            text = f"{times(count, 'caller')}{_whose(part, 'timeouts')} gave up waiting for a "
            text += f"{name} connection."
        note = _waited(facts, database, name, part)
        label = f"Callers that gave up, {name}"
        yield Finding(
            text,
            count,
            f"Callers got errors: free or add {name} connections first of all.",
            threshold=facts.lines["timeouts"].critical,
            database=database,
            kpis=(Kpi(f"{database}_timeouts", label, count, "count", status, database, note),),
        )


def bound_sentence(durations: pd.DataFrame, percent: float) -> str:
    """`99 in 100 within 250 ms`, from the buckets of one subject."""
    ordered = durations.groupby("up_to_ms")["durations"].sum().sort_index()
    reached = ordered.cumsum() >= ordered.sum() * percent / 100
    bound = float(ordered.index[int(reached.to_numpy().argmax())])
    if math.isinf(bound):
        longest = float(durations["over_ms"].max())
        return f"more than {100 - percent:g} in 100 over {duration(longest)}"
    return f"{percent:g} in 100 within {duration(bound)}"


# Fewer holds say nothing about a rate; a transaction of a person's request ends within a second.
@check(
    "sizing",
    unit="connections",
    fewest=Limits(30, unit="holds"),
    long_hold=Limits(1000, unit="ms"),
)
def sizing(facts: Facts, database: str) -> Iterator[Finding]:
    """Whether the pools are of the right size, by Little's law.

    Busy on average = checkouts per second × mean hold. Independent callers make the number of
    busy connections a Poisson variable, which 99 of 100 moments do not see above
    mean + 2.33 √mean; a pool of that size seldom makes anybody wait. Sources: J. D. C. Little
    (1961), A Proof for the Queuing Formula L = λW; the normal approximation of the quantile.
    """
    fewest = facts.lines["sizing.fewest"].warning
    for database, name, part in _pools(facts):
        known = part[part["timed_holds"] >= fewest]
        if known.empty:
            yield Finding(
                f"Too few {name} connections were lent between two samples to tell the size the "
                f"pool needs (at least {fewest:g}).",
                action=SAMPLE,
                status="no_data",
                unit="connections",
                database=database,
            )
            continue
        row = known.sort_values("mean_busy", ascending=False).iloc[0]
        busy = float(row["mean_busy"])
        needed = max(1, math.ceil(busy + 2.33 * math.sqrt(busy)))
        capacity = None if pd.isna(row["capacity"]) else int(row["capacity"])
        rate = f"{figure(float(row['checkouts_per_second']))} checkouts/s"
        mean = figure(float(row["hold_mean_ms"]), "ms")
        small = capacity is not None and needed > capacity
        more, action = _size(facts, database, part, row, capacity, needed)
        note = f"{rate}, held {mean} on average"
        label = f"Connections of {name} busy on average"
        yield Finding(
            f"{name}: {rate} × {mean} = {figure(busy)} connections busy on average; a pool of "
            f"{needed} would do in 99 of 100 moments{more}.",
            needed,
            action,
            status="warning" if small else "ok",
            threshold=capacity,
            database=database,
            kpis=(Kpi(f"{database}_busy", label, round(busy, 2), "", "ok", database, note),),
        )


def _size(
    facts: Facts,
    database: str,
    pools: pd.DataFrame,
    row: pd.Series[Any],
    capacity: int | None,
    needed: int,
) -> tuple[str, str]:
    """What is said of the size that a pool has, and the remedy."""
    if capacity is None:
        return "", ""
    if needed > capacity:
        remedy = f"Shorten what holds connections, or allow {needed}: FWDB_POOL_SIZE plus "
        return f", and the one{_of(row)} may open {capacity}", f"{remedy}FWDB_POOL_MAX_OVERFLOW."
    text = f", and this one may open {capacity}"
    limit, durations = facts.lines["sizing.long_hold"].warning, facts["durations"]
    mine = durations[(durations["database"] == database) & (durations["subject"] == "hold")]
    long = int(mine.loc[mine["over_ms"] >= limit, "durations"].sum())
    waited = int(pools["waits"].sum())
    if not (waited and long):
        return text, ""
    text += f". The {figure(waited)} waits came from {figure(long)} holds of over "
    text += f"{duration(limit)}, not from its size"
    return text, "Shorten those transactions; a larger pool would not help."


# -- sessions --------------------------------------------------------------------------------------


@check("session_limits", unit="percent", limits=servers.SESSIONS, live=True)
def session_limits(facts: Facts, database: str) -> Iterator[Finding]:
    """Limits of databases and roles, which can be reached long before the server's."""
    limits = facts["session_limits"]
    own = limits[(limits["scope"] != "server") & limits["percent"].notna()]
    for row in own.to_dict("records"):
        scope, name, most = str(row["scope"]), str(row["name"]), int(row["most"])
        percent = float(row["percent"])
        yield Finding(
            f"{figure(int(row['sessions']))} of {figure(most)} sessions of the {scope} "
            f"{name} are taken, {share(percent)}.",
            percent,
            f"ALTER {scope.upper()} {name} CONNECTION LIMIT {2 * most}, or close what idles there.",
        )


@check("idle_in_transaction", unit="seconds", limits=Limits(60.0, 300.0), live=True)
def idle_in_transaction(facts: Facts, database: str) -> Found:
    """The session that has been idle inside a transaction for longest."""
    idle, line = facts["idle_in_transaction"], facts.lines["idle_in_transaction"]
    if idle.empty:
        return Finding("No session idles inside a transaction.", 0.0, threshold=None)
    row, seconds = idle.iloc[0], float(idle["idle_seconds"].iloc[0])
    more = f" (and {figure(len(idle) - 1)} more)" if len(idle) > 1 else ""
    who = servers.client(row["application"], row["user_name"])
    return Finding(
        f"Session {row['pid']} of {who} has been idle inside a transaction for "
        f"{figure(seconds, 'seconds')}{more}; its last statement was "
        f"`{_cut(row['statement'])}`.",
        seconds,
        "Find the code that waits inside a transaction; `SELECT "
        f"pg_terminate_backend({row['pid']})` ends this one, `ALTER ROLE {row['user_name']} SET "
        f"idle_in_transaction_session_timeout = '{line.warning:g}s'` the next ones.",
    )


@check("holders", unit="count", limits=Limits(1), live=True, down=True)
def holders(facts: Facts, database: str) -> Iterator[Finding]:
    """Connections that this process has lent for longer than a leak takes to show."""
    lent = facts["holders"]
    lost = lent[lent["is_leak"].astype(bool)]
    for store, part in lost.groupby("database", observed=True, sort=True):
        row, name = part.iloc[0], DATABASES.get(str(store), str(store))
        were = f"{name} connection of this process was", f"{name} connections of this process were"
        yield Finding(
            f"{times(len(part), *were)} not returned, the oldest for "
            f"{figure(float(row['held_seconds']), 'seconds')}: {row['call_site']}.",
            len(part),
            "Return it: use `with db.postgres.connection()` or close the cursor there.",
            database=str(store),
        )


def _cut(statement: object) -> str:
    text = " ".join(str(statement).split()).replace("`", "'")
    return text if len(text) <= 80 else f"{text[:79]}…"


CHECKS = (
    *(utilisation, waiting, timeouts, sizing, servers.sessions, session_limits),
    *(idle_in_transaction, servers.blocked, holders),
)
