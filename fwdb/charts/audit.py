"""Charts of the audit trail: events over time, entities by action, and the life of one entity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fwdb.charts import canvas as c
from fwdb.charts import words as w

ACTIONS = {"CREATE": c.BLUE, "UPDATE": c.SKY, "READ": c.GREY, "DELETE": c.VERMILION}
# Marker and its size beside the colour: what happened is in both.
MARKS = {"CREATE": ("D", 7.0), "UPDATE": ("o", 7.0), "READ": ("|", 9.0), "DELETE": ("X", 9.0)}
BUCKETS = {"minute": "1min", "hour": "1h", "day": "1D", "week": "7D", "month": "30D"}
MOST_BARS = 400
BLUES = LinearSegmentedColormap.from_list("blues", ["#f5f9fd", "#9cc7e3", c.BLUE, "#084f8c"])
MOST_ENTITIES = 12
DWARFS = 6  # times the next one, a bar is cut at the top
MOST_LANES = 14
LANE = 24.0
COLUMNS = 1200  # places along the axis that can be told apart: events of one place are one mark
NOBODY = "not said"


@dataclass(frozen=True)
class Burst:
    """An hour with far more events of a kind than are usual for it."""

    bucket_at: pd.Timestamp
    entity_type: str
    action: str
    events: int


def _table(frame: pd.DataFrame, index: str) -> pd.DataFrame:
    """Events by `index` and action."""
    rows = frame.assign(action=frame["action"].astype(str))
    return rows.pivot_table(
        index=index, columns="action", values="events", aggfunc="sum", fill_value=0
    ).astype(float)


@c.drawn
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
    if frame.empty or not frame["events"].sum():
        footer = c.footer(source, w.window_text(since, until), "0 events")
        return c.empty("The audit trail is empty", subtitle, footer, reason=reason)
    table = _table(frame.assign(bucket_at=w.utc(frame["bucket_at"])), "bucket_at")
    start = w.utc(since) if since is not None else table.index[0]
    end = w.utc(until) if until is not None else table.index[-1]
    events = w.plural(int(table.to_numpy().sum()), "event")
    footer = c.footer(source, w.window_text(start, end), events)
    sheet = c.canvas(_trail_finding(table, found), subtitle, footer, drawing=270)
    heights = table.sum(axis=1).to_numpy()
    left = 20 + c.text_width(w.compact(_round_up(heights.max())), size=10.5)
    others = dict.fromkeys(map(str, table), c.INK)
    colours = {a: colour for a, colour in ({**ACTIONS, **others, **ACTIONS}).items() if a in table}
    c.legend(sheet, sheet.top - 18, [*colours.items()], left=left)
    axes = sheet.axes(left, sheet.bottom + 26, c.WIDTH - 24, sheet.top - 30, grid="y")
    width = pd.Timedelta(BUCKETS.get(bucket, "1h"))
    start, end = min(start, table.index[0]), max(end, table.index[-1] + width)
    days = width / pd.Timedelta(days=1)
    x: Any = np.asarray(c.place(table.index), dtype=np.float64)
    base = np.zeros(len(table))
    # Many narrow bars are one area to the eye, and a fifth of the file.
    narrow = len(table) > MOST_BARS or (end - start) / width > MOST_BARS
    for action, colour in colours.items():
        values = table[action].to_numpy()
        if narrow:
            axes.vlines(x + days / 2, base, base + values, color=colour, lw=1.1)
        else:
            gap = 0.08 if len(table) > 1 else 0
            axes.bar(x, values, days * (1 - gap), bottom=base, color=colour, align="edge", lw=0)
        base += values
    top = _cut(heights)
    axes.set_ylim(0, _round_up(top * (1.28 if found or top < heights.max() else 1.04)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda v, _: w.compact(v))
    c.time_axis(axes, start, end)
    if found:
        row = int(table.index.searchsorted(w.utc(found.bucket_at), side="right")) - 1
        if row >= 0:  # bars may be longer than an hour
            _name_burst(sheet, axes, found, x[row] + days / 2, heights[row])
    _name_cut(sheet, axes, x, days, heights)
    return sheet.figure


def _cut(heights: Any) -> float:
    """How high to draw: one bar that dwarfs all others is cut, or they could not be seen."""
    ordered = np.sort(heights)
    if len(ordered) < 5 or ordered[-1] < DWARFS * max(ordered[-2], 1):
        return float(ordered[-1])
    return float(ordered[-2] * 1.5)


def _name_cut(sheet: c.Canvas, axes: Axes, x: Any, days: float, heights: Any) -> None:
    """Beside a bar that leaves the drawing: how high it is."""
    tallest, roof = int(np.argmax(heights)), axes.get_ylim()[1]
    if heights[tallest] <= roof:
        return
    text = f"↑ {w.number(heights[tallest])} events"
    left, top = c.spot(axes, x[tallest], roof)
    at = left - 6 - c.text_width(text, size=9.5, weight="bold")
    if at < c.spot(axes, axes.get_xlim()[0], 0)[0]:
        at = c.spot(axes, x[tallest] + days, 0)[0] + 6
    sheet.text(at, top - 12, text, size=9.5, weight="bold")


def _round_up(value: float) -> float:
    """The next number with one or two leading digits, at least 4 so that ticks are whole."""
    if value <= 4:
        return 4.0
    size = 10.0 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return float(next(m * size for m in steps if m * size >= value))


def _trail_finding(table: pd.DataFrame, found: Burst | None) -> str:
    if found:
        moment = w.utc(found.bucket_at)
        kind = f"{w.clean(found.entity_type)} {found.action.lower()}s"
        return f"A burst of {w.number(found.events)} {kind} at {moment:%Y-%m-%d %H:%M} stands out"
    sums = table.sum()
    total, action = float(sums.sum()), str(sums.idxmax())
    part = w.share(float(sums.max()) / total * 100)
    return f"{w.plural(int(total), 'event')}, {part} of them {action}"


def _name_burst(sheet: c.Canvas, axes: Axes, found: Burst, at: float, height: float) -> None:
    """The burst, named over the bar it is part of."""
    height = min(height, axes.get_ylim()[1] * 0.6)
    x, y = c.spot(axes, at, height)
    axes.annotate(
        "",
        xy=(at, height),
        xytext=(0, 14),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": c.VERMILION, "lw": 1.2, "shrinkA": 0, "shrinkB": 2},
    )
    lines = (f"{w.number(found.events)} {found.action.lower()}s", "in one hour")
    style: dict[str, Any] = {"size": 9.5, "weight": "bold"}
    half = max(c.text_width(line, **style) for line in lines) / 2
    left, right = (c.spot(axes, edge, 0)[0] for edge in axes.get_xlim())
    x = min(max(x, left + half), right - half)
    for row, line in enumerate(lines):
        sheet.text(x, y + 31 - 13 * row, line, ha="center", color=c.RED_TEXT, **style)


@c.drawn
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
    footer = c.footer(source, window, w.plural(total, "event"))
    if not total:
        return c.empty("Nothing was changed or read", subtitle, footer, reason=reason)
    names = [w.clean(name) or "(no name)" for name in frame["entity_type"].astype(object)]
    table = c.ranked(_table(frame.assign(entity_type=names), "entity_type"), MOST_ENTITIES)
    others = sorted({str(action) for action in table} - {*ACTIONS})
    table = table.reindex(columns=[*ACTIONS, *others], fill_value=0.0)
    heaviest = str(table.index[0])
    finding = (
        f"{heaviest} has {w.share(table.iloc[0].sum() / total * 100)} of the events"
        if len(table) > 1
        else f"All events concern {heaviest}"
    )
    if table["DELETE"].sum():
        finding += f"; most deletes are of {table['DELETE'].idxmax()}"
    sheet = c.canvas(finding, subtitle, footer, drawing=38 + 44 * len(table))
    _cells(sheet, table)
    return sheet.figure


def _ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever stands out more; between them 4.5 to 1 is always reached."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Both contrasts are equal where (1.05 / (l + 0.05)) = ((l + 0.05) / 0.05).
    return "black" if luminance > 0.179 else "white"


def _cells(sheet: c.Canvas, table: pd.DataFrame) -> None:
    labels = [c.fit(str(e), 200, size=10.5) for e in table.index]
    left = c.MARGIN + max(c.text_width(label, size=10.5) for label in labels) + 10
    width = (c.WIDTH - c.MARGIN - left) / len(table.columns)
    top, high = sheet.top - 26, 44.0
    most = float(table.to_numpy().max())
    for column, action in enumerate(table.columns):
        x = left + (column + 0.5) * width
        sheet.text(x, top + 7, c.fit(action, width - 4, size=10), ha="center", color=c.MUTED)
        for row, value in enumerate(table[action]):
            colour, y = BLUES(float(np.sqrt(value / most))), top - (row + 1) * high
            sheet.box(left + column * width, y, width - 1.5, high - 1.5, colour)
            style = {"ha": "center", "color": _ink_on(colour), **c.MIDDLE}
            sheet.text(x, y + high / 2, w.number(value), size=11, **style)
    for row, label in enumerate(labels):
        sheet.text(left - 9, top - (row + 0.5) * high, label, size=10.5, ha="right", **c.MIDDLE)


# -- one entity -------------------------------------------------------------------------------


@c.drawn
def entity_history(
    frame: pd.DataFrame,
    *,
    entity: str,
    since: pd.Timestamp,
    until: pd.Timestamp,
    source: str = "audit.audit_logs",
    reason: str = "Nothing was recorded of it in this window.",
) -> Figure:
    """The events of one entity over time: all of them in the first lane, then a lane per field.

    `frame` has a row per event with `created_at`, `action` and `changed_fields` (names with
    commas). The fields that changed most often come first; `entity` is its name for the title.
    """
    subtitle = "Every event in the first lane, then the changes of each field, over time (UTC)"
    footer = c.footer(source, w.window_text(since, until), w.plural(len(frame), "event"))
    if frame.empty:
        return c.empty(f"{entity} has no history here", subtitle, footer, reason=reason)
    rows = frame.assign(lane="all events")
    fields = rows.assign(lane=rows["changed_fields"].fillna("").str.split(", ")).explode("lane")
    fields = fields[(fields["lane"].fillna("") != "") & (fields["action"] == "UPDATE")]
    finding = _history_finding(entity, rows, fields)
    lanes = ["all events", *_by_count(fields)]
    return _lanes((finding, subtitle, footer), pd.concat([rows, fields]), lanes, (since, until))


@c.drawn
def entity_actors(
    frame: pd.DataFrame,
    *,
    entity: str,
    since: pd.Timestamp,
    until: pd.Timestamp,
    source: str = "audit.audit_logs",
    reason: str = "Nothing was recorded of it in this window.",
) -> Figure:
    """Who did what to one entity, a lane per actor, those with most events first.

    `frame` has a row per event with `created_at`, `action` and `user_id` (missing: nobody said).
    """
    subtitle = "Events of each actor over time (UTC), those with most first"
    footer = c.footer(source, w.window_text(since, until), w.plural(len(frame), "event"))
    if frame.empty:
        return c.empty(f"Nobody touched {entity}", subtitle, footer, reason=reason)
    lanes = [f"{str(u)[:13]}…" if pd.notna(u) else NOBODY for u in frame["user_id"]]
    rows = frame.assign(lane=lanes)
    finding = _actors_finding(entity, rows)
    return _lanes((finding, subtitle, footer), rows, _by_count(rows), (since, until))


def _by_count(rows: pd.DataFrame) -> list[str]:
    """The lanes, those with most events first."""
    counts = rows["lane"].value_counts()
    return sorted(map(str, counts.index), key=lambda lane: (-int(counts[lane]), lane))


def _history_finding(entity: str, rows: pd.DataFrame, fields: pd.DataFrame) -> str:
    changes = rows["action"].astype(str)[lambda actions: actions != "READ"]
    if changes.empty:
        return f"{entity} was read {w.plural(len(rows), 'time')} and not changed"
    text = f"{entity} changed {w.plural(len(changes), 'time')}"
    lanes = _by_count(fields)
    if len(lanes) > 1 and (count := int((fields["lane"] == lanes[0]).sum())) > 1:
        text += f", most often {w.clean(lanes[0])} ({w.number(count)})"
    return f"{text}, and was deleted last" if changes.iloc[-1] == "DELETE" else text


def _actors_finding(entity: str, rows: pd.DataFrame) -> str:
    changed = rows[rows["action"].astype(str) != "READ"]
    known = changed[changed["lane"] != NOBODY]
    if changed.empty:
        return f"{w.plural(rows['lane'].nunique(), 'reader')}, and nobody changed {entity}"
    nobody = len(changed) - len(known)
    if known.empty:
        return f"Nothing says who changed {entity}"
    text = f"{w.plural(known['lane'].nunique(), 'user')} changed {entity}"
    return f"{text}; of {w.plural(nobody, 'change')} nothing says who" if nobody else text


def _lanes(
    headings: tuple[str, str, str],
    rows: pd.DataFrame,
    lanes: Sequence[str],
    window: tuple[pd.Timestamp, pd.Timestamp],
) -> Figure:
    """The events of `rows` in the `lanes`, from above, with their numbers at the right."""
    title, subtitle, footer = headings
    if (rest := len(lanes) - MOST_LANES) > 0:
        subtitle += f"; {w.number(rest)} more are not drawn"
    lanes = lanes[:MOST_LANES]
    sheet = c.canvas(title, subtitle, footer, drawing=56 + LANE * len(lanes))
    counts = [w.number(int((rows["lane"] == name).sum())) for name in lanes]
    right = c.WIDTH - 16 - max(c.text_width(count, size=10) for count in counts)
    labels = [c.fit(name, 190, size=10, mono=True) for name in lanes]
    axes, heights = sheet.rows(labels, right=right, above=30, size=10)
    axes.grid(visible=False)
    c.time_axis(axes, *window)
    actions = rows["action"].astype(str)
    for lane, (name, y, count) in enumerate(zip(lanes, heights, counts, strict=True)):
        axes.axhline(lane, color=c.GRID, lw=0.8, zorder=0)
        sheet.text(c.WIDTH - 9, y, count, ha="right", color=c.MUTED, **c.MIDDLE)
        for action in MARKS:
            at = _places(rows[(rows["lane"] == name) & (actions == action)], axes)
            _marks(axes, action, at, lane)
    _mark_legend(
        sheet, [a for a in MARKS if a in {*actions}], left=c.spot(axes, axes.get_xlim()[0], 0)[0]
    )
    return sheet.figure


def _marks(axes: Axes, action: str, x: Any, y: float) -> None:
    marker, size = MARKS[action]
    edge = 1.6 if marker == "|" else 0
    ys = np.full(len(x), y)
    axes.plot(x, ys, marker, color=ACTIONS[action], ms=size, mew=edge, clip_on=False)


def _places(rows: pd.DataFrame, axes: Axes) -> Any:
    """Where the events stand, without those that would hide behind each other."""
    low, high = axes.get_xlim()
    at = np.asarray(c.place(w.utc(rows["created_at"])), dtype=np.float64)
    _, first = np.unique(np.floor((at - low) / (high - low) * COLUMNS), return_index=True)
    return at[first]


def _mark_legend(sheet: c.Canvas, actions: Sequence[str], *, left: float) -> None:
    """The marks with their meaning, in one row."""
    y = sheet.top - 18
    axes = sheet.axes(left, y - 4, c.WIDTH - c.MARGIN, y + 10)
    axes.set_axis_off()
    axes.set_xlim(left, c.WIDTH - c.MARGIN)
    axes.set_ylim(0, 1)
    x = left + 5.0
    for action in actions:
        _marks(axes, action, [x], 0.5)
        sheet.text(x + 9, y + 3, action, size=9.5, **c.MIDDLE)
        x += 9 + c.text_width(action, size=9.5) + 18
