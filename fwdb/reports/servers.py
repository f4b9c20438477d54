"""Checks that stand in more than one report: sessions, locks, caches, and what the trail lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from fwdb.audit.coverage import Standing, as_frame
from fwdb.charts.words import DATABASES, figure, more, plural, quoted, sentence, share
from fwdb.models import COLLECTIONS
from fwdb.monitoring import replication as standby
from fwdb.reports.check import Finding, Found, Limits, check, key_figure, measured
from fwdb.reports.facts import Facts
from fwdb.reports.results import JUDGED, Kpi, Status

NAMED = 2  # of what is not covered, in a sentence; `fwdb audit coverage` has all
COLUMNS = ["status", "database", "kind", "object", "sentence", "remedy"]


SESSIONS = Limits(75.0, 90.0)  # percent of what the server, or another limit, allows
_SESSIONS_REMEDY = {
    "pool": "Close what idles on {}; see table `sessions`.",
    "health": "See who holds them: `fwdb report pool`.",
}


@check("sessions", "percent", SESSIONS, per="database", live=True)
def sessions(facts: Facts, database: str) -> Found:
    """How full a server is, from its `session_limit` and the `taken` sessions of the facts."""
    limit, taken = facts["session_limit"].get(database), facts["taken"].get(database)
    if limit is None or taken is None:
        return None
    if limit.value is None:
        found = replace(measured(limit), unit="percent")
        return found if facts.report == "health" else None
    name, percent, most = DATABASES[database], 100 * taken / limit.value, figure(limit.value)
    note = f"of {most} that applications may open, this moment"
    return Finding(
        f"{figure(taken)} of {most} sessions of {name} are taken, {share(percent)}.",
        percent,
        _SESSIONS_REMEDY[facts.report].format(name),
        kpis=(Kpi("{}_sessions", "Sessions of {}", taken, note=note),),
    )


# PostgreSQL itself looks into a wait for a lock after deadlock_timeout, 1 s unless changed.
@check("blocked", "count", label="Blocked sessions", live=True, seconds=Limits(1, 30, "seconds"))
def blocked(facts: Facts, database: str) -> Found:
    """Who waits for a lock, and the session at the root of it."""
    tree = facts["blocked"]
    if tree.empty:
        return Finding("No session waits for a lock of another.", 0, threshold=None)
    longest = float(tree["waited_seconds"].max())
    root = tree.groupby("root_pid").size().idxmax()
    mine = tree[tree["root_pid"] == root]
    row, waiting = mine.iloc[0], plural(len(mine), "session waits", "sessions wait")
    ended = f"the longest wait is {figure(longest, 'seconds')}"
    status = facts.lines["blocked.seconds"].judge(longest)
    if pd.isna(row["root_state"]):
        text = f"{waiting} for a prepared transaction; {ended}."
    else:
        since = figure(float(row["root_state_seconds"]), "seconds")
        who = client(row["root_application"], row["root_user_name"])
        others = more(len(tree) - len(mine), ", and {} wait for others")
        text = f"{waiting} for session {root} of {who}, {row['root_state']} for {since}; "
        text += f"{ended}{others}."
    action = f"End the root of the tree: `SELECT pg_terminate_backend({root})`."
    if not root:
        action = "See pg_prepared_xacts, and COMMIT PREPARED or ROLLBACK PREPARED what was "
        action += "forgotten."
    return Finding(text, len(tree), action, status=status, threshold=1)


def client(application: object, user: object) -> str:
    """A session by the name of its program, or else of its role."""
    name = "" if pd.isna(application) else str(application)  # type: ignore[call-overload]
    return name or f"the role {user}"


_MEMORY = {"postgres": " (shared_buffers)", "mongodb": " (storage.wiredTiger.engineConfig)"}
CACHE = Limits("cache_good_ratio", "cache_alert_ratio", low=True)


@check("cache", "ratio", CACHE, per="database", label="Cache hit ratio")
def cache(facts: Facts, database: str) -> Found:
    """What was found in memory, of all that was asked for in the window."""
    ratio = facts.db.monitor.cache_hit_ratio(database, facts.window.since, facts.end)
    name, kpis = DATABASES[database], (key_figure(ratio, "{}_cache", "Cache hit ratio, {}"),)
    if ratio.value is None:
        return replace(measured(ratio), kpis=kpis)
    # Cut, not rounded: 99.96 % is not all of them.
    percent = f"{math.floor(1000 * ratio.value) / 10:g}"
    if facts.report == "health":
        text = f"{percent} % of the blocks {name} wanted were in its cache ({ratio.reason})."
        action = "See what reads much in `fwdb report slow_queries`, table `load`, before giving "
        action += f"{name} memory."
    else:
        well = facts.lines["cache"].judge(ratio.value) == "ok"
        reader = "" if well else _reader(facts["statements"], database)
        text = f"{percent} % of the pages {name} wanted were in its cache{reader}."
        action = "Look whether an index spares what statements read (table `load` with "
        action += f"`-p order=io`) before giving {name} memory{_MEMORY[database]}."
    return Finding(text, ratio.value, action, kpis=kpis)


def _reader(statements: pd.DataFrame, database: str) -> str:
    """The statement that read most from outside of the cache; empty where no counter tells."""
    mine = statements[statements["database"].astype(str) == database]
    if "read_blocks" not in mine or not (total := int(mine["read_blocks"].fillna(0).sum())):
        return ""
    worst = mine.sort_values(["read_blocks", "query_id"], na_position="first").iloc[-1]
    part = share(100 * int(worst["read_blocks"]) / total)
    return f"; {quoted(worst['statement'])} read {part} of the others"


LAG = Limits("lag_target_seconds", "lag_alert_seconds")
BEHIND = Limits("lag_warning_bytes", "lag_critical_bytes", unit="bytes")
SILENT = Limits("reply_warning_seconds", "reply_critical_seconds", unit="seconds")


@check("replicas", "count", per="database", live=True)
def replicas(facts: Facts, database: str) -> Found:
    """Whether the replicas are there that should be."""
    found = facts["replicas"]
    lost, missing = (found.attrs.get(key) or {} for key in ("lost", "missing"))
    mine = found[found["database"] == database]
    away = mine[mine["status"] == "not_available"]
    count = len(mine) - len(away)
    expected = facts.settings.thresholds.expected_replicas if database == "postgres" else None
    # Of PostgreSQL `lost` counts; a slot for logical readers is no replica.
    told = away if database == "mongodb" else away[away["is_self"].astype(bool)]
    reasons = "; ".join(
        str(row["reason"]) if row["is_self"] else f"{row['replica']}: {row['reason']}"
        for _, row in told.iterrows()
    )
    if text := lost.get(database) or reasons:
        slots = away["slot"].dropna().astype(str).tolist()
        action = "Start the replica again, and look at its log."
        if slots:
            action = "Start the replica again, or drop its slot for good: `SELECT "
            action += f"pg_drop_replication_slot('{slots[0]}')`."
        return Finding(sentence(text), count, action, status="critical", threshold=expected)
    if database in missing:
        none = missing[database] in standby.NONE
        status: Status = "not_applicable" if none else "not_available"
        return Finding(sentence(missing[database]), status=status)
    if not count:
        return None
    text = f"{plural(count, 'replica is', 'replicas are')} connected."
    return Finding(text, count, threshold=expected)


@check("replication", "seconds", LAG, per="database", live=True, behind=BEHIND, silent=SILENT)
def replication(facts: Facts, database: str) -> Found:
    """How far replicas are behind: each, where the `replicas` are known, else the slowest."""
    if "replicas" in facts.frames:
        found = facts["replicas"]
        mine = found[(found["database"] == database) & (found["status"] != "not_available")]
        return [_replica(facts, row) for _, row in mine.iterrows()]
    slowest = facts.db.monitor.replication_lag(database)
    said = f"The slowest replica of {DATABASES[database]} is {{}} behind"
    remedy = "Look at the replica's disk and network, and at long queries."
    alone = slowest if slowest.value is None else replace(slowest, reason="")
    finding = measured(alone, said, remedy)
    return replace(finding, kpis=(key_figure(slowest, "{}_lag", "Replication lag, {}"),))


_PAUSED = (
    "On the replica look whether replay is paused (`SELECT pg_is_wal_replay_paused()`, `SELECT "
    "pg_wal_replay_resume()`), then at its disk, its network and its long queries."
)


def _replica(facts: Facts, row: pd.Series[Any]) -> Finding:
    """One replica by its three numbers, the worst of which decides."""
    if row["status"] != "ok":
        return Finding(sentence(row["reason"]), status=row["status"])
    behind, silent, lag = (
        None if pd.isna(row[n]) else float(row[n])
        for n in ("behind_bytes", "reply_age_seconds", "replay_lag_seconds")
    )
    # The last measured lag says nothing once all is replayed.
    lag = 0.0 if lag is None or behind == 0 else lag
    numbers = (
        ("replication.behind", behind, "{} behind"),
        ("replication", lag, "{} late"),
        ("replication.silent", silent, "last heard {} ago"),
    )
    known = [(facts.lines[key], n, text) for key, n, text in numbers if n is not None]
    status = max((line.judge(n) for line, n, _ in known), key=JUDGED.index)
    said = ", ".join(text.format(figure(n, line.unit)) for line, n, text in known)
    name = "This server" if bool(row["is_self"]) else f"Replica {row['replica']}"
    return Finding(f"{name} is {said}.", lag, _PAUSED, status=status)


SLOTS = Limits("lag_critical_bytes", times=16)


@check("slots", "bytes", SLOTS, label="Log kept for slots", live=True)
def slots(facts: Facts, database: str) -> Found:
    """Log that slots keep, which a full disk is made of."""
    found = facts["replicas"]
    kept = found[(found["database"] == "postgres") & found["retained_bytes"].notna()]
    if kept.empty:
        return Finding("There is no replication slot.", status="not_applicable")
    worst = kept.sort_values("retained_bytes").iloc[-1]
    size, reader = int(worst["retained_bytes"]), "a" if pd.notna(worst["replica"]) else "no"
    return Finding(
        f"Slot {worst['slot']}, which {reader} replica uses, keeps {figure(size, 'bytes')} of log.",
        size,
        f"Bring its reader back, or `SELECT pg_drop_replication_slot('{worst['slot']}')`; "
        "max_slot_wal_keep_size bounds it.",
        threshold=facts.limit("slots"),
    )


_DOCUMENTS = " and ".join(COLLECTIONS)
_UNCAPTURED = {
    "postgres": ("Changes in PostgreSQL", "Run `fwdb migrate`."),
    "mongodb": (f"Changes of {_DOCUMENTS}", "Run `fwdb audit follow`, and keep it running."),
}


def standings(facts: Facts, subject: str) -> dict[str, Standing]:
    """How far the changes of each store are captured, as far as the trail can tell.

    Of MongoDB also whether they can be followed at all, where this report asks it too.
    """
    audit, found = facts.db.audit, {}
    if standing := facts.ask(subject, audit.standing):
        found["postgres"] = standing
    if standing := facts.ask(subject, audit.following_standing):
        images = None
        if "mongodb" in facts.up:
            images = facts.ask(subject, audit.images, None, "mongodb")
        found["mongodb"] = standing if images is None else standing.with_also(images)
    return found


def _covered(facts: Facts, off: Status) -> Iterator[Finding]:
    for database, standing in facts["standings"].items():
        what, remedy = _UNCAPTURED[database]
        if not standing.is_on:
            said = f"{what} leave a trace only where a program records them itself."
            yield Finding(said, action=remedy, status=off, database=database)
            continue
        bad = [f for f in standing.findings if f.status in ("uncovered", "behind")]
        covered = sum(f.status == "covered" for f in standing.findings)
        text = " ".join(f.sentence for f in bad[:NAMED])
        text += more(len(bad) - NAMED, " And {} more, see `fwdb audit coverage`.")
        text = text or f"{what} are captured, {plural(covered, 'thing')} looked at."
        yield Finding(text, len(bad), bad[0].remedy if bad else "", database=database)


@check("audit_coverage", "count", Limits(1), label="Not in the audit trail", live=True)
def audit_coverage(facts: Facts, database: str) -> Found:
    """Whether the trail captures everything; a capture that is off is no fault of the servers."""
    return _covered(facts, "not_measured")


@check("coverage", "count", Limits(1))
def coverage(facts: Facts, database: str) -> Found:
    """Whether the trail captures everything."""
    return _covered(facts, "warning")


@check("gaps", "count", Limits(1))
def gaps(facts: Facts, database: str) -> Found:
    """Times in the window of which changes of MongoDB were missed."""
    standing, window = facts["standings"].get("mongodb"), facts.window
    if standing is None or standing.gaps is None:
        return None
    inside = [
        until
        for since, until in standing.gaps
        if until >= window.since and (since is None or since < window.until)
    ]
    text = f"There is no time of which changes of {_DOCUMENTS} were missed."
    if inside:
        ends = ", ".join(f"{until:%Y-%m-%d %H:%M}" for until in inside[:NAMED])
        text = f"There are {plural(len(inside), 'time')} of which not each change of "
        text += f"{_DOCUMENTS} was seen, up to {ends} UTC."
    remedy = "Nothing brings them back; table `not_covered` has the reasons."
    return Finding(text, len(inside), remedy, database="mongodb")


def not_covered(found: Iterable[Standing]) -> pd.DataFrame:
    """What is not covered, and what is left out on purpose, gravest first."""
    frame = as_frame(finding for standing in found for finding in standing.findings)
    return frame.loc[frame["status"] != "covered", COLUMNS].reset_index(drop=True)


@check("archived")
def archived(facts: Facts, database: str) -> Found:
    """That a part of the window is in archives, which a report does not read."""
    since: Any = facts.db.audit.complete_since()
    if since is None or facts.window.since >= since:
        return None
    return Finding(
        f"Rows of before {since:%Y-%m-%d} are in archived months, and not in this report.",
        action="Ask `db.audit.with_archives()` for these, or `fwdb audit trail --archives`.",
        status="not_available",
    )
