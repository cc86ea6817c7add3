-- insert, update and delete, one document each; what is rolled back or empty is not told
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE ops (id int PRIMARY KEY, name text, price numeric);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO ops VALUES (1, 'apple', 1.50), (2, NULL, NULL);
UPDATE ops SET price = 2.00 WHERE id = 1;
DELETE FROM ops WHERE id = 2;
BEGIN;
INSERT INTO ops VALUES (3, 'lost', 0);
ROLLBACK;
BEGIN;
INSERT INTO ops VALUES (4, 'kept', 0);
SAVEPOINT s;
INSERT INTO ops VALUES (5, 'lost', 0);
ROLLBACK TO s;
INSERT INTO ops VALUES (6, 'kept', 0);
COMMIT;
:changes;
-- what a document tells besides
INSERT INTO ops VALUES (7, 'whole', 0);
SELECT string_agg(k, ' ' ORDER BY k) AS keys,
	bool_and((doc->>'commit_lsn')::pg_lsn > (doc->>'lsn')::pg_lsn) AS commit_is_later,
	bool_and((doc->>'commit_ts')::timestamptz > now() - interval '1 hour') AS commit_is_recent
FROM (SELECT data::jsonb AS doc FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL)) AS d,
	jsonb_object_keys(doc) AS k;
DROP TABLE ops;
SELECT pg_drop_replication_slot('plugin_test');
