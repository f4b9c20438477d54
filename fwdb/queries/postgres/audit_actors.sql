-- Who did most in a window, by number of recorded events; changes without an actor are one row.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v entity_type=NULL -v user_id=NULL -v action=NULL -v row_limit=10 -f audit_actors.sql
--
-- Columns
--   user_id        string     the acting user; null for changes without one
--   events         int64      rows recorded
--   creates        int64      of these, CREATE
--   updates        int64      of these, UPDATE
--   reads          int64      of these, READ
--   deletes        int64      of these, DELETE
--   first_at       timestamp  the earliest in the window
--   last_at        timestamp  the latest in the window
--   share_percent  float64    events of all events that the filters let through, 0 to 100
SELECT
    user_id,
    count(*) AS events,
    count(*) FILTER (WHERE CAST(action AS text) = 'CREATE') AS creates,
    count(*) FILTER (WHERE CAST(action AS text) = 'UPDATE') AS updates,
    count(*) FILTER (WHERE CAST(action AS text) = 'READ') AS reads,
    count(*) FILTER (WHERE CAST(action AS text) = 'DELETE') AS deletes,
    min(created_at) AS first_at,
    max(created_at) AS last_at,
    CAST(100.0 * count(*) / sum(count(*)) OVER () AS double precision) AS share_percent
FROM audit.audit_logs
WHERE created_at >= CAST(:since AS timestamptz)
    AND created_at < CAST(:until AS timestamptz)
    -- How documents were before they were followed is no event.
    AND metadata IS DISTINCT FROM 'baseline'
    AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
    AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
    AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
GROUP BY user_id
ORDER BY events DESC, user_id
LIMIT CAST(:row_limit AS bigint);
