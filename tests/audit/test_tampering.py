"""What a superuser may do to trail, seals, erasures and archives: all of it is found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from fwdb import config, errors
from fwdb.audit import Audit, canonical, sealing
from fwdb.stores import PostgresStore

KEY, OTHER = "a key that is long enough", "another key of some length"
ROWS = 3  # of one seal, so that there are many
LIVE = "metadata = 'row 0-4'"  # in the current month, in the middle of a seal
OLD = "metadata = 'row 1-1'"  # in the month before
USER = "01234567-89ab-cdef-0123-456789abcdef"


def do(store: PostgresStore, statement: str, **given: Any) -> None:
    store.execute(sa.text(statement), given)


def ask(store: PostgresStore, statement: str, **given: Any) -> list[dict[str, Any]]:
    return store.rows(sa.text(statement), **given)


def audit_of(store: PostgresStore, key: str | None) -> Audit:
    secret = None if key is None else SecretStr(key)
    return Audit(store, settings=config.settings().model_copy(update={"audit_key": secret}))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "ROWS", ROWS)


@pytest.fixture(scope="module")
def prepared(
    servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A sealed trail: two months in tables, one in an archive, an erasure, and a seal file."""
    folder = tmp_path_factory.mktemp("sealed")
    name = f"test_{os.getpid()}_sealed"
    with closing(PostgresStore(servers.postgres)) as admin:
        do(admin, f"CREATE DATABASE {name} TEMPLATE {template}")
        url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
        with closing(PostgresStore(url)) as store, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealing, "ROWS", ROWS)
            patch.setattr(Audit, "_archive_folder", folder)
            _fill(store, folder)
        yield name, folder
        do(admin, f"DROP DATABASE {name} WITH (FORCE)")


def _fill(store: PostgresStore, folder: Path) -> None:
    audit = audit_of(store, KEY)
    do(store, "TRUNCATE audit.audit_logs")
    do(
        store,
        "SELECT audit.add_partitions(CAST(now() - interval '3 months' AS date), current_date)",
    )
    for month, count in ((2, 5), (1, 4), (0, 8)):
        for n in range(count):
            do(
                store,
                "INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values,"
                " new_values, metadata, user_id, ip_address, user_agent, reason, client_address,"
                " created_at) VALUES ('User', gen_random_uuid(), 'UPDATE', '{\"price\": 1.10}',"
                " '{\"price\": 2}', :metadata, CAST(:user AS uuid), '192.0.2.7', 'curl', 'why',"
                " '192.0.2.8', date_trunc('month', now()) - make_interval(months => :month)"
                " + make_interval(secs => :n))",
                metadata=f"row {month}-{n}",
                user=USER if (month, n) == (0, 7) else "11111111-1111-1111-1111-111111111111",
                month=month,
                n=n,
            )
        audit.seal()
    audit.erase(user_id=USER, reason="asked for")
    audit.seal()
    _archive(store, folder)
    audit.seal_file(folder / "seals.json")
    assert audit.verify(folder / "seals.json").intact


def _archive(store: PostgresStore, folder: Path) -> None:
    """The oldest month as the retention leaves it."""
    columns = ", ".join(canonical.FIELDS)
    frame = store.frame(
        sa.text(
            f"SELECT {columns} FROM audit.audit_logs WHERE created_at <"
            " date_trunc('month', now() - interval '1 month') ORDER BY created_at, id"
        )
    )
    path = folder / "archive.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    digest = sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(
        json.dumps({"file": path.name, "rows": len(frame), "sha256": digest})
    )
    do(
        store,
        "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions, dropped_at)"
        " VALUES (date_trunc('month', now() - interval '2 months'), :path, :rows, :bytes, :digest,"
        " 0, now())",
        path=path.name,
        rows=len(frame),
        bytes=path.stat().st_size,
        digest=digest,
    )
    do(store, f"DROP TABLE {partition(store, 2)}")


def partition(store: PostgresStore, month: int) -> str:
    name = "to_char(now() - make_interval(months => :month), 'YYYY_MM')"
    found = ask(store, f"SELECT 'audit.audit_logs_' || {name} AS name", month=month)
    return str(found[0]["name"])


@pytest.fixture
def sealed(
    prepared: tuple[str, Path],
    postgres_database: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[PostgresStore]:
    """A copy of it; `tmp_path` has the archive and the seal file."""
    name, folder = prepared
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(Audit, "_archive_folder", tmp_path)
    with closing(PostgresStore(postgres_database(template=name))) as store:
        yield store


def id_of(store: PostgresStore, condition: str) -> str:
    found = ask(store, f"SELECT CAST(id AS text) AS id FROM audit.audit_logs WHERE {condition}")
    return str(found[0]["id"])


# -- rows -------------------------------------------------------------------------------------

CHANGED = {
    "id": "gen_random_uuid()",
    "created_at": "created_at + interval '1 microsecond'",
    "entity_type": "'Avatar'",
    "entity_id": "gen_random_uuid()",
    "action": "'READ'",
    "transaction_id": "transaction_id - 1",
    "origin": "'trigger'",
    "db_user": "'somebody'",
    "user_id": "gen_random_uuid()",
    "ip_address": "'192.0.2.70'",
    "user_agent": "NULL",
    "application_name": "'other'",
    "client_address": "NULL",
    "reason": "''",
    "old_values": "'{\"price\": 1.1}'",
    "new_values": "'null'",
    "metadata": "metadata || ' '",
}


@pytest.mark.parametrize("column", canonical.FIELDS)
def test_a_changed_column_is_found_and_its_row_named(sealed, column):
    """Also where the new value is as good as the old one, such as 1.1 for 1.10."""
    id = id_of(sealed, LIVE)
    do(sealed, f"UPDATE audit.audit_logs SET {column} = {CHANGED[column]} WHERE {LIVE}")
    found = audit_of(sealed, KEY).verify()

    assert not found.intact
    assert found.first.row_id == id
    assert found.first.kind in {"altered", "missing", "moved"}
    assert found.first.created_at is not None


ROW_TAMPERING = {
    "a user who was not removed taken out": (
        f"UPDATE audit.audit_logs SET user_id = NULL WHERE {LIVE}", LIVE, "altered"),
    "a row deleted": (f"DELETE FROM audit.audit_logs WHERE {LIVE}", LIVE, "missing"),
    "a row moved to another month": (
        "UPDATE audit.audit_logs SET created_at = created_at - interval '1 month' WHERE " + LIVE,
        LIVE, "moved"),
    "a row moved to a month without any": (
        "UPDATE audit.audit_logs SET created_at = created_at - interval '3 months' WHERE " + LIVE,
        LIVE, "moved"),
    "the last row of a month deleted": (
        "DELETE FROM audit.audit_logs WHERE metadata = 'row 1-3'", "metadata = 'row 1-3'",
        "missing"),
    "the values of two rows exchanged": (
        "UPDATE audit.audit_logs AS a SET metadata = b.metadata FROM audit.audit_logs AS b"
        " WHERE (a.metadata, b.metadata) IN (('row 0-3', 'row 0-4'), ('row 0-4', 'row 0-3'))",
        "metadata = 'row 0-3'", "altered"),
    "values put into an erased row": (
        "UPDATE audit.audit_logs SET ip_address = '192.0.2.9' WHERE metadata = 'row 0-7'",
        "metadata = 'row 0-7'", "altered"),
    "triggers off and a row changed": (
        "SET session_replication_role = replica; UPDATE audit.audit_logs SET reason = 'x' WHERE "
        + LIVE, LIVE, "altered"),
    "a table emptied": ("TRUNCATE audit.audit_logs", "metadata = 'row 1-0'", "missing"),
    "a row erased without a record": (
        "UPDATE audit.audit_logs SET old_values = NULL, new_values = NULL, metadata = NULL WHERE "
        + LIVE + "; UPDATE audit.seals SET salts = overlay(salts PLACING"
        " decode(repeat('00', 32), 'hex') FROM 33) WHERE number = 6", LIVE, "altered"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROW_TAMPERING)
def test_what_was_done_to_a_row_is_found_and_the_row_named(sealed, name):
    statements, condition, kind = ROW_TAMPERING[name]
    id = id_of(sealed, condition)
    do(sealed, statements)
    found = audit_of(sealed, KEY).verify()

    assert not found.intact
    assert (found.first.row_id, found.first.kind) == (id, kind)


INSERTED = {
    "into a sealed range": f"SELECT transaction_id, created_at FROM audit.audit_logs WHERE {LIVE}",
    "behind the last row of a month": (
        "SELECT max(transaction_id), max(created_at) FROM audit.audit_logs"
        " WHERE metadata LIKE 'row 1-%'"
    ),
    "without a transaction": "SELECT CAST(NULL AS bigint), created_at FROM audit.audit_logs"
    f" WHERE {LIVE}",
    "into a month without any": "SELECT 5, now() - interval '3 months'",
    "into a month that was dropped": "SELECT 5, now() - interval '2 months'",
    "for a transaction to come": "SELECT 9000000000, now()",
}


@pytest.mark.parametrize("where", INSERTED)
def test_an_inserted_row_is_found_and_named(sealed, where):
    do(sealed, "SELECT audit.add_partitions(CAST(now() - interval '3 months' AS date), "
               "current_date)")  # fmt: skip
    do(
        sealed,
        "INSERT INTO audit.audit_logs (transaction_id, created_at, entity_type, entity_id, action,"
        " metadata) SELECT q.*, 'User', gen_random_uuid(), 'READ', 'forged'"
        f" FROM ({INSERTED[where]}) AS q",
    )
    found = audit_of(sealed, KEY).verify()

    assert [(f.kind, f.row_id) for f in found.findings] == [
        ("inserted", id_of(sealed, "metadata = 'forged'"))
    ]


@pytest.mark.parametrize(
    "how", ["DROP TABLE {}", "ALTER TABLE audit.audit_logs DETACH PARTITION {}"]
)
def test_a_month_that_went_without_an_archive_is_found(sealed, how):
    id = id_of(sealed, "metadata = 'row 1-0'")
    do(sealed, how.format(partition(sealed, 1)))
    found = audit_of(sealed, KEY).verify()

    assert (found.first.kind, found.first.row_id) == ("missing", id)
    assert sum(finding.count for finding in found.findings) == 4


# -- seals ------------------------------------------------------------------------------------

SEAL_TAMPERING = {
    "root": "UPDATE audit.seals SET root = sha256('x') WHERE number = 3",
    "head": "UPDATE audit.seals SET head = sha256('x') WHERE number = 3",
    "head of the newest": "UPDATE audit.seals SET head = sha256('x') WHERE number ="
    " (SELECT max(number) FROM audit.seals)",
    "number of rows": "UPDATE audit.seals SET rows = rows - 1 WHERE number = 3",
    "month": "UPDATE audit.seals SET month = month - 400 WHERE number = 5",
    "time": "UPDATE audit.seals SET sealed_at = sealed_at - interval '1 day' WHERE number = 3",
    "horizon": "UPDATE audit.seals SET horizon = horizon - 1 WHERE number = 5",
    "end of its range": "UPDATE audit.seals SET last_id = gen_random_uuid() WHERE number = 3",
    "leaves": "UPDATE audit.seals SET leaves = overlay(leaves PLACING sha256('x') FROM 33)"
    " WHERE number = 5",
    "keys": "UPDATE audit.seals SET keys = overlay(keys PLACING sha256('x') FROM 33)"
    " WHERE number = 5",
    "salts": "UPDATE audit.seals SET salts = overlay(salts PLACING sha256('x') FROM 33)"
    " WHERE number = 5",
    "salts cut": "UPDATE audit.seals SET salts = substr(salts, 1, 40) WHERE number = 5",
    "signature": "UPDATE audit.seals SET signature = sha256('x') WHERE number = 3",
    "signature of the newest": "UPDATE audit.seals SET signature = NULL WHERE number ="
    " (SELECT max(number) FROM audit.seals)",
    "order": "UPDATE audit.seals SET number = 5 - number - 1000 WHERE number IN (2, 3);"
    " UPDATE audit.seals SET number = number + 1000 WHERE number < 0",
    "first": "DELETE FROM audit.seals WHERE number = 1",
    "one between": "DELETE FROM audit.seals WHERE number = 3",
    "two between": "DELETE FROM audit.seals WHERE number IN (3, 4)",
    "all": "DELETE FROM audit.seals",
    "one twice": "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE audit.seals DROP CONSTRAINT %I',"
    " conname) FROM pg_constraint WHERE conrelid = to_regclass('audit.seals') AND contype = 'p');"
    " END $$; INSERT INTO audit.seals SELECT * FROM audit.seals WHERE number = 3",
}


@pytest.mark.parametrize("name", SEAL_TAMPERING)
def test_what_was_done_to_seals_is_found(sealed, name):
    do(sealed, SEAL_TAMPERING[name])
    found = audit_of(sealed, KEY).verify()

    assert not found.intact
    if name != "all":
        assert {"chain", "seal", "signature", "altered"} & {f.kind for f in found.findings}


@pytest.mark.parametrize("last", [1, 2, 4])
def test_removed_newest_seals_are_found_by_the_seal_file(sealed, tmp_path, last):
    """The chain that is left is sound; only somebody who knew the longer one can tell."""
    do(
        sealed,
        "DELETE FROM audit.seals WHERE number > (SELECT max(number) FROM audit.seals) - :last",
        last=last,
    )
    found = audit_of(sealed, KEY).verify(tmp_path / "seals.json")

    assert "anchor" in {f.kind for f in found.findings}
    assert "were removed" in found.findings[0].sentence


def test_an_earlier_state_put_back_is_found_by_the_seal_file(sealed, tmp_path):
    """Rows and seals fit each other, and the signature is right."""
    audit = audit_of(sealed, KEY)
    do(sealed, "CREATE TABLE kept_rows AS SELECT * FROM audit.audit_logs")
    do(sealed, "CREATE TABLE kept_seals AS SELECT * FROM audit.seals")
    do(sealed, "INSERT INTO audit.audit_logs (entity_type, entity_id, action)"
               " VALUES ('User', gen_random_uuid(), 'READ')")  # fmt: skip
    audit.seal()
    audit.seal_file(tmp_path / "later.json")
    do(sealed, "TRUNCATE audit.audit_logs; INSERT INTO audit.audit_logs SELECT * FROM kept_rows")
    do(sealed, "TRUNCATE audit.seals; INSERT INTO audit.seals SELECT * FROM kept_seals")

    assert audit.verify(tmp_path / "seals.json").intact
    assert [f.kind for f in audit.verify(tmp_path / "later.json").findings] == ["anchor"]


@pytest.mark.parametrize("key", [None, OTHER], ids=["without a key", "with another key"])
def test_a_trail_that_was_rewritten_and_sealed_anew_is_found(sealed, tmp_path, key):
    """Everything fits; but not the signature, and not the seal file."""
    do(sealed, "DELETE FROM audit.erasures; DELETE FROM audit.seals; DELETE FROM audit.archives")
    do(sealed, f"DELETE FROM audit.audit_logs WHERE {LIVE}")
    forger = audit_of(sealed, key)
    forger.seal()

    assert forger.verify().intact
    assert [f.kind for f in audit_of(sealed, KEY).verify().findings] == ["signature"]
    against = audit_of(sealed, None).verify(tmp_path / "seals.json")
    assert {f.kind for f in against.findings} == {"anchor"}


# -- erasures ---------------------------------------------------------------------------------

ERASURE_TAMPERING = {
    "removed": "DELETE FROM audit.erasures",
    "another digest": "UPDATE audit.erasures SET digest = sha256('x')",
    "of another row": f"UPDATE audit.erasures SET log_id = (SELECT id FROM audit.audit_logs"
    f" WHERE {LIVE})",
    "without its row in the trail": "UPDATE audit.erasures SET erasure_id = gen_random_uuid()",
    "forged": (
        "WITH forged AS (UPDATE audit.audit_logs SET user_id = NULL, ip_address = NULL, user_agent"
        " = NULL, application_name = NULL, client_address = NULL, reason = NULL"
        f" WHERE {LIVE} RETURNING id) INSERT INTO audit.erasures (log_id, part, seal, erasure_id,"
        " digest) SELECT id, 'actor', 6, gen_random_uuid(), sha256('x') FROM forged"
    ),
}


@pytest.mark.parametrize("name", ERASURE_TAMPERING)
def test_what_was_done_to_erasures_is_found(sealed, name):
    do(sealed, ERASURE_TAMPERING[name])
    found = audit_of(sealed, KEY).verify()

    assert not found.intact
    assert {"erasure", "altered"} & {f.kind for f in found.findings}


def test_an_erasure_cannot_be_silent(sealed):
    """Whoever has all rights can erase as `erase` does, but the list shows it."""
    audit = audit_of(sealed, KEY)
    before = audit.verify().erasures
    entity = ask(sealed, f"SELECT entity_id AS id FROM audit.audit_logs WHERE {LIVE}")[0]["id"]
    audit.erase(entity_type="User", id=entity, reason="to hide it")
    found = audit.verify()

    assert found.intact, found.findings
    assert len(found.erasures) == len(before) + 1


# -- files ------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    """The archive with other rows; its checksum."""
    pq.write_table(change(pq.read_table(path)), path)
    return sha256(path.read_bytes()).hexdigest()


def altered(table: pa.Table) -> pa.Table:
    place = table.column_names.index("metadata")
    changed = pc.replace_with_mask(
        table["metadata"].combine_chunks(), pc.equal(table["metadata"], "row 2-1").combine_chunks(),
        pa.scalar("x", table["metadata"].type),
    )  # fmt: skip
    return table.set_column(place, "metadata", changed)


FILES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a value changed": altered,
    "a row removed": lambda table: table.filter(pc.not_equal(table["metadata"], "row 2-1")),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(1, 1)]),
    "rows in another order": lambda table: table.take([4, 3, 2, 1, 0]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_archive_is_found_and_its_row_named(sealed, tmp_path, name):
    path = tmp_path / "archive.parquet"
    ids = pq.read_table(path)["id"].to_pylist()
    rewrite(path, FILES[name])
    found = audit_of(sealed, KEY).verify()

    assert found.findings[0].kind == "archive"
    if name == "rows in another order":
        assert len(found.findings) == 1
    else:
        assert found.first.row_id == ids[1]


@pytest.mark.parametrize("name", list(FILES)[:3])
def test_an_archive_that_was_changed_with_its_checksums_is_found(sealed, tmp_path, name):
    """The seals of the month stay when the month goes."""
    path = tmp_path / "archive.parquet"
    ids = pq.read_table(path)["id"].to_pylist()
    digest = rewrite(path, FILES[name])
    rows = pq.read_metadata(path).num_rows
    do(sealed, "UPDATE audit.archives SET sha256 = :digest, rows = :rows", digest=digest, rows=rows)
    path.with_suffix(".json").write_text(
        json.dumps({"file": path.name, "rows": rows, "sha256": digest})
    )
    found = audit_of(sealed, KEY).verify()

    assert [f.row_id for f in found.findings] == [ids[1]]


def lose(folder: Path) -> None:
    (folder / "archive.parquet").unlink()


def damage(folder: Path) -> None:
    (folder / "archive.parquet").write_bytes(b"PAR1 and nothing else")


def change_manifest(folder: Path) -> None:
    path = folder / "archive.json"
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 4'))


def lose_manifest(folder: Path) -> None:
    (folder / "archive.json").unlink()


@pytest.mark.parametrize("how", [lose, damage, change_manifest, lose_manifest])
def test_a_lost_or_damaged_archive_is_said(sealed, tmp_path, how):
    how(tmp_path)
    found = audit_of(sealed, KEY).verify()

    assert [f.kind for f in found.findings] == ["archive"]
    assert "archive.parquet" in found.summary


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM audit.archives",
        "UPDATE audit.archives SET rows = rows - 1",
        "UPDATE audit.archives SET sha256 = 'x'",
        "UPDATE audit.archives SET path = 'other.parquet'",
        "UPDATE audit.archives SET dropped_at = NULL",
    ],
)
def test_what_was_done_to_the_record_of_archives_is_found(sealed, change):
    do(sealed, change)

    assert not audit_of(sealed, KEY).verify().intact


@pytest.mark.parametrize("field", ["seals", "rows", "head", "written_at", "key_id", "heads"])
def test_a_changed_seal_file_is_refused(sealed, tmp_path, field):
    path = tmp_path / "seals.json"
    body = json.loads(path.read_text())
    body[field] = {"1": "00"} if field == "heads" else "2020-01-01T00:00:00+00:00"
    path.write_text(json.dumps(body))

    with pytest.raises(errors.SealError, match="damaged"):
        audit_of(sealed, KEY).verify(path)


def test_a_seal_file_that_was_made_up_without_the_key_is_found(sealed, tmp_path):
    """Its checksum is right; anybody can make one."""
    path = audit_of(sealed, OTHER).seal_file(tmp_path / "forged.json")
    found = audit_of(sealed, KEY).verify(path)

    assert [f.kind for f in found.findings] == ["anchor"]
    assert "not signed with FWDB_AUDIT_KEY" in found.summary
