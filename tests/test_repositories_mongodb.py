"""What the repository of designs promises beyond the common contract."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from fwdb.database import Database
from fwdb.errors import FeatureUnavailable, InvalidData, NotFound, ParameterError
from fwdb.repositories import MongoRepository


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


def test_a_document_without_a_required_field(db, designs):
    """An entity cannot stand for it, a frame shows the gap."""
    raw(db, name="orphan", createdAt=datetime.now(UTC))

    with pytest.raises(InvalidData, match="lacks user_id"):
        designs.find()
    frame = designs.frame(["user_id", "name", "version", "created_at"])
    assert frame["user_id"].isna().all()
    assert str(frame["version"].dtype) == "Int64"


def test_a_document_with_a_value_of_another_type(db, designs):
    """A frame names the column and turns nothing into a gap or a rounded number."""
    raw(db, name="odd", userId="u", version=1.7)

    with pytest.raises(InvalidData, match="column version"):
        designs.frame()
    assert designs.frame(["name"])["name"].tolist() == ["odd"]


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
