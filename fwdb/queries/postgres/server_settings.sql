-- A setting of the server that is not as shipped.
--
-- Settings of single sessions and roles are left out. Where a value may hold a secret, its short
-- fingerprint stands for it.
--
--   psql "$FWDB_POSTGRES_URL" -f server_settings.sql
--
-- Columns
--   name      string   the setting
--   value     string   its value with the unit, as SHOW prints it
--   sees_all  boolean  this role may read every setting
SELECT
    name,
    CASE
        WHEN name ~ '(conninfo|command|passphrase|secret|token|salt|_key$|passwd|password$)'
            THEN concat('(secret ', left(md5(setting), 6), ')')
        -- A setting that this very session has changed is not asked for its present value.
        ELSE concat(setting, unit)
    END AS value,
    pg_has_role('pg_read_all_settings', 'USAGE') AS sees_all
FROM pg_settings
WHERE
    name = 'server_version'
    OR source IN ('configuration file', 'command line', 'environment variable', 'global', 'database')
ORDER BY name;
