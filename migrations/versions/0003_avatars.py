"""avatar.avatars: body models of users."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from fwdb.migrating import operations as fw

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = "avatar.avatars"


def upgrade() -> None:
    now = sa.text("now()")
    fw.table(
        NAME,
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("shared.users.id"), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("gender", sa.String(20), nullable=False, server_default="unisex"),
        sa.Column("measurements", JSONB, nullable=False),
        sa.Column("customization", JSONB),
        sa.Column("is_default", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("gender IN ('male', 'female', 'unisex')", name="gender"),
        about="Body models of users; measurements are personal data.",
    )
    fw.index("ix_avatars_user_id_live", NAME, ["user_id"], where="deleted_at IS NULL")
    fw.touch(NAME)


def downgrade() -> None:
    fw.untouch(NAME)
    fw.drop_table(NAME)
