-- Whether pg_stat_statements lost entries or was emptied; one row for the whole server.
--
--   psql "$FWDB_POSTGRES_URL" -f statement_info.sql
--
-- Columns
--   dealloc      int64      times the rarest entries were dropped to make room
--   stats_reset  timestamp  last time all entries were removed
SELECT
    dealloc,
    stats_reset
FROM pg_stat_statements_info;
