"""When people work: one year as a curve of activity, hour by hour, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]

# Whole weeks, and a day less than the retention of the audit log, which therefore finds nothing
# to remove in a fresh history.
DAYS = 364

# Share of activity by hour of the day: office hours with a dip at noon, a few people at night.
_HOURS = np.array(
    [1, 1, 1, 1, 1, 2, 6, 20, 55, 85, 100, 95, 65, 80, 95, 90, 75, 50, 25, 18, 15, 10, 5, 2],
    dtype=float,
)
_WEEKDAYS = np.array([1.0, 1.05, 1.05, 1.0, 0.85, 0.25, 0.2])  # Monday first
_GROWTH = 1.2  # activity of one user at the end of the year against its start

# (first day, last day, factor), month and day; the fashion weeks of spring and autumn, summer,
# the weeks before Christmas and those after it.
_SEASONS = (
    ((2, 10), (3, 5), 1.4),
    ((7, 20), (8, 25), 0.75),
    ((9, 10), (10, 3), 1.5),
    ((11, 20), (12, 20), 1.8),
    ((12, 23), (12, 31), 0.35),
    ((1, 1), (1, 4), 0.5),
)
# A working day, counted back from the end, on which nothing reached the service.
_OUTAGE_DAYS_AGO = 60
_OUTAGE_HOURS = (9, 13)


@dataclass(frozen=True)
class Year:
    """The year that ends at `until`. A position from 0 to 1 is the share of its activity so far.

    Times are drawn as positions, where activity is even: a uniform position is a time that
    follows hours, weekdays, seasons and growth, and the same holds between any two positions.
    """

    until: datetime
    seed: int

    @cached_property
    def _hours(self) -> pd.DatetimeIndex:
        start = self.until - timedelta(days=DAYS)
        return pd.date_range(start, periods=DAYS * 24, freq="h", unit="us")

    @cached_property
    def _cumulative(self) -> Floats:
        hours = self._hours
        activity = _HOURS[hours.hour] * _WEEKDAYS[hours.day_of_week]
        activity = activity * np.linspace(1, _GROWTH, len(hours))
        day = np.asarray(hours.month * 100 + hours.day)
        for (m1, d1), (m2, d2), factor in _SEASONS:
            activity[(day >= m1 * 100 + d1) & (day <= m2 * 100 + d2)] *= factor
        noise = np.random.default_rng([self.seed, 0, 9]).lognormal(0, 0.15, DAYS)
        activity *= np.repeat(noise, 24)
        activity[self._outage] = 0
        cumulative: Floats = np.concatenate(([0.0], np.cumsum(activity))) / activity.sum()
        return cumulative

    @cached_property
    def _outage(self) -> Any:
        """The hours of the outage: of the last working day that is long enough ago."""
        hours = self._hours
        last = pd.Timestamp(self.until) - pd.Timedelta(days=_OUTAGE_DAYS_AGO)
        working = hours[(hours.day_of_week < 5) & (hours <= last)]
        same_day = hours.normalize() == working[-1].normalize()
        return same_day & (hours.hour >= _OUTAGE_HOURS[0]) & (hours.hour < _OUTAGE_HOURS[1])

    def times(self, positions: Floats) -> Times:
        """The times at `positions`, in microseconds since 1970 in UTC, never decreasing."""
        edges = np.arange(len(self._cumulative), dtype=float)
        hours = np.interp(positions, self._cumulative, edges)
        first = np.datetime64(self._hours[0].tz_convert(None), "us")
        times: Times = first + (hours * 3_600_000_000).astype("timedelta64[us]")
        return times

    def position(self, time: datetime) -> float:
        """The position at `time`."""
        hours = (time - self._hours[0]) / pd.Timedelta(hours=1)
        edges = np.arange(len(self._cumulative), dtype=float)
        return float(np.interp(hours, edges, self._cumulative))

    def night(self, days_ago: int, hour: float) -> datetime:
        """The time `hour` hours into the day that began `days_ago` days before the end."""
        return self.until - timedelta(days=days_ago) + timedelta(hours=hour)
