"""Pools that know who waits: what a pool of either driver tells about itself."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from pymongo import monitoring
from sqlalchemy import exc
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool.base import ConnectionPoolEntry


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One pool of this process at one moment.

    `capacity` is the most connections it may open, None when unlimited. `waiting` are callers
    that wait for a connection now, `waiting_peak` the most there ever were. `waits`, `wait_ms`
    and `timeouts` count since the pool was made. An idle connection waits for nobody.
    """

    database: str
    capacity: int | None
    in_use: int
    idle: int
    overflow: int
    waiting: int
    waiting_peak: int
    waits: int
    wait_ms: float
    timeouts: int
    opened: int

    @property
    def utilisation_percent(self) -> float | None:
        """Connections in use as a share of capacity, 0 to 100; None for an unlimited pool."""
        return None if self.capacity is None else 100.0 * self.in_use / self.capacity


class _Waiters:
    """Counts callers that wait, from begin to end of the wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.peak = self.waits = self.timeouts = self.opened = 0
        self.wait_ms = 0.0

    def begin(self) -> float:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        return time.perf_counter()

    def end(self, started: float, *, timed_out: bool) -> None:
        with self._lock:
            self.now -= 1
            self.waits += 1
            self.timeouts += timed_out
            self.wait_ms += 1000 * (time.perf_counter() - started)


class WaitCountingPool(QueuePool):
    """SQLAlchemy's QueuePool, which tells no waiters, with a count of them.

    A caller waits when no connection is idle and no further one may be opened; only that slow
    path takes the lock, so an ordinary checkout costs one comparison more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiters = _Waiters()

    def recreate(self) -> WaitCountingPool:
        fresh = super().recreate()
        assert isinstance(fresh, WaitCountingPool)
        fresh.waiters = self.waiters
        return fresh

    def _do_get(self) -> ConnectionPoolEntry:
        if not (self._pool.empty() and self._overflow >= self._max_overflow >= 0):
            return super()._do_get()
        started, timed_out = self.waiters.begin(), False
        try:
            return super()._do_get()
        except exc.TimeoutError:
            timed_out = True
            raise
        finally:
            self.waiters.end(started, timed_out=timed_out)

    def stats(self, database: str) -> PoolStats:
        """What this pool holds now; `database` is the store's name."""
        unlimited = self._max_overflow < 0
        waiters = self.waiters
        return PoolStats(
            database=database,
            capacity=None if unlimited else self.size() + self._max_overflow,
            in_use=self.checkedout(),
            idle=self.checkedin(),
            overflow=max(0, self.overflow()),  # starts at -size
            waiting=waiters.now,
            waiting_peak=waiters.peak,
            waits=waiters.waits,
            wait_ms=waiters.wait_ms,
            timeouts=waiters.timeouts,
            opened=waiters.opened,
        )


class MongoPoolListener(monitoring.ConnectionPoolListener):
    """The pool of a MongoClient, from its events; dialling counts as waiting there.

    One client has one pool per server; the numbers are their sum.
    """

    def __init__(self, capacity: int | None) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._open = self._in_use = self._waiting = 0
        self._peak = self._waits = self._timeouts = self._opened = 0
        self._wait_seconds = 0.0

    def stats(self, database: str) -> PoolStats:
        """What the pool holds now; `database` is the store's name."""
        with self._lock:
            return PoolStats(
                database=database,
                capacity=self._capacity,
                in_use=self._in_use,
                idle=max(0, self._open - self._in_use),
                overflow=0,
                waiting=self._waiting,
                waiting_peak=self._peak,
                waits=self._waits,
                wait_ms=1000 * self._wait_seconds,
                timeouts=self._timeouts,
                opened=self._opened,
            )

    def connection_check_out_started(
        self, event: monitoring.ConnectionCheckOutStartedEvent
    ) -> None:
        with self._lock:
            self._waiting += 1
            self._peak = max(self._peak, self._waiting)

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        with self._lock:
            self._waiting -= 1
            self._in_use += 1
            # Every checkout passes here; only one that took noticeable time was a wait.
            if event.duration is not None and event.duration > 0.001:
                self._waits += 1
                self._wait_seconds += event.duration

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        with self._lock:
            self._waiting -= 1
            self._waits += 1
            self._wait_seconds += event.duration or 0.0
            if event.reason == monitoring.ConnectionCheckOutFailedReason.TIMEOUT:
                self._timeouts += 1

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        with self._lock:
            self._in_use -= 1

    def connection_created(self, event: monitoring.ConnectionCreatedEvent) -> None:
        with self._lock:
            self._open += 1
            self._opened += 1

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        with self._lock:
            self._open -= 1

    def connection_ready(self, event: monitoring.ConnectionReadyEvent) -> None:
        """Readiness changes none of the numbers."""

    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None:
        """A pool without connections changes none of the numbers."""

    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None:
        """Readiness changes none of the numbers."""

    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None:
        """Each connection that a clear ends is told by an event of its own."""

    def pool_closed(self, event: monitoring.PoolClosedEvent) -> None:
        """Each connection that closes is told by an event of its own."""
