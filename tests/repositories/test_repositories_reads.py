"""`with_read_audit()`: what a repository of either store gives out stands in the trail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from support.statements import sent
from support.urls import url_of

from fwdb import models
from fwdb.database import Database
from fwdb.errors import FeatureUnavailable, NotFound, ParameterError, PermissionDenied
from fwdb.models import entity_id
from fwdb.repositories import MongoRepository, PostgresRepository, Repository
from fwdb.stores import PostgresStore

ANA = str(uuid4())


@pytest.fixture(params=["postgres", "mongodb"])
def plain(request: pytest.FixtureRequest, module_db: Database) -> Repository[Any]:
    """Five catalog items or designs, and a trail without readings."""
    db = module_db
    if request.param == "postgres":
        db.postgres.execute(sa.text("DELETE FROM catalog.catalog_items"))
        db.catalog_items.create_many({"name": f"item {n}", "type": "fabric"} for n in range(5))
    else:
        db.mongodb.collection("designs").delete_many({})
        db.designs.create_many({"name": f"item {n}", "user_id": ANA} for n in range(5))
    db.postgres.execute(sa.text("DELETE FROM audit.audit_logs WHERE action = 'READ'"))
    return db.catalog_items if request.param == "postgres" else db.designs


@pytest.fixture
def items(plain: Repository[Any]) -> Repository[Any]:
    return plain.with_read_audit()


@pytest.fixture
def readings(module_db: Database, plain: Repository[Any]) -> Any:
    """The readings recorded so far, ids as their store knows them, sorted."""
    statement = sa.text(
        "SELECT entity_type, entity_id, user_id, metadata, reason, origin FROM audit.audit_logs"
        " WHERE action = 'READ'"
    )

    def read() -> list[dict[str, Any]]:
        rows = module_db.postgres.rows(statement)
        assert {row["entity_type"] for row in rows} <= {plain.entity.__name__}
        return sorted(
            ({**row, "id": entity_id(row["entity_id"])} for row in rows), key=lambda row: row["id"]
        )

    return read


@pytest.mark.parametrize(
    "ask",
    [
        lambda items, id: [items.get(id)],
        lambda items, id: [items.first(sort="name")],
        lambda items, id: items.find(name__like="item%"),
        lambda items, id: items.page(size=2, sort="name").items,
        lambda items, id: items.after(size=3, sort="name").items,
        lambda items, id: list(items.iterate(batch=2)),
    ],
    ids=["get", "first", "find", "page", "after", "iterate"],
)
def test_every_entity_given_out_is_recorded_once(items, readings, ask):
    """Those looked at beyond the page or the slice are not given out."""
    id = items.with_deleted()._rows([], limit=1)[0]["id"]
    given = ask(items, str(id))

    assert [row["id"] for row in readings()] == sorted(str(entity.id) for entity in given)
    assert all(row["origin"] == "application" for row in readings())


@pytest.mark.parametrize("columns", [None, ["name"], ["name", "id"]])
def test_a_frame_records_its_rows(items, readings, columns):
    """Whether or not it shows the ids, which columns it has stays as asked."""
    frame = items.frame(columns, limit=3)

    assert len(readings()) == len(frame) == 3
    if columns:
        assert list(frame) == columns
    assert len(items.head(2)) == 2
    assert len(readings()) == 5


def test_who_reads_is_who_acts(module_db, items, readings):
    """With the reason; without a context the reading names nobody."""
    with module_db.audit.context(user_id=ANA, reason="support"):
        items.first()
    items.first()

    found = sorted((str(row["user_id"]), str(row["reason"])) for row in readings())
    assert found == sorted([(ANA, "support"), ("None", "None")])


def test_it_is_one_statement_whatever_was_read(module_db, items):
    """And none when nothing was."""
    items.find()  # the function is looked for once
    with sent(module_db.postgres) as seen:
        items.find()
        items.find(name="nothing of this name")
    assert len([statement for statement, _ in seen if "record_reads" in statement]) == 1


def test_counting_and_writing_are_no_reading(items, readings):
    """Only what is asked for is read."""
    made = items.create(name="item 9", **_needed(items))
    items.update(made.id, name="item 10")
    items.upsert(id=made.id, name="item 11", **_needed(items))
    items.soft_delete(made.id)
    items.restore(made.id)
    items.delete(made.id)
    items.count()
    items.exists(name="item 1")
    with pytest.raises(NotFound):
        items.get(made.id)
    assert readings() == []


def _needed(items: Repository[Any]) -> dict[str, str]:
    return {"type": "fabric"} if "type" in items.fields else {"user_id": ANA}


def test_the_repository_itself_goes_on_without(plain, items, readings):
    """Only the one that was asked for it records; deleted rows are read as others are."""
    plain.find()
    assert readings() == []
    plain.soft_delete(plain.find(limit=1)[0].id)
    assert len(items.with_deleted().find()) == len(readings()) == 5


def test_a_reading_in_a_transaction_goes_with_it(module_db, items, readings):
    """What is rolled back was still read, and yet the caller wanted all or nothing."""
    with contextlib.suppress(ZeroDivisionError), module_db.transaction():
        items.find()
        assert len(readings()) == 5
        raise ZeroDivisionError
    assert readings() == []


@pytest.fixture
def reader(module_db: Database) -> Iterator[PostgresStore]:
    url = url_of(module_db.postgres)
    store = PostgresStore(url, read_only=True)
    yield store
    store.close()


def test_what_cannot_be_recorded_is_not_given_out(module_db, plain, reader):
    """The error of the trail is the answer."""
    if isinstance(plain, MongoRepository):
        closed: Repository[Any] = MongoRepository(module_db.mongodb, models.DESIGNS, trail=reader)
    else:
        closed = PostgresRepository(reader, models.CATALOG_ITEMS)
    for ask in (closed.find, closed.frame, closed.first):
        assert ask() is not None
    recording = closed.with_read_audit()
    for ask in (recording.find, recording.frame, recording.first):
        with pytest.raises(PermissionDenied):
            ask()


def test_a_sample_says_that_it_is_one(plain, readings):
    """So that whoever counts can tell how many there were."""
    some = plain.with_read_audit(sample=0.5)
    for _ in range(40):
        some.find()

    found = readings()
    assert 50 < len(found) < 150  # of 200; by chance once in 10^12
    assert {row["metadata"] for row in found} == {'{"sample": 0.5}'}


@pytest.mark.parametrize("sample", [0, -1, 1.5, True, float("nan")])
def test_a_share_that_is_none_is_refused(plain, sample):
    """With the form to use."""
    with pytest.raises(ParameterError, match="give a number above 0 up to 1"):
        plain.with_read_audit(sample=sample)


def test_reads_need_a_trail_and_are_not_of_the_trail(module_db):
    """Said when the repository is made, before anything is read."""
    with pytest.raises(FeatureUnavailable, match="knows no PostgreSQL"):
        MongoRepository(module_db.mongodb, models.DESIGNS).with_read_audit()
    with pytest.raises(FeatureUnavailable, match="not recorded in it"):
        module_db.audit_logs.with_read_audit()
