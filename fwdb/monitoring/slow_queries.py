"""The statements of both stores that cost most in a window, and what changed since another."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pandas as pd

from fwdb.arguments import Count, Seconds
from fwdb.errors import FwdbError, ParameterError
from fwdb.monitoring import commands
from fwdb.monitoring import statements as recorded
from fwdb.monitoring.context import APPLICATION, Context, frame
from fwdb.monitoring.history import History, window
from fwdb.monitoring.readings import Row
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
        span = window_before(start, end, compare_since, None) if growing else None
        found, asked = _past(self, start, end), {"since": start, "until": end}
        if span:
            earlier = {one.database: one for one in _past(self, *span) if one.window}
    elif growing:
        raise ParameterError(
            "a window watched live has none before it; leave 'live_seconds' out to "
            "compare two of the history.",
            name="live_seconds",
        )
    else:
        found = _live(self, live_seconds)
    _require_one(found)
    rows = []
    for one in found:
        old = earlier.get(one.database)
        then = {row["query_id"]: row["total_ms"] for row in old.statements} if old else {}
        lengths = _times_as_long(old, one) if old and one.window else 0.0
        for row in one.statements:
            share = 100 * row["total_ms"] / one.total_ms if one.total_ms else 0.0
            # Beyond the time of an equally long part of the window before.
            grown = row["total_ms"] - lengths * then.get(row["query_id"], 0) if old else None
            rows.append({**row, "share_percent": share, "growth_ms": grown})
    listed = frame(COLUMNS, rows)
    listed = listed[listed["mean_ms"] >= least]
    column = ORDERS[order]
    if order == "io" and listed["read_ms"].isna().all():
        column = "read_blocks"
    if order in _COSTS:
        listed = listed[listed[column].fillna(0) > 0]
    listed = listed.sort_values(
        [column, "total_ms", "query_id"], ascending=[False, False, True], na_position="last"
    )
    listed = listed.head(top).reset_index(drop=True)
    listed.attrs.update(_attrs(found, asked), order=order, ordered_by=column)
    return listed


def _past(self: Context, since: datetime, until: datetime | None) -> list[StoreWindow]:
    """What both stores' statements did in a window of the history."""
    history: History | None = self.history
    try:
        found = recorded.past(self.postgres, self.history, since, until)
    except FwdbError as error:
        found = StoreWindow("postgres", "not_available", str(error), error=error)
        history = None  # the history is in the same database
    profile = commands.profiled(self.mongodb, since, until, APPLICATION)
    return [found, commands.past(self.ledger, history, since, until, profile)]


def _live(self: Context, seconds: float) -> list[StoreWindow]:
    watched, began = self.watched[1], datetime.now(UTC)
    before, deadline = watched.commands(), time.monotonic() + seconds
    try:
        found = recorded.live(self.postgres, seconds)
    except FwdbError as error:
        found = StoreWindow("postgres", "not_available", str(error), error=error)
        time.sleep(max(0.0, deadline - time.monotonic()))
    after = watched.commands()
    profile = commands.profiled(self.mongodb, began, None, APPLICATION)
    return [found, commands.live(before, after, profile)]


def _require_one(found: Iterable[StoreWindow]) -> None:
    """Raises the error of a store that cannot be asked when none has a window."""
    stores = list(found)
    if not any(one.window for one in stores):
        for one in stores:
            if one.error:
                raise one.error


def _times_as_long(before: StoreWindow, now: StoreWindow) -> float:
    """How many times as long the second window is as the first; both must have one."""
    lengths = []
    for one in (before, now):
        assert one.window is not None
        lengths.append((one.window[1] - one.window[0]).total_seconds())
    return lengths[1] / max(lengths[0], 1e-3)


def _attrs(found: Sequence[StoreWindow], asked: Mapping[str, datetime | None]) -> dict[str, Any]:
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


# -- what changed from one window to another ------------------------------------------------------

# The rule and its figures are those of a simulation: log-normal times with a coefficient of
# variation of about 1, one in a hundred 20 times as long, a drift of 10 %. With 30, 100 and 1,000
# calls in each window the lower bound of the ratio passes 1.25 by chance in under 3 % of the
# cases, and finds a doubling in about 4, 6 and 9 of 10;
# `tests/monitoring/test_query_changes.py` repeats it.
LEAST_CALLS = 30  # in both windows; with fewer, the bounds of a mean say nothing
LEAST_RATIO = 1.25
LEAST_SHARE = 0.01  # of the time in all statements; what costs less is not worth a search
LEAST_SHAPES = 4  # of which more than half slow alike: fewer may be so by chance
CAUSE_RATIO = 1.5  # from which a change beside the time is named as its cause
CAUSE_HITS = 0.05  # by which the share of blocks found in memory must fall
_Z = 1.96  # two-sided 95 % of the normal distribution

KINDS = ("slower", "new", "vanished", "faster", "unjudged", "similar")

CHANGE_COLUMNS = {
    "database": "string",
    "query_id": "string",
    "statement": "string",
    "change": "string",
    "calls_before": "Int64",
    "calls": "Int64",
    "mean_before_ms": "float64",
    "mean_ms": "float64",
    "ratio": "float64",
    "ratio_low": "float64",
    "ratio_high": "float64",
    "extra_ms": "float64",
    "total_before_ms": "float64",
    "total_ms": "float64",
    "remark": "string",
}
_BEFORE = {"calls": "calls_before", "mean_ms": "mean_before_ms", "total_ms": "total_before_ms"}

# What may have grown with the time, and how that is said; the likeliest cause first.
_CAUSES = {
    "rows_per_call": "rows per call {} (data)",
    "blocks_per_call": "blocks per call {} ({})",
    "docs_examined_per_call": "documents examined per call {} (plan or data, maybe a lost index)",
    "temp_kb_per_call": "temporary files {} kB per call (spill: work_mem is too small)",
    "hit_ratio": "blocks found in memory {:.0f} → {:.0f} % (cache)",
    "read_ms_per_block": "time per block read {} ms (disk)",
}


def query_changes(
    self: Context,
    since: Time = "24h",
    until: Time | None = None,
    *,
    compare_since: Time | None = None,
    compare_until: Time | None = None,
    top: Count = 20,
) -> pd.DataFrame:
    """What changed in the statements of both stores from another window to this one.

    The other window begins at `compare_since`, else as much earlier as this one is long, and
    is as long unless `compare_until` ends it. One row per statement, at most `top` of each
    `change`, which is one of

    - ``slower``: the lower 95 % bound of the ratio of the means exceeds 1.25, with 30 calls
      in both windows, and it cost 1 % of the window's time or more; `remark` names what
      changed with it,
    - ``new`` and ``vanished``: it ran in one of the windows only,
    - ``faster``: the opposite of slower,
    - ``unjudged``: too few calls, ``similar``: none of these.

    `extra_ms` is the change of the mean × the calls of this window. ``attrs`` are those of
    `slow_queries`, those of the other window as `before`, and `whole_server`: per store the
    factor by which it as a whole got slower, when more than half of the statements did alike;
    then only what slowed by more is ``slower``. Raises like `slow_queries`.
    """
    start, end = window(since, until)
    earlier = _past(self, *window_before(start, end, compare_since, compare_until))
    later = _past(self, start, end)
    for windows in (later, earlier):
        _require_one(windows)
    found: list[dict[str, Any]] = []
    whole: dict[str, float] = {}
    missing: dict[str, str] = {}
    for old, new in zip(earlier, later, strict=True):
        if new.window is None:
            missing[new.database] = new.reason
        elif old.window is None:
            missing[new.database] = f"the window before: {old.reason}"
        else:
            lengths = _times_as_long(old, new)
            mine, factor = changes(old.statements, new.statements, new.total_ms, lengths)
            if factor is not None:
                whole[new.database] = factor
            for kind in KINDS:
                found += [change for change in mine if change["change"] == kind][:top]
    found.sort(key=lambda change: KINDS.index(change["change"]))
    nothing = len(missing) == len(later)
    told = _attrs(later, {"since": start, "until": end}) | {
        "status": "no_data" if nothing else "ok",
        "reason": "; ".join(missing.values()) if nothing else "",
        "missing": missing,
        "whole_server": whole,
        "before": _attrs(earlier, {}),
    }
    return frame(CHANGE_COLUMNS, found, **told)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Mean time now ÷ mean time before, with its 95 % bounds."""

    value: float
    low: float
    high: float


def mean_ratio(before: Row, now: Row) -> Ratio | None:
    """The ratio of the means, its bounds by the delta method on the logarithm.

    log(m₂/m₁) ± 1.96 · sqrt(s₁²/(n₁·m₁²) + s₂²/(n₂·m₂²)). None when a mean is 0 or there is
    one call only.
    """
    spread = 0.0
    for one in (before, now):
        calls, mean = one["calls"], one["mean_ms"]
        if calls < 2 or one["total_ms"] <= 0:
            return None
        sample = one["stddev_ms"] ** 2 * calls / (calls - 1)
        spread += sample / (calls * mean**2)
    value, width = math.log(now["mean_ms"] / before["mean_ms"]), _Z * math.sqrt(spread)
    # A clock that always shows the same time gives no width and is not for that certain.
    return Ratio(math.exp(value), math.exp(value - width), math.exp(value + width))


def changes(
    before: Iterable[Row], now: Iterable[Row], total_ms: float, lengths: float
) -> tuple[list[dict[str, Any]], float | None]:
    """All changes of one store, the most expensive of each kind first, and the server's own.

    `total_ms` is the time in all statements of the later window, `lengths` how many times as
    long that is as the earlier one. The second value is the factor by which the whole server
    got slower, or None: when more than half of the shapes slow by the same factor it is the
    server that did, and only what slowed by more than that is a regression of its own.
    """
    earlier = {row["query_id"]: row for row in before}
    later = {row["query_id"]: row for row in now}
    both = later.keys() & earlier.keys()
    ratios = {
        id: ratio
        for id in both
        if min(earlier[id]["calls"], later[id]["calls"]) >= LEAST_CALLS
        and (ratio := mean_ratio(earlier[id], later[id]))
    }
    whole = whole_server(ratios.values())
    found = [
        _judged(earlier[id], later[id], ratios.get(id), whole, total_ms, lengths) for id in both
    ]
    found += [_change("new", None, later[id]) for id in later.keys() - both]
    found += [_change("vanished", earlier[id], None) for id in earlier.keys() - both]

    def order(change: Row) -> tuple[int, float, str]:
        extra = change["extra_ms"]
        cost = (later | earlier)[change["query_id"]]["total_ms"] if extra is None else abs(extra)
        return KINDS.index(change["change"]), -cost, change["query_id"]

    return sorted(found, key=order), whole


def _change(
    kind: str,
    before: Row | None,
    now: Row | None,
    ratio: Ratio | None = None,
    extra_ms: float | None = None,
    remark: str = "",
) -> dict[str, Any]:
    """A row of `query_changes`."""
    one = now or before or {}
    return {
        **{name: one.get(name) for name in ("database", "query_id", "statement")},
        "change": kind,
        **{name: now[name] for name in _BEFORE if now},
        **{old: before[name] for name, old in _BEFORE.items() if before},
        "ratio": ratio and ratio.value,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
        "extra_ms": extra_ms,
        "remark": remark,
    }


def whole_server(ratios: Iterable[Ratio]) -> float | None:
    """The common factor, when more than half of the shapes got slower by about the same one."""
    known = list(ratios)
    if len(known) < LEAST_SHAPES:
        return None
    factor = statistics.median(ratio.value for ratio in known)
    alike = sum(
        ratio.low > 1 and ratio.low <= factor * LEAST_RATIO and ratio.high >= factor / LEAST_RATIO
        for ratio in known
    )
    return factor if factor > LEAST_RATIO and alike > len(known) / 2 else None


def _judged(
    before: Row,
    now: Row,
    ratio: Ratio | None,
    whole: float | None,
    total_ms: float,
    lengths: float,
) -> dict[str, Any]:
    extra = (now["mean_ms"] - before["mean_ms"]) * now["calls"]
    if ratio is None:
        few = f"too few calls to judge (n={min(before['calls'], now['calls'])})"
        return _change("unjudged", before, now, mean_ratio(before, now), extra, few)
    kind, remark = "similar", "; ".join(causes(before, now, lengths))
    if ratio.low / (whole or 1.0) > LEAST_RATIO and extra >= LEAST_SHARE * total_ms:
        kind = "slower"
    elif ratio.high < 1 / LEAST_RATIO and -extra >= LEAST_SHARE * total_ms:
        kind = "faster"
    elif whole and ratio.low > 1:
        remark = f"like the whole server, which is {whole:.1f} times as slow"
    elif ratio.low > LEAST_RATIO:
        remark = f"slower, and costs under {LEAST_SHARE:.0%} of the time"
    return _change(kind, before, now, ratio, extra, remark)


def causes(before: Row, now: Row, lengths: float) -> list[str]:
    """What else changed with the time of a statement, the likeliest cause first."""
    found = []
    more_rows = _grew(before.get("rows_per_call"), now.get("rows_per_call"))
    why = "data" if more_rows else "plan or data, maybe a lost index"
    for name, sentence in _CAUSES.items():
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            continue
        if name == "hit_ratio":
            if old - new >= CAUSE_HITS:
                found.append(sentence.format(100 * old, 100 * new))
        elif _grew(old, new):
            found.append(sentence.format(f"{_plain(old)} → {_plain(new)}", why))
    if _grew(before["calls"] * lengths, now["calls"]):
        times = now["calls"] / (before["calls"] * lengths)
        found.append(f"{times:.1f} times as many calls (application)")
    return found


def _grew(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return False
    # From 0, any whole unit is a change; less may be a single row in a thousand calls.
    return now >= CAUSE_RATIO * before if before else now >= 1


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
