-- row filters of publications, by the rules of logical replication
\set changes 'SELECT data::jsonb - ''{xid,lsn,commit_lsn,commit_ts}''::text[] AS change FROM pg_logical_slot_get_changes(''plugin_filter'', NULL, NULL, ''publication'', ''filter_pub'')'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE filter_t (id int PRIMARY KEY, region text, n int);
CREATE TABLE filter_full (id int PRIMARY KEY, body text, n int);
ALTER TABLE filter_full REPLICA IDENTITY FULL;
ALTER TABLE filter_full ALTER body SET STORAGE EXTERNAL;
CREATE TABLE filter_root (n int, region text, id int, PRIMARY KEY (id, n)) PARTITION BY RANGE (n);
CREATE TABLE filter_leaf (id int NOT NULL, gone int, region text, n int NOT NULL);
ALTER TABLE filter_leaf DROP COLUMN gone;
ALTER TABLE filter_root ATTACH PARTITION filter_leaf FOR VALUES FROM (0) TO (1000);
CREATE TABLE filter_columns (id int PRIMARY KEY, shown text, hidden text);
CREATE PUBLICATION filter_pub FOR TABLE filter_t WHERE (id > 10), filter_full WHERE (length(body) > 5 AND n > 0),
	filter_root WHERE (n > 100), filter_columns (id, shown) WHERE (id % 2 = 0)
	WITH (publish_via_partition_root = true);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_filter', 'elt');

-- only what passes; NULL does not
INSERT INTO filter_t VALUES (1, 'eu', 1), (11, 'eu', 1);
UPDATE filter_t SET n = 2;
DELETE FROM filter_t WHERE n = 2;
INSERT INTO filter_full VALUES (1, NULL, 1), (2, 'longer', NULL), (3, 'longer', 1);
:changes;
-- a row comes in, goes out, stays in, stays out
INSERT INTO filter_t VALUES (1, 'eu', 1);
UPDATE filter_t SET id = 11;
UPDATE filter_t SET id = 12;
UPDATE filter_t SET id = 2;
UPDATE filter_t SET id = 3;
DELETE FROM filter_t;
:changes;
-- old rows in full
UPDATE filter_full SET n = 2 WHERE id = 2;
UPDATE filter_full SET n = 3 WHERE id = 2;
UPDATE filter_full SET body = 'short' WHERE id = 2;
DELETE FROM filter_full WHERE id = 2;
DELETE FROM filter_full WHERE id = 3;
DELETE FROM filter_full WHERE id = 1;
:changes;
-- a large value that the update left alone decides
INSERT INTO filter_full VALUES (4, repeat('x', 3000), 0);
UPDATE filter_full SET n = 1 WHERE id = 4;
UPDATE filter_full SET n = 2 WHERE id = 4;
UPDATE filter_full SET n = 0 WHERE id = 4;
SELECT change - 'before' - 'after' AS change, length(change->'before'->>'body') AS before, length(change->'after'->>'body') AS after,
	change->'after'->>'n' AS n, change->'unchanged' AS unchanged
FROM (SELECT data::jsonb - '{xid,lsn,commit_lsn,commit_ts}'::text[] AS change
	  FROM pg_logical_slot_get_changes('plugin_filter', NULL, NULL, 'publication', 'filter_pub')) c;
-- the filter of a partitioned table, whose columns stand in another order
INSERT INTO filter_root (id, n, region) VALUES (1, 5, 'eu'), (2, 500, 'us');
UPDATE filter_root SET n = 501 WHERE id = 1;
UPDATE filter_root SET n = 6 WHERE id = 2;
TRUNCATE filter_root;
:changes;
-- a column list beside it
INSERT INTO filter_columns VALUES (1, 'a', 'secret'), (2, 'b', 'secret');
UPDATE filter_columns SET id = id + 3;
:changes;
-- the filter of the moment of the change
BEGIN;
INSERT INTO filter_t VALUES (5, 'before', 0);
ALTER PUBLICATION filter_pub SET TABLE filter_t WHERE (id < 10), filter_full;
INSERT INTO filter_t VALUES (6, 'after', 0), (16, 'after', 0);
COMMIT;
INSERT INTO filter_full VALUES (9, NULL, NULL);
:changes;
-- an expression that fails on a row fails the stream
ALTER PUBLICATION filter_pub SET TABLE filter_t WHERE (10 / id > 1);
INSERT INTO filter_t VALUES (0, 'zero', 0);
:changes;
SELECT pg_drop_replication_slot('plugin_filter');
DROP PUBLICATION filter_pub;
DROP TABLE filter_t, filter_full, filter_root, filter_columns;
