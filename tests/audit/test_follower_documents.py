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
    at = {"time": ClusterTime(1_793_534_400, 1), "at": NOON, "token": "{}", "key": KEY}
    what = {"updated": {}, "removed": (), "truncated": (), "paths": {}}
    usual: Any = at | what | {"transaction": None, "to": None, "digest": b"12345678"}
    return ChangeEvent(operation=operation, **{**usual, **parts})


def row(found: ChangeEvent, **options: Any) -> Any:
    made = document.row(found, document.after(found), 0, **options)
    nobody = dict.fromkeys(("user_id", "ip_address", "user_agent", "reason"))
    return made and SimpleNamespace(**{**nobody, **made})


# https://www.mongodb.com/docs/manual/reference/change-events/update/
UPDATES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"email": "a@x", "phone": "1"}, {"updated": {"email": "b@x"}, "removed": ("phone",)},
     {"email": "b@x"}),
    ({"numbers": [1, 2, 3, 4]}, {"truncated": (("numbers", 2),), "updated": {"numbers.0": 9}},
     {"numbers": [9, 2]}),
    ({"a": {"list": [1, 2, 3]}}, {"truncated": (("a.list", 0),)}, {"a": {"list": []}}),
    ({"layers": [{"id": "1"}]}, {"updated": {"layers.1": {"id": "2"}}},
     {"layers": [{"id": "1"}, {"id": "2"}]}),
    ({"layers": [{"id": "1", "color": "red"}]},
     {"updated": {"layers.0.visible": True}, "removed": ("layers.0.color",)},
     {"layers": [{"id": "1", "visible": True}]}),
    ({"n": [1]}, {"updated": {"n.3": 4}}, {"n": [1, None, None, 4]}),
    # A number may be the name of a field: what is there decides.
    ({"n": {"0": "a"}}, {"updated": {"n.0": "b"}}, {"n": {"0": "b"}}),
    # A name may hold a dot: only the disambiguated paths tell.
    ({"home.town": "A", "residences": [{"0": "x"}]},
     {"updated": {"home.town": "B", "residences.0.0": "y"},
      "paths": {"home.town": ["home.town"], "residences.0.0": ["residences", 0, "0"]}},
     {"home.town": "B", "residences": [{"0": "y"}]}),
    ({}, {"updated": {"a.b": 1}}, {"a": {"b": 1}}),
    ({}, {"removed": ("gone", "gone.too")}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "parts", "after"), UPDATES)
def test_an_update_is_applied_to_the_document_before(before, parts, after):
    """And the document before stays as it was, for the old values."""
    before, copy = {"_id": 1, **before}, {"_id": 1, **before}
    assert document.applied(before, event(before=before, **parts)) == {"_id": 1, **after}
    assert before == copy


# Of an event: action, old and new values, and what is said beside them.
ROWS = {
    "the fields that differ, in plain JSON": (
        event(
            before={"_id": KEY, "name": "A", "n": Int64(5), "price": Decimal128("1.10"), "kept": 1},
            updated={"n": Int64(2**53 + 1), "at": NOON},
            removed=("name",),
        ),
        ("UPDATE", {"name": "A", "n": 5, "at": None},
         {"name": None, "n": 2**53 + 1, "at": "2026-11-01T12:00:00+00:00"}, None),
    ),
    "no secret": (
        event(before={"_id": KEY, "apiToken": "one"}, updated={"apiToken": "two"}),
        ("UPDATE", {"apiToken": "[redacted]"}, {"apiToken": "[redacted: changed]"}, None),
    ),
    "neither a secret nor NUL of a new one": (
        event("insert", after={"_id": KEY, "apiToken": "one", "name": "a\0b"}),
        ("CREATE", None, {"_id": str(KEY), "apiToken": "[redacted]", "name": "a\ufffdb"}, None),
    ),
    "a soft deletion": (
        event(before={"_id": KEY, "name": "A"}, updated={"deletedAt": NOON}),
        ("DELETE", {"deletedAt": None}, {"deletedAt": "2026-11-01T12:00:00+00:00"}, None),
    ),
    "coming back": (
        event(before={"_id": KEY, "deletedAt": NOON}, removed=("deletedAt",)),
        ("UPDATE", {"deletedAt": "2026-11-01T12:00:00+00:00"}, {"deletedAt": None}, None),
    ),
    "an actor that is no uuid": (
        event("insert", after={"_id": KEY, "_audit": {"by": "ana", "nonce": "1"}}),
        ("CREATE", None, {"_id": str(KEY)}, "actor 'ana' is no uuid"),
    ),
    "whole fields without the document before": (
        event(updated={"name": "B", "layers.0.id": 1}, removed=("avatarId",)),
        ("UPDATE", None, {"avatarId": None, "name": "B"}, "no pre-image"),
    ),
    "a deletion without the document before": (
        event("delete"), ("DELETE", None, None, "no pre-image"),
    ),
    **{
        f"nothing that is kept: {updated}": (
            event(before={"_id": KEY, "name": "A"}, updated=updated), None,
        )
        for updated in (
            {}, {"updatedAt": NOON}, {"_audit": {"by": ANA, "nonce": "1"}}, {"_audit.nonce": "2"},
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_an_event_becomes_a_row(name):
    told, expected = ROWS[name]
    found = row(told)
    if expected is None:
        assert found is None
        return

    *values, metadata = expected
    assert [found.action, found.old_values, found.new_values] == values
    assert found.user_id is None
    assert (metadata or "") in (found.metadata or "")
    assert bool(metadata) == bool(found.metadata)


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
    by = [row(gone, marked=nonce).user_id for nonce in ("9", None, "8")]

    assert document.announced(told, document.after(told)) == "9"
    assert by == [ANA, None, None]


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
