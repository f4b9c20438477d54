"""What an entity is: declared once, known everywhere.

An entity is a frozen dataclass and one `TableEntity` or `DocumentEntity` about it, both in
`entities`. The fields say the rest in their annotations: ``Annotated[str, SECRET, Column(…)]``.
Repositories, audit trail, reports and seeding ask here and name no entity themselves.
"""

from __future__ import annotations

import dataclasses
import functools
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

from fwdb.errors import ParameterError, UnknownName
from fwdb.models.columns import JSON, EntityId, Label, metadata
from fwdb.models.ids import document_id, entity_uuid

__all__ = [
    "BOOKKEEPING",
    "COLLECTIONS",
    "ENTITIES",
    "MARK",
    "PUBLIC",
    "SECRET",
    "TABLES",
    "DocumentEntity",
    "Entity",
    "Field",
    "Kind",
    "Labels",
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


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an entity.

    `stored` is its name in the store, `type` that of its value in Python. `nullable` is what the
    model allows; `may_be_empty` also covers what something older or other than fwdb wrote. A
    `secret` field is in no frame and no sort order unless it is named.
    """

    name: str
    stored: str
    kind: Kind
    type: type[Any]
    nullable: bool
    may_be_empty: bool
    required: bool  # has no default, neither here nor in the database
    secret: bool = False
    public: bool = False
    labels: tuple[str, ...] = ()

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
_KINDS: dict[Any, Kind] = {
    str: "text",
    int: "integer",
    bool: "boolean",
    datetime: "time",
    dict: "object",
    list: "list",
}
_SQL_KINDS: dict[Any, Kind] = {EntityId: "entity id", sa.Uuid: "uuid", JSONB: "json"}
_SQL_TYPES: dict[Any, Any] = {
    str: sa.Text(),
    int: sa.Integer(),
    bool: sa.Boolean(),
    datetime: sa.DateTime(timezone=True),
    dict: JSON,
}


class Record:
    """What the dataclasses of all entities have."""

    __slots__ = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the row or document, no values: ``("name is missing",)``."""
        kind: Any = type(self)
        return tuple(misfits(kind, {name: getattr(self, name) for name in annotated(kind)}))


@dataclass(frozen=True, kw_only=True, eq=False)
class Entity(Generic[E]):
    """One kind of entity: what is stored of it, and what each part of fwdb does with it.

    `key` are the fields by which the seed data knows its own. `person` says whether it is about a
    person: then all fields but `PUBLIC` ones, ids and times are personal data.
    """

    record: type[E]
    about: str
    key: tuple[str, ...] = ("id",)
    person: bool = False
    fields: Mapping[str, Field] = dataclasses.field(init=False)

    @property
    def name(self) -> str:
        """The `entity_type` of the trail: ``"User"``."""
        return self.record.__name__

    @property
    def attribute(self) -> str:
        """The attribute of `Database`: ``"users"``."""
        raise NotImplementedError

    @property
    def stored_in(self) -> str:
        """The table with its schema, or the collection."""
        raise NotImplementedError

    @functools.cached_property
    def names(self) -> Mapping[str, str]:
        """Name in the store -> field."""
        return {field.stored: field.name for field in self.fields.values()}

    @functools.cached_property
    def stored(self) -> Mapping[str, str]:
        """Field -> name in the store."""
        return {field.name: field.stored for field in self.fields.values()}

    @property
    def secret(self) -> frozenset[str]:
        """Stored names of what is never shown."""
        return frozenset(field.stored for field in self.fields.values() if field.secret)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields that a new entity must be given."""
        return tuple(field.name for field in self.fields.values() if field.required)

    @property
    def bookkeeping(self) -> frozenset[str]:
        """Stored names of what follows each change by itself."""
        return BOOKKEEPING & {*self.names, MARK}

    def is_personal(self, path: str) -> bool:
        """Whether what is stored at `path`, a name or a path with dots, is personal data."""
        root = path.partition(".")[0]
        name = self.names.get(root, root)
        shown = name in _NEVER_PERSONAL or (name in self.fields and self.fields[name].public)
        return self.person and not shown


# All entities whose changes the trail records, by name.
ENTITIES: dict[str, Entity[Any]] = {}
TABLES: dict[str, TableEntity[Any]] = {}  # the same by table, ``"shared.users"``
COLLECTIONS: dict[str, DocumentEntity[Any]] = {}  # and by collection


@dataclass(frozen=True, kw_only=True, eq=False)
class TableEntity(Entity[E]):
    """An entity that is a row of PostgreSQL; triggers capture its changes if it is `trailed`.

    `table` is made of the annotations of the dataclass and of `rules`, its indexes.
    """

    table_name: str
    rules: tuple[sa.schema.SchemaItem, ...] = ()
    trailed: bool = True
    table: sa.Table = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        columns, fields = [], {}
        for name, (kind, nullable, facts) in annotated(cast(Any, self.record)).items():
            column = next((f for f in facts if isinstance(f, sa.Column)), None)
            column = sa.Column() if column is None else column
            labels = next((f.words for f in facts if isinstance(f, Labels)), ())
            if labels:
                column.type, column.info = Label(20), {"labels": labels}
            elif isinstance(column.type, sa.types.NullType):
                column.type = _SQL_TYPES[kind]
            column.name = column.key = name
            column.nullable = nullable
            columns.append(column)
            sql = next((k for t, k in _SQL_KINDS.items() if isinstance(column.type, t)), None)
            # In tables that the existing service made, most columns with a default may be null.
            given = column.server_default is not None
            fields[name] = Field(
                name=name,
                stored=name,
                kind=sql or _KINDS[kind],
                type=kind,
                nullable=nullable,
                may_be_empty=nullable or (given and sql != "uuid" and kind is not datetime),
                required=not nullable and not given,
                secret=SECRET in facts,
                public=PUBLIC in facts,
                labels=labels,
            )
        schema, _, name = self.table_name.partition(".")
        made = sa.Table(
            name,
            metadata,
            *columns,
            *self.rules,
            schema=schema,
            comment=f"{self.about} Made by fwdb.",  # downgrades drop only tables that say so
        )
        object.__setattr__(self, "table", made)
        object.__setattr__(self, "fields", fields)
        if self.trailed:
            ENTITIES[self.name] = TABLES[self.table_name] = self

    @property
    def attribute(self) -> str:
        return self.table.name

    @property
    def stored_in(self) -> str:
        return self.table_name


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentEntity(Entity[E]):
    """An entity that is a document of MongoDB; the change stream captures its changes.

    A field ``user_id`` is stored as ``userId``, the id as ``_id``.
    """

    collection: str

    def __post_init__(self) -> None:
        fields = {}
        given = self.defaults()
        for name, (kind, nullable, facts) in annotated(cast(Any, self.record)).items():
            is_id = name == "id"
            fields[name] = Field(
                name=name,
                stored="_id" if is_id else _camel(name),
                kind="entity id" if is_id else _KINDS[kind],
                type=kind,
                nullable=nullable,
                may_be_empty=not is_id,  # what something else wrote may lack any other
                required=name not in given and not is_id,
                secret=SECRET in facts,
                public=PUBLIC in facts,
                labels=next((f.words for f in facts if isinstance(f, Labels)), ()),
            )
        object.__setattr__(self, "fields", fields)
        ENTITIES[self.name] = COLLECTIONS[self.collection] = self

    @property
    def attribute(self) -> str:
        return self.collection

    @property
    def stored_in(self) -> str:
        return self.collection

    def document(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` of fields under the names of the document; only the top level is renamed.

        Takes any subset, so it serves a new document, a change and a filter. Raises `UnknownName`
        for a field that the entity does not have.
        """
        document: dict[str, Any] = {}
        for name, value in values.items():
            if name not in self.fields:
                raise UnknownName("field", name, self.fields, where=self.name)
            document[self.fields[name].stored] = document_id(value) if name == "id" else value
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

    def defaults(self) -> dict[str, Any]:
        """What a new document has that says nothing else."""
        found = {}
        for field in dataclasses.fields(cast(Any, self.record)):
            if field.default is not dataclasses.MISSING:
                found[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                found[field.name] = field.default_factory()
        return found

    def cell(self, name: str, value: Any) -> Any:
        """`value` of a field for a column of a frame: objects as JSON, None for what cannot be.

        Text shows whatever stands in its place.
        """
        kind = self.fields[name].type
        objects = {dict, list}
        if value is not None and (kind in objects or (kind is str and type(value) in objects)):
            return json.dumps(value, ensure_ascii=False, default=str)
        return value if kind is str or value is None else fitting(kind, value)

    def problems(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
    ) -> tuple[str, ...]:
        """What is wrong with these `columns` of `rows`, as ``"65a1…: name is missing"``."""
        found = []
        for row in rows:
            there = [name for name in columns if name in row or name in ("id", *self.required)]
            if said := misfits(self.record, {name: row.get(name) for name in there}):
                found.append(f"{row.get('id')}: {'; '.join(said)}")
        if len(found) > _MOST_PROBLEMS:
            found[_MOST_PROBLEMS:] = [f"and {len(found) - _MOST_PROBLEMS:,} more"]
        return tuple(found)


_MOST_PROBLEMS = 100


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


# -- fields and values -----------------------------------------------------------------------


@functools.cache
def annotated(record: Any) -> dict[str, tuple[type[Any], bool, tuple[Any, ...]]]:
    """Of each field of a dataclass: its type, whether it may be None, what else is said of it."""
    hints = typing.get_type_hints(record, include_extras=True)
    found = {}
    for field in dataclasses.fields(record):
        hint, facts = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *more = typing.get_args(hint)
            facts = tuple(more)
        nullable = isinstance(hint, types.UnionType)
        if nullable:
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        found[field.name] = (typing.get_origin(hint) or hint, nullable, facts)
    return found


_WORDS = {
    str: "text",
    int: "a whole number",
    bool: "True or False",
    datetime: "a time",
    dict: "a dictionary",
    list: "a list",
}


def misfits(record: Any, values: Mapping[str, Any]) -> list[str]:
    """What keeps `values` from being those of a `record`, a sentence for each field."""
    found = []
    for name, value in values.items():
        kind, nullable, _ = annotated(record)[name]
        if value is None:
            if not nullable:
                found.append(f"{name} is missing")
        elif fitting(kind, value) is None:
            given = _WORDS.get(type(value)) or f"of type {type(value).__name__}"
            found.append(f"{name} is {given}, not {_WORDS[kind]}")
        elif name == "id" and not _is_id(value):
            found.append("id is neither a UUID nor an ObjectId, so that get() cannot ask for it")
    return found


def fitting(kind: type[Any], value: Any) -> Any:
    """`value`, if it is of this type or a float that is whole where this is int; else None."""
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and abs(value) < 2**63 else None
    return value if isinstance(value, kind) else None


def _is_id(value: Any) -> bool:
    try:
        entity_uuid(value)
    except ParameterError:
        return False
    return True


def _camel(name: str) -> str:
    return re.sub("_([a-z])", lambda found: found[1].upper(), name)
