"""The table behind an entity type: its columns, and what of them the trail keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fwdb import models
from fwdb.audit import checks, values
from fwdb.errors import ParameterError, QueryError, UnknownName
from fwdb.models import audit_logs
from fwdb.stores import PostgresStore

__all__ = ["DESIGN", "Column", "Relation", "relation"]

DESIGN = "Design"  # the one type whose entities are documents
KEY = "id"

_TABLES = {
    "User": models.users,
    "Avatar": models.avatars,
    "CatalogItem": models.catalog_items,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. The trail does not tell the past of a `secret` nor of an `untold` one."""

    name: str
    type: str
    is_text: bool
    is_json: bool
    generated: bool
    required: bool
    secret: bool
    untold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """The table of `entity_type`.

    `captured` says whether triggers record its changes; since `since` they do, as far as the
    trail reaches back.
    """

    entity_type: str
    name: str
    columns: tuple[Column, ...]
    captured: bool
    since: datetime | None
    _by_name: dict[str, Column] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_name.update({column.name: column for column in self.columns})

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def quoted(self) -> str:
        """The name as SQL takes it."""
        return ".".join(map(quoted, self.name.split(".")))


def quoted(name: str) -> str:
    """`name` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def relation(store: PostgresStore, entity_type: str) -> Relation:
    """The table of `entity_type`: the captured one of this type, else that of the model.

    Raises `UnknownName` for a type that has no table.
    """
    rules, since = _capture(store, entity_type)
    if rules is None and entity_type not in _TABLES:
        checks.askable(store, entity_type)
        raise UnknownName("table of the entity type", entity_type, [*_TABLES, DESIGN])
    name = rules["relation"] if rules is not None else str(_TABLES[entity_type].fullname)
    redact: Mapping[str, str] = (rules or {}).get("redact") or {}
    columns = tuple(
        Column(
            **row,
            secret=values.is_secret(row["name"]) or redact.get(row["name"], "omit") != "omit",
            # A column to be ignored is recorded beside others that change.
            untold=redact.get(row["name"]) == "omit",
        )
        for row in store.rows("audit_columns", relation=name)
    )
    if not columns:
        raise QueryError(f"there is no table {name}; run 'fwdb migrate'.")
    found = Relation(
        entity_type=entity_type,
        name=name,
        columns=columns,
        captured=rules is not None,
        since=since,
    )
    if KEY not in found:
        raise ParameterError(f"{name} has no column {KEY}, by which fwdb tells its rows apart.")
    return found


def _capture(
    store: PostgresStore, entity_type: str
) -> tuple[dict[str, Any] | None, datetime | None]:
    """How the trail captures the table of `entity_type`, and since when; None if it does not."""
    table = sa.text("SELECT to_regclass('audit.captured') AS name /* fwdb */")
    if store.rows(table)[0]["name"] is None:
        return None, None
    captured: sa.TableClause = sa.table(
        "captured",
        *map(sa.column, ("relation", "entity_type", "redact", "generated_at")),
        schema="audit",
    )
    found = store.rows(
        sa.select(captured)
        .where(captured.c.entity_type == entity_type)
        .order_by(captured.c.relation)
        .limit(1)
    )
    if not found:
        return None, None
    first = store.rows(
        sa.select(sa.func.min(audit_logs.c.created_at).label("at")).where(
            audit_logs.c.entity_type == entity_type, sa.literal_column("origin") == "trigger"
        )
    )[0]["at"]
    since = min(at for at in (first, found[0]["generated_at"]) if at is not None)
    return found[0], since
