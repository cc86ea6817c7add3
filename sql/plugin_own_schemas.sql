-- a change in a schema of elt itself is not captured, nor what is no table
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL)'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA plugin_raw;
CREATE TABLE plugin_raw.log (id int);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO plugin_raw.log VALUES (1);
-- as elt_raw
SELECT count(*) AS exists FROM pg_namespace WHERE nspname = 'elt_raw' \gset
\if :exists
ALTER SCHEMA elt_raw RENAME TO elt_raw_aside;
\endif
ALTER SCHEMA plugin_raw RENAME TO elt_raw;
INSERT INTO elt_raw.log VALUES (2);
ALTER SCHEMA elt_raw RENAME TO plugin_raw;
\if :exists
ALTER SCHEMA elt_raw_aside RENAME TO elt_raw;
\endif
INSERT INTO plugin_raw.log VALUES (3);
-- system tables are no business of ours either
CREATE MATERIALIZED VIEW plugin_raw.summary AS SELECT id FROM plugin_raw.log;
CREATE UNIQUE INDEX ON plugin_raw.summary (id);
INSERT INTO plugin_raw.log VALUES (4);
REFRESH MATERIALIZED VIEW CONCURRENTLY plugin_raw.summary;
:changes;
DROP SCHEMA plugin_raw CASCADE;
SELECT pg_drop_replication_slot('plugin_test');
