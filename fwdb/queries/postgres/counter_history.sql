-- Counters of one subject as the readings of a window have them, oldest first.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -v subject="'database'" -f counter_history.sql
--
-- Columns
--   read_at   timestamp  when they were read, by the server's clock
--   database  string     postgres or mongodb
--   counters  string     names and values, as JSON
SELECT
    r.read_at,
    c.database,
    CAST(c.counters AS text) AS counters
FROM monitoring.counter_samples AS c
JOIN monitoring.readings AS r USING (reading_id)
WHERE
    c.subject = CAST(:subject AS text)
    AND r.read_at >= CAST(:since AS timestamptz)
    AND r.read_at <= CAST(:until AS timestamptz)
ORDER BY r.read_at, r.reading_id, c.database;
