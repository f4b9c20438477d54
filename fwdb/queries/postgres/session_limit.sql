-- How many sessions ordinary roles may open on this server; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f session_limit.sql
--
-- Columns
--   max_connections  int64  all sessions
--   reserved         int64  kept free for superusers and pg_use_reserved_connections
--   usable           int64  the difference
SELECT
    s.max_connections,
    s.reserved,
    s.max_connections - s.reserved AS usable
FROM (
    SELECT
        CAST(current_setting('max_connections') AS bigint) AS max_connections,
        CAST(current_setting('superuser_reserved_connections') AS bigint)
        -- reserved_connections came with PostgreSQL 16
        + coalesce(CAST(current_setting('reserved_connections', true) AS bigint), 0) AS reserved
) AS s;
