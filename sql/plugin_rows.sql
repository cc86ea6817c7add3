-- every way in which rows come, change and go
\set changes 'SELECT concat_ws('' '', doc->>''op'', doc->>''relation'', doc->''key'', doc->''before'', doc->''after'') AS change FROM (SELECT data::jsonb AS doc FROM pg_logical_slot_get_changes(''plugin_rows'', NULL, NULL)) AS d'
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE rows_t (id int PRIMARY KEY, v text);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_rows', 'elt');

-- savepoints, released and rolled back, one in the other
BEGIN;
INSERT INTO rows_t VALUES (1, 'outer');
SAVEPOINT a;
INSERT INTO rows_t VALUES (2, 'in a');
SAVEPOINT b;
INSERT INTO rows_t VALUES (3, 'in b, lost');
UPDATE rows_t SET v = 'lost' WHERE id = 1;
ROLLBACK TO b;
UPDATE rows_t SET v = 'after b' WHERE id = 1;
RELEASE a;
SAVEPOINT c;
DELETE FROM rows_t WHERE id = 2;
ROLLBACK TO c;
COMMIT;
-- an exception block is a subtransaction
DO $$BEGIN
	INSERT INTO rows_t VALUES (4, 'kept');
	BEGIN
		INSERT INTO rows_t VALUES (5, 'lost');
		RAISE EXCEPTION 'on purpose';
	EXCEPTION WHEN raise_exception THEN
		INSERT INTO rows_t VALUES (6, 'handled');
	END;
END$$;
:changes;

-- two keys that swap in one transaction, by way of a third
BEGIN;
UPDATE rows_t SET id = 100 WHERE id = 1;
UPDATE rows_t SET id = 1 WHERE id = 2;
UPDATE rows_t SET id = 2 WHERE id = 100;
COMMIT;
:changes;

-- COPY, MERGE, ON CONFLICT with its speculative inserts, CTEs that write
COPY rows_t FROM STDIN;
7	copied
8	\N
\.
INSERT INTO rows_t VALUES (7, 'conflict'), (9, 'new') ON CONFLICT (id) DO UPDATE SET v = excluded.v || ' wins';
INSERT INTO rows_t VALUES (7, 'ignored'), (10, 'new') ON CONFLICT DO NOTHING;
MERGE INTO rows_t t USING (VALUES (9, 'merged'), (10, NULL), (11, 'merged')) AS s (id, v) ON t.id = s.id
	WHEN MATCHED AND s.v IS NULL THEN DELETE
	WHEN MATCHED THEN UPDATE SET v = s.v
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v);
WITH gone AS (DELETE FROM rows_t WHERE id = 11 RETURNING *) INSERT INTO rows_t SELECT id + 1, v FROM gone;
:changes;

-- no change of rows
VACUUM FULL rows_t;
CLUSTER rows_t USING rows_t_pkey;
SELECT id FROM rows_t WHERE id = 1 FOR UPDATE;
:changes;

-- identity and generated columns
CREATE TABLE rows_generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO rows_generated (n) VALUES (1), (2);
UPDATE rows_generated SET n = 5 WHERE id = 1;
TRUNCATE rows_generated RESTART IDENTITY;
INSERT INTO rows_generated (n) VALUES (3);
:changes;

-- inheritance: each table its own rows
CREATE TABLE rows_child (extra int, PRIMARY KEY (id)) INHERITS (rows_t);
INSERT INTO rows_child VALUES (1, 'child', 1);
UPDATE rows_t SET v = 'both' WHERE id = 1;
TRUNCATE ONLY rows_t;
DELETE FROM rows_t;
:changes;
DROP TABLE rows_child;

-- partitions that come and go, and truncates of one and of all
CREATE TABLE rows_parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE rows_p1 PARTITION OF rows_parted FOR VALUES FROM (0) TO (10);
CREATE TABLE rows_p2 (v text, id int PRIMARY KEY);
INSERT INTO rows_p2 VALUES ('alone', 11);
ALTER TABLE rows_parted ATTACH PARTITION rows_p2 FOR VALUES FROM (10) TO (20);
INSERT INTO rows_parted VALUES (1, 'one'), (12, 'two');
UPDATE rows_parted SET id = 2 WHERE id = 12;
TRUNCATE rows_p1;
ALTER TABLE rows_parted DETACH PARTITION rows_p2;
INSERT INTO rows_p2 VALUES ('alone again', 13);
TRUNCATE rows_parted;
:changes;

-- the identity's index: another, and none
CREATE TABLE rows_identity (id int PRIMARY KEY, code text NOT NULL, n int);
CREATE UNIQUE INDEX rows_by_code ON rows_identity (code);
INSERT INTO rows_identity VALUES (1, 'a', 1), (2, 'b', 2);
ALTER TABLE rows_identity REPLICA IDENTITY USING INDEX rows_by_code;
UPDATE rows_identity SET code = 'c' WHERE id = 1;
DROP INDEX rows_by_code;
UPDATE rows_identity SET n = 3 WHERE id = 1;
DELETE FROM rows_identity WHERE id = 1;
ALTER TABLE rows_identity REPLICA IDENTITY DEFAULT;
DELETE FROM rows_identity WHERE id = 2;
-- equal rows without a key
CREATE TABLE rows_twins (a int, b int);
ALTER TABLE rows_twins REPLICA IDENTITY FULL;
INSERT INTO rows_twins VALUES (1, NULL), (1, NULL);
DELETE FROM rows_twins WHERE ctid = '(0,1)';
:changes;

-- a composite type and an enum that change between the write and its reading
CREATE TYPE rows_pair AS (a int, b text);
CREATE TYPE rows_mood AS ENUM ('sad', 'glad');
CREATE TABLE rows_typed (id int PRIMARY KEY, p rows_pair, m rows_mood);
INSERT INTO rows_typed VALUES (1, '(1,x)', 'sad');
ALTER TYPE rows_pair ADD ATTRIBUTE c int;
ALTER TYPE rows_mood ADD VALUE 'so so' BEFORE 'glad';
INSERT INTO rows_typed VALUES (2, '(2,y,3)', 'so so');
ALTER TYPE rows_mood RENAME VALUE 'so so' TO 'fair';
ALTER TYPE rows_pair RENAME ATTRIBUTE a TO z;
ALTER TYPE rows_pair DROP ATTRIBUTE b;
INSERT INTO rows_typed VALUES (3, '(3,4)', 'fair');
UPDATE rows_typed SET m = 'glad' WHERE id = 1;
:changes;

-- what is never decoded, and what a refresh leaves out
CREATE UNLOGGED TABLE rows_unlogged (id int PRIMARY KEY);
CREATE TEMP TABLE rows_temp (id int PRIMARY KEY);
CREATE MATERIALIZED VIEW rows_mv AS SELECT id FROM rows_typed;
CREATE UNIQUE INDEX ON rows_mv (id);
INSERT INTO rows_unlogged VALUES (1);
INSERT INTO rows_temp VALUES (1);
INSERT INTO rows_typed (id) VALUES (4);
REFRESH MATERIALIZED VIEW CONCURRENTLY rows_mv;
SELECT lo_unlink(lo_create(0)) AS unlinked;
:changes;

-- DDL in the middle of a transaction that writes: each row in the shape of its moment
BEGIN;
CREATE TABLE rows_ddl (id int PRIMARY KEY, a int);
INSERT INTO rows_ddl VALUES (1, 1);
ALTER TABLE rows_ddl ADD COLUMN b text DEFAULT 'd';
UPDATE rows_ddl SET a = 2;
ALTER TABLE rows_ddl RENAME COLUMN a TO c;
INSERT INTO rows_ddl VALUES (2, 2);
ALTER TABLE rows_ddl ALTER c TYPE text;
UPDATE rows_ddl SET c = 'x' WHERE id = 2;
ALTER TABLE rows_ddl DROP COLUMN c;
INSERT INTO rows_ddl VALUES (3);
ALTER TABLE rows_ddl RENAME TO rows_renamed;
INSERT INTO rows_renamed VALUES (4);
CREATE SCHEMA rows_schema;
ALTER TABLE rows_renamed SET SCHEMA rows_schema;
INSERT INTO rows_schema.rows_renamed VALUES (5);
ALTER SCHEMA rows_schema RENAME TO rows_schema_2;
INSERT INTO rows_schema_2.rows_renamed VALUES (6);
DROP TABLE rows_schema_2.rows_renamed;
CREATE TABLE rows_ddl (id text PRIMARY KEY);
INSERT INTO rows_ddl VALUES ('another');
COMMIT;
:changes;

DROP MATERIALIZED VIEW rows_mv;
DROP TABLE rows_t, rows_generated, rows_parted, rows_p2, rows_identity, rows_twins, rows_typed, rows_unlogged, rows_temp, rows_ddl;
DROP TYPE rows_pair, rows_mood;
DROP SCHEMA rows_schema_2;
SELECT pg_drop_replication_slot('plugin_rows');
