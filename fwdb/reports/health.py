"""The report `health`: how are the two servers, and what changed?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts, migrating
from fwdb.charts.words import DATABASES, figure, more, plural, sentence, share
from fwdb.monitoring import cache as caches
from fwdb.monitoring import relations, replication
from fwdb.monitoring import servers as figures
from fwdb.reports import servers
from fwdb.reports.check import Finding, Found, Limits, Rule, check, measured, run
from fwdb.reports.facts import Facts
from fwdb.reports.parameters import parameter, since, until
from fwdb.reports.results import JUDGED, WORDS, Check, Kpi, Result, Shown, Status, ranked

# What stands in the matrix in place of a figure that says less.
SAID = {"reachable": "yes", "schema": "current", "vacuum_held": "no"}
ENDED = (
    "Sessions, replicas, tables and indexes are known for this moment only, and this window ended "
    "earlier."
)
DOWN = "PostgreSQL, which keeps the history, could not be asked."
TABLES = (
    Shown(
        "changes",
        "What changed in the window",
        "Settings, versions and starts, as the stored readings saw them, oldest first; each "
        "changed between the reading before and this one.",
    ),
    Shown(
        "replicas",
        "Replicas",
        "Replicas, and slots without one, with what each has still to replay.",
        "database replica slot state behind_bytes reply_age_seconds replay_lag_seconds "
        "retained_bytes reason",
    ),
    Shown(
        "tables",
        "Tables and collections",
        "The largest of each store; growth is since the first full reading of the window.",
        "database table total_bytes growth_bytes live_rows dead_rows dead_percent "
        "vacuum_age_seconds analyze_age_seconds transaction_age",
    ),
    Shown(
        "indexes",
        "Indexes",
        "Invalid, duplicate and unused ones first, then the largest. Scans are those of the "
        "primary since its counters began.",
        "table index index_bytes scans unused duplicate_of is_valid",
        frame="suspect",
    ),
    Shown(
        "holders",
        "Who holds vacuum back",
        "Transactions, slots and replicas for which the server must keep old rows.",
    ),
    Shown(
        "cache",
        "Cache by kind of access",
        "Ordinary reads apart from large scans, loads and vacuum, which are not meant to be found "
        "in memory; from PostgreSQL 16 on.",
        frame="access",
    ),
)


@dataclass(frozen=True)
class Parameters:
    """What `health` is asked with."""

    since: str = since("24h")
    until: str = until()
    top: int = parameter(20, "tables of each store, and indexes, to list", low=1, high=200)


def build(facts: Facts) -> Result:
    """The report: from the history, and, when its window ends now, from both servers."""
    monitor, top, span = facts.db.monitor, facts.parameters.top, (facts.window.since, facts.end)
    facts.reach("postgres", "mongodb")
    _now(facts)
    facts.frames["counters"] = facts.ask("facts", partial(monitor.server_facts, *span))
    facts.take("changes", partial(monitor.changes, *span), {})
    run(facts, CHECKS)
    trends = facts.take("trends", partial(monitor.trends, *span), figures.TRENDS)
    facts.take("access", partial(monitor.cache, *span), caches.COLUMNS)
    found, largest = facts["dead_rows"], ["database", "total_bytes"]
    largest = found.sort_values(largest, ascending=False, kind="stable")
    facts.frames["tables"] = largest.groupby("database", sort=False).head(top)
    # Indexes with something against them first, then by size.
    found = facts["indexes"]
    bad = found["duplicate_of"].notna() | _is(found, "is_valid", False) | _is(found, "unused", True)
    order = found.assign(bad=bad).sort_values(
        ["bad", "index_bytes"], ascending=False, kind="stable"
    )
    facts.frames["suspect"] = order.drop(columns="bad").head(2 * top)
    facts.frames["holders"] = facts["vacuum_held"].head(top)
    facts.kpis[:] = _kpis(facts)
    none = trends.attrs.get("reason") or "no reading was stored in this window"
    reason = DOWN if "postgres" in facts.down else sentence(none)
    moment = "both servers, asked when the report was made" if facts.live else ENDED
    return facts.result(
        TABLES,
        charts={
            "health": charts.health(matrix(facts.checks), source="both servers", window=facts.span),
            "trends": charts.trends(trends, **facts.edges, reason=reason),
        },
        sources=(
            ("Window", facts.bounds),
            ("Over the window", "differences of the readings that `fwdb monitor` stored"),
            ("Of this moment", moment),
            *_missing(facts),
        ),
    )


def _now(facts: Facts) -> None:
    """What is known of this moment only; empty for a window that ended earlier."""
    monitor, up, take = facts.db.monitor, facts.up, partial(facts.take, live=True)
    first = up[0] if up else "postgres"
    take("replicas", monitor.replicas, replication.COLUMNS, first)
    take("dead_rows", partial(monitor.tables, facts.window.since), relations.TABLES, first)
    take("indexes", monitor.indexes, relations.INDEXES, first)
    take("vacuum_held", monitor.vacuum_holders, "vacuum_holders")
    take("answer", lambda: monitor.health().stores, (), first)
    take("blocked", monitor.blocking, "blocking")
    take("triggers", monitor.disabled_triggers, "disabled_triggers")
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
    return {(c.id, c.database): c for c in reversed(ranked(found))}


def matrix(found: Iterable[Check]) -> pd.DataFrame:
    """A row per check and store for the chart: the worst of those with the same subject."""
    labels = {"reachable": "Reachable"} | {rule.subject: rule.label for rule in CHECKS}
    worst = _worst(found)
    rows = [
        (label, database, one.status, *_shown(subject, one))
        for subject, label in labels.items()
        for database in DATABASES
        if (one := worst.get((f"health.{subject}", database)))
    ]
    return pd.DataFrame(rows, columns=["check", "database", "status", "value", "note"])


def _shown(subject: str, check: Check) -> tuple[str, str]:
    """Its value, and beside it where the line is; beside none why there is none."""
    word, line = WORDS[check.status].lower(), check.threshold
    if check.status not in JUDGED:
        return word, check.sentence
    value = word if check.value is None else figure(check.value, check.unit)
    if check.unit == "count" and check.value == 0:
        value = "none"
    if check.status == "ok":
        value = SAID.get(subject, value)
    side = "from" if subject == "cache" else "line"
    known = line is not None and check.unit != "count"
    return value, f"{side} {figure(line, check.unit)}" if known else ""


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
        for database in DATABASES:
            one = worst.get((f"health.{subject}", database))
            if one is None and subject == "replication":  # whether there are replicas at all
                one = worst.get(("health.replicas", database))
            if one is not None:
                kpi = Kpi(f"{{}}_{subject}", label, one.value, one.unit, note=one.sentence)
                yield kpi.filled(database, one.status)


def _is(found: pd.DataFrame, column: str, value: bool) -> pd.Series[bool]:
    """Where a column is known to have this value: it is three-valued."""
    return (found[column] == value).fillna(False).astype(bool)


def _missing(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the tables could not show, and why."""
    for name, subject in (("tables", "dead_rows"), ("indexes", "indexes")):
        told: dict[str, str] = {}
        for key in ("missing", "unjudged"):
            told |= facts[subject].attrs.get(key) or {}
        for database, reason in sorted(told.items()):
            yield f"{DATABASES[database]}, {name}", sentence(reason)


ANSWER = Limits("health_timeout_ms")
_ANSWERS: dict[str, Status] = {"up": "ok", "degraded": "warning", "down": "critical"}


@check("answer", "ms", ANSWER, per="database", label="Answers", live=True, role="main")
def answer(facts: Facts, database: str) -> Found:
    """Whether a store takes work now, and how quickly it answers."""
    store = next(s for s in facts["answer"] if s.database == database)
    text = f"{DATABASES[database]} is {store.status}: {store.reason}"
    if store.status == "up":
        text = f"{DATABASES[database]} answered in {figure(store.latency_ms, 'ms')}."
    remedy, limit = "Run `fwdb health` again, and `fwdb report pool`.", facts.limit("answer")
    status = _ANSWERS[store.status]
    return Finding(sentence(text), store.latency_ms, remedy, status, limit, "ms")


@check("schema", "count", Limits(None, 1), per="database", live=True)
def schema(facts: Facts, database: str) -> Found:
    """Whether the schema of a store is that of this release."""
    postgres = facts.db.postgres if database == "postgres" else None
    found = migrating.pending(postgres, None if postgres else facts.db.mongodb)
    bad = [one for one in found if one.severity != "information"]
    if found and not bad:
        return Finding(sentence(found[0].sentence), status="not_measured")
    revision = f", revision {migrating.head()}" if postgres else ""
    text = bad[0].sentence if bad else f"The schema is that of this release{revision}"
    return Finding(sentence(text), len(bad), "Run `fwdb migrate`.")


_RELEASE = {
    "prepared transaction": "End it: `COMMIT PREPARED '{name}'` or `ROLLBACK PREPARED '{name}'`.",
    "slot": "Bring its reader back, or drop it: `SELECT pg_drop_replication_slot('{name}')`.",
    "replica": "End the long query on the replica, or set hot_standby_feedback = off there.",
    "transaction": "Let it commit, or end it: `SELECT pg_terminate_backend({pid})`.",
}


# A transaction keeps vacuum from its work; one whose age in seconds is not known, by its number.
@check(
    "vacuum_held",
    "seconds",
    Limits(300.0, 1800.0),
    label="Vacuum held back",
    live=True,
    transactions=Limits(1_000_000, unit="transactions"),
)
def vacuum_held(facts: Facts, database: str) -> Found:
    """Who keeps vacuum from removing dead rows."""
    found = facts["vacuum_held"]
    if found.empty:
        return Finding("Nothing keeps vacuum from its work.")
    first, timed = found.iloc[0], found.dropna(subset=["seconds"]).sort_values("seconds")
    worst, seconds = first, 0.0
    if len(timed):
        worst, seconds = timed.iloc[-1], float(timed["seconds"].iloc[-1])
    status: Status = facts.lines["vacuum_held"].judge(seconds)
    if status == "ok" and first["transaction_age"] >= facts.limit("vacuum_held.transactions"):
        status, worst = "warning", first
    since = f" for {figure(seconds, 'seconds')}" if seconds else ""
    holder, name = worst["holder"], str(worst["name"])
    pid = name.rpartition("process ")[2].rstrip(")")
    text = f"{holder} {name} has kept vacuum from removing dead rows{since}, "
    text += f"{figure(int(worst['transaction_age']))} transactions back"
    action = _RELEASE.get(holder, _RELEASE["transaction"]).format(name=name, pid=pid)
    return Finding(sentence(text), seconds, action, status=status)


def _counter(subject: str, name: str, said: str, action: str = "", **declared: Any) -> Rule:
    """The check of one of the figures of the server, by its lines."""
    declared = {"limits": Limits(), **declared}

    @check(subject, name.rpartition("_")[2], **declared)
    def counter(facts: Facts, database: str) -> Found:
        found = facts["counters"]
        return None if found is None else measured(found[name], said, action)

    return counter


rollbacks = _counter(
    "rollbacks",
    "rollback_percent",
    "{} of the transactions were rolled back",
    "Look for the error behind them in the log of the application.",
    limits=Limits(10.0, 50.0),
)
wraparound = _counter(
    "wraparound",
    "wraparound_percent",
    "The oldest transaction number is {} of the way to wraparound",
    "Find what holds vacuum back in table `holders`, then run `VACUUM (FREEZE)` in that database.",
    limits=Limits(50.0, 80.0),
)
# Most checkpoints should come at their time.
checkpoints = _counter(
    "checkpoints",
    "checkpoints_requested_percent",
    "{} of the checkpoints were forced by much writing",
    "Raise max_wal_size: `ALTER SYSTEM SET max_wal_size = '4GB'`, then `SELECT pg_reload_conf()`.",
    limits=Limits(50.0),
    label="Forced checkpoints",
)
log = _counter("log", "wal_bytes", "The write-ahead log takes {}", label="Write-ahead log")
archive = _counter("archive", "archive_age_seconds", "The log was last archived {} ago")


@check("deadlocks", "count", Limits(1))
def deadlocks(facts: Facts, database: str) -> Found:
    """Deadlocks in the window."""
    if (found := facts["counters"]) is None:
        return None
    said = {0: "No deadlock", 1: "1 deadlock"}.get(found["deadlocks"].value, "{} deadlocks")
    remedy = "Take locks in one order everywhere; the server's log has both statements."
    return measured(found["deadlocks"], f"{said} in the window", remedy)


@check("disk", "bytes", Limits(), label="Database size", role="main")
def disk(facts: Facts, database: str) -> Found:
    """The size of the database."""
    if (found := facts["counters"]) is None:
        return None
    growth = found["growth_bytes"].value
    side = "more" if growth and growth > 0 else "less"
    grown = f", {figure(abs(growth), 'bytes')} {side} than at the start" if growth else ""
    return measured(found["database_bytes"], f"The database takes {{}}{grown}")


@check("backup", "seconds", Limits(), per="database", label="Last base backup")
def backup(facts: Facts, database: str) -> Found:
    """When the last base backup ended."""
    if database == "mongodb":
        text = "MongoDB keeps no record of backups; ask the tool that makes them."
        return Finding(text, status="not_available") if facts.live else None
    found = facts["counters"]
    said = "The last base backup ended {} ago"
    return None if found is None else measured(found["backup_age_seconds"], said)


CHANGES_NAMED = 3  # in a sentence; the table has all


@check("changes", "count")
def changes(facts: Facts, database: str) -> Iterator[Finding]:
    """What changed in the window; none of it is a fault by itself."""
    found = facts["changes"]
    if found.attrs.get("status") != "ok" and found.empty:
        yield Finding(sentence(found.attrs.get("reason") or "no history"), status="no_data")
        return
    for store in DATABASES:
        mine = found[found["database"] == store]
        if mine.empty and store != "postgres":
            continue
        said = ", ".join(
            f"the server was started anew at {row['after']} UTC"
            if row["what"] == "start"
            else f"{row['name']} from {row['before']} to {row['after']}"
            for _, row in mine.head(CHANGES_NAMED).iterrows()
        )
        said += more(len(mine) - CHANGES_NAMED, ", and {} more in table `changes`")
        none = "No setting and no version changed, and the server was not started anew"
        text = f"Changed in the window: {said}" if said else none
        yield Finding(sentence(text), len(mine), database=store)


LIKE = "; {} more are like it"
INDEX = Limits(10_000_000, unit="bytes")  # a superfluous index must take to be worth a sentence


# Autovacuum begins at 20 percent; a small table is no matter.
@check("dead_rows", "percent", Limits(20.0), live=True, least=Limits(10_000, unit="rows"))
def dead_rows(facts: Facts, database: str) -> Found:
    """Tables full of rows that nobody needs."""
    found, percent, least = facts["dead_rows"], *map(facts.limit, ("dead_rows", "dead_rows.least"))
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
    others = more(len(bad) - 1, "; {} more tables are like it")
    return Finding(
        f"{share(value)} of the row versions in {worst['table']} are dead: "
        f"{figure(int(worst['dead_rows']))}{others}.",
        value,
        f"`VACUUM (ANALYZE) {worst['table']}`; if it comes back, lower "
        "autovacuum_vacuum_scale_factor for this table.",
    )


def _bad_index(bad: pd.DataFrame, fault: str, fine: str, remedy: str) -> Finding:
    """Of indexes with something against them the first; it is dropped, and `remedy` says more."""
    if bad.empty:
        return Finding(sentence(fine), 0)
    row = bad.iloc[0]
    schema, dot, _ = str(row["table"]).partition(".")
    name = f"{schema}{dot}{row['index']}" if row["database"] == "postgres" else row["index"]
    size = figure(row["index_bytes"], "bytes")
    text = f"Index {row['index']} of {row['table']} ({size}) {fault}{more(len(bad) - 1, LIKE)}."
    action = f"`DROP INDEX CONCURRENTLY {name}`{remedy.format(row['duplicate_of'])}"
    return Finding(text, len(bad), action)


@check("invalid_indexes", "count", Limits(1), per="database", live=True)
def invalid_indexes(facts: Facts, database: str) -> Found:
    """Indexes that could not be built."""
    found = facts["indexes"]
    mine = found[found["database"] == database]
    if mine.empty:
        return None
    bad = mine[_is(mine, "is_valid", False)]
    fault = "is not valid: it costs writes and answers nothing"
    return _bad_index(bad, fault, "no index is invalid", ", and make it again.")


@check("duplicate_indexes", "count", Limits(1), live=True, size=INDEX)
def duplicate_indexes(facts: Facts, database: str) -> Found:
    """Indexes that serve what another serves too."""
    found, least = facts["indexes"], facts.limit("duplicate_indexes.size")
    mine = found[found["database"] == database]
    if mine.empty:
        return None
    bad = mine[mine["duplicate_of"].notna() & (mine["index_bytes"] >= least)]
    fault = "answers nothing that another index does not"
    fine = f"no index of {figure(least, 'bytes')} and more is a duplicate"
    return _bad_index(bad, fault, fine, ": {} serves the same questions.")


@check("unused_indexes", "count", Limits(1), per="database", live=True, size=INDEX)
def unused_indexes(facts: Facts, database: str) -> Found:
    """Indexes that nothing asked, where this server can tell."""
    found, least = facts["indexes"], facts.limit("unused_indexes.size")
    mine = found[found["database"] == database]
    reason = (found.attrs.get("unjudged") or {}).get(database)
    if mine.empty or (database == "mongodb" and not reason):
        return None
    bad = mine[_is(mine, "unused", True) & (mine["index_bytes"] >= least)]
    if database == "mongodb" or (reason and bad.empty):
        status: Status = "not_available" if database == "mongodb" else "no_data"
        return Finding(sentence(reason), status=status)
    fault = "was not used since its counters began"
    fine = f"no index of {figure(least, 'bytes')} and more is unused"
    return _bad_index(bad, fault, fine, ", if no yearly job needs it.")


@check("triggers", "count", Limits(1), label="Triggers off", live=True)
def triggers(facts: Facts, database: str) -> Found:
    """Triggers that somebody switched off and forgot."""
    found = facts["triggers"]
    if found.empty:
        return Finding("No trigger is switched off.", 0)
    table, name = found[["table_name", "trigger_name"]].iloc[0]
    text = f"Trigger {name} of {table} is switched off{more(len(found) - 1, ', and {} more')}."
    return Finding(text, len(found), f"`ALTER TABLE {table} ENABLE TRIGGER {name}`.")


@check("profiler", limits=Limits(2), per="mongodb", live=True)
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
