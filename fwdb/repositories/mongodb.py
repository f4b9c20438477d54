"""Repositories over collections of MongoDB."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import pandas as pd
from bson import (
    Binary,
    Code,
    DatetimeMS,
    Decimal128,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    json_util,
)
from bson.errors import BSONError

from fwdb.arguments import checks_arguments
from fwdb.errors import (
    DuplicateKey,
    FeatureUnavailable,
    InvalidData,
    NotFound,
    ParameterError,
    StaleVersion,
    Transient,
)
from fwdb.models import DocumentEntity, Record, document_id
from fwdb.repositories import paging
from fwdb.repositories.base import Repository, Row
from fwdb.repositories.fields import checked
from fwdb.repositories.filters import Condition, like_pattern
from fwdb.repositories.paging import Key
from fwdb.stores import MongoStore, PostgresStore, actor, frames
from fwdb.stores.mongodb import Document

E = TypeVar("E", bound=Record)

_BATCH = 1_000  # documents per insert
_CANONICAL = json_util.CANONICAL_JSON_OPTIONS
_REMOVE_ROUNDS = 3  # each further round means that another session wrote the document meanwhile
_UPSERT_ROUNDS = 3  # each further round means that another session removed the document in between


@checks_arguments
class MongoRepository(Repository[E]):
    """The documents of one collection. `version` starts at 1 and grows with every change; times
    have milliseconds.

    Fields that the entity does not know are left alone and left out. While somebody acts
    (`Audit.context`), each write says so in the field ``_audit``, for whoever follows the changes.
    `trail` is where reads are recorded.
    """

    database = MongoStore.name

    def __init__(
        self, store: MongoStore, entity: DocumentEntity[E], *, trail: PostgresStore | None = None
    ) -> None:
        super().__init__(entity, trail)
        self._documents = entity
        self._store = store

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
        query = _query(wanted)
        if behind:
            query = {"$and": [query, _behind(keys, behind)]}
        names = list(fields if fields is not None else self.fields)
        with self._store.errors():
            cursor = self._store.collection(self.name).find(
                query,
                {"_id": True, **{self.fields[name].stored: True for name in names}},
                sort=[(k.field.stored, -1 if k.descending else 1) for k in keys] or None,
                skip=offset,
                limit=limit or 0,
                session=self._store.session,
            )
            return [
                {**self._documents.values(document), "_id": document["_id"]} for document in cursor
            ]

    def _count(self, wanted: Sequence[Condition]) -> int:
        with self._store.errors():
            return self._store.collection(self.name).count_documents(
                _query(wanted), session=self._store.session
            )

    def _estimate(self, wanted: Sequence[Condition]) -> int:
        """What the collection says of itself, deleted documents included; counted if filtered."""
        if any(condition.field.name != "deleted_at" for condition in wanted):
            return self._count(wanted)
        with self._store.errors():
            return self._store.collection(self.name).estimated_document_count()

    def _frame(
        self,
        columns: list[str],
        wanted: Sequence[Condition],
        keys: Sequence[Key],
        limit: int | None,
    ) -> pd.DataFrame:
        rows = self._rows(wanted, keys, limit=limit, fields=columns)
        values = [[self._documents.cell(name, row.get(name)) for name in columns] for row in rows]
        # Any field may be missing in a document, so no column is of a type without a gap.
        types = {
            name: {"int64": "Int64", "bool": "boolean"}.get(field.dtype, field.dtype)
            for name, field in self.fields.items()
        }
        frame = frames.from_rows(columns, values, types)
        frame.attrs["problems"] = self._documents.problems(rows, columns)
        return frame

    def _entity(self, row: Row) -> E:
        known = {name: value for name, value in row.items() if name != "_id"}
        return self.entity(**{**dict.fromkeys(("id", *self._documents.required)), **known})

    def _identity(self, row: Row) -> Any:
        return row["_id"]

    def _odd(self, keys: Sequence[Key]) -> list[Key]:
        # A sort puts a list where its least or greatest element belongs, and a comparison finds it
        # by any.
        return [key for key in keys if key.field.name != "id"]

    def _marks(self, row: Row, keys: Sequence[Key]) -> list[Any]:
        values = [row.get("_id" if k.field.name == "id" else k.field.name) for k in keys]
        return list(json.loads(json_util.dumps(values, json_options=_CANONICAL)))

    def _place(self, marks: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        try:
            values = list(json_util.loads(json.dumps(marks), json_options=_CANONICAL))
        except (ValueError, TypeError, KeyError, OverflowError, BSONError):
            raise paging.broken() from None
        if any(_places(value) == [] for value in values):
            raise paging.broken()
        return values

    # -- writing ------------------------------------------------------------------------------

    def create(self, **values: Any) -> E:
        document = self._new(values)
        with self._store.errors():
            self._store.collection(self.name).insert_one(document, session=self._store.session)
        return self._entity(self._documents.values(document))

    def create_many(self, rows: Iterable[Mapping[str, Any]]) -> int:
        rest, count = iter(rows), 0
        with self._store.transaction() as session:
            while batch := [self._new(row) for row in islice(rest, _BATCH)]:
                self._store.collection(self.name).insert_many(batch, session=session)
                count += len(batch)
        return count

    def _deletion_time(self) -> Any:
        return _now()

    def _write(
        self, wanted: Sequence[Condition], values: Mapping[str, Any], version: Any
    ) -> Row | None:
        held = [*wanted]
        if version is not None:
            field = self.fields["version"]
            held.append(Condition(field, "eq", checked(field, version, label="version")))
        document = self._documents.document({"updated_at": _now(), **values}) | actor.marked()
        parts = {
            "$set": {name: value for name, value in document.items() if value is not None},
            "$inc": {"version": 1},
            "$unset": {name: "" for name, value in document.items() if value is None},
        }
        change = {operator: part for operator, part in parts.items() if part}
        with self._store.errors():
            found = self._store.collection(self.name).find_one_and_update(
                _query(held), change, return_document=True, session=self._store.session
            )
        return found and self._documents.values(found)

    def upsert(self, *, on: str | Sequence[str] = ("id",), **values: Any) -> tuple[E, bool]:
        if (on,) != ("id",) and tuple(on) != ("id",):
            self._known(dict.fromkeys((on,) if isinstance(on, str) else on))
            raise ParameterError(f"'on' names no unique key of {self.name}; use id.", name="on")
        if values.get("id") is None:
            raise InvalidData("upsert on id needs a value for id.")
        if "version" in values:
            raise ParameterError(
                f"the version of a {self._word} cannot be changed.", name="version"
            )
        new = self._values(values)
        id = new.pop("id")
        seeing = self.with_deleted()
        for _ in range(_UPSERT_ROUNDS):
            rows = seeing._rows(seeing._conditions({"id": id}), limit=1)
            if rows and not self._sees_deleted and "deleted_at" in rows[0]:
                raise DuplicateKey(
                    f"a deleted row of {self.name} has the same id; "
                    "restore it or delete it for good.",
                    fields=("id",),
                )
            if rows and all(rows[0].get(name) == value for name, value in new.items()):
                return self._entity(rows[0]), False
            try:
                if rows:
                    return self._change(id, new, self._conditions({}), None), False
                return self.create(**values), True
            except (NotFound, DuplicateKey):
                if self._store.session is not None:
                    raise
        raise StaleVersion(f"the {self._word} came and went while it was written; try again.")

    def _remove(self, id: str) -> Row | None:
        here, mark = {"_id": document_id(id)}, actor.marked(deleting=True)
        found = self._remove_named(here, mark) if mark else self._take(here)
        return found and self._documents.values(found)

    def _take(self, here: Document) -> Document | None:
        with self._store.errors():
            return self._store.collection(self.name).find_one_and_delete(
                here, session=self._store.session
            )

    def _remove_named(self, here: Document, mark: Document) -> Document | None:
        """Remove after a mark of who does it, for a removal itself can carry none.

        Both are one transaction, except on a server that has none.
        """

        def work() -> Document | None:
            with self._store.errors():
                self._store.collection(self.name).update_one(
                    here, {"$set": mark}, session=self._store.session
                )
            return self._take(here)

        if self._store.session is not None:
            return work()
        for left in reversed(range(_REMOVE_ROUNDS)):
            try:
                with self._store.transaction():
                    return work()
            except FeatureUnavailable:
                return work()
            except Transient:
                if not left:
                    raise
        raise AssertionError("unreachable: the last round returns or raises")

    @property
    def _word(self) -> str:
        """What one of them is called in a sentence."""
        return self._noun.lower()

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._values(given)
        for name, value in values.items():
            labels = self.fields[name].labels
            if labels and value not in (None, *labels):
                raise InvalidData(f"{name} of {self.name} is one of {', '.join(labels)}.")
        # A date of MongoDB has milliseconds; what is given back must be what is stored.
        return {n: _milliseconds(v) if isinstance(v, datetime) else v for n, v in values.items()}

    def _new(self, given: Mapping[str, Any]) -> Document:
        """The document of a new entity, with defaults and times; the driver adds a missing id."""
        known = self._values(given)
        missing = [name for name in self._documents.required if given.get(name) is None]
        if missing:
            raise InvalidData(f"a new {self._word} needs {' and '.join(missing)}.")
        now = _now()
        values = {**self._documents.defaults(), "created_at": now, "updated_at": now, **known}
        document = self._documents.document({n: v for n, v in values.items() if v is not None})
        return document | actor.marked()


def _query(wanted: Sequence[Condition]) -> Document:
    parts = [part for condition in wanted for part in _parts(condition)]
    return {"$and": parts} if parts else {}


def _parts(condition: Condition) -> list[Document]:
    """What must hold of the document; every value stands behind an operator of ours."""
    field = condition.field
    stored, value = field.stored, condition.value
    if field.name == "id" and condition.operator not in {"null", "placed", "placeless"}:
        value = (
            [document_id(i) for i in value] if condition.operator == "in" else document_id(value)
        )
    match condition.operator:
        case "placed" | "placeless" as which:
            lists = [{key.field.stored: {"$type": "array"}} for key in value]
            return [{"$nor" if which == "placed" else "$or": lists}]
        case "null":
            return [{stored: {"$eq" if value else "$ne": None}}]
        case "ge" | "le":
            return [{stored: {f"${condition.operator[0]}te": value}}]
        case "like":
            return [{stored: {"$regex": like_pattern(value), "$options": "is"}}]
        case "contains":
            return [_contained(stored, value)]
        case operator:
            return [{stored: {f"${operator}": value}}]


def _contained(path: str, value: Any) -> Document:
    """`value` as part of what is at `path`: keys of an object, elements of a list."""
    if isinstance(value, Mapping):
        inside = {p: c for n, v in value.items() for p, c in _contained(f"{path}.{n}", v).items()}
        return inside or {path: {"$type": "object"}}
    if isinstance(value, (list, tuple)):
        elements = [{"$elemMatch": _element(item)} for item in value]
        return {path: {"$type": "array", **({"$all": elements} if elements else {})}}
    return {path: {"$eq": value}}


def _element(item: Any) -> Document:
    if isinstance(item, Mapping):
        return {p: c for n, v in item.items() for p, c in _contained(n, v).items()}
    return {"$eq": item}


def _behind(keys: Sequence[Key], values: Sequence[Any]) -> Document:
    """The documents behind `values` in the order of `keys`; an empty field comes first."""
    ways: list[Document] = []
    equal: list[Document] = []
    for key, value in zip(keys, values, strict=True):
        stored = key.field.stored
        ways += [{"$and": [*equal, further]} for further in _further(stored, key, value)]
        equal.append({stored: {"$eq": value}})
    return {"$or": ways} if ways else {"_id": {"$in": []}}


# Values of different types in the order that a sort gives them:
# https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/
# A list has a place for each of its elements, see `MongoRepository._odd`.
_ORDER: tuple[tuple[str, tuple[type[Any], ...]], ...] = (
    ("minKey", (MinKey,)),
    ("null", (type(None),)),
    ("number", (int, float, Decimal128)),
    ("string", (str,)),
    ("object", (Mapping,)),
    ("binData", (bytes, Binary, UUID)),
    ("objectId", (ObjectId,)),
    ("bool", (bool,)),
    ("date", (datetime, DatetimeMS)),
    ("timestamp", (Timestamp,)),
    ("regex", (Regex,)),
    ("javascript", (Code,)),
    ("maxKey", (MaxKey,)),
)


def _places(value: Any) -> list[int]:
    """Where the type of `value` is in `_ORDER`; the last one, for True is an int to Python."""
    return [place for place, (_, kinds) in enumerate(_ORDER) if isinstance(value, kinds)]


def _further(stored: str, key: Key, value: Any) -> list[Document]:
    """What is behind `value`: others of its type, for a comparison sees no more, and types."""
    place = _places(value)[-1]
    names = [name for name, _ in _ORDER]
    others = names[:place] if key.descending else names[place + 1 :]
    ways: list[Document] = []
    if value is None:
        pass
    elif value != value:  # NaN is before all numbers, and unlike each
        ways += [] if key.descending else [{stored: {"$gte": -math.inf}}]
    else:
        ways.append({stored: {"$lt" if key.descending else "$gt": value}})
        if key.descending and names[place] == "number":
            ways.append({stored: {"$eq": math.nan}})
    if "null" in others:
        others.remove("null")
        if key.field.may_be_empty or stored == "_id":
            ways.append({stored: {"$eq": None}})  # or missing
    if others:
        ways.append({stored: {"$type": others}})
    return ways


def _now() -> datetime:
    return _milliseconds(datetime.now(UTC))


def _milliseconds(value: datetime) -> datetime:
    return value.replace(microsecond=value.microsecond // 1000 * 1000)
