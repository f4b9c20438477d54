"""The entities: what repositories give out, and how each is stored.

Entities are frozen, speak snake_case in both stores and have ids as text. A row may have columns
and a document fields that no entity knows; readers leave them out. What something else wrote may
lack a value or hold another type: the entity shows it as it is stored, and `problems` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import Column, Index, String, Uuid, text

from fwdb.models.columns import LIVE, EntityId, default, metadata, now, own_id, user_id
from fwdb.models.registry import PUBLIC, SECRET, DocumentEntity, Labels, Record, TableEntity

__all__ = [
    "ACTIONS",
    "AUDIT_FACTS",
    "AUDIT_LOGS",
    "AVATARS",
    "CATALOG_CATEGORIES",
    "CATALOG_ITEMS",
    "CATALOG_TYPES",
    "DESIGNS",
    "DESIGN_STATUSES",
    "GENDERS",
    "USERS",
    "AuditLog",
    "Avatar",
    "CatalogItem",
    "Design",
    "User",
    "audit_logs",
    "avatars",
    "catalog_items",
    "metadata",
    "users",
]

GENDERS = ("male", "female", "unisex")
CATALOG_TYPES = ("silhouette", "fabric", "pattern")
CATALOG_CATEGORIES = ("top", "bottom", "dress", "outerwear", "accessory", "other")
ACTIONS = ("CREATE", "UPDATE", "DELETE", "READ")
DESIGN_STATUSES = ("draft", "published", "archived")


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Record):
    """An account. `password_hash` is a bcrypt hash and is left out of `repr`."""

    id: Annotated[str, own_id()]
    email: Annotated[str, Column(String(255), unique=True)]
    password_hash: Annotated[str, SECRET, Column(String(255))] = field(repr=False)
    first_name: Annotated[str, Column(String(100))]
    last_name: Annotated[str, Column(String(100))]
    role: Annotated[str, PUBLIC, default("'user'", String(50))]
    is_active: Annotated[bool, PUBLIC, default("true")]
    email_verified: Annotated[bool, PUBLIC, default("false")]
    created_at: Annotated[datetime, now()]
    updated_at: Annotated[datetime, now()]
    deleted_at: datetime | None = None
    created_by: Annotated[str | None, user_id()] = None
    updated_by: Annotated[str | None, user_id()] = None


USERS = TableEntity(
    User,
    "shared.users",
    "Accounts.",
    Index("ix_users_email_live", "email", postgresql_where=LIVE),
    Index("ix_users_role_live", "role", postgresql_where=LIVE),
    Index("ix_users_is_active_live", "is_active", postgresql_where=LIVE),
    key=("email",),
    person=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Avatar(Record):
    """A body model of a user; `measurements` (cm, kg) are personal data."""

    id: Annotated[str, own_id()]
    user_id: Annotated[str, user_id(ondelete=None)]
    name: Annotated[str, Column(String(255))]
    gender: Annotated[str, Labels(GENDERS), default("'unisex'")]
    measurements: dict[str, Any]
    customization: dict[str, Any] | None = None
    is_default: Annotated[bool, PUBLIC, default("false")]
    created_at: Annotated[datetime, now()]
    updated_at: Annotated[datetime, now()]
    deleted_at: datetime | None = None


AVATARS = TableEntity(
    Avatar,
    "avatar.avatars",
    "Body models of users; measurements are personal data.",
    Index("ix_avatars_user_id_live", "user_id", postgresql_where=LIVE),
    key=("user_id", "name"),
    person=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogItem(Record):
    """What designs are built from. `price` is in cents."""

    id: Annotated[str, own_id()]
    name: Annotated[str, Column(String(255))]
    description: str | None = None
    type: Annotated[str, Labels(CATALOG_TYPES)]
    category: Annotated[str | None, Labels(CATALOG_CATEGORIES)] = None
    properties: Annotated[dict[str, Any], default("'{}'")]
    asset_url: Annotated[str | None, Column(String)] = None
    thumbnail_url: Annotated[str | None, Column(String)] = None
    is_premium: Annotated[bool, default("false")]
    is_active: Annotated[bool, default("true")]
    price: Annotated[int, default("0", comment="cents")]
    created_at: Annotated[datetime, now()]
    updated_at: Annotated[datetime, now()]
    deleted_at: datetime | None = None


CATALOG_ITEMS = TableEntity(
    CatalogItem,
    "catalog.catalog_items",
    "What designs are built from.",
    Index("ix_catalog_items_type_category_live", "type", "category", postgresql_where=LIVE),
    key=("name", "type"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Design(Record):
    """An outfit: a document of MongoDB. What is inside `layers` and `metadata` stays as stored.

    A document that something else wrote may lack any field, the id included, which is then None.
    """

    id: str
    user_id: str
    name: str
    status: Annotated[str, Labels(DESIGN_STATUSES)] = "draft"
    layers: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    avatar_id: str | None = None
    catalog_item_ids: list[str] = field(default_factory=list)
    version: int = 1
    created_at: datetime | None = None
    updated_at: datetime | None = None
    deleted_at: datetime | None = None


DESIGNS = DocumentEntity(Design, "designs", "Outfits.", key=("user_id", "name"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLog(Record):
    """One change or reading: who did what to what. `entity_id` is the id in the entity's store."""

    id: Annotated[str, own_id()]
    # No foreign key: recording must not fail for a user who is gone. A trigger of shared.users
    # sets it to null when the user is removed.
    user_id: Annotated[str | None, Column(Uuid(as_uuid=False))] = None
    entity_type: Annotated[str, Column(String(100))]
    entity_id: Annotated[str, Column(EntityId)]
    action: Annotated[str, Labels(ACTIONS)]
    old_values: dict[str, Any] | None = None
    new_values: dict[str, Any] | None = None
    metadata: str | None = None
    ip_address: Annotated[str | None, Column(String(45))] = None
    user_agent: str | None = None
    created_at: Annotated[datetime, now()]


# Our own table is partitioned by month of `created_at`, which the key therefore includes.
AUDIT_LOGS = TableEntity(
    AuditLog,
    "audit.audit_logs",
    "Who did what to what, and when.",
    Index("ix_audit_logs_user_id_created_at", "user_id", text("created_at DESC")),
    # The service's own index serves the same questions.
    Index(
        "ix_audit_logs_entity_id_created_at",
        "entity_id",
        "created_at",
        info={"or": ("entity_type", "entity_id")},
    ),
    Index("ix_audit_logs_created_at", text("created_at DESC")),
    trailed=False,
)

# What fwdb keeps beside the service's columns; null in rows from before. Questions of `db.audit`
# show them; they are no columns here, because a database that nobody migrated has none.
AUDIT_FACTS = (
    "transaction_id",
    "origin",
    "reason",
    "db_user",
    "application_name",
    "client_address",
)

users, avatars, catalog_items = USERS.table, AVATARS.table, CATALOG_ITEMS.table
audit_logs = AUDIT_LOGS.table
