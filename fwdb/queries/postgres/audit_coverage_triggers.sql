-- A trigger by which changes of a table get into the audit trail, and what it runs.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_triggers.sql
--
-- Columns
--   table_name    string   schema and name of its table
--   trigger_name  string   00_fwdb_audit for rows, 00_fwdb_audit_truncate for all rows at once
--   state         string   A fires always, O not in a session with session_replication_role replica,
--                          R only in one, D never
--   function      string   schema and name of what it runs
--   as_owner      boolean  whether that runs with the rights of its owner, on a fixed search_path
--   body_md5      string   md5 of the text of that function
SELECT
    format('%I.%I', n.nspname, c.relname) AS table_name,
    CAST(t.tgname AS text) AS trigger_name,
    CAST(t.tgenabled AS text) AS state,
    format('%I.%I', pn.nspname, p.proname) AS function,
    p.prosecdef AND coalesce(array_to_string(p.proconfig, ' ') LIKE '%search_path=%', false)
        AS as_owner,
    md5(p.prosrc) AS body_md5
FROM pg_trigger AS t
JOIN pg_class AS c ON c.oid = t.tgrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_namespace AS pn ON pn.oid = p.pronamespace
WHERE t.tgname LIKE '00\_fwdb\_audit%'
ORDER BY 1, 2;
