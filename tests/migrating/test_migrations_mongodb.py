"""Validator and indexes of the designs: made, adopted, recorded, compared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import make_url

from fwdb import errors, migrating
from fwdb.migrating import mongodb
from fwdb.stores import MongoStore

GOOD = {"userId": "u", "name": "N", "status": "draft"}


@pytest.fixture
def store(mongodb_database: str) -> Iterator[MongoStore]:
    store = MongoStore(mongodb_database)
    yield store
    store.close()


def kinds(changes: list) -> list:
    return [(change.kind, change.name) for change in changes]


def test_an_empty_database_gets_the_collection_its_indexes_and_a_record(store):
    """Asking creates nothing; a second run changes nothing, not even the time of the record."""
    before = migrating.drift(None, store)
    untouched = store.database.list_collection_names()
    changes = migrating.migrate(None, store)
    record = store.collection(mongodb.RECORDS).find_one({"_id": "designs"})
    again = migrating.migrate(None, store)

    assert ([d.severity for d in before], untouched) == (["error", "error"], [])
    assert kinds(changes)[:4] == [
        ("collection", "designs"),
        ("index", "designs.userId_1_status_1_createdAt_-1"),
        ("index", "designs.metadata.tags_1"),
        ("index", "designs.deletedAt_1"),
    ]
    assert again == []
    assert store.collection(mongodb.RECORDS).find_one({"_id": "designs"}) == record
    assert record["checksum"] == mongodb.declarations()[0].checksum
    drift = migrating.drift(None, store)
    # SecantusDB has no text indexes; with a MongoDB there is nothing to record.
    reason = "text indexes are not supported by SecantusDB"
    lacking = {"name": "name_text_metadata.description_text", "reason": reason}
    assert record["not_available"] == ([lacking] if store.is_secantus else [])
    assert [(d.severity, d.sentence) for d in drift] == (
        [("information", f"no index on (name, metadata.description): {reason}.")]
        if store.is_secantus
        else []
    )


def test_the_validator_refuses_a_document_without_what_it_needs(store):
    """What the data model allows is taken: optional fields may be absent or null."""
    migrating.migrate(None, store)
    times = {"createdAt": datetime.now(UTC), "deletedAt": None, "avatarId": None}
    for change in (
        {"userId": None},
        {"name": ""},
        {"name": "x" * 256},
        {"status": "lost"},
        {"version": 0},
        {"layers": "none"},
        {"createdAt": "today"},
    ):
        with pytest.raises(errors.InvalidData), store.errors():
            store.collection("designs").insert_one({**GOOD, **change})
    with store.errors():
        store.collection("designs").insert_one(dict(GOOD))
        store.collection("designs").insert_one({**GOOD, **times, "version": 1.0, "layers": []})

    assert store.collection("designs").count_documents({}) == 2


def test_existing_documents_stay_and_those_that_break_the_rules_are_counted(store):
    """Adoption reports; it does not mend."""
    documents = [{"_id": 1, "name": "no owner"}, {"_id": 2, **GOOD}]
    store.collection("designs").insert_many(documents)
    changes = migrating.migrate(None, store)

    assert ("validator", "designs") in kinds(changes)
    said = "1 document of designs breaks the validator; left unchanged."
    assert said in [change.sentence for change in changes]
    assert list(store.collection("designs").find().sort("_id")) == documents
    assert ("warning", said) in [(d.severity, d.sentence) for d in migrating.drift(None, store)]


def test_an_equal_index_under_another_name_is_accepted(store):
    """MongoDB would refuse to make it twice."""
    store.collection("designs").create_index([("metadata.tags", 1)], name="tags")
    changes = migrating.migrate(None, store)

    assert ("index", "designs.metadata.tags_1") not in kinds(changes)
    assert [d for d in migrating.drift(None, store) if d.severity == "warning"] == []


def test_an_index_in_the_way_is_left_and_said(store):
    """Here the same key without `sparse`."""
    store.collection("designs").create_index([("deletedAt", 1)], name="deleted")
    changes = migrating.migrate(None, store)
    again = migrating.migrate(None, store)

    assert "left the index deleted of designs: it differs from ours." in [
        change.sentence for change in changes
    ]
    assert again == []
    assert [d.sentence for d in migrating.drift(None, store) if d.severity == "warning"] == [
        "the index deleted differs from ours on (deletedAt)."
    ]


def test_a_validator_of_the_service_stays(store):
    """Replacing it could refuse what the service writes."""
    theirs = {"$jsonSchema": {"required": ["userId", "name", "status"], "title": "theirs"}}
    store.database.create_collection("designs", validator=theirs)
    changes = migrating.migrate(None, store)
    again = migrating.migrate(None, store)
    options = next(iter(store.database.list_collections(filter={"name": "designs"})))["options"]

    assert "left the validator of designs, which fwdb did not make, as it is." in [
        change.sentence for change in changes
    ]
    assert again == []
    assert options["validator"] == theirs
    validators = [d for d in migrating.drift(None, store) if d.object == "designs.validator"]
    assert [d.severity for d in validators] == ["information"]


def test_a_validator_of_ours_that_was_loosened_is_drift_and_is_set_again(store):
    """Whoever removed it for an import may have forgotten to put it back."""
    migrating.migrate(None, store)
    store.database.command("collMod", "designs", validator={})
    drift = [d.sentence for d in migrating.drift(None, store) if d.severity == "warning"]
    changes = migrating.migrate(None, store)

    assert drift == ["designs has no validator."]
    assert kinds(changes) == [("validator", "designs")]
    assert [d for d in migrating.drift(None, store) if d.severity == "warning"] == []


def test_documents_are_kept_as_they_were_before_changes(store):
    """The audit trail takes old values from them; one that lost the option is drift."""
    changes = migrating.migrate(None, store)
    store.database.command({"collMod": "designs", mongodb.IMAGES: {"enabled": False}})
    drift = [d.sentence for d in migrating.drift(None, store) if d.severity == "warning"]
    again = migrating.migrate(None, store)

    assert ("images", "designs") in kinds(changes)
    assert kinds(again) == [("images", "designs")]
    assert [sentence.partition(",")[0] for sentence in drift] == [
        "designs keeps no documents before changes"
    ]


def test_an_account_that_may_not_have_documents_kept_goes_on_without(store):
    """It is said once, and kept with the reason."""
    migrating.migrate(None, store)
    name = store.database.name
    store.client.admin.command(
        "createUser", f"{name}_reader", pwd="secret", roles=[{"role": "read", "db": name}]
    )
    url = make_url(store.url).set(username=f"{name}_reader", password="secret")
    reader = MongoStore(url.render_as_string(hide_password=False))
    store.database.command({"collMod": "designs", mongodb.IMAGES: {"enabled": False}})
    said: list = []
    asked = mongodb._Collection(reader, mongodb.declarations()[0], said.append)
    found = list(asked._apply_images())
    asked.refused = {entry["name"]: entry["reason"] for entry in found}
    assert list(asked._apply_images()) == found
    drift = [d.sentence for d in asked.differences() if d.object == "designs.images"]
    reader.close()
    store.client.admin.command("dropUser", f"{name}_reader")

    assert [entry["name"] for entry in found] == [mongodb.IMAGES]
    assert len(said) == 1
    assert [found[0]["reason"] in sentence for sentence in drift] == [True]
