-- What active sessions of clients do at this moment, counted by what they wait for.
--
-- One look says little; `db.monitor.wait_events()` takes many and adds them up.
--
--   psql "$FWDB_POSTGRES_URL" -f wait_events.sql
--
-- Columns
--   wait_type   string   Lock, LWLock, IO, Client, …; CPU when the session waits for nothing
--   wait_event  string   what exactly, such as transactionid; empty for CPU
--   is_waiting  boolean  it waits for another session (a lock, a latch or a buffer)
--   sessions    int64    active sessions
SELECT
    coalesce(wait_event_type, 'CPU') AS wait_type,
    coalesce(wait_event, '') AS wait_event,
    coalesce(wait_event_type IN ('Lock', 'LWLock', 'BufferPin', 'Buffer'), false) AS is_waiting,
    count(*) AS sessions
FROM pg_stat_activity
WHERE
    state = 'active'
    AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()
    AND application_name NOT LIKE 'fwdb-monitor%'
GROUP BY 1, 2, 3
ORDER BY 4 DESC, 1, 2;
