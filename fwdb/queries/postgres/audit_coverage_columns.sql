-- A column of a table whose changes belong into the audit trail.
--
-- Tables are those in the schemas of Fashion Wallet, but the trail's own and that of monitoring, and
-- partitions of them wherever they are; not those that are partitioned further.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_columns.sql
--
-- Columns
--   table_name   string   schema and name of the table
--   part_of      string   the table that it is a partition of, at the top; null for one of its own
--   column_name  string   the column; null for a table without columns
--   computed     boolean  whether the server computes it when it is read
SELECT
    format('%I.%I', n.nspname, c.relname) AS table_name,
    CASE WHEN c.relispartition THEN format('%I.%I', top_schema.nspname, top.relname) END AS part_of,
    CAST(a.attname AS text) AS column_name,
    coalesce(a.attgenerated = 'v', false) AS computed
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_class AS top ON top.oid = coalesce(pg_partition_root(c.oid), c.oid)
JOIN pg_namespace AS top_schema ON top_schema.oid = top.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE top_schema.nspname IN ('shared', 'avatar', 'catalog', 'design')
    AND top.relname <> 'alembic_version'
    AND (c.relkind = 'r' OR (c.relkind = 'p' AND NOT c.relispartition))
ORDER BY 1, a.attnum;
