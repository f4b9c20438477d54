"""The statements of both stores that cost most in a window, and what changed since another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pandas as pd

from fwdb.errors import FwdbError, ParameterError
from fwdb.monitoring import commands
from fwdb.monitoring.commands import CommandLedger
from fwdb.monitoring.comparison import KINDS, Change, compared, growth
from fwdb.monitoring.history import History
from fwdb.monitoring.profiler import profiled
from fwdb.monitoring.windows import (
    Half,
    Statement,
    failed,
    mongodb_half,
    postgres_live,
    postgres_window,
)
from fwdb.stores import MongoStore, PostgresStore, frames
from fwdb.timespan import Time, moment

COLUMNS = {
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
    "docs_examined_per_call": "float64",
    "growth_ms": "float64",
    "lower_bound": "bool",
}

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
# Who asks for the window right before this one must not be refused for the time he took to ask.
_SLACK = timedelta(minutes=1)

# Lists of what cost something: a statement that wrote no temporary file is not the last of those
# that did.
_COSTS = ("io", "temp", "wal", "growth")


class SlowQueries:
    """What the statements of both stores did, in windows of the history or live."""

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        watching: MongoStore,
        ledger: CommandLedger,
        history: History,
        *,
        application: str,
    ) -> None:
        self._postgres = postgres
        self._mongodb = mongodb
        self._watching = watching
        self._ledger = ledger
        self._history = history
        self._application = application

    def past(self, since: datetime, until: datetime | None) -> list[Half]:
        """Both halves of a window of the history."""
        halves = []
        history: History | None = self._history
        try:
            halves.append(postgres_window(self._postgres, self._history, since, until))
        except FwdbError as error:
            halves.append(failed("postgres", error))
            history = None  # the history is in the same database
        found = commands.window(self._ledger, history, since, until)
        return [*halves, self._mongodb_half(found, since, until)]

    def live(self, seconds: float) -> list[Half]:
        """Both halves of the next `seconds`."""
        before, began = self._mongodb.commands(), datetime.now(UTC)
        deadline = time.monotonic() + seconds
        halves = []
        try:
            halves.append(postgres_live(self._postgres, seconds))
        except FwdbError as error:
            halves.append(failed("postgres", error))
            time.sleep(max(0.0, deadline - time.monotonic()))
        found = commands.live(before, self._mongodb.commands(), (began, datetime.now(UTC)))
        return [*halves, self._mongodb_half(found, began, None)]

    def _mongodb_half(
        self, found: commands.CommandWindow, since: datetime, until: datetime | None
    ) -> Half:
        profile = profiled(self._watching, since, until, self._application)
        return mongodb_half(found, profile)


def ranked(
    halves: Iterable[Half],
    *,
    min_ms: float,
    top: int,
    order: str,
    asked: Mapping[str, datetime | None],
    before: Iterable[Half] = (),
) -> pd.DataFrame:
    """One frame of both halves in the order asked for; see `Monitor.slow_queries`."""
    halves = list(halves)
    _raise_if_all_failed(halves)
    earlier = {half.database: half for half in before if half.window}
    rows = []
    for half in halves:
        grown = (
            growth(earlier[half.database], half)
            if half.window and half.database in earlier
            else None
        )
        rows += [_row(s, half, grown) for s in half.statements]
    frame = frames.from_rows(list(COLUMNS), rows, COLUMNS)
    frame = frame[frame["mean_ms"] >= min_ms]
    column = ORDERS[order]
    if order == "io" and frame["read_ms"].isna().all():
        column = "read_blocks"
    if order in _COSTS:
        frame = frame[frame[column].fillna(0) > 0]
    frame = frame.sort_values(
        [column, "total_ms", "query_id"], ascending=[False, False, True], na_position="last"
    )
    frame = frame.head(top).reset_index(drop=True)
    frame.attrs.update(_attrs(halves, asked), order=order, ordered_by=column)
    return frame


def _row(one: Statement, half: Half, grown: Mapping[str, float] | None) -> list[Any]:
    return [
        one.database,
        one.query_id,
        one.text,
        one.calls,
        one.errors,
        one.total_ms,
        one.mean_ms,
        one.stddev_ms,
        one.rows,
        one.rows_per_call,
        100 * one.total_ms / half.total_ms if half.total_ms else 0.0,
        one.hit_blocks,
        one.read_blocks,
        one.blocks_per_call,
        one.hit_ratio,
        one.read_ms,
        one.temp_bytes,
        one.wal_bytes,
        one.plan_ms,
        one.docs_examined_per_call,
        grown[one.query_id] if grown is not None else None,
        one.lower_bound,
    ]


def changed(
    before: Iterable[Half],
    now: Iterable[Half],
    *,
    top: int,
    asked: Mapping[str, datetime | None],
) -> pd.DataFrame:
    """One frame of what changed between two windows; see `Monitor.query_changes`."""
    earlier, later = list(before), list(now)
    _raise_if_all_failed(later)
    _raise_if_all_failed(earlier)
    found: list[Change] = []
    whole: dict[str, float] = {}
    missing: dict[str, str] = {}
    for old, new in zip(earlier, later, strict=True):
        if old.window is None or new.window is None:
            half, which = (new, "") if new.window is None else (old, "the window before: ")
            missing[new.database] = which + half.reason
            continue
        mine, factor = compared(old, new)
        if factor is not None:
            whole[new.database] = factor
        for kind in KINDS:
            found += [change for change in mine if change.kind == kind][:top]
    found.sort(key=lambda change: KINDS.index(change.kind))
    rows = [_change_row(change) for change in found]
    frame = frames.from_rows(list(CHANGE_COLUMNS), rows, CHANGE_COLUMNS)
    compared_windows = len(missing) < len(later)
    frame.attrs.update(
        _attrs(later, asked),
        status="ok" if compared_windows else "no_data",
        reason="" if compared_windows else "; ".join(missing.values()),
        missing=missing,
        whole_server=whole,
        before=_attrs(earlier, {}),
    )
    return frame


def _change_row(change: Change) -> list[Any]:
    one, old, new, ratio = change.statement, change.before, change.now, change.ratio
    return [
        one.database,
        one.query_id,
        one.text,
        change.kind,
        old.calls if old else None,
        new.calls if new else None,
        old.mean_ms if old else None,
        new.mean_ms if new else None,
        ratio.value if ratio else None,
        ratio.low if ratio else None,
        ratio.high if ratio else None,
        change.extra_ms,
        old.total_ms if old else None,
        new.total_ms if new else None,
        change.remark,
    ]


def _raise_if_all_failed(halves: list[Half]) -> None:
    if not any(half.window for half in halves):
        for half in halves:
            if half.error:
                raise half.error


def _attrs(halves: list[Half], asked: Mapping[str, datetime | None]) -> dict[str, Any]:
    windows = {half.database: half.window for half in halves if half.window}
    missing = {half.database: half.reason for half in halves if half.status != "ok"}
    found: dict[str, Any] = {
        "status": "ok" if windows else "no_data",
        "reason": "" if windows else "; ".join(missing.values()),
        "missing": missing,
        "statuses": {half.database: half.status for half in halves},
        "asked": dict(asked),
        "window": {
            "since": min(window[0] for window in windows.values()),
            "until": max(window[1] for window in windows.values()),
        }
        if windows
        else dict(asked),
        "windows": windows,
    }
    for name in ("coverage", "totals", "readings", "hidden", "not_measured", "source"):
        found[name] = {h.database: getattr(h, name) for h in halves if getattr(h, name)}
    return found


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
