-- This server: version, size of this database, wraparound, checkpoints, archive; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f server_facts.sql
--
-- Columns
--   read_at                timestamp  the server's clock
--   server_started_at      timestamp  start of the server
--   server_version         string     its version
--   is_replica             boolean    it replays the log of another server
--   database_bytes         int64      size of this database
--   wal_position           Int64      write-ahead log written since the cluster was made
--   transaction_age        int64      transactions since the oldest row of all databases was frozen
--   transaction_database   string     the database that holds it
--   multixact_age          int64      the same for locks shared by several transactions
--   checkpoints_timed      Int64      counter, checkpoints at their time; null from PostgreSQL 17 on
--   checkpoints_requested  Int64      counter, those that were asked for, mostly by much writing; likewise
--   checkpoints_reset      timestamp  begin of these two
--   archiving              boolean    archive_mode is on
--   archived_at            timestamp  when a file of the log was last archived
--   archived_file          string     its name; a base backup that ended is archived as .backup
--   archive_failures       int64      attempts that failed since the counters began
--   archive_failed_at      timestamp  the last one
SELECT
    clock_timestamp() AS read_at,
    pg_postmaster_start_time() AS server_started_at,
    current_setting('server_version') AS server_version,
    pg_is_in_recovery() AS is_replica,
    pg_database_size(current_database()) AS database_bytes,
    CASE
        WHEN NOT pg_is_in_recovery()
            THEN CAST(pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') AS bigint)
    END AS wal_position,
    d.transaction_age,
    d.transaction_database,
    (SELECT CAST(max(mxid_age(datminmxid)) AS bigint) FROM pg_database) AS multixact_age,
    b.checkpoints_timed,
    b.checkpoints_requested,
    b.stats_reset AS checkpoints_reset,
    current_setting('archive_mode') <> 'off' AS archiving,
    a.last_archived_time AS archived_at,
    a.last_archived_wal AS archived_file,
    a.failed_count AS archive_failures,
    a.last_failed_time AS archive_failed_at
FROM pg_stat_archiver AS a
CROSS JOIN (
    SELECT
        CAST(age(datfrozenxid) AS bigint) AS transaction_age,
        CAST(datname AS text) AS transaction_database
    FROM pg_database
    ORDER BY age(datfrozenxid) DESC
    LIMIT 1
) AS d
CROSS JOIN (
    -- Columns that this version lacks are taken from `absent`: inside the LATERAL query the
    -- nearest name wins.
    SELECT kept.*
    FROM (
        SELECT
            CAST(NULL AS bigint) AS checkpoints_timed,
            CAST(NULL AS bigint) AS checkpoints_req
    ) AS absent
    CROSS JOIN LATERAL (
        SELECT
            checkpoints_timed,
            checkpoints_req AS checkpoints_requested,
            stats_reset
        FROM pg_stat_bgwriter
    ) AS kept
) AS b;
