"""The report `audit_trail`: who changed what, how much, and what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.charts.words import figure, more, plural, share
from fwdb.models import ENTITIES
from fwdb.reports import servers
from fwdb.reports.check import Finding, Found, Limits, Rule, check, run
from fwdb.reports.facts import Facts, empty
from fwdb.reports.parameters import parameter, since, until
from fwdb.reports.results import Kpi, Result, Shown, Status

# Longest window for each size of bar: at most about 200 bars are drawn.
BUCKETS = (
    (timedelta(hours=2), "minute"),
    (timedelta(days=8), "hour"),
    (timedelta(days=120), "day"),
    (timedelta(days=800), "week"),
    (timedelta.max, "month"),
)
# No address, no client, no values: a report may be passed on, the trail itself may not.
RECENT = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
ACTORS = ["user_id", "events", "creates", "updates", "reads", "deletes", "share_percent", "last_at"]
# Of what is unusual, what looks like a forged name or a loss; the rest is for the table.
GRAVE = ("unknown_actor", "other_login", "mass_delete")
ACTIONS = ("CREATE", "UPDATE", "DELETE", "READ")
BURST_LEAST = 10  # events a burst has at least (audit_bursts.sql)
FILTERS = ("entity_type", "user_id", "action")
TABLES = (
    Shown(
        "actors",
        "Who did most",
        "Acting users by number of events; a row without a user is work of the system.",
    ),
    Shown(
        "unusual",
        "What is unusual",
        "Each with the figure that makes it odd; the weeks before the window say what is usual.",
        "started_at kind events usual sentence",
    ),
    Shown(
        "bursts",
        "Hours that stand out",
        "Hours with far more events of a kind than are usual at that hour.",
    ),
    Shown(
        "not_covered",
        "What is not covered",
        "Things whose changes do not get into the trail, or late, and what is left out of it on "
        "purpose; now, whatever the window.",
    ),
    Shown(
        "integrity",
        "Is it intact?",
        "What the seals say of the whole trail, whatever the window.",
    ),
    Shown(
        "unclaimed",
        "Changes without an actor",
        "Nobody said who made them; what the server knew of the session.",
    ),
    Shown("recent", "Latest events", "The latest events of the window, newest first."),
    Shown("activity", "Events by {bucket}", "Events per {bucket}, kind of entity and action."),
)


@dataclass(frozen=True)
class Parameters:
    """What `audit_trail` is asked with."""

    since: str = since("7d")
    until: str = until()
    entity_type: str | None = parameter(None, "only this kind of entity", choices=ENTITIES)
    user_id: str | None = parameter(
        None, "only what this user did: the UUID of an account", form="uuid"
    )
    action: str | None = parameter(None, "only this action", choices=ACTIONS)
    top: int = parameter(20, "rows in the tables of users and of latest events", low=1, high=1000)


def build(facts: Facts) -> Result:
    """The report, filtered as its parameters say."""
    window, down = facts.window, "PostgreSQL, which keeps the trail, could not be asked."
    facts.reach("postgres")
    given = {name: getattr(facts.parameters, name) for name in FILTERS}
    chosen = {name: value for name, value in given.items() if value}
    bucket = next(n for most, n in BUCKETS if window.until - window.since <= most)
    facts.frames |= {"bucket": bucket, "head": None, "integrity": []}
    _ask(facts, chosen, bucket)
    if "postgres" not in facts.down:
        run(facts, CHECKS)
    activity, head, events = facts["activity"], facts["head"], int(facts["events"]["events"].sum())
    facts.frames |= {
        "actors": facts["actors"][ACTORS],
        "recent": facts["recent"][RECENT],
        "not_covered": servers.not_covered(facts["standings"].values()),
        "integrity": pd.DataFrame(facts["integrity"], columns=["fact", "value"], dtype="str"),
    }
    filters = ", ".join(f"{k} {v}" for k, v in chosen.items())
    drawn: dict[str, Any] = {
        "source": "audit.audit_logs" + (f", {filters}" if filters else ""),
        "reason": down if facts.down else "Nothing that matches was recorded in this window.",
    }
    none = "none: nothing on this page proves that rows were not changed"
    proof = f"head {head}; a copy of this page kept elsewhere proves what was sealed"
    return facts.result(
        TABLES,
        charts={
            "audit_trail": charts.audit_trail(
                activity,
                bucket=bucket,
                found=named(facts["bursts"], facts.limit("bursts.by_one")),
                **facts.edges,
                **drawn,
            ),
            "audit_matrix": charts.audit_matrix(activity, window=facts.span, **drawn),
        },
        sources=(
            ("Window", f"{facts.bounds}, the end not included"),
            ("Filter", filters or "none: every entity, user and action"),
            ("Events", f"audit.audit_logs, {figure(events)} rows counted"),
            ("Seal", proof if head else none),
            ("Left out", "old and new values, addresses and clients: ask db.audit.history()"),
        ),
    )


def _ask(facts: Facts, chosen: dict[str, Any], bucket: str) -> None:
    """All questions but those of the checks alone."""
    audit, top = facts.db.audit, facts.parameters.top
    span: dict[str, Any] = {"since": facts.window.since, "until": facts.window.until}
    for name, question, given, query in (
        ("events", audit.totals, {}, "audit_totals"),
        ("activity", audit.activity, {"bucket": bucket}, "audit_activity"),
        ("actors", audit.actors, {"top": top}, "audit_actors"),
        ("bursts", audit.bursts, {}, "audit_bursts"),
        ("recent", audit.search, {"limit": top}, "audit_search"),
    ):
        facts.take(name, partial(question, **span, **chosen, **given), query)
    # With one user asked for there is nothing that nobody claims.
    nobody = audit.unclaimed if "user_id" not in chosen else lambda **_: empty("audit_unclaimed")
    facts.take("unclaimed", partial(nobody, top=top, **span, **chosen), "audit_unclaimed")
    unusual = empty(dict.fromkeys(("kind", "user_id", "sentence"), "str"))
    if facts["events"]["events"].sum():
        unusual = facts.ask("unusual", partial(audit.anomalies, **span), unusual)
    for column in chosen.keys() & set(unusual):  # one about no single entity fits no entity
        unusual = unusual[unusual[column] == chosen[column]]
    grave = unusual["kind"].isin(GRAVE)
    facts.frames["unusual"] = pd.concat([unusual[grave], unusual[~grave]])
    down = "postgres" in facts.down
    facts.frames["standings"] = {} if down else servers.standings(facts, "coverage")


@check("events", "count", role="news")
def events(facts: Facts, database: str) -> Found:
    """How many events there are, and of which actions."""
    totals = facts["events"]
    events, nobody = int(totals["events"].sum()), int(totals["without_actor"].sum())
    if not len(totals):
        return None
    if not events:
        kpi = Kpi("events", "Events", 0, note="none in the window")
        text = "Nothing was recorded in this window."
        action = "Take a longer window, or look whether the application records at all."
        return Finding(text, 0, action, "no_data", kpis=(kpi,))
    kpis = [Kpi("events", "Events", events, note="recorded in the window")]
    for action, count in zip(totals["action"].astype(str), totals["events"], strict=True):
        note = f"{share(100 * int(count) / events)} of all"
        kpis.append(Kpi(action.lower(), action, int(count), note=note))
    note = f"{share(100 * nobody / events)} of all; work of the system, or a caller that did not "
    kpis.append(Kpi("without_actor", "Without an actor", nobody, note=f"{note}say"))
    return Finding(f"{figure(events)} events were recorded.", events, kpis=tuple(kpis))


def striking(bursts: pd.DataFrame, by_one_percent: float) -> pd.DataFrame:
    """The bursts worth a question: deletes first, those by one user before others, by size.

    Every burst of deletes is; of the others those that one user made at least half of: many
    users at once are a busy hour, one user is a script, a mistake or a theft.
    """
    deletes = bursts["action"].astype(str) == "DELETE"
    most = 100 * bursts["top_user_events"] >= by_one_percent * bursts["events"]
    by_one = (most & bursts["top_user_id"].notna()).astype(bool)
    found = bursts.assign(deletes=deletes, by_one=by_one)[(deletes | by_one).astype(bool)]
    order = ["deletes", "by_one", "events", "bucket_at"]
    return found.sort_values(order, ascending=[False, False, False, True]).drop(columns="deletes")


def named(bursts: pd.DataFrame, by_one_percent: float) -> charts.Burst | None:
    """The burst to name in the chart."""
    for _, first in striking(bursts, by_one_percent).head(1).iterrows():
        kind, action = str(first["entity_type"]), str(first["action"])
        return charts.Burst(pd.Timestamp(first["bucket_at"]), kind, action, int(first["events"]))
    return None


# Of a burst, the share that one user did; the events that it has at least are audit_bursts.sql's.
@check("bursts", "count", Limits(1), by_one=Limits(50, unit="percent"))
def bursts(facts: Facts, database: str) -> Found:
    """Whether any hour stands out; those that do are the checks `burst_of_…`."""
    if not facts["events"]["events"].sum():
        return None
    every = facts["bursts"]
    count = len(striking(every, facts.limit("bursts.by_one")))
    note = "far more events of a kind than are usual at that hour"
    note += more(len(every) - count, "; {} busy hours of many users not counted")
    kpi = Kpi("bursts", "Hours that stand out", count, note=note)
    if not count:
        return Finding("No hour stands out.", 0, kpis=(kpi,))
    facts.kpis.append(kpi.filled(database, "warning"))
    return None


def _burst(action: str) -> Rule:
    """The check of hours with far more events of an action than usual."""

    @check(f"burst_of_{action.lower()}s", "count")
    def burst(facts: Facts, database: str) -> Found:
        if facts.refused("bursts", "postgres") or not facts["events"]["events"].sum():
            return None
        found = striking(facts["bursts"], facts.limit("bursts.by_one"))
        rows = found[found["action"].astype(str) == action]
        if rows.empty:
            return None
        first, others = rows.iloc[0], len(rows) - 1
        count, user = int(first["events"]), str(first["top_user_id"])[:8]
        who = f", {figure(int(first['top_user_events']))} of them by user {user}…"
        like = f", and {plural(others, 'more hour')} like it" if others else ""
        deletes = action == "DELETE"
        end = "; deleted rows can be restored." if deletes else "."
        return Finding(
            f"{figure(count)} {first['entity_type']} {action.lower()}s in the hour from "
            f"{first['bucket_at']:%Y-%m-%d %H:%M} UTC{who if first['by_one'] else ''} (usual: "
            f"{figure(float(first['usual']))}){like}.",
            count,
            f"Ask the user named in table `bursts` whether this was meant{end}",
            status="critical" if deletes and first["by_one"] else "warning",
            threshold=BURST_LEAST,
        )

    return burst


@check("unusual", "count", Limits(1))
def unusual(facts: Facts, database: str) -> Found:
    """What somebody must be asked about."""
    if not facts["events"]["events"].sum():
        return None
    found = facts["unusual"]
    count = int(found["kind"].isin(GRAVE).sum())
    if not count:
        text = "Nobody wrote in another's name, without an account or by mass deletion; "
        return Finding(f"{text}{figure(len(found))} things are unusual otherwise.", 0)
    first = str(found["sentence"].iloc[0])
    text = f"{first[:1].upper()}{first[1:]}{more(count - 1, ' And {} more like it.')}"
    remedy = "Ask who is named in table `unusual` whether this was meant."
    return Finding(text, count, remedy)


# An actor behind most of many deletes is worth a question, even when the pace is usual.
@check("deletes_by_one", "percent", Limits(50.0), least=Limits(20, unit="deletes"))
def deletes_by_one(facts: Facts, database: str) -> Found:
    """Whether one user is behind most of the deletes."""
    totals, known = facts["events"], facts["actors"].dropna(subset=["user_id"])
    total = int(totals.loc[totals["action"].astype(str) == "DELETE", "events"].sum())
    if total < facts.limit("deletes_by_one.least") or known.empty:
        return None
    most = known.sort_values(["deletes", "user_id"], ascending=[False, True]).iloc[0]
    percent = 100 * int(most["deletes"]) / total
    part, text = f"{share(percent)} of {figure(total)} deletes", "No single user did more than "
    if facts.lines["deletes_by_one"].judge(percent) != "ok":
        text = f"User {str(most['user_id'])[:8]}… did "
    action = "Ask the first user of table `actors`, by deletes, whether that is expected."
    return Finding(f"{text}{part}.", percent, action)


@check("integrity", "count", Limits(None, 1))
def integrity(facts: Facts, database: str) -> Found:
    """Whether the rows are as they were sealed; what there is not to know is said as that.

    Rows are read from the month on in which the window begins: what a report costs does not grow
    with the trail.
    """
    found: Any = facts.db.audit.verify(since=facts.window.since)
    if not found.seals:
        text = "Nothing is sealed, so that nothing would show whether rows were changed or removed."
        return Finding(text, None, "Run `fwdb audit seal`, and have it run daily.", "not_measured")
    signed = f"signed with key {found.key_id}" if found.key_id else "not signed"
    read, text = found.sealed_rows - found.unread_rows, found.summary
    if found.intact and read:
        text = f"All {figure(read)} sealed rows of {found.since:%Y-%m} and later are as they were "
        text += f"sealed, {signed}."
    note = f"{signed}; {figure(found.unsealed_rows)} are too new to be sealed"
    note += more(found.unread_rows, "; {} are of months before, and were not read")
    facts.frames["head"] = found.head
    facts.frames["integrity"] = [
        ("sealed rows", figure(found.sealed_rows)),
        (f"as sealed, of {found.since:%Y-%m} and later", figure(found.checked_rows)),
        ("of these, from archives", figure(found.archived_rows)),
        ("of months before, not read", figure(found.unread_rows)),
        ("erased since, and recorded", figure(found.erased_rows)),
        ("too new to be sealed", figure(found.unsealed_rows)),
        ("sealed (UTC)", figure(found.sealed_at)),
        ("signature", signed),
        ("head", found.head),
        *(("not proven", text) for text in found.not_proven),
        *((f.kind, f.sentence) for f in found.findings),
    ]
    status: Status = "ok" if found.intact else "critical"
    remedy = "Keep the database as it is, and run `fwdb audit verify` with a seal file that was "
    kpi = Kpi("sealed", "Sealed rows", found.sealed_rows, note=note)
    return Finding(text, len(found.findings), f"{remedy}kept elsewhere.", status, kpis=(kpi,))


CHECKS = (
    *(events, bursts, *map(_burst, ACTIONS), unusual, deletes_by_one),
    *(servers.coverage, servers.gaps, servers.archived, integrity),
)
