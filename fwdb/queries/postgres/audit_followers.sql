-- How far the changes of MongoDB are recorded, one row a collection that is followed.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_followers.sql
--
-- Columns
--   name           string     the collection
--   source         string     host and database that it is in
--   running        boolean       whether a session follows it now
--   started_at     timestamp  start of the newest run
--   saved_at       timestamp  when it last wrote
--   saved_seconds  float64    the same, as time passed since
--   position_at    timestamp  all changes before are recorded; to the second
--   event_at       timestamp  time of the newest change recorded
--   caught_up_at   timestamp  when it had nothing more to read; null while it is behind
--   behind_seconds float64    age of the later of both: up to it everything is in the trail
--   images         boolean       whether MongoDB keeps documents as they were before changes
--   events         int64      events read
--   changes        int64      rows added to the trail
--   gaps           int64      times of which not each change was seen
--   state          string     JSON, for the follower itself
SELECT
    f.name,
    f.source,
    EXISTS (
        SELECT FROM audit.runs AS r JOIN pg_stat_activity AS a
            ON a.pid = r.pid AND a.usename = r.role AND coalesce(a.backend_start = r.since, true)
        WHERE r.name = 'follow ' || f.name
    ) AS running,
    f.started_at,
    f.saved_at,
    CAST(extract(epoch FROM clock_timestamp() - f.saved_at) AS double precision) AS saved_seconds,
    f.position_at,
    f.event_at,
    f.caught_up_at,
    CAST(
        extract(epoch FROM clock_timestamp() - greatest(f.position_at, f.caught_up_at))
        AS double precision
    ) AS behind_seconds,
    f.images,
    f.events,
    f.changes,
    (SELECT count(*) FROM audit.gaps AS g WHERE g.follower = f.name) AS gaps,
    CAST(f.state AS text) AS state
FROM audit.followers AS f
ORDER BY f.name;
