"""How long things took: statements, commands, and waits for connections; and how many failed."""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

import psycopg

from fwdb.stores.errors import ERROR_TYPES, OTHER, error_type

# Steps of about 2 to 2.5, which is as exact as a percentile read from them. They hold every
# bucket of the existing service (1 ms to 10 s); below, because a checkout of an idle connection
# takes microseconds; above, because a leaked connection is held for minutes.
BOUNDS_MS = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500,
    1000, 2500, 5000, 10000, 30000, 60000,
)  # fmt: skip
_BOUNDS_SECONDS = tuple(bound / 1000 for bound in BOUNDS_MS)

SUCCESS, ERROR = "success", "error"
CONNECT = "connect"  # no statement was sent, because no connection could be had

# Names that callers give to `track`; a program that builds names from data would add series for
# ever, about 3 kB each here and fourteen samples of each in every scrape.
MOST_NAMES = 100
LONGEST_NAME = 100

OWN = "/* fwdb */"  # ends every question that fwdb asks about a server


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations since their counting began.

    `counts` has one cell per bound of `BOUNDS_MS`: durations up to that bound and above the one
    before. The last cell, one more than there are bounds, counts those beyond all of them.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_MS) + 1)
    total_ms: float = 0.0

    @property
    def count(self) -> int:
        """How many durations there were."""
        return sum(self.counts)

    @property
    def mean_ms(self) -> float | None:
        """Their exact mean; None when there were none."""
        return self.total_ms / self.count if self.count else None

    def percentile_ms(self, percent: float) -> float | None:
        """The first of `BOUNDS_MS` that `percent` of the durations did not exceed.

        An upper bound and no estimate: between two bounds nothing is known, so nothing is
        interpolated. ``inf`` when the answer lies beyond the last bound, None without durations.
        """
        wanted, seen = self.count * percent / 100, 0
        for count, bound in zip(self.counts, (*BOUNDS_MS, math.inf), strict=True):
            seen += count
            if seen and seen >= wanted:
                return float(bound)
        return None


class Histogram:
    """Counts durations in the buckets of `BOUNDS_MS`; safe from several threads."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may return a lost connection in the midst of a count.
        self._lock = threading.RLock()
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        cell = bisect_left(_BOUNDS_SECONDS, seconds)
        with self._lock:  # a list cell += 1 can lose a count between two threads
            self._counts[cell] += 1
            self._seconds += seconds

    def read(self) -> Durations:
        """What was counted so far."""
        with self._lock:
            return Durations(tuple(self._counts), 1000 * self._seconds)


class Timed(NamedTuple):
    """How long it took what ended with one `status` (``success``, ``error``) under one name."""

    operation: str
    status: str
    times: Durations


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


class _Thread(threading.local):
    inside = False  # in a call of `track`, which counts for all that is asked in it


class QueryTimes:
    """Counts what one store does: statements, commands, and the calls that `track` names.

    One operation is one statement or command that ended, or one call of `track` with all that it
    asked inside: these are part of it and not counted again, so no operation counts twice.
    """

    def __init__(self, *, slow_ms: float) -> None:
        self._slow_seconds = slow_ms / 1000
        self._names: set[str] = set()
        self._lock = threading.RLock()  # as in `Histogram`
        self._series: dict[tuple[str, str], Histogram] = {}
        self._errors = dict.fromkeys(ERROR_TYPES, 0)
        self._slow = self._folded = 0
        self._thread = _Thread()

    def add(self, operation: str, seconds: float, error: str = "") -> None:
        """Count one operation; `error` is one of `ERROR_TYPES` if it failed."""
        if self._thread.inside:
            return
        key = (operation, ERROR if error else SUCCESS)
        with self._lock:
            times = self._series.get(key)
            if times is None:
                times = self._series[key] = Histogram()
            times.add(seconds)
            if seconds >= self._slow_seconds:
                self._slow += 1
            if error:
                self._errors[error] += 1

    @contextmanager
    def track(self, name: str) -> Iterator[None]:
        """Count the block, or each call of the decorated function, as one operation `name`.

        Inside another one it is part of that. A name beyond the first `MOST_NAMES`, or longer
        than `LONGEST_NAME`, is ``other``.
        """
        with self.timed(name if self._thread.inside else self._bounded(name)):
            yield

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """`track` for a name out of a fixed set."""
        if self._thread.inside:
            yield
            return
        started, error = perf_counter(), ""
        self._thread.inside = True
        try:
            yield
        except BaseException as raised:
            error = error_type(raised)
            raise
        finally:
            self._thread.inside = False
            self.add(operation, perf_counter() - started, error)

    def read(self) -> QueryStats:
        """All counts of this moment."""
        with self._lock:
            series = tuple(Timed(*name, times.read()) for name, times in self._series.items())
            return QueryStats(series, dict(self._errors), self._slow, self._folded)

    def _bounded(self, name: str) -> str:
        with self._lock:
            if name in self._names:
                return name
            if len(self._names) < MOST_NAMES and len(name) <= LONGEST_NAME:
                self._names.add(name)
                return name
            self._folded += 1
            return OTHER


# -- statements -----------------------------------------------------------------------------------

_VERBS = {
    "select": "select", "values": "select", "table": "select", "fetch": "select",
    "insert": "insert", "update": "update", "delete": "delete", "merge": "merge",
    "copy": "copy", "call": "call", "do": "call", "explain": "explain",
    "create": "ddl", "alter": "ddl", "drop": "ddl", "truncate": "ddl", "comment": "ddl",
    "grant": "ddl", "revoke": "ddl", "reindex": "ddl",
    "savepoint": "transaction", "release": "transaction", "rollback": "transaction",
    "begin": "transaction", "commit": "transaction",
    "set": "set", "reset": "set", "show": "set",
}  # fmt: skip
OPERATIONS = tuple(sorted({*_VERBS.values(), OTHER, CONNECT}))

_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(\w+)", re.DOTALL)
# After its WITH queries, the verb of a statement is the first one outside of all parentheses.
_PARTS = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\""
    r"|(?P<part>[()]|\b(?:select|insert|update|delete|merge)\b)",
    re.DOTALL | re.IGNORECASE,
)
_LONGEST_TEXT = 10_000  # of those whose operation is remembered


def operation(statement: str) -> str:
    """What `statement` does, one of `OPERATIONS`.

    >>> operation("WITH gone AS (DELETE FROM a RETURNING id) SELECT count(*) FROM gone")
    'select'
    """
    found = _FIRST_WORD.match(statement)
    word = found[1].lower() if found else ""
    if word != "with":
        return _VERBS.get(word, OTHER)
    depth = 0
    for match in _PARTS.finditer(statement):
        part = (match["part"] or "").lower()
        depth += (part == "(") - (part == ")")
        if depth == 0 and part in _VERBS:
            return _VERBS[part]
    return OTHER


_remembered = lru_cache(maxsize=1000)(operation)


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    def timed(self: TimedCursor, query: Any, *args: Any, **options: Any) -> Any:
        started, error = perf_counter(), ""
        try:
            return method(self, query, *args, **options)
        except BaseException as raised:
            error = error_type(raised)
            raise
        finally:
            seconds = perf_counter() - started
            text = query if isinstance(query, str) else ""
            if OWN not in text:
                find = _remembered if len(text) <= _LONGEST_TEXT else operation
                self.connection.times.add(find(text), seconds, error)  # type: ignore[attr-defined]

    return timed


class TimedCursor(psycopg.Cursor[Any]):
    """Counts what it executes, from the call to the answer, in the `times` of its `Session`.

    The driver has all rows by then; turning them into Python objects is not part of the time. A
    statement with many sets of parameters counts once; what bears the mark of fwdb's own
    questions is left out. SQLAlchemy's events around a statement cost three times as much as a
    cursor of one's own (9 µs and 3, before the counting).
    """

    __slots__ = ()
    execute = _timed(psycopg.Cursor.execute)
    executemany = _timed(psycopg.Cursor.executemany)
