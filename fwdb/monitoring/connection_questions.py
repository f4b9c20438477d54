"""`ConnectionQuestions`: what `Monitor` can tell about pools and sessions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from fwdb.arguments import Count, Seconds
from fwdb.config import Thresholds
from fwdb.measure import Measure
from fwdb.monitoring import locks, pools
from fwdb.monitoring import sessions as server_sessions
from fwdb.monitoring.asked import DATABASES, Database
from fwdb.monitoring.history import History
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time


class ConnectionQuestions:
    """The part of `Monitor` that is about who holds connections, here and at the servers."""

    thresholds: Thresholds
    _postgres: PostgresStore
    _mongodb: MongoStore
    _store: PostgresStore
    _history: History

    if TYPE_CHECKING:  # of Monitor

        @property
        def _mongodb_twin(self) -> MongoStore: ...
        def _window(self, since: Time, until: Time | None) -> tuple[datetime, datetime | None]: ...

    def pool(self) -> pd.DataFrame:
        """The connection pools of this process, now; one row per store.

        `capacity` is the most connections it may open, `waiting` the callers that queue for one
        now and `waiting_peak` the most there were. Counts are since the pool was made, as are
        the percentiles of waits that were needed, holds that have ended and dials, which are no
        waits: the bound of `fwdb.stores.BOUNDS_MS` that so many percent did not exceed.
        `utilisation_percent` is in use ÷ capacity; it is missing, and `status`
        ``not_applicable``, for a pool without a limit. The monitor's own pools are left out.
        """
        return pools.pools([self._postgres.pool(), self._mongodb.pool()])

    def holders(self, *, leak_seconds: Seconds | None = None) -> pd.DataFrame:
        """Who holds connections of this process's pools now; a row per connection, oldest first.

        `thread` is the name of the thread that took it, empty when that has ended. From
        `leak_seconds` on (FWDB_LEAK_SECONDS, 60) `is_leak` is true and `call_site` tells where
        in the program that thread is at this moment, ``file:line in function``: a checkout notes
        no place, so that it costs nothing.
        """
        limit = self.thresholds.leak_seconds if leak_seconds is None else leak_seconds
        lent = [*self._postgres.holds(), *self._mongodb.holds()]
        return pools.holders(lent, leak_seconds=limit)

    def pool_history(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """Stored samples of the pools of all processes in the window, oldest first.

        `waits`, `wait_ms`, `timeouts`, `holds` and `hold_ms` are those since the process's
        sample before, `seconds` ago. Without rows, ``attrs["reason"]`` says what would make some.
        """
        start, end = self._window(since, until)
        return self._history.frame("pool_history", since=start, until=end or datetime.now(UTC))

    def pool_durations(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """Waits, holds and dials of the pools in the window, counted by how long they took.

        A row per store, process, `subject` (``wait``, ``hold``, ``dial``) and used bucket, whose
        bounds are `over_ms` and `up_to_ms`, the last one ``inf``.
        """
        start, end = self._window(since, until)
        found = self._history.frame("pool_durations", since=start, until=end or datetime.now(UTC))
        return pools.with_bounds(found)

    def sessions(self, database: Database | None = None) -> pd.DataFrame:
        """Sessions of the servers, now: one row per database, user, application and state.

        `oldest_seconds` is how long one of them is in this state, `waiting` those that are
        active and wait inside the server (for a lock, a latch or a buffer), `blocked` those that
        another session keeps from a lock; SecantusDB tells a number only. ``attrs["hidden"]``
        says what a role may not see, ``attrs["missing"]`` why a store could not be asked; raises
        its error when it was the only one asked.
        """
        asked = DATABASES if database is None else (database,)
        frame, problems = server_sessions.sessions(
            self._store if "postgres" in asked else None,
            self._mongodb_twin if "mongodb" in asked else None,
        )
        if len(problems) == len(asked):
            raise problems[0]
        return frame

    def session_limit(self, database: Database = "postgres") -> Measure:
        """How many sessions the server takes from ordinary roles."""
        if database == "postgres":
            return server_sessions.postgres_limit(self._store)
        return server_sessions.mongodb_limit(self._mongodb_twin)

    def session_limits(self) -> pd.DataFrame:
        """Limits on PostgreSQL's sessions, of the server, databases and roles, fullest first."""
        return self._store.frame("session_limits")

    def idle_transactions(self) -> pd.DataFrame:
        """Sessions of PostgreSQL that are idle inside a transaction now, longest first.

        `idle_seconds` is since `statement` ended, whose values are shown as ``?``.
        """
        return locks.idle_transactions(self._store)

    def blocking(self) -> pd.DataFrame:
        """The blocking tree of PostgreSQL now: a row per session that waits for another's lock.

        `blocker_pid` is the session it waits for, `depth` how many are between it and the root,
        which waits for nobody, plus one; values in statements are shown as ``?``.
        """
        return locks.blocking(self._store)

    def wait_events(
        self, *, live_seconds: Seconds = 5, samples: Count | None = None
    ) -> pd.DataFrame:
        """What active sessions of PostgreSQL waited for, watched for `live_seconds`.

        Looks `samples` times, ten in a second unless given, and counts active sessions by wait
        event: `samples` is how often one was seen, `average_sessions` how many there were,
        `share_percent` its part of all. `is_waiting` is true for waits for another session;
        ``CPU`` waits for nothing. Idle sessions, which have a wait event too, are not there.
        """
        return locks.wait_events(self._store, live_seconds, samples)
