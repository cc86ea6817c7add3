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
