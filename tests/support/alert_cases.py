"""What each alert must do: fire for the series just over its line, and for none just under it.

One sample every 15 s unless a case says otherwise. A series is written as promtool reads it:
``a+bxn`` is a value `a` and `n` further ones that grow by `b`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STEP_SECONDS = 15
PROCESS = 'job="fwdb", instance="app:9464"'
POSTGRES = f'{PROCESS}, database="postgres"'
MONGODB = f'{PROCESS}, database="mongodb"'
REPORT = 'report="pool"'
CACHE_PROBE = f'{POSTGRES}, probe="cache"'
FOLLOWER = f'{MONGODB}, kind="follower"'
TRIGGER = f'{POSTGRES}, kind="trigger"'

Series = dict[str, str]


@dataclass(frozen=True)
class Case:
    """`fires` at `fires_at` seconds and not a step before; each of `quiet` never does.

    The alert has the labels of `where`, and its texts say `value`. Of `fires` that end, `still_at`
    is a moment at which it goes on and `gone_at` one at which it is over. `quiet_at` is when the
    quiet ones are looked at.
    """

    alert: str
    severity: str
    fires: Series
    fires_at: int
    value: str
    where: str = POSTGRES
    quiet: tuple[Series, ...] = ()
    gone_at: int | None = None
    still_at: int | None = None
    quiet_at: int = 2_295
    step_seconds: int = STEP_SECONDS

    @property
    def labels(self) -> dict[str, str]:
        return dict(re.findall(r'(\w+)="([^"]*)"', self.where))


def requests(total: float, fast: float) -> Series:
    """So many operations in five minutes, of which so many took no second."""
    step = STEP_SECONDS / 300
    labels = f'{POSTGRES}, operation="select"'
    return {
        f"db_queries_total{{{labels}}}": f"0+{total * step:g}x160",
        f'db_query_duration_seconds_count{{{labels}, status="success"}}': f"0+{total * step:g}x160",
        f'db_query_duration_seconds_bucket{{{labels}, status="success", le="1.0"}}': (
            f"0+{fast * step:g}x160"
        ),
    }


def failures(total: float, failed: float) -> Series:
    """So many operations in five minutes, of which so many failed, in two ways."""
    step = STEP_SECONDS / 300
    half = f"0+{failed / 2 * step:g}x160"
    return {
        f'db_queries_total{{{POSTGRES}, operation="select"}}': f"0+{total * step:g}x160",
        f'db_query_errors_total{{{POSTGRES}, error_type="timeout"}}': half,
        f'db_query_errors_total{{{POSTGRES}, error_type="other"}}': half,
    }


def blocks(total: float, hits: float) -> Series:
    """So many blocks in ten minutes, of which so many were found in memory."""
    step = STEP_SECONDS / 600
    return {
        f'db_cache_reads_total{{{POSTGRES}, result="hit"}}': f"0+{hits * step:g}x160",
        f'db_cache_reads_total{{{POSTGRES}, result="miss"}}': f"0+{(total - hits) * step:g}x160",
    }


def gauge(name: str, values: str, where: str = POSTGRES) -> Series:
    """`values` may be one number, which stays."""
    return {f"{name}{{{where}}}": values if "x" in values else f"{values}+0x160"}


def ended(alert: str, name: str, where: str = POSTGRES) -> Case:
    """One failure, told until it is five minutes old; old ones are none."""
    quiet = (gauge(name, "7", where),)
    fires = gauge(name, "0+0x8 1+0x160", where)
    return Case(alert, "critical", fires, 135, "1", where, quiet, still_at=405, gone_at=450)


def pair(name: str, first: str, other: str, second: str, where: str = POSTGRES) -> Series:
    return gauge(name, first, where) | gauge(other, second, where)


# Fires while a gauge is over its line for a time, and not on it:
# alert, severity, gauge, over the line, on it, seconds, value, labels
LINES = (
    ("DatabaseDegraded", "warning", "db_health_degraded", "1", "0", 600, "1", POSTGRES),
    ("SchemaBehind", "warning", "db_schema_current", "0", "1", 900, "0", POSTGRES),
    ("AuditFollowerLagging", "warning", "fwdb_audit_follower_lag_seconds", "61", "60", 300,
     "1m 1s", PROCESS),
    ("AuditMonthsMissing", "critical", "fwdb_audit_months_ahead", "0", "1", 300, "0", PROCESS),
    ("HighConnectionPoolUsage", "warning", "db_connection_pool_utilization", "81", "80", 300,
     "81", MONGODB),
    ("DatabaseProbeFailing", "warning", "fwdb_probe_success", "0", "1", 300, "0", CACHE_PROBE),
)  # fmt: skip

CASES = (
    *(
        Case(
            alert,
            severity,
            gauge(name, over, where),
            seconds,
            value,
            where,
            (gauge(name, line, where),),
        )
        for alert, severity, name, over, line, seconds, value, where in LINES
    ),
    ended("AuditWritesFailing", "fwdb_audit_failures_total", PROCESS),
    ended("ConnectionPoolTimeouts", "db_connection_pool_timeouts_total"),
    Case(
        "DatabaseUnhealthy",
        "critical",
        # The process that watches ends at 150 s, and the database is still down.
        gauge("db_health_status", "0+0x10 stale", MONGODB),
        60,
        "0",
        MONGODB,
        (gauge("db_health_status", "1", MONGODB),),
        still_at=435,
        gone_at=465,
    ),
    Case(
        "SlowQueries",
        "warning",
        requests(5.2, 0.948 * 5.2),
        # The fifth request of a counter from 0 comes after 288 s; then the five minutes begin.
        300 + 300,
        "5.2%",
        # 200 quick operations a second are load, not slowness; four slow ones are chance.
        quiet=(requests(5.2, 0.952 * 5.2), requests(4.8, 0), requests(60_000, 60_000)),
    ),
    Case(
        "SlowQueries",
        "warning",
        # All quick for 20 minutes, then one in six: both halves are of the same 5 minutes.
        requests(60, 60)
        | {name: "0+3x80 240.5+0.5x80" for name in requests(60, 60) if "_bucket" in name},
        1_230 + 300,
        "83.33%",
    ),
    Case(
        "DatabaseQueryErrors",
        "warning",
        failures(20.5, 0.052 * 20.5),
        300 + 300,
        "5.2%",
        quiet=(failures(20.5, 0.048 * 20.5), failures(19.5, 19.5), failures(0, 0)),
    ),
    Case(
        "LowCacheHitRatio",
        "warning",
        blocks(10_300, 0.795 * 10_300),
        # The 10,000th block comes after 583 s; then the ten minutes begin.
        585 + 600,
        "79.5%",
        # An idle server, and one that has just started and reads little.
        quiet=(blocks(10_300, 0.805 * 10_300), blocks(9_700, 0), blocks(0, 0)),
    ),
    Case(
        "HighReplicationLag",
        "warning",
        gauge("db_replication_lag_seconds", "5.2"),
        120,
        "5.2s",
        quiet=(gauge("db_replication_lag_seconds", "5"), {}),
    ),
    Case(
        "ReplicaLost",
        "critical",
        gauge("db_replication_replicas", "2+0x3 1+0x1500"),
        240 + 300,
        "1",
        quiet=(gauge("db_replication_replicas", "0"), gauge("db_replication_replicas", "1")),
        still_at=86_400,
        gone_at=86_400 + 300,
        step_seconds=60,
        quiet_at=6_000,
    ),
    Case(
        "ReplicaMissing",
        "critical",
        pair("db_replication_replicas", "1", "db_replication_replicas_expected", "2"),
        300,
        "1",
        quiet=(
            pair("db_replication_replicas", "2", "db_replication_replicas_expected", "2"),
            gauge("db_replication_replicas", "0"),
        ),
    ),
    Case(
        "AuditUncovered",
        "critical",
        gauge("fwdb_audit_uncovered", "1", TRIGGER),
        600,
        "1",
        TRIGGER,
        (gauge("fwdb_audit_uncovered", "0", TRIGGER), gauge("fwdb_audit_uncovered", "1", FOLLOWER)),
    ),
    Case(
        "AuditFollowerDown",
        "critical",
        gauge("fwdb_audit_uncovered", "1", FOLLOWER),
        300,
        "1",
        FOLLOWER,
        (
            gauge("fwdb_audit_uncovered", "0", FOLLOWER),
            gauge("fwdb_audit_uncovered", "1", f'{MONGODB}, kind="collection"'),
        ),
    ),
    Case(
        "AuditGap",
        "warning",
        gauge("fwdb_audit_gaps", "1+0x8 2+0x1500", PROCESS),
        1_350,
        "2",
        PROCESS,
        (gauge("fwdb_audit_gaps", "2+0x1500", PROCESS),),
        # The last sample with one was 1,200 s in; a day later it is out of sight.
        still_at=87_450,
        gone_at=87_750,
        quiet_at=87_450,
        step_seconds=150,
    ),
    Case(
        "AuditMonthsMissing",
        "warning",
        gauge("fwdb_audit_months_ahead", "1.9+0x500", PROCESS),
        3_600,
        "1.9",
        PROCESS,
        (gauge("fwdb_audit_months_ahead", "2+0x500", PROCESS),),
        quiet_at=7_200,
    ),
    Case(
        "AuditSealStale",
        "warning",
        pair(
            "fwdb_audit_seal_age_seconds",
            "129600+0x3 129601+0x60",
            "fwdb_audit_unsealed_rows",
            "1",
            PROCESS,
        ),
        60,
        "1d 12h 0m 1s",
        PROCESS,
        (pair("fwdb_audit_seal_age_seconds", "129601", "fwdb_audit_unsealed_rows", "0", PROCESS),),
    ),
    Case(
        "HighConnectionPoolUsage",
        "critical",
        gauge("db_connection_pool_utilization", "96+0x16"),
        60,
        "96",
        # 95 % is a warning after five minutes; a minute of it is none.
        quiet=(gauge("db_connection_pool_utilization", "95+0x16"),),
        quiet_at=225,
    ),
    Case(
        "ConnectionPoolStarved",
        "critical",
        gauge("db_connection_pool_size", "1", f'{POSTGRES}, state="waiting"'),
        60,
        "1",
        f'{POSTGRES}, state="waiting"',
        (
            gauge("db_connection_pool_size", "0", f'{POSTGRES}, state="waiting"'),
            gauge("db_connection_pool_size", "90", f'{POSTGRES}, state="active"'),
        ),
    ),
    Case(
        "DatabaseMetricsDown",
        "critical",
        gauge("up", "0", PROCESS),
        120,
        "0",
        PROCESS,
        (gauge("up", "1", PROCESS), gauge("up", "0", 'job="another", instance="app:1"')),
    ),
    Case(
        "DatabaseMetricsAbsent",
        "critical",
        gauge("db_health_status", "1"),
        300,
        "1",
        'job="fwdb", database="mongodb"',
        (gauge("db_health_status", "1") | gauge("db_health_status", "0", MONGODB),),
    ),
    Case(
        "ReportRunFailed",
        "warning",
        gauge("fwdb_report_last_run_success", "1+0x8 0+0x160", REPORT),
        135,
        "0",
        REPORT,
        (gauge("fwdb_report_last_run_success", "1", REPORT),),
    ),
    Case(
        "ReportRunStale",
        "warning",
        gauge("fwdb_report_last_success_timestamp_seconds", "0+0x500", REPORT),
        129_600 + 300,
        "1d 12h 5m 0s",
        REPORT,
        step_seconds=300,
    ),
)
