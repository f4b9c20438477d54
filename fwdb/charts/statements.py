"""Charts of statements: which are slow, what changed, and which take the most time in all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fwdb.charts import canvas as c
from fwdb.charts import words as w

MOST_ROWS = 20
MOST_SHARES = 8
MOST_CHANGES = 12
ROW = 25.0


@c.drawn
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
    footer = c.footer(source, window, w.plural(len(frame), "statement"))
    known, than = frame.dropna(subset=["mean_ms"]), f"slower than {w.milliseconds(min_ms)}"
    if known.empty:
        return c.empty(f"No statement is {than}", subtitle, footer, reason=reason)
    known = known.sort_values(["mean_ms", "statement"], ascending=[False, True], kind="stable")
    slow, rows = int((known["mean_ms"] >= min_ms).sum()), known.head(MOST_ROWS)
    of = f"{w.number(slow)} of {w.plural(len(known), 'statement')}"
    finding = f"{of} {'is' if slow == 1 else 'are'} {than} on average"
    if slow == 0:
        finding = f"No statement is {than} on average"
    elif len(known) == 1:
        worst = w.milliseconds(float(known["mean_ms"].iloc[0]))
        finding = f"The one statement measured takes {worst} on average"
    elif slow == len(known):
        finding = f"All {w.number(slow)} statements are {than} on average"
    if len(known) > len(rows):
        footer += f", the slowest {len(rows)} drawn"
    mean = rows["mean_ms"].to_numpy(dtype=float).clip(min=1e-3)
    spread = rows["stddev_ms"].fillna(0).to_numpy(dtype=float) if "stddev_ms" in rows else 0 * mean
    right, values = c.WIDTH - 74, np.array([*mean, *(mean + spread), min_ms])
    sheet = c.canvas(finding, subtitle, footer, drawing=60 + ROW * len(rows))
    axes, heights = _log_rows(sheet, rows, values, right=right)
    colours = [c.VERMILION if m >= min_ms else c.BLUE for m in mean]
    ys = range(len(rows))
    axes.hlines(ys, mean, mean + spread, color=colours, lw=6, alpha=0.35, zorder=3)
    axes.scatter(mean, ys, s=52, color=colours, zorder=4)
    axes.axvline(min_ms, color=c.MUTED, lw=1.2, dashes=(4, 3), zorder=2)
    text, top = f"slow ≥ {w.milliseconds(min_ms)}", sheet.top - 18
    half = c.text_width(text, size=9.5) / 2
    at = min(max(c.spot(axes, min_ms, 0)[0], c.MARGIN + half), right - half - 4)
    sheet.text(at, top, text, size=9.5, color=c.MUTED, ha="center")
    sheet.text(right + 12, top, "calls", size=9.5, color=c.MUTED)
    for y, calls in zip(heights, rows["calls"], strict=True):
        sheet.text(right + 12, y, w.compact(float(calls), most=1e7), size=9.5, **c.MIDDLE)
    return sheet.figure


def _log_rows(
    sheet: c.Canvas, rows: pd.DataFrame, values: np.ndarray[Any, Any], *, right: float
) -> tuple[Axes, list[float]]:
    """A row per statement on a logarithmic scale of time that has room for `values`."""
    ends = pd.Series("", rows.index)
    if "database" in rows and rows["database"].nunique() > 1:
        marks = {"postgres": " · pg", "mongodb": " · mongo"}
        ends = rows["database"].map(lambda d: marks.get(str(d), f" · {d}")).astype(str)
    room = 290 - max(c.text_width(end, size=9, mono=True) for end in ends)
    texts = [c.fit(w.shorten(str(s)), room, size=9, mono=True) for s in rows["statement"]]
    labels = [text + end for text, end in zip(texts, ends, strict=True)]
    axes, heights = sheet.rows(labels, right=right, above=30)
    low, high = values.min() / 1.6, values.max() * 1.6
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    # Decades as people say them: 1 ms, 100 ms, 1 s.
    steps = [m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    decades = [s for s in steps if np.log10(s).round(6).is_integer()]
    ticks = decades[:: max(1, (len(decades) + 5) // 6)]
    ticks = ticks if len(ticks) > 1 else steps
    axes.set_xticks(ticks, labels=[w.milliseconds(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=4, color=c.AXIS)
    return axes, heights


@c.drawn
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
    footer = c.footer(source, window, w.plural(len(frame), "statement"))
    known = frame.dropna(subset=["mean_before_ms", "mean_ms"])
    if known.empty:
        return c.empty("No statement can be compared", subtitle, footer, reason=reason)
    cost, is_slower = known["extra_ms"].fillna(0).abs(), known["change"] == "slower"
    order = ["_slower", "_cost", "statement"]
    known = known.assign(_slower=is_slower, _cost=cost)
    known = known.sort_values(order, ascending=[False, False, True], kind="stable")
    slower, rows = known[known["_slower"]], known.head(MOST_CHANGES)
    finding = f"{w.number(len(slower))} statements got slower than before"
    if slower.empty:
        finding = "No statement got slower for sure"
    elif len(slower) == 1:
        times = w.times(float(slower["ratio"].iloc[0]))
        finding = f"One statement takes {times} times as long as before"
    if len(known) > len(rows):
        footer += f", the {len(rows)} that changed most drawn"
    means = (rows[n].to_numpy(dtype=float).clip(min=1e-3) for n in ("mean_before_ms", "mean_ms"))
    before, now = means
    right = c.WIDTH - 88
    sheet = c.canvas(finding, subtitle, footer, drawing=60 + ROW * len(rows))
    axes, heights = _log_rows(sheet, rows, np.array([*before, *now]), right=right)
    ys = range(len(rows))
    colours = [c.VERMILION if slow else c.BLUE for slow in rows["_slower"]]
    axes.hlines(ys, before, now, color=colours, lw=6, alpha=0.35, zorder=3)
    axes.scatter(before, ys, s=46, facecolor="white", edgecolor=colours, lw=2, zorder=4)
    axes.scatter(now, ys, s=52, color=colours, zorder=5)
    sheet.text(right + 12, sheet.top - 18, "now ÷ before", size=9.5, color=c.MUTED)
    for y, ratio, slow in zip(heights, now / before, rows["_slower"], strict=True):
        colour = c.RED_TEXT if slow else c.INK
        sheet.text(right + 12, y, f"{w.times(ratio, 2)} ×", size=9.5, color=colour, **c.MIDDLE)
    return sheet.figure


@c.drawn
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
    footer = c.footer(source, window, w.plural(len(frame), "statement"))
    known = frame[frame["total_ms"] > 0]
    if known.empty:
        return c.empty("Nothing took any time", subtitle, footer, reason=reason)
    known = known.sort_values(["total_ms", "statement"], ascending=[False, True], kind="stable")
    shares = known["total_ms"] / known["total_ms"].sum() * 100
    if "share_percent" in known and known["share_percent"].notna().all():
        shares = known["share_percent"].astype(float)
    known, top = known.head(MOST_SHARES), shares.head(MOST_SHARES)
    # How many of the heaviest it takes to reach half of the time.
    heavy = min(int((top.cumsum() < 50).sum()) + 1, len(top))
    taken = w.share(float(top.head(heavy).sum()))
    who = "One statement takes" if heavy == 1 else f"{w.number(heavy)} statements take"
    texts, colours = [w.shorten(str(s)) for s in known["statement"]], [c.BLUE] * len(top)
    values, totals = [*top], [w.milliseconds(float(total)) for total in known["total_ms"]]
    if (rest := max(0.0, 100 - sum(values))) >= 0.05:
        texts, values = [*texts, "everything else"], [*values, rest]
        colours, totals = [*colours, c.GREY], [*totals, ""]
    sheet = c.canvas(f"{who} {taken} of the time", subtitle, footer, drawing=42 + ROW * len(texts))
    right = c.WIDTH - 112
    labels = [c.fit(text, 300, size=9, mono=True) for text in texts]
    axes, heights = sheet.rows(labels, right=right, above=12)
    axes.barh(range(len(texts)), values, color=colours, height=0.62)
    axes.set_xlim(0, max(max(values) * 1.02, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g} %")
    for y, percent, total in zip(heights, values, totals, strict=True):
        sheet.text(right + 12, y, w.share(percent), size=9.5, **c.MIDDLE)
        style = {"ha": "right", "color": c.MUTED if percent < 50 else c.RED_TEXT, **c.MIDDLE}
        sheet.text(c.WIDTH - c.MARGIN, y, total, size=9.5, **style)
    return sheet.figure
