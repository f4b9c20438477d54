"""The stored readings, in the schema `monitoring` of the watched database or of another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb import queries
from fwdb.errors import FeatureUnavailable, ParameterError, PermissionDenied
from fwdb.monitoring.readings import Reading, parsed
from fwdb.stores import PostgresStore, frames
from fwdb.timespan import Time, moment

if TYPE_CHECKING:
    from fwdb.monitoring.context import Context

# A window that ended so shortly ago ends now: a report fixes its end first and asks later, and
# what happened since the last stored reading belongs to it.
JUST_NOW = timedelta(minutes=1)


def window(since: Time, until: Time | None) -> tuple[datetime, datetime | None]:
    """The window in UTC; its end is None when it is this moment."""
    now = datetime.now(UTC)
    start = moment(since, now=now)
    end = None if until is None else moment(until, now=now, name="until")
    if start >= (end or now):
        raise ParameterError(
            f"the window ends at {end or now:%Y-%m-%d %H:%M:%S} UTC, not after it begins at "
            f"{start:%Y-%m-%d %H:%M:%S}; give an earlier 'since'.",
            name="since",
        )
    return start, None if end is not None and now - end < JUST_NOW else end


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
        self.where = f"postgres at {store.address}"

    def absence(self) -> str:
        """Why no reading can be looked up here; empty when one can."""
        state = self.store.rows("history_state")[0]
        if not state["is_there"]:
            return (
                f"{self.where} keeps no history of readings: run 'fwdb migrate' once, then "
                "'fwdb monitor', or sample with live_seconds"
            )
        if not state["may_read"]:
            return (
                f"the role {state['role_name']} may not read the history in {self.where}: GRANT "
                f"SELECT ON ALL TABLES IN SCHEMA monitoring TO {state['role_name']}"
            )
        return ""

    def require_writable(self) -> None:
        """Raises `FeatureUnavailable` or `PermissionDenied` when no reading can be stored."""
        state = self.store.rows("history_state")[0]
        if not state["is_there"]:
            raise FeatureUnavailable(
                f"{self.where} has no schema for readings; run 'fwdb migrate'."
            )
        if state["read_only"]:
            raise FeatureUnavailable(
                f"{self.where} is read-only here (a replica, or a role that only reads), so no "
                "reading can be stored; name another PostgreSQL in FWDB_HISTORY_URL, or sample on "
                "the primary with a role that writes."
            )
        if not state["may_write"]:
            raise PermissionDenied(
                f"the role {state['role_name']} may not store readings in {self.where}; GRANT "
                "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA monitoring TO "
                f"{state['role_name']}."
            )

    def edges(self, since: datetime, until: datetime, *kinds: str) -> list[StoredReading]:
        """The first and the last reading of one of `kinds` in the window: two, one or none."""
        rows = self.store.rows("window_edges", since=since, until=until, kinds=list(kinds))
        return [StoredReading(**row | {"details": json.loads(row["details"])}) for row in rows]

    def stored(self, reading_id: int, database: str, subject: str) -> Any:
        """What a reading kept of one subject, as JSON; None when it has nothing of it."""
        for row in self.store.rows("stored_counters", reading_id=reading_id):
            if (row["database"], row["subject"]) == (database, subject):
                return json.loads(row["counters"])
        return None

    def window(
        self, database: str, subject: str, since: datetime, until: datetime, *kinds: str
    ) -> list[Reading]:
        """The first and the last reading of a subject in the window: two, one or none."""
        edges = self.edges(since, until, *kinds)
        found = [self.stored(edge.reading_id, database, subject) for edge in edges]
        return [parsed(kept) for kept in found if kept is not None]

    def each(
        self, subject: str, since: datetime, until: datetime
    ) -> Iterator[tuple[str, datetime, Reading]]:
        """All readings of a subject in the window with the database they are of, oldest first."""
        span = {"since": since, "until": until}
        for row in self.store.rows("counter_history", subject=subject, **span):
            yield row["database"], row["read_at"], parsed(json.loads(row["counters"]))

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
        if self.edges(since, until, "light", "full", "process"):
            return (
                "the readings of this window have no pool that was used: each process stores its "
                "own, inside 'with db.monitor.sampling():'"
            )
        return "no reading was stored in this window; run 'fwdb monitor'"

    def frame(self, query: str, since: Time, until: Time | None) -> pd.DataFrame:
        """The answer of a query file about a window of the history; without one, no rows.

        ``attrs["status"]`` is then ``no_data`` and ``attrs["reason"]`` says what would make data.
        """
        start, last = window(since, until)
        span: dict[str, Any] = {"since": start, "until": last or datetime.now(UTC)}
        reason = self.absence()
        if reason:
            columns = queries.load(query).columns
            found = frames.from_rows(list(columns), [], columns)
        else:
            found = self.store.frame(query, **span)
            if found.empty:
                reason = self.gap(**span)
        found.attrs.update(status="no_data" if found.empty else "ok", reason=reason, window=span)
        return found


def readings(self: Context, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
    """The readings stored in the window, oldest first: when, by whom, of which kind."""
    return self.history.frame("readings", since, until)
