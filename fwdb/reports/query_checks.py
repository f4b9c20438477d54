"""What the report `slow_queries` finds beside slow means: changes, spills, plans, coverage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.charts import share, shorten
from fwdb.charts.canvas import DATABASES
from fwdb.charts.statements import milliseconds
from fwdb.reports.asking import Asking, sentence, utc_frame
from fwdb.reports.parameters import Window, iso
from fwdb.reports.results import Kpi, Table
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database
    from fwdb.monitoring import Plan

PLANS = 3  # of the slowest statements: a page of plans is read by nobody
NAMED = 60  # characters of a statement inside a sentence
# As for regressions: what takes less of the time is not worth a search.
SPILL_PERCENT = 1.0

CHANGES = utc_frame(
    {
        **dict.fromkeys(("database", "query_id", "statement", "change"), "str"),
        **dict.fromkeys(("calls_before", "calls"), "Int64"),
        **dict.fromkeys(
            ("mean_before_ms", "mean_ms", "ratio", "ratio_low", "ratio_high", "extra_ms"),
            "float64",
        ),
        "total_ms": "float64",
        "remark": "str",
    }
)
CHANGES_SHOWN = (
    *("change", "statement", "remark", "calls", "mean_before_ms", "mean_ms", "ratio", "extra_ms"),
)


def named(statement: str) -> str:
    """A statement inside a sentence, set as code."""
    text = shorten(statement).replace("`", "'")
    return f"`{text if len(text) <= NAMED else text[: NAMED - 1].rstrip() + '…'}`"


# -- changes --------------------------------------------------------------------------------------


def changed(
    asking: Asking, kpis: list[Kpi], changes: pd.DataFrame, found: Mapping[str, Plan]
) -> None:
    """What got slower, and how many statements are new or gone, per store."""
    missing: Mapping[str, str] = changes.attrs.get("missing") or {}
    whole: Mapping[str, float] = changes.attrs.get("whole_server") or {}
    for database, name in DATABASES.items():
        if database in asking.down:
            continue
        mine = changes[changes["database"].astype(str) == database]
        if database in missing:
            said = sentence(f"{name} could not be compared: {missing[database].rstrip('.')}")
            asking.add("regression", database, "no_data", said)
            continue
        if factor := whole.get(database):
            asking.add(
                "whole_server",
                database,
                "warning",
                f"{name} as a whole is {factor:.1f} times as slow as in the window before: more "
                "than half of its statements are, by about that factor.",
                value=factor,
                threshold=1.25,
                action="Look at the machine before you look at statements: processor, disk, "
                "memory, a backup, a neighbour. Report `pool` shows who waits.",
            )
        _slower(asking, mine[mine["change"] == "slower"], database, found)
        counts = {kind: int((mine["change"] == kind).sum()) for kind in ("new", "vanished")}
        kpis.append(
            Kpi(
                f"{database}_new",
                f"New statements, {name}",
                counts["new"],
                database=database,
                note=f"{counts['vanished']} of the window before did not run again.",
            )
        )


def _slower(asking: Asking, slower: pd.DataFrame, database: str, found: Mapping[str, Plan]) -> None:
    name = DATABASES[database]
    if slower.empty:
        asking.add(
            "regression",
            database,
            "ok",
            f"No {name} statement got slower than in the window before, as far as 30 calls in "
            "both and 95 % certainty can tell.",
            value=0.0,
            unit="ms",
        )
        return
    worst = slower.iloc[0]
    others = f"; {len(slower) - 1} more did" if len(slower) > 1 else ""
    because = f": {worst['remark']}" if worst["remark"] else ""
    asking.add(
        "regression",
        database,
        "warning",
        f"{name} takes {_times(worst['ratio'])} times as long (95 % {_times(worst['ratio_low'])} "
        f"to {_times(worst['ratio_high'])}) for {named(str(worst['statement']))}, "
        f"{milliseconds(float(worst['extra_ms']))} more in this window{because}{others}.",
        value=float(slower["extra_ms"].sum()),
        unit="ms",
        action=advice(found.get(str(worst["query_id"])))
        or _remedy(str(worst["remark"]), database, named(str(worst["statement"]))),
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


def changes_table(changes: pd.DataFrame, before: Window | None, window: Window) -> Table:
    """The statements that got slower, new and gone ones, faster ones, and those not judged."""
    told = changes[changes["change"] != "similar"].reset_index(drop=True)
    if before is None:
        earlier = iso(window.since - (window.until - window.since))
        about = (
            "No window to compare with was asked for: set compare_since, such as "
            f"compare_since={earlier}."
        )
    else:
        about = (
            f"Against {iso(before.since)} to {iso(before.until)}: what got slower for sure, with "
            "the cause beside it, new and vanished statements, faster ones, and those with too "
            "few calls to judge."
        )
    return Table(
        "query_changes", "What changed since the window before", told, about, CHANGES_SHOWN
    )


def chart(changes: pd.DataFrame, source: str, before: Window) -> Any:
    """The means of both windows side by side."""
    told = changes.attrs.get("reason") or "; ".join((changes.attrs.get("missing") or {}).values())
    span = charts.window_text(pd.Timestamp(before.since), pd.Timestamp(before.until))
    return charts.query_changes(
        changes,
        source=source,
        window=f"compared with {span}",
        reason=sentence(str(told) or "no statement ran in both windows"),
    )


# -- spills ---------------------------------------------------------------------------------------


def spilled(asking: Asking, heavy: pd.DataFrame) -> None:
    """A warning for the statement that writes most to temporary files and matters."""
    if "temp_bytes" not in heavy or "postgres" not in set(heavy["database"].astype(str)):
        return
    mine = heavy[heavy["database"].astype(str) == "postgres"]
    files = mine[(mine["temp_bytes"].fillna(0) > 0) & (mine["share_percent"] >= SPILL_PERCENT)]
    if files.empty:
        asking.add(
            "spill",
            "postgres",
            "ok",
            "No PostgreSQL statement that matters had to write temporary files.",
            value=0.0,
            unit="bytes",
        )
        return
    worst = files.sort_values(["temp_bytes", "query_id"], ascending=[False, True]).iloc[0]
    size = int(worst["temp_bytes"])
    asking.add(
        "spill",
        "postgres",
        "warning",
        f"{named(str(worst['statement']))} writes {figure(size / int(worst['calls']), 'bytes')} of "
        f"temporary files per call, because its memory is too small, and takes "
        f"{share(float(worst['share_percent']))} of the time of PostgreSQL.",
        value=float(size),
        unit="bytes",
        # A sort needs about twice as much in memory as its file has on disk.
        action="Give the role that runs it more memory: `ALTER ROLE … SET work_mem = "
        f"'{_megabytes(2 * size / int(worst['calls']))}MB';`.",
    )


def _megabytes(size: float) -> int:
    """The next power of two above `size`, in megabytes: 8, the double of the default, at least."""
    found = 8
    while found < size / (1 << 20):
        found *= 2
    return found


# -- plans ----------------------------------------------------------------------------------------


def plans(
    asking: Asking, db: Database, slow: pd.DataFrame, changes: pd.DataFrame
) -> dict[str, Plan]:
    """Plans of PostgreSQL's statements that got slower or are slow, costliest first, by id."""
    ids: list[str] = []
    for frame in (changes[changes["change"] == "slower"], slow):
        mine = frame[frame["database"].astype(str) == "postgres"].head(PLANS)
        ids += [str(query_id) for query_id in mine["query_id"]]
    found = {
        query_id: asking.ask("plan", "postgres", partial(db.monitor.plan, query_id), None)
        for query_id in dict.fromkeys(ids)
    }
    return {query_id: plan for query_id, plan in found.items() if plan is not None}


def advice(plan: Plan | None) -> str:
    """What a plan suggests; empty when it suggests nothing."""
    for scan in plan.scans if plan else ():
        assert plan is not None
        reads = f"{named(plan.statement)} reads `{scan.table}` from end to end for "
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


# -- coverage -------------------------------------------------------------------------------------


def covered(asking: Asking, kpis: list[Kpi], frame: pd.DataFrame) -> None:
    """How much of the window the counters show: a warning where they are known to lack much."""
    for database, coverage in sorted((frame.attrs.get("coverage") or {}).items()):
        name = DATABASES[database]
        said = str(coverage.get("sentence") or "")
        if coverage.get("time_percent") is not None:
            kpis.append(
                Kpi(
                    f"{database}_seen",
                    f"Time in statements seen, {name}",
                    float(coverage["time_percent"]),
                    "percent",
                    database=database,
                    note="At least; planning and sending, which no statement is charged for, "
                    "are in the rest.",
                )
            )
        if coverage.get("dealloc"):
            most = coverage["max_entries"]
            asking.add(
                "coverage",
                database,
                "warning",
                sentence(f"{name}: {said}"),
                value=coverage.get("calls_percent"),
                unit="percent" if coverage.get("calls_percent") is not None else "",
                action=f"`ALTER SYSTEM SET pg_stat_statements.max = {2 * most};` and restart the "
                "server: it keeps that many statements.",
            )
        elif any(coverage.get(key) for key in ("restarted", "lost", "emptied")):
            asking.add(
                "coverage",
                database,
                "warning",
                sentence(f"{name}: {said}"),
                action="Take a window that begins after the reset before you trust these figures.",
            )
        elif database == "postgres":
            seen = str(coverage.get("seen") or "")
            asking.add(
                "coverage",
                database,
                "ok",
                f"{name} lost no counter in this window{'; ' + seen if seen else ''}.",
                value=coverage.get("time_percent"),
                unit="percent" if coverage.get("time_percent") is not None else "",
            )


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
