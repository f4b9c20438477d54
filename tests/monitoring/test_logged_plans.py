"""Plans that auto_explain logged: found with their time, and without the values in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from support.monitoring import ask, do, url_of

from fwdb.embedded.postgres import LOGGED_PLANS
from fwdb.errors import ParameterError
from fwdb.monitoring import Monitor
from fwdb.monitoring.plans import COLUMNS, MOST_BYTES, entry
from fwdb.monitoring.redaction import plan_redacted, texts_redacted
from fwdb.stores import MongoStore, PostgresStore

ADDRESS = "ana.perez@example.com"
# The address is in the text and in the filter; a minute is in no log of another statement.
SLOW = (
    "SELECT owner, pg_sleep(0.6) FROM logged WHERE owner = :a OR owner = "
    f"E'{ADDRESS}\\nSeq Scan on x  (cost=0.00..1.00 rows=1 width=1)' OR age = 4711 -- {ADDRESS}"
)


@pytest.fixture
def permitted(watched: PostgresStore) -> Iterator[PostgresStore]:
    """`watched` with the function, as a superuser would make it."""
    do(watched, "CREATE TABLE logged (owner text, age int)")
    do(watched, f"INSERT INTO logged VALUES ('{ADDRESS}', 4711)")
    with psycopg.connect(url_of(watched)) as connection:
        connection.execute(LOGGED_PLANS.read_bytes())
    yield watched
    do(watched, "DROP TABLE logged", "DROP FUNCTION fwdb_logged_plans")


@pytest.fixture
def reader(
    watched: PostgresStore,
    mongodb: MongoStore,
    role: Callable[..., PostgresStore],
    watch: Callable[..., Monitor],
) -> Callable[..., Monitor]:
    """``reader(granted)`` is the monitor of a new role that is a member of `granted`."""
    return lambda granted="": watch(role(watched, granted), mongodb)


def test_a_logged_plan_has_its_time_and_no_value(
    permitted: PostgresStore, reader: Callable[..., Monitor], wait_until: Callable[..., None]
) -> None:
    """Read by a role that is no superuser; its id is that of the statement statistics."""
    monitor = reader("pg_monitor")
    ask(permitted, SLOW, a=ADDRESS)
    found: list[pd.DataFrame] = []

    def logged() -> bool:
        found.append(monitor.logged_plans("10m"))
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
    text = "SELECT queryid FROM pg_stat_statements WHERE query LIKE '%FROM logged WHERE%'"
    known = ask(permitted, text)
    assert row["query_id"] in {str(r["queryid"]) for r in known}
    assert len(monitor.logged_plans("10m", query_id=row["query_id"])) == 1
    other = monitor.logged_plans("10m", query_id="1")
    assert other.attrs["status"] == "no_data"
    assert len(other) == 0
    assert monitor.logged_plans("20m", "10m").attrs["status"] == "no_data"


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


def test_what_cannot_be_read_is_said_with_what_helps(
    permitted: PostgresStore, reader: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log too long to be read whole, a role without the right, no function, explain that is off:
    none of it is the same as a window in which nothing was slow."""
    monitor = reader("pg_monitor")

    def told(status: str, words: str, by: Monitor = monitor) -> None:
        frame = by.logged_plans()
        assert frame.attrs["status"] == status
        assert words in frame.attrs["reason"]
        assert list(frame.columns) == list(COLUMNS)

    with monkeypatch.context() as patch:
        patch.setattr("fwdb.monitoring.plans.MOST_BYTES", 10)
        told("no_data", "older plans are missing")
        assert "older plans are missing" in monitor.logged_plans().attrs["remark"]
    told("not_measured", "GRANT pg_monitor TO test_role_", reader())
    name = permitted.url.database
    for setting, value, words in (
        ("auto_explain.log_min_duration", "-1", "auto_explain logs nothing"),
        ("auto_explain.log_format", "json", "'json'"),
    ):
        do(permitted, f"ALTER DATABASE {name} SET {setting} = '{value}'")
        told("not_available", words, reader("pg_monitor"))
        do(permitted, f"ALTER DATABASE {name} RESET {setting}")
    with pytest.raises(ParameterError, match="'top' is 0"):
        monitor.logged_plans(top=0)


def test_without_the_function_the_script_is_named(reader: Callable[..., Monitor]) -> None:
    """As in a home or on a server where no superuser has run it."""
    frame = reader("pg_monitor").logged_plans()

    assert frame.attrs["status"] == "not_measured"
    assert str(LOGGED_PLANS) in frame.attrs["reason"]


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
    # A log may hold JSON plans of before the setting was changed.
    assert entry({"message": 'duration: 600.1 ms  plan:\n{"Query Text": "SELECT 1"}'}) is None
