"""What `fwdb migrate` does: bring both databases to the schema of this release, and compare.

PostgreSQL goes through the Alembic revisions in `migrations/versions`, all in one transaction;
MongoDB gets what `migrations/mongodb/*.json` declare. A database that the Fashion Wallet service
made is adopted: it gets what it lacks and keeps everything it has.
"""

from __future__ import annotations

from collections.abc import Callable

from fwdb.migrating import mongodb as _mongodb
from fwdb.migrating import postgres as _postgres
from fwdb.migrating.changes import Change, Difference
from fwdb.migrating.postgres import current, downgrade, head, offline_sql
from fwdb.stores import MongoStore, PostgresStore

__all__ = [
    "Change",
    "Difference",
    "behind",
    "current",
    "downgrade",
    "drift",
    "head",
    "migrate",
    "offline_sql",
]


def migrate(
    postgres: PostgresStore | None,
    mongodb: MongoStore | None,
    *,
    progress: Callable[[Change], object] | None = None,
) -> list[Change]:
    """Bring the given databases to the schema of this release; what was done, in order.

    `progress` is called with each `Change` when it happens. A second run changes nothing and
    returns an empty list. Documents and rows are never changed; what stands in the way of a rule
    is left and said in a `Change`. Raises `MigrationError` when a table stays locked, another
    migration does not end, or the database is at a revision of a newer release; PostgreSQL is
    then as it was before.
    """
    changes: list[Change] = []

    def report(change: Change) -> None:
        changes.append(change)
        if progress is not None:
            progress(change)

    if postgres is not None:
        _postgres.upgrade(postgres, report)
    if mongodb is not None:
        _mongodb.apply(mongodb, report)
    return changes


def behind(store: PostgresStore | MongoStore) -> str:
    """Why the schema of `store` is not that of this release, with the remedy; empty when it is.

    Quick enough to be asked with every health check: it compares revisions and not schemas.
    """
    if isinstance(store, PostgresStore):
        return _postgres.behind(store)
    return _mongodb.behind(store)


def drift(postgres: PostgresStore | None, mongodb: MongoStore | None) -> list[Difference]:
    """How the given databases differ from what fwdb would have made; worst first.

    Further tables, columns and indexes are nobody's business and not listed, unless fwdb could
    not write a row because of them.
    """
    found: list[Difference] = []
    if postgres is not None:
        found += _postgres.differences(postgres)
    if mongodb is not None:
        found += _mongodb.differences(mongodb)
    order = ("error", "warning", "information")
    return sorted(found, key=lambda difference: order.index(difference.severity))
