"""A measured value, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Status = Literal["ok", "not_available", "not_applicable", "not_measured", "no_data"]
Window = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Measure:
    """One value with its unit and what it is worth.

    `status` is ``ok`` and `value` a number, or `value` is None and `status` one of

    - ``not_available``: this server cannot tell,
    - ``not_applicable``: there is nothing to measure, such as no replica,
    - ``not_measured``: switched off, or not allowed for this role,
    - ``no_data``: nothing was recorded in the window, or too little to tell.

    `reason` says why and what would help; beside a value it is a remark. `window` is the time
    that the value is about, None for this moment.
    """

    value: float | None
    unit: str
    status: Status
    reason: str
    database: str
    source: str
    window: Window | None = None

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.value is not None):
            raise ValueError(f"a measure with status '{self.status}' and value {self.value}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a measure cannot be {self.value}")

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.status.replace('_', ' ')}: {self.reason}"
        remark = f" ({self.reason})" if self.reason else ""
        return f"{self.value:.4g} {self.unit}{remark}"

    def __rich_repr__(self) -> Iterator[Any]:
        yield str(self)
        yield "database", self.database
        yield "source", self.source
        if self.window is not None:
            yield "window", " to ".join(moment.isoformat(" ", "seconds") for moment in self.window)


def measured(
    value: float,
    unit: str,
    database: str,
    source: str,
    *,
    remark: str = "",
    window: Window | None = None,
) -> Measure:
    """A `Measure` that has a value."""
    return Measure(value, unit, "ok", remark, database, source, window)


def unmeasured(
    status: Status,
    reason: str,
    unit: str,
    database: str,
    source: str,
    *,
    window: Window | None = None,
) -> Measure:
    """A `Measure` that has none."""
    return Measure(None, unit, status, reason, database, source, window)
