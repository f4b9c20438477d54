"""The table behind an entity type: its columns, and what of them the trail keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fwdb.audit import arguments
from fwdb.errors import ParameterError, QueryError, UnknownName, is_secret
from fwdb.models import ENTITIES, TableEntity, audit_logs
from fwdb.stores import PostgresStore

__all__ = ["KEY", "Column", "Relation", "exists", "quoted", "relation"]

KEY = "id"

_CAPTURED = sa.text("""
SELECT relation, redact, generated_at FROM audit.captured
WHERE entity_type = :entity_type ORDER BY relation LIMIT 1 /* fwdb */
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. The trail does not tell the past of a `secret` nor of an `untold` one."""

    name: str
    type: str
    is_text: bool
    is_json: bool
    generated: bool
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

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def __contains__(self, name: str) -> bool:
        return any(column.name == name for column in self.columns)

    @property
    def quoted(self) -> str:
        """The name as SQL takes it."""
        return ".".join(map(quoted, self.name.split(".")))


def quoted(name: str) -> str:
    """`name` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def exists(store: PostgresStore, name: str) -> bool:
    """Whether there is a table of this name: a database that nobody migrated has none of ours."""
    found = sa.text("SELECT to_regclass(:name) IS NOT NULL AS there /* fwdb */")
    return bool(store.rows(found, name=name)[0]["there"])


def relation(store: PostgresStore, entity_type: str) -> Relation:
    """The table of `entity_type`: the captured one of this type, else that of the model.

    Raises `UnknownName` for a type that has no table.
    """
    rules, since = _capture(store, entity_type)
    entity = ENTITIES.get(entity_type)
    if rules is not None:
        name, redact = str(rules["relation"]), rules["redact"] or {}
    elif isinstance(entity, TableEntity):
        name, redact = entity.stored_in, {}
    else:
        arguments.askable(store, entity_type)
        raise UnknownName("table of the entity type", entity_type, ENTITIES)
    columns = tuple(
        Column(
            **row,
            secret=is_secret(row["name"]) or redact.get(row["name"], "omit") != "omit",
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
    if not exists(store, "audit.captured"):
        return None, None
    found = store.rows(_CAPTURED, entity_type=entity_type)
    if not found:
        return None, None
    first = store.rows(
        sa.select(sa.func.min(audit_logs.c.created_at).label("at")).where(
            audit_logs.c.entity_type == entity_type, sa.literal_column("origin") == "trigger"
        )
    )[0]["at"]
    since = min(at for at in (first, found[0]["generated_at"]) if at is not None)
    return found[0], since
