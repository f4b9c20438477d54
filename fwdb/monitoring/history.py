"""The stored readings, in the schema `monitoring` of the watched database or of another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb import queries
from fwdb.errors import FeatureUnavailable, PermissionDenied
from fwdb.stores import PostgresStore, frames

MIGRATE = "run 'fwdb migrate' once, then 'fwdb monitor'"


@dataclass(frozen=True, slots=True)
class StoredReading:
    """One row of `monitoring.readings`."""

    reading_id: int
    read_at: datetime
    kind: str
    details: dict[str, Any]


class History:
    """What earlier readings left behind in `store`, kept for `days`."""

    def __init__(self, store: PostgresStore, *, days: float = 30) -> None:
        self.store = store
        self.days = days

    def absence(self) -> str:
        """Why no reading can be looked up here; empty when one can."""
        state = self.store.rows("history_state")[0]
        where = f"postgres at {self.store.address}"
        if not state["is_there"]:
            return f"{where} keeps no history of readings: {MIGRATE}, or sample with live_seconds"
        if not state["may_read"]:
            return (
                f"the role {state['role_name']} may not read the history in {where}: GRANT SELECT "
                f"ON ALL TABLES IN SCHEMA monitoring TO {state['role_name']}"
            )
        return ""

    def require_writable(self) -> None:
        """Raises `FeatureUnavailable` or `PermissionDenied` when no reading can be stored."""
        state = self.store.rows("history_state")[0]
        where = f"postgres at {self.store.address}"
        if not state["is_there"]:
            raise FeatureUnavailable(f"{where} has no schema for readings; run 'fwdb migrate'.")
        if state["read_only"]:
            raise FeatureUnavailable(
                f"{where} is read-only here (a replica, or a role that only reads), so no reading "
                "can be stored; name another PostgreSQL in FWDB_HISTORY_URL, or sample on the "
                "primary with a role that writes."
            )
        if not state["may_write"]:
            raise PermissionDenied(
                f"the role {state['role_name']} may not store readings in {where}; GRANT SELECT, "
                "INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA monitoring TO "
                f"{state['role_name']}."
            )

    def edges(self, since: datetime, until: datetime, kinds: Sequence[str]) -> list[StoredReading]:
        """The first and the last reading of one of `kinds` in the window: two, one or none."""
        rows = self.store.rows("window_edges", since=since, until=until, kinds=list(kinds))
        return [
            StoredReading(r["reading_id"], r["read_at"], r["kind"], json.loads(r["details"]))
            for r in rows
        ]

    def gap(self, since: datetime, until: datetime) -> str:
        """Why a window has nothing that was asked for, and what would make some."""
        span = self.store.rows("history_span")[0]
        oldest, newest = span["oldest_at"], span["newest_at"]
        if oldest is None:
            return "no reading was ever stored; run 'fwdb monitor'"
        if until < oldest:
            return (
                f"this window ended before the oldest reading, of {oldest:%Y-%m-%d %H:%M} UTC: "
                f"readings are removed after {self.days:g} days (FWDB_HISTORY_DAYS)"
            )
        if since > newest:
            return f"no reading was stored since {newest:%Y-%m-%d %H:%M:%S} UTC; run 'fwdb monitor'"
        if self.edges(since, until, ("light", "full", "process")):
            return (
                "the readings of this window have no pool that was used: each process stores its "
                "own, inside 'with db.monitor.sampling():'"
            )
        return "no reading was stored in this window; run 'fwdb monitor'"

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """The answer of a query file on the history."""
        return self.store.rows(query, **parameters)

    def frame(self, query: str, **parameters: Any) -> pd.DataFrame:
        """The answer of a query file on the history; without a history, no rows.

        ``attrs["status"]`` is then ``no_data`` and ``attrs["reason"]`` says what would make data.
        """
        reason = self.absence()
        if reason:
            columns = queries.load(query).columns
            found = frames.from_rows(list(columns), [], columns)
        else:
            found = self.store.frame(query, **parameters)
            if found.empty:
                reason = self.gap(parameters["since"], parameters["until"])
        found.attrs.update(
            status="no_data" if found.empty else "ok",
            reason=reason,
            window={"since": parameters["since"], "until": parameters["until"]},
        )
        return found
