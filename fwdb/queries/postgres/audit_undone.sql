-- What leads from the rows of a table back to those of an earlier time, one row per entity that
-- changed since.
--
-- The trail is read backwards: a field had the old value of the first change after `moment` that
-- touched it, and has its present value where none did. So neither a creation in the trail nor
-- rows from before `moment` are needed.
--
-- `archived` are changes of months that left the table: a JSON array of objects that are named as
-- the columns; NULL for none.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'User'" -v entity_id=NULL -v archived=NULL \
--     -v moment="now() - interval '7 days'" -f audit_undone.sql
--
-- Columns
--   entity_id      string   the entity
--   existed        boolean  whether it was there; null where the table says so, having it or not
--   replaced       boolean  the row of the table is of a later life of this id
--   values_before  string   JSON of the fields that were different
WITH later AS (
    SELECT
        entity_id,
        created_at,
        id,
        CAST(action AS text) = 'CREATE' AS made,
        -- A soft deletion has both values and is a change.
        CAST(action AS text) = 'DELETE' AND new_values IS NULL AS removed,
        CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END AS old_values
    FROM (
        SELECT
            id, created_at, CAST(action AS text) AS action,
            CAST(entity_type AS text) AS entity_type, entity_id, old_values, new_values
        FROM audit.audit_logs
        UNION ALL
        SELECT
            id, created_at, action, entity_type, entity_id, CAST(old_values AS jsonb),
            CAST(new_values AS jsonb)
        FROM json_to_recordset(CAST(:archived AS json)) AS handed (
            id uuid, created_at timestamptz, action text, entity_type text, entity_id uuid,
            old_values text, new_values text
        )
    ) AS log
    WHERE entity_type = CAST(:entity_type AS text)
        AND created_at > CAST(:moment AS timestamptz)
        AND CAST(action AS text) <> 'READ'
        AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
), placed AS (
    SELECT
        later.*,
        -- How often the entity had come or gone since the moment when this happened.
        count(*) FILTER (WHERE made OR removed) OVER (PARTITION BY entity_id)
        - count(*) FILTER (WHERE made OR removed) OVER (
            PARTITION BY entity_id ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING
        ) AS turns
    FROM later
), undone AS (
    SELECT
        placed.entity_id,
        bool_or(placed.removed) FILTER (WHERE placed.turns = 0 AND (made OR removed)) AS existed,
        bool_or(placed.made) AS replaced,
        coalesce(
            -- Of equal keys the last one stays, which is the first change. The order is that of
            -- the window, so that nothing is sorted twice.
            jsonb_object_agg(
                fields.field, fields.value ORDER BY placed.created_at DESC, placed.id DESC
            ) FILTER (WHERE fields.field IS NOT NULL),
            '{}'
        ) AS values_before
    FROM placed
    LEFT JOIN LATERAL jsonb_each(CASE WHEN placed.turns = 0 THEN placed.old_values END)
        AS fields (field, value) ON true
    GROUP BY placed.entity_id
)
SELECT
    entity_id,
    existed,
    replaced,
    CASE
        WHEN CAST(values_before AS text) ~ '[a-z][A-Z]' THEN coalesce((
            -- The existing service writes firstName for first_name.
            SELECT jsonb_object_agg(lower(regexp_replace(key, '([A-Z])', '_\1', 'g')), value)
            FROM jsonb_each(values_before)
            WHERE key ~ '[A-Z]'
        ), '{}') || values_before
        ELSE values_before
    END AS values_before
FROM undone;
