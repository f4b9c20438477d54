-- Entities of one type as the trail alone tells that they were, one row per entity there then.
--
-- A field has the new value of the last change up to `moment`; without one, the old value of the
-- first change after it. So what was never changed is known only from a creation.
--
-- `archived` are changes of months that left the table: a JSON array of objects that are named as
-- the columns; NULL for none.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'Design'" -v entity_id=NULL -v archived=NULL \
--     -v moment="now() - interval '7 days'" -f audit_replayed.sql
--
-- Columns
--   entity_id    string     the entity
--   existed      boolean    whether it was there
--   complete     boolean    the trail has its creation
--   known_since  timestamp  when it was made, else its first row in the trail
--   changed_at   timestamp  its last change up to `moment`; null when there is none
--   state        string     JSON of its fields
WITH changes AS MATERIALIZED (
    SELECT
        entity_id,
        created_at,
        CAST(action AS text) = 'CREATE' AS made,
        -- A soft deletion has both values and is a change.
        CAST(action AS text) = 'DELETE' AND new_values IS NULL AS removed,
        created_at <= CAST(:moment AS timestamptz) AS past,
        CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END AS old_values,
        CASE jsonb_typeof(new_values) WHEN 'object' THEN new_values END AS new_values,
        row_number() OVER (PARTITION BY entity_id ORDER BY created_at, id) AS place
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
        AND CAST(action AS text) <> 'READ'
        AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
), ends AS (
    SELECT
        entity_id,
        coalesce(max(place) FILTER (WHERE past AND made), 0) AS made_before,
        coalesce(max(place) FILTER (WHERE past AND removed), 0) AS removed_before,
        coalesce(min(place) FILTER (WHERE NOT past AND made), max(place) + 1) AS made_after,
        coalesce(min(place) FILTER (WHERE NOT past AND removed), max(place) + 1) AS removed_after,
        coalesce(min(created_at) FILTER (WHERE made), min(created_at)) AS known_since,
        max(created_at) FILTER (WHERE past) AS changed_at
    FROM changes
    GROUP BY entity_id
)
SELECT
    entity_id,
    CASE
        WHEN ends.made_before + ends.removed_before > 0
        THEN ends.made_before > ends.removed_before
        ELSE ends.removed_after <= ends.made_after
    END AS existed,
    ends.made_before > 0 AS complete,
    ends.known_since,
    ends.changed_at,
    coalesce(
        -- Of equal keys the last one stays: the last change before, else the first one after.
        jsonb_object_agg(
            fields.field, fields.value ORDER BY CASE WHEN past THEN place ELSE - place END
        ) FILTER (WHERE fields.field IS NOT NULL),
        '{}'
    ) AS state
FROM ends
JOIN changes USING (entity_id)
LEFT JOIN LATERAL jsonb_each(CASE WHEN past THEN new_values ELSE old_values END)
    AS fields (field, value)
    ON place >= greatest(ends.made_before, ends.removed_before + 1)
        AND place <= ends.removed_after
        AND place < ends.made_after
GROUP BY
    entity_id, ends.made_before, ends.removed_before, ends.made_after, ends.removed_after,
    ends.known_since, ends.changed_at;
