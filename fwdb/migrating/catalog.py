"""What one table of a PostgreSQL database looks like, read from the system catalog.

SQLAlchemy's inspector warns about every type it does not know and loses the type's own name;
adoption meets both, so the few facts it needs are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class FoundColumn:
    """A column; `labels` are those of its enum, empty for any other type."""

    name: str
    type: str
    not_null: bool
    generated: bool
    default: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundIndex:
    """A valid btree index in default operator classes. `keys` read like ``created_at DESC``."""

    name: str
    unique: bool
    keys: tuple[str, ...]
    where: str | None


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table: `touches` says whether a trigger keeps its `updated_at`."""

    columns: dict[str, FoundColumn]
    indexes: tuple[FoundIndex, ...]
    references: frozenset[tuple[str, str]]
    touches: bool
    plain: bool

    def serves(self, keys: tuple[str, ...], where: str | None, *, unique: bool = False) -> bool:
        """Whether an index of this definition is there, whatever its name."""
        return any(
            index.keys == keys and index.where == where and (index.unique or not unique)
            for index in self.indexes
        )


_TABLE = sa.text("""
    SELECT c.oid, c.relkind IN ('r', 'p') AS plain
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relname = :table
""")

_COLUMNS = sa.text("""
    SELECT a.attname AS name,
           format_type(a.atttypid, a.atttypmod) AS type,
           a.attnotnull AS not_null,
           a.attgenerated <> '' OR a.attidentity <> '' AS generated,
           pg_get_expr(d.adbin, d.adrelid) AS "default",
           ARRAY(SELECT CAST(e.enumlabel AS text) FROM pg_enum e
                 WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder) AS labels
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
""")

# indoption has one number per key: bit 1 descending, bit 2 nulls first.
_INDEXES = sa.text("""
    SELECT c.relname AS name,
           i.indisunique AS "unique",
           ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, true)
                        || CASE CAST(i.indoption[k - 1] AS int) & 3
                           WHEN 3 THEN ' DESC' WHEN 1 THEN ' DESC NULLS LAST'
                           WHEN 2 THEN ' NULLS FIRST' ELSE '' END
                 FROM generate_series(1, CAST(i.indnkeyatts AS int)) AS k ORDER BY k) AS keys,
           pg_get_expr(i.indpred, i.indrelid, true) AS "where"
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = :oid AND i.indisvalid AND m.amname = 'btree'
      AND NOT EXISTS (SELECT FROM unnest(i.indclass) AS used(oid)
                      JOIN pg_opclass o ON o.oid = used.oid WHERE NOT o.opcdefault)
    ORDER BY c.relname
""")

_REFERENCES = sa.text("""
    SELECT a.attname AS name,
           n.nspname || '.' || t.relname AS target
    FROM pg_constraint f
    JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = f.conkey[1]
    JOIN pg_class t ON t.oid = f.confrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE f.conrelid = :oid AND f.contype = 'f' AND cardinality(f.conkey) = 1
""")

# tgtype: 1 for each row, 2 before, 16 on update.
_TOUCHES = sa.text("""
    SELECT EXISTS (
        SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = :oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
          AND CAST(t.tgtype AS int) & 19 = 19 AND position('updated_at' IN p.prosrc) > 0)
""")


def read(connection: Connection, table: str) -> FoundTable | None:
    """The relation `table` (``schema.name``), or None; `plain` is False for a view and the like."""
    schema, _, name = table.partition(".")
    found = connection.execute(_TABLE, {"schema": schema, "table": name}).one_or_none()
    if found is None:
        return None

    def ask(statement: sa.TextClause) -> list[dict[str, Any]]:
        return [dict(r) for r in connection.execute(statement, {"oid": found.oid}).mappings()]

    return FoundTable(
        columns={
            row["name"]: FoundColumn(**{**row, "labels": tuple(row["labels"])})
            for row in ask(_COLUMNS)
        },
        indexes=tuple(FoundIndex(**{**row, "keys": tuple(row["keys"])}) for row in ask(_INDEXES)),
        references=frozenset((row["name"], row["target"]) for row in ask(_REFERENCES)),
        touches=bool(connection.scalar(_TOUCHES, {"oid": found.oid})),
        plain=found.plain,
    )


def schemas(connection: Connection) -> frozenset[str]:
    """The names of all schemas."""
    return frozenset(connection.scalars(sa.text("SELECT CAST(nspname AS text) FROM pg_namespace")))


def has_function(connection: Connection, name: str, takes: str = "") -> bool:
    """Whether the function `name` (``schema.function``) of arguments of these types exists."""
    asked = {"name": f"{name}({takes})"}
    found = connection.scalar(sa.text("SELECT to_regprocedure(:name)"), asked)
    return found is not None


def has_extension(connection: Connection, name: str) -> bool:
    """Whether the extension `name` is installed in this database."""
    statement = sa.text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = :name)")
    return bool(connection.scalar(statement, {"name": name}))
