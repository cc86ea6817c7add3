/*
 * Large values that updates left alone are filled from earlier raw rows
 * (src/capture/large.c).  Those that only a leaf has which is to be dropped
 * are kept here: the look-up asks last.
 */

CREATE TABLE elt.large_values (
	table_id		bigint NOT NULL REFERENCES elt.source_tables (table_id) ON DELETE CASCADE,
	change_id		bigint NOT NULL,			-- this and what follows: of the raw row
	key_hash		int NOT NULL,
	key				jsonb NOT NULL,
	op				"char" NOT NULL,
	schema_version	int NOT NULL,
	columns			jsonb NOT NULL,				-- of "after" those that are named in "large"
	PRIMARY KEY (table_id, change_id)
);
CREATE INDEX large_values_key ON elt.large_values (table_id, key_hash);
COMMENT ON TABLE elt.large_values IS 'large values whose newest raw row was dropped by retention; updates that leave them alone are filled from here';

CREATE FUNCTION elt.keep_large_values(leaf regclass) RETURNS bigint
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	log regclass;
	log_id bigint;
	truncated_at bigint;
	kept bigint;
BEGIN
	SELECT i.inhparent, t.table_id INTO log, log_id
		FROM pg_inherits i JOIN elt.source_tables t ON t.raw = i.inhparent WHERE i.inhrelid = leaf;
	IF log IS NULL THEN
		RETURN 0;
	END IF;
	EXECUTE format('SELECT coalesce(max(change_id), 0) FROM %s WHERE large IS NOT NULL AND key_hash = 0 AND op = ''t''', log)
		INTO truncated_at;
	DELETE FROM elt.large_values v WHERE v.table_id = log_id AND v.change_id < truncated_at;

	-- the keys that the leaf has are known better here
	EXECUTE format('DELETE FROM elt.large_values v USING %s l WHERE v.table_id = $1 AND l.large IS NOT NULL AND l.op <> ''t'' '
				   'AND v.key_hash = l.key_hash AND v.key = l.key AND v.change_id < l.change_id', leaf)
		USING log_id;
	EXECUTE format('WITH newest AS (SELECT DISTINCT ON (key_hash, key) * FROM %s '
				   'WHERE large IS NOT NULL AND key IS NOT NULL AND op <> ''t'' ORDER BY key_hash, key, change_id DESC) '
				   'INSERT INTO elt.large_values (table_id, change_id, key_hash, key, op, schema_version, columns) '
				   'SELECT $1, n.change_id, n.key_hash, n.key, n.op, n.schema_version, '
				   '(SELECT jsonb_object_agg(c, n.after->c) FROM unnest(n.large) c WHERE n.after ? c) '
				   'FROM newest n WHERE n.op <> ''d'' AND n.large <> ''{}'' AND n.change_id > $2 '
				   'AND EXISTS (SELECT FROM unnest(n.large) c WHERE n.after ? c) '
				   'AND NOT EXISTS (SELECT FROM %s p WHERE p.large IS NOT NULL AND p.op <> ''t'' AND p.key_hash = n.key_hash '
				   'AND p.key = n.key AND p.change_id > n.change_id) '
				   'ON CONFLICT (table_id, change_id) DO NOTHING', leaf, log)
		USING log_id, truncated_at;
	GET DIAGNOSTICS kept = ROW_COUNT;
	RETURN kept;
END $$;
COMMENT ON FUNCTION elt.keep_large_values(regclass) IS
	'internal: before a leaf of raw staging is dropped, keeps its large values that are the newest of their key; returns how many rows';

CREATE TABLE elt.relation_files (
	table_id		bigint PRIMARY KEY REFERENCES elt.source_tables (table_id) ON DELETE CASCADE,
	filenode		bigint NOT NULL,			-- at the source
	changed_at		bigint NOT NULL				-- rows with change_ids below were staged before it was this one; 0: none
);
COMMENT ON TABLE elt.relation_files IS
	'the file of each captured relation, and since when it has it: a rewrite stores values out of line that no raw row names as large';

CREATE FUNCTION elt.note_relation_file(source_id bigint, relation text, filenode bigint, change_id bigint) RETURNS bigint
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	log_id bigint;
	known elt.relation_files;
	before bigint;
BEGIN
	SELECT t.table_id INTO log_id FROM elt.source_tables t WHERE t.source_id = $1 AND t.relation = $2;
	SELECT * INTO known FROM elt.relation_files f WHERE f.table_id = log_id;
	IF NOT FOUND THEN
		-- a copy was here first
		SELECT (v.facts->>'filenode')::bigint INTO before FROM elt.schema_versions v
		WHERE v.source_id = $1 AND v.relation = $2 ORDER BY v.version DESC LIMIT 1;
		INSERT INTO elt.relation_files (table_id, filenode, changed_at)
		VALUES (log_id, $3, CASE WHEN before <> $3 THEN $4 ELSE 0 END)
		RETURNING * INTO known;
	ELSIF known.filenode <> $3 THEN
		UPDATE elt.relation_files f SET filenode = $3, changed_at = $4 WHERE f.table_id = log_id
		RETURNING * INTO known;
	END IF;
	RETURN known.changed_at;
END $$;
COMMENT ON FUNCTION elt.note_relation_file(bigint, text, bigint, bigint) IS
	'internal: notes the file that a relation has now; returns the change_id below which rows were staged before';

/*
 * A rewrite may have changed the values of columns whose definition changed,
 * and of computed ones.  ALTER ... TYPE touches columns of variable length that
 * it is not about, too: nothing tells those apart.  In doubt they do not hold: what is listed as
 * unchanged can be made good, a wrong value cannot.
 */
CREATE FUNCTION elt.same_columns(source_id bigint, relation text, from_version int, to_version int) RETURNS text[]
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(o->>'name')
	FROM elt.schema_versions v
	JOIN elt.schema_versions w USING (source_id, relation, relid)
	CROSS JOIN LATERAL jsonb_array_elements(v.columns) o
	CROSS JOIN LATERAL jsonb_array_elements(w.columns) n
	WHERE v.source_id = $1 AND v.relation = $2 AND v.version = $3 AND w.version = $4
		AND o->>'name' = n->>'name' AND o->>'type' = n->>'type' AND o->'number' = n->'number'
		AND NOT EXISTS (SELECT FROM elt.schema_versions b
						WHERE b.source_id = $1 AND b.relation = $2 AND b.version > $3 AND b.version <= $4
							AND (b.relid <> v.relid OR b.changes @> '[{"change": "renamed relation"}]'))
		AND (NOT EXISTS (SELECT FROM elt.schema_versions r
						 WHERE r.source_id = $1 AND r.relation = $2 AND r.version > $3 AND r.version <= $4 AND r.rewritten)
			OR (v.facts->'columns'->(o->>'number') = w.facts->'columns'->(n->>'number')
				AND NOT (w.facts->'columns'->(n->>'number')->>1)::boolean))
$$;
COMMENT ON FUNCTION elt.same_columns(bigint, text, int, int) IS
	'internal: the columns of which a value that was staged with an earlier version is what it is in a later one';
