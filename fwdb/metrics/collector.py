"""The one collector of a `Database`: what its process counted, and what the servers say now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

from prometheus_client import Metric
from prometheus_client.registry import Collector

from fwdb.metrics.families import Families, Family, Labels
from fwdb.metrics.probes import Probes
from fwdb.metrics.series import SERIES
from fwdb.stores import MongoStore, PoolStats, PostgresStore, QueryStats

DURATIONS = "db_query_duration_seconds"

_POOL_DURATIONS = {
    f"db_connection_pool_{part}_duration_seconds": part for part in ("wait", "hold", "dial")
}

AuditCounts = Callable[[], tuple[dict[str, int], int]]


class DatabaseCollector(Collector):
    """Fresh families at every scrape, so that nothing stays behind from an earlier one.

    A gauge that is set by a thread keeps its last value when the thread, or the server, is dead.
    """

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        probes: Probes,
        audit: AuditCounts,
    ) -> None:
        self._stores = (postgres, mongodb)
        self._probes = probes
        self._audit = audit
        self._families = Families()
        self._version = metadata.version("fwdb")

    def describe(self) -> Iterator[Metric]:
        """The names alone: a registry refuses a second collector that has one of them."""
        for series in SERIES:
            yield Family(series, [], list)

    def collect(self) -> Iterator[Family]:
        """Every series, those without a sample too."""
        stats = {store.name: store.query_stats() for store in self._stores}
        pools = [store.pool() for store in self._stores]
        values: dict[str, Mapping[Labels, float]] = {
            **self._probes.read().values,
            **_queries(stats),
            **_pools(pools),
            **self._audited(),
            "fwdb_build_info": {(self._version,): 1.0},
        }
        for series in SERIES:
            if series.name == DURATIONS:
                yield self._families.durations(series, stats)
            elif part := _POOL_DURATIONS.get(series.name):
                yield self._families.pools(series, {p.database: getattr(p, part) for p in pools})
            else:
                yield self._families.plain(series, values.get(series.name, {}))

    def _audited(self) -> dict[str, Mapping[Labels, float]]:
        written, failed = self._audit()
        return {
            "fwdb_audit_records_total": {(name,): float(n) for name, n in written.items()},
            "fwdb_audit_failures_total": {(): float(failed)},
        }


def _queries(stats: Mapping[str, QueryStats]) -> dict[str, Mapping[Labels, float]]:
    ended: dict[Labels, float] = {}
    for database, found in stats.items():
        for timed in found.series:
            key = (database, timed.operation)
            ended[key] = ended.get(key, 0.0) + sum(timed.counts)
    return {
        "db_queries_total": ended,
        "db_query_errors_total": {
            (database, word): float(n)
            for database, found in stats.items()
            for word, n in found.errors.items()
        },
        "db_slow_queries_total": {(name,): float(found.slow) for name, found in stats.items()},
        "fwdb_labels_folded_total": {
            (DURATIONS,): float(sum(found.folded for found in stats.values()))
        },
    }


def _pools(pools: list[PoolStats]) -> dict[str, Mapping[Labels, float]]:
    sizes: dict[Labels, float] = {}
    for pool in pools:
        states = {
            "total": pool.in_use + pool.idle,
            "active": pool.in_use,
            "idle": pool.idle,
            "waiting": pool.waiting,
        }
        sizes |= {(pool.database, state): float(n) for state, n in states.items()}
    # MongoDB's driver has a pool per server of a set, each with this capacity, so that their sum
    # can pass it; the alarm is about one that is full.
    used = {p.database: p.utilisation_percent for p in pools}
    return {
        "db_connection_pool_size": sizes,
        "db_connection_pool_utilization": {
            (name,): min(100.0, percent) for name, percent in used.items() if percent is not None
        },
        "db_connection_pool_capacity": {
            (p.database,): float(p.capacity) for p in pools if p.capacity is not None
        },
        "db_connection_pool_waits_total": {(p.database,): float(p.waits) for p in pools},
        "db_connection_pool_waited_seconds_total": {(p.database,): p.wait_ms / 1000 for p in pools},
        "db_connection_pool_timeouts_total": {(p.database,): float(p.timeouts) for p in pools},
        "db_connection_pool_opened_total": {(p.database,): float(p.opened) for p in pools},
    }
