/*
 * Schema versions: what shapes a relation has had, and what that asks for.
 *
 * A relation is known by its OID at the source, a column by its number there:
 * both survive a rename, and neither a drop.  Raw staging goes by names, as
 * its readers do: a table that was renamed has a new log, and a name that
 * another table has taken goes on as a new incarnation.
 *
 * PostgreSQL does not decode what a rewrite of a table does to its rows.  The
 * relation has another file afterwards, but so it has after VACUUM FULL,
 * CLUSTER, TRUNCATE, SET TABLESPACE, which change no row, or say so.  What
 * changes rows also changes the definition of a column (ALTER ... TYPE, by
 * the same type too) or adds one whose value was computed.  When both came
 * about since the last look, the version is marked as rewritten.  In doubt it
 * is: a copy too many costs time, a missed one leaves wrong data for good.
 */

/* What there is between two shapes; columns are told by number, or by name where it is another table. */
CREATE FUNCTION elt.compare_columns(from_columns jsonb, to_columns jsonb, by_name boolean) RETURNS jsonb
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
			'change', d.change, 'column', coalesce(d.o->>'name', d.n->>'name'), 'from', d.old_value, 'to', d.new_value))
		ORDER BY coalesce(d.o_at, d.n_at), d.n_at, d.kind), '[]')
	FROM (SELECT o.value AS o, o.ordinality AS o_at, n.value AS n, n.ordinality AS n_at, c.*
		  FROM jsonb_array_elements($1) WITH ORDINALITY o
		  FULL JOIN jsonb_array_elements($2) WITH ORDINALITY n
			ON CASE WHEN $3 THEN o.value->>'name' ELSE o.value->>'number' END
			 = CASE WHEN $3 THEN n.value->>'name' ELSE n.value->>'number' END
		  CROSS JOIN LATERAL (VALUES
			(1, 'dropped', n.value IS NULL, o.value->>'type', NULL),
			(2, 'added', o.value IS NULL, NULL, n.value->>'type'),
			(3, 'renamed', o.value->>'name' <> n.value->>'name', o.value->>'name', n.value->>'name'),
			(4, 'retyped', (o.value->>'type', o.value->>'code') IS DISTINCT FROM (n.value->>'type', n.value->>'code')
				AND o.value IS NOT NULL AND n.value IS NOT NULL,
			 concat(o.value->>'type', CASE WHEN o.value->>'type' = n.value->>'type' THEN ' ' || (o.value->>'code') END),
			 concat(n.value->>'type', CASE WHEN o.value->>'type' = n.value->>'type' THEN ' ' || (n.value->>'code') END)))
			AS c (kind, change, happened, old_value, new_value)
		  WHERE c.happened) d
$$;
COMMENT ON FUNCTION elt.compare_columns(jsonb, jsonb, boolean) IS 'internal: the differences between the columns of two versions';

/* Both are rows of schema_versions or schema_history, as objects. */
CREATE FUNCTION elt.compare_shapes(v1 jsonb, v2 jsonb) RETURNS jsonb
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $1->'relid' <> $2->'relid' THEN '[{"change": "replaced"}]' ELSE '[]' END::jsonb
		|| elt.compare_columns($1->'columns', $2->'columns', $1->'relid' <> $2->'relid')
		|| CASE WHEN $1->'key' <> $2->'key' THEN jsonb_build_array(jsonb_build_object('change', 'key',
				'from', (SELECT coalesce(string_agg(k, ', '), '') FROM jsonb_array_elements_text($1->'key') k),
				'to', (SELECT coalesce(string_agg(k, ', '), '') FROM jsonb_array_elements_text($2->'key') k))) ELSE '[]' END
		|| CASE WHEN $1->'replica_identity' <> $2->'replica_identity' THEN jsonb_build_array(jsonb_build_object(
				'change', 'replica identity', 'from', $1->'replica_identity', 'to', $2->'replica_identity')) ELSE '[]' END
$$;
COMMENT ON FUNCTION elt.compare_shapes(jsonb, jsonb) IS
	'internal: the differences between two versions of a relation, as schema_versions.changes has them';

/*
 * Whether rows may have changed unseen between two looks at one relation.
 * A partitioned table has no file: there the kind of change decides.
 */
CREATE FUNCTION elt.was_rewritten(v1 elt.schema_versions, v2 elt.schema_versions) RETURNS boolean
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT $1.relid = $2.relid AND coalesce(bool_or(
		CASE
			-- a column that was there and not published: its values never came
			WHEN o IS NULL AND (n->>'number')::int <= ($1.facts->>'natts')::int THEN true
			-- older rows have null or one constant in it, or else the table was rewritten
			WHEN o IS NULL THEN n->'missing' IS NULL AND
				CASE WHEN $2.facts->>'filenode' = '0' THEN ($2.facts->'columns'->(n->>'number')->>1)::boolean
					 ELSE $1.facts->>'filenode' <> $2.facts->>'filenode' END
			WHEN $2.facts->>'filenode' = '0' THEN
				o->>'type' <> n->>'type'
				AND NOT (o->>'type' ~ '^(text|character varying)' AND n->>'type' ~ '^(text|character varying)')
			ELSE $1.facts->>'filenode' <> $2.facts->>'filenode'
				AND $1.facts->'columns'->(o->>'number')->>0 <> $2.facts->'columns'->(n->>'number')->>0
				-- VACUUM FULL writes into the rows what a column with a constant default had for them
				AND (o->'missing' IS NULL OR o->>'type' <> n->>'type')
		END), false)
	FROM jsonb_array_elements($2.columns) n
	LEFT JOIN jsonb_array_elements($1.columns) o ON o->'number' = n->'number'
$$;
COMMENT ON FUNCTION elt.was_rewritten(elt.schema_versions, elt.schema_versions) IS
	'internal: whether rows of a relation may have changed between two versions without changes in raw staging';

/*
 * The version of a relation's present shape: the latest where that is the
 * same, or a new one.  Called by the capture worker when the stream tells of a
 * relation.
 */
CREATE FUNCTION elt.put_schema_version(source_id bigint, relation text, relid oid, columns jsonb, fingerprint text,
	identity "char", facts jsonb, lsn pg_lsn) RETURNS int
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	last elt.schema_versions;
	elsewhere elt.schema_versions;		-- the latest of this table, by whatever name
	new elt.schema_versions;
BEGIN
	SELECT * INTO last FROM elt.schema_versions v
	WHERE v.source_id = $1 AND v.relation = $2 ORDER BY v.version DESC LIMIT 1;
	SELECT * INTO elsewhere FROM elt.schema_versions v
	WHERE v.source_id = $1 AND v.relid = $3 ORDER BY v.valid_from_lsn DESC, v.created_at DESC LIMIT 1;

	new.source_id := $1;
	new.relation := $2;
	new.relid := $3;
	new.columns := $4;
	new.key := ARRAY(SELECT c->>'name' FROM jsonb_array_elements($4) c WHERE (c->>'key')::boolean);
	new.replica_identity := CASE $6 WHEN 'n' THEN 'nothing' WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' ELSE 'default' END;
	new.fingerprint := $5;
	new.facts := $7;
	new.valid_from_lsn := $8;
	new.version := coalesce(last.version, 0) + 1;
	new.incarnation := coalesce(last.incarnation, 1);

	-- an OID may be given out again: a table that was renamed kept a column as it was
	IF elsewhere.relation <> $2 AND NOT EXISTS (
			SELECT FROM jsonb_each(elsewhere.facts->'columns') o
			JOIN jsonb_each(new.facts->'columns') n ON n.key = o.key AND n.value->0 = o.value->0) THEN
		elsewhere := NULL;
	END IF;

	IF elsewhere.relation = $2 THEN
		new.rewritten := elt.was_rewritten(elsewhere, new);
		IF NOT new.rewritten AND (last.relid, last.fingerprint, last.replica_identity) = ($3, $5, new.replica_identity) THEN
			IF last.facts <> $7 OR last.columns <> $4 THEN
				-- what older rows have in a column stays true when the rows are written anew
				UPDATE elt.schema_versions v SET facts = $7, columns = (
						SELECT coalesce(jsonb_agg(o.value || n.value ORDER BY n.ordinality), '[]')
						FROM jsonb_array_elements($4) WITH ORDINALITY n
						JOIN jsonb_array_elements(last.columns) o ON o->'number' = n.value->'number')
				WHERE v.source_id = $1 AND v.relation = $2 AND v.version = last.version;
			END IF;
			RETURN last.version;
		END IF;
	ELSIF elsewhere.relation IS NOT NULL THEN
		new.rewritten := elt.was_rewritten(elsewhere, new);
	ELSE
		new.rewritten := false;
	END IF;

	new.changes := CASE WHEN elsewhere.relation <> $2 THEN
			jsonb_build_array(jsonb_build_object('change', 'renamed relation', 'from', elsewhere.relation, 'to', $2)) ELSE '[]' END
		|| CASE WHEN last.version IS NOT NULL THEN elt.compare_shapes(to_jsonb(last), to_jsonb(new))
				WHEN elsewhere.relation IS NOT NULL THEN elt.compare_shapes(to_jsonb(elsewhere), to_jsonb(new)) ELSE '[]' END
		|| CASE WHEN new.rewritten THEN '[{"change": "rewritten"}]' ELSE '[]' END::jsonb;
	IF last.relid <> $3 THEN
		new.incarnation := last.incarnation + 1;
	END IF;
	-- what the rows had that came before the column, also when it is seen in a later version
	IF last.relid = $3 THEN
		new.columns := (
			SELECT coalesce(jsonb_agg(CASE WHEN o ? 'missing' AND o->'type' = n.value->'type'
					THEN jsonb_build_object('missing', o->'missing') ELSE '{}' END || n.value ORDER BY n.ordinality), '[]')
			FROM jsonb_array_elements($4) WITH ORDINALITY n
			LEFT JOIN jsonb_array_elements(last.columns) o ON o->'number' = n.value->'number');
	END IF;

	INSERT INTO elt.schema_versions (source_id, relation, version, columns, key, replica_identity, fingerprint,
			valid_from_lsn, relid, incarnation, rewritten, changes, facts)
	VALUES (new.source_id, new.relation, new.version, new.columns, new.key, new.replica_identity, new.fingerprint,
			new.valid_from_lsn, new.relid, new.incarnation, new.rewritten, new.changes, new.facts);
	RETURN new.version;
END $$;
COMMENT ON FUNCTION elt.put_schema_version(bigint, text, oid, jsonb, text, "char", jsonb, pg_lsn) IS
	'internal: notes the present shape of a relation, and what it changed against the one before';

/* ---- for users ---- */

CREATE FUNCTION elt.sees_relation(role name, source_id bigint, relation text) RETURNS boolean
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
	SELECT pg_has_role($1, 'pg_monitor', 'USAGE')
		OR EXISTS (SELECT FROM elt.sources s WHERE s.source_id = $2 AND pg_has_role($1, s.owner::oid, 'USAGE'))
		OR EXISTS (SELECT FROM elt.pipelines p
				   WHERE p.source_id = $2 AND p.relation = $3 AND pg_has_role($1, p.owner::oid, 'USAGE'))
$$;
COMMENT ON FUNCTION elt.sees_relation(name, bigint, text) IS
	'whether the shape of a source''s relation concerns a role: pg_monitor, the owners of the source and of pipelines of the relation';

CREATE VIEW elt.schema_history WITH (security_barrier) AS
	SELECT s.name AS source, v.relation, v.version, v.columns, v.key, v.replica_identity, v.valid_from_lsn,
		   v.relid, v.incarnation, v.rewritten, v.changes, v.created_at
	FROM elt.schema_versions v
	JOIN elt.sources s ON s.source_id = v.source_id
	WHERE elt.sees_relation(current_user, v.source_id, v.relation);
COMMENT ON VIEW elt.schema_history IS 'the shapes of each captured relation, and what each changed against the one before';

CREATE FUNCTION elt.diff_schema(source text, relation text, from_version int DEFAULT NULL, to_version int DEFAULT NULL,
	OUT column_name text, OUT change text, OUT from_value text, OUT to_value text) RETURNS SETOF record
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	newest int;
	old_shape elt.schema_history;
	new_shape elt.schema_history;
BEGIN
	IF source IS NULL OR relation IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'source and relation must not be null',
			HINT = 'Pass the name of a source, and a relation as schema.table.';
	END IF;
	SELECT max(h.version) INTO newest FROM elt.schema_history h WHERE h.source = $1 AND h.relation = $2;
	IF newest IS NULL THEN
		RAISE undefined_object USING MESSAGE = format('source "%s" has no schema version of relation %s', source, relation),
			HINT = 'SELECT DISTINCT source, relation FROM elt.schema_history lists them.';
	END IF;
	to_version := coalesce(to_version, newest);
	from_version := coalesce(from_version, greatest(to_version - 1, 1));
	SELECT * INTO old_shape FROM elt.schema_history h WHERE h.source = $1 AND h.relation = $2 AND h.version = from_version;
	SELECT * INTO new_shape FROM elt.schema_history h WHERE h.source = $1 AND h.relation = $2 AND h.version = to_version;
	IF old_shape.version IS NULL OR new_shape.version IS NULL THEN
		RAISE undefined_object USING
			MESSAGE = format('relation %s of source "%s" has no schema version %s', relation, source,
							 CASE WHEN old_shape.version IS NULL THEN from_version ELSE to_version END),
			DETAIL = format('It has versions 1 to %s.', newest),
			HINT = 'SELECT version, changes FROM elt.schema_history shows them.';
	END IF;

	RETURN QUERY
		SELECT d->>'column', d->>'change', d->>'from', d->>'to'
		FROM jsonb_array_elements(elt.compare_shapes(to_jsonb(old_shape), to_jsonb(new_shape))
			|| coalesce((SELECT jsonb_agg(c ORDER BY h.version)
						 FROM elt.schema_history h, jsonb_array_elements(h.changes) c
						 WHERE h.source = $1 AND h.relation = $2 AND c->>'change' IN ('rewritten', 'renamed relation')
							AND h.version > least(from_version, to_version) AND h.version <= greatest(from_version, to_version)), '[]')) d;
END $$;
COMMENT ON FUNCTION elt.diff_schema(text, text, int, int) IS
	'what changed in a relation between two of its schema versions (default: the last two), one row per difference';

/* What asks for a new copy: rows changed, or came and went, or another table came, of which raw staging has not all. */
CREATE VIEW elt.resyncs_needed WITH (security_barrier) AS
	SELECT s.name AS source, v.relation, v.version, v.valid_from_lsn,
		   CASE WHEN v.rewritten THEN 'rewritten' ELSE 'replaced' END AS reason, v.created_at AS since,
		   pg_catalog.format('SELECT elt.resync_table(%L, %L)', s.name, v.relation) AS call, NULL::text AS detail
	FROM elt.schema_versions v
	JOIN elt.sources s ON s.source_id = v.source_id
	JOIN elt.source_tables t ON t.source_id = v.source_id AND t.relation = v.relation
	WHERE elt.sees_relation(current_user, v.source_id, v.relation)
		AND t.state = 'ready' AND (t.sync_lsn IS NULL OR v.valid_from_lsn > t.sync_lsn)
		AND (v.rewritten OR v.changes @> '[{"change": "replaced"}]')
		-- one row per relation: the latest such version
		AND NOT EXISTS (SELECT FROM elt.schema_versions n
						WHERE n.source_id = v.source_id AND n.relation = v.relation AND n.version > v.version
							AND (n.rewritten OR n.changes @> '[{"change": "replaced"}]'))
	UNION ALL
	SELECT s.name, p.relation,
		   coalesce((SELECT max(v.version) FROM elt.schema_versions v WHERE v.source_id = p.source_id AND v.relation = p.relation), 1),
		   NULL, 'partitions', p.changed_at, pg_catalog.format('SELECT elt.resync_table(%L, %L)', s.name, p.relation),
		   (SELECT pg_catalog.string_agg(d.change || ': ' || d.names, '; ' ORDER BY d.change)
			FROM (SELECT c->>'change' AS change, pg_catalog.string_agg(c->>'partition', ', ' ORDER BY n) AS names
				  FROM pg_catalog.jsonb_array_elements(p.changes) WITH ORDINALITY AS x (c, n) GROUP BY 1) d)
	FROM elt.source_partitions p
	JOIN elt.sources s ON s.source_id = p.source_id
	JOIN elt.source_tables t ON t.source_id = p.source_id AND t.relation = p.relation
	WHERE p.changes <> '[]' AND t.state = 'ready' AND elt.sees_relation(current_user, p.source_id, p.relation);
COMMENT ON VIEW elt.resyncs_needed IS
	'relations of which raw staging no longer gives the table, why, and the call that copies them anew; a copy takes them off';

CREATE VIEW elt.renamed_relations WITH (security_barrier) AS
	SELECT s.name AS source, last.relation, now_is.relation AS renamed_to, now_is.valid_from_lsn, now_is.created_at AS since
	FROM elt.sources s
	CROSS JOIN LATERAL (SELECT DISTINCT ON (v.relation) v.relation, v.relid, v.valid_from_lsn, v.created_at
						FROM elt.schema_versions v WHERE v.source_id = s.source_id
						ORDER BY v.relation, v.version DESC) last
	JOIN LATERAL (SELECT v.relation, v.valid_from_lsn, v.created_at FROM elt.schema_versions v
				  WHERE v.source_id = s.source_id AND v.relid = last.relid
					AND v.changes @> pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
						'change', 'renamed relation', 'from', last.relation))
					AND (v.valid_from_lsn, v.created_at) > (last.valid_from_lsn, last.created_at)
				  ORDER BY v.valid_from_lsn, v.created_at LIMIT 1) now_is ON true
	WHERE elt.sees_relation(current_user, s.source_id, last.relation);
COMMENT ON VIEW elt.renamed_relations IS
	'relations whose table goes on under another name: their own log gets nothing more. Where it was renamed again, that name has a row of its own';

/*
 * The samples of the alert rules about shapes.  Each version is an alert of
 * its own, so it is told once; ten minutes are for those who poll elt.alerts,
 * whose resolved rows stay for 30 days.  What asks for somebody to act lasts
 * until he has.  Details have names and types, never values.
 */
CREATE FUNCTION elt.schema_alert_samples(rules text[], at timestamptz, OUT rule text, OUT sample jsonb) RETURNS SETOF record
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
		SELECT d.rule, jsonb_build_object('source', s.name, 'relation', v.relation, 'version', v.version, 'value', v.version,
										  'detail', d.detail)
		FROM elt.schema_versions v
		JOIN elt.sources s ON s.source_id = v.source_id
		CROSS JOIN LATERAL (
			SELECT CASE WHEN bool_or(c->>'change' IN ('dropped', 'renamed', 'retyped', 'key')) THEN 'schema_break' ELSE 'schema_drift' END AS rule,
				   left(string_agg(concat_ws(' ', c->>'change', c->>'column', 'from ' || (c->>'from'), 'to ' || (c->>'to')), '; '), 2000) AS detail
			FROM jsonb_array_elements(v.changes) c) d
		WHERE v.version > 1 AND v.created_at > at - interval '10 min' AND d.rule = ANY (rules)
			AND EXISTS (SELECT FROM elt.pipelines p WHERE p.source_id = v.source_id AND p.relation = v.relation);
	IF 'resync_needed' = ANY (rules) THEN
		RETURN QUERY
			SELECT 'resync_needed', jsonb_build_object('source', r.source, 'relation', r.relation, 'reason', r.reason,
													   'value', r.version,
													   'detail', pg_catalog.left(concat_ws('; ', r.call, r.detail), 2000))
			FROM elt.resyncs_needed r;
	END IF;
	IF 'relation_renamed' = ANY (rules) THEN
		RETURN QUERY
			SELECT 'relation_renamed', jsonb_build_object('source', r.source, 'pipeline', p.name, 'relation', r.relation,
					'renamed_to', r.renamed_to, 'value', 1,
					'detail', format('SELECT elt.alter_pipeline(%L, relation => %L)', p.name, r.renamed_to))
			FROM elt.renamed_relations r
			JOIN elt.sources s ON s.name = r.source
			JOIN elt.pipelines p ON p.source_id = s.source_id AND p.relation = r.relation;
	END IF;
END $$;
COMMENT ON FUNCTION elt.schema_alert_samples(text[], timestamptz) IS 'internal: the samples of shipped rules about shapes of relations';
