"""The contract, and its one collector: what this process counted, and what the servers say now.

`series.toml` lists every series with its type, labels and meaning.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from fwdb.audit.coverage import KINDS
from fwdb.stores import BOUNDS_MS, Durations, MongoStore, PoolStats, PostgresStore, QueryStats
from fwdb.stores.errors import ERROR_TYPES

Labels = tuple[str, ...]  # values in the order of the series' names
Reading = tuple[str, Labels, float | None]  # series, child, value: None makes no sample

DATABASES = ("postgres", "mongodb")
POOL_STATES = ("total", "active", "idle", "waiting")
PROBES = ("health", "cache", "replication", "schema", "audit", "audit_seal")


@dataclass(frozen=True, slots=True)
class Series:
    """One series. `name` is the one that is scraped: that of a counter ends in ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    help: str


def _declared() -> dict[str, tuple[Series, ...]]:
    """The series of each group of the list, their words filled in."""
    known = {"error_types": ", ".join(ERROR_TYPES), "kinds": ", ".join(chain(*KINDS.values()))}
    declared = tomllib.loads(Path(__file__).with_name("series.toml").read_text("utf-8"))
    return {
        group: tuple(
            Series(name, one["kind"], tuple(one["labels"]), one["help"].format(**known))
            for name, one in series.items()
        )
        for group, series in declared.items()
    }


_LISTED = _declared()
SERIES, REPORT_SERIES = _LISTED["process"], _LISTED["report"]
BY_NAME = {one.name: one for one in (*SERIES, *REPORT_SERIES)}

DURATIONS = "db_query_duration_seconds"

# The buckets of the existing service (1 ms to 10 s) with three finer ones below: over a local
# socket nearly every command would fall into the first. Rules name them.
QUERY_BOUNDS_MS = (0.1, 0.25, 0.5, 1, 10, 50, 100, 500, 1000, 5000, 10000)

Asking = Callable[[], Iterable[Reading]]
AuditCounts = Callable[[], tuple[dict[str, int], int]]


class DatabaseCollector(Collector):
    """Fresh families at every scrape, so that nothing stays behind from an earlier one.

    A gauge that is set by a thread keeps its last value when the thread, or the server, is dead.
    """

    def __init__(
        self, postgres: PostgresStore, mongodb: MongoStore, servers: Asking, audit: AuditCounts
    ) -> None:
        self._stores = (postgres, mongodb)
        self._servers = servers
        self._audit = audit
        self._version = metadata.version("fwdb")

    def describe(self) -> Iterator[Metric]:
        """The names alone: a registry refuses a second collector that has one of them."""
        yield from _families().values()

    def collect(self) -> Iterator[Metric]:
        """Every series, those without a sample too."""
        found = _families()
        stats = {store.name: store.query_stats() for store in self._stores}
        pools = [store.pool() for store in self._stores]
        readings = (self._servers(), _queries(stats), _pools(pools), self._process())
        for name, labels, value in chain.from_iterable(readings):
            if value is not None:
                found[name].add_metric(labels, float(value))
        for database, queries in stats.items():
            for timed in queries.series:
                child = (database, timed.operation, timed.status)
                _add(found[DURATIONS], child, QUERY_BOUNDS_MS, timed.times)
        for pool in pools:
            for part, times in (("wait", pool.wait), ("hold", pool.hold), ("dial", pool.dial)):
                family = found[f"db_connection_pool_{part}_duration_seconds"]
                _add(family, (pool.database,), BOUNDS_MS, times)
        yield from found.values()

    def _process(self) -> Iterator[Reading]:
        written, failed = self._audit()
        for action, number in written.items():
            yield "fwdb_audit_records_total", (action,), number
        yield "fwdb_audit_failures_total", (), failed
        yield "fwdb_build_info", (self._version,), 1


_KINDS: dict[str, type[Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _families() -> dict[str, Any]:
    return {
        series.name: _KINDS[series.kind](series.name, series.help, labels=series.labels)
        for series in SERIES
    }


def _add(
    family: HistogramMetricFamily, child: Labels, bounds_ms: tuple[float, ...], times: Durations
) -> None:
    upto = dict(zip((*BOUNDS_MS, "+Inf"), accumulate(times.counts), strict=True))
    buckets = [(str(bound / 1000), float(upto[bound])) for bound in bounds_ms]
    family.add_metric(child, [*buckets, ("+Inf", float(upto["+Inf"]))], times.total_ms / 1000)


def _queries(stats: dict[str, QueryStats]) -> Iterator[Reading]:
    for database, found in stats.items():
        ended: Counter[str] = Counter()
        for timed in found.series:
            ended[timed.operation] += timed.times.count
        for operation, number in ended.items():
            yield "db_queries_total", (database, operation), number
        for cause, number in found.errors.items():
            yield "db_query_errors_total", (database, cause), number
        yield "db_slow_queries_total", (database,), found.slow
    yield "fwdb_labels_folded_total", (DURATIONS,), sum(found.folded for found in stats.values())


def _pools(pools: list[PoolStats]) -> Iterator[Reading]:
    for pool in pools:
        child = (pool.database,)
        size = "db_connection_pool_size"
        yield size, (*child, "total"), pool.in_use + pool.idle
        yield size, (*child, "active"), pool.in_use
        yield size, (*child, "idle"), pool.idle
        yield size, (*child, "waiting"), pool.waiting
        # MongoDB's driver has a pool per server of a set, each with this capacity, so that their
        # sum can pass it; the alarm is about one that is full.
        used = pool.utilisation_percent
        yield "db_connection_pool_utilization", child, None if used is None else min(100, used)
        yield "db_connection_pool_capacity", child, pool.capacity
        yield "db_connection_pool_waits_total", child, pool.waits
        yield "db_connection_pool_waited_seconds_total", child, pool.wait_ms / 1000
        yield "db_connection_pool_timeouts_total", child, pool.timeouts
        yield "db_connection_pool_opened_total", child, pool.opened
