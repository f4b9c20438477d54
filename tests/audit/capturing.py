"""Tables that record themselves: by the triggers of the migrations, else by a stand-in for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fwdb.stores import PostgresStore

TABLES = {
    "shared.users": "User",
    "avatar.avatars": "Avatar",
    "catalog.catalog_items": "CatalogItem",
}

STAND_IN = """
CREATE TABLE IF NOT EXISTS audit.captured (
    relation text PRIMARY KEY, entity_type text, redact jsonb, ignore text[], mode text,
    columns text[], numbers int[], name text, generated_at timestamptz
);
CREATE FUNCTION audit.stand_in() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog SET TimeZone = 'UTC' AS $$
DECLARE
    old_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    new_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    soft boolean;
    kind text := CASE TG_OP WHEN 'INSERT' THEN 'CREATE' ELSE TG_OP END;
    actor jsonb := nullif(current_setting('fwdb.actor', true), '');
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF old_row - 'updated_at' = new_row - 'updated_at' THEN RETURN NULL; END IF;
        IF old_row ->> 'deleted_at' IS NULL AND new_row ->> 'deleted_at' IS NOT NULL THEN
            kind := 'DELETE';
        END IF;
        SELECT jsonb_object_agg(key, value), jsonb_object_agg(key, new_row -> key)
        INTO old_row, new_row
        FROM jsonb_each(old_row) WHERE value IS DISTINCT FROM new_row -> key;
    END IF;
    IF new_row ? 'password_hash' THEN
        new_row := new_row || jsonb_build_object('password_hash', CASE
            WHEN TG_OP = 'UPDATE' THEN '[redacted: changed]' ELSE '[redacted]' END);
    END IF;
    IF old_row ? 'password_hash' THEN
        old_row := old_row || '{"password_hash": "[redacted]"}';
    END IF;
    INSERT INTO audit.audit_logs (
        entity_type, entity_id, action, old_values, new_values, created_at, origin, reason, user_id
    ) VALUES (
        TG_ARGV[0], coalesce(OLD.id, NEW.id), kind, old_row, new_row, clock_timestamp(), 'trigger',
        actor ->> 'reason', CAST(actor ->> 'user_id' AS uuid)
    );
    RETURN NULL;
END $$;
"""


def capture(store: PostgresStore) -> None:
    """Let the three tables of `store` record themselves, unless its migrations did that."""
    triggers = "SELECT 1 FROM pg_trigger WHERE tgname = '00_fwdb_audit'"
    if store.rows(sa.text(triggers)):
        return
    store.execute(sa.text(STAND_IN))
    for table, entity_type in TABLES.items():
        redact = '{"password_hash": "mask"}' if table == "shared.users" else "{}"
        store.execute(
            sa.text(
                f'CREATE TRIGGER "00_fwdb_audit" AFTER INSERT OR UPDATE OR DELETE ON {table}'
                f" FOR EACH ROW EXECUTE FUNCTION audit.stand_in('{entity_type}')"
            )
        )
        store.execute(
            sa.text(
                "INSERT INTO audit.captured (relation, entity_type, redact, mode, generated_at)"
                " VALUES (:table, :type, CAST(:redact AS jsonb), 'direct', clock_timestamp())"
            ),
            {"table": table, "type": entity_type, "redact": redact},
        )


@contextmanager
def unrecorded(store: PostgresStore) -> Iterator[None]:
    """While it runs, users come and go without a row of the trail."""
    there = sa.text(
        "SELECT 1 FROM pg_trigger WHERE tgname = '00_fwdb_audit'"
        " AND tgrelid = to_regclass('shared.users')"
    )
    trigger = 'ALTER TABLE shared.users {} TRIGGER "00_fwdb_audit"'
    recorded = bool(store.rows(there))
    if recorded:
        store.execute(sa.text(trigger.format("DISABLE")))
    try:
        yield
    finally:
        if recorded:
            store.execute(sa.text(trigger.format("ENABLE ALWAYS")))
