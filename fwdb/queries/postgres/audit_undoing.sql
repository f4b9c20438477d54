-- The rows of the trail that a revert undoes, with all later ones of the same entities, in order.
--
-- One of three says what to undo: an entity with a `moment`, after which all goes; an `event`, the
-- id of one row; or a `transaction_id`.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type=NULL -v entity_id=NULL -v moment=NULL \
--     -v event="'0190c1a0-0000-7000-8000-000000000001'" -v transaction_id=NULL \
--     -f audit_undoing.sql
--
-- Columns
--   id          string     row of the trail
--   created_at  timestamp  moment of the change
--   action      string     CREATE, UPDATE or DELETE
--   entity_type string     User, Avatar, CatalogItem, Design
--   entity_id   string     as the uuid of the table
--   user_id     string     who did it; null when not known
--   origin      string     trigger, follower or application; null before fwdb
--   old_values  string     JSON before the change
--   new_values  string     JSON after the change
--   undone      boolean    to be undone; else it came later
WITH chosen AS MATERIALIZED (
    SELECT log.id, log.created_at, log.entity_type, log.entity_id
    FROM (VALUES (CAST(NULL AS bigint))) AS missing (transaction_id)
    CROSS JOIN LATERAL (
        SELECT id, created_at, entity_type, entity_id
        FROM audit.audit_logs
        WHERE CAST(action AS text) <> 'READ'
            AND created_at > coalesce(
                CAST(:moment AS timestamptz), CAST('-infinity' AS timestamptz)
            )
            AND (CAST(:entity_type AS text) IS NULL OR entity_type = CAST(:entity_type AS text))
            AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
            AND (CAST(:event AS uuid) IS NULL OR id = CAST(:event AS uuid))
            AND (
                CAST(:transaction_id AS bigint) IS NULL
                OR transaction_id = CAST(:transaction_id AS bigint)
            )
    ) AS log
), entities AS MATERIALIZED (
    SELECT entity_type, entity_id, min(created_at) AS first_at
    FROM chosen
    GROUP BY entity_type, entity_id
)
SELECT
    log.id,
    log.created_at,
    CAST(log.action AS text) AS action,
    CAST(log.entity_type AS text) AS entity_type,
    log.entity_id,
    log.user_id,
    log.origin,
    CAST(log.old_values AS text) AS old_values,
    CAST(log.new_values AS text) AS new_values,
    log.id IN (SELECT id FROM chosen) AS undone
FROM (VALUES (CAST(NULL AS text))) AS missing (origin)
CROSS JOIN LATERAL (
    SELECT
        later.id,
        later.created_at,
        later.action,
        later.entity_type,
        later.entity_id,
        later.user_id,
        origin,
        later.old_values,
        later.new_values
    FROM entities
    JOIN audit.audit_logs AS later
        ON later.entity_type = entities.entity_type
        AND later.entity_id = entities.entity_id
        AND later.created_at >= entities.first_at
    WHERE CAST(later.action AS text) <> 'READ'
) AS log
ORDER BY log.created_at, log.id;
