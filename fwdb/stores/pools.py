"""Pools that know who waits and who holds: what a pool of either driver tells about itself."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter
from typing import Any

from pymongo import monitoring
from sqlalchemy import exc
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool.base import ConnectionPoolEntry
from sqlalchemy.util import queue

from fwdb.stores.durations import Counting, Durations

_anew: list[weakref.WeakMethod[Callable[[], None]]] = []


def anew_in_child(begin: Callable[[], None]) -> None:
    """Call `begin`, a method, in each process that is forked off, while its object lives.

    Sockets, and locks that a thread held which the child does not have, are the parent's.
    """
    _anew[:] = [one for one in _anew if one() is not None]
    _anew.append(weakref.WeakMethod(begin))


def _begin_anew() -> None:
    for one in _anew:
        if (begin := one()) is not None:
            begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

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
        self._lock = threading.RLock()
        self.waiting = self.peak = self.timeouts = 0
        self.opened = self.closed = self.invalidated = 0
        self.wait, self.hold, self.dial = Counting(), Counting(), Counting()
        # Lent connections: since when, and the thread that took it. Single operations on a
        # dictionary are atomic, so the ordinary checkout takes no lock for it.
        self.held: dict[object, tuple[float, int]] = {}

    def begin_wait(self) -> float:
        with self._lock:
            self.waiting += 1
            self.peak = max(self.peak, self.waiting)
        return perf_counter()

    def end_wait(self, started: float) -> None:
        self.wait.add(perf_counter() - started)
        with self._lock:
            self.waiting -= 1

    def timed_out(self) -> None:
        with self._lock:
            self.timeouts += 1

    def connection_closed(self, *_: object) -> None:
        with self._lock:
            self.closed += 1

    def connection_invalidated(self, *_: object) -> None:
        with self._lock:
            self.invalidated += 1

    @contextmanager
    def dialling(self, record: object) -> Iterator[None]:
        """Times the opening of a connection; a hold that already runs begins when it is open."""
        started = perf_counter()
        yield
        now = perf_counter()
        self.dial.add(now - started)
        with self._lock:
            self.opened += 1
        if record in self.held:
            self.held[record] = (now, get_ident())

    def holds(self, database: str) -> list[Hold]:
        """The connections that are lent now, longest first."""
        now = perf_counter()
        lent = self.held.copy().values()  # in one step, while others go on
        found = [Hold(database, now - since, thread) for since, thread in lent]
        return sorted(found, key=lambda hold: -hold.seconds)


class WaitCountingPool(QueuePool):
    """SQLAlchemy's QueuePool, which counts neither waits nor holds, with both.

    SQLAlchemy has no event before a caller waits, so this overrides the two methods that take a
    connection out and put it back; they do what the originals do, in the same order. A caller
    waits when no connection is idle and no further one may be opened.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.usage = Usage()

    def recreate(self) -> WaitCountingPool:
        fresh = super().recreate()
        assert isinstance(fresh, WaitCountingPool)
        fresh.usage = self.usage
        return fresh

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            record = self._pool.get(False)
        except queue.Empty:
            # Outside of "except": an error from here has nothing to do with an empty queue.
            record = None
        if record is None:
            record = self._wait() if self._is_full() else super()._do_get()
        self.usage.held[record] = (perf_counter(), get_ident())
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        usage = self.usage
        held = usage.held.pop(record, None)
        if held is not None:
            usage.hold.add(perf_counter() - held[0])
        QueuePool._do_return_conn(self, record)  # super() would take a tenth of all this

    def _is_full(self) -> bool:
        return self._overflow >= self._max_overflow > -1

    def _wait(self) -> ConnectionPoolEntry:
        started = self.usage.begin_wait()
        try:
            return self._pool.get(True, self._timeout)
        except queue.Empty:
            full = self._is_full()
        finally:
            self.usage.end_wait(started)
        if full:
            self.usage.timed_out()
            raise exc.TimeoutError(
                f"all {self.size() + self._max_overflow} connections of the pool are in use, and "
                f"none came back within {self._timeout:g} s",
                code="3o7r",  # SQLAlchemy's page about this error
            )
        return super()._do_get()  # one was closed in the meantime, so another may be opened

    def stats(self, database: str) -> PoolStats:
        """What this pool holds now; `database` is the store's name."""
        unlimited = self._max_overflow < 0
        usage = self.usage
        return PoolStats(
            database=database,
            capacity=None if unlimited else self.size() + self._max_overflow,
            in_use=self.checkedout(),
            idle=self.checkedin(),
            overflow=max(0, self.overflow()),  # starts at -size
            waiting=usage.waiting,
            waiting_peak=usage.peak,
            timeouts=usage.timeouts,
            opened=usage.opened,
            closed=usage.closed,
            invalidated=usage.invalidated,
            wait=usage.wait.read(),
            hold=usage.hold.read(),
            dial=usage.dial.read(),
        )


_Key = tuple[Any, int]  # the address of a server, and the number of a connection to it


class _Checkout:
    """A caller between asking for a connection and getting one."""

    __slots__ = ("dialled", "dialling_since", "queues", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.dialling_since: float | None = None
        self.dialled = 0.0
        self.queues = False  # there was no connection for it, and it might not dial one

    def queued_seconds(self, now: float) -> float:
        """Time spent in the queue: dialling a connection of one's own is not queueing."""
        dialling = 0.0 if self.dialling_since is None else now - self.dialling_since
        return now - self.started - self.dialled - dialling


class MongoPoolListener(monitoring.ConnectionPoolListener):
    """The pool of a MongoClient, from its events, which come in the thread of the caller.

    One client has one pool per server; the numbers are their sum. They count checkouts and not
    operations: the driver tries a read that failed a second time, with a checkout of its own.
    """

    def __init__(self, capacity: int | None, *, max_connecting: int = MAX_CONNECTING) -> None:
        self.usage = Usage()
        self._lock = threading.RLock()  # as in `Usage`
        self._capacity = capacity
        self._max_connecting = max_connecting
        self._open = 0
        self._checkouts: dict[int, _Checkout] = {}  # by thread: one asks for one at a time
        self._dials: dict[_Key, float] = {}

    def stats(self, database: str) -> PoolStats:
        """What the pool holds now; `database` is the store's name."""
        usage = self.usage
        with self._lock:
            return PoolStats(
                database=database,
                capacity=self._capacity,
                in_use=self._in_use(),
                idle=self._idle(),
                overflow=0,
                waiting=self._waiting(),
                waiting_peak=usage.peak,
                timeouts=usage.timeouts,
                opened=usage.opened,
                closed=usage.closed,
                invalidated=usage.invalidated,
                wait=usage.wait.read(),
                hold=usage.hold.read(),
                dial=usage.dial.read(),
            )

    def _in_use(self) -> int:
        dialling = sum(c.dialling_since is not None for c in self._checkouts.values())
        return len(self.usage.held) + dialling

    def _idle(self) -> int:
        return max(0, self._open - len(self.usage.held) - len(self._dials))

    def _waiting(self) -> int:
        """Callers that queue, of whom the most at once are noted."""
        waiting = sum(c.queues and c.dialling_since is None for c in self._checkouts.values())
        self.usage.peak = max(self.usage.peak, waiting)
        return waiting

    def _fill(self) -> None:
        """After the pool may have become full: whoever has no connection yet queues for one.

        The time alone would not tell: on a busy machine a checkout takes milliseconds too.
        """
        full = self._capacity is not None and self._in_use() >= self._capacity
        if full or (len(self._dials) >= self._max_connecting and not self._idle()):
            for checkout in self._checkouts.values():
                checkout.queues |= checkout.dialling_since is None
            self._waiting()

    def _leave(self, *, timed_out: bool = False) -> None:
        """This thread's caller has a connection, or an error."""
        checkout = self._checkouts.pop(get_ident(), None)
        if checkout is not None and (checkout.queues or timed_out):
            self.usage.wait.add(checkout.queued_seconds(perf_counter()))

    def connection_check_out_started(
        self, event: monitoring.ConnectionCheckOutStartedEvent
    ) -> None:
        with self._lock:
            self._checkouts[get_ident()] = _Checkout(perf_counter())
            self._fill()

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        with self._lock:
            self._leave()
            key = (event.address, event.connection_id)
            self.usage.held[key] = (perf_counter(), get_ident())
            self._fill()

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        timed_out = event.reason == monitoring.ConnectionCheckOutFailedReason.TIMEOUT
        with self._lock:
            self._leave(timed_out=timed_out)
            self.usage.timeouts += timed_out

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        held = self.usage.held.pop((event.address, event.connection_id), None)
        if held is not None:
            self.usage.hold.add(perf_counter() - held[0])

    def connection_created(self, event: monitoring.ConnectionCreatedEvent) -> None:
        now = perf_counter()
        with self._lock:
            self._open += 1
            self._dials[event.address, event.connection_id] = now
            if checkout := self._checkouts.get(get_ident()):
                checkout.dialling_since = now
            self._fill()

    def connection_ready(self, event: monitoring.ConnectionReadyEvent) -> None:
        now = perf_counter()
        with self._lock:
            self.usage.opened += 1
            self._end_dial((event.address, event.connection_id), now, ready=True)

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        key = (event.address, event.connection_id)
        with self._lock:
            self._open -= 1
            if key in self._dials:  # it never came to be open
                self._end_dial(key, perf_counter(), ready=False)
                return
            self.usage.closed += 1
            self.usage.invalidated += event.reason in (
                monitoring.ConnectionClosedReason.ERROR,
                monitoring.ConnectionClosedReason.STALE,
            )

    def _end_dial(self, key: _Key, now: float, *, ready: bool) -> None:
        started = self._dials.pop(key, now)
        if ready:
            self.usage.dial.add(now - started)
        checkout = self._checkouts.get(get_ident())
        if checkout is not None and checkout.dialling_since is not None:
            checkout.dialled += now - checkout.dialling_since
            checkout.dialling_since = None

    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None:
        """A pool without connections changes none of the numbers."""

    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None:
        """Readiness changes none of the numbers."""

    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None:
        """Each connection that a clear ends is told by an event of its own."""

    def pool_closed(self, event: monitoring.PoolClosedEvent) -> None:
        """Each connection that closes is told by an event of its own."""
