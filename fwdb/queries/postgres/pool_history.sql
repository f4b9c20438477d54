-- A connection pool of one process at one reading.
--
-- Waits, holds, their times and timeouts are those since the process's reading before; at its
-- first reading, since the pool was made. A reading that stands for an hour, of those older than
-- FWDB_HISTORY_DETAIL_DAYS, has the most that was in use and waited within it.
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
--   seconds              float64    time since the reading before; missing at the first
--   waits                int64      waits that ended since the reading before
--   wait_ms              float64    their time together
--   timeouts             int64      of these, given up
--   holds                int64      connections that were returned since the reading before
--   hold_ms              float64    time that those were held, together
--   opened               int64      connections opened since the reading before
--   closed               int64      connections closed since the reading before
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
        r.reading_id,
        r.read_at,
        r.process,
        p.database,
        p.capacity,
        p.in_use,
        p.idle,
        p.overflow,
        p.waiting,
        p.waits,
        p.wait_ms,
        p.timeouts,
        CAST((SELECT sum(c) FROM unnest(p.hold_counts) AS h (c)) AS bigint) AS holds,
        p.hold_ms,
        p.opened,
        p.closed
    FROM monitoring.pool_samples AS p
    JOIN monitoring.readings AS r USING (reading_id)
    JOIN processes AS s ON s.process = r.process
    WHERE r.read_at <= CAST(:until AS timestamptz)
),

pairs AS (
    SELECT
        s.*,
        lag(read_at) OVER each_pool AS before_at,
        lag(waits) OVER each_pool AS waits_before,
        lag(wait_ms) OVER each_pool AS wait_ms_before,
        lag(timeouts) OVER each_pool AS timeouts_before,
        lag(holds) OVER each_pool AS holds_before,
        lag(hold_ms) OVER each_pool AS hold_ms_before,
        lag(opened) OVER each_pool AS opened_before,
        lag(closed) OVER each_pool AS closed_before
    FROM samples AS s
    WINDOW each_pool AS (PARTITION BY process, database ORDER BY read_at, reading_id)
),

goes_on AS (
    SELECT
        p.*,
        -- A smaller count than before is another process with the pid of an earlier one.
        coalesce(
            opened >= opened_before AND holds >= holds_before AND waits >= waits_before, false
        ) AS same
    FROM pairs AS p
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
    CASE
        WHEN same THEN CAST(extract(EPOCH FROM read_at - before_at) AS double precision)
    END AS seconds,
    CASE WHEN same THEN waits - waits_before ELSE waits END AS waits,
    CASE WHEN same THEN wait_ms - wait_ms_before ELSE wait_ms END AS wait_ms,
    CASE WHEN same THEN timeouts - timeouts_before ELSE timeouts END AS timeouts,
    CASE WHEN same THEN holds - holds_before ELSE holds END AS holds,
    CASE WHEN same THEN hold_ms - hold_ms_before ELSE hold_ms END AS hold_ms,
    CASE WHEN same THEN opened - opened_before ELSE opened END AS opened,
    CASE WHEN same THEN closed - closed_before ELSE closed END AS closed,
    CAST(100.0 * in_use / nullif(capacity, 0) AS double precision) AS utilisation_percent
FROM goes_on
WHERE read_at >= CAST(:since AS timestamptz)
ORDER BY sampled_at, process, database;
