"""Charts of the servers as a whole: every check in one matrix, and how the figures moved."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fwdb.charts import canvas as c
from fwdb.charts import words as w
from fwdb.charts.connections import line

# Marker, its colour, colour of the value, background: the meaning is in the shape as well.
_STATES = {
    "ok": ("o", c.BLUE, c.INK, None),
    "warning": ("^", c.ORANGE, c.AMBER_TEXT, c.WARNING_BAND),
    "critical": ("s", c.VERMILION, c.RED_TEXT, c.CRITICAL_BAND),
}
_ROW, _LABELS = 25.0, 168.0


@c.drawn
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
    footer = c.footer(source, window, w.plural(len(frame), "check"))
    if frame.empty:
        return c.empty("Nothing was checked", subtitle, footer, reason=reason)
    checks = frame["check"].astype(str)
    order = list(dict.fromkeys(checks))
    sheet = c.canvas(_finding(frame), subtitle, footer, drawing=44 + _ROW * len(order))
    wide = (c.WIDTH - c.MARGIN - _LABELS - c.MARGIN) / len(w.DATABASES)
    top = sheet.top - 34
    lefts = {name: c.MARGIN + _LABELS + i * wide for i, name in enumerate(w.DATABASES)}
    for name, title in w.DATABASES.items():
        sheet.text(lefts[name] + 8, top + 8, title, size=11, weight="bold")
    for number, check in enumerate(order):
        y = top - _ROW * (number + 1)
        sheet.box(c.MARGIN, y + _ROW, c.WIDTH - 2 * c.MARGIN, 0.6, c.GRID)
        label = c.fit(check, _LABELS - 8, size=10)
        sheet.text(c.MARGIN, y + _ROW / 2, label, size=10, **c.MIDDLE)
        for _, row in frame[checks == check].iterrows():
            _tile(sheet, row, lefts[str(row["database"])], y, wide)
    return sheet.figure


def _tile(sheet: c.Canvas, row: pd.Series[Any], left: float, y: float, wide: float) -> None:
    """One check of one store: its mark, its value, and why there is none."""
    marker, colour, ink, background = _STATES.get(str(row["status"]), ("o", c.GREY, c.MUTED, None))
    known = str(row["status"]) in _STATES
    middle, weight = y + _ROW / 2, "bold" if known else "normal"
    if background:
        sheet.box(left + 2, y + 1.5, wide - 4, _ROW - 3, background, zorder=-1)  # under the mark
    axes = sheet.axes(left + 8, middle - 6, left + 20, middle + 6)
    axes.set_axis_off()
    face = colour if known else "white"
    axes.plot([0], [0], marker, ms=7, mfc=face, mec=colour, mew=1.4, clip_on=False)
    x, right = left + 27, left + wide
    value = c.fit(str(row["value"]), right - x - 6, size=10, weight=weight)
    sheet.text(x, middle, value, size=10, weight=weight, color=ink, **c.MIDDLE)
    x += c.text_width(value, size=10, weight=weight) + 8
    if (note := str(row["note"])) and right - x > 30:
        short = c.fit(note, right - x - 4, size=8.5)
        sheet.text(x, middle, short, size=8.5, color=c.MUTED, **c.MIDDLE)


def _finding(frame: pd.DataFrame) -> str:
    """The worst state there is and the checks that are in it."""
    status = frame["status"].astype(str)
    for state in ("critical", "warning"):
        names = list(dict.fromkeys(frame["check"].astype(str)[status == state].str.lower()))
        if names:
            rest = f" and {len(names) - 3} more" if names[3:] else ""
            return f"{state.capitalize()}: {', '.join(names[:3])}{rest}"
    if judged := int(status.isin([*_STATES]).sum()):
        return f"All {judged} checks that could be judged are within their lines"
    return "No check could be judged"


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
_PANEL = 104.0
LEAST_POINTS = 2


@c.drawn
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
    parts: list[tuple[str, str, pd.Series[Any]]] = []
    for measure, database, title, unit in PANELS:
        rows = frame[(frame["measure"] == measure) & (frame["database"] == database)]
        dull = measure.startswith(("temp", "rollbacks")) and not (rows["value"] > 0).any()
        if len(rows) >= LEAST_POINTS and not dull:
            at = pd.DatetimeIndex(w.utc(rows["read_at"]))
            parts.append((title, unit, pd.Series([*rows["value"]], at, dtype=float).sort_index()))
    if not parts:
        footer = c.footer(source, w.window_text(since, until), "0 readings")
        return c.empty("There is no history to draw", subtitle, footer, reason=reason)
    times = pd.DatetimeIndex([time for _, _, series in parts for time in series.index]).unique()
    span = times.min(), times.max()
    title, unit, series = parts[0]
    most = f"{_amount(float(series.max()), unit)} at {series.idxmax():%H:%M:%S} UTC"
    sheet = c.canvas(
        f"{title} reached {most}",
        subtitle,
        c.footer(source, w.window_text(*span), w.plural(len(times), "reading")),
        drawing=8 + _PANEL * ((len(parts) + 1) // 2),
    )
    wide = (c.WIDTH - 2 * c.MARGIN - 24) / 2
    for number, (title, unit, series) in enumerate(parts):
        left = c.MARGIN + (number % 2) * (wide + 24)
        top = sheet.top - 8 - _PANEL * (number // 2)
        sheet.text(left, top - 4, title, size=10, weight="bold", va="top")
        last, most = _amount(float(series.iloc[-1]), unit), _amount(float(series.max()), unit)
        words = f"last {last}, most {most}"
        sheet.text(left + wide, top - 5, words, size=9, color=c.MUTED, va="top", ha="right")
        axes = sheet.axes(left, top - _PANEL + 28, left + wide, top - 22)
        line(axes, series, c.SKY if "MongoDB" in title else c.BLUE)
        # A ratio is drawn to 1, everything else to what it reached.
        axes.set_ylim(0, 1.04 if not unit else max(float(series.max()) * 1.12, 1e-9))
        axes.set_yticks([])
        axes.axhline(0, color=c.AXIS, lw=0.8)
        c.time_axis(axes, *span, most=5, inset=26 / wide)
        axes.tick_params(axis="x", labelsize=8.5, pad=2)
    return sheet.figure


def _amount(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        scales = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        scale, name = next(((s, n) for s, n in scales if value >= s), (1, "B"))
        scaled = value / scale
        text = f"{scaled:.0f}" if scaled >= 10 or scale == 1 else f"{scaled:.1f}"
        return f"{text} {name}{unit.removeprefix('bytes')}"
    if not unit:
        return f"{math.floor(1000 * value) / 1000:.3f}"  # cut: 0.9996 is not all of them
    return f"{w.compact(value) if value >= 10 else f'{value:.1f}'}{unit}"
