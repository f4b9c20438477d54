-- Counters of this database since its statistics were last reset; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f database_counters.sql
--
-- Columns
--   read_at            timestamp  the server's clock
--   server_started_at  timestamp  start of the server
--   stats_reset        timestamp  begin of the counters; null if they were never reset
--   io_timed           boolean    track_io_timing is on
--   hit_blocks         int64      counter, blocks found in shared buffers
--   read_blocks        int64      counter, blocks read from outside them, maybe from the system's cache
--   read_ms            float64    counter, time of these reads; 0 also when track_io_timing is off
--   commits            int64      counter, transactions committed
--   rollbacks          int64      counter, transactions rolled back
--   deadlocks          int64      counter, deadlocks found
--   temp_bytes         int64      counter, bytes written to temporary files
SELECT
    clock_timestamp() AS read_at,
    pg_postmaster_start_time() AS server_started_at,
    stats_reset,
    CAST(current_setting('track_io_timing') AS boolean) AS io_timed,
    blks_hit AS hit_blocks,
    blks_read AS read_blocks,
    blk_read_time AS read_ms,
    xact_commit AS commits,
    xact_rollback AS rollbacks,
    deadlocks,
    temp_bytes
FROM pg_stat_database
WHERE datname = current_database();
