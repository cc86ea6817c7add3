-- what is known of an old row, by replica identity
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE identity_default (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
CREATE TABLE identity_full (id int PRIMARY KEY, code text, n int);
ALTER TABLE identity_full REPLICA IDENTITY FULL;
CREATE TABLE identity_full_no_key (id int, n int);
ALTER TABLE identity_full_no_key REPLICA IDENTITY FULL;
CREATE TABLE identity_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
ALTER TABLE identity_index REPLICA IDENTITY USING INDEX identity_index_code_key;
CREATE TABLE identity_nothing (id int PRIMARY KEY, n int);
ALTER TABLE identity_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE identity_no_key (id int, n int);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO identity_default VALUES (1, 'a', 10);
UPDATE identity_default SET n = 11;
DELETE FROM identity_default;
INSERT INTO identity_full VALUES (1, NULL, 10);
UPDATE identity_full SET n = 11;
DELETE FROM identity_full;
INSERT INTO identity_full_no_key VALUES (1, NULL);
UPDATE identity_full_no_key SET n = 11;
DELETE FROM identity_full_no_key;
INSERT INTO identity_index VALUES (1, 'a', 10);
UPDATE identity_index SET n = 11;
DELETE FROM identity_index;
INSERT INTO identity_nothing VALUES (1, 10);
UPDATE identity_nothing SET n = 11;
DELETE FROM identity_nothing;
INSERT INTO identity_no_key VALUES (1, 10);
UPDATE identity_no_key SET n = 11;
DELETE FROM identity_no_key;
:changes;
-- identity changed on the way
INSERT INTO identity_default VALUES (2, 'b', 20);
ALTER TABLE identity_default REPLICA IDENTITY FULL;
UPDATE identity_default SET n = 21;
ALTER TABLE identity_default REPLICA IDENTITY USING INDEX identity_default_code_key;
DELETE FROM identity_default;
:changes;
DROP TABLE identity_default, identity_full, identity_full_no_key, identity_index, identity_nothing, identity_no_key;
SELECT pg_drop_replication_slot('plugin_test');
