-- One row per field that a change touched, newest first; a filter that is NULL lets all through.
--
-- Without a `field`, those that follow every update (updated_at, version) are left out where there
-- are values before and after.
-- A value is SQL NULL where there was no such field: before a creation, after a removal.
--
-- `archived` are changes of months that left the table: a JSON array of objects that are named as
-- the columns; NULL for none.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'CatalogItem'" -v entity_id=NULL \
--     -v field="'price'" -v field_too=NULL -v since="now() - interval '7 days'" -v until=NULL \
--     -v row_limit=100 -v archived=NULL -f audit_changes.sql
--
-- Columns
--   changed_at        timestamp  moment of the change
--   entity_type       string     User, Avatar, CatalogItem, Design
--   entity_id         string     a uuid, or the 24 digits of an ObjectId
--   action            string     CREATE, UPDATE or DELETE
--   field             string     name of the field
--   before            string     its value as JSON before the change
--   after             string     its value as JSON after the change
--   user_id           string     who did it; null when not known
--   reason            string     why, as the caller said
--   origin            string     trigger, follower or application; null before fwdb
--   transaction_id    Int64      of PostgreSQL; null before fwdb
--   db_user           string     who had logged in to the database
--   application_name  string     what the session called itself
--   client_address    string     address of the session
--   log_id            string     row of the trail
SELECT
    log.created_at AS changed_at,
    CAST(log.entity_type AS text) AS entity_type,
    CASE
        WHEN CAST(log.entity_id AS text) LIKE '________-____-8fdb-8f0d-%'
        THEN replace(replace(CAST(log.entity_id AS text), '-8fdb-8f0d-', ''), '-', '')
        ELSE CAST(log.entity_id AS text)
    END AS entity_id,
    CAST(log.action AS text) AS action,
    fields.field,
    CAST(log.old_values -> fields.field AS text) AS before,
    CAST(log.new_values -> fields.field AS text) AS after,
    log.user_id,
    log.reason,
    log.origin,
    log.transaction_id,
    log.db_user,
    log.application_name,
    log.client_address,
    log.id AS log_id
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
        CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END AS old_values,
        CASE jsonb_typeof(new_values) WHEN 'object' THEN new_values END AS new_values,
        transaction_id,
        origin,
        reason,
        db_user,
        application_name,
        client_address
    FROM (
        SELECT
            id, created_at, CAST(action AS text) AS action,
            CAST(entity_type AS text) AS entity_type, entity_id, user_id, old_values, new_values, transaction_id, origin, reason, db_user,
            application_name, CAST(client_address AS text) AS client_address
        FROM audit.audit_logs
        UNION ALL
        SELECT
            id, created_at, action, entity_type, entity_id, user_id, CAST(old_values AS jsonb),
            CAST(new_values AS jsonb), transaction_id, origin, reason, db_user, application_name,
            client_address
        FROM json_to_recordset(CAST(:archived AS json)) AS handed (
            id uuid, created_at timestamptz, action text, entity_type text, entity_id uuid,
            user_id uuid, old_values text, new_values text, transaction_id bigint, origin text,
            reason text, db_user text, application_name text, client_address text
        )
    ) AS trail
    WHERE created_at >= coalesce(CAST(:since AS timestamptz), CAST('-infinity' AS timestamptz))
        AND created_at < coalesce(CAST(:until AS timestamptz), CAST('infinity' AS timestamptz))
        AND CAST(action AS text) <> 'READ'
        AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
        AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
        AND (
            CAST(:field AS text) IS NULL
            OR old_values -> CAST(:field AS text) IS DISTINCT FROM new_values -> CAST(:field AS text)
            OR old_values -> CAST(:field_too AS text)
                IS DISTINCT FROM new_values -> CAST(:field_too AS text)
        )
) AS log
CROSS JOIN LATERAL jsonb_object_keys(
    coalesce(log.old_values, '{}') || coalesce(log.new_values, '{}')
) AS fields (field)
WHERE log.old_values -> fields.field IS DISTINCT FROM log.new_values -> fields.field
    AND CASE
        WHEN CAST(:field AS text) IS NULL
        THEN log.old_values IS NULL
            OR log.new_values IS NULL
            OR fields.field NOT IN ('updated_at', 'updatedAt', 'version')
        ELSE fields.field IN (CAST(:field AS text), CAST(:field_too AS text))
    END
ORDER BY log.created_at DESC, log.id DESC, fields.field DESC
LIMIT CAST(:row_limit AS bigint);
