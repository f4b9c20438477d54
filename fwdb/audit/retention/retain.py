"""How long rows of the trail are kept.

A trail loses whole months: each is written to a file, and its partition detached and dropped; of an
existing table in one piece its rows are removed. A table that no migration saw has no place to
record that, and loses rows in small batches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Literal

import pandas as pd
import sqlalchemy as sa

from fwdb.arguments import Count, Range
from fwdb.audit.context import Context
from fwdb.audit.retention import partitions as parts
from fwdb.audit.retention.archive import folder_of, sweep
from fwdb.audit.retention.partitions import Month, Retired
from fwdb.audit.seal import sealer
from fwdb.errors import ParameterError, PermissionDenied
from fwdb.stores import PostgresStore

MONTHS_AHEAD = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a run of `retain` did.

    `expired` rows were past their retention when it began: in months that ended before
    `older_than`, or, in a table that no migration saw, older than it. `removed` of them went, in
    `batches` transactions. `oldest_left_at` is the oldest row now, None for an empty table.
    `months` are those past their retention, with what became of each, and `partitions_made` the
    months to come that were made, 0 for a table in one piece. `held` are months whose rows stayed
    because of a hold.
    """

    older_than: datetime
    expired: int
    removed: int
    batches: int
    oldest_left_at: datetime | None
    dry_run: bool
    months: tuple[Retired, ...] = ()
    held: tuple[str, ...] = ()
    partitions_made: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAhead:
    """For how long rows can be written before a month is missing.

    `status` is ``ok`` with `value`, the months after the present one that are there without a
    gap, and `until`, the first moment that has no partition; or ``not_applicable`` with the
    `reason`, where no partition can be missing. Where the present month itself is missing, `until`
    is not after now, and each write fails.
    """

    value: int | None
    unit: str
    status: Literal["ok", "not_applicable"]
    reason: str
    until: datetime | None


def retain(
    self: Context,
    older_than_days: Annotated[int, Range(1, 36_500)] | None = None,
    *,
    batch: Count = 5000,
    dry_run: bool = False,
    progress: Say | None = None,
) -> Retention:
    """Take rows out of the trail that are past `older_than_days`, by default one year.

    A trail by months first gets the months that are to come. Then each month that ended
    before the retention is written to a Parquet file in FWDB_AUDIT_ARCHIVE, read back,
    detached and dropped, oldest first; of an existing table in one piece its rows are removed
    in one transaction. A run that was stopped anywhere is gone on with by the next. A month
    with a hold stays, and the result says so.

    A table that no migration saw loses its rows, `batch` per short transaction, without a
    file. `progress` hears of each step. `dry_run` says what would
    be done and does nothing. Raises `PermissionDenied`, `ArchiveError` when a file cannot be
    kept, `ConfigError` without a folder for it, `Conflict` while another run is at work.
    """
    store = self.postgres
    if store.in_transaction:
        raise ParameterError("retain() commits step by step; call it outside a transaction.")
    days = self.settings.thresholds.audit_retention_days
    days = days if older_than_days is None else older_than_days
    say = progress or (lambda _: None)
    # The server's clock, because it gave the rows their times.
    cutoff: datetime = store.rows(
        sa.text("SELECT now() - make_interval(days => :days) AS at"), days=days
    )[0]["at"]
    if not dry_run:
        _require_rights(store)
    if not parts.recorded(store) and not parts.partitioned(store):
        return _remove_rows(store, cutoff, batch, dry_run, say)
    parts.require(store)
    with nullcontext() if dry_run else parts.alone(store):
        return _retire(self, cutoff, dry_run, say)


def _retire(self: Context, cutoff: datetime, dry_run: bool, say: Say) -> Retention:
    store, folder = self.postgres, folder_of(self.settings)
    made, done = 0, []
    if not dry_run:
        made = store.rows(_AHEAD, ahead=MONTHS_AHEAD)[0]["made"]
        if made:
            say(f"made {made} months ahead")
        sweep(store, folder)
    if parts.partitioned(store):
        past = [m for m in parts.months(store) if m.partition and m.until and m.until <= cutoff]
    else:
        past = parts.pieces(store, cutoff)
    for month in past:
        stays = _stays(store, month)
        if stays is not None:
            if not dry_run and month.held and month.state != "live":
                parts.attach(store, month)
            done.append(month.retired(parts.count(store, month), stays))
            say(f"left {month.name}: {stays}")
        elif dry_run:
            done.append(Retired(month=month.name, rows=parts.count(store, month)))
        else:
            done.append(parts.retire(store, folder, month, say))
    gone = [] if dry_run else [month.rows for month in done if month.left is None]
    return Retention(
        older_than=cutoff,
        expired=sum(month.rows for month in done),
        removed=sum(gone),
        batches=len(gone),
        oldest_left_at=store.rows(_OLDEST)[0]["at"],
        dry_run=dry_run,
        months=tuple(done),
        held=tuple(m.month for m in done if m.left is not None and m.left.startswith("held")),
        partitions_made=made,
    )


def _stays(store: PostgresStore, month: Month) -> str | None:
    """Why `month` must stay for now, None when it may go."""
    if month.month is None:
        return "it is not one month in UTC; export and drop it by hand"
    if month.held:
        return month.hold
    if left := sealer.unsealed_of(store, month.day):
        return f"{left:,} of its rows are not sealed yet; run 'fwdb audit seal' before"
    return None


def partitions(self: Context) -> pd.DataFrame:
    """The months of the trail, oldest first: in the table, on their way out, or in a file.

    `month` (2025-10; missing for a partition that is not one month), `state` (``live``,
    ``leaving``, ``detached``, ``archived``), `partition`, `since`, `until`, `rows` (of a table
    what the planner thinks, of a file exactly), `bytes`, `held`, `hold_reason`, `path` (the
    file in the archive folder), `archived_at`, `dropped_at`, `sha256`. Of an existing table
    in one piece those that left it. Raises `FeatureUnavailable` before the migration.
    """
    parts.require(self.postgres)
    return self.postgres.frame("audit_months")


def complete_since(self: Context) -> datetime | None:
    """The moment from which on all rows are in the table; None where none went to a file.

    Questions about times before need `with_archives`.
    """
    return parts.reach(self.postgres)


def partitions_ahead(self: Context) -> PartitionsAhead:
    """For how long rows can be written before a month is missing, by the server's clock."""
    store, ahead = self.postgres, partial(PartitionsAhead, unit="months")
    if not parts.partitioned(store):
        reason = "audit.audit_logs is one table, which no month can be missing of"
        return ahead(value=None, status="not_applicable", reason=reason, until=None)
    parts.require(store)
    now: datetime = store.rows(sa.text("SELECT clock_timestamp() AS at /* fwdb */"))[0]["at"]
    until = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    there = {month.since for month in parts.months(store) if month.state == "live"}
    found = 0
    while until in there:
        until, found = (until + timedelta(days=32)).replace(day=1), found + 1
    reason = f"there is no partition for {until:%Y-%m}: writes fail now; run 'fwdb audit retain'"
    # The present month is not ahead.
    return ahead(value=max(found - 1, 0), status="ok", reason="" if found else reason, until=until)


def _remove_rows(
    store: PostgresStore, cutoff: datetime, batch: int, dry_run: bool, say: Say
) -> Retention:
    """Remove rows of a table that nothing else of ours knows."""
    expired: int = store.rows(_EXPIRED, cutoff=cutoff)[0]["n"]
    removed = batches = 0
    while not dry_run and (gone := store.execute(_REMOVE, {"cutoff": cutoff, "n": batch}).rowcount):
        removed, batches = removed + gone, batches + 1
        say(f"removed {removed:,} of {expired:,} audit rows")
    return Retention(
        older_than=cutoff,
        expired=expired,
        removed=removed,
        batches=batches,
        oldest_left_at=store.rows(_OLDEST)[0]["at"],
        dry_run=dry_run,
    )


def _require_rights(store: PostgresStore) -> None:
    asked = store.rows(_RIGHTS)[0]
    if asked["by_months"] and not asked["owns"]:
        raise PermissionDenied(
            f"role '{asked['role']}' does not own audit.audit_logs, whose months only its owner "
            "may drop; connect as the owner."
        )
    if not asked["by_months"] and not asked["may_delete"]:
        raise PermissionDenied(
            f"role '{asked['role']}' may not remove rows of audit.audit_logs; connect as the "
            f"owner of the table, or let the owner run: GRANT DELETE ON audit.audit_logs TO "
            f'"{asked["role"]}".'
        )


_EXPIRED = sa.text("SELECT count(*) AS n FROM audit.audit_logs WHERE created_at < :cutoff")
# An array is one list of ids for one pass over the primary key.
_REMOVE = sa.text("""
DELETE FROM audit.audit_logs WHERE id = ANY(ARRAY(
    SELECT id FROM audit.audit_logs WHERE created_at < :cutoff ORDER BY created_at LIMIT :n))
""")
# The oldest that Python has a time for.
_OLDEST = sa.text("""
SELECT min(created_at) AS at FROM audit.audit_logs
WHERE created_at BETWEEN '0001-01-02Z' AND '9999-12-30Z'
""")
_RIGHTS = sa.text("""
SELECT has_table_privilege(oid, 'DELETE') AS may_delete, pg_has_role(relowner, 'MEMBER') AS owns,
    relkind = 'p' AS by_months, CAST(current_user AS text) AS role
FROM pg_class WHERE oid = to_regclass('audit.audit_logs')
""")
_AHEAD = sa.text("""
SELECT audit.add_partitions(CAST(now() AT TIME ZONE 'UTC' AS date),
    CAST((now() AT TIME ZONE 'UTC') + make_interval(months => :ahead) AS date)) AS made
""")
