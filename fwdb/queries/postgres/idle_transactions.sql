-- Sessions that are idle inside a transaction, longest first.
--
-- They hold their locks and keep old row versions alive, and wait for their client.
--
--   psql "$FWDB_POSTGRES_URL" -f idle_transactions.sql
--
-- Columns
--   pid                  int64    session
--   database_name        string   database it is connected to
--   user_name            string   role
--   application          string   application_name; empty if it gave none
--   state                string   idle in transaction, or the same after an error
--   idle_seconds         float64  since its last statement ended
--   transaction_seconds  float64  since its transaction began
--   locks                int64    locks on tables and indexes that it holds
--   statement            string   last statement, values included
SELECT
    a.pid,
    coalesce(a.datname, '') AS database_name,
    coalesce(a.usename, '') AS user_name,
    coalesce(a.application_name, '') AS application,
    a.state,
    CAST(extract(EPOCH FROM clock_timestamp() - a.state_change) AS double precision)
    AS idle_seconds,
    CAST(extract(EPOCH FROM clock_timestamp() - a.xact_start) AS double precision)
    AS transaction_seconds,
    (
        SELECT count(*)
        FROM pg_locks AS l
        WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted
    ) AS locks,
    a.query AS statement
FROM pg_stat_activity AS a
WHERE
    a.state IN ('idle in transaction', 'idle in transaction (aborted)')
    AND a.pid <> pg_backend_pid()
ORDER BY idle_seconds DESC, a.pid;
