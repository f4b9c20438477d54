"""What a caller may give the audit trail: names, ids, times; each refusal says what to write."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, overload
from uuid import UUID

import sqlalchemy as sa

from fwdb.errors import ParameterError, UnknownName, shown
from fwdb.models import ACTIONS, ENTITIES, Id, audit_logs
from fwdb.stores import PostgresStore
from fwdb.timespan import moment

__all__ = [
    *("Address", "action", "askable", "at", "closed_window", "field", "ip_address", "listed"),
    *("other_spelling", "recordable", "user", "window"),
]

Address = str | ipaddress.IPv4Address | ipaddress.IPv6Address

T = TypeVar("T")
Name = TypeVar("Name", str, str | None)

_CLOCK_TOLERANCE = timedelta(minutes=1)  # the caller's clock may run ahead of ours a little
_FIELD_SAMPLE = 10_000  # newest rows in which a field that no entity has is looked for


def recordable(entity_type: str) -> str:
    """`entity_type`, if it is one that fwdb records."""
    if entity_type not in ENTITIES:
        raise UnknownName("entity type", entity_type, ENTITIES)
    return entity_type


def askable(store: PostgresStore, entity_type: Name) -> Name:
    """`entity_type`, if fwdb records it or the trail holds rows of it that others wrote."""
    if entity_type is None or entity_type in ENTITIES:
        return entity_type
    rows = sa.select(audit_logs.c.id).where(audit_logs.c.entity_type == entity_type).limit(1)
    if not store.rows(rows):
        raise UnknownName("entity type", entity_type, ENTITIES)
    return entity_type


def action(name: str | None) -> str | None:
    """`name` in capitals, if it is an action."""
    if name is None or name.upper() in ACTIONS:
        return name and name.upper()
    raise UnknownName("action", name, ACTIONS)


def field(store: PostgresStore, name: str, entity_types: list[str] | None) -> str:
    """`name`, if entities of these types have such a field or newer rows of the trail do."""
    kinds = [ENTITIES[each] for each in entity_types or ENTITIES if each in ENTITIES]
    known = {field for kind in kinds for field in kind.fields}
    if {name, other_spelling(name)} & known:
        return name
    sample = sa.select(audit_logs.c.old_values, audit_logs.c.new_values)
    if entity_types is not None:
        sample = sample.where(audit_logs.c.entity_type.in_(entity_types))
    rows = sample.order_by(audit_logs.c.created_at.desc()).limit(_FIELD_SAMPLE).subquery()
    found = sa.select(sa.literal(1)).where(
        sa.or_(rows.c.old_values.has_key(name), rows.c.new_values.has_key(name))
    )
    if not store.rows(found.limit(1)):
        raise UnknownName("field", name, known, where=" or ".join(entity_types or ["any entity"]))
    return name


def listed(name: str, many: Any, one: Any, check: Callable[[Any], T]) -> list[T] | None:
    """The values of a filter that lists, each checked, or None for no filter.

    `many` is a list, or one value as `one` is, its spelling in the singular. Raises
    `ParameterError` for both at once and for an empty list, which would let nothing through.
    """
    if many is not None and one is not None:
        raise ParameterError(f"'{name}' and its singular are both given; give one.", name=name)
    given = one if many is None else many
    if given is None:
        return None
    values = [given] if isinstance(given, str | UUID) else list(given)
    if not values:
        raise ParameterError(
            f"'{name}' is an empty list; name at least one, or leave it out for all.", name=name
        )
    return [check(value) for value in values]


def other_spelling(name: str | None) -> str | None:
    """``first_name`` for ``firstName`` and the other way round.

    >>> other_spelling("first_name"), other_spelling("firstName"), other_spelling("name")
    ('firstName', 'first_name', 'name')
    """
    if name is None:
        return None
    if "_" in name:
        return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
    return re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name)


@overload
def user(value: Id) -> str: ...
@overload
def user(value: Id | None) -> str | None: ...
def user(value: Id | None) -> str | None:
    """`value` as the text of a uuid."""
    if value is None:
        return None
    try:
        return str(UUID(str(value)))
    except ValueError:
        raise ParameterError(
            f"'user_id' is {shown(value)}; give the UUID of a user.", name="user_id"
        ) from None


def ip_address(value: Address | None) -> str | None:
    """`value`, if it is an IPv4 or IPv6 address."""
    if value is None:
        return None
    try:
        return str(ipaddress.ip_address(str(value).strip()))
    except ValueError:
        raise ParameterError(
            f"'ip_address' is {shown(value)}; give one address such as 192.0.2.7 or "
            "2001:db8::7 (of a list in X-Forwarded-For, the one you trust).",
            name="ip_address",
        ) from None


def at(value: Any, *, now: datetime | None = None, name: str = "at") -> datetime:
    """`value` as a time in UTC; `ParameterError` without a zone or in the future."""
    now = now or datetime.now(UTC)
    found = moment(value, now=now, name=name)
    if found > now + _CLOCK_TOLERANCE:
        raise ParameterError(
            f"'{name}' is {shown(value)}, which is in the future; give a time up to now "
            f"({now:%Y-%m-%dT%H:%MZ}) or a span (24h, 7d).",
            name=name,
        )
    return found


def window(since: Any, until: Any) -> tuple[datetime | None, datetime | None]:
    """Start and end in UTC, None where the window is open.

    Raises `ParameterError` for a time without a zone or in the future, and for an end before
    the start.
    """
    now = datetime.now(UTC)
    start, end = (
        None if value is None else at(value, now=now, name=name)
        for name, value in (("since", since), ("until", until))
    )
    if start and end and start > end:
        raise ParameterError(
            f"'since' ({start:%Y-%m-%dT%H:%MZ}) is after 'until' ({end:%Y-%m-%dT%H:%MZ}); "
            "exchange them.",
            name="since",
        )
    return start, end


def closed_window(since: Any, until: Any) -> tuple[datetime, datetime]:
    """As `window`, with both ends, for figures over time."""
    start, end = window(since, until)
    assert start is not None
    assert end is not None
    return start, end
