"""What is told of the servers themselves: tables, indexes, settings, figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.monitoring import NO_MONGODB, NOON, NOWHERE, ask, do, flush, set_back
from support.urls import url_of

from fwdb.database import Database
from fwdb.errors import DuplicateKey, PermissionDenied, StoreUnavailable
from fwdb.monitoring import Monitor, readings, relations, servers
from fwdb.stores import MongoStore, PostgresStore


@pytest.fixture
def store(watched: PostgresStore) -> PostgresStore:
    return watched


# -- tables ----------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[frame["table"] == name].iloc[0]


def test_a_table_has_its_size_growth_and_dead_rows(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Growth is since the first full reading; a table that came later grew from nothing."""
    do(
        store,
        "CREATE TABLE old (n int, text text) WITH (autovacuum_enabled = off)",
        "CREATE INDEX ON old (n)",
        "INSERT INTO old SELECT n, repeat('x', 500) FROM generate_series(1, 1000) AS n",
    )
    monitor.sample("full")
    before = table(monitor.tables(), "public.old")
    do(
        store,
        "INSERT INTO old SELECT n, repeat('x', 500) FROM generate_series(1, 1000) AS n",
        "DELETE FROM old WHERE n <= 500",
        "CREATE TABLE new AS SELECT n FROM generate_series(1, 1000) AS n",
    )
    flush(store)
    wait_until(lambda: table(monitor.tables(), "public.old")["dead_rows"] == 1000)
    frame = monitor.tables()
    old, new = table(frame, "public.old"), table(frame, "public.new")
    size = ask(store, "SELECT pg_total_relation_size('old') AS n")[0]["n"]

    assert before["growth_bytes"] == 0
    assert old["growth_bytes"] == old["total_bytes"] - before["total_bytes"] > 0
    assert old["total_bytes"] == pytest.approx(size, rel=0.1)
    assert 0 < old["index_bytes"] < old["total_bytes"]
    assert (old["live_rows"], old["dead_percent"]) == (1000, 50.0)
    assert pd.isna(old["vacuum_age_seconds"]), "never vacuumed is not vacuumed 0 s ago"
    assert old["transaction_age"] >= 0
    assert new["growth_bytes"] == new["total_bytes"] > 0
    do(store, "VACUUM old")
    flush(store)
    wait_until(lambda: table(monitor.tables(), "public.old")["vacuum_age_seconds"] < 60)


def test_a_locked_table_has_no_size_and_holds_nobody_up(
    store: PostgresStore, monitor: Monitor
) -> None:
    """Asking for it would wait behind the lock, and queue everyone else behind the question."""
    do(store, "CREATE TABLE busy (n int)", "CREATE INDEX ON busy (n)", "CREATE TABLE free (n int)")
    with store.transaction() as connection:
        connection.execute(sa.text("LOCK TABLE busy IN ACCESS EXCLUSIVE MODE"))
        frame, sample = monitor.tables(), monitor.sample("full")
        listed = monitor.indexes()

    assert pd.isna(table(frame, "public.busy")["total_bytes"])
    assert table(frame, "public.free")["total_bytes"] == 0
    assert "tables" not in sample.missing
    assert pd.isna(table(listed, "public.busy")["index_bytes"])
    kept = {"a": [None, 1, 0], "b": [100, 1, 0]}  # growth needs a size then and now
    sizes: list[tuple[str, int | None]] = [("a", 5), ("b", None), ("b", 70), ("c", 7)]
    rows = [{"table": name, "total_bytes": size} for name, size in sizes]
    grown = [relations.growth(row, kept, NOON).get("growth_bytes") for row in rows]
    assert grown == [None, None, -30, 7]


def test_secantusdb_has_no_sizes_and_no_scans(db: Database) -> None:
    """Its own are constants, or read every document."""
    if not db.mongodb.is_secantus:
        pytest.skip("the MongoDB of this run is not SecantusDB")
    db.designs.count()
    tables, indexes = db.monitor.tables(), db.monitor.indexes()
    mine = tables[tables["database"] == "mongodb"]
    theirs = indexes[indexes["database"] == "mongodb"]

    assert "designs" in mine["table"].tolist()
    assert mine["total_bytes"].isna().all()
    assert "SecantusDB" in tables.attrs["missing"]["mongodb"]
    assert "_id_" in theirs["index"].tolist()
    assert theirs["scans"].isna().all()
    assert not theirs["unused"].fillna(False).any()
    assert "SecantusDB" in indexes.attrs["unjudged"]["mongodb"]


# -- indexes ---------------------------------------------------------------------------------------


def test_a_duplicate_index_is_one_whose_questions_another_one_answers(
    store: PostgresStore, monitor: Monitor
) -> None:
    """The same columns, or the first ones of it; nothing that keeps rows unique, no other order."""
    do(
        store,
        "CREATE TABLE t (a int PRIMARY KEY, b int, c text, d int)",
        "CREATE INDEX wide ON t (b, c)",
        "CREATE INDEX prefix ON t (b)",
        "CREATE INDEX same ON t (b, c)",
        "CREATE INDEX as_key ON t (a)",
        "CREATE INDEX other_order ON t (b DESC)",
        "CREATE INDEX other_class ON t (b, c text_pattern_ops)",
        "CREATE INDEX partial ON t (b) WHERE d > 0",
        "CREATE INDEX included ON t (b) INCLUDE (d)",
        "CREATE INDEX expression ON t (lower(c))",
        "CREATE UNIQUE INDEX unique_prefix ON t (b)",
        "CREATE INDEX hashed ON t USING hash (b)",
        "CREATE TABLE twice (a int)",
        "INSERT INTO twice VALUES (1), (1)",
    )
    with pytest.raises(DuplicateKey):
        do(store, "CREATE UNIQUE INDEX CONCURRENTLY broken ON twice (a)")
    frame = monitor.indexes()
    broken = frame[frame["index"] == "broken"].iloc[0]
    partial = frame[frame["index"] == "partial"].iloc[0]
    mine = frame[frame["table"] == "public.t"].set_index("index")["duplicate_of"].dropna()

    assert set(mine.index) == {"as_key", "prefix", "same"}
    assert (mine["as_key"], mine["same"]) == ("t_pkey", "wide")
    # One that could not be built stays behind. That nobody used one for an hour says nothing.
    assert (broken["is_valid"], broken["unused"]) == (False, False)
    assert partial["scans"] == 0
    assert pd.isna(partial["unused"])
    assert "counted since" in frame.attrs["unjudged"]["postgres"]


def index_row(**changed: Any) -> dict[str, Any]:
    return {
        "scans": 0,
        "is_needed": False,
        "is_valid": True,
        "counted_since_at": NOON - timedelta(days=30),
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "replicas", "unused"),
    [
        ({}, False, True),
        ({}, True, None),  # a replica counts its own
        ({"counted_since_at": NOON - timedelta(days=6)}, False, None),
        ({"counted_since_at": None}, False, None),
        ({"scans": 1}, True, False),
        ({"is_needed": True}, False, False),
        ({"is_valid": False}, False, None),
    ],
)
def test_unused_is_said_only_when_it_is_known(
    changed: dict[str, Any], replicas: bool, unused: bool | None
) -> None:
    """Long enough, nowhere else, and not there for another reason."""
    row = index_row(**changed)
    known = row["is_valid"] and not relations.unjudgeable([row], NOON, replicas=replicas)

    assert relations.unused(row, known=known) is unused


def test_one_store_that_is_down_takes_away_its_own_rows_only(
    db: Database, watch: Callable[..., Monitor]
) -> None:
    """When one store is down the other one's rows come, and the missing half is named."""
    down = MongoStore(NO_MONGODB)
    monitor, nobody = watch(db.postgres, down), watch(PostgresStore(NOWHERE), down)
    for name in ("tables", "indexes", "replicas"):
        frame = getattr(monitor, name)()
        assert "no answer from mongodb" in frame.attrs["missing"]["mongodb"]
        with pytest.raises(StoreUnavailable):
            getattr(nobody, name)()
    assert len(monitor.tables()) > 5
    for cache in (monitor.cache(), monitor.cache(live_seconds=0.01)):
        assert "no answer from mongodb" in cache.iloc[-1]["reason"]


# -- what changed ----------------------------------------------------------------------------------


def test_a_setting_that_changed_is_told_with_both_values(
    store: PostgresStore, monitor: Monitor, mongodb: MongoStore, watch: Callable[..., Monitor]
) -> None:
    """Values are stored when they are new, not with every reading."""
    monitor.sample("full")
    monitor.sample("full")
    do(store, f"ALTER DATABASE {store.url.database} SET work_mem = '9MB'")
    watch(store, mongodb).sample("full")  # a new session sees it
    frame = monitor.changes()
    values = ask(
        store,
        "SELECT counters ->> 'values' IS NOT NULL AS kept FROM monitoring.counter_samples "
        "WHERE subject = 'settings' ORDER BY reading_id",
    )
    do(store, f"ALTER DATABASE {store.url.database} RESET work_mem")

    assert frame[["what", "name", "before", "after"]].to_numpy().tolist() == [
        ["setting", "work_mem", "(as shipped)", "9216kB"]
    ]
    assert [row["kept"] for row in values] == [True, False, True]


def stored(minutes: int, values: dict[str, str], *, sees_all: bool = True) -> dict[str, Any]:
    counters = json.dumps({"values": values, "sees_all": sees_all})
    return {"read_at": NOON + timedelta(minutes=minutes), "counters": counters}


def test_readings_of_roles_that_see_other_settings_are_not_compared() -> None:
    """What one of them cannot see has not been reset."""
    rows = [
        stored(0, {"a": "1", "secret": "x"}),
        stored(1, {"a": "1"}, sees_all=False),
        stored(2, {"a": "2", "secret": "x"}),
        stored(3, {"a": "2"}, sees_all=False),
    ]
    found = servers.setting_changes(rows)

    assert [(r["name"], r["before"], r["after"], r["noticed_at"].minute) for r in found] == [
        ("a", "1", "2", 2),
        ("a", "1", "2", 3),
    ]


def test_a_start_of_a_server_is_seen_once() -> None:
    """PostgreSQL tells when it began; MongoDB how long it is up, to a second."""

    def row(minute: int, **counters: Any) -> tuple[str, datetime, readings.Reading]:
        at = NOON + timedelta(minutes=minute)
        database = "mongodb" if "uptime_seconds" in counters else "postgres"
        return database, at, readings.parsed({"read_at": at.isoformat(), **counters})

    begun, again = (NOON - timedelta(days=1)).isoformat(), NOON.isoformat()
    found = servers.starts(
        [
            row(1, server_started_at=begun),
            row(1, uptime_seconds=600.0),
            row(2, server_started_at=begun),
            row(2, uptime_seconds=661.0),
            row(3, server_started_at=again),
            row(3, uptime_seconds=20.0),
            row(4, server_started_at=again),
            row(4, uptime_seconds=79.0),
        ]
    )

    assert [(r["database"], r["noticed_at"].minute) for r in found] == [
        ("postgres", 3),
        ("mongodb", 3),
    ]


def test_trends_are_rates_between_readings(store: PostgresStore, monitor: Monitor) -> None:
    """Counters that began anew give no point, rather than a negative one."""
    for _ in range(3):
        monitor.sample("full")
    frame = monitor.trends()
    rates = frame[frame["measure"] == "transactions_per_second"]
    do(store, "SELECT pg_stat_reset()")
    monitor.sample("full")
    after = monitor.trends()

    assert set(rates["database"]) == {"postgres", "mongodb"}
    assert len(rates[rates["database"] == "postgres"]) == 2
    assert len(frame[frame["measure"] == "database_bytes"]) == 3
    assert (after["value"] >= 0).all()


# -- figures ---------------------------------------------------------------------------------------


def test_figures_of_a_server_have_a_value_or_a_reason(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Of this moment at once; over the window with two readings."""
    alone = monitor.server_facts()
    monitor.sample("full")
    for _ in range(4):
        do(store, "CHECKPOINT")
    flush(store)
    name = "checkpoints_requested_percent"
    wait_until(lambda: monitor.server_facts()[name].status == "ok", what="the checkpointer to tell")
    found = monitor.server_facts()
    size = ask(store, "SELECT pg_database_size(current_database()) AS n")[0]["n"]

    assert {n for n, m in alone.items() if m.status == "ok"} == {
        *("database_bytes", "wal_bytes", "wraparound_percent")
    }
    assert all(m.reason for m in alone.values() if m.status != "ok")
    assert alone["archive_age_seconds"].status == "not_applicable"
    assert alone["backup_age_seconds"].status == "not_available"
    assert found["database_bytes"].value == pytest.approx(size, rel=0.1)
    assert found["wal_bytes"].value >= 16 * 1024**2
    assert 0 < found["wraparound_percent"].value < 1
    assert found[name].value == pytest.approx(100, abs=25)
    assert found["deadlocks"].value == 0
    assert found["wal_written_bytes"].value >= 0


def test_figures_of_a_window_that_has_ended_come_from_its_readings(
    store: PostgresStore, monitor: Monitor
) -> None:
    """What is known of this moment only is not said of it."""
    for _ in range(2):
        monitor.sample("full")
    set_back(store)
    until = datetime.now(UTC) - timedelta(minutes=30)
    found = monitor.server_facts(since="2h", until=until)

    assert found["database_bytes"].status == "ok"
    assert found["growth_bytes"].status == "ok"
    assert found["wal_bytes"].status == "no_data"


def counted(**changed: Any) -> dict[str, Any]:
    return {
        "read_at": NOON.isoformat(),
        "stats_reset": None,
        "deadlocks": 5,
        "commits": 1000,
        "rollbacks": 100,
        "temp_bytes": 7,
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "deadlocks", "percent"),
    [
        ({"deadlocks": 7, "commits": 1900, "rollbacks": 200}, 2, 10.0),
        ({"commits": 1050}, 0, None),  # too few to make a share
        ({"deadlocks": 1, "commits": 90, "rollbacks": 10, "temp_bytes": 0}, 1, 10.0),  # anew
    ],
)
def test_what_happened_is_a_difference(
    changed: dict[str, Any], deadlocks: int, percent: float | None
) -> None:
    """Never the sum since the server started, and from the reset on when there was one."""
    later = (NOON + timedelta(minutes=5)).isoformat()
    edges = [readings.parsed(one) for one in (counted(), counted(read_at=later, **changed))]
    found = servers.happened(edges, "")

    assert found["deadlocks"].value == deadlocks
    assert found["rollback_percent"].value == percent


def test_a_backup_is_known_only_when_the_archive_tells() -> None:
    """The file that ends a base backup is the last one archived."""
    row = {
        "read_at": NOON.isoformat(),
        "archiving": True,
        "archive_failures": 2,
        "archive_failed_at": "2026-10-31",
        "archived_at": (NOON - timedelta(hours=2)).isoformat(),
        "archived_file": "000000010000000000000004.00000028.backup",
        "database_bytes": 1,
        "transaction_age": 1,
        "multixact_age": 2**30,
        "transaction_database": "x",
    }
    told, silent = (
        servers.state(readings.parsed(row | more))
        for more in ({}, {"archived_file": "000000010000000000000004"})
    )

    assert told["backup_age_seconds"].value == 7200
    assert silent["backup_age_seconds"].status == "not_available"
    assert silent["archive_age_seconds"].value == 7200
    assert "2 attempts failed" in silent["archive_age_seconds"].reason
    assert told["wraparound_percent"].value == 50, "the older of the two ages counts"


def test_without_pg_monitor_the_log_is_not_measured(
    store: PostgresStore,
    mongodb: MongoStore,
    role: Callable[..., PostgresStore],
    watch: Callable[..., Monitor],
) -> None:
    """And the GRANT that helps is said; the other figures come all the same."""
    little = role(store)
    found = watch(little, mongodb).server_facts()

    with pytest.raises(PermissionDenied):
        little.rows("wal_files")
    assert found["wal_bytes"].status == "not_measured"
    assert "GRANT pg_monitor" in found["wal_bytes"].reason
    assert found["wraparound_percent"].status == "ok"


def test_who_holds_vacuum_back_is_named(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A session with an open view of the data, by application and process."""
    url = url_of(store)
    other = PostgresStore(url, application_name="forgotten")
    with other.transaction(isolation="repeatable read") as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid() FROM pg_class")).scalar()
        do(store, "CREATE TABLE x ()", "DROP TABLE x")
        frame = monitor.vacuum_holders()
    wait_until(lambda: "forgotten" not in " ".join(monitor.vacuum_holders()["name"].astype(str)))
    other.close()
    row = frame[frame["name"] == f"forgotten (process {pid})"].iloc[0]

    assert row["holder"] == "session"
    assert row["state"] == "idle in transaction"
    assert row["transaction_age"] >= 2
    assert row["seconds"] >= 0
