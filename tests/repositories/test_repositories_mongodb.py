"""What the repository of designs promises beyond the common contract."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import uuid4

import pytest
from bson import Binary

from fwdb.database import Database
from fwdb.errors import FeatureUnavailable, InvalidData, NotFound, ParameterError
from fwdb.repositories import MongoRepository, paging


@pytest.fixture
def db(module_db: Database) -> Database:
    """The shared database, its designs emptied."""
    module_db.mongodb.collection("designs").delete_many({})
    return module_db


@pytest.fixture
def designs(db: Database) -> MongoRepository:
    return db.designs


def raw(db: Database, **document: Any) -> None:
    """A document that something other than fwdb wrote, past the validator."""
    db.mongodb.collection("designs").with_options().insert_one(
        document, bypass_document_validation=True
    )


def test_documents_hold_the_names_of_the_service(db, designs):
    """snake_case outside, camelCase inside, empty fields absent."""
    made = designs.create(user_id="u", name="One", catalog_item_ids=["a"])

    stored = db.mongodb.collection("designs").find_one({"name": "One"})

    assert set(stored) == {
        "_id", "userId", "name", "status", "layers", "metadata", "catalogItemIds", "version",
        "createdAt", "updatedAt",
    }  # fmt: skip
    assert stored["createdAt"] == made.created_at
    assert (made.status, made.version, made.layers) == ("draft", 1, [])


def test_every_change_counts_the_version_up(designs):
    """So that the version read is proof of nobody else's change."""
    made = designs.create(user_id="u", name="One")

    assert designs.update(made.id, version=1, name="Two").version == 2
    assert designs.soft_delete(made.id, version=2).version == 3
    assert designs.restore(made.id).version == 4


def test_ids_are_object_ids_or_uuids(designs):
    """Both kinds live in one collection, and paging by key passes from one to the other."""
    for number in range(4):
        designs.create(user_id="u", name=f"o{number}")
        designs.create(user_id="u", name=f"u{number}", id=str(uuid4()))
    everything = {row.id for row in designs.find()}

    for sort in ("id", "-id", "name,id", "-created_at"):
        seen = [row.id for row in designs.iterate(batch=3, sort=sort)]
        assert len(seen) == 8
        assert set(seen) == everything
    assert all(designs.get(id).id == id for id in everything)


AT = datetime(2026, 11, 1, tzinfo=UTC)
GOOD = [
    {"userId": "u", "name": f"good {n}", "version": n, "createdAt": AT, "status": "draft"}
    for n in range(6)
]
# What is wrong with each, and the document.
HOSTILE = {
    "id is missing": {"_id": None},
    "id is neither": {"_id": 5},
    "id is neither a UUID": {"_id": "text"},
    "id is neither a UUID nor": {"_id": True},
    "id is neither a UUID nor an": {"_id": {"a": 1}},
    "id is neither a UUID nor an ObjectId": {"_id": Binary(b"x")},
    "id is neither a UUID nor an ObjectId, so": {"_id": AT},
    "name is missing": {"name": None},
    "name is a list, not text": {"name": ["b", "z"]},
    "name is a whole number, not text": {"name": 5},
    "user_id is missing": {"userId": None},
    "user_id is of type float": {"userId": math.nan},
    "deleted_at is text, not a time": {"deletedAt": "yes"},
    "layers is text, not a list": {"layers": "none"},
    "metadata is a list": {"metadata": [1]},
    "version is text": {"version": "3"},
    "version is of type float": {"version": math.nan},
    "version is of type float, not a whole": {"version": 1.7},
    "created_at is text": {"createdAt": "2026-01-01T00:00Z"},
    "created_at is a whole number": {"createdAt": 5},
    "updated_at is a dictionary": {"updatedAt": {}},
    "status is True or False": {"status": False},
}


@pytest.fixture
def hostile(db: Database, designs: MongoRepository) -> MongoRepository:
    for document in [*GOOD, *({**GOOD[0], "name": "odd", **odd} for odd in HOSTILE.values())]:
        raw(
            db,
            **{
                name: value
                for name, value in document.items()
                if value is not None or name == "_id"
            },
        )
    return designs.with_deleted()


def test_documents_that_fit_no_design_are_read_and_reported(db, hostile):
    """As they are stored, beside the others, each with what is wrong with it."""
    page = hostile.page(size=100, sort="name")
    frame = hostile.frame()

    assert page.total == len(frame) == hostile.count() == len(GOOD) + len(HOSTILE)
    assert len(page.problems) == len(frame.attrs["problems"]) == len(HOSTILE)
    for problem in HOSTILE:
        assert any(f": {problem}" in said for said in page.problems), problem
        assert any(f": {problem}" in said for said in frame.attrs["problems"]), problem
    assert [item.problems for item in page.items if str(item.name).startswith("good")] == [()] * 6
    assert frame["version"].notna().sum() == len(frame) - 3
    assert str(frame["created_at"].dtype) == "datetime64[us, UTC]"
    assert set(hostile.frame(["name"]).attrs["problems"]) < set(page.problems)
    past = db.audit.as_of("Design", "now")
    assert len(past) == len(frame)
    assert any("deleted_at is of another type" in said for said in past.attrs["problems"])


@pytest.mark.parametrize("field", ["id", "name", "user_id", "status", "version", "created_at"])
def test_slices_pass_over_values_of_every_type(hostile, field):
    """Each document once, in the order of the server, both ways."""
    for sort in (field, f"-{field}"):
        seen = [item.id for item in islice(hostile.iterate(batch=2, sort=sort), 100)]
        ordered = [item.id for item in hostile.find(sort=f"{sort},{sort[: -len(field)]}id")]

        assert len(seen) == len(set(seen)) == hostile.count()
        if field != "name":  # a list is in the middle there, and last here
            assert seen == ordered


def test_readings_of_any_id_are_recorded(db, hostile):
    """Under the uuid that the follower gives it too."""
    found = hostile.with_read_audit().find()

    read = db.audit.search(actions="READ", limit=None)
    assert len(read) == len(found)
    assert read["entity_id"].nunique() == len(found)


@pytest.mark.parametrize("values", [[{"$oid": "x"}], [[1]], ["a", 1]])
def test_a_forged_cursor_is_refused(designs, values):
    """Whatever stands in it."""
    for number in range(3):
        designs.create(user_id="u", name=f"o{number}")
    mark = json.loads(base64.urlsafe_b64decode(designs.after(size=1, sort="id").cursor + "=="))[0]

    with pytest.raises(ParameterError, match="cursor"):
        designs.after(paging.write_cursor(mark, values), size=1, sort="id")


def test_whole_numbers_that_javascript_stored_as_floats(db, designs):
    """2.0 is the version 2."""
    raw(db, name="js", userId="u", status="draft", version=2.0)

    assert designs.frame(["version"])["version"].tolist() == [2]
    assert designs.update(str(designs.first(name="js").id), version=2, name="py").version == 3


def test_values_that_a_document_cannot_hold(designs):
    """Each is InvalidData, none quotes the value."""
    for value in (2**70, object(), "\ud800"):
        with pytest.raises(InvalidData) as caught:
            designs.create(user_id="u", name="One", metadata={"secret": value})
        assert str(value) not in str(caught.value).encode("utf-8", "replace").decode()
    with pytest.raises(InvalidData, match="too large"):
        designs.create(user_id="u", name="One", metadata={"a": "x" * 17_000_000})
    with pytest.raises(InvalidData, match="one of draft, published, archived"):
        designs.create(user_id="u", name="One", status="shared")
    with pytest.raises(InvalidData, match="needs user_id and name"):
        designs.create()
    assert designs.count() == 0


def test_elements_of_lists_are_found(designs):
    """By value in a list of texts, by parts in a list of objects."""
    designs.create(
        user_id="u", name="One", catalog_item_ids=["a", "b"],
        layers=[{"type": "silhouette", "position": {"x": 1, "y": 2}}, {"type": "fabric"}],
    )  # fmt: skip

    assert designs.count(catalog_item_ids__contains="a") == 1
    assert designs.count(catalog_item_ids__contains=["b", "a"]) == 1
    assert designs.count(catalog_item_ids__contains="c") == 0
    assert designs.count(layers__contains=[{"type": "fabric"}]) == 1
    assert designs.count(layers__contains=[{"type": "silhouette", "position": {"x": 1}}]) == 1
    assert designs.count(layers__contains=[{"type": "fabric", "position": {"x": 1}}]) == 0
    with pytest.raises(ParameterError, match="keys are text"):
        designs.count(layers__contains=[{"$where": "1"}])


# -- who --------------------------------------------------------------------------------------

ANA = "0190a1b2-c3d4-7e5f-8a6b-00000000000a"


def marks(db: Database) -> list[Any]:
    """The field of each document that says who changed it."""
    return [document.get("_audit") for document in db.mongodb.collection("designs").find()]


def test_every_write_says_who_acts(db, designs):
    """In a field that no entity and no frame shows, with another number each time."""
    seen = []
    said = {"by": ANA, "ip": "192.0.2.7", "userAgent": "x", "reason": "ticket 7"}
    with db.audit.context(user_id=ANA, ip_address="192.0.2.7", user_agent="x", reason="ticket 7"):
        made = designs.create(user_id="u", name="One")
        seen += marks(db)
        for write in (
            lambda: designs.update(made.id, name="Two"),
            lambda: designs.upsert(id=made.id, user_id="u", name="Three"),
            lambda: designs.soft_delete(made.id),
            lambda: designs.restore(made.id),
        ):
            write()
            seen += marks(db)
        designs.delete(made.id)
        designs.create_many({"user_id": "u", "name": f"{n}"} for n in range(2))
        designs.upsert(id=str(uuid4()), user_id="u", name="New")
        seen += marks(db)

    assert [{k: v for k, v in mark.items() if k != "nonce"} for mark in seen] == [said] * 8
    assert len({mark["nonce"] for mark in seen}) == 8
    assert "_audit" not in designs.frame().columns
    assert not hasattr(designs.first(), "_audit")


def test_nothing_is_said_when_nobody_acts(db, designs):
    """A change leaves the mark of an earlier one as it is, by which it is known to be old."""
    made = designs.create(user_id="u", name="One")
    assert marks(db) == [None]
    with db.audit.context(user_id=ANA):
        designs.update(made.id, name="Two")
    (mark,) = marks(db)
    designs.update(made.id, name="Three")
    assert marks(db) == [mark]


def test_a_removal_is_announced_in_the_same_transaction(db, designs):
    """Who follows the changes sees the mark first, and then what was removed with it."""
    with db.audit.context(user_id=ANA):
        made = designs.create(user_id="u", name="One")
        with db.mongodb.collection("designs").watch() as changes:
            designs.delete(made.id)
            first, second = changes.next(), changes.next()

    assert (first["operationType"], second["operationType"]) == ("update", "delete")
    assert first["updateDescription"]["updatedFields"].keys() == {"_audit"}
    assert first["updateDescription"]["updatedFields"]["_audit"]["deleting"] is True
    assert first["txnNumber"] == second["txnNumber"]
    with db.audit.context(user_id=ANA), pytest.raises(NotFound):
        designs.delete(made.id)


def test_a_removal_on_a_server_without_transactions(db, designs, monkeypatch):
    """The mark and the removal are two steps then."""
    made = designs.create(user_id="u", name="One")

    def refuse() -> Any:
        raise FeatureUnavailable("mongodb has transactions in a replica set only.")

    monkeypatch.setattr(db.mongodb, "transaction", refuse)
    with db.audit.context(user_id=ANA):
        assert designs.delete(made.id).name == "One"
    assert designs.count() == 0
