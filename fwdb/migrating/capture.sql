-- Capture: functions that write, for each table of audit.captured, the trigger that records its
-- changes. A DBA may call audit.capture(), audit.uncapture() and audit.recapture() by hand.
--
-- The generated function works on whole rows as JSON and not on columns: a column that is added,
-- dropped, retyped or renamed changes nothing for those who write to the table, and no change is
-- lost until the function is written anew. Row triggers, because only they see a changed primary
-- key, writes straight to a partition, and each change before what other triggers make of it.

-- The source of the trigger function of one table.
CREATE OR REPLACE FUNCTION audit.capture_source(audit.captured, key text) RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $source$
DECLARE
    action_type text;
    checked boolean := EXISTS (
        SELECT FROM pg_constraint AS c JOIN pg_attribute AS a
            ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] AND a.attname = 'user_id'
        WHERE c.conrelid = CAST('audit.audit_logs' AS regclass) AND c.contype = 'f');
    omitted text[] := ARRAY(SELECT r.key FROM jsonb_each_text($1.redact) AS r WHERE r.value = 'omit');
    masked text[] := ARRAY(SELECT r.key FROM jsonb_each_text($1.redact) AS r WHERE r.value = 'mask');
    printed text[] := ARRAY(
        SELECT r.key FROM jsonb_each_text($1.redact) AS r WHERE r.value = 'fingerprint');
    redacted text[] := omitted || masked || printed;
    left_out text[];
    recording text := '';
    masking CONSTANT text := $code$
    new_row := CASE WHEN new_row ->> @ IS NULL THEN new_row ELSE jsonb_set(
        new_row, ARRAY[@], CASE WHEN partial AND old_row ->> @ IS NOT NULL
            THEN jsonb '"[redacted: changed]"' ELSE '"[redacted]"' END) END;
    old_row := CASE WHEN old_row ->> @ IS NULL THEN old_row ELSE jsonb_set(
        old_row, ARRAY[@], '"[redacted]"') END;$code$;
    settings text := 'SET TimeZone = ''UTC''';
    same text;
    table_name text[] := parse_ident($1.relation);
BEGIN
    SELECT format_type(atttypid, atttypmod) INTO STRICT action_type FROM pg_attribute
    WHERE attrelid = CAST('audit.audit_logs' AS regclass) AND attname = 'action';
    -- PostgreSQL gives triggers no value of a virtual column, only null.
    left_out := omitted || ARRAY(SELECT CAST(attname AS text) FROM pg_attribute
        WHERE attrelid = CAST($1.relation AS regclass) AND NOT attisdropped AND attgenerated = 'v');
    SELECT string_agg(format(
        'CASE WHEN old_row ->> %1$L IS NOT DISTINCT FROM new_row ->> %1$L THEN %1$L END', name),
        E',\n            ') INTO same FROM unnest($1.columns) AS name;
    -- Each setting costs time on every row: those of which the text of no column depends are left.
    IF EXISTS (
        SELECT FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = CAST($1.relation AS regclass) AND a.attnum > 0 AND NOT a.attisdropped
            AND t.typtype <> 'e' AND t.typname NOT IN (
                'bool', 'int2', 'int4', 'int8', 'numeric', 'uuid', 'text', 'varchar', 'bpchar',
                'date', 'timestamp', 'timestamptz', 'json', 'jsonb')
    ) THEN
        settings := settings || ' SET DateStyle = ''ISO'' SET IntervalStyle = ''postgres'''
            ' SET bytea_output = ''hex'' SET extra_float_digits = 1';
    END IF;
    IF redacted <> '{}' THEN
        recording := recording || format($code$
    -- A redacted column has another name now: what nobody has judged is not shown.
    IF NOT complete ?& CAST(%L AS text[]) THEN
        FOREACH field IN ARRAY ARRAY(
            SELECT name FROM jsonb_object_keys(complete) AS name
            WHERE name <> ALL (CAST(%L AS text[])))
        LOOP%s
        END LOOP;
    END IF;$code$, redacted, $1.columns, replace(masking, '@', 'field'));
    END IF;
    SELECT recording || coalesce(string_agg(replace(masking, '@', quote_literal(name)), ''), '')
    INTO recording FROM unnest(masked) AS name;
    IF printed <> '{}' THEN
        recording := recording || format($code$
        FOREACH field IN ARRAY CAST(%L AS text[]) LOOP
            IF new_row ->> field IS NOT NULL THEN
                new_row := jsonb_set(new_row, ARRAY[field], audit.fingerprint(new_row ->> field));
            END IF;
            IF old_row ->> field IS NOT NULL THEN
                old_row := jsonb_set(old_row, ARRAY[field], audit.fingerprint(old_row ->> field));
            END IF;
        END LOOP;$code$, printed);
    END IF;
    IF left_out <> '{}' THEN
        recording := recording || format($code$
        old_row := old_row - CAST(%1$L AS text[]);
        new_row := new_row - CAST(%1$L AS text[]);$code$, left_out);
    END IF;
    recording := recording || $code$
        happened := clock_timestamp();
        number := nextval('audit.change_number');
        entity := CAST(CASE WHEN complete ? key THEN complete ->> key
        ELSE complete ->> audit.key_of(TG_RELID) END AS uuid);$code$;
    recording := recording || format($code$
        row_id := audit.time_id(happened, number);
        INSERT INTO audit.audit_logs (
            id, user_id, entity_type, entity_id, action, old_values, new_values, metadata,
            ip_address, user_agent, created_at, transaction_id, origin, reason, db_user,
            application_name, client_address
        ) VALUES (
            row_id, actor, %L, entity, %s, old_row, new_row, note,
            address, agent, happened, CAST(CAST(pg_current_xact_id() AS text) AS bigint), 'trigger', why,
            session_user, nullif(current_setting('application_name'), ''), host(inet_client_addr())
        );$code$, $1.entity_type, CASE WHEN action_type ~ '^(character varying|text)'
            THEN 'did' ELSE format('CAST(did AS %s)', action_type) END);
    RETURN format($function$
CREATE OR REPLACE FUNCTION audit.capture_%1$s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
%8$s
SET plan_cache_mode = 'force_generic_plan' AS $body$
DECLARE
    who jsonb := CAST(nullif(current_setting('fwdb.actor', true), '') AS jsonb);
    actor uuid; address text; agent text; why text;
    key text := %2$L;
    old_row jsonb; new_row jsonb; complete jsonb;
    partial boolean;
    did text;
    note text; happened timestamptz; number bigint; row_id uuid; entity uuid;
    same text[]; field text; part regclass;
BEGIN
    IF TG_TABLE_NAME <> %9$L OR TG_TABLE_SCHEMA <> %10$L THEN
        PERFORM audit.require_captured(TG_RELID);
    END IF;
    IF who IS NOT NULL THEN
        actor := %3$s;
        address := who ->> 'ip_address';
        agent := who ->> 'user_agent';
        why := who ->> 'reason';
    END IF;
    IF TG_OP = 'INSERT' THEN
        new_row := to_jsonb(NEW);
        complete := new_row;
        did := 'CREATE';
    ELSIF TG_OP = 'UPDATE' THEN
        old_row := to_jsonb(OLD);
        new_row := to_jsonb(NEW);
        complete := new_row;
        key := CASE WHEN complete ? key THEN key ELSE audit.key_of(TG_RELID) END;
        IF old_row ->> key = new_row ->> key THEN
            same := ARRAY[
            %6$s];
            partial := true;
            old_row := old_row - same;
            new_row := new_row - same;
            IF new_row - CAST(%7$L AS text[]) = '{}' THEN
                RETURN NULL;
            END IF;
            did := CASE WHEN old_row ->> 'deleted_at' IS NULL
                AND new_row ->> 'deleted_at' IS NOT NULL THEN 'DELETE' ELSE 'UPDATE' END;
        ELSE
            note := format('primary key changed from %%s to %%s', old_row ->> key, new_row ->> key);
            did := 'DELETE';
            complete := old_row;
            new_row := NULL;%5$s
            did := 'CREATE';
            old_row := NULL;
            new_row := to_jsonb(NEW);
            complete := new_row;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        old_row := to_jsonb(OLD);
        complete := old_row;
        did := 'DELETE';
    ELSE
        -- An older snapshot would not show all the rows that go.
        IF current_setting('transaction_isolation') NOT LIKE 'read %%committed' THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = format('TRUNCATE of %%s is recorded in read committed only', %4$L);
        END IF;
        did := 'DELETE';
        note := 'truncated';
        FOR part IN
            SELECT TG_RELID UNION ALL
            -- Partitions that were attached since the triggers were made.
            SELECT p.relid FROM pg_partition_tree(TG_RELID) AS p
            WHERE p.level > 0 AND p.isleaf AND NOT EXISTS (
                SELECT FROM pg_trigger WHERE tgrelid = p.relid AND tgname = TG_NAME)
        LOOP
            FOR old_row IN EXECUTE format('SELECT to_jsonb(r) FROM ONLY %%s AS r', part) LOOP
                complete := old_row;%5$s
            END LOOP;
        END LOOP;
        RETURN NULL;
    END IF;%5$s
    RETURN NULL;
END $body$ $function$,
        $1.name, key,
        CASE WHEN checked
            THEN '(SELECT u.id FROM shared.users AS u WHERE u.id = CAST(who ->> ''user_id'' AS uuid))'
            ELSE 'who ->> ''user_id''' END,
        $1.relation, recording, same, $1.ignore || left_out, settings,
        table_name[2], table_name[1]);
END $source$;

-- Records the changes of a table from now on, or writes its triggers anew. What is not given stays
-- as it is captured already.
CREATE OR REPLACE FUNCTION audit.capture(
    relation regclass, entity_type text DEFAULT NULL, redact jsonb DEFAULT NULL,
    ignore text[] DEFAULT NULL
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $capture$
#variable_conflict use_column
DECLARE
    before audit.captured;
    now audit.captured;
    of_table record;
    said text := audit.refusal(capture.relation);
    part regclass;
BEGIN
    IF said IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = said;
    END IF;
    -- Nobody writes while the triggers change, so no change is recorded twice or not at all.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', capture.relation);
    SELECT * INTO before FROM audit.captured WHERE relation = audit.relation_name(capture.relation);
    of_table := audit.columns_of(capture.relation);
    now := before;
    now.relation := audit.relation_name(capture.relation);
    now.entity_type := coalesce(capture.entity_type, before.entity_type);
    now.redact := coalesce(capture.redact, before.redact, '{}');
    now.ignore := coalesce(capture.ignore, before.ignore, '{}');
    now.name := coalesce(before.name, audit.capture_name(capture.relation));
    IF before.relation IS NOT NULL THEN
        now := audit.renamed(now, of_table.numbers, of_table.names);
    END IF;
    now.columns := of_table.names;
    now.numbers := of_table.numbers;
    now.generated_at := clock_timestamp();
    said := audit.contradiction(now, capture.redact IS NOT NULL, capture.ignore IS NOT NULL);
    IF said IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = said;
    END IF;
    DELETE FROM audit.captured WHERE relation = now.relation;
    INSERT INTO audit.captured (
        relation, entity_type, redact, ignore, columns, numbers, name, generated_at
    ) VALUES (
        now.relation, now.entity_type, now.redact, now.ignore, now.columns, now.numbers, now.name,
        now.generated_at
    );
    EXECUTE audit.capture_source(now, audit.key_of(capture.relation));
    EXECUTE format('COMMENT ON FUNCTION audit.capture_%s() IS %L', now.name,
        format('Records the changes of %s. Made by fwdb.', now.relation));
    PERFORM audit.protect_function(CAST(format('audit.capture_%s()', now.name) AS regprocedure));
    PERFORM audit.grant_reading();
    IF NOT EXISTS (SELECT FROM pg_trigger
                   WHERE tgrelid = capture.relation AND tgname = '00_fwdb_audit') THEN
        EXECUTE format('CREATE TRIGGER "00_fwdb_audit" AFTER INSERT OR UPDATE OR DELETE ON %s'
            ' FOR EACH ROW EXECUTE FUNCTION audit.capture_%s()', capture.relation, now.name);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "00_fwdb_audit"', capture.relation);
    END IF;
    FOR part IN
        SELECT capture.relation UNION
        SELECT relid FROM pg_partition_tree(capture.relation) WHERE level > 0 AND isleaf
    LOOP
        IF NOT EXISTS (SELECT FROM pg_trigger
                       WHERE tgrelid = part AND tgname = '00_fwdb_audit_truncate') THEN
            EXECUTE format('CREATE TRIGGER "00_fwdb_audit_truncate" BEFORE TRUNCATE ON %s'
                ' FOR EACH STATEMENT EXECUTE FUNCTION audit.capture_%s()', part, now.name);
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "00_fwdb_audit_truncate"', part);
        END IF;
    END LOOP;
END $capture$;

-- With the columns that are redacted or ignored under their present names, found by number.
CREATE OR REPLACE FUNCTION audit.renamed(audit.captured, numbers int[], names text[])
RETURNS audit.captured LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result audit.captured := $1;
    change record;
BEGIN
    FOR change IN
        SELECT was.name AS old_name, present.name AS new_name
        FROM unnest($1.columns, $1.numbers) AS was (name, number)
        JOIN unnest(names, numbers) AS present (name, number) ON present.number = was.number
        WHERE was.name <> present.name AND was.name <> ALL (names)
    LOOP
        IF result.redact ? change.old_name THEN
            result.redact := result.redact - change.old_name
                || jsonb_build_object(change.new_name, result.redact -> change.old_name);
        END IF;
        result.ignore := array_replace(result.ignore, change.old_name, change.new_name);
    END LOOP;
    RETURN result;
END $$;

-- What is wrong with the wishes for a table, as a sentence, or null.
CREATE OR REPLACE FUNCTION audit.contradiction(audit.captured, new_redact boolean, new_ignore boolean)
RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE
    WHEN coalesce($1.entity_type, '') = '' OR length($1.entity_type) > 100
        THEN format('%s needs an entity_type of 1 to 100 characters.', $1.relation)
    WHEN EXISTS (SELECT FROM jsonb_each_text($1.redact)
                 WHERE value IS NULL OR value NOT IN ('omit', 'mask', 'fingerprint'))
        THEN 'redact gives each column omit, mask or fingerprint.'
    WHEN $1.redact ? audit.key_of(CAST($1.relation AS regclass))
        THEN format('the primary key of %s cannot be redacted.', $1.relation)
    ELSE (
        SELECT format('%s has no column %s to redact or to ignore.', $1.relation, min(name))
        FROM (
            SELECT jsonb_object_keys($1.redact) AS name WHERE new_redact
            UNION ALL SELECT unnest($1.ignore) WHERE new_ignore
        ) AS named
        WHERE name <> ALL ($1.columns) HAVING count(*) > 0
    )
END
$$;

-- Ends the capture of a table, whose trail stays.
CREATE OR REPLACE FUNCTION audit.uncapture(text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone audit.captured;
    hung record;
BEGIN
    SELECT * INTO gone FROM audit.captured WHERE relation = $1;
    IF gone.relation IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s is not captured.', $1);
    END IF;
    IF to_regclass($1) IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', $1);
    END IF;
    DELETE FROM audit.captured WHERE relation = $1;
    FOR hung IN
        SELECT tgname, CAST(tgrelid AS regclass) AS relation FROM pg_trigger
        WHERE tgfoid = to_regprocedure(format('audit.capture_%s()', gone.name)) AND tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', hung.tgname, hung.relation);
    END LOOP;
    EXECUTE format('DROP FUNCTION IF EXISTS audit.capture_%s()', gone.name);
END $$;

-- Brings capture up to the tables as they are, and returns a sentence for each that it changed.
CREATE OR REPLACE FUNCTION audit.recapture() RETURNS SETOF text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept audit.captured;
BEGIN
    UPDATE audit.captured AS c SET relation = audit.relation_name(t.tgrelid)
    FROM pg_trigger AS t
    WHERE t.tgfoid = to_regprocedure(format('audit.capture_%s()', c.name)) AND t.tgparentid = 0
        AND t.tgname = '00_fwdb_audit' AND audit.relation_name(t.tgrelid) <> c.relation;
    FOR kept IN SELECT * FROM audit.captured ORDER BY relation LOOP
        IF to_regclass(kept.relation) IS NULL THEN
            PERFORM audit.uncapture(kept.relation);
            RETURN NEXT format('ended the capture of %s, which is gone.', kept.relation);
        ELSIF audit.outdated(kept) THEN
            PERFORM audit.capture(CAST(kept.relation AS regclass));
            RETURN NEXT format('fitted the capture of %s to its columns.', kept.relation);
        END IF;
    END LOOP;
END $$;

-- Whether the triggers of a captured table are not those of the table as it is.
CREATE OR REPLACE FUNCTION audit.outdated(audit.captured) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
SELECT (names, numbers) IS DISTINCT FROM ($1.columns, $1.numbers)
    OR EXISTS (
        SELECT FROM (
            SELECT CAST($1.relation AS regclass) AS relid UNION
            SELECT relid FROM pg_partition_tree(CAST($1.relation AS regclass)) WHERE isleaf
        ) AS part
        CROSS JOIN unnest(ARRAY['00_fwdb_audit', '00_fwdb_audit_truncate']) AS name
        WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = part.relid AND tgname = name)
    )
FROM audit.columns_of(CAST($1.relation AS regclass))
$$;
