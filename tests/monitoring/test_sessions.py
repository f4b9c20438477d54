"""Who waits for whom in PostgreSQL: idle transactions, the blocking tree, wait events, limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from support.urls import url_of

from fwdb.database import Database
from fwdb.errors import PermissionDenied
from fwdb.monitoring import Monitor
from fwdb.monitoring.redaction import redacted
from fwdb.monitoring.sessions import mongodb_connections, mongodb_sessions
from fwdb.stores import MongoStore, PostgresStore


@pytest.fixture(params=["postgres18", "postgres15"])
def store(
    request: pytest.FixtureRequest, postgres_database: Callable[..., str]
) -> Iterator[PostgresStore]:
    """A database with a small table, on both releases."""
    server = None if request.param == "postgres18" else request.getfixturevalue("postgres15")
    found = PostgresStore(postgres_database(server), application_name="worker")
    found.execute(sa.text("CREATE TABLE things (id int PRIMARY KEY, name text)"))
    found.execute(sa.text("INSERT INTO things VALUES (1, 'a'), (2, 'b')"))
    yield found
    found.close()


@pytest.fixture
def monitor(store: PostgresStore, db: Database) -> Iterator[Monitor]:
    found = Monitor(store, db.mongodb)
    yield found
    found.close()


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


# -- idle transactions ----------------------------------------------------------------------------


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


# -- the blocking tree ----------------------------------------------------------------------------


def test_the_blocking_tree_has_its_root_and_depths(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A chain of three: the last waits for the middle one, and both for the first."""
    # The chain is left last: it ends when the root has let go.
    with ExitStack() as chain, store.transaction() as connection:
        connection.execute(sa.text("UPDATE things SET name = 'secret' WHERE id = 1"))
        root = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        chain.enter_context(
            waiting(
                store,
                "UPDATE things SET name = 'middle' WHERE id = 2",
                "UPDATE things SET name = 'middle' WHERE id = 1",
            )
        )
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
    assert tree["depth"].max() == 1
    assert tree["blockers"].max() == 20
    assert tree["relation"].unique().tolist() == ["things"]
    assert tree["lock_mode"].unique().tolist() == ["AccessExclusiveLock"]


# -- wait events ----------------------------------------------------------------------------------


def test_waits_are_those_of_active_sessions_for_others(
    store: PostgresStore, monitor: Monitor, wait_until: Callable[..., None]
) -> None:
    """A lock is a wait; sleep is active and no wait; an idle session is not there at all."""
    idle = PostgresStore(url_of(store).replace("+psycopg", ""))
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


def test_a_quiet_server_has_no_wait_events(monitor: Monitor) -> None:
    """Our own looks are not there; the frame keeps its columns."""
    found = monitor.wait_events(live_seconds=0.05, samples=2)
    own = found[found["wait_event"].isin(["ClientRead", "relation"])]

    assert own.empty
    assert found.attrs["status"] in ("no_data", "ok")
    assert list(found.columns)[:3] == ["wait_type", "wait_event", "is_waiting"]


# -- limits ---------------------------------------------------------------------------------------


def test_limits_of_databases_and_roles_are_compared_too(
    store: PostgresStore, monitor: Monitor
) -> None:
    """They can be reached long before the server's."""
    name, role = store.url.database, f"test_limited_{time.time_ns()}"
    store.execute(sa.text(f"ALTER DATABASE {name} CONNECTION LIMIT 5"))
    store.execute(sa.text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 7"))
    limits = monitor.session_limits()
    store.execute(sa.text(f"DROP ROLE {role}"))
    found = {(row["scope"], row["name"]): row for row in limits.to_dict("records")}

    assert found["database", name]["most"] == 5
    assert found["database", name]["sessions"] >= 1
    assert found["database", name]["percent"] == 20 * found["database", name]["sessions"]
    assert found["role", role]["sessions"] == 0
    assert found["server", ""]["most"] == monitor.session_limit().value
    assert limits["percent"].is_monotonic_decreasing


def test_sessions_are_counted_by_user(store: PostgresStore, monitor: Monitor) -> None:
    """Next to application, state and database."""
    store.ping()
    frame = monitor.sessions("postgres")
    mine = frame[frame["database_name"] == store.url.database]

    assert store.url.username in mine["user_name"].tolist()


# -- MongoDB --------------------------------------------------------------------------------------


def operation(**changed: Any) -> dict[str, Any]:
    """One entry of $currentOp of MongoDB 7, shortened."""
    return {
        "type": "op",
        "client": "127.0.0.1:51234",
        "appName": "shop",
        "active": True,
        "effectiveUsers": [{"user": "ana", "db": "admin"}],
        "microsecs_running": 2_500_000,
        "waitingForLock": False,
        **changed,
    }


def test_connections_of_mongodb_are_counted_by_what_they_do() -> None:
    """Threads of the server have no client; idle connections are no running operations."""
    server = operation()
    del server["client"]
    rows = mongodb_connections(
        [
            operation(),
            operation(microsecs_running=4_000_000, waitingForLock=True),
            operation(active=False),
            operation(appName="fwdb-monitor"),
            server,
        ]
    )

    assert [(r["application"], r["user_name"], r["state"], r["sessions"]) for r in rows] == [
        ("shop", "ana", "active", 2),
        ("shop", "ana", "idle", 1),
    ]
    assert rows[0]["oldest_seconds"] == 4.0
    assert rows[0]["waiting"] == 1
    assert rows[0]["blocked"] is None
    assert rows[1]["oldest_seconds"] is None


def test_secantusdb_tells_the_number_of_connections_only(db: Database) -> None:
    """Its currentOp shows idle ones as active."""
    if not db.mongodb.is_secantus:
        pytest.skip("the MongoDB of this run is not SecantusDB")
    (row,), hidden = mongodb_sessions(db.mongodb)

    assert (row["state"], row["waiting"], row["oldest_seconds"]) == ("open", None, None)
    assert hidden == ""


def test_a_mongodb_user_without_the_privilege_is_told_what_helps(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of connections is shown all the same."""

    monkeypatch.setattr(MongoStore, "is_secantus", False)
    monkeypatch.setattr(MongoStore, "errors", refuse_errors(db.mongodb))
    (row,), hidden = mongodb_sessions(db.mongodb)

    assert row["state"] == "open"
    assert "clusterMonitor" in hidden


def refuse_errors(store: MongoStore) -> Callable[[MongoStore], Any]:
    """`MongoStore.errors` whose first block is refused, as a server without the right does."""
    original, turns = MongoStore.errors, iter([True])

    @contextmanager
    def errors(self: MongoStore) -> Iterator[None]:
        if next(turns, False):
            raise PermissionDenied("mongodb: the user may not do this (code 13).")
        with original(self):
            yield

    return errors


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
