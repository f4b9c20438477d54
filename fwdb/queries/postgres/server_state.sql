-- The least that a server which is well answers; one row.
--
--   psql "$FWDB_POSTGRES_URL" -f server_state.sql
--
-- Columns
--   version      string   such as 18.6
--   in_recovery  boolean  a replica, or a server that still starts: it takes no writes
--   read_only    boolean  this database was told to take none, as providers do when a disk is full
SELECT
    split_part(current_setting('server_version'), ' ', 1) AS version,
    pg_is_in_recovery() AS in_recovery,
    -- Not what holds in this session: fwdb sets it itself, and a role may be told for good reason.
    EXISTS (
        SELECT
        FROM pg_db_role_setting AS s
        CROSS JOIN unnest(s.setconfig) AS c (setting)
        JOIN pg_database AS d ON d.datname = current_database()
        WHERE
            s.setrole = 0
            AND s.setdatabase IN (0, d.oid)
            AND CASE
                WHEN c.setting LIKE 'default_transaction_read_only=%'
                    THEN CAST(split_part(c.setting, '=', 2) AS boolean)
            END
    ) AS read_only;
