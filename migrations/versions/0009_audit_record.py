"""audit.record() and audit.record_reads(): how the application adds to a trail it may not change.

A row says of itself that it comes from the application, and what the server knows of its session;
no caller can say otherwise.
"""

from __future__ import annotations

from alembic import op

from fwdb.migrating import operations as fw

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

RECORD = ("audit.record", "text, uuid, text, jsonb, jsonb, text, uuid, text, text, text")
JOURNALS = ("audit.journals_of", "text")
READS = ("audit.record_reads", "text, uuid[], text, uuid, text, text, text")


def upgrade() -> None:
    fw.function(
        JOURNALS[0],
        """
RETURNS SETOF text LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    IF to_regclass('audit.captured') IS NOT NULL THEN
        RETURN QUERY EXECUTE $sql$
            SELECT 'journal_' || name FROM audit.captured
            WHERE mode = 'journal' AND entity_type = $1$sql$ USING $1;
    END IF;
END $$""",
        about="The journals to which changes of entities of a kind go first.",
        takes=JOURNALS[1],
    )
    fw.function(
        RECORD[0],
        """
RETURNS audit.audit_logs LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind ALIAS FOR $1;
    entity ALIAS FOR $2;
    -- An existing table may have an enum here.
    what audit.audit_logs.action%TYPE := $3;
    old ALIAS FOR $4;
    new ALIAS FOR $5;
    remark ALIAS FOR $6;
    actor ALIAS FOR $7;
    address ALIAS FOR $8;
    agent ALIAS FOR $9;
    why ALIAS FOR $10;
    found audit.audit_logs;
    xid bigint := CAST(CAST(pg_current_xact_id() AS text) AS bigint);
    journal text;
BEGIN
    IF $3 NOT IN ('CREATE', 'UPDATE', 'DELETE', 'READ') THEN
        RAISE invalid_parameter_value USING
            MESSAGE = 'the action of an entry is CREATE, UPDATE, DELETE or READ';
    END IF;
    IF $3 <> 'READ' THEN
        -- What a trigger has written of this change in this transaction, which nobody sees yet.
        -- The first that names nobody; the last when all do. The bound on time leaves the other
        -- months out; a day, should the clock be set back.
        SELECT log.* INTO found
        FROM audit.audit_logs AS log
        WHERE log.entity_id = entity AND log.entity_type = kind AND log.action = what
            AND log.origin = 'trigger'
            AND log.transaction_id = xid
            AND log.created_at > now() - interval '1 day'
        ORDER BY log.user_id IS NOT NULL,
            CASE WHEN log.user_id IS NULL THEN log.created_at END,
            log.created_at DESC, log.id DESC
        LIMIT 1;
        IF found.id IS NOT NULL THEN
            UPDATE audit.audit_logs AS log
            SET user_id = coalesce(log.user_id, actor),
                ip_address = coalesce(log.ip_address, address),
                user_agent = coalesce(log.user_agent, agent),
                reason = coalesce(log.reason, why),
                metadata = coalesce(log.metadata, remark)
            WHERE log.id = found.id AND log.created_at = found.created_at
            RETURNING log.* INTO found;
            RETURN found;
        END IF;
        -- A journal has no index: this reads what is not drained yet.
        FOR journal IN SELECT name FROM audit.journals_of(kind) AS name LOOP
            EXECUTE format($sql$
                UPDATE audit.%1$I AS log
                SET user_id = coalesce(user_id, $4), ip_address = coalesce(ip_address, $5),
                    user_agent = coalesce(user_agent, $6), reason = coalesce(reason, $7),
                    metadata = coalesce(metadata, $8)
                WHERE ctid = (
                    SELECT ctid FROM audit.%1$I
                    WHERE transaction_id = $1 AND entity_id = $2 AND action = $3
                    ORDER BY user_id IS NOT NULL,
                        CASE WHEN user_id IS NULL THEN created_at END, created_at DESC, number DESC
                    LIMIT 1)
                RETURNING audit.time_id(created_at, number), user_id, entity_id, old_values,
                    new_values, metadata, ip_address, user_agent, created_at, transaction_id,
                    reason, db_user, application_name, client_address$sql$, journal)
            INTO found.id, found.user_id, found.entity_id, found.old_values, found.new_values,
                found.metadata, found.ip_address, found.user_agent, found.created_at,
                found.transaction_id, found.reason, found.db_user, found.application_name,
                found.client_address
            USING xid, entity, $3, actor, address, agent, why, remark;
            IF found.id IS NOT NULL THEN
                found.entity_type := kind;
                found.action := what;
                found.origin := 'trigger';
                RETURN found;
            END IF;
        END LOOP;
    END IF;
    -- clock_timestamp(), so that the changes of one transaction keep their order.
    INSERT INTO audit.audit_logs (
        user_id, entity_type, entity_id, action, old_values, new_values, metadata, ip_address,
        user_agent, created_at, reason, origin
    )
    VALUES (
        actor, kind, entity, what, old, new, remark, address, agent, clock_timestamp(), why,
        'application'
    )
    RETURNING * INTO found;
    RETURN found;
END $$""",
        about="Adds an entry of the application to the trail, unless a trigger has it already.",
        takes=RECORD[1],
    )
    fw.function(
        READS[0],
        """
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written bigint;
BEGIN
    INSERT INTO audit.audit_logs (
        user_id, entity_type, entity_id, action, metadata, ip_address, user_agent, created_at,
        reason, origin
    )
    SELECT $4, $1, entity, 'READ', $3, $5, $6, clock_timestamp(), $7, 'application'
    FROM unnest($2) AS entity;
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
END $$""",
        about="Records that entities were read and returns their number.",
        takes=READS[1],
    )
    # Who may change the data may say so; who only reads it may not fill the trail.
    for name, takes in (RECORD, READS):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name}({takes}) FROM PUBLIC")
        op.execute(f"""
DO $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = to_regclass('shared.users')
            AND acl.privilege_type = 'INSERT' AND acl.grantee <> 0
    LOOP
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION {name}({takes}) TO %I', pg_get_userbyid(other.grantee)
        );
    END LOOP;
END $$""")


def downgrade() -> None:
    for name, takes in (RECORD, READS, JOURNALS):
        fw.drop_function(name, takes)
