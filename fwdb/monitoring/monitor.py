"""`Monitor`: the questions about pools, statements, servers and their history."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import pandas as pd

from fwdb import config
from fwdb.config import Thresholds
from fwdb.errors import FwdbError, ParameterError, UnknownName
from fwdb.monitoring import commands, locks, pools, replication
from fwdb.monitoring import health as healths
from fwdb.monitoring import sessions as server_sessions
from fwdb.monitoring.cache import Cache
from fwdb.monitoring.commands import CommandLedger
from fwdb.monitoring.health import Behind, Health, Probe
from fwdb.monitoring.history import History
from fwdb.monitoring.measure import Measure
from fwdb.monitoring.sampler import Kind, Sample, Sampler, process_name
from fwdb.monitoring.slow_queries import (
    Half,
    combined,
    failed,
    mongodb_half,
    postgres_live,
    postgres_window,
)
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import moment

Time = str | datetime | date | timedelta

DATABASES = ("postgres", "mongodb")
APPLICATION = "fwdb-monitor"

# A window that ended so shortly ago ends now: a report fixes its end first and asks later, and
# what happened since the last stored reading belongs to it.
JUST_NOW = timedelta(minutes=1)

_numbers = itertools.count(1)


class Monitor:
    """Questions about both stores. Asks on connections of its own, outside the pools it watches.

    `since` and `until` take what `fwdb.timespan.moment` reads: a span (``24h``), an ISO time
    with a zone, a datetime. A window is answered from the readings that `sample`, `sampling` or
    `run` stored; `live_seconds` needs no history and watches for so long instead. Readings are
    kept in the database that is watched, or in `history`. `behind` says of a store why its
    schema is not the one wanted, for `health`.
    """

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        *,
        thresholds: Thresholds | None = None,
        settings: config.Settings | None = None,
        history: PostgresStore | None = None,
        behind: Behind = lambda store: "",
    ) -> None:
        settings = settings or config.settings()
        self.thresholds = thresholds or settings.thresholds
        self._behind = behind
        self._postgres = postgres
        self._mongodb = mongodb
        self._store = postgres.twin(application_name=APPLICATION, connections=2)
        kept = history and history.twin(application_name=APPLICATION, connections=2)
        self._history = History(kept or self._store, days=settings.history_days)
        self._ledger = CommandLedger(mongodb)
        number = next(_numbers)
        suffix = f"#{number}" if number > 1 else ""
        self._sampler = Sampler(
            self._store,
            self._mongodb_twin,
            lambda: [postgres.pool(), mongodb.pool()],
            self._ledger,
            self._history,
            process=process_name(postgres.application_name) + suffix,
            detail_days=settings.history_detail_days,
        )

    @cached_property
    def _mongodb_twin(self) -> MongoStore:
        return self._mongodb.twin(application_name=APPLICATION)

    # -- pools and sessions -----------------------------------------------------------------------

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

    def holders(self, *, leak_seconds: float | None = None) -> pd.DataFrame:
        """Who holds connections of this process's pools now; a row per connection, oldest first.

        `thread` is the name of the thread that took it, empty when that has ended. From
        `leak_seconds` on (FWDB_LEAK_SECONDS, 60) `is_leak` is true and `call_site` tells where
        in the program that thread is at this moment, ``file:line in function``: a checkout notes
        no place, so that it costs nothing.
        """
        limit = self.thresholds.leak_seconds if leak_seconds is None else leak_seconds
        lent = [*self._postgres.holds(), *self._mongodb.holds()]
        return pools.holders(lent, leak_seconds=_positive(limit, "leak_seconds"))

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

    def readings(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """The readings stored in the window, oldest first: when, by whom, of which kind."""
        start, end = self._window(since, until)
        return self._history.frame("readings", since=start, until=end or datetime.now(UTC))

    def sessions(self, database: str | None = None) -> pd.DataFrame:
        """Sessions of the servers, now: one row per database, user, application and state.

        `oldest_seconds` is how long one of them is in this state, `waiting` those that are
        active and wait inside the server (for a lock, a latch or a buffer), `blocked` those that
        another session keeps from a lock; SecantusDB tells a number only. ``attrs["hidden"]``
        says what a role may not see, ``attrs["missing"]`` why a store could not be asked; raises
        its error when it was the only one asked.
        """
        asked = DATABASES if database is None else (_known(database),)
        frame, problems = server_sessions.sessions(
            self._store if "postgres" in asked else None,
            self._mongodb_twin if "mongodb" in asked else None,
        )
        if len(problems) == len(asked):
            raise problems[0]
        return frame

    def session_limit(self, database: str = "postgres") -> Measure:
        """How many sessions the server takes from ordinary roles."""
        if _known(database) == "postgres":
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

    def wait_events(self, *, live_seconds: float = 5, samples: int | None = None) -> pd.DataFrame:
        """What active sessions of PostgreSQL waited for, watched for `live_seconds`.

        Looks `samples` times, ten in a second unless given, and counts active sessions by wait
        event: `samples` is how often one was seen, `average_sessions` how many there were,
        `share_percent` its part of all. `is_waiting` is true for waits for another session;
        ``CPU`` waits for nothing. Idle sessions, which have a wait event too, are not there.
        """
        return locks.wait_events(self._store, _positive(live_seconds), samples)

    # -- statements -------------------------------------------------------------------------------

    def slow_queries(
        self,
        since: Time = "24h",
        until: Time | None = None,
        *,
        min_ms: float | None = None,
        top: int = 20,
        live_seconds: float | None = None,
    ) -> pd.DataFrame:
        """Statements of both stores whose mean time in the window reaches `min_ms`.

        One row per statement shape, heaviest total first; `min_ms` is 100 unless
        FWDB_SLOW_QUERY_MS or the argument says otherwise. `mean_ms` and `stddev_ms` are times in
        the server for PostgreSQL and times of the client for MongoDB. `share_percent` is the
        part of its store's time in the window, those of statements below `min_ms` counted too.
        `read_ms` is missing when track_io_timing is off; `lower_bound` marks statements whose
        counters began anew within the window.

        Source: difference of two readings of pg_stat_statements, the first one stored at or
        after `since`, the second taken now, or the last one stored before an `until` of more
        than a minute ago; timings of the clients for MongoDB. Statements inside functions are
        part of the one that called them, and fwdb's own questions are left out.

        ``attrs``: `status` and `reason`; `window`, the times the answer is about; `missing`,
        per store why it has no rows; `coverage`, whether the counters lost something; `totals`;
        `hidden`, what the role may not see. Raises `FeatureUnavailable` or another `FwdbError`
        when a store cannot be asked and the other has nothing either.
        """
        if top < 1:
            raise ParameterError(f"'top' is {top}; give 1 or more.", name="top")
        least = self.thresholds.slow_query_ms if min_ms is None else min_ms
        if live_seconds is not None:
            halves, asked = self._live(_positive(live_seconds)), {}
        else:
            start, end = self._window(since, until)
            halves, asked = self._past(start, end), {"since": start, "until": end}
        return combined(halves, min_ms=least, top=top, asked=asked)

    def _past(self, since: datetime, until: datetime | None) -> list[Half]:
        halves = []
        history: History | None = self._history
        try:
            halves.append(postgres_window(self._store, self._history, since, until))
        except FwdbError as error:
            halves.append(failed("postgres", error))
            history = None  # the history is in the same database
        found = commands.window(self._ledger, history, since, until)
        halves.append(mongodb_half(found))
        return halves

    def _live(self, seconds: float) -> list[Half]:
        before, began = self._mongodb.commands(), datetime.now(UTC)
        deadline = time.monotonic() + seconds
        halves = []
        try:
            halves.append(postgres_live(self._store, seconds))
        except FwdbError as error:
            halves.append(failed("postgres", error))
            time.sleep(max(0.0, deadline - time.monotonic()))
        found = commands.live(before, self._mongodb.commands(), (began, datetime.now(UTC)))
        return [*halves, mongodb_half(found)]

    # -- cache, replication, health ---------------------------------------------------------------

    def cache_hit_ratio(
        self,
        database: str = "postgres",
        since: Time = "24h",
        until: Time | None = None,
        *,
        live_seconds: float | None = None,
    ) -> Measure:
        """Blocks found in the server's memory ÷ blocks asked for, in the window; 0 to 1.

        The difference of two readings, never the sum since the server started. A block that
        PostgreSQL had to read may still have come from the system's cache: the remark has the
        time per block read. ``no_data`` when fewer than 1,000 blocks were asked for.
        """
        cache = Cache(self._store, self._mongodb_twin, self._history)
        if live_seconds is not None:
            return cache.live(_known(database), _positive(live_seconds))
        start, end = self._window(since, until)
        return cache.window(_known(database), start, end)

    def replication_lag(self, database: str = "postgres") -> Measure:
        """Seconds that the slowest replica is behind, now; ``not_applicable`` without replica.

        0 when it has replayed everything. A replica that has something to replay and is silent
        is as many seconds behind as it is silent, whatever it said last.
        """
        if _known(database) == "postgres":
            return replication.postgres_lag(self._store)
        return replication.mongodb_lag(self._mongodb_twin)

    @cached_property
    def _probes(self) -> tuple[dict[str, Probe], list[PostgresStore | MongoStore]]:
        postgres = self._postgres.twin(application_name=APPLICATION)
        mongodb = self._mongodb.twin(application_name=APPLICATION)
        probes = {
            "postgres": Probe("postgres", lambda: healths.ask_postgres(postgres, self._behind)),
            "mongodb": Probe("mongodb", lambda: healths.ask_mongodb(mongodb, self._behind)),
        }
        return probes, [postgres, mongodb]

    def health(self, *, timeout_seconds: float = healths.DEADLINE_SECONDS) -> Health:
        """Whether each store is up, degraded or down, with the reason; never raises for a store.

        Each is asked on a connection kept for this, so that a full pool shows as ``degraded``
        and not as a dead server; one that does not answer within `timeout_seconds` is ``down``.
        ``degraded`` is also a server that answers slowly, takes no writes, or has a schema that
        'fwdb migrate' was not run on.
        """
        probes, _ = self._probes
        return healths.ask_all(
            probes,
            {"postgres": self._postgres.pool, "mongodb": self._mongodb.pool},
            {"postgres": self._postgres.address, "mongodb": self._mongodb.address},
            self.thresholds,
            _positive(timeout_seconds, "timeout_seconds"),
        )

    # -- readings ---------------------------------------------------------------------------------

    def sample(self, kind: Kind = "light") -> Sample:
        """Store one reading: the pools and commands of this process, and of the servers
        sessions and counters (``light``), and every statement's counters too (``full``).

        While another sampler reads the servers, only this process's part is stored. Raises
        `FeatureUnavailable` when the database has no schema for it or takes no writes,
        `PermissionDenied` when the role may not.
        """
        return self._sampler.sample(kind)

    @contextmanager
    def sampling(self, *, every: float = 30, full_every: float = 300) -> Iterator[None]:
        """Store readings in the background while the block runs.

        A full reading first and last, a light one every `every` seconds and a full one every
        `full_every`. Samplers of several processes take turns with the servers' part.
        """
        with self._sampler.sampling(every=every, full_every=full_every):
            yield

    def run(
        self,
        interval: float = 30,
        *,
        full_every: float | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[Sample], object] | None = None,
    ) -> None:
        """Store readings every `interval` seconds until `stop` is set, or for ever.

        Full ones every 5 minutes, or every `full_every` seconds. A store that does not answer is
        tried again at the next turn.
        """
        self._sampler.run(
            interval=interval,
            full_every=max(300.0, interval) if full_every is None else full_every,
            stop=stop or threading.Event(),
            said=progress,
        )

    def prune(self, days: float = 30) -> int:
        """Remove readings older than `days` now; how many. Sampling does so by itself."""
        return self._sampler.prune(_positive(days, "days"))

    def close(self) -> None:
        """Close the monitor's own connections."""
        self._store.close()
        self._history.store.close()
        if "_mongodb_twin" in self.__dict__:
            self._mongodb_twin.close()
        if "_probes" in self.__dict__:
            for store in self._probes[1]:
                store.close()

    def _window(self, since: Time, until: Time | None) -> tuple[datetime, datetime | None]:
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


def _known(database: str) -> str:
    if database not in DATABASES:
        raise UnknownName("database", database, DATABASES)
    return database


def _positive(value: float, name: str = "live_seconds") -> float:
    if not value > 0:
        raise ParameterError(f"'{name}' is {value}; give a number above 0.", name=name)
    return value
