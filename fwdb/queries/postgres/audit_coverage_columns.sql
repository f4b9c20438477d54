-- A column of a table whose changes belong into the audit trail, and who the table is.
--
-- Tables are those of the schemas of Fashion Wallet but the trail's own and that of monitoring, with
-- their partitions and with tables that inherit from them.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_columns.sql
--
-- Columns
--   table_name   string   schema and name of the table
--   part_of      string   the table that it is a part of, at the top; null for a table of its own
--   column_name  string   the column; null for a table without columns
--   computed     boolean  whether the server computes it when it is read
WITH RECURSIVE parts AS (
    SELECT c.oid, c.oid AS top
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('shared', 'avatar', 'catalog', 'design')
        AND c.relkind IN ('r', 'p')
        AND c.relname <> 'alembic_version'
        AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
    UNION ALL
    SELECT i.inhrelid, parts.top
    FROM parts
    JOIN pg_inherits AS i ON i.inhparent = parts.oid
)
SELECT
    format('%I.%I', n.nspname, c.relname) AS table_name,
    CASE WHEN parts.oid <> parts.top THEN (
        SELECT format('%I.%I', np.nspname, p.relname)
        FROM pg_class AS p
        JOIN pg_namespace AS np ON np.oid = p.relnamespace
        WHERE p.oid = parts.top
    ) END AS part_of,
    CAST(a.attname AS text) AS column_name,
    coalesce(a.attgenerated = 'v', false) AS computed
FROM parts
JOIN pg_class AS c ON c.oid = parts.oid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY 1, a.attnum;
