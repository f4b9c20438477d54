"""What each role may do, and 100 things that the application's and the reading role may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import psycopg
import pymongo
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url
from support import DATA, ROOT
from support.embedded import DEBIAN_15, up

from fwdb import embedded, migrating
from fwdb.audit import Audit, runs
from fwdb.migrating import operations as fw
from fwdb.stores import PostgresStore

PAGE = (ROOT / "docs/security.md").read_text()
SERVICE = (DATA / "fashion_wallet.sql").read_text()
ROLES = ("fwdb_app", "fwdb_report")
SCHEMAS = ("shared", "avatar", "catalog", "design", "audit", "monitoring", "public")


# What releases before 0014 left.
WEAK = """
DO $do$ DECLARE made regprocedure; BEGIN
    FOR made IN SELECT oid FROM pg_proc
        WHERE pronamespace IN ('audit'::regnamespace, 'shared'::regnamespace)
            AND proname NOT IN ('record', 'record_reads')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog', made);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC, fwdb_app', made);
    END LOOP;
END $do$;
CREATE OR REPLACE FUNCTION audit.forget_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    AS $$ BEGIN RETURN NULL; END $$;
CREATE OR REPLACE FUNCTION audit.capture_shared_users() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER AS $$ BEGIN RETURN NULL; END $$;
GRANT ALL ON ALL SEQUENCES IN SCHEMA audit, monitoring TO fwdb_app;
REVOKE ALL ON SEQUENCE audit.change_number FROM fwdb_app;
GRANT INSERT, UPDATE, DELETE ON monitoring.alembic_version TO fwdb_app;
"""


@pytest.fixture(scope="module", params=["newest", "15"])
def servers(request, tmp_path_factory) -> Iterator[embedded.Servers]:
    """Servers as `fwdb up` makes them, migrated by the owner.

    Beside fashion_wallet there are `adopted`, which the service made, and `upgraded`.
    """
    home = tmp_path_factory.mktemp("rights") / ".fwdb"
    old = request.param == "15"
    if old and not (DEBIAN_15 / "initdb").exists():
        pytest.skip("no PostgreSQL 15: install Debian's postgresql-15")
    with pytest.MonkeyPatch.context() as patch:
        if old:
            patch.setenv("FWDB_POSTGRES_BIN", str(DEBIAN_15))
        running = up(home, stores=("postgres",) if old else ("postgres", "mongodb"))
    assert running.postgres
    with psycopg.connect(running.postgres.superuser, autocommit=True) as admin:
        admin.execute("CREATE DATABASE adopted TEMPLATE fashion_wallet OWNER fwdb_owner")
    with psycopg.connect(_at(running.postgres.owner, "adopted")) as service:
        service.execute(SERVICE)
    for name in ("fashion_wallet", "adopted"):
        with closing(PostgresStore(_at(running.postgres.owner, name))) as store:
            migrating.migrate(store, None)
    with psycopg.connect(running.postgres.superuser, autocommit=True) as admin:
        admin.execute("CREATE DATABASE upgraded TEMPLATE fashion_wallet OWNER fwdb_owner")
    with closing(PostgresStore(_at(running.postgres.owner, "upgraded"))) as store:
        migrating.downgrade(store, "0013")
        store.execute(sa.text(WEAK.replace(":", "\\:")))
        migrating.migrate(store, None)
    yield running
    embedded.remove(home)


@pytest.fixture
def urls(servers) -> embedded.Urls:
    return servers.postgres


def _at(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def ask(url: str, statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(statement).fetchall()


def documented(kind: str) -> dict[str, list[str]]:
    """The rows of one table of the page, by each name in the first cell."""
    lines = PAGE.partition(f"| {kind} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: row[1:] for row in cells for name in re.findall(r"`([^`]+)`", row[0])}


FUNCTIONS = """
SELECT format('%I.%I', n.nspname, p.proname) AS name, p.prosecdef AS as_owner,
    p.prosqlbody IS NULL
        AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}')) AS led,
    pg_get_userbyid(p.proowner) AS owner, p.prorettype = 'trigger'::regtype AS of_trigger,
    obj_description(p.oid, 'pg_proc') AS comment, p.prosrc AS body,
    ARRAY(SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END
          FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner)))
          WHERE grantee <> p.proowner) AS granted
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname IN ('shared', 'avatar', 'catalog', 'design', 'audit', 'monitoring', 'public')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
"""


@pytest.mark.parametrize("database", ["fashion_wallet", "adopted", "upgraded"])
def test_no_function_can_be_led_astray(urls, database):
    """Whatever a later revision adds: its search_path, and who may call it."""
    # Of an adopted database, those of the service are not ours to change.
    found = [
        row
        for row in ask(_at(urls.superuser, database), FUNCTIONS)
        if database != "adopted" or (row["comment"] or "").endswith("Made by fwdb.")
    ]
    pages = documented("Function")

    assert len(found) > 20
    assert [row["name"] for row in found if row["led"]] == []
    for row in found:
        if row["of_trigger"]:
            assert (row["name"], row["granted"]) == (row["name"], [])
            assert not row["as_owner"] or "TG_RELID" in row["body"]
    for row in found:
        app, report, runs_as = pages[_documented_name(pages, row["name"])]
        callers = {role for role, cell in zip(ROLES, (app, report), strict=True) if cell}
        if row["name"] == "public.fwdb_logged_plans":
            callers = {"pg_monitor"}
        assert (row["name"], set(row["granted"])) == (row["name"], callers)
        assert (row["name"], row["as_owner"]) == (row["name"], runs_as != "caller")
        assert row["owner"] == ("fwdb_owner" if runs_as != "`postgres`" else "postgres")


def test_a_function_of_a_later_revision_is_closed(urls):
    """By the helper that makes it, whatever its source and the default privileges say."""
    with closing(PostgresStore(urls.owner)) as store, store.transaction() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            body = "RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = shop AS 'SELECT 1'"
            fw.function("audit.later", body, about="Later.", takes="int")
        found = store.rows(sa.text(f"SELECT * FROM ({FUNCTIONS.replace(':', chr(92) + ':')}) AS f"))
        (later,) = [row for row in found if row["name"] == "audit.later"]
        connection.execute(sa.text("DROP FUNCTION audit.later"))

    assert (later["led"], later["granted"]) == (False, [])


def _documented_name(pages: dict[str, list[str]], name: str) -> str:
    """The row of the page that `name` belongs to: its own, else that of its schema."""
    wanted = [one for one in pages if fnmatchcase(name, one)]
    assert wanted, f"{name} is missing in docs/security.md"
    return max(wanted, key=len)


RELATIONS = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind = 'S' AS is_sequence,
    pg_get_userbyid(c.relowner) AS owner, r.rolname AS role,
    ARRAY(SELECT right_ FROM unnest(CASE c.relkind
        WHEN 'S' THEN ARRAY['USAGE', 'SELECT', 'UPDATE'] ELSE ARRAY[
            'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'] END)
        WITH ORDINALITY AS all_ (right_, place)
        WHERE CASE c.relkind WHEN 'S' THEN has_sequence_privilege(r.oid, c.oid, right_)
            ELSE has_table_privilege(r.oid, c.oid, right_)
                OR (right_ IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                    AND has_any_column_privilege(r.oid, c.oid, right_)) END
        ORDER BY place) AS rights
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN pg_roles AS r
WHERE n.nspname IN ('shared', 'avatar', 'catalog', 'design', 'audit', 'monitoring', 'public')
    AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND r.rolname IN ('fwdb_app', 'fwdb_report')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')
"""
SCHEMA_RIGHTS = """
SELECT n.nspname AS name, r.rolname AS role, concat_ws(', ',
    CASE WHEN has_schema_privilege(r.oid, n.oid, 'USAGE') THEN 'USAGE' END,
    CASE WHEN has_schema_privilege(r.oid, n.oid, 'CREATE') THEN 'CREATE' END) AS rights
FROM pg_namespace AS n, pg_roles AS r
WHERE n.nspname !~ '^(pg_|information_schema)' AND r.rolname IN ('fwdb_app', 'fwdb_report')
UNION ALL
SELECT d.datname, r.rolname, concat_ws(', ',
    CASE WHEN has_database_privilege(r.oid, d.oid, 'CONNECT') THEN 'CONNECT' END,
    CASE WHEN has_database_privilege(r.oid, d.oid, 'TEMPORARY') THEN 'TEMPORARY' END,
    CASE WHEN has_database_privilege(r.oid, d.oid, 'CREATE') THEN 'CREATE' END)
FROM pg_database AS d, pg_roles AS r
WHERE d.datname = 'fashion_wallet' AND r.rolname IN ('fwdb_app', 'fwdb_report')
"""
STRANGERS = """
SELECT format('%s.%s', n.nspname, c.relname) AS name, acl.grantee
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN aclexplode(c.relacl) AS acl
WHERE n.nspname IN ('shared', 'avatar', 'catalog', 'design', 'audit', 'monitoring')
    AND acl.grantee <> ALL (SELECT oid FROM pg_roles WHERE rolname LIKE 'fwdb%')
"""


@pytest.mark.parametrize("database", ["fashion_wallet", "upgraded"])
def test_the_rights_are_those_of_the_page(urls, database):
    """Of roles, schemas, tables and sequences; and each row of the page is about something."""
    used: set[tuple[str, str]] = set()
    admin = _at(urls.superuser, database)
    for row in ask(admin, RELATIONS):
        kind = "Sequence" if row["is_sequence"] else "Table or view"
        pages = documented(kind)
        name = _documented_name(pages, row["name"])
        used.add((kind, name))
        cell = pages[name][ROLES.index(row["role"])]
        assert (row["name"], row["role"], ", ".join(row["rights"])) == (
            row["name"],
            row["role"],
            cell,
        )
        assert row["owner"] == "fwdb_owner"
    assert used == {
        (kind, name) for kind in ("Sequence", "Table or view") for name in documented(kind)
    }
    assert ask(admin, STRANGERS) == []
    for row in ask(admin, SCHEMA_RIGHTS):
        cell = documented("Database or schema")[row["name"]][ROLES.index(row["role"])]
        assert (row["name"], row["role"], row["rights"]) == (row["name"], row["role"], cell)


def test_the_roles_are_those_of_the_page(urls):
    """Only `postgres` is a superuser, makes roles and databases, and goes past row security."""
    found = ask(
        urls.superuser,
        "SELECT rolname AS name, rolsuper, rolcreaterole OR rolcreatedb OR rolreplication"
        " OR rolbypassrls AS more, coalesce(array_to_string(rolconfig, ' '), '') AS config,"
        " ARRAY(SELECT pg_get_userbyid(roleid)::text FROM pg_auth_members WHERE member = r.oid)"
        " AS of FROM pg_roles AS r WHERE rolname !~ '^pg_' AND rolname <> 'fwdb_replication'",
    )
    pages = documented("Role")

    assert {row["name"] for row in found} == set(pages)
    for row in found:
        attributes, of = pages[row["name"]]
        assert row["rolsuper"] == ("superuser" in attributes)
        assert row["rolsuper"] or not row["more"]
        assert ("default_transaction_read_only=on" in row["config"]) == ("read_only" in attributes)
        assert row["of"] == re.findall(r"`([^`]+)`", of)


def test_the_users_of_mongodb_are_those_of_the_page(servers):
    """SecantusDB, or a mongod, is asked for the roles of each."""
    if servers.mongodb is None:
        pytest.skip("the servers beside PostgreSQL 15 are without MongoDB")
    with pymongo.MongoClient(servers.mongodb.owner) as client:
        users = client.admin.command("usersInfo", 1)["users"]
    found = {
        user["user"]: sorted(f"{r['role']} on {r['db']}" for r in user["roles"]) for user in users
    }
    pages = {
        user: sorted(f"{role} on {db}" for role, db in re.findall(r"`(\w+)` on `(\w+)`", cell))
        for user, (cell,) in documented("User").items()
    }

    assert found == pages


def test_the_roles_can_do_their_work(urls):
    """Both read the trail, what is not captured, and drift; one adds rows."""
    with (
        closing(PostgresStore(urls.app)) as app,
        closing(PostgresStore(urls.report)) as report,
    ):
        added = (
            "(email, password_hash, first_name, last_name) VALUES ('a@example.com', 'x', 'A', 'B')"
        )
        app.execute(
            sa.text(
                f"WITH made AS (INSERT INTO shared.users {added} RETURNING id)"
                " INSERT INTO avatar.avatars (user_id, name, measurements)"
                " SELECT id, 'x', '{}' FROM made"
            )
        )
        app.execute(
            sa.text("INSERT INTO monitoring.readings (kind, process) VALUES ('light', 'x')")
        )
        for store in (app, report):
            seen = store.rows(
                sa.text("SELECT entity_type FROM audit.audit_logs WHERE id IS NOT NULL")
            )
            assert {row["entity_type"] for row in seen} >= {"User", "Avatar"}
            coverage = Audit(store).coverage()
            assert coverage[coverage["status"] == "uncovered"].empty
            assert migrating.drift(store, None) == []
        app.execute(sa.text("DELETE FROM avatar.avatars"))
        app.execute(sa.text("DELETE FROM shared.users"))


# -- what they try ----------------------------------------------------------------------------

TRAIL = ("archives", "captured", "erasures", "followers", "gaps", "holds", "runs", "seals")
NOT_THERE = {"42501", "0A000", "58P01"}  # an extension that the installation does not bring
REFUSED = [
    # Becoming somebody else
    "SET ROLE fwdb_owner",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION fwdb_owner",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE fwdb_owner PASSWORD 'x'",
    "CREATE ROLE mine",
    "DROP ROLE fwdb_replication",
    "GRANT fwdb_owner TO CURRENT_USER",
    "GRANT pg_read_server_files TO CURRENT_USER",
    "GRANT SELECT ON audit.fingerprint_key TO CURRENT_USER",
    "GRANT EXECUTE ON FUNCTION audit.forget_user() TO CURRENT_USER",
    "REASSIGN OWNED BY fwdb_owner TO CURRENT_USER",
    "DROP OWNED BY fwdb_owner",
    "ALTER DEFAULT PRIVILEGES FOR ROLE fwdb_owner GRANT ALL ON TABLES TO PUBLIC",
    "ALTER TABLE shared.users OWNER TO CURRENT_USER",
    "UPDATE pg_authid SET rolsuper = true",
    "SELECT rolpassword FROM pg_authid",
    "DELETE FROM pg_proc",
    # The server and its files
    "ALTER DATABASE fashion_wallet SET search_path = pg_temp",
    "DROP DATABASE adopted",
    "ALTER SYSTEM SET fsync = off",
    "SET session_replication_role = replica",
    "SET log_statement = none",
    "COPY shared.users TO PROGRAM 'cat'",
    "COPY shared.users FROM PROGRAM 'id'",
    "COPY (SELECT 1) TO '/tmp/fwdb_rights'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_read_binary_file('PG_VERSION')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/fwdb_rights')",
    "SELECT lo_unlink(4242)",
    "LOAD 'auto_explain'",
    "CREATE FUNCTION pg_temp.c() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
    "CREATE EXTENSION dblink",
    "CREATE EXTENSION plpython3u",
    "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION audit.forget_user()",
    "CREATE PUBLICATION everything FOR ALL TABLES",
    "CREATE SUBSCRIPTION mine CONNECTION '' PUBLICATION x WITH (connect = false)",
    "CREATE FOREIGN DATA WRAPPER mine",
    "CREATE CAST (text AS uuid) WITH INOUT AS IMPLICIT",
    "SELECT pg_create_physical_replication_slot('mine')",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "SELECT pg_stat_reset()",
    "SELECT pg_stat_statements_reset()",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fwdb_owner'",
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'fwdb_owner'",
    # Schemas and tables
    *(f"CREATE TABLE {schema}.mine (i int)" for schema in SCHEMAS),
    "CREATE FUNCTION audit.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "DROP SCHEMA audit CASCADE",
    "ALTER SCHEMA audit RENAME TO mine",
    "DROP TABLE shared.users CASCADE",
    "TRUNCATE shared.users CASCADE",
    "ALTER TABLE shared.users ADD COLUMN mine int",
    "ALTER TABLE shared.users ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY mine ON shared.users USING (true)",
    "CREATE RULE mine AS ON INSERT TO shared.users DO INSTEAD NOTHING",
    "CREATE INDEX ON audit.audit_logs (id)",
    'ALTER TABLE shared.users DISABLE TRIGGER "00_fwdb_audit"',
    'DROP TRIGGER "01_fwdb_forget_user" ON shared.users',
    "CREATE TRIGGER mine BEFORE INSERT ON shared.users FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    # The trail
    "INSERT INTO audit.audit_logs DEFAULT VALUES",
    "UPDATE audit.audit_logs SET user_id = NULL",
    "DELETE FROM audit.audit_logs",
    "TRUNCATE audit.audit_logs",
    "SELECT id FROM audit.audit_logs FOR UPDATE",
    "COPY audit.audit_logs FROM STDIN",
    "DROP TABLE audit.audit_logs",
    "ALTER TABLE audit.audit_logs ADD COLUMN mine int",
    "COMMENT ON TABLE audit.audit_logs IS NULL",
    *(f"DELETE FROM audit.{name}" for name in TRAIL),
    *(f"INSERT INTO audit.{name} DEFAULT VALUES" for name in TRAIL),
    "UPDATE audit.holds SET released_at = now()",
    "UPDATE audit.archives SET path = '/etc/passwd', replaced = ARRAY['/etc/passwd']",
    "UPDATE audit.followers SET state = NULL",
    "LOCK TABLE audit.captured IN SHARE UPDATE EXCLUSIVE MODE",
    "LOCK TABLE audit.seals IN SHARE ROW EXCLUSIVE MODE",
    "SELECT * FROM audit.fingerprint_key",
    "SELECT nextval('audit.change_number')",
    "SELECT nextval('audit.gaps_gap_id_seq')",
    "SELECT setval('audit.gaps_gap_id_seq', 9223372036854775807)",
    "SELECT setval('monitoring.readings_reading_id_seq', 1)",
    "UPDATE monitoring.alembic_version SET version_num = '0001'",
    "INSERT INTO monitoring.alembic_version VALUES ('9999')",
    "DELETE FROM monitoring.alembic_version",
    "DROP TABLE monitoring.alembic_version",
    # Functions, and what triggers may be made of them
    "SELECT audit.add_partitions(current_date, current_date)",
    "SELECT audit.capture('shared.users')",
    "SELECT audit.uncapture('shared.users')",
    "SELECT audit.recapture()",
    "SELECT audit.grant_reading()",
    "SELECT audit.protect('shared.users')",
    "SELECT audit.protect_function('audit.forget_user()')",
    "SELECT audit.cleanup_old_audit_logs()",
    "SELECT audit.fingerprint('x')",
    "CREATE OR REPLACE FUNCTION audit.key_of(regclass) RETURNS text LANGUAGE sql AS 'SELECT 1'",
    "ALTER FUNCTION audit.record SET search_path = pg_temp",
    "ALTER FUNCTION audit.forget_user() OWNER TO CURRENT_USER",
    "DROP FUNCTION audit.record",
    "COMMENT ON FUNCTION audit.forget_user() IS NULL",
    *(
        "CREATE TEMP TABLE mine (id uuid);"
        f"CREATE TRIGGER mine AFTER {when} EXECUTE FUNCTION {name}()"
        for when, name in (
            ("DELETE ON mine REFERENCING OLD TABLE AS gone", "audit.forget_user"),
            ("INSERT ON mine FOR EACH ROW", "audit.capture_shared_users"),
            ("INSERT ON mine FOR EACH ROW", "shared.fwdb_touch_updated_at"),
        )
    ),
]
READ_ONLY = [  # of these the application may do some
    "INSERT INTO shared.users (email) VALUES ('x')",
    "UPDATE avatar.avatars SET name = 'x'",
    "DELETE FROM catalog.catalog_items",
    "INSERT INTO monitoring.readings (kind, process) VALUES ('light', 'x')",
    "DELETE FROM monitoring.readings",
    "SELECT audit.record('User', gen_random_uuid(), 'DELETE', '{}', '{}', 'x', NULL, '', '', '')",
    "SELECT audit.record_reads('User', ARRAY[gen_random_uuid()], 'x', NULL, '', '', '')",
]
# Arguments that no caller should give; the function runs as the owner, and must end in a refusal.
ODD = [
    "SELECT audit.record('User', gen_random_uuid(), 'DROP',"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "SELECT audit.record(repeat('x', 200), gen_random_uuid(), 'READ',"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "SELECT audit.record(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "SELECT audit.record_reads(NULL, ARRAY[NULL::uuid], NULL, NULL, NULL, NULL, NULL)",
    "SELECT audit.record_reads('User', ARRAY[gen_random_uuid()],"
    " '', NULL, repeat('x', 50), '', '')",
]


@pytest.mark.parametrize("role", ["app", "report"])
def test_a_role_is_refused_what_is_not_its_own(urls, role):
    """Each attempt ends in 'permission denied', also without the default of reading only."""
    url = getattr(urls, role)
    attempts = REFUSED + (READ_ONLY if role == "report" else [])
    with (
        psycopg.connect(urls.owner),  # somebody to be terminated
        psycopg.connect(urls.superuser, autocommit=True) as admin,
        psycopg.connect(
            url, options="-c default_transaction_read_only=off", autocommit=True
        ) as connection,
    ):
        admin.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid = 4242")
        admin.execute("SELECT lo_create(4242)")
        allowed = {}
        for statement in attempts:
            said = _said(connection, statement)
            expected = NOT_THERE if statement.startswith("CREATE EXTENSION") else {"42501"}
            if said not in expected:
                allowed[statement] = said
        odd = {
            said
            for statement in ODD
            if (said := _said(connection, statement))[:2] not in ("22", "23", "42")
        }

    assert len(attempts) >= 60
    assert allowed == {}
    assert odd == set()


def _said(connection: psycopg.Connection, statement: str) -> str:
    """The SQLSTATE of the refusal, or ``done``; nothing of it stays."""
    # Two kinds are refused in any transaction.
    own = statement.startswith(("DROP DATABASE", "ALTER SYSTEM"))
    try:
        with nullcontext() if own else connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.Error as error:
        return error.sqlstate or repr(error)
    return "done"


# What hides names of the catalog in the caller's own schema, and tells who ran it.
SHADOWS = """
CREATE FUNCTION pg_temp.told() RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'run as %', current_user; RETURN true; END $$;
CREATE TEMP VIEW {relation} AS SELECT * FROM pg_catalog.{relation} WHERE pg_temp.told();
GRANT SELECT ON {relation} TO PUBLIC;
CREATE DOMAIN pg_temp.{type} AS pg_catalog.{type} CHECK (pg_temp.told());
SET search_path = pg_temp, public;
"""
CALLS = [
    "SELECT audit.add_partitions('2026-01-01'::pg_catalog.date, '2026-01-01'::pg_catalog.date)",
    "SELECT audit.record('User', gen_random_uuid(), 'UPDATE',"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "SELECT audit.record_reads('User', ARRAY[gen_random_uuid()], NULL, NULL, NULL, NULL, NULL)",
    "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
    " VALUES ('evil@example.com', 'x', 'A', 'B')",
    "UPDATE shared.users SET first_name = 'E'",
    "DELETE FROM shared.users",
]


@pytest.fixture
def mistaken(urls) -> Iterator[None]:
    """Every right to functions, granted by mistake."""
    with psycopg.connect(urls.owner, autocommit=True) as owner:
        kept = owner.execute(
            "SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', p.oid::regprocedure,"
            " grantee::regrole) FROM pg_proc AS p, aclexplode(p.proacl)"
            " WHERE pronamespace = 'audit'::regnamespace AND grantee <> proowner"
        ).fetchall()
        everybody = "EXECUTE ON ALL FUNCTIONS IN SCHEMA audit"
        owner.execute(f"GRANT {everybody} TO PUBLIC")
        yield
        owner.execute(f"REVOKE {everybody} FROM PUBLIC")
        for (grant,) in kept:
            owner.execute(grant)


@pytest.mark.parametrize("role", ["app", "report"])
@pytest.mark.usefixtures("mistaken")
def test_no_name_of_the_caller_is_run_by_the_owner(urls, role):
    """Views and types in the place of those of the catalog, for whatever runs as the owner."""
    names = [("pg_class", "text"), ("pg_inherits", "date"), ("pg_index", "uuid")]
    names += [("pg_trigger", "jsonb"), ("pg_namespace", "varchar"), ("pg_proc", "regclass")]
    heard: list[str] = []
    with psycopg.connect(
        getattr(urls, role), options="-c default_transaction_read_only=off"
    ) as connection:
        connection.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
        for relation, type_ in names:
            for call in CALLS:
                with connection.transaction(force_rollback=True):
                    connection.execute(SHADOWS.format(relation=relation, type=type_))
                    said = _said(connection, call)
                assert (call, said) in ((call, "done"), (call, "42501"))

    assert "run as fwdb_owner" not in heard


@pytest.mark.parametrize("role", ["app", "report"])
@pytest.mark.parametrize(
    ("function", "trigger", "fire"),
    [
        (
            "audit.forget_user",
            "AFTER DELETE ON mine REFERENCING OLD TABLE AS gone FOR EACH STATEMENT",
            "DELETE FROM mine",
        ),
        (
            "audit.capture_shared_users",
            "AFTER INSERT ON mine FOR EACH ROW",
            "INSERT INTO mine VALUES (gen_random_uuid())",
        ),
        ("audit.capture_shared_users", "BEFORE TRUNCATE ON mine", "TRUNCATE mine"),
    ],
    ids=["forget", "capture", "truncate"],
)
@pytest.mark.usefixtures("mistaken")
def test_a_trigger_function_looks_at_what_fired_it(urls, role, function, trigger, fire):
    """Should everybody be able to name it in CREATE TRIGGER, a table of their own is refused."""
    with psycopg.connect(
        getattr(urls, role), options="-c default_transaction_read_only=off"
    ) as connection:
        connection.execute("CREATE TEMP TABLE mine (id uuid)")
        connection.execute(f"CREATE TRIGGER mine {trigger} EXECUTE FUNCTION {function}()")
        with pytest.raises(
            psycopg.errors.InsufficientPrivilege, match=r"is not captured|deletions from"
        ):
            connection.execute(fire)


@pytest.mark.parametrize("name", ["follow designs", "retain"])
def test_no_other_role_holds_up_the_work_of_the_owner(urls, name):
    """Neither by a lock, which any role may take, nor by a session that has the pid of one gone."""
    with (
        closing(PostgresStore(urls.owner)) as owner,
        psycopg.connect(urls.app, autocommit=True) as app,
    ):
        # The locks of the releases before.
        app.execute("SELECT pg_advisory_lock(1719100514, 11), pg_advisory_lock(1719104116)")
        owner.execute(
            sa.text(
                "INSERT INTO audit.followers (name, source) VALUES ('designs', 'x')"
                " ON CONFLICT DO NOTHING"
            )
        )
        gone = sa.text("INSERT INTO audit.runs VALUES (:name, :pid, 'fwdb_owner', now())")
        owner.execute(gone, {"name": name, "pid": app.info.backend_pid})
        assert Audit(owner).follower().running is False
        with runs.alone(owner, name, "busy"):
            for url in (urls.owner, urls.app, urls.report):
                with closing(PostgresStore(url)) as store:
                    assert Audit(store).follower().running is (name == "follow designs")
        assert Audit(owner).follower().running is False
        assert owner.rows(sa.text("SELECT name FROM audit.runs")) == []


def test_no_other_role_holds_up_new_months(urls):
    """They are made, whatever advisory lock somebody holds."""
    with (
        psycopg.connect(urls.app) as app,
        psycopg.connect(urls.owner, options="-c lock_timeout=2s") as owner,
    ):
        app.execute("SELECT pg_advisory_lock(hashtext('audit.audit_logs'))")
        app.execute("SELECT * FROM audit.captured")
        owner.execute("SELECT audit.add_partitions(current_date, current_date)")
