"""Charts of the servers as a whole: every check in one matrix, and how the figures moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fwdb.charts.canvas import (
    AMBER_TEXT,
    AXIS,
    BLUE,
    CRITICAL_BAND,
    DATABASES,
    GREY,
    GRID,
    INK,
    MARGIN,
    MUTED,
    ORANGE,
    RED_TEXT,
    SKY,
    VERMILION,
    WARNING_BAND,
    WIDTH,
    Canvas,
    canvas,
    compact,
    drawn,
    empty,
    fit,
    plural,
    text_width,
    thin,
    time_axis,
    utc,
    window_text,
)
from fwdb.charts.connections import alone, broken

# Marker, its colour, colour of the value, background: the meaning is in the shape as well.
_STATES = {
    "ok": ("o", BLUE, INK, None),
    "warning": ("^", ORANGE, AMBER_TEXT, WARNING_BAND),
    "critical": ("s", VERMILION, RED_TEXT, CRITICAL_BAND),
}
_ROW, _LABELS = 25.0, 168.0


@drawn
def health(
    frame: pd.DataFrame,
    *,
    source: str = "both servers",
    window: str = "",
    reason: str = "No check was made.",
) -> Figure:
    """Every check of both stores in one matrix: a row per check, a column per store.

    `frame` has a row per check and store: `check` (what a reader calls it), `database`, `status`
    (as in results), `value` as text, and `note`, why there is none. Filled marks are judged, open
    ones could not be; an empty cell is a check that the store does not have.
    """
    subtitle = "Dot: within its line; triangle: warning; square: critical; ring: could not be told"
    footer = " · ".join(part for part in (source, window, plural(len(frame), "check")) if part)
    if frame.empty:
        return empty("Nothing was checked", subtitle, footer, reason=reason)
    order = list(dict.fromkeys(frame["check"].astype(str)))
    sheet = canvas(_finding(frame), subtitle, footer, drawing=44 + _ROW * len(order))
    wide = (WIDTH - MARGIN - _LABELS - MARGIN) / len(DATABASES)
    top = sheet.top - 34
    lefts = {name: MARGIN + _LABELS + i * wide for i, name in enumerate(DATABASES)}
    for name, title in DATABASES.items():
        sheet.text(lefts[name] + 8, top + 8, title, size=11, weight="bold")
    for number, check in enumerate(order):
        y = top - _ROW * (number + 1)
        line = Rectangle(
            (MARGIN / WIDTH, (y + _ROW) / sheet.height),
            (WIDTH - 2 * MARGIN) / WIDTH,
            0.6 / sheet.height,
            facecolor=GRID,
        )
        sheet.figure.add_artist(line)
        label = fit(check, _LABELS - 8, size=10)
        sheet.text(MARGIN, y + _ROW / 2, label, size=10, va="center_baseline")
        for _, row in frame[frame["check"].astype(str) == check].iterrows():
            _tile(sheet, row, lefts[str(row["database"])], y, wide)
    return sheet.figure


def _tile(sheet: Canvas, row: pd.Series[Any], left: float, y: float, wide: float) -> None:
    """One check of one store: its mark, its value, and why there is none."""
    marker, colour, ink, background = _STATES.get(str(row["status"]), ("o", GREY, MUTED, None))
    known = str(row["status"]) in _STATES
    middle = y + _ROW / 2
    if background:
        sheet.figure.add_artist(
            Rectangle(
                ((left + 2) / WIDTH, (y + 1.5) / sheet.height),
                (wide - 4) / WIDTH,
                (_ROW - 3) / sheet.height,
                facecolor=background,
                zorder=-1,  # under the mark
            )
        )
    axes = sheet.axes(left + 8, middle - 6, left + 20, middle + 6)
    axes.set_axis_off()
    axes.plot(
        [0],
        [0],
        marker,
        ms=7,
        mfc=colour if known else "white",
        mec=colour,
        mew=1.4,
        clip_on=False,
    )
    x, room = left + 27, wide - 33
    value = fit(str(row["value"]), room, size=10, weight="bold" if known else "normal")
    weight = "bold" if known else "normal"
    sheet.text(x, middle, value, size=10, weight=weight, color=ink, va="center_baseline")
    x += text_width(value, size=10, weight=weight) + 8
    note = str(row["note"])
    if note and left + wide - x > 30:
        short = fit(note, left + wide - x - 4, size=8.5)
        sheet.text(x, middle, short, size=8.5, color=MUTED, va="center_baseline")


def _finding(frame: pd.DataFrame) -> str:
    """The worst state there is and the checks that are in it."""
    status = frame["status"].astype(str)
    for state in ("critical", "warning"):
        names = list(dict.fromkeys(frame["check"].astype(str)[status == state].str.lower()))
        if names:
            rest = f" and {len(names) - 3} more" if names[3:] else ""
            return f"{state.capitalize()}: {', '.join(names[:3])}{rest}"
    judged = int(status.isin(list(_STATES)).sum())
    if not judged:
        return "No check could be judged"
    return f"All {judged} checks that could be judged are within their lines"


# What is drawn of the trends: measure, store, title, unit as it is written beside the last value.
PANELS = (
    ("transactions_per_second", "postgres", "Transactions of PostgreSQL", "/s"),
    ("transactions_per_second", "mongodb", "Operations of MongoDB", "/s"),
    ("cache_hit_ratio", "postgres", "Cache hit ratio of PostgreSQL", ""),
    ("cache_hit_ratio", "mongodb", "Cache hit ratio of MongoDB", ""),
    ("rollbacks_per_second", "postgres", "Rollbacks of PostgreSQL", "/s"),
    ("database_bytes", "postgres", "Size of the PostgreSQL database", "bytes"),
    ("wal_bytes_per_second", "postgres", "Log written by PostgreSQL", "bytes/s"),
    ("temp_bytes_per_second", "postgres", "Temporary files of PostgreSQL", "bytes/s"),
)
_PANEL, _PANELS_MOST = 104.0, 8
LEAST_POINTS = 2


@drawn
def trends(
    frame: pd.DataFrame,
    *,
    since: pd.Timestamp | None = None,
    until: pd.Timestamp | None = None,
    source: str = "monitoring history",
    reason: str = "Fewer than two readings were stored in this window.",
) -> Figure:
    """How the figures of the servers moved in the window, one small panel each.

    `frame` has `read_at`, `database`, `measure` and `value`: a rate since the reading before, or
    a size. Measures of fewer than two points, and temporary files of nobody, have no panel.
    """
    subtitle = "Rates between one stored reading and the next; each panel has its own scale from 0"
    parts: list[tuple[str, str, pd.DataFrame]] = []
    for measure, database, title, unit in PANELS:
        rows = frame[(frame["measure"] == measure) & (frame["database"] == database)]
        dull = measure.startswith(("temp", "rollbacks")) and not (rows["value"] > 0).any()
        if len(rows) >= LEAST_POINTS and not dull:
            parts.append((title, unit, rows.sort_values("read_at")))
    if not parts:
        window = (
            f" · {window_text(since, until)}" if since is not None and until is not None else ""
        )
        return empty(
            "There is no history to draw", subtitle, f"{source}{window} · 0 readings", reason=reason
        )
    times = utc(pd.concat([rows["read_at"] for _, _, rows in parts]))
    start, end = times.min(), times.max()
    rows_of_panels = (len(parts) + 1) // 2
    sheet = canvas(
        _trend_finding(parts),
        subtitle,
        f"{source} · {window_text(start, end)} · {plural(times.nunique(), 'reading')}",
        drawing=8 + _PANEL * rows_of_panels,
    )
    wide = (WIDTH - 2 * MARGIN - 24) / 2
    for number, (title, unit, rows) in enumerate(parts):
        left = MARGIN + (number % 2) * (wide + 24)
        top = sheet.top - 8 - _PANEL * (number // 2)
        _panel(sheet, title, unit, rows, (left, top, wide), (start, end))
    return sheet.figure


def _panel(
    sheet: Canvas,
    title: str,
    unit: str,
    rows: pd.DataFrame,
    where: tuple[float, float, float],
    span: tuple[pd.Timestamp, pd.Timestamp],
) -> None:
    left, top, wide = where
    values = rows["value"].to_numpy(dtype=float)
    sheet.text(left, top - 4, title, size=10, weight="bold", va="top")
    last = f"last {_amount(values[-1], unit)}, most {_amount(float(np.max(values)), unit)}"
    sheet.text(left + wide, top - 5, last, size=9, color=MUTED, va="top", ha="right")
    axes: Axes = sheet.axes(left, top - _PANEL + 28, left + wide, top - 22)
    x, y = broken(pd.Series(values, index=pd.DatetimeIndex(utc(rows["read_at"]))))
    colour = SKY if "MongoDB" in title else BLUE
    axes.plot(*thin(x, y), color=colour, lw=1.7)
    lonely = alone(y) if len(x) > 3 else np.full(len(x), True)  # so few are points and no course
    axes.plot(x[lonely], y[lonely], "o", color=colour, ms=3.5, clip_on=False)
    # A ratio is drawn to 1, everything else to what it reached.
    axes.set_ylim(0, 1.04 if not unit else max(float(np.max(values)) * 1.12, 1e-9))
    axes.set_yticks([])
    axes.axhline(0, color=AXIS, lw=0.8)
    time_axis(axes, *span)
    low, high = axes.get_xlim()
    every = 2 if len(axes.get_xticks()) > 5 else 1  # half the width has room for half the labels
    kept = [
        (tick, label.get_text())
        for tick, label in zip(
            axes.get_xticks()[::every], axes.get_xticklabels()[::every], strict=True
        )
        # A label that would stand out at either end has no room there.
        if 26 <= (tick - low) / (high - low) * wide <= wide - 26
    ]
    axes.set_xticks([tick for tick, _ in kept], labels=[text for _, text in kept])
    axes.tick_params(axis="x", labelsize=8.5, pad=2)


def _amount(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        scale, name = next(
            ((s, n) for s, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1, "B")
        )
        number = value / scale
        text = f"{number:.0f}" if number >= 10 or scale == 1 else f"{number:.1f}"
        return f"{text} {name}{unit.removeprefix('bytes')}"
    if not unit:
        return f"{math.floor(1000 * value) / 1000:.3f}"  # cut: 0.9996 is not all of them
    return f"{compact(value) if value >= 10 else f'{value:.1f}'}{unit}"


def _trend_finding(parts: list[tuple[str, str, pd.DataFrame]]) -> str:
    title, unit, rows = parts[0]
    highest = rows.sort_values("value").iloc[-1]
    moment = utc(pd.Timestamp(highest["read_at"]))
    return f"{title} reached {_amount(float(highest['value']), unit)} at {moment:%H:%M:%S} UTC"
