-- How long callers waited for, held and dialled connections in the window, a row per bucket.
--
-- Only buckets that have something are there. Readings are differenced as in pool_history.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -f pool_durations.sql
--
-- Columns
--   database   string  postgres or mongodb
--   process    string  application, host and pid
--   subject    string  wait, hold or dial
--   bucket     int64   number of the bucket, from 1; its bounds are `fwdb.stores.BOUNDS_MS`
--   durations  int64   waits, holds or dials of so long
WITH processes AS (
    SELECT DISTINCT process
    FROM monitoring.readings
    WHERE
        read_at >= CAST(:since AS timestamptz)
        AND read_at <= CAST(:until AS timestamptz)
),

samples AS (
    SELECT
        r.reading_id,
        r.read_at,
        r.process,
        p.database,
        s.subject,
        s.counts
    FROM monitoring.pool_samples AS p
    JOIN monitoring.readings AS r USING (reading_id)
    JOIN processes AS c ON c.process = r.process
    CROSS JOIN LATERAL (
        VALUES ('wait', p.wait_counts), ('hold', p.hold_counts), ('dial', p.dial_counts)
    ) AS s (subject, counts)
    WHERE r.read_at <= CAST(:until AS timestamptz)
),

pairs AS (
    SELECT
        s.*,
        lag(counts) OVER (
            PARTITION BY process, database, subject ORDER BY read_at, reading_id
        ) AS counts_before
    FROM samples AS s
),

buckets AS (
    SELECT
        p.database,
        p.process,
        p.subject,
        b.bucket,
        b.now_count,
        -- A smaller count than before is another process with the pid of an earlier one.
        CASE
            WHEN bool_or(b.now_count < b.before_count) OVER each_pair THEN 0
            ELSE coalesce(b.before_count, 0)
        END AS before_count
    FROM pairs AS p
    CROSS JOIN LATERAL unnest(p.counts, p.counts_before)
    WITH ORDINALITY AS b (now_count, before_count, bucket)
    WHERE p.read_at >= CAST(:since AS timestamptz)
    WINDOW each_pair AS (PARTITION BY p.reading_id, p.database, p.subject)
)

SELECT
    database,
    process,
    subject,
    bucket,
    CAST(sum(now_count - before_count) AS bigint) AS durations
FROM buckets
GROUP BY 1, 2, 3, 4
HAVING sum(now_count - before_count) > 0
ORDER BY 1, 2, 3, 4;
