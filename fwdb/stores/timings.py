"""How long the statements and commands of a store took, by operation.

Recording costs the caller an append to a list: no lock, no label lookup, no parsing. The values
are counted into buckets when somebody reads them, or when a thousand have gathered.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fwdb.stores.failures import ERROR_TYPES, OTHER, error_type

# The buckets of the existing service (1 ms to 10 s) with three finer ones below: over a local
# socket nearly every command would fall into the first.
BOUNDS_MS = (0.1, 0.25, 0.5, 1, 10, 50, 100, 500, 1000, 5000, 10000)
BOUNDS_SECONDS = tuple(bound / 1000 for bound in BOUNDS_MS)

SUCCESS, ERROR = "success", "error"
CONNECT = "connect"  # no statement was sent, because no connection could be had

# Names that callers give to `track`; a program that builds names from data would add series for
# ever, about 3 kB each here and fourteen samples of each in every scrape.
MOST_NAMES = 100
LONGEST_NAME = 100

OWN = "/* fwdb */"  # ends every question that fwdb asks about a server

GATHERED = 1000  # values of one series that wait to be counted: 32 kB, and 0.2 ms of work


class Timed(NamedTuple):
    """What ended with one `status` (``success`` or ``error``) under one name.

    `counts` has one cell per bound of `BOUNDS_SECONDS`, up to it and above the one before, and
    one beyond all; `seconds` is the sum of the times.
    """

    operation: str
    status: str
    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class QueryStats:
    """Everything that ended since the store was made.

    `errors` has every one of `ERROR_TYPES`. `slow` counts what took at least the threshold of the
    settings, `folded` the calls of `track` whose name was one too many and became ``other``.
    """

    series: tuple[Timed, ...]
    errors: dict[str, int]
    slow: int
    folded: int


class Gathering(deque[float]):
    """Times of one series that are not counted yet; a thread appends, whoever reads counts."""

    __slots__ = ("counts", "last", "seconds")

    def __init__(self, maxlen: int | None = None) -> None:
        super().__init__(maxlen=maxlen)
        self.counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self.seconds = 0.0
        self.last: Timed | None = None  # what was read last, until something is counted


class QueryTimes:
    """Counts what one store does: statements, commands, and the calls that `track` names.

    One operation is one statement or command that ended, or one call of `track` with all that it
    asked inside: these are part of it and not counted again, so no operation counts twice.
    """

    def __init__(self, *, slow_ms: float, most_names: int = MOST_NAMES) -> None:
        self._slow_seconds = slow_ms / 1000
        self._most_names = most_names
        self._names: set[str] = set()
        # Reentrant: the garbage collector may end a query of its own in the midst of a count.
        self._lock = threading.RLock()
        self._series: dict[tuple[str, str], Gathering] = {}
        self._errors = dict.fromkeys(ERROR_TYPES, 0)
        self._slow = self._folded = 0
        # Threads inside `track`. Single operations on a dictionary are atomic.
        self.inside: dict[int, bool] = {}

    def series(self, operation: str, status: str = SUCCESS) -> Gathering:
        """The list that times of `operation` are appended to; `add` does it with all that belongs.

        For callers that keep it, because finding it costs more than appending.
        """
        found = self._series.get((operation, status))
        if found is None:
            with self._lock:
                found = self._series.setdefault((operation, status), Gathering())
        return found

    @property
    def is_inside(self) -> bool:
        """Whether this thread is in a call of `track`, which counts for all inside."""
        return bool(self.inside) and threading.get_ident() in self.inside

    def add(self, operation: str, seconds: float, error: str = "") -> None:
        """Count one operation; `error` is one of `ERROR_TYPES` if it failed."""
        if self.is_inside:
            return
        times = self.series(operation, ERROR if error else SUCCESS)
        times.append(seconds)
        if error:
            with self._lock:
                self._errors[error] += 1
        if len(times) >= GATHERED:
            self.count(times)

    def count(self, times: Gathering) -> None:
        """Sort what has gathered into the buckets."""
        slow, counts = self._slow_seconds, times.counts
        with self._lock:
            times.last = None
            while times:
                seconds = times.popleft()
                counts[bisect.bisect_left(BOUNDS_SECONDS, seconds)] += 1
                times.seconds += seconds
                self._slow += seconds >= slow

    @contextmanager
    def track(self, name: str) -> Iterator[None]:
        """Count the block, or each call of the decorated function, as one operation `name`.

        Inside another one it is part of that. A name beyond the first `MOST_NAMES`, or longer
        than `LONGEST_NAME`, is ``other``.
        """
        with self.timed(name if self.is_inside else self._bounded(name)):
            yield

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """`track` for a name out of a fixed set."""
        if self.is_inside:
            yield
            return
        thread, started = threading.get_ident(), time.perf_counter()
        self.inside[thread] = True
        error = ""
        try:
            yield
        except BaseException as raised:
            error = error_type(raised)
            raise
        finally:
            seconds = time.perf_counter() - started
            del self.inside[thread]
            self.add(operation, seconds, error)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Nothing that this thread asks in the block is counted."""
        thread = threading.get_ident()
        before = self.inside.get(thread, False)
        self.inside[thread] = True
        try:
            yield
        finally:
            if not before:
                del self.inside[thread]

    def read(self) -> QueryStats:
        """All counts of this moment."""
        with self._lock:
            series = tuple(self._read(*item) for item in self._series.items())
            return QueryStats(series, dict(self._errors), self._slow, self._folded)

    def _read(self, name: tuple[str, str], times: Gathering) -> Timed:
        """The same object as before if nothing was added, so that a reader sees that at once."""
        if times:
            self.count(times)
        if times.last is None:
            times.last = Timed(*name, tuple(times.counts), times.seconds)
        return times.last

    def _bounded(self, name: str) -> str:
        if name in self._names:
            return name
        with self._lock:
            if len(self._names) < self._most_names and len(name) <= LONGEST_NAME:
                self._names.add(name)
                return name
            self._folded += 1
            return OTHER
