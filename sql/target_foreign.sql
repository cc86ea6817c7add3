-- Foreign tables as targets: another server, by postgres_fdw, in mode append.

SET client_min_messages = warning;
CREATE SCHEMA tf;
CREATE SCHEMA tf_far;
CREATE EXTENSION postgres_fdw SCHEMA tf;
CREATE ROLE tf_joe;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO tf_joe;
GRANT USAGE ON SCHEMA tf, elt_raw TO tf_joe;
CREATE FUNCTION tf.wait(name text, wanted text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	FOR i IN 1..1200 LOOP
		SELECT concat_ws(' ', p.state, split_part(p.last_error, ':', 1)) INTO found FROM elt.stat_pipelines p WHERE p.pipeline = name;
		EXIT WHEN found = wanted;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN found;
END $$;
CREATE TABLE tf.t (id int PRIMARY KEY, v text);
-- the far end, here in the same database
CREATE TABLE tf_far.log (change_id bigint PRIMARY KEY, op "char", id int, v text CHECK (v <> 'bad'));
CREATE TABLE tf_far.parted_b (id int, v text);
DO $$
BEGIN
	EXECUTE format('CREATE SERVER tf_server FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)',
		split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_database());
END $$;
GRANT USAGE ON FOREIGN SERVER tf_server TO tf_joe;
CREATE USER MAPPING FOR CURRENT_USER SERVER tf_server;
CREATE FOREIGN TABLE tf.log (change_id bigint, op "char", id int, v text) SERVER tf_server OPTIONS (schema_name 'tf_far', table_name 'log');
CREATE FOREIGN TABLE tf.named (id int, v text) SERVER tf_server OPTIONS (schema_name 'tf_far', table_name 'named');
CREATE TABLE tf_far.named (id int, v text);
CREATE TABLE tf.parted (id int, v text) PARTITION BY LIST (v);
CREATE TABLE tf.parted_a PARTITION OF tf.parted FOR VALUES IN ('a');
CREATE FOREIGN TABLE tf.parted_b PARTITION OF tf.parted FOR VALUES IN ('b') SERVER tf_server OPTIONS (schema_name 'tf_far');
SELECT elt.create_source('tf', ARRAY['tf.t']) > 0 AS created;
SELECT elt.wait_for_source('tf');
GRANT SELECT ON elt_raw.tf TO tf_joe;

-- what is refused, and what is warned of
RESET client_min_messages;
SELECT elt.create_pipeline('tf_log', 'tf', 'tf.t', 'tf.log');
SELECT elt.create_pipeline('tf_log', 'tf', 'tf.t', 'tf.log', mode => 'history');
SELECT elt.create_pipeline('tf_log', 'tf', 'tf.t', 'tf.log', $$SELECT change_id, op, (record->>'id')::int AS id, record->>'v' AS v FROM changes$$, mode => 'append') > 0 AS created;
SET client_min_messages = warning;
SELECT elt.create_pipeline('tf_named', 'tf', 'tf.t', 'tf.named', mode => 'append') > 0 AS created \g /dev/null
SELECT elt.create_pipeline('tf_parted', 'tf', 'tf.t', 'tf.parted', mode => 'append') > 0 AS created;

INSERT INTO tf.t SELECT g, CASE WHEN g % 2 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 2000) g;
UPDATE tf.t SET v = 'a' WHERE id = 1;
DELETE FROM tf.t WHERE id = 2;
SELECT elt.wait_for('tf_log'), elt.wait_for('tf_named'), elt.wait_for('tf_parted');
SELECT op, count(*), count(DISTINCT id) FROM tf_far.log GROUP BY op ORDER BY op;
SELECT count(*) FROM tf_far.named;
SELECT (SELECT count(*) FROM tf.parted_a) AS here, (SELECT count(*) FROM tf_far.parted_b) AS there;
-- what the far end refuses is the record's fault
INSERT INTO tf.t VALUES (3001, 'bad'), (3002, 'a');
SELECT elt.wait_for('tf_log');
SELECT pipeline, sqlstate, constraint_name, key FROM elt.quarantine WHERE pipeline = 'tf_log';
SELECT id, v FROM tf_far.log WHERE id > 3000;
ALTER TABLE tf_far.log DROP CONSTRAINT log_v_check;
SELECT outcome, error FROM elt.replay_quarantine('tf_log');
SELECT id, v FROM tf_far.log WHERE id > 3000 ORDER BY id;
-- a far end that is broken, or not to be reached, holds the pipeline, and quarantines nothing
ALTER TABLE tf_far.log RENAME TO gone;
INSERT INTO tf.t VALUES (3003, 'a');
SELECT tf.wait('tf_log', 'blocked 42P01');
ALTER TABLE tf_far.gone RENAME TO log;
SELECT elt.wait_for('tf_log', timeout => '60 s');
ALTER SERVER tf_server OPTIONS (SET port '1');
INSERT INTO tf.t VALUES (3004, 'a');
SELECT tf.wait('tf_log', 'running 08001');
DO $$ BEGIN EXECUTE format('ALTER SERVER tf_server OPTIONS (SET port %L)', current_setting('port')); END $$;
SELECT elt.wait_for('tf_log', timeout => '60 s');
-- sessions that somebody ends there
SELECT count(pg_terminate_backend(pid)) > 0 AS ended FROM pg_stat_activity WHERE application_name = 'postgres_fdw';
INSERT INTO tf.t VALUES (3005, 'a');
SELECT elt.wait_for('tf_log', timeout => '60 s');
SELECT string_agg(id::text, ' ' ORDER BY id) FROM tf_far.log WHERE id > 3002;
SELECT count(*) FROM elt.quarantine WHERE status <> 'replayed' AND pipeline = 'tf_log';
-- a replay takes back what it wrote by change_id; changes that come twice otherwise show as such
CALL elt.replay('tf_log');
SELECT count(*), count(DISTINCT change_id) FROM tf_far.log;

-- an owner who is no superuser needs a user mapping of its own
CREATE FOREIGN TABLE tf.joes (id int, v text) SERVER tf_server OPTIONS (schema_name 'tf_far', table_name 'named');
ALTER FOREIGN TABLE tf.joes OWNER TO tf_joe;
SET ROLE tf_joe;
SELECT elt.create_pipeline('tf_joes', 'tf', 'tf.t', 'tf.joes', mode => 'append') > 0 AS created \g /dev/null
RESET ROLE;
SELECT tf.wait('tf_joes', 'blocked 42704');
DROP FOREIGN TABLE tf.joes;
SELECT tf.wait('tf_joes', 'blocked 42P01');

SELECT elt.drop_pipeline(name) FROM elt.pipelines WHERE name LIKE 'tf%' ORDER BY name;
SELECT elt.drop_source('tf');
DROP SCHEMA tf, tf_far CASCADE;
DROP OWNED BY tf_joe;
DROP ROLE tf_joe;
