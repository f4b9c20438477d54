"""The report `health`: how are the two servers, and what changed?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from fwdb import charts
from fwdb.charts.canvas import DATABASES
from fwdb.monitoring import accesses, facts, relations, replicas
from fwdb.reports import coverage_checks, health_relations, health_replication
from fwdb.reports import health_checks as checks
from fwdb.reports.asking import Asking, sentence, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import JUDGED, WORDS, Check, Kpi, Result, Table, ranked
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database

# What the matrix shows, in its order: the subject of a check, and what a reader calls it.
LABELS = {
    "reachable": "Reachable",
    "answer": "Answers",
    "schema": "Schema",
    "sessions": "Sessions",
    "blocked": "Blocked sessions",
    "vacuum_held": "Vacuum held back",
    "deadlocks": "Deadlocks",
    "rollbacks": "Rollbacks",
    "cache": "Cache hit ratio",
    "replicas": "Replicas",
    "replication": "Replication",
    "slots": "Log kept for slots",
    "wraparound": "Wraparound",
    "disk": "Database size",
    "log": "Write-ahead log",
    "checkpoints": "Forced checkpoints",
    "dead_rows": "Dead rows",
    "invalid_indexes": "Invalid indexes",
    "duplicate_indexes": "Duplicate indexes",
    "unused_indexes": "Unused indexes",
    "triggers": "Triggers off",
    "audit_coverage": "Not in the audit trail",
    "profiler": "Profiler",
    "archive": "Archive",
    "backup": "Last base backup",
    "changes": "Changes",
}
# What stands in the matrix in place of a figure that says less.
SAID = {"reachable": "yes", "schema": "current", "vacuum_held": "no"}
# Columns of the pages; the files have every one.
TABLES_SHOWN = (
    *("database", "table", "total_bytes", "growth_bytes", "live_rows", "dead_rows"),
    *("dead_percent", "vacuum_age_seconds", "analyze_age_seconds", "transaction_age"),
)
INDEXES_SHOWN = ("table", "index", "index_bytes", "scans", "unused", "duplicate_of", "is_valid")
REPLICAS_SHOWN = (
    *("database", "replica", "slot", "state", "behind_bytes", "reply_age_seconds"),
    *("replay_lag_seconds", "retained_bytes", "reason"),
)
ENDED = (
    "Sessions, replicas, tables and indexes are known for this moment only, and this window ended "
    "earlier."
)


def build(db: Database, window: Window, parameters: Mapping[str, Value]) -> Result:
    """The report over `window`: from the history, and, when it ends now, from both servers."""
    asking = Asking("health", db)
    asking.reach("postgres", "mongodb")
    top, live = int(parameters["top"] or 20), parameters["until"] == "now"
    end = None if live else window.until
    frames = _now(asking, window) if live else _nothing()
    _window(asking, window, end)
    changed = asking.ask(
        "changes",
        "postgres",
        partial(db.monitor.changes, window.since, end),
        utc_frame({}),
    )
    if "postgres" in asking.up:
        checks.changes(asking, changed)
    trends = asking.ask(
        "trends", "postgres", partial(db.monitor.trends, window.since, end), _empty(facts.TRENDS)
    )
    cache = asking.ask(
        "access", "postgres", partial(db.monitor.cache, window.since, end), _empty(accesses.COLUMNS)
    )
    span = charts.window_text(pd.Timestamp(window.since), pd.Timestamp(window.until))
    return Result(
        report="health",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(_kpis(asking)),
        tables=(
            Table(
                "changes",
                "What changed in the window",
                changed,
                "Settings, versions and starts, as the stored readings saw them, oldest first; "
                "each changed between the reading before and this one.",
            ),
            Table(
                "replicas",
                "Replicas",
                frames["replicas"],
                "Replicas, and slots without one, with what each has still to replay.",
                REPLICAS_SHOWN,
            ),
            Table(
                "tables",
                "Tables and collections",
                _largest(frames["tables"], "total_bytes", top),
                "The largest of each store; growth is since the first full reading of the window.",
                TABLES_SHOWN,
            ),
            Table(
                "indexes",
                "Indexes",
                _suspect(frames["indexes"], top),
                "Invalid, duplicate and unused ones first, then the largest. Scans are those of "
                "the primary since its counters began.",
                INDEXES_SHOWN,
            ),
            Table(
                "holders",
                "Who holds vacuum back",
                frames["holders"].head(top),
                "Transactions, slots and replicas for which the server must keep old rows.",
            ),
            Table(
                "cache",
                "Cache by kind of access",
                cache,
                "Ordinary reads apart from large scans, loads and vacuum, which are not meant to "
                "be found in memory; from PostgreSQL 16 on.",
            ),
        ),
        charts={
            "health": charts.health(matrix(asking.checks), source="both servers", window=span),
            "trends": charts.trends(
                trends,
                since=pd.Timestamp(window.since),
                until=pd.Timestamp(window.until),
                reason=_no_trend(asking, trends),
            ),
        },
        how_to_read=_how_to_read(db),
        sources=(
            ("Window", f"{iso(window.since)} to {iso(window.until)}"),
            ("Over the window", "differences of the readings that `fwdb monitor` stored"),
            ("Of this moment", "both servers, asked when the report was made" if live else ENDED),
            *_missing(frames),
        ),
    )


def _now(asking: Asking, window: Window) -> dict[str, pd.DataFrame]:
    """What is known of this moment only: checks of it, and the frames for the tables."""
    monitor = asking.db.monitor
    found = _nothing()
    checks.answers(asking)
    checks.migrations(asking)
    checks.sessions(asking)
    up = asking.up
    if up:
        ask = partial(asking.ask, database=up[0])
        found["replicas"] = ask("replicas", question=monitor.replicas, without=found["replicas"])
        health_replication.replication(asking, found["replicas"])
        tables = partial(monitor.tables, window.since)
        found["tables"] = ask("dead_rows", question=tables, without=found["tables"])
        found["indexes"] = ask("indexes", question=monitor.indexes, without=found["indexes"])
        health_relations.indexes(asking, found["indexes"])
    if "postgres" in up:
        health_relations.tables(asking, found["tables"])
        health_replication.slots(
            asking, found["replicas"][found["replicas"]["database"] == "postgres"]
        )
        found["holders"] = asking.ask(
            "vacuum_held", "postgres", monitor.vacuum_holders, found["holders"]
        )
        checks.holders(asking, found["holders"])
        off = asking.ask("triggers", "postgres", monitor.disabled_triggers, None)
        if off is not None:
            health_relations.triggers(asking, off)
        coverage_checks.coverage(asking, "audit_coverage", off="not_measured")
    if "mongodb" in up:
        checks.profiler(asking)
        no_backup = "MongoDB keeps no record of backups; ask the tool that makes them."
        asking.add("backup", "mongodb", "not_available", no_backup)
    return found


def _window(asking: Asking, window: Window, end: object) -> None:
    """What happened in the window: differences of readings."""
    monitor = asking.db.monitor
    until = window.until if end is not None else None
    found = asking.ask(
        "facts", "postgres", partial(monitor.server_facts, window.since, until), None
    )
    if found is not None:
        checks.figures(asking, found)
    for database in DATABASES:
        ratio = asking.ask(
            "cache", database, partial(monitor.cache_hit_ratio, database, window.since, until), None
        )
        if ratio is not None:
            checks.cache(asking, ratio)


def matrix(found: list[Check]) -> pd.DataFrame:
    """A row per check and store for the chart: the worst of those with the same subject."""
    rows = []
    for subject, label in LABELS.items():
        for database in DATABASES:
            mine = [c for c in found if c.id == f"health.{subject}" and c.database == database]
            if not mine:
                continue
            check = ranked(tuple(mine))[0]
            rows.append(
                {
                    "check": label,
                    "database": database,
                    "status": check.status,
                    "value": _shown(check),
                    "note": _note(check),
                }
            )
    return pd.DataFrame(rows, columns=["check", "database", "status", "value", "note"])


def _shown(check: Check) -> str:
    if check.status not in JUDGED:
        return WORDS[check.status].lower()
    subject = check.id.partition(".")[2]
    if check.status == "ok" and subject in SAID:
        return SAID[subject]
    if check.value is None:
        return WORDS[check.status].lower()
    if check.unit == "count" and check.value == 0:
        return "none"
    return figure(check.value, check.unit)


def _note(check: Check) -> str:
    """Beside a value where the line is, beside none why there is none."""
    if check.status not in JUDGED:
        return check.sentence
    if check.threshold is None or check.unit == "count":
        return ""
    low = check.id.endswith(".cache")
    return f"{'from' if low else 'line'} {figure(check.threshold, check.unit)}"


def _kpis(asking: Asking) -> list[Kpi]:
    """The figures a reader asks for first, each from the check that judged it."""
    wanted = (
        ("answer", "Time to answer", DATABASES),
        ("cache", "Cache hit ratio", DATABASES),
        ("replication replicas", "Replication lag", DATABASES),
        ("disk", "Database size", ("postgres",)),
        ("deadlocks", "Deadlocks in the window", ("postgres",)),
        ("wraparound", "Way to wraparound", ("postgres",)),
    )
    found = []
    for subject, label, databases in wanted:
        for database in databases:
            mine = [
                c
                for name in subject.split()
                for c in asking.checks
                if c.id == f"health.{name}" and c.database == database
            ]
            if not mine:
                continue
            # Whether replicas are there is said where none has a lag.
            check = ranked(tuple(c for c in mine if c.id == mine[0].id))[0]
            name = f"{label}, {DATABASES[database]}" if len(databases) > 1 else label
            found.append(
                Kpi(
                    f"{database}_{subject.split()[0]}",
                    name,
                    check.value,
                    check.unit,
                    check.status,
                    database,
                    check.sentence,
                )
            )
    return found


def _largest(found: pd.DataFrame, column: str, top: int) -> pd.DataFrame:
    order = ["database", column]
    return (
        found.sort_values(order, ascending=[False, False], kind="stable")
        .groupby("database", sort=False)
        .head(top)
        .reset_index(drop=True)
    )


def _suspect(found: pd.DataFrame, top: int) -> pd.DataFrame:
    """Indexes with something against them first, then by size."""
    bad = (
        (found["is_valid"] == False)  # noqa: E712  three-valued
        | found["duplicate_of"].notna()
        | (found["unused"] == True)  # noqa: E712
    )
    order = found.assign(bad=bad.fillna(False).astype(bool)).sort_values(
        ["bad", "index_bytes"], ascending=False, kind="stable"
    )
    return order.drop(columns="bad").head(2 * top).reset_index(drop=True)


def _empty(columns: Mapping[str, str]) -> pd.DataFrame:
    kinds = {"string": "str", "timestamp": "datetime64[us, UTC]"}
    return utc_frame({name: kinds.get(kind, kind) for name, kind in columns.items()})


def _nothing() -> dict[str, pd.DataFrame]:
    from fwdb import queries

    return {
        "replicas": _empty(replicas.COLUMNS),
        "tables": _empty(relations.TABLES),
        "indexes": _empty(relations.INDEXES),
        "holders": _empty(queries.load("vacuum_holders", "postgres").columns),
    }


def _missing(frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """What the tables could not show, and why."""
    found = []
    for name in ("tables", "indexes"):
        told: dict[str, str] = {}
        for key in ("missing", "unjudged"):
            told |= frames[name].attrs.get(key) or {}
        for database, reason in sorted(told.items()):
            found.append((f"{DATABASES[database]}, {name}", sentence(str(reason))))
    return found


def _no_trend(asking: Asking, trends: pd.DataFrame) -> str:
    if "postgres" in asking.down:
        return "PostgreSQL, which keeps the history, could not be asked."
    return sentence(str(trends.attrs.get("reason") or "no reading was stored in this window"))


def _how_to_read(db: Database) -> tuple[tuple[str, str], ...]:
    limits = db.settings.thresholds
    return (
        (
            "The matrix",
            "Filled marks are judged, open rings could not be, with the reason beside them. That "
            "a figure is not known is no good sign and no bad one.",
        ),
        (
            "Cache hit ratio",
            f"Of the blocks asked for in the window; good from {limits.cache_good_ratio:g}, an "
            f"alert under {limits.cache_alert_ratio:g}. A block that was read may still have come "
            "from the system's cache: the time per block tells.",
        ),
        (
            "Replication",
            "Three numbers: log not replayed (warning from "
            f"{figure(limits.lag_warning_bytes, 'bytes')}, critical from "
            f"{figure(limits.lag_critical_bytes, 'bytes')}), lag ({limits.lag_target_seconds:g} s, "
            f"{limits.lag_alert_seconds:g} s) and time since it was last heard "
            f"({limits.reply_warning_seconds:g} s, {limits.reply_critical_seconds:g} s). A replica "
            "that answers seldom and has nothing to replay is idle.",
        ),
        (
            "Vacuum held back",
            "Dead rows stay as long as any transaction may still see them: from "
            f"{checks.HELD_WARNING:g} s a warning, from {checks.HELD_CRITICAL:g} s critical.",
        ),
        (
            "Unused indexes",
            f"Without a scan for {relations.UNUSED_DAYS} days and more, counted on this server. "
            "Nothing is said while the counters are younger, or a replica may use them.",
        ),
        (
            "Wraparound",
            "Transaction numbers are reused after 2³¹; vacuum must have frozen older rows by then. "
            f"From {checks.WRAPAROUND_WARNING:g} % a warning.",
        ),
    )
