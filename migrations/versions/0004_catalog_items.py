"""catalog.catalog_items: what designs are built from."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from fwdb.migrating import operations as fw

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = "catalog.catalog_items"


def upgrade() -> None:
    now = sa.text("now()")
    categories = "'top', 'bottom', 'dress', 'outerwear', 'accessory', 'other'"
    fw.table(
        NAME,
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("category", sa.String(20)),
        sa.Column("properties", JSONB, nullable=False, server_default="{}"),
        sa.Column("asset_url", sa.String),
        sa.Column("thumbnail_url", sa.String),
        sa.Column("is_premium", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("price", sa.Integer, nullable=False, server_default="0", comment="cents"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("type IN ('silhouette', 'fabric', 'pattern')", name="type"),
        sa.CheckConstraint(f"category IN ({categories})", name="category"),
        about="What designs are built from.",
    )
    fw.index(
        "ix_catalog_items_type_category_live",
        NAME,
        ["type", "category"],
        where="deleted_at IS NULL",
    )
    fw.touch(NAME)


def downgrade() -> None:
    fw.untouch(NAME)
    fw.drop_table(NAME)
