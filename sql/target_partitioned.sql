-- Partitioned targets: rows move between partitions, partitions come and go, and what has no partition is quarantined.

SET client_min_messages = warning;
CREATE SCHEMA tpa;
CREATE TABLE tpa.t (id int, region text, v text, PRIMARY KEY (id, region));
CREATE TABLE tpa.by_id (id int PRIMARY KEY, region text, v text);
-- key with the partition's column: a row moves by a delete and an insert
CREATE TABLE tpa.upsert (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE tpa.upsert_eu PARTITION OF tpa.upsert FOR VALUES IN ('eu');
CREATE TABLE tpa.upsert_us PARTITION OF tpa.upsert FOR VALUES IN ('us') PARTITION BY HASH (id);
CREATE TABLE tpa.upsert_us_0 PARTITION OF tpa.upsert_us FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE tpa.upsert_us_1 (v text, id int NOT NULL, dropped int, region text NOT NULL);
ALTER TABLE tpa.upsert_us_1 DROP dropped;
ALTER TABLE tpa.upsert_us ATTACH PARTITION tpa.upsert_us_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE tpa.append (id int, region text, v text) PARTITION BY LIST (region);
CREATE TABLE tpa.append_eu PARTITION OF tpa.append FOR VALUES IN ('eu');
CREATE TABLE tpa.append_other PARTITION OF tpa.append DEFAULT;
CREATE TABLE tpa.history (id int, region text, v text, valid_from timestamptz, valid_to timestamptz, PRIMARY KEY (id, region, valid_from)) PARTITION BY LIST (region);
CREATE TABLE tpa.history_eu PARTITION OF tpa.history FOR VALUES IN ('eu');
CREATE TABLE tpa.history_us PARTITION OF tpa.history FOR VALUES IN ('us');
-- key of the source: an update of a column that is not in the partition key's index stays where it is
CREATE TABLE tpa.ranges (id int PRIMARY KEY, region text, v text) PARTITION BY RANGE (id);
CREATE TABLE tpa.ranges_low PARTITION OF tpa.ranges FOR VALUES FROM (MINVALUE) TO (10);
CREATE TABLE tpa.ranges_high PARTITION OF tpa.ranges FOR VALUES FROM (10) TO (MAXVALUE);
SELECT elt.create_source('tpa', ARRAY['tpa.t', 'tpa.by_id']) > 0 AS created;
SELECT elt.wait_for_source('tpa');
SELECT elt.create_pipeline('tpa_upsert', 'tpa', 'tpa.t', 'tpa.upsert') > 0,
	elt.create_pipeline('tpa_append', 'tpa', 'tpa.t', 'tpa.append', mode => 'append') > 0,
	elt.create_pipeline('tpa_history', 'tpa', 'tpa.t', 'tpa.history', mode => 'history') > 0,
	elt.create_pipeline('tpa_ranges', 'tpa', 'tpa.by_id', 'tpa.ranges') > 0;
CREATE VIEW tpa.waited AS SELECT bool_and(elt.wait_for(name)) AS all FROM elt.pipelines WHERE name LIKE 'tpa%';

INSERT INTO tpa.t SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END, 'v' FROM generate_series(1, 8) g;
INSERT INTO tpa.by_id SELECT g, 'eu', 'v' FROM generate_series(1, 8) g;
TABLE tpa.waited;
SELECT tableoid::regclass AS partition, string_agg(id::text, ' ' ORDER BY id) AS ids FROM tpa.upsert GROUP BY 1 ORDER BY 1;
-- there, back again, and on to a third
UPDATE tpa.t SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END, v = 'moved' WHERE id <= 4;
BEGIN;
UPDATE tpa.t SET region = 'us' WHERE id = 1;
UPDATE tpa.t SET region = 'eu', v = 'twice' WHERE id = 1;
COMMIT;
UPDATE tpa.by_id SET id = id + 8 WHERE id > 4;
DELETE FROM tpa.by_id WHERE id = 16;
TABLE tpa.waited;
SELECT tableoid::regclass AS partition, string_agg(id || ' ' || v, ', ' ORDER BY id) AS rows FROM tpa.upsert GROUP BY 1 ORDER BY 1;
(TABLE tpa.t EXCEPT TABLE tpa.upsert) UNION ALL (TABLE tpa.upsert EXCEPT TABLE tpa.t);
SELECT tableoid::regclass AS partition, string_agg(id::text, ' ' ORDER BY id) AS ids FROM tpa.ranges GROUP BY 1 ORDER BY 1;
(TABLE tpa.by_id EXCEPT TABLE tpa.ranges) UNION ALL (TABLE tpa.ranges EXCEPT TABLE tpa.by_id);
SELECT tableoid::regclass AS partition, count(*) FROM tpa.append GROUP BY 1 ORDER BY 1;
(TABLE tpa.t EXCEPT SELECT id, region, v FROM tpa.history WHERE valid_to IS NULL) UNION ALL
(SELECT id, region, v FROM tpa.history WHERE valid_to IS NULL EXCEPT TABLE tpa.t);
SELECT pipeline, sqlstate FROM elt.quarantine;

-- a row that has no partition is the record's fault, until there is one
INSERT INTO tpa.t VALUES (100, 'asia', 'v'), (101, 'eu', 'v');
TABLE tpa.waited;
SELECT pipeline, sqlstate, error_class, status, key FROM elt.quarantine ORDER BY pipeline;
CREATE TABLE tpa.upsert_asia PARTITION OF tpa.upsert FOR VALUES IN ('asia');
CREATE TABLE tpa.history_asia PARTITION OF tpa.history FOR VALUES IN ('asia');
SELECT outcome, error FROM elt.replay_quarantine();
(TABLE tpa.t EXCEPT TABLE tpa.upsert) UNION ALL (TABLE tpa.upsert EXCEPT TABLE tpa.t);
-- partitions go and come under a pipeline that runs
ALTER TABLE tpa.upsert DETACH PARTITION tpa.upsert_eu;
INSERT INTO tpa.t VALUES (102, 'us', 'v');
SELECT elt.wait_for('tpa_upsert');
ALTER TABLE tpa.upsert ATTACH PARTITION tpa.upsert_eu FOR VALUES IN ('eu');
UPDATE tpa.t SET v = 'last';
SELECT elt.wait_for('tpa_upsert');
(TABLE tpa.t EXCEPT TABLE tpa.upsert) UNION ALL (TABLE tpa.upsert EXCEPT TABLE tpa.t);
TRUNCATE tpa.t;
TABLE tpa.waited;
SELECT count(*) FROM tpa.upsert;

SELECT elt.drop_pipeline(name) FROM elt.pipelines WHERE name LIKE 'tpa%' ORDER BY name;
SELECT elt.drop_source('tpa');
DROP SCHEMA tpa CASCADE;
