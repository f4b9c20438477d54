-- Months of the audit trail, oldest first; in the table, on their way out, or in a file alone.
--
-- An attached partition that is not one month in UTC has its bounds and no month. A table that
-- has left the trail counts as a month only when the list of files knows it.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_months.sql
--
-- Columns
--   month        string     2025-10; null for a partition that is not one month
--   state        string     live, leaving (being detached), detached (not dropped yet), archived
--   partition    string     the table with its schema; null when it is dropped
--   since        timestamp  its first moment; null when it has no lower bound
--   until        timestamp  the first moment after it; null when it has no upper bound
--   rows         Int64      of a table what the planner thinks, of a file exactly; null for not known
--   bytes        Int64      of the table with its indexes, else of the file
--   held         boolean    must not be dropped
--   hold_reason  string     why
--   path         string     the file, in the archive folder
--   archived_at  timestamp  when the file was written
--   dropped_at   timestamp  when the table was dropped; null while it is there
--   sha256       string     checksum of the file
WITH attached AS (
    SELECT
        part.oid,
        parent.inhdetachpending AS leaving,
        -- A bound is printed as the session would read it, so the round trip is exact.
        CAST(
            substring(bound.shown FROM 'FROM \(''([^'']+)''\)') AS timestamptz
        ) AS since,
        CAST(substring(bound.shown FROM 'TO \(''([^'']+)''\)') AS timestamptz) AS until
    FROM pg_inherits AS parent
    JOIN pg_class AS part ON part.oid = parent.inhrelid
    CROSS JOIN LATERAL pg_get_expr(part.relpartbound, part.oid) AS bound (shown)
    WHERE parent.inhparent = to_regclass('audit.audit_logs')
), months AS (
    SELECT
        attached.*,
        CASE
            WHEN since AT TIME ZONE 'UTC' = date_trunc('month', since AT TIME ZONE 'UTC')
                AND until AT TIME ZONE 'UTC' = since AT TIME ZONE 'UTC' + interval '1 month'
            THEN CAST(since AT TIME ZONE 'UTC' AS date)
        END AS month
    FROM attached
), found AS (
    SELECT
        coalesce(months.month, archives.month) AS month,
        CASE
            WHEN months.leaving THEN 'leaving'
            WHEN months.oid IS NOT NULL THEN 'live'
            WHEN archives.dropped_at IS NULL AND gone.oid IS NOT NULL THEN 'detached'
            -- In one piece with others: exported, and not removed yet.
            WHEN archives.dropped_at IS NULL AND EXISTS (
                SELECT FROM pg_class
                WHERE oid = to_regclass('audit.audit_logs') AND relkind = 'r'
            ) THEN 'live'
            ELSE 'archived'
        END AS state,
        coalesce(months.oid, CASE WHEN archives.dropped_at IS NULL THEN gone.oid END) AS oid,
        months.since,
        months.until,
        archives.rows,
        archives.bytes,
        archives.path,
        archives.exported_at,
        archives.dropped_at,
        archives.sha256
    FROM months
    FULL JOIN audit.archives ON archives.month = months.month
    LEFT JOIN pg_class AS gone
        ON months.oid IS NULL
        AND gone.oid = to_regclass('audit.audit_logs_' || to_char(archives.month, 'YYYY_MM'))
        AND gone.relkind = 'r'
)
SELECT
    to_char(found.month, 'YYYY-MM') AS month,
    state,
    CAST(CAST(found.oid AS regclass) AS text) AS partition,
    coalesce(since, CAST(found.month AS timestamp) AT TIME ZONE 'UTC') AS since,
    coalesce(
        until, (CAST(found.month AS timestamp) + interval '1 month') AT TIME ZONE 'UTC'
    ) AS until,
    CASE WHEN found.oid IS NULL THEN rows ELSE CAST(nullif(reltuples, -1) AS bigint) END AS rows,
    CASE WHEN found.oid IS NULL THEN bytes ELSE pg_total_relation_size(found.oid) END AS bytes,
    holds.month IS NOT NULL AS held,
    holds.reason AS hold_reason,
    path,
    exported_at AS archived_at,
    dropped_at,
    sha256
FROM found
LEFT JOIN pg_class ON pg_class.oid = found.oid
LEFT JOIN audit.holds ON holds.month = found.month AND holds.released_at IS NULL
ORDER BY coalesce(since, CAST(found.month AS timestamp) AT TIME ZONE 'UTC') NULLS FIRST, state;
