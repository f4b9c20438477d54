"""The audit trail while data is put in or taken out as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fwdb.errors import ParameterError, PermissionDenied
from fwdb.stores import PostgresStore, without_capture
from fwdb.stores.capture import TRIGGERS

_TABLES = ("shared.users", "avatar.avatars", "catalog.catalog_items")

# Of these tables, those that this role neither owns nor, where they are not captured, may write.
_CLOSED = sa.text("""
    SELECT CAST(CAST(c.oid AS regclass) AS text) AS name
    FROM unnest(CAST(:tables AS text[])) AS named
    JOIN pg_class AS c ON c.oid = to_regclass(named)
    WHERE NOT pg_has_role(c.relowner, 'USAGE') AND (
        NOT has_table_privilege(c.oid, 'INSERT') OR NOT has_table_privilege(c.oid, 'DELETE')
        OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = ANY (:triggers)))
    ORDER BY name
""")

# What holds the trail beside `audit.audit_logs`, in the order in which it goes; `captured`, which
# says how, stays.
_PARTS = ("seals", "erasures", "gaps", "followers", "archives")


@contextmanager
def uncaptured(postgres: PostgresStore, doing: str) -> Iterator[None]:
    """A part of the open transaction in which no change is captured.

    For what brings its own history, or takes history away. Others who write these tables wait
    for the end of the transaction. Raises `PermissionDenied` for a role that may not, before
    anything is done; `doing` begins the sentence.
    """
    tables = [*_TABLES, "audit.audit_logs"]
    if closed := postgres.rows(_CLOSED, tables=tables, triggers=list(TRIGGERS)):
        raise PermissionDenied(
            f"{doing} writes the audit trail itself, and this role does not own "
            f"{closed[0]['name']}; "
            "connect with role='owner', or name the owner in FWDB_POSTGRES_URL."
        )
    with without_capture(postgres, _TABLES) as connection:
        yield
        # Deferred constraints would keep their tables from being altered.
        connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))


def add_months(postgres: PostgresStore, since: object, until: object) -> None:
    """Make the months of the trail from `since` to `until`, where it has months."""
    if postgres.has_function("audit.add_partitions"):
        days = (sa.cast(sa.literal(day), sa.Date) for day in (since, until))
        postgres.rows(sa.select(sa.func.audit.add_partitions(*days)))


def empty(postgres: PostgresStore) -> int:
    """Remove the whole trail in the open transaction; how many rows it had.

    Raises `ParameterError` while a month of it is held.
    """
    there = {
        row["name"]
        for row in postgres.rows(
            sa.text(
                "SELECT CAST(tablename AS text) AS name FROM pg_tables WHERE schemaname = 'audit'"
            )
        )
    }
    if "holds" in there:
        held = postgres.rows(
            sa.text("SELECT count(*) AS n FROM audit.holds WHERE released_at IS NULL")
        )[0]["n"]
        if held:
            raise ParameterError(
                f"{held} month{'s' if held > 1 else ''} of the audit trail must be kept; release "
                "what is held first."
            )
    journals = sorted(name for name in there if name.startswith("journal_"))
    gone = [
        postgres.execute(sa.text(f"DELETE FROM audit.{name}")).rowcount
        for name in (*journals, "audit_logs", *(part for part in _PARTS if part in there))
    ]
    return sum(gone[: len(journals) + 1])
