"""Charts from frames alone: findings, empty windows, equal bytes, and text that can be read."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from support.contrast import contrast

from fwdb import charts
from fwdb.charts import canvas, words
from fwdb.charts.servers import PANELS
from fwdb.stores import BOUNDS_MS

START = pd.Timestamp("2026-11-16T00:00Z")
DATABASES = ("postgres", "mongodb")
LONG = (
    "SELECT " + ", ".join(f"column_{i}" for i in range(60)) + " FROM a.table_of_many WHERE x = $1"
)


def lasting(subject: str, buckets: Iterable[int], *, count: int = 7, databases: int = 2) -> Figure:
    """So many durations in each of these buckets, of one store or both."""
    edges = [0.0, *BOUNDS_MS, np.inf]
    rows = [
        (name, edges[n], edges[n + 1], count + n) for name in DATABASES[:databases] for n in buckets
    ]
    columns = ["database", "over_ms", "up_to_ms", "durations"]
    return charts.durations(pd.DataFrame(rows, columns=columns), subject, bounds=BOUNDS_MS)


def life_frame(count: int, *, fields: int = 3, users: int = 2) -> pd.DataFrame:
    """So many events of one entity over a month: a creation, then changes and readings."""
    rng = np.random.default_rng(2)
    actions = ["CREATE", *rng.choice(["UPDATE", "READ", "DELETE"], count, p=[0.6, 0.3, 0.1])]
    named = [f"a_rather_long_name_of_a_field_{n}" for n in rng.integers(0, fields, count)]
    who = [f"0190a1b2-{n:04d}" if users else None for n in rng.integers(0, users or 1, count)]
    return pd.DataFrame(
        {
            "created_at": START + pd.to_timedelta(np.sort(rng.uniform(0, 30, count)), unit="D"),
            "action": actions[:count],
            "changed_fields": named,
            "user_id": pd.Series(who, dtype="str"),
        }
    )


def pool_frame(
    count: int, *, values: Any = None, waiting: int = 0, databases: int = 2, step: str = "30s"
) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    parts = []
    for database in DATABASES[:databases]:
        use = rng.uniform(5, 60, count) if values is None else np.resize(values, count)
        rows = {"database": database, "capacity": 20, "utilisation_percent": use}
        times = pd.date_range(START, periods=count, freq=step)
        parts.append(pd.DataFrame({"sampled_at": times, **rows, "waiting": waiting}))
    return pd.concat(parts, ignore_index=True)


def statement_frame(count: int, *, label: str = "", scale: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    mean = np.exp(rng.normal(3, 2, count)) * scale
    calls = rng.integers(1, 90_000, count)
    return pd.DataFrame(
        {
            "database": np.resize(DATABASES, count),
            "statement": [f"{label or 'SELECT * FROM t WHERE id = $1'} {i}" for i in range(count)],
            "calls": calls,
            "mean_ms": mean,
            "stddev_ms": mean * 0.7,
            "total_ms": mean * calls,
        }
    )


def change_frame(count: int, *, label: str = "", slower: int = 2, times: float = 4) -> pd.DataFrame:
    frame = statement_frame(count, label=label)
    now = frame["mean_ms"] * np.where(np.arange(count) < slower, times, 1.05)
    return frame.rename(columns={"mean_ms": "mean_before_ms"}).assign(
        mean_ms=now,
        change=np.where(np.arange(count) < slower, "slower", "similar"),
        ratio=now / frame["mean_ms"],
        extra_ms=(now - frame["mean_ms"]) * frame["calls"],
    )


def audit_frame(
    buckets: int, *, entities: int = 4, events: int = 12, label: str = "Entity", step: str = "1h"
) -> pd.DataFrame:
    times = pd.date_range(START, periods=buckets, freq=step)
    rows = [
        (time, f"{label}{e}", action, events + i % 7)
        for i, (time, e, action) in enumerate(
            itertools.product(times, range(entities), ("CREATE", "UPDATE", "READ", "DELETE"))
        )
    ]
    return pd.DataFrame(rows, columns=["bucket_at", "entity_type", "action", "events"])


def trail(buckets: int, *, events: int = 12, step: str = "1h", **options: Any) -> Figure:
    return charts.audit_trail(audit_frame(buckets, events=events, step=step), **options)


def dwarfed(bucket: int) -> pd.DataFrame:
    """A day in which one hour has a hundred times what the others have."""
    frame = audit_frame(24)
    hour = frame["bucket_at"] == frame["bucket_at"].unique()[bucket]
    return frame.assign(events=frame["events"].where(~hour, 1500))


def session_frame(count: int, *, label: str = "app", sessions: int = 3) -> pd.DataFrame:
    states = ["active", "idle", "idle in transaction", "fastpath function call"]
    names = [f"{label}{i}" for i in range(count)]
    rows = {"database": "postgres", "application": names, "state": np.resize(states, count)}
    return pd.DataFrame({**rows, "sessions": sessions})


DAY = pd.date_range(START, periods=24, freq="1h")
BURST = charts.Burst(DAY[3], "CatalogItem", "DELETE", 34)
STATES = ["ok", "warning", "critical", "not_available", "no_data"]


def check_frame(count: int, *, states: list[str] = STATES, text: str = "12 MB") -> pd.DataFrame:
    rows = [
        (f"Check {n // 2}", DATABASES[n % 2], states[n % len(states)], text, f"line {n}: {text}")
        for n in range(count)
    ]
    return pd.DataFrame(rows, columns=["check", "database", "status", "value", "note"])


def trend_frame(count: int, *, scale: float = 1.0, step: str = "30s") -> pd.DataFrame:
    rows = [
        (START + n * pd.Timedelta(step), database, measure, n % 7 * factor)
        for measure, database, _, _ in PANELS
        for factor in [1 / 7 if measure == "cache_hit_ratio" else scale]
        for n in range(count)
    ]
    return pd.DataFrame(rows, columns=["read_at", "database", "measure", "value"])


LIFE: dict[str, Any] = {
    "entity": "CatalogItem 0190a1b2…",
    "since": START,
    "until": START + pd.Timedelta(days=30),
}


def life(frame: pd.DataFrame) -> Figure:
    return charts.entity_history(frame, **LIFE)


def actors(frame: pd.DataFrame) -> Figure:
    return charts.entity_actors(frame, **LIFE)


Chart = Callable[[], Figure]
# Each chart of nothing, of one row, and of more than it can show.
CASES: dict[str, Chart] = {
    f"{chart.__name__} of {count}": lambda chart=chart, frame=frame, count=count: chart(
        frame(count)
    )  # type: ignore[misc]
    for chart, frame, counts in (
        (charts.health, check_frame, (0, 1, 60)),
        (charts.trends, trend_frame, (0, 1, 2, 5000)),
        (charts.pool, pool_frame, (0, 1, 2, 2880, 100_000)),
        (charts.sessions, session_frame, (0, 1)),
        (charts.slow_queries, statement_frame, (0, 1, 300)),
        (charts.load_split, statement_frame, (0, 1, 300)),
        (charts.query_changes, change_frame, (0, 1, 300)),
        (charts.audit_trail, audit_frame, (0, 1)),
        (charts.audit_matrix, audit_frame, (0, 1)),
        (life, life_frame, (0, 1)),
        (actors, life_frame, (0, 300)),
    )
    for count in counts
} | {
    "health long": lambda: charts.health(check_frame(9, text=LONG), window="2026-11-16"),
    "trends all at 0": lambda: charts.trends(trend_frame(9, scale=0)),
    "trends huge": lambda: charts.trends(trend_frame(9, scale=1e15)),
    "trends a month": lambda: charts.trends(trend_frame(60, step="12h")),
    "pool all at 100": lambda: charts.pool(pool_frame(50, values=[100.0], waiting=12345)),
    "pool all at 0": lambda: charts.pool(pool_frame(50, values=[0.0])),
    "pool at the line": lambda: charts.pool(pool_frame(50, values=[80.0])),
    "pool over 100": lambda: charts.pool(pool_frame(50, values=[100.0, 140.0])),
    "pool unlimited": lambda: charts.pool(pool_frame(5, values=[np.nan])),
    "pool peak at the end": lambda: charts.pool(pool_frame(50, values=[*[10.0] * 49, 97.0])),
    "pool peak at the start": lambda: charts.pool(pool_frame(50, values=[97.0, *[10.0] * 49])),
    "pool waiting": lambda: charts.pool(pool_frame(500, waiting=3)),
    "pool a year": lambda: charts.pool(pool_frame(300, step="1D")),
    "pool lines together": lambda: charts.pool(pool_frame(9, values=[94.0]), warning_percent=94),
    "durations none": lambda: lasting("wait", []),
    "durations one": lambda: lasting("wait", [3]),
    "durations all": lambda: lasting("hold", range(19), count=123_456_789),
    "durations beyond": lambda: lasting("hold", [18], databases=1),
    "durations flat": lambda: lasting("wait", [*range(10), 17], count=9999),
    "sessions many": lambda: charts.sessions(session_frame(200, sessions=10_000), limit=1e6),
    "sessions long names": lambda: charts.sessions(session_frame(12, label="name " * 30)),
    "sessions no names": lambda: charts.sessions(session_frame(1).assign(application="\n")),
    "slow long": lambda: charts.slow_queries(statement_frame(20, label=LONG)),
    "slow tiny": lambda: charts.slow_queries(statement_frame(5, scale=1e-6)),
    "slow huge": lambda: charts.slow_queries(statement_frame(5, scale=1e6).assign(calls=10**15)),
    "slow dollars": lambda: charts.slow_queries(statement_frame(3, label="a $1 $x^2$ \\frac <b>&")),
    "slow letters": lambda: charts.slow_queries(statement_frame(3, label="ï 漢字 🙂 \x00\x1b[0m")),
    "load long": lambda: charts.load_split(statement_frame(9, label=LONG)),
    "changes long": lambda: charts.query_changes(change_frame(9, label=LONG, times=1e6)),
    "changes tiny": lambda: charts.query_changes(change_frame(3, slower=0).assign(mean_ms=1e-9)),
    "trail a day": lambda: trail(24, found=BURST),
    "trail burst first": lambda: trail(24, found=charts.Burst(START, "User", "DELETE", 10**7)),
    "trail burst last": lambda: trail(24, found=charts.Burst(DAY[-1], "U" * 99, "READ", 10)),
    "trail huge": lambda: trail(3000, events=10**9, bucket="minute", found=BURST),
    "trail cut": lambda: charts.audit_trail(dwarfed(-1), found=BURST),
    "trail burst cut": lambda: charts.audit_trail(dwarfed(3), found=BURST),
    "trail a year": lambda: trail(52, step="7D", bucket="week"),
    "trail months": lambda: trail(60, step="MS", bucket="month"),
    "life long": lambda: life(life_frame(5000, fields=40)),
    "actors many": lambda: actors(life_frame(300, users=50)),
    "actors unknown": lambda: actors(life_frame(5, users=0)),
    "matrix many": lambda: charts.audit_matrix(audit_frame(1, entities=300, events=10**12)),
    "matrix long": lambda: charts.audit_matrix(audit_frame(2, label="E" * 200)),
    "long texts": lambda: charts.empty("T" * 300, "s " * 400, "f " * 400, reason="r " * 400),
}


def faults(figure: Figure, dpi: float) -> list[str]:
    """Texts that leave the canvas or lie on one another, drawn at this resolution.

    Without hinting, as SVG is drawn: fitting letters to pixels would widen small ones.
    """
    with rc_context({"text.hinting": "none"}):
        return _faults(figure, dpi)


def _faults(figure: Figure, dpi: float) -> list[str]:
    figure.set_dpi(dpi)
    FigureCanvasAgg(figure).draw()
    hidden = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not min(limits) <= tick.get_loc() <= max(limits):
                    hidden |= {tick.label1, tick.label2}
    texts = [
        t
        for t in figure.findobj(Text)
        if isinstance(t, Text) and t.get_visible() and t.get_text().strip() and t not in hidden
    ]
    width, height = figure.canvas.get_width_height()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    found = [
        f"clipped: {text!r}"
        for text, box in boxes
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5
    ]
    slack = dpi / 72  # a point: boxes hold the room above and below the letters
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > slack and high > 2 * slack:
            found.append(f"overlap: {one!r} and {two!r}")
    return found


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("case", CASES)
def test_no_text_is_clipped_or_lies_on_other_text(case: str) -> None:
    """A chart can be read, whatever the data: empty, tiny, huge, with long labels."""
    figure = CASES[case]()

    assert faults(figure, 72) == []
    assert faults(figure, 150) == []


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a figure takes too long to search for the smallest fault
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    values=st.lists(st.floats(0, 120), min_size=1, max_size=40),
    waiting=st.integers(0, 10**6),
    label=st.text(max_size=80),
    events=st.integers(0, 10**9),
)
def test_any_data_draws_readable_text(
    values: list[float], waiting: int, label: str, events: int
) -> None:
    """The same for values and labels that nobody thought of."""
    for figure in (
        charts.pool(pool_frame(len(values), values=values, waiting=waiting)),
        charts.slow_queries(statement_frame(4, label=label, scale=max(values) + 1e-9)),
        charts.audit_matrix(audit_frame(1, events=events, label=label)),
    ):
        assert faults(figure, 72) == []
        ET.fromstring(charts.to_svg(figure))


def test_the_lint_sees_faults() -> None:
    """A check that never fails proves nothing."""
    figure = charts.audit_matrix(audit_frame(1))
    figure.text(0.99, 0.5, "leaves the canvas")
    figure.text(0.02, 0.5, "one on")
    figure.text(0.02, 0.5, "another")

    found = faults(figure, 72)

    assert "clipped: 'leaves the canvas'" in found
    assert "overlap: 'one on' and 'another'" in found


def used(*values: float, waiting: int = 0) -> Figure:
    return charts.pool(pool_frame(10, values=values, waiting=waiting, databases=1))


def checked(*states: str) -> Figure:
    return charts.health(check_frame(4, states=[*states]))


FINDINGS: dict[str, Chart] = {
    "The PostgreSQL pool never used more than 40 % of the capacity": lambda: used(40.0),
    "The PostgreSQL pool was over its warning line in 5 of 10 samples": lambda: used(40, 81),
    "The PostgreSQL pool was over its critical line in 5 of 10 samples": lambda: used(40, 96),
    "Callers waited for a PostgreSQL connection in 10 of 10 samples": lambda: used(40, waiting=2),
    "All 4 checks that could be judged are within their lines": lambda: checked("ok"),
    "All 2 checks that could be judged are within their lines": lambda: checked("ok", "no_data"),
    "Warning: check 0, check 1": lambda: checked("ok", "warning"),
    "Critical: check 1": lambda: checked("warning", "ok", "critical", "ok"),
    "No check could be judged": lambda: checked("not_available"),
    "10 callers waited for a PostgreSQL connection, 99 in 100 within 1 ms": (
        lambda: lasting("wait", [3], databases=1)
    ),
    "41 PostgreSQL connections were lent and returned, more than 1 in 100 after over 1 min": (
        lambda: lasting("hold", [9, 18], databases=1)
    ),
    "1 PostgreSQL connection was lent and returned, 99 in 100 within 100 ms": (
        lambda: lasting("hold", [9], count=-8, databases=1)
    ),
    "Nobody had to wait for a connection": lambda: lasting("wait", []),
    "A burst of 34 CatalogItem deletes at 2026-11-16 03:00 stands out": CASES["trail a day"],
    "No statement got slower for sure": lambda: charts.query_changes(change_frame(4, slower=0)),
    "2 of 3 statements are slower than 100 ms on average": (
        lambda: charts.slow_queries(statement_frame(3).assign(mean_ms=[5.0, 900.0, 100.0]))
    ),
}


@pytest.mark.parametrize("title", FINDINGS)
def test_a_chart_is_titled_with_its_finding(title: str) -> None:
    """The gravest thing in the data is what the title says, with its number."""
    assert charts.title_of(FINDINGS[title]()) == title


def test_the_fullest_process_of_a_moment_counts() -> None:
    """Two half-empty pools do not hide a full one."""
    frame = pool_frame(1, values=[10.0], databases=1)
    both = pd.concat([frame, frame.assign(utilisation_percent=90.0)])

    title = charts.title_of(charts.pool(both))

    assert title == "The PostgreSQL pool was over its warning line in 1 of 1 sample"


def statements_of(figure: Figure) -> list[str]:
    """The ends of the statements that a chart names, from above."""
    found = [t for t in figure.texts if t.get_text().startswith("SELECT")]
    return [t.get_text().split()[8] for t in sorted(found, key=lambda t: -t.get_position()[1])]


def test_what_is_slowest_and_what_got_slower_stands_on_top() -> None:
    """Also where something else changed by more time: that is not sure."""
    slow = statement_frame(3).assign(mean_ms=[5.0, 900.0, 100.0])
    changed = change_frame(4, slower=1)
    changed.loc[3, "extra_ms"] = 1e12
    figure = charts.query_changes(changed)

    assert statements_of(charts.slow_queries(slow)) == ["1", "2", "0"]
    assert statements_of(figure)[:2] == ["0", "3"]
    assert charts.title_of(figure) == "One statement takes 4.0 times as long as before"


def test_a_burst_is_named_and_a_bar_that_dwarfs_the_others_is_cut() -> None:
    """Without that the rest of the week would be a flat line."""
    figure = charts.audit_trail(dwarfed(-1), found=BURST)

    assert figure.axes[0].get_ylim()[1] <= 500
    assert {"↑ 24 000 events", "34 deletes"} <= {t.get_text() for t in figure.texts}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "250 µs"), (1, "1 ms"), (12.34, "12 ms"), (100, "100 ms"), (999.9, "1.0 s"),
        (1000, "1 s"), (1300, "1.3 s"), (90_000, "90 s"), (600_000, "10 min"),
    ],
)  # fmt: skip
def test_durations_are_in_the_unit_people_use(value: float, text: str) -> None:
    """Ticks read 1 ms, 100 ms, 1 s."""
    assert words.milliseconds(value) == text


@pytest.mark.parametrize(
    "case", ["pool of 0", "slow_queries of 0", "query_changes of 0", "audit_trail of 0"]
)
def test_an_empty_window_says_so(case: str) -> None:
    """No bare axes: a panel with the words, and why."""
    texts = [t.get_text() for t in CASES[case]().texts]

    assert "No data in this window" in texts
    assert any("window" in t and t != "No data in this window" for t in texts)


@pytest.mark.parametrize(
    "case", ["pool waiting", "slow_queries of 300", "load_split of 300", "trail a day"]
)
def test_the_same_data_gives_the_same_bytes(case: str) -> None:
    """Also when the figure is made twice."""
    assert charts.to_svg(CASES[case]()) == charts.to_svg(CASES[case]())


def test_time_zone_locale_and_settings_of_the_user_change_no_byte() -> None:
    """A report made elsewhere is the same report."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/charts']; import matplotlib as m\n"
        "if sys.argv[1:]: m.rcParams.update({'font.size': 20, 'axes.grid': True, "
        "'axes.facecolor': 'red', 'lines.linewidth': 9})\n"
        "from test_charts import CASES; from fwdb import charts\n"
        "sys.stdout.write(charts.to_svg(CASES['pool waiting']()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | {"TZ": zone, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": zone[-1:]},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for zone, arguments in (("Asia/Tokyo-9", []), ("UTC+3", ["changed"]))
    }

    assert len(outputs) == 1
    assert outputs.pop().startswith("<svg")


def test_svg_keeps_text_as_text_and_says_what_it_shows() -> None:
    """Searchable and read aloud: a title, an alternative text, real letters."""
    figure = CASES["trail a day"]()
    root = ET.fromstring(charts.to_svg(figure, name="trail"))
    name = "{http://www.w3.org/2000/svg}"

    assert root.get("role") == "img"
    assert root.get("aria-label") == charts.alt_text(figure)
    assert root.findtext(f"{name}title") == charts.title_of(figure)
    assert charts.title_of(figure) in [t.text for t in root.iter(f"{name}text")]
    assert "audit.audit_logs · 2026-11-16" in charts.alt_text(figure)


def test_charts_of_one_page_share_no_id() -> None:
    """The ids of one SVG would otherwise catch the references of the next."""
    svgs = [charts.to_svg(CASES["slow_queries of 300"](), name=name) for name in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]

    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip(svgs, ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {
            pair for i in own for pair in ((i, ""), ("", i))
        }


def test_a_long_line_keeps_its_peak_in_two_thousand_points() -> None:
    """The one high sample of 100,000 is in the drawing."""
    values = np.full(100_000, 20.0)
    values[54_321] = 99.0
    figure = charts.pool(pool_frame(100_000, values=values, databases=1))

    y = figure.axes[0].lines[0].get_ydata()

    assert len(y) <= 2000
    assert np.nanmax(y) == 99.0
    assert len(charts.to_svg(figure)) < 80_000


def test_missing_samples_break_the_line() -> None:
    """Nothing is drawn across hours in which nobody looked."""
    frame = pool_frame(100, databases=1).drop(index=range(40, 60))

    y = charts.pool(frame).axes[0].lines[0].get_ydata()

    assert np.isnan(np.asarray(y)).sum() == 1


def test_text_colours_stand_out_from_white() -> None:
    """At least 4.5 to 1, as WCAG asks of small text."""
    for colour in (canvas.INK, canvas.MUTED, canvas.AMBER_TEXT, canvas.RED_TEXT):
        assert contrast(colour, "#ffffff") >= 4.5


def test_numbers_in_the_cells_of_the_matrix_can_be_read() -> None:
    """The number changes to white where the cell is dark enough for it."""
    figure = charts.audit_matrix(audit_frame(1, entities=12, events=1).assign(events=range(1, 49)))
    cells = [p for p in figure.findobj(Rectangle) if p is not figure.patch]
    colours = ["#" + "".join(f"{round(255 * v):02x}" for v in p.get_facecolor()[:3]) for p in cells]
    texts = [t for t in figure.texts if t.get_size() == 11 and t.get_ha() == "center"]

    assert len(cells) == len(texts) == 48
    for cell, text in zip(colours, texts, strict=True):
        ink = {"white": "#ffffff", "black": "#000000"}[text.get_color()]
        assert contrast(cell, ink) >= 4.5, (cell, text.get_text())


def test_a_panel_of_operations_is_drawn_to_its_own_scale() -> None:
    """Only ratios are drawn to 1."""
    figure = charts.trends(trend_frame(20, scale=10))
    tops = {round(axes.get_ylim()[1], 2) for axes in figure.axes}

    assert tops == {1.04, 67.2}


def test_a_life_names_what_changed_most_and_how_it_ended() -> None:
    """Counts without readings; a deletion at the end is said; hidden lanes too."""
    frame = pd.DataFrame(
        {
            "created_at": pd.date_range(START, periods=4, freq="1D"),
            "action": ["UPDATE", "READ", "UPDATE", "DELETE"],
            "changed_fields": ["price, name", "", "price", "price"],
            "user_id": ["u", "v", None, "u"],
        }
    )

    life, actors = (
        charts.title_of(chart(frame, **LIFE))
        for chart in (charts.entity_history, charts.entity_actors)
    )
    many = charts.entity_history(life_frame(500, fields=40), **LIFE)
    assert life == (
        "CatalogItem 0190a1b2… changed 3 times, most often price (2), and was deleted last"
    )
    assert actors == "1 user changed CatalogItem 0190a1b2…; of 1 change nothing says who"
    assert "more are not drawn" in charts.alt_text(many)
