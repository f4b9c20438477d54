"""Sessions of the servers: who is connected, how many may be, who waits for whom, and the values
that are left out of statements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.monitoring import NOWHERE, ask, do, url_of

from fwdb.database import Database
from fwdb.errors import PermissionDenied, StoreUnavailable, UnknownName
from fwdb.monitoring import Monitor
from fwdb.monitoring.redaction import redacted
from fwdb.monitoring.sessions import mongodb_connections, mongodb_sessions
from fwdb.stores import MongoStore, PostgresStore

Watch = Callable[..., Monitor]


@pytest.fixture(params=["postgres18", "postgres15"])
def store(
    request: pytest.FixtureRequest, postgres_database: Callable[..., str]
) -> Iterator[PostgresStore]:
    """A database with a small table, on both releases."""
    server = None if request.param == "postgres18" else request.getfixturevalue("postgres15")
    found = PostgresStore(postgres_database(server), application_name="worker")
    do(found, "CREATE TABLE things (id int PRIMARY KEY, name text)")
    do(found, "INSERT INTO things VALUES (1, 'a'), (2, 'b')")
    yield found
    found.close()


@pytest.fixture
def monitor(store: PostgresStore, mongodb: MongoStore, watch: Watch) -> Monitor:
    return watch(store, mongodb)


@contextmanager
def waiting(store: PostgresStore, *statements: str) -> Iterator[None]:
    """Another session that runs these in one transaction, and waits there."""

    def work() -> None:
        with store.transaction() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# -- sessions -------------------------------------------------------------------------------------


def session(monitor: Monitor, store: PostgresStore, state: str) -> pd.Series:
    frame = monitor.sessions("postgres")
    frame = frame[(frame["application"] == "worker") & (frame["state"] == state)]
    (mine,) = frame[frame["database_name"] == store.url.database].iloc
    assert mine["user_name"] == store.url.username
    return mine


def test_a_session_is_counted_by_what_it_does(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """An idle one has a wait event, ClientRead, and waits for nothing inside the server; one in a
    transaction is as old as its last statement; blocked is who wants a lock that somebody holds."""
    idle = session(monitor, store, "idle")
    assert (idle["sessions"], idle["waiting"], idle["blocked"]) == (1, 0, 0)
    with store.transaction():
        ask(store, "SELECT pg_sleep(0.6)")
        open_ = session(monitor, store, "idle in transaction")
    assert open_["sessions"] == 1
    assert 0 <= open_["oldest_seconds"] < 0.6

    with ExitStack() as others, store.transaction() as connection:
        connection.execute(sa.text("LOCK TABLE things"))
        others.enter_context(waiting(store, "LOCK TABLE things IN SHARE MODE"))
        wait_until(lambda: len(monitor.blocking()) == 1)
        active = session(monitor, store, "active")
        connection.rollback()
    assert (active["blocked"], active["waiting"]) == (1, 1)


def test_what_cannot_be_seen_or_asked_is_said(
    store: PostgresStore, mongodb: MongoStore, role: Callable[..., Any], watch: Watch
) -> None:
    """Sessions of others without pg_read_all_stats, a store that is down, an unknown one."""
    blind = watch(role(store), mongodb).sessions("postgres")
    monitor = watch(PostgresStore(NOWHERE), mongodb)
    half = monitor.sessions()

    assert blind.loc[blind["state"] == "hidden", "sessions"].sum() >= 1
    assert "GRANT pg_read_all_stats" in blind.attrs["hidden"]["postgres"]
    assert half["database"].tolist() == ["mongodb"]
    assert "no answer from postgres" in half.attrs["missing"]["postgres"]
    with pytest.raises(StoreUnavailable):
        monitor.sessions("postgres")
    for name in ("sessions", "session_limit", "cache_hit_ratio", "replication_lag"):
        with pytest.raises(UnknownName, match="did you mean 'postgres'"):
            getattr(monitor, name)("postgresql")


def test_limits_of_servers_databases_and_roles_are_compared(
    store: PostgresStore, monitor: Monitor
) -> None:
    """An ordinary role never gets reserved sessions; databases and roles can be full long before
    the server is."""
    most, *reserved = [
        row["n"]
        for row in ask(
            store,
            "SELECT CAST(setting AS int) AS n FROM pg_settings WHERE name IN ('max_connections', "
            "'superuser_reserved_connections', 'reserved_connections') "
            "ORDER BY name = 'max_connections' DESC",
        )
    ]
    name, limited = store.url.database, f"test_limited_{time.time_ns()}"
    do(store, f"ALTER DATABASE {name} CONNECTION LIMIT 5")
    do(store, f"CREATE ROLE {limited} LOGIN CONNECTION LIMIT 7")
    limits = monitor.session_limits()
    do(store, f"DROP ROLE {limited}")
    found = {(row["scope"], row["name"]): row for row in limits.to_dict("records")}

    assert found["database", name]["most"] == 5
    assert found["database", name]["sessions"] >= 1
    assert found["database", name]["percent"] == 20 * found["database", name]["sessions"]
    assert found["role", limited]["sessions"] == 0
    assert found["server", ""]["most"] == monitor.session_limit().value == most - sum(reserved)
    assert limits["percent"].is_monotonic_decreasing


# -- locks ----------------------------------------------------------------------------------------


def test_an_idle_transaction_is_shown_without_values(
    store: PostgresStore, monitor: Monitor
) -> None:
    """With its age since the last statement, which is not that of the transaction."""
    with store.transaction() as connection:
        connection.execute(sa.text("SELECT pg_sleep(0.3)"))
        connection.execute(sa.text("UPDATE things SET name = 'ana@example.com' WHERE id = 1"))
        row = monitor.idle_transactions().iloc[0]

    assert row["application"] == "worker"
    assert row["state"] == "idle in transaction"
    assert row["idle_seconds"] < 0.3 <= row["transaction_seconds"]
    assert row["statement"] == "UPDATE things SET name = ? WHERE id = ?"
    assert row["locks"] >= 1
    assert monitor.idle_transactions().empty


def test_the_blocking_tree_has_its_root_and_depths(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A chain of three: the last waits for the middle one, and both for the first."""
    # The chain is left last: it ends when the root has let go.
    with ExitStack() as chain, store.transaction() as connection:
        connection.execute(sa.text("UPDATE things SET name = 'secret' WHERE id = 1"))
        root = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        middle = (f"UPDATE things SET name = 'middle' WHERE id = {id}" for id in (2, 1))
        chain.enter_context(waiting(store, *middle))
        wait_until(lambda: len(monitor.blocking()) == 1)
        chain.enter_context(waiting(store, "UPDATE things SET name = 'last' WHERE id = 2"))
        wait_until(lambda: len(monitor.blocking()) == 2)
        tree = monitor.blocking()
        connection.rollback()
    first, second = tree.to_dict("records")

    assert [first["depth"], second["depth"]] == [1, 2]
    assert first["blocker_pid"] == first["root_pid"] == second["root_pid"] == root
    assert second["blocker_pid"] == first["pid"]
    assert first["root_state"] == "idle in transaction"
    assert first["statement"] == "UPDATE things SET name = ? WHERE id = ?"
    assert "secret" not in str(tree.to_dict())
    assert all(tree["waited_seconds"] >= 0)
    assert monitor.blocking().empty


def test_a_crowd_behind_one_lock_is_a_tree_and_answers_at_once(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """Each of those behind waits for all ahead: as paths that would be 2^20 rows."""
    with ExitStack() as crowd, store.transaction() as connection:
        connection.execute(sa.text("LOCK TABLE things"))
        for _ in range(20):
            crowd.enter_context(waiting(store, "LOCK TABLE things"))
        wait_until(lambda: len(monitor.blocking()) == 20)
        tree = monitor.blocking()
        connection.rollback()

    assert tree["root_pid"].nunique() == 1
    assert tree["pid"].is_unique
    assert (tree["depth"].max(), tree["blockers"].max()) == (1, 20)
    assert tree["relation"].unique().tolist() == ["things"]
    assert tree["lock_mode"].unique().tolist() == ["AccessExclusiveLock"]


def test_waits_are_those_of_active_sessions_for_others(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A lock is a wait; sleep is active and no wait; an idle session is not there at all, nor are
    our own looks."""
    quiet = monitor.wait_events(live_seconds=0.05, samples=2)
    idle = PostgresStore(url_of(store))
    idle.ping()
    with closing(idle), ExitStack() as others, store.transaction() as connection:
        connection.execute(sa.text("LOCK TABLE things"))
        others.enter_context(waiting(store, "LOCK TABLE things"))
        others.enter_context(waiting(store, "SELECT pg_sleep(0.6)"))
        wait_until(lambda: len(monitor.blocking()) == 1)
        found = monitor.wait_events(live_seconds=0.2, samples=4)
        connection.rollback()
    by_event = found.set_index("wait_event")

    assert found.attrs["samples"] == 4
    assert by_event.loc["relation", "is_waiting"]
    assert by_event.loc["relation", "samples"] == 4
    assert by_event.loc["relation", "average_sessions"] == 1.0
    assert not by_event.loc["PgSleep", "is_waiting"]
    assert "ClientRead" not in by_event.index
    assert found["share_percent"].sum() == pytest.approx(100)
    assert quiet[quiet["wait_event"].isin(["ClientRead", "relation"])].empty
    assert quiet.attrs["status"] in ("no_data", "ok")
    assert quiet.dtypes.to_dict() == found.dtypes.to_dict()


# -- MongoDB --------------------------------------------------------------------------------------


def test_connections_of_mongodb_are_counted_by_what_they_do() -> None:
    """Threads of the server have no client; idle connections are no running operations."""
    user = {"effectiveUsers": [{"user": "ana", "db": "admin"}], "microsecs_running": 2_500_000}
    server = {"appName": "shop", "active": True, "waitingForLock": False, **user}
    one = {"client": "127.0.0.1:51234", **server}
    rows = mongodb_connections(
        [
            one,
            one | {"microsecs_running": 4_000_000, "waitingForLock": True},
            one | {"active": False},
            one | {"appName": "fwdb-monitor"},
            server,
        ]
    )

    assert [(r["application"], r["user_name"], r["state"], r["sessions"]) for r in rows] == [
        ("shop", "ana", "active", 2),
        ("shop", "ana", "idle", 1),
    ]
    assert (rows[0]["oldest_seconds"], rows[0]["waiting"], rows[0]["blocked"]) == (4.0, 1, None)
    assert rows[1]["oldest_seconds"] is None


def test_no_constant_of_secantusdb_becomes_a_number(db: Database) -> None:
    """connections.available is 0 there, there is no cache and no second member, and its currentOp
    shows idle connections as active: only their number is told."""
    if not db.mongodb.is_secantus:
        pytest.skip("the MongoDB of this run is not SecantusDB")
    measures = [
        db.monitor.session_limit("mongodb"),
        db.monitor.cache_hit_ratio("mongodb"),
        db.monitor.cache_hit_ratio("mongodb", live_seconds=0.05),
        db.monitor.replication_lag("mongodb"),
    ]
    (row,), told = mongodb_sessions(db.mongodb)

    assert [m.value for m in measures] == [None] * 4
    assert [m.status for m in measures] == ["not_available"] * 3 + ["not_applicable"]
    assert all(m.reason for m in measures)
    assert (row["state"], row["waiting"], row["oldest_seconds"]) == ("open", None, None)
    assert db.monitor.sessions("mongodb")["sessions"].item() >= 1
    assert told == {}


def test_a_mongodb_user_without_the_privilege_is_told_what_helps(
    mongodb: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of connections is shown all the same."""
    original, turns = MongoStore.errors, iter([True])

    @contextmanager
    def errors(self: MongoStore) -> Iterator[None]:
        """The first block is refused, as a server without the right does."""
        if next(turns, False):
            raise PermissionDenied("mongodb: the user may not do this (code 13).")
        with original(self):
            yield

    monkeypatch.setattr(MongoStore, "is_secantus", False)
    monkeypatch.setattr(MongoStore, "errors", errors)
    (row,), told = mongodb_sessions(mongodb)

    assert row["state"] == "open"
    assert "clusterMonitor" in told["hidden"]


# -- values in statements -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT * FROM t1 WHERE a2 = $1", "SELECT * FROM t1 WHERE a2 = $1"),
        ("SELECT 'it''s', E'a\\'b', N'x', $$y$$, $q$z$q$", "SELECT ?, ?, ?, ?, ?"),
        ('SELECT "it\'s" FROM "T" WHERE x = \'s\'', 'SELECT "it\'s" FROM "T" WHERE x = ?'),
        ("SELECT 1 -- it's Ana\nFROM t WHERE a = 'b'", "SELECT ? FROM t WHERE a = ?"),
        ("SELECT /* it's */ 'x'", "SELECT ?"),
        ("UPDATE t SET a = 'cut off here", "UPDATE t SET a = ?"),
        ("SELECT $tag$cut off", "SELECT ?"),
        ("SELECT -1.5e10, .5, 0x1F, 1_000", "SELECT -?, ?, ?, ?"),
        ("SELECT CAST(:x AS int)", "SELECT CAST(:x AS int)"),
        (None, None),
    ],
)
def test_values_are_left_out_of_statements(statement: str | None, shown: str | None) -> None:
    """Names and parameters stay; what the server cut is taken to be a value to its end."""
    assert redacted(statement) == shown
