"""What the probes ask: health, cache, replication, schema, the audit trail and its seal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cached_property

import sqlalchemy as sa

from fwdb.audit import Audit
from fwdb.audit.coverage import Standing
from fwdb.audit.coverage_findings import KINDS
from fwdb.errors import QueryError
from fwdb.metrics import audit_seal
from fwdb.metrics.families import Labels
from fwdb.metrics.probes import Probe, Probes, Values
from fwdb.metrics.series import DATABASES
from fwdb.monitoring import Health, Measure, Monitor, cache
from fwdb.monitoring.cache import CacheReading
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.timings import OWN

APPLICATION = "fwdb-metrics"

# The interval of the existing service: a ratio over less follows single queries.
RATIO_SECONDS = 30.0

# What is captured changes by migrations, and the catalogs are not to be read at every scrape.
AUDIT_SECONDS = 30.0

# Beside the second that a silent server costs, an answer about health has this long for the rest.
SCHEMA_SECONDS = 0.4

_NOT_IN_A_SET = 76  # NoReplicationEnabled
_SECONDARY = 2


class Questions:
    """Asks both servers on connections of its own, outside the pools that it tells about."""

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
        self._revision: str | None = None
        self._schema = Probes([self._schema_probe()], deadline=SCHEMA_SECONDS)

    def probes(self) -> list[Probe]:
        """One per question and store; health asks both stores at once."""
        return [
            Probe("health", DATABASES, self._ask_health),
            Probe("cache", ("postgres",), lambda: self._ask_cache("postgres")),
            Probe("cache", ("mongodb",), lambda: self._ask_cache("mongodb")),
            Probe("replication", ("postgres",), self._ask_postgres_replication),
            Probe("replication", ("mongodb",), self._ask_mongodb_replication),
            self._schema_probe(),
            Probe("audit_seal", ("postgres",), lambda: audit_seal.ask(self.postgres)),
            Probe("audit", ("postgres",), _Kept(self._ask_audit, lambda: self.postgres.ping())),
            Probe("audit", ("mongodb",), _Kept(self._ask_images, lambda: self.mongodb.ping())),
        ]

    def _schema_probe(self) -> Probe:
        return Probe("schema", ("postgres",), self._ask_schema)

    def close(self) -> None:
        """Close the connections."""
        self.postgres.close()
        self.mongodb.close()

    @cached_property
    def schema_head(self) -> str:
        """The newest revision of this release."""
        from fwdb.migrating import postgres as migrations  # takes alembic along

        return migrations.head()

    def schema(self) -> tuple[str | None, str] | None:
        """The revision of the database and that of this release; None if the first is not known.

        That of the database is None when `fwdb migrate` never ran on it.
        """
        head = self.schema_head  # before the clock of the probe runs: it reads files
        found = self._schema.read().values
        if found["fwdb_probe_success"]["postgres", "schema"]:
            return self._revision, head
        return None

    def _ask_health(self) -> Values:
        stores = self._health().stores
        return {
            "db_health_status": {(s.database,): float(s.status != "down") for s in stores},
            "db_health_degraded": {(s.database,): float(s.status == "degraded") for s in stores},
        }

    def _ask_cache(self, database: str) -> Values:
        counters = (
            cache.postgres_counters(self.postgres)
            if database == "postgres"
            else cache.mongodb_counters(self.mongodb)
        )
        now = cache.reading(database, counters)
        if now is None:
            return {}
        return {
            "db_cache_reads_total": {
                (database, "hit"): float(now.found),
                (database, "miss"): float(now.read),
            },
            **_known("db_cache_hit_ratio", database, self._cache[database].ratio(database, now)),
        }

    def _ask_postgres_replication(self) -> Values:
        lag = self._monitor.replication_lag("postgres")
        replicas = self.postgres.rows(_REPLICAS)[0]["replicas"]
        expected = self._monitor.thresholds.expected_replicas
        return {
            "db_replication_replicas": {("postgres",): float(replicas)},
            "db_replication_replicas_expected": (
                {} if expected is None else {("postgres",): float(expected)}
            ),
            **_known("db_replication_lag_seconds", "postgres", lag),
        }

    def _ask_mongodb_replication(self) -> Values:
        lag = self._monitor.replication_lag("mongodb")
        return {
            "db_replication_replicas": {("mongodb",): float(self._secondaries())},
            **_known("db_replication_lag_seconds", "mongodb", lag),
        }

    def _secondaries(self) -> int:
        try:
            with self.mongodb.errors():
                status = self.mongodb.client.admin.command("replSetGetStatus")
        except QueryError as error:
            if getattr(error.__cause__, "code", None) == _NOT_IN_A_SET:
                return 0
            raise
        return sum(member["state"] == _SECONDARY for member in status["members"])

    def _ask_schema(self) -> Values:
        from fwdb.migrating import postgres as migrations

        self._revision = migrations.current(self.postgres)
        return {"db_schema_current": {("postgres",): float(self._revision == self.schema_head)}}

    @property
    def _audit(self) -> Audit:
        return Audit(self.postgres, self.mongodb)

    def _ask_audit(self) -> Values:
        found, followed = self._audit.standing(), self._audit.following_standing()
        return {
            "fwdb_audit_uncovered": {
                **_uncovered("postgres", found),
                ("mongodb", "follower"): float(followed.uncovered("follower")),
            },
            **_figures(
                fwdb_audit_changes_without_actor=self._audit.without_actor("1h"),
                fwdb_audit_months_ahead=found.months_ahead,
                fwdb_audit_journal_rows=found.journal_rows,
                fwdb_audit_journal_age_seconds=found.journal_age_seconds,
                fwdb_audit_follower_lag_seconds=followed.behind_seconds,
                fwdb_audit_gaps=None if followed.gaps is None else len(followed.gaps),
            ),
        }

    def _ask_images(self) -> Values:
        found = Standing((self._audit.images(),))
        return {
            "fwdb_audit_uncovered": {
                ("mongodb", "collection"): float(found.uncovered("collection"))
            }
        }


class _Kept:
    """A question whose answer is good for `AUDIT_SECONDS`, as long as its server is there."""

    def __init__(self, ask: Callable[[], Values], ping: Callable[[], object]) -> None:
        self._ask = ask
        self._ping = ping
        self._last: tuple[float, Values] | None = None

    def __call__(self) -> Values:
        last = self._last
        if last is None or time.monotonic() - last[0] >= AUDIT_SECONDS:
            last = self._last = (time.monotonic(), self._ask())
        else:
            self._ping()  # no figure outlives its server
        return last[1]


class _Window:
    """Readings of a cache's counters, to compare with one that is old enough."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, CacheReading]] = deque()

    def ratio(self, database: str, now: CacheReading) -> Measure | None:
        """Over the last 30 s, or since the reading before if that is older; None at the first."""
        at = time.monotonic()
        readings = self._readings
        while len(readings) > 1 and at - readings[1][0] >= RATIO_SECONDS:
            readings.popleft()
        readings.append((at, now))
        if len(readings) == 1:
            return None
        return cache.ratio(database, readings[0][1], now)


def _known(name: str, database: str, measure: Measure | None) -> Values:
    """The sample of a measure that has a value; none for one that has not."""
    if measure is None or measure.value is None:
        return {}
    return {name: {(database,): measure.value}}


def _uncovered(database: str, found: Standing) -> dict[Labels, float]:
    return {(database, kind): float(found.uncovered(kind)) for kind in KINDS[database]}


def _figures(**found: float | None) -> Values:
    """The samples of what is known."""
    return {name: {(): float(value)} for name, value in found.items() if value is not None}


# A backup in progress and pg_receivewal take the log too, but replay nothing.
_REPLICAS = sa.text(
    "SELECT count(*) AS replicas FROM pg_stat_replication WHERE state IS NULL OR "
    f"(state <> 'backup' AND replay_lsn IS NOT NULL) {OWN}"
)
