"""The verbs of a repository, the same over both stores."""

from __future__ import annotations

import copy
import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

import pandas as pd

from fwdb.arguments import Count, Range
from fwdb.errors import (
    FeatureUnavailable,
    InvalidData,
    NotFound,
    ParameterError,
    StaleVersion,
    UnknownName,
    shown,
)
from fwdb.models import Entity, Field, Id, Record
from fwdb.repositories import paging
from fwdb.repositories.fields import checked, written
from fwdb.repositories.filters import Condition, conditions
from fwdb.repositories.paging import Key, Page, Size, Slice, Total
from fwdb.repositories.reads import ReadTrail
from fwdb.stores import PostgresStore
from fwdb.timespan import Time, moment

E = TypeVar("E", bound=Record)
Row = dict[str, Any]

_NEWEST_FIRST = "-created_at"


class Repository(ABC, Generic[E]):
    """Rows or documents of one kind, given out as frozen entities.

    Filters are written as in `fwdb.repositories.filters`, sort orders as ``"-created_at,name"``.
    Where rows can be deleted softly, the deleted ones are out of sight; see `with_deleted`. Inside
    ``with db.transaction()`` every call joins the transaction.

    The three ways to take a row away are called as in the service that made these tables:
    `soft_delete` hides it, `restore` shows it again, and `delete` removes it for good, so that
    a person who asks to be forgotten is.
    """

    database: ClassVar[str]

    def __init__(self, entity: Entity[E], trail: PostgresStore | None) -> None:
        self.name = entity.attribute
        self.entity = entity.record
        self.fields = entity.fields
        self._trail = trail
        self._sees_deleted = False
        self._reads: ReadTrail | None = None

    # -- one row ------------------------------------------------------------------------------

    def get(self, id: Id) -> E:
        """The row with this id. Raises `NotFound`; `ParameterError` for text that is no id."""
        rows = self._rows(self._conditions({"id": self._id(id)}), limit=1)
        if not rows:
            raise NotFound(self._noun, id)
        return self._given(rows)[0]

    def first(self, *, sort: str | None = None, **filters: Any) -> E | None:
        """The first row in the order of `sort` that fits, or None."""
        rows = self._rows(self._conditions(filters), self._order(sort), limit=1)
        return self._given(rows)[0] if rows else None

    def exists(self, **filters: Any) -> bool:
        """Whether any row fits."""
        return bool(self._rows(self._conditions(filters), limit=1, fields=["id"]))

    # -- many rows ----------------------------------------------------------------------------

    def find(
        self, *, sort: str | None = None, limit: Count | None = None, **filters: Any
    ) -> list[E]:
        """All rows that fit, at most `limit`; without `sort` in the order the database likes."""
        rows = self._rows(self._conditions(filters), self._order(sort), limit=limit)
        return self._given(rows)

    def page(
        self,
        *,
        size: Size = 50,
        number: Count = 1,
        sort: str | None = _NEWEST_FIRST,
        total: Total | None = None,
        **filters: Any,
    ) -> Page[E]:
        """Page `number`, from 1, of the rows that fit; rows that sort alike are sorted by id.

        `total` is ``"exact"``, which counts all rows and may take far longer than the page,
        ``"estimate"``, or None. Deep pages cost what all pages before them cost: use `after`.
        """
        wanted, keys = self._conditions(filters), self._total_order(sort)
        skipped = (number - 1) * size
        rows = self._rows(wanted, keys, limit=size + 1, offset=skipped)
        seen, more = skipped + len(rows), len(rows) > size
        count: int | None = None
        if not more and (rows or number == 1):
            count = seen  # the end was reached, so the total is known
        elif total == "exact":
            count = self._count(wanted)
        elif total == "estimate":
            count = max(self._estimate(wanted), seen if rows else 0)
        return Page(
            items=self._given(rows[:size]),
            number=number,
            size=size,
            total=count,
            next=number + 1 if more else None,
            previous=number - 1 if number > 1 else None,
        )

    def after(
        self,
        cursor: str | None = None,
        *,
        size: Size = 50,
        sort: str | None = _NEWEST_FIRST,
        **filters: Any,
    ) -> Slice[E]:
        """The next `size` rows behind `cursor`, and the cursor of the rows behind those.

        Start without a cursor, go on with ``slice.cursor`` and the same filters and sort until it
        is None. Costs the same at any depth, and rows that come or go meanwhile make none appear
        twice. What has no place in the order, a list or a gap where the model has none, comes last.
        Raises `ParameterError` for a cursor of another question.
        """
        wanted, keys = self._conditions(filters), self._total_order(sort)
        mark = paging.question(f"{self.name} {self._sees_deleted}", filters, keys)
        odd, by_id = self._odd(keys), [Key(self.fields["id"], descending=False)]
        counts = {len(keys), 1} if odd else {len(keys)}
        marks = [] if cursor is None else paging.read_cursor(cursor, mark, counts)
        at_end = bool(odd) and len(marks) == 1
        rows: list[Row] = []
        if not at_end:
            placed = [*wanted, Condition(self.fields["id"], "placed", odd)] if odd else wanted
            behind = self._place(marks, keys) if marks else ()
            rows = self._rows(placed, keys, limit=size + 1, behind=behind)
        ordered = len(rows)
        if odd and ordered <= size:
            placeless = [*wanted, Condition(self.fields["id"], "placeless", odd)]
            behind = self._place(marks, by_id) if at_end else ()
            rows += self._rows(placeless, by_id, limit=size + 1 - ordered, behind=behind)
        further = None
        if len(rows) > size:
            values = self._marks(rows[size - 1], keys if size <= ordered else by_id)
            further = paging.write_cursor(mark, values)
        return Slice(items=self._given(rows[:size]), cursor=further)

    def iterate(
        self, *, batch: Size = 1_000, sort: str | None = None, **filters: Any
    ) -> Iterator[E]:
        """Every row that fits, one by one, `batch` of them in memory, by default in id order.

        Between batches no connection is held and no transaction is open, so the loop may take
        its time; each row is given at most once, in the state it had when its batch was read.
        """
        part = self.after(size=batch, sort=sort, **filters)
        return self._onwards(part, batch, sort, filters)

    def _onwards(
        self, part: Slice[E], batch: int, sort: str | None, filters: Mapping[str, Any]
    ) -> Iterator[E]:
        yield from part.items
        while part.cursor is not None:
            part = self.after(part.cursor, size=batch, sort=sort, **filters)
            yield from part.items

    def count(self, **filters: Any) -> int:
        """How many rows fit, counted."""
        return self._count(self._conditions(filters))

    # -- frames -------------------------------------------------------------------------------

    def frame(
        self,
        columns: str | Sequence[str] | None = None,
        *,
        sort: str | None = None,
        limit: Count | None = None,
        since: Time | None = None,
        until: Time | None = None,
        **filters: Any,
    ) -> pd.DataFrame:
        """The rows that fit as a DataFrame with the same columns and types whatever they hold.

        `columns` are names in the wanted order; without it all but secret ones. `since` and
        `until` bound ``created_at``, the first included and the second not, as ISO time or span
        (``"7d"``). Ids are text, times are in UTC, objects and lists are JSON text.
        """
        if isinstance(columns, str):
            columns = [columns]
        for name in columns or ():
            if name not in self.fields:
                raise UnknownName("column", name, self.fields, where=self.name)
        if columns is not None and (not columns or len(set(columns)) < len(columns)):
            raise ParameterError("'columns' takes names, each of them once.", name="columns")
        chosen = list(columns or (f.name for f in self.fields.values() if not f.secret))
        wanted = self._conditions(filters)
        for name, operator, value in (("since", "ge", since), ("until", "lt", until)):
            if value is not None:
                bound = moment(value, name=name)
                wanted.append(Condition(self.fields["created_at"], operator, bound))
        hidden = [] if self._reads is None or "id" in chosen else ["id"]
        frame = self._frame([*chosen, *hidden], wanted, self._order(sort), limit)
        if self._reads is not None:
            self._reads.record(frame["id"])
        return frame[chosen] if hidden else frame

    def head(self, count: Count = 5, *, sort: str | None = _NEWEST_FIRST) -> pd.DataFrame:
        """The newest `count` rows as a frame."""
        return self.frame(limit=count, sort=sort)

    # -- writing ------------------------------------------------------------------------------

    @abstractmethod
    def create(self, **values: Any) -> E:
        """A new row, as the database holds it. Raises `DuplicateKey`, `InvalidData`."""

    @abstractmethod
    def create_many(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """New rows, all or none, a thousand at a time in memory; how many they were."""

    def update(self, id: Id, *, version: Any = None, **changes: Any) -> E:
        """The row after `changes`, made in one statement.

        With `version`, the change is made only if nobody changed the row since it was read:
        ``updated_at`` of a row, ``version`` of a design. Raises `NotFound`, `StaleVersion`,
        `DuplicateKey`, `InvalidData`.
        """
        self._changeable("update")
        if not changes:
            raise ParameterError(f"update of {self.name} needs at least one field to change.")
        return self._change(id, self._values(changes), self._conditions({}), version)

    @abstractmethod
    def upsert(self, *, on: str | Sequence[str] = ("id",), **values: Any) -> tuple[E, bool]:
        """The row that has `values`, and whether it was created.

        `on` names the fields of a unique key. A row that has all the values already is left as
        it is, ``updated_at`` too. Safe when several do the same at once. A deleted row is not
        brought back: it raises `DuplicateKey`.
        """

    def delete(self, id: Id) -> E:
        """Remove the row for good, softly deleted or not; what it was.

        Raises `NotFound`, and `ForeignKeyViolation` while others refer to it.
        """
        self._changeable("delete")
        row = self._remove(self._id(id))
        if row is None:
            raise NotFound(self._noun, id)
        return self._entity(row)

    def soft_delete(self, id: Id, *, version: Any = None) -> E:
        """Hide the row: its ``deleted_at`` becomes now. Raises `NotFound`, `StaleVersion`."""
        return self._mark(id, self._deletion_time(), version)

    def restore(self, id: Id) -> E:
        """Show a softly deleted row again. Raises `NotFound` if it is not a deleted one."""
        return self._mark(id, None, None)

    def with_deleted(self) -> Self:
        """This repository, softly deleted rows in sight."""
        seeing = copy.copy(self)
        seeing._sees_deleted = True
        return seeing

    def with_read_audit(self, *, sample: Annotated[float, Range(0, 1, above=True)] = 1.0) -> Self:
        """This repository, what it gives out recorded in the trail as READ.

        Each call of `get`, `first`, `find`, `page`, `after`, `iterate`, `frame` and `head` records
        the entities it gives out by one further statement, for each batch of `iterate`, in the
        transaction that is open or else by itself; who reads is who acts (`Audit.context`). What
        cannot be recorded is not given out: the error of the trail is raised. Counts and what
        writing returns are no reads.

        With `sample`, over 0 up to 1, each entity is recorded with that probability, and its row
        says so in `metadata`. Raises `FeatureUnavailable` for the trail itself, and where there
        is no PostgreSQL to record in.
        """
        recording = copy.copy(self)
        recording._reads = ReadTrail(self._trail, self._noun, sample)
        return recording

    # -- what a store has to answer -----------------------------------------------------------

    @abstractmethod
    def _rows(
        self,
        wanted: Sequence[Condition],
        keys: Sequence[Key] = (),
        *,
        limit: int | None = None,
        offset: int = 0,
        behind: Sequence[Any] | None = None,
        fields: Sequence[str] | None = None,
    ) -> list[Row]: ...

    @abstractmethod
    def _count(self, wanted: Sequence[Condition]) -> int: ...

    @abstractmethod
    def _estimate(self, wanted: Sequence[Condition]) -> int: ...

    @abstractmethod
    def _frame(
        self,
        columns: list[str],
        wanted: Sequence[Condition],
        keys: Sequence[Key],
        limit: int | None,
    ) -> pd.DataFrame: ...

    @abstractmethod
    def _deletion_time(self) -> Any: ...

    @abstractmethod
    def _write(
        self, wanted: Sequence[Condition], values: Mapping[str, Any], version: Any
    ) -> Row | None:
        """The row that fits, after it got `values`; None if there is none of this `version`."""

    @abstractmethod
    def _remove(self, id: str) -> Row | None: ...

    def _entity(self, row: Row) -> E:
        return self.entity(**row)

    # -- shared -------------------------------------------------------------------------------

    def _mark(self, id: Id, deleted_at: Any, version: Any) -> E:
        self._changeable("soft delete or restore")
        live = Condition(self.fields["deleted_at"], "null", deleted_at is not None)
        return self._change(id, {"deleted_at": deleted_at}, [live], version)

    def _change(
        self, id: Id, values: Mapping[str, Any], conditions: Sequence[Condition], version: Any
    ) -> E:
        here = [Condition(self.fields["id"], "eq", self._id(id)), *conditions]
        row = self._write(here, values, version)
        if row is not None:
            return self._entity(row)
        if version is not None and self._rows(here, limit=1, fields=["id"]):
            raise StaleVersion(
                f"{self._noun} '{id}' was changed since it was read; read it again and repeat."
            )
        raise NotFound(self._noun, id)

    def _given(self, rows: Sequence[Row]) -> list[E]:
        """`rows` as entities, which are now given out."""
        entities = [self._entity(row) for row in rows]
        if self._reads is not None:
            self._reads.record(self._identity(row) for row in rows)
        return entities

    def _identity(self, row: Row) -> Any:
        """The key of the row as the store has it."""
        return row["id"]

    @abstractmethod
    def _odd(self, keys: Sequence[Key]) -> list[Key]:
        """Those of `keys` that some rows have no place by; a slice gives these last, by id."""

    def _marks(self, row: Row, keys: Sequence[Key]) -> list[Any]:
        """The sort values of `row` as JSON values, for a cursor."""
        values = [row[key.field.name] for key in keys]
        return [v.isoformat() if isinstance(v, datetime) else v for v in values]

    def _place(self, marks: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        """The sort values out of a cursor, which anybody may have written."""
        return [
            None if mark is None else checked(key.field, mark, label="cursor")
            for key, mark in zip(keys, marks, strict=True)
        ]

    @property
    def _noun(self) -> str:
        return self.entity.__name__

    @property
    def append_only(self) -> bool:
        """Whether rows are only created and read, as those of the audit log."""
        return "updated_at" not in self.fields

    def _changeable(self, verb: str) -> None:
        if self.append_only:
            raise FeatureUnavailable(
                f"{self.name} knows no {verb}: its rows are created and read, never changed."
            )

    def _id(self, id: Any) -> str:
        return str(checked(self.fields["id"], id, label="id"))

    def _conditions(self, filters: Mapping[str, Any]) -> list[Condition]:
        found = conditions(filters, self.fields, self.name)
        if not self._sees_deleted and "deleted_at" in self.fields:
            found.append(Condition(self.fields["deleted_at"], "null", True))
        return found

    def _order(self, sort: str | None) -> list[Key]:
        return paging.order(sort, self.fields, self.name)

    def _total_order(self, sort: str | None) -> list[Key]:
        return paging.total_order(sort, self.fields, self.name)

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` as the store takes it. Raises `InvalidData`."""
        self._known(given)
        return {name: written(self.fields[name], v, self.name) for name, v in given.items()}

    def _known(self, values: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise InvalidData(f"a row of {self.name} is a dictionary, not {shown(values)}.")
        for name in values:
            if name not in self.fields:
                raise UnknownName("field", name, self.fields, where=self.name)

    def __repr__(self) -> str:
        return f"<{self.name} of {self.database}: {', '.join(self.fields)}>"

    def _repr_html_(self) -> str:
        """The fields with kind and key, for notebooks; asks the database nothing."""
        body = "".join(
            f"<tr><td>{html.escape(field.name)}</td><td>{field.kind}</td><td>{note}</td></tr>"
            for field in self.fields.values()
            for note in (_note(field),)
        )
        return (
            f"<table><caption>{html.escape(self.name)} of {self.database}</caption>"
            f"<thead><tr><th>field</th><th>kind</th><th></th></tr></thead><tbody>{body}</tbody></table>"
        )


def _note(field: Field) -> str:
    if field.name == "id":
        return "key"
    if field.secret:
        return "secret: only when named"
    return "may be empty" if field.nullable else ""
