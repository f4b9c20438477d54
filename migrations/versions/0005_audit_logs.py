"""audit.audit_logs: who did what to what, and when; and the function that ends its retention."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from fwdb.migrating import operations as fw

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NAME = "audit.audit_logs"
CLEANUP = "audit.cleanup_old_audit_logs"


def upgrade() -> None:
    now = sa.text("now()")
    fw.table(
        NAME,
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("shared.users.id", ondelete="SET NULL")),
        sa.Column("entity_type", sa.String(100), nullable=False),
        sa.Column("entity_id", sa.Uuid, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("old_values", JSONB),
        sa.Column("new_values", JSONB),
        sa.Column("metadata", sa.Text),
        sa.Column("ip_address", sa.String(45)),
        sa.Column("user_agent", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.CheckConstraint("action IN ('CREATE', 'UPDATE', 'DELETE', 'READ')", name="action"),
        about="Who did what to what, and when.",
    )
    fw.index("ix_audit_logs_user_id_created_at", NAME, ["user_id", "created_at DESC"])
    fw.index("ix_audit_logs_entity_type_entity_id", NAME, ["entity_type", "entity_id"])
    fw.index("ix_audit_logs_action_created_at", NAME, ["action", "created_at DESC"])
    fw.index("ix_audit_logs_created_at", NAME, ["created_at DESC"])
    fw.function(
        CLEANUP,
        """
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM audit.audit_logs WHERE created_at < now() - interval '1 year';
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$""",
        about="Removes entries older than one year and returns their number.",
    )


def downgrade() -> None:
    fw.drop_function(CLEANUP)
    fw.drop_table(NAME)
