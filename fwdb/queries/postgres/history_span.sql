-- From when to when there are readings; one row, without times when there are none.
--
--   psql "$FWDB_POSTGRES_URL" -f history_span.sql
--
-- Columns
--   oldest_at  timestamp  time of the first reading
--   newest_at  timestamp  time of the last reading
SELECT min(read_at) AS oldest_at, max(read_at) AS newest_at
FROM monitoring.readings;
