-- Counters of a server as one stored reading has them.
--
--   psql "$FWDB_POSTGRES_URL" -v reading_id=1 -f stored_counters.sql
--
-- Columns
--   database  string  postgres or mongodb
--   subject   string  what was counted
--   counters  string  names and values, as JSON
SELECT
    database,
    subject,
    CAST(counters AS text) AS counters
FROM monitoring.counter_samples
WHERE reading_id = CAST(:reading_id AS bigint)
ORDER BY database, subject;
