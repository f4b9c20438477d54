"""audit.followers, where the follower of MongoDB stands, and audit.gaps, what it could not see."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from fwdb.migrating import operations as fw

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FOLLOWERS, GAPS = "audit.followers", "audit.gaps"


def upgrade() -> None:
    fw.table(
        FOLLOWERS,
        sa.Column("name", sa.Text, primary_key=True, comment="the collection"),
        sa.Column("source", sa.Text, nullable=False, comment="host and database, no account"),
        sa.Column("holder", sa.Uuid, comment="the one run that may write"),
        sa.Column("state", JSONB, comment="where it stands; null before the first document"),
        _time("started_at", "when that run began"),
        _time("saved_at", "when it last wrote"),
        _time("position_at", "all changes before are recorded; to the second"),
        _time("event_at", "time of the newest change recorded"),
        _time("caught_up_at", "when it last had nothing more to read; null: is behind"),
        sa.Column("images", sa.Boolean, comment="whether MongoDB keeps documents before changes"),
        _count("events"),
        _count("changes"),
        about="How far the changes of MongoDB are recorded.",
        key="name",
    )
    fw.table(
        GAPS,
        sa.Column("gap_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("follower", sa.Text, nullable=False),
        _time("since", "changes up to here are recorded; null: not known"),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column(
            "differences",
            sa.BigInteger,
            comment="rows that the comparison with the collection added; null: was not compared",
        ),
        sa.Column(
            "detected_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        about="Times of which not each change could be seen.",
        key="gap_id",
    )
    for name in (FOLLOWERS, GAPS):
        fw.protect(name)


def downgrade() -> None:
    for name in (GAPS, FOLLOWERS):
        fw.drop_table(name)


def _time(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), comment=comment)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
