"""Charts of the servers: pools over time, waits and holds, sessions now, checks, and trends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fwdb.charts import canvas as c
from fwdb.charts import words as w

COLOURS = {"postgres": c.BLUE, "mongodb": c.SKY}
MOST_BARS = 600
SPARSE = 0.2  # samples over less of the window than this are drawn alone
MOST_APPLICATIONS = 10
FEWEST = 6  # buckets on the axis, so that one bar is not as wide as the sheet
STATES = {"active": c.BLUE, "idle": c.GREY, "idle in transaction": c.ORANGE, "other": c.SKY}


def _per_database(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each store, PostgreSQL first."""
    groups = frame.groupby(frame["database"].astype(str))
    return {str(name): rows for name, rows in sorted(groups, key=lambda g: str(g[0]), reverse=True)}


def _pool_finding(parts: dict[str, pd.DataFrame], warning: float, critical: float) -> str:
    waits = {d: int((p["waiting"] > 0).sum()) for d, p in parts.items()}
    where = max(waits, key=lambda d: waits[d])
    worst = max(parts, key=lambda d: parts[d]["utilisation_percent"].max())
    use, name = parts[worst]["utilisation_percent"], w.named(worst)
    if waits[where]:
        of = f"{w.number(waits[where])} of {w.plural(len(parts[where]), 'sample')}"
        return f"Callers waited for a {w.named(where)} connection in {of}"
    for line, limit in (("critical", critical), ("warning", warning)):
        if over := int((use >= limit).sum()):
            of = f"{w.number(over)} of {w.plural(len(use), 'sample')}"
            return f"The {name} pool was over its {line} line in {of}"
    whose = f"The {name} pool" if len(parts) == 1 else "The pools"
    if len(use) == 1:
        return f"{whose} used {w.share(use.max())} of the capacity at most"
    return f"{whose} never used more than {w.share(use.max())} of the capacity"


@c.drawn
def pool(
    frame: pd.DataFrame,
    *,
    warning_percent: float = 80,
    critical_percent: float = 95,
    since: pd.Timestamp | None = None,
    until: pd.Timestamp | None = None,
    source: str = "monitoring history",
    reason: str = "No sample was taken in this window.",
) -> Figure:
    """Use of the connection pools over time, with the two thresholds as pale bands.

    `frame` has a row per sample: `sampled_at`, `database`, `utilisation_percent` (of capacity),
    and, when known, `waiting` (callers without a connection) and `capacity`. Of several processes
    the fullest is drawn. Where samples are missing the line is broken. When anybody waited, a
    second panel shows how many.
    """
    subtitle = "Connections in use, percent of the pool's capacity, fullest process of each sample"
    known = frame.dropna(subset=["utilisation_percent"])
    known = known.assign(sampled_at=w.utc(known["sampled_at"]), waiting=known.get("waiting", 0))
    # For each moment the fullest pool of all processes, and all who waited.
    how = {"utilisation_percent": "max", "waiting": "sum"}
    parts = {
        database: rows.groupby("sampled_at", sort=True).agg(how).astype(float)
        for database, rows in _per_database(known).items()
    }
    if not parts:
        footer = c.footer(source, w.window_text(since, until), "0 samples")
        return c.empty("The pools were not sampled", subtitle, footer, reason=reason)
    times = pd.DatetimeIndex(np.concatenate([p.index.to_numpy() for p in parts.values()]))
    first, last = times.min(), times.max()
    start, end = (w.utc(since) if since else first), (w.utc(until) if until else last)
    window = w.window_text(start, end)
    if last - first < SPARSE * (end - start):
        # A few minutes of a day would be a scratch at the edge: look closer, and say so.
        margin = max((last - first) * 0.02, pd.Timedelta(milliseconds=500))
        start, end = first - margin, last + margin
        window = f"sampled {w.window_text(start, end)} only, of {window}"
    sizes = _per_database(frame.dropna(subset=["capacity"])) if "capacity" in frame else {}
    most = {w.named(d): w.number(float(r["capacity"].max())) for d, r in sizes.items()}
    capacity = "capacity " + ", ".join(" ".join(pair) for pair in most.items()) if most else ""
    waited = any((p["waiting"] > 0).any() for p in parts.values())
    finding = _pool_finding(parts, warning_percent, critical_percent)
    footer = c.footer(source, window, w.plural(len(times.unique()), "sample"), capacity)
    sheet = c.canvas(finding, subtitle, footer, drawing=330 if waited else 260)
    left, right = 46, c.WIDTH - 92
    axes = sheet.axes(left, sheet.bottom + (110 if waited else 26), right, sheet.top - 10, grid="y")
    top = max(100.0, *(float(p["utilisation_percent"].max()) for p in parts.values()))
    axes.set_ylim(0, top)
    axes.axhspan(warning_percent, critical_percent, color=c.WARNING_BAND, lw=0, zorder=0)
    axes.axhspan(critical_percent, top, color=c.CRITICAL_BAND, lw=0, zorder=0)
    axes.set_yticks([0, 20, 40, 60, 80, 100], labels=["0", "20", "40", "60", "80", "100 %"])
    c.time_axis(axes, start, end)
    labels = [
        (warning_percent, f"warning {warning_percent:g} %", c.AMBER_TEXT),
        (critical_percent, f"critical {critical_percent:g} %", c.RED_TEXT),
    ]
    for order, (database, part) in enumerate(parts.items()):
        use = part["utilisation_percent"]
        c.line(axes, use, COLOURS.get(database, c.GREY), zorder=5 - order)
        if len(parts) > 1:
            labels.append((float(use.iloc[-1]), w.named(database), c.INK))
    sheet.right_labels(axes, labels)
    _peak(axes, max((p["utilisation_percent"] for p in parts.values()), key=pd.Series.max))
    if waited:
        below = sheet.axes(left, sheet.bottom + 24, right, sheet.bottom + 76, grid="y")
        _waiting(sheet, below, parts)
        c.time_axis(below, start, end)
        below.set_xticks([])
    return sheet.figure


def _peak(axes: Axes, series: pd.Series[Any]) -> None:
    """The highest value with its time, towards the middle, and above if there is room."""
    value, moment = float(series.max()), pd.Timestamp(str(series.idxmax()))
    span = series.index[-1] - series.index[0]
    date = "" if span < pd.Timedelta(hours=20) else f"{moment.day} {moment:%b} "
    clock = f"{moment:%H:%M:%S}" if span < pd.Timedelta(minutes=5) else f"{moment:%H:%M}"
    at, (low, high) = float(c.place(moment)), axes.get_xlim()
    side, align = (22, "left") if at < (low + high) / 2 else (-22, "right")
    axes.annotate(
        f"peak {w.share(value)}\n{date}{clock} UTC",
        xy=(at, value),
        xytext=(side, 26 if value < 0.8 * axes.get_ylim()[1] else -14),
        textcoords="offset points",
        ha=align,
        va="center",
        size=9.5,
        weight="bold",
        color=c.INK,
        arrowprops={"arrowstyle": "-", "color": c.MUTED, "lw": 0.9, "shrinkA": 0, "shrinkB": 2},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
        zorder=8,
    )


def _waiting(sheet: c.Canvas, axes: Axes, parts: dict[str, pd.DataFrame]) -> None:
    """The lower panel: how many callers had to wait, at each sample."""
    most = max(float(p["waiting"].max()) for p in parts.values())
    axes.set_ylim(0, most * 1.1)
    axes.set_yticks([0, most], labels=["0", w.compact(most)])
    for part in parts.values():
        waiting = part["waiting"][part["waiting"] > 0].nlargest(MOST_BARS).sort_index()
        axes.vlines(c.place(waiting.index), 0, waiting, color=c.ORANGE, lw=1.6)
    for y, word in ((55, "callers"), (42, "waiting")):
        sheet.text(c.WIDTH - 86, sheet.bottom + y, word, size=9.5, color=c.AMBER_TEXT)


@c.drawn
def sessions(
    frame: pd.DataFrame,
    *,
    limit: float | None = None,
    source: str = "server sessions now",
    reason: str = "The server showed no session.",
) -> Figure:
    """Who holds the sessions of the server: a bar per application, cut by state.

    `frame` has a row per application and state: `application`, `state`, `sessions`, and
    `database` when there is more than one. `limit` is the number of sessions the server allows.
    """
    subtitle = "Sessions by application and state, this moment"
    total = int(frame["sessions"].sum()) if len(frame) else 0
    footer = c.footer(source, w.plural(total, "session"))
    if not total:
        return c.empty("No session is open", subtitle, footer, reason=reason)
    state = frame["state"].astype(str).str.removesuffix(" (aborted)")
    names = frame["application"].astype(object).fillna("").map(lambda a: w.clean(a) or "(no name)")
    if "database" in frame and frame["database"].nunique() > 1:
        names += " · " + frame["database"].astype(str)
    rows = frame.assign(application=names, state=state.where(state.isin([*STATES]), "other"))
    table = c.counted(rows, "application", "state", "sessions")
    held = int(table["idle in transaction"].sum()) if "idle in transaction" in table else 0
    table = c.ranked(table, MOST_APPLICATIONS)
    of = f" of {w.number(limit)}" if limit else ""
    finding = f"{w.number(total)}{of} session{'s' if total != 1 or limit else ''} open; "
    finding += w.plural(held, "idles", "idle") if held else "none idles"
    finding += " inside a transaction"
    sheet = c.canvas(finding, subtitle, footer, drawing=64 + 27 * len(table))
    labels = [c.fit(name, 210, size=10) for name in table.index]
    axes, heights = sheet.rows(labels, right=c.WIDTH - 60, above=26, size=10, mono=False)
    edge = np.zeros(len(table))
    present = [(s, colour) for s, colour in STATES.items() if s in table and table[s].sum() > 0]
    for name, colour in present:
        values, ys = table[name].to_numpy(), range(len(table))
        axes.barh(ys, values, left=edge, color=colour, height=0.62, edgecolor="white", lw=0.6)
        edge += values
    axes.set_xlim(0, max(edge.max(), 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    sheet.legend(sheet.top - 16, present, left=c.spot(axes, 0, 0)[0])
    for y, value in zip(heights, edge, strict=True):
        x = c.spot(axes, float(value), 0)[0] + 5
        sheet.text(x, y, w.number(float(value)), size=9.5, **c.MIDDLE)
    return sheet.figure


# What is said of each: subtitle, title without data, and the beginning of the finding.
_WORDS = {
    "wait": (
        "How long callers queued for a connection, percent of those that had to wait",
        "Nobody had to wait for a connection",
        ("caller waited for a {} connection", "callers waited for a {} connection"),
    ),
    "hold": (
        "How long callers held a connection before they returned it, percent of holds",
        "No connection was returned",
        ("{} connection was lent and returned", "{} connections were lent and returned"),
    ),
}


@c.drawn
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
    (``inf`` for the last) and `durations`; `bounds` are those of all buckets. A bar is the
    bucket's part of all of its store. Bounds are what is known, so the finding names a bound and
    no percentile between two of them.
    """
    subtitle, nothing, forms = _WORDS[subject]
    # Counts by upper bound of the bucket.
    parts = {
        database: rows.groupby("up_to_ms")["durations"].sum().sort_index()
        for database, rows in _per_database(frame[frame["durations"] > 0]).items()
    }
    if not parts:
        footer = c.footer(source, window, f"0 {subject}s")
        return c.empty(nothing, subtitle, footer, reason=reason)
    within = {d: float(p.index[p.cumsum() >= 0.99 * p.sum()][0]) for d, p in parts.items()}
    worst = max(within, key=lambda d: within[d])
    bound, few = within[worst], f", more than 1 in 100 after over {w.duration(bounds[-1])}"
    finding = w.plural(int(parts[worst].sum()), *forms).format(w.named(worst))
    finding += f", 99 in 100 within {w.duration(bound)}" if math.isfinite(bound) else few
    sums = {w.named(d): w.plural(int(p.sum()), subject) for d, p in parts.items()}
    counted = ", ".join(" ".join(pair) for pair in sums.items())
    sheet = c.canvas(finding, subtitle, c.footer(source, window, counted), drawing=230)
    left, right = 46.0, c.WIDTH - 24
    if len(parts) > 1:
        shown = [(w.named(database), COLOURS.get(database, c.GREY)) for database in parts]
        sheet.legend(sheet.top - 16, shown, left=left)
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 30, grid="y")
    edges = _edges({float(up_to) for part in parts.values() for up_to in part.index}, bounds)
    step = (right - left) / (len(edges) - 1)  # width of a bucket on the sheet
    width = 0.84 / len(parts)
    bars = [
        (edges.index(float(str(bound))) - 0.92 + order * width, 100 * n / part.sum(), n, name)
        for order, (name, part) in enumerate(parts.items())
        for bound, n in part.items()
    ]
    most = max(percent for _, percent, _, _ in bars)
    top = most * 1.15
    axes.set_ylim(0, top)
    axes.set_xlim(0, len(edges) - 1)
    counts = [w.compact(n, most=1e4) for _, _, n, _ in bars]
    room = max(c.text_width(text, size=8.5) for text in counts) < width * step
    for (x, percent, _, name), text in zip(bars, counts, strict=True):
        axes.bar(
            x, percent, width * 0.94, align="edge", color=COLOURS.get(name, c.GREY), lw=0, zorder=3
        )
        if room:
            at = (x + width * 0.47, percent + top * 0.015)
            axes.text(*at, text, ha="center", size=8.5, color=c.MUTED)
    labels = ["0" if not e else w.duration(e) if math.isfinite(e) else "more" for e in edges]
    every = math.ceil((max(c.text_width(text, size=9) for text in labels) + 6) / step)
    axes.set_xticks(range(0, len(edges), every), labels=labels[::every])
    axes.tick_params(axis="x", labelsize=9)
    ticks = [t for t in (0, 20, 40, 60, 80, 100) if t <= top] if most > 25 else [0, most]
    axes.set_yticks(ticks, labels=[*(f"{t:g}" for t in ticks[:-1]), w.share(ticks[-1])])
    return sheet.figure


def _edges(used: set[float], bounds: Sequence[float]) -> list[float]:
    """Bounds of the buckets from the first to the last that is used, and some around them."""
    ladder = [0.0, *bounds, math.inf]
    first, last = ladder.index(min(used)) - 1, ladder.index(max(used))
    while last - first < min(FEWEST, len(ladder) - 1):
        first, last = max(0, first - 1), min(len(ladder) - 1, last + 1)
    return ladder[first : last + 1]


# Marker, its colour, colour of the value, background: the meaning is in the shape as well.
_MARKS = {
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
    sheet = c.canvas(_health_finding(frame), subtitle, footer, drawing=44 + _ROW * len(order))
    wide, top = (c.ROOM - _LABELS) / len(w.DATABASES), sheet.top - 34
    lefts = {name: c.MARGIN + _LABELS + i * wide for i, name in enumerate(w.DATABASES)}
    for name, title in w.DATABASES.items():
        sheet.text(lefts[name] + 8, top + 8, title, size=11, weight="bold")
    for number, check in enumerate(order):
        y = top - _ROW * (number + 1)
        sheet.box(c.MARGIN, y + _ROW, c.ROOM, 0.6, c.GRID)
        label = c.fit(check, _LABELS - 8, size=10)
        sheet.text(c.MARGIN, y + _ROW / 2, label, size=10, **c.MIDDLE)
        for _, row in frame[checks == check].iterrows():
            _tile(sheet, row, lefts[str(row["database"])], y, wide)
    return sheet.figure


def _tile(sheet: c.Canvas, row: pd.Series[Any], left: float, y: float, wide: float) -> None:
    """One check of one store: its mark, its value, and why there is none."""
    marker, colour, ink, background = _MARKS.get(str(row["status"]), ("o", c.GREY, c.MUTED, None))
    known = str(row["status"]) in _MARKS
    font: dict[str, Any] = {"size": 10, "weight": "bold" if known else "normal"}
    middle = y + _ROW / 2
    if background:
        sheet.box(left + 2, y + 1.5, wide - 4, _ROW - 3, background, zorder=-1)  # under the mark
    axes = sheet.axes(left + 8, middle - 6, left + 20, middle + 6)
    axes.set_axis_off()
    face = colour if known else "white"
    axes.plot([0], [0], marker, ms=7, mfc=face, mec=colour, mew=1.4, clip_on=False)
    x, right = left + 27, left + wide
    value = c.fit(row["value"], right - x - 6, **font)
    sheet.text(x, middle, value, color=ink, **font, **c.MIDDLE)
    x += c.text_width(value, **font) + 8
    if (note := str(row["note"])) and right - x > 30:
        short = c.fit(note, right - x - 4, size=8.5)
        sheet.text(x, middle, short, size=8.5, color=c.MUTED, **c.MIDDLE)


def _health_finding(frame: pd.DataFrame) -> str:
    """The worst state there is and the checks that are in it."""
    status = frame["status"].astype(str)
    for state in ("critical", "warning"):
        names = list(dict.fromkeys(frame["check"].astype(str)[status == state].str.lower()))
        if names:
            rest = w.more(len(names) - 3, " and {} more")
            return f"{state.capitalize()}: {', '.join(names[:3])}{rest}"
    if judged := int(status.isin([*_MARKS]).sum()):
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
    footer = c.footer(source, w.window_text(*span), w.plural(len(times), "reading"))
    drawing = 8 + _PANEL * ((len(parts) + 1) // 2)
    sheet = c.canvas(f"{title} reached {most}", subtitle, footer, drawing=drawing)
    wide = (c.ROOM - 24) / 2
    for number, (title, unit, series) in enumerate(parts):
        left = c.MARGIN + (number % 2) * (wide + 24)
        top = sheet.top - 8 - _PANEL * (number // 2)
        sheet.text(left, top - 4, title, size=10, weight="bold", va="top")
        last, most = _amount(float(series.iloc[-1]), unit), _amount(float(series.max()), unit)
        words = f"last {last}, most {most}"
        sheet.text(left + wide, top - 5, words, size=9, color=c.MUTED, va="top", ha="right")
        axes = sheet.axes(left, top - _PANEL + 28, left + wide, top - 22)
        c.line(axes, series, c.SKY if "MongoDB" in title else c.BLUE)
        # A ratio is drawn to 1, everything else to what it reached.
        axes.set_ylim(0, 1.04 if not unit else max(float(series.max()) * 1.12, 1e-9))
        axes.set_yticks([])
        axes.axhline(0, color=c.AXIS, lw=0.8)
        c.time_axis(axes, *span, most=5, inset=26 / wide)
        axes.tick_params(axis="x", labelsize=8.5, pad=2)
    return sheet.figure


def _amount(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        return w.amount(value) + unit.removeprefix("bytes")
    if not unit:
        return f"{math.floor(1000 * value) / 1000:.3f}"  # cut: 0.9996 is not all of them
    return f"{w.compact(value) if value >= 10 else f'{value:.1f}'}{unit}"
