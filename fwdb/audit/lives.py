"""The lives of entities: which changed most, what each change was, and where one is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb.arguments import Count
from fwdb.audit import checks
from fwdb.audit.context import Context
from fwdb.audit.questions import Moment
from fwdb.audit.values import REDACTED, REDACTED_CHANGED
from fwdb.models import Id, entity_uuid

__all__ = ["Break", "FieldChange", "breaks", "field_changes", "most_changed", "unclaimed"]

# They follow every update and tell nothing by themselves.
FOLLOWERS = frozenset({"updated_at", "updatedAt", "version", "_audit"})


def most_changed(
    self: Context,
    since: Moment = "7d",
    until: Moment = "now",
    *,
    entity_type: str | None = None,
    entity_id: Id | None = None,
    top: Count = 10,
) -> pd.DataFrame:
    """The `top` entities by creations, updates and deletions in the window.

    `entity_type`, `entity_id`, `changes`, `actors` (users who made them), `last_at`; most
    changes first. With `entity_id` it tells of what type that entity is.
    """
    start, end = checks.closed_window(since, until)
    if entity_type is not None:
        checks.askable(self.postgres, entity_type)
    return self.source.frame(
        "audit_most_changed",
        since=start,
        until=end,
        entity_type=entity_type,
        entity_id=None if entity_id is None else str(entity_uuid(entity_id)),
        row_limit=top,
    )


def unclaimed(
    self: Context,
    since: Moment = "7d",
    until: Moment = "now",
    *,
    entity_type: str | None = None,
    action: str | None = None,
    top: Count = 20,
) -> pd.DataFrame:
    """Changes of which nobody said who made them, by what the server knew of the session.

    `db_user`, `application_name`, `origin`, `entity_type`, `action`, `changes`, `last_at`;
    the `top` groups with most changes. In rows from before fwdb the first three are missing.
    """
    start, end = checks.closed_window(since, until)
    if entity_type is not None:
        checks.askable(self.postgres, entity_type)
    return self.source.frame(
        "audit_unclaimed",
        since=start,
        until=end,
        entity_type=entity_type,
        action=checks.action(action),
        row_limit=top,
    )


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of one event; `before` and `after` are JSON values, None for none.

    `field` is a path with dots where both sides are objects.
    """

    event: int
    field: str
    before: Any
    after: Any


def field_changes(history: pd.DataFrame) -> Iterator[FieldChange]:
    """What each event of a history changed, field by field; `event` is its place in the frame.

    A creation has all its fields with nothing before, a removal with nothing after.
    """
    for event, (old, new) in enumerate(_values(history)):
        for field, before, after in _differences(old or {}, new or {}):
            if field.partition(".")[0] not in FOLLOWERS:
                yield FieldChange(event, field, before, after)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before == after and (before is not None or (name in old) == (name in new)):
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{path}{name}.")
        else:
            yield f"{path}{name}", before, after


@dataclass(frozen=True, slots=True)
class Break:
    """A field that had another value before an event than it was left with by those before it."""

    event: int
    at: datetime
    field: str


def breaks(history: pd.DataFrame) -> Iterator[Break]:
    """Where a history, oldest first, does not hang together: a change between is not in it.

    Values that are masked, that only one side has, or of different JSON types cannot be compared,
    and times are written differently by different programs.
    """
    left: dict[str, Any] = {}
    for event, (old, new) in enumerate(_values(history)):
        for field, before in (old or {}).items():
            if field in left and field not in FOLLOWERS and _differs(left[field], before):
                yield Break(event, history["created_at"].iloc[event], field)
        left = {**left, **new} if new is not None else {} if old is not None else left


def _differs(one: Any, other: Any) -> bool:
    masked = (REDACTED, REDACTED_CHANGED)
    if type(one) is not type(other) or one in masked or other in masked:
        return False
    if isinstance(one, str) and one[:4].isdigit() and other[:4].isdigit() and one[4:5] == "-":
        return False  # a time
    return bool(one != other)


def _values(history: pd.DataFrame) -> Iterable[tuple[Any, Any]]:
    for old, new in zip(history["old_values"], history["new_values"], strict=True):
        yield _parsed(old), _parsed(new)


def _parsed(text: Any) -> dict[str, Any] | None:
    if not isinstance(text, str):
        return None
    value = json.loads(text)
    return value if isinstance(value, dict) else None
