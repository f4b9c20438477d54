"""Durations counted in buckets: how long callers waited for a connection, held it, dialled it."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# Steps of about 2 to 2.5, which is as exact as a percentile read from them. They hold every
# bucket of the existing service (1 ms to 10 s); below, because a checkout of an idle connection
# takes microseconds; above, because a leaked connection is held for minutes.
BOUNDS_MS = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500,
    1000, 2500, 5000, 10000, 30000, 60000,
)  # fmt: skip
_BOUNDS_SECONDS = tuple(bound / 1000 for bound in BOUNDS_MS)


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
        """The bound that `percent` of the durations did not exceed; None when there were none.

        See `percentile_bound_ms`.
        """
        return percentile_bound_ms(self.counts, percent)


def percentile_bound_ms(counts: Sequence[int], percent: float) -> float | None:
    """The first of `BOUNDS_MS` that at least `percent` of the counted durations did not exceed.

    An upper bound and no estimate: between two bounds nothing is known, so nothing is
    interpolated. ``inf`` when the answer lies beyond the last bound, None without durations.
    """
    wanted = sum(counts) * percent / 100
    seen = 0
    for count, bound in zip(counts, (*BOUNDS_MS, math.inf), strict=True):
        seen += count
        if seen and seen >= wanted:
            return float(bound)
    return None


class Counting:
    """Counts durations; safe from several threads."""

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
