-- A right to call a function of fwdb that somebody should not have, or a search_path that misleads it.
--
-- Relations and types of the caller's temporary schema come first unless pg_temp is named last.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_functions.sql
--
-- Columns
--   function_name  string   schema, name and argument types of the function
--   role           string   who may call it and should not: PUBLIC, if it does more than read the
--                           catalog as its caller, or any role but the owner for the function of a
--                           trigger; null where its search_path is wrong
WITH made AS (
    SELECT p.*, CAST(CAST(p.oid AS regprocedure) AS text) AS function_name
    FROM pg_proc AS p
    WHERE right(obj_description(p.oid, 'pg_proc'), 13) = 'Made by fwdb.'
)
SELECT function_name, CAST(NULL AS text) AS role
FROM made
WHERE prosqlbody IS NULL
    AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, CAST('{}' AS text[])))
UNION
SELECT
    made.function_name,
    CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE CAST(pg_get_userbyid(acl.grantee) AS text) END
FROM made
CROSS JOIN LATERAL aclexplode(coalesce(made.proacl, acldefault('f', made.proowner))) AS acl
WHERE (acl.grantee = 0 AND (made.prosecdef OR made.provolatile = 'v'))
    OR (acl.grantee <> made.proowner AND made.prorettype = CAST('trigger' AS regtype))
ORDER BY 1, 2;
