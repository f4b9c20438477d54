"""Going back in time: tables, documents and single entities as they were."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sql import ask, clock, do

from fwdb.database import Database
from fwdb.models import entity_uuid
from fwdb.stores import PostgresStore, without_capture

OBJECT_ID = "65a1b2c3d4e5f60718293a4b"
NOBODY = str(uuid.uuid4())
NOW = datetime.now(UTC)


def copy(store: PostgresStore, table: str = "catalog.catalog_items") -> pd.DataFrame:
    return store.frame(sa.text(f"SELECT * FROM {table} ORDER BY id"))


def row(id: str, at: datetime, old: Any = None, new: Any = None, **more: Any) -> dict[str, Any]:
    """A row of the past, for `put`."""
    values = {"old_values": old and json.dumps(old), "new_values": new and json.dumps(new)}
    return {"entity_id": id, "created_at": at, **values, **more}


def new_item(db: Database) -> str:
    return db.catalog_items.create(name="x", type="fabric", price=1).id


def change(db: Database, id: str, **values: Any) -> None:
    db.catalog_items.with_deleted().update(id, **values)


STEP = st.tuples(
    st.sampled_from(["insert", "update", "soft delete", "restore", "delete", "rekey", "sweep"]),
    st.integers(0, 5),
    st.integers(0, 3),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEP, min_size=3, max_size=14))
def test_the_table_at_each_moment_is_the_copy_kept_then(module_db, steps):
    """Whatever happens, also to rows older than the trail, each moment can be gone back to."""
    store = module_db.postgres
    moments = [(clock(store), copy(store))]
    for kind, which, value in steps:
        ids = list(copy(store)["id"])
        id = ids[which % len(ids)]
        statement = {
            "insert": f"INSERT INTO catalog.catalog_items (name, type, properties, description)"
            f" VALUES ('n{value}', 'fabric', '{{\"a\": [{value}, 1.50]}}', NULL)",
            "update": f"UPDATE catalog.catalog_items SET price = price + {value + 1},"
            f" description = nullif('d{value}', 'd0') WHERE id = '{id}'",
            "soft delete": f"UPDATE catalog.catalog_items SET deleted_at = clock_timestamp()"
            f" WHERE id = '{id}' AND deleted_at IS NULL",
            "restore": f"UPDATE catalog.catalog_items SET deleted_at = NULL"
            f" WHERE id = '{id}' AND deleted_at IS NOT NULL",
            "delete": f"DELETE FROM catalog.catalog_items WHERE id = '{id}' AND {len(ids)} > 2",
            # What a primary-key change is in the trail: the old one goes, the new one comes.
            "rekey": f"WITH gone AS (DELETE FROM catalog.catalog_items WHERE id = '{id}' RETURNING"
            " *) INSERT INTO catalog.catalog_items (id, name, type)"
            " SELECT gen_random_uuid(), name, type FROM gone",
            "sweep": f"UPDATE catalog.catalog_items SET is_premium = NOT is_premium,"
            f" price = {value} WHERE price <> {value}",
        }[kind]
        do(store, statement)
        moments.append((clock(store), copy(store)))

    for at, table in moments:
        was = module_db.audit.as_of("CatalogItem", at)
        pd.testing.assert_frame_equal(was[list(table.columns)], table)
        assert (was["known_since"] <= at).all()


def test_a_row_that_came_back_under_its_id_has_two_lives(module_db):
    """Fields of the second life are not those of the first."""
    items, id, moments = module_db.catalog_items, str(uuid.uuid4()), []
    for live in (
        lambda: None,
        lambda: items.create(id=id, name="one", type="fabric", description="first"),
        lambda: items.delete(id),
        lambda: items.create(id=id, name="two", type="pattern"),
    ):
        live()
        moments.append(clock(module_db.postgres))
    lives = [module_db.audit.as_of("CatalogItem", at, id=id) for at in moments]
    seen = [life["name"].tolist() for life in lives]

    assert seen == [[], ["one"], [], ["two"]]
    assert lives[1]["description"].tolist() == ["first"]


def test_types_are_those_of_the_table_also_without_rows(module_db):
    """A frame of the past can be put beside one of the present."""
    audit, store = module_db.audit, module_db.postgres
    full, empty = (
        audit.as_of("CatalogItem", clock(store)),
        audit.as_of("CatalogItem", clock(store), id=NOBODY),
    )

    assert not full.empty
    assert empty.empty
    assert dict(full.dtypes) == dict(empty.dtypes)
    assert list(full.columns) == [*copy(store).columns, "known_since", "changed_at"]
    assert str(full["price"].dtype) == "Int64"
    assert str(full["created_at"].dtype) == "datetime64[us, UTC]"


def test_a_password_stays_redacted_in_the_past(module_db):
    """Neither the present hash nor the one of then is shown."""
    store = module_db.postgres
    before = clock(store)
    do(store, "UPDATE shared.users SET password_hash = 'another', role = role")
    for at in (before, clock(store)):
        assert set(module_db.audit.as_of("User", at)["password_hash"]) == {"[redacted]"}


def test_what_the_trail_does_not_reach_is_said(module_db):
    """Values from before the trail are the oldest known ones, and their rows say so."""
    store = module_db.postgres
    long_ago = clock(store) - timedelta(days=1)
    insert = sa.text(
        "INSERT INTO shared.users (email, password_hash, first_name, last_name, created_at)"
        " VALUES (:email, 'x', 'A', 'B', :at)"
    )
    with without_capture(store, ["shared.users"]):
        for email, days in (("older@example.com", 2), ("newer@example.com", 0)):
            at = clock(store) - timedelta(days=days)
            store.execute(insert, {"email": email, "at": at})
    was = module_db.audit.as_of("User", long_ago)

    # The newer one says itself that it was made later; the others have their creation recorded or
    # say so too.
    assert list(was["email"]) == ["older@example.com"]
    assert (was["known_since"] > long_ago).all()


def test_values_of_either_spelling_lead_back(store, audit, put):
    """An application records its changes by itself, in its own names; no trigger is needed."""
    made = sa.text(
        "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
        " VALUES ('bea@example.com', 'x', 'Bea', 'C') RETURNING id"
    )
    with without_capture(store, ["shared.users"]):
        id = str(store.rows(made)[0]["id"])
    at = NOW - timedelta(hours=2)
    later = at + timedelta(hours=1)
    put([row(id, at, None, {"firstName": "Al", "passwordHash": "x"}, action="CREATE")])
    put([row(id, later, {"firstName": "Al"}, {"firstName": "Bea"})])
    names = [
        audit.as_of("User", at + timedelta(minutes=m), id=id)["first_name"].tolist()
        for m in (-1, 1, 61)
    ]

    assert names == [[], ["Al"], ["Bea"]]


def test_a_design_is_replayed_from_the_trail(audit, put):
    """Its id comes back as the ObjectId it is; a removal ends it."""
    at = NOW - timedelta(hours=4)
    whole = {"name": "A", "status": "draft", "userId": NOBODY, "version": 1}
    for hours, action, old, new in (
        (0, "CREATE", None, whole),
        (1, "UPDATE", {"status": "draft"}, {"status": "published"}),
        (2, "DELETE", {**whole, "status": "published"}, None),
    ):
        design = {"entity_type": "Design", "action": action}
        put([row(str(entity_uuid(OBJECT_ID)), at + timedelta(hours=hours), old, new, **design)])
    seen = [audit.as_of("Design", at + timedelta(minutes=m)) for m in (-1, 1, 61, 121)]

    assert [list(frame["status"]) for frame in seen] == [[], ["draft"], ["published"], []]
    assert list(seen[1]["id"]) == [OBJECT_ID]
    assert list(seen[1]["user_id"]) == [NOBODY]
    assert dict(seen[0].dtypes) == dict(seen[1].dtypes)
    assert str(seen[0]["version"].dtype) == "Int64"


def test_a_design_older_than_the_trail_takes_the_rest_from_the_document(db):
    """What the trail tells goes back; what never changed is as it is."""
    design = db.designs.first(status="draft")
    db.audit.log_update("Design", design.id, {"name": "Before"}, {"name": design.name})
    was = db.audit.as_of("Design", clock(db.postgres) - timedelta(minutes=5), id=design.id)
    now = db.audit.as_of("Design", clock(db.postgres), id=design.id)
    all_of_them = db.audit.as_of("Design", clock(db.postgres))

    assert list(was["name"]) == ["Before"]
    assert list(was["user_id"]) == [design.user_id]
    assert list(now["name"]) == [design.name]
    assert len(all_of_them) == db.designs.count()
    assert all_of_them["known_since"].notna().sum() == 1


@pytest.mark.parametrize("kind", ["CatalogItem", "Design"])
def test_long_values_are_read_in_the_past(db, kind):
    """Three megabytes are ordinary for a design; the reader's blocks are of one."""
    before, after = "a" * (3 << 20), "b" * (4 << 20)
    if kind == "Design":
        id = db.designs.first().id
        db.audit.log_update(kind, id, {"name": "n"}, {"name": before})
        db.audit.log_update(kind, id, {"name": before}, {"name": after})
        at = db.audit.history(kind, id)["created_at"].iloc[0]
    else:
        id = new_item(db)
        change(db, id, description=before, properties={"a": before})
        at = clock(db.postgres)
        change(db, id, description=after, properties={"a": after})
        assert len(db.catalog_items.frame()["description"].max()) == len(after)
        assert json.loads(db.audit.as_of(kind, at, id=id)["properties"].iloc[0]) == {"a": before}
    field = "name" if kind == "Design" else "description"

    assert list(db.audit.as_of(kind, at, id=id)[field]) == [before]
    assert list(db.audit.as_of(kind, clock(db.postgres), id=id)[field]) == [after]
    assert (
        len(db.audit.who_changed(field, entity_type=kind, id=id)["after"].iloc[0]) == len(after) + 2
    )


def test_a_timeline_has_a_row_for_each_changed_field(module_db):
    """Oldest first, with who and what the server knew."""
    audit, store = module_db.audit, module_db.postgres
    id = new_item(module_db)
    user = module_db.users.first(role="admin").id
    with audit.context(user_id=user, reason="sale"):
        change(module_db, id, price=7, description="cheap")
    module_db.catalog_items.soft_delete(id)
    life = audit.timeline("CatalogItem", id)
    updates = life[life["action"] == "UPDATE"]

    assert list(life["action"].unique()) == ["CREATE", "UPDATE", "DELETE"]
    assert life["changed_at"].is_monotonic_increasing
    assert list(updates["field"]) == ["description", "price"]
    assert list(updates["before"]) == ["null", "1"]
    assert list(updates["after"]) == ['"cheap"', "7"]
    assert set(updates["reason"]) == {"sale"}
    assert set(updates["user_id"]) == {user}
    assert list(life[life["action"] == "DELETE"]["field"]) == ["deleted_at"]
    assert life["db_user"].notna().all()
    assert audit.timeline("CatalogItem", NOBODY).dtypes.equals(life.dtypes)
    assert clock(store) > life["changed_at"].max()


def test_a_difference_skips_what_came_back(module_db):
    """Two changes there and back are none; the last one says who."""
    audit, store = module_db.audit, module_db.postgres
    id = new_item(module_db)
    since = clock(store)
    for price in (2, 3, 1):
        change(module_db, id, price=price)
    change(module_db, id, name="y")
    change(module_db, id, name="z")
    found = audit.diff("CatalogItem", id, since)

    assert list(found["field"]) == ["name"]
    assert found.loc[0, ["before", "after", "changes"]].tolist() == ['"x"', '"z"', 2]
    assert str(found["changes"].dtype) == "int64"
    nothing = audit.diff("CatalogItem", id, clock(store))
    assert nothing.empty
    assert dict(nothing.dtypes) == dict(found.dtypes)


def test_a_difference_over_a_birth_and_a_removal_has_gaps(module_db):
    """Missing is not null: before the birth there was no field."""
    audit, store = module_db.audit, module_db.postgres
    since = clock(store)
    id = new_item(module_db)
    born = clock(store)
    module_db.catalog_items.delete(id)

    assert audit.diff("CatalogItem", id, since).empty
    made = audit.diff("CatalogItem", id, since, born).set_index("field")
    assert made["before"].isna().all()
    assert made.loc["description", "after"] == "null"
    gone = audit.diff("CatalogItem", id, born)
    assert gone["after"].isna().all()


def test_who_changed_a_field_is_found_in_both_spellings(audit, put, actor):
    """One question over rows of fwdb and of the service."""
    ids = [str(uuid.uuid4()) for _ in range(2)]
    at = NOW - timedelta(hours=1)
    first, second = {"first_name": "a", "role": "u"}, {"firstName": "c", "email": "e"}
    put([row(ids[0], at, first, {"first_name": "b", "role": "v"}, user_id=actor)])
    put([row(ids[1], at + timedelta(minutes=1), second, {"firstName": "d", "email": "e"})])
    found = audit.who_changed("first_name", entity_type="User")

    assert list(found["entity_id"]) == [ids[1], ids[0]]
    assert list(found["after"]) == ['"d"', '"b"']
    assert found["user_id"].fillna("nobody").tolist() == ["nobody", actor]
    assert list(audit.who_changed("firstName", limit=1)["entity_id"]) == [ids[1]]
    assert list(audit.who_changed("first_name", entity_type="User", id=ids[0])["before"]) == ['"a"']
    assert audit.who_changed("first_name", until=at).empty


def test_a_secret_is_not_shown_by_any_question(audit, put):
    """What the service stored in plain is redacted field by field too."""
    id = str(uuid.uuid4())
    old, new = {"passwordHash": "hunter2"}, {"passwordHash": "hunter3"}
    put([row(id, NOW - timedelta(hours=1), old, new)])
    for frame in (
        audit.timeline("User", id),
        audit.diff("User", id, NOW - timedelta(hours=2)),
        audit.who_changed("passwordHash"),
    ):
        assert list(frame["field"]) == ["passwordHash"]
        assert "hunter" not in frame.to_csv()


def test_what_the_server_knew_is_among_the_columns(audit, store):
    """On a table that nobody migrated these columns are there and missing."""
    audit.log_read("User", NOBODY)
    row = audit.recent(1).iloc[0]
    migrated = ask(
        store,
        "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('audit.audit_logs')"
        " AND attname = 'origin'",
    )

    assert str(audit.recent(1)["transaction_id"].dtype) == "Int64"
    if migrated:
        assert row["origin"] == "application"
        assert row["transaction_id"] > 0
        assert row["db_user"]
    else:
        assert row[["transaction_id", "origin", "db_user", "client_address"]].isna().all()
