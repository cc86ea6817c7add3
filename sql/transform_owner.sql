-- User code runs as the pipeline's owner, and cannot get back.

SET client_min_messages = warning;
CREATE ROLE tw_joe;
CREATE SCHEMA tw AUTHORIZATION tw_joe;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO tw_joe;
CREATE TABLE tw_t (id int PRIMARY KEY, v text);
CREATE TABLE tw_secret (v text);
SELECT elt.create_source('tw', ARRAY['tw_t']) > 0 AS created;
SELECT elt.wait_for_source('tw');
GRANT SELECT ON elt_raw.tw TO tw_joe;
SET ROLE tw_joe;
SET search_path = tw, pg_catalog;
CREATE TABLE target (id int PRIMARY KEY, v text);
CREATE TABLE seen (id int, what text);
CREATE TABLE parent (id int PRIMARY KEY);
-- each attempt fails, or changes nothing
CREATE FUNCTION attack() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen VALUES (NEW.id, current_user || ' ' || current_setting('search_path'));
	BEGIN
		SET ROLE NONE;
		INSERT INTO seen VALUES (NEW.id, 'SET ROLE: ' || current_user);
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO seen VALUES (NEW.id, 'SET ROLE: ' || SQLERRM);
	END;
	BEGIN
		RESET ROLE;
		INSERT INTO seen VALUES (NEW.id, 'RESET ROLE: ' || current_user);
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO seen VALUES (NEW.id, 'RESET ROLE: ' || SQLERRM);
	END;
	BEGIN
		RESET SESSION AUTHORIZATION;
		INSERT INTO seen VALUES (NEW.id, 'RESET SESSION AUTHORIZATION: ' || current_user);
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO seen VALUES (NEW.id, 'RESET SESSION AUTHORIZATION: ' || SQLERRM);
	END;
	BEGIN
		INSERT INTO public.tw_secret VALUES ('stolen');
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO seen VALUES (NEW.id, SQLERRM);
	END;
	PERFORM set_config('search_path', 'nowhere', false);
	PERFORM set_config('work_mem', '64kB', false);
	PERFORM pg_advisory_lock(4711);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER attack AFTER INSERT ON target DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack();
SELECT elt.create_pipeline('tw', 'tw', 'public.tw_t', 'target', $$SELECT (record->>'id')::int AS id, record->>'v' || current_user AS v FROM changes$$) > 0 AS created;
RESET ROLE;
RESET search_path;
INSERT INTO tw_t VALUES (1, 'a ');
SELECT elt.wait_for('tw');
TABLE tw.target;
TABLE tw.seen;
TABLE tw_secret;
SELECT count(*) FROM elt.quarantine;

-- the same in a superuser's own session
SELECT elt.pause_pipeline('tw');
INSERT INTO tw_t VALUES (2, 'b ');
SELECT elt.wait_for_source('tw');
SHOW work_mem;
BEGIN;
SELECT read, written FROM elt.transform('tw');
SELECT current_user = session_user AS same_user, current_setting('search_path'), current_setting('work_mem');
COMMIT;
SELECT pg_advisory_unlock_all();
SELECT what FROM tw.seen WHERE id = 2;
TABLE tw_secret;

-- a deferred constraint fails where it belongs: as one change, quarantined
DROP TRIGGER attack ON tw.target;
ALTER TABLE tw.target ADD FOREIGN KEY (id) REFERENCES tw.parent DEFERRABLE INITIALLY DEFERRED NOT VALID;
INSERT INTO tw.parent VALUES (3);
SELECT elt.resume_pipeline('tw');
INSERT INTO tw_t VALUES (3, 'c '), (4, 'd ');
SELECT elt.wait_for('tw');
SELECT id FROM tw.target ORDER BY id;
SELECT key, sqlstate, status FROM elt.quarantine;

SELECT elt.drop_pipeline('tw');
SELECT elt.drop_source('tw');
DROP SCHEMA tw CASCADE;
DROP TABLE tw_t, tw_secret;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elt FROM tw_joe;
DROP ROLE tw_joe;
