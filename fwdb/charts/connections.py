"""Charts of connections: the pools over time, and the sessions of the server now."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fwdb.charts.canvas import (
    AMBER_TEXT,
    AXIS,
    BLUE,
    CRITICAL_BAND,
    DATABASES,
    GREY,
    GRID,
    INK,
    MARGIN,
    MUTED,
    ORANGE,
    RED_TEXT,
    SKY,
    WARNING_BAND,
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
    right_labels,
    share,
    text_width,
    thin,
    time_axis,
    utc,
    window_text,
)

COLOURS = {"postgres": BLUE, "mongodb": SKY}


def _per_database(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each store and moment the fullest pool of all processes, and all who waited."""
    known = frame.dropna(subset=["utilisation_percent"]).copy()
    known["sampled_at"] = utc(known["sampled_at"])
    known["database"] = known["database"].astype(str)
    if "waiting" not in known:
        known["waiting"] = 0
    parts = {}
    for database, rows in sorted(known.groupby("database"), key=lambda g: str(g[0]), reverse=True):
        parts[str(database)] = (
            rows.groupby("sampled_at", sort=True)
            .agg(utilisation_percent=("utilisation_percent", "max"), waiting=("waiting", "sum"))
            .astype(float)
        )
    return parts


def _pool_finding(parts: dict[str, pd.DataFrame], warning: float, critical: float) -> str:
    whose = (
        f"the {DATABASES.get(*[next(iter(parts))] * 2)} pool" if len(parts) == 1 else "the pools"
    )
    waits = {d: int((p["waiting"] > 0).sum()) for d, p in parts.items()}
    worst = max(parts, key=lambda d: parts[d]["utilisation_percent"].max())
    use = parts[worst]["utilisation_percent"]
    name = DATABASES.get(worst, worst)
    if any(waits.values()):
        where = max(waits, key=lambda d: waits[d])
        return (
            f"Callers waited for a {DATABASES.get(where, where)} connection "
            f"in {number(waits[where])} of {plural(len(parts[where]), 'sample')}"
        )
    for line, limit in (("critical", critical), ("warning", warning)):
        over = int((use >= limit).sum())
        if over:
            return (
                f"The {name} pool was over its {line} line "
                f"in {number(over)} of {plural(len(use), 'sample')}"
            )
    if len(use) == 1:
        return f"{whose[0].upper()}{whose[1:]} used {share(use.max())} of the capacity at most"
    return f"{whose[0].upper()}{whose[1:]} never used more than {share(use.max())} of the capacity"


@drawn
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
    parts = _per_database(frame) if len(frame) else {}
    if not parts:
        window = (
            f" · {window_text(since, until)}" if since is not None and until is not None else ""
        )
        return empty(
            "The pools were not sampled", subtitle, f"{source}{window} · 0 samples", reason=reason
        )
    times = pd.DatetimeIndex(np.concatenate([p.index.to_numpy() for p in parts.values()]))
    start = utc(since) if since is not None else times.min()
    end = utc(until) if until is not None else times.max()
    window = window_text(start, end)
    if times.max() - times.min() < SPARSE * (end - start):
        # A few minutes of a day would be a scratch at the edge: look closer, and say so.
        margin = max((times.max() - times.min()) * 0.02, pd.Timedelta(milliseconds=500))
        start, end = times.min() - margin, times.max() + margin
        window = f"sampled {window_text(start, end)} only, of {window}"
    samples = len(times.unique())
    capacity = ""
    if "capacity" in frame and frame["capacity"].notna().any():
        sizes = (
            frame.dropna(subset=["capacity"])
            .groupby(frame["database"].astype(str))["capacity"]
            .max()
        )
        capacity = " · capacity " + ", ".join(
            f"{DATABASES.get(str(d), str(d))} {number(float(size))}"
            for d, size in sorted(sizes.items(), key=lambda i: str(i[0]), reverse=True)
        )
    waited = any((p["waiting"] > 0).any() for p in parts.values())
    sheet = canvas(
        _pool_finding(parts, warning_percent, critical_percent),
        subtitle,
        f"{source} · {window} · {plural(samples, 'sample')}{capacity}",
        drawing=330 if waited else 260,
    )
    below = 84 if waited else 0
    left, right = 46, WIDTH - 92
    axes = sheet.axes(left, sheet.bottom + 26 + below, right, sheet.top - 10)
    top = max(100.0, *(float(p["utilisation_percent"].max()) for p in parts.values()))
    axes.set_ylim(0, top)
    axes.axhspan(warning_percent, critical_percent, color=WARNING_BAND, lw=0, zorder=0)
    axes.axhspan(critical_percent, top, color=CRITICAL_BAND, lw=0, zorder=0)
    axes.set_yticks([0, 20, 40, 60, 80, 100], labels=["0", "20", "40", "60", "80", "100 %"])
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    time_axis(axes, start, end)
    labels = [
        (warning_percent, f"warning {warning_percent:g} %", AMBER_TEXT),
        (critical_percent, f"critical {critical_percent:g} %", RED_TEXT),
    ]
    for order, (database, part) in enumerate(parts.items()):
        x, y = thin(*broken(part["utilisation_percent"]))
        colour = COLOURS.get(database, GREY)
        axes.plot(x, y, color=colour, lw=1.8, zorder=5 - order, solid_joinstyle="round")
        lonely = alone(y)
        if lonely.any():
            axes.plot(x[lonely], y[lonely], "o", color=colour, ms=4.5, zorder=6, clip_on=False)
        if len(parts) > 1:
            last = float(part["utilisation_percent"].iloc[-1])
            labels.append((last, DATABASES.get(database, database), INK))
    right_labels(sheet, axes, labels)
    _peak(sheet, axes, parts, end)
    if waited:
        _waiting(sheet, parts, left, right, start, end)
    return sheet.figure


def broken(series: pd.Series[Any]) -> tuple[Any, Any]:
    """x and y of a line with a gap wherever several samples in a row are missing."""
    x: Any = np.asarray(place(series.index), dtype=np.float64)
    y = series.to_numpy(dtype=float)
    if len(x) < 3:
        return x, y
    steps = np.diff(x)
    holes = np.flatnonzero(steps > max(5 * np.median(steps), 1e-9)) + 1
    return np.insert(x, holes, x[holes - 1]), np.insert(y, holes, np.nan)


def alone(y: Any) -> Any:
    """Which points have no neighbour to be joined to, and need a dot to be seen."""
    gap = np.isnan(y)
    before = np.concatenate([[True], gap[:-1]])
    after = np.concatenate([gap[1:], [True]])
    return before & after & ~gap


def _peak(sheet: Canvas, axes: Axes, parts: dict[str, pd.DataFrame], end: pd.Timestamp) -> None:
    """The highest value of the window, with its time, where it hides least of the lines."""
    worst = max(parts, key=lambda d: parts[d]["utilisation_percent"].max())
    series = parts[worst]["utilisation_percent"]
    value, moment = float(series.max()), pd.Timestamp(str(series.idxmax()))
    span = utc(end) - series.index[0]
    date = "" if span < pd.Timedelta(hours=20) else f"{moment.day} {moment:%b} "
    clock = f"{moment:%H:%M:%S}" if span < pd.Timedelta(minutes=5) else f"{moment:%H:%M}"
    lines = [f"peak {share(value)}", f"{date}{clock} UTC"]
    width = max(text_width(line, size=9.5, weight="bold") for line in lines)
    box = axes.get_position()
    left, right = box.x0 * WIDTH, box.x1 * WIDTH
    floor, roof = box.y0 * sheet.height, box.y1 * sheet.height
    low, high = axes.get_xlim()

    def spot(x: Any, y: Any) -> tuple[Any, Any]:
        at = left + (x - low) / (high - low) * (right - left)
        return at, floor + y / axes.get_ylim()[1] * (roof - floor)

    drawn_at = [spot(*_dense(*line.get_data())) for line in axes.get_lines()]
    px, py = spot(float(place(moment)), value)

    def hidden(spot: tuple[float, float]) -> tuple[int, float]:
        """How many points of the lines lie under a label here, and how far away it is."""
        x, y = spot
        under = sum(
            int(((xs > x - 4) & (xs < x + width + 4) & (ys > y - 20) & (ys < y + 9)).sum())
            for xs, ys in drawn_at
        )
        return under, abs(x + width / 2 - px) + abs(y - py)

    spots = [
        (min(max(x, left + 4), right - width - 4), min(max(py + dy, floor + 22), roof - 10))
        for x in (px + 18, px - 18 - width, px + 60, px - 60 - width, px - width / 2)
        for dy in (-8, -40, -75, -110, 36)
    ]
    tx, ty = min(spots, key=hidden)
    toward = tx - 3 if tx > px else tx + width + 3 if tx + width < px else px
    axes.annotate(
        "",
        xy=(float(place(moment)), value),
        xytext=(toward / WIDTH, (ty - 1 if toward != px else ty + 9) / sheet.height),
        textcoords="figure fraction",
        arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.9, "shrinkA": 0, "shrinkB": 2},
        zorder=8,
    )
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    for row, line in enumerate(lines):
        sheet.text(
            tx, ty - 13 * row, line, size=9.5, weight="bold", va="center_baseline", bbox=halo
        )


def _dense(x: Any, y: Any) -> tuple[Any, Any]:
    """Points along the line as well, so that steep pieces between two samples count."""
    along = np.linspace(0, len(x) - 1, 5 * len(x))
    return np.interp(along, np.arange(len(x)), x), np.interp(along, np.arange(len(y)), y)


def _waiting(
    sheet: Canvas,
    parts: dict[str, pd.DataFrame],
    left: float,
    right: float,
    start: pd.Timestamp,
    end: pd.Timestamp,
) -> None:
    """The lower panel: how many callers had to wait, at each sample."""
    axes = sheet.axes(left, sheet.bottom + 24, right, sheet.bottom + 76)
    most = max(float(p["waiting"].max()) for p in parts.values())
    axes.set_ylim(0, most * 1.1)
    axes.set_yticks([0, most], labels=["0", compact(most)])
    axes.grid(axis="y", color=GRID, lw=0.8)
    for database, part in parts.items():
        waiting = part["waiting"][part["waiting"] > 0]
        if len(waiting) > MOST_BARS:
            waiting = waiting.nlargest(MOST_BARS).sort_index()
        axes.vlines(place(waiting.index), 0, waiting, color=ORANGE, lw=1.6, label=database)
    time_axis(axes, start, end)
    axes.set_xticks([])
    axes.spines["bottom"].set_color(AXIS)
    sheet.text(right + 6, sheet.bottom + 55, "callers", size=9.5, color=AMBER_TEXT)
    sheet.text(right + 6, sheet.bottom + 42, "waiting", size=9.5, color=AMBER_TEXT)


MOST_BARS = 600
SPARSE = 0.2  # samples over less of the window than this are drawn alone
MOST_APPLICATIONS = 10
STATES = [
    ("active", BLUE),
    ("idle", GREY),
    ("idle in transaction", ORANGE),
    ("other", SKY),
]


@drawn
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
        return empty("No session is open", subtitle, f"{source} · 0 sessions", reason=reason)
    rows = frame.copy()
    rows["state"] = (
        rows["state"].astype(str).replace({"idle in transaction (aborted)": "idle in transaction"})
    )
    rows.loc[~rows["state"].isin([s for s, _ in STATES]), "state"] = "other"
    rows["application"] = [
        clean(a) or "(no name)" for a in rows["application"].astype(object).fillna("")
    ]
    many = "database" in rows and rows["database"].nunique() > 1
    if many:
        rows["application"] += " · " + rows["database"].astype(str)
    table = rows.pivot_table(
        index="application", columns="state", values="sessions", aggfunc="sum", fill_value=0
    ).astype(float)
    order = sorted(table.index, key=lambda a: (-table.loc[a].sum(), a))
    if len(order) > MOST_APPLICATIONS:
        rest = order[MOST_APPLICATIONS - 1 :]
        table.loc[f"{len(rest)} others"] = table.loc[rest].sum()
        order = [*order[: MOST_APPLICATIONS - 1], f"{len(rest)} others"]
    total = float(rows["sessions"].sum())
    held = float(rows.loc[rows["state"] == "idle in transaction", "sessions"].sum())
    of = f" of {number(limit)}" if limit else ""
    finding = f"{number(total)}{of} session{'s' if total != 1 or limit else ''} open"
    finding += (
        f"; {number(held)} {'idles' if held == 1 else 'idle'} inside a transaction"
        if held
        else "; none idles inside a transaction"
    )
    sheet = canvas(
        finding,
        subtitle,
        f"{source} · {plural(int(total), 'session')}",
        drawing=64 + 27 * len(order),
    )
    labels = [fit(str(a), 210, size=10) for a in order]
    left = MARGIN + max(text_width(label, size=10) for label in labels) + 10
    present = [(s, c) for s, c in STATES if s in table and table[s].sum() > 0]
    legend(sheet, sheet.top - 16, present, left=left)
    axes = sheet.axes(left, sheet.bottom + 22, WIDTH - 60, sheet.top - 26)
    ys = np.arange(len(order))[::-1]
    edge = np.zeros(len(order))
    for state, colour in present:
        values = table.loc[order, state].to_numpy()
        axes.barh(ys, values, left=edge, color=colour, height=0.62, edgecolor="white", lw=0.6)
        edge += values
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(0, max(edge.max(), 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, lw=0.8)
    box = axes.get_position()
    for y, label, value in zip(ys, labels, edge, strict=True):
        height = (box.y0 + (y + 0.6) / (len(order) + 0.2) * box.height) * sheet.height
        sheet.text(left - 8, height, label, ha="right", va="center_baseline")
        x = (box.x0 + value / axes.get_xlim()[1] * box.width) * WIDTH
        sheet.text(x + 5, height, number(float(value)), size=9.5, va="center_baseline", color=INK)
    return sheet.figure
