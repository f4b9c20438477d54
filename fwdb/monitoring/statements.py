"""Readings of pg_stat_statements, taken now or stored earlier, and the statements' texts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb import queries
from fwdb.errors import FeatureUnavailable
from fwdb.monitoring.differences import HIDDEN, StatementReading
from fwdb.monitoring.history import History, StoredReading
from fwdb.stores import PostgresStore
from fwdb.stores.timings import OWN

# That of PostgreSQL 14, with the level of a statement and the count of evictions. A server that
# was upgraded keeps the version it had until somebody updates the extension.
_OLDEST = (1, 9)

_KEPT = ("extension_version", "io_timed", "plans_timed", "max_entries")
_TIMES = ("server_started_at", "stats_reset", "database_reset_at")


@dataclass(frozen=True, slots=True)
class Recorder:
    """What `statement_settings.sql` told: whether and how statements are recorded."""

    settings: dict[str, Any]
    info: dict[str, Any]

    @property
    def details(self) -> dict[str, Any]:
        """What a stored reading keeps of it, ready for JSON."""
        kept = {name: self.settings[name] for name in ("server_started_at", *_KEPT)} | self.info
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in kept.items()
        }

    @property
    def hidden(self) -> str:
        """What this role cannot see, for the reader; empty when it sees everything."""
        if self.settings["sees_all"]:
            return ""
        role = self.settings["role_name"]
        return (
            f"statements of other roles are hidden from {role}: GRANT pg_read_all_stats TO {role}"
        )


def recorder(store: PostgresStore) -> Recorder:
    """How statements are recorded here; makes the extension visible to this transaction.

    Call it inside ``store.transaction()``. Raises `FeatureUnavailable` when pg_stat_statements
    cannot be read, with what to do.
    """
    settings = store.rows("statement_settings")[0]
    if not settings["preloaded"]:
        raise FeatureUnavailable(
            f"postgres at {store.address} does not record statements: add pg_stat_statements to "
            "shared_preload_libraries, restart the server, and run CREATE EXTENSION "
            "pg_stat_statements in this database."
        )
    if settings["extension_version"] is None:
        raise FeatureUnavailable(
            f"the database at {store.address} lacks the extension pg_stat_statements: run CREATE "
            "EXTENSION pg_stat_statements in it."
        )
    if tuple(map(int, settings["extension_version"].split("."))) < _OLDEST:
        raise FeatureUnavailable(
            f"the extension pg_stat_statements in the database at {store.address} is version "
            f"{settings['extension_version']}: run ALTER EXTENSION pg_stat_statements UPDATE in it."
        )
    # The extension may be in a schema that is not searched.
    store.execute(
        sa.text(
            "SELECT set_config('search_path', concat_ws(', ', nullif(current_setting("
            f"'search_path'), ''), quote_ident(:schema)), true) {OWN}"
        ),
        {"schema": settings["extension_schema"]},
    )
    return Recorder(settings, store.rows("statement_info")[0])


def read_now(store: PostgresStore) -> tuple[StatementReading, Recorder]:
    """A reading of this moment. Raises `FeatureUnavailable`."""
    with store.transaction():
        found = recorder(store)
        rows = store.rows("statement_counters")
    reading = _reading(found.settings["read_at"], found.details, rows)
    return reading, found


def read_stored(history: History, stored: StoredReading) -> StatementReading:
    """A reading that was taken earlier."""
    rows = history.rows("stored_statements", reading_id=stored.reading_id)
    return _reading(stored.read_at, stored.details["statements"], rows)


def _reading(
    read_at: datetime, details: dict[str, Any], rows: list[dict[str, Any]]
) -> StatementReading:
    times = {
        name: datetime.fromisoformat(details[name]).astimezone(UTC) if details[name] else None
        for name in _TIMES
    }
    started = times.pop("server_started_at")
    assert started is not None
    return StatementReading(
        read_at=read_at,
        server_started_at=started,
        **times,
        dealloc=details["dealloc"],
        max_entries=details["max_entries"],
        io_timed=details["io_timed"],
        plans_timed=details["plans_timed"],
        transactions=details["transactions"],
        active_ms=details["active_ms"],
        rows=StatementReading.keyed(rows),
    )


def store_reading(store: PostgresStore, connection: Connection, reading_id: int) -> int:
    """Store all entries of this moment under `reading_id`; how many. Nothing leaves the server."""
    counters = queries.load("statement_counters")
    names = ", ".join(counters.columns)
    stored = connection.execute(
        sa.text(
            f"INSERT INTO monitoring.statement_samples (reading_id, {names}) "
            f"SELECT :reading_id, {names} FROM (\n{_body(counters.text)}\n) AS entry {OWN}"
        ),
        {"reading_id": reading_id},
    ).rowcount
    unknown = connection.execute(
        sa.text(
            "SELECT DISTINCT query_id FROM monitoring.statement_samples AS s "
            "WHERE reading_id = :reading_id AND query_id <> :hidden AND NOT EXISTS ("
            "SELECT FROM monitoring.statement_texts AS t "
            "WHERE t.database_id = s.database_id AND t.query_id = s.query_id) " + OWN
        ),
        {"reading_id": reading_id, "hidden": HIDDEN},
    ).scalars()
    # Texts are several times as dear as counters, so they are read for new entries only.
    if new := list(unknown):
        texts = _body(queries.load("statement_texts").text)
        connection.execute(
            sa.text(
                "INSERT INTO monitoring.statement_texts (database_id, query_id, statement) "
                f"SELECT database_id, query_id, statement FROM (\n{texts}\n) AS t "
                f"ON CONFLICT DO NOTHING {OWN}"
            ),
            {"query_ids": new},
        )
    return int(stored)


def texts(store: PostgresStore, history: History | None, ids: Collection[int]) -> dict[int, str]:
    """The texts of the statements `ids`, stored ones first: reading them live is dear."""
    wanted = [query_id for query_id in ids if query_id != HIDDEN]
    found: dict[int, str] = {}
    if history is not None and wanted:
        rows = history.rows("stored_texts", query_ids=wanted)
        found = {row["query_id"]: row["statement"] for row in rows}
    missing = [query_id for query_id in wanted if query_id not in found]
    if missing:
        with store.transaction():
            recorder(store)
            rows = store.rows("statement_texts", query_ids=missing)
        found |= {row["query_id"]: row["statement"] for row in rows}
    return found


def is_own(statement: str) -> bool:
    """Whether fwdb asked this to answer a question of its own."""
    return OWN in statement


def _body(text: str) -> str:
    return text.rstrip().rstrip(";")
