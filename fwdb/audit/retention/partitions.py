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
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import sqlalchemy as sa

from fwdb.audit import runs
from fwdb.audit.retention.archive import ORDER, Archive, archives, remove
from fwdb.errors import ArchiveError, FeatureUnavailable, ParameterError, QueryTimeout, Transient
from fwdb.stores import PostgresStore

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
        since, until = self.bounds
        return f"created_at >= {since} AND created_at < {until}"

    @property
    def bounds(self) -> tuple[str, str]:
        """Its first moment and the first after it, as literals."""
        return f"'{self.since:%Y-%m-%d} 00:00+00'", f"'{self.until:%Y-%m-%d} 00:00+00'"

    @property
    def name(self) -> str:
        """The month, or the partition that is not one."""
        return self.month or str(self.partition)

    @property
    def hold(self) -> str | None:
        """That it is held, and why; None where it is not."""
        if not self.held:
            return None
        return "held" + (f": {self.hold_reason}" if self.hold_reason else "")

    def retired(self, rows: int, left: str | None = None, archive: str | None = None) -> Retired:
        """What became of it."""
        return Retired(month=self.name, rows=rows, left=left, archive=archive or self.path)


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


def require(store: PostgresStore) -> None:
    """Raises `FeatureUnavailable` where no migration made the tables of archives and holds."""
    if not recorded(store):
        raise FeatureUnavailable(
            "this database has no tables for holds and archives of the audit trail yet; "
            "run 'fwdb migrate'."
        )


def alone(store: PostgresStore) -> AbstractContextManager[None]:
    """One run of `retain` or `erase` at a time; it ends with the session at the latest."""
    rival = "another 'fwdb audit retain' or 'erase' is at work on this database{}; wait for it."
    return runs.alone(store, "retain", rival)


def retire(store: PostgresStore, folder: Path, month: Month, say: Say) -> Retired:
    """Take `month` out of the trail, into a file of `folder`; going on where a run was stopped.

    Raises `ArchiveError` when the file cannot be kept; the table is there then.
    """
    if month.dropped_at is not None:
        return _again(store, month)
    started = time.perf_counter()
    archive = _standing(store, folder, month) or _export(store, folder, month, say)
    exported = time.perf_counter()
    while True:
        if month.partition is not None:
            _detach(store, month)
        stays, gone = _drop(store, month)
        if stays or gone:
            break
        say(f"{month.month} was written to after its export; exporting it again")
        archive = _export(store, folder, month, say)
    if stays:
        if month.partition is not None:
            attach(store, month)
        return month.retired(archive.rows, stays, archive.name)
    say(f"dropped {month.month}")
    return Retired(
        month=month.name,
        rows=archive.rows,
        archive=archive.name,
        export_ms=1000 * (exported - started),
        drop_ms=1000 * (time.perf_counter() - exported),
    )


def attach(store: PostgresStore, month: Month) -> None:
    """Put a month that was on its way out back into the trail."""
    now = _now(store, month)
    if now.state == "leaving":
        _detach(store, month)
    if now.state != "live":
        since, until = now.bounds
        bounds = f"FOR VALUES FROM ({since}) TO ({until})"
        store.execute(sa.text(f"ALTER TABLE {TABLE} ATTACH PARTITION {now.partition} {bounds}"))


def count(store: PostgresStore, month: Month) -> int:
    """The rows in the table of `month`, exactly."""
    return _content(store, month)["rows"]


def _now(store: PostgresStore, month: Month) -> Month:
    """`month` as it is by now; the table of one that was dropped may be there again."""
    found = [m for m in months(store) if m.month == month.month]
    if not found:
        raise ParameterError(f"there is no month {month.month} in the audit trail any more.")
    return found[0]


def _again(store: PostgresStore, month: Month) -> Retired:
    """A month that was dropped before and was made once more, by whoever writes history."""
    if rows := count(store, month):
        return month.retired(
            rows,
            f"{rows:,} rows were added after it was archived on {month.archived_at:%Y-%m-%d}; "
            "the file stays as it is",
        )
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
        return month.retired(count(store, month), "the trail is in use")
    return month.retired(rows, "rows came while it was dropped" if rows else None)


def _content(store: PostgresStore, month: Month) -> dict[str, int]:
    return store.rows(
        sa.text(
            "SELECT count(*) AS rows, coalesce(sum(CAST(CAST(xmin AS text) AS bigint)), 0)"
            f" AS versions FROM {month.source} AS part /* fwdb */"
        )
    )[0]


def _standing(store: PostgresStore, folder: Path, month: Month) -> Archive | None:
    """The file that a run before made, if it is whole and the table has not changed since."""
    archive = archives(store, folder).get(month.day)
    if archive is None:
        return None
    with store.transaction(timeout_ms=0):
        content = _content(store, month)
    if content != {"rows": archive.rows, "versions": archive.versions}:
        return None
    try:
        archive.check()
    except ArchiveError:
        return None  # the table is there, so the file can be written anew
    return archive


def _export(store: PostgresStore, folder: Path, month: Month, say: Say) -> Archive:
    """The table of `month` in a file, which audit.archives knows."""
    say(f"exporting {month.month}")
    # Content and rows of one moment; without a limit, because a month may be large.
    with store.transaction(isolation="repeatable read", read_only=True, timeout_ms=0):
        content = _content(store, month)
        types = {
            row["name"]: row["type"] for row in store.rows(_TYPES, table=month.partition or TABLE)
        }
        # Columns that Parquet has no exact type for as PostgreSQL writes them.
        columns = [
            sa.column(name) if kind in _EXACT else sa.cast(sa.column(name), sa.Text).label(name)
            for name, kind in types.items()
        ]
        statement = (
            sa.select(*columns)
            .select_from(sa.text(f"{month.source} AS exported"))
            .order_by(*(sa.text(f"exported.{name}") for name in ORDER))
        )
        archive = Archive.write(
            folder, month.day, lambda consume: store.stream(statement, consume), types=types
        )
    before = archives(store, folder).get(month.day)
    store.execute(
        _RECORD,
        {
            "month": month.day,
            "path": archive.name,
            "rows": archive.rows,
            "bytes": archive.bytes,
            "sha256": archive.sha256,
            "versions": content["versions"],
        },
    )
    if before is not None and before.name != archive.name:
        remove(folder, archive.month, before.name)
    say(f"exported {archive.rows:,} rows of {month.month} to {archive.name}")
    return archive


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
    """Why the month stays, and whether its rows went: only if they are what the file has.

    Its table is dropped; of a table in one piece its rows are removed. All in one transaction with
    the record of it.
    """
    whole = month.partition is None
    isolation = "repeatable read" if whole else None
    try:
        with store.transaction(isolation=isolation, timeout_ms=0) as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            connection.execute(sa.text("LOCK TABLE audit.holds IN SHARE MODE"))
            now = _now(store, month)
            if now.held:
                return now.hold, False
            if not whole:
                connection.execute(sa.text(f"LOCK TABLE {now.partition} IN ACCESS EXCLUSIVE MODE"))
            marked = connection.execute(_MARK, {"month": month.day, **_content(store, now)})
            if not marked.rowcount:
                return None, False
            rows = f"DELETE FROM {TABLE} WHERE {now.condition}"
            connection.execute(sa.text(rows if whole else f"DROP TABLE {now.partition}"))
            return None, True
    except Transient:
        if whole:  # somebody changed a row meanwhile, such as whose user was removed
            return None, False
        raise


_TYPES = sa.text("""
SELECT CAST(attname AS text) AS name, format_type(atttypid, NULL) AS type
FROM pg_attribute WHERE attrelid = CAST(:table AS regclass)
    AND attnum > 0 AND NOT attisdropped ORDER BY attnum /* fwdb */
""")
_RECORD = sa.text("""
INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions)
VALUES (:month, :path, :rows, :bytes, :sha256, :versions)
ON CONFLICT (month) DO UPDATE SET path = excluded.path, rows = excluded.rows,
    bytes = excluded.bytes, sha256 = excluded.sha256, versions = excluded.versions,
    exported_at = excluded.exported_at
""")
_MARK = sa.text(
    "UPDATE audit.archives SET dropped_at = clock_timestamp()"
    " WHERE month = :month AND rows = :rows AND versions = :versions"
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
