-- What capture stands on: ids, facts of a table, and who may call what.

-- Ids in the order of the changes, on any version of the server: of version 7, milliseconds,
-- microseconds, then a number of the sequence. Random ids cost a system call each. RETURN binds the
-- names now, as a search_path would, and lets the planner put the expression in place of the call.
CREATE OR REPLACE FUNCTION audit.time_id(timestamptz, bigint) RETURNS uuid LANGUAGE sql STABLE
RETURN CAST(
    '0' || to_hex(CAST(date_part('epoch', $1) * 1000000 AS bigint) / 1000 << 16
                  | 28672 | CAST(date_part('epoch', $1) * 1000000 AS bigint) % 1000 * 4)
    || to_hex((-9223372036854775808) | $2) AS uuid);

CREATE OR REPLACE FUNCTION audit.columns_of(regclass, OUT names text[], OUT numbers int[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT array_agg(CAST(attname AS text) ORDER BY attnum), array_agg(CAST(attnum AS int) ORDER BY attnum)
FROM pg_attribute
WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v'
$$;

-- The name of the uuid that is the primary key, or null.
CREATE OR REPLACE FUNCTION audit.key_of(regclass) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT a.attname
FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = $1 AND i.indisprimary AND i.indnkeyatts = 1
    AND a.atttypid = CAST('uuid' AS regtype)
$$;

CREATE OR REPLACE FUNCTION audit.relation_name(regclass) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1
$$;

-- Why a table cannot be captured, as a sentence, or null.
CREATE OR REPLACE FUNCTION audit.refusal(regclass) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE
    WHEN c.relkind NOT IN ('r', 'p') THEN format('%s is not a table.', $1)
    WHEN c.relnamespace = CAST('audit' AS regnamespace)
        THEN format('%s belongs to the trail, which does not record itself.', $1)
    WHEN c.relispartition
        THEN format('%s is a partition; capture the table that it is part of.', $1)
    WHEN audit.key_of($1) IS NULL
        THEN format('%s has no primary key of one uuid column, by which the trail names rows.', $1)
    WHEN EXISTS (
        SELECT FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        CROSS JOIN unnest(ARRAY['CREATE', 'UPDATE', 'DELETE']) AS label
        WHERE a.attrelid = CAST('audit.audit_logs' AS regclass) AND a.attname = 'action'
            AND t.typtype = 'e'
            AND NOT EXISTS (SELECT FROM pg_enum WHERE enumtypid = t.oid AND enumlabel = label)
    ) THEN 'the enum of audit.audit_logs.action lacks CREATE, UPDATE or DELETE; add it.'
END
FROM pg_class AS c WHERE c.oid = $1
$$;

-- Stops a capture function on a table that no owner of captured tables owns: it would forge rows of
-- the trail. Partitions and renamed tables come here; a table of its name needs no look.
CREATE OR REPLACE FUNCTION audit.require_captured(regclass) RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_class AS fired JOIN pg_class AS known ON known.relowner = fired.relowner
        WHERE fired.oid = coalesce(pg_partition_root($1), $1) AND fired.relpersistence <> 't'
            AND (known.oid = CAST('audit.captured' AS regclass)
                OR known.oid IN (SELECT to_regclass(relation) FROM audit.captured))
    ) THEN
        RAISE insufficient_privilege USING MESSAGE = format(
            '%s is not captured, and its changes are not recorded: drop this trigger.', $1);
    END IF;
END $$;

-- HMAC-SHA256 (RFC 2104), its first 128 bits: whether two values are equal, and nothing else.
CREATE OR REPLACE FUNCTION audit.fingerprint(text) RETURNS jsonb LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT to_jsonb(coalesce((
    SELECT '[fingerprint ' || left(encode(
        sha256(outer_pad || sha256(inner_pad || convert_to($1, 'UTF8'))), 'hex'), 32) || ']'
    FROM audit.fingerprint_key), '[redacted]'))
$$;

-- A trigger function that anybody may name in CREATE TRIGGER could be put on any table, and forge.
CREATE OR REPLACE FUNCTION audit.protect_function(regprocedure) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_proc AS p
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
        WHERE p.oid = $1 AND acl.grantee <> p.proowner
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', $1, CASE other.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
    END LOOP;
END $$;

-- Lets those who read the trail call what its coverage and its drift ask.
CREATE OR REPLACE FUNCTION audit.grant_reading() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    other record;
BEGIN
    FOR other IN
        SELECT DISTINCT acl.grantee
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = CAST('audit.audit_logs' AS regclass)
            AND acl.grantee <> c.relowner AND acl.privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION audit.columns_of, audit.key_of, audit.outdated,
            audit.capture_source TO %s', CASE other.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(other.grantee)) END);
    END LOOP;
END $$;

-- A name for the function that no other captured table has.
CREATE OR REPLACE FUNCTION audit.capture_name(regclass) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE
    WHEN plain ~ '^[a-z0-9_]{1,50}$' AND NOT EXISTS (
        SELECT FROM audit.captured WHERE name = plain)
    THEN plain ELSE left(regexp_replace(lower(plain), '[^a-z0-9_]', '_', 'g'), 40) || '_'
        || left(encode(sha256(convert_to(full_name, 'UTF8')), 'hex'), 8)
END
FROM (
    SELECT n.nspname || '_' || c.relname AS plain, n.nspname || '.' || c.relname AS full_name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1
) AS named
$$;
