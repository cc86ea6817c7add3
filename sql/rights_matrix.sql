-- Who may do what with everything in elt and elt_raw: what the catalogs say, and what happens when one tries.

\set VERBOSITY terse
SET client_min_messages = warning;
CREATE ROLE matrix_nobody;
CREATE ROLE matrix_owner;
CREATE ROLE matrix_monitor IN ROLE pg_monitor;
CREATE ROLE matrix_granted;
CREATE SCHEMA matrix;
GRANT USAGE, CREATE ON SCHEMA matrix TO PUBLIC;
CREATE TABLE matrix.t (id int PRIMARY KEY, v text);
CREATE TABLE matrix.target (id int PRIMARY KEY, v text CHECK (v <> 'bad'));
ALTER TABLE matrix.target OWNER TO matrix_owner;
SELECT elt.create_source('matrix', ARRAY['matrix.t']) > 0 AS created;
SELECT elt.wait_for_source('matrix');
-- what is granted to who is to own a pipeline
GRANT USAGE ON SCHEMA elt_raw TO matrix_owner;
GRANT SELECT ON elt_raw.matrix TO matrix_owner;
GRANT EXECUTE ON FUNCTION elt.create_pipeline TO matrix_owner;
SET ROLE matrix_owner;
SELECT elt.create_pipeline('matrix', 'matrix', 'matrix.t', 'matrix.target') > 0 AS created;
RESET ROLE;
INSERT INTO matrix.t VALUES (1, 'good'), (2, 'bad');
SELECT elt.wait_for('matrix');
UPDATE matrix.t SET v = 'better' WHERE id = 2;
SELECT elt.wait_for('matrix');

CREATE VIEW matrix.roles AS
	SELECT n, rolname FROM unnest(ARRAY['public', 'matrix_nobody', 'matrix_owner', 'matrix_monitor']) WITH ORDINALITY AS r (rolname, n);

---- what the catalogs say; what has no line is open to nobody

SELECT nspname AS schema, rolname AS role,
	   concat(CASE WHEN has_schema_privilege(rolname, s.oid, 'USAGE') THEN 'U' END,
			  CASE WHEN has_schema_privilege(rolname, s.oid, 'CREATE') THEN 'C' END) AS rights
FROM pg_namespace s, matrix.roles
WHERE nspname IN ('elt', 'elt_raw') ORDER BY nspname, n;

-- r: SELECT, a: INSERT, w: UPDATE, d: DELETE, D: TRUNCATE, x: REFERENCES, t: TRIGGER, U: USAGE of a sequence
CREATE VIEW matrix.relation_rights AS
	SELECT c.oid, c.relkind, c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS relation, n, rolname,
		   CASE WHEN relkind = 'S' THEN
			concat(CASE WHEN has_sequence_privilege(rolname, c.oid, 'SELECT') THEN 'r' END,
				   CASE WHEN has_sequence_privilege(rolname, c.oid, 'UPDATE') THEN 'w' END,
				   CASE WHEN has_sequence_privilege(rolname, c.oid, 'USAGE') THEN 'U' END)
		   ELSE
			concat(CASE WHEN has_any_column_privilege(rolname, c.oid, 'SELECT') THEN 'r' END,
				   CASE WHEN has_any_column_privilege(rolname, c.oid, 'INSERT') THEN 'a' END,
				   CASE WHEN has_any_column_privilege(rolname, c.oid, 'UPDATE') THEN 'w' END,
				   CASE WHEN has_table_privilege(rolname, c.oid, 'DELETE') THEN 'd' END,
				   CASE WHEN has_table_privilege(rolname, c.oid, 'TRUNCATE') THEN 'D' END,
				   CASE WHEN has_any_column_privilege(rolname, c.oid, 'REFERENCES') THEN 'x' END,
				   CASE WHEN has_table_privilege(rolname, c.oid, 'TRIGGER') THEN 't' END)
		   END AS rights
	FROM pg_class c, matrix.roles
	WHERE c.relnamespace IN ('elt'::regnamespace, 'elt_raw'::regnamespace) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
		AND (c.relnamespace = 'elt'::regnamespace OR c.relname = 'matrix');
SELECT relation, relkind, string_agg(rolname || '=' || rights, ' ' ORDER BY n) FILTER (WHERE rolname <> 'matrix_nobody') AS rights
FROM matrix.relation_rights
GROUP BY relation, relkind HAVING string_agg(rights, '') <> '' ORDER BY relation COLLATE "C";

CREATE VIEW matrix.function_rights AS
	SELECT p.oid, p.prokind, p.oid::regprocedure::text AS function, n, rolname, has_function_privilege(rolname, p.oid, 'EXECUTE') AS may
	FROM pg_proc p, matrix.roles WHERE p.pronamespace IN ('elt'::regnamespace, 'elt_raw'::regnamespace);
SELECT function, prokind, string_agg(rolname, ' ' ORDER BY n) FILTER (WHERE may AND rolname <> 'matrix_nobody') AS executed_by
FROM matrix.function_rights GROUP BY function, prokind HAVING bool_or(may) ORDER BY function COLLATE "C";

-- who has nothing has what everybody has
SELECT count(*) FROM matrix.relation_rights a JOIN matrix.relation_rights b USING (oid)
WHERE a.rolname = 'public' AND b.rolname = 'matrix_nobody' AND a.rights <> b.rights;
SELECT count(*) FROM matrix.function_rights a JOIN matrix.function_rights b USING (oid)
WHERE a.rolname = 'public' AND b.rolname = 'matrix_nobody' AND a.may <> b.may;

-- leaves of raw staging are read through their root
SELECT count(*) > 0 AS leaves, count(*) FILTER (WHERE c.relacl IS NOT NULL) AS granted
FROM pg_partition_tree('elt_raw.matrix') p JOIN pg_class c ON c.oid = p.relid WHERE p.relid <> 'elt_raw.matrix'::regclass;

-- no default right is set for what is made later
SELECT count(*) FROM pg_default_acl WHERE defaclnamespace IN ('elt'::regnamespace, 'elt_raw'::regnamespace);

-- what runs as its owner pins its path, and so does all that is not C
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'elt'::regnamespace AND (p.prosecdef OR l.lanname NOT IN ('c', 'internal'))
	AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false);
SELECT p.oid::regprocedure AS runs_as_its_owner, l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'elt'::regnamespace AND p.prosecdef ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT c.relname AS barrier_missing FROM pg_class c
WHERE c.relnamespace = 'elt'::regnamespace AND c.relkind = 'v' AND has_table_privilege('public', c.oid, 'SELECT')
	AND NOT coalesce(c.reloptions && ARRAY['security_barrier=true', 'security_barrier=on', 'security_barrier'], false)
ORDER BY 1;

---- what happens when one tries

-- values for arguments, by their names and types, with which functions would do something
CREATE TABLE matrix.arguments (name text, type regtype, value text);
INSERT INTO matrix.arguments VALUES
	('relation', 'text', 'matrix.t'), ('target', 'regclass', 'matrix.target'), ('transform', 'text', 'SELECT (key->>''id'')::int AS id FROM changes'),
	('schedule', 'text', '0 * * * *'), ('name', 'text', 'matrix'), ('source', 'text', 'matrix'), ('pipeline', 'text', 'matrix'), ('topic', 'text', 'matrix'),
	('rule', 'text', 'error_rate'), ('mode', 'text', 'upsert'), ('ordering', 'text', 'strict'), ('expression', 'text', 'SELECT 1.0'),
	('query', 'text', 'SELECT 1.0'), ('severity', 'text', 'warning'), ('sqlstate', 'text', NULL), ('fingerprint', 'text', NULL),
	('conninfo', 'text', NULL), ('snapshot', 'text', 'none'), ('publication', 'name', NULL), ('key', 'text[]', NULL), ('tables', 'text[]', '{matrix.t}'),
	('key', 'jsonb', '{"id": 1}'), ('record', 'jsonb', '{"v": "mended"}'), ('labels', 'jsonb', '{"pipeline": "matrix"}'),
	('role', 'name', 'postgres'), ('role', 'oid', '10'), ('owner', 'oid', '10'),
	(NULL, 'text', 'x'), (NULL, 'name', 'x'), (NULL, 'jsonb', '{}'), (NULL, 'interval', '1 s'), (NULL, 'boolean', 'false'), (NULL, 'oid', '1'),
	(NULL, 'integer', '1'), (NULL, 'bigint', '1'), (NULL, 'double precision', '1'), (NULL, 'timestamptz', '2026-01-01'), (NULL, 'pg_lsn', '0/1'),
	(NULL, 'pg_snapshot', '1:1:'), (NULL, 'regclass', 'elt_raw.matrix');
INSERT INTO matrix.arguments SELECT 'pipeline_id', 'bigint', pipeline_id FROM elt.pipelines WHERE name = 'matrix';
INSERT INTO matrix.arguments SELECT 'source_id', 'bigint', source_id FROM elt.sources WHERE name = 'matrix';
INSERT INTO matrix.arguments SELECT 'id', 'bigint', min(quarantine_id) FROM elt.quarantine;
INSERT INTO matrix.arguments SELECT 'ids', 'bigint[]', array_agg(quarantine_id) FROM elt.quarantine;
INSERT INTO matrix.arguments SELECT 'leaf', 'regclass', min(tableoid::regclass::text) FROM elt_raw.matrix;
CREATE FUNCTION matrix.call(function oid) RETURNS text LANGUAGE sql AS $$
	SELECT CASE p.prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT ' END || p.oid::regproc || '(' || coalesce(string_agg(
		CASE WHEN a.type = 'anyelement'::regtype THEN 'NULL::matrix.t' ELSE format('%L::%s', v.value, a.type::regtype) END, ', ' ORDER BY a.n)
		FILTER (WHERE a.n IS NOT NULL), '') || ')'
	FROM pg_proc p
	LEFT JOIN LATERAL unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a (type, n) ON true
	LEFT JOIN LATERAL (SELECT m.value FROM matrix.arguments m WHERE m.type = a.type AND coalesce(m.name = p.proargnames[a.n], m.name IS NULL)
					   ORDER BY m.name LIMIT 1) v ON true
	WHERE p.oid = function GROUP BY p.oid
$$;
-- the outcome as that role; nothing stays
CREATE FUNCTION matrix.try(command text, role name) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SET LOCAL ROLE %I', role);
	EXECUTE command;
	RAISE EXCEPTION 'done' USING ERRCODE = 'XXXXX';
EXCEPTION WHEN OTHERS THEN
	RETURN CASE SQLSTATE WHEN 'XXXXX' THEN 'done' ELSE SQLSTATE END;
END $$;

-- everything that the matrix does not allow is denied: no line
SELECT f.rolname, f.function, matrix.try(matrix.call(f.oid), f.rolname)
FROM matrix.function_rights f
WHERE f.rolname <> 'public' AND NOT f.may AND matrix.try(matrix.call(f.oid), f.rolname) <> '42501'
ORDER BY 1, 2;
CREATE VIEW matrix.attempts AS
	SELECT r.*, a.letter, format(a.command, r.oid::regclass, c.attname) AS command
	FROM matrix.relation_rights r
	CROSS JOIN LATERAL (SELECT quote_ident(attname) AS attname FROM pg_attribute
						WHERE attrelid = r.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum LIMIT 1) c
	CROSS JOIN (VALUES ('r', 'SELECT %s.%s FROM %1$s LIMIT 1'), ('a', 'INSERT INTO %s SELECT * FROM %1$s WHERE false'),
				('w', 'UPDATE %s SET %s = DEFAULT WHERE false'), ('d', 'DELETE FROM %s WHERE false'), ('D', 'TRUNCATE %s'),
				('D', 'DROP TABLE %s'), ('D', 'ALTER TABLE %s DISABLE TRIGGER ALL'), ('D', 'CREATE INDEX ON %s (%2$s)'),
				('t', 'CREATE TRIGGER t BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()')) a (letter, command)
	WHERE r.rolname <> 'public' AND r.relkind <> 'S' AND (r.relkind IN ('r', 'p') OR a.letter IN ('r', 'a', 'w', 'd'));
-- 55000: some views can be written by nobody
SELECT DISTINCT relkind, matrix.try(a.command, a.rolname) AS outcome
FROM matrix.attempts a WHERE position(a.letter IN a.rights) = 0 ORDER BY 1, 2;
SELECT count(*) > 500 AS tried_enough FROM matrix.attempts a WHERE position(a.letter IN a.rights) = 0;
SELECT count(*) > 10 AS tried, count(*) FILTER (WHERE matrix.try(format('SELECT nextval(%L)', r.oid::regclass), r.rolname) <> '42501'
											  OR matrix.try(format('SELECT setval(%L, 1)', r.oid::regclass), r.rolname) <> '42501') AS not_denied
FROM matrix.relation_rights r WHERE r.rolname <> 'public' AND r.relkind = 'S';
-- and a leaf cannot be read past its root
SELECT DISTINCT matrix.try(format('SELECT FROM %s', relid), rolname) AS outcome
FROM pg_partition_tree('elt_raw.matrix'), matrix.roles WHERE rolname <> 'public' AND relid <> 'elt_raw.matrix'::regclass;

-- who is granted EXECUTE on all of it, and owns nothing, is denied by each function itself, but for those above and these
-- (25001: tried apart, below)
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA elt TO matrix_granted;
BEGIN;
SELECT pg_current_xact_id() IS NOT NULL AS written;
SELECT p.oid::regprocedure AS function, matrix.try(matrix.call(p.oid), 'matrix_granted') AS outcome
FROM pg_proc p
WHERE p.pronamespace = 'elt'::regnamespace AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
	AND p.prorettype <> 'trigger'::regtype AND matrix.try(matrix.call(p.oid), 'matrix_granted') <> '42501'
ORDER BY p.oid::regprocedure::text COLLATE "C";
COMMIT;
SET ROLE matrix_granted;
CALL elt.replay('matrix');
SELECT elt.wait_for('matrix');
SELECT elt.wait_for_source('matrix');
RESET ROLE;
-- with nothing told of what is not theirs
SET ROLE matrix_granted;
SELECT (SELECT count(*) FROM elt.stat_sources) + (SELECT count(*) FROM elt.stat_pipelines) + (SELECT count(*) FROM elt.backlog)
	+ (SELECT count(*) FROM elt.quarantine) + (SELECT count(*) FROM elt.parked) + (SELECT count(*) FROM elt.blocked_keys)
	+ (SELECT count(*) FROM elt.quarantine_groups) + (SELECT count(*) FROM elt.progress_replay) + (SELECT count(*) FROM elt.progress_snapshot)
	+ (SELECT count(*) FROM elt.schema_history) + (SELECT count(*) FROM elt.gaps) + (SELECT count(*) FROM elt.alerts)
	+ (SELECT count(*) FROM elt.silences) + (SELECT count(*) FROM elt.replay_runs) AS seen;
SELECT count(*) FROM elt.alert_rules WHERE NOT shipped;
-- the owner sees its own, pg_monitor state alone
SET ROLE matrix_owner;
SELECT (SELECT count(*) FROM elt.stat_pipelines) AS pipelines, (SELECT count(*) FROM elt.quarantine) AS quarantine, (SELECT count(*) FROM elt.parked) AS parked;
SET ROLE matrix_monitor;
SELECT (SELECT count(*) FROM elt.stat_pipelines WHERE pipeline = 'matrix') AS pipelines, (SELECT count(*) FROM elt.quarantine WHERE pipeline = 'matrix') AS quarantine,
	(SELECT count(*) FROM elt.parked) AS parked;
RESET ROLE;

-- all is as it was
SELECT state FROM elt.stat_pipelines WHERE pipeline = 'matrix';
SELECT status, retry_count FROM elt.quarantine WHERE pipeline = 'matrix';
SELECT elt.discard_quarantine(array_agg(quarantine_id), 'done') FROM elt.quarantine WHERE pipeline = 'matrix';
SELECT * FROM matrix.target ORDER BY id;
SELECT elt.drop_pipeline('matrix');
SELECT elt.drop_source('matrix');
REVOKE ALL ON ALL ROUTINES IN SCHEMA elt FROM matrix_granted;
REVOKE ALL ON FUNCTION elt.create_pipeline FROM matrix_owner;
REVOKE ALL ON SCHEMA elt_raw FROM matrix_owner;
DROP SCHEMA matrix CASCADE;
DROP ROLE matrix_nobody, matrix_owner, matrix_monitor, matrix_granted;
