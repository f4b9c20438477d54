-- The entries of pg_stat_statements as one stored reading has them.
--
--   psql "$FWDB_POSTGRES_URL" -v reading_id=1 -f stored_statements.sql
--
-- Columns
--   user_id      int64      role that ran it
--   database_id  int64      database it ran in
--   toplevel     boolean    sent by a client; false inside a function
--   query_id     int64      identity of the statement; 0 for those hidden from the reader
--   calls        int64      executions since the entry began
--   total_ms     float64    time in the server
--   squares_ms2  float64    sum of the squared times
--   row_count    int64      rows returned or changed
--   hit_blocks   int64      blocks found in shared buffers
--   read_blocks  int64      blocks read from outside shared buffers
--   read_ms      float64    time of these reads; 0 also when track_io_timing was off
--   temp_blocks  int64      blocks written to temporary files
--   wal_bytes    int64      bytes of write-ahead log
--   plan_ms      float64    time to plan; 0 also when track_planning was off
--   stats_since  timestamp  begin of the entry; null before PostgreSQL 17
SELECT
    user_id,
    database_id,
    toplevel,
    query_id,
    calls,
    total_ms,
    squares_ms2,
    row_count,
    hit_blocks,
    read_blocks,
    read_ms,
    temp_blocks,
    wal_bytes,
    plan_ms,
    stats_since
FROM monitoring.statement_samples
WHERE reading_id = CAST(:reading_id AS bigint);
