-- From when on the trail tells of each entity of one type.
--
-- `archived` are changes of months that left the table: a JSON array of objects that are named as
-- the columns; NULL for none.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'User'" -v entity_id=NULL -v archived=NULL \
--     -v moment="now()" -f audit_known.sql
--
-- Columns
--   entity_id   string     the entity
--   known_since timestamp  when it was made, else its first row in the trail
--   changed_at  timestamp  its last change up to `moment`; null when there is none
SELECT
    entity_id,
    coalesce(min(created_at) FILTER (WHERE CAST(action AS text) = 'CREATE'), min(created_at))
        AS known_since,
    max(created_at) FILTER (WHERE created_at <= CAST(:moment AS timestamptz)) AS changed_at
FROM (
    SELECT
        created_at, CAST(action AS text) AS action, CAST(entity_type AS text) AS entity_type,
        entity_id
    FROM audit.audit_logs
    UNION ALL
    SELECT created_at, action, entity_type, entity_id
    FROM json_to_recordset(CAST(:archived AS json)) AS handed (
        created_at timestamptz, action text, entity_type text, entity_id uuid
    )
) AS log
WHERE entity_type = CAST(:entity_type AS text)
    AND CAST(action AS text) <> 'READ'
    AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
GROUP BY entity_id;
