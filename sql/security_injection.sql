-- Text that would be SQL if somebody put it into a statement: every argument of every function, and
-- every name that elt takes from catalogs, is a value.

\set VERBOSITY terse
SET client_min_messages = error;
CREATE SCHEMA inj;
CREATE TABLE inj.t (id int PRIMARY KEY, v text);
CREATE TABLE inj.target (id int PRIMARY KEY, v text);
-- no rollback takes back what a sequence gave
CREATE SEQUENCE inj.hits;
CREATE FUNCTION inj.hit(what text) RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('inj.hits') $$;
SELECT elt.create_source('inj', ARRAY['inj.t']) > 0 AS created;
SELECT elt.wait_for_source('inj');
SELECT elt.create_pipeline('inj', 'inj', 'inj.t', 'inj.target') > 0 AS created;
INSERT INTO inj.t VALUES (1, 'v');
SELECT elt.wait_for('inj');

-- what ends a literal, an identifier, a dollar quote, a comment, a format, a JSON string, a conninfo
CREATE TABLE inj.texts (text text);
INSERT INTO inj.texts VALUES
	($$' || inj.hit('quote') || '$$), ($$'; SELECT inj.hit('literal'); --$$), ($$\'; SELECT inj.hit('backslash'); --$$),
	($$"; SELECT inj.hit('identifier'); --$$), ($$x"."y"; SELECT inj.hit('qualified'); --$$), ('$$; SELECT inj.hit(''dollar''); --'),
	('*/ SELECT inj.hit(''comment''); /*'), ('%s%n%I%L'), ($$x) OR inj.hit('parenthesis') > 0 --$$), ($$(SELECT inj.hit('subselect'))$$),
	('{"a": "b"}'), ($$x' dbname='postgres$$), (''), (repeat('x', 100)), (E'line\nend'), ($$elt.sources$$), ($$1; SELECT inj.hit('number')$$);

-- a call of each function in which one argument after the other takes such a text, as the name of something or as a value
CREATE FUNCTION inj.try(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RAISE EXCEPTION 'done' USING ERRCODE = 'XXXXX';
EXCEPTION WHEN OTHERS THEN
	RETURN CASE SQLSTATE WHEN 'XXXXX' THEN 'done' ELSE SQLSTATE || ' ' || SQLERRM END;
END $$;
CREATE VIEW inj.calls AS
	SELECT p.oid::regproc::text AS function, a.name, x.text,
		   format('%s %s(%s)', CASE p.prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END, p.oid::regproc,
				  (SELECT string_agg(CASE WHEN b.n = a.n AND b.type IN ('text'::regtype, 'name'::regtype) THEN format('%L::%s', x.text, b.type::regtype)
									 WHEN b.n = a.n AND b.type = 'text[]'::regtype THEN format('ARRAY[%L]', x.text)
									 WHEN b.n = a.n THEN format('jsonb_build_object(%L::text, %L::text)', left(x.text, 60), x.text)
									 WHEN b.name IN ('name', 'source', 'pipeline') THEN '''inj'''
									 WHEN b.name = 'relation' THEN '''inj.t'''
									 WHEN b.type = 'regclass'::regtype THEN CASE b.name WHEN 'target' THEN '''inj.target''' ELSE '''elt_raw.inj''' END
									 WHEN b.type = 'anyelement'::regtype THEN 'NULL::inj.t'
									 WHEN b.type = 'jsonb'::regtype THEN '''{"id": 1}'''
									 WHEN b.type = 'interval'::regtype THEN '''1 s'''
									 WHEN b.type IN ('integer'::regtype, 'bigint'::regtype, 'double precision'::regtype, 'oid'::regtype) THEN '1'
									 WHEN b.name = 'mode' THEN '''upsert''' WHEN b.name = 'ordering' THEN '''strict''' WHEN b.name = 'snapshot' THEN '''none'''
									 WHEN b.name = 'rule' THEN '''error_rate''' WHEN b.name = 'query' THEN '''SELECT 1.0 AS value'''
									 WHEN b.type = 'boolean'::regtype THEN 'false'
									 ELSE 'NULL' END || CASE WHEN b.type = 'anyelement'::regtype THEN '' ELSE '::' || b.type::regtype END, ', ' ORDER BY b.n)
				   FROM (SELECT t.type, t.n, p.proargnames[t.n] AS name FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, n)) AS b)) AS command
	FROM pg_proc p
	CROSS JOIN LATERAL (SELECT t.type, t.n, p.proargnames[t.n] AS name FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, n)) AS a
	CROSS JOIN inj.texts x
	WHERE p.pronamespace = 'elt'::regnamespace AND a.type IN ('text'::regtype, 'name'::regtype, 'text[]'::regtype, 'jsonb'::regtype)
		-- these arguments are SQL
		AND a.name NOT IN ('transform', 'filter', 'query')
		-- these wait
		AND p.proname NOT IN ('wait_for', 'wait_for_source');
-- a function that is open to it is found out
CREATE FUNCTION inj.careless(name text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT ''' || name || ''''; RETURN 1; END $$;
SELECT count(inj.try(format('SELECT inj.careless(%L)', text))) FROM inj.texts;
SELECT is_called FROM inj.hits;
SELECT setval('inj.hits', 1, false);
-- of elt none runs such a text, none takes it to pieces as SQL, and none fails for a reason that it does not know
CREATE TABLE inj.outcomes AS SELECT function, name, text, inj.try(command) AS outcome FROM inj.calls;
SELECT count(*) > 1000 AS enough, count(DISTINCT function) > 40 AS functions, count(*) FILTER (WHERE outcome = 'done') > 100 AS many_done FROM inj.outcomes;
SELECT is_called FROM inj.hits;
SELECT function, name, text, outcome FROM inj.outcomes WHERE outcome ~ '^(42601|XX|42883|42P02|54001)' ORDER BY 1, 2, 3;

-- names of roles, publications and constraints
CREATE ROLE "inj'"";-- %s" REPLICATION;
GRANT USAGE, CREATE ON SCHEMA inj TO "inj'"";-- %s";
GRANT USAGE ON SCHEMA elt_raw TO "inj'"";-- %s";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO "inj'"";-- %s";
CREATE PUBLICATION "pub'"";-- %s" FOR TABLE inj.t;
SET ROLE "inj'"";-- %s";
CREATE TABLE inj.theirs (id int PRIMARY KEY, v text CONSTRAINT "c'"";-- %s" CHECK (v <> 'bad'));
\set VERBOSITY default
SELECT elt.create_pipeline('inj_role', 'inj', 'inj.t', 'inj.theirs');
\set VERBOSITY terse
RESET ROLE;
GRANT SELECT ON elt_raw.inj TO "inj'"";-- %s";
SET ROLE "inj'"";-- %s";
SELECT elt.create_pipeline('inj_role', 'inj', 'inj.t', 'inj.theirs') > 0 AS created;
RESET ROLE;
SELECT elt.create_source('inj_pub', publication => 'pub''";-- %s', snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('inj_pub');
INSERT INTO inj.t VALUES (2, 'bad'), (3, 'good');
SELECT elt.wait_for('inj_role'), elt.wait_for_source('inj_pub');
SELECT count(*) FROM inj.theirs;
SELECT constraint_name, sqlstate FROM elt.quarantine;
SELECT count(*) FROM elt_raw.inj_pub;
SELECT "check", ok, detail FROM elt.check_source('inj_pub') WHERE "check" = 'publication';
SELECT elt.drop_source('inj_pub');
SELECT is_called FROM inj.hits;

SELECT elt.drop_pipeline('inj'), elt.drop_pipeline('inj_role');
SELECT elt.drop_source('inj');
DROP SCHEMA inj CASCADE;
DROP PUBLICATION "pub'"";-- %s";
DROP OWNED BY "inj'"";-- %s";
DROP ROLE "inj'"";-- %s";
