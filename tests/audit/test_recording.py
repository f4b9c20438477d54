"""Recording beside triggers, and by a role that may only add through a function."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from support.capture import adopted
from support.sql import ask, do, value

from fwdb import config, errors, migrating
from fwdb.audit import Audit
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

ANA, BOB = str(uuid.uuid4()), str(uuid.uuid4())
_ROWS = sa.text(
    "SELECT CAST(id AS text) AS id, CAST(user_id AS text) AS user_id, action,"
    " origin, reason, metadata, ip_address, db_user, new_values,"
    " transaction_id = CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own"
    " FROM audit.audit_logs WHERE entity_id = CAST(:id AS uuid) ORDER BY created_at, id"
)


@pytest.fixture(params=["own", "adopted"])
def store(request, postgres_database) -> Iterator[PostgresStore]:
    """A database of ours, and one of the service that was migrated: an enum, no months."""
    if request.param == "own":
        store = PostgresStore(postgres_database(template=request.getfixturevalue("template")))
    else:
        store = adopted(postgres_database())
        migrating.migrate(store, None)
    for id in (ANA, BOB):  # the service's table has a foreign key
        columns, values = "email, password_hash, first_name, last_name", "'-', 'A', 'B'"
        made = f"INSERT INTO shared.users (id, {columns}) VALUES (:id, :email, {values})"
        do(store, made, id=id, email=f"{id}@example.com")
    yield store
    store.close()


@pytest.fixture
def audit(store: PostgresStore) -> Audit:
    return Audit(store)


def rows(store: PostgresStore, id: str) -> list[dict[str, Any]]:
    """The rows of one entity, in the order of the changes."""
    return store.rows(_ROWS, id=id)


def trigger_writes(
    store: PostgresStore, id: str, action: str = "UPDATE", user_id: str | None = None
) -> str:
    """What capture leaves of a change; the id of the row."""
    question = (
        "INSERT INTO audit.audit_logs (user_id, entity_type, entity_id, action, new_values,"
        f" origin, created_at) VALUES (:user_id, 'CatalogItem', :id, '{action}',"
        ' \'{"price": 1, "type": "fabric"}\', \'trigger\', clock_timestamp()) RETURNING id'
    )
    written = ask(store, question, id=id, user_id=user_id)
    return str(written[0]["id"])


def test_a_row_says_what_the_server_knows(audit, store):
    """Beside the claimed actor stand the account and the transaction; the origin is no choice."""
    id = str(uuid.uuid4())
    with store.transaction():
        with audit.context(user_id=ANA, ip_address="192.0.2.7", reason="ticket 7"):
            written = audit.log_create("CatalogItem", id, {"price": 1}, metadata={"n": 1})
            other = audit.log_read("User", ANA, user_id=BOB)  # what is given wins
        (row,) = rows(store, id)
        assert row["own"]

    assert (written.user_id, written.ip_address) == (ANA, "192.0.2.7")
    assert (other.user_id, other.ip_address) == (BOB, "192.0.2.7")
    assert (row["origin"], row["reason"]) == ("application", "ticket 7")
    assert row["db_user"] == value(store, "SELECT session_user AS who")


def test_a_change_that_a_trigger_recorded_is_not_recorded_twice(audit, store):
    """The first row that names nobody gets what it lacks, keeps what it has, and comes back."""
    id = str(uuid.uuid4())
    update = ("CatalogItem", id, {"price": 0}, {"price": 1})
    with store.transaction():
        made = [trigger_writes(store, id) for _ in range(2)]
        first = audit.log_update(*update, user_id=ANA, metadata="sale")
        second = audit.log_update(*update, user_id=BOB)
        again = audit.log_update(*update, user_id=ANA)

    found = rows(store, id)
    assert [row["id"] for row in found] == made == [first.id, second.id]
    assert again.id in made
    assert [row["user_id"] for row in found] == [ANA, BOB]
    assert (found[0]["origin"], found[0]["metadata"]) == ("trigger", "sale")
    assert first.new_values == {"price": 1, "type": "fabric"}


def test_only_the_same_change_of_this_transaction_counts(audit, store):
    """Another action, another entity and a row of an earlier transaction are left as they are."""
    id, other = str(uuid.uuid4()), str(uuid.uuid4())
    trigger_writes(store, id)
    with store.transaction():
        trigger_writes(store, other)
        trigger_writes(store, id, "DELETE")
        audit.log_update("CatalogItem", id, {"price": 0}, {"price": 1}, user_id=ANA)

    found = [(row["action"], row["origin"], row["user_id"]) for row in rows(store, id)]
    assert found == [
        ("UPDATE", "trigger", None),
        ("DELETE", "trigger", None),
        ("UPDATE", "application", ANA),
    ]
    assert rows(store, other)[0]["user_id"] is None


def test_a_user_who_is_not_there_keeps_no_change_from_being_recorded(audit, store):
    """Except where the table of the service has a foreign key, which says so. An action that is
    none is refused, by the function that takes from anybody what the owner could write."""
    forged = "'FORGED', NULL, NULL, NULL, NULL, NULL, NULL, NULL"
    with pytest.raises(errors.FwdbError):
        ask(store, f"SELECT audit.record('User', gen_random_uuid(), {forged})")
    stranger, id = str(uuid.uuid4()), str(uuid.uuid4())
    if len(ask(store, "SELECT 1 FROM pg_constraint WHERE contype = 'f' AND conrelid ="
                              " CAST('audit.audit_logs' AS regclass)")):  # fmt: skip
        with pytest.raises(errors.ForeignKeyViolation):
            audit.log_read("User", id, user_id=stranger)
    else:
        assert audit.log_read("User", id, user_id=stranger).user_id == stranger


@pytest.fixture
def accounts(postgres_database: Callable[..., str]) -> Iterator[dict[str, PostgresStore]]:
    """Stores of an owner, an application and a reader, over a database that the owner migrated."""
    admin = PostgresStore(postgres_database())
    name, tag = admin.url.database, os.getpid()
    roles = {role: f"{role}_{tag}" for role in ("owner", "app", "reader")}
    for role in roles.values():
        do(admin, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    do(admin, f"ALTER DATABASE {name} OWNER TO {roles['owner']}")
    given = f"ALTER DEFAULT PRIVILEGES FOR ROLE {roles['owner']} GRANT "
    for grant in (
        f"USAGE ON SCHEMAS TO {roles['app']}, {roles['reader']}",
        f"SELECT, INSERT, UPDATE, DELETE ON TABLES TO {roles['app']}",
        f"SELECT ON TABLES TO {roles['reader']}",
    ):
        do(admin, given + grant)
    urls = {role: admin.url.set(username=name, password="x") for role, name in roles.items()}
    stores = {role: PostgresStore(url.render_as_string(False)) for role, url in urls.items()}
    migrating.migrate(stores["owner"], None)
    yield stores
    for store in stores.values():
        store.close()
    for role in roles.values():
        do(admin, f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")
        do(admin, f"DROP ROLE {role}")
    admin.close()


def test_the_application_adds_through_the_function_alone(accounts):
    """Its account stands in what it adds."""
    app, id = accounts["app"], str(uuid.uuid4())
    audit = Audit(app)
    audit.log_create("Avatar", id, {"name": "x"}, user_id=ANA)
    assert audit.log_read("Avatar", id).user_id is None

    found = rows(accounts["owner"], id)
    assert [row["action"] for row in found] == ["CREATE", "READ"]
    assert {row["db_user"] for row in found} == {app.url.username}
    # Who may not change data may not fill the trail either.
    with pytest.raises(errors.PermissionDenied):
        Audit(accounts["reader"]).log_read("Avatar", id)


def test_only_the_owner_writes_history(accounts, mongodb_database):
    """The refusal names the remedy and comes before anything is done."""
    mongodb = MongoStore(mongodb_database)
    with Database(accounts["app"], mongodb, settings=config.settings()) as database:
        seeder = database.seeder
        seeder.seed_all()
        for write in (
            lambda: seeder.seed_scale(1, audit_rows=10),
            lambda: seeder.clear_all(confirm=True),
        ):
            with pytest.raises(errors.PermissionDenied, match=r"connect with role='owner'"):
                write()
        assert (database.users.count(), database.designs.count()) == (3, 2)


def test_what_capture_recorded_is_completed(db):
    """A call beside a captured change adds no row; who and why get into that of the trigger."""
    item = db.catalog_items.create(name="Coat", type="fabric")
    with db.transaction():
        new = db.catalog_items.update(item.id, price=5)
        written = db.audit.log_update("CatalogItem", item.id, item, new, user_id=ANA, metadata="m")
        gone = db.catalog_items.soft_delete(item.id)
        db.audit.log_delete("CatalogItem", item.id, gone, user_id=BOB)

    trail = rows(db.postgres, item.id)
    assert written is not None
    assert [(row["action"], row["origin"]) for row in trail] == [
        ("CREATE", "trigger"), ("UPDATE", "trigger"), ("DELETE", "trigger"),
    ]  # fmt: skip
    assert (trail[1]["id"], trail[1]["metadata"]) == (written.id, "m")
    assert (written.user_id, written.action) == (ANA, "UPDATE")
    assert (written.new_values or {})["price"] == 5
