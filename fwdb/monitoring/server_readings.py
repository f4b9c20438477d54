"""What a reading keeps of the server besides sessions, counters and statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fwdb.errors import FwdbError
from fwdb.monitoring import accesses, cache, facts, relations
from fwdb.monitoring.history import History
from fwdb.stores import MongoStore, PostgresStore


def postgres(
    store: PostgresStore, history: History, missing: dict[str, str], *, full: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Subjects with their counters, ready for JSON; `missing` gets why one could not be read."""
    asked: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if store.server_version >= accesses.MINIMUM:
        asked.append(("io", lambda: accesses.counters(store)))
    if full:
        asked += [
            ("server", lambda: facts.jsonable(facts.server(store))),
            ("settings", lambda: facts.settings_reading(store, history)),
            ("tables", lambda: relations.postgres_sizes(store.rows("table_states"))),
        ]
    found = []
    for subject, ask in asked:
        try:
            with store.transaction():  # a refusal ends the savepoint and not the reading
                found.append((subject, ask()))
        except FwdbError as error:
            missing[subject] = str(error)
    return found


def mongodb(store: MongoStore, *, full: bool) -> dict[str, dict[str, Any]]:
    """The same of MongoDB. Sizes of collections only where telling them reads no document."""
    found: dict[str, dict[str, Any]] = {"server": cache.mongodb_counters(store)}
    if full and not store.is_secantus:
        found["tables"] = relations.mongodb_sizes(relations.mongodb_tables(store))
    return found
