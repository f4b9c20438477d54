"""Readings of a server's counters: taken now, kept as JSON, read back, and subtracted.

Counters are stored as the server shows them, since they began; what happened in a window is the
difference of two readings. Which columns of a query file are counters stands in its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb import queries
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.timing import OWN

IO_MINIMUM = 160000  # pg_stat_io came with PostgreSQL 16

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]


def counters(query: str) -> dict[str, str]:
    """The counters of a query file of PostgreSQL, with their types."""
    found = queries.load(query)
    return {name: found.columns[name] for name in found.counters}


DATABASE, IO = counters("database_counters"), counters("io_counters")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one moment: a row per entry, by what identifies it.

    `state` is what the server told beside them. Counters began at `reset_at`, None if they were
    never reset; those of MongoDB do not outlive the server.
    """

    read_at: datetime
    rows: Mapping[Any, Row]
    state: Row = field(default_factory=dict)
    started_at: datetime | None = None
    reset_at: datetime | None = None

    @property
    def row(self) -> Row:
        """The counters of a reading that is not about several entries."""
        return self.rows[""]


@dataclass(slots=True)
class Delta:
    """What was counted between two readings, per entry.

    Entries in `anew` began anew, so that theirs are lower bounds. `unknown` entries are older
    than the first reading, which did not have them; `lost` ones are gone.
    """

    rows: dict[Any, dict[str, Any]] = field(default_factory=dict)
    anew: set[Any] = field(default_factory=set)
    unknown: int = 0
    lost: int = 0

    @property
    def row(self) -> dict[str, Any]:
        """What was counted, of readings that are not about several entries."""
        return self.rows[""]


def delta(
    first: Reading, second: Reading, counted: Mapping[str, str], *, emptied: bool | None = None
) -> Delta:
    """The difference of two readings; `counted` are the counters and their types.

    An entry that tells when it began (`stats_since`) began anew if that has changed. Any other
    did if all were `emptied`, or a whole number went down; sums of fractions may come out a hair
    smaller when nothing happened. An entry that the first reading did not have counts in full
    unless it is known to be older. A counter that one of the readings lacks has no difference.
    """
    if emptied is None:
        emptied = second.reset_at != first.reset_at or _forgot(first, second)
    whole = [name for name, kind in counted.items() if kind in ("int64", "Int64")]
    found = Delta(lost=sum(key not in second.rows for key in first.rows))
    for key, now in second.rows.items():
        before, began = first.rows.get(key), now.get("stats_since")
        if before is None:
            if began is not None and began < first.read_at:
                found.unknown += 1
                continue
        elif began is not None:
            anew = began != before.get("stats_since")
        else:
            anew = emptied or any((_less(now.get(n), before.get(n)) or 0) < 0 for n in whole)
        if before is not None and anew:
            found.anew.add(key)
            before = None
        found.rows[key] = {
            name: now.get(name) if before is None else _less(now.get(name), before.get(name))
            for name in counted
        }
    return found


def _less(now: Any, before: Any) -> Any:
    return None if now is None or before is None else now - before


def _forgot(first: Reading, second: Reading) -> bool:
    """Whether a MongoDB was started in between; PostgreSQL keeps its counters."""
    return "uptime_seconds" in second.state and restarted(first, second)


def restarted(first: Reading, second: Reading) -> bool:
    """Whether the server was started between two readings."""
    return second.started_at is not None and second.started_at > first.read_at


def jsonable(row: Row) -> dict[str, Any]:
    """A row ready for JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def moment(text: str | None) -> datetime | None:
    """A time that `jsonable` wrote."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def parsed(kept: Row) -> Reading:
    """The reading that `kept`, the JSON of one subject, stands for."""
    row, read_at = dict(kept), moment(kept["read_at"])
    assert read_at is not None
    rows: dict[Any, Row] = {"": row}
    started_at = moment(row.get("server_started_at"))
    if "accesses" in row:
        rows = {key: dict(zip(IO, cells, strict=True)) for key, cells in row["accesses"].items()}
    if "uptime_seconds" in row:  # MongoDB: the counters that it shares, by the same names
        started_at = read_at - timedelta(seconds=row["uptime_seconds"])
        if "operations" in row:
            row["commits"] = sum(row["operations"].values())
        if "pages_requested" in row:
            row["read_blocks"] = row["pages_read"]
            row["hit_blocks"] = max(0, row["pages_requested"] - row["pages_read"])
    reset_at = moment(row.get("stats_reset") or row.get("checkpoints_reset"))
    return Reading(read_at, rows, row, started_at, reset_at)


def database_counters(store: PostgresStore) -> dict[str, Any]:
    """Counters of the database, ready for JSON."""
    return jsonable(store.rows("database_counters")[0])


def server_facts(store: PostgresStore) -> dict[str, Any]:
    """Sizes, ages and checkpoints of the server, ready for JSON."""
    row = store.rows("server_facts")[0]
    if store.server_version >= 170000:  # counts checkpoints in another view
        row |= store.rows("checkpoints")[0]
    return jsonable(row)


def io_counters(store: PostgresStore) -> dict[str, Any]:
    """Bytes by kind of access (from `IO_MINIMUM` on), ready for JSON."""
    rows = store.rows("io_counters")
    state = {name: rows[0][name] for name in ("stats_reset", "io_timed", "block_bytes")}
    return {
        "read_at": datetime.now(UTC).isoformat(),
        **jsonable(state),
        "accesses": {row["access"]: [row[name] for name in IO] for row in rows},
    }


def server_status(store: MongoStore) -> dict[str, Any]:
    """What MongoDB tells of itself."""
    with store.errors():
        return dict(store.client.admin.command("serverStatus"))


def mongodb_counters(store: MongoStore) -> dict[str, Any]:
    """What is kept of serverStatus, ready for JSON; without the constants of SecantusDB."""
    status = server_status(store)
    kept: dict[str, Any] = {
        "read_at": datetime.now(UTC).isoformat(),
        "uptime_seconds": float(status["uptime"]),
        "connections": int(status["connections"]["current"]),
        "operations": {name: int(n) for name, n in status.get("opcounters", {}).items()},
    }
    if cache := status.get("wiredTiger", {}).get("cache"):
        kept["pages_requested"] = int(cache["pages requested from the cache"])
        kept["pages_read"] = int(cache["pages read into cache"])
    return kept


def insert(connection: Connection, table: str, rows: Sequence[Row]) -> int:
    """Store `rows` in a table of the history; how many. Rows that are there stay as they are.

    In one statement: one for each row would be seen as so many calls by pg_stat_statements.
    """
    if rows:
        names, kept = ", ".join(rows[0]), json.dumps(list(map(jsonable, rows)))
        text = (
            f"INSERT INTO monitoring.{table} ({names}) SELECT {names} FROM json_populate_recordset("
            f"CAST(NULL AS monitoring.{table}), CAST(:rows AS json)) ON CONFLICT DO NOTHING {OWN}"
        )
        connection.execute(sa.text(text), {"rows": kept})
    return len(rows)
