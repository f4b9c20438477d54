-- Blocks of tables and indexes found and read by one kind of access, of all databases together.
--
-- Bytes, not operations: PostgreSQL 18 reads many blocks at once and counts that as one.
--
-- Needs PostgreSQL 16.
--
--   psql "$FWDB_POSTGRES_URL" -f io_counters.sql
--
-- Columns
--   access       string     normal, bulkread (large scans), bulkwrite or vacuum
--   found_bytes  int64      counter, found in shared buffers
--   read_bytes   int64      counter, read from outside them, maybe from the system's cache
--   read_ms      float64    counter, time of these reads; 0 also when track_io_timing is off
--   block_bytes  int64      size of a block
--   io_timed     boolean    track_io_timing is on
--   stats_reset  timestamp  begin of the counters
SELECT
    io.access,
    CAST(sum(io.hits) * io.block_bytes AS bigint) AS found_bytes,
    CAST(sum(coalesce(io.read_bytes, io.reads * io.op_bytes)) AS bigint) AS read_bytes,
    coalesce(sum(io.read_time), 0) AS read_ms,
    io.block_bytes,
    CAST(current_setting('track_io_timing') AS boolean) AS io_timed,
    io.stats_reset
FROM (
    -- Columns that this version lacks are taken from here: inside the LATERAL query the nearest
    -- name wins. PostgreSQL 18 dropped op_bytes for read_bytes.
    SELECT
        CAST(NULL AS numeric) AS read_bytes,
        CAST(NULL AS bigint) AS op_bytes
) AS absent
CROSS JOIN LATERAL (
    SELECT
        context AS access,
        coalesce(hits, 0) AS hits,
        coalesce(reads, 0) AS reads,
        read_time,
        read_bytes,
        op_bytes,
        stats_reset,
        CAST(current_setting('block_size') AS bigint) AS block_bytes
    FROM pg_stat_io
    WHERE object = 'relation' AND context IN ('normal', 'bulkread', 'bulkwrite', 'vacuum')
) AS io
GROUP BY io.access, io.block_bytes, io.stats_reset
ORDER BY io.access;
