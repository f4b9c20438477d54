-- A trigger that somebody has switched off.
--
--   psql "$FWDB_POSTGRES_URL" -f disabled_triggers.sql
--
-- Columns
--   table_name    string  schema and name of its table
--   trigger_name  string  the trigger
SELECT
    format('%I.%I', n.nspname, c.relname) AS table_name,
    t.tgname AS trigger_name
FROM pg_trigger AS t
JOIN pg_class AS c ON c.oid = t.tgrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgenabled = 'D'
ORDER BY 1, 2;
