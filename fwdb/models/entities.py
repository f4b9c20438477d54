"""The entities that repositories give out, and the one mapping of a `Design` to its document.

Entities are frozen, speak snake_case in both stores and have ids as text. A row may have columns
and a document fields that no entity knows; readers leave them out. What something else wrote may
lack a value or hold another type: the entity shows it as it is stored, and `problems` says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from bson import ObjectId

from fwdb.errors import ParameterError, UnknownName
from fwdb.models.ids import entity_uuid

__all__ = [
    "DESIGN_FIELDS",
    "AuditLog",
    "Avatar",
    "CatalogItem",
    "Design",
    "User",
    "design_cell",
    "design_document",
    "design_fields",
    "design_problems",
    "document_id",
]


class _Entity:
    """What all entities have."""

    __slots__ = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the row or document, no values: ``("name is missing",)``."""
        kind: Any = type(self)
        return tuple(misfits(kind, {name: getattr(self, name) for name in _expected(kind)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class User(_Entity):
    """An account. `password_hash` is a bcrypt hash and is left out of `repr`."""

    id: str
    email: str
    password_hash: str = field(repr=False)
    first_name: str
    last_name: str
    role: str
    is_active: bool
    email_verified: bool
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    created_by: str | None = None
    updated_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Avatar(_Entity):
    """A body model of a user; `measurements` (cm, kg) are personal data."""

    id: str
    user_id: str
    name: str
    gender: str
    measurements: dict[str, Any]
    customization: dict[str, Any] | None = None
    is_default: bool
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogItem(_Entity):
    """What designs are built from. `price` is in cents."""

    id: str
    name: str
    description: str | None = None
    type: str
    category: str | None = None
    properties: dict[str, Any]
    asset_url: str | None = None
    thumbnail_url: str | None = None
    is_premium: bool
    is_active: bool
    price: int
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLog(_Entity):
    """One change or reading: who did what to what. `entity_id` is the id in the entity's store."""

    id: str
    user_id: str | None = None
    entity_type: str
    entity_id: str
    action: str
    old_values: dict[str, Any] | None = None
    new_values: dict[str, Any] | None = None
    metadata: str | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Design(_Entity):
    """An outfit: a document of MongoDB. What is inside `layers` and `metadata` stays as stored.

    A document that something else wrote may lack any field, the id included, which is then None.
    """

    id: str
    user_id: str
    name: str
    status: str = "draft"
    layers: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    avatar_id: str | None = None
    catalog_item_ids: list[str] = field(default_factory=list)
    version: int = 1
    created_at: datetime | None = None
    updated_at: datetime | None = None
    deleted_at: datetime | None = None


# Field of the entity -> field of the document. Nothing else in the package knows these names.
DESIGN_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "id": "_id",
        "user_id": "userId",
        "name": "name",
        "status": "status",
        "layers": "layers",
        "metadata": "metadata",
        "avatar_id": "avatarId",
        "catalog_item_ids": "catalogItemIds",
        "version": "version",
        "created_at": "createdAt",
        "updated_at": "updatedAt",
        "deleted_at": "deletedAt",
    }
)
_FIELD_OF = {stored: name for name, stored in DESIGN_FIELDS.items()}


def design_document(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` of a `Design` under the names of the document; only the top level is renamed.

    Takes any subset, so it serves a new document, a change and a filter. Raises `UnknownName` for
    a field that a `Design` does not have.
    """
    document: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in DESIGN_FIELDS:
            raise UnknownName("field", name, DESIGN_FIELDS, where="Design")
        document[DESIGN_FIELDS[name]] = document_id(value) if name == "id" else value
    return document


def design_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Design` in `document`: ``Design(**design_fields(document))``.

    The id is text, times have their zone (MongoDB stores UTC). Fields that a `Design` does not
    have are left out, missing ones too; so are nulls where the entity has a default.
    """
    fields: dict[str, Any] = {}
    for stored, value in document.items():
        name = _FIELD_OF.get(stored)
        if name is None or value is None:
            continue
        if name == "id":
            fields[name] = str(value)
        elif isinstance(value, datetime) and value.tzinfo is None:
            fields[name] = value.replace(tzinfo=UTC)
        else:
            fields[name] = value
    return fields


def document_id(id: Any) -> Any:
    """`id` as documents hold it: 24 hexadecimal digits are an ObjectId, other text stays text."""
    return ObjectId(id) if isinstance(id, str) and ObjectId.is_valid(id) else id


_WORDS = {
    str: "text",
    int: "a whole number",
    bool: "True or False",
    datetime: "a time",
    dict: "a dictionary",
    list: "a list",
}


@functools.cache
def _expected(entity: Any) -> dict[str, tuple[type[Any], bool]]:
    """The type of each field, and whether it may be None."""
    found = {}
    for name, hint in typing.get_type_hints(entity).items():
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        optional = type(None) in typing.get_args(hint)
        plain = kinds[0] if optional else hint
        found[name] = (typing.get_origin(plain) or plain, optional)
    return {f.name: found[f.name] for f in dataclasses.fields(entity)}


def misfits(entity: Any, values: Mapping[str, Any]) -> list[str]:
    """What keeps `values` from being those of an `entity`, a sentence for each field."""
    found = []
    for name, value in values.items():
        kind, optional = _expected(entity)[name]
        if value is None:
            if not optional:
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
        return value if _is_whole(value) and abs(value) < 2**63 else None
    return value if isinstance(value, kind) else None


def design_cell(name: str, value: Any) -> Any:
    """`value` of a `Design` for a column of a frame: objects as JSON, None for what cannot be.

    Text shows whatever stands in its place.
    """
    kind = _expected(Design)[name][0]
    objects = {dict, list}
    if value is not None and (kind in objects or (kind is str and type(value) in objects)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if kind is str or value is None else fitting(kind, value)


def design_problems(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> tuple[str, ...]:
    """What is wrong with these `columns` of designs, as ``"65a1…: name is missing"``."""
    found = []
    for row in rows:
        there = [name for name in columns if name in row or name in _REQUIRED]
        if said := misfits(Design, {name: row.get(name) for name in there}):
            found.append(f"{row.get('id')}: {'; '.join(said)}")
    if len(found) > _MOST_PROBLEMS:
        found[_MOST_PROBLEMS:] = [f"and {len(found) - _MOST_PROBLEMS:,} more"]
    return tuple(found)


_MOST_PROBLEMS = 100
_REQUIRED = {"id", "user_id", "name"}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    try:
        entity_uuid(value)
    except ParameterError:
        return False
    return True
