-- Alert rules and the states of alerts, with a clock of our own: the
-- supervisor is told to leave them alone.
\set SHOW_CONTEXT never
ALTER SYSTEM SET elt.alerts = off;
SELECT pg_reload_conf();
\c -
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
SHOW elt.alerts;
-- a supervisor that starts now knows it
DO $$
DECLARE
	old int := pid FROM elt.stat_workers WHERE kind = 'supervisor' AND datname = current_database();
BEGIN
	PERFORM pg_terminate_backend(old);
	WHILE NOT EXISTS (SELECT FROM elt.stat_workers WHERE kind = 'supervisor' AND datname = current_database()
					  AND pid <> old AND state = 'running')
	LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;

-- what is shipped
SELECT rule, severity, threshold, for_duration, keep_firing_for, evaluation_interval, enabled, shipped FROM elt.alert_rules ORDER BY rule;

-- states: a table says what is measured
CREATE ROLE alert_joe;
GRANT EXECUTE ON FUNCTION elt.create_alert_rule, elt.alter_alert_rule, elt.drop_alert_rule, elt.silence_alert,
	elt.expire_silence, elt.ack_alert TO alert_joe;
CREATE SCHEMA alert_test;
GRANT USAGE, CREATE ON SCHEMA alert_test TO alert_joe;
CREATE TABLE alert_test.measured (place text, value numeric, PRIMARY KEY (place));
GRANT SELECT ON alert_test.measured TO alert_joe;
SET ROLE alert_joe;
SET search_path = alert_test;
SELECT elt.create_alert_rule('late', 'SELECT place, value FROM measured', 5, for_duration => '1 min',
	keep_firing_for => '2 min', repeat_interval => '1 h', group_interval => '30 s', hint => 'hurry');
RESET search_path;
RESET ROLE;
SELECT rule, query, threshold, owner, search_path, shipped FROM elt.alert_rules WHERE NOT shipped;

CREATE FUNCTION alert_test.step(at text) RETURNS TABLE (reason text, state text, count int, firing int, value float8, places text)
	LANGUAGE sql SET search_path = pg_catalog AS $$
	SELECT p->>'reason', p->>'state', (p->>'count')::int, (p->>'firing')::int, (p->>'value')::float8,
		   (SELECT string_agg(coalesce(i->'labels'->>'place', '?'), ' ') FROM jsonb_array_elements(p->'alerts') i)
	FROM jsonb_array_elements(elt.evaluate_alerts(('2030-01-01 ' || at)::timestamptz)) p WHERE p->>'rule' = 'late' $$;
CREATE VIEW alert_test.seen AS
	SELECT labels->>'place' AS place, state, value, to_char(started_at, 'HH24:MI:SS') AS started, to_char(fired_at, 'HH24:MI:SS') AS fired,
		   to_char(resolved_at, 'HH24:MI:SS') AS resolved, silenced, told, notifications AS n
	FROM elt.alerts WHERE rule = 'late' ORDER BY alert_id;

-- pending for a minute; below the threshold, and equal to it, is nothing
INSERT INTO alert_test.measured VALUES ('a', 7), ('b', 5), ('c', 2);
SELECT * FROM alert_test.step('10:00:00');
SELECT * FROM alert_test.step('10:00:59');
SELECT * FROM alert_test.seen;
-- what is gone before its time leaves nothing
UPDATE alert_test.measured SET value = 1 WHERE place = 'a';
SELECT * FROM alert_test.step('10:01:00');
SELECT * FROM alert_test.seen;
UPDATE alert_test.measured SET value = 8;
SELECT * FROM alert_test.step('10:02:00');
UPDATE alert_test.measured SET value = 1 WHERE place = 'c';
-- firing: one notification for both
SELECT * FROM alert_test.step('10:03:00');
SELECT * FROM alert_test.seen;
SELECT * FROM alert_test.step('10:03:01');
-- what joins waits for group_interval
UPDATE alert_test.measured SET value = 9 WHERE place = 'c';
SELECT * FROM alert_test.step('10:03:02');
UPDATE elt.alert_rules SET for_duration = '0' WHERE rule = 'late';
SELECT * FROM alert_test.step('10:03:10');
SELECT * FROM alert_test.step('10:03:30');
-- values follow, every 10 s
UPDATE alert_test.measured SET value = 10 WHERE place = 'b';
SELECT * FROM alert_test.step('10:05:00');
-- repeated as a group, an hour after the first
SELECT * FROM alert_test.step('11:02:59');
SELECT * FROM alert_test.step('11:03:00');
-- acknowledged: not repeated
SET ROLE alert_joe;
SELECT elt.ack_alert(alert_id, 'on it') FROM elt.alerts WHERE labels->>'place' = 'a';
SELECT labels, acked_by, ack_note FROM elt.alerts WHERE acked_at IS NOT NULL;
RESET ROLE;
SELECT * FROM alert_test.step('12:03:00');
-- silenced: recorded, not told
INSERT INTO elt.silences (rule, labels, author, starts_at, expires_at)
VALUES ('late', '{"place": "b"}', 'me', '2030-01-01 12:00Z', '2030-01-01 13:10Z');
SELECT * FROM alert_test.step('13:03:00');
SELECT * FROM alert_test.seen;
-- and told once the silence is over
SELECT * FROM alert_test.step('13:10:00');
-- gone: firing for keep_firing_for, coming back ends that
DELETE FROM alert_test.measured WHERE place = 'c';
SELECT * FROM alert_test.step('13:20:00');
INSERT INTO alert_test.measured VALUES ('c', 11);
SELECT * FROM alert_test.step('13:21:00');
DELETE FROM alert_test.measured WHERE place = 'c';
SELECT * FROM alert_test.step('13:22:00');
SELECT * FROM alert_test.step('13:23:59');
SELECT * FROM alert_test.step('13:24:00');
-- a new one of the same labels is another alert
INSERT INTO alert_test.measured VALUES ('c', 12);
SELECT * FROM alert_test.step('13:24:10');
SELECT * FROM alert_test.step('13:24:30');
SELECT * FROM alert_test.seen;
-- an alert that nobody was told of ends unheard; of one that was told the end is told, silenced or not
INSERT INTO elt.silences (rule, labels, author, starts_at, expires_at)
VALUES ('late', '{}', 'me', '2030-01-01 13:30Z', '2030-01-01 14:30Z');
INSERT INTO alert_test.measured VALUES ('d', 13);
SELECT * FROM alert_test.step('13:30:00');
DELETE FROM alert_test.measured WHERE place IN ('c', 'd');
SELECT * FROM alert_test.step('13:31:00');
SELECT * FROM alert_test.step('13:33:00');
-- a rule that is disabled has no alerts
SET ROLE alert_joe;
SELECT elt.alter_alert_rule('late', enabled => false);
RESET ROLE;
SELECT * FROM alert_test.step('13:34:00');
SELECT * FROM alert_test.seen;
-- resolved ones are kept for 30 days
SELECT jsonb_array_length(elt.evaluate_alerts('2030-02-01 00:00Z'));
SELECT count(*) FROM elt.alerts WHERE rule = 'late';
-- also while something fires
SELECT elt.create_alert_rule('always', 'SELECT 1 AS value');
INSERT INTO elt.alerts (rule, labels, state, severity, started_at, resolved_at, updated_at)
VALUES ('late', '{}', 'resolved', 'info', '2029-12-01', '2029-12-01', '2029-12-01');
SELECT elt.evaluate_alerts('2030-02-01 00:10Z') IS NOT NULL AS evaluated;
SELECT rule, state FROM elt.alerts WHERE rule IN ('always', 'late');
SELECT elt.drop_alert_rule('always');
SELECT elt.evaluate_alerts('2030-02-01 00:20Z') IS NOT NULL AS evaluated;

-- a row's own threshold, NULL values, numbers as labels, labels twice
SELECT elt.create_alert_rule('own', $$SELECT * FROM (VALUES (1, 5, 4), (2, 3, 4), (3, NULL, 0), (4, 9, NULL), (1, 6, 4)) AS v (n, value, threshold) -- end$$);
SELECT p->'count', p->'alerts'->0->'labels', p->'alerts'->0->'value', p->'alerts'->1->'labels', p->'alerts'->1->'threshold'
FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 01:00Z')) p WHERE p->>'rule' = 'own';
SELECT elt.drop_alert_rule('own');

-- a query that fails stops nobody, and says so
SELECT elt.create_alert_rule('failing', 'SELECT 1 / count(*) AS value FROM alert_test.measured WHERE place = ''z''');
SELECT elt.create_alert_rule('fine', 'SELECT 1 AS value');
SELECT p->>'rule', p->>'state' FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 02:00Z')) p ORDER BY 1;
SELECT rule, last_error, last_error_at IS NOT NULL AS at FROM elt.alert_rules WHERE rule IN ('failing', 'fine') ORDER BY rule;
SELECT p->>'rule', p->>'state' FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 02:01Z')) p ORDER BY 1;
SELECT rule, labels FROM elt.alerts WHERE rule = 'rule_error' AND state = 'firing';
INSERT INTO alert_test.measured VALUES ('z', 1);
SELECT elt.alter_alert_rule('failing', hint => 'none');
SELECT p->>'rule', p->>'state' FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 02:02Z')) p ORDER BY 1;
SELECT p->>'rule', p->>'state' FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 02:02:10Z')) p ORDER BY 1;
SELECT rule, last_error FROM elt.alert_rules WHERE rule = 'failing';
-- too many rows; a row that is no sample
SELECT elt.alter_alert_rule('failing', 'SELECT g, 1 AS value FROM generate_series(1, 1001) g');
SELECT elt.alter_alert_rule('fine', 'SELECT 1 AS value, ARRAY[''x''] AS quarantine_ids');
SELECT elt.evaluate_alerts('2030-02-01 03:00Z') IS NOT NULL AS evaluated;
SELECT rule, last_error FROM elt.alert_rules WHERE last_error IS NOT NULL ORDER BY rule;
SELECT elt.drop_alert_rule('failing'), elt.drop_alert_rule('fine');

-- the query runs as its owner, and cannot write
CREATE TABLE alert_test.secret (v int);
INSERT INTO alert_test.secret VALUES (1);
SET ROLE alert_joe;
SELECT elt.create_alert_rule('spy', 'SELECT v AS value FROM alert_test.secret');
CREATE FUNCTION alert_test.who() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		SET ROLE none;
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	RETURN current_user;
END $$;
CREATE TABLE alert_test.joes (v int);
CREATE FUNCTION alert_test.write() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO alert_test.joes VALUES (1); RETURN 1; END $$;
CREATE FUNCTION alert_test.read_write() RETURNS int LANGUAGE plpgsql AS $$ BEGIN SET transaction_read_only = off; RETURN 1; END $$;
SELECT elt.create_alert_rule('who', 'SELECT alert_test.who(), 1 AS value');
SELECT elt.create_alert_rule('writes', 'SELECT alert_test.write() AS value');
SELECT elt.create_alert_rule('writes_too', 'SELECT alert_test.read_write() AS value');
RESET ROLE;
SELECT p->'alerts'->0->'labels' FROM jsonb_array_elements(elt.evaluate_alerts('2030-02-01 04:00Z')) p WHERE p->>'rule' = 'who';
SELECT rule, last_error FROM elt.alert_rules WHERE last_error IS NOT NULL ORDER BY rule;
SELECT count(*) FROM alert_test.joes;
SELECT elt.drop_alert_rule('who'), elt.drop_alert_rule('writes'), elt.drop_alert_rule('writes_too');

-- errors
SELECT elt.create_alert_rule('Late', 'SELECT 1 AS value');
SELECT elt.create_alert_rule('late', 'SELECT 1 AS value');
SELECT elt.create_alert_rule('freshness', 'SELECT 1 AS value');
SELECT elt.create_alert_rule(NULL, 'SELECT 1 AS value');
SELECT elt.create_alert_rule('x', NULL);
SELECT elt.create_alert_rule('x', 'SELECT 1 AS val');
SELECT elt.create_alert_rule('x', 'SELECT ''1'' AS value');
SELECT elt.create_alert_rule('x', 'DELETE FROM alert_test.secret RETURNING v AS value');
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value; SELECT 2 AS value');
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value) AS rule; DROP TABLE alert_test.secret; --');
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value', severity => 'bad');
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value', for_duration => '-1 s');
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value', evaluation_interval => '10 ms');
-- added to a time it would be out of range, for the rules of all
SELECT elt.create_alert_rule('x', 'SELECT 1 AS value', repeat_interval => '293000 years');
SELECT elt.alter_alert_rule('none', enabled => false);
SELECT elt.alter_alert_rule('freshness', 'SELECT 1 AS value');
SELECT elt.drop_alert_rule('none');
SELECT elt.drop_alert_rule('freshness');
SELECT elt.silence_alert('none');
SELECT elt.silence_alert(labels => '[]');
SELECT elt.silence_alert(labels => '{"pipeline": 1}');
SELECT elt.silence_alert(duration => '0');
SELECT elt.expire_silence(0);
SELECT elt.ack_alert(0);
SELECT elt.ack_alert(alert_id) FROM elt.alerts WHERE state = 'resolved' AND rule = 'own' LIMIT 1;

-- who may do what
SET ROLE alert_joe;
SELECT elt.alter_alert_rule('freshness', threshold => 1);
SELECT elt.silence_alert();
SELECT elt.silence_alert('late', '{"place": "a"}', '1 h', 'joe''s own') > 0 AS silenced;
SELECT rule, labels, author, comment, expires_at - starts_at AS lasts FROM elt.silences WHERE author = current_user;
SELECT elt.expire_silence(silence_id) FROM elt.silences WHERE author = current_user;
SELECT expires_at <= clock_timestamp() AS over FROM elt.silences WHERE author = current_user;
SELECT rule FROM elt.alert_rules WHERE NOT shipped ORDER BY rule;
UPDATE elt.alert_rules SET threshold = 1;
SELECT elt.evaluate_alerts();
SELECT elt.put_ack(10, 1, 'x');
RESET ROLE;
GRANT EXECUTE ON FUNCTION elt.evaluate_alerts TO alert_joe;
SET ROLE alert_joe;
SELECT elt.evaluate_alerts();
RESET ROLE;
CREATE ROLE alert_nobody;
SET ROLE alert_nobody;
SELECT count(*) FROM elt.alerts;
SELECT count(*) FROM elt.silences;
SELECT count(*) FROM elt.alert_rules WHERE NOT shipped;
SELECT elt.ack_alert(1);
RESET ROLE;
GRANT pg_monitor TO alert_joe;
SET ROLE alert_joe;
SELECT elt.silence_alert() > 0 AS silenced;
RESET ROLE;

-- tuning a shipped rule; a dump carries it and the user's
SELECT elt.alter_alert_rule('freshness', threshold => 60, severity => 'critical');
UPDATE elt.alert_rules SET last_error = NULL WHERE rule = 'slot_lost';
SELECT rule, threshold, severity, tuned FROM elt.alert_rules WHERE tuned OR NOT shipped ORDER BY rule;
-- as a restore does
BEGIN;
CREATE TEMP TABLE dumped AS SELECT * FROM elt.alert_rules WHERE tuned;
UPDATE elt.alert_rules SET threshold = 300, tuned = false WHERE rule = 'freshness';
ALTER TABLE dumped DROP COLUMN shipped;
INSERT INTO elt.alert_rules (rule, description, query, threshold, for_duration, severity, hint, tuned)
SELECT rule, description, query, threshold, for_duration, severity, hint, tuned FROM dumped;
SELECT rule, threshold, severity, tuned FROM elt.alert_rules WHERE rule = 'freshness';
ROLLBACK;

-- the payload fits, whatever the names are
INSERT INTO elt.alerts (rule, labels, state, severity, value, hint, detail, started_at, fired_at, updated_at, fingerprint)
SELECT 'late', jsonb_build_object('pipeline', repeat(c, 700), 'source', repeat(c, 3), 'n', g::text), 'firing', 'info', 1,
	   repeat(c, 5000), repeat(c, 5000), now(), now(), now(), repeat(c, 5000)
FROM unnest(ARRAY['x', '"', U&'\00e4', U&'\20ac', U&'\+01F600', E'\x01']) c, generate_series(1, 10) g;
SELECT left(pipeline, 1) AS name, octet_length(p::text) BETWEEN 500 AND 7999 AS fits, p->'count' AS count, jsonb_array_length(p->'alerts') AS shown
FROM (SELECT a.pipeline, elt.alert_payload(1, 'new', array_agg(a.alert_id), now()) AS p
	  FROM elt.alerts a WHERE a.state = 'firing' AND a.rule = 'late' GROUP BY a.pipeline) x ORDER BY 1;

SELECT elt.alter_alert_rule('freshness', threshold => 300, severity => 'warning');
SELECT elt.drop_alert_rule('late');
TRUNCATE elt.alerts, elt.silences;
UPDATE elt.alert_rules SET tuned = false;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA elt FROM alert_joe;
SET client_min_messages = warning;
DROP SCHEMA alert_test CASCADE;
DROP ROLE alert_joe, alert_nobody;
ALTER SYSTEM RESET elt.alerts;
SELECT pg_reload_conf();
