-- What the owner of a target plants on it runs as the pipeline's owner at most, whoever sets it off.

\set VERBOSITY terse
SET client_min_messages = warning;
CREATE ROLE tp_joe;
CREATE ROLE tp_mallory;
CREATE SCHEMA tp;
CREATE SCHEMA tp_m AUTHORIZATION tp_mallory;
GRANT USAGE ON SCHEMA tp_m TO PUBLIC;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA elt TO tp_joe, tp_mallory;
CREATE TABLE tp.t (id int PRIMARY KEY, v text, w text);
SELECT elt.create_source('tp', ARRAY['tp.t']) > 0 AS created;
SELECT elt.wait_for_source('tp');
GRANT SELECT ON elt_raw.tp TO tp_joe;

SET ROLE tp_mallory;
SET search_path = tp_m, pg_catalog;
CREATE TABLE seen (what text, who text, session text, gained text);
GRANT INSERT ON seen TO PUBLIC;
CREATE TABLE attempts (n int GENERATED ALWAYS AS IDENTITY, command text, armed boolean DEFAULT true);
GRANT SELECT ON attempts TO PUBLIC;
-- notes who it runs as, and what of it that gives
CREATE FUNCTION saw(what text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	attempt text;
	gained text;
	who text := current_user;
BEGIN
	FOR attempt IN SELECT command FROM tp_m.attempts WHERE armed ORDER BY n LOOP
		BEGIN
			EXECUTE attempt;
			gained := concat_ws('; ', gained, attempt || CASE WHEN current_user <> who THEN ' as ' || current_user END);
		EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value THEN
			NULL;
		WHEN OTHERS THEN
			gained := concat_ws('; ', gained, attempt || ': ' || SQLERRM);
		END;
	END LOOP;
	INSERT INTO tp_m.seen VALUES (what, current_user, session_user, gained);
	RETURN 1;
END $$;
CREATE FUNCTION lie(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN tp_m.saw(what); END $$;
CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tp_m.saw(format('%s trigger for each %s%s', TG_WHEN, TG_LEVEL, CASE WHEN TG_ARGV[0] IS NOT NULL THEN ', ' || TG_ARGV[0] END));
	RETURN NEW;
END $$;
CREATE TYPE word AS (word text);
CREATE FUNCTION to_word(v text) RETURNS word LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN tp_m.lie('cast') = 1 THEN ROW(v)::tp_m.word END $$;
CREATE CAST (text AS word) WITH FUNCTION to_word(text) AS ASSIGNMENT;
CREATE DOMAIN checked AS text CHECK (tp_m.lie('domain') = 1);
CREATE TABLE target (id int PRIMARY KEY, v checked, w word,
	d int DEFAULT saw('default'), g int GENERATED ALWAYS AS (id + lie('generated column')) STORED,
	CHECK (lie('check') = 1), EXCLUDE USING btree ((id + lie('exclusion constraint')) WITH =));
CREATE UNIQUE INDEX ON target (id) WHERE lie('index predicate, constant') = 1;
CREATE INDEX ON target ((id + lie('index expression, constant')));
CREATE INDEX ON target (id) WHERE lie('index predicate ' || left(v, 1)) = 1;
CREATE UNIQUE INDEX ON target ((id + lie('index expression ' || left(v, 1))));
CREATE TRIGGER before_row BEFORE INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION spring();
CREATE TRIGGER after_row AFTER INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION spring();
CREATE TRIGGER before_statement BEFORE INSERT OR UPDATE OR DELETE ON target EXECUTE FUNCTION spring();
CREATE TRIGGER after_statement AFTER INSERT ON target REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION spring('transition');
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE ON target DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION spring('deferred');
-- a partition key is looked at wherever rows go
CREATE TABLE parted (id int, v text, w text) PARTITION BY LIST ((lie('partition key') + id - id));
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE ruled (id int PRIMARY KEY, v text, w text);
CREATE RULE also AS ON INSERT TO ruled DO ALSO SELECT saw('rule');
CREATE TABLE bound (id int PRIMARY KEY, v text, w text);
ALTER TABLE bound ENABLE ROW LEVEL SECURITY;
CREATE POLICY planted ON bound USING (lie('policy') = 1);
CREATE VIEW shown AS SELECT * FROM bound;
CREATE TRIGGER instead INSTEAD OF INSERT ON shown FOR EACH ROW EXECUTE FUNCTION spring();
CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id;
CREATE SEQUENCE counted;
GRANT SELECT, INSERT, UPDATE, DELETE ON target, parted, ruled, bound, shown TO tp_joe;
RESET ROLE;

SET ROLE tp_joe;
SET search_path = pg_catalog;
SELECT elt.create_pipeline('tp', 'tp', 'tp.t', 'tp_m.target', $$SELECT (record->>'id')::int AS id, record->>'v' AS v, record->>'w' AS w FROM changes$$) > 0 AS created;
SELECT elt.create_pipeline('tp_parted', 'tp', 'tp.t', 'tp_m.parted', mode => 'append') > 0 AS created;
SELECT elt.create_pipeline('tp_ruled', 'tp', 'tp.t', 'tp_m.ruled', mode => 'append') > 0 AS created;
SELECT elt.create_pipeline('tp_bound', 'tp', 'tp.t', 'tp_m.bound');
SELECT elt.create_pipeline('tp_shown', 'tp', 'tp.t', 'tp_m.shown');
SELECT elt.create_pipeline('tp_kept', 'tp', 'tp.t', 'tp_m.kept');
SELECT elt.create_pipeline('tp_counted', 'tp', 'tp.t', 'tp_m.counted');
RESET ROLE;
RESET search_path;
TRUNCATE tp_m.seen;
INSERT INTO tp_m.attempts (command) VALUES
	('SET ROLE postgres'), ('SET ROLE NONE'), ('RESET ROLE'), ('SET SESSION AUTHORIZATION DEFAULT'), ('ALTER ROLE tp_mallory SUPERUSER'),
	('GRANT tp_joe TO tp_mallory'), ('UPDATE elt.pipelines SET owner = 10'), ('UPDATE elt.checkpoints SET position = 0'),
	('DELETE FROM elt.quarantine_records'), ('TABLE elt.sources'), ('DELETE FROM elt_raw.tp'), ('TRUNCATE elt_raw.tp'),
	('SELECT elt.drop_source(''tp'')'), ('SELECT pg_terminate_backend(pg_backend_pid())'),
	('SELECT pg_terminate_backend(pid) FROM elt.workers() WHERE pid IS NOT NULL'),
	('SELECT pg_reload_conf()'), ('SET session_replication_role = replica'), ('SELECT pg_replication_origin_create(''tp'')'),
	('COPY (SELECT 1) TO PROGRAM ''true'''), ('SELECT lo_export(1, ''/tmp/x'')');

-- the workers
INSERT INTO tp.t SELECT g, 'v' || g, 'w' FROM generate_series(1, 3) g;
UPDATE tp.t SET w = 'ww' WHERE id = 1;
DELETE FROM tp.t WHERE id = 3;
SELECT elt.wait_for('tp'), elt.wait_for('tp_parted'), elt.wait_for('tp_ruled');
SELECT what, who, gained FROM tp_m.seen GROUP BY what, who, gained ORDER BY what COLLATE "C", who;
SELECT pipeline, op, sqlstate FROM elt.quarantine;
-- who reads these tables runs what is planted there, too
UPDATE tp_m.attempts SET armed = false;
SELECT id, v, (w).word, d, g FROM tp_m.target ORDER BY id;
SELECT count(*) FROM tp_m.parted;
SELECT count(*) FROM tp_m.ruled;
UPDATE tp_m.attempts SET armed = true;

-- a superuser, in a session that has looked at none of it yet
SELECT elt.pause_pipeline('tp'), elt.pause_pipeline('tp_parted'), elt.pause_pipeline('tp_ruled');
TRUNCATE tp_m.seen;
\c -
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT elt.alter_pipeline('tp', ordering => 'supersede');
\c -
SET client_min_messages = warning;
SELECT elt.replace_transform('tp', $$SELECT (record->>'id')::int AS id, record->>'v' AS v, 'w'::text AS w FROM changes$$);
\c -
SET client_min_messages = warning;
CALL elt.replay('tp');
\c -
SET client_min_messages = warning;
CALL elt.replay('tp_ruled');
\c -
SET client_min_messages = warning;
INSERT INTO tp.t VALUES (4, 'v4', 'w');
SELECT elt.wait_for_source('tp');
SELECT read, written FROM elt.transform('tp');
SELECT read, written FROM elt.transform('tp_parted');
SELECT count(*) > 0 FROM elt.health();
SELECT count(*) FROM elt.stat_pipelines;
SELECT DISTINCT who, gained FROM tp_m.seen ORDER BY 1, 2;
SELECT rolname, rolsuper FROM pg_roles WHERE rolname ~ '^tp_' ORDER BY 1;
SELECT roleid::regrole FROM pg_auth_members WHERE member = 'tp_mallory'::regrole;

SELECT elt.drop_pipeline('tp'), elt.drop_pipeline('tp_parted'), elt.drop_pipeline('tp_ruled');
SELECT elt.drop_source('tp');
DROP SCHEMA tp_m, tp CASCADE;
REVOKE ALL ON ALL ROUTINES IN SCHEMA elt FROM tp_joe, tp_mallory;
DROP ROLE tp_joe, tp_mallory;
