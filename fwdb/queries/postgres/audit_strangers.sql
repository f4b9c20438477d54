-- Rows whose claimed actor does not fit what the server knows.
--
-- unknown_actor: a user id that no account has. new_login: a database login that wrote for the first
-- time, in a trail with at least 50 rows of known logins in the 90 days before. other_login: rows in
-- the name of a user by a login that never wrote for them before, but for others, when at least 20
-- rows of that user in the 90 days before came by other logins. missing_actor: changes without an
-- actor, at least 10 and 3 times what is usual, of an entity type and login of whose changes in the
-- 90 days before, at least 50, less than 1 % had none. Usual is how many of as many rows there were
-- then.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '7 days'" -v until="now()" \
--     -f audit_strangers.sql
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
WITH groups AS MATERIALIZED (
    SELECT
        user_id,
        entity_type,
        action,
        log.login AS db_user,
        created_at >= CAST(:since AS timestamptz) AS inside,
        min(created_at) AS started_at,
        max(created_at) AS ended_at,
        count(*) AS events
    FROM (
        -- A database that nobody migrated lacks this column.
        VALUES (CAST(NULL AS text))
    ) AS missing (db_user)
    CROSS JOIN LATERAL (
        SELECT
            user_id,
            CAST(entity_type AS text) AS entity_type,
            CAST(action AS text) AS action,
            created_at,
            db_user
        FROM audit.audit_logs
        WHERE created_at >= CAST(:since AS timestamptz) - interval '2160 hours'
            AND created_at < CAST(:until AS timestamptz)
            -- How documents were before they were followed is no event.
            AND metadata IS DISTINCT FROM 'baseline'
    ) AS log (user_id, entity_type, action, created_at, login)
    GROUP BY 1, 2, 3, 4, 5
), logins AS (
    SELECT
        db_user,
        min(started_at) AS started_at,
        max(ended_at) AS ended_at,
        coalesce(sum(events) FILTER (WHERE inside), 0) AS events,
        coalesce(sum(events) FILTER (WHERE NOT inside), 0) AS before
    FROM groups
    WHERE db_user IS NOT NULL
    GROUP BY db_user
), pairs AS (
    SELECT
        user_id,
        db_user,
        min(started_at) AS started_at,
        max(ended_at) AS ended_at,
        coalesce(sum(events) FILTER (WHERE inside), 0) AS events,
        coalesce(sum(events) FILTER (WHERE NOT inside), 0) AS before
    FROM groups
    WHERE db_user IS NOT NULL AND user_id IS NOT NULL
    GROUP BY user_id, db_user
), actorless AS (
    SELECT
        entity_type,
        db_user,
        min(started_at) FILTER (WHERE inside AND user_id IS NULL) AS started_at,
        max(ended_at) FILTER (WHERE inside AND user_id IS NULL) AS ended_at,
        coalesce(sum(events) FILTER (WHERE inside AND user_id IS NULL), 0) AS events,
        sum(events) FILTER (WHERE inside) AS all_inside,
        coalesce(sum(events) FILTER (WHERE NOT inside AND user_id IS NULL), 0) AS before,
        sum(events) FILTER (WHERE NOT inside) AS all_before
    FROM groups
    WHERE action <> 'READ'
    GROUP BY entity_type, db_user
)
SELECT
    'unknown_actor' AS kind,
    min(groups.started_at) AS started_at,
    max(groups.ended_at) AS ended_at,
    groups.user_id,
    groups.db_user,
    CAST(NULL AS text) AS entity_type,
    CAST(NULL AS text) AS action,
    CAST(NULL AS bigint) AS transaction_id,
    CAST(sum(groups.events) AS bigint) AS events,
    CAST(0 AS double precision) AS usual
FROM groups
WHERE groups.inside
    AND groups.user_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM shared.users WHERE users.id = groups.user_id)
GROUP BY groups.user_id, groups.db_user
UNION ALL
SELECT
    'new_login', started_at, ended_at, CAST(NULL AS uuid), db_user, CAST(NULL AS text),
    CAST(NULL AS text), CAST(NULL AS bigint), CAST(events AS bigint), 0
FROM logins
WHERE events > 0 AND before = 0 AND (SELECT sum(before) FROM logins) >= 50
UNION ALL
SELECT
    'other_login', pairs.started_at, pairs.ended_at, pairs.user_id, pairs.db_user,
    CAST(NULL AS text), CAST(NULL AS text), CAST(NULL AS bigint), CAST(pairs.events AS bigint), 0
FROM pairs
JOIN logins ON logins.db_user = pairs.db_user AND logins.before > 0
WHERE pairs.events > 0
    AND pairs.before = 0
    AND (SELECT sum(p.before) FROM pairs AS p WHERE p.user_id = pairs.user_id) >= 20
UNION ALL
SELECT
    'missing_actor', started_at, ended_at, CAST(NULL AS uuid), db_user, entity_type,
    CAST(NULL AS text), CAST(NULL AS bigint), CAST(events AS bigint),
    CAST(all_inside * before / all_before AS double precision)
FROM actorless
WHERE events >= 10
    AND all_before >= 50
    AND 100 * before < all_before
    AND events >= 3 * all_inside * before / all_before
ORDER BY started_at DESC, kind, user_id, db_user, entity_type;
