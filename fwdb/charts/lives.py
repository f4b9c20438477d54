"""Charts of the life of one entity: its events in lanes over time, by field and by actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fwdb.charts.canvas import (
    BLUE,
    GREY,
    GRID,
    INK,
    MARGIN,
    MUTED,
    SKY,
    VERMILION,
    WIDTH,
    Canvas,
    canvas,
    clean,
    drawn,
    empty,
    fit,
    number,
    place,
    plural,
    text_width,
    time_axis,
    utc,
    window_text,
)

# Colour and form: what happened is in both.
MARKS = {
    "CREATE": (BLUE, "D", 7.0),
    "UPDATE": (SKY, "o", 7.0),
    "READ": (GREY, "|", 9.0),
    "DELETE": (VERMILION, "X", 9.0),
}
MOST_LANES = 14
LANE = 24.0
COLUMNS = 1200  # places along the axis that can be told apart: events of one place are one mark
NOBODY = "not said"


@drawn
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
    footer = f"{source} · {window_text(since, until)} · {plural(len(frame), 'event')}"
    if frame.empty:
        return empty(f"{entity} has no history here", subtitle, footer, reason=reason)
    rows = frame.assign(lane="all events")
    fields = rows.assign(lane=rows["changed_fields"].fillna("").str.split(", ")).explode("lane")
    fields = fields[(fields["lane"].fillna("") != "") & (fields["action"] == "UPDATE")]
    order = ["all events", *_by_count(fields, MOST_LANES - 1)]
    if (rest := fields["lane"].nunique() + 1 - len(order)) > 0:
        subtitle += f"; {number(rest)} more are not drawn"
    return _lanes(
        _history_finding(entity, rows, fields),
        subtitle,
        footer,
        pd.concat([rows, fields]),
        order,
        since,
        until,
        mono=True,
    )


@drawn
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
    footer = f"{source} · {window_text(since, until)} · {plural(len(frame), 'event')}"
    if frame.empty:
        return empty(f"Nobody touched {entity}", subtitle, footer, reason=reason)
    rows = frame.assign(
        lane=[f"{str(u)[:13]}…" if pd.notna(u) else NOBODY for u in frame["user_id"]]
    )
    order = _by_count(rows, MOST_LANES)
    if (rest := rows["lane"].nunique() - len(order)) > 0:
        subtitle += f"; {number(rest)} more are not drawn"
    return _lanes(_actors_finding(entity, rows), subtitle, footer, rows, order, since, until)


def _by_count(rows: pd.DataFrame, most: int) -> list[str]:
    counts = rows["lane"].value_counts()
    return sorted(map(str, counts.index), key=lambda lane: (-int(counts[lane]), lane))[:most]


def _history_finding(entity: str, rows: pd.DataFrame, fields: pd.DataFrame) -> str:
    actions = rows["action"].astype(str)
    changes = int((actions != "READ").sum())
    if not changes:
        return f"{entity} was read {plural(len(rows), 'time')} and not changed"
    text = f"{entity} changed {plural(changes, 'time')}"
    if len(fields):
        most = _by_count(fields, 1)[0]
        count = int((fields["lane"] == most).sum())
        if fields["lane"].nunique() > 1 and count > 1:
            text += f", most often {clean(most)} ({number(count)})"
    last = actions[actions != "READ"].iloc[-1]
    return f"{text}, and was deleted last" if last == "DELETE" else text


def _actors_finding(entity: str, rows: pd.DataFrame) -> str:
    changed = rows[rows["action"].astype(str) != "READ"]
    known = changed[changed["lane"] != NOBODY]
    if changed.empty:
        return f"{plural(rows['lane'].nunique(), 'reader')}, and nobody changed {entity}"
    nobody = len(changed) - len(known)
    if known.empty:
        return f"Nothing says who changed {entity}"
    text = f"{plural(known['lane'].nunique(), 'user')} changed {entity}"
    return f"{text}; of {plural(nobody, 'change')} nothing says who" if nobody else text


def _lanes(
    title: str,
    subtitle: str,
    footer: str,
    rows: pd.DataFrame,
    order: Sequence[str],
    since: pd.Timestamp,
    until: pd.Timestamp,
    *,
    mono: bool = False,
) -> Figure:
    """The events of `rows` in the lanes of `order`, from above, with their numbers at the right."""
    sheet = canvas(title, subtitle, footer, drawing=56 + LANE * len(order))
    counts = rows["lane"].value_counts()
    names = [fit(lane, 190, size=10, mono=mono and lane != "all events") for lane in order]
    left = MARGIN + max(text_width(name, size=10, mono=mono) for name in names) + 14
    right = WIDTH - 16 - max(text_width(number(int(counts[n])), size=10) for n in order)
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 30)
    seen = {str(action) for action in rows["action"]}
    _legend(sheet, sheet.top - 18, {k: v for k, v in MARKS.items() if k in seen}, left=left)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    time_axis(axes, since, until)
    for lane, name in enumerate(order):
        axes.axhline(lane, color=GRID, lw=0.8, zorder=0)
        mine = rows[rows["lane"] == name]
        y = sheet.top - 30 - LANE * (lane + 0.5)
        font = {"family": "DejaVu Sans Mono"} if mono and name != "all events" else {}
        sheet.text(left - 12, y, names[lane], ha="right", va="center_baseline", color=INK, **font)
        sheet.text(WIDTH - 9, y, number(len(mine)), ha="right", va="center_baseline", color=MUTED)
        for action, (colour, marker, size) in MARKS.items():
            at = _places(mine[mine["action"].astype(str) == action], since, until)
            axes.plot(
                at,
                np.full(len(at), lane),
                marker,
                color=colour,
                ms=size,
                mew=1.6 if marker == "|" else 0,
                clip_on=False,
            )
    return sheet.figure


def _places(rows: pd.DataFrame, since: pd.Timestamp, until: pd.Timestamp) -> Any:
    """Where the events stand, without those that would hide behind each other."""
    low, high = float(place(utc(since))), float(place(utc(until)))
    at = np.asarray(place(utc(rows["created_at"])), dtype=np.float64)
    step = max((high - low) / COLUMNS, 1e-9)
    _, first = np.unique(np.floor((at - low) / step), return_index=True)
    return at[first]


def _legend(
    sheet: Canvas, y: float, entries: Mapping[str, tuple[str, str, float]], *, left: float
) -> None:
    """The marks with their meaning, in one row."""
    axes = sheet.axes(left, y - 4, WIDTH - MARGIN, y + 10)
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH - MARGIN - left)
    axes.set_ylim(0, 1)
    x = 5.0
    for name, (colour, marker, size) in entries.items():
        axes.plot([x], [0.5], marker, color=colour, ms=size, mew=1.6 if marker == "|" else 0)
        sheet.text(left + x + 9, y + 3, name, size=9.5, va="center_baseline")
        x += 9 + text_width(name, size=9.5) + 18
