-- What leads from the rows of a table back to those of an earlier time, one row per entity that
-- changed since.
--
-- The trail is read backwards: a field had the old value of the first change after `moment` that
-- touched it, and has its present value where none did. So neither a creation in the trail nor
-- rows from before `moment` are needed.
--
--   psql "$FWDB_POSTGRES_URL" -v entity_type="'User'" -v entity_id=NULL \
--     -v moment="now() - interval '7 days'" -f audit_undone.sql
--
-- Columns
--   entity_id      string   the entity
--   existed        boolean  whether it was there; null where the table says so, having it or not
--   replaced       boolean  the row of the table is of a later life of this id
--   values_before  string   JSON of the fields that were different
WITH later AS MATERIALIZED (
    SELECT
        entity_id,
        CAST(action AS text) = 'CREATE' AS made,
        -- A soft deletion has both values and is a change.
        CAST(action AS text) = 'DELETE' AND new_values IS NULL AS removed,
        CASE jsonb_typeof(old_values) WHEN 'object' THEN old_values END AS old_values,
        row_number() OVER (PARTITION BY entity_id ORDER BY created_at, id) AS place
    FROM audit.audit_logs
    WHERE entity_type = CAST(:entity_type AS text)
        AND created_at > CAST(:moment AS timestamptz)
        AND CAST(action AS text) <> 'READ'
        AND (CAST(:entity_id AS uuid) IS NULL OR entity_id = CAST(:entity_id AS uuid))
), ends AS (
    SELECT
        entity_id,
        min(place) FILTER (WHERE made) AS made_at,
        min(place) FILTER (WHERE removed) AS removed_at
    FROM later
    GROUP BY entity_id
)
SELECT
    entity_id,
    CASE
        WHEN ends.made_at < coalesce(ends.removed_at, ends.made_at + 1) THEN false
        WHEN ends.removed_at IS NOT NULL THEN true
    END AS existed,
    ends.made_at IS NOT NULL AS replaced,
    coalesce(
        -- Of equal keys the last one stays, which is the first change.
        jsonb_object_agg(fields.field, fields.value ORDER BY later.place DESC)
            FILTER (WHERE fields.field IS NOT NULL),
        '{}'
    ) AS values_before
FROM ends
JOIN later USING (entity_id)
LEFT JOIN LATERAL (
    SELECT changed.field, changed.value
    FROM jsonb_each(later.old_values) AS changed (field, value)
    UNION ALL
    -- The existing service writes firstName for first_name.
    SELECT lower(regexp_replace(changed.field, '([A-Z])', '_\1', 'g')), changed.value
    FROM jsonb_each(later.old_values) AS changed (field, value)
    WHERE changed.field ~ '[A-Z]'
) AS fields ON later.place <= coalesce(ends.removed_at, later.place)
GROUP BY entity_id, ends.made_at, ends.removed_at;
