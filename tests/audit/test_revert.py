"""Undoing changes, and what stands in the way of it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from support.sql import ask, clock, do, value

from fwdb import errors
from fwdb.audit import Audit
from fwdb.database import Database

DESIGN = "65a1b2c3d4e5f60718293a4b"
TABLES = ("shared.users", "avatar.avatars", "catalog.catalog_items")


@pytest.fixture
def db(module_db: Database) -> Database:
    """One for all, with designs; each test has entities of its own."""
    if not module_db.designs.count():
        module_db.seeder.seed_designs()
    return module_db


def state(db: Database) -> dict[str, Any]:
    """All rows but the time of their last change, and how long the trail is."""
    found: dict[str, Any] = {"trail": ask(db.postgres, "SELECT count(*) FROM audit.audit_logs")}
    for table in TABLES:
        rows = f"SELECT CAST(to_jsonb(t) - 'updated_at' AS text) AS text FROM {table} t ORDER BY 1"
        found[table] = [row["text"] for row in ask(db.postgres, rows)]
    return found


def item(db: Database, **values: Any) -> str:
    given = {"name": "x", "type": "fabric", "price": 1, "properties": {"a": [1, 2.5]}}
    return db.catalog_items.create(**given | values).id


def person(db: Database, email: str) -> str:
    return db.users.create(email=email, password_hash="h", first_name="A", last_name="B").id


def newest(db: Database, id: str) -> str:
    return str(db.audit.search(limit=50).query("entity_id == @id")["id"].iloc[0])


def test_a_plan_changes_nothing_and_the_deed_is_the_plan(db):
    id = item(db)
    to = clock(db.postgres)
    db.catalog_items.update(id, price=2, name="y")
    db.catalog_items.update(id, price=3)
    before = state(db)
    plan = db.audit.revert("CatalogItem", id, to=to)

    assert state(db) == before
    assert plan.to_dict("records") == [
        {"entity_type": "CatalogItem", "entity_id": id, "does": "update", "field": "name",
         "now": '"y"', "then": '"x"'},
        {"entity_type": "CatalogItem", "entity_id": id, "does": "update", "field": "price",
         "now": "3", "then": "1"},
    ]  # fmt: skip
    done = db.audit.revert("CatalogItem", id, to=to, dry_run=False)
    assert done.equals(plan)
    assert (db.catalog_items.get(id).name, db.catalog_items.get(id).price) == ("x", 1)
    assert db.audit.revert("CatalogItem", id, to=to).empty
    assert dict(db.audit.revert("CatalogItem", id, to=to).dtypes) == dict(plan.dtypes)


def test_a_revert_is_recorded_as_one_more_change_with_its_reason(db):
    """The trail grows, nothing in it goes; a revert can be reverted."""
    id = item(db)
    db.catalog_items.update(id, price=2)
    user = db.users.first(role="admin").id
    with db.audit.context(user_id=user):
        db.audit.revert(event=newest(db, id), dry_run=False)
    last = db.audit.history("CatalogItem", id).iloc[-1]

    assert last["action"] == "UPDATE"
    assert json.loads(last["new_values"])["price"] == 1
    assert last["reason"].startswith("revert of row ")
    assert last["user_id"] == user
    db.audit.revert(event=last["id"], dry_run=False)
    assert db.catalog_items.get(id).price == 2


def test_each_end_of_a_row_is_undone(db):
    """A removed one comes back with its id and every value, a soft deletion is undone, and what
    was made since goes."""
    start = clock(db.postgres)
    id = item(db, properties={"a": [1, 2.5], "t": "é"}, description="d")
    whole = state(db)["catalog.catalog_items"]
    live = clock(db.postgres)
    db.catalog_items.delete(id)
    plan = db.audit.revert("CatalogItem", id, to=live, dry_run=False)
    assert set(plan["does"]) == {"insert"}
    assert plan["now"].isna().all()
    assert state(db)["catalog.catalog_items"] == whole

    db.catalog_items.soft_delete(id)
    db.audit.revert("CatalogItem", id, to=live, dry_run=False)
    assert db.catalog_items.get(id).deleted_at is None
    plan = db.audit.revert("CatalogItem", id, to=start, dry_run=False)
    assert set(plan["does"]) == {"delete"}
    assert not db.catalog_items.with_deleted().exists(id=id)


def test_a_transaction_is_undone_as_a_whole(db):
    """Parents and children, in whatever order they must be written."""
    other = item(db)
    leaving = person(db, "leaving@example.com")
    do(db.postgres, "ALTER TABLE shared.users ALTER password_hash DROP NOT NULL")
    before = state(db)
    with db.transaction():
        made = person(db, "made@example.com")
        db.avatars.create(user_id=made, name="A", measurements={})
        db.avatars.create(user_id=leaving, name="B", measurements={})
        db.catalog_items.update(other, price=9)
        db.catalog_items.update(other, price=10)
        xid = "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
        number = value(db.postgres, xid)
    plan = db.audit.revert(transaction_id=number)
    db.audit.revert(transaction_id=number, dry_run=False)

    assert {**state(db), "trail": 0} == {**before, "trail": 0}
    assert plan.drop_duplicates("entity_id")["does"].value_counts().to_dict() == {
        "delete": 3, "update": 1,
    }  # fmt: skip
    reasons = db.audit.search(limit=4)["reason"]
    assert set(reasons) == {f"revert of transaction {number}"}


def test_what_a_transaction_removed_comes_back_parents_first(db):
    """A parent went last or first: it is back before its children either way."""
    parent = item(db)
    store = db.postgres
    do(
        store,
        "ALTER TABLE catalog.catalog_items ADD COLUMN IF NOT EXISTS part_of uuid"
        " REFERENCES catalog.catalog_items ON DELETE CASCADE",
    )
    child = item(db)
    change = "UPDATE catalog.catalog_items SET part_of = :parent WHERE id = :child"
    do(store, change, parent=parent, child=child)
    before = state(db)["catalog.catalog_items"]
    do(store, "DELETE FROM catalog.catalog_items WHERE id = :id", id=parent)
    number = int(db.audit.search(limit=1)["transaction_id"].iloc[0])
    assert len(state(db)["catalog.catalog_items"]) == len(before) - 2
    db.audit.revert(transaction_id=number, dry_run=False)

    assert state(db)["catalog.catalog_items"] == before
    # To remove the parent now would take the child along, which nobody asked for.
    made = db.audit.history("CatalogItem", parent).iloc[-1]["id"]
    with pytest.raises(errors.RevertRefused, match=rf"referred to by .*{child}"):
        db.audit.revert(event=made)


def refused(db: Database, says: str, **asked: Any) -> errors.RevertRefused:
    """The refusal, after which all is as it was, with and without a dry run."""
    before = state(db)
    for dry_run in (True, False):
        with pytest.raises(errors.RevertRefused, match=says) as refusal:
            db.audit.revert(**asked, dry_run=dry_run)
    assert state(db) == before
    return refusal.value


def test_a_newer_change_is_not_overwritten(db):
    """One of the same field is in the way of an update, any of a creation or removal."""
    id = item(db)
    made = newest(db, id)
    db.catalog_items.update(id, price=2)
    second = newest(db, id)
    assert refused(db, "was changed again", event=made).rows[0]["log_id"] == second
    db.catalog_items.update(id, name="elsewhere")
    assert list(db.audit.revert(event=second)["field"]) == ["price"]
    db.catalog_items.update(id, price=3)
    third = newest(db, id)
    why = refused(db, "price.*was changed again", event=second)
    assert [(row["log_id"], row["field"]) for row in why.rows] == [(third, "price")]
    gone = db.catalog_items.delete(id)
    removal = newest(db, id)
    refused(db, "was changed again by row", event=third)
    db.catalog_items.create(id=id, name=gone.name, type="fabric")
    refused(db, "was changed again by row", event=removal)


def test_a_constraint_that_would_break_is_in_the_way(db):
    """A unique value that another row has by now, which is named; an owner who is gone."""
    id = person(db, "first@example.com")
    db.users.update(id, email="second@example.com")
    change = newest(db, id)
    thief = person(db, "first@example.com")
    assert refused(db, thief, event=change).rows[0]["field"] == "email"
    avatar = db.avatars.create(user_id=thief, name="A", measurements={}).id
    db.avatars.delete(avatar)
    removal = newest(db, avatar)
    db.users.delete(thief)
    why = refused(db, "refer to a row of shared.users", event=removal)
    assert why.rows[0]["field"] == "user_id"


def test_a_password_is_not_reverted(db):
    """The trail does not have it: neither a change of it nor a removed account comes back."""
    id = person(db, "hash@example.com")
    db.users.update(id, password_hash="other", first_name="N")
    change = newest(db, id)
    refused(db, r"\(password_hash\) is redacted", event=change)
    db.users.delete(id)
    refused(db, "password_hash.*redacted", event=newest(db, id))


def test_a_change_that_the_trail_does_not_have_is_in_the_way(db):
    """Somebody switched the trigger off; what they wrote is not thrown away."""
    id = item(db)
    db.catalog_items.update(id, price=2)
    with db.postgres.transaction() as connection:
        off = 'ALTER TABLE catalog.catalog_items {} TRIGGER "00_fwdb_audit"'
        connection.execute(sa.text(off.format("DISABLE")))
        db.catalog_items.update(id, price=77)
        connection.execute(sa.text(off.format("ENABLE ALWAYS")))

    assert refused(db, "unrecorded", event=newest(db, id)).rows[0]["field"] == "price"


def test_what_does_not_name_one_thing_to_undo_is_refused(db):
    audit, now = db.audit, datetime.now(UTC)
    nobody = str(uuid.uuid4())
    for asked in (
        {},
        {"to": now},
        {"entity_type": "User", "to": now},
        {"event": nobody, "transaction_id": 1},
        {"entity_type": "User", "id": nobody, "event": nobody},
        {"event": "42"},
        {"transaction_id": 0},
        {"entity_type": "User", "id": nobody, "to": "2026-01-01T00:00"},
    ):
        with pytest.raises(errors.ParameterError):
            audit.revert(**asked)
    with pytest.raises(errors.NotFound, match="no event in the trail"):
        audit.revert(event=nobody)
    with pytest.raises(errors.NotFound, match="no transaction in the trail"):
        audit.revert(transaction_id=1)
    with pytest.raises(errors.UnknownName, match="did you mean 'User'"):
        audit.revert("Usr", nobody, to=now)
    # A transaction of the follower is its own and none of MongoDB.
    audit.log_update("Design", DESIGN, {"name": "a"}, {"name": "b"})
    follower = "UPDATE audit.audit_logs SET origin = 'follower' WHERE entity_type = 'Design'"
    do(db.postgres, follower)
    number = int(audit.search(entity_type="Design")["transaction_id"].iloc[0])
    with pytest.raises(errors.RevertRefused, match=r"follower wrote down.*by its id"):
        audit.revert(transaction_id=number)
    with pytest.raises(errors.FeatureUnavailable, match="needs MongoDB"):
        Audit(db.postgres).revert("Design", DESIGN, to="1h")


def test_a_design_is_reverted_in_one_write_that_checks_its_version(db):
    """The version grows, the change says why, and a design changed meanwhile is left alone."""
    design = db.designs.first(status="draft")
    to = clock(db.postgres)
    db.designs.update(design.id, name="Later", avatar_id="a")
    old = {"name": design.name, "avatarId": design.avatar_id}
    db.audit.log_update("Design", design.id, old, {"name": "Later", "avatarId": "a"})
    plan = db.audit.revert("Design", design.id, to=to)
    assert db.designs.get(design.id).name == "Later"
    db.audit.revert("Design", design.id, to=to, dry_run=False)
    now = db.designs.get(design.id)
    document = db.mongodb.collection("designs").find_one({"name": design.name})

    assert set(plan["field"]) == {"name", "avatarId"}
    assert (now.name, now.avatar_id, now.version) == (design.name, design.avatar_id, 3)
    assert document["_audit"]["reason"].startswith(f"revert of Design {design.id}")
    assert now.updated_at > design.updated_at


def test_a_removed_design_comes_back_and_a_new_one_goes(db):
    """Dates and ids are what they were, not text."""
    made = db.designs.create(user_id=str(uuid.uuid4()), name="N", metadata={"tags": ["x"]})
    document = db.mongodb.collection("designs").find_one({"name": "N"})
    db.audit.log_create("Design", made.id, {})
    alive = clock(db.postgres)
    db.designs.delete(made.id)
    db.audit.log_delete("Design", made.id, document)
    db.audit.revert("Design", made.id, to=alive, dry_run=False)
    back = db.mongodb.collection("designs").find_one({"_id": document["_id"]})

    ours = ("updatedAt", "version", "_audit")
    assert {k: v for k, v in back.items() if k not in ours} == {
        k: v for k, v in document.items() if k not in ours
    }
    db.audit.revert(event=db.audit.history("Design", made.id).iloc[-1]["id"], dry_run=False)
    assert not db.designs.with_deleted().exists(id=made.id)


def test_a_table_without_triggers_is_reverted_and_the_revert_recorded(store, audit, actor):
    """What the application recorded can be undone; the row of the trail is written beside it."""
    name = "SELECT first_name AS name FROM shared.users WHERE id = :id"
    audit.log_update("User", actor, {"first_name": "Z"}, {"first_name": "A"})
    event = audit.recent(1)["id"].iloc[0]
    plan = audit.revert(event=event)

    assert value(store, name, id=actor) == "A"
    assert len(audit.history("User", actor)) == 1
    audit.revert(event=event, dry_run=False)
    assert value(store, name, id=actor) == "Z"
    assert plan[["field", "now", "then"]].values.tolist() == [["first_name", '"A"', '"Z"']]
    assert list(audit.history("User", actor)["changed_fields"]) == ["first_name"] * 2
