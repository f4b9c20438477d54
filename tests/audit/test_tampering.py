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

from fwdb import config, errors, migrating
from fwdb.audit import Audit
from fwdb.audit.seal import canonical, sealer
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
    monkeypatch.setattr(sealer, "ROWS", ROWS)


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
            patch.setattr(sealer, "ROWS", ROWS)
            patch.setenv("FWDB_AUDIT_ARCHIVE", str(folder))
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
    monkeypatch.setenv("FWDB_AUDIT_ARCHIVE", str(tmp_path))
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
    "a user whose removal the application told taken out": (
        "CREATE ROLE {role}; GRANT {role} TO CURRENT_USER; GRANT EXECUTE ON FUNCTION audit.record"
        " TO {role}; GRANT USAGE ON SCHEMA audit TO {role}; SET SESSION AUTHORIZATION {role};"
        " SELECT audit.record('User', '11111111-1111-1111-1111-111111111111', 'DELETE', '{{}}',"
        " NULL, NULL, NULL, NULL, NULL, NULL); RESET SESSION AUTHORIZATION; DROP OWNED BY {role};"
        " DROP ROLE {role}; UPDATE audit.audit_logs SET user_id = NULL WHERE " + LIVE,
        LIVE, "altered"),
    "a row given a negative transaction": (
        "UPDATE audit.audit_logs SET transaction_id = -transaction_id WHERE " + LIVE, LIVE,
        "altered"),
    "a row erased without a record": (
        "UPDATE audit.audit_logs SET old_values = NULL, new_values = NULL, metadata = NULL WHERE "
        + LIVE + "; UPDATE audit.seals SET salts = overlay(salts PLACING"
        " decode(repeat('00', 32), 'hex') FROM 33) WHERE number = 6", LIVE, "altered"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROW_TAMPERING)
def test_what_was_done_to_a_row_is_found_and_the_row_named(sealed, name):
    statements, condition, kind = ROW_TAMPERING[name]
    id = id_of(sealed, condition)
    do(sealed, statements.replace("{role}", f"app_{os.getpid()}").replace("{{}}", "{}"))
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
    "for a negative transaction": f"SELECT -5, created_at FROM audit.audit_logs WHERE {LIVE}",
    "for a negative one, into a month that was dropped": "SELECT -5, now() - interval '2 months'",
    "for a negative one, into a month without any": "SELECT -5, now() - interval '3 months'",
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


def test_a_row_where_nothing_looks_for_it_is_counted(sealed):
    """A month that took it with a constraint that was made to seem checked."""
    month = partition(sealed, 0)
    bounds = "created_at >= date_trunc('month', now()) AND created_at < date_trunc('month', now())"
    do(sealed, "ALTER DATABASE " + str(sealed.url.database) + " SET TimeZone = 'UTC'")
    sealed.close()
    do(
        sealed,
        f"ALTER TABLE audit.audit_logs DETACH PARTITION {month};"
        f" INSERT INTO {month} (entity_type, entity_id, action, created_at, transaction_id)"
        " VALUES ('User', gen_random_uuid(), 'READ', date_trunc('month', now()) - interval"
        " '1 month', 5); DO $$ BEGIN EXECUTE format('ALTER TABLE " + month + " ADD CONSTRAINT seems"
        " CHECK ("
        + bounds.replace("date_trunc('month', now())", "%1$L", 1).replace(
            "date_trunc('month', now())", "%2$L"
        )
        + ") NOT VALID', date_trunc('month', now()),"
        " date_trunc('month', now()) + interval '1 month'); END $$;"
        " UPDATE pg_constraint SET convalidated = true WHERE conname = 'seems'",
    )
    do(
        sealed,
        "DO $$ BEGIN EXECUTE format('ALTER TABLE audit.audit_logs ATTACH PARTITION " + month +
        " FOR VALUES FROM (%L) TO (%L)', date_trunc('month', now()), date_trunc('month', now())"
        " + interval '1 month'); END $$",
    )  # fmt: skip
    found = audit_of(sealed, KEY).verify()

    assert [(f.kind, f.count) for f in found.findings] == [("trail", 1)]
    assert "1 are in no month or partition" in found.summary


BETWEEN = {
    "a view": "ALTER TABLE audit.audit_logs RENAME TO kept; CREATE VIEW audit.audit_logs AS"
    " SELECT * FROM audit.kept",
    "row security": "ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY",
    "a trigger that drops rows": "CREATE FUNCTION audit.nothing() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER nothing BEFORE INSERT ON audit.audit_logs"
    " FOR EACH ROW EXECUTE FUNCTION audit.nothing()",
    "a rule that drops rows": "CREATE RULE nothing AS ON INSERT TO audit.erasures DO INSTEAD"
    " NOTHING",
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_the_trail_and_its_readers_or_writers_is_found(sealed, name):
    do(sealed, BETWEEN[name])
    found = audit_of(sealed, KEY).verify()

    assert {f.kind for f in found.findings} == {"trail"}


def test_operators_of_somebody_else_hide_nothing(sealed):
    """Of a schema that comes first by the settings of the database: one row is always new."""
    for n, other in enumerate(("smallint", "integer", "bigint")):
        for operator, hidden in ((">=", "OR $1 = 5 AND $2 IN"), ("<", "AND $1 <> 5 AND 0 NOT IN")):
            do(
                sealed,
                "CREATE SCHEMA IF NOT EXISTS evil; CREATE OR REPLACE FUNCTION"
                f" evil.f{n}{len(operator)}(bigint, {other}) RETURNS boolean LANGUAGE sql AS $$"
                f"SELECT $1 OPERATOR(pg_catalog.{operator}) $2 {hidden}"
                " (SELECT horizon FROM audit.seals)$$;"
                f" CREATE OPERATOR evil.{operator} (FUNCTION = evil.f{n}{len(operator)},"
                f" LEFTARG = bigint, RIGHTARG = {other})",
            )
    do(sealed, "SELECT audit.add_partitions(CAST(now() - interval '3 months' AS date), "
               "current_date)")  # fmt: skip
    do(
        sealed,
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, transaction_id, created_at)"
        " VALUES ('User', gen_random_uuid(), 'READ', 5, now() - interval '3 months');"
        f" ALTER DATABASE {sealed.url.database} SET search_path = evil, pg_catalog",
    )
    sealed.close()  # new sessions have it

    assert [f.kind for f in audit_of(sealed, KEY).verify().findings] == ["inserted"]


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
    found = audit_of(sealed, KEY).verify()

    assert found.intact, found.findings
    said = "Everybody may INSERT on audit.audit_logs" if name == "GRANT" else name
    assert any(said in sentence for sentence in found.not_proven)


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
    "time, to one that nobody has": "UPDATE audit.seals SET sealed_at = 'infinity'"
    " WHERE number = 3",
    "month, to one that nobody has": "UPDATE audit.seals SET month = '-infinity' WHERE number = 5",
    "more rows than memory": "UPDATE audit.seals SET rows = 2000000000 WHERE number = 5",
    "no rows": "UPDATE audit.seals SET rows = 0, keys = '', salts = '', leaves = ''"
    " WHERE number = 5",
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
    "another time": "UPDATE audit.erasures SET erased_at = erased_at - interval '1 day'",
    "no time": "UPDATE audit.erasures SET erased_at = 'infinity'",
    "told by the application": (
        "UPDATE audit.erasures SET erasure_id = CAST('{user}' AS uuid); CREATE ROLE {role};"
        " GRANT EXECUTE ON FUNCTION audit.record TO {role}; GRANT USAGE ON SCHEMA audit TO {role};"
        " CREATE TABLE told AS SELECT old_values AS said FROM audit.audit_logs"
        " WHERE entity_type = 'AuditLog'; GRANT SELECT ON told TO {role};"
        " SET SESSION AUTHORIZATION {role}; SELECT audit.record('AuditLog', '{user}', 'DELETE',"
        " said, NULL, NULL, NULL, NULL, NULL, NULL) FROM told; RESET SESSION AUTHORIZATION;"
    ),
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
    role = f"app_{os.getpid()}"
    do(sealed, ERASURE_TAMPERING[name].replace("{user}", USER).replace("{role}", role))
    found = audit_of(sealed, KEY).verify()
    do(sealed, f"DROP TABLE IF EXISTS told; DO $$ BEGIN IF to_regrole('{role}') IS NOT NULL THEN"
               f" DROP OWNED BY {role}; DROP ROLE {role}; END IF; END $$")  # fmt: skip

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


def doubled(table: pa.Table) -> pa.Table:
    return table.append_column("metadata", table["metadata"])


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
    do(
        sealed,
        "UPDATE audit.archives SET sha256 = :digest, rows = :rows, bytes = :bytes",
        digest=digest,
        rows=rows,
        bytes=path.stat().st_size,
    )
    path.with_suffix(".json").write_text(
        json.dumps({"file": path.name, "rows": rows, "sha256": digest})
    )
    found = audit_of(sealed, KEY).verify()

    assert [f.row_id for f in found.findings] == [ids[1]]


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled, "has a column twice"),
        (replaced("transaction_id", [0.5] * 5), "missing"),
        (replaced("transaction_id", ["x"] * 5), "missing"),
        (replaced("created_at", ["yesterday"] * 5), "altered"),
        (replaced("entity_id", ["of nobody"] * 5), "altered"),
        (replaced("id", ["0"] * 5), "missing"),
        (lambda table: table.drop_columns(["transaction_id"]), "altered"),
        (lambda table: table.drop_columns(["id"]), "missing"),
        (lambda table: table.drop_columns(["created_at", "entity_type", "action"]), "altered"),
    ],
)
def test_an_archive_of_another_form_is_named(sealed, tmp_path, change, said):
    path = tmp_path / "archive.parquet"
    digest = rewrite(path, change)
    size = path.stat().st_size
    do(sealed, "UPDATE audit.archives SET sha256 = :digest, bytes = :n", digest=digest, n=size)
    path.with_suffix(".json").write_text(
        json.dumps({"file": path.name, "rows": 5, "sha256": digest})
    )

    found = audit_of(sealed, KEY).verify().findings
    assert any(said in one.sentence for one in found)


def lose(folder: Path) -> None:
    (folder / "archive.parquet").unlink()


def damage(folder: Path) -> None:
    (folder / "archive.parquet").write_bytes(b"PAR1 and nothing else")


def damage_a_page(folder: Path) -> None:
    path = folder / "archive.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)


def change_manifest(folder: Path) -> None:
    path = folder / "archive.json"
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 4'))


def lose_manifest(folder: Path) -> None:
    (folder / "archive.json").unlink()


@pytest.mark.parametrize("how", [lose, damage, damage_a_page, change_manifest, lose_manifest])
def test_a_lost_or_damaged_archive_is_said(sealed, tmp_path, how):
    how(tmp_path)
    found = audit_of(sealed, KEY).verify()

    assert "archive" in {f.kind for f in found.findings} <= {"archive", "missing"}
    assert any("archive.parquet" in f.sentence for f in found.findings)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM audit.archives",
        "UPDATE audit.archives SET rows = rows - 1",
        "UPDATE audit.archives SET sha256 = 'x'",
        "UPDATE audit.archives SET path = 'other.parquet'",
        "UPDATE audit.archives SET dropped_at = NULL",
        "UPDATE audit.archives SET bytes = bytes + 1",
        "UPDATE audit.archives SET path = '/etc/passwd'",
        "UPDATE audit.archives SET path = '..'",
        "UPDATE audit.archives SET month = month - 1",
        "UPDATE audit.archives SET month = 'infinity'",
        "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions, dropped_at)"
        " SELECT month - interval '1 year', 'gone.parquet', 1, 1, 'x', 0, now()"
        " FROM audit.archives",
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


@pytest.mark.parametrize(
    ("content", "said"), [(" " * (1 << 20) + "{}", "more than"), ("[" * 500_000, "damaged")]
)
def test_a_seal_file_that_would_fill_the_memory_is_refused(sealed, tmp_path, content, said):
    path = tmp_path / "large.json"
    path.write_text(content)
    with pytest.raises(errors.SealError, match=said):
        audit_of(sealed, KEY).verify(path)


def test_a_seal_file_that_was_made_up_without_the_key_is_found(sealed, tmp_path):
    """Its checksum is right; anybody can make one."""
    path = audit_of(sealed, OTHER).seal_file(tmp_path / "forged.json")
    found = audit_of(sealed, KEY).verify(path)

    assert [f.kind for f in found.findings] == ["anchor"]
    assert "not signed with FWDB_AUDIT_KEY" in found.summary


# -- a trail in one piece, which was there before ------------------------------------------------

FAR = ["-infinity", "0044-03-15 BC", "20000-02-28", "infinity"]


@pytest.fixture(scope="module")
def prepared_in_one_piece(servers: Any, existing: str) -> Iterator[str]:
    """Rows of before fwdb, of its time and of times that Python has none for; sealed."""
    name = f"test_{os.getpid()}_one_piece"
    insert = (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, user_id, metadata,"
        " created_at) SELECT 'User', gen_random_uuid(), 'READ', CAST(:user AS uuid), :of || n,"
        " CAST(coalesce(at, CAST(now() - interval '1 month' AS text)) AS timestamptz)"
        " FROM unnest(CAST(:at AS text[])) WITH ORDINALITY AS given (at, n)"
    )
    with closing(PostgresStore(servers.postgres)) as admin:
        do(admin, f"CREATE DATABASE {name}")
        url = make_url(servers.postgres).set(database=name).render_as_string(hide_password=False)
        with closing(PostgresStore(url)) as store:
            do(store, existing)
            do(store, "INSERT INTO shared.users (id, email) VALUES (CAST(:id AS uuid), 'a')",
               id=USER)  # fmt: skip
            do(store, insert, of="before ", at=[*FAR, None, None], user=USER)
            migrating.migrate(store, None)
            do(store, insert, of="after ", at=[*FAR, None, None], user=USER)
            do(store, "UPDATE audit.audit_logs SET transaction_id = -7 WHERE metadata = 'before 5'")
            audit_of(store, KEY).seal()
        yield name
        do(admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def adopted(
    prepared_in_one_piece: str, postgres_database: Callable[..., str]
) -> Iterator[PostgresStore]:
    with closing(PostgresStore(postgres_database(template=prepared_in_one_piece))) as store:
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
    """Its rights, its triggers: no finding, and said each time."""
    do(
        adopted,
        "GRANT INSERT ON audit.audit_logs TO PUBLIC; CREATE TRIGGER its BEFORE UPDATE ON"
        " audit.audit_logs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        " ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY",
    )
    found = audit_of(adopted, KEY).verify()

    assert found.intact, found.findings
    for said in ("Everybody may INSERT", "The trigger its of", "Row security is on"):
        assert any(said in sentence for sentence in found.not_proven), said


def test_row_security_that_hides_rows_from_who_verifies_is_found(adopted):
    role = f"reader_{os.getpid()}"
    do(
        adopted,
        "ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY;"
        f" CREATE ROLE {role}; GRANT USAGE ON SCHEMA audit TO {role};"
        f" GRANT SELECT ON ALL TABLES IN SCHEMA audit TO {role}",
    )
    url = adopted.url.set(drivername="postgresql").update_query_dict({"options": f"-c role={role}"})
    with closing(PostgresStore(url.render_as_string(hide_password=False))) as limited:
        found = audit_of(limited, KEY).verify()
    do(adopted, f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert found.findings[-1].sentence == (
        "Row security is on for audit.audit_logs, and hides rows from the role that asks."
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
    "inserted": (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, created_at, transaction_id)"
        " SELECT 'User', entity_id, 'READ', created_at, transaction_id FROM audit.audit_logs"
        " WHERE metadata = '{}'", "inserted"),
    "inserted for a negative transaction": (
        "INSERT INTO audit.audit_logs (entity_type, entity_id, action, created_at, transaction_id)"
        " SELECT 'User', entity_id, 'READ', created_at, -100 FROM audit.audit_logs"
        " WHERE metadata = '{}'", "inserted"),
    "inserted without a time": (
        "ALTER TABLE audit.audit_logs ALTER created_at DROP NOT NULL; INSERT INTO audit.audit_logs"
        " (entity_type, entity_id, action, created_at, transaction_id) SELECT 'User', entity_id,"
        " 'READ', NULL, transaction_id FROM audit.audit_logs WHERE metadata = '{}'", "trail"),
    "inserted without an entity": (
        "ALTER TABLE audit.audit_logs ALTER entity_id DROP NOT NULL; INSERT INTO audit.audit_logs"
        " (entity_type, action, created_at, transaction_id) SELECT 'User', 'READ', created_at,"
        " transaction_id FROM audit.audit_logs WHERE metadata = '{}'", "inserted"),
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
    found = audit_of(adopted, KEY).verify().findings

    assert {f.kind for f in found} == {kind}
    assert sum(f.count for f in found) == len(rows)
