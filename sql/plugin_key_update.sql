-- an update of the key is a delete of the old and an insert of the new
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE moved (a int, b text, n int, PRIMARY KEY (a, b));
CREATE TABLE moved_full (id int PRIMARY KEY, n int);
ALTER TABLE moved_full REPLICA IDENTITY FULL;
CREATE TABLE moved_index (id int PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE moved_index REPLICA IDENTITY USING INDEX moved_index_code_key;
INSERT INTO moved VALUES (1, 'x', 10);
INSERT INTO moved_full VALUES (1, 10);
INSERT INTO moved_index VALUES (1, 'a');
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
UPDATE moved SET b = 'y';
UPDATE moved_full SET id = 2, n = 20;
UPDATE moved_full SET n = 21;
UPDATE moved_index SET code = 'b';
-- the primary key is not the identity of this one
UPDATE moved_index SET id = 2;
:changes;
DROP TABLE moved, moved_full, moved_index;
SELECT pg_drop_replication_slot('plugin_test');
