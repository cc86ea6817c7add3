-- partitions appear under the root, with its columns; through a publication as that says
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE parted (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_north PARTITION OF parted FOR VALUES IN ('north');
-- other order, and a dropped column
CREATE TABLE parted_south (gone int, n int, region text NOT NULL, id int NOT NULL);
ALTER TABLE parted_south DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_south FOR VALUES IN ('south');
CREATE PUBLICATION plugin_root FOR TABLE parted WITH (publish_via_partition_root = true);
CREATE PUBLICATION plugin_leaf FOR TABLE parted;
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO parted VALUES (1, 'north', 10), (2, 'south', 20);
UPDATE parted SET n = 21 WHERE id = 2;
UPDATE parted SET region = 'north' WHERE id = 2;
DELETE FROM parted WHERE id = 1;
ALTER TABLE parted RENAME TO parted_all;
INSERT INTO parted_all VALUES (3, 'south', 30);
TRUNCATE parted_all;
ALTER TABLE parted_all RENAME TO parted;
\set peek 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_peek_changes(''plugin_test'', NULL, NULL'
:peek);
:peek, 'publication', 'plugin_root');
:peek, 'publication', 'plugin_leaf');
DROP PUBLICATION plugin_root, plugin_leaf;
DROP TABLE parted;
SELECT pg_drop_replication_slot('plugin_test');
