-- What the functions on quarantined changes refuse, and to whom.

SET client_min_messages = warning;
CREATE FUNCTION qe_try(command text) RETURNS TABLE (code text, message text, hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN QUERY SELECT '00000', 'no error', NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
	RETURN NEXT;
END $$;
CREATE TABLE qe_t (id int PRIMARY KEY, v text);
CREATE TABLE qe_dw (id int PRIMARY KEY, v text CHECK (v <> 'bad'));
SELECT elt.create_source('qe', ARRAY['qe_t']) > 0 AS created;
SELECT elt.wait_for_source('qe');
SELECT elt.create_pipeline('qe', 'qe', 'qe_t', 'qe_dw') > 0 AS created;
INSERT INTO qe_t VALUES (1, 'bad'), (2, 'bad');
SELECT elt.wait_for('qe');
SELECT min(quarantine_id) AS first, max(quarantine_id) AS second FROM elt.quarantine \gset

SELECT * FROM qe_try($$SELECT elt.replay_quarantine('nowhere')$$);
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe', max_rows => 0)$$);
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe', max_rows => NULL)$$);
SELECT count(*) FROM elt.replay_quarantine(ids => ARRAY[0, -1]);
SELECT * FROM qe_try($$SELECT elt.patch_quarantine(0, '{}')$$);
SELECT * FROM qe_try($$SELECT elt.patch_quarantine(NULL, '{}')$$);
SELECT * FROM qe_try(format($$SELECT elt.patch_quarantine(%s, '[1]')$$, :first));
SELECT * FROM qe_try(format($$SELECT elt.patch_quarantine(%s, '{"id": 7}')$$, :first));
SELECT * FROM qe_try($$SELECT elt.discard_quarantine(NULL, 'because')$$);
SELECT * FROM qe_try(format($$SELECT elt.discard_quarantine(ARRAY[%s], NULL)$$, :first));
SELECT * FROM qe_try(format($$SELECT elt.discard_quarantine(ARRAY[%s], ' ')$$, :first));
SELECT elt.discard_quarantine(ARRAY[:first, 0], 'for this test');
SELECT code, replace(message, :'first', 'N') AS message, hint FROM qe_try(format($$SELECT elt.patch_quarantine(%s, '{}')$$, :first));
SELECT count(*) FROM elt.replay_quarantine(ids => ARRAY[:first]);

BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM elt.replay_quarantine('qe');
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM elt.replay_quarantine('qe');
ROLLBACK;

-- an error that is not of single records is raised, and leaves all as it was
CREATE FUNCTION qe_tired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER tired BEFORE INSERT ON qe_dw FOR EACH ROW EXECUTE FUNCTION qe_tired();
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe')$$);
CREATE OR REPLACE FUNCTION qe_tired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'try again' USING ERRCODE = '40001'; END $$;
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe')$$);
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe', dry_run => true)$$);
SELECT status, retry_count, error_class FROM elt.quarantine WHERE quarantine_id = :second;
DROP TRIGGER tired ON qe_dw;
-- a target's trigger may not call it
CREATE OR REPLACE FUNCTION qe_tired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM elt.replay_quarantine('qe'); RETURN NEW; END $$;
CREATE TRIGGER tired BEFORE INSERT ON qe_dw FOR EACH ROW EXECUTE FUNCTION qe_tired();
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe')$$);
DROP TRIGGER tired ON qe_dw;

-- others than the owner
CREATE ROLE qe_joe;
GRANT USAGE ON SCHEMA elt TO qe_joe;
GRANT EXECUTE ON FUNCTION elt.replay_quarantine, elt.patch_quarantine, elt.discard_quarantine, elt.schedule_replay TO qe_joe;
SET ROLE qe_joe;
SELECT * FROM qe_try($$SELECT elt.replay_quarantine('qe')$$);
SELECT * FROM qe_try(format($$SELECT elt.patch_quarantine(%s, '{}')$$, :second));
SELECT * FROM qe_try(format($$SELECT elt.discard_quarantine(ARRAY[%s], 'mine')$$, :second));
SELECT * FROM qe_try($$SELECT elt.schedule_replay('qe', '* * * * *')$$);
SELECT count(*) FROM elt.replay_quarantine();
SELECT count(*) FROM elt.quarantine_groups;
RESET ROLE;
SELECT * FROM qe_try($$SELECT elt.schedule_replay('qe', '* * * * *')$$);
SELECT * FROM qe_try($$SELECT elt.schedule_replay('nowhere', '* * * * *')$$);
SELECT * FROM qe_try($$SELECT elt.schedule_replay(NULL, '* * * * *')$$);

-- merge patches: the examples of RFC 7396
SELECT elt.merge_patch(t::jsonb, p::jsonb) IS NOT DISTINCT FROM r::jsonb AS same, t, p
FROM (VALUES
	('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'), ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
	('{"a":"b"}', '{"a":null}', '{}'), ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
	('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'), ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
	('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
	('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'), ('["a","b"]', '["c","d"]', '["c","d"]'),
	('{"a":"b"}', '["c"]', '["c"]'), ('{"a":"foo"}', 'null', 'null'), ('{"a":"foo"}', '"bar"', '"bar"'),
	('{"e":null}', '{"a":1}', '{"e":null,"a":1}'), ('[1,2]', '{"a":"b","c":null}', '{"a":"b"}'),
	('{}', '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}')) AS v (t, p, r);

SELECT elt.drop_pipeline('qe');
SELECT elt.drop_source('qe');
DROP TABLE qe_t, qe_dw;
DROP FUNCTION qe_tired, qe_try;
DROP OWNED BY qe_joe;
DROP ROLE qe_joe;
