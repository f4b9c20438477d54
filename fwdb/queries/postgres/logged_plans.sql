-- The plans that auto_explain has logged in a window, one row each, and one row if there are none.
--
-- Needs PostgreSQL 15.
--
-- Statements of fwdb itself are left out. Needs the function of fwdb/embedded/logged_plans.sql.
--
--   psql "$FWDB_POSTGRES_URL" -v since="'2026-11-24'" -v until="'2026-11-25'" \
--        -v most_bytes=8388608 -f logged_plans.sql
--
-- Columns
--   logged_at    timestamp  when the statement ended; missing when no plan was logged
--   query_id     Int64      identity of the statement
--   user_name    string     role that ran it
--   application  string     its application_name
--   message      string     duration, statement and plan, values included
--   log_bytes    int64      size of the JSON logs that the window may be in
SELECT
    p.logged_at,
    p.query_id,
    p.user_name,
    p.application,
    p.message,
    l.log_bytes
FROM (
    SELECT CAST(coalesce(sum(f.size), 0) AS bigint) AS log_bytes
    FROM pg_ls_logdir() AS f
    WHERE f.name LIKE '%.json' AND f.modification >= CAST(:since AS timestamptz)
) AS l
LEFT JOIN public.fwdb_logged_plans(
    CAST(:since AS timestamptz), CAST(:most_bytes AS bigint)
) AS p
    ON p.logged_at >= CAST(:since AS timestamptz)
    AND p.logged_at < CAST(:until AS timestamptz)
    AND p.message NOT LIKE '%/* fwdb */%';
