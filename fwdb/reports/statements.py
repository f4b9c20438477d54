"""Checks of statements for the report `slow_queries`: means, changes, spills, plans, coverage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb.charts import share, shorten
from fwdb.charts.canvas import DATABASES
from fwdb.charts.statements import milliseconds
from fwdb.reports.check import Facts, Finding, Found, Limits, check, empty
from fwdb.reports.results import Kpi, Status, Table
from fwdb.reports.words import figure, quoted, sentence, times

if TYPE_CHECKING:
    from fwdb.monitoring import Plan

PLANS = 3  # of the slowest statements: a page of plans is read by nobody


def _of(frame: pd.DataFrame, database: str) -> pd.DataFrame:
    return frame[frame["database"].astype(str) == database]


# -- means -----------------------------------------------------------------------------------------


# Ten times the line is no longer slow but broken for whoever waits for it. Of documents examined
# for each one returned an index would have spared most, from a hundred on.
@check(
    "mean",
    per="database",
    unit="ms",
    limits=Limits("min_ms", times=10),
    role="main",
    examined=Limits(100, unit="documents"),
)
def mean(facts: Facts, database: str) -> Found:
    """The slowest statement by its mean, and how many are slow."""
    if any(c.id == "slow_queries.statements" for c in facts.checks):
        return None
    name, everything, line = DATABASES[database], facts["statements"], facts.lines["mean"]
    slow, known = _of(facts["slow"], database), _of(everything, database)
    limit = milliseconds(line.warning)
    if slow.empty and known.empty:
        missing = str((everything.attrs.get("missing") or {}).get(database, ""))
        text = f"No statement of {name} was measured in this window."
        text = f"{name}: {missing.rstrip('.')}." if missing else text
        remedy = f"Let `fwdb monitor` read the statistics of {name} all the time."
        return Finding(text, None, remedy, "no_data", line.warning, "ms")
    row = (slow if len(slow) else known).sort_values("mean_ms").iloc[-1]
    worst, count = float(row["mean_ms"]), len(slow)
    text = f"No {name} statement takes {limit} on average."
    if count:
        text = (
            f"{times(count, f'{name} statement takes', f'{name} statements take')} {limit} or "
            f"more on average, the slowest {milliseconds(worst)}: "
            f"{quoted(str(row['statement']))}{examined(row, facts.lines['mean.examined'].warning)}."
        )
    status = line.judge(worst)
    kpis = [Kpi(f"{database}_slow", f"Slow statements, {name}", count, "", status, database, text)]
    if len(known) and "share_percent" in known:
        taken = float(slow["share_percent"].fillna(0).sum()) if count else 0.0
        note = f"{share(taken)} of the time in statements is spent in slow ones."
        label = f"Time they take, {name}"
        kpis.append(Kpi(f"{database}_slow_share", label, taken, "percent", "ok", database, note))
    action = advice(facts["plans"].get(str(row["query_id"]))) or _EXPLAIN[database]
    return Finding(text, worst, action, kpis=tuple(kpis))


_EXPLAIN = {
    "postgres": "Begin with the top of table `slow_queries`; its plan is in table `plans`, and "
    "with real values `EXPLAIN (ANALYZE, BUFFERS)` tells where the time goes.",
    "mongodb": "Begin with the top of table `slow_queries`; `.explain('executionStats')` on it "
    "tells whether it reads the whole collection.",
}


def examined(row: pd.Series[Any], least: float) -> str:
    """What a MongoDB command looked at for what it returned, where the profiler tells."""
    looked, returned = row.get("docs_examined_per_call"), row.get("rows_per_call")
    if looked is None or pd.isna(looked) or pd.isna(returned):
        return ""
    if float(looked) < least * max(1.0, float(returned)):
        return ""
    return f", which examines {figure(float(looked))} documents to return {figure(float(returned))}"


# -- changes ---------------------------------------------------------------------------------------


def _compared(facts: Facts, database: str) -> bool:
    """Whether there are two windows of a store to compare."""
    attrs = facts["regression"].attrs
    return "missing" in attrs and database not in (attrs["missing"] or {})


@check("whole_server", per="database", limits=Limits(1.25))
def whole_server(facts: Facts, database: str) -> Found:
    """Whether more than half of the statements of a store slowed alike."""
    factor = (facts["regression"].attrs.get("whole_server") or {}).get(database)
    if not factor or not _compared(facts, database):
        return None
    return Finding(
        f"{DATABASES[database]} as a whole is {factor:.1f} times as slow as in the window before: "
        "more than half of its statements are, by about that factor.",
        factor,
        "Look at the machine before you look at statements: processor, disk, memory, a backup, a "
        "neighbour. Report `pool` shows who waits.",
    )


@check("regression", per="database", unit="ms")
def regression(facts: Facts, database: str) -> Found:
    """What got slower, and how many statements are new or gone."""
    changes, name = facts["regression"], DATABASES[database]
    if "missing" not in changes.attrs:
        return None
    if not _compared(facts, database):
        why = str(changes.attrs["missing"][database]).rstrip(".")
        return Finding(sentence(f"{name} could not be compared: {why}"), status="no_data")
    mine = _of(changes, database)
    new, gone = (int((mine["change"] == kind).sum()) for kind in ("new", "vanished"))
    note = f"{gone} of the window before did not run again."
    kpi = Kpi(f"{database}_new", f"New statements, {name}", new, database=database, note=note)
    slower = mine[mine["change"] == "slower"]
    if slower.empty:
        text = f"No {name} statement got slower than in the window before, as far as 30 calls in "
        return Finding(f"{text}both and 95 % certainty can tell.", 0.0, kpis=(kpi,))
    worst, statement = slower.iloc[0], quoted(str(slower["statement"].iloc[0]))
    ratio, low, high = (_times(worst[n]) for n in ("ratio", "ratio_low", "ratio_high"))
    others = f"; {len(slower) - 1} more did" if len(slower) > 1 else ""
    because = f": {worst['remark']}" if worst["remark"] else ""
    return Finding(
        f"{name} takes {ratio} times as long (95 % {low} to {high}) for {statement}, "
        f"{milliseconds(float(worst['extra_ms']))} more in this window{because}{others}.",
        float(slower["extra_ms"].sum()),
        advice(facts["plans"].get(str(worst["query_id"])))
        or _remedy(str(worst["remark"]), database, statement),
        status="warning",
        kpis=(kpi,),
    )


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def _remedy(remark: str, database: str, statement: str) -> str:
    if "spill" in remark:
        return f"Give the role that runs {statement} more memory: `ALTER ROLE … SET work_mem = …;`."
    if "blocks per call" in remark or "examined" in remark:
        return (
            f"Compare the plan of {statement} (table `plans`) with the indexes there were, and "
            "run `ANALYZE;`."
            if database == "postgres"
            else f"Run {statement} with `.explain('executionStats')` and look for COLLSCAN."
        )
    if "(cache)" in remark or "(disk)" in remark:
        return "Look at what else reads: `fwdb report slow_queries -p order=io`."
    return (
        f"Look at what changed around {statement} in the application; table `query_changes` has "
        "the rest."
    )


# -- spills and repetitions ------------------------------------------------------------------------


# As for regressions: what takes less of the time is not worth a search.
@check("spill", unit="bytes", least=Limits(1, unit="percent"))
def spill(facts: Facts, database: str) -> Found:
    """The statement that writes most to temporary files and matters."""
    mine = _of(facts["statements"], database)
    if "temp_bytes" not in mine or mine.empty:
        return None
    matters = mine["share_percent"] >= facts.lines["spill.least"].warning
    files = mine[(mine["temp_bytes"].fillna(0) > 0) & matters]
    if files.empty:
        return Finding("No PostgreSQL statement that matters had to write temporary files.", 0.0)
    worst = files.sort_values(["temp_bytes", "query_id"], ascending=[False, True]).iloc[0]
    size, calls = int(worst["temp_bytes"]), int(worst["calls"])
    return Finding(
        f"{quoted(str(worst['statement']))} writes {figure(size / calls, 'bytes')} of temporary "
        f"files per call, because its memory is too small, and takes "
        f"{share(float(worst['share_percent']))} of the time of PostgreSQL.",
        float(size),
        # A sort needs about twice as much in memory as its file has on disk.
        "Give the role that runs it more memory: `ALTER ROLE … SET work_mem = "
        f"'{_megabytes(2 * size / calls)}MB';`.",
        status="warning",
    )


def _megabytes(size: float) -> int:
    """The next power of two above `size`, in megabytes: 8, the double of the default, at least."""
    found = 8
    while found < size / (1 << 20):
        found *= 2
    return found


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
    per="database",
    unit="count",
    limits=Limits(1000),
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
    coverage = (everything.attrs.get("coverage") or {}).get(database) or {}
    line = {key.removeprefix("repeated."): one.warning for key, one in facts.lines.items()}
    found = _often(mine, coverage.get("transactions"), line)
    if found is None:
        text = f"No {name} statement is called once for each row of another."
        return Finding(text, 0, threshold=None)
    row, why = found
    calls = int(row["calls"])
    return Finding(
        f"{quoted(str(row['statement']))} was called {figure(calls)} times, {why}: "
        f"{share(100 * calls / int(mine['calls'].sum()))} of the calls and "
        f"{share(float(row['share_percent']))} of the time of {name}.",
        calls,
        f"Fetch all of them at once: {_FETCH[database]}.",
    )


def _often(
    mine: pd.DataFrame, transactions: int | None, line: Mapping[str, float]
) -> tuple[pd.Series[Any], str] | None:
    reads = mine[mine["statement"].astype(str).str.lstrip(" (").str.upper().str.startswith(_READS)]
    if reads.empty:
        return None
    row = reads.sort_values(["calls", "query_id"]).iloc[-1]
    calls = int(row["calls"])
    if (
        calls < line["repeated"]
        or 100 * calls < line["calls"] * int(mine["calls"].sum())
        or float(row["share_percent"]) < line["time"]
    ):
        return None
    lists = reads[
        (reads["query_id"] != row["query_id"])
        & (reads["rows_per_call"].fillna(0) >= line["rows"])
        & (100 * (reads["rows"].fillna(0) - calls).abs() <= line["tolerance"] * calls)
    ]
    if len(lists):
        outer = lists.sort_values("query_id").iloc[0]
        return row, f"once for each row that {quoted(str(outer['statement']))} returned (N+1)"
    if transactions and calls >= line["times"] * transactions:
        often = figure(int(calls / transactions))
        return row, f"{often} times and more in each transaction on average (N+1)"
    return None


# -- plans -----------------------------------------------------------------------------------------


def plans(facts: Facts) -> dict[str, Plan]:
    """Plans of PostgreSQL's statements that got slower or are slow, costliest first, by id."""
    changes, ids = facts["regression"], list[str]()
    for frame in (changes[changes["change"] == "slower"], facts["slow"]):
        ids += _of(frame, "postgres").head(PLANS)["query_id"].astype(str).tolist()
    question = facts.db.monitor.plan
    found = {id: facts.ask("plan", partial(question, id), None) for id in dict.fromkeys(ids)}
    return {id: plan for id, plan in found.items() if plan is not None}


def advice(plan: Plan | None) -> str:
    """What a plan suggests; empty when it suggests nothing."""
    for scan in plan.scans if plan else ():
        assert plan is not None
        reads = f"{quoted(plan.statement)} reads `{scan.table}` from end to end for "
        then = f"try `{scan.index}`" if scan.index else "look whether an index can serve that"
        return f"{reads}`{scan.filter}`: {then}."
    return ""


def plans_table(found: Mapping[str, Plan]) -> Table:
    """One row per line of a plan."""
    rows = [
        (plan.query_id, shorten(plan.statement), line)
        for plan in found.values()
        for line in indented(str(plan))
    ]
    frame = pd.DataFrame(rows, columns=["query_id", "statement", "plan"]).astype("str")
    return Table(
        "plans",
        "Plans of the slowest statements",
        frame,
        "PostgreSQL's plan for any values of $1, $2, …; a rare or frequent value may be planned "
        "another way. No statement was run for it.",
        ("query_id", "plan"),
    )


def indented(plan: str) -> list[str]:
    """The lines of a plan, indented with spaces that a page does not drop."""
    return [
        "\u00a0" * (len(line) - len(line.lstrip())) + line.lstrip() for line in plan.splitlines()
    ]


def logged_table(facts: Facts) -> Table:
    """One row per line of the plans of the longest runs in the window, longest first."""
    since, end = facts.window.since, facts.end
    question = partial(facts.db.monitor.logged_plans, since, end, top=PLANS)
    found = facts.take("logged_plans", question, empty({"logged_at": "timestamp"}))
    names = {"query_id": "str", "logged_at": "datetime64[us, UTC]", "duration_ms": "float64"}
    names |= {"statement": "str", "plan": "str"}
    rows = [
        (run.query_id, run.logged_at, run.duration_ms, shorten(str(run.statement)), line)
        for run in found.itertuples()
        for line in indented(str(run.plan))
    ]
    told = str(found.attrs.get("reason") or found.attrs.get("remark") or "")
    about = "The plans that auto_explain logged for the longest runs, with the time each run took."
    return Table(
        "logged_plans",
        "Plans of the longest runs",
        pd.DataFrame(rows, columns=list(names)).astype(names),
        f"{about} {sentence(told)}" if told else about,
        ("query_id", "logged_at", "duration_ms", "plan"),
    )


# -- coverage --------------------------------------------------------------------------------------


@check("coverage", per="database")
def coverage(facts: Facts, database: str) -> Found:
    """How much of the window the counters show: a warning where they are known to lack much."""
    known = (facts["statements"].attrs.get("coverage") or {}).get(database)
    if known is None:
        return None
    name, text = DATABASES[database], f"{DATABASES[database]}: {known.get('sentence') or ''}"
    calls, seconds = known.get("calls_percent"), known.get("time_percent")
    kpis: tuple[Kpi, ...] = ()
    if seconds is not None:
        note = "At least; planning and sending, which no statement is charged for, are in the rest."
        label = f"Time in statements seen, {name}"
        kpis = (Kpi(f"{database}_seen", label, float(seconds), "percent", "ok", database, note),)
    status: Status = "warning"
    value, remedy = (
        None,
        "Take a window that begins after the reset before you trust these figures.",
    )
    if known.get("dealloc"):
        value = calls
        remedy = f"`ALTER SYSTEM SET pg_stat_statements.max = {2 * known['max_entries']};` and "
        remedy += "restart the server: it keeps that many statements."
    elif not any(known.get(key) for key in ("restarted", "lost", "emptied")):
        if database != "postgres":
            facts.kpis += kpis
            return None
        seen = f"; {known['seen']}" if known.get("seen") else ""
        text = f"{name} lost no counter in this window{seen}."
        value, status, remedy = seconds, "ok", ""
    unit = "" if value is None else "percent"
    return Finding(sentence(text), value, remedy, status, unit=unit, kpis=kpis)


def coverage_table(frame: pd.DataFrame) -> Table:
    """One row per fact about what the counters of a store can show."""
    rows = []
    for database in DATABASES:
        window = (frame.attrs.get("windows") or {}).get(database)
        if window is None:
            missing = str((frame.attrs.get("missing") or {}).get(database) or "not asked")
            rows.append((database, "statements", sentence(missing)))
            continue
        coverage = (frame.attrs.get("coverage") or {}).get(database) or {}
        totals = (frame.attrs.get("totals") or {}).get(database) or {}
        source = (frame.attrs.get("source") or {}).get(database) or ""
        rows += [
            (database, "source", source),
            (database, "from", f"{window[0]:%Y-%m-%d %H:%M:%S} UTC"),
            (database, "to", f"{window[1]:%Y-%m-%d %H:%M:%S} UTC"),
            (database, "statements", figure(totals.get("statements"))),
            (database, "calls", figure(totals.get("calls"))),
        ]
        rows += [(database, fact, text) for fact, text in _facts(coverage).items() if text]
        hidden = (frame.attrs.get("hidden") or {}).get(database)
        if hidden:
            rows.append((database, "hidden", str(hidden)))
        reasons = (frame.attrs.get("not_measured") or {}).get(database) or {}
        grouped: dict[str, list[str]] = {}
        for column, reason in reasons.items():
            grouped.setdefault(reason, []).append(column)
        rows += [
            (database, "not measured", f"{', '.join(columns)}: {reason}")
            for reason, columns in grouped.items()
        ]
    found = pd.DataFrame(rows, columns=["database", "fact", "value"]).astype("str")
    return Table(
        "coverage",
        "What the figures rest on",
        found,
        "How much of the window the counters show, and what this server does not measure.",
    )


def _facts(coverage: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "calls seen": f"about {share(coverage['calls_percent'])}, by the transactions beside them"
        if coverage.get("calls_percent") is not None
        else "",
        "time seen": f"at least {share(coverage['time_percent'])} of the time sessions worked"
        if coverage.get("time_percent") is not None
        else "",
        "no estimate": str(coverage.get("estimate") or ""),
        "evicted": f"about {figure(coverage['evicted'])} entries, in "
        f"{figure(coverage['dealloc'])} rounds"
        if coverage.get("dealloc")
        else "",
        "incomplete": str(coverage.get("sentence") or "") if not coverage.get("complete") else "",
        "restarted": "the server, within the window" if coverage.get("server_restarted") else "",
    }
    if "dealloc" in coverage and not coverage["dealloc"]:
        found["evicted"] = "none"
    return found


CHECKS = (mean, whole_server, regression, spill, repeated, coverage)
