/* Copies of tables: see src/capture/copy.c and src/capture/snapshot_worker.c. */

-- a pass copies some tables of a source under one snapshot
CREATE TABLE elt.snapshot_passes (
	source_id		bigint PRIMARY KEY REFERENCES elt.sources ON DELETE CASCADE,
	phase			text NOT NULL DEFAULT 'planned' CHECK (phase IN ('planned', 'copying')),
	snapshot		pg_snapshot NOT NULL,		-- what the source's transactions were when it began: what is visible in it is copied
	lsn				pg_lsn NOT NULL,			-- all that is visible in it was committed before
	taken_at		timestamptz NOT NULL,
	run				int NOT NULL DEFAULT 1,		-- counts its beginnings: the first, and each after an interruption
	exported		text NOT NULL,				-- what the other workers import, in this run
	resumed			pg_snapshot,				-- what this run reads under, where it is not the first
	leaves			bigint NOT NULL,			-- how many it may need
	next_leaf		bigint,						-- of those that the capture worker has set aside
	end_leaf		bigint
);
COMMENT ON TABLE elt.snapshot_passes IS 'the copies that are made at present: one row per source';

CREATE TABLE elt.snapshot_tables (
	source_id		bigint NOT NULL REFERENCES elt.snapshot_passes ON DELETE CASCADE,
	relation		text NOT NULL,
	done			bigint NOT NULL DEFAULT 0,	-- rows
	total			bigint,						-- estimate before it began; NULL: none
	blocks			bigint NOT NULL,
	blocks_done		bigint NOT NULL DEFAULT 0,
	schema_version	int,						-- of what was copied; NULL: nothing yet
	started_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	resumed_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	resumed_done	bigint NOT NULL DEFAULT 0,	-- done when it was resumed
	updated_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (source_id, relation),
	FOREIGN KEY (source_id, relation) REFERENCES elt.source_tables ON DELETE CASCADE
);
COMMENT ON TABLE elt.snapshot_tables IS 'the tables that are copied at present, and how far each is';

-- what is still to be copied; a worker locks the row, copies, and deletes it in the transaction that stages the rows
CREATE TABLE elt.snapshot_chunks (
	chunk_id		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	source_id		bigint NOT NULL,
	relation		text NOT NULL,
	part			text NOT NULL,				-- the table that holds the rows: the relation itself, or a partition
	filenode		text NOT NULL,				-- its OID and file: another one holds other rows under these block numbers
	first_block		bigint NOT NULL,
	end_block		bigint NOT NULL,			-- exclusive
	FOREIGN KEY (source_id, relation) REFERENCES elt.snapshot_tables ON DELETE CASCADE
);
CREATE INDEX snapshot_chunks_relation ON elt.snapshot_chunks (source_id, relation);
COMMENT ON TABLE elt.snapshot_chunks IS 'ranges of blocks that are still to be copied';

CREATE FUNCTION elt.copy_work(source_id bigint) RETURNS int
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
	AS $$
	SELECT greatest(
		(SELECT count(*) FROM (SELECT FROM elt.snapshot_chunks c JOIN elt.snapshot_passes p USING (source_id)
							   WHERE c.source_id = $1 AND p.phase = 'copying' LIMIT 16) c),
		(SELECT count(*) FROM (SELECT FROM elt.source_tables t JOIN elt.sources s USING (source_id)
							   WHERE t.source_id = $1 AND t.state = 'pending' AND t.horizon IS NOT NULL
									 AND s.start_lsn IS NOT NULL LIMIT 1) t),
		(SELECT count(*) FROM elt.snapshot_passes p WHERE p.source_id = $1))::int $$;
COMMENT ON FUNCTION elt.copy_work(bigint) IS 'internal: how many snapshot workers have something to do for a source, up to 16';

CREATE FUNCTION elt.xid_is_visible(xid bigint, snapshot pg_snapshot) RETURNS boolean
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS $$
	SELECT pg_visible_in_snapshot(greatest(3, near + (((xid - near + 2147483648) % 4294967296 + 4294967296) % 4294967296) - 2147483648)::text::xid8, $2)
	FROM (SELECT pg_snapshot_xmax($2)::text::bigint AS near) n $$;
COMMENT ON FUNCTION elt.xid_is_visible(bigint, pg_snapshot) IS
	'internal: whether a snapshot sees what the transaction with this 32-bit id committed; the two are less than 2^31 transactions apart';

CREATE FUNCTION elt.resync_table(source text, relation text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_resync_table';
COMMENT ON FUNCTION elt.resync_table(text, text) IS
	'copies a table anew beside the stream: a truncate and the present rows, which readers see at once when all are there';
