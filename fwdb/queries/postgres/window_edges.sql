-- The first and the last stored reading of a window: one row each, one row if they are the same.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -v kinds="'{full}'" -f window_edges.sql
--
-- Columns
--   reading_id  int64      key of the reading
--   read_at     timestamp  when it was taken, by the server's clock
--   kind        string     light or full
--   details     string     what else was noted then, as JSON
(
    SELECT reading_id, read_at, kind, CAST(details AS text) AS details
    FROM monitoring.readings
    WHERE
        kind = ANY(CAST(:kinds AS text[]))
        AND read_at >= CAST(:since AS timestamptz)
        AND read_at <= CAST(:until AS timestamptz)
    ORDER BY read_at, reading_id
    LIMIT 1
)
UNION
(
    SELECT reading_id, read_at, kind, CAST(details AS text) AS details
    FROM monitoring.readings
    WHERE
        kind = ANY(CAST(:kinds AS text[]))
        AND read_at >= CAST(:since AS timestamptz)
        AND read_at <= CAST(:until AS timestamptz)
    ORDER BY read_at DESC, reading_id DESC
    LIMIT 1
)
ORDER BY read_at, reading_id;
