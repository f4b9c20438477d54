-- A table that is captured into the audit trail, and how.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_captured.sql
--
-- Columns
--   table_name   string  schema and name of the table
--   entity_type  string  what its rows are called in the trail
--   columns      string  JSON list of the columns that the triggers were made for
--   redact       string  JSON object of columns whose values are left out, masked or fingerprinted
--   ignored      string  JSON list of columns that make no row when they alone change
--   function     string  schema and name of the function that its triggers are to run
--   body_md5     string  md5 of the text that function is to have; null for a table that is gone
SELECT
    relation AS table_name,
    entity_type,
    CAST(to_jsonb(columns) AS text) AS columns,
    CAST(redact AS text) AS redact,
    CAST(to_jsonb(ignore) AS text) AS ignored,
    'audit.capture_' || name AS function,
    CASE WHEN to_regclass(relation) IS NOT NULL THEN md5(substring(
        audit.capture_source(captured, audit.key_of(to_regclass(relation)))
        FROM '\$body\$(.*)\$body\$'
    )) END AS body_md5
FROM audit.captured
ORDER BY 1;
