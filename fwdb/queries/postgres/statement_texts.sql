-- The text of a statement that pg_stat_statements holds, passwords left out.
--
--   psql "$FWDB_POSTGRES_URL" -v query_ids="'{1,2}'" -f statement_texts.sql
--
-- Columns
--   database_id  int64   this database
--   query_id     int64   identity of the statement
--   statement    string  its text, constants as $1, $2, …; at most 10,000 characters
SELECT DISTINCT ON (queryid)
    CAST(dbid AS bigint) AS database_id,
    queryid AS query_id,
    -- Constants of SELECT and the like are gone already; those of ALTER ROLE, CREATE USER MAPPING
    -- and CREATE SUBSCRIPTION are not.
    left(
        regexp_replace(
            regexp_replace(
                query,
                '(password\s+)(E?''([^'']|'''')*''|\$\w*\$.*?\$\w*\$)',
                '\1''***''',
                'gi'
            ),
            '(password\s*=\s*)[^\s'']+',
            '\1***',
            'gi'
        ),
        10000
    ) AS statement
FROM pg_stat_statements
WHERE
    dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND queryid = ANY(CAST(:query_ids AS bigint[]))
    AND query IS NOT NULL
ORDER BY queryid, calls DESC;
