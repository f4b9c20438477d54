-- A table that is captured into the audit trail, and how.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_coverage_captured.sql
--
-- Columns
--   table_name   string  schema and name of the table
--   entity_type  string  what its rows are called in the trail
--   mode         string  direct, or journal if the rows go through a journal first
--   columns      string  JSON list of the columns that the triggers were made for
--   redact       string  JSON object of columns whose values are left out, masked or fingerprinted
--   ignored      string  JSON list of columns that make no row when they alone change
SELECT
    relation AS table_name,
    entity_type,
    mode,
    CAST(to_jsonb(columns) AS text) AS columns,
    CAST(coalesce(redact, '{}') AS text) AS redact,
    CAST(to_jsonb(coalesce(ignore, CAST(ARRAY[] AS text[]))) AS text) AS ignored
FROM audit.captured
ORDER BY 1;
