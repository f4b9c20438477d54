"""The report `slow_queries`: which statements are slow, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.charts import share
from fwdb.charts.canvas import DATABASES
from fwdb.charts.statements import milliseconds
from fwdb.reports import query_checks, query_logged, query_patterns, query_server
from fwdb.reports.asking import Asking, judged, sentence, utc_frame
from fwdb.reports.parameters import Value, Window, comparison, iso
from fwdb.reports.results import Kpi, Result, Table
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database
    from fwdb.monitoring import Plan

# Ten times the line is no longer slow but broken for whoever waits for it.
CRITICAL_TIMES = 10
EVERY = 1_000_000  # more statements than any server keeps
SHOWN = ("database", "statement", "calls", "mean_ms", "stddev_ms", "total_ms", "share_percent")
# What a table sorted by this shows beside the time.
COLUMNS = {
    "io": ("read_ms", "read_blocks", "blocks_per_call", "hit_ratio"),
    "temp": ("temp_bytes", "rows_per_call"),
    "wal": ("wal_bytes", "rows_per_call"),
    "growth": ("growth_ms",),
}
SORTED = {
    "total": "heaviest in total first",
    "mean": "slowest first",
    "calls": "most called first",
    "io": "most read first; only those that read",
    "temp": "most written to temporary files first; only those that spilled",
    "wal": "most write-ahead log first; only those that wrote",
    "growth": "what grew most first, against the window before; only those that grew",
}
NOTHING = utc_frame(
    {
        "database": "str",
        "query_id": "str",
        "statement": "str",
        "calls": "Int64",
        "total_ms": "float64",
        "mean_ms": "float64",
        "stddev_ms": "float64",
        "rows": "Int64",
        "share_percent": "float64",
    }
)


def build(db: Database, window: Window, parameters: Mapping[str, Value]) -> Result:
    """The report over `window`, from the statement statistics of both stores."""
    asking = Asking("slow_queries", db)
    asking.reach("postgres", "mongodb")
    min_ms, top = float(parameters["min_ms"] or 0), int(parameters["top"] or 20)
    order = str(parameters["order"])
    before = comparison(parameters, window)

    # An open window ends with a reading taken now, any other with the last one stored in it.
    end = None if parameters["until"] == "now" else window.until
    question = partial(db.monitor.slow_queries, window.since, end, min_ms=0)
    up = asking.up or ["postgres"]
    # Asked once, so that all tables and figures are of the same two readings.
    everything = asking.ask("statements", up[0], partial(question, top=EVERY), NOTHING)
    slow = everything[everything["mean_ms"] >= min_ms]
    listed = _first(everything, top)
    if order != "total":
        since = before.since if before else None
        sort = partial(question, top=top, order=order, compare_since=since)
        listed = asking.ask("list", up[0], sort, NOTHING)
    none = "" if len(listed) or not len(everything) else " (none did)"
    changes = query_checks.CHANGES
    if before is not None:
        compare = partial(
            db.monitor.query_changes,
            window.since,
            end,
            compare_since=before.since,
            compare_until=before.until,
            top=top,
        )
        changes = asking.ask("regression", up[0], compare, changes)
    plans = query_checks.plans(asking, db, slow, changes)
    missing: dict[str, str] = everything.attrs.get("missing") or {}
    kpis: list[Kpi] = []
    for database in DATABASES:
        if database not in asking.down:
            _slow(
                asking, kpis, slow, everything, database, min_ms, missing.get(database, ""), plans
            )
    if "missing" in changes.attrs:
        query_checks.changed(asking, kpis, changes, plans)
    query_checks.spilled(asking, everything)
    query_checks.covered(asking, kpis, everything)
    query_patterns.repeated(asking, everything)
    query_server.cache(asking, kpis, everything, window.since, end)
    if end is None:  # replicas are known for this moment only
        query_server.lag(asking, kpis)
    source = "pg_stat_statements and client timings"
    span = charts.window_text(pd.Timestamp(window.since), pd.Timestamp(window.until))
    told = str(everything.attrs.get("reason") or "") or "; ".join(sorted(missing.values()))
    reason = sentence(told or "no statement ran in this window")
    return Result(
        report="slow_queries",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(kpis),
        tables=(
            Table(
                "slow_queries",
                f"Statements of {milliseconds(min_ms)} and more",
                _first(slow, top),
                "Statements whose mean time reaches the line, heaviest in total first; the share "
                "is that of its own store.",
                SHOWN,
            ),
            Table(
                "load",
                "Statements by what they cost",
                listed,
                f"Statements whatever their mean, {SORTED[order]}{none}; the share is that of its "
                "own store.",
                (*SHOWN, *COLUMNS.get(order, ())),
            ),
            query_checks.changes_table(changes, before, window),
            query_checks.plans_table(plans),
            query_logged.table(asking, db, window.since, end),
            query_checks.coverage_table(everything),
        ),
        charts={
            "slow_queries": charts.slow_queries(
                everything, min_ms=min_ms, source=source, window=span, reason=reason
            ),
            "load_split": charts.load_split(
                overall(everything), source=source, window=span, reason=reason
            ),
        }
        | (
            {} if before is None else {"query_changes": query_checks.chart(changes, source, before)}
        ),
        how_to_read=_how_to_read(min_ms, db.settings.thresholds),
        sources=(
            ("Window asked for", f"{iso(window.since)} to {iso(window.until)}"),
            *_coverage(everything),
            ("Left out", "statements of fwdb itself, which carry the mark `/* fwdb */`"),
        ),
    )


def _first(frame: pd.DataFrame, top: int) -> pd.DataFrame:
    """The first rows, with what the whole frame says about itself."""
    found = frame.head(top).reset_index(drop=True)
    found.attrs = frame.attrs
    return found


def _slow(
    asking: Asking,
    kpis: list[Kpi],
    slow: pd.DataFrame,
    everything: pd.DataFrame,
    database: str,
    min_ms: float,
    missing: str,
    plans: Mapping[str, Plan],
) -> None:
    name = DATABASES[database]
    if any(c.id == "slow_queries.statements" for c in asking.checks):
        return
    mine = slow[slow["database"].astype(str) == database]
    known = everything[everything["database"].astype(str) == database]
    if mine.empty and known.empty:
        asking.add(
            "mean",
            database,
            "no_data",
            f"{name}: {missing.rstrip('.')}."
            if missing
            else f"No statement of {name} was measured in this window.",
            unit="ms",
            threshold=min_ms,
            action=f"Let `fwdb monitor` read the statistics of {name} all the time.",
        )
        return
    slowest = (mine if len(mine) else known).sort_values("mean_ms").iloc[-1]
    worst = float(slowest["mean_ms"])
    status = judged(worst, min_ms, CRITICAL_TIMES * min_ms)
    count = len(mine)
    if count:
        text = (
            f"{figure(count)} {name} statement{'s take' if count != 1 else ' takes'} "
            f"{milliseconds(min_ms)} or more on average, the slowest {milliseconds(worst)}: "
            f"{query_checks.named(str(slowest['statement']))}{query_patterns.examined(slowest)}."
        )
    else:
        text = f"No {name} statement takes {milliseconds(min_ms)} on average."
    asking.add(
        "mean",
        database,
        status,
        text,
        value=worst,
        unit="ms",
        threshold=min_ms * (CRITICAL_TIMES if status == "critical" else 1),
        action=""
        if status == "ok"
        else query_checks.advice(plans.get(str(slowest["query_id"])))
        or "Begin with the top of table `slow_queries`; "
        + (
            "its plan is in table `plans`, and with real values `EXPLAIN (ANALYZE, BUFFERS)` "
            "tells where the time goes."
            if database == "postgres"
            else "`.explain('executionStats')` on it tells whether it reads the whole collection."
        ),
    )
    kpis.append(
        Kpi(f"{database}_slow", f"Slow statements, {name}", count, "", status, database, text)
    )
    if len(known) and "share_percent" in known:
        taken = float(mine["share_percent"].fillna(0).sum()) if count else 0.0
        kpis.append(
            Kpi(
                f"{database}_slow_share",
                f"Time they take, {name}",
                taken,
                "percent",
                "ok",
                database,
                f"{share(taken)} of the time in statements is spent in slow ones.",
            )
        )


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the share of each statement in the time of both stores together."""
    totals: dict[str, dict[str, float]] = frame.attrs.get("totals") or {}
    everything = sum(total["total_ms"] for total in totals.values())
    if not everything:
        return frame
    return frame.assign(share_percent=100 * frame["total_ms"] / everything)


def _coverage(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """What part of the window the statistics cover, and what they leave out, for each store."""
    found: list[tuple[str, str]] = []
    for database, name in DATABASES.items():
        window = (frame.attrs.get("windows") or {}).get(database)
        missing = (frame.attrs.get("missing") or {}).get(database)
        if window:
            span = charts.window_text(pd.Timestamp(window[0]), pd.Timestamp(window[1]))
            parts = [f"{(frame.attrs.get('source') or {}).get(database)}, {span}"]
            for key in ("coverage", "hidden"):
                said = (frame.attrs.get(key) or {}).get(database)
                said = said.get("sentence") if isinstance(said, Mapping) else said
                if said:
                    parts.append(str(said))
            found.append((name, "; ".join(parts)))
        elif missing:
            found.append((name, sentence(str(missing))))
    return found


def _how_to_read(min_ms: float, limits: Any) -> tuple[tuple[str, str], ...]:
    return (
        (
            "Mean time",
            "Time in the server per call, without the network, over the calls of the window. "
            f"From {milliseconds(min_ms)} a statement is slow, from "
            f"{milliseconds(CRITICAL_TIMES * min_ms)} it is critical. A mean hides outliers: a "
            "long bar means that calls differ much.",
        ),
        (
            "Share of the time",
            "What a statement takes of the time spent in all statements. A fast one called often "
            "can matter more than a slow one called once.",
        ),
        (
            "Statements",
            "stand for all calls of the same shape: values are replaced by $1 or ?. MongoDB "
            "commands are timed by the clients of this package.",
        ),
        (
            "Slower",
            "The mean of the window against that of the window before: the lower 95 % bound of "
            "their ratio exceeds 1.25, with 30 calls in both, and the difference cost 1 % of the "
            "time of the store or more. When more than half of the statements slowed alike, the "
            "whole server did, and only what slowed by more is named.",
        ),
        (
            "Once for each row (N+1)",
            "A list is asked for, and then each of its rows by a statement of its own. Told by a "
            f"statement of {query_patterns.CALLS_PERCENT:g} % of the calls that is called as often "
            f"as a list returned rows, or {query_patterns.TIMES:g} times for each transaction.",
        ),
        (
            "Coverage",
            "pg_stat_statements forgets: it drops the rarest entries when it is full, and is "
            "reset by hand. Then totals are lower bounds. Time in statements ÷ the time in which "
            "sessions worked is the least that was seen; calls ÷ transactions is an estimate.",
        ),
        (
            "Cache hit ratio",
            "Pages found in the server's own cache, of all it wanted. The operating system caches "
            f"too, so a low ratio is a hint. Good from {limits.cache_good_ratio:g}, an alert under "
            f"{limits.cache_alert_ratio:g}.",
        ),
        (
            "Replication lag",
            f"Target under {limits.lag_target_seconds:g} s, an alert over "
            f"{limits.lag_alert_seconds:g} s. Without a replica there is no lag, and no value.",
        ),
    )
