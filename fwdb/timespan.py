"""The one reader of times that people type: ``24h``, ``7d``, ``2026-11-01``, ISO times."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from fwdb.errors import ParameterError, shown

__all__ = ["Time", "moment", "span"]

# What `moment` reads.
Time = Annotated[
    str | datetime | date | timedelta, "an ISO time (2026-11-01T00:00Z) or a span (24h, 7d)"
]

_SPAN = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def moment(value: Time, *, now: datetime | None = None, name: str = "since") -> datetime:
    """`value` as a time in UTC.

    A span (``45s``, ``30m``, ``24h``, ``7d``, ``2w``, or a timedelta) is that long before `now`,
    ``now`` is `now`, and a date is its first moment in UTC. A time of day needs a zone: without
    one it would mean another moment on another computer. Raises `ParameterError` that names the
    parameter `name` and what to write.

    >>> moment("24h", now=datetime(2026, 11, 2, tzinfo=UTC))
    datetime.datetime(2026, 11, 1, 0, 0, tzinfo=datetime.timezone.utc)
    >>> moment("2026-11-01T02:00+02:00")
    datetime.datetime(2026, 11, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    now = now or datetime.now(UTC)
    text = value.strip() if isinstance(value, str) else ""
    try:
        if text == "now":
            return _utc(now)
        if isinstance(value, timedelta) or _SPAN.fullmatch(text):
            return _utc(now - span(value if isinstance(value, timedelta) else text, name=name))
        if _DATE.fullmatch(text):
            value = date.fromisoformat(text)
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime.combine(value, time(), UTC)
        found = value if isinstance(value, datetime) else datetime.fromisoformat(text.upper())
        if found != found:  # pandas' NaT is a datetime, and unlike itself
            raise ValueError
        if found.tzinfo is not None:
            return _utc(found)
    except (ValueError, OverflowError):
        raise ParameterError(
            f"'{name}' is {shown(value)}; give an ISO time (2026-11-01T00:00Z) or a span (24h, "
            "7d).",
            name=name,
        ) from None
    raise ParameterError(
        f"'{name}' is {shown(value)}, a time without a zone; add one, such as Z for UTC "
        "(2026-11-01T00:00Z).",
        name=name,
    )


def span(value: str | timedelta, *, name: str = "span") -> timedelta:
    """`value` as a length of time: ``45s``, ``30m``, ``24h``, ``7d``, ``2w``.

    Raises `ParameterError` that names the parameter `name`.

    >>> span("7d").days
    7
    """
    if isinstance(value, timedelta):
        return value
    refusal = ParameterError(
        f"'{name}' is {shown(value)}; give a span such as 30m, 24h or 7d.", name=name
    )
    found = _SPAN.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise refusal
    try:
        return timedelta(seconds=float(found["count"]) * _SECONDS[found["unit"]])
    except OverflowError:  # longer than a timedelta can say
        raise refusal from None


def _utc(value: datetime) -> datetime:
    # Rebuilt from its parts so that a pandas Timestamp becomes a plain datetime.
    value = value.astimezone(UTC)
    return datetime.combine(value.date(), value.time(), UTC)
