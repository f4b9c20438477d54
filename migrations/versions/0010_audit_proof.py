"""audit.seals and audit.erasures: the proof that the trail was not touched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fwdb.migrating import operations as fw

revision = "0010"
down_revision = "0007"
branch_labels = None
depends_on = None

SEALS, ERASURES = "audit.seals", "audit.erasures"


def upgrade() -> None:
    fw.table(
        SEALS,
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("month", sa.Date, nullable=False, comment="of created_at, in UTC"),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("total_rows", sa.BigInteger, nullable=False, comment="of all seals so far"),
        sa.Column("last_transaction", sa.BigInteger, nullable=False),
        sa.Column("last_id", sa.Uuid, nullable=False),
        sa.Column(
            "horizon",
            sa.BigInteger,
            nullable=False,
            comment="every row of a transaction before this one was sealed",
        ),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        _bytes("root", "of the Merkle tree over the leaves"),
        _bytes("head", "hash of the head before, of these facts and of the root"),
        sa.Column("key_id", sa.Text, comment="which key signed; null: none"),
        sa.Column("signature", sa.LargeBinary, comment="HMAC-SHA-256 of the head"),
        _bytes("keys_digest", "SHA-256 of keys"),
        _bytes("keys", "32 bytes a row: id, created_at in microseconds, transaction"),
        _bytes("salts", "32 bytes a row: of who did it and of what it held; zeros when erased"),
        _bytes("leaves", "32 bytes a row"),
        about="Seals over the rows of audit.audit_logs, each of one month.",
        key="number",
    )
    _index("ix_seals_month_number", "seals", ["month", "number"])
    # Random bytes do not get smaller; compressing them costs as much as hashing.
    op.execute(
        f"ALTER TABLE {SEALS} ALTER COLUMN salts SET STORAGE EXTERNAL,"
        " ALTER COLUMN leaves SET STORAGE EXTERNAL"
    )
    fw.protect(SEALS)
    fw.table(
        ERASURES,
        sa.Column("log_id", sa.Uuid, primary_key=True),
        sa.Column("part", sa.Text, primary_key=True, comment="actor or values"),
        sa.Column("seal", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("erasure_id", sa.Uuid, nullable=False, comment="entity_id of its own row"),
        _bytes("digest", "of the part before it was erased, salted"),
        sa.Column(
            "erased_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        about="Parts of audit rows that were erased, with the digests that the seals hold.",
        key="log_id",
    )
    _index("ix_erasures_seal", "erasures", ["seal"])
    _index("ix_erasures_erasure_id", "erasures", ["erasure_id"])
    fw.protect(ERASURES)


def downgrade() -> None:
    fw.drop_table(ERASURES)
    fw.drop_table(SEALS)


def _bytes(name: str, comment: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False, comment=comment)


def _index(name: str, table: str, columns: list[str]) -> None:
    op.create_index(name, table, columns, schema="audit", if_not_exists=True)
