"""The report `health`: how are the two servers, and what changed?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts, migrating
from fwdb.charts import share
from fwdb.charts.canvas import DATABASES, plural
from fwdb.monitoring import cache as caches
from fwdb.monitoring import relations, replication
from fwdb.monitoring import servers as figures
from fwdb.reports import servers
from fwdb.reports.check import Facts, Finding, Found, Limits, Rule, check, empty, measured, run
from fwdb.reports.parameters import parameter, since, until
from fwdb.reports.results import JUDGED, WORDS, Check, Kpi, Result, Status, ranked
from fwdb.reports.words import figure, sentence

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


@dataclass(frozen=True)
class Parameters:
    """What `health` is asked with."""

    since: str = since("24h")
    until: str = until()
    top: int = parameter(20, "tables of each store, and indexes, to list", low=1, high=200)


def build(facts: Facts) -> Result:
    """The report: from the history, and, when its window ends now, from both servers."""
    monitor, top = facts.db.monitor, facts.parameters.top
    facts.reach("postgres", "mongodb")
    _now(facts)
    within = partial(_within, facts)
    facts.frames["counters"] = facts.ask("facts", within(monitor.server_facts), None)
    facts.take("changes", within(monitor.changes), empty({}))
    run(facts, CHECKS)
    trends = facts.take("trends", within(monitor.trends), empty(figures.TRENDS))
    cache = facts.take("access", within(monitor.cache), empty(caches.COLUMNS))
    return facts.result(
        kpis=_kpis(facts),
        tables=(
            facts.table(
                "changes",
                "What changed in the window",
                "Settings, versions and starts, as the stored readings saw them, oldest first; "
                "each changed between the reading before and this one.",
            ),
            facts.table(
                "replicas",
                "Replicas",
                "Replicas, and slots without one, with what each has still to replay.",
                REPLICAS_SHOWN,
            ),
            facts.table(
                "tables",
                "Tables and collections",
                "The largest of each store; growth is since the first full reading of the window.",
                TABLES_SHOWN,
                frame=_largest(facts["dead_rows"], "total_bytes", top),
            ),
            facts.table(
                "indexes",
                "Indexes",
                "Invalid, duplicate and unused ones first, then the largest. Scans are those of "
                "the primary since its counters began.",
                INDEXES_SHOWN,
                frame=_suspect(facts["indexes"], top),
            ),
            facts.table(
                "holders",
                "Who holds vacuum back",
                "Transactions, slots and replicas for which the server must keep old rows.",
                frame=facts["vacuum_held"].head(top),
            ),
            facts.table(
                "cache",
                "Cache by kind of access",
                "Ordinary reads apart from large scans, loads and vacuum, which are not meant to "
                "be found in memory; from PostgreSQL 16 on.",
                frame=cache,
            ),
        ),
        charts={
            "health": charts.health(matrix(facts.checks), source="both servers", window=facts.span),
            "trends": charts.trends(
                trends,
                **facts.edges,
                reason=_no_trend(facts, trends),
            ),
        },
        sources=(
            ("Window", facts.bounds),
            ("Over the window", "differences of the readings that `fwdb monitor` stored"),
            (
                "Of this moment",
                "both servers, asked when the report was made" if facts.live else ENDED,
            ),
            *_missing(facts),
        ),
    )


def _within(facts: Facts, question: Callable[..., Any]) -> Callable[[], Any]:
    """A question about the window: differences of readings."""
    return partial(question, facts.window.since, facts.end)


def _now(facts: Facts) -> None:
    """What is known of this moment only; empty for a window that ended earlier."""
    monitor, up = facts.db.monitor, facts.up
    take = partial(facts.take, live=True)
    first = up[0] if up else "postgres"
    tables = partial(monitor.tables, facts.window.since)
    take("replicas", monitor.replicas, empty(replication.COLUMNS), first)
    take("dead_rows", tables, empty(relations.TABLES), first)
    take("indexes", monitor.indexes, empty(relations.INDEXES), first)
    take("vacuum_held", monitor.vacuum_holders, empty("vacuum_holders"))
    take("answer", lambda: monitor.health().stores, (), first)
    take("blocked", monitor.blocking, empty("blocking"))
    take("triggers", monitor.disabled_triggers, empty("disabled_triggers"))
    limits = facts.frames["session_limit"] = {}
    taken = facts.frames["taken"] = {}
    for name in up if facts.live else ():
        limits[name] = facts.ask("sessions", partial(monitor.session_limit, name), None, name)
        frame = facts.ask("sessions", partial(monitor.sessions, name), None, name)
        taken[name] = None if frame is None else int(frame["sessions"].sum())
    postgres = facts.live and "postgres" in up
    facts.frames["standings"] = servers.standings(facts, "audit_coverage") if postgres else {}


def _worst(found: Iterable[Check]) -> dict[tuple[str, str], Check]:
    """The worst check of each subject and database."""
    return {(c.id, c.database): c for c in reversed(ranked(tuple(found)))}


def matrix(found: Iterable[Check]) -> pd.DataFrame:
    """A row per check and store for the chart: the worst of those with the same subject."""
    labels = {"reachable": "Reachable"} | {rule.subject: rule.label for rule in CHECKS}
    worst = _worst(found)
    rows = [
        (label, database, one.status, _shown(one), _note(one))
        for subject, label in labels.items()
        for database in DATABASES
        if (one := worst.get((f"health.{subject}", database)))
    ]
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


KPIS = {
    "answer": "Time to answer, {}",
    "cache": "Cache hit ratio, {}",
    "replication": "Replication lag, {}",
    "disk": "Database size",
    "deadlocks": "Deadlocks in the window",
    "wraparound": "Way to wraparound",
}


def _kpis(facts: Facts) -> Iterator[Kpi]:
    """The figures a reader asks for first, each from the check that judged it."""
    worst = _worst(facts.checks)
    for subject, label in KPIS.items():
        for database, name in DATABASES.items():
            one = worst.get((f"health.{subject}", database))
            if one is None and subject == "replication":  # whether there are replicas at all
                one = worst.get(("health.replicas", database))
            if one is not None:
                id, title = f"{database}_{subject}", label.format(name)
                yield Kpi(id, title, one.value, one.unit, one.status, database, one.sentence)


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


def _missing(facts: Facts) -> list[tuple[str, str]]:
    """What the tables could not show, and why."""
    found = []
    for name, subject in (("tables", "dead_rows"), ("indexes", "indexes")):
        told: dict[str, str] = {}
        for key in ("missing", "unjudged"):
            told |= facts[subject].attrs.get(key) or {}
        for database, reason in sorted(told.items()):
            found.append((f"{DATABASES[database]}, {name}", sentence(str(reason))))
    return found


def _no_trend(facts: Facts, trends: pd.DataFrame) -> str:
    if "postgres" in facts.down:
        return "PostgreSQL, which keeps the history, could not be asked."
    return sentence(str(trends.attrs.get("reason") or "no reading was stored in this window"))


# -- answers and sessions --------------------------------------------------------------------------

ANSWER = Limits("health_timeout_ms")


@check("answer", per="database", unit="ms", limits=ANSWER, label="Answers", live=True, role="main")
def answer(facts: Facts, database: str) -> Found:
    """Whether a store takes work now, and how quickly it answers."""
    store = next(s for s in facts["answer"] if s.database == database)
    text = f"{DATABASES[database]} is {store.status}: {store.reason}"
    status: Status = "critical"
    remedy = "Run `fwdb health` again, and `fwdb report pool`."
    if store.status == "degraded":
        status = "warning"
    if store.status == "up":
        text = f"{DATABASES[database]} answered in {figure(store.latency_ms, 'ms')}."
        status, remedy = "ok", ""
    limit = facts.lines["answer"].warning
    return Finding(sentence(text), store.latency_ms, remedy, status, limit, "ms")


@check("schema", per="database", unit="count", limits=Limits(None, 1), live=True)
def schema(facts: Facts, database: str) -> Found:
    """Whether the schema of a store is that of this release."""
    postgres = facts.db.postgres if database == "postgres" else None
    mongodb = facts.db.mongodb if database == "mongodb" else None
    found = migrating.pending(postgres, mongodb)
    bad = [one for one in found if one.severity != "information"]
    if found and not bad:
        return Finding(sentence(found[0].sentence), status="not_measured")
    revision = f", revision {migrating.head()}" if postgres else ""
    text = sentence(bad[0].sentence) if bad else f"The schema is that of this release{revision}."
    return Finding(text, len(bad), "Run `fwdb migrate`.", threshold=1)


# A transaction keeps vacuum from its work; one whose age in seconds is not known, by its number.
@check(
    "vacuum_held",
    unit="seconds",
    limits=Limits(300.0, 1800.0),
    label="Vacuum held back",
    live=True,
    transactions=Limits(1_000_000, unit="transactions"),
)
def vacuum_held(facts: Facts, database: str) -> Found:
    """Who keeps vacuum from removing dead rows."""
    found, line = facts["vacuum_held"], facts.lines["vacuum_held"]
    if found.empty:
        return Finding("Nothing keeps vacuum from its work.")
    timed = found[found["seconds"].notna()]
    old = timed.sort_values("seconds").iloc[-1] if len(timed) else None
    seconds = 0.0 if old is None else float(old["seconds"])
    status, first = line.judge(seconds), found.iloc[0]
    most = facts.lines["vacuum_held.transactions"].warning
    if status == "ok" and int(first["transaction_age"]) >= most:
        status, old = "warning", first
    worst = first if old is None else old
    since = f" for {figure(seconds, 'seconds')}" if old is not None and seconds else ""
    return Finding(
        sentence(
            f"{worst['holder']} {worst['name']} has kept vacuum from removing dead rows{since}, "
            f"{figure(int(worst['transaction_age']))} transactions back"
        ),
        seconds,
        "" if status == "ok" else _release(worst),
        status=status,
    )


def _release(holder: pd.Series[Any]) -> str:
    name = str(holder["name"])
    if holder["holder"] == "prepared transaction":
        return f"End it: `COMMIT PREPARED '{name}'` or `ROLLBACK PREPARED '{name}'`."
    if holder["holder"] == "slot":
        return f"Bring its reader back, or drop it: `SELECT pg_drop_replication_slot('{name}')`."
    if holder["holder"] == "replica":
        return "End the long query on the replica, or set hot_standby_feedback = off there."
    pid = name.rpartition("process ")[2].rstrip(")")
    return f"Let it commit, or end it: `SELECT pg_terminate_backend({pid})`."


# -- the window ------------------------------------------------------------------------------------


def _counter(facts: Facts, name: str, said: str, action: str = "", more: str = "") -> Found:
    found = facts["counters"]
    return None if found is None else measured(found[name], said, action, more)


def _plain(subject: str, figure: str, limits: Limits, label: str, said: str, action: str) -> Rule:
    """The check of one of the figures of the server, by its lines."""

    @check(subject, unit=figure.rpartition("_")[2], limits=limits, label=label)
    def counter(facts: Facts, database: str) -> Found:
        return _counter(facts, figure, said, action)

    return counter


rollbacks = _plain(
    "rollbacks",
    "rollback_percent",
    Limits(10.0, 50.0),
    "Rollbacks",
    "{} of the transactions were rolled back",
    "Look for the error behind them in the log of the application.",
)
wraparound = _plain(
    "wraparound",
    "wraparound_percent",
    Limits(50.0, 80.0),
    "Wraparound",
    "The oldest transaction number is {} of the way to wraparound",
    "Find what holds vacuum back in table `holders`, then run `VACUUM (FREEZE)` in that database.",
)
# Most checkpoints should come at their time.
checkpoints = _plain(
    "checkpoints",
    "checkpoints_requested_percent",
    Limits(50.0),
    "Forced checkpoints",
    "{} of the checkpoints were forced by much writing",
    "Raise max_wal_size: `ALTER SYSTEM SET max_wal_size = '4GB'`, then `SELECT pg_reload_conf()`.",
)
log = _plain("log", "wal_bytes", Limits(), "Write-ahead log", "The write-ahead log takes {}", "")
archive = _plain(
    "archive", "archive_age_seconds", Limits(), "", "The log was last archived {} ago", ""
)


@check("deadlocks", unit="count", limits=Limits(1))
def deadlocks(facts: Facts, database: str) -> Found:
    """Deadlocks in the window."""
    count = facts["counters"] and facts["counters"]["deadlocks"].value
    said = {0: "No deadlock", 1: "1 deadlock"}.get(count, "{} deadlocks") + " in the window"
    remedy = "Take locks in one order everywhere; the server's log has both statements."
    return _counter(facts, "deadlocks", said, remedy)


@check("disk", unit="bytes", limits=Limits(), label="Database size", role="main")
def disk(facts: Facts, database: str) -> Found:
    """The size of the database."""
    growth = facts["counters"] and facts["counters"]["growth_bytes"].value
    more = "more" if growth and growth > 0 else "less"
    grown = f", {figure(abs(growth), 'bytes')} {more} than at the start" if growth else ""
    return _counter(facts, "database_bytes", "The database takes {}", more=grown)


@check("backup", per="database", unit="seconds", limits=Limits(), label="Last base backup")
def backup(facts: Facts, database: str) -> Found:
    """When the last base backup ended."""
    if database == "postgres":
        return _counter(facts, "backup_age_seconds", "The last base backup ended {} ago")
    if not facts.live:
        return None
    text = "MongoDB keeps no record of backups; ask the tool that makes them."
    return Finding(text, status="not_available")


CHANGES_NAMED = 3  # in a sentence; the table has all


@check("changes", unit="count")
def changes(facts: Facts, database: str) -> Iterator[Finding]:
    """What changed in the window; none of it is a fault by itself."""
    found = facts["changes"]
    if found.attrs.get("status") != "ok" and found.empty:
        reason = str(found.attrs.get("reason") or "no history")
        yield Finding(sentence(reason), status="no_data")
        return
    for store in DATABASES:
        mine = found[found["database"] == store]
        if mine.empty and store != "postgres":
            continue
        said = ", ".join(_change(row) for _, row in mine.head(CHANGES_NAMED).iterrows())
        if len(mine) > CHANGES_NAMED:
            said += f", and {len(mine) - CHANGES_NAMED} more in table `changes`"
        text = f"Changed in the window: {said}"
        if not said:
            text = "No setting and no version changed, and the server was not started anew"
        yield Finding(sentence(text), len(mine), database=store)


def _change(row: pd.Series[Any]) -> str:
    if row["what"] == "start":
        return f"the server was started anew at {row['after']} UTC"
    return f"{row['name']} from {row['before']} to {row['after']}"


# -- tables and indexes ----------------------------------------------------------------------------


# Autovacuum begins at 20 percent; a small table is no matter.
@check(
    "dead_rows", unit="percent", limits=Limits(20.0), live=True, least=Limits(10_000, unit="rows")
)
def dead_rows(facts: Facts, database: str) -> Found:
    """Tables full of rows that nobody needs."""
    found, percent = facts["dead_rows"], facts.lines["dead_rows"].warning
    least = facts.lines["dead_rows.least"].warning
    mine = found[found["database"] == "postgres"]
    if mine.empty:
        return Finding("There is no table.", status="not_applicable")
    large = mine[mine["dead_rows"] >= least]
    bad = large[large["dead_percent"] >= percent].sort_values("dead_rows", ascending=False)
    if bad.empty:
        text = f"None of {plural(len(mine), 'table')} has {percent:g} % of dead rows, and "
        most = float(large["dead_percent"].max() if len(large) else 0.0)
        return Finding(f"{text}{figure(least)} of them.", most)
    worst, value = bad.iloc[0], float(bad["dead_percent"].iloc[0])
    more = f"; {len(bad) - 1} more tables are like it" if len(bad) > 1 else ""
    return Finding(
        f"{share(value)} of the row versions in {worst['table']} are dead: "
        f"{figure(int(worst['dead_rows']))}{more}.",
        value,
        f"`VACUUM (ANALYZE) {worst['table']}`; if it comes back, lower "
        "autovacuum_vacuum_scale_factor for this table.",
    )


INDEX = Limits(10_000_000, unit="bytes")  # a superfluous index must take to be worth a sentence


def _indexes(facts: Facts, database: str) -> pd.DataFrame:
    found: pd.DataFrame = facts["indexes"]
    return found[found["database"] == database]


def _bad_index(bad: pd.DataFrame, fault: str, fine: str, remedy: str = "") -> Finding:
    """Of indexes with something against them the first; it is dropped, and `remedy` says more."""
    if bad.empty:
        return Finding(sentence(fine), 0, threshold=1)
    row = bad.iloc[0]
    schema, dot, _ = str(row["table"]).partition(".")
    name = f"{schema}{dot}{row['index']}" if row["database"] == "postgres" else row["index"]
    more = f"; {len(bad) - 1} more are like it" if len(bad) > 1 else ""
    return Finding(
        f"Index {row['index']} of {row['table']} ({figure(row['index_bytes'], 'bytes')}) "
        f"{fault}{more}.",
        len(bad),
        f"`DROP INDEX CONCURRENTLY {name}`{remedy.format(other=row['duplicate_of'])}",
    )


@check("invalid_indexes", per="database", unit="count", limits=Limits(1), live=True)
def invalid_indexes(facts: Facts, database: str) -> Found:
    """Indexes that could not be built."""
    mine = _indexes(facts, database)
    if mine.empty:
        return None
    bad = mine[mine["is_valid"] == False]  # noqa: E712  three-valued
    fault = "is not valid: it costs writes and answers nothing"
    return _bad_index(bad, fault, "no index is invalid", ", and make it again.")


@check("duplicate_indexes", unit="count", limits=Limits(1), live=True, size=INDEX)
def duplicate_indexes(facts: Facts, database: str) -> Found:
    """Indexes that serve what another serves too."""
    mine, least = _indexes(facts, database), facts.lines["duplicate_indexes.size"].warning
    if mine.empty:
        return None
    bad = mine[mine["duplicate_of"].notna() & (mine["index_bytes"] >= least)]
    fine = f"no index of {figure(least, 'bytes')} and more is a duplicate"
    remedy = ": {other} serves the same questions."
    return _bad_index(bad, "answers nothing that another index does not", fine, remedy)


@check("unused_indexes", per="database", unit="count", limits=Limits(1), live=True, size=INDEX)
def unused_indexes(facts: Facts, database: str) -> Found:
    """Indexes that nothing asked, where this server can tell."""
    mine, least = _indexes(facts, database), facts.lines["unused_indexes.size"].warning
    if mine.empty:
        return None
    reason = str((facts["indexes"].attrs.get("unjudged") or {}).get(database, ""))
    if database == "mongodb":
        return Finding(sentence(reason), status="not_available") if reason else None
    bad = mine[(mine["unused"] == True) & (mine["index_bytes"] >= least)]  # noqa: E712
    if reason and bad.empty:
        return Finding(sentence(reason), status="no_data")
    fine = f"no index of {figure(least, 'bytes')} and more is unused"
    remedy = ", if no yearly job needs it."
    return _bad_index(bad, "was not used since its counters began", fine, remedy)


@check("triggers", unit="count", limits=Limits(1), label="Triggers off", live=True)
def triggers(facts: Facts, database: str) -> Found:
    """Triggers that somebody switched off and forgot."""
    found = facts["triggers"]
    if found.empty:
        return Finding("No trigger is switched off.", 0, threshold=1)
    table, name = (str(found[c].iloc[0]) for c in ("table_name", "trigger_name"))
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    text = f"Trigger {name} of {table} is switched off{more}."
    return Finding(text, len(found), f"`ALTER TABLE {table} ENABLE TRIGGER {name}`.")


@check("profiler", per="mongodb", unit="", limits=Limits(2), live=True)
def profiler(facts: Facts, database: str) -> Found:
    """A profiler that writes down every operation slows each of them."""
    said = "The profiler of MongoDB is at level {}"
    remedy = "Level 2 writes every operation down: `db.setProfilingLevel(1)` keeps slow ones."
    return measured(facts.db.monitor.profiler_level(), said, remedy)


CHECKS = (
    *(answer, schema, servers.sessions, servers.blocked, vacuum_held, deadlocks, rollbacks),
    *(servers.cache, servers.replicas, servers.replication, servers.slots, wraparound, disk, log),
    *(checkpoints, dead_rows, invalid_indexes, duplicate_indexes, unused_indexes, triggers),
    *(servers.audit_coverage, profiler, archive, backup, changes),
)
