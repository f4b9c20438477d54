"""What the stores of both databases have in common."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any, ClassVar, Self

from pydantic import SecretStr

from fwdb import config
from fwdb.stores.pool import CountingPool, Hold, MongoPoolListener, PoolStats
from fwdb.stores.timing import QueryStats, QueryTimes


class Store:
    """One database. Nothing is dialled before the first question."""

    name: ClassVar[str]
    port: ClassVar[int]
    url: Any  # as it may be shown
    times: QueryTimes
    _connections: CountingPool | MongoPoolListener

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "fwdb",
        settings: config.Settings | None = None,
        monitors: bool = False,
        remedy: str = "",
    ) -> None:
        self.settings = settings or config.settings()
        self.address = config.address(url, self.port)
        self.application_name = application_name
        self.remedy = remedy or f"Check FWDB_{self.name.upper()}_URL."
        self.waits_for = "FWDB_MONITOR_TIMEOUT_SECONDS" if monitors else "FWDB_TIMEOUT_SECONDS"
        self._monitors = monitors
        self._given = SecretStr(url)
        self._local = threading.local()
        self._begin()
        _STORES.add(self)

    def _begin(self) -> None:
        """Begin with no connection and with no counts, as each process does."""
        raise NotImplementedError

    def _ask(self) -> None:
        """An empty question through the pool."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address})"

    def twin(self, *, application_name: str, connections: int = 1, **more: Any) -> Self:
        """A second store on the same database with a small pool of its own.

        For questions about the server: they neither take a connection from the work nor wait
        long behind it: 2 s for a connection, FWDB_MONITOR_TIMEOUT_SECONDS for an answer, and in
        PostgreSQL 100 ms for a lock.
        """
        seconds = self.settings.monitor_timeout_seconds
        small = {
            "pool_size": connections,
            "pool_max_overflow": 0,
            "connect_timeout_seconds": min(2.0, self.settings.connect_timeout_seconds),
            "statement_timeout_seconds": 0.9 * seconds,  # the rest is for saying so
            "timeout_seconds": seconds,
        }
        return type(self)(
            self._given.get_secret_value(),
            application_name=application_name,
            settings=self.settings.model_copy(update=small),
            monitors=True,
            remedy=self.remedy,
            **more,
        )

    def ping(self) -> float:
        """Milliseconds that an empty question took through the pool."""
        started = time.perf_counter()
        self._ask()
        return 1000 * (time.perf_counter() - started)

    def pool(self) -> PoolStats:
        """The connection pool of this process, now."""
        return self._connections.stats(self.name)

    def holds(self) -> list[Hold]:
        """The connections of this process that are lent now, longest first."""
        return self._connections.usage.holds(self.name)

    def query_stats(self) -> QueryStats:
        """What was asked through this store since it was made, and how long it took."""
        return self.times.read()


# Each begins anew in a process that is forked off: sockets, and locks that a thread held which
# the child does not have, are the parent's.
_STORES: weakref.WeakSet[Store] = weakref.WeakSet()


def _begin_anew() -> None:
    for store in list(_STORES):
        store._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
