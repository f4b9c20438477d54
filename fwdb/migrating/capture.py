"""Capture of changes by triggers: the Alembic operations, and keeping triggers up to their tables.

The functions that write the triggers are in the database (`capture.sql`, `capture_trail.sql`), so
that a DBA can call them, and a script for psql needs no look at the database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from fwdb.errors import MigrationError
from fwdb.migrating.changes import Change
from fwdb.migrating.operations import MADE, closing
from fwdb.models import TABLES

Redaction = Literal["omit", "mask", "fingerprint"]

_SQL = "\n".join(
    Path(__file__).with_name(name).read_text("utf-8")
    for name in ("capture_trail.sql", "capture.sql")
)


def functions() -> list[str]:
    """Name and argument types of each function of the two files, in their order."""
    found = re.findall(
        r"^CREATE OR REPLACE FUNCTION ([\w.]+)\((.*?)\)\s*(?:RETURNS|LANGUAGE)", _SQL, re.M | re.S
    )
    return [
        f"{name}({', '.join(filter(None, map(_type, re.split(',', given))))})"
        for name, given in found
    ]


def _type(argument: str) -> str:
    words = argument.split("DEFAULT")[0].split()
    return "" if words[:1] == ["OUT"] else words[-1] if words else ""


def install(operations: Operations) -> None:
    """Make the functions or write them anew; `audit.grant_reading()` says who else calls some."""
    operations.execute(_SQL)
    for function in functions():
        operations.execute(f"COMMENT ON FUNCTION {function} IS 'Part of audit capture. {MADE}'")
    operations.execute(closing(f"comment = 'Part of audit capture. {MADE}'"))


def remove(operations: Operations) -> None:
    """Drop the functions."""
    for function in reversed(functions()):
        operations.execute(f"DROP FUNCTION IF EXISTS {function}")


@Operations.register_operation("audit_table")
@dataclass(eq=False)
class AuditTable(MigrateOperation):
    """``op.audit_table("shared.users", redact=["password_hash"], ignore=["updated_at"])``."""

    table: str
    entity_type: str | None = None
    redact: Mapping[str, Redaction] | None = None
    ignore: Iterable[str] | None = None

    @classmethod
    def audit_table(
        cls,
        operations: Operations,
        table: str,
        *,
        entity_type: str | None = None,
        redact: Mapping[str, Redaction] | Iterable[str] | None = None,
        ignore: Iterable[str] | None = None,
    ) -> None:
        """Record every change of `table` (``schema.name``) in the audit trail from now on.

        `redact` says of columns ``omit`` (leave out), ``mask`` (that there is a value, and that it
        changed) or ``fingerprint`` (a keyed hash, by which equal values show); a list masks. A
        change of nothing but `ignore` is none. `entity_type` is by default the table's name in
        the singular, ``CatalogItem`` for catalog_items. For a table of `fwdb.models`, its entity
        has the defaults: secret columns are masked, and bookkeeping is ignored.

        Called again it changes what is given and keeps the rest; without any, it fits the capture
        to the columns. Raises `MigrationError` for a table that cannot be captured.
        """
        how: Mapping[str, Redaction] | None = None
        if redact is not None:
            how = redact if isinstance(redact, Mapping) else dict.fromkeys(redact, "mask")
        operations.invoke(cls(table, entity_type, how, ignore))

    def reverse(self) -> MigrateOperation:
        return UnauditTable(self.table)


@Operations.register_operation("unaudit_table")
@dataclass(eq=False)
class UnauditTable(MigrateOperation):
    """``op.unaudit_table("shared.users")``."""

    table: str

    @classmethod
    def unaudit_table(cls, operations: Operations, table: str) -> None:
        """End the capture of `table`; the trail stays."""
        operations.invoke(cls(table))


@Operations.implementation_for(AuditTable)
def _audit(operations: Operations, step: AuditTable) -> None:
    said = refusal(operations, step.table)
    if said is not None:
        raise MigrationError(f"no capture: {said}")
    entity = TABLES.get(step.table)

    def first(default: str | None) -> str:
        """`default` for a table that is not captured yet; what is captured keeps what it has."""
        known = f"SELECT FROM audit.captured WHERE relation = {_literal(step.table)}"
        return f"CASE WHEN NOT EXISTS ({known}) THEN {_literal(default)} END"

    def given(value: str | None, default: str | None) -> str:
        return _literal(value) if value is not None or default is None else first(default)

    masked = json.dumps(dict.fromkeys(sorted(entity.secret), "mask")) if entity else None
    ignored = _array(sorted(entity.bookkeeping)) if entity else None
    redact = None if step.redact is None else json.dumps(dict(step.redact))
    ignore = None if step.ignore is None else _array(step.ignore)
    singular = entity.name if entity else _entity_type(step.table)
    operations.execute(
        sa.text(
            f"SELECT audit.capture({_literal(step.table)},"
            f" entity_type => {given(step.entity_type, singular)},"
            f" redact => CAST({given(redact, masked)} AS jsonb),"
            f" ignore => CAST({given(ignore, ignored)} AS text[]))"
        )
    )
    _tell(operations, step.table, f"changes of {step.table} are recorded in the audit trail.")


def refusal(operations: Operations, table: str) -> str | None:
    """Why `table` cannot be captured, as a sentence; None when it can, or only SQL is written."""
    context = operations.get_context()
    if context.as_sql or context.connection is None:
        return None
    asked = sa.text("SELECT audit.refusal(CAST(:table AS regclass))")
    found: str | None = context.connection.scalar(asked, {"table": table})
    return found


@Operations.implementation_for(UnauditTable)
def _unaudit(operations: Operations, step: UnauditTable) -> None:
    operations.execute(sa.text(f"SELECT audit.uncapture({_literal(step.table)})"))
    _tell(operations, step.table, f"changes of {step.table} are recorded no more.")


def _tell(operations: Operations, table: str, sentence: str) -> None:
    config = operations.get_context().config
    heard = config.attributes.get("report") if config is not None else None
    if heard is not None:
        heard(Change("postgres", "capture", table, sentence))


def _entity_type(table: str) -> str:
    words = table.rpartition(".")[2].removesuffix("s").split("_")
    return "".join(word.capitalize() for word in words)


def _array(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


def _literal(value: str | None) -> str:
    """`value` as SQL; a colon would be a parameter of `sa.text`."""
    return "NULL" if value is None else "'" + value.replace("'", "''").replace(":", r"\:") + "'"


def refit(connection: Connection, tell: Callable[[Change], object] = lambda change: None) -> None:
    """Fit the capture of tables whose columns or partitions changed; `tell` hears of each."""
    # A role that may not does not migrate, and the coverage of capture says what it leaves.
    able = sa.text("""
        SELECT CASE WHEN to_regproc('audit.recapture') IS NULL THEN false
               ELSE has_table_privilege('audit.captured', 'UPDATE') END
    """)
    if not connection.scalar(able):
        return
    for sentence in connection.scalars(sa.text("SELECT audit.recapture()")):
        tell(Change("postgres", "capture", "audit.captured", sentence))


def outdated(connection: Connection) -> list[str]:
    """The captured tables whose triggers do not fit their columns or partitions."""
    if connection.scalar(sa.text("SELECT to_regproc('audit.recapture')")) is None:
        return []
    found = sa.text("""
        SELECT relation FROM audit.captured AS c
        WHERE CASE WHEN to_regclass(relation) IS NULL THEN true ELSE audit.outdated(c) END
        ORDER BY relation
    """)
    return list(connection.scalars(found))
