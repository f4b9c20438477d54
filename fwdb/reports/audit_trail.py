"""The report `audit_trail`: who changed what, how much, and what stands out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.charts import share
from fwdb.reports.asking import Asking, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import Kpi, Result, Status, Table
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
# An actor behind most of many deletes is worth a question, even when the pace is usual.
DELETES_BY_ONE, DELETES_LEAST = 50.0, 20
# Of a burst, the share that one user did; and the events a burst has at least (audit_bursts.sql).
BY_ONE, BURST_LEAST = 0.5, 10
# No address, no client, no values: a report may be passed on, the trail itself may not.
RECENT = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
NO_ACTIVITY = utc_frame(
    {"bucket_at": "datetime64[us, UTC]", "entity_type": "str", "action": "str", "events": "int64"}
)
NO_ROWS = utc_frame(dict.fromkeys(RECENT, "str"))
NO_TOTALS = utc_frame({"action": "str", "events": "int64", "without_actor": "int64"})
ACTORS = ["user_id", "events", "creates", "updates", "reads", "deletes", "share_percent", "last_at"]
NO_ACTORS = utc_frame({"user_id": "str", "events": "int64", "deletes": "int64"})
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
    kpis: list[Kpi] = []
    if "postgres" not in asking.down and len(totals):
        _events(asking, kpis, totals)
        if totals["events"].sum():
            _bursts(asking, kpis, bursts)
            _deletes(asking, totals, actors)
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
                "bursts",
                "What stands out",
                bursts.reset_index(drop=True),
                "Hours with far more events of a kind than are usual at that hour.",
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
                found=_named(bursts),
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
            ("Left out", "old and new values, addresses and clients: ask db.audit.history()"),
        ),
    )


def _events(asking: Asking, kpis: list[Kpi], totals: pd.DataFrame) -> None:
    events, nobody = int(totals["events"].sum()), int(totals["without_actor"].sum())
    if not events:
        kpis.append(Kpi("events", "Events", 0, "", "no_data", "postgres", "none in the window"))
        asking.add(
            "events",
            "postgres",
            "no_data",
            "Nothing was recorded in this window.",
            value=0,
            unit="count",
            action="Take a longer window, or look whether the application records at all.",
        )
        return
    asking.add(
        "events",
        "postgres",
        "ok",
        f"{figure(events)} events were recorded.",
        value=events,
        unit="count",
    )
    kpis.append(Kpi("events", "Events", events, "", "ok", "postgres", "recorded in the window"))
    for action, count in zip(totals["action"].astype(str), totals["events"], strict=True):
        note = f"{share(100 * int(count) / events)} of all"
        kpis.append(Kpi(action.lower(), action, int(count), "", "ok", "postgres", note))
    note = (
        f"{share(100 * nobody / events)} of all; work of the system, or a caller that did not say"
    )
    kpis.append(Kpi("without_actor", "Without an actor", nobody, "", "ok", "postgres", note))


def striking(bursts: pd.DataFrame) -> pd.DataFrame:
    """The bursts worth a question: deletes first, those by one user before others, by size.

    Every burst of deletes is; of the others those that one user made at least half of: many
    users at once are a busy hour, one user is a script, a mistake or a theft.
    """
    deletes = bursts["action"].astype(str) == "DELETE"
    by_one = (bursts["top_user_events"] >= BY_ONE * bursts["events"]) & bursts[
        "top_user_id"
    ].notna()
    return (
        bursts.assign(deletes=deletes, by_one=by_one.astype(bool))[(deletes | by_one).astype(bool)]
        .sort_values(
            ["deletes", "by_one", "events", "bucket_at"], ascending=[False, False, False, True]
        )
        .drop(columns="deletes")
    )


def _named(bursts: pd.DataFrame) -> charts.Burst | None:
    """The burst to name in the chart."""
    found = striking(bursts)
    if found.empty:
        return None
    first = found.iloc[0]
    return charts.Burst(
        pd.Timestamp(first["bucket_at"]),
        str(first["entity_type"]),
        str(first["action"]),
        int(first["events"]),
    )


def _bursts(asking: Asking, kpis: list[Kpi], bursts: pd.DataFrame) -> None:
    """One check for each action of which there is a striking burst; one for all without any."""
    if any(c.id == "audit_trail.bursts" for c in asking.checks):
        return
    found = striking(bursts)
    count = len(found)
    note = "far more events of a kind than are usual at that hour"
    if len(bursts) > count:
        note += f"; {figure(len(bursts) - count)} busy hours of many users not counted"
    state: Status = "ok" if not count else "warning"
    kpis.append(Kpi("bursts", "Hours that stand out", count, "", state, "postgres", note))
    if not count:
        asking.add(
            "bursts", "postgres", "ok", "No hour stands out.", value=0, unit="count", threshold=1
        )
    for action, rows in found.groupby(found["action"].astype(str), sort=True):
        first = rows.iloc[0]
        events, kind = int(first["events"]), str(first["entity_type"])
        what = f"{figure(events)} {kind} {str(action).lower()}s"
        user = first["top_user_id"]
        who = f", {figure(int(first['top_user_events']))} of them by user {str(user)[:8]}…"
        more = len(rows) - 1
        asking.add(
            f"burst_of_{str(action).lower()}s",
            "postgres",
            "critical" if action == "DELETE" and first["by_one"] else "warning",
            f"{what} in the hour from {first['bucket_at']:%Y-%m-%d %H:%M} UTC"
            + (who if first["by_one"] else "")
            + f" (usual: {figure(float(first['usual']))})"
            + (
                f", and {figure(more)} more hour{'s' if more > 1 else ''} like it." if more else "."
            ),
            value=events,
            unit="count",
            threshold=BURST_LEAST,
            action="Ask the user named in table `bursts` whether this was meant"
            + ("; deleted rows can be restored." if action == "DELETE" else "."),
        )


def _deletes(asking: Asking, totals: pd.DataFrame, actors: pd.DataFrame) -> None:
    """Whether one user is behind most of the deletes."""
    deletes = int(totals.loc[totals["action"].astype(str) == "DELETE", "events"].sum())
    known = actors.dropna(subset=["user_id"])
    if deletes < DELETES_LEAST or known.empty:
        return
    most = known.sort_values(["deletes", "user_id"], ascending=[False, True]).iloc[0]
    percent = 100 * int(most["deletes"]) / deletes
    over = percent >= DELETES_BY_ONE
    asking.add(
        "deletes_by_one",
        "postgres",
        "warning" if over else "ok",
        f"User {str(most['user_id'])[:8]}… did {share(percent)} of {figure(deletes)} deletes."
        if over
        else f"No single user did more than {share(percent)} of {figure(deletes)} deletes.",
        value=percent,
        unit="percent",
        threshold=DELETES_BY_ONE,
        action="Ask the first user of table `actors`, by deletes, whether that is expected."
        if over
        else "",
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
            f"have at least {BURST_LEAST} events of a kind and far more than the median of "
            f"the same hour on other days. When one user did {100 * BY_ONE:g} % of it or more, a "
            "burst of deletes is critical and any other a warning. Many users at once are a busy "
            "hour: a warning for deletes, else listed in the table only.",
        ),
        (
            "Deletes by one user",
            f"From {DELETES_LEAST} deletes on, one user with {DELETES_BY_ONE:g} % of them or more "
            "is a warning.",
        ),
        (
            "Users",
            "are shown by their id only. Reads are recorded where the application asks for it, so "
            "their absence proves nothing.",
        ),
    )
