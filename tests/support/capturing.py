"""People of the tests who come and go without a trace in the trail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fwdb.stores import PostgresStore


@contextmanager
def unrecorded(store: PostgresStore) -> Iterator[None]:
    """While it runs, users come and go without a row of the trail."""
    there = sa.text(
        "SELECT 1 FROM pg_trigger WHERE tgname = '00_fwdb_audit'"
        " AND tgrelid = to_regclass('shared.users')"
    )
    trigger = 'ALTER TABLE shared.users {} TRIGGER "00_fwdb_audit"'
    recorded = bool(store.rows(there))
    if recorded:
        store.execute(sa.text(trigger.format("DISABLE")))
    try:
        yield
    finally:
        if recorded:
            store.execute(sa.text(trigger.format("ENABLE ALWAYS")))
