-- A transform is a SELECT over changes: it renames, filters, joins, and appends several rows per change.

SET client_min_messages = warning;
CREATE TABLE ts_t (id int PRIMARY KEY, country text, tags text[], state text);
CREATE TABLE ts_country (code text PRIMARY KEY, name text);
INSERT INTO ts_country VALUES ('de', 'Germany'), ('fr', 'France');
CREATE TABLE ts_target (order_id int PRIMARY KEY, country_name text);
CREATE TABLE ts_tag (change_id bigint, op text, tag text);
SELECT elt.create_source('ts', ARRAY['ts_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('ts');
SELECT elt.create_pipeline('ts_upsert', 'ts', 'ts_t', 'ts_target', $$
	WITH c AS (SELECT (record->>'id')::int AS id, record->>'country' AS code, op FROM changes)
	SELECT c.id AS order_id, n.name AS country_name -- a comment at the end
	FROM c LEFT JOIN ts_country n USING (code)
	WHERE op = 'd' OR code IS NOT NULL; $$) > 0 AS created;
SELECT elt.create_pipeline('ts_append', 'ts', 'ts_t', 'ts_tag', $$
	SELECT change_id, op::text, tag.value AS tag FROM changes, jsonb_array_elements_text(record->'tags') AS tag
	UNION ALL SELECT change_id, op::text, NULL FROM changes WHERE op = 'd'$$, mode => 'append') > 0 AS created;
INSERT INTO ts_t VALUES (1, 'de', '{a,b}'), (2, 'fr', '{}'), (3, NULL, '{c}'), (4, 'xx', NULL);
UPDATE ts_t SET country = 'fr' WHERE id = 1;
DELETE FROM ts_t WHERE id = 2;
SELECT elt.wait_for('ts_upsert'), elt.wait_for('ts_append');
TABLE ts_target ORDER BY order_id;
SELECT op, tag FROM ts_tag ORDER BY change_id, tag;

-- options: deletes and truncates ignored; few changes per batch
CREATE TABLE ts_kept (id int PRIMARY KEY);
SELECT elt.create_pipeline('ts_kept', 'ts', 'ts_t', 'ts_kept', options => '{"deletes": "ignore", "truncate": "ignore", "lanes": 1, "batch_changes": 2}') > 0 AS created;
SELECT elt.wait_for('ts_kept');
TRUNCATE ts_t;
INSERT INTO ts_t VALUES (5, 'de', '{e}');
SELECT elt.wait_for('ts_kept'), elt.wait_for('ts_upsert'), elt.wait_for('ts_append');
TABLE ts_kept ORDER BY id;
TABLE ts_target ORDER BY order_id;
SELECT op, tag FROM ts_tag ORDER BY change_id, tag;

-- by hand, a few at a time, in a transaction that may be rolled back
SELECT elt.pause_pipeline('ts_append');
UPDATE ts_t SET tags = '{f}';
UPDATE ts_t SET tags = '{g}';
UPDATE ts_t SET tags = '{h}';
SELECT elt.wait_for_source('ts');
SELECT pipeline, state, backlog_changes, oldest_pending_ts IS NOT NULL AS pending FROM elt.stat_pipelines WHERE pipeline = 'ts_append';
SELECT pipeline, changes, bytes > 0 AS bytes, eta IS NOT NULL AS eta FROM elt.backlog WHERE pipeline = 'ts_append';
BEGIN;
SELECT read, written FROM elt.transform('ts_append', 2);
SELECT tag FROM ts_tag WHERE tag > 'e' ORDER BY 1;
ROLLBACK;
SELECT read, written FROM elt.transform('ts_append', max_changes => 1);
SELECT read, written FROM elt.transform('ts_append');
SELECT read, written FROM elt.transform('ts_append');
SELECT tag FROM ts_tag WHERE tag > 'e' ORDER BY 1;
SELECT changes, bytes, eta FROM elt.backlog WHERE pipeline = 'ts_append';

-- events
CREATE TABLE ts_event (id int PRIMARY KEY, amount numeric);
SELECT elt.create_pipeline('ts_event', 'ts', 'message:paid', 'ts_event', $$
	SELECT (key->>'id')::int AS id, (record->>'amount')::numeric AS amount FROM changes$$) > 0 AS created;
SELECT elt.emit('paid', '{"amount": 1.50}', '{"id": 1}') IS NOT NULL AS emitted;
SELECT elt.emit('other', '{"amount": 2}', '{"id": 2}') IS NOT NULL AS emitted;
SELECT elt.emit('paid', '{"amount": 3}', '{"id": 1}') IS NOT NULL AS emitted;
SELECT elt.emit('paid', '{"amount": 4}', '{"id": 4}') IS NOT NULL AS emitted;
SELECT elt.wait_for('ts_event');
TABLE ts_event ORDER BY id;

SELECT pipeline, state, backlog_changes, changes_read, quarantined_open, parked FROM elt.stat_pipelines ORDER BY 1;
SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('ts');
DROP TABLE ts_t, ts_country, ts_target, ts_tag, ts_kept, ts_event;
