"""What capture costs: CPU of the backend with and without, interleaved in one session.

    python benchmarks/audit_capture.py [rounds]

Runs on the built-in server of this machine, because it reads the CPU time of the backend from
/proc. Three tables like shared.users, with its indexes and its touch trigger: one is not captured,
one is, and one has triggers that do what supa_audit does. Each round writes single
rows, each in a transaction, then 5,000 rows by one statement, so that sizes alternate in a session
as they do in a pool. Medians over the rounds; ratios to the table that is not captured.
"""

from __future__ import annotations

import statistics
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import embedded, migrating
from fwdb.stores import PostgresStore

SINGLE, BULK = 200, 5000
FORMS = ("plain", "captured", "supa")
KINDS = ("insert", "update", "delete")

TABLE = """
CREATE SCHEMA {form};
CREATE TABLE {form}.users (LIKE shared.users INCLUDING ALL) WITH (autovacuum_enabled = off);
CREATE TRIGGER touch BEFORE UPDATE ON {form}.users
    FOR EACH ROW EXECUTE FUNCTION shared.fwdb_touch_updated_at();
INSERT INTO {form}.users (email, password_hash, first_name, last_name)
SELECT 'base' || g || '@example.com', rpad('$2b$12$', 60, md5(CAST(g AS text))), 'F', 'L'
FROM generate_series(1, 20000) AS g;
"""
# What supa_audit 0.3.1 does for each row, in words of ours: the columns of the primary key are
# looked up, an id is hashed from table and key for the old and for the new row, and both rows go
# whole into one table. Its uuid_generate_v5 is no built-in function; md5 stands in for its SHA-1.
SUPA = """
CREATE SCHEMA peer;
CREATE TABLE peer.versions (
    id bigserial PRIMARY KEY, record_id uuid, old_record_id uuid, op text NOT NULL,
    ts timestamptz NOT NULL DEFAULT now(), table_oid oid NOT NULL, table_schema name NOT NULL,
    table_name name NOT NULL, record jsonb, old_record jsonb, auth_uid uuid, auth_role text,
    CHECK (coalesce(record_id, old_record_id) IS NOT NULL OR op = 'TRUNCATE'),
    CHECK (op IN ('INSERT', 'UPDATE') = (record_id IS NOT NULL)),
    CHECK (op IN ('UPDATE', 'DELETE') = (old_record_id IS NOT NULL))
);
CREATE INDEX ON peer.versions USING brin (ts);
CREATE INDEX ON peer.versions (table_oid);
CREATE INDEX ON peer.versions (record_id) WHERE record_id IS NOT NULL;
CREATE INDEX ON peer.versions (old_record_id) WHERE old_record_id IS NOT NULL;
CREATE FUNCTION peer.key_columns(oid) RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = '' AS $$
SELECT coalesce(array_agg(CAST(a.attname AS text) ORDER BY a.attnum), '{}')
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = $1 AND i.indisprimary
$$;
CREATE FUNCTION peer.record_id(oid, text[], jsonb) RETURNS uuid LANGUAGE sql STABLE AS $$
SELECT CASE WHEN $3 IS NULL THEN NULL ELSE CAST(md5(CAST(
    jsonb_build_array(to_jsonb($1)) || jsonb_agg($3 ->> key.name) AS text)) AS uuid) END
FROM unnest($2) AS key (name)
$$;
CREATE FUNCTION peer.keep() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = '' AS $$
DECLARE
    keys text[] = peer.key_columns(TG_RELID);
    record jsonb = pg_catalog.to_jsonb(NEW);
    record_id uuid = peer.record_id(TG_RELID, keys, record);
    old_record jsonb = pg_catalog.to_jsonb(OLD);
    old_record_id uuid = peer.record_id(TG_RELID, keys, old_record);
BEGIN
    INSERT INTO peer.versions (
        record_id, old_record_id, op, table_oid, table_schema, table_name, record, old_record,
        auth_uid, auth_role
    ) SELECT record_id, old_record_id, TG_OP, TG_RELID, TG_TABLE_SCHEMA, TG_TABLE_NAME, record,
        old_record, NULL, NULL;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER keep AFTER INSERT OR UPDATE OR DELETE ON supa.users
    FOR EACH ROW EXECUTE FUNCTION peer.keep();
"""


class Session:
    """One backend: what it runs, and the CPU time that takes it."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        self.connection.execute("SET synchronous_commit = off")
        self.clock = Path(f"/proc/{self.connection.info.backend_pid}/schedstat")
        self.spent: dict[tuple[str, str, str], list[float]] = {}
        self.number = 0

    def cpu(self) -> int:
        """Nanoseconds on a CPU so far."""
        return int(self.clock.read_text().split()[0])

    def timed(self, form: str, size: str, kind: str, work: Callable[[], object], rows: int) -> None:
        before = self.cpu()
        work()
        spent = (self.cpu() - before) / 1000 / rows
        self.spent.setdefault((form, size, kind), []).append(spent)

    def singles(self, form: str) -> None:
        """Insert, update and delete rows one by one."""
        run, ids = self.connection.execute, [uuid.uuid4() for _ in range(SINGLE)]

        def insert() -> None:
            for one in ids:
                run(
                    f"INSERT INTO {form}.users (id, email, password_hash, first_name, last_name)"
                    " VALUES (%s, %s, %s, 'F', 'L')",
                    (one, f"{one}@example.com", "$2b$12$" + "x" * 53),
                )

        def update() -> None:
            for one in ids:
                run(
                    f"UPDATE {form}.users SET first_name = %s, role = 'designer' WHERE id = %s",
                    ("G", one),
                )

        def delete() -> None:
            for one in ids:
                run(f"DELETE FROM {form}.users WHERE id = %s", (one,))

        for kind, work in zip(KINDS, (insert, update, delete), strict=True):
            self.timed(form, "single", kind, work, SINGLE)

    def bulk(self, form: str) -> None:
        """Insert, update and delete many rows by one statement each."""
        self.number += 1
        mark = f"b{self.number}x"
        for kind, statement in zip(
            KINDS,
            (
                f"INSERT INTO {form}.users (email, password_hash, first_name, last_name)"
                f" SELECT '{mark}' || g || '@example.com',"
                " rpad('$2b$12$', 60, md5(CAST(g AS text))), 'F' || g, 'L' || g"
                f" FROM generate_series(1, {BULK}) AS g",
                f"UPDATE {form}.users SET first_name = 'G', role = 'designer'"
                f" WHERE email LIKE '{mark}%'",
                f"DELETE FROM {form}.users WHERE email LIKE '{mark}%'",
            ),
            strict=True,
        ):
            self.timed(form, "bulk", kind, lambda s=statement: self.connection.execute(s), BULK)

    def microseconds(self, form: str, size: str) -> float:
        """Of one insert, one update and one delete."""
        return sum(statistics.median(self.spent[form, size, kind]) for kind in KINDS)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    running = embedded.up(stores=("postgres",)).postgres
    assert running
    name = f"bench_{uuid.uuid4().hex[:8]}"
    admin = PostgresStore(running.superuser)
    admin.execute(sa.text(f"CREATE DATABASE {name}"))
    url = make_url(running.superuser).set(database=name).render_as_string(hide_password=False)
    store = PostgresStore(url)
    try:
        measure(store, url, rounds)
    finally:
        store.close()
        admin.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.close()


def measure(store: PostgresStore, url: str, rounds: int) -> None:
    migrating.migrate(store, None)
    with psycopg.connect(url, autocommit=True) as connection:
        for form in FORMS:
            connection.execute(TABLE.format(form=form))
        connection.execute(SUPA)
        connection.execute(
            "SELECT audit.capture('captured.users', entity_type => 'User',"
            """ redact => '{"password_hash": "mask"}', ignore => '{updated_at}')"""
        )
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    session = Session(url)
    for number in range(rounds):
        forms = FORMS if number % 2 else FORMS[::-1]
        for form in forms:
            session.singles(form)
        for form in forms[::-1]:
            session.bulk(form)
    for size in ("single", "bulk"):
        plain = session.microseconds("plain", size)
        said = f"{size}: not captured {plain / 3:.1f} us a row"
        for form in FORMS[1:]:
            said += f" · {form} {session.microseconds(form, size) / plain:.2f}"
        print(said)
        for kind in KINDS:
            spent = {f: statistics.median(session.spent[f, size, kind]) for f in FORMS}
            print(f"  {kind:7}", " · ".join(f"{form} {us:.1f} us" for form, us in spent.items()))
    for form in FORMS:
        updates = session.spent[form, "bulk", "update"]
        print(
            f"  bulk updates of {form}: worst round {max(updates) / min(updates):.2f} of the best"
        )


if __name__ == "__main__":
    main()
