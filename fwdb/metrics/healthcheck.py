"""Health for machines: the shape of @nestjs/terminus, and nothing that helps an intruder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from fwdb.monitoring import Health, StoreHealth
from fwdb.stores import PoolStats

# Whoever may read an endpoint may ask it often; a server answers them all with one question. So
# short, because an answer must be right within 1.5 s, and a silent server takes 1 s of them.
MAX_AGE_SECONDS = 0.25

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


class SharedHealth:
    """The answer of `ask`, one for all who want it at the same moment."""

    def __init__(self, ask: Callable[[], Health], *, max_age: float = MAX_AGE_SECONDS) -> None:
        self._ask = ask
        self._max_age = max_age
        self._lock = threading.Lock()
        self._last: tuple[float, Health] | None = None

    def read(self) -> Health:
        """Of the last quarter of a second, else asked now."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > self._max_age:
                found = self._ask()
                self._last = (time.monotonic(), found)
            return self._last[1]


def overall(health: Health) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of ``/health``."""
    return _body({store.database: _entry(store) for store in health.stores})


def detailed(
    health: Health, pools: dict[str, PoolStats], schema: tuple[str | None, str] | None
) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of ``/health/database``: pools and the schema's revision too.

    `schema` is the revision of the database and that of this release, None when not known.
    """
    entries = {store.database: _entry(store) for store in health.stores}
    for name, pool in pools.items():
        entries[name]["pool"] = _pool(pool)
    if schema is not None:
        current, head = schema
        entries["postgres"]["schema"] = {"current": current, "head": head}
    return _body(entries)


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


def _body(entries: dict[str, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    down = {name: entry for name, entry in entries.items() if entry["status"] == "down"}
    degraded = any(entry["status"] == "degraded" for entry in entries.values())
    status = "error" if down else "degraded" if degraded else "ok"
    return (503 if down else 200), {
        "status": status,
        "info": {name: entry for name, entry in entries.items() if name not in down},
        "error": down,
        "details": entries,
    }
