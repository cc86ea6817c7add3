-- Replays of append pipelines: by change_id, by the target's key, or not at all.

SET client_min_messages = warning;
CREATE TABLE ra_t (id int PRIMARY KEY, v int);
CREATE TABLE ra_log (change_id bigint, id int, op text, v int, CHECK (v < 1000));
CREATE INDEX ON ra_log (change_id);
CREATE TABLE ra_keyed (id int PRIMARY KEY, v int);
CREATE TABLE ra_plain (id int, v int);
SELECT elt.create_source('ra', ARRAY['ra_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('ra');
-- two rows per change
SELECT elt.create_pipeline('ra_log', 'ra', 'ra_t', 'ra_log',
	'SELECT change_id, (record->>''id'')::int AS id, n || op AS op, (record->>''v'')::int AS v FROM changes, generate_series(1, 2) n', 'append') > 0 AS created;
SELECT elt.create_pipeline('ra_keyed', 'ra', 'ra_t', 'ra_keyed', mode => 'append') > 0 AS created;
SELECT elt.create_pipeline('ra_plain', 'ra', 'ra_t', 'ra_plain', mode => 'append') > 0 AS created;
INSERT INTO ra_t SELECT g, g FROM generate_series(1, 5) g;
SELECT elt.wait_for('ra_log'), elt.wait_for('ra_keyed'), elt.wait_for('ra_plain');

-- by change_id: what a change wrote is taken back first
UPDATE ra_log SET v = -1;
INSERT INTO ra_log VALUES (NULL, 0, 'of somebody else', 0);
CALL elt.replay('ra_log', filter => $$ (record->>'id')::int > 2 $$);
SELECT id, op, v FROM ra_log ORDER BY id, op;
CALL elt.replay('ra_log');
CALL elt.replay('ra_log');
SELECT count(*), count(DISTINCT (change_id, op)), sum(v) FROM ra_log;
SELECT selected, applied, superseded FROM elt.progress_replay WHERE pipeline = 'ra_log' ORDER BY run_id DESC LIMIT 1;

-- a change that fails now is in the quarantine, and not in the target any more
ALTER TABLE ra_log ADD CHECK (v <> 3) NOT VALID;
CALL elt.replay('ra_log');
SELECT id, count(*) FROM ra_log WHERE change_id IS NOT NULL GROUP BY id ORDER BY id;
SELECT key, op, status FROM elt.quarantine WHERE pipeline = 'ra_log';
SELECT selected, applied, quarantined, skipped FROM elt.progress_replay WHERE pipeline = 'ra_log' ORDER BY run_id DESC LIMIT 1;
CALL elt.replay('ra_log');
SELECT selected, applied, quarantined, skipped FROM elt.progress_replay WHERE pipeline = 'ra_log' ORDER BY run_id DESC LIMIT 1;
SELECT count(*) FROM elt.quarantine WHERE pipeline = 'ra_log';

-- many failures in one batch: nothing is missing between the batches' ends
INSERT INTO ra_t SELECT g, g % 500 + 10 FROM generate_series(1001, 5000) g;
SELECT elt.wait_for('ra_log');
ALTER TABLE ra_log ADD CHECK (id < 1000 OR id % 40 <> 0) NOT VALID;
CALL elt.replay('ra_log');
SELECT count(*), count(DISTINCT change_id) FROM ra_log WHERE id > 1000;
SELECT count(*) FROM elt.quarantine WHERE pipeline = 'ra_log' AND (key->>'id')::int > 1000;

-- by the target's key; in the same session the pipeline still appends
UPDATE ra_keyed SET v = -1;
SELECT max(change_id) AS last FROM elt_raw.ra WHERE key->>'id' = '4' \gset
CALL elt.replay('ra_keyed', to_change => :last);
SELECT * FROM ra_keyed WHERE id < 10 ORDER BY id;
SELECT elt.pause_pipeline('ra_keyed');
UPDATE ra_t SET v = 7 WHERE id = 1;
SELECT elt.wait_for_source('ra');
SELECT read, written, quarantined FROM elt.transform('ra_keyed');

-- neither
CALL elt.replay('ra_plain');

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('ra');
DROP TABLE ra_t, ra_log, ra_keyed, ra_plain;
