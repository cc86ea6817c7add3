-- a value too large to be staged is told by its size, the rest of the row is there
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE oversize (id int PRIMARY KEY, big bytea, note text);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO oversize VALUES (1, decode(repeat('ab', 70000000), 'hex'), 'kept');
UPDATE oversize SET note = 'kept too';
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', repeat('x', 70000000));
INSERT INTO oversize VALUES (2, '\x00', 'next');
SELECT data::jsonb - '{xid,lsn,commit_lsn,commit_ts}'::text[] AS change FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL);
DROP TABLE oversize;
SELECT pg_drop_replication_slot('plugin_test');
