"""The changes of `designs` in the trail: each once, in order; what was not seen is a gap."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import bson
import pymongo
import pytest
from bson import ObjectId, Timestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pymongo.hello import Hello
from support.sql import ask, do, value
from support.urls import url_of

from fwdb import config, errors, migrating, models
from fwdb.audit import runs, values
from fwdb.audit.cdc import consumer, resync
from fwdb.audit.cdc.document import plain
from fwdb.database import Database
from fwdb.models import entity_uuid
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.changes import ChangeFeed, present

OWNER = "6f1dbfd0-0000-4000-8000-000000000001"
GOOD = {"userId": OWNER, "name": "N", "status": "draft"}


@pytest.fixture
def db(module_db: Database) -> Iterator[Database]:
    """An empty collection and an empty trail, nothing followed."""
    module_db.mongodb.collection("designs").delete_many({})
    for table in ("audit_logs", "followers", "gaps"):
        do(module_db.postgres, f"TRUNCATE audit.{table}")
    yield module_db
    if "designs" not in module_db.mongodb.database.list_collection_names():
        migrating.migrate(None, module_db.mongodb)


def designs(db: Database) -> Any:
    return db.mongodb.collection("designs")


def rows(db: Database, where: str = "true") -> list[dict[str, Any]]:
    """The rows of the follower in the order of the changes."""
    return ask(
        db.postgres,
        "SELECT id, CAST(action AS text) AS action, entity_id, user_id, old_values, new_values,"
        " metadata, created_at FROM audit.audit_logs"
        f" WHERE origin = 'follower' AND {where} ORDER BY created_at, id",
    )


def replayed(db: Database) -> dict[str, dict[str, Any]]:
    """The documents as the trail has them, without `updatedAt` and fields that are null."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows(db):
        key, old, new = str(row["entity_id"]), row["old_values"], row["new_values"]
        if row["action"] == "CREATE":
            assert key not in found, "made twice"
            found[key] = dict(new)
        elif new is None:
            gone = found.pop(key)
            assert compact(old) == compact(gone), "the old values are not those of the trail"
        else:
            for name, value in old.items():
                assert name == "updatedAt" or found[key].get(name) == value, name
            found[key].update(new)
    return {key: compact(document) for key, document in found.items()}


def compact(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if v is not None and k != "updatedAt"}


def stored(db: Database) -> dict[str, dict[str, Any]]:
    """The documents of MongoDB in the same form."""
    return {
        str(entity_uuid(str(one["_id"]))): compact(values.image(plain(one) or {}))
        for one in designs(db).find()
    }


def state(db: Database) -> dict[str, Any]:
    return dict(value(db.postgres, "SELECT state FROM audit.followers"))


def set_state(db: Database, **parts: Any) -> None:
    change = "UPDATE audit.followers SET state = state || CAST(:parts AS jsonb)"
    do(db.postgres, change, parts=json.dumps(parts))


def test_the_first_run_writes_what_is_there_and_the_next_what_changed(db):
    """Without the first rows nobody could go back in time to a document that then changed."""
    never = db.audit.follower()
    id = designs(db).insert_one(dict(GOOD)).inserted_id
    first = db.audit.follow(once=True)
    designs(db).update_one({"_id": id}, {"$set": {"name": "M"}})
    second = db.audit.follow(once=True)
    third = db.audit.follow(once=True)

    # Nothing is measured of what was never followed: zero would read as all is recorded.
    assert (never.running, never.position_at) == (False, None)
    assert {never.lag_seconds.status, never.events_behind.status} == {"not_measured"}
    assert "fwdb audit follow" in never.lag_seconds.reason
    assert (first.changes, second.changes, third.changes) == (1, 1, 0)
    found = [(r["action"], r["metadata"], r["old_values"], r["new_values"]) for r in rows(db)]
    assert found == [
        ("CREATE", "baseline", None, {**GOOD, "_id": str(id)}),
        ("UPDATE", None, {"name": "N"}, {"name": "M"}),
    ]
    history = db.audit.history("Design", str(id))
    assert list(history["changed_fields"]) == ["_id, name, status, userId", "name"]
    assert len(db.audit.gaps()) == 0


def test_a_follower_in_a_thread_records_what_happens_in_its_block(db, wait_until):
    with db.audit.following():
        wait_until(lambda: db.audit.follower().events_behind.status == "ok")
        status = db.audit.follower()
        made = [db.designs.create(user_id=OWNER, name=str(n)) for n in range(20)]
    after = db.audit.follower()

    assert (status.running, after.running) == (True, False)
    assert (status.events_behind.value, status.images) == (0, True)
    assert status.lag_seconds.value is not None
    assert replayed(db) == stored(db)
    assert len(rows(db)) == len(made) == after.changes
    assert after.lag_seconds.value is not None
    assert after.events_behind.status == "not_measured"


# -- each change once -------------------------------------------------------------------------

KEYS = [ObjectId(f"{n:024x}") for n in range(1, 4)]
WORDS = st.sampled_from(["a", "b", "c"])
LAYERS = st.lists(st.fixed_dictionaries({"id": WORDS, "visible": st.booleans()}), max_size=3)
CHANGES = st.one_of(
    st.fixed_dictionaries({"$set": st.fixed_dictionaries({"name": WORDS, "layers": LAYERS})}),
    st.fixed_dictionaries({"$set": st.fixed_dictionaries({"metadata.tags": st.lists(WORDS)})}),
    st.just({"$set": {"layers.1.color": "red"}}),
    st.fixed_dictionaries({"$push": st.fixed_dictionaries({"catalogItemIds": WORDS})}),
    st.fixed_dictionaries({"$push": st.just({"layers": {"$each": [{"id": "p"}], "$slice": -2}})}),
    st.just({"$pull": {"catalogItemIds": "a"}}),
    st.just({"$unset": {"metadata": "", "avatarId": ""}}),
    st.just({"$inc": {"version": 1}}),
    st.just({"$rename": {"avatarId": "oldAvatarId"}}),
    st.fixed_dictionaries({"$set": st.fixed_dictionaries({"deletedAt": st.none()})}),
    st.just({"$set": {"deletedAt": datetime(2026, 11, 1, tzinfo=UTC)}}),
    st.just([{"$set": {"name": {"$concat": ["$name", "x"]}, "avatarId": "$userId"}}]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["update", "many", "replace", "find", "delete", "bulk", "transaction"]),
        st.sampled_from(KEYS),
        CHANGES,
    ),
    min_size=5,
    max_size=20,
)


def step(db: Database, verb: str, key: ObjectId, change: Any) -> None:
    """One of the ways to change documents; what the server refuses changes nothing."""
    collection, one = designs(db), {"_id": key}

    def transaction() -> None:
        with db.mongodb.transaction() as session:
            for _ in range(2):  # the second may be equal to the first
                collection.update_many({}, change, session=session)

    replacement, another = {**GOOD, "name": "replaced"}, {**GOOD, "version": 1}
    both = [pymongo.UpdateOne(one, change), pymongo.InsertOne(another)]
    ways: dict[str, Callable[[], Any]] = {
        "update": lambda: collection.update_one(one, change, upsert=True),
        "many": lambda: collection.update_many({}, change),
        "replace": lambda: collection.replace_one(one, replacement, upsert=True),
        "find": lambda: collection.find_one_and_update(one, change),
        "delete": lambda: collection.delete_one(one),
        "bulk": lambda: collection.bulk_write(both),
        "transaction": transaction,
    }
    with contextlib.suppress(pymongo.errors.PyMongoError, errors.FwdbError):
        ways[verb]()


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
@given(steps=STEPS)
def test_the_trail_replayed_gives_the_documents(module_db, steps):
    """Whatever was done to them, and wherever the follower began anew."""
    db = module_db
    do(db.postgres, "TRUNCATE audit.audit_logs, audit.followers")
    designs(db).delete_many({})
    designs(db).insert_many([{**GOOD, "_id": key, "avatarId": "v"} for key in KEYS])
    db.audit.follow(once=True)
    for number, (verb, key, change) in enumerate(steps):
        step(db, verb, key, change)
        if number == len(steps) // 2:
            db.audit.follow(once=True)
    db.audit.follow(once=True)

    assert replayed(db) == stored(db)
    assert db.audit.follow(once=True).changes == 0


def test_equal_changes_of_one_transaction_are_all_recorded(db):
    """They have one cluster time; and what is rolled back is not there."""
    id = designs(db).insert_one({**GOOD, "n": 0}).inserted_id
    db.audit.follow(once=True)
    with db.mongodb.transaction() as session:
        for change in ({"$set": {"n": 1}}, {"$set": {"n": 0}}, {"$set": {"n": 1}}):
            designs(db).update_one({"_id": id}, change, session=session)
    with db.mongodb.transaction() as session:
        designs(db).update_one({"_id": id}, {"$set": {"n": 9}}, session=session)
        session.abort_transaction()
    db.audit.follow(once=True)
    db.audit.follow(once=True)

    assert [row["new_values"]["n"] for row in rows(db)] == [0, 1, 0, 1]


def test_a_deletion_names_whom_the_event_before_named(db):
    """A mark that stayed in a document after another change names nobody."""
    made = designs(db).insert_many([dict(GOOD), dict(GOOD)]).inserted_ids
    db.audit.follow(once=True)
    for id in made:
        mark = {"by": OWNER, "nonce": str(id), "deleting": True}
        designs(db).update_one({"_id": id}, {"$set": {"_audit": mark}})
    db.audit.follow(once=True)  # what was announced survives a restart
    designs(db).update_one({"_id": made[1]}, {"$set": {"name": "changed in between"}})
    for id in made:
        designs(db).delete_one({"_id": id})
    db.audit.follow(once=True)

    assert [(r["action"], r["user_id"] and str(r["user_id"])) for r in rows(db)][2:] == [
        ("UPDATE", None),
        ("DELETE", OWNER),
        ("DELETE", None),
    ]


# -- the end of a collection ------------------------------------------------------------------


def test_a_dropped_collection_deletes_all_its_documents_and_following_goes_on(db):
    """MongoDB tells of the collection only, not of its documents."""
    designs(db).insert_many([dict(GOOD), dict(GOOD)])
    db.audit.follow(once=True)
    designs(db).update_many({}, {"$set": {"name": "M"}})
    designs(db).drop()
    designs(db).insert_one({**GOOD, "name": "after"})
    db.audit.follow(once=True)
    again = db.audit.follow(once=True)

    assert [(r["action"], r["metadata"]) for r in rows(db)][4:] == [
        ("DELETE", "collection dropped"),
        ("DELETE", "collection dropped"),
        ("CREATE", None),
    ]
    assert [row["old_values"]["name"] for row in rows(db, "action = 'DELETE'")] == ["M", "M"]
    assert replayed(db) == stored(db)
    assert (again.changes, len(db.audit.gaps())) == (0, 0)
    designs(db).rename("designs_before")  # which is gone, too
    db.audit.follow(once=True)
    db.mongodb.database.drop_collection("designs_before")
    assert rows(db)[-1]["metadata"] == "collection renamed"


def test_another_collection_under_the_name_is_compared(db):
    """A restored copy, renamed into place, of which not each change is known."""
    kept = designs(db).insert_one(dict(GOOD)).inserted_id
    designs(db).insert_one(dict(GOOD))
    db.audit.follow(once=True)
    other = db.mongodb.collection("restored")
    other.insert_many([{**GOOD, "_id": kept, "name": "older"}, {**GOOD, "name": "new"}])
    other.rename("designs", dropTarget=True)
    db.audit.follow(once=True)
    migrating.migrate(None, db.mongodb)

    assert replayed(db) == stored(db)
    assert db.audit.follow(once=True).changes == 0
    # SecantusDB tells nobody that another took the place, or tells that the old one was dropped.
    assert len(db.audit.gaps()) + len(rows(db, "metadata = 'collection dropped'")) > 0


# -- what is lost -----------------------------------------------------------------------------


def lost_token(db: Database) -> str:
    """A token from before the oldest change that the server has."""
    name = f"{db.mongodb.database.name}.designs"
    inner = bson.encode({"s": 0, "t": Timestamp(1, 1), "n": name, "k": {}})
    return json.dumps({"_data": inner.hex()})


def test_changes_that_the_server_no_longer_has_are_a_gap_and_what_differs_is_recorded(db):
    """Not skipped, and not made up: who did them is not known."""
    if not db.mongodb.is_secantus:
        pytest.skip("the token is one of SecantusDB")
    ids = designs(db).insert_many([dict(GOOD) for _ in range(3)]).inserted_ids
    db.audit.follow(once=True)
    designs(db).update_one({"_id": ids[0]}, {"$set": {"name": "M", "deletedAt": None}})
    designs(db).delete_one({"_id": ids[1]})
    designs(db).insert_one({**GOOD, "name": "new"})
    set_state(db, token=lost_token(db))
    followed = db.audit.follow(once=True)
    gaps = db.audit.gaps()

    assert (followed.changes, followed.gaps) == (3, 1)
    found = rows(db, "metadata = 'found after a gap'")
    assert sorted(row["action"] for row in found) == ["CREATE", "DELETE", "UPDATE"]
    assert [r["new_values"] for r in found if r["action"] == "UPDATE"] == [{"name": "M"}]
    assert {row["user_id"] for row in found} == {None}
    assert replayed(db) == stored(db)
    assert list(gaps["differences"]) == [3]
    assert gaps["reason"][0] == "the server no longer has the changes"
    assert gaps["since"][0] < gaps["until"][0]
    assert db.audit.follower().gaps == 1


def test_recorded_changes_that_the_server_lost_are_a_gap_and_taken_back(db):
    """As after kill -9 of a server that had not written them to disk yet."""
    id = designs(db).insert_one(dict(GOOD)).inserted_id
    db.audit.follow(once=True)
    designs(db).update_one({"_id": id}, {"$set": {"name": "kept"}})
    db.audit.follow(once=True)
    # Another event of the same time: of a document that does not exist.
    do(
        db.postgres,
        """
        INSERT INTO audit.audit_logs
            (id, created_at, action, entity_type, entity_id, new_values, origin)
        SELECT CAST(overlay(CAST(id AS text) PLACING '000000000001' FROM 25) AS uuid), created_at,
            'CREATE', 'Design', gen_random_uuid(), new_values || '{"_id": "lost"}', 'follower'
        FROM audit.audit_logs WHERE action = 'UPDATE'""",
    )
    followed = db.audit.follow(once=True)

    assert (followed.changes, followed.gaps) == (1, 1)
    assert db.audit.gaps()["reason"][0].startswith("the server lost 1 recorded changes")
    assert [(r["action"], r["metadata"]) for r in rows(db)][-1] == ("DELETE", "found after a gap")
    assert replayed(db) == stored(db)
    assert db.audit.follow(once=True).gaps == 0


def test_a_server_that_is_behind_is_a_gap_and_one_without_a_token_none(db):
    """As one that was restored from a backup; without a token it goes on by time."""
    designs(db).insert_one(dict(GOOD))
    db.audit.follow(once=True)
    designs(db).update_one({}, {"$set": {"name": "M"}})
    set_state(db, token=None)
    assert db.audit.follow(once=True).changes == 1
    assert replayed(db) == stored(db)
    set_state(db, time=[state(db)["time"][0] + 1000, 1])

    assert db.audit.follow(once=True).gaps == 1
    assert "behind" in db.audit.gaps()["reason"][0]
    designs(db).insert_one(dict(GOOD))
    assert db.audit.follow(once=True).changes == 1


# -- what is too large ------------------------------------------------------------------------


def test_more_than_fits_into_an_answer_is_read_a_part_at_a_time(db):
    """SecantusDB gives 200 events in one message, whatever their size; the driver takes 48 MB."""
    id = designs(db).insert_one({**GOOD, "n": -1}).inserted_id
    db.audit.follow(once=True)
    before = present(db.mongodb, "designs").time
    for n in range(40):
        big = str(n % 10) * 700_000
        designs(db).update_one({"_id": id}, {"$set": {"n": n, "big": big}})
    followed = db.audit.follow(once=True)
    feed = ChangeFeed(db.mongodb, "designs", at=before, wait_ms=50, fetch=5)
    held = feed.read(5, seconds=60), feed.read(30, seconds=60)
    feed.close()

    assert (followed.events, followed.changes, followed.gaps) == (40, 40, 0)
    assert [row["new_values"]["n"] for row in rows(db)] == list(range(-1, 40))
    assert replayed(db) == stored(db)
    assert [len(batch.events) for batch in held] == [5, 12]  # 16 MB
    assert db.audit.follow(once=True).changes == 0


@pytest.mark.parametrize("most", [1, 1500])
def test_a_look_at_large_documents_writes_a_part_at_a_time(db, most, monkeypatch):
    """PostgreSQL takes 1 GB in one statement, which a thousand designs can be larger than."""
    monkeypatch.setattr(resync, "_MOST_CHARACTERS", most)
    designs(db).insert_many([{**GOOD, "big": "x" * 1000} for _ in range(5)])

    assert db.audit.follow(once=True).changes == 5
    assert replayed(db) == stored(db)


@pytest.fixture
def narrow(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The same stores, but the driver takes answers of 100 kB: events can be larger than that."""
    monkeypatch.setattr(Hello, "max_message_size", property(lambda _: 100_000))
    mongodb = MongoStore(url_of(db.mongodb), settings=db.settings)
    with Database(db.postgres, mongodb, settings=db.settings) as made:
        yield made


def test_following_with_less_at_a_time_gets_on_and_asks_for_more_again(db, narrow, monkeypatch):
    """Each failure reads the last 10 s again: more is tried after so many new events only."""
    monkeypatch.setattr(consumer, "BATCH", 16)
    id = designs(db).insert_one({**GOOD, "n": -1}).inserted_id
    narrow.audit.follow(once=True)
    for n in range(100):
        designs(db).update_one({"_id": id}, {"$set": {"n": n, "big": str(n % 7) * 12_000}})
    followed = narrow.audit.follow(once=True)

    assert (followed.events, followed.changes, followed.gaps) == (100, 100, 0)
    assert [row["new_values"]["n"] for row in rows(db)] == list(range(-1, 100))


@pytest.mark.parametrize(
    ("steps", "seen"), [("L", []), ("ssLs", [0, 1, 3]), ("sTs", [0, 2]), ("LL", []), ("sLsL", [0])]
)
def test_a_single_change_that_is_too_large_is_a_gap(db, narrow, steps, seen):
    """Those around it are recorded each, unless a second one hides the documents of then. T is a
    transaction, whose changes have one cluster time."""
    big, small = designs(db).insert_many([{**GOOD, "big": "x" * 70_000}, dict(GOOD)]).inserted_ids
    narrow.audit.follow(once=True)
    for n, one in enumerate(steps):
        changes = [(big, {"big": str(n) * 70_000})] * (one != "s") + [(small, {"n": n})]
        if one == "T":
            changes.insert(0, (small, {"m": n}))
        with db.mongodb.transaction() as session:
            for id, change in changes[: None if one == "T" else 1]:
                designs(db).update_one({"_id": id}, {"$set": change}, session=session)
    followed = narrow.audit.follow(once=True)
    gaps = narrow.audit.gaps()

    assert followed.gaps == 1
    assert gaps["reason"][0] == f"a change is too large to be read: update of design {entity(big)}"
    assert gaps["differences"][0] == len(rows(db, "metadata = 'found after a gap'")) > 0
    assert [r["new_values"]["n"] for r in rows(db, "metadata IS NULL AND new_values ? 'n'")] == seen
    assert replayed(db) == stored(db)
    assert narrow.audit.follow(once=True).changes == 0


def entity(id: ObjectId) -> str:
    return str(entity_uuid(str(id)))


# -- another collection -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(models.Record):
    """An entity that only this test knows."""

    id: str
    text: str | None = None
    version: int = 1


@pytest.fixture
def notes(db: Database) -> Iterator[Any]:
    """The collection of a second entity, which its declaration alone makes known."""
    models.DocumentEntity(Note, "notes", "Notes.")
    images = {"changeStreamPreAndPostImages": {"enabled": True}}
    yield db.mongodb.database.create_collection("notes", **images)
    db.mongodb.database.drop_collection("notes")
    del models.ENTITIES["Note"], models.COLLECTIONS["notes"]


def test_a_second_collection_needs_its_declaration_alone(db, notes):
    """It is followed, asked for, gone back in, brought back and looked for as the first is."""
    id = notes.insert_one({"text": "a", "version": 1}).inserted_id
    designs(db).insert_one(dict(GOOD))
    db.audit.follow(once=True)
    notes.update_one({"_id": id}, {"$set": {"text": "b"}})
    designs(db).update_many({}, {"$set": {"name": "M"}})
    with db.audit.following():
        designs(db).update_many({}, {"$set": {"name": "N"}})
    history = db.audit.history("Note", str(id))

    assert list(history["action"]) == ["CREATE", "UPDATE"]
    assert replayed(db).keys() == {entity(id), *stored(db)}
    assert db.audit.as_of("Note", history["created_at"][0], id=str(id))["text"].tolist() == ["a"]
    assert db.audit.follower("notes").changes == 2
    assert set(db.audit.coverage().query("kind == 'follower'")["object"]) == {"designs", "notes"}
    db.audit.revert(event=history["id"][1], dry_run=False)
    assert notes.find_one()["text"] == "a"
    assert db.audit.follow(once=True).changes == 1


# -- who may, and where -----------------------------------------------------------------------


def test_a_second_follower_says_that_there_is_one(db):
    with (
        runs.alone(db.postgres, "follow designs", ""),
        pytest.raises(errors.Conflict, match=r"another follower of designs is running \(sess"),
    ):
        db.audit.follow(once=True)


def test_a_follower_that_lost_its_turn_writes_nothing_more(db, wait_until):
    """Its lock may be gone with a connection that it did not miss yet."""
    holder = "SELECT CAST(holder AS text) AS holder FROM audit.followers"
    stop = threading.Event()
    pool = ThreadPoolExecutor(1)
    following = pool.submit(db.audit.follow, stop=stop)
    try:
        wait_until(lambda: db.audit.follower().events_behind.status == "ok")
        do(db.postgres, "UPDATE audit.followers SET holder = gen_random_uuid()")
        other = ask(db.postgres, holder)
        designs(db).insert_one(dict(GOOD))
        # It begins anew, as the lock is free, and gets a holder of its own again.
        wait_until(lambda: len(rows(db)) == 1)
    finally:
        stop.set()
    following.result()

    assert ask(db.postgres, holder) != other
    assert len(rows(db)) == 1


@pytest.mark.parametrize("down", ["postgres", "mongodb"])
def test_a_store_that_is_down_at_the_start_is_said(db, down):
    quick = config.settings().model_copy(update={"connect_timeout_seconds": 0.5})
    postgres, mongodb = db.postgres, db.mongodb
    if down == "postgres":
        postgres = PostgresStore("postgresql://x@127.0.0.1:9/x", settings=quick)
    else:
        mongodb = MongoStore("mongodb://127.0.0.1:9/x", settings=quick)
    other = Database(postgres, mongodb, settings=quick)

    with pytest.raises(errors.StoreUnavailable, match=f"no .* {down} at"):
        other.audit.follow(once=True)
    if down == "mongodb":
        assert db.audit.follow(once=True).events == 0  # its lock is free again
        mongodb.close()
        status = other.audit.follower()
        assert status.lag_seconds.status == "not_measured"


def test_an_adopted_trail_takes_the_rows(db, postgres_database, existing):
    """Its `action` is an enum, and its key refuses a user who does not exist."""
    store = PostgresStore(postgres_database())
    do(store, existing)
    migrating.migrate(store, None)
    user = value(store, "INSERT INTO shared.users (email) VALUES ('a@example.com') RETURNING id")
    adopted = Database(store, db.mongodb, settings=db.settings)
    adopted.audit.follow(once=True)
    for by in (str(user), OWNER):
        designs(db).insert_one({**GOOD, "_audit": {"by": by, "nonce": by}})
    adopted.audit.follow(once=True)

    assert [row["user_id"] for row in rows(adopted)] == [user, None]
    assert adopted.audit.follow(once=True).changes == 0
    store.close()


def test_without_images_what_is_known_is_recorded_and_said(db):
    """A server that keeps no documents before changes cannot tell old values."""
    id = designs(db).insert_one(dict(GOOD)).inserted_id
    db.mongodb.database.command(
        {"collMod": "designs", "changeStreamPreAndPostImages": {"enabled": False}}
    )
    said: list[str] = []
    db.audit.follow(once=True, progress=said.append)
    designs(db).update_one({"_id": id}, {"$set": {"name": "M"}})
    db.audit.follow(once=True)
    drift = [one.sentence for one in migrating.drift(None, db.mongodb)]
    migrating.migrate(None, db.mongodb)

    assert any("fwdb migrate" in sentence for sentence in said)
    assert any("no documents before changes" in sentence for sentence in drift)
    last = rows(db)[-1]
    assert (last["old_values"], last["new_values"]) == (None, {"name": "M"})
    assert "no pre-image" in last["metadata"]
    assert db.audit.follower().images is False
