"""audit.audit_logs by months, with what the server knows of each row.

A table that fwdb made becomes partitioned and its rows move; one that it found stays as it is and
gets the columns. A column gets its default after it was added: rows from before were not written
by the session that migrates.
"""

from __future__ import annotations

from alembic import op

from fwdb.migrating import operations as fw

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NAME = "audit.audit_logs"
COLUMNS = (
    "id, user_id, entity_type, entity_id, action, old_values, new_values, metadata, "
    "ip_address, user_agent, created_at"
)
FACTS = {
    "transaction_id": ("bigint", "CAST(CAST(pg_current_xact_id() AS text) AS bigint)"),
    "origin": ("varchar(20)", "'application'"),
    "reason": ("text", None),
    "db_user": ("text", "session_user"),
    "application_name": ("text", "nullif(current_setting('application_name'), '')"),
    "client_address": ("text", "host(inet_client_addr())"),
}
MONTHS_AHEAD = 3


def upgrade() -> None:
    _protection()
    _months()
    op.execute(_ours(_partitioned()))
    for name, (kind, default) in FACTS.items():
        op.execute(f"ALTER TABLE {NAME} ADD COLUMN IF NOT EXISTS {name} {kind}")
        if default is not None:
            op.execute(f"ALTER TABLE {NAME} ALTER COLUMN {name} SET DEFAULT {default}")
    fw.report("table", NAME, f"{NAME} keeps what the server knows of the session of each row.")
    op.execute(
        _ours(f"""
        CREATE INDEX ix_audit_logs_transaction_id ON {NAME} USING brin (transaction_id);
        PERFORM audit.protect('{NAME}');""")
    )
    _forgetting()


def _protection() -> None:
    fw.function(
        "audit.protect",
        """
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = $1 AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format(
            'REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON %s FROM %s', $1,
            CASE other.grantee WHEN 0 THEN 'PUBLIC'
                ELSE quote_ident(pg_get_userbyid(other.grantee)) END
        );
    END LOOP;
END $$""",
        about="Leaves the right to change a table to its owner.",
        takes="regclass",
    )


def _months() -> None:
    # Owned by the owner of the trail, so that whoever writes history may ask for its months.
    fw.function(
        "audit.add_partitions",
        f"""
RETURNS int LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog SET TimeZone = 'UTC' AS $$
DECLARE
    month date := date_trunc('month', $1);
    name text;
    made int := 0;
BEGIN
    IF $1 < '2000-01-01' OR $2 > now() + interval '2 years' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('months %s to %s: give dates from 2000 to two years from now', $1, $2);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = '{NAME}'::regclass AND relkind = 'p') THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('{NAME}'));
    WHILE month <= $2 LOOP
        name := '{NAME}_' || to_char(month, 'YYYY_MM');
        IF to_regclass(name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE %s PARTITION OF {NAME} FOR VALUES FROM (%L) TO (%L)',
                name, month || ' 00:00+00', CAST(month + interval '1 month' AS date) || ' 00:00+00'
            );
            PERFORM audit.protect(CAST(name AS regclass));
            made := made + 1;
        END IF;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $$""",
        about="Makes the months of the trail that are missing and returns their number.",
        takes="date, date",
    )


def _partitioned() -> str:
    return f"""
        ALTER TABLE {NAME} RENAME TO audit_logs_before;
        ALTER TABLE audit.audit_logs_before DROP CONSTRAINT pk_audit_logs;
        CREATE TABLE {NAME} (LIKE audit.audit_logs_before INCLUDING DEFAULTS)
            PARTITION BY RANGE (created_at);
        COMMENT ON TABLE {NAME} IS 'Who did what to what, and when. {fw.MADE}';
        ALTER TABLE {NAME}
            ADD CONSTRAINT pk_audit_logs PRIMARY KEY (id, created_at),
            ADD CONSTRAINT ck_audit_logs_action
                CHECK (action IN ('CREATE', 'UPDATE', 'DELETE', 'READ'));
        {_privileges()}
        PERFORM audit.add_partitions(
            CAST(coalesce((SELECT min(created_at) FROM audit.audit_logs_before), now()) AS date),
            CAST(now() + interval '{MONTHS_AHEAD} months' AS date)
        );
        INSERT INTO {NAME} ({COLUMNS}) SELECT {COLUMNS} FROM audit.audit_logs_before;
        DROP TABLE audit.audit_logs_before;
        CREATE INDEX ix_audit_logs_user_id_created_at ON {NAME} (user_id, created_at DESC);
        CREATE INDEX ix_audit_logs_entity_id_created_at ON {NAME} (entity_id, created_at);
        CREATE INDEX ix_audit_logs_created_at ON {NAME} (created_at DESC);"""


def _privileges() -> str:
    """Who might read the table before may do so after."""
    return f"""
        FOR other IN
            SELECT DISTINCT acl.grantee
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
            WHERE c.oid = CAST('audit.audit_logs_before' AS regclass)
                AND acl.grantee <> c.relowner AND acl.privilege_type = 'SELECT'
        LOOP
            EXECUTE format('GRANT SELECT ON {NAME} TO %s', CASE other.grantee
                WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
        END LOOP;"""


def _ours(statements: str) -> str:
    """`statements` for a table that fwdb made; nothing for one that it found."""
    return f"""
DO $$
DECLARE
    other record;
BEGIN
    IF right(obj_description(to_regclass('{NAME}'), 'pg_class'), {len(fw.MADE)}) = '{fw.MADE}' THEN
        {statements}
    END IF;
END $$"""


def _forgetting() -> None:
    fw.function(
        "audit.forget_user",
        f"""
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    -- An array and no join, whose plan would be made for the first statement of the session.
    UPDATE {NAME} SET user_id = NULL WHERE user_id = ANY (ARRAY(SELECT id FROM gone));
    RETURN NULL;
END $$""",
        about="Takes removed users out of the trail.",
    )
    op.execute(
        _ours("""
        CREATE TRIGGER "01_fwdb_forget_user" AFTER DELETE ON shared.users
            REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION audit.forget_user();
        ALTER TABLE shared.users ENABLE ALWAYS TRIGGER "01_fwdb_forget_user";""")
    )


def downgrade() -> None:
    op.execute("""
DO $$ BEGIN
    IF to_regclass('shared.users') IS NOT NULL THEN
        DROP TRIGGER IF EXISTS "01_fwdb_forget_user" ON shared.users;
    END IF;
END $$""")
    fw.drop_function("audit.forget_user")
    op.execute(
        _ours(f"""
        ALTER TABLE {NAME} RENAME TO audit_logs_after;
        ALTER TABLE audit.audit_logs_after DROP CONSTRAINT pk_audit_logs;
        CREATE TABLE {NAME} (LIKE audit.audit_logs_after INCLUDING DEFAULTS);
        COMMENT ON TABLE {NAME} IS 'Who did what to what, and when. {fw.MADE}';
        ALTER TABLE {NAME}
            ADD CONSTRAINT pk_audit_logs PRIMARY KEY (id),
            ADD CONSTRAINT ck_audit_logs_action
                CHECK (action IN ('CREATE', 'UPDATE', 'DELETE', 'READ'));
        INSERT INTO {NAME} SELECT * FROM audit.audit_logs_after;
        UPDATE {NAME} SET user_id = NULL WHERE user_id NOT IN (SELECT id FROM shared.users);
        ALTER TABLE {NAME} ADD CONSTRAINT fk_audit_logs_user_id
            FOREIGN KEY (user_id) REFERENCES shared.users (id) ON DELETE SET NULL;
        DROP TABLE audit.audit_logs_after;
        CREATE INDEX ix_audit_logs_user_id_created_at ON {NAME} (user_id, created_at DESC);
        CREATE INDEX ix_audit_logs_entity_type_entity_id ON {NAME} (entity_type, entity_id);
        CREATE INDEX ix_audit_logs_action_created_at ON {NAME} (action, created_at DESC);
        CREATE INDEX ix_audit_logs_created_at ON {NAME} (created_at DESC);""")
    )
    for name in FACTS:
        op.execute(f"ALTER TABLE {NAME} DROP COLUMN {name}")
    fw.drop_function("audit.add_partitions", "date, date")
    fw.drop_function("audit.protect", "regclass")
