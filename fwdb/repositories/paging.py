"""Sort orders, pages by number, and slices by key with their cursors."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from fwdb.arguments import Range
from fwdb.errors import ParameterError, UnknownName
from fwdb.models import Field, Record

E = TypeVar("E", bound=Record)
Total = Literal["exact", "estimate"]

Size = Annotated[int, Range(1, 10_000)]  # of a page; more belong into iterate() or frame()


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
    def problems(self) -> tuple[str, ...]:
        """What is wrong with its items, as ``"65a1…: name is missing"``."""
        return _problems(self.items)

    @property
    def pages(self) -> int | None:
        """How many pages there are, at least 1; None when the total is not known."""
        return None if self.total is None else max(1, -(-self.total // self.size))


@dataclass(frozen=True, slots=True)
class Slice(Generic[E]):
    """The rows after a cursor; `cursor` continues behind them and is None at the end."""

    items: list[E]
    cursor: str | None

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with its items, as ``"65a1…: name is missing"``."""
        return _problems(self.items)


def _problems(items: Iterable[Any]) -> tuple[str, ...]:
    return tuple(f"{item.id}: {'; '.join(item.problems)}" for item in items if item.problems)


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


def question(where: str, filters: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """A short mark of what is asked, so that a cursor only continues its own question."""
    asked = [where, sorted(filters.items()), [(key.field.name, key.descending) for key in keys]]
    text = json.dumps(asked, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_cursor(mark: str, values: Sequence[Any]) -> str:
    """The place of a row with these sort values, as text that holds in a URL."""
    text = json.dumps([mark, *values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, mark: str, counts: Container[int]) -> list[Any]:
    """The sort values in `cursor`, so many as `counts` has.

    Raises `ParameterError` if it is damaged or belongs to other filters or another sort order.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise broken() from None
    if not isinstance(found, list) or len(found) < 1:
        raise broken()
    if found[0] != mark or len(found) - 1 not in counts:
        raise ParameterError(
            "the cursor belongs to other filters or another sort order; start without a cursor.",
            name="cursor",
        )
    return found[1:]


def broken() -> ParameterError:
    return ParameterError(
        "the cursor cannot be read; pass the one of the previous slice unchanged.", name="cursor"
    )
