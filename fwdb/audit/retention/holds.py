"""Legal holds: months of the trail that retention must leave until they are released."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pandas as pd
import sqlalchemy as sa

from fwdb.audit.context import Context
from fwdb.audit.retention import partitions
from fwdb.errors import Conflict, DuplicateKey, ParameterError, UnknownName, shown

__all__ = ["hold", "holds", "release"]


def hold(self: Context, month: str, *, reason: str | None = None) -> None:
    """Keep `month` (2025-10) in the trail until `release`, whatever the retention.

    The hold keeps who set it, when, and `reason`. A month that was archived before stays in
    its file, which fwdb never removes. Raises `ParameterError` for a month that is to come
    or of which the trail has nothing, so that a slip does not leave the right one
    unprotected, and `Conflict` for one that is held.
    """
    store = self.postgres
    partitions.require(store)
    day = _day(month)
    if day > datetime.now(UTC).date():
        raise ParameterError(
            f"'month' is '{month}', which is to come; give a month up to now.", name="month"
        )
    known = any(one.month == f"{day:%Y-%m}" for one in partitions.months(store))
    if not known and not partitions.partitioned(store):
        since = datetime(day.year, day.month, 1, tzinfo=UTC)
        known = bool(store.rows(_ROWS, since=since)[0]["found"])
    if not known:
        raise ParameterError(
            f"'month' is '{month}', of which the audit trail has nothing; "
            "'fwdb audit partitions' lists its months.",
            name="month",
        )
    try:
        store.execute(
            sa.text("INSERT INTO audit.holds (month, reason) VALUES (:month, :reason)"),
            {"month": day, "reason": reason},
        )
    except DuplicateKey:
        raise Conflict(f"{month} is held already; 'fwdb audit holds' says since when.") from None


def release(self: Context, month: str) -> None:
    """End the hold of `month`; that it was held, by whom it was released, stays on record.

    Raises `UnknownName` for a month that is not held.
    """
    partitions.require(self.postgres)
    if not self.postgres.execute(_RELEASE, {"month": _day(month)}).rowcount:
        held = [f"{row['month']:%Y-%m}" for row in self.postgres.rows(_HELD)]
        raise UnknownName("held month", month, held)


def holds(self: Context, *, released: bool = False) -> pd.DataFrame:
    """Months that are held, oldest first; with `released` those that were held, too.

    `month` (2025-10), `held_at`, `held_by`, `reason`, `released_at` and `released_by`
    (missing while held).
    """
    partitions.require(self.postgres)
    return self.postgres.frame("audit_holds", released=released)


def _day(month: str) -> date:
    """The first day of `month`, written 2025-10."""
    try:
        return datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise ParameterError(
            f"'month' is {shown(month)}; write year and month, such as 2025-10.", name="month"
        ) from None


_ROWS = sa.text(
    "SELECT EXISTS (SELECT FROM audit.audit_logs WHERE created_at >= :since"
    " AND created_at < :since + interval '1 month') AS found /* fwdb */"
)
_RELEASE = sa.text(
    "UPDATE audit.holds SET released_at = clock_timestamp(), released_by = session_user"
    " WHERE month = :month AND released_at IS NULL"
)
_HELD = sa.text("SELECT month FROM audit.holds WHERE released_at IS NULL ORDER BY 1 /* fwdb */")
