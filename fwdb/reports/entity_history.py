"""The report `entity_history`: the life of one entity, change by change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import charts
from fwdb.audit.lives import field_changes
from fwdb.reports import entity_checks, personal, trail_checks
from fwdb.reports.asking import Asking, utc_frame
from fwdb.reports.parameters import Value, Window, iso
from fwdb.reports.results import Kpi, Result, Table
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database

OTHERS = 20
NO_HISTORY = utc_frame(
    {
        "created_at": "datetime64[us, UTC]",
        **dict.fromkeys(("id", "action", "user_id", "changed_fields"), "str"),
        **dict.fromkeys(("old_values", "new_values", "metadata", "ip_address"), "str"),
        "user_agent": "str",
    }
)
NO_OTHERS = utc_frame({"entity_type": "str", "entity_id": "str", "changes": "int64"})
CHANGES = ("changed_at", "action", "field", "before", "after", "user_id")
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


def build(db: Database, window: Window, parameters: Mapping[str, Value]) -> Result:
    """The report over `window` about the entity of `parameters`, or the one that changed most."""
    asking = Asking("entity_history", db)
    asking.reach("postgres")
    others = asking.ask("others", "postgres", lambda: _others(db, window, parameters), NO_OTHERS)
    kind, id = _chosen(parameters, others)
    whole = NO_HISTORY
    if kind is not None and id is not None:
        whole = asking.ask("events", "postgres", lambda: db.audit.history(kind, id), NO_HISTORY)
    since, until = pd.Timestamp(window.since), pd.Timestamp(window.until)
    before_end = whole[whole["created_at"] < until].reset_index(drop=True)
    inside = before_end["created_at"] >= since
    history = before_end[inside].reset_index(drop=True)
    name = f"{kind} {id[:8]}…" if kind and id else "The entity"
    kpis: list[Kpi] = []
    if "postgres" not in asking.down and not any(
        c.id == "entity_history.events" for c in asking.checks
    ):
        entity_checks.events(asking, name, id, history, before_end)
        if len(history):
            entity_checks.origin(asking, name, before_end)
            entity_checks.breaks(asking, name, before_end, since)
            entity_checks.fate(asking, name, before_end)
            kpis = entity_checks.kpis(history, before_end)
        trail_checks.archived(asking, window)
    shown = bool(parameters["show_personal"])
    source = f"audit.audit_logs, {kind} {id}" if kind and id else "audit.audit_logs"
    reason = (
        "PostgreSQL, which keeps the trail, could not be asked."
        if "postgres" in asking.down
        else "Nothing was recorded of it in this window."
        if id
        else "Nothing was changed in this window."
    )
    drawn: dict[str, Any] = {
        "entity": name, "since": since, "until": until, "source": source, "reason": reason,
    }  # fmt: skip
    return Result(
        report="entity_history",
        window=window,
        parameters=parameters,
        checks=tuple(asking.checks),
        kpis=tuple(kpis),
        tables=(
            Table(
                "changes",
                "What changed",
                _changes(kind or "", history, show=shown),
                "Field by field, the newest first; what was made or removed has all its fields.",
            ),
            Table(
                "events",
                "Who, and from where",
                _events(kind or "", history, show=shown),
                "Every event, the newest first: what the caller said of itself, and what the "
                "server knew by itself of the session.",
                EVENTS_SHOWN,
            ),
            Table(
                "others",
                "Entities that changed most",
                others.reset_index(drop=True),
                "In the same window; each can be read with -p entity_type=… -p entity_id=…",
            ),
        ),
        charts={
            "entity_history": charts.entity_history(history, **drawn),
            "entity_actors": charts.entity_actors(history, **drawn),
        },
        how_to_read=_how_to_read(),
        sources=(
            ("Window", f"{iso(window.since)} to {iso(window.until)}, the end not included"),
            ("Entity", f"{kind} {id}, {_why(parameters)}" if id else "none"),
            (
                "Events",
                f"{figure(len(history))} in the window, {figure(len(before_end) - len(history))} "
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


def _others(db: Database, window: Window, parameters: Mapping[str, Value]) -> pd.DataFrame:
    """The entities of the window, first the one that is asked for."""
    kind, id = parameters["entity_type"], parameters["entity_id"]
    asked: dict[str, Any] = {"since": window.since, "until": window.until}
    found = db.audit.most_changed(
        **asked, entity_type=None if kind is None else str(kind), top=OTHERS
    )
    if id is None or kind is not None:
        return found
    return pd.concat([db.audit.most_changed(**asked, entity_id=str(id)), found]).drop_duplicates()


def _chosen(parameters: Mapping[str, Value], others: pd.DataFrame) -> tuple[str | None, str | None]:
    """Type and id of the entity to tell of; both None when there is none."""
    kind, id = parameters["entity_type"], parameters["entity_id"]
    if id is not None:
        mine = others[others["entity_id"] == str(id)]
        if kind is None and len(mine):
            kind = mine["entity_type"].iloc[0]
        return None if kind is None else str(kind), str(id)
    if others.empty:
        return None, None
    return str(others["entity_type"].iloc[0]), str(others["entity_id"].iloc[0])


def _why(parameters: Mapping[str, Value]) -> str:
    if parameters["entity_id"] is not None:
        return "as asked for"
    kind = parameters["entity_type"]
    return f"the {kind or 'one'} that changed most in the window"


def _changes(kind: str, history: pd.DataFrame, *, show: bool) -> pd.DataFrame:
    rows = []
    newest_first = sorted(field_changes(history), key=lambda change: -change.event)
    for change in newest_first:
        event = history.iloc[change.event]
        hide = not show and personal.is_personal(kind, change.field)
        before, after = (
            personal.shown(value, hide=hide) for value in (change.before, change.after)
        )
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
    if personal.is_person(kind):
        hidden.append("said_reason")
    for column in set(hidden) & set(found):
        found[column] = found[column].where(found[column].isna(), personal.HIDDEN)
    return found


def _how_to_read() -> tuple[tuple[str, str], ...]:
    return (
        (
            "The chart",
            "has every event in its first lane and the changes of a field in the others. A diamond "
            "is a creation, a dot a change, a cross a deletion, a line a reading.",
        ),
        (
            "Before and after",
            "are values as JSON; a field of an object has a dot in its name. `[redacted]` was "
            "never stored, `[personal]` is stored and not shown here.",
        ),
        (
            "Who",
            "The user, the reason, the address and the program that begin with *said* are what the "
            "caller said. Those that begin with *server* are what PostgreSQL knew of the session, "
            "which a caller cannot choose, except the name of its program.",
        ),
        (
            "What does not hang together",
            "A field that had another value before a change than the change before left it with: "
            "something changed it and left no row, or a row is missing.",
        ),
    )
