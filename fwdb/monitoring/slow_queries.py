"""The statements of both stores that cost most in a window."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pandas as pd

from fwdb.arguments import Count, Seconds
from fwdb.errors import FwdbError, ParameterError
from fwdb.monitoring import commands, statements
from fwdb.monitoring.context import APPLICATION, Context, frame
from fwdb.monitoring.history import History, window
from fwdb.monitoring.statements import COUNTERS, INNER, StoreWindow
from fwdb.timespan import Time, moment

_HEAD = {
    "database": "string",
    "query_id": "string",
    "statement": "string",
    "calls": "int64",
    "errors": "Int64",
    "total_ms": "float64",
    "mean_ms": "float64",
    "stddev_ms": "float64",
    "rows": "Int64",
    "rows_per_call": "float64",
    "share_percent": "float64",
    "hit_blocks": "Int64",
    "read_blocks": "Int64",
    "blocks_per_call": "float64",
    "hit_ratio": "float64",
    "read_ms": "float64",
    "temp_bytes": "Int64",
    "wal_bytes": "Int64",
    "plan_ms": "float64",
}
COLUMNS = {
    **_HEAD,
    **{
        name: "float64" if kind == "float64" else "Int64"
        for name, kind in COUNTERS.items()
        if name not in _HEAD and name not in INNER
    },
    "docs_examined_per_call": "float64",
    "growth_ms": "float64",
    "lower_bound": "bool",
}

# What a list is sorted by. `io` is the time of reads where it is measured, else their number.
ORDERS = {
    "total": "total_ms",
    "mean": "mean_ms",
    "calls": "calls",
    "io": "read_ms",
    "temp": "temp_bytes",
    "wal": "wal_bytes",
    "growth": "growth_ms",
}
Order = Annotated[str, tuple(ORDERS)]

# Lists of what cost something: a statement that wrote no temporary file is not the last of those
# that did.
_COSTS = ("io", "temp", "wal", "growth")

# Who asks for the window right before this one must not be refused for the time he took to ask.
_SLACK = timedelta(minutes=1)


def slow_queries(
    self: Context,
    since: Time = "24h",
    until: Time | None = None,
    *,
    min_ms: float | None = None,
    top: Count = 20,
    order: Order = "total",
    compare_since: Time | None = None,
    live_seconds: Seconds | None = None,
) -> pd.DataFrame:
    """Statements of both stores whose mean time in the window reaches `min_ms`.

    One row per statement shape, the first `top` of those by `order`: ``total`` or ``mean``
    time, ``calls``, ``io`` (time of reads, or blocks read where it is not measured), ``temp``,
    ``wal``, or ``growth`` of the total time over the window before (of the same length, or
    that from `compare_since`). `min_ms` is 100 unless FWDB_SLOW_QUERY_MS or the argument says
    otherwise. `mean_ms` and `stddev_ms` are times in the server for PostgreSQL and times of
    the client for MongoDB. `share_percent` is the part of its store's time in the window,
    those of statements below `min_ms` counted too. `lower_bound` marks statements whose
    counters began anew within the window.

    Source: difference of two readings of pg_stat_statements, the first one stored at or
    after `since`, the second taken now, or the last one stored before an `until` of more
    than a minute ago; timings of the clients for MongoDB, or its profiler when there are
    none. Statements inside functions are part of the one that called them, and fwdb's own
    questions are left out.

    ``attrs``: `status` and `reason`; `window`, the times the answer is about; `missing`,
    per store why it has no rows; `not_measured`, per store and column why it is missing;
    `coverage`, what part of the window the counters show; `totals`; `hidden`, what the role
    may not see. Raises `FeatureUnavailable` or another `FwdbError` when a store cannot be
    asked and the other has nothing either.
    """
    least = self.thresholds.slow_query_ms if min_ms is None else min_ms
    growing = order == "growth" or compare_since is not None
    earlier: dict[str, StoreWindow] = {}
    asked: dict[str, datetime | None] = {}
    if live_seconds is None:
        start, end = window(since, until)
        before = window_before(start, end, compare_since, None) if growing else None
        found, asked = past(self, start, end), {"since": start, "until": end}
        if before:
            earlier = {one.database: one for one in past(self, *before) if one.window}
    elif growing:
        raise ParameterError(
            "a window watched live has none before it; leave 'live_seconds' out to "
            "compare two of the history.",
            name="live_seconds",
        )
    else:
        found = _live(self, live_seconds)
    require_one(found)
    rows = []
    for one in found:
        grown = growth(earlier[one.database], one) if one.database in earlier else {}
        rows += [
            {
                **row,
                "share_percent": 100 * row["total_ms"] / one.total_ms if one.total_ms else 0.0,
                "growth_ms": grown.get(row["query_id"]),
            }
            for row in one.statements
        ]
    return ranked(frame(COLUMNS, rows, **attrs(found, asked)), min_ms=least, top=top, order=order)


def ranked(found: pd.DataFrame, *, min_ms: float, top: int, order: str) -> pd.DataFrame:
    """The first `top` of the statements whose mean reaches `min_ms`, in the order asked for."""
    told: dict[str, Any] = dict(found.attrs)  # type: ignore[arg-type]
    column = ORDERS[order]
    found = found[found["mean_ms"] >= min_ms]
    if order == "io" and found["read_ms"].isna().all():
        column = "read_blocks"
    if order in _COSTS:
        found = found[found[column].fillna(0) > 0]
    found = found.sort_values(
        [column, "total_ms", "query_id"], ascending=[False, False, True], na_position="last"
    )
    found = found.head(top).reset_index(drop=True)
    found.attrs.update(**told, order=order, ordered_by=column)
    return found


def past(self: Context, since: datetime, until: datetime | None) -> list[StoreWindow]:
    """What both stores' statements did in a window of the history."""
    history: History | None = self.history
    try:
        found = statements.past(self.postgres, self.history, since, until)
    except FwdbError as error:
        found = _failed(error)
        history = None  # the history is in the same database
    timed = commands.past(self.ledger, history, since, until)
    profile = commands.profiled(self.mongodb, since, until, APPLICATION)
    return [found, commands.mongodb_window(timed, profile)]


def _live(self: Context, seconds: float) -> list[StoreWindow]:
    watched, began = self.watched[1], datetime.now(UTC)
    before, deadline = watched.commands(), time.monotonic() + seconds
    try:
        found = statements.live(self.postgres, seconds)
    except FwdbError as error:
        found = _failed(error)
        time.sleep(max(0.0, deadline - time.monotonic()))
    timed = commands.live(before, watched.commands(), (began, datetime.now(UTC)))
    profile = commands.profiled(self.mongodb, began, None, APPLICATION)
    return [found, commands.mongodb_window(timed, profile)]


def _failed(error: FwdbError) -> StoreWindow:
    return StoreWindow("postgres", "not_available", str(error), error=error)


def require_one(found: Iterable[StoreWindow]) -> None:
    """Raises the error of a store that cannot be asked when none has a window."""
    stores = list(found)
    if not any(one.window for one in stores):
        for one in stores:
            if one.error:
                raise one.error


def growth(before: StoreWindow, now: StoreWindow) -> Mapping[str, float]:
    """Per query id, the time it took beyond that of an equally long part of the window before."""
    if now.window is None:
        return {}
    lengths = times_as_long(before, now)
    earlier = {row["query_id"]: row["total_ms"] for row in before.statements}
    return {
        row["query_id"]: row["total_ms"] - lengths * earlier.get(row["query_id"], 0)
        for row in now.statements
    }


def times_as_long(before: StoreWindow, now: StoreWindow) -> float:
    """How many times as long the second window is as the first; both must have one."""
    lengths = []
    for one in (before, now):
        assert one.window is not None
        lengths.append((one.window[1] - one.window[0]).total_seconds())
    return lengths[1] / max(lengths[0], 1e-3)


def attrs(found: Sequence[StoreWindow], asked: Mapping[str, datetime | None]) -> dict[str, Any]:
    """What a frame says of the windows that its rows are of."""
    windows = {one.database: one.window for one in found if one.window}
    missing = {one.database: one.reason for one in found if one.status != "ok"}
    span = dict(asked)
    if windows:
        span = {
            "since": min(edges[0] for edges in windows.values()),
            "until": max(edges[1] for edges in windows.values()),
        }
    names = ("coverage", "totals", "readings", "hidden", "not_measured", "source")
    return {
        "status": "ok" if windows else "no_data",
        "reason": "" if windows else "; ".join(missing.values()),
        "missing": missing,
        "statuses": {one.database: one.status for one in found},
        "asked": dict(asked),
        "window": span,
        "windows": windows,
        **{n: {one.database: v for one in found if (v := getattr(one, n))} for n in names},
    }


def window_before(
    since: datetime, until: datetime | None, compare_since: Time | None, compare_until: Time | None
) -> tuple[datetime, datetime]:
    """The window to compare with: of the same length, and right before unless it is given.

    Raises `ParameterError` when it is empty or overlaps the window from `since` to `until`.
    """
    now = datetime.now(UTC)
    length = (until or now) - since
    start = since - length
    if compare_since is not None:
        start = moment(compare_since, now=now, name="compare_since")
    end = start + length
    if compare_until is not None:
        end = moment(compare_until, now=now, name="compare_until")
    elif timedelta() < end - since < _SLACK:
        end = since
    if start >= end or (end > since and start < (until or now)):
        raise ParameterError(
            f"the window to compare with, {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} "
            f"UTC, is empty or overlaps the one from {since:%Y-%m-%d %H:%M:%S}; give a "
            "'compare_since' that is earlier by the length of the window or more.",
            name="compare_since",
        )
    return start, end
