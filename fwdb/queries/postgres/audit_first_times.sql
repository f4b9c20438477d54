-- Users who did much of something that they had never done, or much on the day they first came.
--
-- new_kind: at least 20 rows within an hour of the first of that entity type and action, by a user
-- whom the trail has known for 28 days by at least 50 rows of other kinds. new_actor: at least 50 rows
-- within 24 hours of the first, 10 times the median of all who came before, at least 10 of them, to
-- a trail that is 28 days old. The figures are those of the demonstration year, in which people make
-- up to 20 rows a day and leave in a day of up to 15 removals an hour.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -f audit_first_times.sql
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
WITH kinds AS MATERIALIZED (
    SELECT
        user_id,
        CAST(entity_type AS text) AS entity_type,
        CAST(action AS text) AS action,
        min(created_at) AS first_at
    FROM audit.audit_logs AS log
    WHERE user_id IS NOT NULL AND created_at < CAST(:until AS timestamptz)
    GROUP BY user_id, log.entity_type, log.action
), actors AS MATERIALIZED (
    SELECT user_id, min(first_at) AS first_at
    FROM kinds
    GROUP BY user_id
), newcomers AS MATERIALIZED (
    SELECT actors.user_id, actors.first_at, day.events, day.last_at
    FROM actors
    CROSS JOIN LATERAL (
        SELECT count(*) AS events, max(created_at) AS last_at
        FROM audit.audit_logs AS log
        WHERE log.user_id = actors.user_id
            AND log.created_at >= actors.first_at
            AND log.created_at < least(
                actors.first_at + interval '24 hours', CAST(:until AS timestamptz)
            )
    ) AS day
    -- Each newcomer of the window is compared with those before, each of whom is counted once.
    WHERE EXISTS (SELECT FROM actors AS a WHERE a.first_at >= CAST(:since AS timestamptz))
)
SELECT
    'new_kind' AS kind,
    kinds.first_at AS started_at,
    hour.last_at AS ended_at,
    kinds.user_id,
    CAST(NULL AS text) AS db_user,
    kinds.entity_type,
    kinds.action,
    CAST(NULL AS bigint) AS transaction_id,
    hour.events,
    CAST(0 AS double precision) AS usual
FROM kinds
JOIN actors
    ON actors.user_id = kinds.user_id
    AND actors.first_at < kinds.first_at - interval '28 days'
CROSS JOIN LATERAL (
    SELECT count(*) AS events, max(created_at) AS last_at
    FROM audit.audit_logs AS log
    WHERE log.user_id = kinds.user_id
        AND log.created_at >= kinds.first_at
        AND log.created_at < least(
            kinds.first_at + interval '1 hour', CAST(:until AS timestamptz)
        )
        AND log.entity_type = kinds.entity_type
        AND CAST(log.action AS text) = kinds.action
) AS hour
WHERE kinds.first_at >= CAST(:since AS timestamptz)
    AND hour.events >= 20
    AND (
        SELECT count(*)
        FROM (
            SELECT
            FROM audit.audit_logs AS log
            WHERE log.user_id = kinds.user_id AND log.created_at < kinds.first_at
            LIMIT 50
        ) AS earlier
    ) = 50
UNION ALL
SELECT
    'new_actor',
    newcomers.first_at,
    newcomers.last_at,
    newcomers.user_id,
    CAST(NULL AS text),
    CAST(NULL AS text),
    CAST(NULL AS text),
    CAST(NULL AS bigint),
    newcomers.events,
    others.usual
FROM newcomers
CROSS JOIN LATERAL (
    SELECT
        percentile_cont(0.5) WITHIN GROUP (ORDER BY earlier.events) AS usual,
        count(*) AS actors
    FROM newcomers AS earlier
    WHERE earlier.first_at < newcomers.first_at
) AS others
WHERE newcomers.first_at >= CAST(:since AS timestamptz)
    AND newcomers.first_at >= (SELECT min(first_at) FROM actors) + interval '28 days'
    AND newcomers.events >= 50
    AND others.actors >= 10
    AND newcomers.events >= 10 * others.usual
ORDER BY started_at DESC, user_id, entity_type, action;
