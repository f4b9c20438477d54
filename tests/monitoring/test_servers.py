"""What is told of the servers themselves: cache by access, tables, indexes, settings, figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.urls import url_of

from fwdb import migrating
from fwdb.database import Database
from fwdb.errors import DuplicateKey, PermissionDenied, StoreUnavailable
from fwdb.monitoring import Monitor, accesses, facts, relations, server_measures
from fwdb.stores import MongoStore, PostgresStore

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SERVERS = ["postgres18", "postgres15"]


@pytest.fixture(scope="module")
def fifteen(postgres15: str) -> Iterator[PostgresStore]:
    """A migrated database on PostgreSQL 15."""
    name = f"test_servers_{time.time_ns()}"
    server = PostgresStore(postgres15)
    server.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.url.set(database=name, drivername="postgresql")
    store = PostgresStore(url.render_as_string(hide_password=False))
    migrating.migrate(store, None)
    yield store
    store.close()
    server.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.close()


@pytest.fixture(params=SERVERS)
def store(request: pytest.FixtureRequest, db: Database) -> PostgresStore:
    """A migrated database on each PostgreSQL there is."""
    if request.param == "postgres18":
        return db.postgres
    found: PostgresStore = request.getfixturevalue("fifteen")
    found.execute(sa.text("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public"))
    found.execute(sa.text("DELETE FROM monitoring.readings"))
    found.execute(sa.text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
    return found


@pytest.fixture
def monitor(store: PostgresStore, db: Database) -> Iterator[Monitor]:
    found = Monitor(store, db.mongodb)
    yield found
    found.close()


def run(store: PostgresStore, *statements: str) -> None:
    for statement in statements:
        store.execute(sa.text(statement))


def flush(store: PostgresStore) -> None:
    """Counters of this session reach the server's statistics at once."""
    with store.connection() as connection:
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        connection.execute(sa.text("SELECT 1"))


# -- cache by access -------------------------------------------------------------------------------


def test_reads_are_counted_in_bytes_and_not_in_operations(db: Database) -> None:
    """PostgreSQL 18 reads up to 16 blocks at once and counts that as one read."""
    run(
        db.postgres,
        "CREATE EXTENSION pg_buffercache",
        "CREATE TABLE cold AS SELECT repeat('x', 2000) AS text FROM generate_series(1, 8000)",
        "CHECKPOINT",
    )
    blocks = db.postgres.rows(sa.text("SELECT pg_relation_size('cold') / 8192 AS n"))[0]["n"]
    flush(db.postgres)
    before, counted = accesses.counters(db.postgres), read_blocks(db.postgres)
    operations = read_operations(db.postgres)
    with db.postgres.connection() as connection:
        connection.execute(sa.text("SELECT pg_buffercache_evict_relation('cold')"))
        connection.execute(sa.text("SELECT count(*) FROM cold"))
    flush(db.postgres)
    rows = {r["access"]: r for r in accesses.difference(before, accesses.counters(db.postgres))}

    assert rows["normal"]["read_bytes"] >= 0.9 * blocks * 8192
    assert read_blocks(db.postgres) - counted >= 0.9 * blocks
    assert read_operations(db.postgres) - operations < 0.5 * blocks, "which is the trap"
    assert rows["normal"]["hit_ratio"] < 0.6
    assert rows["normal"]["read_ms_per_block"] > 0


def read_blocks(store: PostgresStore) -> int:
    return int(store.rows("database_counters")[0]["read_blocks"])


def read_operations(store: PostgresStore) -> int:
    return int(sum(r["reads"] for r in store.rows("io_counters") if r["access"] == "normal"))


def io(found: int, read: int, ms: float = 0.0, **more: Any) -> dict[str, Any]:
    counts = {"normal": [found * 8192, read * 8192, ms], **more.pop("also", {})}
    return {"stats_reset": None, "io_timed": True, "block_bytes": 8192, "accesses": counts, **more}


def test_large_scans_do_not_spoil_the_ratio_of_the_working_set() -> None:
    """They are a row of their own."""
    scanned = io(99_000, 1_000, 50.0, also={"bulkread": [0, 100_000 * 8192, 900.0]})
    rows = {r["access"]: r for r in accesses.difference(io(0, 0), scanned)}

    assert rows["normal"]["hit_ratio"] == pytest.approx(0.99)
    assert rows["normal"]["read_ms_per_block"] == pytest.approx(0.05)
    assert rows["bulkread"]["hit_ratio"] == 0


@pytest.mark.parametrize(
    ("first", "second", "ratio", "words"),
    [
        (io(0, 0), io(500, 100), None, "fewer than 1,000 blocks"),
        (io(0, 0), io(0, 0), None, "fewer than 1,000 blocks"),
        (io(9_000, 9_000), io(3_000, 1_000), 0.75, "began anew"),
        (io(0, 0), io(3_000, 1_000, stats_reset="2026"), 0.75, "began anew"),
        (io(0, 0), io(3_000, 1_000, io_timed=False), 0.75, "not timed"),
    ],
)
def test_a_row_without_a_number_says_why(
    first: dict[str, Any], second: dict[str, Any], ratio: float | None, words: str
) -> None:
    """Too little, a reset, reads that nobody timed."""
    row = accesses.difference(first, second)[0]

    assert row.get("hit_ratio") == ratio
    assert (row["status"] == "ok") == (ratio is not None)
    assert words in row["reason"]
    if not second["io_timed"]:
        assert "read_ms_per_block" not in row


def test_the_cache_of_a_window_comes_from_the_readings(
    store: PostgresStore, monitor: Monitor
) -> None:
    """Rows by access from PostgreSQL 16 on; before, the database's own counters alone."""
    monitor.sample()
    run(store, "CREATE TABLE warm AS SELECT repeat('x', 2000) AS t FROM generate_series(1, 4000)")
    for _ in range(5):
        store.rows(sa.text("SELECT count(*) FROM warm"))
    flush(store)
    frame = monitor.cache()
    live = monitor.cache(live_seconds=0.01)
    mine = frame[frame["database"] == "postgres"]

    assert mine.iloc[0]["counted"] == "this database"
    assert mine.iloc[0]["hit_ratio"] == pytest.approx(monitor.cache_hit_ratio().value, abs=0.05)
    by_access = mine[mine["counted"] == "all databases"]
    if store.server_version >= 160000:
        assert by_access["access"].tolist() == ["bulkread", "bulkwrite", "normal", "vacuum"]
        assert by_access.set_index("access").loc["normal", "hit_ratio"] > 0.5
    else:
        assert by_access.empty
    assert frame.iloc[-1]["status"] == "not_available"  # SecantusDB
    assert live["access"].tolist() == frame["access"].tolist()


# -- tables ----------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[frame["table"] == name].iloc[0]


def test_a_table_has_its_size_growth_and_dead_rows(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Growth is since the first full reading; a table that came later grew from nothing."""
    run(
        store,
        "CREATE TABLE old (n int, text text) WITH (autovacuum_enabled = off)",
        "CREATE INDEX ON old (n)",
        "INSERT INTO old SELECT n, repeat('x', 500) FROM generate_series(1, 1000) AS n",
    )
    monitor.sample("full")
    before = table(monitor.tables(), "public.old")
    run(
        store,
        "INSERT INTO old SELECT n, repeat('x', 500) FROM generate_series(1, 1000) AS n",
        "DELETE FROM old WHERE n <= 500",
        "CREATE TABLE new AS SELECT n FROM generate_series(1, 1000) AS n",
    )
    flush(store)
    wait_until(lambda: table(monitor.tables(), "public.old")["dead_rows"] == 1000)
    frame = monitor.tables()
    old, new = table(frame, "public.old"), table(frame, "public.new")
    size = store.rows(sa.text("SELECT pg_total_relation_size('old') AS n"))[0]["n"]

    assert before["growth_bytes"] == 0
    assert old["growth_bytes"] == old["total_bytes"] - before["total_bytes"] > 0
    assert old["total_bytes"] == pytest.approx(size, rel=0.1)
    assert 0 < old["index_bytes"] < old["total_bytes"]
    assert (old["live_rows"], old["dead_percent"]) == (1000, 50.0)
    assert pd.isna(old["vacuum_age_seconds"]), "never vacuumed is not vacuumed 0 s ago"
    assert old["transaction_age"] >= 0
    assert new["growth_bytes"] == new["total_bytes"] > 0
    run(store, "VACUUM old")
    flush(store)
    wait_until(lambda: table(monitor.tables(), "public.old")["vacuum_age_seconds"] < 60)


def test_a_locked_table_has_no_size_and_holds_nobody_up(
    store: PostgresStore, monitor: Monitor
) -> None:
    """Asking for it would wait behind the lock, and queue everyone else behind the question."""
    run(store, "CREATE TABLE busy (n int)", "CREATE INDEX ON busy (n)", "CREATE TABLE free (n int)")
    with store.transaction() as connection:
        connection.execute(sa.text("LOCK TABLE busy IN ACCESS EXCLUSIVE MODE"))
        frame, sample = monitor.tables(), monitor.sample("full")
        listed = monitor.indexes()

    assert pd.isna(table(frame, "public.busy")["total_bytes"])
    assert table(frame, "public.free")["total_bytes"] == 0
    assert "tables" not in sample.missing
    assert pd.isna(table(listed, "public.busy")["index_bytes"])


def test_growth_needs_a_size_then_and_now() -> None:
    """A table that was locked at one of the readings has none."""
    earlier = relations.Stored(NOON, {"a": [None, 1, 0], "b": [100, 1, 0]})

    assert relations._growth({"table": "a", "total_bytes": 5}, earlier) == {}
    assert relations._growth({"table": "b", "total_bytes": None}, earlier) == {}
    assert relations._growth({"table": "b", "total_bytes": 70}, earlier)["growth_bytes"] == -30
    assert relations._growth({"table": "c", "total_bytes": 7}, earlier)["growth_bytes"] == 7


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
    run(
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
    )
    frame = monitor.indexes()
    mine = frame[frame["table"] == "public.t"].set_index("index")["duplicate_of"].dropna()

    assert set(mine.index) == {"as_key", "prefix", "same"}
    assert (mine["as_key"], mine["same"]) == ("t_pkey", "wide")


def test_an_index_that_could_not_be_built_is_invalid(
    store: PostgresStore, monitor: Monitor
) -> None:
    """CREATE INDEX CONCURRENTLY leaves it behind."""
    run(store, "CREATE TABLE twice (a int)", "INSERT INTO twice VALUES (1), (1)")
    with pytest.raises(DuplicateKey):
        run(store, "CREATE UNIQUE INDEX CONCURRENTLY broken ON twice (a)")
    frame = monitor.indexes()
    broken = frame[frame["index"] == "broken"].iloc[0]

    assert not broken["is_valid"]
    assert not broken["unused"]


def test_fresh_statistics_call_no_index_unused(store: PostgresStore, monitor: Monitor) -> None:
    """That nobody used it for an hour says nothing."""
    run(store, "CREATE TABLE idle (a int)", "CREATE INDEX idle_a ON idle (a)")
    frame = monitor.indexes()
    row = frame[frame["index"] == "idle_a"].iloc[0]

    assert row["scans"] == 0
    assert pd.isna(row["unused"])
    assert "counted since" in frame.attrs["unjudged"]["postgres"]


def index_row(**changed: Any) -> dict[str, Any]:
    return {
        "table_name": "t",
        "index_name": "i",
        "scans": 0,
        "is_needed": False,
        "is_valid": True,
        "counted_since": NOON - timedelta(days=30),
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "replicas", "unused"),
    [
        ({}, False, True),
        ({}, True, None),  # a replica counts its own
        ({"counted_since": NOON - timedelta(days=6)}, False, None),
        ({"counted_since": None}, False, None),
        ({"scans": 1}, True, False),
        ({"is_needed": True}, False, False),
        ({"is_valid": False}, False, None),
    ],
)
def test_unused_is_said_only_when_it_is_known(
    changed: dict[str, Any], replicas: bool, unused: bool | None
) -> None:
    """Long enough, nowhere else, and not there for another reason."""
    row = relations._postgres_index(index_row(**changed), NOON, replicas=replicas)

    assert row["unused"] is unused


def test_one_store_that_is_down_takes_away_its_own_rows_only(db: Database) -> None:
    """When one store is down the other one's rows come, and the missing half is named."""
    down = MongoStore("mongodb://127.0.0.1:1/nothing?serverSelectionTimeoutMS=200")
    monitor = Monitor(db.postgres, down)
    for ask in (monitor.tables, monitor.indexes, monitor.replicas):
        assert "no answer from mongodb" in ask().attrs["missing"]["mongodb"]
    assert len(monitor.tables()) > 5
    for cache in (monitor.cache(), monitor.cache(live_seconds=0.01)):
        assert "no answer from mongodb" in cache.iloc[-1]["reason"]
    monitor.close()
    nobody = Monitor(PostgresStore("postgresql://nobody@127.0.0.1:1/nothing"), down)
    for ask in (nobody.tables, nobody.indexes, nobody.replicas):
        with pytest.raises(StoreUnavailable):
            ask()
    nobody.close()
    down.close()


# -- what changed ----------------------------------------------------------------------------------


def test_a_setting_that_changed_is_told_with_both_values(
    store: PostgresStore, monitor: Monitor, db: Database
) -> None:
    """Values are stored when they are new, not with every reading."""
    monitor.sample("full")
    monitor.sample("full")
    run(store, f"ALTER DATABASE {store.url.database} SET work_mem = '9MB'")
    second = Monitor(store, db.mongodb)  # a new session sees it
    second.sample("full")
    second.close()
    frame = monitor.changes()
    values = store.rows(
        sa.text(
            "SELECT counters ->> 'values' IS NOT NULL AS kept FROM monitoring.counter_samples "
            "WHERE subject = 'settings' ORDER BY reading_id"
        )
    )
    run(store, f"ALTER DATABASE {store.url.database} RESET work_mem")

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
    found = facts.setting_changes(rows)

    assert [(r["name"], r["before"], r["after"], r["noticed_at"].minute) for r in found] == [
        ("a", "1", "2", 2),
        ("a", "1", "2", 3),
    ]


def test_a_start_of_a_server_is_seen_once() -> None:
    """PostgreSQL tells when it began; MongoDB how long it is up, to a second."""

    def row(minute: int, **counters: Any) -> dict[str, Any]:
        at = NOON + timedelta(minutes=minute)
        counters |= {"read_at": at.isoformat()}
        database = "mongodb" if "uptime_seconds" in counters else "postgres"
        return {"read_at": at, "database": database, "counters": json.dumps(counters)}

    begun, again = (NOON - timedelta(days=1)).isoformat(), NOON.isoformat()
    found = facts.starts(
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


def test_without_history_nothing_is_said_to_be_unchanged(
    db: Database, postgres_database: Callable[..., str]
) -> None:
    """No schema, or no full reading: no data, and what would make some."""
    bare = PostgresStore(postgres_database())
    monitor = Monitor(bare, db.mongodb)
    for found in (monitor, db.monitor):
        for frame in (found.changes(), found.trends()):
            assert frame.empty
            assert frame.attrs["status"] == "no_data"
            assert "fwdb" in frame.attrs["reason"]
    monitor.close()
    bare.close()


def test_trends_are_rates_between_readings(store: PostgresStore, monitor: Monitor) -> None:
    """Counters that began anew give no point, rather than a negative one."""
    for _ in range(3):
        monitor.sample("full")
    frame = monitor.trends()
    rates = frame[frame["measure"] == "transactions_per_second"]
    run(store, "SELECT pg_stat_reset()")
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
        run(store, "CHECKPOINT")
    flush(store)
    name = "checkpoints_requested_percent"
    wait_until(lambda: monitor.server_facts()[name].status == "ok", what="the checkpointer to tell")
    found = monitor.server_facts()
    size = store.rows(sa.text("SELECT pg_database_size(current_database()) AS n"))[0]["n"]

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
    run(store, "UPDATE monitoring.readings SET read_at = read_at - interval '1 hour'")
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
    found = server_measures.happened(counted(), counted(read_at=later, **changed), "")

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
    told = server_measures.state(row)
    silent = server_measures.state(row | {"archived_file": "000000010000000000000004"})

    assert told["backup_age_seconds"].value == 7200
    assert silent["backup_age_seconds"].status == "not_available"
    assert silent["archive_age_seconds"].value == 7200
    assert "2 attempts failed" in silent["archive_age_seconds"].reason
    assert told["wraparound_percent"].value == 50, "the older of the two ages counts"


def test_without_pg_monitor_the_log_is_not_measured(store: PostgresStore, db: Database) -> None:
    """And the GRANT that helps is said; the other figures come all the same."""
    role = f"test_little_{time.time_ns()}"
    run(store, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    url = store.url.set(drivername="postgresql", username=role, password="x")
    little = PostgresStore(url.render_as_string(hide_password=False))
    monitor = Monitor(little, db.mongodb)
    try:
        found = monitor.server_facts()
        with pytest.raises(PermissionDenied):
            little.rows("wal_files")
    finally:
        monitor.close()
        little.close()
        run(store, f"DROP ROLE {role}")

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
        run(store, "CREATE TABLE x ()", "DROP TABLE x")
        frame = monitor.vacuum_holders()
    wait_until(lambda: "forgotten" not in " ".join(monitor.vacuum_holders()["name"].astype(str)))
    other.close()
    row = frame[frame["name"] == f"forgotten (process {pid})"].iloc[0]

    assert row["holder"] == "session"
    assert row["state"] == "idle in transaction"
    assert row["transaction_age"] >= 2
    assert row["seconds"] >= 0
