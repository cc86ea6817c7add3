-- Mode history: every version of a row, with the time it was the present one.

SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE TABLE mh_t (id int PRIMARY KEY, name text, amount numeric);
CREATE TABLE mh_by_name (id int, name text, amount numeric, valid_from timestamptz, valid_to timestamptz,
	PRIMARY KEY (id, valid_from), CHECK (valid_from < valid_to),
	EXCLUDE USING gist (id WITH =, tstzrange(valid_from, valid_to) WITH &&));
CREATE TABLE mh_sql (LIKE mh_by_name INCLUDING ALL, was text);
SELECT elt.create_source('mh', ARRAY['mh_t']) > 0 AS created;
SELECT elt.wait_for_source('mh');

-- what is wrong with a definition is said when it is made
CREATE TABLE mh_no_times (id int PRIMARY KEY, name text);
CREATE TABLE mh_no_key (id int PRIMARY KEY, name text, valid_from timestamptz, valid_to timestamptz);
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_no_times', mode => 'history');
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_no_key', mode => 'history');
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_by_name', mode => 'history', ordering => 'supersede');
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_by_name', mode => 'history', options => '{"deletes": "soft"}');
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_sql', 'SELECT (record->>''id'')::int AS id FROM changes', mode => 'history');
SELECT elt.create_pipeline('mh_wrong', 'mh', 'mh_t', 'mh_sql',
	'SELECT (record->>''id'')::int AS id, commit_ts AS valid_from, NULL::timestamptz AS valid_to FROM changes', mode => 'history');

SELECT elt.create_pipeline('mh_by_name', 'mh', 'mh_t', 'mh_by_name', mode => 'history', options => '{"batch_changes": 7}') > 0 AS created;
SELECT elt.create_pipeline('mh_sql', 'mh', 'mh_t', 'mh_sql',
	'SELECT (record->>''id'')::int AS id, upper(record->>''name'') AS name, (record->>''amount'')::numeric AS amount, commit_ts AS valid_from, before->>''name'' AS was FROM changes',
	mode => 'history') > 0 AS created;

-- several changes of a key: in one transaction, in several, inserted again after a delete
INSERT INTO mh_t VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3);
BEGIN;
UPDATE mh_t SET name = 'uno' WHERE id = 1;
UPDATE mh_t SET amount = 10 WHERE id = 1;
INSERT INTO mh_t VALUES (4, 'gone at once', 4);
DELETE FROM mh_t WHERE id = 4;
DELETE FROM mh_t WHERE id = 3;
INSERT INTO mh_t VALUES (3, 'three again', 3);
COMMIT;
DELETE FROM mh_t WHERE id = 2;
UPDATE mh_t SET id = 30 WHERE id = 3;
INSERT INTO mh_t VALUES (2, 'two again', 22);
SELECT elt.wait_for('mh_by_name'), elt.wait_for('mh_sql');
CREATE VIEW mh_shown AS
	SELECT id, name, amount, rank() OVER (ORDER BY valid_from) AS "from", valid_to IS NULL AS present,
		lead(valid_from) OVER (PARTITION BY id ORDER BY valid_from) = valid_to AS goes_on
	FROM mh_by_name;
SELECT * FROM mh_shown ORDER BY id, "from";
SELECT id, name, was, valid_to IS NULL AS present FROM mh_sql ORDER BY id, valid_from;

-- what the history must be, made from raw staging in one pass
CREATE VIEW mh_expected AS
	WITH last AS (SELECT DISTINCT ON (key, commit_lsn) * FROM elt_raw.mh WHERE relation = 'public.mh_t' AND op <> 't' ORDER BY key, commit_lsn, change_id DESC),
	versions AS (SELECT *, lead(commit_ts) OVER (PARTITION BY key ORDER BY change_id) AS until FROM last)
	SELECT (key->>'id')::int AS id, after->>'name' AS name, (after->>'amount')::numeric AS amount, commit_ts AS valid_from,
		least(until, (SELECT min(t.commit_ts) FROM elt_raw.mh t WHERE t.relation = 'public.mh_t' AND t.op = 't' AND t.change_id > versions.change_id)) AS valid_to
	FROM versions WHERE op <> 'd';
CREATE FUNCTION mh_differences() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM ((TABLE mh_by_name EXCEPT TABLE mh_expected) UNION ALL (TABLE mh_expected EXCEPT TABLE mh_by_name)) AS d $$;
SELECT mh_differences();

-- many changes of few keys, in transactions of any size
DO $$
BEGIN
	PERFORM setseed(0.42);
	FOR i IN 1..300 LOOP
		FOR j IN 1..1 + (random() * 4)::int LOOP
			CASE (random() * 3)::int
				WHEN 0 THEN DELETE FROM mh_t WHERE id = (random() * 10)::int;
				ELSE INSERT INTO mh_t VALUES ((random() * 10)::int, 'v' || i, j) ON CONFLICT (id) DO UPDATE SET name = excluded.name, amount = mh_t.amount + 1;
			END CASE;
		END LOOP;
		COMMIT;
	END LOOP;
END $$;
SELECT elt.wait_for('mh_by_name'), elt.wait_for('mh_sql');
SELECT mh_differences(), (SELECT count(*) > 300 FROM mh_by_name) AS many;
SELECT count(*) FROM (SELECT id, upper(name), amount, valid_from, valid_to FROM mh_by_name EXCEPT SELECT id, name, amount, valid_from, valid_to FROM mh_sql) AS d;

-- a truncate ends all present versions
TRUNCATE mh_t;
INSERT INTO mh_t VALUES (1, 'anew', 0);
SELECT elt.wait_for('mh_by_name');
SELECT mh_differences(), (SELECT count(*) FROM mh_by_name WHERE valid_to IS NULL) AS present;

-- a replay writes the same versions again, with what the pipeline makes of them now; what was lost comes back
UPDATE mh_by_name SET name = 'spoilt' WHERE id < 5;
DELETE FROM mh_by_name WHERE id = 7 AND valid_to IS NOT NULL;
CALL elt.replay('mh_by_name');
SELECT mh_differences();
CALL elt.replay('mh_by_name');
SELECT mh_differences();

-- a late change, put in where it belongs
ALTER TABLE mh_by_name ADD CONSTRAINT mh_good CHECK (name <> 'bad');
INSERT INTO mh_t VALUES (50, 'first', 0);
UPDATE mh_t SET name = 'bad' WHERE id = 50;
UPDATE mh_t SET name = 'third' WHERE id = 50;
DELETE FROM mh_t WHERE id = 50;
INSERT INTO mh_t VALUES (50, 'last', 0);
SELECT elt.wait_for('mh_by_name');
SELECT name, valid_to IS NULL AS present FROM mh_by_name WHERE id = 50 ORDER BY valid_from;
SELECT quarantined, parked FROM elt.blocked_keys WHERE pipeline = 'mh_by_name';
ALTER TABLE mh_by_name DROP CONSTRAINT mh_good;
SELECT outcome FROM elt.replay_quarantine('mh_by_name');
SELECT name, valid_to IS NULL AS present FROM mh_by_name WHERE id = 50 ORDER BY valid_from;
SELECT mh_differences();

SELECT elt.drop_pipeline('mh_by_name'), elt.drop_pipeline('mh_sql');

DROP FUNCTION mh_differences;
DROP VIEW mh_shown, mh_expected;
SELECT elt.drop_source('mh');
DROP TABLE mh_t, mh_by_name, mh_sql, mh_no_times, mh_no_key;
