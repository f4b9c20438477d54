-- A replica connected to this server, or a replication slot that keeps the log for one.
--
-- On a replica one more row is about itself: its connection to its own primary.
--
--   psql "$FWDB_POSTGRES_URL" -f replicas.sql
--
-- Columns
--   replica             string   application_name of the replica; null for a slot nobody uses
--   slot                string   its replication slot; null if it has none
--   state               string   startup, catchup, streaming; null without permission or replica
--   sync_state          string   async, sync, quorum, potential
--   is_self             boolean  the row is about this server as a replica
--   behind_bytes        Int64    write-ahead log that it has not replayed; null until it answers
--   reply_age_seconds   float64  time since it last answered
--   replay_lag_seconds  float64  last measured delay; missing when there was nothing to replay
--   retained_bytes      Int64    write-ahead log that the slot keeps
--   unused_seconds      float64  time since the slot was last used; null before PostgreSQL 17
--   slot_type           string   physical or logical
WITH position AS (
    SELECT
        CASE
            WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
            ELSE pg_current_wal_lsn()
        END AS lsn
),

senders AS (
    SELECT *
    FROM pg_stat_replication
    -- A backup in progress and pg_receivewal take the log too, but replay nothing. A replica that
    -- has just connected has not answered yet, and is one all the same, also when it streams.
    WHERE
        state IS NULL
        OR (state <> 'backup' AND replay_lsn IS NOT NULL)
        OR (
            (state IN ('startup', 'catchup') OR (state = 'streaming' AND write_lsn IS NULL))
            AND application_name NOT IN ('pg_basebackup', 'pg_receivewal')
        )
),

slots AS (
    -- A column that this version lacks is taken from here: inside the LATERAL query the nearest
    -- name wins, so this is the fallback.
    SELECT kept.*
    FROM (SELECT CAST(NULL AS timestamptz) AS inactive_since) AS absent
    CROSS JOIN LATERAL (
        SELECT slot_name, slot_type, active_pid, restart_lsn, inactive_since
        FROM pg_replication_slots
        WHERE NOT temporary
    ) AS kept
)

SELECT
    w.application_name AS replica,
    s.slot_name AS slot,
    w.state,
    w.sync_state,
    false AS is_self,
    CAST(pg_wal_lsn_diff(p.lsn, w.replay_lsn) AS bigint) AS behind_bytes,
    CAST(extract(EPOCH FROM clock_timestamp() - w.reply_time) AS double precision)
        AS reply_age_seconds,
    CAST(extract(EPOCH FROM w.replay_lag) AS double precision) AS replay_lag_seconds,
    CAST(pg_wal_lsn_diff(p.lsn, s.restart_lsn) AS bigint) AS retained_bytes,
    CAST(extract(EPOCH FROM clock_timestamp() - s.inactive_since) AS double precision)
        AS unused_seconds,
    s.slot_type
FROM senders AS w
FULL JOIN slots AS s ON s.active_pid = w.pid
CROSS JOIN position AS p
-- What a base backup streams beside itself is no replica's slot.
WHERE w.pid IS NOT NULL OR s.active_pid IS NULL
UNION ALL
SELECT
    NULL,
    r.slot_name,
    r.status,
    NULL,
    true,
    CAST(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) AS bigint),
    CAST(extract(EPOCH FROM clock_timestamp() - r.last_msg_receipt_time) AS double precision),
    -- The age of the last transaction says how late this server is only while one is waiting.
    CASE
        WHEN pg_last_wal_receive_lsn() <> pg_last_wal_replay_lsn()
            THEN CAST(
                extract(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
                AS double precision
            )
    END,
    NULL,
    NULL,
    CASE WHEN r.slot_name IS NOT NULL THEN 'physical' END
FROM (SELECT pg_is_in_recovery() AS is_replica) AS self
LEFT JOIN pg_stat_wal_receiver AS r ON true
WHERE self.is_replica
ORDER BY 5, 1, 2;
