"""Moves what triggers wrote into journals on into `audit.audit_logs`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fwdb.audit.base import AuditBase
from fwdb.errors import ParameterError, PermissionDenied

__all__ = ["Drained", "Draining"]

# About 50,000 rows: a transaction of a second, so that a stop loses little work.
_BLOCKS = 3000
_END = 2**31 - 1

_JOURNALS = sa.text("""
    SELECT c.relation, c.name, 'audit.journal_' || c.name AS journal,
           CAST(pg_relation_size(CAST('audit.journal_' || c.name AS regclass))
                / CAST(current_setting('block_size') AS int) AS int) AS blocks,
           has_table_privilege('audit.journal_' || c.name, 'DELETE')
               AND has_table_privilege('audit.audit_logs', 'INSERT') AS allowed,
           CAST(current_user AS text) AS role
    FROM audit.captured AS c WHERE c.mode = 'journal' ORDER BY c.relation /* fwdb */
""")
_THERE = sa.text("SELECT to_regclass('audit.captured') IS NOT NULL AS there /* fwdb */")
_DRAIN = sa.text("SELECT audit.drain(:name, :start, :stop) AS moved /* fwdb */")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What a run of `drain` did.

    `moved` changes went from `journals` journals to `audit.audit_logs`; `left` are still there,
    because a transaction as old as they are has not ended, or because they came meanwhile.
    `oldest_left_at` is the oldest of them, None when there is none.
    """

    moved: int
    journals: int
    left: int
    oldest_left_at: datetime | None


class Draining(AuditBase):
    """The journals of tables captured in journal mode; see `Audit`."""

    def drain(self, *, progress: Callable[[str], None] | None = None) -> Drained:
        """Move what is in the journals to `audit.audit_logs`, each change exactly once.

        A change moves when no transaction as old as its own is open any more, so that what is
        drained lacks none of the transactions before. Questions see journals and table as one at
        any time. Several may run at once, and a run that is stopped or killed in the middle has
        moved each row or left it. Works batch by batch; raises `ParameterError` inside a
        transaction, `PermissionDenied` for a role that does not own the trail.
        """
        store = self._postgres
        if store.in_transaction:
            raise ParameterError("drain() commits batch by batch; call it outside a transaction.")
        if not store.rows(_THERE)[0]["there"]:
            return Drained(moved=0, journals=0, left=0, oldest_left_at=None)
        journals = store.rows(_JOURNALS)
        moved = 0
        for journal in journals:
            if not journal["allowed"]:
                raise PermissionDenied(
                    f"role '{journal['role']}' may not drain {journal['journal']}; connect as the "
                    "owner of the audit trail."
                )
            moved += self._drain(journal, progress)
        left, oldest = self._left(journals)
        return Drained(moved=moved, journals=len(journals), left=left, oldest_left_at=oldest)

    def _drain(self, journal: dict[str, Any], progress: Callable[[str], None] | None) -> int:
        moved = 0
        for start in range(0, journal["blocks"], _BLOCKS):
            # At the end also what came since: its blocks are beyond those that were counted.
            last = start + _BLOCKS >= journal["blocks"]
            stop = _END if last else start + _BLOCKS
            with self._postgres.transaction(timeout_ms=0) as connection:
                asked = {"name": journal["name"], "start": start, "stop": stop}
                moved += connection.execute(_DRAIN, asked).scalar_one()
            if progress is not None and moved:
                progress(f"drained {moved:,} changes of {journal['relation']}")
        if moved:
            # The room is for new rows at once; a vacuum that is at work does it as well.
            self._postgres.execute(sa.text(f"VACUUM (SKIP_LOCKED) {journal['journal']}"))
        return moved

    def _left(self, journals: list[dict[str, Any]]) -> tuple[int, datetime | None]:
        counted = [
            self._postgres.rows(
                sa.text(f"SELECT count(*) AS n, min(created_at) AS at FROM {one['journal']}")
            )[0]
            for one in journals
        ]
        times = [row["at"] for row in counted if row["at"] is not None]
        return sum(row["n"] for row in counted), min(times, default=None)
