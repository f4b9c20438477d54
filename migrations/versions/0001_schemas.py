"""Schemas, the extensions that are to be had, and the function that keeps updated_at."""

from __future__ import annotations

from fwdb.migrating import operations as fw

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for schema in ("shared", "avatar", "catalog", "design", "audit", "monitoring"):
        fw.schema(schema)
    fw.extension("pg_trgm")
    fw.extension("pg_stat_statements")
    fw.touch_function()


def downgrade() -> None:
    # The extensions stay, others may use them; so does `monitoring`, which holds the version.
    fw.untouch_function()
    for schema in ("audit", "design", "catalog", "avatar", "shared"):
        fw.drop_schema(schema)
