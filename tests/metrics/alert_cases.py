"""What each alert must do: fire for the series just over its line, and for none just under it.

One sample every 15 s unless a case says otherwise. A series is written as promtool reads it:
``a+bxn`` is a value `a` and `n` further ones that grow by `b`.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_SECONDS = 15
POSTGRES = 'job="fwdb", instance="app:9464", database="postgres"'
MONGODB = 'job="fwdb", instance="app:9464", database="mongodb"'

Series = dict[str, str]


@dataclass(frozen=True)
class Case:
    """`fires` at `fires_at` seconds and not a step before; each of `quiet` never does.

    Of `fires` that end, `still_at` is a moment at which it goes on and `gone_at` one at which it
    is over. `quiet_at` is when the quiet ones are looked at.
    """

    alert: str
    severity: str
    fires: Series
    fires_at: int
    labels: dict[str, str]
    summary: str
    description: str
    quiet: tuple[Series, ...] = ()
    gone_at: int | None = None
    still_at: int | None = None
    quiet_at: int = 2_295
    step_seconds: int = STEP_SECONDS


ONE = {"job": "fwdb", "instance": "app:9464", "database": "postgres"}
TWO = ONE | {"database": "mongodb"}
PROCESS = 'job="fwdb", instance="app:9464"'
PLAIN = {"job": "fwdb", "instance": "app:9464"}


def requests(total: float, fast: float, where: str = POSTGRES) -> Series:
    """So many operations in five minutes, of which so many took no second."""
    step = STEP_SECONDS / 300
    labels = f'{where}, operation="select"'
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


def gauge(name: str, values: str, labels: str = POSTGRES) -> Series:
    return {f"{name}{{{labels}}}": values}


CASES = (
    Case(
        "DatabaseUnhealthy",
        "critical",
        # The process that watches ends at 150 s, and the database is still down.
        gauge("db_health_status", "0+0x10 stale", MONGODB),
        60,
        TWO,
        "mongodb does not answer.",
        "mongodb, asked by app:9464, has given no answer for a minute (db_health_status is 0).",
        quiet=(gauge("db_health_status", "1+0x160", MONGODB),),
        still_at=435,
        gone_at=465,
    ),
    Case(
        "DatabaseDegraded",
        "warning",
        gauge("db_health_degraded", "1+0x160"),
        600,
        ONE,
        "postgres answers, but not as it should.",
        "postgres, asked by app:9464, has been slow, read-only or out of free connections for "
        "10 minutes (db_health_degraded is 1).",
        quiet=(gauge("db_health_degraded", "0+0x160"),),
    ),
    Case(
        "SlowQueries",
        "warning",
        requests(5.2, 0.948 * 5.2),
        # The fifth request of a counter from 0 comes after 288 s; then the five minutes begin.
        300 + 300,
        ONE,
        "Many operations on postgres take longer than a second.",
        "5.2% of the operations on postgres by app:9464 took longer than 1 s in the last "
        "5 minutes; the line is 5 %.",
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
        ONE,
        "Many operations on postgres take longer than a second.",
        "83.33% of the operations on postgres by app:9464 took longer than 1 s in the last "
        "5 minutes; the line is 5 %.",
    ),
    Case(
        "DatabaseQueryErrors",
        "warning",
        failures(20.5, 0.052 * 20.5),
        300 + 300,
        ONE,
        "Many operations on postgres fail.",
        "5.2% of the operations on postgres by app:9464 failed in the last 5 minutes; the line "
        "is 5 %.",
        quiet=(failures(20.5, 0.048 * 20.5), failures(19.5, 19.5), failures(0, 0)),
    ),
    Case(
        "LowCacheHitRatio",
        "warning",
        blocks(10_300, 0.795 * 10_300),
        # The 10,000th block comes after 583 s; then the ten minutes begin.
        585 + 600,
        ONE,
        "The cache of postgres misses too often.",
        "Only 79.5% of the blocks that postgres needed in the last 10 minutes were in its memory; "
        "the line is 80 %.",
        # An idle server, and one that has just started and reads little.
        quiet=(blocks(10_300, 0.805 * 10_300), blocks(9_700, 0), blocks(0, 0)),
    ),
    Case(
        "HighReplicationLag",
        "warning",
        gauge("db_replication_lag_seconds", "5.2+0x160"),
        120,
        ONE,
        "A replica of postgres is far behind.",
        "The slowest replica of postgres is 5.2s behind; the line is 5 s.",
        quiet=(gauge("db_replication_lag_seconds", "5+0x160"), {}),
    ),
    Case(
        "ReplicaLost",
        "critical",
        gauge("db_replication_replicas", "2+0x3 1+0x1500"),
        240 + 300,
        ONE,
        "A replica of postgres is gone.",
        "1 replicas follow postgres; within the last day there were more.",
        quiet=(
            gauge("db_replication_replicas", "0+0x160"),
            gauge("db_replication_replicas", "1+0x160"),
        ),
        still_at=86_400,
        gone_at=86_400 + 300,
        step_seconds=60,
        quiet_at=6_000,
    ),
    Case(
        "ReplicaMissing",
        "critical",
        gauge("db_replication_replicas", "1+0x160")
        | gauge("db_replication_replicas_expected", "2+0x160"),
        300,
        ONE,
        "postgres has fewer replicas than it should.",
        "1 replicas follow postgres, fewer than FWDB_EXPECTED_REPLICAS says.",
        quiet=(
            gauge("db_replication_replicas", "2+0x160")
            | gauge("db_replication_replicas_expected", "2+0x160"),
            gauge("db_replication_replicas", "0+0x160"),
        ),
    ),
    Case(
        "SchemaBehind",
        "warning",
        gauge("db_schema_current", "0+0x160"),
        900,
        ONE,
        "postgres does not have the schema of this release of fwdb.",
        "fwdb at app:9464 expects a newer schema of postgres (db_schema_current is 0).",
        quiet=(gauge("db_schema_current", "1+0x160"),),
    ),
    Case(
        "AuditWritesFailing",
        "critical",
        {'fwdb_audit_failures_total{job="fwdb", instance="app:9464"}': "0+0x8 1+0x160"},
        135,
        {"job": "fwdb", "instance": "app:9464"},
        "Audit entries cannot be written.",
        "1 audit entries of app:9464 could not be written in the last 5 minutes; the changes "
        "they belong to were rolled back.",
        quiet=({'fwdb_audit_failures_total{job="fwdb", instance="app:9464"}': "7+0x160"},),
        still_at=405,
        gone_at=450,
    ),
    Case(
        "AuditUncovered",
        "critical",
        gauge("fwdb_audit_uncovered", "1+0x160", f'{POSTGRES}, kind="trigger"'),
        600,
        ONE | {"kind": "trigger"},
        "Changes in postgres do not get into the audit trail.",
        "1 of the kind 'trigger' in postgres are not captured, as app:9464 sees it; fwdb audit "
        "coverage names them.",
        quiet=(
            gauge("fwdb_audit_uncovered", "0+0x160", f'{POSTGRES}, kind="trigger"'),
            gauge("fwdb_audit_uncovered", "1+0x160", f'{MONGODB}, kind="follower"'),
        ),
    ),
    Case(
        "AuditFollowerDown",
        "critical",
        gauge("fwdb_audit_uncovered", "1+0x160", f'{MONGODB}, kind="follower"'),
        300,
        TWO | {"kind": "follower"},
        "Changes of designs are not followed.",
        "No follower records the changes of mongodb, or it is more than 5 minutes behind "
        "(fwdb_audit_uncovered is 1).",
        quiet=(
            gauge("fwdb_audit_uncovered", "0+0x160", f'{MONGODB}, kind="follower"'),
            gauge("fwdb_audit_uncovered", "1+0x160", f'{MONGODB}, kind="collection"'),
        ),
    ),
    Case(
        "AuditFollowerLagging",
        "warning",
        gauge("fwdb_audit_follower_lag_seconds", "61+0x160", PROCESS),
        300,
        PLAIN,
        "The audit trail is behind the changes of designs.",
        "Changes of designs get into the trail 1m 1s late; the line is 1 minute.",
        quiet=(gauge("fwdb_audit_follower_lag_seconds", "60+0x160", PROCESS),),
    ),
    Case(
        "AuditGap",
        "warning",
        gauge("fwdb_audit_gaps", "1+0x8 2+0x1500", PROCESS),
        1_350,
        PLAIN,
        "Changes of designs were missed.",
        "2 times are now known of which not each change could be followed; within the last day "
        "there were fewer.",
        quiet=(gauge("fwdb_audit_gaps", "2+0x1500", PROCESS),),
        # The last sample with one was 1,200 s in; a day later it is out of sight.
        still_at=87_450,
        gone_at=87_750,
        quiet_at=87_450,
        step_seconds=150,
    ),
    Case(
        "AuditJournalBacklog",
        "warning",
        gauge("fwdb_audit_journal_age_seconds", "601+0x160", PROCESS),
        300,
        PLAIN,
        "Changes wait long to be put into the audit trail.",
        "The oldest change in a journal has waited 10m 1s; the line is 10 minutes.",
        quiet=(gauge("fwdb_audit_journal_age_seconds", "600+0x160", PROCESS),),
    ),
    Case(
        "AuditMonthsMissing",
        "warning",
        gauge("fwdb_audit_months_ahead", "1.9+0x500", PROCESS),
        3_600,
        PLAIN,
        "The audit trail runs out of months.",
        "1.9 months after this one have a partition; when there is none, changes fail.",
        quiet=(gauge("fwdb_audit_months_ahead", "2+0x500", PROCESS),),
        quiet_at=7_200,
    ),
    Case(
        "AuditMonthsMissing",
        "critical",
        gauge("fwdb_audit_months_ahead", "0+0x160", PROCESS),
        300,
        PLAIN,
        "Next month's changes cannot be recorded.",
        "0 months after this one have a partition: the first change of a month without one fails.",
        quiet=(gauge("fwdb_audit_months_ahead", "1+0x160", PROCESS),),
    ),
    Case(
        "AuditSealStale",
        "warning",
        gauge("fwdb_audit_seal_age_seconds", "129600+0x3 129601+0x60", PROCESS)
        | gauge("fwdb_audit_unsealed_rows", "1+0x160", PROCESS),
        60,
        PLAIN,
        "The audit trail is not sealed.",
        "Rows of the trail were last sealed 1d 12h 0m 1s ago; the line is 36 h. What is not sealed "
        "can be altered unseen.",
        quiet=(
            gauge("fwdb_audit_seal_age_seconds", "129601+0x160", PROCESS)
            | gauge("fwdb_audit_unsealed_rows", "0+0x160", PROCESS),
        ),
    ),
    Case(
        "HighConnectionPoolUsage",
        "warning",
        gauge("db_connection_pool_utilization", "81+0x160", MONGODB),
        300,
        TWO,
        "The mongodb pool of app:9464 is filling up.",
        "81 % of the connections that the pool may open are in use; the line is 80 %.",
        quiet=(gauge("db_connection_pool_utilization", "80+0x160", MONGODB),),
    ),
    Case(
        "HighConnectionPoolUsage",
        "critical",
        gauge("db_connection_pool_utilization", "96+0x16"),
        60,
        ONE,
        "The postgres pool of app:9464 is all but full.",
        "96 % of the connections that the pool may open are in use; the line is 95 %.",
        # 95 % is a warning after five minutes; a minute of it is none.
        quiet=(gauge("db_connection_pool_utilization", "95+0x16"),),
        quiet_at=225,
    ),
    Case(
        "ConnectionPoolStarved",
        "critical",
        gauge("db_connection_pool_size", "1+0x160", f'{POSTGRES}, state="waiting"'),
        60,
        ONE | {"state": "waiting"},
        "Callers wait for a postgres connection.",
        "1 callers of app:9464 wait for a connection, and some have done so at every reading of "
        "the last minute.",
        quiet=(
            gauge("db_connection_pool_size", "0+0x160", f'{POSTGRES}, state="waiting"'),
            gauge("db_connection_pool_size", "90+0x160", f'{POSTGRES}, state="active"'),
        ),
    ),
    Case(
        "ConnectionPoolTimeouts",
        "critical",
        gauge("db_connection_pool_timeouts_total", "0+0x8 1+0x160"),
        135,
        ONE,
        "Callers gave up waiting for a postgres connection.",
        "1 callers of app:9464 waited in vain for a connection in the last 5 minutes.",
        quiet=(gauge("db_connection_pool_timeouts_total", "7+0x160"),),
        still_at=405,
        gone_at=450,
    ),
    Case(
        "DatabaseMetricsDown",
        "critical",
        gauge("up", "0+0x160", 'job="fwdb", instance="app:9464"'),
        120,
        {"job": "fwdb", "instance": "app:9464"},
        "app:9464 gives no metrics.",
        "Prometheus could not read app:9464 for 2 minutes (up is 0); what happens to its "
        "databases is not known.",
        quiet=(
            gauge("up", "1+0x160", 'job="fwdb", instance="app:9464"'),
            gauge("up", "0+0x160", 'job="another", instance="app:1"'),
        ),
    ),
    Case(
        "DatabaseMetricsAbsent",
        "critical",
        gauge("db_health_status", "1+0x160"),
        300,
        {"job": "fwdb", "database": "mongodb"},
        "Nothing is known of mongodb.",
        "No process of the job fwdb has told the health of mongodb for 5 minutes (series found: "
        "0, absent gives 1).",
        quiet=(
            gauge("db_health_status", "1+0x160") | gauge("db_health_status", "0+0x160", MONGODB),
        ),
    ),
    Case(
        "DatabaseProbeFailing",
        "warning",
        gauge("fwdb_probe_success", "0+0x160", f'{POSTGRES}, probe="cache"'),
        300,
        ONE | {"probe": "cache"},
        "The question about the cache of postgres fails.",
        "The probe 'cache' of app:9464 has failed for 5 minutes (fwdb_probe_success is 0); its "
        "series are missing.",
        quiet=(gauge("fwdb_probe_success", "1+0x160", f'{POSTGRES}, probe="cache"'),),
    ),
    Case(
        "ReportRunFailed",
        "warning",
        gauge("fwdb_report_last_run_success", "1+0x8 0+0x160", 'report="pool"'),
        135,
        {"report": "pool"},
        "The last run of the report pool failed.",
        "The report pool ended with an error (fwdb_report_last_run_success is 0).",
        quiet=(gauge("fwdb_report_last_run_success", "1+0x160", 'report="pool"'),),
    ),
    Case(
        "ReportRunStale",
        "warning",
        gauge("fwdb_report_last_success_timestamp_seconds", "0+0x500", 'report="pool"'),
        129_600 + 300,
        {"report": "pool"},
        "The report pool is old.",
        "The report pool last ended well 1d 12h 5m 0s ago; the line is 36 h.",
        step_seconds=300,
    ),
)
