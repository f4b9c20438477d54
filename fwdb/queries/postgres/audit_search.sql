-- Rows of the audit trail, newest first; a filter that is NULL lets everything through.
--
-- `changed_field` finds rows in which that field (or `changed_field_too`, its other spelling)
-- differs between old and new values; creation and deletion touch each field they hold.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until=NULL \
--     -v entity_types="ARRAY['User']" -v users=NULL -v actions="ARRAY['UPDATE', 'DELETE']" \
--     -v changed_field="'email'" -v changed_field_too=NULL -v row_limit=100 -f audit_search.sql
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
    WHERE
        -- An infinite bound keeps the index usable where a test for NULL would not.
        created_at >= coalesce(CAST(:since AS timestamptz), CAST('-infinity' AS timestamptz))
        AND created_at < coalesce(CAST(:until AS timestamptz), CAST('infinity' AS timestamptz))
        AND (
            CAST(:entity_types AS text[]) IS NULL
            OR entity_type = ANY (CAST(:entity_types AS text[]))
        )
        AND (CAST(:users AS uuid[]) IS NULL OR user_id = ANY (CAST(:users AS uuid[])))
        -- One user is said once more, plainly, so that the index on users gives the order too.
        AND (
            coalesce(cardinality(CAST(:users AS uuid[])), 0) <> 1
            OR user_id = (CAST(:users AS uuid[]))[1]
        )
        AND (
            CAST(:actions AS text[]) IS NULL
            OR CAST(action AS text) = ANY (CAST(:actions AS text[]))
        )
        AND (
            CAST(:changed_field AS text) IS NULL
            OR (old_values -> CAST(:changed_field AS text))
                IS DISTINCT FROM (new_values -> CAST(:changed_field AS text))
            OR (old_values -> CAST(:changed_field_too AS text))
                IS DISTINCT FROM (new_values -> CAST(:changed_field_too AS text))
        )
    ORDER BY created_at DESC, id DESC
    LIMIT CAST(:row_limit AS bigint)
) AS log
ORDER BY created_at DESC, id DESC;
