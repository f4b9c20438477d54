"""Charts of the audit trail: events over time by action, and entities by action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fwdb.charts.canvas import (
    BLUE,
    GREY,
    GRID,
    INK,
    MARGIN,
    MUTED,
    RED_TEXT,
    SKY,
    VERMILION,
    WIDTH,
    Canvas,
    canvas,
    clean,
    compact,
    drawn,
    empty,
    fit,
    legend,
    number,
    place,
    plural,
    share,
    text_width,
    time_axis,
    utc,
    window_text,
)

ACTIONS = [("CREATE", BLUE), ("UPDATE", SKY), ("READ", GREY), ("DELETE", VERMILION)]
BUCKETS = {"minute": "1min", "hour": "1h", "day": "1D", "week": "7D", "month": "MS"}
MOST_BARS = 400
BLUES = LinearSegmentedColormap.from_list("blues", ["#f5f9fd", "#9cc7e3", BLUE, "#084f8c"])
MOST_ENTITIES = 12
DWARFS = 6  # times the next one, a bar is cut at the top


@dataclass(frozen=True)
class Burst:
    """An hour with far more events of a kind than are usual for it."""

    bucket_at: pd.Timestamp
    entity_type: str
    action: str
    events: int


@drawn
def audit_trail(
    frame: pd.DataFrame,
    *,
    since: pd.Timestamp | None = None,
    until: pd.Timestamp | None = None,
    bucket: str = "hour",
    found: Burst | None = None,
    source: str = "audit.audit_logs",
    reason: str = "Nothing was recorded in this window.",
) -> Figure:
    """Audit events over time, stacked by action; a burst that was found is named in the drawing.

    `frame` has a row per `bucket_at` and `action` with the number of `events`; other columns are
    summed over. `bucket` is minute, hour, day, week or month.
    """
    subtitle = f"Audit events per {bucket}, by action"
    window = f" · {window_text(since, until)}" if since is not None and until is not None else ""
    if frame.empty or not frame["events"].sum():
        return empty(
            "The audit trail is empty", subtitle, f"{source}{window} · 0 events", reason=reason
        )
    rows = frame.assign(action=frame["action"].astype(str), bucket_at=utc(frame["bucket_at"]))
    table = rows.pivot_table(
        index="bucket_at", columns="action", values="events", aggfunc="sum", fill_value=0
    ).astype(float)
    total = float(table.to_numpy().sum())
    start = utc(since) if since is not None else table.index[0]
    end = utc(until) if until is not None else table.index[-1]
    footer = f"{source} · {window_text(start, end)} · {plural(int(total), 'event')}"
    sheet = canvas(_trail_finding(table, found), subtitle, footer, drawing=270)
    left = 20 + text_width(compact(_round_up(table.sum(axis=1).max())), size=10.5)
    legend(sheet, sheet.top - 18, [(a, c) for a, c in ACTIONS if a in table], left=left)
    axes = sheet.axes(left, sheet.bottom + 26, WIDTH - 24, sheet.top - 30)
    step = BUCKETS.get(bucket, "1h")
    width = pd.Timedelta(days=30) if step == "MS" else pd.Timedelta(step)
    start = min(start, table.index[0])
    end = max(end, table.index[-1] + width)
    x: Any = np.asarray(place(table.index), dtype=np.float64)
    days = width / pd.Timedelta(days=1)
    base = np.zeros(len(table))
    # Many narrow bars are one area to the eye, and a fifth of the file.
    narrow = len(table) > MOST_BARS or (end - start) / width > MOST_BARS
    for action, colour in [*ACTIONS, *[(a, INK) for a in table if a not in dict(ACTIONS)]]:
        if action not in table:
            continue
        values = table[action].to_numpy()
        if narrow:
            axes.vlines(x + days / 2, base, base + values, color=colour, lw=1.1)
        else:
            gap = 0.08 if len(table) > 1 else 0
            axes.bar(x, values, days * (1 - gap), bottom=base, color=colour, align="edge", lw=0)
        base = base + values
    top = _cut(base)
    axes.set_ylim(0, _round_up(top * (1.28 if found or top < base.max() else 1.04)))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda v, _: compact(v))
    time_axis(axes, start, end)
    if found:
        _name_burst(sheet, axes, found, table, days)
    _name_cut(sheet, axes, x + days / 2, base)
    return sheet.figure


def _cut(heights: Any) -> float:
    """How high to draw: one bar that dwarfs all others is cut, or they could not be seen."""
    ordered = np.sort(heights)
    if len(ordered) < 5 or ordered[-1] < DWARFS * max(ordered[-2], 1):
        return float(ordered[-1])
    return float(ordered[-2] * 1.5)


def _name_cut(sheet: Canvas, axes: Axes, x: Any, heights: Any) -> None:
    """Beside a bar that leaves the drawing: how high it is."""
    low, high = axes.get_xlim()
    box = axes.get_position()
    tallest = int(np.argmax(heights))
    if heights[tallest] <= axes.get_ylim()[1]:
        return
    text = f"↑ {number(heights[tallest])} events"
    width = text_width(text, size=9.5, weight="bold")
    bar = box.width * WIDTH / (high - low) * (x[1] - x[0]) / 2
    at = (box.x0 + (x[tallest] - low) / (high - low) * box.width) * WIDTH
    left = at - bar - 6 - width
    at = left if left > box.x0 * WIDTH else at + bar + 6
    sheet.text(at, box.y1 * sheet.height - 12, text, size=9.5, weight="bold")


def _round_up(value: float) -> float:
    """The next number with one or two leading digits, at least 4 so that ticks are whole."""
    if value <= 4:
        return 4.0
    size = 10.0 ** np.floor(np.log10(value))
    return float(
        next(m * size for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if m * size >= value)
    )


def _trail_finding(table: pd.DataFrame, found: Burst | None) -> str:
    if found:
        moment = utc(found.bucket_at)
        kind = f"{clean(found.entity_type)} {found.action.lower()}s"
        return f"A burst of {number(found.events)} {kind} at {moment:%Y-%m-%d %H:%M} stands out"
    sums = table.sum()
    total = float(sums.sum())
    action = str(sums.idxmax())
    return (
        f"{plural(int(total), 'event')}, {share(float(sums.max()) / total * 100)} of them {action}"
    )


def _name_burst(sheet: Canvas, axes: Axes, found: Burst, table: pd.DataFrame, days: float) -> None:
    """The burst, named over the bar it is part of; bars may be longer than an hour."""
    row = int(table.index.searchsorted(utc(found.bucket_at), side="right")) - 1
    if row < 0:
        return
    height = min(float(table.iloc[row].sum()), axes.get_ylim()[1] * 0.6)
    low, high = axes.get_xlim()
    box = axes.get_position()
    at = float(place(table.index[row])) + days / 2
    x = (box.x0 + (at - low) / (high - low) * box.width) * WIDTH
    top = axes.get_ylim()[1]
    y = (box.y0 + height / top * box.height) * sheet.height
    lines = [f"{number(found.events)} {found.action.lower()}s", "in one hour"]
    half = max(text_width(line, size=9.5, weight="bold") for line in lines) / 2
    tx = min(max(x, box.x0 * WIDTH + half), box.x1 * WIDTH - half)
    axes.annotate(
        "",
        xy=(at, height),
        xytext=(x / WIDTH, (y + 14) / sheet.height),
        textcoords="figure fraction",
        arrowprops={"arrowstyle": "-", "color": VERMILION, "lw": 1.2, "shrinkA": 0, "shrinkB": 2},
    )
    for row, line in enumerate(lines):
        sheet.text(
            tx, y + 31 - 13 * row, line, size=9.5, weight="bold", ha="center", color=RED_TEXT
        )


@drawn
def audit_matrix(
    frame: pd.DataFrame,
    *,
    source: str = "audit.audit_logs",
    window: str = "",
    reason: str = "Nothing was recorded in this window.",
) -> Figure:
    """How often each action was done to each kind of entity, as numbers in cells.

    `frame` has `entity_type`, `action` and `events`; other columns are summed over. The depth of
    a cell's colour grows with the square root of its number, so that small ones stay visible.
    """
    subtitle = "Audit events by entity and action, counts"
    total = int(frame["events"].sum()) if len(frame) else 0
    footer = " · ".join(part for part in (source, window, plural(total, "event")) if part)
    if not total:
        return empty("Nothing was changed or read", subtitle, footer, reason=reason)
    rows = frame.assign(
        action=frame["action"].astype(str),
        entity_type=[clean(e) or "(no name)" for e in frame["entity_type"].astype(object)],
    )
    table = rows.pivot_table(
        index="entity_type", columns="action", values="events", aggfunc="sum", fill_value=0
    ).astype(float)
    order = sorted(table.index, key=lambda e: (-table.loc[e].sum(), e))
    if len(order) > MOST_ENTITIES:
        rest = order[MOST_ENTITIES - 1 :]
        table.loc[f"{len(rest)} others"] = table.loc[rest].sum()
        order = [*order[: MOST_ENTITIES - 1], f"{len(rest)} others"]
    actions = [a for a, _ in ACTIONS] + sorted({str(a) for a in table} - {a for a, _ in ACTIONS})
    table = table.reindex(index=order, columns=actions, fill_value=0.0)
    heaviest = order[0]
    finding = (
        f"{clean(heaviest)} has {share(table.loc[heaviest].sum() / total * 100)} of the events"
        if len(order) > 1
        else f"All events concern {clean(heaviest)}"
    )
    if table["DELETE"].sum():
        most = str(table["DELETE"].idxmax())
        finding += f"; most deletes are of {most}"
    sheet = canvas(finding, subtitle, footer, drawing=38 + 44 * len(order))
    _cells(sheet, table)
    return sheet.figure


def _ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever stands out more; between them 4.5 to 1 is always reached."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Both contrasts are equal where (1.05 / (l + 0.05)) = ((l + 0.05) / 0.05).
    return "black" if luminance > 0.179 else "white"


def _cells(sheet: Canvas, table: pd.DataFrame) -> None:
    labels = [fit(str(e), 200, size=10.5) for e in table.index]
    left = MARGIN + max(text_width(label, size=10.5) for label in labels) + 10
    width = (WIDTH - MARGIN - left) / len(table.columns)
    top, high = sheet.top - 26, 44.0
    most = float(table.to_numpy().max())
    for column, action in enumerate(table.columns):
        x = left + (column + 0.5) * width
        sheet.text(x, top + 7, fit(action, width - 4, size=10), ha="center", color=MUTED)
        for row, entity in enumerate(table.index):
            value = float(table.loc[entity, action])
            depth = float(np.sqrt(value / most))
            y = top - (row + 1) * high
            sheet.figure.add_artist(
                Rectangle(
                    ((left + column * width) / WIDTH, y / sheet.height),
                    (width - 1.5) / WIDTH,
                    (high - 1.5) / sheet.height,
                    facecolor=BLUES(depth),
                )
            )
            sheet.text(
                x,
                y + high / 2,
                number(value),
                size=11,
                ha="center",
                va="center_baseline",
                color=_ink_on(BLUES(depth)),
            )
    for row, label in enumerate(labels):
        y = top - (row + 0.5) * high
        sheet.text(left - 9, y, label, size=10.5, color=INK, ha="right", va="center_baseline")
