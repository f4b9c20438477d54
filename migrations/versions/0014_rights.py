"""Functions, sequences and the recorded version left to their owner; audit.runs instead of locks.

What earlier revisions made gets the search_path and the rights that the helpers give today.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fwdb.migrating import operations as fw

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

RUNS = "audit.runs"


def upgrade() -> None:
    # These two have their grants from the revision that made them.
    op.execute(fw.closing("name NOT IN ('record', 'record_reads')"))
    op.execute(_FORGET_USER)
    op.execute(_ADD_PARTITIONS)
    fw.table(
        RUNS,
        sa.Column("name", sa.Text, primary_key=True, comment="what is done by one at a time"),
        sa.Column("pid", sa.Integer, nullable=False, comment="of the session that does it"),
        sa.Column("role", sa.Text, nullable=False, comment="that it logged in as"),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, comment="its start"),
        about="Sessions that follow, retain or erase now.",
        key="name",
    )
    for name in (RUNS, f"{fw.VERSION_SCHEMA}.{fw.VERSION_TABLE}"):
        fw.protect(name)
    op.execute(_SEQUENCES)
    op.execute(_READERS)


def downgrade() -> None:
    # What was closed stays closed.
    fw.drop_table(RUNS)


_FORGET_USER = f"""
DO $made$ BEGIN
    IF right(obj_description(to_regprocedure('audit.forget_user()'), 'pg_proc'), {len(fw.MADE)})
        = '{fw.MADE}'
    THEN
        CREATE OR REPLACE FUNCTION audit.forget_user() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            IF (TG_RELID, TG_OP, TG_WHEN, TG_LEVEL) IS DISTINCT FROM
                (CAST(to_regclass('shared.users') AS oid), 'DELETE', 'AFTER', 'STATEMENT')
            THEN
                RAISE insufficient_privilege USING
                    MESSAGE = 'audit.forget_user() is for deletions from shared.users only';
            END IF;
            -- An array and no join, whose plan would be that of the session's first statement.
            UPDATE audit.audit_logs SET user_id = NULL
            WHERE user_id = ANY (ARRAY(SELECT id FROM gone));
            RETURN NULL;
        END $$;
    END IF;
END $made$"""

# Every role may hold an advisory lock, but not this one.
_ADD_PARTITIONS = f"""
DO $$
DECLARE
    made regprocedure := to_regprocedure('audit.add_partitions(date, date)');
BEGIN
    IF right(obj_description(made, 'pg_proc'), {len(fw.MADE)}) = '{fw.MADE}' THEN
        EXECUTE replace(
            pg_get_functiondef(made),
            'PERFORM pg_advisory_xact_lock(hashtext(''audit.audit_logs''))',
            'LOCK TABLE audit.audit_logs IN SHARE UPDATE EXCLUSIVE MODE'
        );
    END IF;
END $$"""

# An identity takes its numbers without a right of who inserts.
_SEQUENCES = f"""
DO $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT CAST(CAST(s.oid AS regclass) AS text) AS name, acl.grantee
        FROM pg_class AS s
        JOIN pg_depend AS d ON d.classid = CAST('pg_class' AS regclass) AND d.objid = s.oid
            AND d.refclassid = d.classid AND d.deptype IN ('a', 'i')
        CROSS JOIN LATERAL aclexplode(s.relacl) AS acl
        WHERE s.relkind = 'S' AND acl.grantee <> s.relowner
            AND right(obj_description(d.refobjid, 'pg_class'), {len(fw.MADE)}) = '{fw.MADE}'
    LOOP
        EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s', other.name, CASE other.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
    END LOOP;
END $$"""

# Whoever may see how far the follower is may see whether it runs.
_READERS = f"""
DO $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = CAST('audit.followers' AS regclass)
            AND acl.grantee <> c.relowner AND acl.privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON {RUNS} TO %s', CASE other.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
    END LOOP;
END $$"""
