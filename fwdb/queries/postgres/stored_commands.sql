-- MongoDB commands that were sent in a window, as the processes that sent them timed them.
--
-- One row per shape, over all processes. What a process began to time before the window, and
-- stored within it, is left out.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -f stored_commands.sql
--
-- Columns
--   command      string   find, aggregate, insert, …
--   namespace    string   database and collection
--   shape        string   the command without its values
--   calls        int64    commands sent
--   errors       int64    of these, failed
--   total_ms     float64  time the clients waited
--   squares_ms2  float64  sum of the squared times
--   documents    int64    documents returned or changed
SELECT
    c.command,
    c.namespace,
    c.shape,
    CAST(sum(c.calls) AS bigint) AS calls,
    CAST(sum(c.errors) AS bigint) AS errors,
    sum(c.total_ms) AS total_ms,
    sum(c.squares_ms2) AS squares_ms2,
    CAST(sum(c.documents) AS bigint) AS documents
FROM monitoring.command_samples AS c
JOIN monitoring.readings AS r USING (reading_id)
WHERE
    CAST(r.details ->> 'commands_since' AS timestamptz) >= CAST(:since AS timestamptz)
    AND r.read_at >= CAST(:since AS timestamptz)
    AND r.read_at <= CAST(:until AS timestamptz)
GROUP BY c.command, c.namespace, c.shape
ORDER BY 6 DESC, 3;
