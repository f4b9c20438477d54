"""The sheet every chart is drawn on: palette, headings, footer, text that fits, SVG out.

Sizes are in points; the sheet is 750 points wide and as high as its content needs. Text is
measured with the font itself before it is placed, so that nothing is clipped at any resolution.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

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

INK, MUTED, GRID, AXIS = "#1f2933", "#5f6b79", "#e4e7eb", "#9fb3c8"
BLUE, SKY, ORANGE, VERMILION, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#B8C2CC"
# The warning colours as text: the same hues, dark enough to be read on white.
AMBER_TEXT, RED_TEXT = "#8a5a00", "#b34700"
WARNING_BAND, CRITICAL_BAND = "#fdf4e3", "#fae9df"

WIDTH, MARGIN = 750.0, 9.0
MOST_POINTS = 2000  # per line; more cannot be seen at this width and only make the file larger
DATABASES = {"postgres": "PostgreSQL", "mongodb": "MongoDB"}

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


def clean(text: object) -> str:
    """`text` on one line, without the control characters an SVG cannot hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def fit(text: str, width: float, *, size: float, weight: str = "normal", mono: bool = False) -> str:
    """`text`, or as much of its beginning as fits into `width` points, with an ellipsis."""
    text = clean(text)
    if text_width(text, size=size, weight=weight, mono=mono) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        short = text[:middle].rstrip() + " …"
        if text_width(short, size=size, weight=weight, mono=mono) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + " …"


def wrap(
    text: str, width: float, *, size: float, weight: str = "normal", most: int = 2
) -> list[str]:
    """`text` in at most `most` lines of `width` points; the last one is cut if it must be."""
    lines: list[str] = []
    words = clean(text).split(" ")
    while words:
        if len(lines) == most - 1:
            lines.append(fit(" ".join(words), width, size=size, weight=weight))
            break
        count = 1
        while count < len(words) and (
            text_width(" ".join(words[: count + 1]), size=size, weight=weight) <= width
        ):
            count += 1
        lines.append(fit(" ".join(words[:count]), width, size=size, weight=weight))
        words = words[count:]
    return lines


@checks_arguments
def number(value: float) -> str:
    """A count as people read it, with thin spaces: 12 345.

    >>> number(1900).replace("\\u202f", " ")
    '1 900'
    """
    return f"{round(value):,}".replace(",", "\u202f")


def compact(value: float, *, most: float = 1e5) -> str:
    """A count for a narrow place: from `most` on in thousands, millions or billions."""
    if value < most:
        return number(value)
    if value >= 1e14:
        return f"{value:.0e}"
    size, unit = next(((s, u) for s, u in ((1e9, "bn"), (1e6, "m")) if value >= s), (1e3, "k"))
    return f"{number(value / size)} {unit}"


@checks_arguments
def share(value: float) -> str:
    """A percentage without false precision: under ten with one digit, else whole."""
    if value == 0:
        return "0 %"
    if value < 0.1:
        return "under 0.1 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 sample`, `12 samples`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


@dataclass(frozen=True)
class Canvas:
    """A sheet with its headings; `top` and `bottom` bound what is left for the drawing."""

    figure: Figure
    height: float
    top: float
    bottom: float

    def axes(self, left: float, bottom: float, right: float, top: float) -> Axes:
        """Bare axes between these four edges, in points from the lower left corner."""
        axes = self.figure.add_axes(
            (
                left / WIDTH,
                bottom / self.height,
                (right - left) / WIDTH,
                (top - bottom) / self.height,
            )
        )
        axes.set_facecolor("none")
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(AXIS)
        axes.tick_params(colors=MUTED, labelsize=10.5, length=0, pad=5)
        return axes

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
    big: dict[str, Any] = {"size": 15, "weight": "bold"}
    small: dict[str, Any] = {"size": 11, "color": MUTED}
    for kind, lines, step, style in (
        ("title", titles, 19, big),
        ("subtitle", subtitles, 15, small),
    ):
        for line in lines:
            sheet.text(MARGIN, y, line, va="top", gid=kind, **style)
            y -= step
        y -= 3
    for place, line in enumerate(reversed(footers)):
        sheet.text(MARGIN, 7 + 12 * place, line, va="bottom", gid="footer", size=8.5, color=MUTED)
    return sheet


@drawn
@checks_arguments
def empty(title: str, subtitle: str, footer: str, *, reason: str) -> Figure:
    """A panel that says that, and why, there is nothing to draw."""
    sheet = canvas(title, subtitle, footer, drawing=150)
    axes = sheet.axes(MARGIN, sheet.bottom + 12, WIDTH - MARGIN, sheet.top - 12)
    axes.set_axis_off()
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="#f5f7fa", edgecolor=GRID)
    )
    middle = (sheet.bottom + sheet.top) / 2
    sheet.text(
        WIDTH / 2, middle + 14, "No data in this window", size=13, weight="bold", ha="center"
    )
    for place, line in enumerate(wrap(reason, WIDTH - 80, size=10.5, most=3)):
        sheet.text(WIDTH / 2, middle - 10 - 15 * place, line, size=10.5, color=MUTED, ha="center")
    return sheet.figure


def right_labels(
    sheet: Canvas, axes: Axes, labels: Sequence[tuple[float, str, str]], *, gap: float = 15
) -> None:
    """Labels (value on the y axis, text, colour) at the right edge, moved apart where they meet."""
    box = axes.get_position()
    low, high = axes.get_ylim()
    bottom, top = box.y0 * sheet.height, box.y1 * sheet.height
    places = sorted(
        (bottom + (v - low) / (high - low) * (top - bottom), t, c) for v, t, c in labels
    )
    ys = [y for y, _, _ in places]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    if ys and ys[-1] > top:  # pushed out at the top: take the room from below
        ys[-1] = top
        for i in range(len(ys) - 2, -1, -1):
            ys[i] = min(ys[i], ys[i + 1] - gap)
    x = box.x1 * WIDTH + 6
    for y, (_, text, colour) in zip(ys, places, strict=True):
        sheet.text(
            x, y, fit(text, WIDTH - x - 2, size=9.5), size=9.5, color=colour, va="center_baseline"
        )


def legend(sheet: Canvas, y: float, entries: Sequence[tuple[str, str]], *, left: float) -> None:
    """One row of coloured squares with their names, for kinds of things, never for thresholds."""
    for name, colour in entries:
        sheet.figure.add_artist(
            Rectangle(
                (left / WIDTH, y / sheet.height), 9 / WIDTH, 7 / sheet.height, facecolor=colour
            )
        )
        sheet.text(left + 13, y + 3, name, size=9.5, va="center_baseline")
        left += 13 + text_width(name, size=9.5) + 14


def utc(times: pd.Series[Any] | pd.Timestamp) -> Any:
    """Times as matplotlib takes them: UTC without a zone."""
    if isinstance(times, pd.Timestamp):
        return times.tz_convert("UTC").tz_localize(None) if times.tzinfo else times
    times = pd.to_datetime(times, utc=True)
    return times.dt.tz_localize(None)


def place(moments: Any) -> Any:
    """Where a time, or each of an index of times, stands on a time axis."""
    return date2num(moments)  # type: ignore[no-untyped-call]


def time_axis(axes: Axes, since: pd.Timestamp, until: pd.Timestamp) -> None:
    """A UTC axis from `since` to `until` with at most nine round ticks."""
    start, end = utc(since), utc(until)
    if start >= end:
        end = start + pd.Timedelta(seconds=1)
    span = end - start
    steps = ["1s", "5s", "15s", "30s", "1min", "5min", "15min", "30min", "1h", "2h", "4h", "6h"]
    steps += ["12h", "1D", "2D", "7D", "14D"]
    months = span > pd.Timedelta(days=120)
    if months:
        every = max(1, round(span.days / 30.4 / 9 + 0.5))
        ticks = pd.date_range(start.normalize(), end, freq="MS")[::every]
    else:
        step = next((s for s in steps if span / pd.Timedelta(s) <= 9), "14D")
        ticks = pd.date_range(start.ceil(step), end, freq=step)
    days = span >= pd.Timedelta(days=6)

    def label(moment: pd.Timestamp, before: pd.Timestamp | None) -> str:
        if months:
            same_year = before is not None and before.year == moment.year
            return f"{moment:%b}" if same_year else f"{moment:%b %Y}"
        if days or moment == moment.normalize():
            return f"{moment.day} {moment:%b}"
        return f"{moment:%H:%M:%S}" if span < pd.Timedelta(minutes=3) else f"{moment:%H:%M}"

    inside = [t for t in ticks if start <= t <= end]
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


@checks_arguments
def window_text(since: pd.Timestamp, until: pd.Timestamp) -> str:
    """`2026-11-17 08:00–12:00 UTC`, with the second date when it is another day."""
    start, end = utc(since), utc(until)
    clock = "%H:%M:%S" if end - start < pd.Timedelta(minutes=5) else "%H:%M"
    last = f"{end:{clock}}" if start.date() == end.date() else f"{end:%Y-%m-%d {clock}}"
    return f"{start:%Y-%m-%d {clock}}–{last} UTC"


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
    with context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # What is only for files of their own goes: metadata, ids nobody refers to, a style rule that
    # would reach the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg).strip()
    alt = _escape(alt_text(figure))
    head = (
        f'<svg role="img" aria-label="{alt}" stroke-linejoin="round" '
        f'style="max-width: 100%; height: auto" '
    )
    svg = svg.replace("<svg ", head, 1).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    end = svg.index(">") + 1
    return f"{svg[:end]}\n<title>{_escape(title_of(figure))}</title>{svg[end:]}\n"


def _escape(text: str) -> str:
    for char, code in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, code)
    return text
