-- How much was recorded in a window, per action; each of the four actions has a row.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v entity_type=NULL -v user_id=NULL -v action=NULL -f audit_totals.sql
--
-- Columns
--   action         string     CREATE, UPDATE, DELETE or READ
--   events         int64      rows recorded
--   without_actor  int64      of these, rows that do not say who
--   first_at       timestamp  the earliest in the window; null when there is none
--   last_at        timestamp  the latest in the window; null when there is none
WITH counted AS (
    SELECT
        CAST(action AS text) AS action,
        count(*) AS events,
        count(*) FILTER (WHERE user_id IS NULL) AS without_actor,
        min(created_at) AS first_at,
        max(created_at) AS last_at
    FROM audit.audit_logs AS log
    WHERE created_at >= CAST(:since AS timestamptz)
        AND created_at < CAST(:until AS timestamptz)
        -- How documents were before they were followed is no event.
        AND metadata IS DISTINCT FROM 'baseline'
        AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
        AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
        AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
    GROUP BY log.action
)
SELECT
    listed.action,
    coalesce(counted.events, 0) AS events,
    coalesce(counted.without_actor, 0) AS without_actor,
    counted.first_at,
    counted.last_at
FROM (
    VALUES ('CREATE', 1), ('UPDATE', 2), ('DELETE', 3), ('READ', 4)
) AS listed (action, place)
LEFT JOIN counted ON counted.action = listed.action
ORDER BY listed.place;
