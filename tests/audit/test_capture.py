"""Every change of a captured table is in the trail, however it is made."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url
from support.capture import Captured, thing
from support.embedded import FULL, kill, pid, shared  # noqa: F401
from support.sql import do
from support.urls import url_of

from fwdb import embedded, migrating
from fwdb.stores import PostgresStore


@pytest.fixture(scope="module", params=["newest", "15"])
def shared_store(request, servers, template) -> Iterator[PostgresStore]:
    """A migrated database in the built-in PostgreSQL and in PostgreSQL 15."""
    name = f"test_capture_{uuid.uuid4().hex[:8]}"
    newest = request.param == "newest"
    server = servers.postgres if newest else request.getfixturevalue("postgres15")
    admin = PostgresStore(server)
    do(admin, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if newest else ""))
    store = PostgresStore(make_url(server).set(database=name).render_as_string(False))
    migrating.migrate(store, None)
    yield store
    store.close()
    do(admin, f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture
def captured(shared_store) -> Captured:
    """shop.things, captured, and an empty trail."""
    found = Captured(shared_store)
    found.capture()
    return found


def test_each_way_to_write_is_recorded(captured):
    """INSERT of many rows, UPDATE, DELETE, COPY, both ends of ON CONFLICT, WITH, and MERGE."""
    captured.run("INSERT INTO shop.things (name) SELECT 'n' || g FROM generate_series(1, 3) AS g")
    captured.run("UPDATE shop.things SET price = 1")
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    with captured.session() as connection:
        with connection.cursor().copy("COPY shop.things (id, name) FROM STDIN") as copy:
            copy.write_row((other, "copied"))
        upsert = (
            "INSERT INTO shop.things (id, name) VALUES (%s, %s)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        )
        connection.execute(upsert, (one, "first"))
        connection.execute(upsert, (one, "one"))
        none = "INSERT INTO shop.things (id) VALUES (%s) ON CONFLICT DO NOTHING"
        connection.execute(none, (one,))
    captured.run(
        "WITH gone AS (DELETE FROM shop.things WHERE name LIKE 'n%' RETURNING id)"
        " INSERT INTO shop.things (name) SELECT 'after' FROM gone"
    )
    captured.run(
        "MERGE INTO shop.things AS t"
        " USING (SELECT unnest(ARRAY[CAST(:one AS uuid), :other, gen_random_uuid()])) AS s (id)"
        " ON t.id = s.id WHEN MATCHED AND t.name = 'one' THEN UPDATE SET name = 'merged'"
        " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, 'new')",
        one=one,
        other=other,
    )
    done = captured.actions()

    assert done[:6] == ["CREATE"] * 3 + ["UPDATE"] * 3
    assert done[6:9] == ["CREATE", "CREATE", "UPDATE"]
    assert sorted(done[9:15]) == ["CREATE"] * 3 + ["DELETE"] * 3
    assert sorted(done[15:]) == ["CREATE", "DELETE", "UPDATE"]
    assert captured.replayed() == captured.table()


ORDERS = {
    "neither a change of nothing nor of ignored columns only is one": (
        """UPDATE shop.things SET name = name;
        UPDATE shop.things SET updated_at = now()""", []),
    "session_replication_role skips usual triggers; these are ENABLE ALWAYS": (
        """SET session_replication_role = replica;
        INSERT INTO shop.things (name) VALUES ('hidden?');
        TRUNCATE shop.things""", ["CREATE", "DELETE", "DELETE"]),
    "what is rolled back leaves nothing, a savepoint neither": (
        """BEGIN;
        INSERT INTO shop.things (name) VALUES ('kept');
        SAVEPOINT s;
        UPDATE shop.things SET name = 'lost';
        ROLLBACK TO s;
        COMMIT;
        BEGIN;
        DELETE FROM shop.things;
        ROLLBACK""", ["CREATE"]),
    "a trigger that changes the new row again: its change comes after the creation": (
        """CREATE FUNCTION shop.again() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
            UPDATE shop.things SET price = 2 WHERE id = NEW.id; RETURN NULL; END';
        CREATE TRIGGER "0_first" AFTER INSERT ON shop.things
            FOR EACH ROW EXECUTE FUNCTION shop.again();
        INSERT INTO shop.things (name) VALUES ('b')""", ["CREATE", "UPDATE"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_only_what_changed_is_recorded_in_its_order(captured, name):
    """Beside the creation of one row before."""
    statements, actions = ORDERS[name]
    thing(captured)
    with captured.session() as connection:
        for statement in statements.split(";\n"):
            connection.execute(statement)

    assert captured.actions() == ["CREATE", *actions]
    assert not actions or captured.replayed() == captured.table()


def test_values_are_kept_as_they_were_written(captured):
    """What differs on both sides, to the last digit; null as JSON null, times in UTC."""
    id = thing(captured, price="1.1", tags='{"a": 1.0}')
    with captured.session() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
        for values in (
            "price = NULL, name = 'b', updated_at = '2026-01-01Z'",
            "price = 1.1",
            "price = 1.10",  # equal to 1.1 for numeric, and so is jsonb
            """tags = '{"a": 1.00}'""",
            "at = '2026-01-01T00:00Z'",
            "at = 'infinity'",
        ):
            connection.execute(f"UPDATE shop.things SET {values}")
    _, first, *others = captured.trail()
    shown = captured.run(
        "SELECT new_values ->> 'price', new_values ->> 'tags' FROM audit.audit_logs"
        " ORDER BY created_at"
    )

    assert first[:3] == (
        "UPDATE",
        {"name": "a", "price": 1.1, "updated_at": None},
        {"name": "b", "price": None, "updated_at": "2026-01-01T00:00:00+00:00"},
    )
    assert shown[3:5] == [("1.10", None), (None, '{"a": 1.00}')]
    assert [row[2] for row in others[3:]] == [
        {"at": "2026-01-01T00:00:00+00:00"},
        {"at": "infinity"},
    ]
    assert captured.run("SELECT DISTINCT entity_id FROM audit.audit_logs") == [(uuid.UUID(id),)]


def test_ends_of_a_row_are_told_apart(captured):
    """A soft delete is a DELETE with a difference, a restore an UPDATE; another key is both."""
    old, new = thing(captured), str(uuid.uuid4())
    captured.run("UPDATE shop.things SET deleted_at = now()")
    captured.run("UPDATE shop.things SET deleted_at = NULL")
    # Statement triggers with a join lose it entirely.
    captured.run("UPDATE shop.things SET id = CAST(:new AS uuid), name = 'b'", new=new)
    captured.run("DELETE FROM shop.things")
    soft, restored, removed, made, gone = captured.trail()[1:]

    note = f"primary key changed from {old} to {new}"
    assert (soft[0], soft[1]) == ("DELETE", {"deleted_at": None})
    assert (restored[0], restored[2]) == ("UPDATE", {"deleted_at": None})
    assert (removed[0], removed[1]["id"], removed[2], removed[3]) == ("DELETE", old, None, note)
    assert (made[0], made[1], made[2]["id"], made[3]) == ("CREATE", None, new, note)
    assert (gone[0], gone[1]["name"], gone[2]) == ("DELETE", "b", None)
    assert captured.replayed() == {}


def test_cascades_are_recorded(captured):
    captured.run(
        "CREATE TABLE shop.parts (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
        " thing uuid REFERENCES shop.things ON DELETE CASCADE ON UPDATE CASCADE)"
    )
    captured.capture("shop.parts", entity_type="Part")
    id = thing(captured)
    captured.run("INSERT INTO shop.parts (thing) VALUES (CAST(:id AS uuid))", id=id)
    captured.run("UPDATE shop.things SET id = gen_random_uuid()")
    captured.run("DELETE FROM shop.things")

    assert captured.actions("Part") == ["CREATE", "UPDATE", "DELETE"]
    assert captured.replayed("Part") == {}


def test_truncate_records_each_row(captured):
    """Whole rows, so that they can be brought back; refused where some may be hidden from it."""
    ids = {thing(captured, name) for name in "ab"}
    with captured.session() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1 FROM shop.things")
        ids.add(thing(captured, "c"))  # its snapshot does not show it
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="read committed"):
            connection.execute("TRUNCATE shop.things")
    assert captured.actions() == ["CREATE"] * 3
    captured.run("TRUNCATE shop.things")
    gone = captured.trail()[3:]

    assert [(row[0], row[2], row[3]) for row in gone] == [("DELETE", None, "truncated")] * 3
    assert {row[1]["id"] for row in gone} == ids
    assert captured.replayed() == {}


def test_partitions_are_captured_however_they_are_reached(captured):
    """Through the parent, straight, attached later, moved between, and truncated."""
    captured.run(
        "CREATE TABLE shop.split (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text)"
        " PARTITION BY RANGE (id)"
    )
    half = "'80000000-0000-0000-0000-000000000000'"
    captured.run(
        f"CREATE TABLE shop.low PARTITION OF shop.split FOR VALUES FROM (MINVALUE) TO ({half})"
    )
    captured.capture("shop.split", entity_type="Split")
    captured.run("CREATE TABLE shop.high (name text, id uuid NOT NULL PRIMARY KEY)")
    captured.run(
        f"ALTER TABLE shop.split ATTACH PARTITION shop.high FOR VALUES FROM ({half}) TO (MAXVALUE)"
    )
    low, high = "00000000-0000-0000-0000-000000000001", "f0000000-0000-0000-0000-000000000001"
    captured.run(f"INSERT INTO shop.low (id, name) VALUES ('{low}', 'straight')")
    captured.run(f"INSERT INTO shop.high (id, name) VALUES ('{high}', 'attached later')")
    with captured.session() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"UPDATE shop.high SET name = 'b' WHERE id = '{high}'")
    captured.run(f"UPDATE shop.split SET id = '{high[:-1]}2' WHERE id = '{low}'")
    assert captured.actions("Split") == ["CREATE", "CREATE", "UPDATE", "DELETE", "CREATE"]
    assert captured.replayed("Split") == captured.table("shop.split")
    captured.run("TRUNCATE shop.split")
    assert captured.actions("Split")[5:] == ["DELETE", "DELETE"]
    # The partition that came later gets its own trigger for TRUNCATE by the next migration.
    captured.run("SELECT audit.recapture()")
    captured.run("INSERT INTO shop.split (name) SELECT 'x' FROM generate_series(1, 10)")
    captured.run("TRUNCATE shop.high")
    captured.run("TRUNCATE shop.split")

    assert captured.replayed("Split") == {}


def test_who_it_was_is_kept_for_one_transaction(captured):
    """The claimed actor beside what the server knows; the next transaction has none."""
    actor = str(uuid.uuid4())
    captured.run(
        "INSERT INTO shared.users (id, email, password_hash, first_name, last_name)"
        f" VALUES ('{actor}', '{actor}@example.com', 'x', 'A', 'B')"
    )
    claim = f'{{"user_id": "{actor}", "ip_address": "192.0.2.7", "reason": "because"}}'
    with captured.session() as connection:
        connection.execute("SET application_name = 'shop'")
        connection.execute("BEGIN")
        connection.execute("SELECT set_config('fwdb.actor', %s, true)", (claim,))
        connection.execute("INSERT INTO shop.things (name) VALUES ('a')")
        xid = connection.execute("SELECT CAST(pg_current_xact_id() AS text)").fetchone()
        connection.execute("COMMIT")
        connection.execute("UPDATE shop.things SET name = 'b'")
    facts = captured.run(
        "SELECT CAST(user_id AS text), ip_address, user_agent, reason, db_user, application_name,"
        " client_address, origin FROM audit.audit_logs WHERE entity_type = 'Thing'"
        " ORDER BY created_at"
    )
    server = (captured.store.url.username, "shop", "127.0.0.1", "trigger")

    assert facts[0] == (actor, "192.0.2.7", None, "because", *server)
    assert facts[1] == (None, None, None, None, *server)
    assert xid is not None
    assert captured.run(
        "SELECT CAST(transaction_id AS text) FROM audit.audit_logs"
        " WHERE entity_type = 'Thing' ORDER BY created_at LIMIT 1"
    ) == [xid]


def test_columns_may_change_while_the_triggers_do_not(captured):
    """Writers go on, nothing is lost, and the next migration fits the triggers and says so."""
    id = thing(captured, price=1)
    with captured.session() as connection:
        connection.execute("UPDATE shop.things SET name = 'b'")  # plans are made by now
        connection.execute("ALTER TABLE shop.things ADD COLUMN size int DEFAULT 3")
        connection.execute("UPDATE shop.things SET size = 4")
        connection.execute("ALTER TABLE shop.things DROP COLUMN tags")
        connection.execute("ALTER TABLE shop.things ALTER COLUMN price TYPE text")
        connection.execute("ALTER TABLE shop.things RENAME COLUMN name TO title")
        connection.execute("UPDATE shop.things SET title = 'c', price = '2'")
        connection.execute("INSERT INTO shop.things (title) VALUES ('d')")
        connection.execute("ALTER TABLE shop.things RENAME COLUMN id TO key")
        connection.execute("UPDATE shop.things SET title = 'e' WHERE title = 'c'")
        connection.execute("ALTER TABLE shop.things RENAME COLUMN key TO id")
        connection.execute("DELETE FROM shop.things WHERE title = 'd'")
    changed = [(row[0], row[2]) for row in captured.trail()]
    said = migrating.drift(captured.store, None)
    fitted = migrating.migrate(captured.store, None)

    actions = ["CREATE", "UPDATE", "UPDATE", "UPDATE", "CREATE", "UPDATE", "DELETE"]
    assert [action for action, _ in changed] == actions
    assert changed[2][1] == {"size": 4}
    assert changed[3][1] == {"title": "c", "price": "2", "size": 4}
    assert changed[5][1]["title"] == "e"
    assert captured.run(
        "SELECT DISTINCT entity_id FROM audit.audit_logs WHERE action = 'UPDATE'"
    ) == [(uuid.UUID(id),)]
    assert "the capture of shop.things does not fit" in said[0].sentence
    assert [c.sentence for c in fitted] == ["fitted the capture of shop.things to its columns."]
    assert migrating.migrate(captured.store, None) == []
    assert migrating.drift(captured.store, None) == []
    captured.run("UPDATE shop.things SET size = 5")
    assert captured.trail()[-1][:3] == ("UPDATE", {"size": 4}, {"size": 5})


def test_a_table_that_is_renamed_or_dropped_is_followed(captured):
    thing(captured)
    captured.run("ALTER TABLE shop.things RENAME TO items")
    captured.run("UPDATE shop.items SET name = 'b'")
    captured.run("SELECT audit.recapture()")
    assert captured.run("SELECT relation FROM audit.captured WHERE entity_type = 'Thing'") == [
        ("shop.items",)
    ]
    captured.run("DROP TABLE shop.items")
    captured.run("SELECT audit.recapture()")

    assert captured.run("SELECT 1 FROM audit.captured WHERE entity_type = 'Thing'") == []
    assert captured.actions() == ["CREATE", "UPDATE"]


@pytest.mark.parametrize("how", ["omit", "mask", "fingerprint"])
def test_redaction_reaches_old_and_new_values_of_every_action(captured, how):
    """Before anything is written; also after the column has another name."""
    captured.run("ALTER TABLE shop.things ADD COLUMN token text")
    captured.capture(redact={"token": how})
    thing(captured, token="s3cret-1")
    if how == "omit":  # alone it is no change, as if it were not there
        captured.run("UPDATE shop.things SET token = 's3cret-0'")
    captured.run("UPDATE shop.things SET token = 's3cret-2', name = 'b'")
    captured.run("UPDATE shop.things SET token = 's3cret-1', name = 'c'")
    captured.run("UPDATE shop.things SET id = gen_random_uuid()")
    first = [(old or {}, new or {}) for _, old, new, _ in captured.trail()]
    with captured.session() as connection:
        connection.execute("ALTER TABLE shop.things RENAME COLUMN token TO word")
        connection.execute("UPDATE shop.things SET word = 's3cret-3', name = 'd'")
        connection.execute("SELECT audit.recapture()")
        connection.execute("UPDATE shop.things SET word = 's3cret-4', name = 'e'")
        connection.execute("UPDATE shop.things SET deleted_at = now()")
        connection.execute("TRUNCATE shop.things")

    assert len(captured.trail()) == 9
    assert (
        captured.run("SELECT 1 FROM audit.audit_logs AS t WHERE CAST(t AS text) LIKE '%s3cret%'")
        == []
    )
    assert captured.run("SELECT redact FROM audit.captured WHERE entity_type = 'Thing'") == [
        ({"word": how},)
    ]
    tokens = [(old.get("token"), new.get("token")) for old, new in first]
    if how == "omit":
        assert set(tokens) == {(None, None)}
    elif how == "mask":
        hidden, changed = "[redacted]", "[redacted: changed]"
        assert tokens == [(None, hidden), (hidden, changed), (hidden, changed),
                          (hidden, None), (None, hidden)]  # fmt: skip
    else:
        one, two = tokens[0][1], tokens[1][1]
        assert one.startswith("[fingerprint ")
        assert one != two
        assert tokens == [(None, one), (one, two), (two, one), (one, None), (None, one)]


def test_virtual_columns_are_left_out(captured):
    """Triggers see null in them, whatever they are."""
    if captured.store.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    captured.run("ALTER TABLE shop.things ADD COLUMN twice numeric GENERATED ALWAYS AS (price * 2)")
    captured.run(
        "ALTER TABLE shop.things ADD COLUMN half numeric GENERATED ALWAYS AS (price / 2) STORED"
    )
    captured.capture()
    thing(captured, price=4)
    captured.run("UPDATE shop.things SET price = 6")

    assert "twice" not in captured.trail()[0][2]
    assert captured.trail()[1][2] == {"price": 6, "half": 3}


# -- whatever is done, in whatever order ---------------------------------------------------------

SESSIONS = 2
# Each session has rows of its own, so that none waits for another.
IDS = [[str(uuid.UUID(int=16 * s + n)) for n in range(3)] for s in range(SESSIONS)]

WORK = {
    "insert": "INSERT INTO shop.things (id, name) VALUES ({one}, {word}) ON CONFLICT DO NOTHING",
    "upsert": "INSERT INTO shop.things (id, name) VALUES ({one}, {word})"
    " ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = things.price + 1",
    "update": "UPDATE shop.things SET name = {word}, price = 1 WHERE id IN ({one}, {other})",
    "nothing": "UPDATE shop.things SET name = name, updated_at = now() WHERE id = {one}",
    "soft": "UPDATE shop.things SET deleted_at = now() WHERE id = {one}",
    "restore": "UPDATE shop.things SET deleted_at = NULL WHERE id = {one}",
    "delete": "DELETE FROM shop.things WHERE id = {one}",
    "rename": "UPDATE shop.things SET id = {other} WHERE id = {one}"
    " AND NOT EXISTS (SELECT FROM shop.things WHERE id = {other})",
}
STEPS = [*WORK, *WORK, "truncate", "begin", "commit", "rollback", "savepoint", "back", "look"]

step = st.tuples(
    st.sampled_from(STEPS),
    st.integers(0, SESSIONS - 1),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["a", "b", "ü"]),
)


def in_transaction(session: psycopg.Connection) -> bool:
    return session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


@settings(
    max_examples=100 if FULL else 15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(steps=st.lists(step, max_size=30))
def test_the_trail_replayed_gives_the_table(shared_store, steps):
    captured = Captured(shared_store)
    captured.capture(ignore=[])
    with ExitStack() as stack:
        sessions = [stack.enter_context(captured.session()) for _ in range(SESSIONS)]
        saved = [False] * SESSIONS
        for kind, number, one, other, word in steps:
            run, ids = sessions[number].execute, IDS[number]
            opened = [in_transaction(session) for session in sessions]
            if kind in WORK:
                named = {"one": ids[one], "other": ids[other], "word": word}
                run(WORK[kind].format(**{k: f"'{v}'" for k, v in named.items()}))
            elif kind == "truncate" and not any(opened):
                run("TRUNCATE shop.things")
            elif kind == "begin" and not opened[number]:
                run("BEGIN")
            elif kind in {"commit", "rollback"} and opened[number]:
                run(kind)
                saved[number] = False
            elif kind == "savepoint" and opened[number]:
                run("SAVEPOINT here")
                saved[number] = True
            elif kind == "back" and saved[number]:
                run("ROLLBACK TO here")
            elif kind == "look":
                assert captured.replayed() == captured.table()
        for session in filter(in_transaction, sessions):
            session.execute("COMMIT")

    assert captured.replayed() == captured.table()


# -- kill -9 of the server -----------------------------------------------------------------------

BEFORE_KILL = (60, 150, 300)  # changes confirmed; the kill meets other moments


@pytest.mark.heavy
def test_no_change_is_lost_or_doubled(shared, wait_until):  # noqa: F811
    """Writers note what was confirmed; table, trail and notes agree after each restart."""
    confirmed: set[str] = set()
    for number in range(20 if FULL else 2):
        store = started(shared)
        if number == 0:
            migrating.migrate(store, None)
            captured = Captured(store)
            captured.capture()
        noted = until_killed(shared, store, number, wait_until)
        store.close()
        confirmed |= noted
        store = started(shared)
        check(Captured(store, emptied=False), confirmed)
        store.close()


def started(home) -> PostgresStore:
    servers = embedded.up(home, stores=("postgres",), owner_pid=os.getpid())
    assert servers.postgres
    return PostgresStore(servers.postgres.superuser)


def check(captured: Captured, confirmed: set[str]) -> None:
    """What was confirmed is there, and each row has exactly the changes that made it."""
    table = captured.table()
    assert confirmed <= table.keys()
    assert captured.replayed() == table
    assert captured.run(
        "SELECT count(*), count(DISTINCT id) FROM audit.audit_logs WHERE entity_type = 'Thing'"
    ) == [(2 * len(table), 2 * len(table))]


def until_killed(home, store: PostgresStore, number: int, wait_until) -> set[str]:
    """Ids whose insert and update were confirmed before the server was killed."""
    url = url_of(store)
    stop, noted = threading.Event(), set()

    def write() -> None:
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(url, autocommit=True) as connection,
        ):
            while not stop.is_set():
                id = str(uuid.uuid4())
                with connection.transaction():
                    connection.execute("INSERT INTO shop.things (id, price) VALUES (%s, 0)", (id,))
                    connection.execute("UPDATE shop.things SET price = 1 WHERE id = %s", (id,))
                noted.add(id)

    enough = BEFORE_KILL[number % len(BEFORE_KILL)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(write)
        try:
            wait_until(lambda: len(noted) >= enough, timeout=60)
        finally:
            kill(pid(home, "postgres"))
            stop.set()
    return noted
