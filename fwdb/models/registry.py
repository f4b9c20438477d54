"""What an entity is: declared once, known everywhere.

An entity is a frozen dataclass and one `TableEntity` or `DocumentEntity` about it, both in
`entities`. Annotations say the rest of each field: ``Annotated[str, SECRET, Column(…)]``.
Repositories, audit trail, reports and seeding ask here and name no entity themselves.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Generic, Literal, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from fwdb.errors import UnknownName
from fwdb.models.columns import JSON, EntityId, Label, metadata
from fwdb.models.ids import document_id, is_id

__all__ = [
    "BOOKKEEPING",
    "COLLECTIONS",
    "ENTITIES",
    "MARK",
    "TABLES",
    "DocumentEntity",
    "Entity",
    "Field",
    "Kind",
    "Record",
    "TableEntity",
    "is_person",
    "is_personal",
]

E = TypeVar("E", bound="Record")
Kind = Literal["uuid", "entity id", "text", "integer", "boolean", "time", "json", "object", "list"]

MARK = "_audit"  # the field of a document in which a writer says who it is
# They follow every change by themselves, under the names of either store.
BOOKKEEPING = frozenset({"updated_at", "updatedAt", "version", MARK})
# Ids are pseudonyms: who an id is stands in the database alone. Neither is a time personal.
_NEVER_PERSONAL = frozenset(
    {"id", "user_id", "created_at", "updated_at", "deleted_at", "created_by", "updated_by"}
)


class Fact(Enum):
    """What an annotation may say of a field."""

    SECRET = auto()  # left out of frames, of repr and of the audit trail
    PUBLIC = auto()  # shown in reports, though the entity is about a person


SECRET, PUBLIC = Fact.SECRET, Fact.PUBLIC


@dataclass(frozen=True)
class Labels:
    """The words that a field takes."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of an entity.

    `stored` is its name in the store, `type` that of its value in Python. `nullable` is what the
    model allows; `may_be_empty` also covers what something older or other than fwdb wrote.
    `required` has no default. A `secret` field is in no frame and no sort order unless it is named.
    """

    name: str
    stored: str
    kind: Kind
    type: type[Any]
    nullable: bool
    may_be_empty: bool
    required: bool
    secret: bool
    public: bool
    labels: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether one value comes before another, so that rows can be sorted by it."""
        return self.kind not in {"json", "object", "list"}

    @property
    def dtype(self) -> str:
        """The type of its column in a frame, the same with and without empty values."""
        return _DTYPES[self.kind][self.nullable] if self.kind in _DTYPES else "string"


_DTYPES: dict[Kind, tuple[str, str]] = {  # never empty, maybe empty
    "integer": ("int64", "Int64"),
    "boolean": ("bool", "boolean"),
    "time": ("datetime64[us, UTC]", "datetime64[us, UTC]"),
}
_SQL_KINDS: dict[Any, Kind] = {EntityId: "entity id", sa.Uuid: "uuid", JSONB: "json"}
# Of each type in Python: its kind, what it is called, and its column.
_TYPES: dict[Any, tuple[Kind, str, Any]] = {
    str: ("text", "text", sa.Text()),
    int: ("integer", "a whole number", sa.Integer()),
    bool: ("boolean", "True or False", sa.Boolean()),
    datetime: ("time", "a time", sa.DateTime(timezone=True)),
    dict: ("object", "a dictionary", JSON),
    list: ("list", "a list", JSON),
}


class Record:
    """What the dataclasses of all entities have."""

    __slots__ = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the row or document, no values: ``("name is missing",)``."""
        entity = _OF_RECORD[type(self)]
        return tuple(entity.misfits({name: getattr(self, name) for name in entity.fields}))


class Entity(Generic[E]):
    """One kind of entity: what is stored of it, and what each part of fwdb does with it.

    `name` is the `entity_type` of the trail (``"User"``), `attribute` that of `Database`
    (``"users"``), `stored_in` the table or collection. `key` are the fields by which the seed data
    knows its own. `person` says whether it is about a person: then all fields but public ones, ids
    and times are personal data. `stored` has the name in the store of each field, `names` the way
    back; `secret` and `bookkeeping` (what follows each change by itself) are names in the store.
    """

    def __init__(
        self, record: type[E], stored_in: str, about: str, *, key: tuple[str, ...], person: bool
    ) -> None:
        self.record = record
        self.name = record.__name__
        self.stored_in = stored_in
        self.attribute = stored_in.rpartition(".")[2]
        self.about = about
        self.key = key
        self.person = person
        hints = typing.get_type_hints(record, include_extras=True)
        self.fields: dict[str, Field] = {}
        for member in dataclasses.fields(cast(Any, record)):
            hint, facts = hints[member.name], []
            if typing.get_origin(hint) is typing.Annotated:
                hint, *facts = typing.get_args(hint)
            nullable = isinstance(hint, types.UnionType)
            if nullable:
                (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            nothing = member.default is member.default_factory is dataclasses.MISSING
            given = {
                "name": member.name,
                "stored": member.name,
                "type": typing.get_origin(hint) or hint,
                "nullable": nullable,
                "required": nothing,
                "secret": SECRET in facts,
                "public": PUBLIC in facts,
                "labels": next((fact.words for fact in facts if isinstance(fact, Labels)), ()),
            }
            self.fields[member.name] = self._field(given, facts)
        self.stored = {field.name: field.stored for field in self.fields.values()}
        self.names = {stored: name for name, stored in self.stored.items()}
        self.required = tuple(field.name for field in self.fields.values() if field.required)
        self.secret = frozenset(field.stored for field in self.fields.values() if field.secret)
        self.bookkeeping = BOOKKEEPING & {*self.names}
        _OF_RECORD[record] = self

    def _field(self, given: dict[str, Any], facts: Sequence[Any]) -> Field:
        raise NotImplementedError

    def is_personal(self, path: str) -> bool:
        """Whether what is stored at `path`, a name or a path with dots, is personal data."""
        root = path.partition(".")[0]
        name = self.names.get(root, root)
        shown = name in _NEVER_PERSONAL or (name in self.fields and self.fields[name].public)
        return self.person and not shown

    def misfits(self, values: Mapping[str, Any]) -> list[str]:
        """What keeps `values` from being those of this entity, a sentence for each field."""
        found = []
        for name, value in values.items():
            field = self.fields[name]
            if value is None:
                if not field.nullable:
                    found.append(f"{name} is missing")
            elif _fitting(field.type, value) is None:
                kind = type(value)
                given = _TYPES[kind][1] if kind in _TYPES else f"of type {kind.__name__}"
                found.append(f"{name} is {given}, not {_TYPES[field.type][1]}")
            elif name == "id" and not is_id(value):
                found.append(
                    "id is neither a UUID nor an ObjectId, so that get() cannot ask for it"
                )
        return found


class TableEntity(Entity[E]):
    """An entity that is a row of PostgreSQL; triggers capture its changes if it is `trailed`.

    `table` is made of the annotations of the dataclass and of `rules`, its indexes.
    """

    def __init__(
        self,
        record: type[E],
        table: str,
        about: str,
        *rules: sa.schema.SchemaItem,
        key: tuple[str, ...] = ("id",),
        person: bool = False,
        trailed: bool = True,
    ) -> None:
        self._columns: list[sa.Column[Any]] = []
        super().__init__(record, table, about, key=key, person=person)
        # Downgrades drop only tables whose comment says that they are ours.
        parts = (*self._columns, *rules)
        schema, name = table.split(".")
        comment = f"{about} Made by fwdb."
        self.table = sa.Table(name, metadata, *parts, schema=schema, comment=comment)
        if trailed:
            ENTITIES[self.name] = TABLES[table] = self

    def _field(self, given: dict[str, Any], facts: Sequence[Any]) -> Field:
        column = next((fact for fact in facts if isinstance(fact, sa.Column)), sa.Column())
        column.name = column.key = given["name"]
        column.nullable = given["nullable"]
        if given["labels"]:
            column.type, column.info = Label(20), {"labels": given["labels"]}
        elif isinstance(column.type, sa.types.NullType):
            column.type = _TYPES[given["type"]][2]
        self._columns.append(column)
        sql = next((kind for t, kind in _SQL_KINDS.items() if isinstance(column.type, t)), None)
        # In tables that the existing service made, most columns with a default may be null.
        default = column.server_default is not None
        doubtful = default and sql != "uuid" and given["type"] is not datetime
        return Field(
            **given | {"required": given["required"] and not default},
            kind=sql or _TYPES[given["type"]][0],
            may_be_empty=column.nullable or doubtful,
        )


class DocumentEntity(Entity[E]):
    """An entity that is a document of MongoDB; the change stream captures its changes.

    A field ``user_id`` is stored as ``userId``, the id as ``_id``. What something else wrote may
    lack any field but the id.
    """

    def __init__(
        self,
        record: type[E],
        collection: str,
        about: str,
        *,
        key: tuple[str, ...] = ("id",),
        person: bool = False,
    ) -> None:
        super().__init__(record, collection, about, key=key, person=person)
        self.collection = collection
        self.bookkeeping |= {MARK}
        ENTITIES[self.name] = COLLECTIONS[collection] = self

    def _field(self, given: dict[str, Any], facts: Sequence[Any]) -> Field:
        if given["name"] == "id":
            own = {"stored": "_id", "required": False}
            return Field(**given | own, kind="entity id", may_be_empty=False)
        stored = re.sub("_([a-z])", lambda found: found[1].upper(), given["name"])
        kind = _TYPES[given["type"]][0]
        return Field(**given | {"stored": stored}, kind=kind, may_be_empty=True)

    def defaults(self) -> dict[str, Any]:
        """What a new document has that says nothing else."""
        empty = self.record(**dict.fromkeys(("id", *self.required)))
        return {name: getattr(empty, name) for name in self.fields}

    def document(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` of fields under the names of the document; only the top level is renamed.

        Takes any subset, so it serves a new document, a change and a filter. Raises `UnknownName`
        for a field that the entity does not have.
        """
        document: dict[str, Any] = {}
        for name, value in values.items():
            if name not in self.fields:
                raise UnknownName("field", name, self.fields, where=self.name)
            document[self.stored[name]] = document_id(value) if name == "id" else value
        return document

    def values(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the entity in `document`: ``Design(**DESIGNS.values(document))``.

        The id is text, times have their zone (MongoDB stores UTC). Fields that the entity does
        not have are left out, missing ones too; so are nulls where the entity has a default.
        """
        found: dict[str, Any] = {}
        for stored, value in document.items():
            name = self.names.get(stored)
            if name is None or value is None:
                continue
            if name == "id":
                value = str(value)
            elif isinstance(value, datetime) and value.tzinfo is None:
                value = value.replace(tzinfo=UTC)
            found[name] = value
        return found

    def cell(self, name: str, value: Any) -> Any:
        """`value` of a field for a column of a frame: objects as JSON, None for what cannot be.

        Text shows whatever stands in its place.
        """
        kind = self.fields[name].type
        objects = {dict, list}
        if value is not None and (kind in objects or (kind is str and type(value) in objects)):
            return json.dumps(value, ensure_ascii=False, default=str)
        return value if kind is str or value is None else _fitting(kind, value)

    def problems(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
    ) -> tuple[str, ...]:
        """What is wrong with these `columns` of `rows`, as ``"65a1…: name is missing"``."""
        found = []
        for row in rows:
            there = [name for name in columns if name in row or name in ("id", *self.required)]
            if said := self.misfits({name: row.get(name) for name in there}):
                found.append(f"{row.get('id')}: {'; '.join(said)}")
        if len(found) > _MOST_PROBLEMS:
            found[_MOST_PROBLEMS:] = [f"and {len(found) - _MOST_PROBLEMS:,} more"]
        return tuple(found)


_MOST_PROBLEMS = 100

# All entities whose changes the trail records, by name, table (``"shared.users"``), collection.
ENTITIES: dict[str, Entity[Any]] = {}
TABLES: dict[str, TableEntity[Any]] = {}
COLLECTIONS: dict[str, DocumentEntity[Any]] = {}
_OF_RECORD: dict[type[Record], Entity[Any]] = {}


def is_person(entity_type: str) -> bool:
    """Whether entities of this type are about a person; those that nobody knows may be."""
    known = ENTITIES.get(entity_type)
    return known is None or known.person


def is_personal(entity_type: str, path: str) -> bool:
    """Whether what is stored at `path`, a name or a path with dots, is personal data."""
    known = ENTITIES.get(entity_type)
    if known is None:
        return path.partition(".")[0] not in _NEVER_PERSONAL
    return known.is_personal(path)


def _fitting(kind: type[Any], value: Any) -> Any:
    """`value`, if it is of this type or a float that is whole where this is int; else None."""
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and abs(value) < 2**63 else None
    return value if isinstance(value, kind) else None
