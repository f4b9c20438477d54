"""The report `pool`: do callers get a connection, and who holds them?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.charts.words import DATABASES, clean, duration, figure, more, plural, sentence, share
from fwdb.reports import servers
from fwdb.reports.check import Finding, Found, Limits, check, run
from fwdb.reports.facts import Facts, empty
from fwdb.reports.parameters import since, until
from fwdb.reports.results import Kpi, Result, Shown, Status
from fwdb.stores import BOUNDS_MS

ENDED = "Sessions are known for this moment only, and this window ended earlier."
SAMPLE = "Sample while the application runs: `fwdb monitor --interval 30`."
DOWN = "PostgreSQL, which keeps the history, could not be asked."

TABLES = (
    Shown(
        "pools",
        "Pools by process",
        "Every sampled pool, fullest first; capacity is the most it may open, mean busy is "
        "checkouts per second × mean hold.",
        "database process samples capacity peak_in_use peak_utilisation_percent waits timeouts "
        "checkouts_per_second hold_mean_ms mean_busy",
    ),
    Shown(
        "sessions",
        "Sessions of the servers",
        "Sessions of both servers now, by user, application and state, and how long the oldest has "
        "been in it.",
    ),
    Shown(
        "limits",
        "Limits on sessions",
        "Sessions of PostgreSQL against every limit that is set; reserved ones are taken off.",
        frame="session_limits",
    ),
    Shown(
        "idle_transactions",
        "Idle inside a transaction",
        "Sessions that hold a transaction open and do nothing, longest first.",
        "pid application user_name idle_seconds transaction_seconds locks statement",
        frame="idle_in_transaction",
    ),
    Shown(
        "blocking",
        "Blocking tree",
        "Sessions that wait for a lock, each with the session it waits for and the root.",
        "pid application waited_seconds depth blocker_pid root_pid root_application root_state "
        "statement root_statement",
        frame="blocked",
    ),
    Shown(
        "holders",
        "Holders of connections",
        "Connections that the process which made this report has lent, longest first.",
    ),
    Shown("samples", "Samples", "The history as it was sampled, oldest first.", frame="history"),
    Shown(
        "durations",
        "Waits, holds and dials",
        "How many took how long, by bucket; a dial opens a new connection.",
    ),
)


@dataclass(frozen=True)
class Parameters:
    """What `pool` is asked with."""

    since: str = since("24h")
    until: str = until()


def build(facts: Facts) -> Result:
    """The report, from the sampled history and the sessions of this moment."""
    facts.reach("postgres", "mongodb")
    monitor, span = facts.db.monitor, {n: getattr(facts.window, n) for n in ("since", "until")}
    history = facts.take("history", partial(monitor.pool_history, **span), "pool_history")
    nothing = empty("pool_durations", over_ms="float64", up_to_ms="float64")
    durations = facts.take("durations", partial(monitor.pool_durations, **span), nothing)
    facts.frames["pools"] = summarise(history)
    _now(facts)
    run(facts, CHECKS)
    sessions, limit = facts["sessions"], facts["session_limit"].get("postgres")
    line, reason = facts.lines["utilisation"], _reason(facts, history)
    drawn: dict[str, Any] = {"source": "monitoring.pool_samples"}
    moments = history["sampled_at"].nunique() if len(history) else 0
    lasting = {
        name: charts.durations(
            durations[durations["subject"].astype(str) == subject],
            subject,
            bounds=BOUNDS_MS,
            window=facts.span,
            reason=why if len(history) else reason,
            **drawn,
        )
        for name, subject, why in (
            ("waits", "wait", "Every caller found a connection at once, or could open another."),
            ("holds", "hold", "No connection was returned between two samples."),
        )
    }
    return facts.result(
        TABLES,
        charts={
            "pool": charts.pool(
                history,
                warning_percent=line.warning,
                critical_percent=line.critical,
                reason=reason,
                **facts.edges,
                **drawn,
            ),
            **lasting,
            "sessions": charts.sessions(
                sessions[sessions["database"].astype(str) == "postgres"],
                limit=limit.value if limit else None,
                source="pg_stat_activity",
                reason=ENDED
                if not facts.live
                else "PostgreSQL could not be asked."
                if "postgres" in facts.down
                else "The server showed no session of an application.",
            ),
        },
        sources=(
            ("Window", facts.bounds),
            (
                "Pools",
                f"monitoring history, {figure(len(history))} rows from {figure(moments)} moments; "
                "written by `fwdb monitor` and by every workload of the package",
            ),
            ("Sessions", "both servers at the end of the window" if facts.live else ENDED),
        ),
    )


def _now(facts: Facts) -> None:
    """What is known of this moment only; empty for a window that ended earlier."""
    monitor, up, take = facts.db.monitor, facts.up or ["postgres"], partial(facts.take, live=True)
    sessions = take("sessions", monitor.sessions, "sessions", up[0])
    take("session_limits", monitor.session_limits, "session_limits")
    take("idle_in_transaction", monitor.idle_transactions, "idle_transactions")
    take("blocked", monitor.blocking, "blocking")
    holders = monitor.holders()
    facts.frames["holders"] = holders if facts.live else holders.head(0)
    facts.frames["session_limit"] = {
        name: facts.ask("session_limit", partial(monitor.session_limit, name), None, name)
        for name in (DATABASES if facts.live else ())
    }
    taken = sessions.groupby(sessions["database"].astype(str))["sessions"].sum()
    facts.frames["taken"] = {str(name): int(count) for name, count in taken.items()}


def summarise(history: pd.DataFrame) -> pd.DataFrame:
    """One row per pool: how full it was, how often somebody waited, and time-outs in the window.

    Little's law over the time between samples: rate × mean hold = busy on average.
    """
    rows = []
    keys = ["database", "process"]
    for names, part in history.groupby(keys, observed=True, dropna=False):
        timed = part[part["seconds"].fillna(0) > 0]
        seconds, holds = float(timed["seconds"].sum()), int(timed["holds"].sum())
        held = float(timed["hold_ms"].sum())
        row: dict[str, Any] = dict(zip(keys, map(str, names), strict=True))
        row |= {"samples": len(part), "capacity": _most(part["capacity"])}
        row["peak_in_use"] = _most(part["in_use"])
        row["peak_utilisation_percent"] = part["utilisation_percent"].max()
        row["mean_utilisation_percent"] = part["utilisation_percent"].mean()
        row["waiting_peak"] = _most(part["waiting"])
        row["samples_with_waiting"] = int((part["waiting"].fillna(0) > 0).sum())
        row |= {name: part[name].sum() for name in ("waits", "wait_ms", "timeouts", "holds")}
        row["timed_holds"] = holds
        row["checkouts_per_second"] = holds / seconds if seconds else None
        row["hold_mean_ms"] = held / holds if holds else None
        row["mean_busy"] = held / 1000 / seconds if seconds else None
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else TABLES[0].columns.split())
    order = ["peak_utilisation_percent", *keys]
    return frame.sort_values(order, ascending=[False, False, True], ignore_index=True)


def _most(values: pd.Series[int]) -> int | None:
    known = values.dropna()
    return int(known.max()) if len(known) else None


def _reason(facts: Facts, history: pd.DataFrame) -> str:
    if "postgres" in facts.down:
        return DOWN
    if refused := [c.sentence for c in facts.checks if c.id == "pool.history"]:
        return refused[0]
    if len(history):
        return "The sampled pools have no upper limit, so there is no share to draw."
    none = "No sample was taken in this window: `fwdb monitor` takes one every 30 s."
    return sentence(history.attrs.get("reason") or none)


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
        yield str(database), DATABASES[str(database)], part


USE = Limits("pool_warning_percent", "pool_critical_percent")


@check("utilisation", "percent", USE, per="database", down=True, role="main")
def utilisation(facts: Facts, database: str) -> Found:
    """How full the fullest pool was at its peak."""
    name, pools = DATABASES[database], facts["pools"]
    known = pools[pools["database"] == database].dropna(subset=["peak_utilisation_percent"])
    kpi = partial(Kpi, "{}_peak", "Peak use of the {} pool", unit="percent")
    if known.empty:
        gap = str(facts["history"].attrs.get("reason", ""))
        text = f"No use of the {name} pool was sampled in this window{': ' * bool(gap)}{gap}."
        if facts.refused("history", "postgres"):
            facts.kpis.append(kpi(None, note=text).filled(database, "no_data"))
            return None
        kpis = (kpi(None, note=text),)
        return Finding(text, action=SAMPLE, status="no_data", unit="percent", kpis=kpis)
    fullest = known.sort_values("peak_utilisation_percent").iloc[-1]
    peak, line = float(fullest["peak_utilisation_percent"]), facts.lines["utilisation"]
    status = line.judge(peak)
    whose, side = ("", "under") if status == "ok" else (_of(fullest), "over")
    capacity = known["capacity"].dropna()
    note = f"of {figure(int(capacity.max()))} connections" if len(capacity) else ""
    return Finding(
        f"The {name} pool{whose} was {peak:.0f} % full at its peak, {side} the line of "
        f"{line.threshold(status):g} %.",
        peak,
        f"Shorten its transactions on {name}, and only then enlarge the pool.",
        kpis=(kpi(peak, note=note),),
    )


# One sample with a waiter is a moment, three are a pattern.
@check("waiting", "count", Limits(3), share=Limits(1, unit="percent"))
def waiting(facts: Facts, database: str) -> Iterator[Finding]:
    """How often callers had to wait, and for how long."""
    line = facts.lines["waiting"]
    for database, name, part in _pools(facts):
        count, percent, text = _waited(facts, database, name, part)
        status: Status = line.judge(int(part["samples_with_waiting"].sum()))
        often = line.judge(count) != "ok" and percent >= facts.limit("waiting.share")
        if status == "ok" and often:
            status = "warning"
        remedy = f"Find what holds {name} connections at these moments; see chart `pool`."
        yield Finding(text, count, remedy, status=status, database=database)


def _waited(facts: Facts, database: str, name: str, pools: pd.DataFrame) -> tuple[int, float, str]:
    """Waits, their part of all checkouts, those in vain included, and both as a sentence."""
    count, samples = int(pools["waits"].sum()), int(pools["samples_with_waiting"].sum())
    checkouts = int(pools["holds"].sum()) + int(pools["timeouts"].sum())
    percent = 100 * count / checkouts if checkouts else 0.0
    if not (count or samples):
        return count, percent, f"No caller had to wait for a {name} connection."
    mine = _lasting(facts, database, "wait")
    ended = f", {bound_sentence(mine, 99)}" if len(mine) else ""
    seen = f"; {plural(samples, 'sample')} saw one waiting" if samples else ""
    text = f"Callers{_whose(pools, 'waits')} had to wait for a {name} connection "
    return (
        count,
        percent,
        f"{text}{plural(count, 'time')}, {share(percent)} of checkouts{ended}{seen}.",
    )


def _lasting(facts: Facts, database: str, subject: str) -> pd.DataFrame:
    found: pd.DataFrame = facts["durations"]
    return found[(found["database"] == database) & (found["subject"] == subject)]


@check("timeouts", "count", Limits(None, 1))
def timeouts(facts: Facts, database: str) -> Iterator[Finding]:
    """How often callers waited in vain."""
    for database, name, part in _pools(facts):
        count = int(part["timeouts"].sum())
        who = f"{plural(count, 'caller')}{_whose(part, 'timeouts')}" if count else "No caller"
        note = _waited(facts, database, name, part)[-1]
        kpi = Kpi("{}_timeouts", "Callers that gave up, {}", count, "count", note=note)
        text = f"{who} gave up waiting for a {name} connection."
        remedy = f"Callers got errors: free or add {name} connections first of all."
        yield Finding(text, count, remedy, database=database, kpis=(kpi,))


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
@check("sizing", "connections", fewest=Limits(30, unit="holds"), long_hold=Limits(1000, unit="ms"))
def sizing(facts: Facts, database: str) -> Iterator[Finding]:
    """Whether the pools are of the right size, by Little's law.

    Busy on average = checkouts per second × mean hold. Independent callers make the number of
    busy connections a Poisson variable, which 99 of 100 moments do not see above
    mean + 2.33 √mean; a pool of that size seldom makes anybody wait. Sources: J. D. C. Little
    (1961), A Proof for the Queuing Formula L = λW; the normal approximation of the quantile.
    """
    fewest, limit = facts.limit("sizing.fewest"), facts.limit("sizing.long_hold")
    for database, name, part in _pools(facts):
        known = part[part["timed_holds"] >= fewest]
        if known.empty:
            text = f"Too few {name} connections were lent between two samples to tell the size "
            text += f"the pool needs (at least {fewest:g})."
            yield Finding(
                text, action=SAMPLE, status="no_data", unit="connections", database=database
            )
            continue
        row = known.sort_values("mean_busy", ascending=False).iloc[0]
        busy = float(row["mean_busy"])
        needed = max(1, math.ceil(busy + 2.33 * math.sqrt(busy)))
        capacity = None if pd.isna(row["capacity"]) else int(row["capacity"])
        small = capacity is not None and needed > capacity
        rate = f"{figure(float(row['checkouts_per_second']))} checkouts/s"
        mean = figure(float(row["hold_mean_ms"]), "ms")
        held, waited = _lasting(facts, database, "hold"), int(part["waits"].sum())
        long = int(held.loc[held["over_ms"] >= limit, "durations"].sum())
        said, action = "" if capacity is None else f", and this one may open {capacity}", ""
        if small:
            said = f", and the one{_of(row)} may open {capacity}"
            action = f"Shorten what holds connections, or allow {needed}: FWDB_POOL_SIZE plus "
            action += "FWDB_POOL_MAX_OVERFLOW."
        elif said and waited and long:
            said += f". The {figure(waited)} waits came from {figure(long)} holds of over "
            said += f"{duration(limit)}, not from its size"
            action = "Shorten those transactions; a larger pool would not help."
        note = f"{rate}, held {mean} on average"
        label = "Connections of {} busy on average"
        yield Finding(
            f"{name}: {rate} × {mean} = {figure(busy)} connections busy on average; a pool of "
            f"{needed} would do in 99 of 100 moments{said}.",
            needed,
            action,
            status="warning" if small else "ok",
            threshold=capacity,
            database=database,
            kpis=(Kpi("{}_busy", label, round(busy, 2), status="ok", note=note),),
            always=True,
        )


@check("session_limits", "percent", servers.SESSIONS, live=True)
def session_limits(facts: Facts, database: str) -> Iterator[Finding]:
    """Limits of databases and roles, which can be reached long before the server's."""
    limits = facts["session_limits"]
    own = limits[(limits["scope"] != "server") & limits["percent"].notna()]
    for row in own.to_dict("records"):
        scope, name, most = str(row["scope"]), str(row["name"]), int(row["most"])
        percent = float(row["percent"])
        yield Finding(
            f"{figure(int(row['sessions']))} of {figure(most)} sessions of the {scope} {name} are "
            f"taken, {share(percent)}.",
            percent,
            f"ALTER {scope.upper()} {name} CONNECTION LIMIT {2 * most}, or close what idles there.",
        )


@check("idle_in_transaction", "seconds", Limits(60.0, 300.0), live=True)
def idle_in_transaction(facts: Facts, database: str) -> Found:
    """The session that has been idle inside a transaction for longest."""
    idle = facts["idle_in_transaction"]
    if idle.empty:
        return Finding("No session idles inside a transaction.", 0.0, threshold=None)
    row, seconds = idle.iloc[0], float(idle["idle_seconds"].iloc[0])
    who = servers.client(row["application"], row["user_name"])
    statement = clean(row["statement"]).replace("`", "'")
    statement = statement if len(statement) <= 80 else f"{statement[:79]}…"
    return Finding(
        f"Session {row['pid']} of {who} has been idle inside a transaction for "
        f"{figure(seconds, 'seconds')}{more(len(idle) - 1, ' (and {} more)')}; its last statement "
        f"was `{statement}`.",
        seconds,
        "Find the code that waits inside a transaction; `SELECT "
        f"pg_terminate_backend({row['pid']})` ends this one, `ALTER ROLE {row['user_name']} SET "
        f"idle_in_transaction_session_timeout = '{facts.limit('idle_in_transaction'):g}s'` the "
        "next ones.",
    )


@check("holders", "count", Limits(1), live=True, down=True)
def holders(facts: Facts, database: str) -> Iterator[Finding]:
    """Connections that this process has lent for longer than a leak takes to show."""
    lent = facts["holders"]
    lost = lent[lent["is_leak"].astype(bool)]
    for store, part in lost.groupby("database", observed=True, sort=True):
        row, name = part.iloc[0], DATABASES[str(store)]
        were = f"{name} connection of this process was", f"{name} connections of this process were"
        text = f"{plural(len(part), *were)} not returned, the oldest for "
        text += f"{figure(float(row['held_seconds']), 'seconds')}: {row['call_site']}."
        action = "Return it: use `with db.postgres.connection()` or close the cursor there."
        yield Finding(text, len(part), action, database=str(store))


CHECKS = (
    *(utilisation, waiting, timeouts, sizing, servers.sessions, session_limits),
    *(idle_in_transaction, servers.blocked, holders),
)
