-- Hostile use: code of pipeline owners, names, messages, rights that go away.

SET client_min_messages = warning;
CREATE ROLE sec_joe;
CREATE ROLE sec_mallory;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO sec_joe, sec_mallory;
CREATE SCHEMA sec_tools;
CREATE SCHEMA sec AUTHORIZATION sec_joe;
CREATE SCHEMA sec_path AUTHORIZATION sec_mallory;
GRANT USAGE ON SCHEMA sec_tools, sec_path TO PUBLIC;
CREATE FUNCTION sec_tools.wait(pipeline text, wanted text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found text;
BEGIN
	FOR i IN 1..600 LOOP
		SELECT state INTO found FROM elt.pipelines WHERE name = pipeline;
		EXIT WHEN found = wanted;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN found;
END $$;
-- how a refusal by PostgreSQL itself is worded differs between majors
CREATE FUNCTION sec_tools.refusal(message text) RETURNS text LANGUAGE sql AS
$$ SELECT CASE WHEN message ~ '^(must be|permission denied to) ' THEN 'permission denied' ELSE message END $$;
CREATE FUNCTION sec_tools.try(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || sec_tools.refusal(SQLERRM);
END $$;
CREATE TABLE sec_t (id int PRIMARY KEY, v text);
CREATE TABLE sec_secret (v text);
SELECT elt.create_source('sec', ARRAY['sec_t']) > 0 AS created;
SELECT elt.wait_for_source('sec');
GRANT SELECT ON elt_raw.sec TO sec_joe;

---- the owner's code: a trigger, a default, a constraint, a function of the transform

SET ROLE sec_joe;
SET search_path = sec, sec_path, pg_catalog;
CREATE TABLE seen (id int, what text, n int GENERATED ALWAYS AS IDENTITY);
CREATE TABLE bomb (id int);
CREATE TABLE rates (factor int);
INSERT INTO rates VALUES (10);
CREATE FUNCTION saw(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO sec.seen (what) VALUES (what || ' as ' || current_user);
	RETURN what;
END $$;
-- what a superuser must never run
CREATE FUNCTION explode() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	ALTER ROLE sec_joe SUPERUSER;
	RETURN 1;
END $$;
CREATE FUNCTION explode_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO sec.seen (what) VALUES ('bomb as ' || current_user);
	PERFORM sec.explode();
	RETURN NULL;
EXCEPTION WHEN insufficient_privilege THEN
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER explode AFTER INSERT ON bomb DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION explode_trigger();
CREATE TABLE attacks (n int GENERATED ALWAYS AS IDENTITY, command text);
INSERT INTO attacks (command) VALUES
	('SET ROLE NONE'), ('RESET ROLE'), ('SET SESSION AUTHORIZATION DEFAULT'), ('RESET SESSION AUTHORIZATION'),
	($$SELECT set_config('role', 'none', false)$$), ($$SELECT set_config('session_authorization', 'default', true)$$),
	('CREATE ROLE sec_root SUPERUSER'), ('ALTER ROLE sec_joe SUPERUSER'), ('SELECT sec.explode()'),
	('INSERT INTO sec.bomb VALUES (1)'),
	('SET CONSTRAINTS ALL DEFERRED'), ('INSERT INTO sec.bomb VALUES (2)'),
	('SET CONSTRAINTS sec.explode DEFERRED'), ('INSERT INTO sec.bomb VALUES (3)'),
	('SET CONSTRAINTS ALL IMMEDIATE'),
	('DECLARE held CURSOR WITH HOLD FOR SELECT sec.explode()'),
	('PREPARE trap AS SELECT sec.explode()'),
	('CREATE TEMP TABLE trap AS SELECT 1'),
	('LISTEN sec'), ('DISCARD ALL'), ('COMMIT'),
	('SET session_replication_role = replica'), ('SET log_min_messages = panic'),
	($$COPY sec.seen TO PROGRAM 'true'$$), ($$SELECT pg_read_file('PG_VERSION')$$),
	('SELECT pg_terminate_backend(pg_backend_pid())'), ('SELECT pg_cancel_backend(pg_backend_pid())'),
	('TABLE public.sec_secret'), ('TABLE elt.sources'), ('UPDATE elt.pipelines SET owner = 10'),
	('DELETE FROM elt_raw.sec'), ('ALTER TABLE elt_raw.sec OWNER TO sec_joe'),
	($$SELECT elt.transform('sec')$$), ($$SELECT elt.drop_pipeline('sec')$$), ($$SELECT elt.pause_pipeline('sec')$$),
	($$SELECT set_config('search_path', 'sec_path', false)$$), ($$SELECT set_config('work_mem', '64kB', false)$$);
CREATE FUNCTION attack() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	attack sec.attacks;
	outcome text;
BEGIN
	FOR attack IN SELECT * FROM sec.attacks ORDER BY n LOOP
		BEGIN
			EXECUTE attack.command;
			outcome := 'done as ' || current_user;
		EXCEPTION WHEN OTHERS THEN
			outcome := sec_tools.refusal(SQLERRM);
		END;
		INSERT INTO sec.seen VALUES (NEW.id, attack.command || ' -> ' || outcome);
	END LOOP;
	RETURN NULL;
END $$;
CREATE DOMAIN word AS text CHECK (saw('domain') IS NOT NULL);
CREATE TABLE target (id int PRIMARY KEY CHECK (saw('check') IS NOT NULL), v word, d text DEFAULT saw('default'));
CREATE TRIGGER attack AFTER INSERT ON target FOR EACH ROW EXECUTE FUNCTION attack();
CREATE CONSTRAINT TRIGGER explode AFTER INSERT ON target DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION explode_trigger();
RESET ROLE;

-- another role's objects on the owner's path run as the owner at most
SET ROLE sec_mallory;
CREATE TABLE sec_path.trap (who text);
GRANT INSERT ON sec_path.trap TO PUBLIC;
CREATE FUNCTION sec_path.shout(v text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN upper(v) || ' as ' || current_user;
END $$;
RESET ROLE;
SET ROLE sec_joe;
SELECT elt.create_pipeline('sec', 'sec', 'public.sec_t', 'target',
	$$SELECT (record->>'id')::int * factor AS id, shout(record->>'v') AS v FROM changes, rates$$) > 0 AS created;
RESET ROLE;
RESET search_path;

INSERT INTO sec_t VALUES (1, 'by the worker');
SELECT elt.wait_for('sec');
SELECT id, v FROM sec.target;
SELECT DISTINCT what FROM sec.seen WHERE id IS NULL ORDER BY what;
SELECT what FROM sec.seen WHERE id = 10 ORDER BY n;
SELECT rolname, rolsuper FROM pg_roles WHERE rolname IN ('sec_joe', 'sec_root');
SELECT quarantine_id FROM elt.quarantine;

-- the same in a superuser's session, whose temporary tables and path do not reach the owner's code
SELECT elt.pause_pipeline('sec');
INSERT INTO sec_t VALUES (2, 'by hand');
SELECT elt.wait_for_source('sec');
CREATE TEMP TABLE rates (factor int);
INSERT INTO rates VALUES (1000);
CREATE TABLE sec_tools.by_worker AS SELECT what FROM sec.seen WHERE id = 10;
SET ROLE sec_mallory;
CREATE FUNCTION sec_path.trapped(text, text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO sec_path.trap VALUES (current_user);
	RETURN false;
END $$;
CREATE OPERATOR sec_path.= (FUNCTION = sec_path.trapped, LEFTARG = text, RIGHTARG = text);
RESET ROLE;
SET search_path = sec_path, pg_catalog, public;
BEGIN;
SELECT read, written, quarantined FROM elt.transform('sec');
SELECT current_user OPERATOR(pg_catalog.=) session_user AS same_user, current_setting('search_path'), current_setting('work_mem') OPERATOR(pg_catalog.<>) '64kB' AS same_setting;
COMMIT;
SELECT count(*) FROM elt.stat_pipelines;
SELECT count(*) FROM elt.stat_sources;
SELECT count(*) > 0 FROM elt.health();
SELECT elt.resume_pipeline('sec');
SELECT elt.wait_for('sec');
RESET search_path;
DROP TABLE pg_temp.rates;
TABLE sec_path.trap;
SELECT id, v FROM sec.target ORDER BY id;
SELECT DISTINCT what FROM sec.seen WHERE id IS NULL ORDER BY what;
SELECT what FROM sec.seen WHERE id = 20 EXCEPT TABLE sec_tools.by_worker;
SELECT rolname, rolsuper FROM pg_roles WHERE rolname IN ('sec_joe', 'sec_root');
SELECT name FROM pg_cursors;
SELECT name FROM pg_prepared_statements;

-- a worker outlives what the owner's code raises, even an order to shut down
SET ROLE sec_joe;
DROP TRIGGER attack ON sec.target;
DROP TRIGGER explode ON sec.target;
CREATE FUNCTION sec.shut_down() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO sec.seen VALUES (NEW.id, 'shut down');
	RAISE EXCEPTION 'terminating connection due to administrator command' USING ERRCODE = 'admin_shutdown';
END $$;
CREATE TRIGGER shut_down BEFORE INSERT ON sec.target FOR EACH ROW EXECUTE FUNCTION sec.shut_down();
RESET ROLE;
SELECT elt.set_worker_bounds(1, NULL);
DO $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM elt.workers() WHERE kind = 'transform' AND pid IS NOT NULL) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
CREATE TABLE sec_tools.pids AS SELECT pid FROM elt.workers() WHERE kind = 'transform' AND pid IS NOT NULL;
SELECT count(*) > 0 FROM sec_tools.pids;
INSERT INTO sec_t VALUES (3, 'x');
SELECT elt.wait_for('sec', timeout => '1 s');
SELECT pid FROM sec_tools.pids EXCEPT SELECT pid FROM elt.workers() WHERE state <> 'ended';
SELECT count(*) FROM elt.quarantine;
DROP TRIGGER shut_down ON sec.target;
SELECT elt.resume_pipeline('sec');
SELECT elt.wait_for('sec', timeout => '90 s');
SELECT count(*) FROM sec.target;

-- who may signal backends may not signal elt
GRANT pg_signal_backend TO sec_mallory;
SET ROLE sec_mallory;
SELECT DISTINCT kind, sec_tools.try(format('SELECT pg_terminate_backend(%s)', pid)), sec_tools.try(format('SELECT pg_cancel_backend(%s)', pid))
FROM elt.workers() WHERE kind <> 'cleaner' AND pid IS NOT NULL
	AND dboid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) ORDER BY kind;
RESET ROLE;

---- what others may see and do

SET ROLE sec_mallory;
CREATE FUNCTION sec_path.leak(v text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
	RAISE WARNING 'leaked %', v;
	RETURN true;
END $$;
SELECT count(*) FROM elt.stat_pipelines WHERE sec_path.leak(pipeline);
SELECT count(*) FROM elt.stat_sources WHERE sec_path.leak(source);
SELECT count(*) FROM elt.backlog WHERE sec_path.leak(pipeline);
SELECT count(*) FROM elt.blocked_keys WHERE sec_path.leak(pipeline);
SELECT count(object_name), count(last_error) FROM elt.workers();
SELECT * FROM elt.pipeline_backlog('sec');
SELECT sec_tools.try($$SELECT elt.transform('sec')$$);
SELECT sec_tools.try($$SELECT elt.pause_pipeline('sec')$$);
SELECT sec_tools.try($$SELECT elt.resume_pipeline('sec')$$);
SELECT sec_tools.try($$SELECT elt.drop_pipeline('sec')$$);
SELECT sec_tools.try($$SELECT elt.wait_for('sec')$$);
SELECT sec_tools.try($$SELECT elt.wait_for_source('sec')$$);
SELECT sec_tools.try($$SELECT elt.pause_source('sec')$$);
SELECT sec_tools.try($$SELECT elt.add_table('sec', 'public.sec_secret')$$);
SELECT sec_tools.try($$SELECT elt.create_source('sec2', ARRAY['public.sec_secret'])$$);
-- raw staging may not be read, and what it holds is not told
CREATE TABLE sec_path.target (id int PRIMARY KEY, v text);
SELECT sec_tools.try($$SELECT elt.create_pipeline('sec_m', 'sec', 'public.sec_t', 'sec_path.target')$$);
SELECT sec_tools.try($$SELECT elt.create_pipeline('sec_m', 'sec', 'public.other', 'sec_path.target')$$);
RESET ROLE;

---- targets

SELECT sec_tools.try(format($$SELECT elt.create_pipeline('sec_x', 'sec', 'public.sec_t', %L, mode => 'append')$$, target))
FROM unnest(ARRAY['pg_catalog.pg_authid', 'elt.sources', 'elt.pipelines', 'elt_raw.sec', 'information_schema.sql_features']) AS target;
CREATE TEMP TABLE sec_temp (id int PRIMARY KEY, v text);
SELECT sec_tools.try($$SELECT elt.create_pipeline('sec_x', 'sec', 'public.sec_t', 'sec_temp')$$);
-- a superuser is told whose code would run
CREATE TABLE sec_tools.joes (id int PRIMARY KEY, v text);
ALTER TABLE sec_tools.joes OWNER TO sec_joe;
BEGIN;
SELECT elt.create_pipeline('sec_x', 'sec', 'public.sec_t', 'sec_tools.joes') > 0 AS created \g /dev/null
ROLLBACK;

-- row-level security that binds the owner, at creation and later
CREATE TABLE sec_tools.rls (id int PRIMARY KEY, v text);
ALTER TABLE sec_tools.rls ENABLE ROW LEVEL SECURITY;
GRANT ALL ON sec_tools.rls TO sec_joe;
SET ROLE sec_joe;
SELECT sec_tools.try($$SELECT elt.create_pipeline('sec_rls', 'sec', 'public.sec_t', 'sec_tools.rls')$$);
RESET ROLE;
ALTER TABLE sec_tools.rls DISABLE ROW LEVEL SECURITY;
SET ROLE sec_joe;
SELECT elt.create_pipeline('sec_rls', 'sec', 'public.sec_t', 'sec_tools.rls') > 0 AS created;
RESET ROLE;
SELECT elt.wait_for('sec_rls');
ALTER TABLE sec_tools.rls ENABLE ROW LEVEL SECURITY;
INSERT INTO sec_t VALUES (4, 'rls');
SELECT sec_tools.wait('sec_rls', 'blocked');
SELECT last_error FROM elt.pipelines WHERE name = 'sec_rls';
SELECT sec_tools.try($$SELECT elt.transform('sec_rls')$$);
ALTER TABLE sec_tools.rls DISABLE ROW LEVEL SECURITY;
SELECT elt.wait_for('sec_rls');
-- also on raw staging
SELECT elt.pause_pipeline('sec_rls');
ALTER TABLE elt_raw.sec ENABLE ROW LEVEL SECURITY;
SELECT sec_tools.try($$SELECT elt.transform('sec_rls')$$);
ALTER TABLE elt_raw.sec DISABLE ROW LEVEL SECURITY;
SELECT elt.resume_pipeline('sec_rls');
SELECT elt.wait_for('sec_rls');

-- rights that go away block, and come back
REVOKE UPDATE ON sec_tools.rls FROM sec_joe;
INSERT INTO sec_t VALUES (5, 'update');
SELECT sec_tools.wait('sec_rls', 'blocked');
SELECT last_error FROM elt.pipelines WHERE name = 'sec_rls';
SELECT sec_tools.try($$SELECT elt.transform('sec_rls')$$);
GRANT UPDATE ON sec_tools.rls TO sec_joe;
SELECT elt.wait_for('sec_rls');
REVOKE INSERT ON sec_tools.rls FROM sec_joe;
INSERT INTO sec_t VALUES (6, 'insert');
SELECT sec_tools.wait('sec_rls', 'blocked');
SELECT last_error FROM elt.pipelines WHERE name = 'sec_rls';
SELECT sec_tools.try($$SELECT elt.transform('sec_rls')$$);
GRANT INSERT ON sec_tools.rls TO sec_joe;
SELECT elt.wait_for('sec_rls');
SELECT elt.pause_pipeline('sec_rls');
REVOKE SELECT ON elt_raw.sec FROM sec_joe;
INSERT INTO sec_t VALUES (7, 'raw');
SELECT elt.wait_for_source('sec');
SELECT sec_tools.try($$SELECT elt.transform('sec_rls')$$);
GRANT SELECT ON elt_raw.sec TO sec_joe;
SELECT read, written FROM elt.transform('sec_rls');
SELECT count(*) FROM elt.quarantine;
SELECT count(*) FROM sec_tools.rls;
SELECT elt.drop_pipeline('sec_rls');

---- names

CREATE SCHEMA "sec ""s;--";
CREATE TABLE "sec ""s;--"."a""b;--" ("a""b;--" int PRIMARY KEY, "%s" text, "new
line" text, "back\slash" text, "ключ" text, "Case" int, "CASE" int, "a.b" numeric);
CREATE TABLE "sec ""s;--"."таблица%I$1" ("record" int, "changes" text, "select" text, "change_id" bigint, "op" text, "key" jsonb,
	"before" jsonb, "after" jsonb, "unchanged" text[], "relation" text, "output" text, "t" text, "o" text, "excluded" text, "elt_batch" text,
	"'; DROP TABLE sec_t; --" text, "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff123" int, PRIMARY KEY ("record", "t"));
CREATE SCHEMA "sec d'w";
CREATE TABLE "sec d'w"."a""b;--" (LIKE "sec ""s;--"."a""b;--" INCLUDING ALL);
CREATE TABLE "sec d'w"."таблица%I$1" (LIKE "sec ""s;--"."таблица%I$1" INCLUDING ALL);
INSERT INTO "sec ""s;--"."a""b;--" VALUES (1, '%s %d %n', E'a\nb', '\', 'значение', 1, 2, 1.50);
SELECT elt.add_table('sec', '"sec ""s;--"."a""b;--"');
SELECT elt.add_table('sec', '"sec ""s;--"."таблица%I$1"');
SELECT elt.wait_for_source('sec');
SELECT elt.create_pipeline('sec_names', 'sec', '"sec ""s;--"."a""b;--"', '"sec d''w"."a""b;--"') > 0 AS created;
SELECT elt.create_pipeline('sec_words', 'sec', '"sec ""s;--"."таблица%I$1"', '"sec d''w"."таблица%I$1"') > 0 AS created;
INSERT INTO "sec ""s;--"."a""b;--" VALUES (2, $$'; DROP TABLE sec_t; --$$, '$$', '\x', '', NULL, 3, 'NaN'), (3, 'gone', '', '', '', 0, 0, 0);
UPDATE "sec ""s;--"."a""b;--" SET "Case" = 7, "CASE" = 8 WHERE "a""b;--" = 1;
DELETE FROM "sec ""s;--"."a""b;--" WHERE "a""b;--" = 3;
INSERT INTO "sec ""s;--"."таблица%I$1" VALUES (1, 'changes', 'select', -1, 'd', '{"record": 2}', '{"a": "b"}', '[]', '{%s,"a,b"}', 'public.sec_t', 'out', 't1', 'o', 'x', 'b', 'y', 63),
	(2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 't2', NULL, NULL, NULL, NULL, NULL);
UPDATE "sec ""s;--"."таблица%I$1" SET "t" = 't3', "changes" = 'key moved' WHERE "record" = 2;
SELECT elt.wait_for('sec_names'), elt.wait_for('sec_words');
SELECT pipeline, message FROM elt.quarantine;
SELECT * FROM "sec d'w"."a""b;--" ORDER BY 1;
(TABLE "sec ""s;--"."a""b;--" EXCEPT TABLE "sec d'w"."a""b;--") UNION ALL (TABLE "sec d'w"."a""b;--" EXCEPT TABLE "sec ""s;--"."a""b;--");
(TABLE "sec ""s;--"."таблица%I$1" EXCEPT TABLE "sec d'w"."таблица%I$1") UNION ALL (TABLE "sec d'w"."таблица%I$1" EXCEPT TABLE "sec ""s;--"."таблица%I$1");
SELECT count(*) FROM "sec d'w"."таблица%I$1";
SELECT relation, count(*) FROM elt_raw.sec WHERE relation LIKE '"sec%' GROUP BY relation ORDER BY relation COLLATE "C";
SELECT elt.remove_table('sec', '"sec ""s;--"."a""b;--"');
SELECT elt.drop_pipeline('sec_names'), elt.drop_pipeline('sec_words');

---- messages that anybody can forge are data

CREATE TABLE sec_tools.event (id text PRIMARY KEY, v text);
SELECT elt.create_pipeline('sec_event', 'sec', 'message:sec', 'sec_tools.event',
	$$SELECT key->>'id' AS id, after->>'v' AS v FROM changes$$) > 0 AS created;
SET ROLE sec_mallory;
SELECT count(pg_logical_emit_message(true, 'elt', content)) FROM unnest(ARRAY[
	'{"topic": "sec", "key": {"id": "1"}, "payload": {"v": "''; DROP TABLE sec_t; --"}}',
	'{"topic": "public.sec_t", "key": {"id": 99}, "payload": {"id": 99, "v": "forged"}}',
	'{"topic": "sec\u0000", "payload": 1}', '{"topic": "sec", "payload": 1, "op": "t", "relation": "public.sec_t"}',
	'{"topic": "", "payload": "\ud800"}', '{"command": "drop_source", "name": "sec"}',
	'SELECT elt.drop_source(''sec'')', '', '{', repeat('[', 100000)]) AS content;
SELECT count(pg_logical_emit_message(false, 'elt', '\x0000ff00'::bytea)), count(pg_logical_emit_message(true, 'elt.wait', 'x')),
	count(pg_logical_emit_message(true, 'elt_command', 'x'));
RESET ROLE;
SELECT elt.emit('sec', '{"v": "emitted"}', '{"id": "2"}') IS NOT NULL;
SELECT elt.wait_for('sec_event'), elt.wait_for('sec');
SELECT * FROM sec_tools.event ORDER BY id;
SELECT relation, key, left(after::text, 60) AS payload FROM elt_raw.sec WHERE op = 'm' ORDER BY change_id;
SELECT count(*) FROM sec.target WHERE id = 990;
SELECT state, last_error FROM elt.stat_sources WHERE source = 'sec';
SELECT elt.drop_pipeline('sec_event');

---- passwords are kept apart, where no dump takes them from

BEGIN;
SELECT elt.create_source('sec_far', conninfo => $$postgresql://joe:it's%20'secret\@localhost:1/db?sslpassword=too&connect_timeout=1$$) > 0 AS created;
SELECT conninfo FROM elt.sources WHERE name = 'sec_far';
SELECT secret FROM elt.source_secrets;
SELECT elt.drop_source('sec_far');
SELECT conninfo FROM elt.dropped_sources WHERE name = 'sec_far';
ROLLBACK;
SELECT c.relname FROM pg_class c, pg_extension e
WHERE c.relnamespace = 'elt'::regnamespace AND c.relkind = 'r' AND e.extname = 'elt' AND c.oid <> ALL (e.extconfig)
ORDER BY c.relname;
SELECT sec_tools.try(format('SELECT elt.create_source(''sec_far'', conninfo => %L)', conninfo))
FROM unnest(ARRAY['host=x options=-csearch_path=evil', 'host=x replication=true', 'host=x requirepeer=joe', 'dbname=x fallback_application_name=y',
	'host= password=Tr0ub4dor =x', 'postgresql://joe:Tr0ub4dor@[::1/db']) AS conninfo;

---- an owner who goes

SELECT sec_tools.try('DROP ROLE sec_joe') LIKE '2BP01:%' AS refused;
DROP TABLE sec_tools.rls, sec_tools.joes;
ALTER SCHEMA sec OWNER TO CURRENT_USER;
ALTER TABLE sec.target OWNER TO CURRENT_USER;
REASSIGN OWNED BY sec_joe TO CURRENT_USER;
DROP OWNED BY sec_joe;
DROP ROLE sec_joe;
INSERT INTO sec_t VALUES (8, 'nobody''s');
SELECT sec_tools.wait('sec', 'blocked');
SELECT last_error ~ '^42704: the owner of pipeline "sec" does not exist any more' AS reason FROM elt.pipelines WHERE name = 'sec';
SELECT pipeline, state FROM elt.stat_pipelines;
SELECT elt.drop_pipeline('sec');

SELECT elt.drop_source('sec');
DROP OWNED BY sec_mallory CASCADE;
DROP ROLE sec_mallory;
DROP SCHEMA sec, sec_tools, "sec ""s;--", "sec d'w" CASCADE;
DROP TABLE sec_t, sec_secret;
