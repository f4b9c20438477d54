"""audit.archives and audit.holds: months that left the trail for a file, and months that must not.

The function that removed rows after a year now says how months end, and leaves held ones where
the table has none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fwdb.migrating import operations as fw

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ARCHIVES, HOLDS = "audit.archives", "audit.holds"
CLEANUP = "audit.cleanup_old_audit_logs"
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    fw.table(
        ARCHIVES,
        sa.Column("month", sa.Date, primary_key=True, comment="its first day"),
        sa.Column("path", sa.Text, nullable=False, comment="in the archive folder"),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column(
            "versions", sa.Numeric, nullable=False, comment="sum of xmin: no change keeps it"
        ),
        sa.Column("exported_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("dropped_at", sa.DateTime(timezone=True), comment="null: the table is there"),
        about="Months of the trail that were written to a file.",
        key="month",
    )
    fw.table(
        HOLDS,
        sa.Column("month", sa.Date, primary_key=True, comment="its first day"),
        sa.Column("held_at", sa.DateTime(timezone=True), primary_key=True, server_default=NOW),
        sa.Column("held_by", sa.Text, nullable=False, server_default=sa.text("session_user")),
        sa.Column("reason", sa.Text),
        sa.Column("released_at", sa.DateTime(timezone=True), comment="null: held"),
        sa.Column("released_by", sa.Text),
        about="Months of the trail that must be kept.",
        key="month",
    )
    op.create_index(
        "ux_holds_month_held",
        "holds",
        ["month"],
        unique=True,
        schema="audit",
        postgresql_where=sa.text("released_at IS NULL"),
        if_not_exists=True,
    )
    for table in (ARCHIVES, HOLDS):
        fw.protect(table)
    op.execute(
        _ours(f"""
CREATE OR REPLACE FUNCTION {CLEANUP}() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog SET TimeZone = 'UTC' AS $body$
DECLARE
    removed bigint;
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = 'audit.audit_logs'::regclass AND relkind = 'p') THEN
        RAISE feature_not_supported USING
            MESSAGE = 'months of the audit trail end by: fwdb audit retain',
            DETAIL = 'It exports each month before it drops it, and leaves those that are held.';
    END IF;
    DELETE FROM audit.audit_logs WHERE created_at < now() - interval '1 year' AND NOT EXISTS (
        SELECT FROM {HOLDS}
        WHERE month = CAST(date_trunc('month', created_at) AS date) AND released_at IS NULL
    );
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $body$""")
    )


def downgrade() -> None:
    op.execute(
        _ours(f"""
CREATE OR REPLACE FUNCTION {CLEANUP}() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM audit.audit_logs WHERE created_at < now() - interval '1 year';
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $body$""")
    )
    fw.drop_table(HOLDS)
    fw.drop_table(ARCHIVES)


def _ours(statement: str) -> str:
    """`statement` about our function; one that the service made stays as it is."""
    said = f"obj_description(to_regprocedure('{CLEANUP}()'), 'pg_proc')"
    return f"""
DO $$ BEGIN
    IF right({said}, {len(fw.MADE)}) = '{fw.MADE}' THEN
        {statement};
    END IF;
END $$"""
