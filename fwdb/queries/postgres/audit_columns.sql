-- Columns of a table, in their order.
--
--   psql "$FWDB_POSTGRES_URL" -v relation="'shared.users'" -f audit_columns.sql
--
-- Columns
--   name       string   the column
--   type       string   as SQL writes it
--   is_text    boolean  its values are text
--   is_json    boolean  its values are json or jsonb
--   generated  boolean  the server computes it
SELECT
    CAST(attribute.attname AS text) AS name,
    format_type(attribute.atttypid, attribute.atttypmod) AS type,
    kind.typcategory = 'S' AS is_text,
    kind.typname IN ('json', 'jsonb') AS is_json,
    attribute.attgenerated <> '' AS generated
FROM pg_attribute AS attribute
JOIN pg_type AS kind ON kind.oid = attribute.atttypid
WHERE attribute.attrelid = to_regclass(CAST(:relation AS text))
    AND attribute.attnum > 0
    AND NOT attribute.attisdropped
ORDER BY attribute.attnum;
