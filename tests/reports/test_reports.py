"""Parameters, verdicts, pages and folders of reports: what needs no database."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from support.faults import judge
from typer.testing import CliRunner

from fwdb import charts, cli, config, reports
from fwdb.errors import (
    ConfigError,
    FwdbError,
    ParameterError,
    PermissionDenied,
    QueryTimeout,
    ReportError,
    StoreUnavailable,
    UnknownName,
)
from fwdb.measure import measured
from fwdb.reports import (
    NAMES,
    files,
    known_parameters,
    notebook,
    parameters,
    render,
    results,
    run,
    servers,
    words,
)
from fwdb.reports import check as checks
from fwdb.reports.parameters import Window
from fwdb.reports.results import Check, Kpi, Result, Status, Table

WINDOW = Window(datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 17, tzinfo=UTC))


def check(subject: str = "utilisation", status: Status = "ok", **more: Any) -> Check:
    sentence = more.pop("sentence", f"It is {status}.")
    return Check(f"pool.{subject}", more.pop("database", "postgres"), status, sentence, **more)


def result(*checks: Check, rows: int = 3, text: str = "plain") -> Result:
    frame = pd.DataFrame(
        {
            "seen_at": pd.to_datetime(["2026-11-16T08:00Z"] * rows, utc=True).astype(
                "datetime64[us, UTC]"
            ),
            "statement": [text] * rows,
            "mean_ms": [1.5] * rows,
        }
    )
    return Result(
        report="pool",
        window=WINDOW,
        parameters={"since": "24h", "until": "now"},
        checks=checks or (check(),),
        kpis=(
            Kpi("peak", "Peak", 41.25, "percent", "ok", "postgres", f"note {text}"),
            Kpi("lag", "Lag", None, "seconds", "not_applicable", "mongodb", "No replica."),
        ),
        tables=(Table("rows", "Rows", frame),),
        charts={
            "one": charts.empty("Finding", "What", "Source", reason=text),
            "two": charts.empty("Another", "What", "Source", reason="none"),
        },
        how_to_read=(("Peak", "The highest value, `peak`."),),
        sources=(("Window", "a day"),),
    )


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_type_a_default_and_a_help(name: str) -> None:
    """Declared in Python; the cell of the notebook says the same, line by line."""
    known = known_parameters(name)
    cell = notebook._source(name, "parameters")

    assert cell.splitlines() == [p.line for p in known.values()]
    assert list(known)[:2] == ["since", "until"]
    assert all(len(p.about) > 10 for p in known.values())
    assert parameters.accept(name, known, {}) == {k: p.default for k, p in known.items()}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"top": "5"}, 5),
        ({"top": 5}, 5),
        ({"top": 5.0}, 5),
        ({"top": "1"}, 1),
        ({"top": 200}, 200),
        ({"min_ms": "2.5"}, 2.5),
        ({"min_ms": 3}, 3.0),
        ({"min_ms": "1e3"}, 1000.0),
        ({"since": "90m"}, "90m"),
        ({"since": " 7d "}, "7d"),
        ({"since": "2026-11-01T02:00+02:00"}, "2026-11-01T02:00+02:00"),
        ({"since": datetime(2026, 11, 1, tzinfo=UTC)}, "2026-11-01T00:00:00Z"),
    ],
)
def test_values_come_typed_or_as_text(given: dict[str, Any], value: object) -> None:
    """What `-p` gives as text and what Python gives typed end up the same."""
    known = known_parameters("slow_queries")

    checked = parameters.accept("slow_queries", known, given)[next(iter(given))]

    assert checked == value
    assert type(checked) is type(value)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("slow_queries", {"top": "many"}, "a whole number from 1 to 200"),
    ("slow_queries", {"top": "5.5"}, "a whole number"),
    ("slow_queries", {"top": "1_0"}, "a whole number"),
    ("slow_queries", {"top": ""}, "a whole number"),
    ("slow_queries", {"top": " 5"}, "a whole number"),
    ("slow_queries", {"top": True}, "a whole number"),
    ("slow_queries", {"top": None}, "a whole number"),
    ("slow_queries", {"top": [5]}, "a whole number"),
    ("slow_queries", {"top": "0"}, "from 1 to 200"),
    ("slow_queries", {"top": "201"}, "from 1 to 200"),
    ("slow_queries", {"top": "9" * 400}, "from 1 to 200"),
    ("slow_queries", {"min_ms": "nan"}, "a number"),
    ("slow_queries", {"min_ms": "inf"}, "a number"),
    ("slow_queries", {"min_ms": float("nan")}, "a number"),
    ("slow_queries", {"min_ms": "-1"}, "from 0.001 to 3600000"),
    ("slow_queries", {"min_ms": "100ms"}, "a number"),
    ("pool", {"since": "31 days ago"}, "ISO time"),
    ("pool", {"since": "yesterday"}, "ISO time"),
    ("pool", {"since": ""}, "ISO time"),
    ("pool", {"since": 24}, "ISO time"),
    ("pool", {"since": None}, "ISO time"),
    ("pool", {"since": "24"}, "ISO time"),
    ("pool", {"since": "2026-13-01T00:00Z"}, "ISO time"),
    ("pool", {"since": "2026-11-01T00:00"}, "without a zone"),
    ("pool", {"since": datetime(2026, 11, 1)}, "without a zone"),
    ("pool", {"since": "99999999w"}, "a span"),
    ("pool", {"since": "0h"}, "not before 'until'"),
    ("pool", {"since": "now"}, "not before 'until'"),
    ("pool", {"since": "2026-11-02T00:00Z", "until": "2026-11-01T00:00Z"}, "not before"),
    ("pool", {"until": "2999-01-01T00:00Z"}, "in the future"),
    ("audit_trail", {"user_id": "admin"}, "a UUID"),
    ("audit_trail", {"user_id": 7}, "a UUID"),
    ("audit_trail", {"user_id": "x'; DROP TABLE audit.audit_logs; --"}, "a UUID"),
    ("audit_trail", {"action": "delete"}, "hoose from CREATE, DELETE, READ, UPDATE"),
    ("audit_trail", {"entity_type": "user"}, "did you mean 'User'?"),
    ("audit_trail", {"top": "1001"}, "from 1 to 1000"),
    ("entity_history", {"entity_id": "7"}, "a UUID or the 24 digits of an ObjectId"),
    ("entity_history", {"entity_id": "65a1b2c3d4e5f60718293a4"}, "the 24 digits of an ObjectId"),
    ("entity_history", {"entity_type": "Desing"}, "did you mean 'Design'?"),
    ("entity_history", {"show_personal": "yes"}, "true or false"),
]


@pytest.mark.parametrize(("report", "given", "words"), WRONG)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    report: str, given: dict[str, Any], words: str
) -> None:
    """One sentence with the parameter, the value, and the right form."""
    with pytest.raises(ParameterError) as caught:
        parameters.accept(report, known_parameters(report), given)

    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    """papermill only warns and goes on with the default."""
    with pytest.raises(UnknownName, match="did you mean 'min_ms'") as caught:
        parameters.accept("slow_queries", known_parameters("slow_queries"), {"min_m": 1})

    assert caught.value.nearest == "min_ms"


def test_all_wrong_values_are_named_at_once() -> None:
    """Nobody should have to run a command three times to find three mistakes."""
    with pytest.raises(ParameterError) as caught:
        parameters.accept(
            "slow_queries", known_parameters("slow_queries"), {"top": "x", "min_ms": "y"}
        )

    assert "'top'" in str(caught.value)
    assert "'min_ms'" in str(caught.value)


def test_a_span_counts_back_from_the_end_of_the_window() -> None:
    """`since=24h` with an end in the past is the day before that end."""
    window = parameters.window("24h", "2026-11-10T12:00Z")

    assert window.as_dict() == {"since": "2026-11-09T12:00:00Z", "until": "2026-11-10T12:00:00Z"}


def test_now_is_a_whole_second() -> None:
    """So that a window can be typed again as it was printed."""
    window = parameters.window("1h", "now", now=datetime(2026, 11, 1, 0, 0, 0, 999999, tzinfo=UTC))

    assert window.until == datetime(2026, 11, 1, tzinfo=UTC)
    assert window.until - window.since == timedelta(hours=1)


# -- checks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "values", "status"),
    [
        (False, (74.9, -1.0), "ok"),
        (False, (75.0, 89.9), "warning"),
        (False, (90.0, 1e9), "critical"),
        (True, (90.0, 95.0), "ok"),
        (True, (89.9, 75.1), "warning"),
        (True, (75.0, 0.0), "critical"),
    ],
)
def test_on_the_line_is_over_it(low: bool, values: tuple[float, ...], status: str) -> None:
    """Of low values the alert line, too; a promise of 90 is kept by 90."""
    line = checks.Line(90.0, 75.0, low=True) if low else checks.Line(75.0, 90.0)

    assert [line.judge(value) for value in values] == [status] * 2


@pytest.mark.parametrize("report", ["health", "slow_queries"])
@pytest.mark.parametrize(
    ("ratio", "status"), [(0.95, "ok"), (0.9499, "warning"), (0.80, "critical")]
)
def test_the_same_check_in_two_reports_is_judged_alike(
    report: str, ratio: float, status: str
) -> None:
    """A cache exactly on the alert line is critical in both."""
    measure = measured(ratio, "ratio", "postgres", "test", remark="since then")
    monitor = SimpleNamespace(cache_hit_ratio=lambda *_: measure)
    frames = {"statements": pd.DataFrame({"database": []})}
    facts = judge(report, servers.cache, frames, db=SimpleNamespace(monitor=monitor))

    assert [c.status for c in facts.checks] == [status] * 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PermissionDenied, "not_measured"),
        (QueryTimeout, "not_measured"),
        (StoreUnavailable, "not_available"),
    ],
)
def test_a_question_that_is_refused_is_a_check_with_the_reason(
    error: type[FwdbError], status: str
) -> None:
    """And is not judged as if there were nothing to see; what follows is asked all the same."""

    def refuse(facts: checks.Facts, database: str) -> checks.Finding:
        raise error("GRANT pg_monitor")

    refused, rule = (checks.check("blocked")(f) for f in (refuse, servers.blocked.function))
    first = judge("pool", refused, {})
    facts = judge("pool", rule, {"blocked": pd.DataFrame()}, checks=first.checks)

    (check,) = facts.checks
    assert (check.id, check.status, check.value) == ("pool.blocked", status, None)
    assert check.sentence == "GRANT pg_monitor."


def test_every_line_can_be_listed_and_moved() -> None:
    """By its own variable, or by FWDB_LIMITS, which also goes before the variable."""
    for one in checks.declared():
        if one.variable.startswith("-p"):
            continue
        settings = config.settings().model_copy(update={"limits": {one.id: (12.0, None)}})
        (moved,) = [m for m in checks.declared(settings) if m.id == one.id]

        assert moved.line.warning == 12.0
        assert one.variable.startswith("FWDB_")


def test_the_command_lists_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Id, database, unit, both numbers as they are in force, and how they are moved."""
    monkeypatch.setenv("FWDB_LIMITS", "pool.sessions=80.5")
    done = CliRunner().invoke(cli.app, ["report", "checks"])
    rows = {line.split()[0]: line.split() for line in done.output.splitlines()}

    assert done.exit_code == 0
    assert rows.keys() == {"Check"} | {one.id for one in checks.declared()}
    assert rows["pool.sessions"] == [
        *("pool.sessions", "postgres,", "mongodb", "percent", "80.5", "90"),
        "FWDB_LIMITS=pool.sessions",
    ]
    assert rows["slow_queries.mean"][-2:] == ["-p", "min_ms"]


def test_a_limit_of_no_check_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any database is asked; what is no number is refused as a setting."""
    monkeypatch.setenv("FWDB_LIMITS", "pool.sesions=80:95")
    with pytest.raises(UnknownName, match=r"did you mean 'pool\.sessions'"):
        reports.open_report("pool")
    with pytest.raises(UnknownName, match="FWDB_LIMITS"):
        reports.report("pool")
    monkeypatch.setenv("FWDB_LIMITS", "slow_queries.mean=50")
    with pytest.raises(UnknownName, match=r"slow_queries\.mean"):
        checks.declared()
    monkeypatch.setenv("FWDB_LIMITS", "pool.sessions=many")
    with pytest.raises(ConfigError, match=r"=many' is not like pool\.sessions=80:95"):
        config.settings()


@pytest.mark.parametrize("name", NAMES)
def test_how_to_read_names_the_lines_in_force(name: str) -> None:
    """As the notebook shows the defaults, the page shows what is configured."""
    facts = judge(name, servers.blocked, {"blocked": pd.DataFrame()})
    shown = re.findall(r"\[([^]]+)\]\(#([\w.]+)\)", notebook._source(name, "how-to-read"))
    moved = notebook.how_to_read(name, lambda _: "4711")

    assert [text for text, _ in shown] == [facts.text(figure) for _, figure in shown]
    assert moved
    assert str(moved).count("4711") == len(shown)
    assert "](#" not in str(moved)


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (["ok", "ok"], "ok"),
        (["ok", "warning"], "warning"),
        (["warning", "critical", "ok"], "critical"),
        (["ok", "not_applicable", "not_available", "no_data"], "ok"),
        (["no_data", "not_measured"], "no_data"),
        ([], "no_data"),
    ],
)
def test_the_verdict_is_the_worst_check_that_could_be_judged(
    statuses: list[Status], verdict: str
) -> None:
    """What could not be measured neither saves nor spoils a verdict."""
    checks = tuple(check(f"thing{i}", status) for i, status in enumerate(statuses))

    assert results.verdict(checks) == verdict


def test_half_a_report_is_a_warning_and_no_half_is_no_data() -> None:
    """A database that is down must not make a report say that all is well."""
    up = check("reachable")
    down = check("reachable", "not_available", database="mongodb", sentence="MongoDB is missing.")

    assert results.verdict((up, down, check())) == "warning"
    assert "MongoDB is missing" in results.summary((up, down, check()))
    assert results.verdict((down, check("reachable", "not_available"))) == "no_data"


def test_a_report_without_its_subject_is_no_data() -> None:
    """Servers that answer and sessions that are few say nothing about a pool nobody sampled."""
    checks = (check("reachable"), check("sessions"), check("utilisation", "no_data"))

    roles: Mapping[str, results.Role] = {"pool.utilisation": "main"}
    assert results.verdict(checks, roles) == "no_data"
    assert results.verdict((*checks, check("blocked", "warning")), roles) == "warning"


def test_results_json_is_the_documented_shape() -> None:
    """Schema 1, with the checks in a fixed order and no NaN."""
    nan = check("b", "no_data", value=float("nan"), unit="ms")
    content = json.loads(result(nan, check("a", value=41.0, threshold=80.0)).json())

    assert list(content) == [
        *("schema", "report", "verdict", "summary", "window", "parameters"),
        *("checks", "kpis", "tables"),
    ]
    assert content["schema"] == 1
    assert content["window"] == {"since": "2026-11-16T00:00:00Z", "until": "2026-11-17T00:00:00Z"}
    assert [c["id"] for c in content["checks"]] == ["pool.a", "pool.b"]
    assert list(content["checks"][0]) == [
        *("id", "database", "status", "value", "unit", "threshold", "sentence", "action"),
    ]
    assert content["checks"][1]["value"] is None
    assert content["tables"] == [
        {
            "name": "rows",
            "title": "Rows",
            "file": "tables/rows.csv",
            "rows": 3,
            "columns": ["seen_at", "statement", "mean_ms"],
        }
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    """A statement or a user agent must not run in somebody's spreadsheet."""
    csv = result(text=text).tables[0].csv()

    assert f"'{text}" in csv.replace('"', "")
    assert csv.splitlines()[0] == '"seen_at","statement","mean_ms"'
    assert "2026-11-16T08:00:00Z," in csv


# -- pages -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page is made of, and what is wrong with its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


EVIL = '<script>alert(1)</script> & "quotes" \' <b>'


def assert_self_contained(html: str) -> None:
    """Nothing is fetched from anywhere: no script, no address but those of name spaces."""
    page = Page(html)
    assert not page.all("script")
    assert not page.all("img")
    for _, attrs in page.tags:
        for name in ("href", "src", "data", "action", "poster"):
            assert not re.match(r"(?i)\s*(\w+:)?//|https?:", attrs.get(name) or "")
        assert not [name for name in attrs if name.startswith("on")]
    css = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in css
    assert "@import" not in css
    assert len(css) < 15_000


def test_a_page_opens_offline_and_shows_text_as_text() -> None:
    """No outside address, no script, and nothing from the data becomes markup."""
    html = render.page(result(check(sentence=EVIL, status="warning", action=EVIL), text=EVIL))

    assert_self_contained(html)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_page_can_be_read_by_everybody() -> None:
    """One h1, no skipped heading, language, captions, scopes, a name for every chart."""
    page = Page(render.page(result()))

    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1
    levels = [int(h[1]) for h in page.headings]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.ids) == len(set(page.ids))


def test_the_verdict_comes_first_with_what_to_do() -> None:
    """Before any figure: the verdict in words, why, and the next step."""
    html = render.page(
        result(
            check(
                "utilisation", "critical", sentence="The pool is full.", action="Look at `pools`."
            )
        )
    )

    assert html.index("Critical</p>") < html.index("The pool is full.") < html.index("Key figures")
    assert "<li>Look at <code>pools</code>.</li>" in html


def test_the_same_result_gives_the_same_page() -> None:
    """Byte for byte; and nothing in it is the time of the run."""
    pages = {render.page(result()) for _ in range(2)}

    assert len(pages) == 1
    assert f"{datetime.now(UTC):%Y-%m-%d}" not in pages.pop()


def test_a_page_shows_twenty_rows_and_links_to_all() -> None:
    """A page of a thousand rows is nobody's page."""
    html = render.page(result(rows=500))

    assert html.count("2026-11-16 08:00:00</td>") == 20
    assert 'The first 20 rows. All rows and columns: <a href="tables/rows.csv">' in html
    assert len(html) < 60_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_a_page_can_be_read(scheme: str) -> None:
    """Every text colour on every ground it stands on reaches 4.5 to 1."""
    from test_charts import contrast

    css = (Path(render.__file__).parent / "templates" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[: 2 if scheme == "dark" else 1]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", " ".join(blocks)))

    for ink in ("ink", "muted", "link"):
        for ground in ("page", "card"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for state in ("ok", "warning", "critical", "none"):
        assert contrast(colours[state], colours[f"{state}-tint"]) >= 4.5, state
        assert contrast(colours["ink"], colours[f"{state}-tint"]) >= 4.5, state
        assert contrast(colours[state], colours["card"]) >= 4.5, state


def write_run(folder: Path, verdict: str, **more: Any) -> None:
    folder.mkdir(parents=True)
    content = json.loads(result().json()) | {"verdict": verdict, "summary": more.get("text", "")}
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "report.html").write_text("")
    (folder / "run.json").write_text(json.dumps({"finished_at": "2026-11-17T01:02:03Z"}))


def test_the_index_lists_what_needs_attention_first(tmp_path: Path) -> None:
    """Every report with verdict, summary and time; failed runs on top, strange files ignored."""
    write_run(tmp_path / "pool", "ok")
    write_run(tmp_path / "audit_trail", "critical", text=EVIL)
    (tmp_path / "slow_queries.failed").mkdir()
    (tmp_path / "slow_queries.failed" / "run.json").write_text(
        json.dumps({"report": "slow_queries", "error": "its kernel died"})
    )
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "results.json").write_text("[]")

    html = render.index(tmp_path)

    assert_self_contained(html)
    titles = re.findall(r'<h2><a href="([^"]+)">([^<]+)</a>', html)
    assert titles == [
        ("slow_queries.failed/executed.ipynb", "Slow statements"),
        ("audit_trail/report.html", "Audit trail"),
        ("pool/report.html", "Connection pools"),
    ]
    assert "its kernel died" in html
    assert "made 2026-11-17 01:02:03 UTC" in html
    assert "<script" not in html


def test_an_index_over_nothing_says_what_to_do(tmp_path: Path) -> None:
    """Not an empty page."""
    assert "fwdb report all" in render.index(tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "–"),
        (float("nan"), "ms", "–"),
        (41.0, "percent", "41 %"),
        (8.333, "percent", "8.3 %"),
        (0.98765, "ratio", "0.988"),
        (0.99996, "ratio", "over 0.999"),
        (1.0, "ratio", "1.000"),
        (1900, "", "1 900"),
        (230.4, "ms", "230 ms"),
        (0.5, "seconds", "0.50 s"),
        (14_260_633, "bytes", "14 MB"),
        (12, "bytes", "12 B"),
    ],
)
def test_figures_read_as_people_write_them(value: float | None, unit: str, text: str) -> None:
    """With unit, without false precision, and never rounded up to perfection."""
    assert words.figure(value, unit).replace("\u202f", " ") == text


def test_pieces_of_a_report_have_plain_text_too() -> None:
    """A terminal, a log and a test see the same facts as a browser."""
    made = result(check("utilisation", "warning", sentence="It is full."), check("blocked"))
    report = reports.Report(made)

    assert repr(report.verdict).splitlines()[:2] == [
        "WARNING: It is full.",
        "  warning         It is full.",
    ]
    assert "41 %" in repr(report.kpis).replace("\u202f", " ")
    assert "Not applicable" in repr(report.kpis)
    assert repr(report.table("rows")) == "Rows (3 rows)"
    assert repr(report.chart("one")) == "Finding. What. Source."


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """No file of the earlier report survives, and nothing else is left behind."""
    target = tmp_path / "pool"
    target.mkdir()
    (target / "old").write_text("old")

    with files.workspace(tmp_path) as space:
        (space / "built").mkdir()
        (space / "built" / "new").write_text("new")
        files.place(space / "built", target)

    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


def test_an_interrupted_run_leaves_the_earlier_report(tmp_path: Path) -> None:
    """Ctrl-C at any moment: the old report or the new one, never half of one."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "old").write_text("old")

    def interrupted() -> None:
        with files.workspace(tmp_path) as space:
            (space / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert [p.name for p in tmp_path.rglob("*")] == ["pool", "old"]


def test_an_interrupt_between_the_two_renames_puts_the_report_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment in which the target is neither old nor new."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "old").write_text("old")
    (tmp_path / "built").mkdir()
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "built":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.place(tmp_path / "built", tmp_path / "pool")

    assert (tmp_path / "pool" / "old").read_text() == "old"


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    """Of processes that are gone; a living one keeps its workspace."""
    gone, ours = tmp_path / ".fwdb-4194304-x", tmp_path / f".fwdb-{os.getppid()}-x"
    gone.mkdir()
    ours.mkdir()

    with files.workspace(tmp_path):
        assert not gone.exists()
        assert ours.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be, as an example of what a file system may refuse."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(ReportError, match=r"cannot be written to .*taken.*--out"):
        run.report("pool", out=tmp_path / "taken" / "reports")


# -- exit codes ------------------------------------------------------------------------------------


def finished(verdict: str) -> run.RunResult:
    return run.RunResult("pool", verdict, "", Path(), 0.0, {})


@pytest.mark.parametrize(
    ("verdicts", "fail_on", "failures", "code"),
    [
        (["ok", "critical"], "never", 0, 0),
        (["ok", "warning"], "critical", 0, 0),
        (["ok", "warning"], "warning", 0, 3),
        (["ok", "critical"], "warning", 0, 3),
        (["ok", "critical"], "critical", 0, 3),
        (["ok", "no_data"], "never", 0, 4),
        (["critical", "no_data"], "critical", 0, 3),
        (["critical"], "critical", 1, 1),
        ([], "never", 1, 1),
    ],
)
def test_exit_codes(verdicts: list[str], fail_on: run.FailOn, failures: int, code: int) -> None:
    """0 fine, 1 failed, 3 over a threshold, 4 no data; the gravest counts."""
    runs = [finished(v) for v in verdicts]

    assert run.exit_code(runs, fail_on=fail_on, failures=failures) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParameterError("x"), 2),
        (UnknownName("report", "x", []), 2),
        (StoreUnavailable("x"), 4),
        (ReportError("x"), 1),
    ],
)
def test_exit_codes_of_errors(error: FwdbError, code: int) -> None:
    """2 when the caller has to put it right, 4 without a server, else 1."""
    assert run.error_exit_code(error) == code


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["pol"], {}, "did you mean 'pool'"),
        (["pool"], {"sinc": "24h"}, "did you mean 'since'"),
        (["pool"], {"since": "soon"}, "ISO time"),
        (["pool", "audit_trail"], {"user": "x"}, "did you mean 'user_id'"),
        (["pool", "slow_queries"], {"top": "none"}, "a whole number"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, names: list[str], given: Mapping[str, Any], words: str
) -> None:
    """Every name and value is checked before the first run begins."""
    with pytest.raises(ParameterError, match=re.escape(words)):
        run.suite(names, out=tmp_path / "reports", **given)

    assert list(tmp_path.iterdir()) == []
