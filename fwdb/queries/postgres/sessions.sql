-- Client sessions of the server, counted by database, user, application and state.
--
-- The session that asks is left out, as are the server's own processes and replicas. A session
-- waits when it is active and wants a lock, a latch or a buffer: an idle one waits for nobody.
--
--   psql "$FWDB_POSTGRES_URL" -f sessions.sql
--
-- Columns
--   database        string   postgres
--   database_name   string   database the sessions are connected to
--   user_name       string   role they logged in as
--   application     string   application_name; empty if it gave none
--   state           string   active, idle, idle in transaction, …; hidden without permission
--   sessions        int64    sessions
--   oldest_seconds  float64  longest time that one of them is in this state
--   waiting         Int64    of these, active and waiting inside the server
--   blocked         Int64    of these, waiting for a lock that another session holds
SELECT
    'postgres' AS database,
    coalesce(datname, '') AS database_name,
    coalesce(usename, '') AS user_name,
    coalesce(application_name, '') AS application,
    coalesce(state, 'hidden') AS state,
    count(*) AS sessions,
    CAST(
        max(extract(EPOCH FROM clock_timestamp() - state_change)) AS double precision
    ) AS oldest_seconds,
    count(*) FILTER (
        WHERE state = 'active' AND wait_event_type IN ('Lock', 'LWLock', 'BufferPin', 'Buffer')
    ) AS waiting,
    count(*) FILTER (
        WHERE CASE
            WHEN wait_event_type = 'Lock' THEN cardinality(pg_blocking_pids(pid)) > 0
            ELSE false
        END
    ) AS blocked
FROM pg_stat_activity
WHERE
    pid <> pg_backend_pid()
    -- Of sessions of other roles even the type is hidden; background processes have no database.
    AND (backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL))
GROUP BY 1, 2, 3, 4, 5
ORDER BY 6 DESC, 1, 2, 3, 4, 5;
