-- Hours in which a user did much at a time of day at which they hardly ever do anything.
--
-- At least 10 rows in the hour (a few are an evening's work), of a user with at least 50 in the 90
-- days before (else their hours are not known), of which less than 1 % were in that hour of the day
-- or those beside it, in UTC. The 12 hours before do not count: a night has many hours. Usual is
-- rows per day in these three hours of the day.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -f audit_odd_hours.sql
--
-- Columns
--   kind            string     what is odd
--   started_at      timestamp  the first of the rows
--   ended_at        timestamp  the last of the rows
--   user_id         string     who did it; null when not known
--   db_user         string     who had logged in to the database; null where it is no matter
--   entity_type     string     null where it is no matter
--   action          string     null where it is no matter
--   transaction_id  Int64      when all was one transaction and that is known
--   events          int64      how many rows
--   usual           float64    how many are usual
WITH seen AS MATERIALIZED (
    SELECT
        user_id,
        date_bin(interval '1 hour', created_at, CAST('2000-01-01T00:00Z' AS timestamptz)) AS hour_at,
        min(created_at) AS first_at,
        max(created_at) AS last_at,
        count(*) AS events
    FROM audit.audit_logs
    WHERE created_at >= CAST(:since AS timestamptz) - interval '2160 hours'
        AND created_at < CAST(:until AS timestamptz)
        AND user_id IS NOT NULL
    GROUP BY 1, 2
), busy AS (
    SELECT * FROM seen WHERE events >= 10 AND first_at >= CAST(:since AS timestamptz)
), judged AS (
    SELECT
        busy.user_id,
        busy.hour_at,
        busy.first_at,
        busy.last_at,
        busy.events,
        sum(before.events) AS known,
        coalesce(sum(before.events) FILTER (
            WHERE abs(extract(hour FROM before.hour_at AT TIME ZONE 'UTC')
                - extract(hour FROM busy.hour_at AT TIME ZONE 'UTC')) IN (0, 1, 23)
        ), 0) AS near
    FROM busy
    JOIN seen AS before
        ON before.user_id = busy.user_id
        AND before.hour_at < busy.hour_at - interval '12 hours'
        AND before.hour_at >= busy.hour_at - interval '2160 hours'
    GROUP BY busy.user_id, busy.hour_at, busy.first_at, busy.last_at, busy.events
)
SELECT
    'odd_hour' AS kind,
    first_at AS started_at,
    last_at AS ended_at,
    user_id,
    CAST(NULL AS text) AS db_user,
    CAST(NULL AS text) AS entity_type,
    CAST(NULL AS text) AS action,
    CAST(NULL AS bigint) AS transaction_id,
    events,
    CAST(near / 90 AS double precision) AS usual
FROM judged
WHERE known >= 50 AND 100 * near < known
ORDER BY started_at DESC, user_id;
