-- What stands between the audit trail and those who write or read it, and should not.
--
-- Of the trail with its partitions, and of the tables that prove it. A trigger or rule that is
-- switched off is not listed.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_trail.sql
--
-- Columns
--   table_name  string   schema and name of the table or view
--   what        string   kind (the trail is no table), security (row security is on), trigger or rule
--   name        string   of the trigger or rule; of kind what it is instead, as pg_class.relkind
--   hides       boolean  whether row security holds for the role that asks
--   made        boolean  whether fwdb made the table
WITH watched AS (
    SELECT c.oid, c.relkind, c.relrowsecurity, c.relname,
        coalesce(right(obj_description(coalesce(i.inhparent, c.oid), 'pg_class'), 13)
            = 'Made by fwdb.', false) AS made
    FROM pg_class AS c
    LEFT JOIN pg_inherits AS i
        ON i.inhrelid = c.oid AND i.inhparent = to_regclass('audit.audit_logs')
    WHERE c.oid IN (
        to_regclass('audit.audit_logs'), to_regclass('audit.seals'), to_regclass('audit.erasures'),
        to_regclass('audit.archives'), to_regclass('audit.captured')
    ) OR i.inhrelid IS NOT NULL
), found AS (
    SELECT oid, relname, made, 'kind' AS what, CAST(relkind AS text) AS name, false AS hides
    FROM watched WHERE relkind NOT IN ('r', 'p')
    UNION ALL
    SELECT oid, relname, made, 'security', NULL, row_security_active(oid)
    FROM watched WHERE relrowsecurity
    UNION ALL
    SELECT w.oid, relname, made, 'trigger', CAST(tgname AS text), false
    FROM watched AS w JOIN pg_trigger AS t ON t.tgrelid = w.oid
    WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgparentid = 0
    UNION ALL
    SELECT w.oid, relname, made, 'rule', CAST(rulename AS text), false
    FROM watched AS w JOIN pg_rewrite AS r ON r.ev_class = w.oid
    WHERE rulename <> '_RETURN' AND ev_enabled <> 'D'
)
SELECT format('audit.%I', relname) AS table_name, what, name, hides, made
FROM found
ORDER BY 1, 2, 3;
