"""Sort orders, pages by number, and slices by key with their cursors."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from fwdb.errors import ParameterError, UnknownName
from fwdb.repositories.fields import Field, checked

E = TypeVar("E")
Total = Literal["exact", "estimate"]

MAXIMUM_SIZE = 10_000  # rows in one page; more belong into iterate() or frame()


@dataclass(frozen=True, slots=True)
class Key:
    """One part of a sort order. An empty value comes before all others when ascending."""

    field: Field
    descending: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[E]):
    """One page by number, from 1. `total` and `pages` are None unless asked for or at the end."""

    items: list[E]
    number: int
    size: int
    total: int | None
    next: int | None
    previous: int | None

    @property
    def pages(self) -> int | None:
        """How many pages there are, at least 1; None when the total is not known."""
        return None if self.total is None else max(1, -(-self.total // self.size))


@dataclass(frozen=True, slots=True)
class Slice(Generic[E]):
    """The rows after a cursor; `cursor` continues behind them and is None at the end."""

    items: list[E]
    cursor: str | None


def order(sort: str | None, fields: Mapping[str, Field], where: str) -> list[Key]:
    """The keys of a sort order such as ``"-created_at,name"``; a minus is descending.

    Raises `UnknownName` for a field that `where` does not have or cannot be sorted by.
    """
    sortable = [field.name for field in fields.values() if field.ordered and not field.secret]
    keys: list[Key] = []
    for part in sort.split(",") if sort else ():
        name = part.strip().removeprefix("-")
        if name not in sortable:
            raise UnknownName("sort field", name, sortable, where=where)
        if all(key.field.name != name for key in keys):
            keys.append(Key(fields[name], part.strip().startswith("-")))
    return keys


def total_order(sort: str | None, fields: Mapping[str, Field], where: str) -> list[Key]:
    """`order` with the id behind it, so that no two rows are equal."""
    keys = order(sort, fields, where)
    if any(key.field.name == "id" for key in keys):
        return keys
    return [*keys, Key(fields["id"], bool(keys) and keys[-1].descending)]


def whole(name: str, value: Any, *, maximum: int | None = None) -> int:
    """`value` if it is a whole number from 1 to `maximum`. Raises `ParameterError`."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not good or (maximum is not None and value > maximum):
        limits = "of at least 1" if maximum is None else f"from 1 to {maximum}"
        raise ParameterError(f"'{name}' is {value!r}; give a whole number {limits}.", name=name)
    return int(value)


def question(where: str, filters: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """A short mark of what is asked, so that a cursor only continues its own question."""
    asked = [where, sorted(filters.items()), [(key.field.name, key.descending) for key in keys]]
    text = json.dumps(asked, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_cursor(mark: str, row: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """The place of `row` in the order of `keys`, as text that holds in a URL."""
    values = [row.get(key.field.name) for key in keys]
    plain = [v.isoformat() if isinstance(v, datetime) else v for v in values]
    text = json.dumps([mark, *plain], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, mark: str, keys: Sequence[Key]) -> list[Any]:
    """The sort values in `cursor`.

    Raises `ParameterError` if it is damaged or belongs to other filters or another sort order.
    """
    broken = ParameterError(
        "the cursor cannot be read; pass the one of the previous slice unchanged.", name="cursor"
    )
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (AttributeError, TypeError, binascii.Error, ValueError):
        raise broken from None
    if not isinstance(found, list) or len(found) < 1:
        raise broken
    if found[0] != mark or len(found) != len(keys) + 1:
        raise ParameterError(
            "the cursor belongs to other filters or another sort order; start without a cursor.",
            name="cursor",
        )
    return [
        None if value is None else checked(key.field, value, label="cursor")
        for key, value in zip(keys, found[1:], strict=True)
    ]
