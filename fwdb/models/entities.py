"""The entities that repositories give out, and the one mapping of a `Design` to its document.

Entities are frozen, speak snake_case in both stores and have ids as text. A row may have columns
and a document fields that no entity knows; readers leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from bson import ObjectId

from fwdb.errors import UnknownName

__all__ = [
    "DESIGN_FIELDS",
    "AuditLog",
    "Avatar",
    "CatalogItem",
    "Design",
    "User",
    "design_document",
    "design_fields",
    "document_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
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
class Avatar:
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
class CatalogItem:
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
class AuditLog:
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
class Design:
    """An outfit: a document of MongoDB. What is inside `layers` and `metadata` stays as stored.

    `created_at` and `updated_at` are None only in documents that something else wrote.
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
