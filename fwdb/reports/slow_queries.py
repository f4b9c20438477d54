"""The report `slow_queries`: which statements are slow, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.charts.canvas import DATABASES
from fwdb.charts.statements import milliseconds
from fwdb.monitoring import slow_queries as questions
from fwdb.reports import servers, statements
from fwdb.reports.check import Facts, empty, run
from fwdb.reports.parameters import Window, comparison, iso, parameter, since, until
from fwdb.reports.results import Result
from fwdb.reports.words import sentence

EVERY = 1_000_000  # more statements than any server keeps
SHOWN = ("database", "statement", "calls", "mean_ms", "stddev_ms", "total_ms", "share_percent")
CHANGES_SHOWN = (
    *("change", "statement", "remark", "calls", "mean_before_ms", "mean_ms", "ratio", "extra_ms"),
)
# What a table sorted by this shows beside the time, and how it is headed.
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


@dataclass(frozen=True)
class Parameters:
    """What `slow_queries` is asked with."""

    since: str = since("24h")
    until: str = until()
    min_ms: float = parameter(
        100.0, "mean time in ms from which a statement is slow", low=0.001, high=3_600_000
    )
    top: int = parameter(20, "statements in each table", low=1, high=200)
    order: str = parameter("total", "what table load is sorted by", choices=SORTED)
    compare_since: str | None = parameter(
        None,
        "start of a window to compare with, as long as this one: an ISO time or a span back from "
        "until",
        form="time",
    )


def build(facts: Facts) -> Result:
    """The report, from the statement statistics of both stores."""
    monitor, window, given, end = facts.db.monitor, facts.window, facts.parameters, facts.end
    facts.reach("postgres", "mongodb")
    before = comparison(given.compare_since, window)
    up, nothing = facts.up or ["postgres"], empty(questions.COLUMNS)
    question = partial(monitor.slow_queries, window.since, end, min_ms=0)
    # Asked once, so that all tables and figures are of the same two readings.
    everything = facts.take("statements", partial(question, top=EVERY), nothing, up[0])
    listed = _first(everything, given.top)
    if given.order != "total":
        then = before.since if before else None
        sort = partial(question, top=given.top, order=given.order, compare_since=then)
        listed = facts.take("list", sort, nothing, up[0])
    changes = facts.frames["regression"] = empty(questions.CHANGE_COLUMNS)
    if before is not None:
        span = {"compare_since": before.since, "compare_until": before.until}
        compare = partial(monitor.query_changes, window.since, end, **span, top=given.top)
        changes = facts.take("regression", compare, changes, up[0])
    slow = facts.frames["slow"] = everything[everything["mean_ms"] >= given.min_ms]
    plans = facts.frames["plans"] = statements.plans(facts)
    run(facts, CHECKS)
    none = "" if len(listed) or not len(everything) else " (none did)"
    drawn: dict[str, Any] = {
        "source": "pg_stat_statements and client timings",
        "window": facts.span,
        "reason": _reason(everything),
    }
    return facts.result(
        tables=(
            facts.table(
                "slow_queries",
                f"Statements of {milliseconds(given.min_ms)} and more",
                "Statements whose mean time reaches the line, heaviest in total first; the share "
                "is that of its own store.",
                SHOWN,
                frame=_first(slow, given.top),
            ),
            facts.table(
                "load",
                "Statements by what they cost",
                f"Statements whatever their mean, {SORTED[given.order]}{none}; the share is that "
                "of its own store.",
                (*SHOWN, *COLUMNS.get(given.order, ())),
                frame=listed,
            ),
            facts.table(
                "query_changes",
                "What changed since the window before",
                _compared(before, window),
                CHANGES_SHOWN,
                frame=changes[changes["change"] != "similar"],
            ),
            statements.plans_table(plans),
            statements.logged_table(facts),
            statements.coverage_table(everything),
        ),
        charts={
            "slow_queries": charts.slow_queries(everything, min_ms=given.min_ms, **drawn),
            "load_split": charts.load_split(overall(everything), **drawn),
        }
        | ({} if before is None else {"query_changes": _chart(changes, drawn["source"], before)}),
        sources=(
            ("Window asked for", facts.bounds),
            *_coverage(everything),
            ("Left out", "statements of fwdb itself, which carry the mark `/* fwdb */`"),
        ),
    )


def _first(frame: pd.DataFrame, top: int) -> pd.DataFrame:
    """The first rows, with what the whole frame says about itself."""
    found = frame.head(top).reset_index(drop=True)
    found.attrs = frame.attrs
    return found


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


def _reason(everything: pd.DataFrame) -> str:
    missing: dict[str, str] = everything.attrs.get("missing") or {}
    told = str(everything.attrs.get("reason") or "") or "; ".join(sorted(missing.values()))
    return sentence(told or "no statement ran in this window")


def _compared(before: Window | None, window: Window) -> str:
    if before is None:
        earlier = iso(window.since - (window.until - window.since))
        text = "No window to compare with was asked for: set compare_since, such as "
        return f"{text}compare_since={earlier}."
    return (
        f"Against {iso(before.since)} to {iso(before.until)}: what got slower for sure, with "
        "the cause beside it, new and vanished statements, faster ones, and those with too "
        "few calls to judge."
    )


def _chart(changes: pd.DataFrame, source: str, before: Window) -> Any:
    """The means of both windows side by side."""
    told = changes.attrs.get("reason") or "; ".join((changes.attrs.get("missing") or {}).values())
    span = charts.window_text(pd.Timestamp(before.since), pd.Timestamp(before.until))
    return charts.query_changes(
        changes,
        source=source,
        window=f"compared with {span}",
        reason=sentence(str(told) or "no statement ran in both windows"),
    )


# Of replicas this report has only how far the slowest is behind.
LAG = replace(servers.replication, lines={"replication": servers.LAG})
CHECKS = (*statements.CHECKS, servers.cache, LAG)
