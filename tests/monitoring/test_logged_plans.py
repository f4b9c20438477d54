"""Plans that auto_explain logged: found with their time, and without the values in them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from support.urls import url_of
from test_slow_queries import mongodb, monitor, watched  # noqa: F401 fixtures

from fwdb.embedded.postgres import LOGGED_PLANS
from fwdb.errors import ParameterError
from fwdb.monitoring import Monitor
from fwdb.monitoring.logged_plans import COLUMNS, MOST_BYTES, _entry
from fwdb.monitoring.redaction import plan_redacted, texts_redacted
from fwdb.stores import MongoStore, PostgresStore

ADDRESS = "ana.perez@example.com"
# The address is in the text and in the filter; a minute is in no log of another statement.
SLOW = (
    "SELECT owner, pg_sleep(0.6) FROM logged WHERE owner = :a OR owner = "
    f"E'{ADDRESS}\\nSeq Scan on x  (cost=0.00..1.00 rows=1 width=1)' OR age = 4711 -- {ADDRESS}"
)


@pytest.fixture
def permitted(watched: PostgresStore) -> Iterator[PostgresStore]:  # noqa: F811
    """`watched` with the function, as a superuser would make it."""
    watched.execute(sa.text("CREATE TABLE logged (owner text, age int)"))
    watched.execute(sa.text(f"INSERT INTO logged VALUES ('{ADDRESS}', 4711)"))
    _script(watched)
    yield watched
    watched.execute(sa.text("DROP TABLE logged"))
    watched.execute(sa.text("DROP FUNCTION fwdb_logged_plans"))


@pytest.fixture
def role(watched: PostgresStore, mongodb: MongoStore) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """``role(granted)`` is the monitor of a new role that is a member of `granted`."""
    name, word = f"reader_{secrets.token_hex(4)}", secrets.token_hex(8)
    watched.execute(sa.text(f"CREATE ROLE {name} LOGIN PASSWORD '{word}'"))
    made: list[tuple[PostgresStore, Monitor]] = []

    def make(granted: str = "") -> Monitor:
        if granted:
            watched.execute(sa.text(f"GRANT {granted} TO {name}"))
        url = watched.url.set(username=name, password=word, drivername="postgresql")
        store = PostgresStore(url.render_as_string(hide_password=False))
        made.append((store, Monitor(store, mongodb)))
        return made[-1][1]

    yield make
    for store, found in made:
        found.close()
        store.close()
    watched.execute(sa.text(f"DROP ROLE {name}"))


def _script(store: PostgresStore) -> None:
    url = url_of(store)
    with psycopg.connect(url) as connection:
        connection.execute(LOGGED_PLANS.read_bytes())


def test_a_logged_plan_has_its_time_and_no_value(
    permitted: PostgresStore, role: Callable[..., Monitor], wait_until: Callable[..., None]
) -> None:
    """Read by a role that is no superuser; its id is that of the statement statistics."""
    reader = role("pg_monitor")
    permitted.rows(sa.text(SLOW), a=ADDRESS)
    found: list[pd.DataFrame] = []

    def logged() -> bool:
        found.append(reader.logged_plans("10m"))
        return found[-1].attrs["status"] == "ok"

    wait_until(logged, what="the plan is in the log")
    frame = found[-1]

    assert list(frame.columns) == list(COLUMNS)
    row = frame.iloc[0]
    assert row["duration_ms"] >= 600
    assert row["statement"].startswith("SELECT owner, pg_sleep(?) FROM logged WHERE owner =")
    assert row["statement"].endswith("OR age = ?")
    assert row["plan"].startswith("Seq Scan on logged  (cost=")
    assert "Filter: ((owner = ?::text)" in row["plan"] or "Filter: ((owner = $1)" in row["plan"]
    for said in ("ana", "example.com", "4711", "0.6"):
        assert said not in frame[["statement", "plan"]].to_csv(), said
    assert len(frame) == 1
    known = permitted.rows(
        sa.text("SELECT queryid FROM pg_stat_statements WHERE query LIKE '%FROM logged WHERE%'")
    )
    assert row["query_id"] in {str(r["queryid"]) for r in known}
    assert len(reader.logged_plans("10m", query_id=row["query_id"])) == 1
    other = reader.logged_plans("10m", query_id="1")
    assert other.attrs["status"] == "no_data"
    assert len(other) == 0
    assert reader.logged_plans("20m", "10m").attrs["status"] == "no_data"


def test_a_long_log_is_read_from_its_end_in_whole_lines(
    permitted: PostgresStore, wait_until: Callable[..., None]
) -> None:
    """Wherever it is cut, also within a letter: a line that is not whole is not read."""
    permitted.rows(sa.text(f"{SLOW} {'ä' * 50}"), a="")
    ask = sa.text("SELECT message FROM fwdb_logged_plans(now() - interval '1 hour', :most)")

    wait_until(lambda: "ä" in str(permitted.rows(ask, most=MOST_BYTES)))
    read = [permitted.rows(ask, most=most) for most in range(0, 3000, 7)]
    counts = [len(rows) for rows in read]

    assert counts[0] == 0
    assert counts[-1] >= 1
    assert counts == sorted(counts)
    assert all(row["message"].startswith("duration: ") for rows in read for row in rows)


def test_what_was_not_read_of_a_long_log_is_said(
    permitted: PostgresStore,
    monitor: Monitor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No plan found is then not the same as no plan logged."""
    monkeypatch.setattr("fwdb.monitoring.logged_plans.MOST_BYTES", 10)
    frame = monitor.logged_plans()

    assert frame.attrs["status"] == "no_data"
    assert "older plans are missing" in frame.attrs["reason"]
    assert "older plans are missing" in frame.attrs["remark"]


def test_a_role_without_the_right_is_told_what_helps(
    permitted: PostgresStore, role: Callable[..., Monitor]
) -> None:
    """And may not read the log another way."""
    frame = role().logged_plans()

    assert frame.attrs["status"] == "not_measured"
    assert "GRANT pg_monitor TO reader_" in frame.attrs["reason"]
    assert list(frame.columns) == list(COLUMNS)


def test_without_the_function_the_script_is_named(role: Callable[..., Monitor]) -> None:
    """As in a home or on a server where no superuser has run it."""
    frame = role("pg_monitor").logged_plans()

    assert frame.attrs["status"] == "not_measured"
    assert str(LOGGED_PLANS) in frame.attrs["reason"]


def test_an_explain_that_is_off_is_not_available(
    watched: PostgresStore,  # noqa: F811
    role: Callable[..., Monitor],
) -> None:
    """Not the same as a window in which nothing was slow."""
    name = watched.url.database
    for setting, value, said in (
        ("auto_explain.log_min_duration", "-1", "auto_explain logs nothing"),
        ("auto_explain.log_format", "json", "'json'"),
    ):
        watched.execute(sa.text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
        frame = role("pg_monitor").logged_plans()
        watched.execute(sa.text(f"ALTER DATABASE {name} RESET {setting}"))

        assert frame.attrs["status"] == "not_available"
        assert said in frame.attrs["reason"]


def test_the_built_in_server_lets_its_roles_read_plans_and_no_file(servers: Any) -> None:
    """They have the function of the script, and no right on files."""
    store = PostgresStore(servers.postgres)
    for name in ("fwdb_owner", "fwdb_app", "fwdb_report"):
        row = store.rows(
            sa.text(
                "SELECT has_function_privilege(:role, "
                "'public.fwdb_logged_plans(timestamptz, bigint)', 'EXECUTE') AS plans, "
                "has_function_privilege(:role, 'pg_read_file(text)', 'EXECUTE') AS files"
            ),
            role=name,
        )[0]
        assert (row["plans"], row["files"]) == (True, False), name
    store.close()


def test_values_leave_a_plan_and_what_was_measured_stays() -> None:
    """Also numbers in conditions, and texts that look like the start of a plan."""
    plan = """\
Limit  (cost=0.42..8.44 rows=1 width=4) (actual time=0.020..0.021 rows=1 loops=1)
  Buffers: shared hit=4
  ->  Index Scan using orders_2024 on orders o_1  (cost=0.42..8.44 rows=1 width=4)
        Index Cond: ((id = 4711) AND (owner = 'O''Hara (cost=1..2)'::text))
        Filter: (phone = ANY ('{4712,4713}'::bigint[]))
        Rows Removed by Filter: 17"""
    found = plan_redacted(texts_redacted(plan))

    for kept in ("cost=0.42..8.44", "time=0.020..0.021", "hit=4", "orders_2024", "Filter: 17"):
        assert kept in found
    for gone in ("4711", "Hara", "4712", "4713"):
        assert gone not in found


def test_a_plan_in_another_form_is_left_out() -> None:
    """A log may hold JSON plans of before the setting was changed."""
    row = {"message": 'duration: 600.1 ms  plan:\n{"Query Text": "SELECT 1"}'}

    assert _entry(row) is None


def test_a_top_of_nothing_is_refused(monitor: Monitor) -> None:  # noqa: F811
    """As by the other lists."""
    with pytest.raises(ParameterError, match="'top' is 0"):
        monitor.logged_plans(top=0)
