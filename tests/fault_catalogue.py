"""The catalogue of faults: how each is made, which checks name it, and what they are to say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import fault_helpers as faults
from fault_helpers import Facts, Scene


@dataclass(frozen=True)
class Said:
    """What one check is to say: `sentence` has the culprit, `action` what helps."""

    check: str
    sentence: str
    action: str
    status: tuple[str, ...] = ("warning", "critical")
    database: str = "postgres"


@dataclass(frozen=True)
class Fault:
    """One fault: how it is made, what the reports say of it, and the parameters they are given."""

    name: str
    made: Callable[[Scene], AbstractContextManager[Facts]]
    said: tuple[Said, ...]
    given: dict[str, Any] = field(default_factory=dict)


WINDOW = {"since": "1h"}

FAULTS = (
    Fault(
        "lock chain",
        faults.lock_chain,
        tuple(
            Said(
                check,
                "2 sessions wait for session {root} of migration, idle in transaction",
                "pg_terminate_backend({root})",
            )
            for check in ("pool.blocked", "health.blocked")
        ),
    ),
    Fault(
        "idle in transaction",
        faults.idle_in_transaction,
        (
            Said(
                "pool.idle_in_transaction",
                "Session {pid} of forgetful has been idle inside a transaction",
                "idle_in_transaction_session_timeout",
            ),
            Said(
                "pool.idle_in_transaction",
                "`SELECT count(*) FROM shared.users WHERE email = ?`",
                "pg_terminate_backend({pid})",
            ),
        ),
    ),
    Fault(
        "leaked connection",
        faults.leaked_connection,
        (
            Said(
                "pool.holders",
                "1 PostgreSQL connection of this process was not returned",
                "with db.postgres.connection()",
            ),
            Said("pool.holders", "test_faults.py:", "Return it"),
        ),
    ),
    Fault(
        "pool too small",
        faults.pool_too_small,
        (
            Said(
                "pool.sizing",
                "the one of crowded (process {me}) may open 1",
                "FWDB_POOL_MAX_OVERFLOW",
            ),
            Said(
                "pool.waiting",
                "Callers of crowded (process {me}) had to wait for a PostgreSQL connection",
                "Find what holds PostgreSQL connections",
            ),
        ),
    ),
    Fault(
        "queue with time-outs",
        faults.queue_with_timeouts,
        (
            Said(
                "pool.timeouts",
                "2 callers of queueing (process {me}) gave up waiting for a PostgreSQL connection",
                "free or add PostgreSQL connections",
            ),
            Said(
                "pool.utilisation",
                "The PostgreSQL pool of queueing (process {me}) was 100 % full",
                "Shorten its transactions",
            ),
        ),
    ),
    Fault(
        "limit of the database",
        faults.limit_of_the_database,
        (
            Said(
                "pool.session_limits",
                "sessions of the database {name} are taken",
                "ALTER DATABASE {name} CONNECTION LIMIT 2",
            ),
        ),
    ),
    Fault(
        "missing index",
        faults.missing_index,
        (
            Said(
                "slow_queries.mean",
                "`SELECT sum(n) FROM orders WHERE buyer = $1`",
                "CREATE INDEX CONCURRENTLY ON orders (buyer);",
            ),
        ),
        WINDOW | {"min_ms": 0.5},
    ),
    Fault(
        "spill to disk",
        faults.spill_to_disk,
        (
            Said(
                "slow_queries.spill",
                "`SELECT n FROM orders ORDER BY -n",
                "SET work_mem = '8MB'",
            ),
        ),
        WINDOW | {"order": "temp"},
    ),
    Fault(
        "slower statement",
        faults.slower_statement,
        (
            Said(
                "slow_queries.regression",
                "times as long (95 % ",
                "Look at what changed around `SELECT price($1)`",
            ),
            Said("slow_queries.regression", "for `SELECT price($1)`", "query_changes"),
        ),
        WINDOW | {"compare_since": "2h"},
    ),
    Fault(
        "N+1 pattern",
        faults.once_for_each_row,
        (
            Said(
                "slow_queries.repeated",
                "`SELECT id FROM lines WHERE order_id = $1` was called 1\u202f200 times, once for "
                "each row that `SELECT id FROM orders` returned (N+1)",
                "JOIN",
            ),
        ),
        WINDOW,
    ),
    Fault(
        "collection scan",
        faults.collection_scan,
        (
            Said(
                "slow_queries.mean",
                "`orders.find({{buyer: ?}})`",
                ".explain('executionStats')",
                database="mongodb",
            ),
        ),
        WINDOW | {"min_ms": 0.01},
    ),
    Fault(
        "long transaction",
        faults.vacuum_held,
        (
            Said(
                "health.vacuum_held",
                "forgotten (process {pid}) has kept vacuum from removing dead rows",
                "pg_terminate_backend({pid})",
            ),
        ),
    ),
    Fault(
        "bloat",
        faults.bloat,
        (
            Said(
                "health.dead_rows",
                "50 % of the row versions in public.bloated are dead: 15\u202f000",
                "VACUUM (ANALYZE) public.bloated",
            ),
        ),
    ),
    Fault(
        "disabled trigger",
        faults.disabled_trigger,
        (
            Said(
                "health.triggers",
                "Trigger watch of shared.users is switched off",
                "ALTER TABLE shared.users ENABLE TRIGGER watch",
            ),
        ),
    ),
    Fault(
        "schema behind",
        faults.schema_behind,
        (
            Said("health.schema", "The database has no revision of fwdb", "fwdb migrate"),
            Said("health.answer", "PostgreSQL is degraded", "fwdb health"),
        ),
    ),
    Fault(
        "bad indexes",
        faults.bad_indexes,
        (
            Said(
                "health.invalid_indexes",
                "Index broken of public.t",
                "DROP INDEX CONCURRENTLY public.broken",
            ),
            Said(
                "health.duplicate_indexes",
                "Index two of public.t",
                "DROP INDEX CONCURRENTLY public.two",
            ),
        ),
    ),
    Fault(
        "unused index",
        faults.unused_index,
        (
            Said(
                "health.unused_indexes",
                "Index forgotten of public.t (1.1\u202fMB) was not used",
                "DROP INDEX CONCURRENTLY public.forgotten",
            ),
        ),
    ),
    Fault(
        "deadlock",
        faults.deadlock,
        (Said("health.deadlocks", "1 deadlock in the window", "Take locks in one order"),),
    ),
    Fault(
        "setting changed",
        faults.setting_changed,
        (
            Said(
                "health.changes",
                "Changed in the window: log_min_duration_statement from 100ms to 123ms",
                "",
                status=("ok",),
            ),
        ),
    ),
    Fault(
        "read-only database",
        faults.read_only_database,
        (
            Said(
                "health.answer",
                "takes no writes unless a session asks for them (default_transaction_read_only",
                "fwdb health",
            ),
        ),
    ),
    Fault(
        "slot without a reader",
        faults.slot_without_reader,
        (
            Said(
                "health.slots",
                "Slot left_behind, which no replica uses, keeps",
                "pg_drop_replication_slot('left_behind')",
            ),
            Said(
                "health.replicas",
                "replica of slot left_behind is not connected",
                "pg_drop_replication_slot('left_behind')",
            ),
        ),
    ),
)
