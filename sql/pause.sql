-- Pausing waits for the batch under way, and nobody applies another one after it; it does not wait for one that hangs.
SET client_min_messages = warning;
CREATE TABLE pa_t (id int PRIMARY KEY);
CREATE TABLE pa_target (id int PRIMARY KEY);
-- a batch lasts as long as somebody holds the gate, and a moment more
CREATE FUNCTION pa_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.3);
	WHILE NOT pg_try_advisory_xact_lock_shared(20261) LOOP
		PERFORM pg_sleep(0.1);
	END LOOP;
	RETURN NULL;
END $$;
CREATE TRIGGER gate AFTER INSERT ON pa_target FOR EACH STATEMENT EXECUTE FUNCTION pa_gate();
CREATE FUNCTION pa_wait_for_batch() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'elt transform' AND wait_event = 'PgSleep'
					  AND datname = current_database()) LOOP
		PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
	END LOOP;
END $$;
SELECT elt.create_source('pa', ARRAY['pa_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('pa');
SELECT elt.create_pipeline('pa', 'pa', 'public.pa_t', 'pa_target') > 0 AS created;

INSERT INTO pa_t VALUES (1);
SELECT pa_wait_for_batch();
SELECT elt.pause_pipeline('pa');
TABLE pa_target;
INSERT INTO pa_t VALUES (2);
SELECT elt.wait_for_source('pa');
SELECT elt.wait_for('pa', timeout => '1 s');
TABLE pa_target;
-- the lanes are free for who works by hand
SELECT read, written FROM elt.transform('pa');

-- a pause that is rolled back keeps nobody out
BEGIN;
SELECT elt.resume_pipeline('pa');
SELECT elt.pause_pipeline('pa');
ROLLBACK;
SELECT state FROM elt.pipelines WHERE name = 'pa';
SELECT elt.resume_pipeline('pa');

-- a batch that hangs
SELECT pg_advisory_lock(20261);
INSERT INTO pa_t VALUES (3);
SELECT pa_wait_for_batch();
SELECT elt.pause_pipeline('pa');
SELECT state FROM elt.pipelines WHERE name = 'pa';
SELECT id FROM pa_target WHERE id = 3;
SELECT pg_advisory_unlock(20261);
SELECT elt.resume_pipeline('pa');
SELECT elt.wait_for('pa');
TABLE pa_target;

SELECT elt.drop_pipeline('pa');
SELECT elt.drop_source('pa');
DROP TABLE pa_t, pa_target;
DROP FUNCTION pa_gate, pa_wait_for_batch;
