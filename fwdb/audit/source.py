"""Where rows of the trail come from: the table, or the table and the files of archived months.

There is one definition of each question, its file in `queries/postgres/`. To questions for changes
the server is handed the archived ones. For the others DuckDB runs the text of the file with a view
of the name `audit.audit_logs` over the Parquet files, a few macros for functions that have another
name there, and uuids as the text that the files hold, so that their Bloom filters count. (sqlglot
would need the same macros and the same view, and turns no uuid into text by itself.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from fwdb import queries
from fwdb.audit.retention import partitions
from fwdb.audit.retention.archive import archives, folder_of
from fwdb.config import Settings
from fwdb.errors import FeatureUnavailable, ParameterError
from fwdb.stores import PostgresStore, frames

__all__ = ["Past", "Source"]

TABLE = "audit.audit_logs"

Bounds = tuple[datetime | None, datetime | None]

# Questions for rows, with whether their answer is in order of time or against it: the answers of
# table and files are merged.
_ROWS = {"audit_history": True, "audit_search": False}
# Questions for figures: the few columns that they look at are fetched from the table and counted
# with those of the files.
_FIGURES = ("audit_totals", "audit_activity", "audit_actors")
_LOOKED_AT = sa.text(
    "SELECT created_at, metadata, CAST(entity_type AS text) AS entity_type,"
    " CAST(action AS text) AS action, CAST(user_id AS text) AS user_id"
    f" FROM {TABLE} WHERE created_at >= :since AND created_at < :until"
)
_MOST_CHANGES = 500_000  # some 300 MB as JSON, of the 1 GB that a value may have
_HANDED = (
    *("id", "created_at", "action", "entity_type", "entity_id", "user_id", "old_values"),
    *("new_values", "transaction_id", "origin", "reason", "db_user", "application_name"),
    "client_address",
)
_MACROS = """
SET TimeZone = 'UTC';
CREATE SCHEMA audit;
CREATE MACRO jsonb_typeof(value) AS lower(json_type(value));
CREATE MACRO jsonb_object_keys(value) AS unnest(json_keys(value));
CREATE MACRO to_jsonb(value) AS to_json(value);
CREATE MACRO cardinality(list) AS len(list);
"""
_DUCKDB = DefaultDialect(paramstyle="numeric_dollar")
# Nothing is fetched from the network: what is needed comes with the wheel.
_OFFLINE = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


@dataclass(frozen=True, slots=True)
class Past:
    """Changes that are `archived`, as JSON, to be read beside the table; None for none.

    Changes before `reach` are in neither; None where all there ever were are. `begins` is when
    triggers recorded the first of the archived ones.
    """

    archived: str | None = None
    reach: datetime | None = None
    begins: datetime | None = None

    def since(self, captured: datetime | None) -> datetime | None:
        """From when on the past is known of a table that is captured since `captured`."""
        if captured is None:
            return None
        known = captured if self.begins is None else min(captured, self.begins)
        return known if self.reach is None else max(known, self.reach)


@dataclass(frozen=True)
class Source:
    """Where rows of the trail come from: the table, with `archives` also the files of months.

    `archives` are the settings that say where the files are.
    """

    store: PostgresStore
    archives: Settings | None = None

    def frame(self, query: str, /, **parameters: Any) -> pd.DataFrame:
        """The answer to a query file."""
        window = parameters.get("since"), parameters.get("until")
        if "archived" in queries.load(query).parameters:
            with self.past(parameters["entity_type"], parameters["entity_id"], window) as past:
                return self.store.frame(query, **parameters, archived=past.archived)
        if self.archives is None:
            return self.store.frame(query, **parameters)
        if query not in _ROWS and query not in _FIGURES:
            raise FeatureUnavailable(
                f"the question '{query.removeprefix('audit_')}' is not asked of archived months; "
                "ask it without with_archives()."
            )
        with self._settled():
            files = self._files(*window)
            if not files:
                return self.store.frame(query, **parameters)
            if query in _FIGURES:
                parts: list[pa.Table] = []
                self.store.stream(_LOOKED_AT, parts.append, since=window[0], until=window[1])
                return _ask(query, parameters, files, pa.concat_tables(parts))
            table = self.store.frame(query, **parameters)
        return _merged(query, parameters, files, table)

    @contextmanager
    def past(
        self, entity_type: str | None, id: UUID | None, window: Bounds = (None, None)
    ) -> Iterator[Past]:
        """What to read, within the block, to know what became of entities in a window."""
        if self.archives is None:
            yield Past(reach=partitions.reach(self.store))
            return
        with self._settled():
            archived, begins = _changes(self._files(*window), entity_type, id)
            yield Past(archived, begins=begins)

    def require(self, at: datetime, name: str, remedy: str = "") -> None:
        """Refuse to tell what was at `at` where changes since then are out of reach."""
        reach = None if self.archives is not None else partitions.reach(self.store)
        if reach is not None and at < reach:
            raise ParameterError(
                f"'{name}' is {at:%Y-%m-%dT%H:%M}Z, and changes up to {reach:%Y-%m-%d} are in "
                f"archived months, not in the table; give a later time{remedy}.",
                name=name,
            )

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
        known = None
        for month in partitions.months(self.store) if partitions.recorded(self.store) else []:
            # A month that was made again after it was dropped is in both.
            if month.path is None or (month.state == "live" and month.dropped_at is None):
                continue
            assert month.since is not None
            assert month.until is not None
            if (until and month.since >= until) or (since and month.until <= since):
                continue
            assert self.archives is not None
            known = known or archives(self.store, folder_of(self.archives))
            found.append(known[month.day].check())
        return found


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
            columns = [name for name in _HANDED if name in file.schema_arrow.names]
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
    question = queries.load(query)
    statement = sa.text(question.text.replace(" AS uuid", " AS text")).compile(dialect=_DUCKDB)
    with _duckdb()(":memory:", config=_OFFLINE) as connection:
        connection.execute(_MACROS)
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
        connection.execute(f"CREATE VIEW {TABLE} AS {source}")
        asked = connection.execute(
            str(statement), [_plain(parameters[name]) for name in statement.positiontup or ()]
        )
        names = [column[0] for column in asked.description]
        return frames.from_rows(names, asked.fetchall(), question.columns)


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
