-- Changes of which nobody said who made them, by what the server knew of the session, most first.
--
-- Reads are no changes. A filter that is NULL lets everything through. In rows from before fwdb
-- nothing is known of the session.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v entity_type=NULL -v action=NULL -v row_limit=20 -f audit_unclaimed.sql
--
-- Columns
--   db_user           string     who had logged in to the database
--   application_name  string     what the session called itself
--   origin            string     trigger, follower or application
--   entity_type       string     User, Avatar, CatalogItem, Design
--   action            string     CREATE, UPDATE or DELETE
--   changes           int64      how many
--   last_at           timestamp  the last one
SELECT
    log.db_user,
    log.application_name,
    log.origin,
    CAST(log.entity_type AS text) AS entity_type,
    CAST(log.action AS text) AS action,
    count(*) AS changes,
    max(log.created_at) AS last_at
FROM (
    -- A database that nobody migrated lacks these columns: names that the table does not have are
    -- found here.
    VALUES (CAST(NULL AS text), CAST(NULL AS text), CAST(NULL AS text))
) AS missing (db_user, application_name, origin)
CROSS JOIN LATERAL (
    SELECT db_user, application_name, origin, entity_type, action, created_at
    FROM audit.audit_logs
    WHERE created_at >= CAST(:since AS timestamptz)
        AND created_at < CAST(:until AS timestamptz)
        AND user_id IS NULL
        AND CAST(action AS text) <> 'READ'
        AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
        AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
) AS log
GROUP BY 1, 2, 3, 4, 5
ORDER BY count(*) DESC, 1, 2, 3, 4, 5
LIMIT CAST(:row_limit AS bigint);
