-- Wrong calls of the functions of pipelines: each is an error that says what to do.

SET client_min_messages = warning;
CREATE TABLE pe_t (id int PRIMARY KEY, v text, n numeric);
CREATE TABLE pe_other (id int PRIMARY KEY);
CREATE TABLE pe_target (id int PRIMARY KEY, v text, n numeric, d text GENERATED ALWAYS AS (v || '!') STORED);
CREATE TABLE pe_nokey (id int, v text);
CREATE TABLE pe_partial (id int, v text);
CREATE UNIQUE INDEX ON pe_partial (id) WHERE v IS NOT NULL;
CREATE TABLE pe_deferred (id int UNIQUE DEFERRABLE, v text);
CREATE TABLE pe_unique (a int, b int, v text, UNIQUE (a, b));
CREATE TABLE pe_nothing (x int PRIMARY KEY);
CREATE VIEW pe_view AS SELECT 1 AS id;
CREATE ROLE pe_joe;
CREATE ROLE pe_jane;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO pe_joe, pe_jane;
SELECT elt.create_source('pe', ARRAY['pe_t'], snapshot => 'none') > 0 AS created;

-- what went wrong, with its SQLSTATE
CREATE FUNCTION try(command text) RETURNS TABLE (sqlstate_ text, message text, detail text, hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	sqlstate_ := '00000';
	RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS sqlstate_ = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
							detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION try(text) TO PUBLIC;
\x on
\t on

-- names
SELECT * FROM try($$SELECT elt.create_pipeline(NULL, 'pe', 'pe_t', 'pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('Shop', 'pe', 'pe_t', 'pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('', 'pe', 'pe_t', 'pe_target')$$);
SELECT * FROM try(format($$SELECT elt.create_pipeline(%L, 'pe', 'pe_t', 'pe_target')$$, repeat('x', 41)));
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'nowhere', 'pe_t', 'pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_other', 'pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'a.b.c', 'pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', NULL)$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_missing')$$);

-- modes, orderings, options
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', mode => 'history')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', mode => 'merge')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', ordering => 'random')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '[]')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"lane": 4}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"lanes": 3}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"lanes": 512}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"batch_changes": 1.5}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"deletes": "soft"}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', options => '{"allow_volatile": "yes"}')$$);

-- targets and keys
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_view')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pg_class')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'elt.parked')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_nokey')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_partial', key => '{id}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_deferred', key => '{id}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_unique', key => '{a}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', key => '{nope}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_unique', key => '{a,b}')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_nothing')$$);

-- transforms
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELEC 1')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', '')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'DELETE FROM pe_t')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT 1 AS id; DROP TABLE pe_t')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT 1 AS id) AS x; DROP TABLE pe_t; --')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT 1 AS id INTO pe_new')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT id FROM pe_t FOR UPDATE')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'WITH d AS (DELETE FROM pe_t RETURNING id) SELECT id FROM d')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT nope AS id FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT nope(record) AS id FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT 1 AS id, 2 AS x, 3 AS "Y" FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT record->>''v'' AS v FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT record->>''id'' AS id FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT (record->>''id'')::int AS id, 1 AS d FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'pe_target', 'SELECT (record->>''id'')::int AS id, random()::text AS v FROM changes')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'message:orders', 'pe_target')$$);

-- rights
SET ROLE pe_joe;
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);
RESET ROLE;
GRANT SELECT ON elt_raw.pe TO pe_joe;
SET ROLE pe_joe;
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);
RESET ROLE;
GRANT SELECT, INSERT, UPDATE ON pe_target TO pe_joe;
SET ROLE pe_joe;
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);
RESET ROLE;
GRANT DELETE ON pe_target TO pe_joe;
ALTER TABLE pe_target ENABLE ROW LEVEL SECURITY;
SET ROLE pe_joe;
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);
RESET ROLE;
ALTER TABLE pe_target DISABLE ROW LEVEL SECURITY;
SET ROLE pe_joe;
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);
SELECT * FROM try($$SELECT elt.create_pipeline('p', 'pe', 'pe_t', 'public.pe_target')$$);

-- of others
SET ROLE pe_jane;
SELECT * FROM try($$SELECT elt.pause_pipeline('p')$$);
SELECT * FROM try($$SELECT elt.resume_pipeline('p')$$);
SELECT * FROM try($$SELECT elt.drop_pipeline('p')$$);
SELECT * FROM try($$SELECT * FROM elt.transform('p')$$);
SELECT count(*) FROM elt.stat_pipelines;
SET ROLE pe_joe;
SELECT pipeline, state FROM elt.stat_pipelines;
SELECT * FROM try($$SELECT elt.drop_pipeline('nope')$$);
SELECT * FROM try($$SELECT elt.pause_pipeline(NULL)$$);
SELECT * FROM try($$SELECT * FROM elt.transform('p', 0)$$);
SELECT * FROM try($$SELECT elt.pause_pipeline('p')$$);
SELECT * FROM try($$SELECT * FROM elt.transform('p')$$);
SELECT * FROM try($$SELECT elt.drop_pipeline('p')$$);
RESET ROLE;
\x off
\t off

SELECT count(*) FROM elt.pipelines;
SELECT elt.drop_source('pe');
DROP FUNCTION try(text);
DROP TABLE pe_t, pe_other, pe_target, pe_nokey, pe_partial, pe_deferred, pe_unique, pe_nothing;
DROP VIEW pe_view;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elt FROM pe_joe, pe_jane;
DROP ROLE pe_joe, pe_jane;
