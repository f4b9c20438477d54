"""audit.archives.replaced: files that hold what was erased since, until they are removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "archives",
        sa.Column(
            "replaced",
            sa.ARRAY(sa.Text),
            nullable=False,
            server_default=sa.text("ARRAY[]::text[]"),
            comment="files that an erasure wrote anew, not removed yet",
        ),
        schema="audit",
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_column("archives", "replaced", schema="audit", if_exists=True)
