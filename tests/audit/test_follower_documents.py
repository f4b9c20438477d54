"""Events as MongoDB documents them, turned into what the trail keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId

from fwdb.audit.cdc import document
from fwdb.models import entity_id
from fwdb.stores.changes import ChangeEvent, ClusterTime

KEY = ObjectId("65a1b2c3d4e5f60718293a4b")
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
ANA = "6f1dbfd0-0000-4000-8000-000000000001"


def event(operation: str = "update", **parts: Any) -> ChangeEvent:
    usual: dict[str, Any] = {
        "time": ClusterTime(1_793_534_400, 1),
        "at": NOON,
        "token": "{}",
        "key": KEY,
        "updated": {},
        "removed": (),
        "truncated": (),
        "paths": {},
        "transaction": None,
        "to": None,
        "digest": b"12345678",
    }
    return ChangeEvent(operation=operation, **{**usual, **parts})


def row(found: ChangeEvent, **options: Any) -> Any:
    made = document.row(found, document.after(found), 0, **options)
    nobody = dict.fromkeys(("user_id", "ip_address", "user_agent", "reason"))
    return made and SimpleNamespace(**{**nobody, **made})


# https://www.mongodb.com/docs/manual/reference/change-events/update/
@pytest.mark.parametrize(
    ("before", "parts", "after"),
    [
        (
            {"_id": 1, "email": "a@x", "phone": "1"},
            {"updated": {"email": "b@x"}, "removed": ("phone",)},
            {"_id": 1, "email": "b@x"},
        ),
        (
            {"_id": 1, "numbers": [1, 2, 3, 4]},
            {"truncated": (("numbers", 2),), "updated": {"numbers.0": 9}},
            {"_id": 1, "numbers": [9, 2]},
        ),
        (
            {"_id": 1, "a": {"list": [1, 2, 3]}},
            {"truncated": (("a.list", 0),)},
            {"_id": 1, "a": {"list": []}},
        ),
        (
            {"_id": 1, "layers": [{"id": "1"}]},
            {"updated": {"layers.1": {"id": "2"}}},
            {"_id": 1, "layers": [{"id": "1"}, {"id": "2"}]},
        ),
        (
            {"_id": 1, "layers": [{"id": "1", "color": "red"}]},
            {"updated": {"layers.0.visible": True}, "removed": ("layers.0.color",)},
            {"_id": 1, "layers": [{"id": "1", "visible": True}]},
        ),
        ({"_id": 1, "n": [1]}, {"updated": {"n.3": 4}}, {"_id": 1, "n": [1, None, None, 4]}),
        # A number may be the name of a field: what is there decides.
        ({"_id": 1, "n": {"0": "a"}}, {"updated": {"n.0": "b"}}, {"_id": 1, "n": {"0": "b"}}),
        # A name may hold a dot: only the disambiguated paths tell.
        (
            {"_id": 1, "home.town": "A", "residences": [{"0": "x"}]},
            {
                "updated": {"home.town": "B", "residences.0.0": "y"},
                "paths": {"home.town": ["home.town"], "residences.0.0": ["residences", 0, "0"]},
            },
            {"_id": 1, "home.town": "B", "residences": [{"0": "y"}]},
        ),
        ({"_id": 1}, {"updated": {"a.b": 1}}, {"_id": 1, "a": {"b": 1}}),
        ({"_id": 1}, {"removed": ("gone", "gone.too")}, {"_id": 1}),
    ],
)
def test_an_update_is_applied_to_the_document_before(before, parts, after):
    """And the document before stays as it was, for the old values."""
    copy = {**before}
    assert document.applied(before, event(before=before, **parts)) == after
    assert before == copy


def test_a_row_has_the_fields_that_differ_in_plain_json():
    before = {"_id": KEY, "name": "A", "n": Int64(5), "price": Decimal128("1.10"), "kept": 1}
    found = row(
        event(before=before, updated={"n": Int64(2**53 + 1), "at": NOON}, removed=("name",))
    )

    assert found.action == "UPDATE"
    assert found.old_values == {"name": "A", "n": 5, "at": None}
    assert found.new_values == {"name": None, "n": 2**53 + 1, "at": "2026-11-01T12:00:00+00:00"}


def test_secrets_and_nul_never_reach_the_trail():
    before = {"_id": KEY, "apiToken": "one", "name": "a\0b"}
    found = row(event(before=before, updated={"apiToken": "two"}))

    assert (found.old_values, found.new_values) == (
        {"apiToken": "[redacted]"},
        {"apiToken": "[redacted: changed]"},
    )
    made = row(event("insert", after=before))
    assert made.new_values == {"_id": str(KEY), "apiToken": "[redacted]", "name": "a\ufffdb"}


def test_a_soft_deletion_is_a_deletion_with_both_values_and_coming_back_is_none():
    deleted = row(event(before={"_id": KEY, "name": "A"}, updated={"deletedAt": NOON}))
    back = row(event(before={"_id": KEY, "deletedAt": NOON}, removed=("deletedAt",)))

    assert (deleted.action, deleted.old_values) == ("DELETE", {"deletedAt": None})
    assert (back.action, back.new_values) == ("UPDATE", {"deletedAt": None})


@pytest.mark.parametrize(
    "updated",
    [{}, {"updatedAt": NOON}, {"_audit": {"by": ANA, "nonce": "1"}}, {"_audit.nonce": "2"}],
)
def test_an_update_of_nothing_that_is_kept_makes_no_row(updated):
    assert row(event(before={"_id": KEY, "name": "A"}, updated=updated)) is None


def test_the_actor_counts_only_where_this_change_wrote_it():
    """A mark that an earlier change left in the document says nothing of this one."""
    mark = {"by": ANA, "ip": "192.0.2.7", "userAgent": "curl", "reason": "why", "nonce": "1"}
    before = {"_id": KEY, "name": "A", "_audit": mark}
    stale = row(event(before=before, updated={"name": "B"}))
    fresh = row(event(before=before, updated={"name": "B", "_audit": {**mark, "nonce": "2"}}))
    parts = row(event(before=before, updated={"name": "B", "_audit.nonce": "3"}))
    replaced = row(event("replace", before=before, after={**before, "name": "B"}))
    made = row(event("insert", after=before))

    found = [one and one.user_id for one in (stale, fresh, parts, replaced, made)]
    assert found == [None, ANA, ANA, None, ANA]
    assert (fresh.ip_address, fresh.user_agent, fresh.reason) == ("192.0.2.7", "curl", "why")
    assert "_audit" not in {**((made and made.new_values) or {}), **(fresh.new_values or {})}


def test_a_deletion_was_done_by_whom_the_event_before_announced():
    mark = {"by": ANA, "nonce": "9", "deleting": True}
    told = event(before={"_id": KEY}, updated={"_audit": mark})
    gone = event("delete", before={"_id": KEY, "_audit": mark})
    nonce = document.announced(told, document.after(told))

    assert nonce == "9"
    by = [
        one and one.user_id for one in (row(gone, marked=nonce), row(gone), row(gone, marked="8"))
    ]
    assert by == [ANA, None, None]


def test_an_actor_that_is_no_uuid_is_said_in_the_metadata():
    mark = {"by": "ana", "nonce": "1"}
    found = row(event("insert", after={"_id": KEY, "_audit": mark}))

    assert (found.user_id, found.metadata) == (None, "actor 'ana' is no uuid")


def test_without_the_document_before_whole_fields_are_kept_and_it_is_said():
    found = row(event(updated={"name": "B", "layers.0.id": 1}, removed=("avatarId",)))
    gone = row(event("delete"))

    assert (found.old_values, found.new_values) == (None, {"avatarId": None, "name": "B"})
    assert "no pre-image" in (found.metadata or "")
    assert (gone.action, gone.old_values, gone.new_values) == ("DELETE", None, None)


def test_ids_of_rows_are_the_same_again_and_sort_as_the_changes_did():
    times = [ClusterTime(5, 1), ClusterTime(5, 2), ClusterTime(6, 1), ClusterTime(2_000_000_000, 9)]
    ids = [document.row_id(time, n, b"12345678") for time in times for n in (0, 1)]

    assert ids == sorted(ids) == [document.row_id(t, n, b"12345678") for t in times for n in (0, 1)]
    assert {id.version for id in ids} == {8}
    assert document.row_id(times[0], 0, b"other---") not in ids
    found = UUID(document.found_prefix(times[0]) + "0" * 11)
    assert document.is_found(found)
    assert not any(map(document.is_found, ids))
    assert ids[1] < found < ids[2]


def test_an_objectid_and_a_uuid_come_back_and_any_other_id_is_kept_apart():
    """Text that looks like an ObjectId is another document than the ObjectId."""
    keys: list[Any] = [KEY, ANA, str(KEY), ANA.upper(), 1, Int64(1), 1.0, "x", None]
    keys += [Binary(UUID(ANA).bytes, 4), {"a": 1}]
    found = [document.document_uuid(key) for key in keys]

    assert [entity_id(found[0][0]), str(found[1][0])] == [str(KEY), ANA]
    assert [note for _, note in found[:2]] == [None, None]
    assert len({uuid for uuid, _ in found}) == len(keys)
    assert found[4] == (found[4][0], 'document id {"$numberInt": "1"}')
