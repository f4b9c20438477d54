"""Chart of durations: how long callers waited for a connection, or held one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fwdb.arguments import checks_arguments
from fwdb.charts.canvas import (
    DATABASES,
    GRID,
    MUTED,
    WIDTH,
    canvas,
    compact,
    drawn,
    empty,
    legend,
    number,
    plural,
    share,
    text_width,
)
from fwdb.charts.connections import COLOURS

# What is said of each: subtitle, title without data, and the beginning of the finding.
_WORDS = {
    "wait": (
        "How long callers queued for a connection, percent of those that had to wait",
        "Nobody had to wait for a connection",
        "{count} callers waited for a {store} connection",
    ),
    "hold": (
        "How long callers held a connection before they returned it, percent of holds",
        "No connection was returned",
        "{count} {store} connections were lent and returned",
    ),
}
_FEWEST = 6  # buckets on the axis, so that one bar is not as wide as the sheet


@checks_arguments
def duration(ms: float) -> str:
    """A bound as people say it: `0.25 ms`, `100 ms`, `2.5 s`, `1 min`.

    >>> [duration(bound) for bound in (0.25, 100, 2500, 60000)]
    ['0.25 ms', '100 ms', '2.5 s', '1 min']
    """
    if ms >= 60_000:
        return f"{ms / 60_000:g} min"
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


@drawn
def durations(
    frame: pd.DataFrame,
    subject: str,
    *,
    bounds: Sequence[float],
    source: str = "monitoring history",
    window: str = "",
    reason: str = "No sample was taken in this window.",
) -> Figure:
    """How long callers waited for a connection (`subject` ``wait``) or held one (``hold``).

    `frame` has a row per store and bucket that has any: `database`, `over_ms`, `up_to_ms`
    (``inf`` for the last) and `durations`; `bounds` are those of all buckets. A
    bar is the bucket's part of all of its store. Bounds are what is known, so the finding names
    a bound and no percentile between two of them.
    """
    subtitle, nothing, many = _WORDS[subject]
    parts = {
        str(database): rows
        for database, rows in sorted(
            frame.groupby(frame["database"].astype(str)), key=lambda g: str(g[0]), reverse=True
        )
        if rows["durations"].sum() > 0
    }
    footer = " · ".join(filter(None, (source, window)))
    if not parts:
        return empty(nothing, subtitle, f"{footer} · 0 {subject}s", reason=reason)
    totals = {database: int(rows["durations"].sum()) for database, rows in parts.items()}
    worst = max(parts, key=lambda d: _bound(parts[d], 99))
    finding = many.format(store=DATABASES.get(worst, worst), count=number(totals[worst]))
    if totals[worst] == 1:
        finding = finding.replace("callers", "caller").replace("connections were", "connection was")
    bound = _bound(parts[worst], 99)
    finding += (
        f", 99 in 100 within {duration(bound)}"
        if math.isfinite(bound)
        else f", more than 1 in 100 after over {duration(bounds[-1])}"
    )
    counted = ", ".join(f"{DATABASES.get(d, d)} {plural(n, subject)}" for d, n in totals.items())
    sheet = canvas(finding, subtitle, f"{footer} · {counted}", drawing=230)
    edges = _edges(pd.concat(parts.values()), bounds)
    left = 46.0
    shown = [(DATABASES.get(d, d), COLOURS.get(d, MUTED)) for d in parts]
    if len(parts) > 1:
        legend(sheet, sheet.top - 16, shown, left=left)
    axes = sheet.axes(left, sheet.bottom + 26, WIDTH - 24, sheet.top - 30)
    width = 0.84 / len(parts)
    most = 0.0
    bars = []
    for order, (database, rows) in enumerate(parts.items()):
        by_bucket = rows.groupby("up_to_ms")["durations"].sum()
        for up_to, count in by_bucket.items():
            x = edges.index(float(str(up_to))) - 1 + 0.08 + order * width
            percent = 100 * float(count) / totals[database]
            most = max(most, percent)
            bars.append((x, percent, int(count), COLOURS.get(database, MUTED)))
    top = most * 1.15
    axes.set_ylim(0, top)
    axes.set_xlim(0, len(edges) - 1)
    for x, percent, _, colour in bars:
        axes.bar(x, percent, width=width * 0.94, align="edge", color=colour, lw=0, zorder=3)
    step = (WIDTH - 24 - left) / (len(edges) - 1)  # width of a bucket on the sheet
    counts = [compact(count, most=1e4) for _, _, count, _ in bars]
    if max(text_width(text, size=8.5) for text in counts) < width * step:
        for (x, percent, _, _), text in zip(bars, counts, strict=True):
            place = (x + width * 0.47, percent + top * 0.015)
            axes.text(*place, text, ha="center", size=8.5, color=MUTED)
    labels = [_short(edge) if edge else "0" for edge in edges]
    every = math.ceil((max(text_width(text, size=9) for text in labels) + 6) / step)
    axes.set_xticks(range(0, len(edges), every), labels=labels[::every])
    axes.tick_params(axis="x", labelsize=9)
    ticks = [t for t in (0, 20, 40, 60, 80, 100) if t <= top] if most > 25 else [0, most]
    axes.set_yticks(
        ticks, labels=["0", *(share(t) if t == ticks[-1] else f"{t:g}" for t in ticks[1:])]
    )
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    return sheet.figure


def _bound(rows: pd.DataFrame, percent: float) -> float:
    ordered = rows.groupby("up_to_ms")["durations"].sum().sort_index()
    reached = ordered.cumsum() >= ordered.sum() * percent / 100
    return float(ordered.index[int(np.argmax(reached.to_numpy()))])


def _short(ms: float) -> str:
    return duration(ms) if math.isfinite(ms) else "more"


def _edges(used: pd.DataFrame, bounds: Sequence[float]) -> list[float]:
    """Bounds of the buckets from the first to the last that is used, and some around them."""
    ladder = [0.0, *bounds, math.inf]
    first = ladder.index(float(used["over_ms"].min()))
    last = ladder.index(float(used["up_to_ms"].max()))
    while last - first < _FEWEST and (first > 0 or last < len(ladder) - 1):
        first, last = max(0, first - 1), min(len(ladder) - 1, last + (last - first < _FEWEST - 1))
    return ladder[first : last + 1]
