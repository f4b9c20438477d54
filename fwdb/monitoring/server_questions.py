"""`ServerQuestions`: what `Monitor` can tell about the servers themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from fwdb.arguments import Seconds
from fwdb.config import Thresholds
from fwdb.errors import PermissionDenied
from fwdb.measure import Measure, measured, unmeasured
from fwdb.monitoring import accesses, facts, relations, replicas, server_measures
from fwdb.monitoring.cache import Cache
from fwdb.monitoring.history import History
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time


class ServerQuestions:
    """The part of `Monitor` that is about servers and not about this process."""

    thresholds: Thresholds
    _store: PostgresStore
    _history: History

    if TYPE_CHECKING:  # of Monitor

        @property
        def _mongodb_twin(self) -> MongoStore: ...
        def _window(self, since: Time, until: Time | None) -> tuple[datetime, datetime | None]: ...

    def replicas(self) -> pd.DataFrame:
        """The replicas of both stores, now: one row per replica and per unused replication slot.

        Three numbers tell how a replica does. `behind_bytes` is the log that it has not replayed
        (PostgreSQL), `reply_age_seconds` how long ago it was last heard (idle replicas answer
        every 10 s), `replay_lag_seconds` the last delay that was measured, missing when nothing
        was to be replayed; for MongoDB the time of the primary's last operation less that of the
        member, less a delay that the member is told to keep, never below 0. `retained_bytes` is
        the log that a slot keeps on the primary. Asked on a replica of PostgreSQL, the row with
        `is_self` is about itself. Arbiters and MongoDB's primary have no row.

        A row has ``not_available`` as its `status`, with the `reason`, when it has no replica
        behind it. ``attrs``: `missing`, per store why it has no rows; `lost`, per store which
        replicas are not there: an unused slot tells, or FWDB_EXPECTED_REPLICAS, how many
        PostgreSQL should have. Raises the error of PostgreSQL when neither store can be asked.
        """
        frame, problems = replicas.replicas(
            self._store, self._mongodb_twin, expected=self.thresholds.expected_replicas
        )
        if len(problems) == 2:
            raise problems[0]
        return frame

    def cache(
        self,
        since: Time = "24h",
        until: Time | None = None,
        *,
        live_seconds: Seconds | None = None,
    ) -> pd.DataFrame:
        """The cache of both servers in the window, by kind of access.

        The rows ``this database`` are `cache_hit_ratio()`. PostgreSQL 16 and later have further
        rows for ``all databases`` together: ordinary reads (``normal``) apart from large scans
        (``bulkread``), loads (``bulkwrite``) and ``vacuum``, which are not meant to be found in
        memory. `hit_ratio` is bytes found in shared buffers ÷ bytes asked for, 0 to 1,
        `read_ms_per_block` the time of a block that was not found, missing when reads are not
        timed: near 0 it came from the system's cache. Source: differences of pg_stat_io. A
        MongoDB that cannot be asked is a row that says why; the error of PostgreSQL is raised.
        """
        cache = Cache(self._store, self._mongodb_twin, self._history)
        if live_seconds is not None:
            begin, ratios = self._io(), cache.live_both(live_seconds)
            end = self._io()
        else:
            start, last = self._window(since, until)
            ratios = cache.window_both(start, last)
            begin, end = self._io_between(start, last)
        rows = [accesses.of_database(ratio) for ratio in ratios]
        if begin and end:
            rows[1:1] = accesses.difference(begin, end)
        return accesses.frame(rows)

    def _io(self) -> dict[str, Any] | None:
        if self._store.server_version < accesses.MINIMUM:
            return None
        return accesses.counters(self._store)

    def _io_between(
        self, since: datetime, until: datetime | None
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if self._history.absence():
            return None, None
        edges = self._history.edges(since, until or datetime.now(UTC), ["light", "full"])
        found = [accesses.stored(self._history, edge.reading_id) for edge in edges]
        if not found:
            return None, None
        if until is None:
            return found[0], self._io()
        return (found[0], found[1]) if len(found) == 2 else (None, None)

    def tables(self, since: Time = "24h") -> pd.DataFrame:
        """Tables and collections, now, the largest first of each store.

        `total_bytes` is the rows with indexes and out-of-line values, `growth_bytes` how much it
        grew since `growth_since_at`, the first full reading stored since `since`; missing
        without one. `dead_percent` are row versions nobody needs of all there are. The ages of
        the last vacuum and analyze are missing when there was none since the counters began;
        `transaction_age` counts transactions since the oldest row was frozen. SecantusDB has no
        sizes. ``attrs["missing"]``: per store what could not be told, and why. Raises the error
        of PostgreSQL when neither store can be asked.
        """
        start, _ = self._window(since, None)
        before: dict[str, relations.Stored | None] = {}
        if not self._history.absence():
            edges = self._history.edges(start, datetime.now(UTC), ["full"])
            for database in ("postgres", "mongodb") if edges else ():
                before[database] = relations.stored(
                    self._history, database, edges[0].reading_id, edges[0].read_at
                )
        frame, problems = relations.tables(self._store, self._mongodb_twin, before)
        if len(problems) == 2:
            raise problems[0]
        return frame

    def indexes(self) -> pd.DataFrame:
        """Indexes of both stores, now, the largest first of each store.

        `scans` count since `counted_since_at`, on this server. `unused` is true only when that
        can be known: no scan for 7 days and more, not needed to keep rows unique, and no replica
        that may use it; missing otherwise, with the reason in ``attrs["unjudged"]``.
        `duplicate_of` names an index that answers the same questions. An index that is not valid
        costs writes and answers nothing. SecantusDB counts no use. Raises the error of
        PostgreSQL when neither store can be asked.
        """
        frame, problems = relations.indexes(self._store, self._mongodb_twin)
        if len(problems) == 2:
            raise problems[0]
        return frame

    def vacuum_holders(self) -> pd.DataFrame:
        """Sessions, prepared transactions, slots and replicas that keep vacuum from removing dead
        rows, now; the one that keeps most first. `transaction_age` is how many transactions ago
        its view of the data began, `seconds` how long ago, missing where the server does not tell.
        """
        return self._store.frame("vacuum_holders")

    def disabled_triggers(self) -> pd.DataFrame:
        """Triggers of this database that somebody has switched off, now."""
        return self._store.frame("disabled_triggers")

    def profiler_level(self) -> Measure:
        """The level of MongoDB's profiler on this database: 0 off, 1 slow operations, 2 all."""
        store = self._mongodb_twin
        try:
            with store.errors():
                found = store.database.command({"profile": -1})
        except PermissionDenied:
            reason = "this user may not read the profiler's level: grant it dbAdmin on the database"
            return unmeasured("not_measured", reason, "level", "mongodb", "profile")
        remark = f"slow from {found['slowms']} ms on" if found.get("was") == 1 else ""
        return measured(found["was"], "level", "mongodb", "profile", remark=remark)

    def server_facts(self, since: Time = "24h", until: Time | None = None) -> dict[str, Measure]:
        """Single figures about PostgreSQL, by name.

        Of this moment, or of the last reading before `until`: ``database_bytes``, ``wal_bytes``
        (this moment only), ``wraparound_percent`` (age of the oldest transaction or multixact of
        2³¹), ``archive_age_seconds``, ``backup_age_seconds`` (known only when the archive tells).
        Over the window: ``growth_bytes``, ``wal_written_bytes``,
        ``checkpoints_requested_percent`` of all checkpoints, ``deadlocks``,
        ``rollback_percent`` of all transactions, ``temp_bytes``.
        """
        start, end = self._window(since, until)
        return server_measures.measures(self._store, self._history, start, end)

    def changes(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """Settings and versions of PostgreSQL, and starts of both servers, that the stored
        readings of the window show; one row per change, oldest first.

        `noticed_at` is the first reading with the new value: it changed between the one before
        and this one. A value that may hold a secret shows as a fingerprint. ``attrs``: `status`
        and `reason`.
        """
        start, end = self._window(since, until)
        return facts.changes(self._history, start, end or datetime.now(UTC))

    def trends(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """Rates and sizes over the window, one row per measure and stored reading.

        `measure` is ``transactions_per_second`` (MongoDB: operations), ``rollbacks_per_second``,
        ``temp_bytes_per_second``, ``wal_bytes_per_second``, ``cache_hit_ratio`` or
        ``database_bytes``; rates are those since the reading before. ``attrs``: `status` and
        `reason`.
        """
        start, end = self._window(since, until)
        return facts.trends(self._history, start, end or datetime.now(UTC))
