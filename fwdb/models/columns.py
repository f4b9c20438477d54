"""Columns of PostgreSQL as the entities use them.

The same objects serve a database made by our own migrations and one that the Fashion Wallet
service made earlier: its tables may have more columns, PostgreSQL enums where ours have text, and
other names for indexes and constraints.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, Dialect, ForeignKey, MetaData, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, UserDefinedType

from fwdb.models.ids import entity_id, entity_uuid

__all__ = ["JSON", "LIVE", "EntityId", "Label", "default", "metadata", "now", "own_id", "user_id"]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
JSON = JSONB(none_as_null=True)  # None is a missing value, not the JSON word null
LIVE = text("deleted_at IS NULL")


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


def own_id() -> Column[Any]:
    # Migrations write uuidv7() instead where the server has it (18 and later).
    return Column(Uuid(as_uuid=False), primary_key=True, server_default=text("gen_random_uuid()"))


def user_id(ondelete: str | None = "SET NULL") -> Column[Any]:
    return Column(Uuid(as_uuid=False), ForeignKey("shared.users.id", ondelete=ondelete))


def now() -> Column[Any]:
    return Column(DateTime(timezone=True), server_default=text("now()"))


def default(expression: str, type_: Any = None, **options: Any) -> Column[Any]:
    return Column(type_, server_default=text(expression), **options)
