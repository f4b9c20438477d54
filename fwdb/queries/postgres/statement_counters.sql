-- One entry of pg_stat_statements of this database, counted since the entry began; no text.
--
-- Entries of other roles that this role may not see are one row with query_id 0. Reading the
-- texts too would make this several times as dear.
--
--   psql "$FWDB_POSTGRES_URL" -f statement_counters.sql
--
-- Columns
--   user_id      int64      role that ran it
--   database_id  int64      this database
--   toplevel     boolean    sent by a client; false inside a function
--   query_id     int64      identity of the statement without its constants
--   calls        int64      counter, executions
--   total_ms     float64    counter, time in the server, without the network
--   squares_ms2  float64    counter, sum of the squared times
--   row_count    int64      counter, rows returned or changed
--   hit_blocks   int64      counter, blocks found in shared buffers
--   read_blocks  int64      counter, blocks read from outside shared buffers
--   read_ms      float64    counter, time of these reads; 0 also when track_io_timing is off
--   temp_blocks  int64      counter, blocks written to temporary files
--   wal_bytes    int64      counter, bytes of write-ahead log
--   plan_ms      float64    counter, time to plan; 0 also when pg_stat_statements.track_planning is off
--   stats_since  timestamp  begin of the entry; null before PostgreSQL 17
SELECT
    entry.user_id,
    entry.database_id,
    entry.toplevel,
    entry.query_id,
    CAST(sum(entry.calls) AS bigint) AS calls,
    sum(entry.total_exec_time) AS total_ms,
    -- The deviation is that of the population, so the squares come back exactly.
    sum(entry.calls * (entry.stddev_exec_time ^ 2 + entry.mean_exec_time ^ 2)) AS squares_ms2,
    CAST(sum(entry.rows) AS bigint) AS row_count,
    CAST(sum(entry.shared_blks_hit) AS bigint) AS hit_blocks,
    CAST(sum(entry.shared_blks_read) AS bigint) AS read_blocks,
    sum(entry.read_ms) AS read_ms,
    CAST(sum(entry.temp_blks_written) AS bigint) AS temp_blocks,
    CAST(sum(entry.wal_bytes) AS bigint) AS wal_bytes,
    sum(entry.total_plan_time) AS plan_ms,
    CASE WHEN entry.query_id <> 0 THEN min(entry.stats_since) END AS stats_since
FROM (
    -- A column that this version of the extension lacks is taken from here: inside the LATERAL
    -- query the nearest name wins, so these are the fallback.
    SELECT
        CAST(NULL AS double precision) AS shared_blk_read_time,
        CAST(NULL AS double precision) AS blk_read_time,
        CAST(NULL AS timestamptz) AS stats_since
) AS absent
CROSS JOIN LATERAL (
    SELECT
        CAST(userid AS bigint) AS user_id,
        CAST(dbid AS bigint) AS database_id,
        toplevel,
        coalesce(queryid, 0) AS query_id,
        calls,
        total_exec_time,
        mean_exec_time,
        stddev_exec_time,
        rows,
        shared_blks_hit,
        shared_blks_read,
        coalesce(shared_blk_read_time, blk_read_time, 0) AS read_ms,
        temp_blks_written,
        wal_bytes,
        total_plan_time,
        stats_since
    FROM pg_stat_statements(false)
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS entry
GROUP BY entry.user_id, entry.database_id, entry.toplevel, entry.query_id;
