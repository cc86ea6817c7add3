-- an out-of-line value that an update left alone
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE toasted (id int PRIMARY KEY, big text, other text, n int);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
CREATE TABLE toasted_full (id int PRIMARY KEY, big text, n int);
ALTER TABLE toasted_full ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
-- compressed, not out of line
CREATE TABLE toasted_compressed (id int PRIMARY KEY, big text, n int);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO toasted VALUES (1, repeat('a', 5000), repeat('b', 5000), 1);
UPDATE toasted SET n = 2;
UPDATE toasted SET big = repeat('c', 4000);
UPDATE toasted SET big = NULL;
INSERT INTO toasted_full VALUES (1, repeat('a', 5000), 1);
UPDATE toasted_full SET n = 2;
INSERT INTO toasted_compressed VALUES (1, repeat('a', 5000), 1);
UPDATE toasted_compressed SET n = 2;
SELECT doc->>'op' AS op, doc->>'relation' AS relation, doc->'unchanged' AS unchanged,
	(SELECT jsonb_object_agg(key, CASE WHEN length(value) > 10 THEN left(value, 1) || ' x ' || length(value) ELSE value END) FROM jsonb_each_text(doc->'before')) AS before,
	(SELECT jsonb_object_agg(key, CASE WHEN length(value) > 10 THEN left(value, 1) || ' x ' || length(value) ELSE value END) FROM jsonb_each_text(doc->'after')) AS after
FROM (SELECT data::jsonb AS doc FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL)) AS d;
DROP TABLE toasted, toasted_full, toasted_compressed;
SELECT pg_drop_replication_slot('plugin_test');
