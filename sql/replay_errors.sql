-- What a replay refuses, and what it does where changes fail.

SET client_min_messages = warning;
CREATE ROLE re_owner;
CREATE ROLE re_other;
GRANT CREATE ON SCHEMA public TO re_owner;
GRANT EXECUTE ON PROCEDURE elt.replay(text, pg_lsn, pg_lsn, timestamptz, timestamptz, jsonb[], text, int, boolean, bigint, bigint),
	elt.resume_replay(bigint) TO re_owner, re_other;
GRANT EXECUTE ON FUNCTION elt.create_pipeline(text, text, text, regclass, text, text, text[], text, jsonb), elt.cancel_replay(bigint) TO re_owner, re_other;
CREATE TABLE re_t (id int PRIMARY KEY, v int);
SELECT elt.create_source('re', ARRAY['re_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('re');
GRANT USAGE ON SCHEMA elt_raw TO re_owner;
GRANT SELECT ON elt_raw.re TO re_owner;
SET ROLE re_owner;
CREATE TABLE re_up (id int PRIMARY KEY, v int);
SELECT elt.create_pipeline('re_up', 're', 're_t', 're_up') > 0 AS created;
RESET ROLE;
INSERT INTO re_t SELECT g, g FROM generate_series(1, 1000) g;
SELECT elt.wait_for('re_up');

-- arguments
CALL elt.replay(NULL);
CALL elt.replay('nix');
CALL elt.replay('re_up', rate => 0);
CALL elt.replay('re_up', from_change => 5, to_change => 4);
CALL elt.replay('re_up', from_lsn => '0/5', to_lsn => '0/4');
CALL elt.replay('re_up', from_time => '2002-01-01', to_time => '2001-01-01');
CALL elt.replay('re_up', filter => 'true) ; DROP TABLE re_t; SELECT (true');
CALL elt.replay('re_up', filter => 'true FROM re_t');
CALL elt.replay('re_up', filter => 'true, false');
CALL elt.replay('re_up', filter => '');
\set VERBOSITY terse
CALL elt.replay('re_up', filter => 'nix');
CALL elt.replay('re_up', filter => 'change_id');
\set VERBOSITY default
CALL elt.resume_replay(0);
CALL elt.resume_replay(NULL);
SELECT elt.cancel_replay(0);
-- a comment hides nothing
CALL elt.replay('re_up', filter => 'false -- and more');

-- where it may run
BEGIN;
CALL elt.replay('re_up');
ROLLBACK;
CREATE FUNCTION re_call() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL elt.replay('re_up'); END $$;
\set VERBOSITY terse
SELECT re_call();
\set VERBOSITY default
DO $$ BEGIN CALL elt.replay('re_up', to_change => 10); END $$;
SET default_transaction_read_only = on;
CALL elt.replay('re_up');
RESET default_transaction_read_only;
-- stricter isolation is for the caller
SET default_transaction_isolation = 'serializable';
CALL elt.replay('re_up', to_change => 10);
RESET default_transaction_isolation;

-- who may
SET ROLE re_other;
CALL elt.replay('re_up');
SELECT count(*) FROM elt.replay_runs;
SELECT count(*) FROM elt.progress_replay;
SET ROLE re_owner;
CALL elt.replay('re_up', filter => $$ current_user = 're_owner' $$);
SELECT state, selected, applied FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;
SELECT arguments, author = session_user AS author FROM elt.replay_runs ORDER BY run_id DESC LIMIT 1;
-- a superuser's call runs with the owner's rights
RESET ROLE;
\set VERBOSITY terse
CALL elt.replay('re_up', filter => 'EXISTS (SELECT FROM pg_authid)');
\set VERBOSITY default
CALL elt.replay('re_up', filter => $$ current_user = 're_owner' $$);
SELECT state, selected, applied FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;

-- a few changes that fail are quarantined, and left alone the next time
ALTER TABLE re_up ADD CHECK (id % 100 <> 0) NOT VALID;
CALL elt.replay('re_up');
SELECT state, selected, applied, quarantined, skipped FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;
SELECT count(*), min(key->>'id') FROM elt.quarantine WHERE pipeline = 're_up' AND status = 'open';
CALL elt.replay('re_up');
SELECT state, selected, applied, quarantined, skipped FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;
SELECT count(*) FROM elt.quarantine WHERE pipeline = 're_up';

-- many are not the records' fault: the batch is taken back
ALTER TABLE re_up ADD CONSTRAINT re_broken CHECK (id < 0) NOT VALID;
\set VERBOSITY terse
ALTER SEQUENCE elt.replay_runs_run_id_seq RESTART 1000;
CALL elt.replay('re_up');
SELECT state, last_error FROM elt.replay_runs WHERE run_id = 1000;
SELECT count(*) FROM elt.quarantine WHERE pipeline = 're_up';
CALL elt.replay('re_up', dry_run => true);
SELECT state, quarantined > 900 AS counted FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1;
SELECT count(*) FROM elt.quarantine WHERE pipeline = 're_up';
ALTER TABLE re_up DROP CONSTRAINT re_broken;

-- a systemic error ends the run; it can be resumed
REVOKE SELECT ON elt_raw.re FROM re_owner;
CALL elt.replay('re_up', filter => 'true', from_change => 10);
GRANT SELECT ON elt_raw.re TO re_owner;
CREATE FUNCTION re_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER fail BEFORE INSERT ON re_up FOR EACH ROW EXECUTE FUNCTION re_fail();
CALL elt.replay('re_up');
SELECT run_id, state, last_error FROM elt.replay_runs ORDER BY run_id DESC LIMIT 1 \gset
\echo :state :last_error
DROP TRIGGER fail ON re_up;
SET ROLE re_other;
CALL elt.resume_replay(:run_id);
SELECT elt.cancel_replay(:run_id);
RESET ROLE;
CALL elt.resume_replay(:run_id);
SELECT state, selected, applied, last_error FROM elt.replay_runs WHERE run_id = :run_id;
SELECT elt.cancel_replay(:run_id);
\set VERBOSITY default

SELECT elt.drop_pipeline('re_up');
SELECT elt.drop_source('re');
DROP TABLE re_t, re_up;
DROP FUNCTION re_call(), re_fail();
REVOKE ALL ON SCHEMA elt_raw, public FROM re_owner;
DROP OWNED BY re_owner, re_other;
DROP ROLE re_owner, re_other;
