"""The report `audit_trail`: who changed what, how much, and what stands out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.reports import coverage_checks, trail_checks
from fwdb.reports.asking import Asking, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import Kpi, Result, Table
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database

# Longest window for each size of bar: at most about 200 bars are drawn.
BUCKETS = (
    (timedelta(hours=2), "minute"),
    (timedelta(days=8), "hour"),
    (timedelta(days=120), "day"),
    (timedelta(days=800), "week"),
)
# No address, no client, no values: a report may be passed on, the trail itself may not.
RECENT = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
NO_ACTIVITY = utc_frame(
    {"bucket_at": "datetime64[us, UTC]", "entity_type": "str", "action": "str", "events": "int64"}
)
NO_ROWS = utc_frame(dict.fromkeys(RECENT, "str"))
NO_TOTALS = utc_frame({"action": "str", "events": "int64", "without_actor": "int64"})
ACTORS = ["user_id", "events", "creates", "updates", "reads", "deletes", "share_percent", "last_at"]
NO_ACTORS = utc_frame({"user_id": "str", "events": "int64", "deletes": "int64"})
UNUSUAL = ("started_at", "kind", "events", "usual", "sentence")
NO_UNCLAIMED = utc_frame({"db_user": "str", "changes": "int64"})
NO_BURSTS = utc_frame(
    {
        "bucket_at": "datetime64[us, UTC]",
        "entity_type": "str",
        "action": "str",
        "events": "int64",
        "usual": "float64",
        "top_user_id": "str",
        "top_user_events": "int64",
    }
)


def build(db: Database, window: Window, parameters: Mapping[str, Value]) -> Result:
    """The report over `window`, filtered as `parameters` say."""
    asking = Asking("audit_trail", db)
    asking.reach("postgres")
    top = int(parameters["top"] or 20)
    bucket = next((n for most, n in BUCKETS if window.until - window.since <= most), "month")
    chosen: dict[str, Any] = {
        name: parameters[name] for name in ("entity_type", "user_id", "action") if parameters[name]
    }
    asked: dict[str, Any] = {"since": window.since, "until": window.until, **chosen}
    audit = db.audit
    totals = asking.ask("events", "postgres", lambda: audit.totals(**asked), NO_TOTALS)
    activity = asking.ask(
        "activity", "postgres", lambda: audit.activity(bucket=bucket, **asked), NO_ACTIVITY
    )
    actors = asking.ask("actors", "postgres", lambda: audit.actors(top=top, **asked), NO_ACTORS)
    bursts = asking.ask("bursts", "postgres", lambda: audit.bursts(**asked), NO_BURSTS)
    recent = asking.ask("recent", "postgres", lambda: audit.search(limit=top, **asked), NO_ROWS)
    unclaimed = NO_UNCLAIMED
    if "user_id" not in chosen:
        unclaimed = asking.ask(
            "unclaimed", "postgres", lambda: audit.unclaimed(top=top, **asked), NO_UNCLAIMED
        )
    kpis: list[Kpi] = []
    unusual = trail_checks.NOTHING_UNUSUAL
    if "postgres" not in asking.down and len(totals):
        trail_checks.events(asking, kpis, totals)
        if totals["events"].sum():
            trail_checks.hours(asking, kpis, bursts)
            unusual = trail_checks.unusual(asking, window, chosen)
            trail_checks.deletes(asking, totals, actors)
    found, sealed = coverage_checks.NOTHING, trail_checks.Integrity(trail_checks.facts([]))
    if "postgres" not in asking.down:
        lacking = coverage_checks.coverage(asking, "coverage", off="warning", window=window)
        found = coverage_checks.table(lacking)
        trail_checks.archived(asking, window)
        sealed = trail_checks.integrity(asking, kpis, window)
    filters = ", ".join(f"{k} {v}" for k, v in chosen.items())
    source = "audit.audit_logs" + (f", {filters}" if filters else "")
    reason = (
        "PostgreSQL, which keeps the trail, could not be asked."
        if "postgres" in asking.down
        else "Nothing that matches was recorded in this window."
    )
    since, until = pd.Timestamp(window.since), pd.Timestamp(window.until)
    return Result(
        report="audit_trail",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(kpis),
        tables=(
            Table(
                "actors",
                "Who did most",
                actors[[c for c in ACTORS if c in actors]].reset_index(drop=True),
                "Acting users by number of events; a row without a user is work of the system.",
            ),
            Table(
                "unusual",
                "What is unusual",
                unusual,
                "Each with the figure that makes it odd; the weeks before the window say what is "
                "usual.",
                UNUSUAL,
            ),
            Table(
                "bursts",
                "Hours that stand out",
                bursts.reset_index(drop=True),
                "Hours with far more events of a kind than are usual at that hour.",
            ),
            Table(
                "not_covered",
                "What is not covered",
                found,
                "Things whose changes do not get into the trail, or late, and what is left out of "
                "it on purpose; now, whatever the window.",
            ),
            Table(
                "integrity",
                "Is it intact?",
                sealed.facts,
                "What the seals say of the whole trail, whatever the window.",
            ),
            Table(
                "unclaimed",
                "Changes without an actor",
                unclaimed.reset_index(drop=True),
                "Nobody said who made them; what the server knew of the session.",
            ),
            Table(
                "recent",
                "Latest events",
                recent[[c for c in RECENT if c in recent]].reset_index(drop=True),
                "The latest events of the window, newest first.",
            ),
            Table(
                "activity",
                f"Events by {bucket}",
                activity.reset_index(drop=True),
                f"Events per {bucket}, kind of entity and action.",
            ),
        ),
        charts={
            "audit_trail": charts.audit_trail(
                activity,
                since=since,
                until=until,
                bucket=bucket,
                found=trail_checks.named(bursts),
                source=source,
                reason=reason,
            ),
            "audit_matrix": charts.audit_matrix(
                activity, source=source, window=charts.window_text(since, until), reason=reason
            ),
        },
        how_to_read=_how_to_read(),
        sources=(
            ("Window", f"{iso(window.since)} to {iso(window.until)}, the end not included"),
            ("Filter", filters or "none: every entity, user and action"),
            ("Events", f"audit.audit_logs, {figure(int(totals['events'].sum()))} rows counted"),
            (
                "Seal",
                f"head {sealed.head}; a copy of this page kept elsewhere proves what was sealed"
                if sealed.head
                else "none: nothing on this page proves that rows were not changed",
            ),
            ("Left out", "old and new values, addresses and clients: ask db.audit.history()"),
        ),
    )


def _how_to_read() -> tuple[tuple[str, str], ...]:
    return (
        (
            "An event",
            "is one row of the trail: who created, changed, deleted or read which entity, when. It "
            "is written in the transaction of the change, so what was rolled back is not here.",
        ),
        (
            "Hours that stand out",
            f"have at least {trail_checks.BURST_LEAST} events of a kind and far more than the "
            "median of the same hour on other days. When one user did "
            f"{100 * trail_checks.BY_ONE:g} % of it or more, a burst of deletes is critical and "
            "any other a warning. Many users at once are a busy hour: a warning for deletes, else "
            "listed in the table only.",
        ),
        (
            "Deletes by one user",
            f"From {trail_checks.DELETES_LEAST} deletes on, one user with "
            f"{trail_checks.DELETES_BY_ONE:g} % of them or more is a warning.",
        ),
        (
            "What is not covered",
            "leaves a trace only where a program records it itself. `fwdb audit coverage` has all "
            "that is, too.",
        ),
        (
            "Intact",
            "means that every sealed row is there and as it was sealed. Without a key whoever owns "
            "the database could have sealed it anew; a kept copy of the head shows that.",
        ),
        (
            "Users",
            "are shown by their id only. Reads are recorded where the application asks for it, so "
            "their absence proves nothing.",
        ),
    )
