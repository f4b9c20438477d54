"""Loading rows that are no changes: the triggers of capture switched off for one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.errors import PermissionDenied
from fwdb.stores.postgres import PostgresStore

__all__ = ["TRIGGERS", "without_capture"]

# Rows and TRUNCATE. Their names sort before those of other triggers, which fire in this order.
TRIGGERS = ("00_fwdb_audit", "00_fwdb_audit_truncate")

_FOUND = sa.text("""
    SELECT CAST(CAST(t.tgrelid AS regclass) AS text) AS relation, t.tgname AS trigger,
           pg_has_role(c.relowner, 'USAGE') AS owned
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE t.tgname = ANY (:triggers) AND t.tgenabled <> 'D'
      AND t.tgrelid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
    ORDER BY 1, 2 /* fwdb */
""")


@contextmanager
def without_capture(store: PostgresStore, tables: Sequence[str]) -> Iterator[Connection]:
    """A transaction in which writes to `tables` leave no row in the audit trail.

    For history that is loaded with its own trail, not for changes. Other writers of the tables
    wait until the transaction ends; rolled back or committed, the triggers are as before. Joins
    an open transaction. A table that is not captured, or is not there, is no obstacle. Raises
    `PermissionDenied` for a role that does not own a captured table.
    """
    with store.transaction() as connection:
        found = store.rows(_FOUND, triggers=list(TRIGGERS), tables=list(tables))
        for row in found:
            if not row["owned"]:
                raise PermissionDenied(
                    f"only the owner of {row['relation']} may write to it without a row in the "
                    "audit trail; connect as the owner."
                )
            _alter(connection, row, "DISABLE")
        yield connection
        for row in found:
            _alter(connection, row, "ENABLE ALWAYS")


def _alter(connection: Connection, row: dict[str, str], how: str) -> None:
    connection.execute(sa.text(f'ALTER TABLE {row["relation"]} {how} TRIGGER "{row["trigger"]}"'))
