"""Legal holds: months of the trail that retention must leave until they are released."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pandas as pd
import sqlalchemy as sa

from fwdb.audit import partitions
from fwdb.audit.context import Context
from fwdb.errors import (
    Conflict,
    DuplicateKey,
    FeatureUnavailable,
    ParameterError,
    UnknownName,
    shown,
)
from fwdb.stores import PostgresStore

__all__ = ["active", "hold", "holds", "release"]


def hold(self: Context, month: str, *, reason: str | None = None) -> None:
    """Keep `month` (2025-10) in the trail until `release`, whatever the retention.

    The hold keeps who set it, when, and `reason`. A month that was archived before stays in
    its file, which fwdb never removes. Raises `ParameterError` for a month that is to come
    or of which the trail has nothing, so that a slip does not leave the right one
    unprotected, and `Conflict` for one that is held.
    """
    require(self.postgres)
    day = parse(month)
    if day > datetime.now(UTC).date():
        raise ParameterError(
            f"'month' is '{month}', which is to come; give a month up to now.", name="month"
        )
    if not _there(self.postgres, day):
        raise ParameterError(
            f"'month' is '{month}', of which the audit trail has nothing; "
            "'fwdb audit partitions' lists its months.",
            name="month",
        )
    try:
        self.postgres.execute(
            sa.text("INSERT INTO audit.holds (month, reason) VALUES (:month, :reason)"),
            {"month": day, "reason": reason},
        )
    except DuplicateKey:
        raise Conflict(f"{month} is held already; 'fwdb audit holds' says since when.") from None


def release(self: Context, month: str) -> None:
    """End the hold of `month`; that it was held, by whom it was released, stays on record.

    Raises `UnknownName` for a month that is not held.
    """
    require(self.postgres)
    released = self.postgres.execute(
        sa.text(
            "UPDATE audit.holds SET released_at = clock_timestamp(), released_by = session_user"
            " WHERE month = :month AND released_at IS NULL"
        ),
        {"month": parse(month)},
    )
    if not released.rowcount:
        held = [f"{day:%Y-%m}" for day in active(self.postgres)]
        raise UnknownName("held month", month, held)


def holds(self: Context, *, released: bool = False) -> pd.DataFrame:
    """Months that are held, oldest first; with `released` those that were held, too.

    `month` (2025-10), `held_at`, `held_by`, `reason`, `released_at` and `released_by`
    (missing while held).
    """
    require(self.postgres)
    return self.postgres.frame("audit_holds", released=released)


def parse(month: str) -> date:
    """The first day of `month`, written 2025-10."""
    try:
        return datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise ParameterError(
            f"'month' is {shown(month)}; write year and month, such as 2025-10.", name="month"
        ) from None


def active(store: PostgresStore) -> list[date]:
    """First days of the months that are held; none where no migration made the table."""
    if not partitions.recorded(store):
        return []
    held = sa.text("SELECT month FROM audit.holds WHERE released_at IS NULL ORDER BY 1 /* fwdb */")
    return [row["month"] for row in store.rows(held)]


def require(store: PostgresStore) -> None:
    """Raises `FeatureUnavailable` where no migration made the tables of archives and holds."""
    if not partitions.recorded(store):
        raise FeatureUnavailable(
            "this database has no tables for holds and archives of the audit trail yet; "
            "run 'fwdb migrate'."
        )


def _there(store: PostgresStore, day: date) -> bool:
    if any(month.month == f"{day:%Y-%m}" for month in partitions.months(store)):
        return True
    if partitions.partitioned(store):
        return False
    rows = sa.text(
        "SELECT EXISTS (SELECT FROM audit.audit_logs WHERE created_at >= :since"
        " AND created_at < :since + interval '1 month') AS found /* fwdb */"
    )
    since = datetime(day.year, day.month, 1, tzinfo=UTC)
    return bool(store.rows(rows, since=since)[0]["found"])
