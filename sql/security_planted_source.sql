-- What the owner of a captured table plants on it does not run as who captures it, not even while a copy is planned.

SET client_min_messages = warning;
CREATE ROLE ps_mallory;
CREATE SCHEMA ps AUTHORIZATION ps_mallory;
SET ROLE ps_mallory;
-- fails where it would win
CREATE FUNCTION ps.lie(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF current_setting('application_name') ~ '^elt ' AND (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
		RAISE EXCEPTION '% runs as a superuser', what;
	END IF;
	-- nor does it get there
	IF current_setting('application_name') ~ '^elt ' THEN
		BEGIN
			PERFORM set_config('role', 'none', false);
			RAISE EXCEPTION '% got back', what;
		EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value THEN
			NULL;
		END;
		PERFORM set_config('search_path', 'ps', false), set_config('extra_float_digits', '-15', false), set_config('DateStyle', 'German', false);
	END IF;
	RETURN true;
END $$;
CREATE FUNCTION ps.lie(n int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN ps.lie('expression') THEN n END $$;
CREATE TABLE ps.t (id int PRIMARY KEY, v text, d date, f float8);
INSERT INTO ps.t SELECT g, 'v', '2026-01-02', 0.1::float8 + 0.2 FROM generate_series(1, 1000) g;
CREATE INDEX ON ps.t (id) WHERE ps.lie('predicate');
CREATE INDEX ON ps.t ((id + ps.lie(1)));
CREATE STATISTICS ps.t_statistics ON (ps.lie('statistics')), v FROM ps.t;
ALTER TABLE ps.t ADD CHECK (ps.lie('check'));
CREATE TABLE ps.parted (id int) PARTITION BY RANGE ((id + ps.lie(1)));
CREATE TABLE ps.part PARTITION OF ps.parted DEFAULT;
INSERT INTO ps.parted VALUES (1);
RESET ROLE;
SELECT elt.create_source('ps', ARRAY['ps.t', 'ps.parted']) > 0 AS created;
SELECT elt.wait_for_source('ps');
INSERT INTO ps.t VALUES (2000, 'v', '2026-01-02', 0.1::float8 + 0.2);
UPDATE ps.t SET v = 'w' WHERE id = 2000;
DELETE FROM ps.t WHERE id = 2000;
SELECT elt.resync_table('ps', 'ps.t');
SELECT elt.wait_for_source('ps');
SELECT state, last_error FROM elt.stat_sources WHERE source = 'ps';
-- what its settings would have made of the values
SELECT relation, op, count(*), min(after->>'d') AS d, min(after->>'f') AS f FROM elt_raw.ps GROUP BY 1, 2 ORDER BY 1, 2;
SELECT elt.drop_source('ps');
DROP SCHEMA ps CASCADE;
DROP ROLE ps_mallory;
