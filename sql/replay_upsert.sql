-- A replay of an upsert pipeline: the newest settled change of each key, and nothing older.

SET client_min_messages = warning;
CREATE TABLE ru_t (id int PRIMARY KEY, v int, name text);
CREATE TABLE ru_up (LIKE ru_t INCLUDING ALL);
SELECT elt.create_source('ru', ARRAY['ru_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('ru');
SELECT elt.create_pipeline('ru_up', 'ru', 'ru_t', 'ru_up') > 0 AS created;
CREATE VIEW ru_runs AS
	SELECT phase, state, done, total, selected, applied, superseded, quarantined, skipped
	FROM elt.progress_replay WHERE pipeline = 'ru_up' ORDER BY run_id DESC LIMIT 1;
INSERT INTO ru_t SELECT g, g, 'n' || g FROM generate_series(1, 10) g;
UPDATE ru_t SET v = v + 100 WHERE id <= 5;
DELETE FROM ru_t WHERE id = 3;
SELECT elt.wait_for('ru_up');

-- all of it, over a target that was spoilt; also of what is deleted by now
UPDATE ru_up SET name = 'spoilt';
INSERT INTO ru_up VALUES (3, 0, 'back from the dead');
CALL elt.replay('ru_up');
TABLE ru_runs;
SELECT string_agg(id || ' ' || v || ' ' || name, ', ' ORDER BY id) FROM ru_up;
-- again: the same
CALL elt.replay('ru_up');
TABLE ru_runs;
SELECT (SELECT jsonb_agg(t ORDER BY id) FROM ru_up t) = (SELECT jsonb_agg(t ORDER BY id) FROM ru_t t) AS same;

-- what a later change has superseded is not applied, selected or not
DELETE FROM ru_up;
CALL elt.replay('ru_up', filter => $$ op = 'c' AND (record->>'v')::int IN (1, 3, 7) $$);
TABLE ru_runs;
SELECT * FROM ru_up ORDER BY id;

-- keys, equal as jsonb values are
DELETE FROM ru_up;
CALL elt.replay('ru_up', keys => ARRAY['{"id": 4.0}', '{"id": 8}', '{"id": 3}', '{"id": null}']::jsonb[]);
TABLE ru_runs;
SELECT * FROM ru_up ORDER BY id;
CALL elt.replay('ru_up', keys => '{}');
TABLE ru_runs;

-- bounds are inclusive
DELETE FROM ru_up;
SELECT min(change_id) AS first, max(change_id) AS last FROM elt_raw.ru WHERE op = 'c' AND key->>'id' IN ('6', '8') \gset
CALL elt.replay('ru_up', from_change => :first, to_change => :last);
SELECT string_agg(id::text, ' ' ORDER BY id) FROM ru_up;
SELECT commit_lsn AS lsn, commit_ts AS ts FROM elt_raw.ru WHERE op = 'u' LIMIT 1 \gset
DELETE FROM ru_up;
CALL elt.replay('ru_up', from_lsn => :'lsn', to_lsn => :'lsn');
SELECT string_agg(id::text, ' ' ORDER BY id) FROM ru_up;
DELETE FROM ru_up;
CALL elt.replay('ru_up', to_time => :'ts', filter => $$ commit_ts >= (SELECT timestamptz '2000-01-01') $$);
SELECT string_agg(id::text, ' ' ORDER BY id) FROM ru_up;
DELETE FROM ru_up;
CALL elt.replay('ru_up', from_time => :'ts', to_time => 'infinity');
SELECT string_agg(id::text, ' ' ORDER BY id) FROM ru_up;

-- a dry run counts and changes nothing
CALL elt.replay('ru_up', dry_run => true);
SELECT * FROM ru_runs;
SELECT count(*) FROM ru_up;

-- what is not settled yet is left to the workers
SELECT elt.pause_pipeline('ru_up');
UPDATE ru_t SET v = 1000 WHERE id = 1;
SELECT elt.wait_for_source('ru');
CALL elt.replay('ru_up');
TABLE ru_runs;
SELECT v FROM ru_up WHERE id = 1;
SELECT elt.resume_pipeline('ru_up');
SELECT elt.wait_for('ru_up');
SELECT v FROM ru_up WHERE id = 1;

-- what came before a truncate is superseded by it, and it is not applied again
TRUNCATE ru_t;
INSERT INTO ru_t VALUES (20, 20, 'after');
SELECT elt.wait_for('ru_up');
INSERT INTO ru_up VALUES (30, 30, 'of somebody else');
CALL elt.replay('ru_up');
TABLE ru_runs;
SELECT * FROM ru_up ORDER BY id;

-- many keys in little memory: lane by lane, with the same result
SELECT elt.drop_pipeline('ru_up');
INSERT INTO ru_t SELECT g, g, 'many' FROM generate_series(1001, 61000) g;
UPDATE ru_t SET v = v + 1 WHERE id % 3 = 0;
SELECT elt.create_pipeline('ru_up', 'ru', 'ru_t', 'ru_up') > 0 AS created;
SELECT elt.wait_for('ru_up');
TRUNCATE ru_up;
SET maintenance_work_mem = '1MB';
CALL elt.replay('ru_up');
RESET maintenance_work_mem;
TABLE ru_runs;
SELECT lane_from > 0 AS lane_by_lane FROM elt.replay_runs WHERE pipeline = 'ru_up' ORDER BY run_id DESC LIMIT 1;
SELECT count(*), sum(v) FROM ru_up;
SELECT count(*), sum(v) FROM ru_t;

SELECT elt.drop_pipeline('ru_up');
SELECT count(*) FROM elt.replay_runs WHERE pipeline = 'ru_up';
SELECT elt.drop_source('ru');
DROP VIEW ru_runs;
DROP TABLE ru_t, ru_up;
