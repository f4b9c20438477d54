"""Statements of one server stored in the history of another: they travel through this process."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from fwdb.models import monitoring as tables
from fwdb.monitoring.differences import HIDDEN
from fwdb.stores import PostgresStore
from fwdb.stores.timing import OWN


def copy_statements(watched: PostgresStore, history: Connection, reading_id: int) -> int:
    """Store all entries of this moment under `reading_id`; how many.

    As `statements.store_reading`, which needs both to be one database. Call it in a transaction
    of `watched` after `statements.recorder`. Texts are read for new entries only.
    """
    rows = watched.rows("statement_counters")
    if rows:
        history.execute(
            sa.insert(tables.statement_samples).prefix_with(OWN),
            [{"reading_id": reading_id, **row} for row in rows],
        )
    ids = {row["query_id"] for row in rows} - {HIDDEN}
    known = history.execute(
        sa.text(
            "SELECT database_id, query_id FROM monitoring.statement_texts "
            f"WHERE query_id = ANY(:ids) {OWN}"
        ),
        {"ids": sorted(ids)},
    ).all()
    stored = {tuple(row) for row in known}
    wanted = {
        row["query_id"]
        for row in rows
        if row["query_id"] != HIDDEN and (row["database_id"], row["query_id"]) not in stored
    }
    if wanted:
        texts = watched.rows("statement_texts", query_ids=sorted(wanted))
        if texts:
            statement = postgresql.insert(tables.statement_texts).on_conflict_do_nothing()
            history.execute(statement.prefix_with(OWN), texts)
    return len(rows)
