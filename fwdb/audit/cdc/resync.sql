-- Rows that make the trail say that the documents of fwdb_found are all there are, as of :at.
--
-- What the rows of the follower add up to: from the last whole image of each document on, the last
-- value of each field. Null is a missing field, and a secret is only known to be there. The ids are
-- :prefix and a digest of the entity, so that the same comparison gives the same ids. A change of
-- :bookkeeping alone is none, and one that sets :deleted is a soft deletion.
INSERT INTO audit.audit_logs (
    id, created_at, action, entity_type, entity_id, old_values, new_values, metadata, origin
)
WITH log AS MATERIALIZED (
    SELECT entity_id, created_at, id, CAST(action AS text) AS action, new_values
    FROM audit.audit_logs
    WHERE entity_type = CAST(:entity_type AS text) AND origin = 'follower'
), born AS (
    SELECT DISTINCT ON (entity_id) entity_id, created_at, id, action
    FROM log
    WHERE action = 'CREATE' OR (action = 'DELETE' AND new_values IS NULL)
    ORDER BY entity_id, created_at DESC, id DESC
), known AS (
    SELECT entity_id, jsonb_object_agg(key, value) FILTER (WHERE value <> 'null') AS image
    FROM (
        SELECT DISTINCT ON (log.entity_id, f.key) log.entity_id, f.key,
            CASE f.value WHEN '"[redacted: changed]"' THEN '"[redacted]"' ELSE f.value END AS value
        FROM born
        JOIN log ON log.entity_id = born.entity_id
            AND (log.created_at, log.id) >= (born.created_at, born.id)
        CROSS JOIN LATERAL jsonb_each(log.new_values) AS f
        WHERE born.action = 'CREATE'
        ORDER BY log.entity_id, f.key, log.created_at DESC, log.id DESC
    ) AS field
    GROUP BY entity_id
), differing AS (
    SELECT
        coalesce(known.entity_id, found.entity_id) AS entity_id,
        known.image AS old, found.image AS new, found.metadata, fields.was, fields.is_now
    FROM known FULL JOIN fwdb_found AS found ON found.entity_id = known.entity_id
    LEFT JOIN LATERAL (
        SELECT
            jsonb_object_agg(key, coalesce(known.image -> key, 'null')) AS was,
            jsonb_object_agg(key, coalesce(found.image -> key, 'null')) AS is_now,
            bool_or(key <> ALL (CAST(:bookkeeping AS text[]))) AS real
        FROM (
            SELECT jsonb_object_keys(known.image) AS key
            UNION SELECT jsonb_object_keys(found.image)
        ) AS keys
        WHERE coalesce(known.image -> key, 'null') <> coalesce(found.image -> key, 'null')
    ) AS fields ON known.image IS NOT NULL AND found.image IS NOT NULL
    WHERE known.image IS NULL OR found.image IS NULL OR fields.real
)
SELECT
    CAST(:prefix || left(encode(sha256(uuid_send(differing.entity_id)), 'hex'), 11) AS uuid),
    :at,
    typed.action,
    typed.entity_type,
    differing.entity_id,
    CASE WHEN new IS NULL THEN old ELSE was END,
    CASE WHEN old IS NULL THEN new ELSE is_now END,
    concat_ws('; ', CAST(:note AS text), differing.metadata),
    'follower'
FROM differing
-- In the types of the table, which may be enums.
CROSS JOIN LATERAL jsonb_populate_record(
    CAST(NULL AS audit.audit_logs),
    jsonb_build_object('entity_type', CAST(:entity_type AS text), 'action', CASE
        WHEN old IS NULL THEN 'CREATE'
        WHEN new IS NULL THEN 'DELETE'
        WHEN was -> CAST(:deleted AS text) = 'null' AND is_now -> CAST(:deleted AS text) <> 'null'
        THEN 'DELETE'
        ELSE 'UPDATE'
    END)
) AS typed
ON CONFLICT DO NOTHING /* fwdb */
