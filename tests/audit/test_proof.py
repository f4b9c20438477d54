"""Seals: what they cover, what they survive, and what is said when they cannot be made."""

from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import retention
from support.seal import archived, audit_of
from support.sql import ask, do, value

from fwdb import errors, migrating, reports
from fwdb.audit import Audit
from fwdb.audit.seal import canonical, file, merkle, sealer, seals
from fwdb.stores import PostgresStore

KEY = "a key that is long enough"
READS = (
    "INSERT INTO audit.audit_logs (entity_type, entity_id, action, user_id)"
    " SELECT 'User', gen_random_uuid(), 'READ', CAST(:user AS uuid) FROM generate_series(1, :rows)"
)
ACCOUNT = (
    "INSERT INTO shared.users (id, email, password_hash, first_name, last_name)"
    " VALUES (CAST(:id AS uuid), :email, 'x', 'A', 'B')"
)


@pytest.fixture
def store(module_db: Any) -> PostgresStore:
    """A database with an empty trail, of which nothing is sealed."""
    empty = (
        "TRUNCATE audit.audit_logs, audit.seals, audit.erasures, audit.archives;"
        " DELETE FROM shared.users WHERE email LIKE '%@example.com'"
    )
    change = f"SET session_replication_role = replica; {empty}; RESET session_replication_role"
    do(module_db.postgres, change)
    return module_db.postgres


@pytest.fixture
def audit(store: PostgresStore) -> Audit:
    return Audit(store)


@pytest.fixture
def keyed(store: PostgresStore) -> Audit:
    return audit_of(store, KEY)


@pytest.fixture
def put(store: PostgresStore) -> Any:
    """Writes rows, one of each transaction, at times of this and the last months."""

    def write(count: int, *, month: int = 0, user: str | None = None) -> None:
        for n in range(count):
            row = {
                "created_at": retention.month(month) + timedelta(seconds=0.1 * n),
                "old_values": '{"price": 1.10}',
                "new_values": '{"price": 2.50, "name": "Ä\\\\b"}',
                "metadata": f"tab\t, line\n, backslash \\ {n}",
                "user_id": user,
                "ip_address": "192.0.2.7",
            }
            retention.put(Audit(store), row)

    return write


def test_what_is_recorded_is_sealed_once_and_found_as_it_was(audit, put, monkeypatch):
    """Several months and several seals of one month; the next run goes on behind them."""
    monkeypatch.setattr(sealer, "ROWS", 4)
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
    monkeypatch.setattr(sealer, "ROWS", 3)
    with closing(PostgresStore(postgres_database())) as store:
        do(store, existing)
        do(store, READS, user=None, rows=7)
        migrating.migrate(store, None)
        audit = Audit(store)
        for _ in range(2):
            do(store, READS, user=None, rows=7)
            audit.seal()
        found = audit.verify()

    assert found.intact, found.findings
    assert (found.sealed_rows, found.checked_rows) == (21, 21)


def test_an_older_server_seals_verifies_and_erases(postgres15, postgres_database, tmp_path):
    """Every statement is one that PostgreSQL 15 knows."""
    with closing(PostgresStore(postgres_database(postgres15))) as store:
        migrating.migrate(store, None)
        user = str(uuid.uuid4())
        do(store, READS, user=user, rows=7)
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
        slow.execute(sa.text(READS), {"user": None, "rows": 1})
        put(3)
        early = audit.seal()
        slow.commit()
    late = audit.seal()

    assert (early.rows, early.unsealed_rows) == (1, 3)
    assert (late.rows, late.unsealed_rows) == (4, 0)
    assert audit.verify().checked_rows == 5


def test_while_writers_go_on_no_row_is_left_out_and_none_sealed_twice(audit, store):
    """Slow and quick transactions, some rolled back, with two sealers at once."""
    done = threading.Event()

    def write(rows: int) -> None:
        for n in range(40):
            with store.engine.connect() as connection:
                for _ in range(rows):
                    connection.execute(sa.text(READS), {"user": None, "rows": rows})
                (connection.rollback if n % 5 == 4 else connection.commit)()

    def seal() -> None:
        while not done.is_set():
            audit.seal()

    with ThreadPoolExecutor(5) as pool:
        sealers = [pool.submit(seal) for _ in range(2)]
        writers = [pool.submit(write, n) for n in (1, 3, 7)]
        wait(writers)
        done.set()
    for one in (*writers, *sealers):
        one.result()
    audit.seal()
    found = audit.verify()

    assert found.intact, found.findings
    assert found.sealed_rows == found.checked_rows == 32 * (1 + 9 + 49)
    assert found.unsealed_rows == 0
    assert found.seals > 1


def test_a_removed_user_is_no_alteration_but_any_other_null_is(audit, store, put):
    """Only where a trigger recorded the removal of that very user, after the row.

    That somebody has the id again takes nothing away.
    """
    user, other = str(uuid.uuid4()), str(uuid.uuid4())
    for id in (user, other):
        do(store, ACCOUNT, id=id, email=f"{id}@example.com")
    put(3, user=user)
    put(1, user=other)
    audit.seal()
    do(store, "DELETE FROM shared.users WHERE id = CAST(:id AS uuid)", id=user)
    removed = audit.verify()
    do(store, ACCOUNT, id=user, email="again@example.com")
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
    other = audit_of(store, "b" * 20)
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


def test_a_seal_file_is_compared_with_the_chain(keyed, store, put, tmp_path):
    """One of earlier fits the longer chain of later; the key is neither in it nor in a table."""
    put(3)
    keyed.seal()
    path = keyed.seal_file(tmp_path / "kept" / "seals.json")
    put(2)
    keyed.seal()
    body = json.loads(path.read_text())
    rows = ask(store, "SELECT CAST(to_jsonb(s) AS text) AS row FROM audit.seals AS s")

    assert keyed.verify(against=path).intact
    assert (body["seals"], body["rows"], body["head"]) == (1, 3, body["heads"]["1"])
    assert not [s for s in keyed.verify(against=path).not_proven if "seal file" in s]
    assert KEY not in path.read_text() + rows[0]["row"] + repr(keyed.settings)
    assert KEY.encode().hex() not in path.read_text() + rows[0]["row"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[]", "no seal file"),
        ('{"format": "fwdb audit seals", "version": 9}', "version 9"),
        ('{"format": "fwdb audit seals", "version": 1}', "damaged"),
        # With a right checksum, and values that nobody has.
        ({"rows": float("inf")}, "damaged"),
        ({"key_id": "\ud800\x1b[2J"}, "damaged"),
    ],
)
def test_a_file_that_is_no_seal_file_is_refused(audit, put, tmp_path, content, said):
    path = tmp_path / "seals.json"
    if isinstance(content, dict):
        put(1)
        audit.seal()
        body = {**json.loads(audit.seal_file(path).read_text()), **content}
        told = {name: body[name] for name in body.keys() - {"checksum", "signature"}}
        content = json.dumps({**body, "checksum": sha256(file._content(told)).hexdigest()})
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.SealError, match=said):
        audit.verify(against=path)


def test_rows_are_read_from_a_month_on_and_what_was_not_is_said(audit, store, put, monkeypatch):
    """The seals of the months before are still looked at."""
    monkeypatch.setattr(sealer, "ROWS", 4)
    put(5, month=2)
    audit.seal()
    nothing = audit.verify(since="1h")
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

    assert (nothing.intact, nothing.checked_rows, nothing.unread_rows) == (True, 0, 5)
    assert "none is of" in nothing.summary
    assert (sound.sealed_rows, sound.checked_rows, sound.unread_rows) == (8, 3, 5)
    assert sound.since == datetime.now(UTC).date().replace(day=1)
    assert "All 3 sealed rows of" in sound.summary
    assert any("5 sealed rows of months before" in said for said in sound.not_proven)
    assert unseen.intact
    assert {(f.kind, f.count) for f in seen.findings} == {("altered", 4), ("altered", 1)}
    assert [(f.kind, f.count) for f in altered.findings] == [("altered", 3)]
    assert "Seal 1 is missing." in [f.sentence for f in broken.findings]
    assert audit.verify().since is None


def test_nothing_sealed_is_not_intact(audit, tmp_path):
    found = audit.verify()

    assert not found.intact
    assert "Nothing is sealed" in found.summary
    assert audit.sealed() is None
    with pytest.raises(errors.SealError, match="nothing is sealed"):
        audit.seal_file(tmp_path / "seals.json")
    for since in ("2999-01-01T00:00Z", "2026-01-01T00:00", "soon"):
        with pytest.raises(errors.ParameterError, match="'since' is"):
            audit.verify(since=since)


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
    entity = ask(store, "SELECT entity_id AS id FROM audit.audit_logs LIMIT 1")[0]
    put(2)
    audit.seal()
    planned = audit.erase(user_id=user, reason="request 7", dry_run=True)
    done = audit.erase(user_id=user, reason="request 7")
    again = audit.erase(user_id=user, reason="request 7")
    audit.seal()
    found = audit.verify()

    assert (planned.rows, done.rows, again.rows) == (3, 3, 0)
    left = "SELECT count(*) AS n FROM audit.audit_logs WHERE user_id IS NOT NULL"
    assert value(store, left) == 0
    kept = "SELECT count(*) AS n FROM audit.audit_logs WHERE new_values IS NOT NULL"
    assert value(store, kept) == 5
    assert found.intact, found.findings
    assert (found.erased_rows, found.checked_rows, len(found.erasures)) == (3, 6, 1)
    told = ask(store, "SELECT reason, action FROM audit.audit_logs WHERE entity_type = 'AuditLog'")
    assert told == [{"reason": "request 7", "action": "DELETE"}]
    # The values of such a row can go too.
    audit.erase(entity_type="User", id=str(entity["id"]), reason="request 8")
    both = audit.verify()
    row = ask(store, "SELECT * FROM audit.audit_logs WHERE entity_id = :id", **entity)[0]
    assert both.intact, both.findings
    assert {row[name] for name in (*canonical.ACTOR, *canonical.VALUES)} == {None}
    assert [run["rows"] for run in both.erasures] == [3, 1]


@pytest.mark.parametrize("release", ["older", "this"])
def test_what_the_application_says_of_an_erasure_makes_nothing_wrong(audit, store, put, release):
    """It knows the id, which `verify` prints; and an erasure of an older release still counts."""
    user = str(uuid.uuid4())
    put(2, user=user)
    erasure = audit.erase(user_id=user, reason="request 7").erasure_id
    told = (
        # As it was before it had an origin of its own, or once more, with another time.
        "UPDATE audit.audit_logs SET origin = 'application',"
        " old_values = old_values - 'erased_at' WHERE entity_type = 'AuditLog'"
        if release == "older"
        else "INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values, db_user)"
        " SELECT entity_type, entity_id, action, jsonb_set(old_values, '{erased_at}', '1'),"
        " 'gone' FROM audit.audit_logs WHERE entity_type = 'AuditLog'"
    )
    do(store, told)
    for said in ("NULL", "'{}'", '\'{"rows": 9, "digest": "x"}\'', "'[1]'", "'{\"rows\": []}'"):
        values = f"'DELETE', {said}, NULL, NULL, NULL, NULL, NULL, NULL"
        do(store, f"SELECT audit.record('AuditLog', CAST(:id AS uuid), {values})", id=erasure)
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

    assert value(store, "SELECT count(user_id) AS n FROM audit.audit_logs") == 3
    assert value(store, "SELECT count(*) AS n FROM audit.erasures") == 0


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
    "metadata": st.none() | TEXT,
    "reason": st.none() | TEXT,
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
    columns = ", ".join(canonical.FIELDS)
    made = []
    for n, row in enumerate(drawn):
        values = {
            **dict.fromkeys(canonical.FIELDS),
            **row,
            "created_at": row["created_at"].replace(tzinfo=UTC),
            "id": str(uuid.UUID(int=n)),
            "new_values": json.dumps({"text": row["metadata"], "n": n}, ensure_ascii=True),
        }
        places = (
            f"CAST(:{name} AS jsonb)" if name.endswith("values") else f":{name}"
            for name in canonical.FIELDS
        )
        do(form, f"INSERT INTO form ({columns}) VALUES ({', '.join(places)})", **values)
        made.append(values)
    lines: list[bytes] = []
    form.lines(sa.text(f"SELECT {columns} FROM form ORDER BY id"), lines.append)
    texts = ask(form, "SELECT CAST(new_values AS text) AS text FROM form ORDER BY id")
    types = {"created_at": pa.timestamp("us", "UTC"), "transaction_id": pa.int64()}
    columns_of = {name: [values[name] for values in made] for name in canonical.FIELDS}
    columns_of["new_values"] = [text["text"] for text in texts]
    arrays = {n: pa.array(values, types.get(n, pa.string())) for n, values in columns_of.items()}
    table = pa.RecordBatch.from_pydict(arrays)

    assert canonical.lines(table) == lines
    for line, values in zip(lines, made, strict=True):
        fields, _, _, held = canonical.split(line)
        assert canonical.value(fields[13]) == values["reason"]
        assert canonical.value(held.split(b"\t")[2]) == values["metadata"]


def test_the_form_does_not_follow_the_session(audit, store, put):
    """A database whose settings were changed has the same seals."""
    put(3)
    audit.seal()
    mine = f"ALTER ROLE CURRENT_USER IN DATABASE {store.url.database}"
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'German'",
        "IntervalStyle = 'iso_8601'",
    ):
        do(store, f"{mine} SET {setting}")
    store.close()  # new sessions have them
    found = audit.verify()
    do(store, f"{mine} RESET ALL")
    store.close()

    assert found.intact, found.findings


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


def test_a_month_in_an_archive_is_verified_from_there(audit, store, put, tmp_path, monkeypatch):
    """Also when rows of that month are recorded again, later."""
    monkeypatch.setattr(sealer, "ROWS", 3)
    audit.settings = audit.settings.model_copy(update={"audit_archive": tmp_path})
    put(7)
    audit.seal()
    archived(store, tmp_path / "month.parquet")
    do(store, "DELETE FROM audit.audit_logs")
    away = audit.verify()
    put(2)
    audit.seal()
    found = audit.verify()

    assert away.intact, away.findings
    assert away.archived_rows == away.checked_rows == 7
    assert found.intact, found.findings
    assert found.checked_rows == 9


def test_metrics_and_reports_show_the_newest_head_once_there_is_one(db):
    """Nothing is said of a trail that was never sealed."""
    db.audit.log_read("User", db.users.find()[0].id)
    before = (db.metrics.text(), reports.open_report("audit_trail", db=db))
    db.metrics.close()
    sealed = db.audit.seal()
    db.audit.log_read("User", db.users.find()[0].id)
    del db.__dict__["metrics"]
    text, report = db.metrics.text(), reports.open_report("audit_trail", db=db)

    assert "\nfwdb_audit_seal_info" not in before[0]
    assert "Audit seal" not in dict(before[1].result.sources)
    assert sealed.head is not None
    assert f'fwdb_audit_seal_info{{head="{sealed.head[:16]}"}} 1.0' in text
    assert f"fwdb_audit_sealed_rows {float(sealed.total_rows)}" in text
    assert "fwdb_audit_unsealed_rows 1.0" in text
    assert sealed.head in dict(report.result.sources)["Audit seal"]
    assert "not signed" in dict(report.result.sources)["Audit seal"]
