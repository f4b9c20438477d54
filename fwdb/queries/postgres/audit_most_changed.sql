-- Entities by the number of their changes in a window, those with most changes first.
--
-- Reads are no changes. A filter that is NULL lets everything through.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v entity_type=NULL -v entity_id=NULL -v row_limit=10 -f audit_most_changed.sql
--
-- Columns
--   entity_type  string     User, Avatar, CatalogItem, Design
--   entity_id    string     a uuid, or the 24 digits of an ObjectId
--   changes      int64      creations, updates and deletions
--   actors       int64      users who made them
--   last_at      timestamp  the last one
SELECT
    CAST(entity_type AS text) AS entity_type,
    CASE
        WHEN CAST(entity_id AS text) LIKE '________-____-8fdb-8f0d-%'
        THEN replace(replace(CAST(entity_id AS text), '-8fdb-8f0d-', ''), '-', '')
        ELSE CAST(entity_id AS text)
    END AS entity_id,
    count(*) AS changes,
    count(DISTINCT user_id) AS actors,
    max(created_at) AS last_at
FROM audit.audit_logs AS log
WHERE created_at >= CAST(:since AS timestamptz)
    AND created_at < CAST(:until AS timestamptz)
    AND CAST(action AS text) <> 'READ'
    AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
    AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
GROUP BY log.entity_type, log.entity_id
ORDER BY count(*) DESC, max(created_at) DESC, 1, 2
LIMIT CAST(:row_limit AS bigint);
