"""Health for machines: the shape of @nestjs/terminus, and nothing that helps an intruder."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fwdb.monitoring import Health, StoreHealth
from fwdb.stores import PoolStats

# Fixed sentences: what a driver says holds hosts and users.
SENTENCES = {
    "no_answer": "it did not answer in time",
    "unreachable": "no connection could be made",
    "login_refused": "it refused the user or the password",
    "not_allowed": "the user may not ask it",
    "too_old": "its version is older than fwdb supports",
    "error": "it answered with an error",
    "slow": "it answers slowly",
    "read_only": "it takes no writes",
    "pool_full": "all connections of this process's pool are in use",
    "schema_behind": "its schema is not that of this release; run 'fwdb migrate'",
}


def answer(
    health: Health,
    pools: Mapping[str, PoolStats] = MappingProxyType({}),
    schema: tuple[str | None, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of ``/health``; with `pools` and `schema` of ``/health/database``.

    `schema` is the revision of the database and that of this release, None when not known.
    """
    entries = {store.database: _entry(store) for store in health.stores}
    for name, pool in pools.items():
        entries[name]["pool"] = _pool(pool)
    if schema is not None:
        current, head = schema
        entries["postgres"]["schema"] = {"current": current, "head": head}
    down = {name: entry for name, entry in entries.items() if entry["status"] == "down"}
    status = {"up": "ok", "degraded": "degraded", "down": "error"}[health.status]
    return (503 if down else 200), {
        "status": status,
        "info": {name: entry for name, entry in entries.items() if name not in down},
        "error": down,
        "details": entries,
    }


def _entry(store: StoreHealth) -> dict[str, Any]:
    entry: dict[str, Any] = {"status": store.status}
    if store.latency_ms is not None:
        entry["responseTime"] = round(store.latency_ms, 3)
    if store.version is not None:
        entry["version"] = store.version
    if store.causes:
        entry["message"] = "; ".join(SENTENCES[cause] for cause in store.causes)
    return entry


def _pool(pool: PoolStats) -> dict[str, Any]:
    return {
        "total": pool.in_use + pool.idle,
        "active": pool.in_use,
        "idle": pool.idle,
        "waiting": pool.waiting,
        "capacity": pool.capacity,
        "utilization": pool.utilisation_percent,
    }
