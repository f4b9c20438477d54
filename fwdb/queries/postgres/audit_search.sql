-- Rows of the audit trail, newest first; a filter that is NULL lets everything through.
--
-- `changed_field` finds rows in which that field (or `changed_field_too`, its other spelling)
-- differs between old and new values; creation and deletion touch each field they hold.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until=NULL \
--     -v entity_type="'User'" -v user_id=NULL -v action=NULL -v changed_field="'email'" \
--     -v changed_field_too=NULL -v row_limit=100 -f audit_search.sql
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
                CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END
            ) AS field
            UNION
            SELECT jsonb_object_keys(
                CASE jsonb_typeof(new_values) WHEN 'object' THEN new_values END
            )
        ) AS fields
        WHERE (old_values -> field) IS DISTINCT FROM (new_values -> field)
            -- These follow every update and tell nothing by themselves.
            AND field NOT IN ('updated_at', 'updatedAt', 'version')
    ), '') AS changed_fields,
    CAST(old_values AS text) AS old_values,
    CAST(new_values AS text) AS new_values,
    metadata,
    ip_address,
    user_agent
FROM audit.audit_logs
WHERE
    -- An infinite bound keeps the index usable where a test for NULL would not.
    created_at >= coalesce(CAST(:since AS timestamptz), CAST('-infinity' AS timestamptz))
    AND created_at < coalesce(CAST(:until AS timestamptz), CAST('infinity' AS timestamptz))
    AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
    AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
    AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
    AND (
        CAST(:changed_field AS text) IS NULL
        OR (old_values -> CAST(:changed_field AS text))
            IS DISTINCT FROM (new_values -> CAST(:changed_field AS text))
        OR (old_values -> CAST(:changed_field_too AS text))
            IS DISTINCT FROM (new_values -> CAST(:changed_field_too AS text))
    )
ORDER BY created_at DESC, id DESC
LIMIT CAST(:row_limit AS bigint);
