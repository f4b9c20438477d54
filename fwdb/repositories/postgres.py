"""Repositories over tables of PostgreSQL."""

from __future__ import annotations

import operator as op
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, TypeVar

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from fwdb.arguments import checks_arguments
from fwdb.errors import DuplicateKey, InvalidData, ParameterError, StaleVersion
from fwdb.models import EntityId, Label, Record, TableEntity, entity_id
from fwdb.repositories.base import Repository, Row
from fwdb.repositories.fields import checked
from fwdb.repositories.filters import Condition
from fwdb.repositories.paging import Key
from fwdb.stores import PostgresStore

E = TypeVar("E", bound=Record)

_BATCH = 1_000  # rows per INSERT


@checks_arguments
class PostgresRepository(Repository[E]):
    """The rows of one table. Columns the model does not know are left alone and left out."""

    database = PostgresStore.name

    def __init__(self, store: PostgresStore, entity: TableEntity[E]) -> None:
        super().__init__(entity, store)
        self._store = store
        self._table = entity.table
        self._columns = list(entity.table.columns)

    # -- reading ------------------------------------------------------------------------------

    def _rows(
        self,
        wanted: Sequence[Condition],
        keys: Sequence[Key] = (),
        *,
        limit: int | None = None,
        offset: int = 0,
        behind: Sequence[Any] | None = None,
        fields: Sequence[str] | None = None,
    ) -> list[Row]:
        statement = self._select(fields, wanted, keys).limit(limit)
        if offset:
            statement = statement.offset(offset)
        if behind:
            statement = statement.where(self._behind(keys, behind))
        try:
            return self._store.rows(statement)
        except InvalidData:  # a time that Python does not have: infinity, BC, after the year 9999
            times = [c for c in statement.selected_columns if isinstance(c.type, sa.DateTime)]
            texts = {c.name: sa.cast(c, sa.Text).label(c.name) for c in times}
            columns = [texts.get(c.name, c) for c in statement.selected_columns]
            rows = self._store.rows(statement.with_only_columns(*columns))
            return [row | {name: _time(row[name]) for name in texts} for row in rows]

    def _odd(self, keys: Sequence[Key]) -> list[Key]:
        # An existing table may hold NULL where the model does not, and no comparison finds it.
        return [k for k in keys if not k.field.may_be_empty and k.field.name != "id"]

    def _place(self, marks: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        # A time that `_rows` gives as text is compared by the server, which knows it.
        times = [
            key.field.kind == "time" and isinstance(mark, str)
            for key, mark in zip(keys, marks, strict=True)
        ]
        rest = [None if time else mark for time, mark in zip(times, marks, strict=True)]
        found = zip(times, marks, super()._place(rest, keys), strict=True)
        return [_time(mark) if time else value for time, mark, value in found]

    def _select(
        self, fields: Sequence[str] | None, wanted: Sequence[Condition], keys: Sequence[Key]
    ) -> sa.Select[Any]:
        columns = self._columns if fields is None else [self._table.c[name] for name in fields]
        return sa.select(*columns).where(*self._where(wanted)).order_by(*map(self._sorted, keys))

    def _where(self, wanted: Sequence[Condition]) -> list[sa.ColumnElement[bool]]:
        return [_clause(self._table.c[each.field.name], each) for each in wanted]

    def _sorted(self, key: Key) -> sa.ColumnElement[Any]:
        column = self._table.c[key.field.name]
        if not key.field.may_be_empty:  # said plainly, an index can give the order
            return column.desc() if key.descending else column.asc()
        return column.desc().nulls_last() if key.descending else column.asc().nulls_first()

    def _behind(self, keys: Sequence[Key], values: Sequence[Any]) -> sa.ColumnElement[bool]:
        """True for the rows behind `values` in the order of `keys`."""
        columns = [self._table.c[key.field.name] for key in keys]
        bound = [sa.literal(v, c.type) for v, c in zip(values, columns, strict=True)]
        if len({key.descending for key in keys}) == 1 and not any(
            key.field.may_be_empty for key in keys
        ):
            # One comparison of rows is what an index on these columns can answer.
            here, there = sa.tuple_(*columns), sa.tuple_(*bound)
            return here < there if keys[0].descending else here > there
        ways: list[sa.ColumnElement[bool]] = []
        equal: list[sa.ColumnElement[bool]] = []
        for key, column, value, literal in zip(keys, columns, values, bound, strict=True):
            further: sa.ColumnElement[bool]
            same: sa.ColumnElement[bool]
            if value is None:
                further = sa.false() if key.descending else column.is_not(None)
                same = column.is_(None)
            else:
                further = column < literal if key.descending else column > literal
                if key.descending and key.field.may_be_empty:
                    further = sa.or_(further, column.is_(None))
                same = column == literal
            ways.append(sa.and_(*equal, further))
            equal.append(same)
        return sa.or_(*ways)

    def _count(self, wanted: Sequence[Condition]) -> int:
        statement = (
            sa.select(sa.func.count().label("count"))
            .select_from(self._table)
            .where(*self._where(wanted))
        )
        return int(self._store.rows(statement)[0]["count"])

    def _estimate(self, wanted: Sequence[Condition]) -> int:
        """What the planner expects, from the statistics of the last ANALYZE."""
        # One column of no type, so that the plan comes back as it is.
        plan: sa.Select[Any] = sa.select(sa.literal_column("1").label("plan")).select_from(
            self._table
        )
        found = self._store.rows(_Explain(plan.where(*self._where(wanted))))[0]["plan"]
        return int(found[0]["Plan"]["Plan Rows"])

    def _frame(
        self,
        columns: list[str],
        wanted: Sequence[Condition],
        keys: Sequence[Key],
        limit: int | None,
    ) -> pd.DataFrame:
        frame = self._store.frame(self._select(columns, wanted, keys).limit(limit))
        for name in columns:
            if isinstance(self._table.c[name].type, EntityId):
                frame[name] = _entity_ids(frame[name])
        return frame

    # -- writing ------------------------------------------------------------------------------

    def create(self, **values: Any) -> E:
        statement = sa.insert(self._table).values(self._values(values)).returning(*self._columns)
        return self._entity(self._store.rows(statement)[0])

    def create_many(self, rows: Iterable[Mapping[str, Any]]) -> int:
        rest, count = iter(rows), 0
        with self._store.transaction() as connection:
            while batch := [self._values(row) for row in islice(rest, _BATCH)]:
                for names, group in groupby(batch, key=tuple):
                    many = list(group)
                    statement = sa.insert(self._table)
                    if names:
                        connection.execute(statement, many)
                    else:
                        for _ in many:
                            connection.execute(statement)
                count += len(batch)
        return count

    def _deletion_time(self) -> Any:
        return sa.func.now()

    def _write(
        self, wanted: Sequence[Condition], values: Mapping[str, Any], version: Any
    ) -> Row | None:
        held = self._where(wanted)
        if version is not None:
            read = checked(self.fields["updated_at"], version, label="version")
            held.append(self._table.c.updated_at == read)
        # The time also where a trigger sets it: not every existing table has one.
        changed = (
            sa.update(self._table).where(*held).values({"updated_at": sa.func.now(), **values})
        )
        return next(iter(self._store.rows(changed.returning(*self._columns))), None)

    def _remove(self, id: str) -> Row | None:
        gone = sa.delete(self._table).where(self._table.c.id == id).returning(*self._columns)
        return next(iter(self._store.rows(gone)), None)

    def upsert(self, *, on: str | Sequence[str] = ("id",), **values: Any) -> tuple[E, bool]:
        self._changeable("upsert")
        keys = self._unique_key(on, values)
        new = self._values(values)
        insert = pg_insert(self._table).values(new)
        # An id given for a row that exists under another one is not forced upon it.
        changed = {name: insert.excluded[name] for name in new if name not in {*keys, "id"}}
        differs = [self._table.c[name].is_distinct_from(value) for name, value in changed.items()]
        if changed:
            insert = insert.on_conflict_do_update(
                index_elements=list(keys),
                set_={"updated_at": sa.func.now(), **changed},
                where=sa.and_(sa.or_(*differs), *self._where(self._conditions({}))),
            )
        else:
            insert = insert.on_conflict_do_nothing(index_elements=list(keys))
        # A row version made by INSERT has no xmax; one made by ON CONFLICT UPDATE has.
        created: sa.Label[bool] = sa.literal_column("xmax = 0", sa.Boolean).label("created")
        same = [self._table.c[name] == new[name] for name in keys]
        for _ in range(_UPSERT_ROUNDS):
            rows = self._store.rows(insert.returning(*self._columns, created))
            if rows:
                was_created = bool(rows[0].pop("created"))
                return self._entity(rows[0]), was_created
            # Nothing was written: the row has these values already, or is deleted.
            found = self._store.rows(sa.select(*self._columns).where(*same))
            if found and not self._sees_deleted and found[0].get("deleted_at") is not None:
                raise DuplicateKey(
                    f"a deleted row of {self.name} has the same {', '.join(keys)}; "
                    "restore it or delete it for good.",
                    fields=keys,
                )
            if found:
                return self._entity(found[0]), False
        raise StaleVersion(f"the row of {self.name} came and went while it was written; try again.")

    def _unique_key(self, on: str | Sequence[str], values: Mapping[str, Any]) -> tuple[str, ...]:
        keys = (on,) if isinstance(on, str) else tuple(on)
        self._known(dict.fromkeys(keys))
        unique = [("id",)] + [
            tuple(column.name for column in constraint.columns)
            for constraint in self._table.constraints
            if isinstance(constraint, sa.UniqueConstraint)
        ]
        if sorted(keys) not in [sorted(names) for names in unique]:
            choices = " or ".join(", ".join(names) for names in sorted(unique))
            raise ParameterError(
                f"'on' is {', '.join(keys)}, which is no unique key of {self.name}; use {choices}.",
                name="on",
            )
        for name in keys:
            if values.get(name) is None:
                raise InvalidData(f"upsert on {name} needs a value for {name}.")
        return keys


_UPSERT_ROUNDS = 3  # each further round means that another session removed the row in between


def _time(text: str | None) -> datetime | str | None:
    """The time that PostgreSQL wrote as `text`, which stays text where Python has no such time."""
    try:
        return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return text


def _clause(column: sa.Column[Any], condition: Condition) -> sa.ColumnElement[bool]:
    value = condition.value
    found: sa.ColumnElement[bool]
    match condition.operator:
        case "placed":
            return sa.and_(*(column.table.c[key.field.name].is_not(None) for key in value))
        case "placeless":
            return sa.or_(*(column.table.c[key.field.name].is_(None) for key in value))
        case "null":
            return column.is_(None) if value else column.is_not(None)
        case "eq":
            return column.is_(None) if value is None else column == value
        case "ne":
            return column.is_not(None) if value is None else column.is_distinct_from(value)
        case "in":
            found = column.in_([item for item in value if item is not None])
            return sa.or_(found, column.is_(None)) if None in value else found
        case "like":
            # An enum, which such a column may be in an existing table, has no patterns.
            text = sa.cast(column, sa.Text) if isinstance(column.type, Label) else column
            return text.ilike(value)
        case "contains":
            return column.contains(sa.literal(value, JSONB))
        case operator:
            found = _COMPARE[operator](column, value)
            return found


_COMPARE = {"gt": op.gt, "ge": op.ge, "lt": op.lt, "le": op.le}


def _entity_ids(values: pd.Series[Any]) -> pd.Series[Any]:
    """Ids out of the uuid column that holds those of both stores."""
    tagged = values.str.slice(14, 23) == "8fdb-8f0d"
    if not tagged.any():
        return values
    return values.mask(tagged, values[tagged].map(entity_id).astype("str"))


class _Explain(sa.Executable, sa.ClauseElement):
    """The plan of a statement in place of its rows."""

    inherit_cache = False

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain, "postgresql")
def _explain(element: _Explain, compiler: SQLCompiler, **options: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.statement, **options)}"
