"""Runs the revisions: for `fwdb migrate`, which passes a connection, and for plain `alembic`.

Plain `alembic` takes the address from FWDB_POSTGRES_URL.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from fwdb import config, models
from fwdb.errors import ConfigError
from fwdb.migrating import capture, operations, postgres
from fwdb.stores import PostgresStore


def offline() -> None:
    """Write the SQL, for whatever server it will be run on."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},  # psycopg's own style would write %% for each %
        literal_binds=True,
        **postgres.options(models.metadata),
    )
    with context.begin_transaction():
        # The table of the version is made before the first revision and stands in this schema.
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {operations.VERSION_SCHEMA}")
        # Going down to the base leaves that table behind, empty, and going up wants to make it.
        context.execute(postgres.DROP_EMPTY_VERSION_TABLE)
        context.run_migrations()


def online(connection: Connection) -> None:
    """Run all revisions in one transaction: all are applied or none."""
    context.configure(connection=connection, **postgres.options(models.metadata))
    with context.begin_transaction():
        if not context.get_context().opts.get("dont_mutate"):
            operations.lock(connection)
            postgres.version_schema(connection)
        context.run_migrations()
        if not context.get_context().opts.get("dont_mutate"):
            heard = context.config.attributes.get("report")
            capture.refit(connection, heard or (lambda change: None))


def main() -> None:
    if context.is_offline_mode():
        offline()
        return
    given = context.config.attributes.get("connection")
    if given is not None:
        online(given)
        return
    url = config.settings().postgres_url
    if url is None:
        raise ConfigError("FWDB_POSTGRES_URL is not set; alembic needs the address of a database.")
    store = PostgresStore(url.get_secret_value(), application_name="alembic")
    with store.transaction(timeout_ms=0) as connection:
        online(connection)
    store.close()


main()
