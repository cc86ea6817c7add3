-- What a superuser's transform does to its session does not reach the next pipeline.

SET client_min_messages = warning;
CREATE TABLE tc_t (id int PRIMARY KEY, v text);
CREATE TABLE tc_a (id int PRIMARY KEY, v text);
CREATE TABLE tc_seen (id int PRIMARY KEY, v text);
CREATE ROLE tc_joe SUPERUSER;
CREATE ROLE tc_other SUPERUSER;
CREATE FUNCTION tc_dirty(id int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF id = 1 THEN
		PERFORM set_config('work_mem', '64kB', false), set_config('search_path', 'nowhere', false),
			set_config('statement_timeout', '1ms', false), set_config('lock_timeout', '1ms', false), set_config('elt_test.leak', 'leaked', false);
		PERFORM pg_advisory_lock(4711);
		EXECUTE 'PREPARE tc_statement AS SELECT 1';
		EXECUTE 'DECLARE tc_cursor CURSOR WITH HOLD FOR SELECT 1';
		RETURN 'dirty';
	ELSIF id = 2 THEN
		CREATE TEMP TABLE tc_temp (v text);
		RETURN 'temp';
	ELSIF id = 3 THEN
		COMMIT;
	ELSIF id = 4 THEN
		ROLLBACK;
	ELSIF id = 5 THEN
		SET ROLE tc_other;
	ELSIF id = 6 THEN
		RESET ROLE;
	ELSIF id = 7 THEN
		SET SESSION AUTHORIZATION tc_other;
	ELSIF id = 8 THEN
		SET session_replication_role = replica;
	ELSIF id = 10 THEN
		LISTEN tc_channel;
	ELSIF id = 9 THEN
		SET CONSTRAINTS ALL DEFERRED;
	END IF;
	RETURN 'ok';
END $$;
CREATE FUNCTION tc_look() RETURNS text LANGUAGE sql AS $$
	SELECT pg_catalog.concat_ws(' ', current_user, session_user = current_user,
		pg_catalog.current_setting('work_mem') = (SELECT reset_val || unit FROM pg_catalog.pg_settings WHERE name = 'work_mem')
			OR pg_catalog.current_setting('work_mem') <> '64kB',
		pg_catalog.current_setting('search_path'), pg_catalog.current_setting('statement_timeout'),
		pg_catalog.current_setting('session_replication_role'), coalesce(pg_catalog.current_setting('elt_test.leak', true), ''),
		(SELECT count(*) FROM pg_catalog.pg_listening_channels()), (SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE name = 'tc_statement'),
		(SELECT count(*) FROM pg_catalog.pg_cursors WHERE is_holdable),
		(SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_catalog.pg_backend_pid()),
		pg_catalog.to_regclass('pg_temp.tc_temp') IS NULL)
$$;
SELECT elt.create_source('tc', ARRAY['tc_t']) > 0 AS created;
SELECT elt.wait_for_source('tc');
SET ROLE tc_joe;
SELECT elt.create_pipeline('tc_a', 'tc', 'tc_t', 'tc_a', $$SELECT (record->>'id')::int AS id, tc_dirty((record->>'id')::int) AS v FROM changes$$,
	options => '{"allow_volatile": true, "breaker": false, "lanes": 1}') > 0 AS created;
SET ROLE tc_other;
SELECT elt.create_pipeline('tc_seen', 'tc', 'tc_t', 'tc_seen', $$SELECT (record->>'id')::int AS id, tc_look() AS v FROM changes$$,
	options => '{"allow_volatile": true, "lanes": 1}') > 0 AS created;
RESET ROLE;
DO $$
BEGIN
	FOR i IN 1..10 LOOP
		INSERT INTO tc_t VALUES (i, 'v');
	END LOOP;
END $$;
SELECT elt.wait_for('tc_a'), elt.wait_for('tc_seen');
SELECT * FROM tc_a ORDER BY id;
SELECT key->>'id' AS id, sqlstate, error_class, message FROM elt.quarantine ORDER BY change_id;
SELECT id, v FROM tc_seen ORDER BY id;
-- each change after a dirty one, by whichever worker: once more
INSERT INTO tc_t SELECT g, 'v' FROM generate_series(11, 15) g;
SELECT elt.wait_for('tc_seen');
SELECT DISTINCT v FROM tc_seen;

SELECT elt.drop_pipeline('tc_a'), elt.drop_pipeline('tc_seen');
SELECT elt.drop_source('tc');
DROP TABLE tc_t, tc_a, tc_seen;
DROP FUNCTION tc_dirty(int), tc_look();
DROP ROLE tc_joe, tc_other;
