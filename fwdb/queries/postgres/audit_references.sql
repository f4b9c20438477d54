-- Columns that refer to rows of another table, by foreign keys of one column; the trail's own,
-- which an existing database has, are left out.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_references.sql
--
-- Columns
--   relation     string  table that refers
--   field        string  its column
--   to_relation  string  table it refers to
--   to_field     string  the column there
SELECT
    CAST(here_schema.nspname || '.' || here.relname AS text) AS relation,
    CAST(here_column.attname AS text) AS field,
    CAST(there_schema.nspname || '.' || there.relname AS text) AS to_relation,
    CAST(there_column.attname AS text) AS to_field
FROM pg_constraint AS key
JOIN pg_class AS here ON here.oid = key.conrelid
JOIN pg_namespace AS here_schema ON here_schema.oid = here.relnamespace
JOIN pg_class AS there ON there.oid = key.confrelid
JOIN pg_namespace AS there_schema ON there_schema.oid = there.relnamespace
JOIN pg_attribute AS here_column
    ON here_column.attrelid = key.conrelid AND here_column.attnum = key.conkey[1]
JOIN pg_attribute AS there_column
    ON there_column.attrelid = key.confrelid AND there_column.attnum = key.confkey[1]
WHERE key.contype = 'f'
    AND cardinality(key.conkey) = 1
    -- A partition repeats the key of its parent.
    AND key.conparentid = 0
    AND here_schema.nspname <> 'audit'
ORDER BY 1, 2, 3, 4;
