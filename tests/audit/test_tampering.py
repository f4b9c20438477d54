"""What a superuser may do to trail, seals, erasures and archives: all of it is found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sqlalchemy.engine import make_url
from support import retention
from support.seal import archived, audit_of, manifest
from support.sql import as_role, ask, do, value

from fwdb import errors, migrating
from fwdb.audit import Verification
from fwdb.audit.seal import canonical, sealer
from fwdb.stores import PostgresStore

KEY, OTHER = "a key that is long enough", "another key of some length"
ROWS = 3  # of one seal, so that there are many
LIVE = "metadata = 'row 0-4'"  # in the current month, in the middle of a seal
USER = "01234567-89ab-cdef-0123-456789abcdef"
ACTOR = {"ip_address": "192.0.2.7", "user_agent": "curl", "reason": "why",
         "client_address": "192.0.2.8"}  # fmt: skip
ROLE = f"app_{os.getpid()}"
MONTHS = "SELECT audit.add_partitions(CAST(now() - interval '3 months' AS date), current_date);"
# What is put back between two tests over the same database.
TABLES = ("audit.audit_logs", "audit.seals", "audit.erasures", "audit.archives", "audit.holds",
          "audit.gaps", "audit.followers")  # fmt: skip
KEPT = {table: f"kept.{table.split('.')[1]}" for table in TABLES}
KEEP = "CREATE SCHEMA kept;" + ";".join(
    f"CREATE TABLE {kept} AS SELECT * FROM {table}" for table, kept in KEPT.items()
)
RESTORE = "SET session_replication_role = replica;" + "".join(
    f"DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {kept};"
    for table, kept in KEPT.items()
) + "RESET session_replication_role"  # fmt: skip


def verify(store: PostgresStore, against: Path | None = None) -> Verification:
    return audit_of(store, KEY).verify(against)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "ROWS", ROWS)


# -- a sealed trail -------------------------------------------------------------------------------


@contextmanager
def database(servers: Any, name: str, template: str | None = None) -> Iterator[PostgresStore]:
    name = f"test_{os.getpid()}_{name}"
    with closing(PostgresStore(servers.postgres)) as admin:
        do(admin, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
        with closing(PostgresStore(url)) as store:
            yield store
        do(admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


@pytest.fixture(scope="module")
def prepared(servers: Any, template: str, folder: Path) -> Iterator[str]:
    """A sealed trail: two months in tables, one in an archive, an erasure, and a seal file."""
    with database(servers, "sealed", template) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealer, "ROWS", ROWS)
        patch.setenv("FWDB_AUDIT_ARCHIVE", str(folder))
        audit = audit_of(store, KEY)
        do(store, "TRUNCATE audit.audit_logs;" + MONTHS)
        for month, count in ((2, 5), (1, 4), (0, 8)):
            for n in range(count):
                row = {
                    "created_at": retention.month(month) + timedelta(seconds=n),
                    "old_values": '{"price": 1.10}',
                    "new_values": '{"price": 2}',
                    "metadata": f"row {month}-{n}",
                    "user_id": USER if (month, n) == (0, 7) else str(UUID("1" * 32)),
                    **ACTOR,
                }
                retention.put(audit, row)
            audit.seal()
        audit.erase(user_id=USER, reason="asked for")
        audit.seal()
        archived(store, folder / "archive.parquet", ago=2)
        do(store, f"DROP TABLE {partition(store, 2)}")
        audit.seal_file(folder / "seals.json")
        assert audit.verify(folder / "seals.json").intact
        do(store, KEEP)
        store.close()
        yield str(store.url.database)


@pytest.fixture(scope="module")
def copied(servers: Any, prepared: str) -> Iterator[PostgresStore]:
    with database(servers, "copied", prepared) as store:
        yield store


@pytest.fixture
def files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tmp_path` has the archive and the seal file."""
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setenv("FWDB_AUDIT_ARCHIVE", str(tmp_path))


@pytest.fixture
def sealed(copied: PostgresStore, files: None) -> PostgresStore:
    """It, for a test that changes rows."""
    do(copied, RESTORE)
    return copied


@pytest.fixture
def own(prepared, files, postgres_database) -> Iterator[PostgresStore]:
    """A copy, for a test that changes more than rows."""
    with closing(PostgresStore(postgres_database(template=prepared))) as store:
        yield store


def partition(store: PostgresStore, month: int) -> str:
    name = "to_char(now() - make_interval(months => :month), 'YYYY_MM')"
    found = ask(store, f"SELECT 'audit.audit_logs_' || {name} AS name", month=month)
    return str(found[0]["name"])


def id_of(store: PostgresStore, condition: str) -> str:
    found = ask(store, f"SELECT CAST(id AS text) AS id FROM audit.audit_logs WHERE {condition}")
    return str(found[0]["id"])


# -- rows -------------------------------------------------------------------------------------

CHANGED = {
    "id": "gen_random_uuid()", "created_at": "created_at + interval '1 microsecond'",
    "entity_type": "'Avatar'", "entity_id": "gen_random_uuid()", "action": "'READ'",
    "transaction_id": "transaction_id - 1", "origin": "'trigger'", "db_user": "'somebody'",
    "user_id": "gen_random_uuid()", "ip_address": "'192.0.2.70'", "user_agent": "NULL",
    "application_name": "'other'", "client_address": "NULL", "reason": "''",
    "old_values": "'{\"price\": 1.1}'", "new_values": "'null'", "metadata": "metadata || ' '",
}  # fmt: skip
UPDATED = {f"{column} = {CHANGED[column]}": {"altered", "missing", "moved"}
           for column in canonical.FIELDS} | {
    "user_id = NULL": {"altered"},  # of a user who was not removed
    "transaction_id = -transaction_id": {"altered"},
    "created_at = created_at - interval '1 month'": {"moved"},
    "created_at = created_at - interval '3 months'": {"moved"},  # where there is no row
}  # fmt: skip


ROWS_CHANGED = {
    **{change: (MONTHS + f"UPDATE audit.audit_logs SET {change} WHERE {LIVE}", LIVE, kinds)
       for change, kinds in UPDATED.items()},
    "a row deleted": (f"DELETE FROM audit.audit_logs WHERE {LIVE}", LIVE, {"missing"}),
    "the last row of a month deleted": (
        "DELETE FROM audit.audit_logs WHERE metadata = 'row 1-3'", "metadata = 'row 1-3'",
        {"missing"}),
    "the values of two rows exchanged": (
        "UPDATE audit.audit_logs AS a SET metadata = b.metadata FROM audit.audit_logs AS b"
        " WHERE (a.metadata, b.metadata) IN (('row 0-3', 'row 0-4'), ('row 0-4', 'row 0-3'))",
        "metadata = 'row 0-3'", {"altered"}),
    "values put into an erased row": (
        "UPDATE audit.audit_logs SET ip_address = '192.0.2.9' WHERE metadata = 'row 0-7'",
        "metadata = 'row 0-7'", {"altered"}),
    "triggers off and a row changed": (
        "SET session_replication_role = replica; UPDATE audit.audit_logs SET reason = 'x' WHERE "
        + LIVE, LIVE, {"altered"}),
    "a table emptied": ("TRUNCATE audit.audit_logs", "metadata = 'row 1-0'", {"missing"}),
    "a user whose removal the application told taken out": (
        f"CREATE ROLE {ROLE}; GRANT {ROLE} TO CURRENT_USER; GRANT EXECUTE ON FUNCTION audit.record"
        f" TO {ROLE}; GRANT USAGE ON SCHEMA audit TO {ROLE}; SET SESSION AUTHORIZATION {ROLE};"
        " SELECT audit.record('User', '11111111-1111-1111-1111-111111111111', 'DELETE', '{}',"
        " NULL, NULL, NULL, NULL, NULL, NULL); RESET SESSION AUTHORIZATION;"
        f" DROP OWNED BY {ROLE}; DROP ROLE {ROLE}; UPDATE audit.audit_logs SET user_id = NULL"
        f" WHERE {LIVE}", LIVE, {"altered"}),
    "a row erased without a record": (
        "UPDATE audit.audit_logs SET old_values = NULL, new_values = NULL, metadata = NULL WHERE "
        + LIVE + "; UPDATE audit.seals SET salts = overlay(salts PLACING"
        " decode(repeat('00', 32), 'hex') FROM 33) WHERE number = 6", LIVE, {"altered"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_CHANGED)
def test_what_was_done_to_rows_is_found_and_the_first_named(sealed, name):
    """Also where the new value is as good as the old one, such as 1.1 for 1.10."""
    statements, condition, kinds = ROWS_CHANGED[name]
    id = id_of(sealed, condition)
    do(sealed, statements)
    found = verify(sealed)

    assert not found.intact
    assert found.first.row_id == id
    assert found.first.kind in kinds
    assert found.first.created_at is not None


OF = "FROM audit.audit_logs WHERE"
INSERTED = (
    f"transaction_id, created_at {OF} {LIVE}",  # into a sealed range
    # Behind the last row of a month.
    f"max(transaction_id), max(created_at) {OF} metadata LIKE 'row 1-%'",
    f"CAST(NULL AS bigint), created_at {OF} {LIVE}",
    f"-5, created_at {OF} {LIVE}",
    # Into a month that was dropped, and one without any.
    *(f"{transaction}, now() - interval '{months} months'"
      for transaction in (5, -5) for months in (2, 3)),
    "9000000000, now()",  # for a transaction to come
)  # fmt: skip


@pytest.mark.parametrize("where", INSERTED)
def test_an_inserted_row_is_found_and_named(sealed, where):
    do(
        sealed,
        MONTHS + "INSERT INTO audit.audit_logs (transaction_id, created_at, entity_type, entity_id,"
        " action, metadata) SELECT q.*, 'User', gen_random_uuid(), 'READ', 'forged'"
        f" FROM (SELECT {where}) AS q",
    )
    found = verify(sealed)

    assert [(f.kind, f.row_id) for f in found.findings] == [
        ("inserted", id_of(sealed, "metadata = 'forged'"))
    ]


@pytest.mark.parametrize(
    "how", ["DROP TABLE {}", "ALTER TABLE audit.audit_logs DETACH PARTITION {}"]
)
def test_a_month_that_went_without_an_archive_is_found(own, how):
    id = id_of(own, "metadata = 'row 1-0'")
    do(own, how.format(partition(own, 1)))
    found = verify(own)

    assert (found.first.kind, found.first.row_id) == ("missing", id)
    assert sum(finding.count for finding in found.findings) == 4


def test_a_row_where_nothing_looks_for_it_is_counted(own):
    """A month that took it with a constraint that was made to seem checked."""
    month = partition(own, 0)
    bounds = "date_trunc('month', now()), date_trunc('month', now()) + interval '1 month'"
    run = "DO $$ BEGIN EXECUTE format('ALTER TABLE {}', " + bounds + "); END $$"
    check = "ADD CONSTRAINT seems CHECK (created_at >= %L AND created_at < %L) NOT VALID"
    do(own, f"ALTER DATABASE {own.url.database} SET TimeZone = 'UTC'")
    own.close()
    for statement in (
        f"ALTER TABLE audit.audit_logs DETACH PARTITION {month}",
        f"INSERT INTO {month} (entity_type, entity_id, action, created_at, transaction_id) VALUES"
        " ('User', gen_random_uuid(), 'READ', date_trunc('month', now()) - interval '1 month', 5)",
        run.format(f"{month} {check}"),
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'seems'",
        run.format(f"audit.audit_logs ATTACH PARTITION {month} FOR VALUES FROM (%L) TO (%L)"),
    ):
        do(own, statement)
    found = verify(own)

    assert [(f.kind, f.count) for f in found.findings] == [("trail", 1)]
    assert "1 are in no month or partition" in found.summary


ALTERED = {
    "a view": ("ALTER TABLE audit.audit_logs RENAME TO kept; CREATE VIEW audit.audit_logs AS"
               " SELECT * FROM audit.kept", "trail"),
    "row security": ("ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY", "trail"),
    "a trigger that drops rows": (
        "CREATE FUNCTION audit.nothing() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER nothing BEFORE INSERT ON audit.audit_logs"
        " FOR EACH ROW EXECUTE FUNCTION audit.nothing()", "trail"),
    "a rule that drops rows": (
        "CREATE RULE nothing AS ON INSERT TO audit.erasures DO INSTEAD NOTHING", "trail"),
    "a seal twice": (
        "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE audit.seals DROP CONSTRAINT %I', conname)"
        " FROM pg_constraint WHERE conrelid = to_regclass('audit.seals') AND contype = 'p'); END $$"
        "; INSERT INTO audit.seals SELECT * FROM audit.seals WHERE number = 3", "chain"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_done_to_the_tables_is_found(own, name):
    """Such as what stands between the trail and its readers or writers."""
    statement, kind = ALTERED[name]
    do(own, statement)

    found = {f.kind for f in verify(own).findings}
    assert kind in found
    assert found == {"trail"} or kind == "chain"


def test_operators_of_somebody_else_hide_nothing(own):
    """Of a schema that comes first by the settings of the database: one row is always new."""
    for n, other in enumerate(("smallint", "integer", "bigint")):
        for operator, hidden in ((">=", "OR $1 = 5 AND $2 IN"), ("<", "AND $1 <> 5 AND 0 NOT IN")):
            do(
                own,
                "CREATE SCHEMA IF NOT EXISTS evil; CREATE OR REPLACE FUNCTION"
                f" evil.f{n}{len(operator)}(bigint, {other}) RETURNS boolean LANGUAGE sql AS $$"
                f"SELECT $1 OPERATOR(pg_catalog.{operator}) $2 {hidden}"
                " (SELECT horizon FROM audit.seals)$$;"
                f" CREATE OPERATOR evil.{operator} (FUNCTION = evil.f{n}{len(operator)},"
                f" LEFTARG = bigint, RIGHTARG = {other})",
            )
    do(
        own,
        MONTHS + "INSERT INTO audit.audit_logs (entity_type, entity_id, action, transaction_id,"
        " created_at) VALUES ('User', gen_random_uuid(), 'READ', 5, now() - interval '3 months');"
        f" ALTER DATABASE {own.url.database} SET search_path = evil, pg_catalog",
    )
    own.close()  # new sessions have it

    assert [f.kind for f in verify(own).findings] == ["inserted"]


NOT_PROVEN = {
    "holds": "INSERT INTO audit.holds (month) VALUES (date_trunc('month', now()))",
    "gaps": "INSERT INTO audit.gaps (follower, until, reason) VALUES ('designs', now(), 'x')",
    "followers": "INSERT INTO audit.followers (name, source) VALUES ('designs', 'x')",
    "dates in audit.archives": "UPDATE audit.archives SET exported_at = 'infinity',"
    " dropped_at = '-infinity'",
    "GRANT": "GRANT INSERT ON audit.audit_logs TO PUBLIC",
}


@pytest.mark.parametrize("name", NOT_PROVEN)
def test_what_no_seal_covers_is_said(sealed, name):
    do(sealed, NOT_PROVEN[name])
    found = verify(sealed)
    do(sealed, "REVOKE INSERT ON audit.audit_logs FROM PUBLIC")

    assert found.intact, found.findings
    said = "Everybody may INSERT on audit.audit_logs" if name == "GRANT" else name
    assert any(said in sentence for sentence in found.not_proven)


# -- seals ------------------------------------------------------------------------------------

NEWEST = "number = (SELECT max(number) FROM audit.seals)"
SEALS = (
    "SET root = sha256('x') WHERE number = 3",
    "SET head = sha256('x') WHERE number = 3",
    f"SET head = sha256('x') WHERE {NEWEST}",
    "SET rows = rows - 1 WHERE number = 3",
    "SET month = month - 400 WHERE number = 5",
    "SET sealed_at = sealed_at - interval '1 day' WHERE number = 3",
    "SET horizon = horizon - 1 WHERE number = 5",
    "SET last_id = gen_random_uuid() WHERE number = 3",
    "SET leaves = overlay(leaves PLACING sha256('x') FROM 33) WHERE number = 5",
    "SET keys = overlay(keys PLACING sha256('x') FROM 33) WHERE number = 5",
    "SET salts = overlay(salts PLACING sha256('x') FROM 33) WHERE number = 5",
    "SET salts = substr(salts, 1, 40) WHERE number = 5",
    "SET signature = sha256('x') WHERE number = 3",
    f"SET signature = NULL WHERE {NEWEST}",
    "SET number = 5 - number - 1000 WHERE number IN (2, 3);"
    " UPDATE audit.seals SET number = number + 1000 WHERE number < 0",
    # Times and sizes that nobody has.
    "SET sealed_at = 'infinity' WHERE number = 3",
    "SET month = '-infinity' WHERE number = 5",
    "SET rows = 2000000000 WHERE number = 5",
    "SET rows = 0, keys = '', salts = '', leaves = '' WHERE number = 5",
    *(f"SET number = number WHERE false; DELETE FROM audit.seals WHERE {which}"
      for which in ("number = 1", "number = 3", "number IN (3, 4)", "true")),
)  # fmt: skip


@pytest.mark.parametrize("last", [1, 2, 4])
def test_removed_newest_seals_are_found_by_the_seal_file(sealed, tmp_path, last):
    """The chain that is left is sound; only somebody who knew the longer one can tell."""
    left = "(SELECT max(number) FROM audit.seals) - :last"
    do(sealed, f"DELETE FROM audit.seals WHERE number > {left}", last=last)
    found = verify(sealed, tmp_path / "seals.json")

    assert "anchor" in {f.kind for f in found.findings}
    assert "were removed" in found.findings[0].sentence


def test_an_earlier_state_put_back_is_found_by_the_seal_file(sealed, tmp_path):
    """Rows and seals fit each other, and the signature is right."""
    audit = audit_of(sealed, KEY)
    do(sealed, "INSERT INTO audit.audit_logs (entity_type, entity_id, action)"
               " VALUES ('User', gen_random_uuid(), 'READ')")  # fmt: skip
    audit.seal()
    audit.seal_file(tmp_path / "later.json")
    do(sealed, RESTORE)

    assert verify(sealed, tmp_path / "seals.json").intact
    assert [f.kind for f in verify(sealed, tmp_path / "later.json").findings] == ["anchor"]


@pytest.mark.parametrize("key", [None, OTHER], ids=["without a key", "with another key"])
def test_a_trail_that_was_rewritten_and_sealed_anew_is_found(sealed, tmp_path, key):
    """Everything fits; but not the signature, and not the seal file."""
    do(sealed, "DELETE FROM audit.erasures; DELETE FROM audit.seals; DELETE FROM audit.archives")
    do(sealed, f"DELETE FROM audit.audit_logs WHERE {LIVE}")
    forger = audit_of(sealed, key)
    forger.seal()

    assert forger.verify().intact
    assert [f.kind for f in verify(sealed).findings] == ["signature"]
    against = audit_of(sealed, None).verify(tmp_path / "seals.json")
    assert {f.kind for f in against.findings} == {"anchor"}


# -- erasures ---------------------------------------------------------------------------------

ERASURE_TAMPERING = (
    "DELETE FROM audit.erasures",
    "UPDATE audit.erasures SET digest = sha256('x')",
    "UPDATE audit.erasures SET erased_at = erased_at - interval '1 day'",
    "UPDATE audit.erasures SET erased_at = 'infinity'",
    # told by the application
    (
        f"UPDATE audit.erasures SET erasure_id = '{USER}'; CREATE ROLE {ROLE};"
        f" GRANT EXECUTE ON FUNCTION audit.record TO {ROLE}; GRANT USAGE ON SCHEMA audit TO {ROLE};"
        " CREATE TABLE told AS SELECT old_values AS said FROM audit.audit_logs"
        f" WHERE entity_type = 'AuditLog'; GRANT SELECT ON told TO {ROLE};"
        f" SET SESSION AUTHORIZATION {ROLE}; SELECT audit.record('AuditLog', '{USER}', 'DELETE',"
        " said, NULL, NULL, NULL, NULL, NULL, NULL) FROM told; RESET SESSION AUTHORIZATION;"
    ),
    f"UPDATE audit.erasures SET log_id = (SELECT id FROM audit.audit_logs WHERE {LIVE})",
    "UPDATE audit.erasures SET erasure_id = gen_random_uuid()",
    # forged
    (
        "WITH forged AS (UPDATE audit.audit_logs SET user_id = NULL, ip_address = NULL, user_agent"
        " = NULL, application_name = NULL, client_address = NULL, reason = NULL"
        f" WHERE {LIVE} RETURNING id) INSERT INTO audit.erasures (log_id, part, seal, erasure_id,"
        " digest) SELECT id, 'actor', 6, gen_random_uuid(), sha256('x') FROM forged"
    ),
)


ARCHIVES = (
    "DELETE FROM audit.archives",
    *(
        f"UPDATE audit.archives SET {change}"
        for change in (
            "rows = rows - 1", "bytes = bytes + 1", "sha256 = 'x'", "dropped_at = NULL",
            "path = 'other.parquet'", "path = '/etc/passwd'", "path = '..'",
            "month = month - 1", "month = 'infinity'",
        )
    ),
    "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions, dropped_at)"
    " SELECT month - interval '1 year', 'gone.parquet', 1, 1, 'x', 0, now() FROM audit.archives",
)  # fmt: skip

LOST = {"chain", "seal", "signature", "altered"}  # also where no row was read
CHANGES = (
    *((f"UPDATE audit.seals {change}", LOST) for change in SEALS),
    *((change, {"erasure", "altered"}) for change in ERASURE_TAMPERING),
    *((change, None) for change in ARCHIVES),
)


@pytest.mark.parametrize(("change", "kinds"), CHANGES)
def test_what_was_done_to_seals_erasures_and_records_of_archives_is_found(sealed, change, kinds):
    do(sealed, change)
    found = verify(sealed)
    do(sealed, f"DROP TABLE IF EXISTS told; DO $$ BEGIN IF to_regrole('{ROLE}') IS NOT NULL THEN"
               f" DROP OWNED BY {ROLE}; DROP ROLE {ROLE}; END IF; END $$")  # fmt: skip

    assert not found.intact
    if kinds and found.seals:
        assert kinds & {f.kind for f in found.findings}


def test_an_erasure_cannot_be_silent(sealed):
    """Whoever has all rights can erase as `erase` does, but the list shows it."""
    audit = audit_of(sealed, KEY)
    before = audit.verify().erasures
    entity = value(sealed, f"SELECT entity_id AS id FROM audit.audit_logs WHERE {LIVE}")
    audit.erase(entity_type="User", id=entity, reason="to hide it")
    found = audit.verify()

    assert found.intact, found.findings
    assert len(found.erasures) == len(before) + 1


# -- files ------------------------------------------------------------------------------------


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


METADATA = [f"row 2-{n}" for n in range(5)]
FILES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a value changed": column("metadata", [METADATA[0], "x", *METADATA[2:]]),
    "a row removed": lambda table: table.filter(pc.not_equal(table["metadata"], "row 2-1")),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(1, 1)]),
    "rows in another order": lambda table: table.take([4, 3, 2, 1, 0]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_archive_is_found_and_its_row_named(sealed, tmp_path, name):
    """Also when its checksums were changed with it: the seals of the month stay when it goes."""
    path = tmp_path / "archive.parquet"
    table = pq.read_table(path)
    pq.write_table(FILES[name](table), path)
    found = verify(sealed)
    rows = pq.read_metadata(path).num_rows
    record(sealed, path, rows)
    with_checksums = verify(sealed)

    assert found.findings[0].kind == "archive"
    if name == "rows in another order":
        assert len(found.findings) == 1
    else:
        id = table["id"][1].as_py()
        assert found.first.row_id == id
        assert [f.row_id for f in with_checksums.findings] == [id]


def record(store: PostgresStore, path: Path, rows: int) -> None:
    """Lets manifest and database say that the file is what was exported."""
    change = "UPDATE audit.archives SET sha256 = :digest, rows = :rows, bytes = :bytes"
    do(store, change, digest=manifest(path, rows), rows=rows, bytes=path.stat().st_size)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.append_column("metadata", table["metadata"]), "has a column twice"),
        (column("transaction_id", [0.5] * 5), "missing"),
        (column("transaction_id", ["x"] * 5), "missing"),
        (column("created_at", ["yesterday"] * 5), "altered"),
        (column("entity_id", ["of nobody"] * 5), "altered"),
        (column("id", ["0"] * 5), "missing"),
        (lambda table: table.drop_columns(["transaction_id"]), "altered"),
        (lambda table: table.drop_columns(["id"]), "missing"),
        (lambda table: table.drop_columns(["created_at", "entity_type", "action"]), "altered"),
    ],
)
def test_an_archive_of_another_form_is_named(sealed, tmp_path, change, said):
    path = tmp_path / "archive.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    record(sealed, path, 5)

    assert any(said in one.sentence for one in verify(sealed).findings)


HARM: dict[str, Callable[[Path], Any]] = {
    "lost": lambda path: path.unlink(),
    "no file of that kind": lambda path: path.write_bytes(b"PAR1 and nothing else"),
    "a page damaged": lambda path: path.write_bytes(
        (content := path.read_bytes())[:4] + bytes(396) + content[400:]
    ),
    "another manifest": lambda path: manifest(path, 4),
    "no manifest": lambda path: path.with_suffix(".json").unlink(),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_or_damaged_archive_is_said(sealed, tmp_path, harm):
    HARM[harm](tmp_path / "archive.parquet")
    found = verify(sealed)

    assert "archive" in {f.kind for f in found.findings} <= {"archive", "missing"}
    assert any("archive.parquet" in f.sentence for f in found.findings)


def test_a_changed_or_huge_seal_file_is_refused(sealed, tmp_path):
    """Whatever was changed in it; and one that would fill the memory."""
    body = json.loads((tmp_path / "seals.json").read_text())
    odd = dict.fromkeys(("seals", "rows", "head", "written_at", "key_id"), "2020-01-01T00:00Z")
    contents = [json.dumps({**body, field: value}) for field, value in odd.items()]
    contents += [json.dumps({**body, "heads": {"1": "00"}}), "[" * 500_000, " " * (1 << 20) + "{}"]
    for content in contents:
        path = tmp_path / "changed.json"
        path.write_text(content)
        with pytest.raises(errors.SealError, match="more than" if content[0] == " " else "damaged"):
            verify(sealed, path)


def test_a_seal_file_that_was_made_up_without_the_key_is_found(sealed, tmp_path):
    """Its checksum is right; anybody can make one."""
    path = audit_of(sealed, OTHER).seal_file(tmp_path / "forged.json")
    found = verify(sealed, path)

    assert [f.kind for f in found.findings] == ["anchor"]
    assert "not signed with FWDB_AUDIT_KEY" in found.summary


# -- a trail in one piece, which was there before ------------------------------------------------

FAR = ["-infinity", "0044-03-15 BC", "20000-02-28", "infinity"]


@pytest.fixture(scope="module")
def in_one_piece(servers: Any, existing: str) -> Iterator[str]:
    """Rows of before fwdb, of its time and of times that Python has none for; sealed."""
    insert = (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, user_id, metadata,"
        " created_at) SELECT 'User', gen_random_uuid(), 'READ', CAST(:user AS uuid), :of || n,"
        " CAST(coalesce(at, CAST(now() - interval '1 month' AS text)) AS timestamptz)"
        " FROM unnest(CAST(:at AS text[])) WITH ORDINALITY AS given (at, n)"
    )
    with database(servers, "one_piece") as store:
        do(store, existing)
        do(store, f"INSERT INTO shared.users (id, email) VALUES ('{USER}', 'a')")
        do(store, insert, of="before ", at=[*FAR, None, None], user=USER)
        migrating.migrate(store, None)
        do(store, insert, of="after ", at=[*FAR, None, None], user=USER)
        do(store, "UPDATE audit.audit_logs SET transaction_id = -7 WHERE metadata = 'before 5'")
        audit_of(store, KEY).seal()
        store.close()
        yield str(store.url.database)


@pytest.fixture
def adopted(in_one_piece: str, postgres_database: Callable[..., str]) -> Iterator[PostgresStore]:
    with closing(PostgresStore(postgres_database(template=in_one_piece))) as store:
        yield store


def test_times_and_transactions_of_any_kind_are_sealed_verified_and_erased(adopted):
    """And sealed but once; a user who goes takes the id out of them without a finding."""
    audit = audit_of(adopted, KEY)
    sound, again = audit.verify(), audit.seal()
    do(adopted, "DELETE FROM shared.users")
    forgotten = audit.verify()
    entity = ask(adopted, "SELECT entity_id AS id FROM audit.audit_logs WHERE metadata = 'after 4'")
    erased = audit.erase(entity_type="User", id=entity[0]["id"], reason="request 7")

    assert sound.intact, sound.findings
    assert (sound.checked_rows, sound.unsealed_rows, again.rows) == (12, 0, 0)
    assert audit.retain(dry_run=True).expired == 0
    assert forgotten.intact, forgotten.findings
    assert (forgotten.forgotten_rows, erased.rows, audit.verify().erased_rows) == (12, 1, 1)


def test_what_the_service_itself_may_have_put_before_its_table_is_not_proven(adopted):
    """Its rights, its triggers: no finding, and said each time. Rows that are hidden from who
    verifies are one."""
    do(
        adopted,
        "GRANT INSERT ON audit.audit_logs TO PUBLIC; CREATE TRIGGER its BEFORE UPDATE ON"
        " audit.audit_logs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        " ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY",
    )
    found = verify(adopted)
    rights = "GRANT USAGE ON SCHEMA audit TO {}; GRANT SELECT ON ALL TABLES IN SCHEMA audit TO {}"
    with as_role(adopted, rights) as limited:
        hidden = verify(limited)

    assert found.intact, found.findings
    for said in ("Everybody may INSERT", "The trigger its of", "Row security is on"):
        assert any(said in sentence for sentence in found.not_proven), said
    assert hidden.findings[-1].sentence == (
        "Row security is on for audit.audit_logs, and hides rows from the role that asks."
    )


NULL = "ALTER TABLE audit.audit_logs ALTER {} DROP NOT NULL; "


def forged(
    *, entity: str = "entity_id", at: str = "created_at", transaction: str = "transaction_id"
):
    return (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, created_at, transaction_id)"
        f" SELECT 'User', {entity}, 'READ', {at}, {transaction} FROM audit.audit_logs"
        " WHERE metadata = '{}'"
    )


ADOPTED = {
    "altered": ("UPDATE audit.audit_logs SET user_agent = 'x' WHERE metadata = '{}'", "altered"),
    "removed": ("DELETE FROM audit.audit_logs WHERE metadata = '{}'", "missing"),
    "moved": (
        "UPDATE audit.audit_logs SET created_at = '2020-01-01Z' WHERE metadata = '{}'", "moved"),
    "another transaction": (
        "UPDATE audit.audit_logs SET transaction_id = 0 WHERE metadata = '{}'", "altered"),
    "a user taken out, as the application told": (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, user_id) SELECT 'User',"
        " user_id, 'DELETE', NULL FROM audit.audit_logs WHERE metadata = '{}'; UPDATE"
        " audit.audit_logs SET user_id = NULL WHERE metadata = '{}'", "altered"),
    "inserted": (forged(), "inserted"),
    "inserted for a negative transaction": (forged(transaction="-100"), "inserted"),
    "inserted without a time": (NULL.format("created_at") + forged(at="NULL"), "trail"),
    "inserted without an entity": (NULL.format("entity_id") + forged(entity="NULL"), "inserted"),
    "inherited": (
        "CREATE TABLE IF NOT EXISTS audit.more () INHERITS (audit.audit_logs); INSERT INTO"
        " audit.more SELECT * FROM audit.audit_logs WHERE metadata = '{}'", "inserted"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADOPTED)
def test_what_was_done_to_a_table_in_one_piece_is_found(adopted, name):
    """To rows of any time and transaction."""
    statements, kind = ADOPTED[name]
    # Of rows that were moved to one month only the first is named.
    rows = ("after 3",) if kind == "moved" else ("before 5", "after 1", "after 3", "after 5")
    for row in rows:
        do(adopted, statements.replace("{}", row))
    found = verify(adopted).findings

    assert {f.kind for f in found} == {kind}
    assert sum(f.count for f in found) == len(rows)
