-- Stored readings of a window, oldest first, with what each holds.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -f readings.sql
--
-- Columns
--   reading_id  int64      key of the reading
--   read_at     timestamp  when it was taken, by the server's clock
--   kind        string     process (own pools and commands), light or full (the servers too)
--   process     string     who took it
--   details     string     what else was noted then, as JSON
SELECT
    reading_id,
    read_at,
    kind,
    process,
    CAST(details AS text) AS details
FROM monitoring.readings
WHERE
    read_at >= CAST(:since AS timestamptz)
    AND read_at <= CAST(:until AS timestamptz)
ORDER BY read_at, reading_id;
