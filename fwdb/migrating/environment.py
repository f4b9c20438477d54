"""How alembic is set up for fwdb, shared by `migrations/env.py` and `fwdb.migrating`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script
from sqlalchemy.engine import Connection

from fwdb.migrating import catalog
from fwdb.migrating.changes import Change
from fwdb.migrating.operations import VERSION_SCHEMA, VERSION_TABLE

__all__ = ["DROP_EMPTY_VERSION_TABLE", "options", "version_schema"]

# Which of these a table has depends on the server's version and on who made the table.
_UUID_DEFAULTS = ("gen_random_uuid", "uuidv7", "uuid_generate_v4")

DROP_EMPTY_VERSION_TABLE = f"""
DO $$ BEGIN
    IF to_regclass('{VERSION_SCHEMA}.{VERSION_TABLE}') IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM {VERSION_SCHEMA}.{VERSION_TABLE}) THEN
            DROP TABLE {VERSION_SCHEMA}.{VERSION_TABLE};
        END IF;
    END IF;
END $$"""


def options(metadata: sa.MetaData) -> dict[str, Any]:
    """Options of alembic's `context.configure`: only our tables in only our schemas."""
    ours = {schema for table in metadata.tables.values() if (schema := table.schema)}

    def include_name(name: str | None, kind: str, parents: MutableMapping[str, str | None]) -> bool:
        if kind == "schema":
            return name in ours
        if kind == "table":
            return f"{parents['schema_name']}.{name}" in metadata.tables
        return True

    def include_object(
        item: object, name: str | None, kind: str, reflected: bool, compare_to: object
    ) -> bool:
        if reflected and compare_to is None and kind in {"column", "index"}:
            # What no model names: kept beside the service's columns, or by another program.
            return False
        # alembic 1.20 fails on identity columns when it is given a comparison of defaults.
        columns = [c for c in (item, compare_to) if isinstance(c, sa.Column) and c.identity]
        return len(columns) < 2

    return {
        "target_metadata": metadata,
        "version_table": VERSION_TABLE,
        "version_table_schema": VERSION_SCHEMA,
        "include_schemas": True,
        "include_name": include_name,
        "include_object": include_object,
        "compare_type": True,
        "compare_server_default": _compare_default,
        "transaction_per_migration": False,
        "on_version_apply": _applied,
    }


def _applied(*, ctx: MigrationContext, step: MigrationInfo, **more: object) -> None:
    listener = ctx.config.attributes.get("report") if ctx.config is not None else None
    script = step.up_revision
    if listener is not None and step.is_upgrade and isinstance(script, Script):
        said = f"applied revision {script.revision}, {script.doc}"
        listener(Change("postgres", "revision", script.revision, said))


def version_schema(connection: Connection) -> None:
    """The schema for the table of the version, which alembic makes before the first revision."""
    if VERSION_SCHEMA not in catalog.schemas(connection):
        connection.execute(sa.text(f"CREATE SCHEMA {VERSION_SCHEMA}"))


def _compare_default(
    context: object,
    found: object,
    wanted: object,
    found_default: str | None,
    wanted_default: object,
    rendered: str | None,
) -> bool | None:
    """False for two defaults that make a uuid: alembic would compare two values of them."""
    if all(default and _makes_uuid(default) for default in (found_default, rendered)):
        return False
    return None


def _makes_uuid(default: str) -> bool:
    return default.rpartition(".")[2].startswith(_UUID_DEFAULTS)
