-- How much was recorded, counted per span of time, kind of entity and action.
--
-- `bucket` is minute, hour, day, week (from Monday) or month, all in UTC. Only what happened has a
-- row: an hour without a change of some kind is not there.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v bucket="'hour'" -v entity_type=NULL -v user_id=NULL -v action=NULL \
--     -f audit_activity.sql
--
-- Columns
--   bucket_at    timestamp  start of the minute, hour, day …
--   entity_type  string     User, Avatar, CatalogItem, Design
--   action       string     CREATE, UPDATE, DELETE or READ
--   events       int64      rows recorded
SELECT
    starts AT TIME ZONE 'UTC' AS bucket_at,
    counted.entity_type,
    counted.action,
    counted.events
FROM generate_series(
    -- Times without a zone stand for UTC: months and weeks must not follow the session's zone.
    date_trunc(CAST(:bucket AS text), CAST(:since AS timestamptz) AT TIME ZONE 'UTC'),
    CAST(:until AS timestamptz) AT TIME ZONE 'UTC',
    CAST('1 ' || CAST(:bucket AS text) AS interval)
) AS buckets (starts)
CROSS JOIN LATERAL (
    -- Bucket by bucket over the index on time: one GROUP BY over all rows would sort them on
    -- disk, because the server cannot know how few the groups of an expression are.
    SELECT
        CAST(entity_type AS text) AS entity_type,
        CAST(action AS text) AS action,
        count(*) AS events
    FROM audit.audit_logs AS log
    WHERE created_at >= greatest(starts AT TIME ZONE 'UTC', CAST(:since AS timestamptz))
        AND created_at < least(
            (starts + CAST('1 ' || CAST(:bucket AS text) AS interval)) AT TIME ZONE 'UTC',
            CAST(:until AS timestamptz)
        )
        -- How documents were before they were followed is no event.
        AND metadata IS DISTINCT FROM 'baseline'
        AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
        AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
        AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
    GROUP BY log.entity_type, log.action
) AS counted
ORDER BY 1, 2, 3;
