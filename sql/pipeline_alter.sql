-- Changing a pipeline: its transform, options, target and ordering.

SET client_min_messages = warning;
CREATE FUNCTION try(statement text, OUT sqlstate_ text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS sqlstate_ = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END $$;
CREATE FUNCTION pa_wait(wanted text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	FOR i IN 1..600 LOOP
		SELECT state INTO found FROM elt.pipelines WHERE name = 'pa';
		EXIT WHEN found = wanted;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN found;
END $$;
CREATE TABLE pa_t (id int PRIMARY KEY, v text);
CREATE TABLE pa_target (id int PRIMARY KEY, v text CHECK (v <> 'bad'));
CREATE TABLE pa_other (id int PRIMARY KEY, v text, more int);
CREATE TABLE pa_keyless (id int, v text);
SELECT elt.create_source('pa', ARRAY['pa_t']) > 0 AS created;
SELECT elt.create_pipeline('pa', 'pa', 'pa_t', 'pa_target') > 0 AS created;

-- a transform, another, and none again
INSERT INTO pa_t VALUES (1, 'one');
SELECT elt.wait_for('pa');
SELECT elt.replace_transform('pa', $$SELECT (record->>'id')::int AS id, upper(record->>'v') AS v FROM changes$$);
INSERT INTO pa_t VALUES (2, 'two');
SELECT elt.wait_for('pa');
SELECT elt.replace_transform('pa', $$SELECT (record->>'id')::int AS id, reverse(record->>'v') AS v FROM changes;$$);
INSERT INTO pa_t VALUES (3, 'three');
SELECT elt.wait_for('pa');
SELECT elt.replace_transform('pa', NULL);
INSERT INTO pa_t VALUES (4, 'four');
SELECT elt.wait_for('pa');
SELECT * FROM pa_target ORDER BY id;
SELECT version, transform FROM elt.pipeline_versions ORDER BY version;
SELECT version FROM elt.stat_pipelines;

-- what is wrong is refused, and nothing changes
\x on
SELECT * FROM try($$SELECT elt.replace_transform('nobody', 'SELECT 1 AS id FROM changes')$$);
SELECT * FROM try($$SELECT elt.replace_transform(NULL, 'SELECT 1 AS id FROM changes')$$);
SELECT * FROM try($$SELECT elt.replace_transform('pa', 'DELETE FROM pa_t')$$);
SELECT * FROM try($$SELECT elt.replace_transform('pa', 'SELECT (record->>''id'')::int AS id, 1 AS nothing FROM changes')$$);
SELECT * FROM try($$SELECT elt.replace_transform('pa', 'SELECT (record->>''id'')::int AS id, random()::text AS v FROM changes')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '{"lanes": 4}')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '{"lane": null}')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '[1]')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '{"breaker": "no"}')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '{"time_limit": "soon"}')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', options => '{"time_limit": -1}')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', target => 'pa_keyless')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', target => 'pg_class')$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', ordering => 'random')$$);
CREATE ROLE pa_mallory;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO pa_mallory;
GRANT EXECUTE ON FUNCTION try(text) TO pa_mallory;
SET ROLE pa_mallory;
SELECT * FROM try($$SELECT elt.replace_transform('pa', NULL)$$);
SELECT * FROM try($$SELECT elt.alter_pipeline('pa')$$);
RESET ROLE;
\x off
SELECT version, options, ordering, target FROM elt.pipelines;

-- options are merged; a null takes one back
SELECT elt.alter_pipeline('pa', options => '{"batch_changes": 5, "time_limit": "2 min"}');
SELECT options FROM elt.pipelines;
SELECT elt.alter_pipeline('pa', options => '{"batch_changes": null, "time_limit": 1500, "breaker": false, "lanes": 16}');
SELECT options FROM elt.pipelines;
SELECT elt.alter_pipeline('pa', options => '{"time_limit": null, "lanes": null}');
SELECT options FROM elt.pipelines;

-- another target from here on
SELECT elt.alter_pipeline('pa', target => 'pa_other');
INSERT INTO pa_t VALUES (5, 'five');
SELECT elt.wait_for('pa');
SELECT * FROM pa_other;
SELECT elt.alter_pipeline('pa', target => 'pa_target');

-- ordering: not while changes are parked, which would come late then
INSERT INTO pa_t VALUES (6, 'bad');
SELECT elt.wait_for('pa');
UPDATE pa_t SET v = 'good' WHERE id = 6;
SELECT elt.wait_for('pa');
\x on
SELECT * FROM try($$SELECT elt.alter_pipeline('pa', ordering => 'supersede')$$);
\x off
DELETE FROM elt.parked;
SELECT elt.alter_pipeline('pa', ordering => 'supersede');
UPDATE pa_t SET v = 'better' WHERE id = 6;
SELECT elt.wait_for('pa');
SELECT status, note ~ '^superseded by change' AS note FROM elt.quarantine;
SELECT * FROM pa_target WHERE id > 4 ORDER BY id;

-- a blocked pipeline tries at once: a function is gone, or gives another type
CREATE FUNCTION pa_f(id text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT id::int';
SELECT elt.replace_transform('pa', $$SELECT pa_f(record->>'id') AS id, record->>'v' AS v FROM changes$$);
DROP FUNCTION pa_f(text);
INSERT INTO pa_t VALUES (7, 'seven');
SELECT pa_wait('blocked');
SELECT last_error ~ '^42883: function pa_f\(text\) does not exist' AS reason, blocked_by FROM elt.pipelines;
UPDATE elt.pipelines SET next_probe_at = now() + interval '1 day';
CREATE FUNCTION pa_f(id text) RETURNS date LANGUAGE sql IMMUTABLE AS $$SELECT '2000-01-01'::date$$;
SELECT elt.resume_pipeline('pa');
DO $$
BEGIN
	FOR i IN 1..600 LOOP
		EXIT WHEN EXISTS (SELECT FROM elt.pipelines WHERE last_error ~ '^42804: .*date');
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
SELECT state, last_error FROM elt.pipelines;
SELECT count(*) FROM elt.quarantine WHERE status = 'open';
DROP FUNCTION pa_f(text);
UPDATE elt.pipelines SET next_probe_at = now() + interval '1 day';
SELECT elt.replace_transform('pa', $$SELECT (record->>'id')::int AS id, lower(record->>'v') AS v FROM changes$$);
SELECT pa_wait('running');
SELECT elt.wait_for('pa');
SELECT * FROM pa_target WHERE id = 7;
-- a transform that gives NULL for the key, or several rows of one key
SELECT elt.replace_transform('pa', $$SELECT nullif((record->>'id')::int, 8) AS id, v FROM changes, unnest(CASE record->>'v' WHEN 'twice' THEN ARRAY['a', 'b'] ELSE ARRAY['c'] END) v$$);
INSERT INTO pa_t VALUES (8, 'eight'), (9, 'nine'), (10, 'twice'), (11, 'eleven');
SELECT elt.wait_for('pa');
SELECT * FROM pa_target WHERE id > 7 ORDER BY id;
SELECT key, sqlstate, error_class FROM elt.quarantine WHERE status = 'open' ORDER BY change_id;

-- in one transaction with what it is for, and taken back
BEGIN;
ALTER TABLE pa_target ADD w text;
SELECT elt.replace_transform('pa', $$SELECT (record->>'id')::int AS id, 'new' AS w FROM changes$$) > 0 AS replaced;
ROLLBACK;
INSERT INTO pa_t VALUES (12, 'twelve');
SELECT elt.wait_for('pa');
SELECT * FROM pa_target WHERE id > 11;

SELECT elt.drop_pipeline('pa');
SELECT elt.drop_source('pa');
DROP TABLE pa_t, pa_target, pa_other, pa_keyless;
DROP FUNCTION try(text), pa_wait(text);
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elt FROM pa_mallory;
DROP ROLE pa_mallory;
