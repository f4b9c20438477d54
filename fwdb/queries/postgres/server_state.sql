-- The least that a server which is well answers; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f server_state.sql
--
-- Columns
--   version      string   such as 18.6
--   in_recovery  boolean  a replica, or a server that still starts: it takes no writes
SELECT
    split_part(current_setting('server_version'), ' ', 1) AS version,
    pg_is_in_recovery() AS in_recovery;
