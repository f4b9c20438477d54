-- Settings of the server as readings have them: the last ones before a window, and each change in it.
--
-- A reading keeps the values when they differ from those before, and once a day.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -f stored_settings.sql
--
-- Columns
--   read_at   timestamp  when they were read, by the server's clock
--   counters  string     fingerprint and values, as JSON
SELECT
    r.read_at,
    CAST(c.counters AS text) AS counters
FROM monitoring.counter_samples AS c
JOIN monitoring.readings AS r USING (reading_id)
WHERE
    c.database = 'postgres'
    AND c.subject = 'settings'
    AND c.counters ->> 'values' IS NOT NULL
    AND r.read_at <= CAST(:until AS timestamptz)
    AND r.read_at >= coalesce(
        (
            SELECT max(b.read_at)
            FROM monitoring.counter_samples AS s
            JOIN monitoring.readings AS b USING (reading_id)
            WHERE
                s.database = 'postgres'
                AND s.subject = 'settings'
                AND s.counters ->> 'values' IS NOT NULL
                AND b.read_at <= CAST(:since AS timestamptz)
        ),
        CAST(:since AS timestamptz)
    )
ORDER BY r.read_at, r.reading_id;
