-- The stored text of a statement of this database.
--
--   psql "$FWDB_POSTGRES_URL" -v query_ids="'{1,2}'" -f stored_texts.sql
--
-- Columns
--   query_id   int64   identity of the statement
--   statement  string  its text
SELECT
    query_id,
    statement
FROM monitoring.statement_texts
WHERE
    database_id = (
        SELECT CAST(oid AS bigint) FROM pg_database WHERE datname = current_database()
    )
    AND query_id = ANY(CAST(:query_ids AS bigint[]));
