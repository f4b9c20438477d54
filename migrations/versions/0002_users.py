"""shared.users: accounts."""

from __future__ import annotations

import sqlalchemy as sa

from fwdb.migrating import operations as fw

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = "shared.users"
LIVE = "deleted_at IS NULL"


def upgrade() -> None:
    now = sa.text("now()")
    reference = "shared.users.id"
    fw.table(
        NAME,
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
        sa.Column("email", sa.String(255), nullable=False, unique=True),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("first_name", sa.String(100), nullable=False),
        sa.Column("last_name", sa.String(100), nullable=False),
        sa.Column("role", sa.String(50), nullable=False, server_default="user"),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("email_verified", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("created_by", sa.Uuid, sa.ForeignKey(reference, ondelete="SET NULL")),
        sa.Column("updated_by", sa.Uuid, sa.ForeignKey(reference, ondelete="SET NULL")),
        about="Accounts.",
    )
    fw.unique("uq_users_email", NAME, "email")
    fw.index("ix_users_email_live", NAME, ["email"], where=LIVE)
    fw.index("ix_users_role_live", NAME, ["role"], where=LIVE)
    fw.index("ix_users_is_active_live", NAME, ["is_active"], where=LIVE)
    fw.touch(NAME)


def downgrade() -> None:
    fw.untouch(NAME)
    fw.drop_table(NAME)
