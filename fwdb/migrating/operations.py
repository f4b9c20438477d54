"""Steps of the PostgreSQL revisions that also adopt what is already there.

A database may have been made by the Fashion Wallet service: then its tables stay as they are and
get only what they lack. With ``--sql`` there is no database to look at and each step writes the
plain DDL for an empty one. Every step says what it did through `report()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.engine import Connection

from fwdb.errors import MigrationError
from fwdb.migrating import catalog
from fwdb.migrating.changes import Change

MADE = "Made by fwdb."  # ends the comment of our tables and functions; only those are ever dropped

# The version is kept in fwdb's own schema: `public` is closed to most roles since PostgreSQL 15,
# and another program's alembic_version may be there.
VERSION_SCHEMA = "monitoring"
VERSION_TABLE = "alembic_version"

LOCK_KEY = 0x66776462  # "fwdb"
TABLE_LOCK_SECONDS = 5.0  # while a migration waits for a table, everyone behind it waits too

_TOUCH = "fwdb_touch_updated_at"


def lock(connection: Connection) -> None:
    """Wait for other migrations of this database, then bound all waits of this transaction."""
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK_KEY})"))
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {round(1000 * TABLE_LOCK_SECONDS)}"))


def schema(name: str) -> None:
    """A schema, unless it is there: CREATE … IF NOT EXISTS wants the right even then."""
    found = _database()
    if found is not None and name in catalog.schemas(found):
        return
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
    report("schema", name, f"created the schema {name}.")


def extension(name: str) -> None:
    """An extension, if the server offers it and this role may create it; else nothing."""
    database = _database()
    if database is not None and catalog.has_extension(database, name):
        return
    op.execute(f"""
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = '{name}') THEN
        CREATE EXTENSION IF NOT EXISTS {name};
    END IF;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_file THEN
    RAISE NOTICE 'extension {name} was not created';
END $$""")
    if database is None:
        return
    if catalog.has_extension(database, name):
        report("extension", name, f"created the extension {name}.")
    else:
        report(
            "extension",
            name,
            f"went on without {name}: the server has no such extension, or a superuser must "
            f"run CREATE EXTENSION {name}.",
        )


def table(name: str, *parts: sa.schema.SchemaItem, about: str, key: str = "id") -> None:
    """The table `name` (``schema.table``); one that is there gets the columns it lacks.

    A column that must not be null and has no default is added as nullable, because the rows there
    have no value for it. Raises `MigrationError` for a view of this name, or a table without `key`.
    """
    schema_name, _, table_name = name.partition(".")
    found = _found(name)
    if found is None:
        op.create_table(table_name, *parts, schema=schema_name, comment=f"{about} {MADE}")
        if any(isinstance(part, sa.Column) and part.name == "id" for part in parts):
            _time_ordered_ids(name)
        report("table", name, f"created the table {name}.")
        return
    if not found.plain or key not in found.columns:
        raise MigrationError(
            f"{name} is there and is not a table of the Fashion Wallet (it is a view, or has no "
            f"column {key}); rename it and run 'fwdb migrate' again."
        )
    report("table", name, f"found the table {name} and kept it.")
    for column in (part for part in parts if isinstance(part, sa.Column)):
        if column.name in found.columns:
            continue
        if not column.nullable and column.server_default is None:
            column.nullable = True
        op.add_column(table_name, column, schema=schema_name)
        report("column", f"{name}.{column.name}", f"added the column {column.name} to {name}.")


def _time_ordered_ids(name: str) -> None:
    """uuidv7() is built in from PostgreSQL 18 on: new rows then lie together in the index."""
    op.execute(f"""
DO $$ BEGIN
    IF CAST(current_setting('server_version_num') AS int) >= 180000 THEN
        ALTER TABLE {name} ALTER COLUMN id SET DEFAULT uuidv7();
    END IF;
END $$""")


def index(name: str, table: str, keys: Sequence[str], *, where: str | None = None) -> None:
    """A btree index on `table`, unless one of this definition is there under any name."""
    found = _found(table)
    if found is not None and found.serves(tuple(keys), where):
        return
    if found is not None and any(other.name == name for other in found.indexes):
        report("index", f"{table}.{name}", f"left {name} of {table}: it has another definition.")
        return
    schema_name, _, table_name = table.partition(".")
    op.create_index(
        name,
        table_name,
        [sa.text(key) if " " in key else key for key in keys],
        schema=schema_name,
        postgresql_where=None if where is None else sa.text(where),
    )
    report("index", f"{table}.{name}", f"created the index {name} on {table}.")


def unique(name: str, table: str, column: str) -> None:
    """A unique constraint on an adopted `table`; left out, and said so, while rows break it."""
    found, database = _found(table), _database()
    if found is None or database is None or found.serves((column,), None, unique=True):
        return
    twice = sa.text(f"SELECT EXISTS (SELECT FROM {table} GROUP BY {column} HAVING count(*) > 1)")
    if database.scalar(twice):
        report("constraint", f"{table}.{name}", f"left {table}.{column} not unique: values repeat.")
        return
    schema_name, _, table_name = table.partition(".")
    op.create_unique_constraint(name, table_name, [column], schema=schema_name)
    report("constraint", f"{table}.{name}", f"made {table}.{column} unique.")


def touch_function() -> None:
    """The trigger function that keeps `updated_at`.

    clock_timestamp() and not now(): two changes of one row never get the same time, nor does a
    transaction that began early turn the time back.
    """
    function(
        f"shared.{_TOUCH}",
        """
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    NEW.updated_at = clock_timestamp();
    RETURN NEW;
END $$""",
        about="Keeps updated_at.",
    )


def touch(table: str) -> None:
    """The trigger that keeps `updated_at` of `table`, unless one does so already."""
    found = _found(table)
    if found is not None and found.touches:
        return
    op.execute(
        f"CREATE TRIGGER {_TOUCH} BEFORE UPDATE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION shared.{_TOUCH}()"
    )
    report("trigger", f"{table}.{_TOUCH}", f"created the trigger that keeps {table}.updated_at.")


def function(name: str, body: str, *, about: str, takes: str = "") -> None:
    """A function that takes arguments of these types, unless there is one of this name.

    Nobody but its owner may call it until the revision says who.
    """
    found = _database()
    if found is not None and catalog.has_function(found, name, takes):
        return
    op.execute(f"CREATE FUNCTION {name}({takes}) {body.strip()}")
    op.execute(f"COMMENT ON FUNCTION {name}({takes}) IS '{about} {MADE}'")
    op.execute(closing(f"oid = to_regprocedure('{name}({takes})')"))
    report("function", name, f"created the function {name}({takes}).")


def closing(condition: str) -> str:
    """SQL that leaves functions of ours to their owner and gives them a search_path nobody leads.

    Without pg_temp at its end, relations and types of the caller's temporary schema come first, and
    a function that runs as its owner would run what they hide. `condition` is about `oid`, `name`
    and `comment`. A body that was bound when it was made (RETURN) needs no search_path.
    """
    return f"""
DO $$
DECLARE
    made record;
    other record;
BEGIN
    FOR made IN
        SELECT * FROM (
            SELECT oid, CAST(proname AS text) AS name, obj_description(oid, 'pg_proc') AS comment,
                CAST(CAST(oid AS regprocedure) AS text) AS function, proacl, proowner,
                prosqlbody IS NOT NULL AS is_bound
            FROM pg_proc
        ) AS p
        WHERE right(comment, {len(MADE)}) = '{MADE}' AND {condition}
    LOOP
        IF NOT made.is_bound THEN
            EXECUTE format(
                'ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', made.function);
        END IF;
        FOR other IN
            SELECT DISTINCT grantee
            FROM aclexplode(coalesce(made.proacl, acldefault('f', made.proowner)))
            WHERE grantee <> made.proowner
        LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', made.function, CASE other.grantee
                WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
        END LOOP;
    END LOOP;
END $$"""


def protect(table: str) -> None:
    """Leave the right to change a table of ours to its owner alone."""
    op.execute(f"SELECT audit.protect('{table}')")


# -- the way down -----------------------------------------------------------------------------
# Only what fwdb made is dropped. Columns and indexes that it added to a table it found stay: an
# index does no harm, and a column may hold data by now.


def drop_table(name: str) -> None:
    """Drop a table of ours with its rows; one that fwdb found stays."""
    _drop_ours(f"TABLE {name}", f"obj_description(to_regclass('{name}'), 'pg_class')")


def drop_function(name: str, takes: str = "") -> None:
    """Drop a function of ours; one that fwdb found stays."""
    named = f"{name}({takes})"
    _drop_ours(f"FUNCTION {named}", f"obj_description(to_regprocedure('{named}'), 'pg_proc')")


def _drop_ours(named: str, comment: str) -> None:
    op.execute(f"""
DO $$ BEGIN
    IF right({comment}, {len(MADE)}) = '{MADE}' THEN
        DROP {named};
    END IF;
END $$""")


def untouch(table: str) -> None:
    """Drop our trigger from a table that may or may not be there any more."""
    op.execute(f"""
DO $$ BEGIN
    IF to_regclass('{table}') IS NOT NULL THEN
        DROP TRIGGER IF EXISTS {_TOUCH} ON {table};
    END IF;
END $$""")


def untouch_function() -> None:
    """Drop the trigger function; its triggers must be gone."""
    drop_function(f"shared.{_TOUCH}")


def drop_schema(name: str) -> None:
    """Drop a schema if nothing is in it and this role owns it."""
    op.execute(f"""
DO $$ BEGIN
    DROP SCHEMA IF EXISTS {name} RESTRICT;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
    RAISE NOTICE 'schema {name} stays';
END $$""")


# -- what the steps stand on ------------------------------------------------------------------


def report(kind: str, name: str, sentence: str) -> None:
    """Hand a `Change` to whoever runs the migration."""
    config: Any = op.get_context().config
    listener = config.attributes.get("report") if config is not None else None
    if listener is not None:
        listener(Change("postgres", kind, name, sentence))


def _database() -> Connection | None:
    """The database that is migrated, or None when only SQL is written."""
    context = op.get_context()
    return None if context.as_sql else context.connection


def _found(name: str) -> catalog.FoundTable | None:
    database = _database()
    return None if database is None else catalog.read(database, name)
