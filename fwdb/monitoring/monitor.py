"""`Monitor`: the questions about pools, statements, servers and their history."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property

import pandas as pd

from fwdb import config
from fwdb.arguments import Days, Seconds, checks_arguments
from fwdb.config import Thresholds
from fwdb.errors import ParameterError
from fwdb.measure import Measure
from fwdb.monitoring import health as healths
from fwdb.monitoring import replication
from fwdb.monitoring.asked import APPLICATION, Database
from fwdb.monitoring.cache import Cache
from fwdb.monitoring.commands import CommandLedger
from fwdb.monitoring.connection_questions import ConnectionQuestions
from fwdb.monitoring.health import Answer, Behind, Health, Probe
from fwdb.monitoring.history import History
from fwdb.monitoring.sampler import Kind, Sample, Sampler, process_name
from fwdb.monitoring.server_questions import ServerQuestions
from fwdb.monitoring.statement_questions import StatementQuestions
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time, moment

# A window that ended so shortly ago ends now: a report fixes its end first and asks later, and
# what happened since the last stored reading belongs to it.
JUST_NOW = timedelta(minutes=1)

_numbers = itertools.count(1)


@checks_arguments
class Monitor(ConnectionQuestions, StatementQuestions, ServerQuestions):
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

    # -- cache, replication, health ---------------------------------------------------------------

    def cache_hit_ratio(
        self,
        database: Database = "postgres",
        since: Time = "24h",
        until: Time | None = None,
        *,
        live_seconds: Seconds | None = None,
    ) -> Measure:
        """Blocks found in the server's memory ÷ blocks asked for, in the window; 0 to 1.

        The difference of two readings, never the sum since the server started. A block that
        PostgreSQL had to read may still have come from the system's cache: the remark has the
        time per block read. ``no_data`` when fewer than 1,000 blocks were asked for.
        """
        cache = Cache(self._store, self._mongodb_twin, self._history)
        if live_seconds is not None:
            return cache.live(database, live_seconds)
        start, end = self._window(since, until)
        return cache.window(database, start, end)

    def replication_lag(self, database: Database = "postgres") -> Measure:
        """Seconds that the slowest replica is behind, now; ``not_applicable`` without replica.

        0 when it has replayed everything. A replica that has something to replay and is silent
        is as many seconds behind as it is silent, whatever it said last. `replicas()` has a row
        for each, with two more numbers.
        """
        if database == "postgres":
            return replication.postgres_lag(self._store, expected=self.thresholds.expected_replicas)
        return replication.mongodb_lag(self._mongodb_twin)

    @cached_property
    def _probes(self) -> tuple[dict[str, Probe[Answer]], list[PostgresStore | MongoStore]]:
        postgres = self._postgres.twin(application_name=APPLICATION)
        mongodb = self._mongodb.twin(application_name=APPLICATION)
        probes = {
            "postgres": Probe(
                "health-postgres", lambda: healths.ask_postgres(postgres, self._behind)
            ),
            "mongodb": Probe("health-mongodb", lambda: healths.ask_mongodb(mongodb, self._behind)),
        }
        return probes, [postgres, mongodb]

    def health(self, *, timeout_seconds: Seconds = healths.DEADLINE_SECONDS) -> Health:
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
            timeout_seconds,
        )

    # -- readings ---------------------------------------------------------------------------------

    def readings(self, since: Time = "24h", until: Time | None = None) -> pd.DataFrame:
        """The readings stored in the window, oldest first: when, by whom, of which kind."""
        start, end = self._window(since, until)
        return self._history.frame("readings", since=start, until=end or datetime.now(UTC))

    def sample(self, kind: Kind = "light") -> Sample:
        """Store one reading: the pools and commands of this process, and of the servers
        sessions and counters (``light``), and every statement's counters too (``full``).

        While another sampler reads the servers, only this process's part is stored. Raises
        `FeatureUnavailable` when the database has no schema for it or takes no writes,
        `PermissionDenied` when the role may not.
        """
        return self._sampler.sample(kind)

    @contextmanager
    def sampling(self, *, every: Seconds = 30, full_every: Seconds = 300) -> Iterator[None]:
        """Store readings in the background while the block runs.

        A full reading first and last, a light one every `every` seconds and a full one every
        `full_every`. Samplers of several processes take turns with the servers' part.
        """
        with self._sampler.sampling(every=every, full_every=full_every):
            yield

    def run(
        self,
        interval: Seconds = 30,
        *,
        full_every: Seconds | None = None,
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

    def prune(self, days: Days = 30) -> int:
        """Remove readings older than `days` now; how many. Sampling does so by itself."""
        return self._sampler.prune(days)

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
