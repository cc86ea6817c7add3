-- What elt holds is as secret as the most secret table it captures.

-- no table is readable by everybody, and only these views and functions are
SELECT c.relname, c.relkind
FROM pg_class c
WHERE c.relnamespace = 'elt'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S')
	AND has_table_privilege('public', c.oid, 'SELECT')
ORDER BY c.relname;

SELECT p.proname
FROM pg_proc p
WHERE p.pronamespace = 'elt'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY p.proname;

SELECT has_schema_privilege('public', 'elt_raw', 'USAGE') AS raw_usage,
	   has_schema_privilege('public', 'elt', 'CREATE') AS elt_create;

-- no table may be written by anybody but its owner
SELECT count(*) FROM pg_class c
WHERE c.relnamespace = 'elt'::regnamespace AND c.relkind = 'r'
	AND has_table_privilege('public', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE');

-- every public object says what it is for
SELECT p.proname FROM pg_proc p
WHERE p.pronamespace = 'elt'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'elt'::regnamespace AND c.relkind IN ('r', 'v')
	AND obj_description(c.oid, 'pg_class') IS NULL;

-- every SQL function pins its search_path
SELECT p.proname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'elt'::regnamespace AND l.lanname IN ('sql', 'plpgsql')
	AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false);

-- an ordinary role sees nothing of others
CREATE ROLE rights_nobody;
CREATE TABLE rights_t (id int PRIMARY KEY);
SELECT elt.create_source('rights', ARRAY['rights_t']) > 0 AS created;
SELECT elt.wait_for_source('rights');
SELECT count(*) FROM elt.stat_sources WHERE source = 'rights';
SET ROLE rights_nobody;
SELECT count(*) FROM elt.stat_sources;
SELECT count(*) FROM elt.stat_workers;
SELECT count(last_error) FROM elt.workers();
SELECT * FROM elt.sources;
SELECT * FROM elt_raw.rights;
SELECT elt.drop_source('rights');
SELECT * FROM elt.health();
RESET ROLE;

-- pg_monitor sees state, no data
GRANT pg_monitor TO rights_nobody;
SET ROLE rights_nobody;
SELECT source, state FROM elt.stat_sources;
SELECT count(*) > 0 FROM elt.stat_workers;
SELECT "check", ok FROM elt.health() WHERE "check" = 'source rights';
SELECT * FROM elt_raw.rights;
RESET ROLE;

REVOKE pg_monitor FROM rights_nobody;

-- what is in quarantine shows to who owns the pipeline
CREATE TABLE rights_target (id int PRIMARY KEY CHECK (id > 0));
INSERT INTO rights_t VALUES (-1);
UPDATE rights_t SET id = -1;
SELECT elt.wait_for_source('rights');
GRANT USAGE ON SCHEMA elt_raw TO rights_nobody;
GRANT SELECT ON elt_raw.rights TO rights_nobody;
GRANT SELECT, INSERT, UPDATE, DELETE ON rights_target TO rights_nobody;
GRANT EXECUTE ON FUNCTION elt.create_pipeline, elt.wait_for, elt.drop_pipeline TO rights_nobody;
CREATE ROLE rights_other;
SET ROLE rights_nobody;
SELECT elt.create_pipeline('rights', 'rights', 'public.rights_t', 'rights_target') > 0 AS created;
SELECT elt.wait_for('rights');
SELECT op, key, record, sqlstate FROM elt.quarantine;
SELECT op, key FROM elt.parked;
SELECT pipeline, quarantined_open FROM elt.stat_pipelines;
SET ROLE rights_other;
SELECT count(*) FROM elt.quarantine;
SELECT count(*) FROM elt.parked;
SELECT count(*) FROM elt.stat_pipelines;
SET ROLE rights_nobody;
SELECT elt.drop_pipeline('rights');
RESET ROLE;

SELECT elt.drop_source('rights');
REVOKE EXECUTE ON FUNCTION elt.create_pipeline, elt.wait_for, elt.drop_pipeline FROM rights_nobody;
REVOKE USAGE ON SCHEMA elt_raw FROM rights_nobody;
DROP TABLE rights_t, rights_target;
DROP ROLE rights_nobody, rights_other;
