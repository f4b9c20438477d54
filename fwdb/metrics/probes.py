"""What is asked of the servers at scrape time: each question within a deadline, once for all."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from datetime import UTC, datetime
from functools import cached_property
from typing import Generic, TypeVar

import sqlalchemy as sa

from fwdb.audit import Audit
from fwdb.audit.coverage import KINDS, Standing
from fwdb.audit.seal import sealer
from fwdb.errors import FwdbError, QueryError
from fwdb.metrics.series import DATABASES
from fwdb.monitoring import Health, Monitor, cache
from fwdb.monitoring.cache import CacheReading
from fwdb.monitoring.health import Probe, Question
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.timings import OWN

logger = logging.getLogger(__name__)

T = TypeVar("T")

Labels = tuple[str, ...]  # values in the order of the series' names
Reading = tuple[str, Labels, float | None]  # series, child, value: None makes no sample

APPLICATION = "fwdb-metrics"

# A little longer than the health question gives the stores (1 s), so that its own answer, which
# says which of them is silent, still counts.
DEADLINE_SECONDS = 1.25

# Of two scrapes, of Prometheus and of a person who reloads a page, one asks.
SCRAPE_SECONDS = 1.0

# The interval of the existing service: a ratio over less follows single queries.
RATIO_SECONDS = 30.0

# What is captured changes by migrations, and the catalogs are not to be read at every scrape.
AUDIT_SECONDS = 30.0

# Beside the second that a silent server costs, an answer about health has this long for the rest.
SCHEMA_SECONDS = 0.4

_HEAD_DIGITS = 16  # 64 bits: enough to tell heads apart, short enough for a label
_NOT_IN_A_SET = 76  # NoReplicationEnabled
_SECONDARY = 2


class Shared(Generic[T]):
    """The answer of `ask`, one for all who want it within `max_age` seconds.

    Whoever comes while it is asked waits for it.
    """

    def __init__(self, ask: Callable[[], T], max_age: float) -> None:
        self.max_age = max_age
        self._ask = ask
        self._lock = threading.Lock()
        self._last: tuple[float, T] | None = None

    def read(self) -> T:
        """An answer that is young enough. Raises what `ask` raises, which is not kept."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > self.max_age:
                answer = self._ask()
                self._last = (time.monotonic(), answer)  # its age counts from its end
            return self._last[1]


class ScrapeProbe(Probe[T]):
    """The question `name` about some of the databases; knows when it was answered last."""

    def __init__(self, name: str, databases: tuple[str, ...], ask: Callable[[], T]) -> None:
        super().__init__(f"metrics-{name}-{'-'.join(databases)}", ask)
        self.name = name
        self.databases = databases
        self.answered_at: float | None = None
        self._trouble = ""

    def outcome(self, question: Question[T]) -> T | None:
        """The answer; None if there is none, the reason of which is logged once."""
        late = TimeoutError("no answer within the deadline")
        error = question.exception() if question.done() else late
        if error is None:
            self._trouble = ""
            self.answered_at = time.time()
            return question.result()
        if self._trouble != str(error):
            self._trouble = str(error)
            which = f"{self.name} of {' and '.join(self.databases)}"
            unforeseen = None if isinstance(error, FwdbError | TimeoutError) else error
            logger.warning("the metrics lack %s: %s", which, error, exc_info=unforeseen)
        return None


def read(probes: Sequence[ScrapeProbe[list[Reading]]], seconds: float) -> list[Reading]:
    """What all probes give that are answered within `seconds`, and how each went."""
    found: list[Reading] = []
    questions = [probe.start() for probe in probes]
    wait(questions, timeout=seconds)
    for probe, question in zip(probes, questions, strict=True):
        answer = probe.outcome(question)
        found += answer or []
        for database in probe.databases:
            child = (database, probe.name)
            found += [
                ("fwdb_probe_success", child, answer is not None),
                ("fwdb_probe_duration_seconds", child, question.seconds),
                ("fwdb_probe_last_success_timestamp_seconds", child, probe.answered_at),
            ]
    return found


class Probes:
    """All that is asked of both servers, on connections outside the pools that it tells about."""

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        monitor: Monitor,
        health: Callable[[], Health],
    ) -> None:
        # Made here, because the threads of the first scrape would each make one; dialled later.
        self.postgres = postgres.twin(application_name=APPLICATION, connections=3)
        self.mongodb = mongodb.twin(application_name=APPLICATION, connections=2)
        self._monitor = monitor
        self._health = health
        self._cache = {database: _Window() for database in DATABASES}
        self._trail = Shared(lambda: list(self._ask_trail()), AUDIT_SECONDS)
        self._images = Shared(lambda: list(self._ask_images()), AUDIT_SECONDS)
        on_postgres, on_mongodb = ("postgres",), ("mongodb",)
        probes = [
            _probe("health", DATABASES, self._ask_health),
            _probe("cache", on_postgres, lambda: self._ask_cache("postgres")),
            _probe("cache", on_mongodb, lambda: self._ask_cache("mongodb")),
            _probe("replication", on_postgres, self._ask_postgres_replication),
            _probe("replication", on_mongodb, self._ask_mongodb_replication),
            _probe("schema", on_postgres, self._ask_schema),
            _probe("audit_seal", on_postgres, self._ask_seal),
            _probe("audit", on_postgres, lambda: _while_there(self.postgres, self._trail)),
            _probe("audit", on_mongodb, lambda: _while_there(self.mongodb, self._images)),
        ]
        revision = ScrapeProbe("schema", on_postgres, self._ask_revision)
        self._readings = Shared(lambda: read(probes, DEADLINE_SECONDS), SCRAPE_SECONDS)
        self._schema = Shared(lambda: self._schema_in_time(revision), SCRAPE_SECONDS)

    def read(self) -> list[Reading]:
        """What is known of both servers now, within the deadline, and how each probe went."""
        return self._readings.read()

    def schema(self) -> tuple[str | None, str] | None:
        """The revision of the database and that of this release; None if the first is not known.

        That of the database is None when `fwdb migrate` never ran on it.
        """
        return self._schema.read()

    def close(self) -> None:
        """Close the connections."""
        self.postgres.close()
        self.mongodb.close()

    def _schema_in_time(self, probe: ScrapeProbe[str]) -> tuple[str | None, str] | None:
        newest = self._head  # before the clock runs: it reads files
        question = probe.start()
        wait([question], timeout=SCHEMA_SECONDS)
        found = probe.outcome(question)
        return None if found is None else (found or None, newest)

    @cached_property
    def _head(self) -> str:
        """The newest revision of this release."""
        from fwdb.migrating import postgres as migrations  # takes alembic along

        return migrations.head()

    def _ask_revision(self) -> str:
        from fwdb.migrating import postgres as migrations

        return migrations.current(self.postgres) or ""

    def _ask_schema(self) -> Iterator[Reading]:
        yield "db_schema_current", ("postgres",), self._ask_revision() == self._head

    def _ask_health(self) -> Iterator[Reading]:
        for store in self._health().stores:
            yield "db_health_status", (store.database,), store.status != "down"
            yield "db_health_degraded", (store.database,), store.status == "degraded"

    def _ask_cache(self, database: str) -> Iterator[Reading]:
        counters = (
            cache.postgres_counters(self.postgres)
            if database == "postgres"
            else cache.mongodb_counters(self.mongodb)
        )
        now = cache.reading(database, counters)
        if now is not None:
            yield "db_cache_reads_total", (database, "hit"), now.found
            yield "db_cache_reads_total", (database, "miss"), now.read
            before = self._cache[database].before(now)
            ratio = cache.ratio(database, before, now).value if before else None
            yield "db_cache_hit_ratio", (database,), ratio

    def _ask_postgres_replication(self) -> Iterator[Reading]:
        replicas = self.postgres.rows(_REPLICAS)[0]["replicas"]
        expected = self._monitor.thresholds.expected_replicas
        yield "db_replication_replicas", ("postgres",), replicas
        yield "db_replication_replicas_expected", ("postgres",), expected
        yield self._lag("postgres")

    def _ask_mongodb_replication(self) -> Iterator[Reading]:
        yield "db_replication_replicas", ("mongodb",), self._secondaries()
        yield self._lag("mongodb")

    def _lag(self, database: str) -> Reading:
        lag = self._monitor.replication_lag(database)
        return "db_replication_lag_seconds", (database,), lag.value

    def _secondaries(self) -> int:
        try:
            with self.mongodb.errors():
                status = self.mongodb.client.admin.command("replSetGetStatus")
        except QueryError as error:
            if getattr(error.__cause__, "code", None) == _NOT_IN_A_SET:
                return 0
            raise
        return sum(member["state"] == _SECONDARY for member in status["members"])

    def _ask_seal(self) -> Iterator[Reading]:
        """The newest seal: Prometheus then keeps each head beside its time."""
        found = sealer.state(self.postgres)
        if found is not None and found.head is not None and found.sealed_at is not None:
            age = (datetime.now(UTC) - found.sealed_at).total_seconds()
            yield "fwdb_audit_seal_info", (found.head[:_HEAD_DIGITS],), 1
            yield "fwdb_audit_sealed_rows", (), found.total_rows
            yield "fwdb_audit_unsealed_rows", (), found.unsealed_rows
            yield "fwdb_audit_seal_age_seconds", (), max(0.0, age)

    @property
    def _audit(self) -> Audit:
        return Audit(self.postgres, self.mongodb)

    def _ask_trail(self) -> Iterator[Reading]:
        found, followed = self._audit.standing(), self._audit.following_standing()
        for kind in KINDS["postgres"]:
            yield "fwdb_audit_uncovered", ("postgres", kind), found.uncovered(kind)
        uncovered = followed.uncovered("follower")
        yield "fwdb_audit_uncovered", ("mongodb", "follower"), uncovered
        yield "fwdb_audit_changes_without_actor", (), self._audit.without_actor("1h")
        yield "fwdb_audit_months_ahead", (), found.months_ahead
        yield "fwdb_audit_follower_lag_seconds", (), followed.behind_seconds
        gaps = None if followed.gaps is None else len(followed.gaps)
        yield "fwdb_audit_gaps", (), gaps

    def _ask_images(self) -> Iterator[Reading]:
        found = Standing(tuple(self._audit.images()))
        yield "fwdb_audit_uncovered", ("mongodb", "collection"), found.uncovered("collection")


def _probe(
    name: str, databases: tuple[str, ...], ask: Callable[[], Iterable[Reading]]
) -> ScrapeProbe[list[Reading]]:
    return ScrapeProbe(name, databases, lambda: list(ask()))


def _while_there(store: PostgresStore | MongoStore, known: Shared[T]) -> T:
    """What is known for a while, but no figure outlives its server."""
    store.ping()
    return known.read()


class _Window:
    """Readings of a cache's counters, to compare with one that is old enough."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, CacheReading]] = deque()

    def before(self, now: CacheReading) -> CacheReading | None:
        """That of 30 s ago, or the one before if that is older; None at the first."""
        at = time.monotonic()
        readings = self._readings
        while len(readings) > 1 and at - readings[1][0] >= RATIO_SECONDS:
            readings.popleft()
        readings.append((at, now))
        return readings[0][1] if len(readings) > 1 else None


# A backup in progress and pg_receivewal take the log too, but replay nothing.
_REPLICAS = sa.text(
    "SELECT count(*) AS replicas FROM pg_stat_replication WHERE state IS NULL OR "
    f"(state <> 'backup' AND replay_lsn IS NOT NULL) {OWN}"
)
