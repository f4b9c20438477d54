"""The report `slow_queries`: which statements are slow, what changed, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.charts.words import DATABASES, figure, milliseconds, plural, quoted, sentence, times
from fwdb.monitoring import slow_queries as questions
from fwdb.reports import servers
from fwdb.reports.check import Finding, Found, Limits, check, run
from fwdb.reports.facts import Facts, empty
from fwdb.reports.parameters import Window, iso, parameter, since, until
from fwdb.reports.results import Kpi, Result, Shown, Status

if TYPE_CHECKING:
    from fwdb.monitoring import Plan

EVERY = 1_000_000  # more statements than any server keeps
PLANS = 3  # of the slowest statements: a page of plans is read by nobody
SHOWN = "database statement calls mean_ms stddev_ms total_ms share_percent"
# How a table is sorted, and what it shows beside the time then.
SORTED = {
    "total": "heaviest in total first",
    "mean": "slowest first",
    "calls": "most called first",
    "io": "most read first; only those that read",
    "temp": "most written to temporary files first; only those that spilled",
    "wal": "most write-ahead log first; only those that wrote",
    "growth": "what grew most first, against the window before; only those that grew",
}
COLUMNS = {
    "io": "read_ms read_blocks blocks_per_call hit_ratio",
    "temp": "temp_bytes rows_per_call",
    "wal": "wal_bytes rows_per_call",
    "growth": "growth_ms",
}
TABLES = (
    Shown(
        "slow_queries",
        "Statements of {limit} and more",
        "Statements whose mean time reaches the line, heaviest in total first; the share is that "
        "of its own store.",
        SHOWN,
        frame="slowest",
    ),
    Shown(
        "load",
        "Statements by what they cost",
        "Statements whatever their mean, {sorted}; the share is that of its own store.",
        SHOWN + " {columns}",
        frame="list",
    ),
    Shown(
        "query_changes",
        "What changed since the window before",
        "{compared}",
        "change statement remark calls mean_before_ms mean_ms ratio extra_ms",
        frame="changed",
    ),
    Shown(
        "plans",
        "Plans of the slowest statements",
        "PostgreSQL's plan for any values of $1, $2, …; a rare or frequent value may be planned "
        "another way. No statement was run for it.",
        "query_id plan",
        frame="planned",
    ),
    Shown(
        "logged_plans",
        "Plans of the longest runs",
        "The plans that auto_explain logged for the longest runs, with the time each run took."
        "{logged_remark}",
        "query_id logged_at duration_ms plan",
        frame="logged",
    ),
    Shown(
        "coverage",
        "What the figures rest on",
        "How much of the window the counters show, and what this server does not measure.",
    ),
)


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
    given, before, frames = facts.parameters, facts.before, facts.frames
    facts.reach("postgres", "mongodb")
    everything = _ask(facts)
    run(facts, CHECKS)
    told = str(frames["logged"].attrs.get("told") or "")
    none = "" if len(frames["list"]) or not len(everything) else " (none did)"
    frames |= {
        "slowest": frames["slow"].head(given.top),
        "changed": frames["regression"][frames["regression"]["change"] != "similar"],
        "coverage": coverage_frame(everything),
        "limit": milliseconds(given.min_ms),
        "sorted": SORTED[given.order] + none,
        "columns": COLUMNS.get(given.order, ""),
        "compared": _compared_text(before, facts.window),
        "logged_remark": f" {sentence(told)}" if told else "",
    }
    source = "pg_stat_statements and client timings"
    drawn = {"source": source, "window": facts.span}
    drawn["reason"] = _reason(everything, "no statement ran in this window")
    drawings = {
        "slow_queries": charts.slow_queries(everything, min_ms=given.min_ms, **drawn),
        "load_split": charts.load_split(overall(everything), **drawn),
    }
    if before is not None:
        edges = (pd.Timestamp(getattr(before, name)) for name in ("since", "until"))
        changes = frames["regression"]
        drawings["query_changes"] = charts.query_changes(
            changes,
            source=source,
            window=f"compared with {charts.window_text(*edges)}",
            reason=_reason(changes, "no statement ran in both windows"),
        )
    return facts.result(
        TABLES,
        charts=drawings,
        sources=(
            ("Window asked for", facts.bounds),
            *_sources(everything),
            ("Left out", "statements of fwdb itself, which carry the mark `/* fwdb */`"),
        ),
    )


def _ask(facts: Facts) -> pd.DataFrame:
    """All questions; every statement of the window."""
    monitor, window, given, before = facts.db.monitor, facts.window, facts.parameters, facts.before
    up, span = facts.up or ["postgres"], (window.since, facts.end)
    question = partial(monitor.slow_queries, *span, min_ms=0)
    # Asked once, so that all tables and figures are of the same two readings.
    everything: pd.DataFrame = facts.take(
        "statements", partial(question, top=EVERY), questions.COLUMNS, up[0]
    )
    facts.frames["list"] = everything.head(given.top)
    if given.order != "total":
        then = before.since if before else None
        sort = partial(question, top=given.top, order=given.order, compare_since=then)
        facts.take("list", sort, questions.COLUMNS, up[0])
    facts.frames["regression"] = empty(questions.CHANGE_COLUMNS)
    if before is not None:
        edges = {"compare_since": before.since, "compare_until": before.until}
        compare = partial(monitor.query_changes, *span, **edges, top=given.top)
        facts.take("regression", compare, questions.CHANGE_COLUMNS, up[0])
    facts.frames["slow"] = everything[everything["mean_ms"] >= given.min_ms]
    facts.frames["plans"] = plans(facts)
    known = facts["plans"].values()
    facts.frames["planned"] = _lines(((p.query_id, p.statement, p) for p in known), _PLANNED)
    logged = partial(monitor.logged_plans, *span, top=PLANS)
    found = facts.ask("logged_plans", logged, {"logged_at": "timestamp"})
    runs = found.itertuples()
    rows = ((r.query_id, r.logged_at, r.duration_ms, r.statement, r.plan) for r in runs)
    facts.frames["logged"] = _lines(rows, _LOGGED | _PLANNED)
    facts.frames["logged"].attrs["told"] = found.attrs.get("reason") or found.attrs.get("remark")
    return everything


def attribute(frame: pd.DataFrame, name: str, database: str) -> Any:
    """What a frame of statements says of itself and a store: its `window`, what is `missing`."""
    return (frame.attrs.get(name) or {}).get(database)


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the share of each statement in the time of both stores together."""
    totals: dict[str, dict[str, float]] = frame.attrs.get("totals") or {}
    everything = sum(total["total_ms"] for total in totals.values())
    return frame.assign(share_percent=100 * frame["total_ms"] / everything) if everything else frame


def _sources(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """What part of the window the statistics cover, and what they leave out, for each store."""
    for database, name in DATABASES.items():
        get = partial(attribute, frame, database=database)
        if window := get("windows"):
            span = charts.window_text(*map(pd.Timestamp, window))
            seen = (get("coverage") or {}).get("sentence")
            said = filter(None, (f"{get('source')}, {span}", seen, get("hidden")))
            yield name, "; ".join(map(str, said))
        elif missing := get("missing"):
            yield name, sentence(missing)


def _reason(frame: pd.DataFrame, none: str) -> str:
    """Why there is nothing to draw."""
    missing = "; ".join(sorted((frame.attrs.get("missing") or {}).values()))
    return sentence(frame.attrs.get("reason") or missing or none)


def _compared_text(before: Window | None, window: Window) -> str:
    if before is None:
        earlier = iso(window.since - (window.until - window.since))
        text = "No window to compare with was asked for: set compare_since, such as "
        return f"{text}compare_since={earlier}."
    return (
        f"Against {iso(before.since)} to {iso(before.until)}: what got slower for sure, with "
        "the cause beside it, new and vanished statements, faster ones, and those with too "
        "few calls to judge."
    )


def _of(frame: pd.DataFrame, database: str) -> pd.DataFrame:
    return frame[frame["database"].astype(str) == database]


_EXPLAIN = {
    "postgres": "Begin with the top of table `slow_queries`; its plan is in table `plans`, and "
    "with real values `EXPLAIN (ANALYZE, BUFFERS)` tells where the time goes.",
    "mongodb": "Begin with the top of table `slow_queries`; `.explain('executionStats')` on it "
    "tells whether it reads the whole collection.",
}


# Ten times the line is no longer slow but broken for whoever waits for it. Of documents examined
# for each one returned an index would have spared most, from a hundred on.
@check(
    "mean",
    "ms",
    Limits("min_ms", times=10),
    per="database",
    role="main",
    examined=Limits(100, unit="documents"),
)
def mean(facts: Facts, database: str) -> Found:
    """The slowest statement by its mean, and how many are slow."""
    if any(c.id == "slow_queries.statements" for c in facts.checks):
        return None
    name, everything, line = DATABASES[database], facts["statements"], facts.limit("mean")
    slow, known = _of(facts["slow"], database), _of(everything, database)
    if slow.empty and known.empty:
        missing = attribute(everything, "missing", database)
        none = f"No statement of {name} was measured in this window"
        text = sentence(f"{name}: {missing}" if missing else none)
        remedy = f"Let `fwdb monitor` read the statistics of {name} all the time."
        return Finding(text, None, remedy, "no_data", line, "ms")
    row = (slow if len(slow) else known).sort_values("mean_ms").iloc[-1]
    worst, count, limit = float(row["mean_ms"]), len(slow), milliseconds(line)
    text = f"No {name} statement takes {limit} on average."
    if count:
        text = (
            f"{plural(count, f'{name} statement takes', f'{name} statements take')} {limit} or "
            f"more on average, the slowest {milliseconds(worst)}: {quoted(row['statement'])}"
            f"{examined(row, facts.limit('mean.examined'))}."
        )
    kpis = [Kpi("{}_slow", "Slow statements, {}", count, note=text)]
    if len(known) and "share_percent" in known:
        taken = float(slow["share_percent"].fillna(0).sum()) if count else 0.0
        note = f"{charts.share(taken)} of the time in statements is spent in slow ones."
        kpis.append(Kpi("{}_slow_share", "Time they take, {}", taken, "percent", "ok", note=note))
    action = advice(facts, row) or _EXPLAIN[database]
    return Finding(text, worst, action, kpis=tuple(kpis))


def examined(row: pd.Series[Any], least: float) -> str:
    """What a MongoDB command looked at for what it returned, where the profiler tells."""
    looked, returned = row.get("docs_examined_per_call"), row.get("rows_per_call")
    if looked is None or pd.isna(looked) or pd.isna(returned):
        return ""
    if float(looked) < least * max(1.0, float(returned)):
        return ""
    return f", which examines {figure(float(looked))} documents to return {figure(float(returned))}"


@check("whole_server", limits=Limits(1.25), per="database")
def whole_server(facts: Facts, database: str) -> Found:
    """Whether more than half of the statements of a store slowed alike."""
    changes = facts["regression"]
    factor = attribute(changes, "whole_server", database)
    if not factor or attribute(changes, "missing", database):
        return None
    return Finding(
        f"{DATABASES[database]} as a whole is {factor:.1f} times as slow as in the window before: "
        "more than half of its statements are, by about that factor.",
        factor,
        "Look at the machine before you look at statements: processor, disk, memory, a backup, a "
        "neighbour. Report `pool` shows who waits.",
    )


@check("regression", "ms", per="database")
def regression(facts: Facts, database: str) -> Found:
    """What got slower, and how many statements are new or gone."""
    changes, name = facts["regression"], DATABASES[database]
    if "missing" not in changes.attrs:
        return None
    if why := attribute(changes, "missing", database):
        return Finding(sentence(f"{name} could not be compared: {why}"), status="no_data")
    mine = _of(changes, database)
    new, gone = (int((mine["change"] == kind).sum()) for kind in ("new", "vanished"))
    note = f"{gone} of the window before did not run again."
    kpis = (Kpi("{}_new", "New statements, {}", new, status="ok", note=note),)
    slower = mine[mine["change"] == "slower"]
    if slower.empty:
        text = f"No {name} statement got slower than in the window before, as far as 30 calls in "
        return Finding(f"{text}both and 95 % certainty can tell.", 0.0, kpis=kpis)
    worst = slower.iloc[0]
    statement, remark = quoted(worst["statement"]), str(worst["remark"])
    ratio, low, high = (times(worst[n]) for n in ("ratio", "ratio_low", "ratio_high"))
    because, others = f": {remark}" if remark else "", len(slower) - 1
    others_too = f"; {others} more did" if others else ""
    remedies = next(found for cause, found in _REMEDIES.items() if cause in remark)
    return Finding(
        f"{name} takes {ratio} times as long (95 % {low} to {high}) for {statement}, "
        f"{milliseconds(float(worst['extra_ms']))} more in this window{because}{others_too}.",
        float(slower["extra_ms"].sum()),
        advice(facts, worst) or remedies[0 if database == "postgres" else -1].format(statement),
        status="warning",
        kpis=kpis,
    )


_PLAN = "Compare the plan of {} (table `plans`) with the indexes there were, and run `ANALYZE;`."
_SCAN = "Run {} with `.explain('executionStats')` and look for COLLSCAN."
_OTHERS = "Look at what else reads: `fwdb report slow_queries -p order=io`."
# What helps against a cause that a remark names, the first that it does, in each of the stores.
_REMEDIES = {
    "spill": ("Give the role that runs {} more memory: `ALTER ROLE … SET work_mem = …;`.",),
    "blocks per call": (_PLAN, _SCAN),
    "examined": (_PLAN, _SCAN),
    "(cache)": (_OTHERS,),
    "(disk)": (_OTHERS,),
    "": ("Look at what changed around {} in the application; table `query_changes` has the rest.",),
}


# As for regressions: what takes less of the time is not worth a search.
@check("spill", "bytes", least=Limits(1, unit="percent"))
def spill(facts: Facts, database: str) -> Found:
    """The statement that writes most to temporary files and matters."""
    mine = _of(facts["statements"], database)
    if "temp_bytes" not in mine or mine.empty:
        return None
    matters = mine["share_percent"] >= facts.limit("spill.least")
    files = mine[(mine["temp_bytes"].fillna(0) > 0) & matters]
    if files.empty:
        return Finding("No PostgreSQL statement that matters had to write temporary files.", 0.0)
    worst = files.sort_values(["temp_bytes", "query_id"], ascending=[False, True]).iloc[0]
    size, calls = int(worst["temp_bytes"]), int(worst["calls"])
    # A sort needs about twice as much in memory as its file has on disk: the next power of two, 8
    # (the double of the default) at least.
    needed = math.ceil(2 * size / calls / (1 << 20))
    megabytes = max(8, 1 << (needed - 1).bit_length())
    return Finding(
        f"{quoted(worst['statement'])} writes {figure(size / calls, 'bytes')} of temporary files "
        f"per call, because its memory is too small, and takes "
        f"{charts.share(float(worst['share_percent']))} of the time of PostgreSQL.",
        float(size),
        f"Give the role that runs it more memory: `ALTER ROLE … SET work_mem = '{megabytes}MB';`.",
        status="warning",
    )


_READS = ("SELECT", "WITH", "FIND")
_FETCH = {
    "postgres": "one statement with a JOIN, or `WHERE … = ANY($1)`; an ORM calls it eager loading",
    "mongodb": "one `find` with `$in`, or `$lookup`",
}


# What makes a statement that is called very often an N+1 pattern and not a busy one. It matters:
# fewer calls are no load, nor are a few of its store. And either each transaction calls it again
# and again, counted against all transactions, or it is called as often as a list returned rows.
# Two independent counts seldom agree as closely as that.
@check(
    "repeated",
    "count",
    Limits(1000),
    per="database",
    calls=Limits(30, unit="percent"),
    time=Limits(1, unit="percent"),
    times=Limits(5, unit="per transaction"),
    rows=Limits(10, unit="rows"),
    tolerance=Limits(2, unit="percent"),
)
def repeated(facts: Facts, database: str) -> Found:
    """A cheap statement that is asked once for each row of another (N+1)."""
    everything, name = facts["statements"], DATABASES[database]
    mine = _of(everything, database)
    if mine.empty:
        return None
    coverage = attribute(everything, "coverage", database) or {}
    line = {key.removeprefix("repeated."): one.warning for key, one in facts.lines.items()}
    statements = mine["statement"].astype(str).str.lstrip(" (").str.upper()
    reads = mine[statements.str.startswith(_READS)].sort_values(["calls", "query_id"])
    everything_called = int(mine["calls"].sum())
    for _, row in reads.tail(1).iterrows():
        calls, part = int(row["calls"]), float(row["share_percent"])
        much = calls >= line["repeated"] and 100 * calls >= line["calls"] * everything_called
        why = _often(reads, row, coverage.get("transactions"), line)
        if much and part >= line["time"] and why:
            return Finding(
                f"{quoted(row['statement'])} was called {figure(calls)} times, {why}: "
                f"{charts.share(100 * calls / everything_called)} of the calls and "
                f"{charts.share(part)} of the time of {name}.",
                calls,
                f"Fetch all of them at once: {_FETCH[database]}.",
            )
    text = f"No {name} statement is called once for each row of another."
    return Finding(text, 0, threshold=None)


def _often(
    reads: pd.DataFrame, row: pd.Series[Any], transactions: int | None, line: Mapping[str, float]
) -> str:
    """By what a statement is called that often; nothing where it is only a busy one."""
    calls = int(row["calls"])
    lists = reads[
        (reads["query_id"] != row["query_id"])
        & (reads["rows_per_call"].fillna(0) >= line["rows"])
        & (100 * (reads["rows"].fillna(0) - calls).abs() <= line["tolerance"] * calls)
    ]
    if len(lists):
        outer = lists.sort_values("query_id")["statement"].iloc[0]
        return f"once for each row that {quoted(outer)} returned (N+1)"
    if transactions and calls >= line["times"] * transactions:
        often = figure(int(calls / transactions))
        return f"{often} times and more in each transaction on average (N+1)"
    return ""


def plans(facts: Facts) -> dict[str, Plan]:
    """Plans of PostgreSQL's statements that got slower or are slow, costliest first, by id."""
    changes, ids = facts["regression"], list[str]()
    for frame in (changes[changes["change"] == "slower"], facts["slow"]):
        ids += _of(frame, "postgres").head(PLANS)["query_id"].astype(str).tolist()
    question = facts.db.monitor.plan
    found = {id: facts.ask("plan", partial(question, id)) for id in dict.fromkeys(ids)}
    return {id: plan for id, plan in found.items() if plan is not None}


def advice(facts: Facts, row: pd.Series[Any]) -> str:
    """What the plan of a statement suggests; empty when it suggests nothing."""
    plan = facts["plans"].get(str(row["query_id"]))
    if plan is None or not plan.scans:
        return ""
    scan = plan.scans[0]
    reads = f"{quoted(plan.statement)} reads `{scan.table}` from end to end for "
    then = f"try `{scan.index}`" if scan.index else "look whether an index can serve that"
    return f"{reads}`{scan.filter}`: {then}."


_PLANNED = {"query_id": "str", "statement": "str", "plan": "str"}
_LOGGED = {"query_id": "str", "logged_at": "datetime64[us, UTC]", "duration_ms": "float64"}


def _lines(plans: Any, columns: Mapping[str, str]) -> pd.DataFrame:
    """One row per line of a plan, indented with spaces that a page does not drop."""
    rows = []
    for *facts, statement, plan in plans:
        for line in str(plan).splitlines():
            text = line.lstrip()
            space = "\u00a0" * (len(line) - len(text))
            rows.append((*facts, charts.shorten(str(statement)), space + text))
    return pd.DataFrame(rows, columns=list(columns)).astype(dict(columns))


@check("coverage", per="database")
def coverage(facts: Facts, database: str) -> Found:
    """How much of the window the counters show: a warning where they are known to lack much."""
    known = attribute(facts["statements"], "coverage", database)
    if known is None:
        return None
    name, seconds = DATABASES[database], known.get("time_percent")
    kpis: tuple[Kpi, ...] = ()
    if seconds is not None:
        note = "At least; planning and sending, which no statement is charged for, are in the rest."
        label = "Time in statements seen, {}"
        kpis = (Kpi("{}_seen", label, float(seconds), "percent", "ok", note=note),)
    value: float | None = None
    status: Status = "warning"
    text = f"{name}: {known.get('sentence') or ''}"
    remedy = "Take a window that begins after the reset before you trust these figures."
    if known.get("dealloc"):
        value = known.get("calls_percent")
        remedy = f"`ALTER SYSTEM SET pg_stat_statements.max = {2 * known['max_entries']};` and "
        remedy += "restart the server: it keeps that many statements."
    elif not any(known.get(key) for key in ("restarted", "lost", "emptied")):
        if database != "postgres":
            facts.kpis += (kpi.filled(database, "ok") for kpi in kpis)
            return None
        seen = f"; {known['seen']}" if known.get("seen") else ""
        text = f"{name} lost no counter in this window{seen}"
        value, status = seconds, "ok"
    unit = "" if value is None else "percent"
    return Finding(sentence(text), value, remedy, status, unit=unit, kpis=kpis)


def coverage_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per fact about what the counters of a store can show."""
    rows: list[tuple[str, str, str]] = []
    for database in DATABASES:
        get = partial(attribute, frame, database=database)
        window, coverage, totals = (get(key) or {} for key in ("windows", "coverage", "totals"))
        if not window:
            rows.append((database, "statements", sentence(get("missing") or "not asked")))
            continue
        facts = {
            "source": get("source") or "",
            "from": f"{window[0]:%Y-%m-%d %H:%M:%S} UTC",
            "to": f"{window[1]:%Y-%m-%d %H:%M:%S} UTC",
            "statements": figure(totals.get("statements")),
            "calls": figure(totals.get("calls")),
        }
        told = _facts(coverage) | {"hidden": str(get("hidden") or "")}
        facts |= {fact: text for fact, text in told.items() if text}
        rows += [(database, fact, text) for fact, text in facts.items()]
        grouped: dict[str, list[str]] = {}
        for column, reason in (get("not_measured") or {}).items():
            grouped.setdefault(reason, []).append(column)
        rows += [
            (database, "not measured", f"{', '.join(columns)}: {reason}")
            for reason, columns in grouped.items()
        ]
    return pd.DataFrame(rows, columns=["database", "fact", "value"]).astype("str")


def _facts(known: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the counters of a window; empty texts are of nothing known."""
    calls, seconds = known.get("calls_percent"), known.get("time_percent")
    found = dict.fromkeys(("calls seen", "time seen"), "")
    if calls is not None:
        found["calls seen"] = f"about {charts.share(calls)}, by the transactions beside them"
    if seconds is not None:
        found["time seen"] = f"at least {charts.share(seconds)} of the time sessions worked"
    found["no estimate"] = str(known.get("estimate") or "")
    if known.get("dealloc"):
        entries, rounds = figure(known["evicted"]), figure(known["dealloc"])
        found["evicted"] = f"about {entries} entries, in {rounds} rounds"
    elif "dealloc" in known:
        found["evicted"] = "none"
    found["incomplete"] = "" if known.get("complete") else str(known.get("sentence") or "")
    found["restarted"] = "the server, within the window" if known.get("server_restarted") else ""
    return found


# Of replicas this report has only how far the slowest is behind.
LAG = replace(servers.replication, lines={"replication": replace(servers.LAG, unit="seconds")})
CHECKS = (
    *(mean, whole_server, regression, spill, repeated, coverage),
    *(servers.cache, LAG),
)
