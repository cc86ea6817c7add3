-- a change in a schema of elt itself is not captured, nor what is no table
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT count(*) = 0 AS absent FROM pg_namespace WHERE nspname = 'elt_raw' \gset
\if :absent
CREATE SCHEMA elt_raw;
\endif
CREATE TABLE elt_raw.plugin_log (id int);
CREATE SCHEMA plugin_raw;
CREATE TABLE plugin_raw.log (id int);
CREATE PUBLICATION plugin_pub FOR ALL TABLES;
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO plugin_raw.log VALUES (1);
INSERT INTO elt_raw.plugin_log VALUES (2);
-- moved in and out
ALTER TABLE plugin_raw.log SET SCHEMA elt_raw;
INSERT INTO elt_raw.log VALUES (3);
ALTER TABLE elt_raw.log SET SCHEMA plugin_raw;
INSERT INTO plugin_raw.log VALUES (4);
-- its rows are written one by one
CREATE MATERIALIZED VIEW plugin_raw.summary AS SELECT id FROM plugin_raw.log;
CREATE UNIQUE INDEX ON plugin_raw.summary (id);
INSERT INTO plugin_raw.log VALUES (5);
REFRESH MATERIALIZED VIEW CONCURRENTLY plugin_raw.summary;
SELECT data::jsonb - '{xid,lsn,commit_lsn,commit_ts}'::text[] AS change FROM pg_logical_slot_peek_changes('plugin_test', NULL, NULL, 'publication', 'plugin_pub');
:changes;
DROP PUBLICATION plugin_pub;
DROP SCHEMA plugin_raw CASCADE;
DROP TABLE elt_raw.plugin_log;
\if :absent
DROP SCHEMA elt_raw;
\endif
SELECT pg_drop_replication_slot('plugin_test');
