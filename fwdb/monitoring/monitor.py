"""`Monitor`: the questions about pools, statements, servers and their history."""

from __future__ import annotations

from fwdb.arguments import checks_arguments
from fwdb.monitoring import cache as caches
from fwdb.monitoring import health as healths
from fwdb.monitoring import history, plans, pools, relations, replication, sampler, servers
from fwdb.monitoring import sessions as connections
from fwdb.monitoring import slow_queries as statements
from fwdb.monitoring.context import Context


@checks_arguments
class Monitor(Context):
    """Questions about both stores. Asks on connections of its own, outside the pools it watches.

    `since` and `until` take what `fwdb.timespan.moment` reads: a span (``24h``), an ISO time
    with a zone, a datetime. A window is answered from the readings that `sample`, `sampling` or
    `run` stored; `live_seconds` needs no history and watches for so long instead. Readings are
    kept in the database that is watched, or in `history`. `behind` says of a store why its
    schema is not the one wanted, for `health`.
    """

    # Connections of this process, and of the servers.
    pool = pools.pool
    holders = pools.holders
    pool_history = pools.pool_history
    pool_durations = pools.pool_durations
    sessions = connections.sessions
    session_limit = connections.session_limit
    session_limits = connections.session_limits
    idle_transactions = connections.idle_transactions
    blocking = connections.blocking
    wait_events = connections.wait_events

    # What the servers were asked, and how long it took.
    slow_queries = statements.slow_queries
    query_changes = statements.query_changes
    plan = plans.plan
    logged_plans = plans.logged_plans

    # The servers themselves.
    health = healths.health
    cache_hit_ratio = caches.cache_hit_ratio
    cache = caches.cache
    replication_lag = replication.replication_lag
    replicas = replication.replicas
    tables = relations.tables
    indexes = relations.indexes
    vacuum_holders = relations.vacuum_holders
    disabled_triggers = relations.disabled_triggers
    profiler_level = servers.profiler_level
    server_facts = servers.server_facts
    changes = servers.changes
    trends = servers.trends

    # The history that windows are answered from.
    readings = history.readings
    sample = sampler.sample
    sampling = sampler.sampling
    run = sampler.run
    prune = sampler.prune
