"""Charts of statements: which are slow, and which take the most time in all."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fwdb.arguments import checks_arguments
from fwdb.charts.canvas import (
    AXIS,
    BLUE,
    GREY,
    GRID,
    INK,
    MARGIN,
    MUTED,
    RED_TEXT,
    VERMILION,
    WIDTH,
    Canvas,
    canvas,
    clean,
    compact,
    drawn,
    empty,
    fit,
    number,
    plural,
    share,
    text_width,
)

MOST_ROWS = 20
MOST_SHARES = 8
MOST_CHANGES = 12
ROW = 25.0


def milliseconds(value: float) -> str:
    """A duration in the unit people would use: `250 µs`, `12 ms`, `1.3 s`, `2 min`."""
    for limit, unit, size in ((1, "µs", 0.001), (1000, "ms", 1), (120_000, "s", 1000)):
        if value < limit * 0.9995:
            scaled = value / size
            return (
                f"{scaled:.0f} {unit}"
                if scaled >= 9.95 or scaled == round(scaled)
                else f"{scaled:.1f} {unit}"
            )
    return f"{value / 60_000:.0f} min"


@checks_arguments
def shorten(statement: str) -> str:
    """A statement as one line to recognise it by: comments and long column lists left out.

    >>> shorten("SELECT id, name, email FROM shared.users /* fwdb */ WHERE id = $1")
    'SELECT … FROM shared.users WHERE id = $1'
    """
    text = re.sub(r"/\*.*?\*/", " ", statement, flags=re.DOTALL)
    text = clean(re.sub(r"--[^\n]*", " ", text))
    text = re.sub(r"(?i)^(select(?: distinct)?) .{12,}? (from) ", r"\1 … \2 ", text)
    return re.sub(r"(?i)^(insert into \S+) ?\(.*$", r"\1 …", text) or clean(statement)


@drawn
def slow_queries(
    frame: pd.DataFrame,
    *,
    min_ms: float = 100,
    source: str = "statement statistics",
    window: str = "",
    reason: str = "No statement ran in this window.",
) -> Figure:
    """Mean time per call of each statement, slowest first, against the threshold `min_ms`.

    `frame` has a row per statement: `statement`, `calls`, `mean_ms`, and when known `stddev_ms`
    (drawn as a bar from the mean upwards) and `database`. At most 20 rows are drawn.
    """
    subtitle = (
        "Mean time per call (dot) and one standard deviation more (bar), log scale, slowest first"
    )
    footer = " · ".join(part for part in (source, window, plural(len(frame), "statement")) if part)
    known = frame.dropna(subset=["mean_ms"])
    if known.empty:
        return empty(
            f"No statement is slower than {milliseconds(min_ms)}", subtitle, footer, reason=reason
        )
    known = known.sort_values(["mean_ms", "statement"], ascending=[False, True], kind="stable")
    slow = int((known["mean_ms"] >= min_ms).sum())
    if slow == 0:
        finding = f"No statement is slower than {milliseconds(min_ms)} on average"
    elif len(known) == 1:
        worst = milliseconds(float(known["mean_ms"].iloc[0]))
        finding = f"The one statement measured takes {worst} on average"
    elif slow == len(known):
        finding = f"All {number(slow)} statements are slower than {milliseconds(min_ms)} on average"
    else:
        finding = (
            f"{number(slow)} of {plural(len(known), 'statement')} "
            f"{'is' if slow == 1 else 'are'} slower than {milliseconds(min_ms)} on average"
        )
    rows = known.head(MOST_ROWS)
    if len(known) > len(rows):
        footer += f", the slowest {len(rows)} drawn"
    sheet = canvas(finding, subtitle, footer, drawing=60 + ROW * len(rows))
    both = "database" in rows and rows["database"].nunique() > 1
    labels = _labels(rows, both=both, width=290)
    left = MARGIN + max(text_width(t, size=9, mono=True) for t in labels) + 10
    right = WIDTH - 74
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 30)
    mean = rows["mean_ms"].to_numpy(dtype=float).clip(min=1e-3)
    spread = rows["stddev_ms"].fillna(0).to_numpy(dtype=float) if "stddev_ms" in rows else 0 * mean
    high = mean + spread
    low = min(mean.min(), min_ms) / 1.6
    axes.set_xscale("log")
    axes.set_xlim(low, max(high.max(), min_ms) * 1.6)
    ys = np.arange(len(rows))[::-1]
    colours = [VERMILION if m >= min_ms else BLUE for m in mean]
    axes.hlines(ys, mean, high, color=colours, lw=6, alpha=0.35, zorder=3)
    axes.scatter(mean, ys, s=52, color=colours, zorder=4)
    axes.axvline(min_ms, color=MUTED, lw=1.2, dashes=(4, 3), zorder=2)
    _time_ticks(axes)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, lw=0.8, which="major")
    box = axes.get_position()
    top = sheet.top - 18
    at = (box.x0 + (np.log(min_ms / low) / np.log(axes.get_xlim()[1] / low)) * box.width) * WIDTH
    text = f"slow ≥ {milliseconds(min_ms)}"
    half = text_width(text, size=9.5) / 2
    sheet.text(
        min(max(at, MARGIN + half), right - half - 4), top, text, size=9.5, color=MUTED, ha="center"
    )
    sheet.text(right + 12, top, "calls", size=9.5, color=MUTED)
    for y, label, calls in zip(ys, labels, rows["calls"], strict=True):
        height = (box.y0 + (y + 0.5) / len(rows) * box.height) * sheet.height
        sheet.text(
            left - 10, height, label, size=9, ha="right", va="center_baseline", family="monospace"
        )
        sheet.text(
            right + 12, height, compact(float(calls), most=1e7), size=9.5, va="center_baseline"
        )
    return sheet.figure


def _labels(rows: pd.DataFrame, *, both: bool, width: float) -> list[str]:
    texts = [shorten(str(s)) for s in rows["statement"]]
    if both:
        marks = {"postgres": " · pg", "mongodb": " · mongo"}
        ends = [marks.get(str(d), f" · {d}") for d in rows["database"]]
        room = width - max(text_width(end, size=9, mono=True) for end in ends)
        return [fit(t, room, size=9, mono=True) + e for t, e in zip(texts, ends, strict=True)]
    return [fit(t, width, size=9, mono=True) for t in texts]


def _time_ticks(axes: Axes) -> None:
    """Decades as people say them: 1 ms, 100 ms, 1 s."""
    low, high = axes.get_xlim()
    decades = [10.0**e for e in range(-3, 9) if low <= 10.0**e <= high]
    every = max(1, (len(decades) + 5) // 6)
    ticks = decades[::every]
    if len(ticks) < 2:
        ticks = [m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_xticks(ticks, labels=[milliseconds(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=4, color=AXIS)


@drawn
def query_changes(
    frame: pd.DataFrame,
    *,
    source: str = "statement statistics",
    window: str = "",
    reason: str = "No statement ran in both windows.",
) -> Figure:
    """Mean time per call of each statement before and now, those that got slower on top.

    `frame` has a row per statement: `statement`, `change`, `mean_before_ms`, `mean_ms`, `ratio`,
    `extra_ms`, and when known `database`. Those that ran in one window only are not drawn.
    """
    subtitle = "Mean time per call before (open dot) and now (filled dot), log scale"
    footer = " · ".join(part for part in (source, window, plural(len(frame), "statement")) if part)
    known = frame.dropna(subset=["mean_before_ms", "mean_ms"])
    if known.empty:
        return empty("No statement can be compared", subtitle, footer, reason=reason)
    known = known.assign(
        _slower=known["change"] == "slower", _cost=known["extra_ms"].fillna(0).abs()
    ).sort_values(["_slower", "_cost", "statement"], ascending=[False, False, True], kind="stable")
    slower = known[known["_slower"]]
    if slower.empty:
        finding = "No statement got slower for sure"
    elif len(slower) == 1:
        finding = f"One statement takes {_times(float(slower['ratio'].iloc[0]))} as long as before"
    else:
        finding = f"{number(len(slower))} statements got slower than before"
    rows = known.head(MOST_CHANGES)
    if len(known) > len(rows):
        footer += f", the {len(rows)} that changed most drawn"
    sheet = canvas(finding, subtitle, footer, drawing=60 + ROW * len(rows))
    both = "database" in rows and rows["database"].nunique() > 1
    labels = _labels(rows, both=both, width=290)
    left = MARGIN + max(text_width(t, size=9, mono=True) for t in labels) + 10
    right = WIDTH - 88
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 30)
    before = rows["mean_before_ms"].to_numpy(dtype=float).clip(min=1e-3)
    now = rows["mean_ms"].to_numpy(dtype=float).clip(min=1e-3)
    axes.set_xscale("log")
    axes.set_xlim(min(before.min(), now.min()) / 1.6, max(before.max(), now.max()) * 1.6)
    ys = np.arange(len(rows))[::-1]
    colours = [VERMILION if slow else BLUE for slow in rows["_slower"]]
    axes.hlines(ys, before, now, color=colours, lw=6, alpha=0.35, zorder=3)
    axes.scatter(before, ys, s=46, facecolor="white", edgecolor=colours, lw=2, zorder=4)
    axes.scatter(now, ys, s=52, color=colours, zorder=5)
    _time_ticks(axes)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, lw=0.8, which="major")
    box = axes.get_position()
    sheet.text(right + 12, sheet.top - 18, "now ÷ before", size=9.5, color=MUTED)
    for y, label, ratio, slow in zip(ys, labels, now / before, rows["_slower"], strict=True):
        height = (box.y0 + (y + 0.5) / len(rows) * box.height) * sheet.height
        sheet.text(
            left - 10, height, label, size=9, ha="right", va="center_baseline", family="monospace"
        )
        sheet.text(
            right + 12,
            height,
            f"{ratio:.0f} ×" if ratio >= 9.95 else f"{ratio:.2f} ×",
            size=9.5,
            va="center_baseline",
            color=RED_TEXT if slow else INK,
        )
    return sheet.figure


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.95 else f"{ratio:.1f} times"


@drawn
def load_split(
    frame: pd.DataFrame,
    *,
    source: str = "statement statistics",
    window: str = "",
    reason: str = "No statement ran in this window.",
) -> Figure:
    """Which statements take the time of the server: the share of each in the total.

    `frame` has a row per statement: `statement`, `total_ms`, and `share_percent` of all time in
    the window when it is known. The eight heaviest are drawn and the rest as one bar.
    """
    subtitle = "Share of all time spent in statements, percent, heaviest first; time at the right"
    footer = " · ".join(part for part in (source, window, plural(len(frame), "statement")) if part)
    known = frame.dropna(subset=["total_ms"])
    known = known[known["total_ms"] > 0]
    if known.empty:
        return empty("Nothing took any time", subtitle, footer, reason=reason)
    known = known.sort_values(["total_ms", "statement"], ascending=[False, True], kind="stable")
    shares = known["total_ms"] / known["total_ms"].sum() * 100
    if "share_percent" in known and known["share_percent"].notna().all():
        shares = known["share_percent"].astype(float)
    top = known.head(MOST_SHARES)
    entries = [
        (shorten(str(s)), float(p), float(t))
        for s, p, t in zip(top["statement"], shares, top["total_ms"], strict=False)
    ]
    rest = max(0.0, 100 - sum(p for _, p, _ in entries))
    heavy = _heavy(entries)
    taken = sum(p for _, p, _ in entries[:heavy])
    finding = (
        f"One statement takes {share(taken)} of the time"
        if heavy == 1
        else f"{number(heavy)} statements take {share(taken)} of the time"
    )
    drawn_rows = [*entries, ("everything else", rest, float("nan"))] if rest >= 0.05 else entries
    sheet = canvas(finding, subtitle, footer, drawing=42 + ROW * len(drawn_rows))
    _bars(sheet, drawn_rows)
    return sheet.figure


def _heavy(entries: list[tuple[str, float, float]]) -> int:
    """How many of the heaviest it takes to reach half of the time."""
    total = 0.0
    for count, (_, percent, _) in enumerate(entries, start=1):
        total += percent
        if total >= 50:
            return count
    return len(entries)


def _bars(sheet: Canvas, rows: list[tuple[str, float, float]]) -> None:
    labels = [fit(t, 300, size=9, mono=True) for t, _, _ in rows]
    left = MARGIN + max(text_width(t, size=9, mono=True) for t in labels) + 10
    right = WIDTH - 112
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 12)
    values = np.array([p for _, p, _ in rows])
    ys = np.arange(len(rows))[::-1]
    colours = [GREY if t == "everything else" else BLUE for t, _, _ in rows]
    axes.barh(ys, values, color=colours, height=0.62)
    axes.set_xlim(0, max(values.max() * 1.02, 1))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g} %")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, lw=0.8)
    box = axes.get_position()
    for y, label, (_, percent, total) in zip(ys, labels, rows, strict=True):
        height = (box.y0 + (y + 0.6) / (len(rows) + 0.2) * box.height) * sheet.height
        sheet.text(
            left - 10, height, label, size=9, ha="right", va="center_baseline", family="monospace"
        )
        sheet.text(right + 12, height, share(percent), size=9.5, va="center_baseline", color=INK)
        if total == total:
            sheet.text(
                WIDTH - MARGIN,
                height,
                milliseconds(total),
                size=9.5,
                va="center_baseline",
                ha="right",
                color=MUTED if percent < 50 else RED_TEXT,
            )
