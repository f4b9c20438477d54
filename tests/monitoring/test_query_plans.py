"""Plans of recorded statements, and MongoDB's profiler as the second source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.urls import url_of
from test_slow_queries import mongodb, monitor, watched  # noqa: F401 fixtures

from fwdb.errors import FeatureUnavailable, InvalidData, ParameterError
from fwdb.monitoring import Monitor
from fwdb.monitoring.plans import Plan
from fwdb.monitoring.profiler import _counted, profiled
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.commands import shape
from fwdb.stores.postgres import generic_plan

OLD = 160000  # the first version with EXPLAIN (GENERIC_PLAN)


def query_id(monitor: Monitor, text: str) -> str:  # noqa: F811
    frame = monitor.slow_queries(min_ms=0, top=1000)
    rows = frame[frame["statement"].str.contains(text, regex=False)]
    assert len(rows) == 1, frame["statement"].tolist()
    return str(rows["query_id"].iloc[0])


def test_a_recorded_statement_has_a_plan_without_its_values(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """With the table that is read from end to end, and the index that would spare it."""
    watched.execute(sa.text("CREATE TABLE planned (id int, owner text)"))
    monitor.sample("full")
    watched.rows(sa.text("SELECT id FROM planned WHERE owner = 'a' AND id > 3"))
    found = monitor.plan(query_id(monitor, "WHERE owner = $1 AND id > $2"))
    watched.execute(sa.text("DROP TABLE planned"))

    if watched.server_version < OLD:
        assert found.status == "not_available"
        assert "needs 16 or newer" in found.reason
        return
    assert found.status == "ok"
    assert "Seq Scan on planned" in str(found)
    assert "$1" in found.text
    assert [scan.table for scan in found.scans] == ["planned"]


def test_a_statement_is_planned_and_never_run(watched: PostgresStore) -> None:  # noqa: F811
    """Not even one that only writes; and no second command is let in behind it."""
    if watched.server_version < OLD:
        with pytest.raises(FeatureUnavailable, match="16 or newer"):
            generic_plan(watched, "SELECT 1")
        return
    watched.execute(sa.text("CREATE TABLE kept AS SELECT 1 AS n"))
    assert "Delete on kept" in generic_plan(watched, "DELETE FROM kept WHERE n = $1")
    for text in (
        "SELECT 1; DELETE FROM kept",
        "SELECT 1; COMMIT; DELETE FROM kept",
        "SELECT 1 /* ; */; COMMIT; DROP TABLE kept",
        "DROP TABLE kept",
        "VACUUM kept",
        "CREATE TABLE other AS SELECT 1",
        "EXPLAIN ANALYZE DELETE FROM kept",
        "DO $$ BEGIN DELETE FROM kept; END $$",
    ):
        with pytest.raises(InvalidData):
            generic_plan(watched, text)

    assert watched.rows(sa.text("SELECT n FROM kept")) == [{"n": 1}]
    watched.execute(sa.text("DROP TABLE kept"))


@pytest.mark.parametrize(
    "text",
    [
        "SELECT relname FROM pg_class WHERE relname LIKE '%a%' AND relname = $1",
        "-- why\n/* who */ (SELECT $1 UNION SELECT $2)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "VALUES ($1), ($2)",
        "SELECT 1 FROM pg_class WHERE oid IN ($1 /*, ... */)",
        "SELECT 1 -- no line end",
    ],
)
def test_what_people_write_can_be_planned(watched: PostgresStore, text: str) -> None:  # noqa: F811
    """Percent signs, comments, parentheses and squashed lists are all in recorded texts."""
    if watched.server_version >= OLD:
        assert "cost=" in generic_plan(watched, text)


def test_what_cannot_be_planned_says_why(
    watched: PostgresStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """A table that is gone, a command without a plan, an id that nobody knows, MongoDB's."""
    watched.execute(sa.text("CREATE TABLE gone ()"))
    monitor.sample("full")
    watched.rows(sa.text("SELECT count(*) FROM gone"))
    gone, command = query_id(monitor, "FROM gone"), None
    watched.execute(sa.text("DROP TABLE gone"))
    command = query_id(monitor, "DROP TABLE gone")

    assert monitor.plan(gone).status == "not_available"
    assert monitor.plan(command).status == "not_available"
    assert monitor.plan(12345).status == "no_data"
    assert "MongoDB" in monitor.plan("0123456789abcdef").reason
    with pytest.raises(ParameterError, match="query_id"):
        monitor.plan("the slow one")
    if watched.server_version >= OLD:
        assert 'relation "gone" does not exist' in monitor.plan(gone).reason


@pytest.mark.parametrize(
    ("filter", "index"),
    [
        ("(owner = $1)", "CREATE INDEX CONCURRENTLY ON things (owner);"),
        ("((owner)::text = $1)", "CREATE INDEX CONCURRENTLY ON things (owner);"),
        ("(id = ($1)::uuid)", "CREATE INDEX CONCURRENTLY ON things (id);"),
        ("(lower(owner) = $1)", ""),
        ("(n > $1)", ""),
    ],
)
def test_an_index_is_proposed_for_a_plain_comparison_only(filter: str, index: str) -> None:
    """What is not sure is left to people."""
    plan = Plan("1", "", "ok", text=f"Seq Scan on things  (cost=0..9 rows=1)\n  Filter: {filter}")

    assert [scan.index for scan in plan.scans] == [index]


def test_a_statement_without_a_plan_reads_no_table() -> None:
    """A report about it says what it can."""
    assert Plan("1", "CREATE TABLE t ()", "not_available", "has no plan").scans == ()


# -- MongoDB's profiler ---------------------------------------------------------------------------


@pytest.fixture
def profiling(mongodb: MongoStore) -> Iterator[MongoStore]:  # noqa: F811
    """A database whose profiler records every command; switched on by the test, not by fwdb."""
    mongodb.database.command("profile", 2)
    yield mongodb
    mongodb.database.command("profile", 0)


def test_the_profiler_tells_what_no_client_of_ours_sent(
    watched: PostgresStore,  # noqa: F811
    profiling: MongoStore,
    wait_until: Callable[..., None],
) -> None:
    """In the same shapes as the clients' timings; what the server lacks is missing."""
    other = profiling.twin(application_name="somebody")
    things = other.collection("things")
    things.insert_many([{"kind": "a", "n": n} for n in range(20)])
    list(things.find({"kind": "a"}).sort("n", -1))
    things.update_one({"kind": "a"}, {"$set": {"n": 0}})
    things.delete_many({"kind": "b"})
    monitor = Monitor(watched, MongoStore(url_of(profiling)))  # noqa: F811
    frame = monitor.slow_queries(since="5m", min_ms=0, top=1000)
    monitor.close()
    other.close()
    mine = frame[frame["database"] == "mongodb"]

    assert {
        "things.find({kind: ?}).sort({n: -1})",
        "things.insert(?)",
        "things.update({kind: ?}, {$set})",
        "things.delete({kind: ?})",
    } <= set(mine["statement"])
    assert not mine["statement"].str.contains("profile|count", regex=True).any()
    assert frame.attrs["source"]["mongodb"] == "system.profile"
    assert "profiler" in frame.attrs["coverage"]["mongodb"]["sentence"]
    if profiling.is_secantus:
        assert mine["rows"].isna().all()
        assert mine["docs_examined_per_call"].isna().all()
        reason = frame.attrs["not_measured"]["mongodb"]["docs_examined_per_call"]
        assert "SecantusDB does not record" in reason


def test_the_clients_come_first(profiling: MongoStore, watched: PostgresStore) -> None:  # noqa: F811
    """They see every command, and the profiler only some; both together would count twice."""
    things = profiling.collection("things")
    for _ in range(3):
        things.insert_one({"n": 1})
    monitor = Monitor(watched, profiling)  # noqa: F811
    frame = monitor.slow_queries(since="5m", min_ms=0)
    monitor.close()
    mine = frame[frame["statement"] == "things.insert(?)"]

    assert mine["calls"].tolist() == [3]
    assert "clients" in frame.attrs["source"]["mongodb"]


def test_fwdb_never_switches_the_profiler_on(
    mongodb: MongoStore,  # noqa: F811
    monitor: Monitor,  # noqa: F811
) -> None:
    """It says how somebody could."""
    frame = monitor.slow_queries(since="5m", min_ms=0)

    assert mongodb.database.command("profile", -1)["was"] == 0
    assert "db.setProfilingLevel(1" in frame.attrs["missing"]["mongodb"]


def test_documents_examined_come_from_a_server_that_records_them() -> None:
    """Entries as MongoDB 8 writes them, one shape, further batches with the first one."""
    asked = {"find": "things", "filter": {"kind": "a"}, "$db": "shop"}
    entries: list[dict[str, Any]] = [
        {"op": "query", "ns": "shop.things", "command": asked, "millis": 20, "docsExamined": 900},
        {"op": "query", "ns": "shop.things", "command": asked, "millis": 40, "docsExamined": 700},
        {
            "op": "getmore",
            "ns": "shop.things",
            "command": {"getMore": 1, "collection": "things"},
            "originatingCommand": asked,
            "millis": 10,
            "docsExamined": 400,
        },
        {
            "op": "update",
            "ns": "shop.things",
            "command": {"q": {"_id": 1}, "u": {"$set": {"n": 2}}, "multi": False},
            "millis": 5,
            "docsExamined": 1,
            "nModified": 1,
        },
        {"op": "command", "ns": "shop.$cmd", "command": {"profile": -1}, "millis": 1},
        {"op": "query", "ns": "shop.system.profile", "command": {"find": "system.profile"}},
        {"op": "query", "ns": "shop.things", "command": asked | {"comment": "fwdb"}},
    ]
    commands, examined, counted = _counted(entries)
    found = {command.shape: command for command in commands}

    assert set(found) == {"things.find({kind: ?})", "things.update({_id: ?}, {$set})"}
    assert shape("find", asked) in found
    assert (found["things.find({kind: ?})"].calls, found["things.find({kind: ?})"].total_ms) == (
        2,
        70,
    )
    assert examined["find", "shop.things", "things.find({kind: ?})"] == 1000
    assert found["things.update({_id: ?}, {$set})"].documents == 1
    assert {key[2] for key in counted} == {"things.update({_id: ?}, {$set})"}


def test_the_profilers_limits_are_said(profiling: MongoStore) -> None:
    """Threshold, and how far back it reaches: less than that is not 'no slow command'."""
    profiling.database.command("profile", 1, slowms=0)
    profiling.collection("things").insert_one({"n": 1})
    since = pd.Timestamp("2026-01-01", tz="UTC").to_pydatetime()
    said = profiled(profiling, since, None, "nobody").sentence

    assert "only commands of 0 ms and more" in said
    assert "nothing before" in said
