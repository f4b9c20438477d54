"""Charts of connections: the pools over time, waiting and holding, and the sessions now."""

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
STATES = {"active": c.BLUE, "idle": c.GREY, "idle in transaction": c.ORANGE, "other": c.SKY}


def _name(database: object) -> str:
    return w.DATABASES.get(str(database), str(database))


def _per_database(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each store, PostgreSQL first."""
    groups = frame.groupby(frame["database"].astype(str))
    return {str(name): rows for name, rows in sorted(groups, key=lambda g: str(g[0]), reverse=True)}


def _fullest(rows: pd.DataFrame) -> pd.DataFrame:
    """For each moment the fullest pool of all processes, and all who waited."""
    rows = rows.assign(sampled_at=w.utc(rows["sampled_at"]), waiting=rows.get("waiting", 0))
    by_moment = rows.groupby("sampled_at", sort=True)
    found = by_moment.agg(
        utilisation_percent=("utilisation_percent", "max"), waiting=("waiting", "sum")
    )
    return found.astype(float)


def _pool_finding(parts: dict[str, pd.DataFrame], warning: float, critical: float) -> str:
    waits = {d: int((p["waiting"] > 0).sum()) for d, p in parts.items()}
    worst = max(parts, key=lambda d: parts[d]["utilisation_percent"].max())
    use = parts[worst]["utilisation_percent"]
    if any(waits.values()):
        where = max(waits, key=lambda d: waits[d])
        samples = w.plural(len(parts[where]), "sample")
        return (
            f"Callers waited for a {_name(where)} connection "
            f"in {w.number(waits[where])} of {samples}"
        )
    for line, limit in (("critical", critical), ("warning", warning)):
        if over := int((use >= limit).sum()):
            of = f"{w.number(over)} of {w.plural(len(use), 'sample')}"
            return f"The {_name(worst)} pool was over its {line} line in {of}"
    whose = f"The {_name(worst)} pool" if len(parts) == 1 else "The pools"
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
    parts = {database: _fullest(rows) for database, rows in _per_database(known).items()}
    if not parts:
        footer = c.footer(source, w.window_text(since, until), "0 samples")
        return c.empty("The pools were not sampled", subtitle, footer, reason=reason)
    times = pd.DatetimeIndex(np.concatenate([p.index.to_numpy() for p in parts.values()]))
    start = w.utc(since) if since is not None else times.min()
    end = w.utc(until) if until is not None else times.max()
    window = w.window_text(start, end)
    if times.max() - times.min() < SPARSE * (end - start):
        # A few minutes of a day would be a scratch at the edge: look closer, and say so.
        margin = max((times.max() - times.min()) * 0.02, pd.Timedelta(milliseconds=500))
        start, end = times.min() - margin, times.max() + margin
        window = f"sampled {w.window_text(start, end)} only, of {window}"
    capacity = ""
    if "capacity" in frame and frame["capacity"].notna().any():
        rows_of = _per_database(frame.dropna(subset=["capacity"]))
        sizes = (
            f"{_name(d)} {w.number(float(rows['capacity'].max()))}" for d, rows in rows_of.items()
        )
        capacity = "capacity " + ", ".join(sizes)
    waited = any((p["waiting"] > 0).any() for p in parts.values())
    sheet = c.canvas(
        _pool_finding(parts, warning_percent, critical_percent),
        subtitle,
        c.footer(source, window, w.plural(len(times.unique()), "sample"), capacity),
        drawing=330 if waited else 260,
    )
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
        colour = COLOURS.get(database, c.GREY)
        line(axes, part["utilisation_percent"], colour, zorder=5 - order)
        if len(parts) > 1:
            last = float(part["utilisation_percent"].iloc[-1])
            labels.append((last, _name(database), c.INK))
    c.right_labels(sheet, axes, labels)
    _peak(axes, max((p["utilisation_percent"] for p in parts.values()), key=pd.Series.max))
    if waited:
        below = sheet.axes(left, sheet.bottom + 24, right, sheet.bottom + 76, grid="y")
        _waiting(sheet, below, parts)
        c.time_axis(below, start, end)
        below.set_xticks([])
    return sheet.figure


def line(axes: Axes, series: pd.Series[Any], colour: str, *, zorder: float = 5) -> None:
    """A line over time, broken wherever several samples in a row are missing; dots stand alone."""
    x: Any = np.asarray(c.place(series.index), dtype=np.float64)
    y = series.to_numpy(dtype=float)
    if len(x) > 2:
        steps = np.diff(x)
        holes = np.flatnonzero(steps > max(5 * np.median(steps), 1e-9)) + 1
        x, y = np.insert(x, holes, x[holes - 1]), np.insert(y, holes, np.nan)
    x, y = c.thin(x, y)
    axes.plot(x, y, color=colour, lw=1.8, zorder=zorder, solid_joinstyle="round")
    gap = np.concatenate([[True], np.isnan(y), [True]])
    # So few are points and no course.
    alone = (gap[:-2] & gap[2:] | (len(x) < 4)) & ~gap[1:-1]
    axes.plot(x[alone], y[alone], "o", color=colour, ms=4.5, zorder=6, clip_on=False)


def _peak(axes: Axes, series: pd.Series[Any]) -> None:
    """The highest value with its time, beside it and above if there is room."""
    value, moment = float(series.max()), pd.Timestamp(str(series.idxmax()))
    span = series.index[-1] - series.index[0]
    date = "" if span < pd.Timedelta(hours=20) else f"{moment.day} {moment:%b} "
    clock = f"{moment:%H:%M:%S}" if span < pd.Timedelta(minutes=5) else f"{moment:%H:%M}"
    at, (low, high) = float(c.place(moment)), axes.get_xlim()
    side, align = (1, "left") if at < (low + high) / 2 else (-1, "right")
    axes.annotate(
        f"peak {w.share(value)}\n{date}{clock} UTC",
        xy=(at, value),
        xytext=(22 * side, 26 if value < 0.8 * axes.get_ylim()[1] else -14),
        textcoords="offset points",
        size=9.5,
        weight="bold",
        color=c.INK,
        ha=align,
        va="center",
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
    if frame.empty or not frame["sessions"].sum():
        footer = c.footer(source, "0 sessions")
        return c.empty("No session is open", subtitle, footer, reason=reason)
    state = frame["state"].astype(str)
    state = state.replace({"idle in transaction (aborted)": "idle in transaction"})
    names = frame["application"].astype(object).fillna("").map(lambda a: w.clean(a) or "(no name)")
    if "database" in frame and frame["database"].nunique() > 1:
        names += " · " + frame["database"].astype(str)
    rows = frame.assign(application=names, state=state.where(state.isin([*STATES]), "other"))
    table = rows.pivot_table(
        index="application", columns="state", values="sessions", aggfunc="sum", fill_value=0
    ).astype(float)
    total = float(table.to_numpy().sum())
    held = float(table["idle in transaction"].sum()) if "idle in transaction" in table else 0.0
    table = c.ranked(table, MOST_APPLICATIONS)
    of = f" of {w.number(limit)}" if limit else ""
    finding = f"{w.number(total)}{of} session{'s' if total != 1 or limit else ''} open; "
    finding += f"{w.number(held)} {'idles' if held == 1 else 'idle'}" if held else "none idles"
    sheet = c.canvas(
        f"{finding} inside a transaction",
        subtitle,
        c.footer(source, w.plural(int(total), "session")),
        drawing=64 + 27 * len(table),
    )
    labels = [c.fit(str(name), 210, size=10) for name in table.index]
    axes, heights = sheet.rows(labels, right=c.WIDTH - 60, above=26, size=10, mono=False)
    edge = np.zeros(len(table))
    present = [(s, colour) for s, colour in STATES.items() if s in table and table[s].sum() > 0]
    for name, colour in present:
        values, ys = table[name].to_numpy(), range(len(table))
        axes.barh(ys, values, left=edge, color=colour, height=0.62, edgecolor="white", lw=0.6)
        edge += values
    axes.set_xlim(0, max(edge.max(), 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    c.legend(sheet, sheet.top - 16, present, left=c.spot(axes, 0, 0)[0])
    for y, value in zip(heights, edge, strict=True):
        x = c.spot(axes, float(value), 0)[0] + 5
        sheet.text(x, y, w.number(float(value)), size=9.5, **c.MIDDLE)
    return sheet.figure


# -- durations --------------------------------------------------------------------------------

# What is said of each: subtitle, title without data, and the beginning of the finding.
_WORDS = {
    "wait": (
        "How long callers queued for a connection, percent of those that had to wait",
        "Nobody had to wait for a connection",
        "{count} caller{s} waited for a {store} connection",
    ),
    "hold": (
        "How long callers held a connection before they returned it, percent of holds",
        "No connection was returned",
        "{count} {store} connection{s} {was} lent and returned",
    ),
}
_FEWEST = 6  # buckets on the axis, so that one bar is not as wide as the sheet


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
    (``inf`` for the last) and `durations`; `bounds` are those of all buckets. A
    bar is the bucket's part of all of its store. Bounds are what is known, so the finding names
    a bound and no percentile between two of them.
    """
    subtitle, nothing, many = _WORDS[subject]
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
    count = int(parts[worst].sum())
    s, was = ("", "was") if count == 1 else ("s", "were")
    finding = many.format(store=_name(worst), count=w.number(count), s=s, was=was)
    bound = within[worst]
    finding += (
        f", 99 in 100 within {w.duration(bound)}"
        if math.isfinite(bound)
        else f", more than 1 in 100 after over {w.duration(bounds[-1])}"
    )
    counted = ", ".join(f"{_name(d)} {w.plural(int(p.sum()), subject)}" for d, p in parts.items())
    sheet = c.canvas(finding, subtitle, c.footer(source, window, counted), drawing=230)
    left, right = 46.0, c.WIDTH - 24
    colours = {database: COLOURS.get(database, c.MUTED) for database in parts}
    if len(parts) > 1:
        shown = [(_name(database), colour) for database, colour in colours.items()]
        c.legend(sheet, sheet.top - 16, shown, left=left)
    axes = sheet.axes(left, sheet.bottom + 26, right, sheet.top - 30, grid="y")
    edges = _edges(
        sorted({float(up_to) for part in parts.values() for up_to in part.index}), bounds
    )
    step = (right - left) / (len(edges) - 1)  # width of a bucket on the sheet
    width = 0.84 / len(parts)
    bars = [
        (
            edges.index(float(str(up_to))) - 0.92 + order * width,
            100 * n / part.sum(),
            n,
            colours[name],
        )
        for order, (name, part) in enumerate(parts.items())
        for up_to, n in part.items()
    ]
    most = max(percent for _, percent, _, _ in bars)
    top = most * 1.15
    axes.set_ylim(0, top)
    axes.set_xlim(0, len(edges) - 1)
    counts = [w.compact(n, most=1e4) for _, _, n, _ in bars]
    room = max(c.text_width(text, size=8.5) for text in counts) < width * step
    for (x, percent, _, colour), text in zip(bars, counts, strict=True):
        axes.bar(x, percent, width=width * 0.94, align="edge", color=colour, lw=0, zorder=3)
        if room:
            place = (x + width * 0.47, percent + top * 0.015)
            axes.text(*place, text, ha="center", size=8.5, color=c.MUTED)
    labels = ["0" if not e else w.duration(e) if math.isfinite(e) else "more" for e in edges]
    every = math.ceil((max(c.text_width(text, size=9) for text in labels) + 6) / step)
    axes.set_xticks(range(0, len(edges), every), labels=labels[::every])
    axes.tick_params(axis="x", labelsize=9)
    ticks = [t for t in (0, 20, 40, 60, 80, 100) if t <= top] if most > 25 else [0, most]
    axes.set_yticks(ticks, labels=[*(f"{t:g}" for t in ticks[:-1]), w.share(ticks[-1])])
    return sheet.figure


def _edges(used: Sequence[float], bounds: Sequence[float]) -> list[float]:
    """Bounds of the buckets from the first to the last that is used, and some around them."""
    ladder = [0.0, *bounds, math.inf]
    first, last = ladder.index(used[0]) - 1, ladder.index(used[-1])
    while last - first < min(_FEWEST, len(ladder) - 1):
        first, last = max(0, first - 1), min(len(ladder) - 1, last + 1)
    return ladder[first : last + 1]
