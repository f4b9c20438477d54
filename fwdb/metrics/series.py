"""The contract: every series with its name, type, labels and meaning.

Rules, dashboards and docs/metrics.md are checked against this list. The first eight are those of
the existing service, with its names, labels and units; that is why the utilisation of a pool is
in percent, against the custom of Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fwdb.audit.coverage import KINDS
from fwdb.stores.failures import ERROR_TYPES

Kind = Literal["counter", "gauge", "histogram"]

DATABASES = ("postgres", "mongodb")
POOL_STATES = ("total", "active", "idle", "waiting")
PROBES = ("health", "cache", "replication", "schema", "audit", "audit_seal")


@dataclass(frozen=True, slots=True)
class Series:
    """One series. `name` is the one that is scraped: that of a counter ends in ``_total``."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


SERIES = (
    Series(
        "db_query_duration_seconds",
        "histogram",
        ("database", "operation", "status"),
        "Seconds until an operation ended, as this process saw it, by kind of statement, name of "
        "command or name given to track(); status is success or error.",
    ),
    Series(
        "db_queries_total",
        "counter",
        ("database", "operation"),
        "Operations that ended, with success or not: the sum of db_query_duration_seconds_count.",
    ),
    Series(
        "db_query_errors_total",
        "counter",
        ("database", "error_type"),
        f"Operations that failed, by one of: {', '.join(ERROR_TYPES)}.",
    ),
    Series(
        "db_connection_pool_size",
        "gauge",
        ("database", "state"),
        "Connections of this process's pool; total is active plus idle, and waiting are callers "
        "that queue for one, so the states do not add up.",
    ),
    Series(
        "db_connection_pool_utilization",
        "gauge",
        ("database",),
        "Connections in use, in percent (0 to 100) of all that the pool may open; absent for a "
        "pool without a limit.",
    ),
    Series(
        "db_health_status",
        "gauge",
        ("database",),
        "1 if the server answers within a second, slowly or read-only too; 0 if not.",
    ),
    Series(
        "db_cache_hit_ratio",
        "gauge",
        ("database",),
        "Blocks found in the server's memory out of those asked for, 0 to 1, over the last 30 s "
        "or since the scrape before; absent if there were too few, or the server cannot tell.",
    ),
    Series(
        "db_replication_lag_seconds",
        "gauge",
        ("database",),
        "Seconds that the slowest replica is behind; absent without a replica.",
    ),
    Series(
        "db_slow_queries_total",
        "counter",
        ("database",),
        "Operations that took at least FWDB_SLOW_QUERY_MS (100 ms unless set).",
    ),
    Series(
        "db_connection_pool_capacity",
        "gauge",
        ("database",),
        "The most connections that this process's pool may open; absent without a limit.",
    ),
    Series(
        "db_connection_pool_waits_total",
        "counter",
        ("database",),
        "Callers that had to wait for a connection, in vain or not.",
    ),
    Series(
        "db_connection_pool_waited_seconds_total",
        "counter",
        ("database",),
        "Seconds that callers waited for a connection, all together.",
    ),
    Series(
        "db_connection_pool_timeouts_total",
        "counter",
        ("database",),
        "Callers that waited for a connection in vain.",
    ),
    Series(
        "db_connection_pool_opened_total",
        "counter",
        ("database",),
        "Connections that this process's pool has opened.",
    ),
    Series(
        "db_connection_pool_wait_duration_seconds",
        "histogram",
        ("database",),
        "Seconds that a caller queued for a connection, of those that had to.",
    ),
    Series(
        "db_connection_pool_hold_duration_seconds",
        "histogram",
        ("database",),
        "Seconds that a connection was lent, of loans that have ended.",
    ),
    Series(
        "db_connection_pool_dial_duration_seconds",
        "histogram",
        ("database",),
        "Seconds until a new connection was ready for use.",
    ),
    Series(
        "db_health_degraded",
        "gauge",
        ("database",),
        "1 if the server answers slowly or takes no writes, or this process's pool is full.",
    ),
    Series(
        "db_cache_reads_total",
        "counter",
        ("database", "result"),
        "Blocks asked for since the server counts them; result is hit (found in its memory) or "
        "miss (read, maybe from the system's cache).",
    ),
    Series(
        "db_replication_replicas",
        "gauge",
        ("database",),
        "Replicas that follow this server now.",
    ),
    Series(
        "db_replication_replicas_expected",
        "gauge",
        ("database",),
        "Replicas that PostgreSQL should have, FWDB_EXPECTED_REPLICAS; absent if that is not set.",
    ),
    Series(
        "db_schema_current",
        "gauge",
        ("database",),
        "1 if the database has the schema of this release of fwdb, 0 if it wants 'fwdb migrate'.",
    ),
    Series(
        "fwdb_audit_records_total",
        "counter",
        ("action",),
        "Audit entries that this process wrote, those of a transaction rolled back later too.",
    ),
    Series(
        "fwdb_audit_failures_total",
        "counter",
        (),
        "Audit entries that this process could not write.",
    ),
    Series(
        "fwdb_audit_seal_info",
        "gauge",
        ("head",),
        "Always 1; the label begins the hash of the newest seal of the audit trail. Absent, as the "
        "other figures of seals, where nothing was ever sealed.",
    ),
    Series(
        "fwdb_audit_sealed_rows",
        "gauge",
        (),
        "Rows of the audit trail that were sealed, those that left the database since too.",
    ),
    Series(
        "fwdb_audit_uncovered",
        "gauge",
        ("database", "kind"),
        "Things of a kind whose changes do not get into the audit trail, as 'fwdb audit coverage' "
        f"lists them; kind is one of: {', '.join(k for ks in KINDS.values() for k in ks)}.",
    ),
    Series(
        "fwdb_audit_changes_without_actor",
        "gauge",
        (),
        "Changes of the last hour in the audit trail of which nobody said who made them.",
    ),
    Series(
        "fwdb_audit_months_ahead",
        "gauge",
        (),
        "Whole months after this one for which the audit trail has a partition, -1 if this one "
        "has none; absent for a trail that is one table.",
    ),
    Series(
        "fwdb_audit_follower_lag_seconds",
        "gauge",
        (),
        "Seconds that the audit trail is behind the changes of MongoDB; absent if they were never "
        "followed.",
    ),
    Series(
        "fwdb_audit_gaps",
        "gauge",
        (),
        "Times of which the follower could not see each change of MongoDB, all that ever were.",
    ),
    Series(
        "fwdb_audit_unsealed_rows",
        "gauge",
        (),
        "Rows of the audit trail that are newer than the newest seal.",
    ),
    Series(
        "fwdb_audit_seal_age_seconds",
        "gauge",
        (),
        "Seconds since the newest seal was made; one is made only when there is something to seal.",
    ),
    Series(
        "fwdb_probe_success",
        "gauge",
        ("database", "probe"),
        "1 if the question behind a group of gauges was answered at the last reading, 0 if it "
        "failed or took too long: its gauges are then absent.",
    ),
    Series(
        "fwdb_probe_duration_seconds",
        "gauge",
        ("database", "probe"),
        "Seconds that the question took at the last reading.",
    ),
    Series(
        "fwdb_probe_last_success_timestamp_seconds",
        "gauge",
        ("database", "probe"),
        "When the question was last answered, in seconds since 1970.",
    ),
    Series(
        "fwdb_labels_folded_total",
        "counter",
        ("metric",),
        "Operations whose name was one too many and was counted as other.",
    ),
    Series(
        "fwdb_build_info",
        "gauge",
        ("version",),
        "Always 1; the label is the release of fwdb.",
    ),
)

# What a report leaves behind, in `metrics.prom` and at a Pushgateway. A run is over when it is
# scraped, so its queries are not among them: the counts of two runs cannot be told apart there.
REPORT_SERIES = (
    Series(
        "fwdb_report_last_run_success",
        "gauge",
        ("report",),
        "1 if the last run of the report ended well, whatever its verdict; 0 if it failed.",
    ),
    Series(
        "fwdb_report_last_run_timestamp_seconds",
        "gauge",
        ("report",),
        "When the last run ended, in seconds since 1970.",
    ),
    Series(
        "fwdb_report_last_success_timestamp_seconds",
        "gauge",
        ("report",),
        "When the last run that ended well did so, in seconds since 1970.",
    ),
    Series(
        "fwdb_report_last_run_duration_seconds",
        "gauge",
        ("report",),
        "Seconds that the last run took.",
    ),
)

BY_NAME = {one.name: one for one in (*SERIES, *REPORT_SERIES)}
