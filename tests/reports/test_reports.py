"""Parameters, verdicts, pages and folders of reports: what needs no database."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from support.contrast import contrast
from support.faults import judge
from typer.testing import CliRunner

from fwdb import charts, cli, config, reports
from fwdb.charts import words
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
    catalogue,
    document,
    files,
    known_parameters,
    parameters,
    run,
    servers,
)
from fwdb.reports import check as checks
from fwdb.reports.catalogue import accept
from fwdb.reports.facts import Facts
from fwdb.reports.parameters import Window
from fwdb.reports.results import Check, Kpi, Result, Status, Table

WINDOW = Window(datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 17, tzinfo=UTC))
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


def check(subject: str = "utilisation", status: Status = "ok", **more: Any) -> Check:
    sentence = more.pop("sentence", f"It is {status}.")
    return Check(f"pool.{subject}", more.pop("database", "postgres"), status, sentence, **more)


def result(*checks: Check, rows: int = 3, text: str = "plain", **more: Any) -> Result:
    seen = pd.Series([pd.Timestamp("2026-11-16T08:00Z")] * rows, dtype="datetime64[us, UTC]")
    frame = pd.DataFrame({"seen_at": seen, "statement": text, "mean_ms": 1.5})
    return Result(
        "pool",
        WINDOW,
        {"since": "24h", "until": "now"},
        checks=checks,
        kpis=(
            Kpi("peak", "Peak", 41.25, "percent", "ok", "postgres", f"note {text}"),
            Kpi("lag", "Lag", None, "seconds", "not_applicable", "mongodb", "No replica."),
        ),
        tables=(Table("rows", "Rows", frame),),
        charts={
            name: charts.empty(title, "What", "Source", reason=text)
            for name, title in (("one", "Finding"), ("two", "Another"))
        },
        how_to_read=(("Peak", "The highest value, `peak`."),),
        sources=(("Window", "a day"),),
        **more,
    )


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_type_a_default_and_a_help(name: str) -> None:
    """Declared in Python; the cell of the notebook says the same, line by line."""
    known = known_parameters(name)
    lines = [
        f"{p.name}: {p.type}{' | None' * p.optional} = "
        f"{json.dumps(p.default) if isinstance(p.default, str) else p.default}  # {p.help}"
        for p in known.values()
    ]

    assert catalogue.source(name, "parameters").splitlines() == lines
    assert list(known)[:2] == ["since", "until"]
    assert all(len(p.about) > 10 for p in known.values())
    assert accept(name, {}).values == {k: p.default for k, p in known.items()}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        *(("top", given, 5) for given in ("5", 5, 5.0)),
        *(("top", "1", 1), ("top", 200, 200)),
        *(("min_ms", "2.5", 2.5), ("min_ms", 3, 3.0), ("min_ms", "1e3", 1000.0)),
        *(("since", "90m", "90m"), ("since", " 7d ", "7d")),
        ("since", "2026-11-01T02:00+02:00", "2026-11-01T02:00+02:00"),
        ("since", NOVEMBER, "2026-11-01T00:00:00Z"),
    ],
)
def test_values_come_typed_or_as_text(name: str, given: object, value: object) -> None:
    """What `-p` gives as text and what Python gives typed end up the same."""
    checked = accept("slow_queries", {name: given}).values[name]

    assert checked == value
    assert type(checked) is type(value)


WRONG: list[tuple[str, str, list[Any], str]] = [
    (
        "slow_queries",
        "top",
        ["many", "5.5", "1_0", "", " 5", True, None, [5]],
        "a whole number from",
    ),
    ("slow_queries", "top", ["0", "201", "9" * 400], "from 1 to 200"),
    ("slow_queries", "min_ms", ["nan", "inf", float("nan"), "100ms"], "a number"),
    ("slow_queries", "min_ms", ["-1"], "from 0.001 to 3600000"),
    ("slow_queries", "compare_since", ["25h"], "less than the length of the window before"),
    ("slow_queries", "compare_since", ["yesterday"], "ISO time"),
    ("slow_queries", "order", ["totl"], "did you mean 'total'"),
    ("pool", "since", ["31 days ago", "yesterday", "", 24, None, "24"], "ISO time"),
    ("pool", "since", ["2026-13-01T00:00Z"], "ISO time"),
    ("pool", "since", ["2026-11-01T00:00", datetime(2026, 11, 1)], "without a zone"),
    ("pool", "since", ["99999999w"], "a span"),
    ("pool", "since", ["0h", "now"], "not before 'until'"),
    ("pool", "until", ["2999-01-01T00:00Z"], "in the future"),
    ("audit_trail", "user_id", ["admin", 7, "x'; DROP TABLE audit.audit_logs; --"], "a UUID"),
    ("audit_trail", "action", ["delete"], "hoose from CREATE, DELETE, READ, UPDATE"),
    ("audit_trail", "entity_type", ["user"], "did you mean 'User'?"),
    ("audit_trail", "top", ["1001"], "from 1 to 1000"),
    ("entity_history", "entity_id", ["7", "65a1b2c3d4e5f60718293a4"], "24 digits of an ObjectId"),
    ("entity_history", "entity_type", ["Desing"], "did you mean 'Design'?"),
    ("entity_history", "show_personal", ["yes"], "true or false"),
]


@pytest.mark.parametrize(("report", "name", "values", "words"), WRONG)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    report: str, name: str, values: list[Any], words: str
) -> None:
    """One sentence with the parameter, the value, and the right form; no database is asked."""
    for value in values:
        with pytest.raises(ParameterError) as caught:
            reports.open_report(report, **{name: value})

        assert words in str(caught.value), value
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"min_m": 1}, ["did you mean 'min_ms'"]),  # papermill only warns and takes the default
        ({"top": "x", "min_ms": "y"}, ["'top'", "'min_ms'"]),  # all of them at once
        ({"since": "2026-11-02T00:00Z", "until": "2026-11-01T00:00Z"}, ["not before"]),
    ],
)
def test_wrong_parameters_are_refused_together(given: dict[str, Any], words: list[str]) -> None:
    """Nobody should have to run a command three times to find three mistakes."""
    with pytest.raises(ParameterError) as caught:
        accept("slow_queries", given)

    assert all(word in str(caught.value) for word in words)


def test_a_span_counts_back_from_the_end_of_the_window() -> None:
    """`since=24h` with an end in the past is the day before that end; now is a whole second."""
    window = parameters.window("24h", "2026-11-10T12:00Z")
    now = parameters.window("1h", "now", now=NOVEMBER.replace(microsecond=999999))

    assert window.as_dict() == {"since": "2026-11-09T12:00:00Z", "until": "2026-11-10T12:00:00Z"}
    assert (now.until, now.until - now.since) == (NOVEMBER, timedelta(hours=1))


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
    db = SimpleNamespace(monitor=monitor, settings=config.settings())
    facts = judge(report, servers.cache, {"statements": pd.DataFrame({"database": []})}, db=db)

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

    def refuse(facts: Facts, database: str) -> checks.Finding:
        raise error("GRANT pg_monitor")

    refused, rule = (checks.check("blocked")(f) for f in (refuse, servers.blocked.function))
    first = judge("pool", refused, {})
    facts = judge("pool", rule, {"blocked": pd.DataFrame()}, found=first.checks)

    (check,) = facts.checks
    assert (check.id, check.status, check.value) == ("pool.blocked", status, None)
    assert check.sentence == "GRANT pg_monitor."


def test_every_line_can_be_listed_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own variable, or by FWDB_LIMITS, which also goes before the variable."""
    for one in catalogue.declared():
        if not one.variable.startswith("-p"):
            settings = config.settings().model_copy(update={"limits": {one.id: (12.0, None)}})
            (moved,) = [m for m in catalogue.declared(settings) if m.id == one.id]

            assert moved.warning == 12.0
            assert one.variable.startswith("FWDB_")
    monkeypatch.setenv("FWDB_LIMITS", "pool.sessions=80.5")
    done = CliRunner().invoke(cli.app, ["report", "checks"])
    rows = {line.split()[0]: line.split() for line in done.output.splitlines()}

    assert done.exit_code == 0
    assert rows.keys() == {"Check"} | {one.id for one in catalogue.declared()}
    assert rows["pool.sessions"] == [
        *("pool.sessions", "postgres,", "mongodb", "percent", "80.5", "90"),
        "FWDB_LIMITS=pool.sessions",
    ]
    assert rows["slow_queries.mean"][-2:] == ["-p", "min_ms"]


def test_a_limit_of_no_check_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any database is asked; what is no number is refused as a setting."""
    monkeypatch.setenv("FWDB_LIMITS", "pool.sesions=80:95")
    for ask in (reports.open_report, reports.report):
        with pytest.raises(UnknownName, match=r"FWDB_LIMITS.*did you mean 'pool\.sessions'"):
            ask("pool")
    monkeypatch.setenv("FWDB_LIMITS", "slow_queries.mean=50")
    with pytest.raises(UnknownName, match=r"slow_queries\.mean"):
        catalogue.declared()
    monkeypatch.setenv("FWDB_LIMITS", "pool.sessions=many")
    with pytest.raises(ConfigError, match=r"=many' is not like pool\.sessions=80:95"):
        config.settings()


@pytest.mark.parametrize("name", NAMES)
def test_how_to_read_names_the_lines_in_force(name: str) -> None:
    """As the notebook shows the defaults, the page shows what is configured."""
    lines = judge(name, servers.blocked, {"blocked": pd.DataFrame()}).lines
    cell = catalogue.source(name, "how-to-read")
    shown = re.findall(r"\[([^]]+)\]\(#([\w.]+)\.(\w+)\)", cell)
    moved = catalogue.how_to_read(name, lambda *_: "4711")

    assert [text for text, _, _ in shown] == [lines[key].text(at) for _, key, at in shown]
    assert moved
    assert str(moved).count("4711") == len(shown)
    assert "](#" not in str(moved)


# -- results ---------------------------------------------------------------------------------------

UP = check("reachable")
DOWN = check("reachable", "not_available", database="mongodb", sentence="MongoDB is missing.")
MAIN = {"pool.utilisation": "main"}


@pytest.mark.parametrize(
    ("found", "roles", "verdict"),
    [
        ([check("a"), check("b")], {}, "ok"),
        ([check("a"), check("b", "warning")], {}, "warning"),
        ([check("a", "warning"), check("b", "critical"), check("c")], {}, "critical"),
        # What could not be measured neither saves nor spoils a verdict.
        ([check("a"), check("b", "not_applicable"), check("c", "no_data")], {}, "ok"),
        ([check("a", "no_data"), check("b", "not_measured")], {}, "no_data"),
        ([], {}, "no_data"),
        # A database that is down must not make a report say that all is well.
        ([UP, DOWN, check()], {}, "warning"),
        ([DOWN, check("reachable", "not_available")], {}, "no_data"),
        # Servers that answer and few sessions say nothing about a pool that nobody sampled.
        ([UP, check("sessions"), check(status="no_data")], MAIN, "no_data"),
        ([UP, check(status="no_data"), check("blocked", "warning")], MAIN, "warning"),
    ],
)
def test_the_verdict_is_the_worst_check_that_could_be_judged(
    found: list[Check], roles: dict[str, str], verdict: str
) -> None:
    """And a report without its subject, or without both databases, has no data."""
    made = result(*found, roles=roles)

    assert made.verdict == verdict
    assert ("MongoDB is missing" in made.summary) == (DOWN in found)


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
    columns = ["seen_at", "statement", "mean_ms"]
    table = {"name": "rows", "title": "Rows", "file": "tables/rows.csv", "rows": 3}
    assert content["tables"] == [{**table, "columns": columns}]


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
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], self.open
        self.headings = [tag for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        self.ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
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
    assert not page.all("script") + page.all("img")
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
    html = document.page(result(check(sentence=EVIL, status="warning", action=EVIL), text=EVIL))

    assert_self_contained(html)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_page_can_be_read_by_everybody() -> None:
    """One h1, no skipped heading, language, captions, scopes, a name for every chart."""
    page = Page(document.page(result(check())))

    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1
    assert all(int(b[1]) - int(a[1]) <= 1 for a, b in itertools.pairwise(page.headings))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.ids) == len(set(page.ids))


def test_the_verdict_comes_first_with_what_to_do() -> None:
    """Before any figure, in words, with the next step; byte for byte the same each time."""
    full = check(status="critical", sentence="The pool is full.", action="Look at `pools`.")
    html, again = (document.page(result(full)) for _ in range(2))

    assert html.index("Critical</p>") < html.index("The pool is full.") < html.index("Key figures")
    assert "<li>Look at <code>pools</code>.</li>" in html
    assert html == again
    assert f"{datetime.now(UTC):%Y-%m-%d}" not in html


def test_a_page_shows_twenty_rows_and_links_to_all() -> None:
    """A page of a thousand rows is nobody's page."""
    html = document.page(result(rows=500))

    assert html.count("2026-11-16 08:00:00</td>") == 20
    assert 'The first 20 rows. All rows and columns: <a href="tables/rows.csv">' in html
    assert len(html) < 60_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_a_page_can_be_read(scheme: str) -> None:
    """Every text colour on every ground it stands on reaches 4.5 to 1."""
    css = (Path(document.__file__).parent / "templates" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[: 2 if scheme == "dark" else 1]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", " ".join(blocks)))

    for ink, ground in itertools.product(("ink", "muted", "link"), ("page", "card")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for state in ("ok", "warning", "critical", "none"):
        for ink, ground in ((state, f"{state}-tint"), ("ink", f"{state}-tint"), (state, "card")):
            assert contrast(colours[ink], colours[ground]) >= 4.5, state


def test_the_index_lists_what_needs_attention_first(tmp_path: Path) -> None:
    """Every report with verdict, summary and time; failed runs on top, strange files ignored."""
    assert "fwdb report all" in run.index(tmp_path)  # not an empty page
    content = json.loads(result(check()).json())
    for name, verdict, text in (("pool", "ok", ""), ("audit_trail", "critical", EVIL)):
        files.write(tmp_path / name / "report.html", "")
        told = content | {"verdict": verdict, "summary": text}
        files.write(tmp_path / name / "results.json", json.dumps(told))
        files.write(tmp_path / name / "run.json", '{"finished_at": "2026-11-17T01:02:03Z"}')
    failed = {"report": "slow_queries", "error": "its kernel died"}
    files.write(tmp_path / "slow_queries.failed" / "run.json", json.dumps(failed))
    files.write(tmp_path / "notes.txt", "mine")
    files.write(tmp_path / "junk" / "results.json", "[]")

    html = run.index(tmp_path)

    assert_self_contained(html)
    assert re.findall(r'<h2><a href="([^"]+)">([^<]+)</a>', html) == [
        ("slow_queries.failed/executed.ipynb", "Slow statements"),
        ("audit_trail/report.html", "Audit trail"),
        ("pool/report.html", "Connection pools"),
    ]
    assert "its kernel died" in html
    assert "made 2026-11-17 01:02:03 UTC" in html
    assert "<script" not in html


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


@contextmanager
def old_and_new(parent: Path) -> Iterator[Path]:
    """A folder with an old report, and a new one that is built beside it."""
    files.write(parent / "pool" / "old", "old")
    with files.workspace(parent) as space:
        files.write(space / "built" / "new", "new")
        yield space / "built"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """No file of the earlier report survives, and nothing else is left behind."""
    with old_and_new(tmp_path) as built:
        files.place(built, tmp_path / "pool")

    assert [p.name for p in tmp_path.rglob("*")] == ["pool", "new"]


@pytest.mark.parametrize("late", [False, True], ids=["while building", "between the renames"])
def test_an_interrupted_run_leaves_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Ctrl-C at any moment: the old report or the new one, never half of one."""
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "built" or not late:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), old_and_new(tmp_path) as built:
        files.place(built, tmp_path / "pool")

    assert [p.name for p in tmp_path.rglob("*")] == ["pool", "old"]


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
    runs = [run.RunResult("pool", verdict, "", Path(), 0.0, {}) for verdict in verdicts]

    assert run.exit_code(runs, fail_on=fail_on, failures=failures) == code


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
