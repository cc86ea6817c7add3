-- A replay and changes that are quarantined already.

SET client_min_messages = warning;
CREATE TABLE rq_t (id int PRIMARY KEY, v int);
CREATE TABLE rq_strict (id int PRIMARY KEY, v int CONSTRAINT rq_good CHECK (v >= 0));
CREATE TABLE rq_supersede (LIKE rq_strict INCLUDING ALL);
SELECT elt.create_source('rq', ARRAY['rq_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('rq');
SELECT elt.create_pipeline('rq_strict', 'rq', 'rq_t', 'rq_strict') > 0 AS created;
SELECT elt.create_pipeline('rq_supersede', 'rq', 'rq_t', 'rq_supersede', ordering => 'supersede') > 0 AS created;
INSERT INTO rq_t SELECT g, g FROM generate_series(1, 200) g;
SELECT elt.wait_for('rq_strict'), elt.wait_for('rq_supersede');
UPDATE rq_t SET v = -v WHERE id <= 3;
SELECT elt.wait_for('rq_strict'), elt.wait_for('rq_supersede');
UPDATE rq_t SET v = 1000 WHERE id = 1;
SELECT elt.wait_for('rq_strict'), elt.wait_for('rq_supersede');
SELECT pipeline, key, status FROM elt.quarantine ORDER BY pipeline, change_id;

-- they fail again: no second row, and their keys are not touched
UPDATE rq_strict SET v = 0;
UPDATE rq_supersede SET v = 0;
CALL elt.replay('rq_strict');
CALL elt.replay('rq_supersede');
SELECT pipeline, phase, state, selected, applied, superseded, quarantined, skipped FROM elt.progress_replay ORDER BY run_id;
SELECT pipeline, key, status, retry_count FROM elt.quarantine ORDER BY pipeline, change_id;
SELECT * FROM rq_strict WHERE v <> id ORDER BY id;
SELECT * FROM rq_supersede WHERE v <> id ORDER BY id;

-- mended: those that are selected go out of the quarantine, with what is parked behind them
ALTER TABLE rq_strict DROP CONSTRAINT rq_good;
CALL elt.replay('rq_strict', dry_run => true);
SELECT pipeline, key, status, retry_count FROM elt.quarantine WHERE pipeline = 'rq_strict' ORDER BY change_id;
CALL elt.replay('rq_strict', filter => $$ key->>'id' <> '2' $$);
SELECT phase, state, selected, applied, superseded, quarantined, skipped FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;
SELECT pipeline, key, status FROM elt.quarantine WHERE pipeline = 'rq_strict' ORDER BY change_id;
SELECT count(*) FROM elt.parked;
SELECT * FROM rq_strict WHERE v <> id ORDER BY id;
CALL elt.replay('rq_strict', keys => ARRAY['{"id": 2}']::jsonb[]);
SELECT count(*) FROM elt.quarantine WHERE pipeline = 'rq_strict' AND status = 'open';
SELECT (SELECT jsonb_agg(t ORDER BY id) FROM rq_strict t) = (SELECT jsonb_agg(t ORDER BY id) FROM rq_t t) AS same;

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('rq');
DROP TABLE rq_t, rq_strict, rq_supersede;
