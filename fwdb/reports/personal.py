"""What of an entity is personal, and how a value of the trail is shown."""

from __future__ import annotations

import json
from typing import Any

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


def shown(value: Any, *, hide: bool) -> str | None:
    """A JSON value as a table has it: text as it is, the rest as JSON; None for none."""
    if value is None:
        return None
    if hide:
        return HIDDEN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
