-- The blocking tree, one row per session that waits for a lock which another session holds.
--
-- A root waits for nobody itself, so it has no row of its own; each row names the root above it.
-- A session that several others block is shown under one that waits for nobody, if it can be.
--
--   psql "$FWDB_POSTGRES_URL" -f blocking.sql
--
-- Columns
--   pid                       int64    waiting session
--   database_name             string   database it is connected to
--   user_name                 string   its role
--   application               string   its application_name; empty if it gave none
--   waited_seconds            float64  time it has waited for the lock
--   lock_mode                 string   lock that it wants, such as ShareLock
--   relation                  string   table of the lock; missing when it is of no table
--   blocker_pid               int64    session it waits for; 0 is a prepared transaction
--   blockers                  int64    sessions that it waits for in all
--   depth                     int64    1 waits for a root, 2 for a session of depth 1, …
--   root_pid                  int64    session that the whole chain waits for
--   root_user_name            string   its role; missing for a prepared transaction
--   root_application          string   its application_name
--   root_state                string   what it does, such as idle in transaction
--   root_state_seconds        float64  since when it does so
--   root_transaction_seconds  float64  since its transaction began
--   statement                 string   statement that waits, values included
--   root_statement            string   last statement of the root, values included
WITH RECURSIVE waiting AS MATERIALIZED (
    SELECT DISTINCT ON (l.pid)
        l.pid,
        l.mode,
        l.relation,
        l.database,
        l.waitstart,
        pg_blocking_pids(l.pid) AS blockers
    FROM pg_locks AS l
    WHERE NOT l.granted
    ORDER BY l.pid, l.waitstart
),

-- Behind a lock everybody waits for everybody ahead: one parent each, or the paths never end.
parents AS (
    SELECT DISTINCT ON (w.pid)
        w.pid,
        b.blocker_pid,
        b.blocker_pid NOT IN (SELECT pid FROM waiting) AS is_root
    FROM waiting AS w
    CROSS JOIN unnest(w.blockers) WITH ORDINALITY AS b (blocker_pid, place)
    ORDER BY w.pid, is_root DESC, b.place
),

placed AS (
    SELECT pid, blocker_pid, blocker_pid AS root_pid, 1 AS depth
    FROM parents
    WHERE is_root
    UNION ALL
    -- Sessions that wait for each other have no root; the server ends one of them in a moment.
    SELECT c.pid, c.blocker_pid, p.root_pid, p.depth + 1
    FROM placed AS p
    JOIN parents AS c ON c.blocker_pid = p.pid AND NOT c.is_root
)

SELECT
    p.pid,
    coalesce(a.datname, '') AS database_name,
    coalesce(a.usename, '') AS user_name,
    coalesce(a.application_name, '') AS application,
    -- For the first moment of a wait its start is not known yet.
    CAST(extract(
        EPOCH FROM clock_timestamp() - coalesce(w.waitstart, a.query_start)
    ) AS double precision) AS waited_seconds,
    w.mode AS lock_mode,
    CASE
        WHEN w.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            THEN CAST(CAST(w.relation AS regclass) AS text)
    END AS relation,
    p.blocker_pid,
    cardinality(w.blockers) AS blockers,
    p.depth,
    p.root_pid,
    CAST(r.usename AS text) AS root_user_name,
    r.application_name AS root_application,
    r.state AS root_state,
    CAST(extract(EPOCH FROM clock_timestamp() - r.state_change) AS double precision)
    AS root_state_seconds,
    CAST(extract(EPOCH FROM clock_timestamp() - r.xact_start) AS double precision)
    AS root_transaction_seconds,
    a.query AS statement,
    r.query AS root_statement
FROM placed AS p
JOIN waiting AS w USING (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = p.pid
LEFT JOIN pg_stat_activity AS r ON r.pid = p.root_pid
ORDER BY p.root_pid, p.depth, waited_seconds DESC, p.pid;
