"""What repositories over PostgreSQL promise beyond the common contract."""

from __future__ import annotations

import copy
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from support.statements import sent

from fwdb.database import Database
from fwdb.errors import (
    DuplicateKey,
    FeatureUnavailable,
    ForeignKeyViolation,
    InvalidData,
    ParameterError,
)
from fwdb.models import AVATARS, CATALOG_ITEMS, TableEntity
from fwdb.repositories import PostgresRepository


@pytest.fixture
def db(module_db: Database) -> Database:
    """The shared database, its tables emptied."""
    module_db.postgres.execute(
        sa.text("TRUNCATE shared.users, avatar.avatars, catalog.catalog_items, audit.audit_logs")
    )
    return module_db


def user(db: Database, email: str = "ana@example.com", **more: Any) -> Any:
    given = {"password_hash": "$2b$12$secret", "first_name": "Ana", "last_name": "Lima", **more}
    return db.users.create(email=email, **given)


def verbs(db: Database, work: Any) -> list[str]:
    """The kinds of statements that `work()` sends."""
    with sent(db.postgres) as seen:
        work()
    return [statement.split()[0] for statement, _ in seen]


# -- errors -----------------------------------------------------------------------------------


def existing(entity: TableEntity) -> TableEntity:
    """The entity in a table of the schema `existing`."""
    found = copy.copy(entity)
    object.__setattr__(found, "table", entity.table.to_metadata(sa.MetaData(), schema="existing"))
    return found


def test_a_second_account_with_the_email_is_refused(db):
    """The error names the field and the constraint, never the address."""
    user(db)

    with pytest.raises(DuplicateKey) as caught:
        user(db)

    assert caught.value.fields == ("email",)
    assert "example.com" not in str(caught.value)


def test_a_row_that_others_need_stays(db):
    """And one that needs a missing row is not made."""
    owner = user(db)
    db.avatars.create(user_id=owner.id, name="Default", measurements={})

    with pytest.raises(ForeignKeyViolation):
        db.users.delete(owner.id)
    with pytest.raises(ForeignKeyViolation):
        db.avatars.create(user_id=str(uuid4()), name="Lost", measurements={})
    assert db.users.get(owner.id) == owner


@pytest.mark.parametrize(
    "values",
    [
        {"email": "x"},
        {"email": "x", "first_name": "a\x00b"},
        {"email": None},
        {"email": "x", "is_active": 1},
        {"email": "x", "created_at": datetime(2026, 11, 1)},
        {"email": "x", "created_by": "me"},
    ],
)
def test_values_that_do_not_fit_are_refused(db, values):
    """Missing, unfit for PostgreSQL, or of another type: one error class."""
    with pytest.raises(InvalidData):
        db.users.create(**values)
    assert db.users.count() == 0


def test_json_that_is_none_or_no_json(db):
    """None empties the field; NaN, which JSON does not have, is refused."""
    owner = user(db)
    given = {"user_id": owner.id, "measurements": {"height": 170}}
    db.avatars.create_many(
        {**given, "name": "many", "customization": value} for value in ({"skinTone": "x"}, None)
    )
    made = db.avatars.create(name="one", customization=None, **given)
    assert db.avatars.count(customization__null=True) == 2

    db.avatars.update(made.id, customization={"skinTone": "x"})
    db.avatars.upsert(id=made.id, name="one", customization=None, **given)
    assert db.avatars.count(customization__null=True) == 2
    assert db.avatars.count(customization=None) == 2
    with pytest.raises(InvalidData, match="JSON values"):
        db.avatars.update(made.id, measurements={"height": float("nan")})


# -- statements -------------------------------------------------------------------------------


def test_each_write_is_one_statement(db):
    """No reading before, none after."""
    made = user(db)
    read = db.users.get(made.id).updated_at
    other = {"email": "n@example.com", "first_name": "N", "last_name": "N", "password_hash": "h"}
    for work, verb in (
        (lambda: user(db, "b@example.com"), "INSERT"),
        (lambda: db.users.update(made.id, version=read, role="user"), "UPDATE"),
        (lambda: db.users.update(made.id, role="admin"), "UPDATE"),
        (lambda: db.users.soft_delete(made.id), "UPDATE"),
        (lambda: db.users.restore(made.id), "UPDATE"),
        (lambda: db.users.upsert(id=made.id, **other), "INSERT"),
        (lambda: db.users.delete(made.id), "DELETE"),
    ):
        assert verbs(db, work) == [verb]


def test_slices_by_key_use_the_index(db):
    """The next slice is a range of an index and not a sort of the table."""
    db.postgres.execute(
        sa.text("CREATE INDEX IF NOT EXISTS by_time ON catalog.catalog_items (created_at, id)")
    )
    db.catalog_items.create_many({"name": f"Item {n}", "type": "fabric"} for n in range(3_000))
    db.postgres.execute(sa.text("ANALYZE catalog.catalog_items"))
    cursor = db.catalog_items.after(size=2).cursor
    with sent(db.postgres) as seen:
        db.catalog_items.after(cursor, size=2)
    with db.postgres.connection() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {seen[0][0]}", seen[0][1]).scalars().all()

    assert "Index Cond" in "\n".join(plan)
    assert "Sort" not in "\n".join(plan)


def test_an_estimate_is_what_the_planner_expects(db):
    """Close after ANALYZE, and never less than the rows already seen."""
    db.catalog_items.create_many(
        {"name": f"n{n}", "type": "fabric" if n % 4 else "pattern"} for n in range(800)
    )
    db.postgres.execute(sa.text("ANALYZE catalog.catalog_items"))

    assert 760 <= db.catalog_items.page(total="estimate").total <= 840
    assert 150 <= db.catalog_items.page(total="estimate", type="pattern").total <= 250


# -- transactions -----------------------------------------------------------------------------


def test_a_transaction_inside_one_is_a_savepoint(db):
    """What fails inside is undone; what was done before stays, and frames see it at once."""
    with db.transaction():
        user(db, "kept@example.com")
        with pytest.raises(DuplicateKey), db.transaction():  # noqa: PT012
            user(db, "gone@example.com")
            user(db, "kept@example.com")
        user(db, "after@example.com")
        seen = db.users.frame(sort="email")["email"].tolist()

    assert seen == sorted(row.email for row in db.users.find())
    assert seen == ["after@example.com", "kept@example.com"]


# -- upsert -----------------------------------------------------------------------------------


def test_upsert_on_the_email(db):
    """Any unique key will do, named alone or in a list."""
    values = {"password_hash": "h", "first_name": "Ana", "last_name": "Lima"}

    made, created = db.users.upsert(on="email", email="a@example.com", **values)
    again, created_again = db.users.upsert(
        on=["email"], email="a@example.com", role="admin", **values
    )

    other_id, _ = db.users.upsert(
        on="email", email="a@example.com", id=str(uuid4()), role="user", **values
    )

    assert (created, created_again) == (True, False)
    assert (again.id, again.role) == (made.id, "admin")
    assert (other_id.id, other_id.role) == (made.id, "user")
    with pytest.raises(ParameterError, match="use email or id"):
        db.users.upsert(on="role", role="user")


# -- secrets ----------------------------------------------------------------------------------


def test_a_password_hash_is_shown_only_when_named(db):
    """Not in frames, not in repr, not as a sort key, not in an error."""
    made = user(db)

    assert "password_hash" not in db.users.frame()
    assert db.users.frame(["email", "password_hash"])["password_hash"].tolist() == ["$2b$12$secret"]
    assert "$2b$" not in repr(made)
    with pytest.raises(ParameterError, match="no sort field"):
        db.users.find(sort="password_hash")
    with pytest.raises(ParameterError) as caught:
        db.users.find(password_hash=123456)
    assert "123456" not in str(caught.value)


# -- the audit log ----------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["65a1b2c3d4e5f60718293a4b", "0190a3c2-7b1e-7cc0-8000-0123456789ab"])
def test_the_audit_log_holds_ids_of_both_stores(db, id):
    """An ObjectId goes in and comes out as one: in entities, filters and frames."""
    made = db.audit_logs.create(entity_type="Design", entity_id=id, action="READ")
    db.audit_logs.create(entity_type="User", entity_id=str(uuid4()), action="READ")

    assert made.entity_id == id
    assert db.audit_logs.find(entity_id=id.upper()) == [made]
    assert id in db.audit_logs.frame()["entity_id"].tolist()
    assert db.audit_logs.frame(entity_id=id)["entity_id"].tolist() == [id]


def test_the_audit_log_is_append_only(db):
    """Its rows are created and read, never changed."""
    made = db.audit_logs.create(entity_type="User", entity_id=str(uuid4()), action="CREATE")

    for change in (
        lambda: db.audit_logs.update(made.id, action="READ"),
        lambda: db.audit_logs.delete(made.id),
        lambda: db.audit_logs.soft_delete(made.id),
        lambda: db.audit_logs.restore(made.id),
        lambda: db.audit_logs.upsert(id=made.id, action="READ"),
    ):
        with pytest.raises(FeatureUnavailable, match="audit_logs knows no"):
            change()
    assert db.audit_logs.get(made.id) == made


# -- an existing database ---------------------------------------------------------------------


def test_columns_that_are_enums_in_an_existing_table(db):
    """Filters, patterns, sorting, upserts and frames work on them as on text."""
    db.postgres.execute(
        sa.text(
            """CREATE SCHEMA existing;
            CREATE TYPE existing.kind AS ENUM ('silhouette', 'fabric', 'pattern');
            CREATE TABLE existing.catalog_items (LIKE catalog.catalog_items INCLUDING DEFAULTS,
                PRIMARY KEY (id));
            ALTER TABLE existing.catalog_items ALTER type TYPE existing.kind
                USING type::existing.kind, ALTER is_premium DROP NOT NULL;"""
        )
    )
    items = PostgresRepository(db.postgres, existing(CATALOG_ITEMS))
    made = items.create(name="one", type="fabric")
    items.create(name="two", type="pattern")
    db.postgres.execute(sa.text("UPDATE existing.catalog_items SET is_premium = NULL"))

    assert [row.name for row in items.find(type="fabric")] == ["one"]
    assert [row.name for row in items.find(type__ne="fabric")] == ["two"]
    assert [row.name for row in items.find(type__in=["fabric"])] == ["one"]
    assert [row.name for row in items.find(type__like="FAB%")] == ["one"]
    assert [row.name for row in items.iterate(batch=1, sort="-type")] == ["two", "one"]
    assert [row.name for row in items.iterate(batch=1, sort="is_premium,name")] == ["one", "two"]
    assert items.update(made.id, type="pattern").type == "pattern"
    assert items.upsert(id=made.id, name="one", type="fabric")[0].type == "fabric"
    assert sorted(items.frame()["type"]) == ["fabric", "pattern"]
    before = items.get(made.id).updated_at
    assert items.update(made.id, name="x").updated_at > before  # no trigger came with LIKE
    db.postgres.execute(sa.text("DROP SCHEMA existing CASCADE"))


def test_rows_that_fit_no_model_are_read_and_reported(db):
    """What an existing service and its administrators may have left stops no row beside it."""
    owner = user(db)
    for number in range(3):
        db.avatars.create(user_id=owner.id, name=f"good {number}", measurements={"height": 170})
    db.postgres.execute(
        sa.text(
            """CREATE SCHEMA existing;
            CREATE TABLE existing.avatars (LIKE avatar.avatars INCLUDING DEFAULTS);
            ALTER TABLE existing.avatars ALTER measurements DROP NOT NULL, ALTER name DROP NOT NULL,
                ALTER gender TYPE text;
            INSERT INTO existing.avatars SELECT * FROM avatar.avatars;
            INSERT INTO existing.avatars (id, user_id, name, gender, measurements, created_at)
            SELECT gen_random_uuid(), users.id, name, gender, CAST(measurements AS jsonb),
                CAST(odd.created_at AS timestamptz)
            FROM shared.users, (VALUES
                (NULL, 'robot', '{}', '2026-01-01Z'), ('text', 'male', '"tall"', '2026-01-01Z'),
                ('null', 'male', 'null', '2026-01-01Z'), ('none', 'male', NULL, '2026-01-01Z'),
                ('ever', 'male', '{}', 'infinity'), ('never', 'male', '{}', '-infinity'),
                ('caesar', 'male', '{}', '0044-03-15 BC'), ('far', 'male', '{}', '20000-01-01Z')
            ) AS odd (name, gender, measurements, created_at);"""
        )
    )
    rows = PostgresRepository(db.postgres, existing(AVATARS))
    try:
        page = rows.page(size=50, sort="name")
        said = {item.name: item.problems for item in page.items}
        slices = {
            sort: [row.name for row in islice(rows.iterate(batch=2, sort=sort), 50)]
            for sort in ("created_at", "-created_at", "name", "id")
        }
        reversed_times = slices["-created_at"]
    finally:
        db.postgres.execute(sa.text("DROP SCHEMA existing CASCADE"))

    assert said == {
        None: ("name is missing",),
        "text": ("measurements is text, not a dictionary",),
        "null": ("measurements is missing",),
        "none": ("measurements is missing",),
        **dict.fromkeys(("ever", "never", "caesar", "far"), ("created_at is text, not a time",)),
        **{f"good {number}": () for number in range(3)},
    }
    assert len(page.problems) == 8
    assert all(len(found) == len(set(found)) == 11 for found in slices.values())
    assert (reversed_times[:2], reversed_times[-2:]) == (["ever", "far"], ["caesar", "never"])
