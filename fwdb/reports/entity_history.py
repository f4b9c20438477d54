"""The report `entity_history`: the life of one entity, change by change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.audit import history as changes
from fwdb.charts.canvas import plural
from fwdb.models import ENTITIES
from fwdb.reports import servers
from fwdb.reports.check import Facts, Finding, Found, Limits, check, empty, run
from fwdb.reports.parameters import parameter, since, until
from fwdb.reports.results import Kpi, Result
from fwdb.reports.words import figure

OTHERS = 20
NAMED = 3  # of a list in a sentence; the table has all
CHANGES = {
    "changed_at": "datetime64[us, UTC]",
    **dict.fromkeys(("action", "field", "before", "after", "user_id"), "object"),
}
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
EVENTS_SHOWN = (
    *("event_at", "action", "said_user", "said_reason", "server_user", "server_program"),
    "recorded_by",
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
    window, audit, given = facts.window, facts.db.audit, facts.parameters
    facts.reach("postgres")
    others = facts.take("others", partial(_others, facts), empty("audit_most_changed"))
    kind, id = _chosen(facts, others)
    whole = empty("audit_history")
    if kind is not None and id is not None:
        whole = facts.ask("events", lambda: audit.history(kind, id), whole)
    since, until = pd.Timestamp(window.since), pd.Timestamp(window.until)
    whole = whole[whole["created_at"] < until].reset_index(drop=True)
    history = whole[whole["created_at"] >= since].reset_index(drop=True)
    name = f"{kind} {id[:8]}…" if kind and id else "The entity"
    facts.frames |= {"name": name, "id": id, "whole": whole, "history": history}
    run(facts, CHECKS)
    shown = given.show_personal
    reason = "Nothing was recorded of it in this window." if id else NOTHING
    if "postgres" in facts.down:
        reason = "PostgreSQL, which keeps the trail, could not be asked."
    entity = f"{kind} {id}" if kind and id else ""
    source = f"audit.audit_logs, {entity}" if entity else "audit.audit_logs"
    drawn: dict[str, Any] = {
        "entity": name, "since": since, "until": until, "source": source, "reason": reason,
    }  # fmt: skip
    return facts.result(
        tables=(
            facts.table(
                "changes",
                "What changed",
                "Field by field, the newest first; what was made or removed has all its fields.",
                frame=_changes(kind or "", history, show=shown),
            ),
            facts.table(
                "events",
                "Who, and from where",
                "Every event, the newest first: what the caller said of itself, and what the "
                "server knew by itself of the session.",
                EVENTS_SHOWN,
                frame=_events(kind or "", history, show=shown),
            ),
            facts.table(
                "others",
                "Entities that changed most",
                "In the same window; each can be read with -p entity_type=… -p entity_id=…",
                frame=others,
            ),
        ),
        charts={
            "entity_history": charts.entity_history(history, **drawn),
            "entity_actors": charts.entity_actors(history, **drawn),
        },
        sources=(
            ("Window", f"{facts.bounds}, the end not included"),
            ("Entity", f"{kind} {id}, {_why(facts)}" if id else "none"),
            (
                "Events",
                f"{figure(len(history))} in the window, {figure(len(whole) - len(history))} "
                "before it",
            ),
            (
                "Left out",
                "nothing: personal data is shown, so mind who gets this"
                if shown
                else "personal data, shown as [personal]; -p show_personal=true shows it",
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


def _chosen(facts: Facts, others: pd.DataFrame) -> tuple[str | None, str | None]:
    """Type and id of the entity to tell of; both None when there is none."""
    kind, id = facts.parameters.entity_type, facts.parameters.entity_id
    if id is not None:
        mine = others[others["entity_id"] == id]
        if kind is None and len(mine):
            kind = str(mine["entity_type"].iloc[0])
        return kind, id
    if others.empty:
        return None, None
    return str(others["entity_type"].iloc[0]), str(others["entity_id"].iloc[0])


def _why(facts: Facts) -> str:
    if facts.parameters.entity_id is not None:
        return "as asked for"
    return f"the {facts.parameters.entity_type or 'one'} that changed most in the window"


def _changes(kind: str, history: pd.DataFrame, *, show: bool) -> pd.DataFrame:
    rows = []
    newest_first = sorted(changes.field_changes(history), key=lambda change: -change.event)
    for change in newest_first:
        event = history.iloc[change.event]
        hide = not show and is_personal(kind, change.field)
        before, after = (_value(value, hide=hide) for value in (change.before, change.after))
        rows.append(
            (event["created_at"], event["action"], change.field, before, after, event["user_id"])
        )
    made = pd.DataFrame(rows, columns=list(CHANGES))
    return made.astype({"changed_at": "datetime64[us, UTC]"} if rows else {})


def _events(kind: str, history: pd.DataFrame, *, show: bool) -> pd.DataFrame:
    there = {old: new for old, new in EVENTS.items() if old in history}
    found = history[list(there)].rename(columns=there).iloc[::-1].reset_index(drop=True)
    if show:
        return found
    hidden = ["said_address", "said_program", "server_address"]
    if is_person(kind):
        hidden.append("said_reason")
    for column in set(hidden) & set(found):
        found[column] = found[column].where(found[column].isna(), HIDDEN)
    return found


# -- what is personal ------------------------------------------------------------------------------

HIDDEN = "[personal]"

# Of a person only these are shown: a table may have columns that fwdb does not know. Ids are
# pseudonyms; who an id is stands in the database alone.
_OF_PERSONS = {
    "User": frozenset({"role", "is_active", "email_verified"}),
    "Avatar": frozenset({"is_default"}),
}
_BOOKKEEPING = frozenset(
    {"id", "user_id", "created_at", "updated_at", "deleted_at", "created_by", "updated_by"}
)
# Written by people for their things, these are shown whole.
_THINGS = frozenset({"CatalogItem", "Design"})


def is_person(entity_type: str) -> bool:
    """Whether entities of this type are about a person; those that nobody knows may be."""
    return entity_type not in _THINGS


def is_personal(entity_type: str, field: str) -> bool:
    """Whether the values of `field`, which may be a path with dots, are personal data."""
    root = field.partition(".")[0]
    shown = _OF_PERSONS.get(entity_type, frozenset()) | _BOOKKEEPING
    return is_person(entity_type) and root not in shown


def _value(value: Any, *, hide: bool) -> str | None:
    """A JSON value as a table has it: text as it is, the rest as JSON; None for none."""
    if value is None:
        return None
    if hide:
        return HIDDEN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -- checks ----------------------------------------------------------------------------------------


def _when(moment: pd.Timestamp) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _changed(history: pd.DataFrame) -> pd.DataFrame:
    return history[history["action"].astype(str) != "READ"]


NOTHING = "Nothing was changed in this window."


@check("events", unit="count", role="news")
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
    changed = _changed(history)
    users = changed["user_id"].nunique()
    fields = {f for text in changed["changed_fields"].dropna() for f in text.split(", ") if f}
    reads = len(history) - len(changed)
    text = f"{name} was changed {plural(len(changed), 'time')}"
    if len(changed):
        text += f" by {plural(users, 'user')}" if users else ", and nothing says by whom"
        text += f", in {plural(len(fields), 'field')}" if fields else ""
    text += f", and read {plural(reads, 'time')}" if reads else ""
    return Finding(f"{text}.", len(history), kpis=tuple(_kpis(history, whole)))


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


@check("breaks", unit="count", limits=Limits(1))
def breaks(facts: Facts, database: str) -> Found:
    """Whether each change begins where the one before ended."""
    if facts["history"].empty:
        return None
    whole, since = facts["whole"], pd.Timestamp(facts.window.since)
    found = [b for b in changes.breaks(whole) if b.at >= since]
    if not found:
        return Finding("Each change begins with the values that the one before left.", 0)
    first = found[0]
    before = whole["created_at"].iloc[: first.event]
    between = f" between {_when(before.iloc[-1])} and" if len(before) else " before"
    more = f" {figure(len(found) - 1)} more do not fit." if len(found) > 1 else ""
    return Finding(
        f"{first.field} of {facts['name']} changed{between} {_when(pd.Timestamp(first.at))} and "
        f"left no row.{more}",
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


def _kpis(history: pd.DataFrame, whole: pd.DataFrame) -> list[Kpi]:
    """How much happened, in how many fields, by how many."""
    changed = _changed(history)
    fields = changed["changed_fields"].fillna("").str.split(", ").explode()
    counts = fields[fields != ""].value_counts()
    most = sorted(counts.index, key=lambda f: (-int(counts[f]), f))[:NAMED]
    nobody = int(changed["user_id"].isna().sum())
    first = whole["created_at"].iloc[0]
    numbers = (
        ("changes", "Changes", len(changed), f"known since {_when(first)}"),
        ("reads", "Reads", len(history) - len(changed), "recorded where the application asks"),
        ("fields", "Fields changed", len(counts), f"most often {', '.join(most)}" if most else ""),
        ("actors", "Users", changed["user_id"].nunique(), "who changed it"),
        ("without_actor", "Changes without an actor", nobody, "nobody said who"),
        ("earlier", "Events before the window", len(whole) - len(history), ""),
    )
    return [
        Kpi(id, label, int(value), "", "ok", "postgres", note) for id, label, value, note in numbers
    ]


CHECKS = (events, origin, breaks, fate, servers.archived)
