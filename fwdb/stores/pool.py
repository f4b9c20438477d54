"""Pools that know who waits and who holds: what a pool of either driver tells about itself."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter
from typing import Any

from pymongo import monitoring
from sqlalchemy import event, exc
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool.base import ConnectionPoolEntry
from sqlalchemy.util import queue

from fwdb.stores.timing import Durations, Histogram

# Connections that pymongo dials at the same time to one server, unless the URL says otherwise.
MAX_CONNECTING = 2


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One pool of this process at one moment.

    `capacity` is the most connections it may open, None when unlimited; `in_use` are those lent
    to callers now, those being dialled for one included. `waiting` are callers that queue for a
    connection now, `waiting_peak` the most there ever were; an idle connection waits for nobody.
    `timeouts`, `opened`, `closed` and `invalidated` (broken, or taken for broken; closed as well)
    count since the pool was made, and so do the durations: of waits, of callers that had to
    queue only; of holds that have ended; of dials, until a new connection was ready for use.
    """

    database: str
    capacity: int | None
    in_use: int
    idle: int
    overflow: int
    waiting: int
    waiting_peak: int
    timeouts: int
    opened: int
    closed: int
    invalidated: int
    wait: Durations
    hold: Durations
    dial: Durations

    @property
    def waits(self) -> int:
        """Waits that have ended, by a connection or by a timeout."""
        return self.wait.count

    @property
    def wait_ms(self) -> float:
        """The time of all these waits together."""
        return self.wait.total_ms

    @property
    def utilisation_percent(self) -> float | None:
        """Connections in use as a share of capacity, 0 to 100; None for an unlimited pool."""
        return None if self.capacity is None else 100.0 * self.in_use / self.capacity


@dataclass(frozen=True, slots=True)
class Hold:
    """A connection that is lent now: for how long, and to which thread (its `ident`)."""

    database: str
    seconds: float
    thread_id: int


class Usage:
    """What happened to the connections of one pool since it was made."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may return a lost connection at any moment.
        self.lock = threading.RLock()
        self.waiting = self.waiting_peak = self.timeouts = 0
        self.opened = self.closed = self.invalidated = 0
        self.wait, self.hold, self.dial = Histogram(), Histogram(), Histogram()
        # Lent connections: since when, and the thread that took it. Single operations on a
        # dictionary are atomic, so the ordinary checkout takes no lock for it.
        self._held: dict[object, tuple[float, int]] = {}

    @property
    def lent(self) -> int:
        return len(self._held)

    def count(self, what: str) -> None:
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)

    def dialled(self, seconds: float) -> None:
        self.dial.add(seconds)
        self.count("opened")

    def lend(self, connection: object) -> None:
        self._held[connection] = (perf_counter(), get_ident())

    def give_back(self, connection: object) -> None:
        held = self._held.pop(connection, None)
        if held is not None:
            self.hold.add(perf_counter() - held[0])

    def holds(self, database: str) -> list[Hold]:
        """The connections that are lent now, longest first."""
        now = perf_counter()
        lent = self._held.copy().values()  # in one step, while others go on
        found = [Hold(database, now - since, thread) for since, thread in lent]
        return sorted(found, key=lambda hold: -hold.seconds)

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """A caller that waits while the block runs."""
        with self.lock:
            self.waiting += 1
            self.waiting_peak = max(self.waiting_peak, self.waiting)
        started = perf_counter()
        try:
            yield
        finally:
            self.wait.add(perf_counter() - started)
            with self.lock:
                self.waiting -= 1

    def stats(
        self, database: str, *, capacity: float, in_use: int, idle: int, overflow: int = 0
    ) -> PoolStats:
        counted = ("timeouts", "opened", "closed", "invalidated", "waiting", "waiting_peak")
        return PoolStats(
            database=database,
            capacity=None if math.isinf(capacity) else int(capacity),
            in_use=in_use,
            idle=idle,
            overflow=overflow,
            **{name: getattr(self, name) for name in counted},
            **{name: getattr(self, name).read() for name in ("wait", "hold", "dial")},
        )


class CountingPool(QueuePool):
    """SQLAlchemy's QueuePool, which counts neither waits nor holds, with both.

    SQLAlchemy has no event before a caller waits, so this looks before the pool does. A caller
    waits when no connection is idle and no further one may be opened.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.usage = Usage()
        if "_dispatch" not in kwargs:  # else it has the listeners of the pool that it replaces
            usage = self.usage
            event.listen(self, "checkout", lambda _, record, proxy: usage.lend(record))
            event.listen(self, "checkin", lambda _, record: usage.give_back(record))
            event.listen(self, "close", lambda *_: usage.count("closed"))
            event.listen(self, "close_detached", lambda *_: usage.count("closed"))
            event.listen(self, "invalidate", lambda *_: usage.count("invalidated"))

    def recreate(self) -> CountingPool:
        fresh = super().recreate()
        assert isinstance(fresh, CountingPool)
        fresh.usage = self.usage
        return fresh

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._pool.get(False)
        except queue.Empty:
            pass
        if not self._overflow >= self._max_overflow > -1:
            return super()._do_get()
        with self.usage.queueing():
            try:
                return super()._do_get()
            except exc.TimeoutError:
                self.usage.count("timeouts")
                raise

    def stats(self, database: str) -> PoolStats:
        """What this pool holds now; `database` is the store's name."""
        unlimited = self._max_overflow < 0
        return self.usage.stats(
            database,
            capacity=math.inf if unlimited else self.size() + self._max_overflow,
            in_use=self.checkedout(),
            idle=self.checkedin(),
            overflow=max(0, self.overflow()),  # starts at -size
        )


_Key = tuple[Any, int]  # the address of a server, and the number of a connection to it


@dataclass(slots=True)
class _Checkout:
    """A caller between asking for a connection and getting one."""

    started: float
    dialling_since: float | None = None
    dialled: float = 0.0
    queues: bool = False  # there was no connection for it, and it might not dial one


class MongoPoolListener(monitoring.ConnectionPoolListener):
    """The pool of a MongoClient, from its events, which come in the thread of the caller.

    One client has one pool per server; the numbers are their sum. They count checkouts and not
    operations: the driver tries a read that failed a second time, with a checkout of its own.
    """

    def __init__(self, capacity: int | None, *, max_connecting: int = MAX_CONNECTING) -> None:
        self.usage = Usage()
        self._capacity = math.inf if capacity is None else capacity
        self._max_connecting = max_connecting
        self._open = 0
        self._checkouts: dict[int, _Checkout] = {}  # by thread: one asks for one at a time
        self._dials: dict[_Key, float] = {}

    def stats(self, database: str) -> PoolStats:
        """What the pool holds now; `database` is the store's name."""
        with self.usage.lock:
            return self.usage.stats(
                database, capacity=self._capacity, in_use=self._in_use(), idle=self._idle()
            )

    def _in_use(self) -> int:
        dialling = sum(c.dialling_since is not None for c in self._checkouts.values())
        return self.usage.lent + dialling

    def _idle(self) -> int:
        return max(0, self._open - self.usage.lent - len(self._dials))

    def _look(self) -> None:
        """Who queues: if the pool is full, whoever has no connection yet.

        The time alone would not tell: on a busy machine a checkout takes milliseconds too.
        """
        full = self._in_use() >= self._capacity or (
            len(self._dials) >= self._max_connecting and not self._idle()
        )
        undialled = [c for c in self._checkouts.values() if c.dialling_since is None]
        for checkout in undialled:
            checkout.queues |= full
        self.usage.waiting = sum(checkout.queues for checkout in undialled)
        self.usage.waiting_peak = max(self.usage.waiting_peak, self.usage.waiting)

    def _leave(self, *, timed_out: bool = False) -> None:
        """This thread's caller has a connection, or an error; dialling is not queueing."""
        checkout = self._checkouts.pop(get_ident(), None)
        if checkout is not None and (checkout.queues or timed_out):
            self.usage.wait.add(perf_counter() - checkout.started - checkout.dialled)

    def connection_check_out_started(self, event: Any) -> None:
        with self.usage.lock:
            self._checkouts[get_ident()] = _Checkout(perf_counter())
            self._look()

    def connection_checked_out(self, event: Any) -> None:
        with self.usage.lock:
            self._leave()
            self.usage.lend((event.address, event.connection_id))
            self._look()

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        timed_out = event.reason == monitoring.ConnectionCheckOutFailedReason.TIMEOUT
        with self.usage.lock:
            self._leave(timed_out=timed_out)
            self.usage.timeouts += timed_out
            self._look()

    def connection_checked_in(self, event: Any) -> None:
        self.usage.give_back((event.address, event.connection_id))

    def connection_created(self, event: Any) -> None:
        now = perf_counter()
        with self.usage.lock:
            self._open += 1
            self._dials[event.address, event.connection_id] = now
            if checkout := self._checkouts.get(get_ident()):
                checkout.dialling_since = now
            self._look()

    def connection_ready(self, event: Any) -> None:
        with self.usage.lock:
            self.usage.dialled(self._end_dial(event))

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        with self.usage.lock:
            self._open -= 1
            if (event.address, event.connection_id) in self._dials:  # it never came to be open
                self._end_dial(event)
                return
            self.usage.closed += 1
            self.usage.invalidated += event.reason in (
                monitoring.ConnectionClosedReason.ERROR,
                monitoring.ConnectionClosedReason.STALE,
            )

    def _end_dial(self, event: Any) -> float:
        now = perf_counter()
        checkout = self._checkouts.get(get_ident())
        if checkout is not None and checkout.dialling_since is not None:
            checkout.dialled += now - checkout.dialling_since
            checkout.dialling_since = None
        return now - self._dials.pop((event.address, event.connection_id), now)

    def _changes_nothing(self, event: Any) -> None:
        """Each connection of a pool that is cleared or closed is told by an event of its own."""

    pool_created = pool_ready = pool_cleared = pool_closed = _changes_nothing
