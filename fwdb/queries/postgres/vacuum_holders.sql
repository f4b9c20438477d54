-- Who keeps vacuum from removing dead rows, the one that keeps most first.
--
--   psql "$FWDB_POSTGRES_URL" -f vacuum_holders.sql
--
-- Columns
--   holder           string   session, prepared transaction, slot or replica
--   name             string   application and pid, or the name of the transaction, slot or replica
--   state            string   of the session
--   transaction_age  int64    transactions since the oldest rows it may still see
--   seconds          float64  age of its transaction; null where the server does not tell
SELECT
    holder,
    name,
    state,
    CAST(transaction_age AS bigint) AS transaction_age,
    CAST(seconds AS double precision) AS seconds
FROM (
    SELECT
        CASE WHEN backend_type = 'walsender' THEN 'replica' ELSE 'session' END AS holder,
        concat(coalesce(nullif(application_name, ''), usename), ' (process ', pid, ')') AS name,
        state,
        greatest(age(backend_xmin), age(backend_xid)) AS transaction_age,
        extract(EPOCH FROM clock_timestamp() - xact_start) AS seconds
    FROM pg_stat_activity
    WHERE
        pid <> pg_backend_pid()
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND backend_type IN ('client backend', 'walsender', 'background worker')
        AND (datname = current_database() OR backend_type = 'walsender')
    UNION ALL
    SELECT
        'prepared transaction',
        gid,
        NULL,
        age(transaction),
        extract(EPOCH FROM clock_timestamp() - prepared)
    FROM pg_prepared_xacts
    WHERE database = current_database()
    UNION ALL
    SELECT 'slot', slot_name, NULL, greatest(age(xmin), age(catalog_xmin)), NULL
    FROM pg_replication_slots
    WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
) AS holders
ORDER BY transaction_age DESC, seconds DESC NULLS LAST, name;
