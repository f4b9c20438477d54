"""The report `entity_history`: the life of one entity, change by change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.audit import history as changes
from fwdb.charts.words import figure, more, plural
from fwdb.models import ENTITIES
from fwdb.models.registry import is_person, is_personal
from fwdb.reports import servers
from fwdb.reports.check import Finding, Found, Limits, check, run
from fwdb.reports.facts import Facts, empty
from fwdb.reports.parameters import parameter, since, until
from fwdb.reports.results import Kpi, Result, Shown

OTHERS = 20
NAMED = 3  # of a list in a sentence; the table has all
HIDDEN = "[personal]"
NOTHING = "Nothing was changed in this window."
CHANGES = ["changed_at", "action", "field", "before", "after", "user_id"]
# What the caller said, then what the server knew by itself.
EVENTS = {
    "created_at": "event_at",
    "action": "action",
    "changed_fields": "changed_fields",
    "user_id": "said_user",
    "ip_address": "said_address",
    "user_agent": "said_program",
    "reason": "said_reason",
    "db_user": "server_user",
    "application_name": "server_program",
    "client_address": "server_address",
    "origin": "recorded_by",
    "transaction_id": "transaction",
}
TABLES = (
    Shown(
        "changes",
        "What changed",
        "Field by field, the newest first; what was made or removed has all its fields.",
    ),
    Shown(
        "events",
        "Who, and from where",
        "Every event, the newest first: what the caller said of itself, and what the server knew "
        "by itself of the session.",
        "event_at action said_user said_reason server_user server_program recorded_by",
    ),
    Shown(
        "others",
        "Entities that changed most",
        "In the same window; each can be read with -p entity_type=… -p entity_id=…",
    ),
)


@dataclass(frozen=True)
class Parameters:
    """What `entity_history` is asked with."""

    since: str = since("30d")
    until: str = until()
    entity_type: str | None = parameter(None, "kind of entity (none: any)", choices=ENTITIES)
    entity_id: str | None = parameter(
        None,
        "the entity: a UUID or an ObjectId; none: the one that changed most in the window",
        form="entity",
    )
    show_personal: bool = parameter(
        False, "whether to show personal data: names, email, measurements, addresses"
    )


def build(facts: Facts) -> Result:
    """The report about the entity of the parameters, or the one that changed most."""
    audit, given, edges = facts.db.audit, facts.parameters, facts.edges
    facts.reach("postgres")
    others = facts.take("others", partial(_others, facts), "audit_most_changed")
    kind, id, why = given.entity_type, given.entity_id, "as asked for"
    if id is None:
        why = f"the {kind or 'one'} that changed most in the window"
        kind, id = (None, None) if others.empty else others[["entity_type", "entity_id"]].iloc[0]
    elif kind is None:
        kind = next(iter(others.loc[others["entity_id"] == id, "entity_type"]), None)
    whole = empty("audit_history")
    if kind and id:
        whole = facts.ask("events", partial(audit.history, kind, id), whole)
    whole = whole[whole["created_at"] < edges["until"]].reset_index(drop=True)
    history = whole[whole["created_at"] >= edges["since"]].reset_index(drop=True)
    entity, source = f"{kind} {id}", "audit.audit_logs"
    name = f"{kind} {id[:8]}…" if kind and id else "The entity"
    facts.frames |= {"name": name, "id": id, "whole": whole, "history": history}
    run(facts, CHECKS)
    show = given.show_personal
    facts.frames["changes"] = _changes(str(kind), history, show=show)
    facts.frames["events"] = _events(str(kind), history, show=show)
    reason = "Nothing was recorded of it in this window." if id else NOTHING
    if facts.down:
        reason = "PostgreSQL, which keeps the trail, could not be asked."
    drawn = {"entity": name, "reason": reason, **edges}
    drawn["source"] = f"{source}, {entity}" if kind and id else source
    left = "personal data, shown as [personal]; -p show_personal=true shows it"
    before = figure(len(whole) - len(history))
    return facts.result(
        TABLES,
        charts={
            "entity_history": charts.entity_history(history, **drawn),
            "entity_actors": charts.entity_actors(history, **drawn),
        },
        sources=(
            ("Window", f"{facts.bounds}, the end not included"),
            ("Entity", f"{entity}, {why}" if id else "none"),
            ("Events", f"{figure(len(history))} in the window, {before} before it"),
            (
                "Left out",
                "nothing: personal data is shown, so mind who gets this" if show else left,
            ),
        ),
    )


def _others(facts: Facts) -> pd.DataFrame:
    """The entities of the window, first the one that is asked for."""
    kind, id = facts.parameters.entity_type, facts.parameters.entity_id
    most = partial(facts.db.audit.most_changed, since=facts.window.since, until=facts.window.until)
    found = most(entity_type=kind, top=OTHERS)
    if id is None or kind is not None:
        return found
    return pd.concat([most(entity_id=id), found]).drop_duplicates()


def _changes(kind: str, history: pd.DataFrame, *, show: bool) -> pd.DataFrame:
    rows = []
    for change in sorted(changes.field_changes(history), key=lambda change: -change.event):
        event, hide = history.iloc[change.event], not show and is_personal(kind, change.field)
        values = (_value(value, hide=hide) for value in (change.before, change.after))
        rows.append((event["created_at"], event["action"], change.field, *values, event["user_id"]))
    made = pd.DataFrame(rows, columns=CHANGES)
    return made.astype({"changed_at": "datetime64[us, UTC]"})


def _events(kind: str, history: pd.DataFrame, *, show: bool) -> pd.DataFrame:
    there = {old: new for old, new in EVENTS.items() if old in history}
    found = history[list(there)].rename(columns=there).iloc[::-1].reset_index(drop=True)
    hidden = {"said_address", "said_program", "server_address"}
    hidden |= {"said_reason"} if is_person(kind) else set()
    for column in set() if show else hidden & set(found):
        found[column] = found[column].where(found[column].isna(), HIDDEN)
    return found


def _value(value: Any, *, hide: bool) -> str | None:
    """A JSON value as a table has it: text as it is, the rest as JSON; None for none."""
    if value is None or hide:
        return None if value is None else HIDDEN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _changed(history: pd.DataFrame) -> pd.DataFrame:
    return history[history["action"].astype(str) != "READ"]


@check("events", "count", role="news")
def events(facts: Facts, database: str) -> Found:
    """What happened to it in the window."""
    history, whole, id, name = (facts[key] for key in ("history", "whole", "id", "name"))
    if history.empty:
        said, action = NOTHING, "Take a longer window."
        if id is not None and whole.empty:
            said = f"The trail knows nothing of {id} up to the end of this window."
            action = "Look at the id, and give its `entity_type` too."
        elif id is not None:
            last = _when(whole["created_at"].iloc[-1])
            said = f"Nothing happened to {name} in this window; its last event was at {last}."
        return Finding(said, 0, action, "no_data")
    changed, first = _changed(history), whole["created_at"].iloc[0]
    fields = changed["changed_fields"].fillna("").str.split(", ").explode()
    counts = fields[fields != ""].value_counts()
    most = ", ".join(sorted(counts.index, key=lambda f: (-int(counts[f]), f))[:NAMED])
    users, nobody = changed["user_id"].nunique(), int(changed["user_id"].isna().sum())
    reads = len(history) - len(changed)
    text = f"{name} was changed {plural(len(changed), 'time')}"
    if len(changed):
        text += f" by {plural(users, 'user')}" if users else ", and nothing says by whom"
        text += f", in {plural(len(counts), 'field')}" if len(counts) else ""
    text += f", and read {plural(reads, 'time')}" if reads else ""
    numbers = (
        ("changes", "Changes", len(changed), f"known since {_when(first)}"),
        ("reads", "Reads", reads, "recorded where the application asks"),
        ("fields", "Fields changed", len(counts), f"most often {most}" if most else ""),
        ("actors", "Users", users, "who changed it"),
        ("without_actor", "Changes without an actor", nobody, "nobody said who"),
        ("earlier", "Events before the window", len(whole) - len(history), ""),
    )
    kpis = tuple(Kpi(id, label, value, note=note) for id, label, value, note in numbers)
    return Finding(f"{text}.", len(history), kpis=kpis)


@check("origin")
def origin(facts: Facts, database: str) -> Found:
    """Whether the trail tells how it came to be."""
    if facts["history"].empty:
        return None
    first = facts["whole"].iloc[0]
    at, action = _when(first["created_at"]), str(first["action"])
    if action == "CREATE":
        return Finding(f"It was made at {at}, and its life is told from there.")
    text = f"The trail begins with {action} at {at}: what was before is not known."
    return Finding(text, status="not_available")


@check("breaks", "count", Limits(1))
def breaks(facts: Facts, database: str) -> Found:
    """Whether each change begins where the one before ended."""
    if facts["history"].empty:
        return None
    whole, since = facts["whole"], facts.edges["since"]
    found = [b for b in changes.breaks(whole) if b.at >= since]
    if not found:
        return Finding("Each change begins with the values that the one before left.", 0)
    first = found[0]
    before = whole["created_at"].iloc[: first.event]
    between = f" between {_when(before.iloc[-1])} and" if len(before) else " before"
    return Finding(
        f"{first.field} of {facts['name']} changed{between} {_when(pd.Timestamp(first.at))} and "
        f"left no row.{more(len(found) - 1, ' {} more do not fit.')}",
        len(found),
        "See `fwdb audit coverage` for what is not captured, and `fwdb audit verify` for "
        "whether a row was removed.",
    )


@check("fate")
def fate(facts: Facts, database: str) -> Found:
    """Whether it is still there."""
    changed = _changed(facts["whole"])
    if facts["history"].empty or changed.empty:
        return None
    last = changed.iloc[-1]
    who, at = last["user_id"], _when(last["created_at"])
    by = f"User {str(who)[:8]}…" if pd.notna(who) else "Somebody who did not say so"
    gone = str(last["action"]) == "DELETE"
    return Finding(f"{by} deleted it at {at}." if gone else f"{by} changed it last, at {at}.")


CHECKS = (events, origin, breaks, fate, servers.archived)
