"""Removal of audit rows past their retention, in small batches that no writer has to wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from fwdb.audit import checks
from fwdb.audit.base import AuditBase
from fwdb.errors import ParameterError, PermissionDenied
from fwdb.models import audit_logs
from fwdb.stores import PostgresStore

__all__ = ["Keeping", "Retention", "retain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a run of `retain` did.

    `expired` rows were older than `older_than` when it began, `removed` of them went, in
    `batches` transactions. `oldest_left_at` is the oldest row now, None for an empty table.
    """

    older_than: datetime
    expired: int
    removed: int
    batches: int
    oldest_left_at: datetime | None
    dry_run: bool


class Keeping(AuditBase):
    """How long rows are kept; see `Audit`."""

    def retain(
        self,
        older_than_days: int | None = None,
        *,
        batch: int = 5000,
        dry_run: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Retention:
        """Remove rows older than `older_than_days`, by default the retention of one year.

        Works on the existing unpartitioned table, `batch` rows per short transaction, so that
        writers wait for none of it; `progress` hears of each batch. `dry_run` counts and removes
        nothing. Raises `PermissionDenied`, with the GRANT that is missing.
        """
        days = self._settings.thresholds.audit_retention_days
        if older_than_days is not None:
            days = older_than_days
        return retain(
            self._postgres,
            days=checks.count(days, "older_than_days"),
            batch=checks.count(batch, "batch"),
            dry_run=dry_run,
            progress=progress,
        )


def retain(
    store: PostgresStore,
    *,
    days: int,
    batch: int,
    dry_run: bool,
    progress: Callable[[str], None] | None,
) -> Retention:
    """Remove the rows of `audit.audit_logs` that are older than `days` days; see `Audit.retain`."""
    if store.in_transaction:
        raise ParameterError("retain() commits batch by batch; call it outside a transaction.")
    # The server's clock, because it gave the rows their times.
    cutoff: datetime = store.rows(
        sa.select((sa.func.now() - sa.func.make_interval(0, 0, 0, days)).label("at"))
    )[0]["at"]
    if not dry_run:
        _require_delete(store)
    old = audit_logs.c.created_at < cutoff
    expired: int = store.rows(
        sa.select(sa.func.count().label("n")).select_from(audit_logs).where(old)
    )[0]["n"]
    oldest_first = (
        sa.select(audit_logs.c.id).where(old).order_by(audit_logs.c.created_at).limit(batch)
    )
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
        if progress is not None:
            progress(f"removed {removed:,} of {expired:,} audit rows")
    oldest_left = store.rows(sa.select(sa.func.min(audit_logs.c.created_at).label("at")))[0]["at"]
    return Retention(
        older_than=cutoff,
        expired=expired,
        removed=removed,
        batches=batches,
        oldest_left_at=oldest_left,
        dry_run=dry_run,
    )


def _require_delete(store: PostgresStore) -> None:
    asked = store.rows(
        sa.select(
            sa.func.has_table_privilege("audit.audit_logs", "DELETE").label("allowed"),
            sa.literal_column("current_user").label("role"),
        )
    )[0]
    if not asked["allowed"]:
        raise PermissionDenied(
            f"role '{asked['role']}' may not remove rows of audit.audit_logs; connect as the "
            f"owner of the table, or let the owner run: GRANT DELETE ON audit.audit_logs TO "
            f'"{asked["role"]}".'
        )
