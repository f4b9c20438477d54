"""Entities, the document of a design, ids of both stores, and columns that may be enums."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from fwdb import models
from fwdb.errors import ParameterError, UnknownName
from fwdb.stores import PostgresStore

object_ids = st.binary(min_size=12, max_size=12).map(lambda raw: raw.hex())


@given(object_ids)
def test_an_object_id_comes_back_out_of_a_uuid(text):
    """The uuid column of the audit log keeps every ObjectId, and knows that it was one."""
    kept = models.entity_uuid(text)

    assert models.entity_id(kept) == text
    assert models.entity_id(str(kept).upper()) == text
    assert (kept.version, kept.variant) == (8, uuid.RFC_4122)


@given(st.tuples(object_ids, object_ids))
def test_tagged_object_ids_sort_as_they_did(pair):
    """An ObjectId begins with its time, and so does its uuid."""
    first, second = sorted(pair)

    assert models.entity_uuid(first) <= models.entity_uuid(second)


@given(st.integers(0, 2**128 - 1), st.sampled_from([1, 3, 4, 5, 6, 7]))
def test_no_uuid_that_a_database_makes_is_taken_for_an_object_id(number, version):
    """Whatever its other 122 bits are: the version tells it apart."""
    made = uuid.UUID(int=number & ~(0xF << 76) & ~(0x3 << 62) | version << 76 | 0x2 << 62)

    assert models.entity_id(models.entity_uuid(str(made))) == str(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "{65a1b2c3-d4e5-4fdb-8f0d-f60718293a4b}",
        "+" + "1" * 31,
        "1_1" + "1" * 29,
        "g" * 24,
    ],
)
def test_text_that_is_no_id_is_refused(text):
    """Python's UUID() takes braces, signs and underscores; no database writes ids so."""
    with pytest.raises(ParameterError, match="is no id"):
        models.entity_uuid(text)


def test_a_uuid_that_looks_like_a_kept_object_id_is_refused():
    """It would come back as an ObjectId, so it cannot be kept without losing which it was."""
    with pytest.raises(ParameterError, match="give '65a1b2c3d4e5f60718293a4b'"):
        models.entity_uuid("65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b")


def test_a_user_is_shown_without_its_password_hash():
    """repr goes to logs and notebooks."""
    now = datetime.now(UTC)
    user = models.User(
        id="1",
        email="a@example.com",
        password_hash="$2b$12$secret",
        first_name="A",
        last_name="B",
        role="user",
        is_active=True,
        email_verified=True,
        created_at=now,
        updated_at=now,
    )

    assert "secret" not in repr(user)
    assert models.USERS.secret == {"password_hash"}


def test_a_design_goes_to_its_document_and_back():
    """Only the top level is renamed: what is inside layers and metadata stays as stored."""
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    design = models.Design(
        id="65a1b2c3d4e5f60718293a4b",
        user_id="u",
        name="N",
        layers=[{"id": "l", "itemId": "i", "user_id": "kept"}],
        metadata={"tags": ["a"], "thumbnailUrl": "t"},
        catalog_item_ids=["i"],
        created_at=made,
        updated_at=made,
    )
    fields = {name: getattr(design, name) for name in models.DESIGNS.fields}
    document = models.DESIGNS.document(fields)

    assert document["_id"] == ObjectId("65a1b2c3d4e5f60718293a4b")
    assert document["userId"] == "u"
    assert document["layers"] == [{"id": "l", "itemId": "i", "user_id": "kept"}]
    assert models.Design(**models.DESIGNS.values(document)) == design


def test_a_document_of_another_program_makes_a_design_too():
    """Unknown fields are left out, missing and null ones get the default, times get their zone."""
    found = {"_id": "a-uuid", "userId": "u", "name": "N", "__v": 0, "layers": None}
    design = models.Design(**models.DESIGNS.values({**found, "createdAt": datetime(2026, 1, 1)}))

    assert (design.id, design.status, design.layers, design.version) == ("a-uuid", "draft", [], 1)
    assert design.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert design.updated_at is None


def test_a_field_that_a_design_lacks_is_named_with_the_nearest():
    """A typing error in a filter must not silently find nothing."""
    with pytest.raises(UnknownName, match="did you mean 'user_id'"):
        models.DESIGNS.document({"userid": "u"})


def test_an_entity_is_known_by_what_its_fields_say():
    """Secrets, personal data, bookkeeping and labels, under the names of either store."""
    users, designs = models.ENTITIES["User"], models.COLLECTIONS["designs"]

    assert models.TABLES["shared.users"] is users
    assert [e.attribute for e in models.ENTITIES.values()] == [
        "users", "avatars", "catalog_items", "designs",
    ]  # fmt: skip
    assert users.required == ("email", "password_hash", "first_name", "last_name")
    assert (users.secret, users.bookkeeping) == ({"password_hash"}, {"updated_at"})
    assert (designs.secret, designs.required) == (set(), ("user_id", "name"))
    assert designs.bookkeeping == {"updatedAt", "version", "_audit"}
    assert designs.fields["status"].labels == ("draft", "published", "archived")
    assert designs.stored["catalog_item_ids"] == "catalogItemIds"


@pytest.mark.parametrize(
    ("entity_type", "shown", "hidden"),
    [
        ("User", ["id", "role", "created_by"], ["email", "address.street"]),
        ("Avatar", ["user_id", "is_default"], ["measurements.height", "name"]),
        ("CatalogItem", ["name", "anything"], []),
        ("Unknown", ["id", "updated_at"], ["name"]),
    ],
)
def test_of_persons_only_what_is_public_is_shown(entity_type, shown, hidden):
    """A table may have columns that fwdb does not know, and a trail types that it does not."""
    assert not [path for path in shown if models.is_personal(entity_type, path)]
    assert [path for path in hidden if models.is_personal(entity_type, path)] == hidden
    assert models.is_person(entity_type) == bool(hidden)


@pytest.fixture(params=["enum", "varchar"])
def labelled(request, postgres_database: Callable[..., str]) -> Iterator[tuple]:
    """A table whose `gender` is a PostgreSQL enum, or plain text, and a connection to it."""
    store = PostgresStore(postgres_database())
    type_name = "gender_enum" if request.param == "enum" else "varchar(20)"
    with store.transaction() as connection:
        connection.execute(sa.text("CREATE TYPE gender_enum AS ENUM ('male', 'female', 'unisex')"))
        connection.execute(sa.text(f"CREATE TABLE bodies (id int PRIMARY KEY, gender {type_name})"))
        table = sa.Table(
            "bodies",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("gender", models.Label()),
        )
        yield table, connection
    store.close()


def test_a_label_is_written_and_found_in_an_enum_as_in_text(labelled):
    """An existing database has enums where ours has varchar; the same statements serve both."""
    table, connection = labelled
    many = [{"id": number, "gender": "male"} for number in range(1, 4)]
    connection.execute(table.insert(), [*many, {"id": 4, "gender": None}])
    connection.execute(table.insert().values([{"id": 5, "gender": "unisex"}]))
    returned = connection.execute(
        table.insert().returning(table.c.gender), [{"id": n, "gender": "unisex"} for n in (6, 7)]
    )
    changed = connection.execute(
        table.update().where(table.c.gender == "male", table.c.id < 3).values(gender="female")
    )
    # More than five times: psycopg prepares the statement on the server from then on.
    for _ in range(7):
        found = connection.execute(
            sa.select(table.c.id, table.c.gender)
            .where(table.c.gender.in_(["male", "female"]))
            .order_by(table.c.id)
        ).all()

    assert returned.scalars().all() == ["unisex", "unisex"]
    assert changed.rowcount == 2
    assert found == [(1, "female"), (2, "female"), (3, "male")]
    assert connection.scalar(sa.select(table.c.id).where(table.c.gender.is_(None))) == 4


def test_an_entity_has_its_repository_by_being_declared():
    """Without a line in `Database`."""
    code = (
        "from dataclasses import dataclass; from fwdb import models;"
        "Note = dataclass(type('Note', (models.Record,), {'__annotations__': {'id': str}}));"
        "models.DocumentEntity(Note, 'notes', 'Notes.');"
        "from fwdb.database import Database; print(Database.notes.__doc__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("Notes. `notes`.\n", "")
