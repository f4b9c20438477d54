"""Capture: triggers that record every change of users, avatars and catalog items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from fwdb.migrating import capture
from fwdb.migrating import operations as fw

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLES = {
    "shared.users": ("User", ["password_hash"]),
    "avatar.avatars": ("Avatar", []),
    "catalog.catalog_items": ("CatalogItem", []),
}
LOGS = "audit.audit_logs"
CHECK = "CHECK (action IN ('CREATE', 'UPDATE', 'DELETE', 'READ'))"


def upgrade() -> None:
    fw.table(
        "audit.captured",
        sa.Column("relation", sa.Text, primary_key=True, comment="schema.table"),
        sa.Column("entity_type", sa.Text, nullable=False),
        sa.Column("redact", JSONB, nullable=False, comment="column: omit, mask or fingerprint"),
        sa.Column("ignore", ARRAY(sa.Text), nullable=False, comment="alone they are no change"),
        sa.Column("mode", sa.Text, nullable=False, server_default="direct"),
        sa.Column("columns", ARRAY(sa.Text), nullable=False, comment="as the trigger knows them"),
        sa.Column("numbers", ARRAY(sa.Integer), nullable=False, comment="attnum of each column"),
        sa.Column("name", sa.Text, nullable=False, unique=True, comment="of the function"),
        sa.Column("generated_at", sa.DateTime(timezone=True), nullable=False),
        about="Tables whose changes are recorded.",
        key="relation",
    )
    fw.protect("audit.captured")
    op.execute("CREATE SEQUENCE audit.change_number CACHE 20")
    _key()
    for relation in ("audit.change_number", "audit.fingerprint_key"):
        _secret(relation)
    capture.install(op)
    # Evaluated anew for each row, it was a sixth of the cost of recording it. Whoever may add rows
    # does it through functions that know the words.
    op.execute(_ours(f"ALTER TABLE {LOGS} DROP CONSTRAINT IF EXISTS ck_audit_logs_action;"))
    op.execute("SELECT audit.grant_reading()")
    for table, (entity_type, redact) in TABLES.items():
        said = capture.refusal(op, table)
        if said is not None:
            fw.report("capture", table, f"left {table} without capture: {said}")
            continue
        op.audit_table(table, entity_type=entity_type, redact=redact, ignore=["updated_at"])


def _key() -> None:
    """The key of fingerprints, padded as HMAC wants it; 64 bytes are a block of SHA-256."""
    op.execute(f"""
CREATE TABLE audit.fingerprint_key (inner_pad bytea NOT NULL, outer_pad bytea NOT NULL);
COMMENT ON TABLE audit.fingerprint_key IS 'Key of fingerprints, for its owner alone. {fw.MADE}'""")
    # 16 ids with 122 random bits each, hashed: pgcrypto is not everywhere.
    op.execute("""
INSERT INTO audit.fingerprint_key
SELECT decode(string_agg(lpad(to_hex(get_byte(key, n) # 54), 2, '0'), '' ORDER BY n), 'hex'),
       decode(string_agg(lpad(to_hex(get_byte(key, n) # 92), 2, '0'), '' ORDER BY n), 'hex')
FROM (
    SELECT sha512(string_agg(uuid_send(gen_random_uuid()), '')) AS key FROM generate_series(1, 16)
) AS made, generate_series(0, 63) AS n""")


def _secret(relation: str) -> None:
    """Nobody but the owner reads or uses `relation`, whatever the default privileges say."""
    op.execute(f"""
DO $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = CAST('{relation}' AS regclass) AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON {relation} FROM %s', CASE other.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
    END LOOP;
END $$""")


def _ours(statement: str) -> str:
    """`statement` for a table that fwdb made; nothing for one that it found."""
    return f"""
DO $$ BEGIN
    IF right(obj_description(to_regclass('{LOGS}'), 'pg_class'), {len(fw.MADE)}) = '{fw.MADE}' THEN
        {statement}
    END IF;
END $$"""


def downgrade() -> None:
    op.execute("SELECT audit.uncapture(relation) FROM audit.captured")
    op.execute("DROP VIEW IF EXISTS audit.trail")
    capture.remove(op)
    for table in ("audit.fingerprint_key", "audit.captured"):
        fw.drop_table(table)
    op.execute("DROP SEQUENCE audit.change_number")
    op.execute(_ours(f"ALTER TABLE {LOGS} ADD CONSTRAINT ck_audit_logs_action {CHECK};"))
