-- What an SQLSTATE means: the table's rows, changed by users, and per pipeline.

SET client_min_messages = warning;
CREATE TABLE ec_t (id int PRIMARY KEY, code text);
CREATE TABLE ec_a (id int PRIMARY KEY, code text);
CREATE TABLE ec_b (LIKE ec_a INCLUDING ALL);
CREATE FUNCTION ec_raise(code text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF code <> 'good' THEN
		RAISE EXCEPTION 'as asked' USING ERRCODE = code;
	END IF;
	RETURN code;
END $$;
SELECT elt.create_source('ec', ARRAY['ec_t']) > 0 AS created;
SELECT elt.wait_for_source('ec');
SELECT elt.create_pipeline(name, 'ec', 'ec_t', name, $$SELECT (record->>'id')::int AS id, ec_raise(record->>'code') AS code FROM changes$$) > 0 AS created
	FROM unnest(ARRAY['ec_a', 'ec_b']) name;

-- what elt brings
SELECT error_class, string_agg(sqlstate_prefix, ' ' ORDER BY sqlstate_prefix) FROM elt.error_classes WHERE pipeline IS NULL AND shipped GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM elt.error_classes WHERE NOT shipped;

-- wrong rows are refused
\set VERBOSITY terse
INSERT INTO elt.error_classes VALUES ('22', 'fatal', 'ec_a');
INSERT INTO elt.error_classes VALUES ('22-', 'data', 'ec_a');
INSERT INTO elt.error_classes VALUES ('22', 'data', 'ec_c');
INSERT INTO elt.error_classes VALUES ('22012', 'data', 'ec_a'), ('22012', 'transient', 'ec_a');
\set VERBOSITY default

-- ELT02 is systemic, as all that no row names; one pipeline takes it for data
INSERT INTO elt.error_classes VALUES ('ELT02', 'data', 'ec_a');
INSERT INTO ec_t VALUES (1, 'ELT02'), (2, 'good');
SELECT elt.wait_for('ec_a');
SELECT pipeline, key, error_class, sqlstate FROM elt.quarantine WHERE pipeline = 'ec_a';
-- where neighbours pass it is the record's fault in any case
SELECT elt.wait_for('ec_b');
SELECT pipeline, key, error_class, sqlstate FROM elt.quarantine WHERE pipeline = 'ec_b';

-- the longest prefix decides, whoever's it is; of equal ones the pipeline's own
INSERT INTO elt.error_classes VALUES ('22', 'dependency', 'ec_a'), ('22012', 'data', NULL), ('23505', 'dependency', NULL), ('23505', 'data', 'ec_b');
INSERT INTO ec_t VALUES (11, '22012'), (12, '22003'), (13, '23505'), (14, 'good');
SELECT elt.wait_for('ec_a'), elt.wait_for('ec_b');
SELECT pipeline, sqlstate, error_class, status FROM elt.quarantine WHERE (key->>'id')::int > 10 ORDER BY sqlstate, pipeline;

-- a transient one is tried again until it is well, which shows after some times
INSERT INTO elt.error_classes VALUES ('P0001', 'systemic', 'ec_b');
UPDATE elt.error_classes SET error_class = 'transient' WHERE sqlstate_prefix = 'P0001' AND pipeline = 'ec_b';
INSERT INTO ec_t VALUES (22, 'P0001');
SELECT elt.wait_for_source('ec');
DO $$
BEGIN
	FOR i IN 1..600 LOOP
		EXIT WHEN EXISTS (SELECT FROM elt.stat_pipelines WHERE pipeline = 'ec_b' AND last_error = 'P0001: as asked');
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
SELECT state, last_error FROM elt.stat_pipelines WHERE pipeline = 'ec_b';
DELETE FROM elt.error_classes WHERE sqlstate_prefix = 'P0001' AND pipeline = 'ec_b';
SELECT elt.wait_for('ec_b');

-- a changed row is the user's, an added one takes the place of a shipped one
UPDATE elt.error_classes SET error_class = 'data' WHERE sqlstate_prefix = '0A000';
INSERT INTO elt.error_classes VALUES ('23503', 'data');
SELECT sqlstate_prefix, error_class, shipped FROM elt.error_classes WHERE sqlstate_prefix IN ('0A000', '23503') AND pipeline IS NULL;
-- and that is what a dump carries
SELECT c.extconfig_condition FROM (SELECT unnest(extconfig) AS relid, unnest(extcondition) AS extconfig_condition FROM pg_extension WHERE extname = 'elt') c
	WHERE c.relid = 'elt.error_classes'::regclass;

-- the rows of a pipeline go with it
SELECT elt.drop_pipeline('ec_a'), elt.drop_pipeline('ec_b');
SELECT count(*) FROM elt.error_classes WHERE pipeline IS NOT NULL;
DELETE FROM elt.error_classes WHERE NOT shipped AND sqlstate_prefix NOT IN ('0A000', '23503');
UPDATE elt.error_classes SET error_class = 'systemic' WHERE sqlstate_prefix = '0A000';
UPDATE elt.error_classes SET error_class = 'dependency' WHERE sqlstate_prefix = '23503';
SELECT elt.drop_source('ec');
DROP TABLE ec_t, ec_a, ec_b;
DROP FUNCTION ec_raise(text);
