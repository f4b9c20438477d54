"""A workload for a demonstration: readers, writers and a crowd, through the pools of the stores."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from fwdb.arguments import Range, checks_arguments
from fwdb.errors import FwdbError, PoolExhausted, QueryTimeout, Transient
from fwdb.seeding.operations import Operation, Operations, Trail
from fwdb.stores import MongoStore, PostgresStore

# Settings for the stores of a workload: a pool that a handful of threads can fill.
POOL = MappingProxyType({"pool_size": 8, "pool_max_overflow": 4})

_DESIGN_THREADS = 2  # more of them would stall the built-in MongoDB
_MOST_THREADS = 24  # and so the largest pool that is filled
_PAUSE_SECONDS = 0.04  # between two operations of a thread, on average
# Parts of the run, from 0 to 1: a crowd that fills nine tenths of the pool, and in the middle of
# it a few more than the pool has connections.
_CROWDED = (0.30, 0.70)
_OVERCROWDED = (0.45, 0.60)
_TOO_MANY = 3
# Any operation may meet these when much goes on at once.
_CONTENTION = (Transient, PoolExhausted, QueryTimeout)


@dataclass(frozen=True)
class WorkloadResult:
    """What a workload did: operations by name, errors by class, and how long it took.

    An operation that failed as it was meant to counts in both.
    """

    operations: dict[str, int]
    errors: dict[str, int]
    seconds: float


@checks_arguments
def run_workload(
    postgres: PostgresStore,
    mongodb: MongoStore,
    audit: Trail,
    *,
    seconds: Annotated[float, Range(0, 86_400, above=True)] = 20,
    readers: Annotated[int, Range(0, 64)] = 4,
    writers: Annotated[int, Range(0, 64)] = 2,
    most_operations: Annotated[int, Range(1, 10_000_000)] = 100_000,
    seed: int = 1,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
) -> WorkloadResult:
    """Read, write and fail for `seconds`, with at most `most_operations`; what was done.

    `readers` and `writers` work on PostgreSQL and two more threads on designs. Every worker does
    each of its operations once and then chooses by how common they are; `seed` decides which, the
    threads' race the order. Between three and seven tenths of the time a crowd holds connections
    until the pool of `postgres` is nearly full, for a while more than full, provided that it has
    at most 24 connections: make the store with the settings of `POOL`. Who changes what is said
    to both stores, and readings of profiles are recorded. Refused operations are part of it and
    counted.

    Setting `stop`, or Ctrl-C, ends it after the statements that are running, two seconds at
    most; no transaction stays open. An error that was not meant to happen ends it too and is
    raised. Raises `ParameterError` for a number out of range or when there is no data.
    """
    run = _Run(Operations(postgres, mongodb, audit), seconds, most_operations, seed)
    operations = run.operations
    jobs: list[Callable[[], None]] = []
    for kind, threads, choices in (
        ("reader", readers, operations.reading()),
        ("writer", writers, operations.writing()),
        ("designer", _DESIGN_THREADS, operations.designing()),
    ):
        for number in range(threads):
            jobs.append(run.worker(f"{seed} {kind} {number}", choices))
    crowd = _crowd(postgres.pool().capacity, readers + writers + _DESIGN_THREADS)
    for number in range(crowd):
        part = _CROWDED if number < crowd - _TOO_MANY else _OVERCROWDED
        jobs.append(run.dawdler(f"{seed} crowd {number}", part))
    return run.go(jobs, postgres, stop, progress or (lambda sentence: None))


class _Run:
    """The shared state of one workload's threads."""

    def __init__(
        self, operations: Operations, seconds: float, most_operations: int, seed: int
    ) -> None:
        self.operations = operations
        self._seconds = seconds
        self._left = most_operations
        self._begin = time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._done: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def go(
        self,
        jobs: Sequence[Callable[[], None]],
        postgres: PostgresStore,
        stop: threading.Event | None,
        tell: Callable[[str], None],
    ) -> WorkloadResult:
        self._begin = time.monotonic()
        quarter = 1
        with ThreadPoolExecutor(len(jobs), "workload") as executor:
            futures: list[Future[None]] = [executor.submit(self._guarded, job) for job in jobs]
            try:
                while self._elapsed() < self._seconds and not self._ended.is_set():
                    if stop is not None and stop.is_set():
                        break
                    self._ended.wait(0.05)
                    if self._elapsed() * 4 >= quarter * self._seconds:
                        quarter += 1
                        tell(self._sentence(postgres))
            finally:
                self._ended.set()  # leaving the executor joins the threads
        for future in futures:
            future.result()
        return WorkloadResult(dict(self._done), dict(self._errors), round(self._elapsed(), 3))

    def worker(self, seed: str, choices: Sequence[Operation]) -> Callable[[], None]:
        """A thread that does each of `choices` once and goes on by their shares."""
        rng = random.Random(seed)  # noqa: S311  # nothing secret is drawn
        shares = [operation.share for operation in choices]

        def work() -> None:
            first = rng.sample(choices, len(choices))
            while not self._ended.is_set():
                operation = first.pop() if first else rng.choices(choices, shares)[0]
                if not self._take():
                    return
                self._do(operation, rng)
                self._ended.wait(rng.expovariate(1 / _PAUSE_SECONDS))

        return work

    def dawdler(self, seed: str, part: tuple[float, float]) -> Callable[[], None]:
        """A thread that holds connections for long, in `part` of the run."""
        rng = random.Random(seed)  # noqa: S311  # nothing secret is drawn
        operation = Operation(
            "hold_connection", 1, lambda rng: self.operations.dawdle(rng, self._ended.wait)
        )

        def work() -> None:
            self._ended.wait(part[0] * self._seconds)
            while not self._ended.is_set() and self._elapsed() < part[1] * self._seconds:
                if not self._take():
                    return
                self._do(operation, rng)
                self._ended.wait(0.01)

        return work

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException:
            self._ended.set()
            raise

    def _take(self) -> bool:
        """Whether one more operation may be done; the last one ends the run."""
        with self._lock:
            self._left -= 1
            if self._left < 0:
                self._ended.set()
            return self._left >= 0

    def _do(self, operation: Operation, rng: random.Random) -> None:
        error: FwdbError | None = None
        try:
            operation.act(rng)
        except FwdbError as met:
            if not isinstance(met, (*_CONTENTION, operation.fails or Transient)):
                raise
            error = met
        if error is None and operation.fails is not None:
            raise FwdbError(
                f"'{operation.name}' was to meet {operation.fails.__name__}, but it succeeded."
            )
        with self._lock:
            self._done[operation.name] += 1
            if error is not None:
                self._errors[type(error).__name__] += 1

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _sentence(self, postgres: PostgresStore) -> str:
        pool = postgres.pool()
        return (
            f"{self._elapsed():.0f} of {self._seconds:g} s: {self._done.total():,} operations, "
            f"{self._errors.total():,} refused; {pool.in_use} of {pool.capacity} connections in "
            f"use, {pool.waiting} waiting"
        )


def _crowd(capacity: int | None, workers: int) -> int:
    """How many dawdlers fill the pool beside `workers`, most of whom hold nothing at a time."""
    if capacity is None or capacity > _MOST_THREADS:
        return 0
    return max(0, math.ceil(0.9 * capacity) - workers // 4) + _TOO_MANY
