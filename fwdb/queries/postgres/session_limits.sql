-- Every limit on sessions that is set, with the sessions that count against it, fullest first.
--
-- Of the server the reserved sessions are taken off: an ordinary role never gets those. Limits
-- of databases and roles do not hold for superusers.
--
--   psql "$FWDB_POSTGRES_URL" -f session_limits.sql
--
-- Columns
--   scope     string  server, database or role
--   name      string  of the database or role; empty for the server
--   sessions  int64   client sessions there now, the one that asks included
--   most      int64   sessions that ordinary roles may have there
--   percent   float64 sessions of the most, 0 to 100; missing when none may be
WITH clients AS (
    SELECT datid, usesysid
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)
),

limits AS (
    SELECT
        'server' AS scope,
        '' AS name,
        (SELECT count(*) FROM clients) AS sessions,
        CAST(current_setting('max_connections') AS bigint)
        - CAST(current_setting('superuser_reserved_connections') AS bigint)
        -- reserved_connections came with PostgreSQL 16
        - coalesce(CAST(current_setting('reserved_connections', true) AS bigint), 0) AS most
    UNION ALL
    SELECT
        'database',
        CAST(datname AS text),
        (SELECT count(*) FROM clients WHERE datid = d.oid),
        datconnlimit
    FROM pg_database AS d
    -- Below 0 there is no limit, or the database is no longer valid.
    WHERE datconnlimit >= 0
    UNION ALL
    SELECT
        'role',
        CAST(rolname AS text),
        (SELECT count(*) FROM clients WHERE usesysid = r.oid),
        rolconnlimit
    FROM pg_roles AS r
    WHERE rolconnlimit >= 0 AND rolcanlogin
)

SELECT
    scope,
    name,
    sessions,
    most,
    CAST(100.0 * sessions / nullif(most, 0) AS double precision) AS percent
FROM limits
ORDER BY percent DESC NULLS LAST, scope DESC, name;
