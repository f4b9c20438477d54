-- A connection pool of one process at one reading.
--
-- Waits, their time and timeouts are those since the process's reading before; at its first
-- reading, since the pool was made.
--
--   psql "$FWDB_POSTGRES_URL" -v since="now() - interval '1 day'" -v until="now()" \
--     -f pool_history.sql
--
-- Columns
--   sampled_at           timestamp  when it was read
--   database             string     postgres or mongodb
--   process              string     application, host and pid
--   capacity             Int64      most connections it may open; missing when unlimited
--   in_use               int64      connections in use
--   idle                 int64      open connections that nobody uses
--   overflow             int64      connections beyond the pool's ordinary size
--   waiting              int64      callers waiting for a connection at that moment
--   waits                int64      waits that ended since the reading before
--   wait_ms              float64    their time together
--   timeouts             int64      of these, given up
--   utilisation_percent  float64    in use of capacity, 0 to 100; missing when unlimited
WITH processes AS (
    SELECT DISTINCT process
    FROM monitoring.readings
    WHERE
        read_at >= CAST(:since AS timestamptz)
        AND read_at <= CAST(:until AS timestamptz)
),

samples AS (
    SELECT
        r.read_at,
        r.process,
        p.*,
        lag(p.waits) OVER each_pool AS waits_before,
        lag(p.wait_ms) OVER each_pool AS wait_ms_before,
        lag(p.timeouts) OVER each_pool AS timeouts_before
    FROM monitoring.pool_samples AS p
    JOIN monitoring.readings AS r USING (reading_id)
    JOIN processes AS s ON s.process = r.process
    WHERE r.read_at <= CAST(:until AS timestamptz)
    WINDOW each_pool AS (PARTITION BY r.process, p.database ORDER BY r.read_at, r.reading_id)
)

SELECT
    read_at AS sampled_at,
    database,
    process,
    capacity,
    in_use,
    idle,
    overflow,
    waiting,
    -- A smaller count than before is another process with the pid of an earlier one.
    CASE WHEN waits >= waits_before THEN waits - waits_before ELSE waits END AS waits,
    CASE WHEN waits >= waits_before THEN wait_ms - wait_ms_before ELSE wait_ms END AS wait_ms,
    CASE WHEN waits >= waits_before THEN timeouts - timeouts_before ELSE timeouts END AS timeouts,
    CAST(100.0 * in_use / nullif(capacity, 0) AS double precision) AS utilisation_percent
FROM samples
WHERE read_at >= CAST(:since AS timestamptz)
ORDER BY sampled_at, process, database;
