"""Who may touch the trail, which tables can be captured, and the Alembic operations."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from support.capture import Captured, adopted, thing
from support.sql import ask, do, value

from fwdb import errors, migrating
from fwdb.migrating.capture import AuditTable, UnauditTable
from fwdb.stores import PostgresStore, without_capture

REFUSED = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.WrongObjectType,
)


@pytest.fixture
def captured(db) -> Captured:
    """shop.things, and the database of the seed."""
    found = Captured(db.postgres)
    found.capture(redact={"tags": "fingerprint"})
    return found


@pytest.fixture
def app(captured) -> Iterator[str]:
    """A role that has what the built-in servers give to the application."""
    role = f"app_{uuid.uuid4().hex[:8]}"
    for right in (
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f"GRANT USAGE ON SCHEMA audit, shared, shop TO {role}",
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
        f"ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO {role}",
        f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {role}",
        f"GRANT TEMPORARY ON DATABASE {captured.store.url.database} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON shop.things, shared.users TO {role}",
    ):
        captured.run(right)
    # Everything is made again under these default privileges.
    migrating.downgrade(captured.store, "0006")
    migrating.migrate(captured.store, None)
    captured.capture(redact={"tags": "fingerprint"})
    yield role
    captured.run(f"DROP OWNED BY {role}")
    captured.run(f"DROP ROLE {role}")


def test_the_application_adds_to_the_trail_only_by_what_it_does(captured, app):
    """It reads the trail; it can neither write, change, remove, switch off nor forge."""
    refused = ("INSERT INTO {} DEFAULT VALUES", "UPDATE {} SET metadata = 'x'", "DELETE FROM {}",
               "TRUNCATE {}")  # fmt: skip
    (month,) = captured.run(
        "SELECT CAST(relid AS text) FROM pg_partition_tree('audit.audit_logs') WHERE isleaf LIMIT 1"
    )[0]
    relations = ("audit.audit_logs", month)
    with captured.session(app) as connection:
        connection.execute("INSERT INTO shop.things (name, tags) VALUES ('a', '[1]')")
        # Neither a search_path nor a table of a name that the trigger uses changes anything.
        connection.execute("CREATE TEMP TABLE audit_logs (x int)")
        connection.execute("CREATE TEMP TABLE pg_attribute (x int)")
        connection.execute("SET search_path = pg_temp, shop")
        connection.execute("UPDATE things SET name = 'b'")
        connection.execute("RESET search_path")
        assert connection.execute("SELECT count(*) FROM audit.audit_logs").fetchone() == (2,)
        for statement in [r.format(name) for r in refused for name in relations] + [
            "SELECT * FROM audit.fingerprint_key",
            "SELECT audit.fingerprint('x')",
            "SELECT nextval('audit.change_number')",
            "DELETE FROM audit.captured",
            "SELECT audit.capture('shop.things')",
            "SELECT audit.uncapture('shop.things')",
            "SET session_replication_role = replica",
            'ALTER TABLE shop.things DISABLE TRIGGER "00_fwdb_audit"',
            "CREATE TEMP TABLE mine (id uuid, name text);"
            " CREATE TRIGGER forged AFTER INSERT ON mine FOR EACH ROW"
            " EXECUTE FUNCTION audit.capture_shop_things()",
        ]:
            with pytest.raises(REFUSED):
                connection.execute(statement)

    url = captured.store.url.set(username=app, password="x")
    other = PostgresStore(url.render_as_string(hide_password=False))
    with (
        pytest.raises(errors.PermissionDenied, match="connect as the owner"),
        without_capture(other, ["shop.things"]),
    ):
        pass
    other.close()
    assert captured.run("SELECT DISTINCT db_user FROM audit.audit_logs") == [(app,)]
    assert captured.actions() == ["CREATE", "UPDATE"]


@pytest.mark.parametrize(
    ("made", "table", "options", "said"),
    [
        (
            "TABLE shop.bad (id int PRIMARY KEY)",
            "shop.bad",
            {},
            "no primary key of one uuid column",
        ),
        ("TABLE shop.bad (id uuid)", "shop.bad", {}, "no primary key of one uuid column"),
        ("TABLE shop.bad (a uuid, b uuid, PRIMARY KEY (a, b))", "shop.bad", {}, "of one uuid col"),
        ("VIEW shop.bad AS SELECT 1 AS x", "shop.bad", {}, "shop.bad is not a table"),
        (None, "audit.audit_logs", {}, "does not record itself"),
        (
            None,
            "shop.things",
            {"redact": {"nmae": "mask"}},
            "no column nmae to redact or to ignore",
        ),
        (None, "shop.things", {"ignore": ["nmae"]}, "has no column nmae to redact or to ignore"),
        (None, "shop.things", {"redact": {"name": "hide"}}, "omit, mask or fingerprint"),
        (None, "shop.things", {"redact": {"id": "mask"}}, "key of shop.things cannot be redacted"),
    ],
)
def test_what_cannot_be_captured_is_refused(captured, made, table, options, said):
    """In one sentence, and capture stays as it was."""
    if made:
        captured.run(f"CREATE {made}")
    before = captured.run("SELECT * FROM audit.captured ORDER BY relation")
    with pytest.raises(errors.InvalidData, match=said):
        captured.capture(table, **options)

    assert captured.run("SELECT * FROM audit.captured ORDER BY relation") == before


def test_no_hash_of_a_password_is_in_the_trail(db):
    """Neither on creation, change nor deletion of a user, in any column."""
    user = db.users.create(
        email="new@example.com", password_hash="$2b$12$abc", first_name="A", last_name="B"
    )
    db.users.update(user.id, password_hash="$2b$12$def")
    db.users.delete(user.id)
    question = (
        "SELECT action, CAST(t AS text) AS text FROM audit.audit_logs AS t"
        " WHERE entity_id = CAST(:id AS uuid) ORDER BY created_at, id"
    )
    rows = ask(db.postgres, question, id=user.id)

    assert [row["action"] for row in rows] == ["CREATE", "UPDATE", "DELETE"]
    assert not any("$2b" in row["text"] for row in rows)
    assert "[redacted: changed]" in rows[1]["text"]


def test_history_is_loaded_without_capture(captured):
    """In one transaction, after which everything is recorded again."""
    with without_capture(captured.store, ["shop.things", "shop.unknown"]):
        thing(captured, "loaded")
    with pytest.raises(ZeroDivisionError), without_capture(captured.store, ["shop.things"]):
        _ = 1 / 0
    thing(captured, "written")

    assert [row[2]["name"] for row in captured.trail()] == ["written"]
    assert captured.run(
        "SELECT DISTINCT tgenabled FROM pg_trigger"
        " WHERE tgrelid = CAST('shop.things' AS regclass) AND tgname LIKE '00%'"
    ) == [("A",)]


def test_the_operations_of_alembic(captured):
    """`op.audit_table` with a list, changed later, and its reverse."""
    captured.run("CREATE TABLE shop.boxes (id uuid PRIMARY KEY, code text, seen int)")
    with captured.store.transaction() as connection:
        op = Operations(MigrationContext.configure(connection))
        op.audit_table("shop.boxes", redact=["code"], ignore=["seen"])
        op.audit_table("shop.boxes", ignore=[])
        op.add_column("boxes", sa.Column("size", sa.Integer), schema="shop")
        op.audit_table("shop.boxes")
        found = captured.run(
            "SELECT entity_type, redact, ignore, columns FROM audit.captured"
            " WHERE relation = 'shop.boxes'"
        )
        with pytest.raises(errors.MigrationError, match="does not record itself"):
            op.audit_table("audit.captured")
        op.unaudit_table("shop.boxes")
        op.unaudit_table("shared.users")
        op.audit_table("shared.users")
        users = captured.run(
            "SELECT entity_type, redact, ignore FROM audit.captured WHERE relation = 'shared.users'"
        )

    columns = ["id", "code", "seen", "size"]
    assert found == [("Boxe", {"code": "mask"}, [], columns)]
    assert users == [("User", {"password_hash": "mask"}, ["updated_at"])]
    assert captured.run("SELECT 1 FROM audit.captured WHERE relation = 'shop.boxes'") == []
    step = AuditTable("shop.boxes", entity_type=None, redact=None, ignore=None)
    assert isinstance(step.reverse(), UnauditTable)


@pytest.mark.parametrize("server", ["newest", "15"])
def test_an_adopted_trail_with_enum_and_foreign_key(request, server, postgres_database):
    """An actor whom nobody knows must not stop a write."""
    admin = request.getfixturevalue("postgres15") if server == "15" else None
    store = adopted(postgres_database(admin))
    changes = migrating.migrate(store, None)
    (known,) = ask(store, "SELECT CAST(id AS text) AS id FROM shared.users LIMIT 1")
    for actor in (known["id"], str(uuid.uuid4())):
        with store.transaction():
            value(store, f"""SELECT set_config('fwdb.actor', '{{"user_id": "{actor}"}}', true)""")
            do(store, "UPDATE shared.users SET first_name = first_name || 'x'")
    found = ask(
        store,
        "SELECT DISTINCT CAST(user_id AS text) AS id, CAST(action AS text) AS action"
        " FROM audit.audit_logs WHERE origin = 'trigger' ORDER BY 1",
    )
    store.close()

    captured = [c.name for c in changes if c.kind == "capture"]
    assert captured == ["shared.users", "avatar.avatars", "catalog.catalog_items"]
    known_or_not = [(known["id"], "UPDATE"), (None, "UPDATE")]
    assert [(row["id"], row["action"]) for row in found] == known_or_not


def test_an_adopted_table_that_cannot_be_captured_is_left_and_said(postgres_database):
    """The others are captured, and the migration goes on."""
    store = adopted(postgres_database())
    key = value(
        store,
        "SELECT quote_ident(conname) FROM pg_constraint WHERE contype = 'p'"
        " AND conrelid = CAST('avatar.avatars' AS regclass)",
    )
    do(store, f"ALTER TABLE avatar.avatars DROP CONSTRAINT {key}")
    said = [c.sentence for c in migrating.migrate(store, None) if c.kind == "capture"]
    store.close()

    assert said[1] == (
        "left avatar.avatars without capture: avatar.avatars has no primary key of one uuid "
        "column, by which the trail names rows."
    )
    assert len(said) == 3


def test_the_sql_for_psql_captures_too():
    """Offline there is no table to look at: the functions in the database look."""
    written = migrating.offline_sql()

    assert "SELECT audit.capture('shared.users', entity_type => 'User'" in written
    assert """redact => CAST('{"password_hash": "mask"}' AS jsonb)""" in written
