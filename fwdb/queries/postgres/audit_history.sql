-- Everything the audit trail holds about one entity, oldest first.
--
-- `entity_id` is given as the uuid of the table: for the design 65a1b2c3d4e5f60718293a4b that is
-- 65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b (its first and last 12 digits around the mark 8fdb-8f0d).
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'User'" \
--     -v entity_id="'0190c1a0-0000-7000-8000-000000000001'" -f audit_history.sql
--
-- Columns
--   id              string     row of the trail
--   created_at      timestamp  moment of the change
--   action          string     CREATE, UPDATE, DELETE or READ
--   entity_type     string     User, Avatar, CatalogItem, Design
--   entity_id       string     a uuid, or the 24 digits of an ObjectId
--   user_id         string     who did it; null when not known
--   changed_fields  string     fields whose values differ, with commas; empty for READ
--   old_values      string     JSON before the change
--   new_values      string     JSON after the change
--   metadata        string     what the caller added
--   ip_address      string     where it came from
--   user_agent      string     what program it came from
--   transaction_id  Int64      of PostgreSQL; null before fwdb
--   origin          string     trigger, follower or application; null before fwdb
--   reason          string     why, as the caller said
--   db_user         string     who had logged in to the database
--   application_name  string   what the session called itself
--   client_address  string     address of the session
SELECT
    id,
    created_at,
    CAST(action AS text) AS action,
    CAST(entity_type AS text) AS entity_type,
    CASE
        WHEN CAST(entity_id AS text) LIKE '________-____-8fdb-8f0d-%'
        THEN replace(replace(CAST(entity_id AS text), '-8fdb-8f0d-', ''), '-', '')
        ELSE CAST(entity_id AS text)
    END AS entity_id,
    user_id,
    coalesce((
        SELECT string_agg(field, ', ' ORDER BY field)
        FROM (
            SELECT jsonb_object_keys(
                CASE jsonb_typeof(new_values) WHEN 'object' THEN new_values END
            ) AS field
            UNION ALL
            SELECT field
            FROM (
                SELECT jsonb_object_keys(
                    CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END
                ) AS field
            ) AS before
            WHERE (new_values -> field) IS NULL
        ) AS fields
        WHERE (old_values -> field) IS DISTINCT FROM (new_values -> field)
            -- These follow every update and tell nothing by themselves.
            AND field NOT IN ('updated_at', 'updatedAt', 'version')
    ), '') AS changed_fields,
    CAST(old_values AS text) AS old_values,
    CAST(new_values AS text) AS new_values,
    metadata,
    ip_address,
    user_agent,
    log.transaction_id,
    log.origin,
    log.reason,
    log.db_user,
    log.application_name,
    log.client_address
FROM (
    -- A database that nobody migrated lacks these columns: names that the table does not have are
    -- found here.
    VALUES (
        CAST(NULL AS bigint), CAST(NULL AS text), CAST(NULL AS text), CAST(NULL AS text),
        CAST(NULL AS text), CAST(NULL AS text)
    )
) AS missing (transaction_id, origin, reason, db_user, application_name, client_address)
CROSS JOIN LATERAL (
    SELECT
        id,
        created_at,
        action,
        entity_type,
        entity_id,
        user_id,
        old_values,
        new_values,
        metadata,
        ip_address,
        user_agent,
        transaction_id,
        origin,
        reason,
        db_user,
        application_name,
        client_address
    FROM audit.audit_logs
    WHERE entity_type = CAST(:entity_type AS text)
        AND entity_id = CAST(:entity_id AS uuid)
) AS log
ORDER BY created_at, id;
