/*
 * Partitions of tables that are captured through their root.
 *
 * Rows that come or go with a partition have no changes of their own: ATTACH
 * of one that has rows, DETACH or DROP of one, TRUNCATE of one alone.  Raw
 * staging no longer gives the table then, and resyncs_needed says so.  Who
 * finds it: the truncate is in WAL, and the capture worker is told of it; the
 * partitions are laid beside those of the look before, every few seconds
 * (src/capture/parts.c).
 *
 * What they are laid beside begins with the copy: the partitions as its own
 * snapshot saw them.  So a partition that came or went since, at any moment,
 * is found by a look after it; a look from before the copy says nothing and
 * is left out, by its place in the source's WAL.  A table that was not copied
 * begins with the first look.
 *
 * A partition that came, or went, without a row asks for nothing.  In doubt it
 * asks: a copy too many costs time, a missed one leaves wrong data for good.
 */
CREATE TABLE elt.source_partitions (
	source_id		bigint NOT NULL,
	relation		text NOT NULL,
	root			oid,						-- the table's OID at the source; NULL: not looked at yet
	copied_lsn		pg_lsn,						-- what was committed before came with the copy; NULL: it was not copied
	leaves			jsonb,						-- as last seen, by OID: name, file, attached (the transactions that made it a partition); NULL: not yet
	changes			jsonb NOT NULL DEFAULT '[]',	-- since the copy: [{"change": "attached", "partition": …}, …]
	changed_at		timestamptz,
	PRIMARY KEY (source_id, relation),
	FOREIGN KEY (source_id, relation) REFERENCES elt.source_tables ON DELETE CASCADE
);
COMMENT ON TABLE elt.source_partitions IS
	'the partitions of each table that is captured through its root, and what came or went with them since its copy';

/* The names of a hundred tell enough. */
CREATE FUNCTION elt.add_partition_changes(changes jsonb, more jsonb) RETURNS jsonb
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN jsonb_array_length($1) >= 100 THEN $1
		ELSE $1 || coalesce((SELECT jsonb_agg(m) FROM jsonb_array_elements($2) m WHERE NOT $1 @> jsonb_build_array(m)), '[]') END
$$;
COMMENT ON FUNCTION elt.add_partition_changes(jsonb, jsonb) IS 'internal: adds to source_partitions.changes what is not in it';

CREATE FUNCTION elt.base_partitions(source_id bigint, copied_lsn pg_lsn, relations text[], seen jsonb) RETURNS void
	LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
	DELETE FROM elt.source_partitions p WHERE p.source_id = $1 AND p.relation = ANY ($3);
	INSERT INTO elt.source_partitions (source_id, relation, root, copied_lsn, leaves)
	SELECT $1, s.key, (s.value->>'oid')::oid, $2, s.value->'leaves' FROM jsonb_each($4) s WHERE s.key = ANY ($3)
$$;
COMMENT ON FUNCTION elt.base_partitions(bigint, pg_lsn, text[], jsonb) IS
	'internal: the partitions of tables as the snapshot of their copy sees them; for who plans it and has locked their rows of source_tables';

CREATE FUNCTION elt.note_truncated_partition(source_id bigint, relation text, partition text, commit_lsn pg_lsn) RETURNS void
	LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT FROM elt.source_tables t WHERE t.source_id = $1 AND t.relation = $2 FOR NO KEY UPDATE;
	INSERT INTO elt.source_partitions AS p (source_id, relation, changes, changed_at)
	SELECT $1, $2, c.change, clock_timestamp()
	FROM (SELECT jsonb_build_array(jsonb_build_object('change', 'truncated', 'partition', $3))) c (change)
	ON CONFLICT ON CONSTRAINT source_partitions_pkey DO UPDATE
		SET changes = elt.add_partition_changes(p.changes, excluded.changes), changed_at = excluded.changed_at
		WHERE p.copied_lsn IS NULL OR $4 > p.copied_lsn
$$;
COMMENT ON FUNCTION elt.note_truncated_partition(bigint, text, text, pg_lsn) IS
	'internal: a partition was truncated alone, as the stream tells';

/*
 * What a look saw: seen has, by the name of each table, its OID and its
 * leaves.  Partitions that came or went have to be measured first: returns
 * them as [{"leaf": OID, "root": OID}, …], and notes nothing.  The second call
 * has in measured, by OID, what was found: bytes, born (it was made as a
 * partition, so all its rows came through the stream).
 *
 * A table whose row is locked, by who copies it or stages rows that lack
 * values, is left for the next look.
 */
CREATE FUNCTION elt.note_partitions(source_id bigint, at pg_lsn, seen jsonb, measured jsonb) RETURNS jsonb
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r record;
	known elt.source_partitions;
	new jsonb;
	differing jsonb := '[]';
	found_changes jsonb;
	unknown boolean;
BEGIN
	FOR r IN SELECT s.key AS relation, (s.value->>'oid')::oid AS root, s.value->'leaves' AS leaves
			 FROM jsonb_each($3) s
			 JOIN elt.source_tables t ON t.source_id = $1 AND t.relation = s.key AND t.state = 'ready'
			 LEFT JOIN elt.source_partitions p ON p.source_id = $1 AND p.relation = s.key
			 WHERE p.leaves IS DISTINCT FROM s.value->'leaves' LOOP
		-- whoever had the row has committed: what it wrote is seen from here on
		PERFORM FROM elt.source_tables t
		WHERE t.source_id = $1 AND t.relation = r.relation AND t.state = 'ready' FOR NO KEY UPDATE SKIP LOCKED;
		CONTINUE WHEN NOT FOUND;
		SELECT * INTO known FROM elt.source_partitions p WHERE p.source_id = $1 AND p.relation = r.relation;
		CONTINUE WHEN $2 < known.copied_lsn;
		IF known.leaves IS NULL THEN
			-- a table that was renamed goes on from the last look at its old name
			INSERT INTO elt.source_partitions AS p (source_id, relation, root, leaves)
			VALUES ($1, r.relation, r.root, coalesce((SELECT o.leaves FROM elt.source_partitions o
					WHERE o.source_id = $1 AND o.root = r.root AND o.relation <> r.relation
					ORDER BY o.changed_at DESC NULLS LAST LIMIT 1), r.leaves))
			ON CONFLICT ON CONSTRAINT source_partitions_pkey DO UPDATE SET root = excluded.root, leaves = excluded.leaves
			RETURNING p.leaves INTO known.leaves;
		END IF;

		SELECT coalesce(jsonb_agg(jsonb_build_object('leaf', coalesce(o.key, n.key)::bigint, 'root', r.root::bigint)), '[]'),
			   coalesce(jsonb_agg(jsonb_build_object(
					'change', CASE WHEN n.key IS NULL THEN 'detached' ELSE 'attached' END,
					'partition', coalesce(n.value, o.value)->>'name')
					ORDER BY n.key IS NULL, coalesce(n.value, o.value)->>'name')
				FILTER (WHERE CASE
					-- of the same file, and without a block: it went as it had come
					WHEN n.key IS NULL THEN NOT coalesce(m.value->'bytes' = '0' AND m.value->'file' = o.value->'file', false)
					-- it went, and came again
					WHEN o.key IS NOT NULL THEN true
					ELSE NOT (m.value->'bytes' = '0' OR (m.value->>'born')::boolean) END), '[]'),
			   coalesce(bool_or(n.key IS NOT NULL AND m.value->>'bytes' IS NULL), false)
		INTO new, found_changes, unknown
		FROM jsonb_each(known.leaves) o
		FULL JOIN jsonb_each(r.leaves) n ON n.key = o.key
		LEFT JOIN jsonb_each($4) m ON m.key = coalesce(n.key, o.key)
		WHERE o.value->'attached' IS DISTINCT FROM n.value->'attached';

		IF new = '[]' OR ($4 IS NOT NULL AND NOT unknown) THEN
			UPDATE elt.source_partitions p SET root = r.root, leaves = r.leaves,
				changes = elt.add_partition_changes(p.changes, found_changes),
				changed_at = CASE WHEN found_changes = '[]' THEN p.changed_at ELSE clock_timestamp() END
			WHERE p.source_id = $1 AND p.relation = r.relation;
		ELSE
			differing := differing || new;
		END IF;
	END LOOP;
	RETURN nullif(differing, '[]');
END $$;
COMMENT ON FUNCTION elt.note_partitions(bigint, pg_lsn, jsonb, jsonb) IS
	'internal: lays the partitions of a source''s tables beside those of the look before';
