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
        "svg.hashsalt": "fwdb",
        "path.simplify": False,
    },
]


P = ParamSpec("P")


def drawn(chart: Callable[P, Figure]) -> Callable[P, Figure]:
    """Checks arguments, and draws under the style of this module, whatever the caller has set."""

    @functools.wraps(chart)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with context(STYLE):
            return chart(*args, **kwargs)

    return checks_arguments(inner)


def text_width(text: str, *, size: float, weight: str = "normal", mono: bool = False) -> float:
    """Width of `text` in points."""
    font = FontProperties(
        family="DejaVu Sans Mono" if mono else "DejaVu Sans", size=size, weight=weight
    )
    with warnings.catch_warnings():
        # A glyph this font lacks is drawn by the reader's browser in another one.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def fit(text: str, width: float, **font: Any) -> str:
    """`text`, or as much of its beginning as fits into `width` points, with an ellipsis."""
    text = clean(text)
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


@dataclass(frozen=True)
class Canvas:
    """A sheet with its headings; `top` and `bottom` bound what is left for the drawing."""

    figure: Figure
    height: float
    top: float
    bottom: float

    def axes(
        self,
        left: float,
        bottom: float,
        right: float,
        top: float,
        *,
        grid: Literal["x", "y", ""] = "",
    ) -> Axes:
        """Bare axes between these four edges, in points from the lower left corner."""
        size = (right - left) / WIDTH, (top - bottom) / self.height
        axes = self.figure.add_axes((left / WIDTH, bottom / self.height, *size))
        axes.set_facecolor("none")
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(AXIS)
        axes.tick_params(colors=MUTED, labelsize=10.5, length=0, pad=5)
        if grid:
            axes.grid(axis=grid, color=GRID, lw=0.8)
            axes.set_axisbelow(True)
        return axes

    def box(
        self, left: float, bottom: float, width: float, height: float, colour: Any, **style: Any
    ) -> None:
        """A filled rectangle, in points from the lower left corner."""
        corner, size = (left / WIDTH, bottom / self.height), (width / WIDTH, height / self.height)
        self.figure.add_artist(Rectangle(corner, *size, facecolor=colour, **style))

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
        for label, y in zip(labels, heights, strict=True):
            family = "monospace" if mono else "sans-serif"
            self.text(left - 10, y, label, size=size, ha="right", family=family, **MIDDLE)
        return axes, heights

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at a point of the sheet."""
        with_defaults: dict[str, Any] = {"size": 10, "color": INK, "parse_math": False} | style
        self.figure.text(x / WIDTH, y / self.height, clean(text), **with_defaults)


def canvas(title: str, subtitle: str, footer: str, *, drawing: float) -> Canvas:
    """A white sheet with headings and footer and `drawing` points of height between them."""
    room = WIDTH - 2 * MARGIN
    titles = wrap(title, room, size=15, weight="bold")
    subtitles = wrap(subtitle, room, size=11)
    footers = wrap(footer, room, size=8.5)
    head = 10 + 19 * len(titles) + 3 + 15 * len(subtitles)
    foot = 8 + 12 * len(footers)
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
@checks_arguments
def empty(title: str, subtitle: str, footer: str, *, reason: str) -> Figure:
    """A panel that says that, and why, there is nothing to draw."""
    sheet = canvas(title, subtitle, footer, drawing=150)
    room = WIDTH - 2 * MARGIN
    sheet.box(MARGIN, sheet.bottom + 12, room, 126, "#f5f7fa", edgecolor=GRID, zorder=-1)
    middle = (sheet.bottom + sheet.top) / 2
    style: dict[str, Any] = {"size": 13, "weight": "bold", "ha": "center"}
    sheet.text(WIDTH / 2, middle + 14, "No data in this window", **style)
    for place, line in enumerate(wrap(reason, WIDTH - 80, size=10.5, most=3)):
        sheet.text(WIDTH / 2, middle - 10 - 15 * place, line, size=10.5, color=MUTED, ha="center")
    return sheet.figure


def right_labels(sheet: Canvas, axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Labels (value on the y axis, text, colour) at the right edge, moved apart where they meet."""
    gap = 15
    x, top = spot(axes, axes.get_xlim()[1], axes.get_ylim()[1])
    places = sorted((spot(axes, 0, value)[1], text, colour) for value, text, colour in labels)
    ys = [y for y, _, _ in places]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    if ys and ys[-1] > top:  # pushed out at the top: take the room from below
        ys[-1] = top
        for i in range(len(ys) - 2, -1, -1):
            ys[i] = min(ys[i], ys[i + 1] - gap)
    for y, (_, text, colour) in zip(ys, places, strict=True):
        short = fit(text, WIDTH - x - 8, size=9.5)
        sheet.text(x + 6, y, short, size=9.5, color=colour, **MIDDLE)


def spot(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point of the drawing is on the sheet."""
    at = axes.transData.transform((x, y))  # pixels, which are points at 72 to the inch
    return float(at[0]), float(at[1])


def legend(sheet: Canvas, y: float, entries: Sequence[tuple[str, str]], *, left: float) -> None:
    """One row of coloured squares with their names, for kinds of things, never for thresholds."""
    for name, colour in entries:
        sheet.box(left, y, 9, 7, colour)
        sheet.text(left + 13, y + 3, name, size=9.5, **MIDDLE)
        left += 13 + text_width(name, size=9.5) + 14


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


def time_axis(
    axes: Axes, since: pd.Timestamp, until: pd.Timestamp, *, most: int = 9, inset: float = 0
) -> None:
    """A UTC axis from `since` to `until` with at most `most` round ticks, none in the `inset`.

    The `inset` is that part of the axis at either end in which a label has no room.
    """
    start, end = utc(since), utc(until)
    if start >= end:
        end = start + pd.Timedelta(seconds=1)
    span = end - start
    steps = ["1s", "5s", "15s", "30s", "1min", "5min", "15min", "30min", "1h", "2h", "4h", "6h"]
    steps += ["12h", "1D", "2D", "7D", "14D"]
    months = span > pd.Timedelta(days=120)
    if months:
        every = max(1, round(span.days / 30.4 / most + 0.5))
        ticks = pd.date_range(start.normalize(), end, freq="MS")[::every]
    else:
        step = next((s for s in steps if span / pd.Timedelta(s) <= most), "14D")
        ticks = pd.date_range(start.ceil(step), end, freq=step)
    days = span >= pd.Timedelta(days=6)

    def label(moment: pd.Timestamp, before: pd.Timestamp | None) -> str:
        if months:
            same_year = before is not None and before.year == moment.year
            return f"{moment:%b}" if same_year else f"{moment:%b %Y}"
        if days or moment == moment.normalize():
            return f"{moment.day} {moment:%b}"
        return f"{moment:%H:%M:%S}" if span < pd.Timedelta(minutes=3) else f"{moment:%H:%M}"

    inside = [t for t in ticks if start + inset * span <= t <= end - inset * span]
    axes.set_xlim(float(place(start)), float(place(end)))
    axes.set_xticks(
        [float(place(t)) for t in inside],
        labels=[label(t, b) for t, b in zip(inside, [None, *inside], strict=False)],
    )
    axes.tick_params(axis="x", length=4, color=AXIS)


def thin(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], most: int = MOST_POINTS) -> Any:
    """At most `most` points of a line that keep every peak and trough that can be seen.

    The line is cut into equal pieces; of each stay its lowest and its highest point, in order.
    """
    if len(x) <= most:
        return x, y
    keep: list[int] = []
    for piece in np.array_split(np.arange(len(x)), most // 2):
        values = y[piece]
        if np.isnan(values).all():
            keep.append(int(piece[0]))
            continue
        keep.extend(sorted({int(piece[np.nanargmin(values)]), int(piece[np.nanargmax(values)])}))
    return x[keep], y[keep]


def footer(*parts: str) -> str:
    """Source, window and number of samples, as far as they are known."""
    return " · ".join(filter(None, parts))


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


@checks_arguments
def to_svg(figure: Figure, *, name: str = "chart") -> str:
    """The figure as one `<svg>` element, to stand in a page; the same bytes for the same data.

    `name` keeps the ids of several charts of one page apart.
    """
    out = io.StringIO()
    with context([*STYLE, {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None})
    svg = out.getvalue()
    # What is only for files of their own goes: metadata, ids nobody refers to, a style rule that
    # would reach the whole page.
    own = r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|(?<=<g) id=\"[^\"]*\""
    svg = re.sub(own, "", svg[svg.index("<svg") :], flags=re.DOTALL)
    start = (
        f'<svg role="img" aria-label="{html.escape(alt_text(figure))}" stroke-linejoin="round" '
        'style="max-width: 100%; height: auto"'
    )
    title = f"><title>{html.escape(title_of(figure))}</title>"
    return svg.replace("<svg", start, 1).replace(">", title, 1)
