-- purge_raw: the changes of one key are erased from raw staging and quarantine; the rest is as before.
\set VERBOSITY terse
CREATE TABLE purge_person (id int PRIMARY KEY, name text);
CREATE TABLE purge_note (body text);
CREATE TABLE purge_target (id int PRIMARY KEY, name text CHECK (name <> 'bad'));
SELECT elt.create_source('purge', ARRAY['purge_person', 'purge_note']) > 0 AS created;
SELECT elt.wait_for_source('purge');
SELECT elt.create_pipeline('purge', 'purge', 'public.purge_person', 'purge_target') > 0 AS created;
INSERT INTO purge_person SELECT i, 'name ' || i FROM generate_series(1, 5) i;
UPDATE purge_person SET name = 'new name ' || id WHERE id IN (2, 3);
UPDATE purge_person SET id = 20 WHERE id = 2;
INSERT INTO purge_note VALUES ('keep me'), ('erase me');
SELECT elt.emit('login', '{"person": 3}', '{"id": 3}') IS NOT NULL AS emitted;
SELECT elt.wait_for('purge');
-- who waits in the quarantine must be dealt with first
INSERT INTO purge_person VALUES (6, 'bad');
SELECT elt.wait_for('purge');
SELECT * FROM elt.purge_raw('purge', 'public.purge_person', '{"id": 6}');
SELECT elt.discard_quarantine(array_agg(quarantine_id), 'to be erased') FROM elt.quarantine WHERE pipeline = 'purge';
SELECT * FROM elt.purge_raw('purge', 'public.purge_person', '{"id": 6}', 'request 6');
SELECT count(*) FROM elt.quarantine WHERE pipeline = 'purge';
-- what a pipeline has still to apply, too
SELECT elt.pause_pipeline('purge');
DELETE FROM purge_person WHERE id = 3;
SELECT elt.wait_for_source('purge');
DO $$
BEGIN
	PERFORM elt.purge_raw('purge', 'public.purge_person', '{"id": 3}');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RAISE NOTICE '%', sqlerrm;
END $$;
SELECT elt.resume_pipeline('purge');
SELECT elt.wait_for('purge');
SELECT * FROM elt.purge_raw('purge', 'public.purge_person', '{"id": 3}', 'request 3');
SELECT count(*) FROM elt_raw.purge WHERE relation = 'public.purge_person' AND (key->>'id' = '3' OR after->>'id' = '3' OR before->>'id' = '3');
SELECT count(*) FROM purge_target WHERE id = 3;
-- tables without a key by what the row holds; messages by their key
SELECT * FROM elt.purge_raw('purge', 'public.purge_note', '{"body": "erase me"}');
SELECT * FROM elt.purge_raw('purge', 'message:login', '{"id": 3}');
SELECT string_agg(after->>'body', ', ') FROM elt_raw.purge WHERE relation = 'public.purge_note';
-- all else has its place, and is read on
SELECT count(*) AS moved FROM (SELECT change_id, lag(change_id) OVER (PARTITION BY tableoid ORDER BY ctid) AS previous
	FROM elt_raw.purge) r WHERE change_id < previous;
INSERT INTO purge_person VALUES (7, 'name 7');
SELECT elt.wait_for('purge');
SELECT * FROM purge_target ORDER BY id;
SET client_min_messages = warning;
CALL elt.replay('purge');
RESET client_min_messages;
SELECT count(*) FROM purge_target;
-- nothing to erase is no error, and noted as well
SELECT * FROM elt.purge_raw('purge', 'public.purge_person', '{"id": 99}');
SELECT source, relation, key_digest = encode(sha256(convert_to('{"id": 3}', 'UTF8')), 'hex') AS digest_of_3, raw_rows, quarantine_rows, reason,
	   purged_by = current_user AS by_me FROM elt.purges WHERE source = 'purge' ORDER BY purge_id;
-- wrong arguments, and who may
SELECT elt.purge_raw('purge', 'public.nothing', '{"id": 1}');
SELECT elt.purge_raw('purge', 'public.purge_person', '{}');
SELECT elt.purge_raw('purge', 'public.purge_person', '7');
SELECT elt.purge_raw('purge', 'public.purge_person', NULL);
SELECT elt.purge_raw('nothing', 'public.purge_person', '{"id": 1}');
CREATE ROLE purge_stranger;
GRANT EXECUTE ON FUNCTION elt.purge_raw TO purge_stranger;
SET ROLE purge_stranger;
SELECT elt.purge_raw('purge', 'public.purge_person', '{"id": 1}');
SELECT * FROM elt.purges;
RESET ROLE;
SELECT elt.drop_pipeline('purge');
SELECT elt.drop_source('purge');
REVOKE ALL ON FUNCTION elt.purge_raw FROM purge_stranger;
DROP ROLE purge_stranger;
DROP TABLE purge_person, purge_note, purge_target;
