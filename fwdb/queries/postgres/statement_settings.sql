-- What the server records about statements, and what this role may see of it; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f statement_settings.sql
--
-- Columns
--   read_at            timestamp  the server's clock
--   server_started_at  timestamp  start of the server
--   preloaded          boolean    pg_stat_statements is in shared_preload_libraries
--   extension_version  string     version of the extension in this database; null without it
--   extension_schema   string     schema of the extension
--   max_entries        Int64      statements it keeps before it drops the rarest
--   io_timed           boolean    track_io_timing is on
--   plans_timed        boolean    pg_stat_statements.track_planning is on
--   sees_all           boolean    this role may read the statistics of other roles
--   role_name          string     this role
SELECT
    clock_timestamp() AS read_at,
    pg_postmaster_start_time() AS server_started_at,
    current_setting('pg_stat_statements.max', true) IS NOT NULL AS preloaded,
    e.extversion AS extension_version,
    n.nspname AS extension_schema,
    CAST(current_setting('pg_stat_statements.max', true) AS bigint) AS max_entries,
    CAST(current_setting('track_io_timing') AS boolean) AS io_timed,
    coalesce(
        CAST(current_setting('pg_stat_statements.track_planning', true) AS boolean), false
    ) AS plans_timed,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
    current_user AS role_name
FROM (SELECT 1) AS always
LEFT JOIN pg_extension AS e ON e.extname = 'pg_stat_statements'
LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace;
