-- Deletes that only mark the target's row, and truncates that only tell.

SET client_min_messages = warning;
CREATE TABLE ds_t (id int PRIMARY KEY, v text);
CREATE TABLE ds_by_name (id int PRIMARY KEY, v text, deleted_at timestamptz);
CREATE TABLE ds_sql (id int PRIMARY KEY, v text, deleted_at timestamptz);
CREATE TABLE ds_plain (id int PRIMARY KEY, v text);
SELECT elt.create_source('ds', ARRAY['ds_t']) > 0 AS created;
SELECT elt.wait_for_source('ds');

SELECT elt.create_pipeline('ds_wrong', 'ds', 'ds_t', 'ds_plain', options => '{"deletes": "soft"}');
SELECT elt.create_pipeline('ds_wrong', 'ds', 'ds_t', 'ds_by_name', mode => 'append', options => '{"deletes": "soft"}');
SELECT elt.create_pipeline('ds_wrong', 'ds', 'ds_t', 'ds_by_name', options => '{"deletes": "maybe"}');
SELECT elt.create_pipeline('ds_wrong', 'ds', 'ds_t', 'ds_sql', 'SELECT (record->>''id'')::int AS id FROM changes', options => '{"deletes": "soft"}');

SELECT elt.create_pipeline('ds_by_name', 'ds', 'ds_t', 'ds_by_name', options => '{"deletes": "soft"}') > 0 AS created;
SELECT elt.create_pipeline('ds_sql', 'ds', 'ds_t', 'ds_sql',
	'SELECT (record->>''id'')::int AS id, upper(record->>''v'') AS v, CASE WHEN op = ''d'' THEN commit_ts END AS deleted_at FROM changes',
	options => '{"deletes": "soft"}') > 0 AS created;
SELECT elt.create_pipeline('ds_plain', 'ds', 'ds_t', 'ds_plain', options => '{"truncate": "alert"}') > 0 AS created;

-- a marked row keeps its values; one that comes back is marked no more
INSERT INTO ds_t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four');
SELECT bool_and(elt.wait_for(p)) FROM unnest(ARRAY['ds_by_name', 'ds_sql', 'ds_plain']) AS p;
DELETE FROM ds_t WHERE id IN (2, 3);
SELECT bool_and(elt.wait_for(p)) FROM unnest(ARRAY['ds_by_name', 'ds_sql', 'ds_plain']) AS p;
SELECT id, v, deleted_at = (SELECT max(commit_ts) FROM elt_raw.ds WHERE op = 'd') AS deleted FROM ds_by_name ORDER BY id;
INSERT INTO ds_t VALUES (3, 'three again');
UPDATE ds_t SET v = 'four again' WHERE id = 4;
SELECT bool_and(elt.wait_for(p)) FROM unnest(ARRAY['ds_by_name', 'ds_sql', 'ds_plain']) AS p;
SELECT id, v, deleted_at IS NOT NULL AS deleted FROM ds_by_name ORDER BY id;
SELECT id, v, deleted_at IS NOT NULL AS deleted FROM ds_sql ORDER BY id;
SELECT id, v FROM ds_plain ORDER BY id;

-- a replay writes the values of marked rows too, and marks them again
UPDATE ds_by_name SET v = 'spoilt', deleted_at = CASE WHEN id = 1 THEN now() END;
CALL elt.replay('ds_by_name');
SELECT id, v, deleted_at IS NOT NULL AS deleted FROM ds_by_name ORDER BY id;

-- a truncate marks all; who is told not to follow says so
TRUNCATE ds_t;
INSERT INTO ds_t VALUES (5, 'five');
SELECT bool_and(elt.wait_for(p)) FROM unnest(ARRAY['ds_by_name', 'ds_sql', 'ds_plain']) AS p;
SELECT id, v, deleted_at IS NOT NULL AS deleted FROM ds_by_name ORDER BY id;
SELECT id, v FROM ds_plain ORDER BY id;
SELECT name, ignored_truncate_at = (SELECT commit_ts FROM elt_raw.ds WHERE op = 't') AS told FROM elt.pipelines WHERE name LIKE 'ds\_%' ORDER BY 1;
SELECT sample->>'pipeline' AS pipeline, sample->>'detail' LIKE 'public.ds_t was truncated at %' AS detail
	FROM elt.shipped_alert_samples(ARRAY['truncate_ignored'], now());

SELECT elt.drop_pipeline(p) FROM unnest(ARRAY['ds_by_name', 'ds_sql', 'ds_plain']) AS p;
SELECT elt.drop_source('ds');
DROP TABLE ds_t, ds_by_name, ds_sql, ds_plain;
