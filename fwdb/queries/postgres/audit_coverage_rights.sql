-- A right to write to a table of the audit trail that somebody else than its owner has.
--
-- A right on some columns counts as one on the table. Superusers need none and are not listed.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_rights.sql
--
-- Columns
--   table_name  string   schema and name of the table
--   owner       string   its owner
--   role        string   who has the right; PUBLIC is everybody
--   rights      string   INSERT, UPDATE, DELETE or TRUNCATE, with commas
--   made        boolean  whether fwdb made the table, and took these rights away then
WITH granted AS (
    SELECT c.oid, acl.grantee, acl.privilege_type
    FROM pg_class AS c
    CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
    WHERE c.relnamespace = to_regnamespace('audit') AND c.relkind IN ('r', 'p', 'v')
    UNION
    SELECT c.oid, acl.grantee, acl.privilege_type
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid
    CROSS JOIN LATERAL aclexplode(a.attacl) AS acl
    WHERE c.relnamespace = to_regnamespace('audit') AND c.relkind IN ('r', 'p', 'v')
)
SELECT
    format('audit.%I', c.relname) AS table_name,
    CAST(pg_get_userbyid(c.relowner) AS text) AS owner,
    CASE granted.grantee
        WHEN 0 THEN 'PUBLIC' ELSE CAST(pg_get_userbyid(granted.grantee) AS text)
    END AS role,
    string_agg(granted.privilege_type, ', ' ORDER BY granted.privilege_type) AS rights,
    coalesce(right(obj_description(coalesce(i.inhparent, c.oid), 'pg_class'), 13)
        = 'Made by fwdb.', false) AS made
FROM granted
JOIN pg_class AS c ON c.oid = granted.oid
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
WHERE granted.grantee <> c.relowner
    AND granted.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
GROUP BY c.oid, c.relname, c.relowner, granted.grantee, i.inhparent
ORDER BY 1, 3;
