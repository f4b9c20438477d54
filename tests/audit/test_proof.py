"""Seals: what they cover, what they survive, and what is said when they cannot be made."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from fwdb import config, errors
from fwdb.audit import Audit, anchor, canonical, merkle, sealing, seals
from fwdb.stores import PostgresStore

KEY = "a key that is long enough"


def ask(store: PostgresStore, statement: str, **given: Any) -> list[dict[str, Any]]:
    return store.rows(sa.text(statement), **given)


def do(store: PostgresStore, statement: str, **given: Any) -> None:
    store.execute(sa.text(statement), given)


@pytest.fixture
def store(postgres_database: Any, template: str) -> Any:
    with_url = PostgresStore(postgres_database(template=template))
    do(with_url, "TRUNCATE audit.audit_logs")
    yield with_url
    with_url.close()


@pytest.fixture
def audit(store: PostgresStore) -> Audit:
    return Audit(store)


@pytest.fixture
def keyed(store: PostgresStore) -> Audit:
    return Audit(store, settings=config.settings().model_copy(update={"audit_key": SecretStr(KEY)}))


@pytest.fixture
def put(store: PostgresStore) -> Any:
    """Writes rows, one of each transaction, at times of this and the last months."""

    def write(count: int, *, month: int = 0, user: str | None = None) -> None:
        do(
            store,
            "SELECT audit.add_partitions(CAST(now() - make_interval(months => :m) AS date),"
            " current_date)",
            m=month,
        )
        for n in range(count):
            do(
                store,
                "INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values,"
                " new_values, metadata, user_id, ip_address, created_at) VALUES ('User',"
                " gen_random_uuid(), 'UPDATE', CAST(:old AS jsonb), CAST(:new AS jsonb),"
                " :metadata, CAST(:user AS uuid), '192.0.2.7',"
                " date_trunc('month', now()) - make_interval(months => :m)"
                " + make_interval(secs => 0.1 * :n))",
                old='{"price": 1.10}',
                new='{"price": 2.50, "name": "Ä\\\\b"}',
                metadata=f"tab\t, line\n, backslash \\ {n}",
                user=user,
                m=month,
                n=n,
            )

    return write


def test_what_is_recorded_is_sealed_once_and_found_as_it_was(audit, put, monkeypatch):
    """Several months and several seals of one month; the next run goes on behind them."""
    monkeypatch.setattr(sealing, "ROWS", 4)
    put(10)
    put(3, month=2)
    first = audit.seal()
    put(2, month=2)
    second = audit.seal()
    nothing = audit.seal()
    found = audit.verify()

    assert (first.seals, first.rows) == (4, 13)
    assert (second.seals, second.rows, second.total_rows) == (1, 2, 15)
    assert (nothing.seals, nothing.head) == (0, second.head)
    assert found.intact, found.findings
    assert (found.seals, found.sealed_rows, found.checked_rows) == (5, 15, 15)
    assert found.head == second.head
    assert found.frame().empty
    assert "FWDB_AUDIT_KEY" in found.not_proven[0]


def test_a_table_that_fwdb_found_is_sealed_too(postgres_database, existing, monkeypatch):
    """Unpartitioned, with an enum and rows from before that have no transaction."""
    from fwdb import migrating

    monkeypatch.setattr(sealing, "ROWS", 3)
    with closing(PostgresStore(postgres_database())) as store:
        do(store, existing)
        insert = (
            "INSERT INTO audit.audit_logs (entity_type, entity_id, action) SELECT 'User',"
            " gen_random_uuid(), 'READ' FROM generate_series(1, 7)"
        )
        do(store, insert)
        migrating.migrate(store, None)
        do(store, insert)
        audit = Audit(store)
        audit.seal()
        do(store, insert)
        audit.seal()
        found = audit.verify()

    assert found.intact, found.findings
    assert (found.sealed_rows, found.checked_rows) == (21, 21)


def test_an_older_server_seals_verifies_and_erases(postgres15, postgres_database, tmp_path):
    """Every statement is one that PostgreSQL 15 knows."""
    from fwdb import migrating

    with closing(PostgresStore(postgres_database(postgres15))) as store:
        migrating.migrate(store, None)
        user = str(uuid.uuid4())
        insert = (
            "INSERT INTO audit.audit_logs (entity_type, entity_id, action, user_id)"
            " SELECT 'User', gen_random_uuid(), 'READ', CAST(:user AS uuid)"
            " FROM generate_series(1, 7)"
        )
        do(store, insert, user=user)
        audit = Audit(store)
        audit.seal()
        audit.erase(user_id=user, reason="request 7")
        audit.seal()
        path = audit.seal_file(tmp_path / "seals.json")
        sound = audit.verify(path)
        do(store, "DELETE FROM audit.audit_logs WHERE entity_type = 'AuditLog'")
        altered = audit.verify(path)

    assert sound.intact, sound.findings
    assert (sound.checked_rows, sound.erased_rows) == (8, 7)
    assert [f.kind for f in altered.findings] == ["missing", "erasure"]


def test_rows_of_a_transaction_that_runs_are_left_for_later_and_not_lost(audit, store, put):
    """An older transaction may still add rows with times before those that are there."""
    put(1)
    with store.engine.connect() as slow:
        slow.execute(
            sa.text(
                "INSERT INTO audit.audit_logs (entity_type, entity_id, action)"
                " VALUES ('User', gen_random_uuid(), 'READ')"
            )
        )
        put(3)
        early = audit.seal()
        slow.commit()
    late = audit.seal()

    assert (early.rows, early.unsealed_rows) == (1, 3)
    assert (late.rows, late.unsealed_rows) == (4, 0)
    assert audit.verify().checked_rows == 5


def test_what_is_in_a_journal_holds_the_sealer_back(audit, store, put):
    """It arrives later with its old transaction, which must not count as inserted."""
    do(store, "CREATE TABLE audit.journal_shared_users (transaction_id bigint)")
    do(
        store,
        "INSERT INTO audit.journal_shared_users"
        " VALUES (CAST(CAST(pg_current_xact_id() AS text) AS bigint))",
    )
    put(2)
    held = audit.seal()
    do(
        store,
        "WITH gone AS (DELETE FROM audit.journal_shared_users RETURNING transaction_id)"
        " INSERT INTO audit.audit_logs (entity_type, entity_id, action, transaction_id)"
        " SELECT 'User', gen_random_uuid(), 'READ', transaction_id FROM gone",
    )
    audit.seal()
    do(store, "DROP TABLE audit.journal_shared_users")

    assert (held.rows, held.unsealed_rows) == (0, 2)
    assert audit.verify().intact
    assert audit.verify().checked_rows == 3


def test_while_writers_go_on_no_row_is_left_out_and_none_sealed_twice(audit, store):
    """Slow and quick transactions, some rolled back, with two sealers at once."""
    done = threading.Event()
    troubles: list[Exception] = []
    insert = sa.text(
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action)"
        " SELECT 'User', gen_random_uuid(), 'READ' FROM generate_series(1, :rows)"
    )

    def write(rows: int) -> None:
        try:
            for n in range(40):
                with store.engine.connect() as connection:
                    for _ in range(rows):
                        connection.execute(insert, {"rows": rows})
                    (connection.rollback if n % 5 == 4 else connection.commit)()
        except Exception as error:  # noqa: BLE001  told by the test
            troubles.append(error)

    def seal() -> None:
        try:
            while not done.is_set():
                audit.seal()
        except Exception as error:  # noqa: BLE001  told by the test
            troubles.append(error)

    writers = [threading.Thread(target=write, args=(n,), daemon=True) for n in (1, 3, 7)]
    sealers = [threading.Thread(target=seal, daemon=True) for _ in range(2)]
    for thread in (*writers, *sealers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in sealers:
        thread.join()
    audit.seal()
    found = audit.verify()

    assert troubles == []
    assert found.intact, found.findings
    assert found.sealed_rows == found.checked_rows == 32 * (1 + 9 + 49)
    assert found.unsealed_rows == 0
    assert found.seals > 1


def test_a_removed_user_is_no_alteration_but_any_other_null_is(audit, store, put):
    """Only where a trigger recorded the removal of that very user, after the row.

    That somebody has the id again takes nothing away.
    """
    user, other = (
        ask(
            store,
            "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
            " VALUES (:email, 'x', 'A', 'B') RETURNING CAST(id AS text) AS id",
            email=f"{name}@example.com",
        )[0]["id"]
        for name in ("gone", "stays")
    )
    put(3, user=user)
    put(1, user=other)
    audit.seal()
    do(store, "DELETE FROM shared.users WHERE id = CAST(:id AS uuid)", id=user)
    removed = audit.verify()
    do(
        store,
        "INSERT INTO shared.users (id, email, password_hash, first_name, last_name)"
        " VALUES (CAST(:id AS uuid), 'again@example.com', 'x', 'A', 'B')",
        id=user,
    )
    put(1, user=user)
    audit.seal()
    again = audit.verify()
    do(store, "UPDATE audit.audit_logs SET user_id = NULL WHERE user_id IS NOT NULL")
    altered = audit.verify()

    assert removed.intact, removed.findings
    # Beside the four, what capture recorded of the two accounts.
    assert (removed.forgotten_rows, removed.checked_rows) == (3, 6)
    assert again.intact, again.findings
    # Of the user who stays, and of the one who came after the removal.
    assert [(f.kind, f.count) for f in altered.findings] == [("altered", 1), ("altered", 1)]
    assert "no removal" in altered.first.sentence


def test_a_removal_that_waits_in_a_journal_counts(audit, store, put):
    user = str(uuid.uuid4())
    do(
        store,
        "INSERT INTO shared.users (id, email, password_hash, first_name, last_name)"
        " VALUES (CAST(:id AS uuid), 'gone@example.com', 'x', 'A', 'B')",
        id=user,
    )
    do(store, "SELECT audit.capture('shared.users', mode => 'journal')")
    put(2, user=user)
    audit.seal()
    do(store, "DELETE FROM shared.users WHERE id = CAST(:id AS uuid)", id=user)
    waiting = audit.verify()
    audit.drain()
    audit.seal()
    found = audit.verify()

    assert waiting.intact, waiting.findings
    assert found.intact, found.findings
    assert (waiting.forgotten_rows, found.forgotten_rows) == (2, 2)


def test_a_sealer_outlives_a_server_that_is_down(caplog, wait_until):
    """It says so and tries again; `stop` ends it."""
    down = Audit(PostgresStore("postgresql://x@127.0.0.1:1/x"))
    stop = threading.Event()
    sealer = threading.Thread(
        target=down.run_sealer, kwargs={"interval": 0.01, "stop": stop}, daemon=True
    )
    sealer.start()
    try:
        wait_until(lambda: len(caplog.messages) >= 2)
        assert sealer.is_alive()
    finally:
        stop.set()
        sealer.join(10)

    assert not sealer.is_alive()
    assert all("not sealed now: no answer from postgres" in said for said in caplog.messages)


# -- keys and files ---------------------------------------------------------------------------


def test_with_a_key_the_seals_are_signed_and_another_key_is_refused(keyed, store, put):
    """Neither a sealer without it nor one with another goes on; verify says which it wants."""
    put(2)
    made = keyed.seal()
    other = Audit(
        store, settings=config.settings().model_copy(update={"audit_key": SecretStr("b" * 20)})
    )
    put(1)

    assert made.key_id == merkle.key_id(KEY.encode())
    assert keyed.verify().intact
    assert not any("KEY" in sentence for sentence in keyed.verify().not_proven)
    for audit in (Audit(store), other):
        with pytest.raises(errors.SealError, match="FWDB_AUDIT_KEY"):
            audit.seal()
    wrong = other.verify()
    assert [f.kind for f in wrong.findings] == ["signature"]
    assert made.key_id in wrong.summary
    assert "not looked at" in Audit(store).verify().not_proven[0]


def test_seals_without_a_key_are_signed_only_when_somebody_says_so(audit, keyed, put):
    """Else whoever rewrote them without the key would get them signed by the next run."""
    put(2)
    audit.seal()
    put(1)
    with pytest.raises(errors.SealError, match="--sign"):
        keyed.seal()
    assert not keyed.verify().intact
    keyed.seal(sign=True)
    found = keyed.verify()

    assert found.intact, found.findings
    assert keyed.sealed().key_id == merkle.key_id(KEY.encode())


def test_the_key_is_nowhere_in_database_or_file(keyed, store, put, tmp_path):
    put(1)
    keyed.seal()
    path = keyed.seal_file(tmp_path / "seals.json")
    rows = ask(store, "SELECT CAST(to_jsonb(s) AS text) AS row FROM audit.seals AS s")

    assert KEY not in path.read_text() + rows[0]["row"] + repr(keyed.settings)
    assert KEY.encode().hex() not in path.read_text() + rows[0]["row"]


def test_a_seal_file_is_compared_with_the_chain(keyed, put, tmp_path):
    """One of earlier fits the longer chain of later."""
    put(3)
    keyed.seal()
    path = keyed.seal_file(tmp_path / "kept" / "seals.json")
    put(2)
    keyed.seal()
    body = json.loads(path.read_text())

    assert keyed.verify(against=path).intact
    assert (body["seals"], body["rows"], body["head"]) == (1, 3, body["heads"]["1"])
    assert not [s for s in keyed.verify(against=path).not_proven if "seal file" in s]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[]", "no seal file"),
        ('{"format": "fwdb audit seals", "version": 9}', "version 9"),
        ('{"format": "fwdb audit seals", "version": 1}', "damaged"),
    ],
)
def test_a_file_that_is_no_seal_file_is_refused(audit, tmp_path, content, said):
    path = tmp_path / "seals.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.SealError, match=said):
        audit.verify(against=path)


@pytest.mark.parametrize("odd", [{"rows": float("inf")}, {"key_id": "\ud800\x1b[2J"}])
def test_a_seal_file_with_a_right_checksum_and_odd_values_is_refused(audit, put, tmp_path, odd):
    put(1)
    audit.seal()
    path = audit.seal_file(tmp_path / "seals.json")
    body = {**json.loads(path.read_text()), **odd}
    said = {name: body[name] for name in body.keys() - {"checksum", "signature"}}
    path.write_text(json.dumps({**body, "checksum": sha256(anchor._content(said)).hexdigest()}))
    with pytest.raises(errors.SealError, match="damaged"):
        audit.verify(against=path)


def test_rows_are_read_from_a_month_on_and_what_was_not_is_said(audit, store, put, monkeypatch):
    """The seals of the months before are still looked at."""
    monkeypatch.setattr(sealing, "ROWS", 4)
    put(5, month=2)
    put(3)
    audit.seal()
    sound = audit.verify(since="1h")
    do(
        store,
        "UPDATE audit.audit_logs SET metadata = 'x' WHERE created_at < date_trunc('month', now())",
    )
    unseen, seen = audit.verify(since="1h"), audit.verify()
    do(store, "UPDATE audit.audit_logs SET metadata = 'x'")
    altered = audit.verify(since=datetime.now(UTC))
    do(store, "DELETE FROM audit.seals WHERE number = 1")
    broken = audit.verify(since="1h")

    assert (sound.sealed_rows, sound.checked_rows, sound.unread_rows) == (8, 3, 5)
    assert sound.since == datetime.now(UTC).date().replace(day=1)
    assert "All 3 sealed rows of" in sound.summary
    assert any("5 sealed rows of months before" in said for said in sound.not_proven)
    assert unseen.intact
    assert {(f.kind, f.count) for f in seen.findings} == {("altered", 4), ("altered", 1)}
    assert [(f.kind, f.count) for f in altered.findings] == [("altered", 3)]
    assert "Seal 1 is missing." in [f.sentence for f in broken.findings]
    assert audit.verify().since is None


def test_a_month_without_seals_has_nothing_to_read(audit, put):
    put(2, month=2)
    audit.seal()
    found = audit.verify(since="1h")

    assert (found.intact, found.checked_rows, found.unread_rows) == (True, 0, 2)
    assert "none is of" in found.summary


@pytest.mark.parametrize("since", ["2999-01-01T00:00Z", "2026-01-01T00:00", "soon"])
def test_a_time_to_read_from_that_is_none_is_refused(audit, since):
    with pytest.raises(errors.ParameterError, match="'since' is"):
        audit.verify(since=since)


def test_nothing_sealed_is_not_intact(audit, tmp_path):
    found = audit.verify()

    assert not found.intact
    assert "Nothing is sealed" in found.summary
    assert audit.sealed() is None
    with pytest.raises(errors.SealError, match="nothing is sealed"):
        audit.seal_file(tmp_path / "seals.json")


def test_a_trail_ahead_of_its_server_is_said_with_what_to_do(audit, store, put):
    """As after a dump was restored into a new server."""
    put(1)
    audit.seal()
    # As if sealed by a server that was 2**33 transactions further.
    do(store, "UPDATE audit.seals SET horizon = horizon + 8589934592")
    seal = seals.last(store)
    do(store, "UPDATE audit.seals SET head = :head", head=seal.chained(merkle.EMPTY))

    with pytest.raises(errors.SealError, match="pg_resetwal --epoch=3"):
        audit.seal()
    assert "pg_resetwal" in audit.verify().summary


def test_a_database_without_seals_says_migrate(postgres_database):
    with closing(PostgresStore(postgres_database())) as store:
        for question in (Audit(store).seal, Audit(store).verify):
            with pytest.raises(errors.FeatureUnavailable, match="fwdb migrate"):
                question()


# -- erasure ----------------------------------------------------------------------------------


def test_an_erased_actor_is_gone_and_the_seals_still_hold(audit, store, put):
    """The change itself stays; the erasure is listed and in the trail."""
    user = str(uuid.uuid4())
    put(3, user=user)
    put(2)
    audit.seal()
    planned = audit.erase(user_id=user, reason="request 7", dry_run=True)
    done = audit.erase(user_id=user, reason="request 7")
    again = audit.erase(user_id=user, reason="request 7")
    audit.seal()
    found = audit.verify()

    assert (planned.rows, done.rows, again.rows) == (3, 3, 0)
    left = "SELECT count(*) AS n FROM audit.audit_logs WHERE user_id IS NOT NULL"
    assert ask(store, left)[0]["n"] == 0
    kept = "SELECT count(*) AS n FROM audit.audit_logs WHERE new_values IS NOT NULL"
    assert ask(store, kept)[0]["n"] == 5
    assert found.intact, found.findings
    assert (found.erased_rows, found.checked_rows, len(found.erasures)) == (3, 6, 1)
    told = ask(store, "SELECT reason, action FROM audit.audit_logs WHERE entity_type = 'AuditLog'")
    assert told == [{"reason": "request 7", "action": "DELETE"}]


def test_erased_values_are_gone_also_after_the_actor(audit, store, put):
    """Both parts of one row can go, one after the other."""
    user = str(uuid.uuid4())
    put(1, user=user)
    entity = ask(store, "SELECT CAST(entity_id AS text) AS id FROM audit.audit_logs")[0]["id"]
    audit.erase(user_id=user, reason="a")
    audit.erase(entity_type="User", id=entity, reason="b")
    found = audit.verify()
    row = ask(store, "SELECT * FROM audit.audit_logs WHERE entity_type = 'User'")[0]

    assert found.intact, found.findings
    assert {row[name] for name in (*canonical.ACTOR, *canonical.VALUES)} == {None}
    assert [run["rows"] for run in found.erasures] == [1, 1]


@pytest.mark.parametrize("release", ["older", "this"])
def test_what_the_application_says_of_an_erasure_makes_nothing_wrong(audit, store, put, release):
    """It knows the id, which `verify` prints; and an erasure of an older release still counts."""
    user = str(uuid.uuid4())
    put(2, user=user)
    erasure = audit.erase(user_id=user, reason="request 7").erasure_id
    # As it was told before it had an origin of its own.
    if release == "older":
        do(
            store,
            "UPDATE audit.audit_logs SET origin = 'application',"
            " old_values = old_values - 'erased_at' WHERE entity_type = 'AuditLog'",
        )
    else:  # told once more, with another time
        do(
            store,
            "INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values, db_user)"
            " SELECT entity_type, entity_id, action, jsonb_set(old_values, '{erased_at}', '1'),"
            " 'gone' FROM audit.audit_logs WHERE entity_type = 'AuditLog'",
        )
    for said in ("NULL", "'{}'", '\'{"rows": 9, "digest": "x"}\'', "'[1]'", "'{\"rows\": []}'"):
        do(
            store,
            f"SELECT audit.record('AuditLog', CAST(:id AS uuid), 'DELETE', {said}, NULL, NULL,"
            " NULL, NULL, NULL, NULL)",
            id=erasure,
        )
    early = audit.verify()
    audit.seal()
    found = audit.verify()

    assert early.intact, early.findings
    assert found.intact, found.findings
    assert [run["erasure_id"] for run in found.erasures] == [erasure]


def test_rows_that_were_altered_are_not_erased(audit, store, put):
    """Nothing changes then: neither the altered row nor the others."""
    user = str(uuid.uuid4())
    put(3, user=user)
    audit.seal()
    do(store, "UPDATE audit.audit_logs SET metadata = 'x' WHERE metadata LIKE '%1'")
    with pytest.raises(errors.SealError, match="not as it was sealed"):
        audit.erase(user_id=user, reason="x")

    assert ask(store, "SELECT count(user_id) AS n FROM audit.audit_logs")[0]["n"] == 3
    assert ask(store, "SELECT count(*) AS n FROM audit.erasures")[0]["n"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reason": "x"}, "give 'user_id'"),
        ({"user_id": str(uuid.uuid4()), "entity_type": "User", "id": "x", "reason": "x"}, "give"),
        ({"entity_type": "User", "reason": "x"}, "give 'user_id'"),
        ({"entity_type": "AuditLog", "id": str(uuid.uuid4()), "reason": "x"}, "cannot be erased"),
        ({"user_id": "me", "reason": "x"}, "UUID"),
        ({"user_id": str(uuid.uuid4()), "reason": " "}, "say why"),
    ],
)
def test_what_cannot_be_erased_is_refused_with_the_form_to_use(audit, given, said):
    with pytest.raises(errors.ParameterError, match=said):
        audit.erase(**given)


# -- the form and the tree --------------------------------------------------------------------


# PostgreSQL has no NUL in texts.
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
ROW = {
    "metadata": st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    "reason": st.none()
    | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9),
    "created_at": st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
    "transaction_id": st.none() | st.integers(0, 2**62),
}


@pytest.fixture(scope="module")
def form(module_db: Any) -> PostgresStore:
    """A store with a table of the columns that are sealed."""
    do(module_db.postgres, "CREATE TABLE form AS SELECT * FROM audit.audit_logs LIMIT 0")
    return module_db.postgres


@settings(max_examples=25)
@given(st.lists(st.fixed_dictionaries(ROW), min_size=1, max_size=5))
def test_a_row_has_the_same_form_from_the_table_and_from_a_file(form, drawn):
    """Byte by byte, whatever it holds."""
    do(form, "TRUNCATE form")
    made = []
    for n, row in enumerate(drawn):
        values = {
            **dict.fromkeys(canonical.FIELDS),
            **row,
            "created_at": row["created_at"].replace(tzinfo=UTC),
            "id": str(uuid.UUID(int=n)),
            "new_values": json.dumps({"text": row["metadata"], "n": n}, ensure_ascii=True),
        }
        form.execute(
            sa.text(
                f"INSERT INTO form ({', '.join(canonical.FIELDS)}) VALUES ("
                + ", ".join(
                    f"CAST(:{name} AS jsonb)" if name.endswith("values") else f":{name}"
                    for name in canonical.FIELDS
                )
                + ")"
            ),
            values,
        )
        made.append(values)
    lines: list[bytes] = []
    columns = ", ".join(canonical.FIELDS)
    form.lines(sa.text(f"SELECT {columns} FROM form ORDER BY id"), lines.append)
    texts = ask(form, "SELECT CAST(new_values AS text) AS text FROM form ORDER BY id")
    table = pa.table(
        {
            name: pa.array(
                [text["text"] for text in texts]
                if name == "new_values"
                else [values[name] for values in made],
                pa.timestamp("us", "UTC")
                if name == "created_at"
                else pa.int64()
                if name == "transaction_id"
                else pa.string(),
            )
            for name in canonical.FIELDS
        }
    )

    assert canonical.lines(table) == lines
    for line, values in zip(lines, made, strict=True):
        fields, _, _, held = canonical.split(line)
        assert canonical.value(fields[13]) == values["reason"]
        assert canonical.value(held.split(b"\t")[2]) == values["metadata"]


def test_the_form_does_not_follow_the_session(audit, store, put):
    """A database whose settings were changed has the same seals."""
    put(3)
    audit.seal()
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'German'",
        "IntervalStyle = 'iso_8601'",
    ):
        do(store, f"ALTER ROLE CURRENT_USER IN DATABASE {store.url.database} SET {setting}")
    store.close()

    assert audit.verify().intact


def test_the_tree_is_that_of_rfc_6962():
    """Roots of one to seven leaves, by its definition: the left tree is the largest full one."""

    def defined(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        left = 1 << (len(leaves) - 1).bit_length() - 1
        return sha256(b"\1" + defined(leaves[:left]) + defined(leaves[left:])).digest()

    leaves = [bytes([n]) * 32 for n in range(7)]
    for count in range(1, 8):
        assert merkle.root(leaves[:count]) == defined(leaves[:count])


def exported_month(audit: Audit, store: PostgresStore, folder: Path) -> Path:
    """Writes the current month as the retention does, and takes it out of the table."""
    frame = store.frame(
        sa.text(
            f"SELECT {', '.join(canonical.FIELDS)} FROM audit.audit_logs ORDER BY created_at, id"
        )
    )
    path = folder / "month.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    digest = sha256(path.read_bytes()).hexdigest()
    manifest = {"file": path.name, "rows": len(frame), "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    do(
        store,
        "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions, dropped_at)"
        " VALUES (date_trunc('month', now()), :path, :rows, :bytes, :sha256, 0, now())",
        path=path.name,
        bytes=path.stat().st_size,
        rows=len(frame),
        sha256=digest,
    )
    do(store, "DELETE FROM audit.audit_logs")
    return path


def test_a_month_in_an_archive_is_verified_from_there(audit, store, put, tmp_path, monkeypatch):
    """Also when rows of that month are recorded again, later."""
    monkeypatch.setattr(sealing, "ROWS", 3)
    monkeypatch.setattr(Audit, "_archive_folder", tmp_path)
    put(7)
    audit.seal()
    exported_month(audit, store, tmp_path)
    archived = audit.verify()
    put(2)
    audit.seal()
    found = audit.verify()

    assert archived.intact, archived.findings
    assert archived.archived_rows == archived.checked_rows == 7
    assert found.intact, found.findings
    assert found.checked_rows == 9
