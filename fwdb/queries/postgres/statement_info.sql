-- Whether pg_stat_statements lost entries, and what the server counted beside it; one row.
--
-- The counters of the extension are those of the whole server, the others of this database.
--
--   psql "$FWDB_POSTGRES_URL" -f statement_info.sql
--
-- Columns
--   dealloc            int64      times the rarest entries were dropped to make room
--   stats_reset        timestamp  last time all entries were removed
--   transactions       int64      transactions that ended, well or not
--   active_ms          float64    time in which sessions worked on a statement
--   database_reset_at  timestamp  begin of these two; null if they were never reset
SELECT
    i.dealloc,
    i.stats_reset,
    d.xact_commit + d.xact_rollback AS transactions,
    d.active_time AS active_ms,
    d.stats_reset AS database_reset_at
FROM pg_stat_statements_info AS i
CROSS JOIN pg_stat_database AS d
WHERE d.datname = current_database();
