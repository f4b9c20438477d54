"""The report `slow_queries`: each fault is named with its culprit, and a healthy run names none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from support.faults import judge
from support.urls import url_of

from fwdb import charts, reports
from fwdb.database import Database
from fwdb.embedded.postgres import LOGGED_PLANS
from fwdb.errors import ParameterError, UnknownName
from fwdb.monitoring.coverage import Coverage
from fwdb.reports import statements
from fwdb.reports.results import Check

PLANNED = 160000


@pytest.fixture
def grown(db: Database) -> Database:
    """Two windows of an hour: in the second a table lost its index, and a sort spilled."""
    store = db.postgres
    # The server is shared with other tests, whose statements fill what it can remember.
    store.rows(sa.text("SELECT pg_stat_statements_reset()"))
    store.execute(
        sa.text(
            "CREATE TABLE orders AS SELECT n, n % 5000 AS buyer FROM generate_series(1, 60000)n"
        )
    )
    store.execute(sa.text("CREATE INDEX ON orders (buyer)"))
    store.execute(sa.text("ANALYZE orders"))
    db.monitor.sample("full")
    ask(db)
    db.designs.count()
    db.monitor.sample("full")
    store.execute(
        sa.text(
            "UPDATE monitoring.readings SET read_at = read_at - interval '61 minutes', "
            "details = details || jsonb_build_object('commands_since', "
            "CAST(details ->> 'commands_since' AS timestamptz) - interval '61 minutes')"
        )
    )
    return db


def ask(db: Database, buyers: int = 40) -> None:
    for buyer in range(buyers):
        db.postgres.rows(sa.text("SELECT sum(n) FROM orders WHERE buyer = :b"), b=buyer)


def checks(report: Any) -> dict[tuple[str, str], Check]:
    return {(c.id.removeprefix("slow_queries."), c.database): c for c in report.result.checks}


def test_a_lost_index_is_named_with_what_brings_it_back(grown: Database) -> None:
    """Statement, ratio with its bounds, cause and the exact SQL, in the verdict's own words."""
    grown.monitor.sample("full")
    grown.postgres.execute(sa.text("DROP INDEX orders_buyer_idx"))
    ask(grown)
    report = reports.open_report(
        "slow_queries", db=grown, since="1h", compare_since="2h", min_ms=1000.0
    )
    found = checks(report)["regression", "postgres"]

    assert found.status == "warning"
    assert "`SELECT sum(n) FROM orders WHERE buyer = $1`" in found.sentence
    assert "blocks per call" in found.sentence
    assert "95 %" in found.sentence
    if grown.postgres.server_version >= PLANNED:
        assert "CREATE INDEX CONCURRENTLY ON orders (buyer);" in found.action
        assert "Seq Scan on orders" in "\n".join(report.table("plans").frame["plan"])
    assert found.sentence[:60] in report.result.summary
    changes = report.table("query_changes").frame
    assert changes["change"].iloc[0] == "slower"
    assert "similar" not in set(changes["change"])
    assert "got slower" in charts.title_of(report.chart("query_changes").figure) or (
        "as long as before" in charts.title_of(report.chart("query_changes").figure)
    )
    assert checks(report)["coverage", "postgres"].status == "ok"


def test_the_plan_of_the_longest_run_is_shown_with_its_time(
    grown: Database, wait_until: Callable[..., None]
) -> None:
    """Once the database has the function for it; before, the table says what is missing."""
    before = reports.open_report("slow_queries", db=grown, since="1h").table("logged_plans")
    assert before.frame.empty
    assert "fwdb_logged_plans" in before.table.about

    url = url_of(grown.postgres)
    with psycopg.connect(url) as connection:
        connection.execute(LOGGED_PLANS.read_bytes())
    grown.postgres.rows(sa.text("SELECT pg_sleep(0.6) FROM orders WHERE n = 4711"))
    wait_until(lambda: len(grown.monitor.logged_plans("10m")))
    shown = reports.open_report("slow_queries", db=grown, since="1h").table("logged_plans").frame

    assert shown["duration_ms"].iloc[0] >= 600
    assert shown["plan"].iloc[-1].strip() == "Filter: (n = ?)"


def test_a_healthy_run_names_no_fault(grown: Database) -> None:
    """The same work as before: no regression, no spill, nothing lost."""
    grown.monitor.sample("full")
    ask(grown)
    grown.designs.count()
    report = reports.open_report(
        "slow_queries", db=grown, since="1h", compare_since="2h", min_ms=60_000.0
    )
    found = checks(report)

    assert found["spill", "postgres"].status == "ok"
    assert found["coverage", "postgres"].status == "ok"
    assert found["regression", "mongodb"].status == "ok"
    # The machine may be busier than in the window before, and all is slower then: how seldom the
    # rule names a statement by chance is measured in `test_query_changes.py`.
    faults = {id for id, check in found.items() if check.status in {"warning", "critical"}}
    assert faults <= {("regression", "postgres")}, report.result.summary


def test_without_a_window_to_compare_nothing_is_called_new(grown: Database) -> None:
    """The table says how to ask for one."""
    grown.monitor.sample("full")
    report = reports.open_report("slow_queries", db=grown, since="1h")

    assert report.table("query_changes").frame.empty
    assert "compare_since=" in report.table("query_changes").table.about
    assert ("regression", "postgres") not in checks(report)
    with pytest.raises(UnknownName):
        report.chart("query_changes")


def test_a_window_before_the_history_is_no_regression(grown: Database) -> None:
    """Nothing to compare with: said, and not judged."""
    grown.monitor.sample("full")
    report = reports.open_report("slow_queries", db=grown, since="1h", compare_since="30d")
    found = checks(report)["regression", "postgres"]

    assert found.status == "no_data"
    assert "no reading was stored" in found.sentence


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"compare_since": "25h"}, "less than the length of the window before"),
        ({"compare_since": "yesterday"}, "ISO time"),
        ({"order": "totl"}, "did you mean 'total'"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    """Before any database is asked."""
    with pytest.raises(ParameterError, match=words):
        reports.open_report("slow_queries", since="24h", **given)


def coverage_frame(**more: Any) -> pd.DataFrame:
    frame = pd.DataFrame()
    now = datetime.now(UTC)
    frame.attrs.update(
        coverage={"postgres": Coverage(max_entries=5000, **more).as_dict()},
        windows={"postgres": (now - timedelta(hours=1), now)},
        totals={"postgres": {"statements": 3, "calls": 248, "total_ms": 1.0}},
        missing={"mongodb": "nobody timed it"},
        not_measured={"postgres": {"read_ms": "track_io_timing is off"}},
    )
    return frame


def test_eviction_is_a_warning_with_its_numbers_and_the_setting() -> None:
    """Calls and time seen, entries evicted, and the exact SQL."""
    frame = coverage_frame(
        dealloc=39, evicted=9750, calls=248, transactions=838, total_ms=2480.0, active_ms=8000.0
    )
    found = judge("slow_queries", statements.coverage, {"statements": frame})
    table = statements.coverage_table(frame).frame
    facts = dict(zip(table["fact"], table["value"], strict=True))

    (check,) = found.checks
    assert check.status == "warning"
    assert check.value == pytest.approx(29.59, abs=0.01)
    assert "about 9,750 entries evicted" in check.sentence
    assert "ALTER SYSTEM SET pg_stat_statements.max = 10000;" in check.action
    assert [kpi.value for kpi in found.kpis] == [pytest.approx(31)]
    assert facts["calls seen"].startswith("about 30 %")
    assert facts["time seen"].startswith("at least 31 %")
    assert facts["not measured"] == "read_ms: track_io_timing is off"
    assert table[table["database"] == "mongodb"]["value"].tolist() == ["Nobody timed it."]


def test_nothing_lost_is_ok_and_not_a_number() -> None:
    """Without an estimate the check has no value; 100 % would be a guess."""
    found = judge("slow_queries", statements.coverage, {"statements": coverage_frame()})

    assert [(c.status, c.value) for c in found.checks] == [("ok", None)]


# -- ways of asking -------------------------------------------------------------------------------


def asked(*rows: tuple[str, int, int, float], transactions: int | None = None) -> pd.DataFrame:
    """Statements of PostgreSQL with their calls, rows and share of the time."""
    frame = pd.DataFrame(
        [("postgres", text, text, *rest) for text, *rest in rows],
        columns=["database", "query_id", "statement", "calls", "rows", "share_percent"],
    )
    frame["rows_per_call"] = frame["rows"] / frame["calls"]
    frame.attrs["coverage"] = {"postgres": {"transactions": transactions}}
    return frame


LINES = ("SELECT FROM lines WHERE order_id = $1", 2000, 2000, 60.0)
ORDERS = ("SELECT FROM orders", 40, 2000, 20.0)


@pytest.mark.parametrize(
    ("rows", "transactions", "words"),
    [
        ([LINES, ORDERS], None, "once for each row that `SELECT FROM orders` returned"),
        ([LINES, ("SELECT FROM orders", 40, 1900, 20.0)], None, ""),
        ([LINES, ("SELECT FROM orders", 2000, 2000, 20.0)], None, ""),  # one row each: no list
        ([LINES], 400, "5 times and more in each transaction on average"),
        ([LINES], 401, ""),
        ([("INSERT INTO lines", 2000, 2000, 60.0)], 10, ""),  # to load rows is no question
        ([("SELECT FROM lines", 999, 999, 60.0), ("SELECT FROM orders", 40, 999, 9.0)], 10, ""),
        ([LINES, ORDERS, ("UPDATE t", 4700, 4700, 9.0)], None, ""),  # under 30 % of the calls
        ([("SELECT FROM lines", 2000, 2000, 0.9), ORDERS], 10, ""),  # and of no time
    ],
)
def test_a_statement_asked_once_for_each_row_is_told_from_a_busy_one(
    rows: list[tuple[str, int, int, float]], transactions: int | None, words: str
) -> None:
    """By the rows of a list, or by all transactions; just under each line it is not named."""
    frames = {"statements": asked(*rows, transactions=transactions)}
    (check,) = judge("slow_queries", statements.repeated, frames).checks

    assert check.status == ("warning" if words else "ok")
    assert words in check.sentence


@pytest.mark.parametrize(
    ("examined", "returned", "words"),
    [(5000.0, 1.0, "examines 5\u202f000 documents to return 1"), (99.0, 0.0, ""), (None, 1.0, "")],
)
def test_documents_examined_are_said_where_the_server_tells(
    examined: float | None, returned: float, words: str
) -> None:
    """MongoDB's profiler does; a hundred for each one returned is a scan."""
    row = pd.Series({"docs_examined_per_call": examined, "rows_per_call": returned})

    assert words in statements.examined(row, 100)
    assert bool(words) == bool(statements.examined(row, 100))
