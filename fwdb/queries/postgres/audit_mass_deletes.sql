-- Many deletions of one entity type by one user, or by nobody known, within minutes or at once.
--
-- At least 10 within 15 minutes, which a transaction that removes so many is as well, and 3 times the
-- most that anybody removed of that type in any 15 minutes of the 28 days before. What a user made
-- themself counts a tenth, so that clearing out and leaving is no alarm and losing a hundred is; it
-- is that of others when the trail does not say who made it. A gap of 15 minutes ends it. Usual is
-- that most.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -f audit_mass_deletes.sql
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
WITH deletions AS MATERIALIZED (
    SELECT
        log.*,
        sum(CASE WHEN made.by_whom = CAST(log.user_id AS text) THEN 0.1 ELSE 1 END) OVER (
            PARTITION BY log.entity_type, log.user_id
            ORDER BY log.created_at
            RANGE BETWEEN interval '15 minutes' PRECEDING AND CURRENT ROW
        ) AS weighed,
        count(*) OVER (
            PARTITION BY log.entity_type, log.user_id
            ORDER BY log.created_at
            RANGE BETWEEN interval '15 minutes' PRECEDING AND CURRENT ROW
        ) AS counted,
        log.created_at - lag(log.created_at) OVER (
            PARTITION BY log.entity_type, log.user_id ORDER BY log.created_at
        ) <= interval '15 minutes' AS goes_on
    FROM (
        -- A database that nobody migrated lacks these columns.
        VALUES (CAST(NULL AS bigint), CAST(NULL AS text))
    ) AS missing (transaction_id, origin)
    CROSS JOIN LATERAL (
        SELECT
            CAST(entity_type AS text),
            user_id,
            created_at,
            -- What an application wrote down may be of another transaction than the change.
            CASE origin WHEN 'trigger' THEN transaction_id END,
            entity_id
        FROM audit.audit_logs
        WHERE created_at >= CAST(:since AS timestamptz) - interval '673 hours'
            AND created_at < CAST(:until AS timestamptz)
            AND CAST(action AS text) = 'DELETE'
    ) AS log (entity_type, user_id, created_at, transaction_no, entity_id)
    LEFT JOIN (
        SELECT entity_type, entity_id, min(CAST(user_id AS text)) AS by_whom
        FROM audit.audit_logs
        WHERE CAST(action AS text) = 'CREATE' AND user_id IS NOT NULL
        GROUP BY entity_type, entity_id
    ) AS made
        ON made.entity_type = log.entity_type
        AND made.entity_id = log.entity_id
), numbered AS (
    SELECT
        deletions.*,
        count(*) FILTER (WHERE goes_on IS NOT TRUE) OVER (
            PARTITION BY entity_type, user_id ORDER BY created_at
        ) AS episode
    FROM deletions
), episodes AS MATERIALIZED (
    SELECT
        entity_type,
        user_id,
        min(created_at) AS started_at,
        max(created_at) AS ended_at,
        count(*) AS events,
        max(weighed) AS weighed,
        max(counted) AS counted,
        CASE WHEN count(transaction_no) = count(*) AND min(transaction_no) = max(transaction_no)
            THEN min(transaction_no)
        END AS transaction_no
    FROM numbered
    GROUP BY entity_type, user_id, episode
)
SELECT
    'mass_delete' AS kind,
    episodes.started_at,
    episodes.ended_at,
    episodes.user_id,
    CAST(NULL AS text) AS db_user,
    episodes.entity_type,
    'DELETE' AS action,
    episodes.transaction_no AS transaction_id,
    episodes.events,
    CAST(usual.counted AS double precision) AS usual
FROM episodes
CROSS JOIN LATERAL (
    SELECT
        coalesce(max(earlier.weighed), 0) AS weighed,
        coalesce(max(earlier.counted), 0) AS counted
    FROM episodes AS earlier
    WHERE earlier.entity_type = episodes.entity_type
        AND earlier.started_at < episodes.started_at
        AND earlier.started_at >= episodes.started_at - interval '672 hours'
) AS usual
WHERE episodes.started_at >= CAST(:since AS timestamptz)
    AND episodes.weighed >= 10
    AND episodes.weighed >= 3 * usual.weighed
ORDER BY started_at DESC, user_id;
