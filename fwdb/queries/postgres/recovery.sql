-- Whether this server is a replica itself, and what it has replayed; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f recovery.sql
--
-- Columns
--   is_replica            boolean  it replays the log of another server
--   is_replayed           boolean  all that was received is replayed; null on a primary
--   replay_age_seconds    float64  time since the last replayed transaction was committed
--   receiver_status       string   of the process that receives the log; null if there is none
--   receiver_age_seconds  float64  time since the primary last sent something
SELECT
    pg_is_in_recovery() AS is_replica,
    pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AS is_replayed,
    CAST(
        extract(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
        AS double precision
    ) AS replay_age_seconds,
    (SELECT status FROM pg_stat_wal_receiver) AS receiver_status,
    (
        SELECT CAST(extract(EPOCH FROM clock_timestamp() - last_msg_receipt_time)
            AS double precision)
        FROM pg_stat_wal_receiver
    ) AS receiver_age_seconds;
