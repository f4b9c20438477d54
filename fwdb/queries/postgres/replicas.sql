-- Replicas connected to this server, with how far each is behind.
--
--   psql "$FWDB_POSTGRES_URL" -f replicas.sql
--
-- Columns
--   replica             string   application_name of the replica
--   state               string   startup, catchup, streaming; null without permission
--   sync_state          string   async, sync, quorum, potential
--   behind_bytes        Int64    write-ahead log that it has not replayed
--   replay_lag_seconds  float64  last measured delay; missing when there was nothing to replay
--   reply_age_seconds   float64  time since it last answered
SELECT
    application_name AS replica,
    state,
    sync_state,
    CAST(
        pg_wal_lsn_diff(
            CASE
                WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                ELSE pg_current_wal_lsn()
            END,
            replay_lsn
        ) AS bigint
    ) AS behind_bytes,
    CAST(extract(EPOCH FROM replay_lag) AS double precision) AS replay_lag_seconds,
    CAST(extract(EPOCH FROM clock_timestamp() - reply_time) AS double precision)
        AS reply_age_seconds
FROM pg_stat_replication
-- A backup in progress and pg_receivewal take the log too, but replay nothing.
WHERE state IS NULL OR (state <> 'backup' AND replay_lsn IS NOT NULL)
ORDER BY 1;
