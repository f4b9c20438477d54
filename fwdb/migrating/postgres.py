"""The PostgreSQL half: running the revisions, and comparing a database with the models."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection

from fwdb import config, models
from fwdb.errors import MigrationError, PermissionDenied, Transient, UnknownName
from fwdb.migrating import capture, catalog
from fwdb.migrating.changes import Change, Difference
from fwdb.migrating.operations import LOCK_KEY, VERSION_SCHEMA, VERSION_TABLE
from fwdb.stores import PostgresStore
from fwdb.stores.timing import OWN

# Alembic keeps the running migration in module variables: one at a time in a process.
_one_at_a_time = threading.Lock()


@functools.cache
def head() -> str:
    """The newest revision of this release."""
    found = _scripts().get_current_head()
    assert found is not None, "there are revisions, and one of them is the last"
    return found


def current(postgres: PostgresStore) -> str | None:
    """The revision of the database; None when `fwdb migrate` never ran on it."""
    name = f"{VERSION_SCHEMA}.{VERSION_TABLE}"
    # Marked as ours, because every health check asks.
    if postgres.rows(sa.text(f"SELECT to_regclass('{name}') AS name {OWN}"))[0]["name"] is None:
        return None
    found = postgres.rows(sa.text(f"SELECT version_num FROM {name} {OWN}"))
    return str(found[0]["version_num"]) if found else None


def upgrade(postgres: PostgresStore, report: Callable[[Change], object]) -> None:
    """Run the revisions that the database lacks; each step goes to `report`."""
    before = current(postgres)
    _known(before)
    if before == head():
        with postgres.transaction() as connection:
            capture.refit(connection, report)
        return
    _run(postgres, lambda settings: command.upgrade(settings, "head"), report)


def downgrade(postgres: PostgresStore, revision: str) -> None:
    """Go back to `revision`, ``base`` for the beginning; tables fwdb made are dropped with rows.

    Tables that fwdb found when it adopted the database stay, and so do columns and indexes that
    it added to them. Raises `UnknownName` for a revision there is not.
    """
    revisions = [script.revision for script in _scripts().walk_revisions()]
    if revision not in {"base", *revisions}:
        raise UnknownName("revision", revision, ["base", *revisions])
    _known(current(postgres))
    _run(postgres, lambda settings: command.downgrade(settings, revision), lambda change: None)


def offline_sql(revision: str = "head", *, start: str | None = None, down: bool = False) -> str:
    """The SQL that brings a database from revision `start` to `revision`, for psql or a DBA.

    `start` is ``base``, an empty database, unless given; with `down` the SQL goes back, from the
    newest revision unless `start` says otherwise. It is for tables that fwdb made or will make:
    adoption needs to see the database. Raises `MigrationError` for a way there is not.
    """
    start = start or (head() if down else "base")
    written = io.StringIO()
    settings = _config(output_buffer=written)
    step = command.downgrade if down else command.upgrade
    try:
        with _one_at_a_time:
            step(settings, f"{start}:{revision}", sql=True)
    except CommandError as error:
        raise MigrationError(f"no SQL from {start} to {revision}: {error}.") from error
    return written.getvalue()


def differences(postgres: PostgresStore) -> list[Difference]:
    """How the database differs from the models."""
    found = list(revision_differences(postgres))
    with postgres.connection() as connection:
        for name, table in models.metadata.tables.items():
            there = catalog.read(connection, name)
            if there is None:
                found.append(_difference(name, f"the table {name} is missing.", "error"))
            else:
                found += _table_differences(name, table, there)
                facts = models.AUDIT_FACTS if table is models.audit_logs else ()
                for fact in (f"{name}.{fact}" for fact in facts if fact not in there.columns):
                    found.append(_difference(fact, f"the column {fact} is missing.", "error"))
        for name in capture.outdated(connection):
            said = f"the capture of {name} does not fit its columns; run 'fwdb migrate'."
            found.append(_difference(name, said, "warning"))
        name = "audit.cleanup_old_audit_logs"
        if not catalog.has_function(connection, name):
            found.append(_difference(name, f"the function {name}() is missing.", "warning"))
    return found


def revision_differences(postgres: PostgresStore) -> Iterator[Difference]:
    """How the recorded revision differs from the newest one; no table is looked at."""
    try:
        at = current(postgres)
    except PermissionDenied as error:
        yield _difference("revision", f"the revision cannot be read: {error}", "information")
        return
    if at == head():
        return
    said = "has no revision of fwdb" if at is None else f"is at revision {at}, not {head()}"
    known = {script.revision for script in _scripts().walk_revisions()}
    remedy = "run 'fwdb migrate'" if at is None or at in known else "use a newer fwdb"
    yield _difference("revision", f"the database {said}; {remedy}.", "error")


def _table_differences(
    name: str, table: sa.Table, there: catalog.FoundTable
) -> Iterator[Difference]:
    for column in table.columns:
        yield from _column_differences(name, column, there.columns.get(column.name))
    for extra in there.columns.values():
        obliged = extra.not_null and extra.default is None and not extra.generated
        if extra.name not in table.columns and obliged:
            yield _difference(
                f"{name}.{extra.name}",
                f"{name}.{extra.name} must have a value and fwdb gives none: it cannot add rows.",
                "error",
            )
    for wanted in table.indexes:
        keys, where = _definition(wanted)
        instead = wanted.info.get("or")
        if not there.serves(keys, where) and not (instead and there.serves(instead, where)):
            rows = f" where {where}" if where else ""
            yield _difference(
                f"{name}.{wanted.name}",
                f"{name} has no index on ({', '.join(keys)}){rows}: some questions are slow.",
                "warning",
            )
    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint):
            columns = tuple(column.name for column in constraint.columns)
            said = f"{name}.{', '.join(columns)}"
            if not there.serves(columns, None, unique=True):
                yield _difference(said, f"{said} is not unique.", "warning")
        elif isinstance(constraint, sa.ForeignKeyConstraint):
            (own,), target = constraint.column_keys, str(constraint.referred_table)
            if (own, target) not in there.references:
                said = f"{name}.{own} does not refer to {target}."
                yield _difference(f"{name}.{own}", said, "information")
    if "updated_at" in table.columns and not there.touches:
        yield _difference(f"{name}.updated_at", f"no trigger keeps {name}.updated_at.", "warning")


def _column_differences(
    name: str, column: sa.Column[object], there: catalog.FoundColumn | None
) -> Iterator[Difference]:
    name = f"{name}.{column.name}"
    if there is None:
        yield _difference(name, f"the column {name} is missing.", "error")
        return
    lacking = [label for label in column.info.get("labels", ()) if label not in there.labels]
    if there.labels and lacking:
        said = f"{name}: the enum {there.type} has no label {', '.join(lacking)}."
        yield _difference(name, said, "warning")
    wanted = _type(column)
    if there.type != wanted:
        alike = _is_text(wanted) and (_is_text(there.type) or bool(there.labels))
        said = f"{name} is {there.type}, ours would be {wanted}."
        yield _difference(name, said, "information" if alike else "warning")
    if not column.nullable and not there.not_null:
        yield _difference(name, f"{name} may be null, ours would not.", "information")
    given = there.default is not None or there.generated or not there.not_null
    if column.server_default is not None and not given:
        said = f"{name} has no default: rows must give a value."
        yield _difference(name, said, "error" if column.primary_key else "warning")


def _definition(index: sa.Index) -> tuple[tuple[str, ...], str | None]:
    """Keys and condition of an index of the models as `catalog` writes those it finds."""
    where = index.dialect_options["postgresql"]["where"]
    keys = (e.name if isinstance(e, sa.Column) else str(e) for e in index.expressions)
    return tuple(keys), None if where is None else str(where)


_DIALECT = sa.make_url("postgresql://").get_dialect()()
_SPELLED_OUT = {"VARCHAR": "character varying"}


def _type(column: sa.Column[object]) -> str:
    """The type of a column of the models as format_type() writes it."""
    name, bracket, size = column.type.compile(dialect=_DIALECT).partition("(")
    return f"{_SPELLED_OUT.get(name, name).lower()}{bracket}{size}"


def _is_text(type_name: str) -> bool:
    return type_name.startswith(("character varying", "text"))


def _difference(object: str, sentence: str, severity: str) -> Difference:
    return Difference("postgres", object, sentence, severity)


# -- how alembic is set up, for `migrations/env.py` too -----------------------------------------

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
    names = [(default or "").rpartition(".")[2] for default in (found_default, rendered)]
    return False if all(name.startswith(_UUID_DEFAULTS) for name in names) else None


# -- running alembic --------------------------------------------------------------------------


def _config(*, output_buffer: io.StringIO | None = None, **attributes: object) -> Config:
    settings = Config(stdout=io.StringIO(), output_buffer=output_buffer, attributes=attributes)
    folder = str(config.resource("migrations"))
    settings.set_main_option("script_location", folder.replace("%", "%%"))
    return settings


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _known(revision: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise MigrationError(
            f"the database is at revision {revision}, which this release of fwdb does not know "
            f"(its newest is {head()}); use a newer fwdb."
        )


def _run(
    postgres: PostgresStore,
    step: Callable[[Config], None],
    report: Callable[[Change], object],
) -> None:
    """Run one alembic command in one transaction: all of it or nothing."""
    try:
        with _one_at_a_time, postgres.transaction(timeout_ms=0) as connection:
            step(_config(connection=connection, report=report))
    except Transient as error:
        schemas = {f"{table.schema}.%" for table in models.metadata.tables.values()}
        holders = postgres.lock_holders(schemas, LOCK_KEY)
        raise MigrationError(
            f"a table stayed locked, or another migration did not end{holders}; "
            "nothing was changed. End that session or wait for it, then run 'fwdb migrate' again."
        ) from error
    except CommandError as error:
        raise MigrationError(f"alembic stopped: {error}.") from error
