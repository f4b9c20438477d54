-- Lets members of pg_monitor read the plans that auto_explain has logged, and no other line.
--
-- A superuser runs it once in the database that is watched, on PostgreSQL 15 or newer
--
--   psql -f logged_plans.sql
--
-- The right to read files would be one to read every file of the server; this function reads
-- its JSON log and returns the plans of this database. Their values are in them, as they are in
-- pg_stat_activity, which the same roles may read.
CREATE OR REPLACE FUNCTION public.fwdb_logged_plans(since timestamptz, most_bytes bigint)
RETURNS TABLE (
    logged_at timestamptz, query_id bigint, user_name text, application text, message text
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    file record;
    unread bigint := least(most_bytes, 67108864);
    content bytea;
    first integer;
    last integer;
BEGIN
    FOR file IN
        SELECT current_setting('log_directory') || '/' || f.name AS path, f.size
        FROM pg_ls_logdir() AS f
        WHERE f.name LIKE '%.json' AND f.modification >= since
        ORDER BY f.modification DESC
    LOOP
        EXIT WHEN unread <= 0;
        content := pg_read_binary_file(
            file.path, greatest(0, file.size - unread), least(file.size, unread), true
        );
        -- Whole lines only: the first may have been cut here, the last is perhaps being written.
        first := 1;
        IF file.size > unread THEN
            first := position('\x0a'::bytea IN content) + 1;
        END IF;
        unread := unread - file.size;
        last := coalesce(length(content), 0);
        WHILE last > 0 AND get_byte(content, last - 1) <> 10 LOOP
            last := last - 1;
        END LOOP;
        CONTINUE WHEN last < first;
        RETURN QUERY
        SELECT
            CAST(l.entry ->> 'timestamp' AS timestamptz),
            nullif(CAST(l.entry ->> 'query_id' AS bigint), 0),
            l.entry ->> 'user',
            l.entry ->> 'application_name',
            l.entry ->> 'message'
        FROM (
            SELECT CAST(t.line AS json) AS entry
            FROM string_to_table(
                convert_from(
                    substring(content FROM first FOR last - first + 1), getdatabaseencoding()
                ),
                chr(10)
            ) AS t (line)
            WHERE strpos(t.line, '"message":"duration: ') > 0 AND strpos(t.line, ' ms  plan:') > 0
        ) AS l
        WHERE
            l.entry ->> 'dbname' = current_database()
            AND l.entry ->> 'message' LIKE 'duration: % ms  plan:%';
    END LOOP;
END;
$function$;

REVOKE ALL ON FUNCTION public.fwdb_logged_plans(timestamptz, bigint) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION public.fwdb_logged_plans(timestamptz, bigint) TO pg_monitor;

