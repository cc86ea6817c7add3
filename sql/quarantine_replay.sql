-- Quarantined changes are mended, tried again, and what is parked follows.

SET client_min_messages = warning;
CREATE TABLE qr_t (id int PRIMARY KEY, v text, n int);
CREATE TABLE qr_dw (id int PRIMARY KEY, v text, n int CONSTRAINT qr_positive CHECK (n > 0));
SELECT elt.create_source('qr', ARRAY['qr_t']) > 0 AS created;
SELECT elt.wait_for_source('qr');
SELECT elt.create_pipeline('qr', 'qr', 'qr_t', 'qr_dw') > 0 AS created;
INSERT INTO qr_t SELECT g, 'row ' || g, CASE WHEN g <= 5 THEN -g ELSE g END FROM generate_series(1, 10) g;
SELECT elt.wait_for('qr');
UPDATE qr_t SET v = 'later', n = 100 WHERE id IN (1, 6);
UPDATE qr_t SET n = 200 WHERE id = 2;
UPDATE qr_t SET n = -200 WHERE id = 2;
UPDATE qr_t SET v = 'last' WHERE id = 2;
DELETE FROM qr_t WHERE id = 3;
INSERT INTO qr_t VALUES (3, 'again', 300);
SELECT elt.wait_for('qr');
SELECT count(*), sum(n) FROM qr_dw;
CREATE VIEW qr_state AS
	SELECT key->>'id' AS id, op, record->>'n' AS n, patched_record->>'n' AS patched, status, retry_count,
		   resolved_at IS NOT NULL AS resolved, resolved_by = session_user AS by_me, note
	FROM elt.quarantine ORDER BY change_id;
TABLE qr_state;
SELECT pipeline, key, quarantined, parked FROM elt.blocked_keys ORDER BY 2;

-- all that is needed is in the row
SELECT DISTINCT q.relation = r.relation AND q.commit_lsn = r.commit_lsn AND q.lsn = r.lsn AND q.xid = r.xid AND q.seq = r.seq
	AND q.commit_ts = r.commit_ts AND q.staged_at = r.staged_at AND q.schema_version = r.schema_version AND q.record = r.after AS same
FROM elt.quarantine q JOIN elt_raw.qr r USING (change_id);

-- by error
SELECT pipeline, sqlstate, step, constraint_name, changes, open, waiting, message, cardinality(sample_ids) AS samples FROM elt.quarantine_groups;

-- the cause is still there: nothing gets lost, and parked changes stay parked
SELECT outcome, error, count(*) FROM elt.replay_quarantine('qr') GROUP BY 1, 2;
SELECT status, retry_count, last_failed_at > first_failed_at AS later, count(*) FROM elt.quarantine GROUP BY 1, 2, 3;
SELECT count(*) FROM elt.parked;

-- one record is patched: it goes through, and what is parked behind it; the original stays
SELECT elt.patch_quarantine(quarantine_id, '{"n": 1, "extra": {"a": 1}}', 'typing error') FROM elt.quarantine WHERE key->>'id' = '1';
SELECT record, patched_record FROM elt.quarantine WHERE key->>'id' = '1';
SELECT elt.patch_quarantine(quarantine_id, '{"extra": {"a": null, "b": 2}, "v": null}', 'second thoughts') FROM elt.quarantine WHERE key->>'id' = '1';
SELECT record, patched_record, note FROM elt.quarantine WHERE key->>'id' = '1';
SELECT outcome, error FROM elt.replay_quarantine('qr', dry_run => true, key => '{"id": 1}');
SELECT * FROM qr_dw WHERE id = 1;
SELECT outcome, error FROM elt.replay_quarantine('qr', key => '{"id": 1}');
SELECT * FROM qr_dw WHERE id = 1;

-- one is discarded: the delete and the insert behind it follow
SELECT elt.discard_quarantine(array_agg(quarantine_id), 'not wanted') FROM elt.quarantine WHERE key->>'id' = '3';
SELECT * FROM qr_dw WHERE id = 3;
SELECT elt.discard_quarantine(array_agg(quarantine_id), 'twice') FROM elt.quarantine WHERE key->>'id' = '3';

-- a key that fails again in what was parked stays in order
SELECT elt.patch_quarantine(quarantine_id, '{"n": 2}') FROM elt.quarantine WHERE key->>'id' = '2';
SELECT outcome, error FROM elt.replay_quarantine(key => '{"id": 2}');
SELECT * FROM qr_dw WHERE id = 2;
TABLE qr_state;
SELECT key, quarantined, parked FROM elt.blocked_keys ORDER BY 1;

-- the cause is mended: all the rest, the oldest first, in portions
ALTER TABLE qr_dw DROP CONSTRAINT qr_positive;
SELECT outcome, count(*) FROM elt.replay_quarantine('qr', max_rows => 1) GROUP BY 1;
SELECT outcome, count(*) FROM elt.replay_quarantine('qr', sqlstate => '23514', from_time => '-infinity', to_time => 'infinity') GROUP BY 1;
SELECT count(*) FROM elt.replay_quarantine('qr');
SELECT count(*) FROM elt.parked;
SELECT count(*) AS differences FROM (SELECT * FROM qr_t EXCEPT SELECT * FROM qr_dw) d;
TABLE qr_state;
TABLE elt.quarantine_groups;

-- filters
ALTER TABLE qr_dw ADD CONSTRAINT qr_positive CHECK (n > 0) NOT VALID, ALTER n SET NOT NULL;
INSERT INTO qr_t VALUES (11, 'x', -11), (12, 'y', NULL);
SELECT elt.wait_for('qr');
SELECT sqlstate, changes FROM elt.quarantine_groups ORDER BY 1;
SELECT count(*) FROM elt.replay_quarantine('qr', sqlstate => '22012');
SELECT count(*) FROM elt.replay_quarantine('qr', fingerprint => 'none');
SELECT count(*) FROM elt.replay_quarantine('qr', to_time => '2020-01-01');
SELECT outcome, error FROM elt.replay_quarantine('qr', fingerprint => (SELECT fingerprint FROM elt.quarantine_groups WHERE sqlstate = '23502'));
SELECT outcome, count(*) FROM elt.replay_quarantine(ids => (SELECT array_agg(quarantine_id) || 0::bigint FROM elt.quarantine)) GROUP BY 1;

DROP VIEW qr_state;
SELECT elt.drop_pipeline('qr');
SELECT elt.drop_source('qr');
DROP TABLE qr_t, qr_dw;
