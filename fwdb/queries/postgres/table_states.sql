-- A table or materialised view of this database: size, dead rows, when it was last cleaned.
--
-- Sizes are of the main forks, which is all but a hundredth. A table that somebody has locked
-- exclusively, or waits to, has no size here: asking for it would wait behind that.
--
--   psql "$FWDB_POSTGRES_URL" -f table_states.sql
--
-- Columns
--   database             string   postgres
--   table                string   schema and name
--   total_bytes          Int64    the rows with their indexes and out-of-line values
--   index_bytes          Int64    of these, indexes
--   live_rows            Int64    rows, as the statistics estimate
--   dead_rows            Int64    versions of rows that nobody needs and that still take room
--   dead_percent         float64  of all versions of rows
--   vacuum_age_seconds   float64  since the last vacuum, by hand or automatic; null without one
--   analyze_age_seconds  float64  since the last analyze, likewise
--   transaction_age      Int64    transactions since its oldest row version was frozen
--   scans                Int64    sequential scans since the counters began
WITH locked AS (
    SELECT relation
    FROM pg_locks
    WHERE
        mode = 'AccessExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
),

indexes AS (
    SELECT
        indrelid,
        sum(CASE
            WHEN NOT EXISTS (SELECT FROM locked WHERE relation IN (indexrelid, indrelid))
                THEN pg_relation_size(indexrelid)
        END) AS bytes
    FROM pg_index
    GROUP BY indrelid
)

SELECT
    'postgres' AS database,
    format('%I.%I', n.nspname, c.relname) AS "table",
    CASE
        WHEN NOT EXISTS (SELECT FROM locked WHERE relation IN (c.oid, c.reltoastrelid))
            THEN CAST(
                pg_relation_size(c.oid)
                + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)
                + coalesce(i.bytes, 0) + coalesce(t.bytes, 0)
                AS bigint
            )
    END AS total_bytes,
    CAST(coalesce(i.bytes, 0) AS bigint) AS index_bytes,
    s.live_rows,
    s.dead_rows,
    CAST(100 * s.dead_rows AS double precision) / nullif(s.live_rows + s.dead_rows, 0)
        AS dead_percent,
    CAST(extract(EPOCH FROM clock_timestamp() - s.vacuumed_at) AS double precision)
        AS vacuum_age_seconds,
    CAST(extract(EPOCH FROM clock_timestamp() - s.analyzed_at) AS double precision)
        AS analyze_age_seconds,
    CAST(age(c.relfrozenxid) AS bigint) AS transaction_age,
    pg_stat_get_numscans(c.oid) AS scans
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN indexes AS i ON i.indrelid = c.oid
LEFT JOIN indexes AS t ON t.indrelid = c.reltoastrelid
CROSS JOIN LATERAL (
    SELECT
        pg_stat_get_live_tuples(c.oid) AS live_rows,
        pg_stat_get_dead_tuples(c.oid) AS dead_rows,
        greatest(
            pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)
        ) AS vacuumed_at,
        greatest(
            pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)
        ) AS analyzed_at
) AS s
WHERE
    c.relkind IN ('r', 'm')
    AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema'
    AND n.nspname NOT LIKE 'pg\_%'
ORDER BY total_bytes DESC NULLS LAST, "table";
