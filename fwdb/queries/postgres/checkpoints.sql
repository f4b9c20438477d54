-- Checkpoints since the counters began; one row. Before PostgreSQL 17 server_facts has them.
--
-- Needs PostgreSQL 17.
--
--   psql "$FWDB_POSTGRES_URL" -f checkpoints.sql
--
-- Columns
--   checkpoints_timed      int64      checkpoints at their time
--   checkpoints_requested  int64      those that were asked for, mostly by much writing
--   checkpoints_reset      timestamp  begin of the counters
SELECT
    num_timed AS checkpoints_timed,
    num_requested AS checkpoints_requested,
    stats_reset AS checkpoints_reset
FROM pg_stat_checkpointer;
