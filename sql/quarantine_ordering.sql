-- A replay never puts an older image over a newer one, whatever the ordering.

SET client_min_messages = warning;
CREATE TABLE qo_t (id int PRIMARY KEY, v text);
ALTER TABLE qo_t REPLICA IDENTITY FULL;
CREATE TABLE qo_supersede (id int PRIMARY KEY, v text CONSTRAINT qo_good CHECK (v NOT LIKE 'bad%'));
CREATE TABLE qo_unordered (LIKE qo_supersede INCLUDING ALL);
CREATE TABLE qo_append (LIKE qo_supersede INCLUDING CONSTRAINTS);
CREATE TABLE qo_deletes (LIKE qo_supersede INCLUDING ALL);
SELECT elt.create_source('qo', ARRAY['qo_t']) > 0 AS created;
SELECT elt.wait_for_source('qo');
SELECT elt.create_pipeline('qo_supersede', 'qo', 'qo_t', 'qo_supersede', ordering => 'supersede') > 0 AS created;
SELECT elt.create_pipeline('qo_unordered', 'qo', 'qo_t', 'qo_unordered', ordering => 'unordered') > 0 AS created;
SELECT elt.create_pipeline('qo_append', 'qo', 'qo_t', 'qo_append', mode => 'append', ordering => 'unordered') > 0 AS created;
SELECT elt.create_pipeline('qo_deletes', 'qo', 'qo_t', 'qo_deletes', ordering => 'unordered', options => '{"deletes": "ignore"}') > 0 AS created;
CREATE VIEW qo_pipelines AS SELECT unnest(ARRAY['qo_supersede', 'qo_unordered', 'qo_append', 'qo_deletes']) AS name;

-- 1: only a failure; 2: a newer image came through; 3: deleted since; 4: fails twice; 5: fails, and a newer one fails too
INSERT INTO qo_t SELECT g, 'bad ' || g FROM generate_series(1, 5) g;
SELECT elt.wait_for(name) FROM qo_pipelines;
UPDATE qo_t SET v = 'newer' WHERE id = 2;
DELETE FROM qo_t WHERE id = 3;
UPDATE qo_t SET v = 'bad again' WHERE id IN (4, 5);
SELECT elt.wait_for(name) FROM qo_pipelines;
SELECT pipeline, record->>'v' AS v, status, note ~ '^superseded by change \d+$' AS noted FROM elt.quarantine ORDER BY 1, change_id;

ALTER TABLE qo_supersede DROP CONSTRAINT qo_good;
ALTER TABLE qo_unordered DROP CONSTRAINT qo_good;
ALTER TABLE qo_append DROP CONSTRAINT qo_good;
ALTER TABLE qo_deletes DROP CONSTRAINT qo_good;
-- the older of 5 alone: what is newer has not been applied
SELECT r.outcome, r.error FROM (SELECT array_agg(quarantine_id) AS ids FROM elt.quarantine WHERE record->>'v' = 'bad 5') i, elt.replay_quarantine(ids => i.ids) r;
SELECT 'supersede', v FROM qo_supersede WHERE id = 5 UNION ALL SELECT 'unordered', v FROM qo_unordered WHERE id = 5;
SELECT q.pipeline, r.outcome, q.record->>'v' AS v FROM elt.replay_quarantine() r JOIN elt.quarantine q USING (quarantine_id) ORDER BY 1, change_id;
SELECT 'supersede', string_agg(id || ' ' || v, ', ' ORDER BY id) FROM qo_supersede
UNION ALL SELECT 'unordered', string_agg(id || ' ' || v, ', ' ORDER BY id) FROM qo_unordered
UNION ALL SELECT 'append', string_agg(id || ' ' || v, ', ' ORDER BY id, v) FROM qo_append
UNION ALL SELECT 'deletes', string_agg(id || ' ' || v, ', ' ORDER BY id) FROM qo_deletes;
SELECT pipeline, status, count(*) FROM elt.quarantine GROUP BY 1, 2 ORDER BY 1, 2;

-- a truncate came after the failure
ALTER TABLE qo_unordered ADD CONSTRAINT qo_good CHECK (v NOT LIKE 'bad%') NOT VALID;
INSERT INTO qo_t VALUES (6, 'bad 6');
SELECT elt.wait_for('qo_unordered');
TRUNCATE qo_t;
SELECT elt.wait_for('qo_unordered');
ALTER TABLE qo_unordered DROP CONSTRAINT qo_good;
SELECT outcome, error FROM elt.replay_quarantine('qo_unordered');
SELECT count(*) FROM qo_unordered;
SELECT note ~ '^superseded by truncate, change \d+$' AS noted FROM elt.quarantine WHERE pipeline = 'qo_unordered' AND record->>'v' = 'bad 6';

DROP VIEW qo_pipelines;
SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('qo');
DROP TABLE qo_t, qo_supersede, qo_unordered, qo_append, qo_deletes;
