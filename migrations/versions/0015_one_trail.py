"""audit.audit_logs alone: what waits in journals goes there, and the journals go.

Earlier releases could capture a table into a journal of its own, from which a drain fetched. The
functions of capture are those of this release from here on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fwdb.migrating import capture
from fwdb.migrating import operations as fw

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

GONE = (
    "audit.capture(regclass, text, jsonb, text[], text)",
    "audit.drain(text, int, int, boolean)",
    "audit.drain_whole(text)",
    "audit.journal_list(audit.captured)",
    "audit.journals_of(text)",
    "audit.log_columns()",
    "audit.make_trail()",
    "audit.settled()",
    "audit.undrained()",
)


def upgrade() -> None:
    op.execute(_DRAIN)
    op.execute("DROP VIEW IF EXISTS audit.trail")
    for function in GONE:
        op.execute(f"DROP FUNCTION IF EXISTS {function}")
    op.drop_column("captured", "mode", schema="audit")
    op.execute("COMMENT ON COLUMN audit.captured.name IS 'of the function'")
    op.execute(_RECORD)
    capture.install(op)
    op.execute("SELECT audit.grant_reading()")
    op.execute(
        "SELECT audit.capture(to_regclass(relation)) FROM audit.captured WHERE CASE"
        " WHEN to_regclass(relation) IS NULL THEN false"
        " ELSE audit.refusal(to_regclass(relation)) IS NULL END"
    )


def downgrade() -> None:
    """No journal comes back; earlier releases ask for the column."""
    mode = sa.Column("mode", sa.Text, nullable=False, server_default="direct")
    op.add_column("captured", mode, schema="audit")


# Nobody writes to a table while its journal moves, nor before its triggers are written anew.
_DRAIN = """
DO $$
DECLARE
    journal record;
    action_type text;
    users text := CASE WHEN to_regclass('shared.users') IS NULL THEN 'j.user_id'
        ELSE '(SELECT u.id FROM shared.users AS u WHERE u.id = j.user_id)' END;
    zone text := current_setting('TimeZone');
BEGIN
    LOCK TABLE audit.captured IN ACCESS EXCLUSIVE MODE;
    -- An older snapshot would not show all rows, and the journals are dropped.
    IF current_setting('transaction_isolation') NOT LIKE 'read %committed'
        AND EXISTS (SELECT FROM audit.captured WHERE mode = 'journal')
    THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'a journal is closed in a read committed transaction only';
    END IF;
    SELECT format_type(atttypid, atttypmod) INTO STRICT action_type FROM pg_attribute
    WHERE attrelid = CAST('audit.audit_logs' AS regclass) AND attname = 'action';
    PERFORM set_config('TimeZone', 'UTC', true);
    FOR journal IN
        SELECT relation, entity_type, 'audit.journal_' || name AS name
        FROM audit.captured WHERE mode = 'journal' ORDER BY relation
    LOOP
        IF to_regclass(journal.relation) IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', journal.relation);
        END IF;
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', journal.name);
        EXECUTE format($sql$
            INSERT INTO audit.audit_logs (
                id, user_id, entity_type, entity_id, action, old_values, new_values, metadata,
                ip_address, user_agent, created_at, transaction_id, origin, reason, db_user,
                application_name, client_address
            )
            SELECT audit.time_id(j.created_at, j.number), %s, %L, j.entity_id, CAST(j.action AS %s),
                j.old_values, j.new_values, j.metadata, j.ip_address, j.user_agent, j.created_at,
                j.transaction_id, 'trigger', j.reason, j.db_user, j.application_name,
                j.client_address
            FROM %s AS j ORDER BY j.created_at, j.number$sql$,
            users, journal.entity_type, action_type, journal.name);
        EXECUTE format('DROP TABLE %s', journal.name);
    END LOOP;
    PERFORM set_config('TimeZone', zone, true);
END $$"""

# audit.record() without its look into journals.
_RECORD = f"""
DO $$
DECLARE
    made regprocedure := to_regprocedure(
        'audit.record(text, uuid, text, jsonb, jsonb, text, uuid, text, text, text)');
BEGIN
    IF right(obj_description(made, 'pg_proc'), {len(fw.MADE)}) = '{fw.MADE}' THEN
        EXECUTE regexp_replace(replace(pg_get_functiondef(made), 'journal text;', ''),
            '-- A journal has no index.*END LOOP;', '');
    END IF;
END $$"""
