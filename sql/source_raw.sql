-- The way of a change from a table into raw staging.

CREATE TABLE raw_t (id int PRIMARY KEY, v text, n numeric);
CREATE TABLE raw_late (id int PRIMARY KEY, v text);
INSERT INTO raw_t VALUES (1, 'copied', 1.10), (2, NULL, 'NaN');

SELECT elt.create_source('raw', ARRAY['raw_t']) > 0 AS created;
SELECT elt.wait_for_source('raw');
SELECT source, state, changes_staged, last_error FROM elt.stat_sources WHERE source = 'raw';

INSERT INTO raw_t VALUES (3, 'streamed', 1e30);
UPDATE raw_t SET v = 'changed' WHERE id = 1;
UPDATE raw_t SET id = 20 WHERE id = 2;
DELETE FROM raw_t WHERE id = 3;
BEGIN;
INSERT INTO raw_t VALUES (4, 'kept', 0);
SAVEPOINT s;
INSERT INTO raw_t VALUES (5, 'rolled back', 0);
ROLLBACK TO s;
COMMIT;
TRUNCATE raw_t;
SELECT elt.wait_for_source('raw');
SELECT op, key, before, after FROM elt_raw.raw ORDER BY change_id;

-- change ids and commits go up together; key_hash follows the key
SELECT bool_and(change_id > before_id) AS ids_grow, bool_and(commit_lsn >= before_lsn) AS commits_grow
FROM (SELECT change_id, commit_lsn, lag(change_id) OVER w AS before_id, lag(commit_lsn) OVER w AS before_lsn
	  FROM elt_raw.raw WINDOW w AS (ORDER BY change_id)) r
WHERE before_id IS NOT NULL;
SELECT key, count(*), count(DISTINCT key_hash) FROM elt_raw.raw WHERE key IS NOT NULL GROUP BY key ORDER BY key::text;
SELECT bool_and(xid <> 0 AND seq >= 0 AND staged_at >= commit_ts) FROM elt_raw.raw WHERE op <> 'r';

-- a table that comes later, with and without its rows; and one that goes
INSERT INTO raw_late VALUES (1, 'before');
SELECT elt.add_table('raw', 'raw_late');
SELECT elt.wait_for_source('raw');
INSERT INTO raw_late VALUES (2, 'after');
SELECT elt.wait_for_source('raw');
SELECT op, after FROM elt_raw.raw WHERE relation = 'public.raw_late' ORDER BY change_id;
SELECT elt.remove_table('raw', 'public.raw_late');
INSERT INTO raw_late VALUES (3, 'not captured');
SELECT elt.wait_for_source('raw');
SELECT elt.add_table('raw', 'raw_late', snapshot => false);
INSERT INTO raw_late VALUES (4, 'captured again');
SELECT elt.wait_for_source('raw');
SELECT op, after FROM elt_raw.raw WHERE relation = 'public.raw_late' ORDER BY change_id;
SELECT relation, state, rows_copied FROM elt.source_tables t JOIN elt.sources s USING (source_id)
WHERE s.name = 'raw' ORDER BY relation;

-- the publication is the table set, whoever changes it
CREATE TABLE raw_published (id int PRIMARY KEY);
ALTER PUBLICATION elt_raw ADD TABLE raw_published;
INSERT INTO raw_published VALUES (1);
SELECT elt.wait_for_source('raw');
SELECT op, after FROM elt_raw.raw WHERE relation = 'public.raw_published';

-- the shape may change, within a transaction too
BEGIN;
INSERT INTO raw_t VALUES (1, 'old shape', 1);
ALTER TABLE raw_t ADD COLUMN extra boolean DEFAULT true;
INSERT INTO raw_t VALUES (2, 'new shape', 2, false);
ALTER TABLE raw_t RENAME COLUMN v TO "V ""quoted""";
INSERT INTO raw_t VALUES (3, 'renamed', 3);
COMMIT;
SELECT elt.wait_for_source('raw');
SELECT schema_version, after FROM elt_raw.raw WHERE relation = 'public.raw_t' AND op = 'c' AND schema_version > 0
ORDER BY change_id DESC LIMIT 3;
SELECT version, columns FROM elt.schema_versions v JOIN elt.sources s USING (source_id)
WHERE s.name = 'raw' AND v.relation = 'public.raw_t' ORDER BY version;

-- paused, nothing comes; resumed, all of it comes
SELECT elt.pause_source('raw');
INSERT INTO raw_t VALUES (7, 'while paused', 7);
SELECT elt.wait_for_source('raw', timeout => '200 ms');
SELECT elt.resume_source('raw');
SELECT elt.wait_for_source('raw');
SELECT count(*) FROM elt_raw.raw WHERE key = '{"id": 7}';

-- events: with their transaction, or not at all
SELECT elt.emit('topic', '{"a": [1, null, "x"]}', '{"k": 1}') IS NOT NULL;
BEGIN;
SELECT elt.emit('never', '1') IS NOT NULL;
ROLLBACK;
SELECT elt.wait_for_source('raw');
SELECT op, relation, key, after FROM elt_raw.raw WHERE op = 'm' ORDER BY change_id;

-- elt's own tables do not come, whatever is published
CREATE PUBLICATION raw_everything FOR TABLES IN SCHEMA elt, public;
SELECT elt.create_source('raw_all', publication => 'raw_everything', snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('raw_all');
INSERT INTO raw_published VALUES (2);
SELECT elt.wait_for_source('raw'), elt.wait_for_source('raw_all');
SELECT DISTINCT relation FROM elt_raw.raw_all WHERE relation !~ '^public\.' OR relation = 'public.raw_published';

SELECT elt.drop_source('raw'), elt.drop_source('raw_all');
DROP PUBLICATION raw_everything;
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM elt.dropped_sources);
		PERFORM pg_sleep(0.1);
	END LOOP;
END $$;
SELECT count(*) FROM elt.dropped_sources;
SELECT count(*) FROM pg_class WHERE relnamespace = 'elt_raw'::regnamespace AND relname ~ '^raw';
SELECT count(*) FROM pg_publication WHERE pubname ~ 'raw';
DROP TABLE raw_t, raw_late, raw_published;
