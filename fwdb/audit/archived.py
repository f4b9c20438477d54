"""The same questions of archived months: DuckDB over their Parquet files, put beside the table.

There is one definition of each question, its file in `queries/postgres/`. DuckDB runs that text
with a view of the name `audit.audit_logs` over the files, a few macros for functions that have
another name there, and uuids as the text that the files hold, so that their Bloom filters count.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from fwdb import queries
from fwdb.audit import archives, partitions
from fwdb.audit.archives import Archive
from fwdb.audit.context import TABLE, Bounds, Context, Past
from fwdb.config import Settings
from fwdb.errors import FeatureUnavailable, ParameterError
from fwdb.stores import PostgresStore, frames

__all__ = ["TableAndArchives", "with_archives"]

# Questions for rows, with whether their answer is in order of time or against it: the answers of
# table and files are merged.
_ROWS = {"audit_history": True, "audit_search": False}
# Questions for figures: the few columns that they look at are fetched from the table, for the
# window and as long before it, and counted with the files.
_FIGURES = {
    "audit_totals": timedelta(0),
    "audit_activity": timedelta(0),
    "audit_actors": timedelta(0),
}
_LOOKED_AT = (
    "created_at, metadata, CAST(entity_type AS text) AS entity_type, CAST(action AS text) AS action"
)
# Questions for changes, which stay the server's: it knows its types, and how to put them together.
_CHANGES = ("audit_changes", "audit_replayed")
_MOST_CHANGES = 500_000  # some 300 MB as JSON, of the 1 GB that a value may have
_TYPES = {
    "id": "uuid",
    "created_at": "timestamptz",
    "action": "text",
    "entity_type": "text",
    "entity_id": "uuid",
    "user_id": "uuid",
    "old_values": "jsonb",
    "new_values": "jsonb",
    "transaction_id": "bigint",
    "origin": "text",
    "reason": "text",
    "db_user": "text",
    "application_name": "text",
    "client_address": "text",
}
_LIVE = "SELECT {columns} FROM {{}}".format(
    columns=", ".join(f"CAST({name} AS {kind}) AS {name}" for name, kind in _TYPES.items())
)
# JSON comes as text, so that 1.10 stays 1.10.
_HANDED = (
    "SELECT {values} FROM json_to_recordset(CAST(:archived AS json)) AS handed ({columns})".format(
        values=", ".join(
            f"CAST({name} AS jsonb) AS {name}" if kind == "jsonb" else name
            for name, kind in _TYPES.items()
        ),
        columns=", ".join(
            f"{name} {'text' if kind == 'jsonb' else kind}" for name, kind in _TYPES.items()
        ),
    )
)
_MACROS = """
CREATE MACRO jsonb_typeof(value) AS lower(json_type(value));
CREATE MACRO jsonb_object_keys(value) AS unnest(json_keys(value));
CREATE MACRO to_jsonb(value) AS to_json(value);
CREATE MACRO cardinality(list) AS len(list);
"""
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=[a-zA-Z_])")


C = TypeVar("C", bound=Context)


def with_archives(self: C) -> C:
    """The same trail with its archived months: ``db.audit.with_archives().history(…)``.

    `history`, `search`, `by_user`, `recent`, `totals`, `activity` and `actors` then read the
    table and the files in FWDB_AUDIT_ARCHIVE as one, with the columns, types and order that
    they have without; so do `timeline`, `who_changed`, `diff` and `as_of`, for which the
    server is handed the archived changes. Each file is compared with its checksum before its
    first use. Raises, when asked, `ArchiveError` for a file that is missing or damaged,
    `FeatureUnavailable` for another question, and for the first seven without DuckDB (the
    extra ``archive``), `ParameterError` for more changes than can be handed over.
    """
    other = copy.copy(self)
    other.source = TableAndArchives(self.postgres, self.settings)
    return other


@dataclass(frozen=True)
class TableAndArchives:
    """The rows that are in the table, and those of months that left it."""

    store: PostgresStore
    settings: Settings

    def frame(self, query: str, /, **parameters: Any) -> pd.DataFrame:
        if query in _CHANGES:
            window = (parameters.get("since"), parameters.get("until"))
            with self.past(parameters["entity_type"], parameters["entity_id"], window) as past:
                return self.store.frame(
                    query, instead=past.instead, **parameters, **past.parameters
                )
        if query not in _ROWS and query not in _FIGURES:
            raise FeatureUnavailable(
                f"the question '{query.removeprefix('audit_')}' is not asked of archived months; "
                "ask it without with_archives()."
            )
        with self._settled():
            files = self._files(parameters.get("since"), parameters.get("until"))
            if not files:
                return self.store.frame(query, **parameters)
            if query in _FIGURES:
                live = self._looked_at(parameters, before=_FIGURES[query])
                return _ask(query, parameters, files, live)
            table = self.store.frame(query, **parameters)
        return _merged(query, parameters, files, table)

    @contextmanager
    def past(
        self, entity_type: str | None, id: UUID | None, window: Bounds = (None, None)
    ) -> Iterator[Past]:
        """With the archived changes beside the table, handed to the server with the question."""
        with self._settled():
            rows, begins = _changes(self._files(*window), entity_type, id)
            both = f"({_LIVE.format(TABLE)} UNION ALL {_HANDED}) AS trail"
            yield Past({TABLE: both}, {"archived": rows}, begins=begins)

    def require(self, at: datetime, name: str, remedy: str = "") -> None:
        """All that ever was is within reach."""

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Months and rows of one moment: no month is read twice, or not at all.

        A month that is detached meanwhile waits for this lock.
        """
        with self.store.transaction(isolation="repeatable read", read_only=True) as connection:
            connection.execute(sa.text(f"LOCK TABLE {TABLE} IN ACCESS SHARE MODE /* fwdb */"))
            yield

    def _files(self, since: datetime | None, until: datetime | None) -> list[Path]:
        """The files of months that are not in the table, as far as they touch the window."""
        found = []
        folder = None
        if not partitions.recorded(self.store):
            return []
        for month in partitions.months(self.store):
            # A month that was made again after it was dropped is in both.
            if month.path is None or (month.state == "live" and month.dropped_at is None):
                continue
            assert month.since is not None
            assert month.until is not None
            if (until and month.since >= until) or (since and month.until <= since):
                continue
            folder = folder or archives.folder(self.settings)
            found.append(archives.check(folder, self._archive(month.day)))
        return found

    def _archive(self, day: date) -> Archive:
        row = self.store.rows(
            sa.text(
                "SELECT to_char(month, 'YYYY-MM') AS month, path, rows, bytes, sha256"
                " FROM audit.archives WHERE month = :day /* fwdb */"
            ),
            day=day,
        )[0]
        return Archive(**row)

    def _looked_at(self, parameters: Mapping[str, Any], before: timedelta) -> pa.Table:
        """The columns of the window that figures need, from the table."""
        parts: list[pa.Table] = []
        self.store.stream(
            sa.text(
                f"SELECT {_LOOKED_AT}, CAST(user_id AS text) AS user_id"
                f" FROM {TABLE}"
                " WHERE created_at >= :since AND created_at < :until"
            ),
            parts.append,
            since=parameters["since"] - before,
            until=parameters["until"],
        )
        return pa.concat_tables(parts)


def _changes(
    files: list[Path], entity_type: str | None, id: UUID | None
) -> tuple[str, datetime | None]:
    """The changes in `files`, of one type or entity where it is given, as JSON.

    And when triggers recorded the first of that type.
    """
    found: list[dict[str, Any]] = []
    begins: datetime | None = None
    for path in files:
        with pq.ParquetFile(path) as file:
            columns = [name for name in _TYPES if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                batch = batch.filter(pc.invert(_is(batch, "action", "READ")))
                if entity_type is not None:
                    batch = batch.filter(_is(batch, "entity_type", entity_type))
                if begins is None and "origin" in columns:
                    first = batch.filter(_is(batch, "origin", "trigger"))["created_at"]
                    begins = first[0].as_py() if len(first) else None
                if id is not None:
                    batch = batch.filter(_is(batch, "entity_id", str(id)))
                found += batch.to_pylist()
        if len(found) > _MOST_CHANGES:
            raise ParameterError(
                f"archived months hold more than {_MOST_CHANGES:,} changes of it; ask for one "
                "entity, with 'entity_type' and 'id', or for a shorter time.",
                name="id",
            )
    return json.dumps(found, default=str), begins


def _is(batch: pa.RecordBatch, name: str, text: str) -> pa.Array:
    return pc.fill_null(pc.equal(pc.cast(batch[name], pa.string()), text), False)


def _merged(
    query: str, parameters: Mapping[str, Any], files: list[Path], table: pd.DataFrame
) -> pd.DataFrame:
    """Rows of table and files in the order of the question, as many as it wants."""
    limit = parameters.get("row_limit")
    if limit is not None and len(table) == limit:
        # What is older than all of these cannot be among the newest.
        oldest = table["created_at"].min()
        parameters = {**parameters, "since": max(oldest, parameters["since"] or oldest)}
    archived = _ask(query, parameters, files)
    found = pd.concat([archived, table], ignore_index=True).sort_values(
        ["created_at", "id"], ascending=_ROWS[query], ignore_index=True
    )
    return found if limit is None else found.head(limit)


def _ask(
    query: str,
    parameters: Mapping[str, Any],
    files: list[Path],
    live: pa.Table | None = None,
) -> pd.DataFrame:
    """The answer of DuckDB to a query file, over `files` and the rows of `live`."""
    question = queries.load(query, "postgres")
    text = _PARAMETER.sub("$", question.text).replace(" AS uuid", " AS text")
    with _duckdb()(":memory:", config=_OFFLINE) as connection:
        connection.execute("SET TimeZone = 'UTC'; CREATE SCHEMA audit;" + _MACROS)
        # Files of before a column was added are read beside those that have it.
        listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
        source = f"SELECT * FROM read_parquet([{listed}], union_by_name => true)"
        if live is None:
            source = (
                "SELECT * REPLACE (CAST(old_values AS json) AS old_values,"
                f" CAST(new_values AS json) AS new_values) FROM ({source})"
            )
        else:
            columns = ", ".join(live.column_names)
            connection.register("live", live)
            source = f"SELECT {columns} FROM ({source}) UNION ALL SELECT {columns} FROM live"
        connection.execute(f"CREATE VIEW audit.audit_logs AS {source}")
        asked = connection.execute(text, {name: _plain(v) for name, v in parameters.items()})
        names = [column[0] for column in asked.description]
        return frames.from_rows(names, asked.fetchall(), question.columns)


# Nothing is fetched from the network: what is needed comes with the wheel.
_OFFLINE = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value


def _duckdb() -> Callable[..., Any]:
    try:
        import duckdb
    except ImportError as error:
        raise FeatureUnavailable(
            "archived months are read by DuckDB, which is not installed; run: "
            "pip install 'fwdb[archive]'."
        ) from error
    connect: Callable[..., Any] = duckdb.connect
    return connect
