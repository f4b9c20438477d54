-- Disk that the write-ahead log takes, and what it should at most; one row.
--
-- Needs pg_monitor: it looks into a folder of the server.
--
--   psql "$FWDB_POSTGRES_URL" -f wal_files.sql
--
-- Columns
--   wal_bytes      int64  size of all files of the log
--   wal_files      int64  their number
--   max_wal_bytes  int64  max_wal_size, which a busy server may pass for a while
SELECT
    CAST(coalesce(sum(size), 0) AS bigint) AS wal_bytes,
    count(*) AS wal_files,
    (
        SELECT CAST(setting AS bigint) * 1024 * 1024
        FROM pg_settings
        WHERE name = 'max_wal_size'
    ) AS max_wal_bytes
FROM pg_ls_waldir();
