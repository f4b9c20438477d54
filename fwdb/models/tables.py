"""The tables of PostgreSQL as SQLAlchemy Core sees them.

The same objects serve a database made by our own migrations and one that the Fashion Wallet
service made earlier: its tables may have more columns, PostgreSQL enums where ours have text, and
other names for indexes and constraints.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, UserDefinedType

from fwdb.models.ids import entity_id, entity_uuid

__all__ = [
    "ACTIONS",
    "AUDIT_FACTS",
    "CATALOG_CATEGORIES",
    "CATALOG_TYPES",
    "DESIGN_STATUSES",
    "GENDERS",
    "EntityId",
    "Label",
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

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class Label(UserDefinedType[str]):
    """One word out of a short list: varchar in our tables, maybe an enum in an existing one.

    SQLAlchemy sends a `String` as ``$1::VARCHAR``, which PostgreSQL refuses for an enum column.
    A user-defined type is sent without a cast, and the server takes the column's own type.
    """

    cache_ok = True

    def __init__(self, length: int = 20) -> None:
        self.length = length

    def get_col_spec(self, **kw: Any) -> str:
        return f"VARCHAR({self.length})"

    @property
    def python_type(self) -> type[str]:
        return str


class EntityId(TypeDecorator[str]):
    """An id of either store in a uuid column; see `fwdb.models.ids`."""

    impl = Uuid(as_uuid=False)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(entity_uuid(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else entity_id(value)


def _id() -> Column[str]:
    # Migrations write uuidv7() instead where the server has it (18 and later).
    return Column(
        "id", Uuid(as_uuid=False), primary_key=True, server_default=text("gen_random_uuid()")
    )


def _times() -> tuple[Column[Any], ...]:
    """`created_at`, `updated_at` (kept by a trigger) and `deleted_at` (null: the row is live)."""
    now = text("now()")
    return (
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=now),
        Column("updated_at", DateTime(timezone=True), nullable=False, server_default=now),
        Column("deleted_at", DateTime(timezone=True)),
    )


def _flag(name: str, default: bool) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text(str(default).lower()))


def _user(name: str, ondelete: str | None = "SET NULL", nullable: bool = True) -> Column[str]:
    return Column(
        name,
        Uuid(as_uuid=False),
        ForeignKey("shared.users.id", ondelete=ondelete),
        nullable=nullable,
    )


def _label(name: str, labels: tuple[str, ...], **options: Any) -> Column[str]:
    """A column for one of `labels`, which ``column.info["labels"]`` repeats."""
    return Column(name, Label(20), info={"labels": labels}, **options)


def _one_of(name: str, labels: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{name} IN ({', '.join(map(repr, labels))})", name=name)


_JSON = JSONB(none_as_null=True)  # None is a missing value, not the JSON word null
_LIVE = text("deleted_at IS NULL")
_MADE = "Made by fwdb."  # downgrades drop only tables with this comment

users = Table(
    "users",
    metadata,
    _id(),
    Column("email", String(255), nullable=False, unique=True),
    # `secret` columns stay out of frames and of repr unless asked for by name.
    Column("password_hash", String(255), nullable=False, info={"secret": True}),
    Column("first_name", String(100), nullable=False),
    Column("last_name", String(100), nullable=False),
    Column("role", String(50), nullable=False, server_default=text("'user'")),
    _flag("is_active", True),
    _flag("email_verified", False),
    *_times(),
    _user("created_by"),
    _user("updated_by"),
    Index("ix_users_email_live", "email", postgresql_where=_LIVE),
    Index("ix_users_role_live", "role", postgresql_where=_LIVE),
    Index("ix_users_is_active_live", "is_active", postgresql_where=_LIVE),
    schema="shared",
    comment=f"Accounts. {_MADE}",
)

avatars = Table(
    "avatars",
    metadata,
    _id(),
    _user("user_id", ondelete=None, nullable=False),
    Column("name", String(255), nullable=False),
    _label("gender", GENDERS, nullable=False, server_default=text("'unisex'")),
    Column("measurements", _JSON, nullable=False),
    Column("customization", _JSON),
    _flag("is_default", False),
    *_times(),
    _one_of("gender", GENDERS),
    Index("ix_avatars_user_id_live", "user_id", postgresql_where=_LIVE),
    schema="avatar",
    comment=f"Body models of users; measurements are personal data. {_MADE}",
)

catalog_items = Table(
    "catalog_items",
    metadata,
    _id(),
    Column("name", String(255), nullable=False),
    Column("description", Text),
    _label("type", CATALOG_TYPES, nullable=False),
    _label("category", CATALOG_CATEGORIES),
    Column("properties", _JSON, nullable=False, server_default=text("'{}'")),
    Column("asset_url", String),
    Column("thumbnail_url", String),
    _flag("is_premium", False),
    _flag("is_active", True),
    Column("price", Integer, nullable=False, server_default=text("0"), comment="cents"),
    *_times(),
    _one_of("type", CATALOG_TYPES),
    _one_of("category", CATALOG_CATEGORIES),
    Index("ix_catalog_items_type_category_live", "type", "category", postgresql_where=_LIVE),
    schema="catalog",
    comment=f"What designs are built from. {_MADE}",
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

# Our own table is partitioned by month of `created_at`, which the key therefore includes.
audit_logs = Table(
    "audit_logs",
    metadata,
    _id(),
    # No foreign key: recording must not fail for a user who is gone. A trigger of shared.users
    # sets it to null when the user is removed.
    Column("user_id", Uuid(as_uuid=False)),
    Column("entity_type", String(100), nullable=False),
    Column("entity_id", EntityId, nullable=False),
    _label("action", ACTIONS, nullable=False),
    Column("old_values", _JSON),
    Column("new_values", _JSON),
    Column("metadata", Text),
    Column("ip_address", String(45)),
    Column("user_agent", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Index("ix_audit_logs_user_id_created_at", "user_id", text("created_at DESC")),
    # The service's own index serves the same questions.
    Index(
        "ix_audit_logs_entity_id_created_at",
        "entity_id",
        "created_at",
        info={"or": ("entity_type", "entity_id")},
    ),
    Index("ix_audit_logs_created_at", text("created_at DESC")),
    schema="audit",
    comment=f"Who did what to what, and when. {_MADE}",
)
