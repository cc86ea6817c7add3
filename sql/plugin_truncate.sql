-- one document per truncated table
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE truncated_a (id int PRIMARY KEY);
CREATE TABLE truncated_b (id int REFERENCES truncated_a);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO truncated_a VALUES (1);
TRUNCATE truncated_a RESTART IDENTITY CASCADE;
INSERT INTO truncated_a VALUES (2);
:changes;
DROP TABLE truncated_a, truncated_b;
SELECT pg_drop_replication_slot('plugin_test');
