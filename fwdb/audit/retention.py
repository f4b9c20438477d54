"""How long rows of the trail are kept.

A trail loses whole months: each is written to a file, and its partition detached and dropped; of an
existing table in one piece its rows are removed. A table that no migration saw has no place to
record that, and loses rows in small batches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

import pandas as pd
import sqlalchemy as sa

from fwdb.arguments import Count, Range
from fwdb.audit import archives, holds, rewriting, sealing, seals
from fwdb.audit import partitions as parts
from fwdb.audit.context import Context
from fwdb.audit.partitions import Month, Retired
from fwdb.errors import ParameterError, PermissionDenied
from fwdb.models import audit_logs
from fwdb.stores import PostgresStore

__all__ = ["PartitionsAhead", "Retention"]

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
        sa.select((sa.func.now() - sa.func.make_interval(0, 0, 0, days)).label("at"))
    )[0]["at"]
    if not dry_run:
        _require_rights(store)
    if not parts.recorded(store) and not parts.partitioned(store):
        return _remove_rows(store, cutoff, batch, dry_run, say)
    holds.require(store)
    with nullcontext() if dry_run else parts.alone(store):
        return _retire(self, cutoff, dry_run, say)


def _retire(self: Context, cutoff: datetime, dry_run: bool, say: Say) -> Retention:
    store = self.postgres
    folder = archives.folder(self.settings)
    made = 0 if dry_run else _make_ahead(store, say)
    if not dry_run and rewriting.is_ready(store):
        rewriting.sweep(store, folder)
    done = []
    by_months = parts.partitioned(store)
    past = parts.months(store) if by_months else parts.pieces(store, cutoff)
    for month in _past(past, cutoff) if by_months else past:
        stays = _stays(self, month)
        if stays is not None:
            if not dry_run and month.held and month.state != "live":
                parts.attach(store, month)
            done.append(_left(store, month, stays))
            say(f"left {done[-1].month}: {stays}")
        elif dry_run:
            done.append(Retired(month=str(month.month), rows=parts.count(store, month)))
        else:
            done.append(parts.retire(store, folder, month, say))
    gone = [] if dry_run else [month for month in done if month.left is None]
    return Retention(
        older_than=cutoff,
        expired=sum(month.rows for month in done),
        removed=sum(month.rows for month in gone),
        batches=len(gone),
        oldest_left_at=_oldest(store),
        dry_run=dry_run,
        months=tuple(done),
        held=tuple(m.month for m in done if m.left is not None and m.left.startswith("held")),
        partitions_made=made,
    )


def _stays(self: Context, month: Month) -> str | None:
    if month.month is None:
        return "it is not one month in UTC; export and drop it by hand"
    if month.held:
        return parts.hold_sentence(month)
    return _may_not_drop(self, month.day)


def _may_not_drop(self: Context, month: date) -> str | None:
    """A month with rows that no seal covers stays, once anything is sealed."""
    if sealing.state(self.postgres) is None:
        return None
    left = sealing.unsealed(self.postgres, seals.last(self.postgres), month=month)
    if not left:
        return None
    return f"{left:,} of its rows are not sealed yet; run 'fwdb audit seal' before"


def partitions(self: Context) -> pd.DataFrame:
    """The months of the trail, oldest first: in the table, on their way out, or in a file.

    `month` (2025-10; missing for a partition that is not one month), `state` (``live``,
    ``leaving``, ``detached``, ``archived``), `partition`, `since`, `until`, `rows` (of a table
    what the planner thinks, of a file exactly), `bytes`, `held`, `hold_reason`, `path` (the
    file in the archive folder), `archived_at`, `dropped_at`, `sha256`. Of an existing table
    in one piece those that left it. Raises `FeatureUnavailable` before the migration.
    """
    holds.require(self.postgres)
    return self.postgres.frame("audit_months")


def complete_since(self: Context) -> datetime | None:
    """The moment from which on all rows are in the table; None where none went to a file.

    Questions about times before need `with_archives`.
    """
    return parts.reach(self.postgres)


def partitions_ahead(self: Context) -> PartitionsAhead:
    """For how long rows can be written before a month is missing, by the server's clock."""
    store = self.postgres
    if not parts.partitioned(store):
        return PartitionsAhead(
            value=None,
            unit="months",
            status="not_applicable",
            reason="audit.audit_logs is one table, which no month can be missing of",
            until=None,
        )
    holds.require(store)
    now: datetime = store.rows(sa.text("SELECT clock_timestamp() AS at /* fwdb */"))[0]["at"]
    until = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    value = -1  # the present month is not ahead
    there = {month.since for month in parts.months(store) if month.state == "live"}
    while until in there:
        until, value = _next(until), value + 1
    missing = f"there is no partition for {until:%Y-%m}"
    return PartitionsAhead(
        value=max(value, 0),
        unit="months",
        status="ok",
        reason=f"{missing}: writes fail now; run 'fwdb audit retain'" if value < 0 else "",
        until=until,
    )


def _past(months: list[Month], cutoff: datetime) -> list[Month]:
    """Those in a table of their own whose end is before `cutoff`."""
    return [m for m in months if m.partition and m.until is not None and m.until <= cutoff]


def _left(store: PostgresStore, month: Month, why: str) -> Retired:
    name = month.month or str(month.partition)
    return Retired(month=name, rows=parts.count(store, month), left=why, archive=month.path)


def _next(month: datetime) -> datetime:
    return (month + timedelta(days=32)).replace(day=1)


def _make_ahead(store: PostgresStore, say: Say) -> int:
    made: int = store.rows(
        sa.text(
            "SELECT audit.add_partitions(CAST(now() AT TIME ZONE 'UTC' AS date), CAST("
            "(now() AT TIME ZONE 'UTC') + make_interval(0, :ahead) AS date)) AS made"
        ),
        ahead=MONTHS_AHEAD,
    )[0]["made"]
    if made:
        say(f"made {made} months ahead")
    return made


def _remove_rows(
    store: PostgresStore, cutoff: datetime, batch: int, dry_run: bool, say: Say
) -> Retention:
    """Remove rows of a table that nothing else of ours knows."""
    created_at = audit_logs.c.created_at
    past = created_at < cutoff
    expired: int = store.rows(
        sa.select(sa.func.count().label("n")).select_from(audit_logs).where(past)
    )[0]["n"]
    oldest_first = sa.select(audit_logs.c.id).where(past).order_by(created_at).limit(batch)
    removed = batches = 0
    while not dry_run:
        with store.transaction() as connection:
            gone = connection.execute(
                # An array is one list of ids for one pass over the primary key.
                sa.delete(audit_logs).where(
                    audit_logs.c.id == sa.any_(sa.func.array(oldest_first.scalar_subquery()))
                )
            ).rowcount
        if gone == 0:
            break
        removed, batches = removed + gone, batches + 1
        say(f"removed {removed:,} of {expired:,} audit rows")
    return Retention(
        older_than=cutoff,
        expired=expired,
        removed=removed,
        batches=batches,
        oldest_left_at=_oldest(store),
        dry_run=dry_run,
    )


def _oldest(store: PostgresStore) -> datetime | None:
    # The oldest that Python has a time for.
    oldest = sa.select(sa.func.min(audit_logs.c.created_at).label("at")).where(
        sa.text("created_at BETWEEN '0001-01-02Z' AND '9999-12-30Z'")
    )
    found: datetime | None = store.rows(oldest)[0]["at"]
    return found


def _require_rights(store: PostgresStore) -> None:
    asked = store.rows(
        sa.select(
            sa.func.has_table_privilege("audit.audit_logs", "DELETE").label("may_delete"),
            sa.func.pg_has_role(sa.column("relowner"), "MEMBER").label("owns"),
            (sa.column("relkind") == "p").label("by_months"),
            sa.literal_column("current_user").label("role"),
        )
        .select_from(sa.table("pg_class"))
        .where(sa.column("oid") == sa.func.to_regclass("audit.audit_logs"))
    )[0]
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
