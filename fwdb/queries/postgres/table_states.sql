-- A table or materialised view of this database: size, dead rows, when it was last cleaned.
--
-- Sizes are of the main forks, which is all but a hundredth. A table that somebody has locked
-- exclusively, or waits to, has no size here: asking for it would wait behind that.
--
--   psql "$FWDB_POSTGRES_URL" -f table_states.sql
--
-- Columns
--   table_name       string     schema and name
--   total_bytes      Int64      the rows with their indexes and out-of-line values
--   index_bytes      Int64      of these, indexes
--   live_rows        int64      rows, as the statistics estimate
--   dead_rows        int64      versions of rows that nobody needs and that still take room
--   changed_rows     int64      rows changed since the last analyze
--   vacuumed_at      timestamp  last vacuum, by hand or automatic; null if not since the counters began
--   analyzed_at      timestamp  last analyze, likewise
--   transaction_age  int64      transactions since its oldest row version was frozen
--   scans            int64      sequential scans since the counters began
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
    format('%I.%I', n.nspname, c.relname) AS table_name,
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
    pg_stat_get_live_tuples(c.oid) AS live_rows,
    pg_stat_get_dead_tuples(c.oid) AS dead_rows,
    pg_stat_get_mod_since_analyze(c.oid) AS changed_rows,
    greatest(
        pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)
    ) AS vacuumed_at,
    greatest(
        pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)
    ) AS analyzed_at,
    CAST(age(c.relfrozenxid) AS bigint) AS transaction_age,
    pg_stat_get_numscans(c.oid) AS scans
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN indexes AS i ON i.indrelid = c.oid
LEFT JOIN indexes AS t ON t.indrelid = c.reltoastrelid
WHERE
    c.relkind IN ('r', 'm')
    AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema'
    AND n.nspname NOT LIKE 'pg\_%'
ORDER BY total_bytes DESC NULLS LAST, table_name;
