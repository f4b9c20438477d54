"""Months of the trail: what there is of each, and how one leaves it.

A month goes in steps that each leave a state which the next run can see: the file is written and
read back, recorded in audit.archives, the partition detached, and, in one transaction, compared
with the file once more, dropped and marked as dropped. Of a table in one piece the rows are removed
where else the partition is dropped. Whatever stops a run, the next one looks at what is there and
goes on.

Whether a table still holds what its file holds is told by the number of its rows and the sum of
their xmin. An insert adds a row, a delete takes one, an update gives a row a newer xmin: so both
stay the same only if nothing was written (2 billion transactions within one export apart).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fwdb.audit import archives, runs
from fwdb.audit.archives import Archive
from fwdb.errors import ArchiveError, ParameterError, QueryTimeout, Transient
from fwdb.stores import PostgresStore

__all__ = [
    "Month",
    "Retired",
    "alone",
    "attach",
    "count",
    "hold_sentence",
    "months",
    "partitioned",
    "pieces",
    "reach",
    "recorded",
    "retire",
]

TABLE = "audit.audit_logs"
_LOCK_TIMEOUT = "5s"  # nobody should be at a table that has left the trail
_EXACT = {"timestamp with time zone", "bigint", "integer", "smallint", "boolean"}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month of the trail, as `audit_months.sql` finds it: a table, a file, or both."""

    month: str | None
    state: str
    partition: str | None
    since: datetime | None
    until: datetime | None
    rows: int | None
    bytes: int | None
    held: bool
    hold_reason: str | None
    path: str | None
    archived_at: datetime | None
    dropped_at: datetime | None
    sha256: str | None

    @property
    def day(self) -> date:
        """Its first day, which is its key in audit.archives and audit.holds."""
        assert self.month is not None
        return date.fromisoformat(f"{self.month}-01")

    @property
    def source(self) -> str:
        """Its rows, as what a statement reads FROM: its table, or a part of the one table."""
        return self.partition or f"(SELECT xmin, * FROM {TABLE} WHERE {self.condition})"

    @property
    def condition(self) -> str:
        """Its rows in a table in one piece."""
        since, until = f"{self.since:%Y-%m-%d} 00:00+00", f"{self.until:%Y-%m-%d} 00:00+00"
        return f"created_at >= '{since}' AND created_at < '{until}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """What `retain` did, or would do, with a month past its retention.

    `left` says why it stays, None when it went. `rows` are those in its table; `archive` is the
    file's name. `export_ms` is the time to write and check the file, `drop_ms` that to detach the
    table, compare it with the export and drop it; None for what was not done.
    """

    month: str
    rows: int
    left: str | None = None
    archive: str | None = None
    export_ms: float | None = None
    drop_ms: float | None = None


def partitioned(store: PostgresStore) -> bool:
    """Whether the trail is by months; an existing table is not."""
    kind = sa.text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:table) /* fwdb */")
    return [row["relkind"] for row in store.rows(kind, table=TABLE)] == ["p"]


def recorded(store: PostgresStore) -> bool:
    """Whether the tables of archives and holds are there, which a migration makes."""
    found = sa.text("SELECT to_regclass('audit.archives') IS NOT NULL AS found /* fwdb */")
    return bool(store.rows(found)[0]["found"])


def months(store: PostgresStore) -> list[Month]:
    """All months of the trail, oldest first."""
    return [Month(**row) for row in store.rows("audit_months")]


def pieces(store: PostgresStore, before: datetime) -> list[Month]:
    """Months with rows in a table in one piece that ended before `before`, oldest first.

    Not those of times that a file has none for.
    """
    return [Month(**row) for row in store.rows(_PIECES, before=before)]


def reach(store: PostgresStore) -> datetime | None:
    """The moment from which on no row left the table for a file; None where none did."""
    if not recorded(store):
        return None
    left = (m.until for m in months(store) if m.state != "live" or m.dropped_at is not None)
    return max((until for until in left if until is not None), default=None)


@contextmanager
def alone(store: PostgresStore) -> Iterator[None]:
    """One run of `retain` or `erase` at a time; it ends with the session at the latest."""
    rival = "another 'fwdb audit retain' or 'erase' is at work on this database{}; wait for it."
    with runs.alone(store, "retain", rival):
        yield


def retire(store: PostgresStore, folder: Path, month: Month, say: Say) -> Retired:
    """Take `month` out of the trail, into a file of `folder`; going on where a run was stopped.

    Raises `ArchiveError` when the file cannot be kept; the table is there then.
    """
    if month.dropped_at is not None:
        return _again(store, month)
    started = time.perf_counter()
    archive = _standing(store, folder, month)
    if archive is None:
        archive = _export(store, folder, month, say)
    exported = time.perf_counter()
    while True:
        if month.partition is None:
            stays, same = _remove(store, month)
        else:
            _detach(store, month)
            stays, same = _drop(store, month)
        if stays or same:
            break
        say(f"{month.month} was written to after its export; exporting it again")
        archive = _export(store, folder, month, say)
    if stays:
        if month.partition is not None:
            attach(store, month)
        return Retired(month=_name(month), rows=archive.rows, left=stays, archive=archive.path)
    say(f"dropped {month.month}")
    return Retired(
        month=_name(month),
        rows=archive.rows,
        archive=archive.path,
        export_ms=1000 * (exported - started),
        drop_ms=1000 * (time.perf_counter() - exported),
    )


def attach(store: PostgresStore, month: Month) -> None:
    """Put a month that was on its way out back into the trail."""
    now = _now(store, month)
    if now.state == "leaving":
        _detach(store, month)
    if now.state != "live":
        store.execute(
            sa.text(
                f"ALTER TABLE {TABLE} ATTACH PARTITION {now.partition} FOR VALUES"
                f" FROM ('{now.since:%Y-%m-%d} 00:00+00') TO ('{now.until:%Y-%m-%d} 00:00+00')"
            )
        )


def count(store: PostgresStore, month: Month) -> int:
    """The rows in the table of `month`, exactly."""
    return int(_content(store, month)["rows"])


def _name(month: Month) -> str:
    assert month.month is not None
    return month.month


def _now(store: PostgresStore, month: Month) -> Month:
    """`month` as it is by now; the table of one that was dropped may be there again."""
    found = [m for m in months(store) if m.month == month.month]
    if not found:
        raise ParameterError(f"there is no month {month.month} in the audit trail any more.")
    return found[0]


def _again(store: PostgresStore, month: Month) -> Retired:
    """A month that was dropped before and was made once more, by whoever writes history."""
    rows = count(store, month)
    if rows:
        written = f"{month.archived_at:%Y-%m-%d}"
        why = (
            f"{rows:,} rows were added after it was archived on {written}; the file stays as it is"
        )
        return Retired(month=_name(month), rows=rows, left=why, archive=month.path)
    try:
        with store.transaction() as connection:
            # The whole trail for a moment, so that nothing can write: a month that is detached
            # first would be nobody's if the run stopped there.
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            connection.execute(sa.text(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE"))
            rows = count(store, month)
            if not rows:
                connection.execute(sa.text(f"DROP TABLE {month.partition}"))
    except Transient:
        rows = count(store, month)
        return Retired(
            month=_name(month), rows=rows, left="the trail is in use", archive=month.path
        )
    return Retired(
        month=_name(month),
        rows=rows,
        left="rows came while it was dropped" if rows else None,
        archive=month.path,
    )


def _content(store: PostgresStore, month: Month) -> dict[str, int]:
    return store.rows(
        sa.text(
            "SELECT count(*) AS rows, coalesce(sum(CAST(CAST(xmin AS text) AS bigint)), 0)"
            f" AS versions FROM {month.source} AS part /* fwdb */"
        )
    )[0]


def _standing(store: PostgresStore, folder: Path, month: Month) -> Archive | None:
    """The file that a run before made, if it is whole and the table has not changed since."""
    if month.path is None:
        return None
    row = store.rows(
        sa.text("SELECT * FROM audit.archives WHERE month = :month /* fwdb */"), month=month.day
    )[0]
    archive = Archive(
        month=_name(month), **{n: row[n] for n in ("path", "rows", "bytes", "sha256")}
    )
    with store.transaction(timeout_ms=0):
        content = _content(store, month)
    if (content["rows"], content["versions"]) != (row["rows"], row["versions"]):
        return None
    try:
        archives.check(folder, archive)
    except ArchiveError:
        return None  # the table is there, so the file can be written anew
    return archive


def _export(store: PostgresStore, folder: Path, month: Month, say: Say) -> Archive:
    """The table of `month` in a file, which audit.archives knows."""
    say(f"exporting {month.month}")
    # Content and rows of one moment; without a limit, because a month may be large.
    with store.transaction(isolation="repeatable read", read_only=True, timeout_ms=0):
        content = _content(store, month)
        types = _types(store, month)
        statement = _select(month, types)
        archive = archives.write(
            folder, _name(month), lambda consume: store.stream(statement, consume), types=types
        )
    before = store.rows(
        sa.text("SELECT path FROM audit.archives WHERE month = :month /* fwdb */"), month=month.day
    )
    store.execute(
        sa.text(
            "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions)"
            " VALUES (:month, :path, :rows, :bytes, :sha256, :versions)"
            " ON CONFLICT (month) DO UPDATE SET path = excluded.path, rows = excluded.rows,"
            " bytes = excluded.bytes, sha256 = excluded.sha256, versions = excluded.versions,"
            " exported_at = excluded.exported_at"
        ),
        {
            "month": month.day,
            "path": archive.path,
            "rows": archive.rows,
            "bytes": archive.bytes,
            "sha256": archive.sha256,
            "versions": content["versions"],
        },
    )
    if before and before[0]["path"] != archive.path:
        archives.remove(folder, archive.month, before[0]["path"])
    say(f"exported {archive.rows:,} rows of {month.month} to {archive.path}")
    return archive


def _types(store: PostgresStore, month: Month) -> dict[str, str]:
    rows = store.rows(
        sa.text(
            "SELECT CAST(attname AS text) AS name, format_type(atttypid, NULL) AS type"
            " FROM pg_attribute WHERE attrelid = CAST(:table AS regclass)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum /* fwdb */"
        ),
        table=month.partition or TABLE,
    )
    return {row["name"]: row["type"] for row in rows}


def _select(month: Month, types: dict[str, str]) -> sa.Select[*tuple[Any, ...]]:
    """All columns; those that Parquet has no exact type for as PostgreSQL writes them."""
    columns = [
        sa.column(name) if kind in _EXACT else sa.cast(sa.column(name), sa.Text).label(name)
        for name, kind in types.items()
    ]
    table = sa.text(f"{month.source} AS exported")
    order = [sa.text(f"exported.{name}") for name in archives.ORDER]
    return sa.select(*columns).select_from(table).order_by(*order)


def _detach(store: PostgresStore, month: Month) -> None:
    now = _now(store, month)
    how = {"live": "CONCURRENTLY", "leaving": "FINALIZE"}.get(now.state)
    if how is None:
        return
    try:
        store.execute(sa.text(f"ALTER TABLE {TABLE} DETACH PARTITION {now.partition} {how}"))
    except QueryTimeout as error:
        raise QueryTimeout(
            f"{month.month} could not be detached in time: a transaction that began before still "
            "uses the audit trail; end it and run 'fwdb audit retain' again, which goes on here."
        ) from error


def _drop(store: PostgresStore, month: Month) -> tuple[str | None, bool]:
    """Why the month stays, and whether its table was dropped: only if it is what the file is."""
    with store.transaction(timeout_ms=0) as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(sa.text("LOCK TABLE audit.holds IN SHARE MODE"))
        now = _now(store, month)
        if now.held:
            return hold_sentence(now), False
        connection.execute(sa.text(f"LOCK TABLE {now.partition} IN ACCESS EXCLUSIVE MODE"))
        content = _content(store, now)
        marked = connection.execute(_MARK, {"month": month.day, **content})
        if not marked.rowcount:
            return None, False
        connection.execute(sa.text(f"DROP TABLE {now.partition}"))
        return None, True


def _remove(store: PostgresStore, month: Month) -> tuple[str | None, bool]:
    """As `_drop`, of a table in one piece: its rows go in the transaction that records it."""
    try:
        with store.transaction(isolation="repeatable read", timeout_ms=0) as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            connection.execute(sa.text("LOCK TABLE audit.holds IN SHARE MODE"))
            held = store.rows(_HELD)
            if reasons := [row["reason"] for row in held if row["month"] == month.month]:
                return hold_sentence(replace(month, held=True, hold_reason=reasons[0])), False
            content = _content(store, month)
            marked = connection.execute(_MARK, {"month": month.day, **content})
            if not marked.rowcount:
                return None, False
            connection.execute(sa.text(f"DELETE FROM {TABLE} WHERE {month.condition}"))
            return None, True
    except Transient:  # somebody changed a row meanwhile, such as whose user was removed
        return None, False


def hold_sentence(month: Month) -> str:
    """That a month is held, and why."""
    return "held" + (f": {month.hold_reason}" if month.hold_reason else "")


_MARK = sa.text(
    "UPDATE audit.archives SET dropped_at = clock_timestamp()"
    " WHERE month = :month AND rows = :rows AND versions = :versions"
)
_HELD = sa.text(
    "SELECT to_char(month, 'YYYY-MM') AS month, reason FROM audit.holds"
    " WHERE released_at IS NULL /* fwdb */"
)
_PIECES = sa.text("""
SELECT to_char(found.month, 'YYYY-MM') AS month, 'live' AS state, NULL AS partition,
    found.month AT TIME ZONE 'UTC' AS since,
    (found.month + interval '1 month') AT TIME ZONE 'UTC' AS until, found.rows, NULL AS bytes,
    h.month IS NOT NULL AS held, h.reason AS hold_reason, a.path, a.exported_at AS archived_at,
    a.dropped_at, a.sha256
FROM (
    SELECT date_trunc('month', created_at AT TIME ZONE 'UTC') AS month, count(*) AS rows
    FROM audit.audit_logs
    WHERE created_at >= '0001-02-01Z' AND created_at
        < date_trunc('month', CAST(:before AS timestamptz) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
    GROUP BY 1
) AS found
LEFT JOIN audit.archives AS a ON a.month = found.month
LEFT JOIN audit.holds AS h ON h.month = found.month AND h.released_at IS NULL
ORDER BY found.month /* fwdb */
""")
