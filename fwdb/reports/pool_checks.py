"""What the report `pool` judges: pools, waits, sizes, sessions, and who blocks whom."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb.charts import duration, share
from fwdb.charts.canvas import DATABASES
from fwdb.reports.asking import Asking, judged
from fwdb.reports.results import Kpi
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.monitoring import Measure

# Figures without a promise of the system behind them are those that work in practice:
WAITING_SAMPLES = 3  # one sample with a waiter is a moment, three are a pattern
SESSIONS_WARNING, SESSIONS_CRITICAL = 75.0, 90.0  # percent of what the server allows
HELD_WARNING, HELD_CRITICAL = 60.0, 300.0  # seconds idle inside a transaction
# PostgreSQL itself looks into a wait for a lock after deadlock_timeout, 1 s unless changed.
BLOCKED_WARNING, BLOCKED_CRITICAL = 1.0, 30.0
WAITED_WARNING = 1.0  # percent of checkouts that had to wait
FEWEST_HOLDS = 30  # fewer say nothing about a rate
LONG_HOLD_MS = 1000.0  # a transaction of a person's request is over by then


def utilisation(
    asking: Asking,
    kpis: list[Kpi],
    summary: pd.DataFrame,
    database: str,
    warning: float,
    critical: float,
    gap: str,
) -> None:
    name = DATABASES[database]
    known = summary[summary["database"] == database].dropna(subset=["peak_utilisation_percent"])
    label = f"Peak use of the {name} pool"
    if known.empty:
        sentence = f"No use of the {name} pool was sampled in this window"
        sentence += f": {gap}." if gap else "."
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
    fullest = known.sort_values("peak_utilisation_percent").iloc[-1]
    peak = float(fullest["peak_utilisation_percent"])
    status = judged(peak, warning, critical)
    line = critical if status == "critical" else warning
    asking.add(
        "utilisation",
        database,
        status,
        f"The {name} pool{_of(fullest) if status != 'ok' else ''} was {peak:.0f} % full at its "
        f"peak, "
        f"{'over' if status != 'ok' else 'under'} the line of {line:g} %.",
        value=peak,
        unit="percent",
        threshold=line,
        action=""
        if status == "ok"
        else f"Shorten its transactions on {name}, and only then enlarge the pool.",
    )
    capacity = known["capacity"].dropna()
    note = f"of {figure(int(capacity.max()))} connections" if len(capacity) else ""
    kpis.append(Kpi(f"{database}_peak", label, peak, "percent", status, database, note))


def waits(asking: Asking, kpis: list[Kpi], summary: pd.DataFrame, durations: pd.DataFrame) -> None:
    """How often callers had to wait, for how long, and how often in vain."""
    for database, part in summary.groupby("database", observed=True, sort=True):
        name = DATABASES.get(str(database), str(database))
        samples, timeouts = int(part["samples_with_waiting"].sum()), int(part["timeouts"].sum())
        count, holds = int(part["waits"].sum()), int(part["holds"].sum())
        percent = 100 * count / (holds + timeouts) if holds + timeouts else 0.0
        often = count >= WAITING_SAMPLES and percent >= WAITED_WARNING
        status = "warning" if often else judged(samples, WAITING_SAMPLES, float("inf"))
        text = f"No caller had to wait for a {name} connection."
        if count or samples:
            mine = durations[(durations["database"] == database) & (durations["subject"] == "wait")]
            ended = f", {bound_sentence(mine, 99)}" if len(mine) else ""
            seen = f"; {figure(samples)} sample{'s' * (samples != 1)} saw one waiting"
            text = (
                f"Callers{_whose(part, 'waits')} had to wait for a {name} connection "
                f"{figure(count)} time{'s' * (count != 1)}, "
                f"{share(percent)} of checkouts{ended}{seen if samples else ''}."
            )
        asking.add(
            "waiting",
            str(database),
            status,
            text,
            value=count,
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
            f"{figure(timeouts)} caller{'s' * (timeouts != 1)}"
            f"{_whose(part, 'timeouts')} gave up waiting for a {name} connection."
            if timeouts
            else f"No caller gave up waiting for a {name} connection.",
            value=timeouts,
            unit="count",
            threshold=1,
            action=f"Callers got errors: free or add {name} connections first of all."
            if timeouts
            else "",
        )
        state = "critical" if timeouts else "ok"
        kpis.append(
            Kpi(
                f"{database}_timeouts",
                f"Callers that gave up, {name}",
                timeouts,
                "count",
                state,  # type: ignore[arg-type]
                str(database),
                text,
            )
        )


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


def bound_sentence(durations: pd.DataFrame, percent: float) -> str:
    """`99 in 100 within 250 ms`, from the buckets of one subject."""
    ordered = durations.groupby("up_to_ms")["durations"].sum().sort_index()
    reached = ordered.cumsum() >= ordered.sum() * percent / 100
    bound = float(ordered.index[int(reached.to_numpy().argmax())])
    if math.isinf(bound):
        longest = float(durations["over_ms"].max())
        return f"more than {100 - percent:g} in 100 over {duration(longest)}"
    return f"{percent:g} in 100 within {duration(bound)}"


def sizing(asking: Asking, kpis: list[Kpi], summary: pd.DataFrame, durations: pd.DataFrame) -> None:
    """Whether the pools are of the right size, by Little's law.

    Busy on average = checkouts per second × mean hold. Independent callers make the number of
    busy connections a Poisson variable, which 99 of 100 moments do not see above
    mean + 2.33 √mean; a pool of that size seldom makes anybody wait. Sources: J. D. C. Little
    (1961), A Proof for the Queuing Formula L = λW; the normal approximation of the quantile.
    """
    for database, part in summary.groupby("database", observed=True, sort=True):
        name = DATABASES.get(str(database), str(database))
        known = part[part["timed_holds"] >= FEWEST_HOLDS]
        if known.empty:
            asking.add(
                "sizing",
                str(database),
                "no_data",
                f"Too few {name} connections were lent between two samples to tell the size the "
                f"pool needs (at least {FEWEST_HOLDS}).",
                unit="connections",
                action="Sample while the application runs: `fwdb monitor --interval 30`.",
            )
            continue
        row = known.sort_values("mean_busy", ascending=False).iloc[0]
        busy, mean = float(row["mean_busy"]), float(row["hold_mean_ms"])
        needed = max(1, math.ceil(busy + 2.33 * math.sqrt(busy)))
        capacity = None if pd.isna(row["capacity"]) else int(row["capacity"])
        sentence = (
            f"{name}: {figure(float(row['checkouts_per_second']))} checkouts/s × "
            f"{figure(mean, 'ms')} = {figure(busy)} connections busy on average; a pool of "
            f"{needed} would do in 99 of 100 moments"
        )
        status, action = "ok", ""
        if capacity is not None and needed > capacity:
            status = "warning"
            sentence += f", and the one{_of(row)} may open {capacity}"
            action = (
                f"Shorten what holds connections, or allow {needed}: FWDB_POOL_SIZE plus "
                "FWDB_POOL_MAX_OVERFLOW."
            )
        elif capacity is not None:
            sentence += f", and this one may open {capacity}"
            waited = int(part["waits"].sum())
            long = _long_holds(durations, str(database))
            if waited and long:
                sentence += (
                    f". The {figure(waited)} waits came from {figure(long)} holds of over "
                    f"{duration(LONG_HOLD_MS)}, not from its size"
                )
                action = "Shorten those transactions; a larger pool would not help."
        asking.add(
            "sizing",
            str(database),
            status,  # type: ignore[arg-type]
            f"{sentence}.",
            value=needed,
            unit="connections",
            threshold=capacity,
            action=action,
        )
        kpis.append(
            Kpi(
                f"{database}_busy",
                f"Connections of {name} busy on average",
                round(busy, 2),
                "",
                "ok",
                str(database),
                f"{figure(float(row['checkouts_per_second']))} checkouts/s, held "
                f"{figure(mean, 'ms')} on average",
            )
        )


def _long_holds(durations: pd.DataFrame, database: str) -> int:
    mine = durations[(durations["database"] == database) & (durations["subject"] == "hold")]
    return int(mine.loc[mine["over_ms"] >= LONG_HOLD_MS, "durations"].sum())


def sessions_taken(
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


def limits_reached(asking: Asking, limits: pd.DataFrame) -> None:
    """Limits of databases and roles, which can be reached long before the server's."""
    own = limits[(limits["scope"] != "server") & limits["percent"].notna()]
    for row in own.to_dict("records"):
        scope, name, most = str(row["scope"]), str(row["name"]), int(row["most"])
        percent = float(row["percent"])
        status = judged(percent, SESSIONS_WARNING, SESSIONS_CRITICAL)
        asking.add(
            "session_limits",
            "postgres",
            status,
            f"{figure(int(row['sessions']))} of {figure(most)} sessions of the {scope} "
            f"{name} are taken, {share(percent)}.",
            value=percent,
            unit="percent",
            threshold=SESSIONS_CRITICAL if status == "critical" else SESSIONS_WARNING,
            action=""
            if status == "ok"
            else f"ALTER {scope.upper()} {name} CONNECTION LIMIT {2 * most}, "
            "or close what idles there.",
        )


def idle_in_transaction(asking: Asking, idle: pd.DataFrame) -> None:
    """The session that has been idle inside a transaction for longest."""
    if idle.empty:
        sentence = "No session idles inside a transaction."
        asking.add("idle_in_transaction", "postgres", "ok", sentence, value=0.0, unit="seconds")
        return
    row = idle.iloc[0]
    seconds = float(row["idle_seconds"])
    status = judged(seconds, HELD_WARNING, HELD_CRITICAL)
    more = f" (and {figure(len(idle) - 1)} more)" if len(idle) > 1 else ""
    asking.add(
        "idle_in_transaction",
        "postgres",
        status,
        f"Session {row['pid']} of {_who(row['application'], row['user_name'])} has been idle "
        f"inside a transaction for {figure(seconds, 'seconds')}{more}; its last statement was "
        f"`{_cut(row['statement'])}`.",
        value=seconds,
        unit="seconds",
        threshold=HELD_CRITICAL if status == "critical" else HELD_WARNING,
        action=""
        if status == "ok"
        else f"Find the code that waits inside a transaction; `SELECT "
        f"pg_terminate_backend({row['pid']})` ends this one, `ALTER ROLE {row['user_name']} SET "
        f"idle_in_transaction_session_timeout = '{HELD_WARNING:g}s'` the next ones.",
    )


def blocked(asking: Asking, tree: pd.DataFrame) -> None:
    """Who waits for a lock, and the session at the root of it."""
    if tree.empty:
        sentence = "No session waits for a lock of another."
        asking.add("blocked", "postgres", "ok", sentence, value=0, unit="count")
        return
    longest = float(tree["waited_seconds"].max())
    status = judged(longest, BLOCKED_WARNING, BLOCKED_CRITICAL)
    root = tree.groupby("root_pid").size().idxmax()
    row = tree[tree["root_pid"] == root].iloc[0]
    count = int((tree["root_pid"] == root).sum())
    others = len(tree) - count
    who = _who(row["root_application"], row["root_user_name"])
    asking.add(
        "blocked",
        "postgres",
        status,
        f"{figure(count)} session{'s wait' if count != 1 else ' waits'} for session {root} of "
        f"{who}, {row['root_state']} for {figure(float(row['root_state_seconds']), 'seconds')}; "
        f"the longest wait is {figure(longest, 'seconds')}"
        + (f", and {figure(others)} wait for others." if others else ".")
        if not pd.isna(row["root_state"])
        else f"{figure(count)} session{'s wait' if count != 1 else ' waits'} for a prepared "
        f"transaction; the longest wait is {figure(longest, 'seconds')}.",
        value=len(tree),
        unit="count",
        threshold=1,
        action=""
        if status == "ok"
        else f"End the root of the tree: `SELECT pg_terminate_backend({root})`."
        if root
        else "See pg_prepared_xacts, and COMMIT PREPARED or ROLLBACK PREPARED what was forgotten.",
    )


def leaks(asking: Asking, holders: pd.DataFrame) -> None:
    """Connections that this process has lent for longer than a leak takes to show."""
    lost = holders[holders["is_leak"].astype(bool)]
    for database, part in lost.groupby("database", observed=True, sort=True):
        row = part.iloc[0]
        name = DATABASES.get(str(database), str(database))
        asking.add(
            "holders",
            str(database),
            "warning",
            f"{figure(len(part))} {name} connection{'s' * (len(part) != 1)} of this process "
            f"{'were' if len(part) != 1 else 'was'} not returned, the oldest for "
            f"{figure(float(row['held_seconds']), 'seconds')}: {row['call_site']}.",
            value=len(part),
            unit="count",
            threshold=1,
            action="Return it: use `with db.postgres.connection()` or close the cursor there.",
        )


def _who(application: object, user: object) -> str:
    name = "" if pd.isna(application) else str(application)  # type: ignore[call-overload]
    return name or f"the role {user}"


def _cut(statement: object) -> str:
    text = " ".join(str(statement).split()).replace("`", "'")
    return text if len(text) <= 80 else f"{text[:79]}…"
