-- Hours in which far more was recorded than is usual for that hour, largest excess first.
--
-- Usual is the median of the same hour (UTC) on the days up to 28 before and after, working days and
-- weekends apart, hours with nothing counted as nothing; what comes after `until` is not looked at.
-- An hour is far above it with at least 10 events, 3 times the usual, and 6 spreads over it. The
-- spread is 1.4826 times the median absolute deviation (which is the standard deviation of a normal
-- distribution), at least the square root of the usual (that of counts by chance), at least 1.
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
WITH hours AS MATERIALIZED (
    SELECT
        bucket_at,
        hour_of_day,
        weekend,
        -- With how many hours this one is compared, itself included. The distance is in hours and
        -- not in days, which some time zones make longer or shorter.
        count(*) OVER (
            PARTITION BY hour_of_day, weekend
            ORDER BY bucket_at
            RANGE BETWEEN interval '672 hours' PRECEDING AND interval '672 hours' FOLLOWING
        ) AS hours_around
    FROM generate_series(
        date_bin(
            interval '1 hour',
            greatest(
                CAST(:since AS timestamptz) - interval '672 hours',
                -- Before the first row there was no trail, which is not the same as no events.
                (SELECT min(created_at) FROM audit.audit_logs)
            ),
            CAST('2000-01-01T00:00Z' AS timestamptz)
        ),
        CAST(:until AS timestamptz),
        interval '1 hour'
    ) AS generated (bucket_at)
    CROSS JOIN LATERAL (
        SELECT
            extract(hour FROM bucket_at AT TIME ZONE 'UTC') AS hour_of_day,
            extract(isodow FROM bucket_at AT TIME ZONE 'UTC') >= 6 AS weekend
    ) AS parts
    WHERE bucket_at < CAST(:until AS timestamptz)
), counted AS (
    SELECT
        hours.*,
        in_hour.*,
        -- Only hours with events are here: the others are added as zeros below.
        array_agg(events) OVER (
            PARTITION BY entity_type, action, hour_of_day, weekend
            ORDER BY bucket_at
            RANGE BETWEEN interval '672 hours' PRECEDING AND interval '672 hours' FOLLOWING
        ) AS events_around
    FROM hours
    CROSS JOIN LATERAL (
        SELECT entity_type, action, count(*) AS events
        FROM audit.audit_logs
        WHERE created_at >= bucket_at
            AND created_at < least(bucket_at + interval '1 hour', CAST(:until AS timestamptz))
            -- How documents were before they were followed is no event.
            AND metadata IS DISTINCT FROM 'baseline'
            AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
            AND (CAST(:user_id AS uuid) IS NULL OR user_id = CAST(:user_id AS uuid))
            AND (CAST(:action AS text) IS NULL OR CAST(action AS text) = CAST(:action AS text))
        GROUP BY entity_type, action
    ) AS in_hour
), judged AS MATERIALIZED (
    SELECT
        bucket_at,
        entity_type,
        action,
        events,
        all_around,
        (
            SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY one)
            FROM unnest(all_around) AS around (one)
        ) AS usual
    FROM counted
    CROSS JOIN LATERAL (
        SELECT events_around || array_fill(
            CAST(0 AS bigint), ARRAY[CAST(hours_around AS int) - cardinality(events_around)]
        ) AS all_around
    ) AS filled
    WHERE events >= 10 AND bucket_at >= date_bin(
        interval '1 hour',
        CAST(:since AS timestamptz),
        CAST('2000-01-01T00:00Z' AS timestamptz)
    )
)
SELECT
    bucket_at,
    CAST(entity_type AS text) AS entity_type,
    CAST(action AS text) AS action,
    judged.events,
    usual,
    judged.events / nullif(usual, 0) AS times_usual,
    top.user_id AS top_user_id,
    top.events AS top_user_events
FROM judged
CROSS JOIN LATERAL (
    SELECT greatest(
        1.4826 * percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(one - usual)), sqrt(usual), 1
    ) AS spread
    FROM unnest(all_around) AS around (one)
) AS spreads
CROSS JOIN LATERAL (
    SELECT user_id, count(*) AS events
    FROM audit.audit_logs AS logs
    WHERE logs.created_at >= judged.bucket_at
        AND logs.created_at < judged.bucket_at + interval '1 hour'
        AND logs.created_at < CAST(:until AS timestamptz)
        AND logs.entity_type = judged.entity_type
        AND logs.action = judged.action
        AND logs.metadata IS DISTINCT FROM 'baseline'
        AND (CAST(:user_id AS uuid) IS NULL OR logs.user_id = CAST(:user_id AS uuid))
    GROUP BY user_id
    ORDER BY count(*) DESC, user_id
    LIMIT 1
) AS top
WHERE judged.events >= 3 * usual
    AND judged.events >= usual + 6 * spread
ORDER BY (judged.events - usual) / spread DESC, bucket_at, 2, 3;
