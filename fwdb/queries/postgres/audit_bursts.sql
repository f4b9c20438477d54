-- Hours in which far more was recorded than is usual for that hour, largest excess first.
--
-- Usual is the median of the same hour of the day (UTC), working days and weekends apart, over the
-- window and the 28 days before it, hours with nothing counted as nothing. An hour is far above it
-- with at least 10 events, 3 times the usual, and 6 spreads over it. The spread is 1.4826 times
-- the median absolute deviation (which is the standard deviation of a normal distribution),
-- at least the square root of the usual (that of counts that come by chance), at least 1.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -v entity_type=NULL -v user_id=NULL -v action="'DELETE'" -f audit_bursts.sql
--
-- Columns
--   bucket_at        timestamp  start of the hour
--   entity_type      string     User, Avatar, CatalogItem, Design
--   action           string     CREATE, UPDATE, DELETE or READ
--   events           int64      rows recorded in that hour
--   usual            float64    rows that are usual at that hour
--   times_usual      float64    events divided by usual; null when nothing is usual
--   top_user_id      string     who did most of them; null for events without an actor
--   top_user_events  int64      how many of them
WITH compared AS MATERIALIZED (
    -- From the first row recorded on: before it there was no trail, not nothing to do.
    SELECT
        bucket_at,
        extract(hour FROM bucket_at AT TIME ZONE 'UTC') AS hour_of_day,
        extract(isodow FROM bucket_at AT TIME ZONE 'UTC') >= 6 AS weekend
    FROM generate_series(
        date_bin(
            interval '1 hour',
            greatest(
                CAST(:since AS timestamptz) - interval '28 days',
                (SELECT min(created_at) FROM audit.audit_logs)
            ),
            CAST('2000-01-01T00:00Z' AS timestamptz)
        ),
        CAST(:until AS timestamptz),
        interval '1 hour'
    ) AS hours (bucket_at)
    WHERE bucket_at < CAST(:until AS timestamptz)
), counted AS MATERIALIZED (
    SELECT bucket_at, hour_of_day, weekend, entity_type, action, events
    FROM compared
    CROSS JOIN LATERAL (
        SELECT entity_type, action, count(*) AS events
        FROM audit.audit_logs
        WHERE created_at >= bucket_at
            AND created_at < least(bucket_at + interval '1 hour', CAST(:until AS timestamptz))
            AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
            AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
            AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
        GROUP BY entity_type, action
    ) AS in_hour
), candidates AS MATERIALIZED (
    SELECT *
    FROM counted
    WHERE events >= 10 AND bucket_at >= date_bin(
        interval '1 hour',
        CAST(:since AS timestamptz),
        CAST('2000-01-01T00:00Z' AS timestamptz)
    )
), samples AS MATERIALIZED (
    SELECT
        kinds.entity_type,
        kinds.action,
        kinds.hour_of_day,
        kinds.weekend,
        coalesce(counted.events, 0) AS events
    FROM (SELECT DISTINCT entity_type, action, hour_of_day, weekend FROM candidates) AS kinds
    JOIN compared USING (hour_of_day, weekend)
    LEFT JOIN counted USING (bucket_at, entity_type, action)
), medians AS MATERIALIZED (
    SELECT
        entity_type,
        action,
        hour_of_day,
        weekend,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY events) AS usual
    FROM samples
    GROUP BY entity_type, action, hour_of_day, weekend
), spreads AS MATERIALIZED (
    SELECT
        entity_type,
        action,
        hour_of_day,
        weekend,
        usual,
        greatest(
            1.4826 * percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(events - usual)),
            sqrt(usual),
            1
        ) AS spread
    FROM samples
    JOIN medians USING (entity_type, action, hour_of_day, weekend)
    GROUP BY entity_type, action, hour_of_day, weekend, usual
)
SELECT
    bucket_at,
    CAST(entity_type AS text) AS entity_type,
    CAST(action AS text) AS action,
    candidates.events,
    usual,
    candidates.events / nullif(usual, 0) AS times_usual,
    top.user_id AS top_user_id,
    top.events AS top_user_events
FROM candidates
JOIN spreads USING (entity_type, action, hour_of_day, weekend)
CROSS JOIN LATERAL (
    SELECT user_id, count(*) AS events
    FROM audit.audit_logs AS logs
    WHERE logs.created_at >= candidates.bucket_at
        AND logs.created_at < candidates.bucket_at + interval '1 hour'
        AND logs.created_at < CAST(:until AS timestamptz)
        AND logs.entity_type = candidates.entity_type
        AND logs.action = candidates.action
        AND (CAST(:user_id AS uuid) IS NULL OR logs.user_id = CAST(:user_id AS uuid))
    GROUP BY user_id
    ORDER BY count(*) DESC, user_id
    LIMIT 1
) AS top
WHERE candidates.events >= 3 * usual
    AND candidates.events >= usual + 6 * spread
ORDER BY (candidates.events - usual) / spread DESC, bucket_at, 2, 3;
