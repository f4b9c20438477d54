-- An index of this database: size, use, and another one that makes it superfluous.
--
-- Scans are those of this server: a replica counts its own.
--
--   psql "$FWDB_POSTGRES_URL" -f index_states.sql
--
-- Columns
--   database          string     postgres
--   table             string     schema and name of its table
--   index             string     its name, in the schema of the table
--   index_bytes       Int64      size; null while the table is locked exclusively
--   scans             Int64      scans since the counters began
--   used_at           timestamp  last scan; null before PostgreSQL 16, and if there was none
--   counted_since_at  timestamp  begin of the counters
--   is_needed         boolean    it keeps rows unique or identifies them: its scans do not matter
--   is_valid          boolean    false after CREATE INDEX CONCURRENTLY has failed
--   duplicate_of      string     a valid index that serves the same questions; null if none
WITH locked AS (
    SELECT relation
    FROM pg_locks
    WHERE
        mode = 'AccessExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
),

absent AS (
    -- Inside the LATERAL query below the nearest name wins, so this is the fallback.
    SELECT CAST(NULL AS timestamptz) AS last_idx_scan
),

used AS (
    SELECT u.*
    FROM absent
    CROSS JOIN LATERAL (
        SELECT indexrelid, idx_scan, last_idx_scan FROM pg_stat_user_indexes
    ) AS u
),

indexes AS (
    SELECT
        i.indexrelid,
        i.indrelid,
        c.relname,
        c.relam,
        i.indisvalid,
        i.indisunique,
        i.indisunique OR i.indisexclusion OR i.indisreplident AS is_needed,
        concat_ws(' ', i.indkey) AS key_columns,
        -- Everything else that two indexes must share to serve the same questions.
        concat_ws(
            '|',
            c.relam,
            pg_get_expr(i.indpred, i.indrelid),
            pg_get_expr(i.indexprs, i.indrelid)
        ) AS kind,
        concat_ws(' ', i.indclass, '|', i.indcollation, '|', i.indoption) AS exact,
        i.indclass,
        i.indcollation,
        i.indoption,
        i.indnatts = i.indnkeyatts AND a.amname = 'btree' AND i.indexprs IS NULL AS may_be_prefix
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS a ON a.oid = c.relam
)

SELECT
    'postgres' AS database,
    format('%I.%I', n.nspname, t.relname) AS "table",
    i.relname AS "index",
    CASE
        WHEN NOT EXISTS (SELECT FROM locked WHERE relation IN (i.indexrelid, i.indrelid))
            THEN pg_relation_size(i.indexrelid)
    END AS index_bytes,
    coalesce(u.idx_scan, 0) AS scans,
    u.last_idx_scan AS used_at,
    greatest(
        -- Never reset: they began with the statistics of the server, which a crash empties.
        (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()),
        (SELECT stats_reset FROM pg_stat_bgwriter)
    ) AS counted_since_at,
    i.is_needed,
    i.indisvalid AS is_valid,
    (
        SELECT min(o.relname)
        FROM indexes AS o
        WHERE
            o.indrelid = i.indrelid
            AND o.indexrelid <> i.indexrelid
            AND o.kind = i.kind
            AND o.indisvalid
            AND i.indisvalid
            AND (
                -- The same columns: the one that is needed stays, else the older one.
                (
                    o.key_columns = i.key_columns
                    AND o.exact = i.exact
                    AND (o.is_needed OR NOT i.is_needed)
                    AND (o.is_needed AND NOT i.is_needed OR o.indexrelid < i.indexrelid)
                )
                -- Or they are the first columns of the other one, in the same order.
                OR (
                    i.may_be_prefix
                    AND o.may_be_prefix
                    AND NOT i.is_needed
                    AND o.key_columns LIKE i.key_columns || ' %'
                    AND concat_ws(' ', o.indclass) LIKE concat_ws(' ', i.indclass) || ' %'
                    AND concat_ws(' ', o.indcollation) LIKE concat_ws(' ', i.indcollation) || ' %'
                    AND concat_ws(' ', o.indoption) LIKE concat_ws(' ', i.indoption) || ' %'
                )
            )
    ) AS duplicate_of
FROM indexes AS i
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
LEFT JOIN used AS u ON u.indexrelid = i.indexrelid
WHERE
    n.nspname <> 'information_schema'
    AND n.nspname NOT LIKE 'pg\_%'
    AND t.relpersistence <> 't'
    AND t.relkind IN ('r', 'm')
ORDER BY index_bytes DESC NULLS LAST, "table", "index";
