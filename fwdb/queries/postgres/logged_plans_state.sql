-- Whether the server logs plans in a form that can be read, and whether this role may; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f logged_plans_state.sql
--
-- Columns
--   min_ms       Int64    auto_explain.log_min_duration; missing when it is not loaded, -1 is off
--   format       string   auto_explain.log_format
--   destination  string   log_destination; plans are read from jsonlog
--   collected    boolean  whether logging_collector writes files
--   exists       boolean  whether the database has the function fwdb_logged_plans
--   allowed      boolean  whether this role may call it
--   role         string   this role, quoted where SQL needs that
SELECT
    CAST(max(s.setting) FILTER (WHERE s.name = 'auto_explain.log_min_duration') AS bigint) AS min_ms,
    max(s.setting) FILTER (WHERE s.name = 'auto_explain.log_format') AS format,
    max(s.setting) FILTER (WHERE s.name = 'log_destination') AS destination,
    coalesce(bool_or(s.setting = 'on') FILTER (WHERE s.name = 'logging_collector'), false)
    AS collected,
    f.oid IS NOT NULL AS exists,
    coalesce(has_function_privilege(f.oid, 'EXECUTE'), false)
    AND has_function_privilege('pg_ls_logdir()', 'EXECUTE') AS allowed,
    quote_ident(current_user) AS role
FROM pg_settings AS s
CROSS JOIN (
    SELECT CAST(to_regprocedure('public.fwdb_logged_plans(timestamptz, bigint)') AS oid) AS oid
) AS f
GROUP BY f.oid;
