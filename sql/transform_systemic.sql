-- A broken environment blocks a pipeline, and quarantines nothing.

SET client_min_messages = warning;
CREATE FUNCTION ty_wait(pipeline text, wanted text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	FOR i IN 1..600 LOOP
		SELECT state INTO found FROM elt.pipelines WHERE name = pipeline;
		EXIT WHEN found = wanted;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN found;
END $$;
CREATE FUNCTION ty_text(query text, wanted text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	FOR i IN 1..600 LOOP
		EXECUTE query INTO found;
		EXIT WHEN found = wanted;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN found;
END $$;
CREATE ROLE ty_joe;
GRANT CREATE ON SCHEMA public TO ty_joe;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO ty_joe;
CREATE TABLE ty_t (id int PRIMARY KEY, v text);
SELECT elt.create_source('ty', ARRAY['ty_t']) > 0 AS created;
SELECT elt.wait_for_source('ty');
GRANT SELECT ON elt_raw.ty TO ty_joe;
SET ROLE ty_joe;
CREATE TABLE ty_target (id int PRIMARY KEY, v text);
CREATE FUNCTION ty_check(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF v = 'internal' THEN
		RAISE EXCEPTION 'this value trips a bug' USING ERRCODE = 'XX000';
	END IF;
	RETURN v;
END $$;
SELECT elt.create_pipeline('ty', 'ty', 'public.ty_t', 'ty_target',
	$$SELECT (record->>'id')::int AS id, ty_check(record->>'v') AS v FROM changes$$) > 0 AS created;
RESET ROLE;
INSERT INTO ty_t VALUES (1, 'a');
SELECT elt.wait_for('ty');

-- a right is revoked
REVOKE SELECT ON elt_raw.ty FROM ty_joe;
INSERT INTO ty_t VALUES (2, 'b');
SELECT ty_wait('ty', 'blocked');
SELECT last_error, blocked_since IS NOT NULL AS since, next_probe_at > last_error_at AS probed FROM elt.pipelines;
SELECT pipeline, state, last_error IS NOT NULL AS last_error FROM elt.stat_pipelines;
GRANT SELECT ON elt_raw.ty TO ty_joe;
SELECT ty_wait('ty', 'running');
SELECT elt.wait_for('ty');

-- a function is gone: by hand the error comes to the caller, the workers block
SET ROLE ty_joe;
ALTER FUNCTION ty_check(text) RENAME TO ty_checked;
RESET ROLE;
SELECT elt.pause_pipeline('ty');
INSERT INTO ty_t SELECT g, 'c' FROM generate_series(3, 200) g;
SELECT elt.wait_for_source('ty');
\set VERBOSITY sqlstate
SELECT read FROM elt.transform('ty');
\set VERBOSITY default
SELECT elt.resume_pipeline('ty');
SELECT ty_wait('ty', 'blocked');
SELECT left(last_error, 5) AS sqlstate FROM elt.pipelines;
SELECT count(*) FROM elt.quarantine;
ALTER FUNCTION ty_checked(text) RENAME TO ty_check;
SELECT ty_wait('ty', 'running');
SELECT elt.wait_for('ty');
SELECT count(*) FROM ty_target;

-- the same codes are data where neighbours pass
INSERT INTO ty_t SELECT g, CASE g WHEN 250 THEN 'internal' ELSE 'd' END FROM generate_series(201, 300) g;
SELECT elt.wait_for('ty');
SELECT count(*) FROM ty_target;
SELECT key, error_class, sqlstate, message, step FROM elt.quarantine;
-- alone, settled changes tell
INSERT INTO ty_t VALUES (301, 'internal');
SELECT elt.wait_for('ty');
INSERT INTO ty_t VALUES (302, 'e');
SELECT elt.wait_for('ty');
SELECT id FROM ty_target WHERE id > 300;
SELECT key, sqlstate FROM elt.quarantine ORDER BY change_id;

-- a target that is gone
ALTER TABLE ty_target RENAME TO ty_moved;
INSERT INTO ty_t VALUES (303, 'renamed is the same');
SELECT elt.wait_for('ty');
SELECT id FROM ty_moved WHERE id > 302;
DROP TABLE ty_moved;
INSERT INTO ty_t VALUES (304, 'f');
SELECT ty_wait('ty', 'blocked');
SELECT regexp_replace(last_error, '\d{5,}', 'OID') AS last_error FROM elt.pipelines WHERE last_error ~ '42P01';
-- the renamed table's last name counts; a table of somebody else is not taken for it
CREATE TABLE ty_moved (id int PRIMARY KEY, v text);
CREATE ROLE ty_mallory;
ALTER TABLE ty_moved OWNER TO ty_mallory;
GRANT ALL ON ty_moved TO ty_joe;
SELECT elt.resume_pipeline('ty');
SELECT ty_text($$SELECT probes::text FROM elt.pipelines WHERE name = 'ty'$$, '1');
SELECT state, blocked_by, regexp_replace(last_error, '\d{5,}', 'OID') AS last_error FROM elt.pipelines;
SELECT count(*) FROM ty_moved;
-- one of the same owner is: the pipeline resumes by itself, and nothing was quarantined meanwhile
ALTER TABLE ty_moved OWNER TO ty_joe;
SELECT ty_wait('ty', 'running');
SELECT elt.wait_for('ty');
TABLE ty_moved;
SELECT target, target_name, target_owner FROM elt.pipelines;
SELECT count(*) FROM elt.quarantine;

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('ty');
DROP TABLE ty_t;
DROP TABLE ty_moved;
DROP FUNCTION ty_wait(text, text), ty_text(text, text), ty_check(text);
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elt FROM ty_joe;
REVOKE ALL ON SCHEMA public FROM ty_joe;
DROP ROLE ty_joe, ty_mallory;
