-- Whether readings can be stored in and read from this database; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f history_state.sql
--
-- Columns
--   is_there   boolean  the table monitoring.readings exists
--   may_read   boolean  this role may read it
--   may_write  boolean  this role may write it
--   read_only  boolean  this session, or the whole server, takes no writes
--   role_name  string   this role
SELECT
    h.readings IS NOT NULL AS is_there,
    coalesce(h.may_enter AND has_table_privilege(h.readings, 'SELECT'), false) AS may_read,
    coalesce(h.may_enter AND has_table_privilege(h.readings, 'INSERT'), false) AS may_write,
    CAST(current_setting('transaction_read_only') AS boolean) AS read_only,
    current_user AS role_name
FROM (SELECT 1) AS always
-- By the catalog: to_regclass() fails for a role that may not use the schema.
LEFT JOIN (
    SELECT
        c.oid AS readings,
        has_schema_privilege(n.oid, 'USAGE') AS may_enter
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'monitoring' AND c.relname = 'readings'
) AS h ON true;
