-- A month that the audit trail needs now or soon, and whether it has a partition for it.
--
-- No row for a trail that is one table. A bound that is missing is MINVALUE or MAXVALUE.
--
--   psql "$FWDB_POSTGRES_URL" -v months=3 -f audit_coverage_months.sql
--
-- Columns
--   table_name  string     the partition that is to hold the month, as fwdb names it
--   month_at    timestamp  start of the month
--   is_there    boolean    whether rows of the whole month have a place
WITH attached AS (
    SELECT
        shown = 'DEFAULT' AS everything,
        -- A bound is printed as the session would read it, so the round trip is exact.
        CAST(substring(shown FROM 'FROM \(''([^'']+)''\)') AS timestamptz) AS since,
        CAST(substring(shown FROM 'TO \(''([^'']+)''\)') AS timestamptz) AS until
    FROM pg_inherits AS i
    JOIN pg_class AS part ON part.oid = i.inhrelid
    CROSS JOIN LATERAL pg_get_expr(part.relpartbound, part.oid) AS bound (shown)
    WHERE i.inhparent = to_regclass('audit.audit_logs') AND NOT i.inhdetachpending
)
SELECT
    'audit.audit_logs_' || to_char(local_month, 'YYYY_MM') AS table_name,
    month_at,
    EXISTS (
        SELECT FROM attached
        WHERE everything
            OR (coalesce(since, '-infinity') <= month_at AND coalesce(until, 'infinity') >= month_end)
    ) AS is_there
FROM pg_class AS trail
CROSS JOIN generate_series(0, CAST(:months AS int)) AS ahead (n)
CROSS JOIN LATERAL (
    SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month' AS local_month
) AS local
CROSS JOIN LATERAL (
    SELECT
        local_month AT TIME ZONE 'UTC' AS month_at,
        (local_month + interval '1 month') AT TIME ZONE 'UTC' AS month_end
) AS bounds
WHERE trail.oid = to_regclass('audit.audit_logs') AND trail.relkind = 'p'
ORDER BY month_at;
