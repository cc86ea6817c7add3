-- the table set is the publication as it is at the moment of the change
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE member (id int PRIMARY KEY, secret text, n int, total int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE other (id int PRIMARY KEY);
CREATE SCHEMA plugin_schema;
CREATE TABLE plugin_schema.member (id int PRIMARY KEY);
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts,key}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL, ''publication'', ''plugin_pub'')'
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
-- no publication, no changes
INSERT INTO member VALUES (1, 'x', 1);
:changes;
CREATE PUBLICATION plugin_pub;
INSERT INTO member VALUES (2, 'x', 2);
ALTER PUBLICATION plugin_pub ADD TABLE member;
INSERT INTO member VALUES (3, 'x', 3);
INSERT INTO other VALUES (3);
BEGIN;
INSERT INTO other VALUES (4);
ALTER PUBLICATION plugin_pub ADD TABLE other;
INSERT INTO other VALUES (5);
COMMIT;
ALTER PUBLICATION plugin_pub SET (publish = 'insert, delete');
UPDATE member SET n = 4 WHERE id = 3;
DELETE FROM member WHERE id = 3;
TRUNCATE member;
ALTER PUBLICATION plugin_pub DROP TABLE member;
INSERT INTO member VALUES (6, 'x', 6);
-- a column list, and the name in quotes
ALTER TABLE member RENAME TO "It's a ""member""";
ALTER PUBLICATION plugin_pub ADD TABLE "It's a ""member""" (id, n);
INSERT INTO "It's a ""member""" VALUES (7, 'x', 7);
-- all of a schema, which is renamed
ALTER PUBLICATION plugin_pub DROP TABLE "It's a ""member""";
ALTER PUBLICATION plugin_pub ADD TABLES IN SCHEMA plugin_schema;
INSERT INTO plugin_schema.member VALUES (8);
ALTER SCHEMA plugin_schema RENAME TO plugin_renamed;
INSERT INTO plugin_renamed.member VALUES (9);
:changes;
-- a column added, renamed, dropped
DROP PUBLICATION plugin_pub;
INSERT INTO other VALUES (10);
CREATE PUBLICATION plugin_pub FOR ALL TABLES;
ALTER TABLE other ADD COLUMN n int DEFAULT 5;
INSERT INTO other VALUES (11);
ALTER TABLE other RENAME n TO m;
UPDATE other SET m = 6 WHERE id = 3;
ALTER TABLE other DROP COLUMN m;
DELETE FROM other WHERE id = 3;
:changes;
DROP PUBLICATION plugin_pub;
DROP TABLE "It's a ""member""", other;
DROP SCHEMA plugin_renamed CASCADE;
SELECT pg_drop_replication_slot('plugin_test');
