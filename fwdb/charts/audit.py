"""Charts of the audit trail: events over time, entities by action, and the life of one entity."""

from __future__ import annotations

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
LANE, CELL = 24.0, 44.0
COLUMNS = 1200  # places along the axis that can be told apart: events of one place are one mark
NOBODY = "not said"
BOLD: dict[str, Any] = {"size": 9.5, "weight": "bold"}


@dataclass(frozen=True)
class Burst:
    """An hour with far more events of a kind than are usual for it."""

    bucket_at: pd.Timestamp
    entity_type: str
    action: str
    events: int


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
    rows = frame.assign(bucket_at=w.utc(frame["bucket_at"]), action=frame["action"].astype(str))
    table = c.counted(rows, "bucket_at", "action", "events")
    start = w.utc(since) if since is not None else table.index[0]
    end = w.utc(until) if until is not None else table.index[-1]
    events = w.plural(int(table.to_numpy().sum()), "event")
    footer = c.footer(source, w.window_text(start, end), events)
    sheet = c.canvas(_trail_finding(table, found), subtitle, footer, drawing=270)
    heights = table.sum(axis=1).to_numpy()
    left = 20 + c.text_width(w.compact(_round_up(heights.max())), size=10.5)
    known = {action: colour for action, colour in ACTIONS.items() if action in table}
    colours = known | {str(action): c.INK for action in table if action not in ACTIONS}
    sheet.legend(sheet.top - 18, [*colours.items()], left=left)
    axes = sheet.axes(left, sheet.bottom + 26, c.WIDTH - 24, sheet.top - 30, grid="y")
    width = pd.Timedelta(BUCKETS.get(bucket, "1h"))
    start, end = min(start, table.index[0]), max(end, table.index[-1] + width)
    days = width / pd.Timedelta(days=1)
    x: Any = np.asarray(c.place(table.index), dtype=np.float64)
    base = np.zeros(len(table))
    for action, colour in colours.items():
        values = table[action].to_numpy()
        # Many narrow bars are one area to the eye, and a fifth of the file.
        if (end - start) / width > MOST_BARS:
            axes.vlines(x + days / 2, base, base + values, color=colour, lw=1.1)
        else:
            gap = 0.08 if len(table) > 1 else 0
            axes.bar(x, values, days * (1 - gap), bottom=base, color=colour, align="edge", lw=0)
        base += values
    # One bar that dwarfs all others is cut, or they could not be seen.
    top, second = heights.max(), np.sort(heights)[-2] if len(heights) > 4 else np.inf
    cut = top >= DWARFS * max(second, 1)
    top = second * 1.5 if cut else top
    axes.set_ylim(0, _round_up(top * (1.28 if found or cut else 1.04)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda v, _: w.compact(v))
    c.time_axis(axes, start, end)
    if found:
        row = int(table.index.searchsorted(w.utc(found.bucket_at), side="right")) - 1
        if row >= 0:  # bars may be longer than an hour
            _name_burst(sheet, axes, found, x[row] + days / 2, heights[row])
    if cut:
        tallest = int(heights.argmax())
        _name_cut(sheet, axes, x[tallest], days, heights[tallest])
    return sheet.figure


def _name_cut(sheet: c.Canvas, axes: Axes, x: float, days: float, height: float) -> None:
    """Beside a bar that leaves the drawing: how high it is."""
    text = f"↑ {w.number(height)} events"
    left, top = c.spot(axes, x, axes.get_ylim()[1])
    at = left - 6 - c.text_width(text, **BOLD)
    if at < c.spot(axes, axes.get_xlim()[0], 0)[0]:
        at = c.spot(axes, x + days, 0)[0] + 6
    sheet.text(at, top - 12, text, **BOLD)


def _round_up(value: float) -> float:
    """The next number with one or two leading digits, at least 4 so that ticks are whole."""
    size = 10.0 ** np.floor(np.log10(max(value, 4)))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return float(next(m * size for m in steps if m * size >= max(value, 4)))


def _trail_finding(table: pd.DataFrame, found: Burst | None) -> str:
    if found:
        moment = w.utc(found.bucket_at)
        kind = f"{w.clean(found.entity_type)} {found.action.lower()}s"
        return f"A burst of {w.number(found.events)} {kind} at {moment:%Y-%m-%d %H:%M} stands out"
    sums = table.sum()
    part = w.share(100 * float(sums.max() / sums.sum()))
    return f"{w.plural(int(sums.sum()), 'event')}, {part} of them {sums.idxmax()}"


def _name_burst(sheet: c.Canvas, axes: Axes, found: Burst, at: float, height: float) -> None:
    """The burst, named over the bar it is part of."""
    x, y = c.spot(axes, at, min(height, axes.get_ylim()[1] * 0.6))
    sheet.box(x - 0.6, y + 2, 1.2, 12, c.VERMILION)
    lines = (f"{w.number(found.events)} {found.action.lower()}s", "in one hour")
    half = max(c.text_width(line, **BOLD) for line in lines) / 2
    left, right = (c.spot(axes, edge, 0)[0] for edge in axes.get_xlim())
    x = min(max(x, left + half), right - half)
    for row, line in enumerate(lines):
        sheet.text(x, y + 31 - 13 * row, line, ha="center", color=c.RED_TEXT, **BOLD)


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
    rows = frame.assign(entity_type=names, action=frame["action"].astype(str))
    table = c.ranked(c.counted(rows, "entity_type", "action", "events"), MOST_ENTITIES)
    others = sorted({str(action) for action in table} - {*ACTIONS})
    table = table.reindex(columns=[*ACTIONS, *others], fill_value=0.0)
    finding = f"All events concern {table.index[0]}"
    if len(table) > 1:
        part = w.share(table.iloc[0].sum() / total * 100)
        finding = f"{table.index[0]} has {part} of the events"
    if table["DELETE"].sum():
        finding += f"; most deletes are of {table['DELETE'].idxmax()}"
    sheet = c.canvas(finding, subtitle, footer, drawing=38 + CELL * len(table))
    labels = [c.fit(e, 200, size=10.5) for e in table.index]
    left = c.MARGIN + max(c.text_width(label, size=10.5) for label in labels) + 10
    width, top = (c.WIDTH - c.MARGIN - left) / len(table.columns), sheet.top - 26
    for row, label in enumerate(labels):
        y = top - (row + 0.5) * CELL
        sheet.text(left - 9, y, label, size=10.5, ha="right", **c.MIDDLE)
        for column, value in enumerate(table.iloc[row]):
            colour = BLUES(float(np.sqrt(value / table.to_numpy().max())))
            x = left + column * width
            sheet.box(x, y - CELL / 2, width - 1.5, CELL - 1.5, colour)
            style = {"size": 11, "ha": "center", "color": _ink_on(colour), **c.MIDDLE}
            sheet.text(x + width / 2, y, w.number(value), **style)
    for column, action in enumerate(table.columns):
        x, name = left + (column + 0.5) * width, c.fit(action, width - 4, size=10)
        sheet.text(x, top + 7, name, ha="center", color=c.MUTED)
    return sheet.figure


def _ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever stands out more; between them 4.5 to 1 is always reached."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Both contrasts are equal where (1.05 / (l + 0.05)) = ((l + 0.05) / 0.05).
    return "black" if luminance > 0.179 else "white"


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
    changes, lanes = rows["action"].astype(str)[lambda a: a != "READ"], _by_count(fields)
    finding = f"{entity} was read {w.plural(len(rows), 'time')} and not changed"
    if len(changes):
        finding = f"{entity} changed {w.plural(len(changes), 'time')}"
        count = int((fields["lane"] == lanes[0]).sum()) if len(lanes) > 1 else 0
        finding += f", most often {w.clean(lanes[0])} ({w.number(count)})" if count > 1 else ""
        finding += ", and was deleted last" if changes.iloc[-1] == "DELETE" else ""
    rows = pd.concat([rows, fields])
    return _lanes(finding, subtitle, footer, rows, ["all events", *lanes], since, until)


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
    changed = rows[rows["action"].astype(str) != "READ"]
    known = changed[changed["lane"] != NOBODY]
    finding = f"{w.plural(known['lane'].nunique(), 'user')} changed {entity}"
    if changed.empty:
        finding = f"{w.plural(rows['lane'].nunique(), 'reader')}, and nobody changed {entity}"
    elif known.empty:
        finding = f"Nothing says who changed {entity}"
    elif nobody := len(changed) - len(known):
        finding += f"; of {w.plural(nobody, 'change')} nothing says who"
    return _lanes(finding, subtitle, footer, rows, _by_count(rows), since, until)


def _by_count(rows: pd.DataFrame) -> list[str]:
    """The lanes, those with most events first."""
    counts = rows["lane"].value_counts()
    return sorted(map(str, counts.index), key=lambda lane: (-int(counts[lane]), lane))


def _lanes(
    title: str,
    subtitle: str,
    footer: str,
    rows: pd.DataFrame,
    lanes: list[str],
    since: pd.Timestamp,
    until: pd.Timestamp,
) -> Figure:
    """The events of `rows` in the `lanes`, from above, with their numbers at the right."""
    subtitle += w.more(len(lanes) - MOST_LANES, "; {} more are not drawn")
    lanes = lanes[:MOST_LANES]
    sheet = c.canvas(title, subtitle, footer, drawing=56 + LANE * len(lanes))
    counts = [w.number(int((rows["lane"] == name).sum())) for name in lanes]
    right = c.WIDTH - 16 - max(c.text_width(count, size=10) for count in counts)
    labels = [c.fit(name, 190, size=10, mono=True) for name in lanes]
    axes, heights = sheet.rows(labels, right=right, above=30, size=10)
    axes.grid(visible=False)
    c.time_axis(axes, since, until)
    low, high = axes.get_xlim()
    at = np.asarray(c.place(w.utc(rows["created_at"])), dtype=np.float64)
    # Without the events that would hide behind each other.
    column = np.floor((at - low) / (high - low) * COLUMNS)
    seen = rows.assign(at=at, column=column, action=rows["action"].astype(str))
    seen = seen.drop_duplicates(["lane", "action", "column"])
    for lane, (name, y, count) in enumerate(zip(lanes, heights, counts, strict=True)):
        axes.axhline(lane, color=c.GRID, lw=0.8, zorder=0)
        sheet.text(c.WIDTH - 9, y, count, ha="right", color=c.MUTED, **c.MIDDLE)
        for action in MARKS:
            _marks(
                axes, action, seen["at"][(seen["lane"] == name) & (seen["action"] == action)], lane
            )
    # The marks with their meaning, in one row.
    y, x = sheet.top - 18, c.spot(axes, low, 0)[0] + 5
    legend = sheet.axes(0, y - 4, c.WIDTH, y + 10)
    legend.set_axis_off()
    legend.set_xlim(0, c.WIDTH)
    legend.set_ylim(0, 1)
    for action in (a for a in MARKS if a in {*seen["action"]}):
        _marks(legend, action, [x], 0.5)
        sheet.text(x + 9, y + 3, action, size=9.5, **c.MIDDLE)
        x += 27 + c.text_width(action, size=9.5)
    return sheet.figure


def _marks(axes: Axes, action: str, x: Any, y: float) -> None:
    marker, size = MARKS[action]
    edge = 1.6 if marker == "|" else 0
    ys = np.full(len(x), y)
    axes.plot(x, ys, marker, color=ACTIONS[action], ms=size, mew=edge, clip_on=False)
