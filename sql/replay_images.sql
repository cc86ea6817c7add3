-- Replays of images that lack columns, of deletes that are ignored, and of messages.

SET client_min_messages = warning;
CREATE TABLE ri_t (id int PRIMARY KEY, v int, body text);
ALTER TABLE ri_t ALTER body SET STORAGE EXTERNAL;
CREATE TABLE ri_up (LIKE ri_t INCLUDING ALL);
CREATE TABLE ri_kept (LIKE ri_t INCLUDING ALL);
SELECT elt.create_source('ri', ARRAY['ri_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('ri');
SELECT elt.create_pipeline('ri_up', 'ri', 'ri_t', 'ri_up', options => '{"batch_changes": 3}') > 0 AS created;
SELECT elt.create_pipeline('ri_kept', 'ri', 'ri_t', 'ri_kept', options => '{"deletes": "ignore", "batch_changes": 3}') > 0 AS created;
INSERT INTO ri_t SELECT g, g, repeat(g || ' ', 4000) FROM generate_series(1, 20) g;
-- what was staged under another type is not filled in
ALTER TABLE ri_t ALTER body TYPE varchar;
UPDATE ri_t SET v = v + 1;
UPDATE ri_t SET body = repeat('new ', 4000) WHERE id = 5;
UPDATE ri_t SET v = v + 1;
DELETE FROM ri_t WHERE id = 7;
INSERT INTO ri_t VALUES (7, 70, 'small');
DELETE FROM ri_t WHERE id = 8;
SELECT elt.wait_for('ri_up'), elt.wait_for('ri_kept');
SELECT op, count(*), count(unchanged) AS partial FROM elt_raw.ri GROUP BY 1 ORDER BY 1;

-- into an empty target: an image gets what it lacks from those before it
TRUNCATE ri_up, ri_kept;
CALL elt.replay('ri_up');
SELECT (SELECT jsonb_agg(t ORDER BY id) FROM ri_up t) = (SELECT jsonb_agg(t ORDER BY id) FROM ri_t t) AS same;
-- in a target that has the row, the large value stays where it is
UPDATE ri_up SET v = 0;
SELECT min(change_id) AS first FROM elt_raw.ri WHERE unchanged IS NOT NULL \gset
CALL elt.replay('ri_up', from_change => :first, filter => $$ op = 'u' $$);
SELECT (SELECT jsonb_agg(t ORDER BY id) FROM ri_up t WHERE id <> 7) = (SELECT jsonb_agg(t ORDER BY id) FROM ri_t t WHERE id <> 7) AS same;
SELECT id, v FROM ri_up WHERE id = 7;

-- where deletes are ignored, the image before them is the newest
CALL elt.replay('ri_kept');
SELECT (SELECT jsonb_agg(t ORDER BY id) FROM ri_kept t WHERE id <> 8) = (SELECT jsonb_agg(t ORDER BY id) FROM ri_t t) AS same;
SELECT id, v, length(body) FROM ri_kept WHERE id = 8;

-- messages
CREATE TABLE ri_events (key text PRIMARY KEY, v int);
SELECT elt.create_pipeline('ri_events', 'ri', 'message:thing', 'ri_events',
	'SELECT key->>''k'' AS key, (after->>''v'')::int AS v FROM changes') > 0 AS created;
SELECT count(elt.emit('thing', jsonb_build_object('v', g), jsonb_build_object('k', g % 3))) FROM generate_series(1, 9) g;
SELECT count(elt.emit('other', '{"v": 99}', '{"k": 0}'));
SELECT elt.wait_for('ri_events');
TRUNCATE ri_events;
CALL elt.replay('ri_events');
SELECT * FROM ri_events ORDER BY key;
SELECT selected, applied, superseded FROM elt.progress_replay WHERE pipeline = 'ri_events';

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('ri');
DROP TABLE ri_t, ri_up, ri_kept, ri_events;
