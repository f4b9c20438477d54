"""The sheet every chart is drawn on: palette, headings, footer, text that fits, SVG out.

Sizes are in points; the sheet is 750 points wide and as high as its content needs. Text is
measured with the font itself before it is placed, so that nothing is clipped at any resolution.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, ParamSpec

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.style import context
from matplotlib.textpath import text_to_path

from fwdb.arguments import checks_arguments
from fwdb.charts.words import clean, utc

INK, MUTED, GRID, AXIS = "#1f2933", "#5f6b79", "#e4e7eb", "#9fb3c8"
BLUE, SKY, ORANGE, VERMILION, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#B8C2CC"
# The warning colours as text: the same hues, dark enough to be read on white.
AMBER_TEXT, RED_TEXT = "#8a5a00", "#b34700"
WARNING_BAND, CRITICAL_BAND = "#fdf4e3", "#fae9df"

WIDTH, MARGIN = 750.0, 9.0
ROOM = WIDTH - 2 * MARGIN
MIDDLE: dict[str, Any] = {"va": "center_baseline"}
MOST_POINTS = 2000  # per line; more cannot be seen at this width and only make the file larger

# The user's own matplotlib settings must not change a report: these stand on the defaults.
STYLE: list[Any] = [
    "default",
    {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva", "sans-serif"],
        "font.monospace": ["DejaVu Sans Mono", "Menlo", "Consolas", "monospace"],
        "font.size": 10,
        "axes.formatter.use_locale": False,
        "svg.fonttype": "none",  # text stays text: searchable, and read aloud
        "path.simplify": False,
    },
]
P = ParamSpec("P")
Grid = Literal["x", "y", ""]


def drawn(chart: Callable[P, Figure]) -> Callable[P, Figure]:
    """Checks arguments, and draws under the style of this module, whatever the caller has set."""

    @functools.wraps(chart)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with context(STYLE):
            return chart(*args, **kwargs)

    return checks_arguments(inner)


def text_width(text: str, *, size: float, weight: str = "normal", mono: bool = False) -> float:
    """Width of `text` in points."""
    family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
    font = FontProperties(family=family, size=size, weight=weight)
    with warnings.catch_warnings():
        # A glyph this font lacks is drawn by the reader's browser in another one.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def fit(whole: object, width: float, **font: Any) -> str:
    """The text, or as much of its beginning as fits into `width` points, with an ellipsis."""
    text = clean(whole)
    if text_width(text, **font) <= width:
        return text

    def short(count: int) -> str:
        return text[:count].rstrip() + " …"

    counts = range(len(text))
    return short(bisect_right(counts, width, lo=1, key=lambda n: text_width(short(n), **font)) - 1)


def wrap(text: str, width: float, *, most: int = 2, **font: Any) -> list[str]:
    """`text` in at most `most` lines of `width` points; a line is cut if it must be."""
    lines = [""]
    for word in clean(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or len(lines) == most or text_width(longer, **font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fit(line, width, **font) for line in lines]


def footer(*parts: str) -> str:
    """Source, window and number of samples, as far as they are known."""
    return " · ".join(filter(None, parts))


@dataclass(frozen=True)
class Canvas:
    """A sheet with its headings; `top` and `bottom` bound what is left for the drawing."""

    figure: Figure
    height: float
    top: float
    bottom: float

    def axes(self, left: float, bottom: float, right: float, top: float, grid: Grid = "") -> Axes:
        """Bare axes between these four edges, in points from the lower left corner."""
        size = (right - left) / WIDTH, (top - bottom) / self.height
        axes = self.figure.add_axes((left / WIDTH, bottom / self.height, *size))
        axes.set_facecolor("none")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(AXIS)
        axes.tick_params(colors=MUTED, labelsize=10.5, length=0, pad=5)
        if grid:
            axes.grid(axis=grid, color=GRID, lw=0.8)
            axes.set_axisbelow(True)
        return axes

    def box(self, x: float, y: float, wide: float, high: float, colour: Any, **style: Any) -> None:
        """A filled rectangle, in points from the lower left corner."""
        corner, size = (x / WIDTH, y / self.height), (wide / WIDTH, high / self.height)
        self.figure.add_artist(Rectangle(corner, *size, facecolor=colour, **style))

    def text(self, x: float, y: float, text: object, **style: Any) -> None:
        """Text at a point of the sheet."""
        with_defaults: dict[str, Any] = {"size": 10, "color": INK, "parse_math": False} | style
        self.figure.text(x / WIDTH, y / self.height, clean(text), **with_defaults)

    def rows(
        self,
        labels: Sequence[str],
        *,
        right: float,
        above: float,
        size: float = 9,
        mono: bool = True,
    ) -> tuple[Axes, list[float]]:
        """Axes with a labelled row at 0, 1, 2 … from above, and how high these are on the sheet."""
        left = MARGIN + 10 + max(text_width(label, size=size, mono=mono) for label in labels)
        bottom, top = self.bottom + 26, self.top - above
        axes = self.axes(left, bottom, right, top, grid="x")
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks([])
        step = (top - bottom) / len(labels)
        heights = [top - (row + 0.5) * step for row in range(len(labels))]
        family = "monospace" if mono else "sans-serif"
        for label, y in zip(labels, heights, strict=True):
            self.text(left - 10, y, label, size=size, ha="right", family=family, **MIDDLE)
        return axes, heights

    def legend(self, y: float, entries: Sequence[tuple[str, str]], *, left: float) -> None:
        """One row of coloured squares with their names, for kinds of things, never thresholds."""
        for name, colour in entries:
            self.box(left, y, 9, 7, colour)
            self.text(left + 13, y + 3, name, size=9.5, **MIDDLE)
            left += 13 + text_width(name, size=9.5) + 14

    def right_labels(self, axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
        """Labels (y value, text, colour) at the right edge, moved apart where they meet."""
        gap = 15.0
        x, top = spot(axes, axes.get_xlim()[1], axes.get_ylim()[1])
        places = sorted((spot(axes, 0, value)[1], text, colour) for value, text, colour in labels)
        up = accumulate((y for y, _, _ in places), lambda before, y: max(y, before + gap))
        down = accumulate([top + gap, *[*up][::-1]], lambda above, y: min(y, above - gap))
        for y, (_, text, colour) in zip([*down][:0:-1], places, strict=True):
            text = fit(text, WIDTH - x - 8, size=9.5)
            self.text(x + 6, y, text, size=9.5, color=colour, **MIDDLE)


def canvas(title: str, subtitle: str, footer: str, *, drawing: float) -> Canvas:
    """A white sheet with headings and footer and `drawing` points of height between them."""
    titles = wrap(title, ROOM, size=15, weight="bold")
    subtitles, footers = wrap(subtitle, ROOM, size=11), wrap(footer, ROOM, size=8.5)
    head, foot = 13 + 19 * len(titles) + 15 * len(subtitles), 8 + 12 * len(footers)
    height = head + drawing + foot
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="white")
    sheet = Canvas(figure, height, height - head, foot)
    y = height - 9
    for line in titles:
        sheet.text(MARGIN, y, line, va="top", gid="title", size=15, weight="bold")
        y -= 19
    for line in subtitles:
        sheet.text(MARGIN, y - 3, line, va="top", gid="subtitle", size=11, color=MUTED)
        y -= 15
    for place, line in enumerate(reversed(footers)):
        sheet.text(MARGIN, 7 + 12 * place, line, va="bottom", gid="footer", size=8.5, color=MUTED)
    return sheet


@drawn
def empty(title: str, subtitle: str, footer: str, *, reason: str) -> Figure:
    """A panel that says that, and why, there is nothing to draw."""
    sheet = canvas(title, subtitle, footer, drawing=150)
    sheet.box(MARGIN, sheet.bottom + 12, ROOM, 126, "#f5f7fa", edgecolor=GRID, zorder=-1)
    middle = (sheet.bottom + sheet.top) / 2
    style: dict[str, Any] = {"size": 13, "weight": "bold", "ha": "center"}
    sheet.text(WIDTH / 2, middle + 14, "No data in this window", **style)
    for place, line in enumerate(wrap(reason, WIDTH - 80, size=10.5, most=3)):
        sheet.text(WIDTH / 2, middle - 10 - 15 * place, line, size=10.5, color=MUTED, ha="center")
    return sheet.figure


def spot(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point of the drawing is on the sheet."""
    at = axes.transData.transform((x, y))  # pixels, which are points at 72 to the inch
    return float(at[0]), float(at[1])


def counted(rows: pd.DataFrame, index: str, columns: str, values: str) -> pd.DataFrame:
    """The sums of `values` by `index` and `columns`, 0 where there are none."""
    how: dict[str, Any] = {"aggfunc": "sum", "fill_value": 0}
    return rows.pivot_table(index=index, columns=columns, values=values, **how).astype(float)


def ranked(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """The rows of `table` by their sums, and those beyond `most` as one."""
    order = sorted(table.index, key=lambda row: (-table.loc[row].sum(), row))
    if len(order) > most:
        rest = order[most - 1 :]
        table.loc[f"{len(rest)} others"] = table.loc[rest].sum()
        order = [*order[: most - 1], f"{len(rest)} others"]
    return table.loc[order]


def place(moments: Any) -> Any:
    """Where a time, or each of an index of times, stands on a time axis."""
    return date2num(moments)  # type: ignore[no-untyped-call]


_STEPS = [
    "1s",
    "5s",
    "15s",
    "30s",
    "1min",
    "5min",
    "15min",
    "30min",
    "1h",
    "2h",
    "4h",
    "6h",
    "12h",
    "1D",
    "2D",
    "7D",
    "14D",
]


def time_axis(
    axes: Axes, since: pd.Timestamp, until: pd.Timestamp, *, most: int = 9, inset: float = 0
) -> None:
    """A UTC axis from `since` to `until` with at most `most` round ticks, none in the `inset`.

    The `inset` is that part of the axis at either end in which a label has no room.
    """
    start, end = utc(since), max(utc(until), utc(since) + pd.Timedelta(seconds=1))
    span = end - start
    step = next((s for s in _STEPS if span / pd.Timedelta(s) <= most), _STEPS[-1])
    first = start.ceil(step)
    if months := span > pd.Timedelta(days=120):
        step, first = f"{max(1, round(span.days / 30.4 / most + 0.5))}MS", start.normalize()
    clock = "%H:%M:%S" if span < pd.Timedelta(minutes=3) else "%H:%M"
    labels: dict[float, str] = {}
    year = None
    for tick in pd.date_range(first, end, freq=step):
        if start + inset * span <= tick <= end - inset * span:
            day = span >= pd.Timedelta(days=6) or tick == tick.normalize()
            text = f"{tick.day} {tick:%b}" if day else f"{tick:{clock}}"
            if months:
                text = f"{tick:%b}" if year == tick.year else f"{tick:%b %Y}"
            labels[float(place(tick))], year = text, tick.year
    axes.set_xlim(float(place(start)), float(place(end)))
    axes.set_xticks([*labels], labels=[*labels.values()])
    axes.tick_params(axis="x", length=4, color=AXIS)


def line(axes: Axes, series: pd.Series[Any], colour: str, *, zorder: float = 5) -> None:
    """A line over time, broken wherever several samples in a row are missing; dots stand alone."""
    x: Any = np.asarray(place(series.index), dtype=np.float64)
    y = series.to_numpy(dtype=float)
    if len(x) > 2:
        steps = np.diff(x)
        holes = np.flatnonzero(steps > max(5 * np.median(steps), 1e-9)) + 1
        x, y = np.insert(x, holes, x[holes - 1]), np.insert(y, holes, np.nan)
    x, y = _thin(x, y)
    axes.plot(x, y, color=colour, lw=1.8, zorder=zorder, solid_joinstyle="round")
    gap = np.concatenate([[True], np.isnan(y), [True]])
    # So few are points and no course.
    alone = (gap[:-2] & gap[2:] | (len(x) < 4)) & ~gap[1:-1]
    axes.plot(x[alone], y[alone], "o", color=colour, ms=4.5, zorder=6, clip_on=False)


def _thin(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """At most `MOST_POINTS` points of a line that keep every peak and trough that can be seen.

    The line is cut into equal pieces; of each stay its lowest and its highest point, in order.
    """
    if len(x) <= MOST_POINTS:
        return x, y
    keep = set[int]()
    for piece in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        seen = piece[~np.isnan(y[piece])]
        ends = (seen[y[seen].argmin()], seen[y[seen].argmax()]) if len(seen) else piece[:1]
        keep.update(int(end) for end in ends)
    return x[sorted(keep)], y[sorted(keep)]


def _texts(figure: Figure, kind: str) -> str:
    lines = [t for t in figure.texts if t.get_gid() == kind]
    return " ".join(t.get_text() for t in sorted(lines, key=lambda t: -t.get_position()[1]))


@checks_arguments
def title_of(figure: Figure) -> str:
    """The finding a chart has as its title."""
    return _texts(figure, "title")


@checks_arguments
def alt_text(figure: Figure) -> str:
    """What a reader who cannot see the chart is told: finding, what is drawn, source."""
    parts = (_texts(figure, kind).rstrip(".") for kind in ("title", "subtitle", "footer"))
    return ". ".join(part for part in parts if part) + "."


# Of a file of its own, not of a piece of a page: the style would reach all of it, and the ids, to
# which nothing refers, would meet those of other charts.
_OF_FILES = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>|(?<=<g) id=\"[^\"]*\"", re.DOTALL)


@checks_arguments
def to_svg(figure: Figure, *, name: str = "chart") -> str:
    """The figure as one `<svg>` element, to stand in a page; the same bytes for the same data.

    `name` keeps the ids of several charts of one page apart.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with context([*STYLE, {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", facecolor="white", metadata=nothing)
    svg = _OF_FILES.sub("", out.getvalue())
    start = f'<svg role="img" aria-label="{html.escape(alt_text(figure))}" stroke-linejoin="round" '
    start += 'style="max-width: 100%; height: auto"'
    title = f"><title>{html.escape(title_of(figure))}</title>"
    return start + svg.partition("<svg")[2].replace(">", title, 1)
