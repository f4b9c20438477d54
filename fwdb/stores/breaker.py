"""A circuit breaker: callers of a store that is down fail at once instead of waiting for it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from fwdb.errors import CircuitOpen, PoolExhausted, QueryTimeout, StoreUnavailable

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Lets calls through until the store is down, then one trial after each pause.

    >>> with db.breaker("mongodb"):                                     # doctest: +SKIP
    ...     db.designs.count()

    After `failures` calls in a row that ended in `StoreUnavailable` the circuit opens: for a
    pause every call raises `CircuitOpen` at once. Then one caller is let through as a trial
    while the others are still refused. A trial that succeeds closes the circuit; one that fails
    opens it for twice as long, from `first_pause_seconds` up to `longest_pause_seconds`, less up
    to a half by chance, so that many processes do not come back in the same moment.

    A `PoolExhausted` or a `QueryTimeout` says nothing about whether the store is there, and is
    not counted. Any other error was given by a store that answers. `clock` counts seconds.
    """

    def __init__(
        self,
        database: str,
        *,
        failures: int = 3,
        first_pause_seconds: float = 1,
        longest_pause_seconds: float = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self._limit = failures
        self._first_pause = first_pause_seconds
        self._longest_pause = longest_pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._opened = 0  # in a row, without a success
        self._closes_at: float | None = None  # when the pause is over; None while closed
        self._trial = False  # somebody is trying

    @property
    def state(self) -> BreakerState:
        """``closed`` lets all through, ``open`` nobody, ``half_open`` the next caller."""
        with self._lock:
            if self._closes_at is None:
                return "closed"
            return "open" if self._trial or self._clock() < self._closes_at else "half_open"

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run a block under the breaker. Raises `CircuitOpen` without running it."""
        trial = self._enter()
        try:
            yield
        except (PoolExhausted, QueryTimeout):
            self._neither(trial)
            raise
        except StoreUnavailable:
            self._failed(trial)
            raise
        except Exception:
            self._succeeded()
            raise
        except BaseException:  # Ctrl-C says nothing about the store
            self._neither(trial)
            raise
        else:
            self._succeeded()

    def _enter(self) -> bool:
        """Whether the caller goes in as a trial; raises `CircuitOpen` for one who may not."""
        with self._lock:
            if self._closes_at is None:
                return False
            left = self._closes_at - self._clock()
            if left > 0 or self._trial:
                when = f"in {left:.1f} s" if left > 0 else "when the call on trial has ended"
                raise CircuitOpen(
                    f"{self.database} was not asked: it did not answer before, and is tried again "
                    f"{when}.",
                    database=self.database,
                    retry_seconds=max(0.0, left),
                )
            self._trial = True
            return True

    def _failed(self, trial: bool) -> None:
        with self._lock:
            self._failures += 1
            if trial:
                self._trial = False
            elif self._closes_at is not None or self._failures < self._limit:
                return  # a call that began before the circuit opened tells nothing new
            # Beyond 2^30 no pause is meant, and a float ends in an overflow.
            pause = min(self._first_pause * 2 ** min(self._opened, 30), self._longest_pause)
            self._opened += 1
            self._closes_at = self._clock() + pause * random.uniform(0.5, 1)  # noqa: S311

    def _neither(self, trial: bool) -> None:
        with self._lock:
            if trial:
                self._trial = False

    def _succeeded(self) -> None:
        with self._lock:
            self._failures = self._opened = 0
            self._closes_at = None
            self._trial = False
