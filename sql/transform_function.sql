-- A function as the transform: SQL or PL, one row or several per change, replaced while the pipeline runs.

\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA tfn;
CREATE TABLE tfn.t (id int PRIMARY KEY, v text, items jsonb);
CREATE TABLE tfn.one (id int PRIMARY KEY, v text);
CREATE TABLE tfn.many (id int, n int, name text, change_id bigint);
CREATE TABLE tfn.past (id int, v text, valid_from timestamptz, valid_to timestamptz, PRIMARY KEY (id, valid_from));
SELECT elt.create_source('tfn', ARRAY['tfn.t']) > 0 AS created;
SELECT elt.wait_for_source('tfn');

-- one row per change; none where it returns null, by a WHERE
CREATE FUNCTION tfn.make(record jsonb, op "char") RETURNS tfn.one LANGUAGE plpgsql STABLE AS $$
DECLARE
	made tfn.one;
BEGIN
	IF record->>'v' = 'skipped' THEN
		RETURN NULL;
	END IF;
	made.id := record->>'id';
	made.v := upper(record->>'v');
	IF made.v = 'BAD' THEN
		RAISE EXCEPTION 'no % here', made.v;
	END IF;
	RETURN made;
END $$;
-- several rows
CREATE FUNCTION tfn.items(record jsonb) RETURNS TABLE (id int, n int, name text) LANGUAGE sql STABLE AS
$$ SELECT (record->>'id')::int, i.n::int, i.item->>'name' FROM jsonb_array_elements(record->'items') WITH ORDINALITY AS i (item, n) $$;
-- a value
CREATE FUNCTION tfn.clean(v text) RETURNS text LANGUAGE sql IMMUTABLE RETURN lower(v);

SELECT elt.create_pipeline('tfn_one', 'tfn', 'tfn.t', 'tfn.one', $$SELECT m.* FROM changes, tfn.make(record, op) AS m WHERE m.id IS NOT NULL$$) > 0 AS created;
SELECT elt.create_pipeline('tfn_many', 'tfn', 'tfn.t', 'tfn.many', $$SELECT m.*, change_id FROM changes, tfn.items(record) AS m WHERE op <> 'd'$$, mode => 'append') > 0 AS created;
SELECT elt.create_pipeline('tfn_past', 'tfn', 'tfn.t', 'tfn.past', $$SELECT (record->>'id')::int AS id, tfn.clean(record->>'v') AS v, commit_ts AS valid_from FROM changes$$, mode => 'history') > 0 AS created;
-- what a function does not say of itself is assumed
CREATE FUNCTION tfn.unsaid(record jsonb) RETURNS tfn.one LANGUAGE sql AS $$ SELECT 1, 'v' $$;
SELECT elt.create_pipeline('tfn_x', 'tfn', 'tfn.t', 'tfn.one', $$SELECT m.* FROM changes, tfn.unsaid(record) AS m$$);
SELECT elt.create_pipeline('tfn_x', 'tfn', 'tfn.t', 'tfn.one', $$SELECT m.* FROM changes, tfn.nothing(record) AS m$$);

INSERT INTO tfn.t VALUES (1, 'One', '[{"name": "a"}, {"name": "b"}]'), (2, 'skipped', '[]'), (3, 'bad', '[{}]'), (4, 'Four', NULL), (5, 'gone', NULL);
SELECT elt.wait_for('tfn_one'), elt.wait_for('tfn_past');
DELETE FROM tfn.t WHERE id = 5;
SELECT elt.wait_for('tfn_one'), elt.wait_for('tfn_many'), elt.wait_for('tfn_past');
SELECT * FROM tfn.one ORDER BY id;
SELECT id, n, name FROM tfn.many ORDER BY id, n;
SELECT id, v, valid_to IS NULL AS present FROM tfn.past ORDER BY id, valid_from;
SELECT pipeline, key, step, sqlstate, message, context ~ 'PL/pgSQL function tfn.make\(jsonb,"char"\) line 11' AS context FROM elt.quarantine ORDER BY pipeline, change_id;

-- another body counts from the next batch on, for what is replayed too
CREATE OR REPLACE FUNCTION tfn.make(record jsonb, op "char") RETURNS tfn.one LANGUAGE sql STABLE AS
$$ SELECT (record->>'id')::int, 'new ' || (record->>'v') $$;
CREATE OR REPLACE FUNCTION tfn.clean(v text) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'cleaned ' || v;
UPDATE tfn.t SET v = 'Uno' WHERE id = 1;
SELECT elt.wait_for('tfn_one'), elt.wait_for('tfn_past');
SELECT outcome, error FROM elt.replay_quarantine('tfn_one');
SELECT * FROM tfn.one ORDER BY id;
SELECT id, v FROM tfn.past WHERE valid_to IS NULL ORDER BY id;
CALL elt.replay('tfn_one');
SELECT * FROM tfn.one ORDER BY id;
-- another result, too
DROP FUNCTION tfn.items(jsonb);
CREATE FUNCTION tfn.items(record jsonb) RETURNS TABLE (id int, name text) LANGUAGE sql STABLE AS $$ SELECT (record->>'id')::int, 'all' $$;
UPDATE tfn.t SET v = 'Eins' WHERE id = 1;
SELECT elt.wait_for('tfn_many');
SELECT id, n, name FROM tfn.many WHERE name = 'all';
SELECT elt.replace_transform('tfn_many', $$SELECT m.id, 0 AS n, m.name, change_id FROM changes CROSS JOIN LATERAL tfn.items(record) AS m WHERE op <> 'd'$$);

SELECT elt.drop_pipeline(name) FROM elt.pipelines WHERE name LIKE 'tfn%' ORDER BY name;
SELECT elt.drop_source('tfn');
DROP SCHEMA tfn CASCADE;
