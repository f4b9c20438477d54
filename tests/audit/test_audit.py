"""The audit trail: what is written, with what, and what is never written."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from support.sql import ask, do

from fwdb import errors, models
from fwdb.audit.values import changes, image, redact_json

HASH = "$2b$12$" + "N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"[:53]
OBJECT_ID = "65a1b2c3d4e5f60718293a4b"


def user(**given: object) -> models.User:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    who = {"email": "ana@example.com", "first_name": "Ana", "last_name": "Lima", "role": "user"}
    is_so = {"is_active": True, "email_verified": True, "created_at": now, "updated_at": now}
    fields = {"id": str(uuid.uuid4()), "password_hash": HASH, **who, **is_so}
    return models.User(**{**fields, **given})


def test_a_rolled_back_change_takes_its_audit_row_along(audit, store, actor, count):
    before = count()

    def change() -> None:
        with store.transaction():
            audit.log_create("User", uuid.uuid4(), {"email": "a"}, user_id=actor)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        change()

    assert count() == before


def test_a_failed_audit_write_rolls_the_change_back(audit, store):
    """A change that cannot be recorded is not made; the error is the caller's."""

    def change() -> None:
        with store.transaction():
            do(
                store,
                "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
                " VALUES ('lost@example.com', 'x', 'A', 'B')",
            )
            audit.log_create("User", uuid.uuid4(), {"email": "a"}, user_agent="refused")

    rule = "ALTER TABLE audit.audit_logs {} CONSTRAINT refusal {}"
    do(store, rule.format("ADD", "CHECK (user_agent <> 'refused')"))
    try:
        with pytest.raises(errors.InvalidData):
            change()
    finally:
        do(store, rule.format("DROP", ""))

    assert not ask(store, "SELECT 1 FROM shared.users WHERE email = 'lost@example.com'")


def test_the_actor_and_where_they_came_from_are_kept(audit, actor):
    """Who, from where, with what and why all come back; NUL, which PostgreSQL refuses, does not."""
    id = str(uuid.uuid4())
    said = {"user_id": actor, "ip_address": "2001:db8::7", "user_agent": "Fire\x00fox"}
    note = {"reason": "import", "token": "t0p"}
    written = audit.log_create("Avatar", id, {"name": "a\x00b"}, **said, metadata=note)
    row = audit.history("Avatar", id).iloc[0]

    assert isinstance(written, models.AuditLog)
    assert written.user_id == row["user_id"] == actor
    assert written.entity_id == row["entity_id"] == id
    assert row["ip_address"] == "2001:db8::7"
    assert row["user_agent"] == "Fire\ufffdfox"
    assert written.new_values == {"name": "a\ufffdb"}
    assert json.loads(row["metadata"]) == {"reason": "import", "token": "[redacted]"}
    assert written.created_at == row["created_at"]


def test_changes_of_one_transaction_keep_their_order(audit, store):
    id = uuid.uuid4()
    with store.transaction():
        audit.log_create("Avatar", id, {"name": "0"})
        for n in range(1, 20):
            audit.log_update("Avatar", id, {"name": str(n - 1)}, {"name": str(n)})
        audit.log_delete("Avatar", id, {"name": "19"})

    history = audit.history("Avatar", id)
    assert list(history["action"]) == ["CREATE", *["UPDATE"] * 19, "DELETE"]
    assert [json.loads(v)["name"] for v in history["old_values"].dropna()] == [
        *map(str, range(19)),
        "19",
    ]
    assert history["created_at"].is_unique


def test_both_kinds_of_id_come_back_as_what_they_were(audit):
    """A design's ObjectId and a uuid live in one uuid column."""
    id = str(uuid.uuid4())
    assert audit.log_read("Design", OBJECT_ID).entity_id == OBJECT_ID
    assert audit.log_read("Design", id).entity_id == id

    assert list(audit.history("Design", OBJECT_ID.upper())["entity_id"]) == [OBJECT_ID]
    assert set(audit.recent(2)["entity_id"]) == {OBJECT_ID, id}


def test_an_update_keeps_the_fields_that_changed_with_both_values(audit):
    old = user()
    new = replace(old, first_name="Anna", updated_at=old.updated_at + timedelta(hours=1))
    written = audit.log_update("User", old.id, old, new)

    before, after = (f"2026-01-02T0{hour}:04:05+00:00" for hour in (3, 4))
    assert written.old_values == {"first_name": "Ana", "updated_at": before}
    assert written.new_values == {"first_name": "Anna", "updated_at": after}
    assert list(audit.history("User", old.id)["changed_fields"]) == ["first_name"]
    same = replace(new, updated_at=datetime.now(UTC))
    assert audit.log_update("User", old.id, new, same) is None
    assert len(audit.history("User", old.id)) == 1


def test_no_secret_reaches_the_table(audit, store):
    """A hash is absent from all columns of all rows, whatever it was called or wherever it lay."""
    old = user()
    new = replace(old, password_hash=HASH.replace("N", "M"), email="new@example.com")
    nested = {"note": HASH, "deep": [{"apiKey": "k3y-abc"}], "authToken": "t0ken-abc"}
    audit.log_create("User", old.id, old, metadata=nested)
    written = audit.log_update("User", old.id, old, new)
    audit.log_update("User", old.id, {**nested, "n": 1}, {**nested, "n": 2, "pwd": "pa55-abc"})
    audit.log_delete("User", old.id, new)

    text = "\n".join(
        row["row"] for row in ask(store, "SELECT CAST(a AS text) AS row FROM audit.audit_logs a")
    )
    for secret in (HASH, new.password_hash, HASH[8:30], "k3y-abc", "t0ken-abc", "pa55-abc"):
        assert secret not in text
    assert "new@example.com" in text
    # That the password changed is part of the trail, what it was is not.
    assert written.old_values["password_hash"] == "[redacted]"
    assert written.new_values["password_hash"] == "[redacted: changed]"
    assert "password_hash" in audit.history("User", old.id)["changed_fields"].tolist()[1]


def test_secrets_that_another_program_stored_are_not_shown(audit, store):
    """The existing service stores whole entities; asking for them redacts them."""
    id = uuid.uuid4()
    old, new = (
        json.dumps({"passwordHash": HASH, "firstName": name, "email": "e"}) for name in "AB"
    )
    change = (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values, new_values)"
        " VALUES ('User', :id, 'UPDATE', :old, :new)"
    )
    do(store, change, id=id, old=old, new=new)
    row = audit.history("User", id).iloc[0]

    assert HASH not in row.to_json()
    assert json.loads(row["old_values"])["passwordHash"] == "[redacted]"
    assert row["changed_fields"] == "firstName"
    assert len(audit.search(changed_field="first_name", entity_type="User")) == 1


def test_values_become_plain_json():
    """Each type has one text, whatever the clock or locale of the program."""
    id = uuid.uuid4()
    raw = {
        "id": id,
        "at": datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))),
        "day": date(2026, 1, 2),
        "price": Decimal("1.10"),
        "ratio": float("nan"),
        "tags": {"b", "a"},
        "name": "a\x00b",
        "raw": b"\x01\xff",
        1: (1, None, True),
    }
    assert image(raw) == {
        "id": str(id),
        "at": "2026-01-02T01:00:00+00:00",
        "day": "2026-01-02",
        "price": "1.10",
        "ratio": "nan",
        "tags": ["a", "b"],
        "name": "a\ufffdb",
        "raw": "01ff",
        "1": [1, None, True],
    }
    # `metadata` is free text; a word in it does not make it JSON.
    assert redact_json("the token was lost") == "the token was lost"


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        # Old and new differ in the trail although neither value is there.
        (
            {"c": {"token": "a", "x": 1}},
            {"c": {"token": "b", "x": 1}},
            (
                {"c": {"token": "[redacted]", "x": 1}},
                {"c": {"token": "[redacted: changed]", "x": 1}},
            ),
        ),
        # Python holds True and 1 equal; in the trail that is a change.
        ({"a": 1}, {"a": True}, ({"a": 1}, {"a": True})),
        # `updated_at` and `version` follow an update and are none by themselves.
        ({"price": 1}, {"price": 1.0}, None),
        ({"tags": ["a"], "updated_at": 1, "version": 1}, {"tags": ["a"], "updatedAt": 2}, None),
        ({"a": None}, {}, None),
    ],
)
def test_both_values_of_what_changed_are_kept(old, new, kept):
    assert changes(old, new) == kept


def test_what_cannot_be_recorded_is_refused(audit, count):
    """One sentence says what to give; no kind of row is written that no question would find."""
    before = count()
    for write in (
        lambda: audit.log_create("Avatr", uuid.uuid4(), {}),
        lambda: audit.log_update("Avatr", uuid.uuid4(), {"a": 1}, {"a": 1}),
        lambda: audit.log_delete("Avatr", uuid.uuid4(), {}),
        lambda: audit.log_read("Avatr", uuid.uuid4()),
    ):
        with pytest.raises(errors.UnknownName, match="did you mean 'Avatar'"):
            write()
    for given, says in (
        ({"id": "42"}, "UUID or the 24 hexadecimal digits"),
        ({"user_id": "ana"}, "UUID of a user"),
        ({"ip_address": "10.0.0.1, 10.0.0.2"}, "one address"),
        ({"new": [1]}, "an entity or a mapping"),
    ):
        with pytest.raises(errors.ParameterError, match=says):
            audit.log_create("Avatar", **{"id": uuid.uuid4(), "new": {"name": "x"}, **given})
    assert count() == before
