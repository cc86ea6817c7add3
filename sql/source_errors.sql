-- Wrong calls of the functions of sources: each is an error that says what to do.

CREATE TABLE src_t (id int PRIMARY KEY, v text);
CREATE TABLE src_nokey (v text);
CREATE VIEW src_view AS SELECT 1 AS one;
CREATE UNLOGGED TABLE src_unlogged (id int PRIMARY KEY);
CREATE ROLE src_nobody;
CREATE ROLE src_replication REPLICATION;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO src_nobody, src_replication;

-- what went wrong, with its SQLSTATE
CREATE FUNCTION try(command text) RETURNS TABLE (sqlstate_ text, message text, detail text, hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	sqlstate_ := '00000';
	RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS sqlstate_ = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
							detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION try(text) TO PUBLIC;
\x on
\t on

-- names
SELECT * FROM try($$SELECT elt.create_source(NULL, ARRAY['src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('', ARRAY['src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('Shop', ARRAY['src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('1shop', ARRAY['src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('sh"op; DROP TABLE src_t', ARRAY['src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('a_name_of_forty_one_characters_is_too_long', ARRAY['src_t'])$$);

-- tables
SELECT * FROM try($$SELECT elt.create_source('src')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY[]::text[])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY[NULL])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['nowhere.nothing'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t, src_nokey'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_view'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_unlogged'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['pg_catalog.pg_class'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['elt.sources'])$$);

-- publication, snapshot, options
SELECT * FROM try($$SELECT elt.create_source('src', publication => 'no_such_publication')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], publication => 'both')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], snapshot => 'sometimes')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], options => '{"colour": 1}')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], options => '{"raw_partition_changes": 5}')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], options => '{"raw_partition_changes": "many"}')$$);
SELECT * FROM try($$SELECT elt.create_source('src', conninfo => 'host=x', options => '{"failover": "yes"}')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], options => '{"failover": true}')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], options => '[]')$$);

-- connection strings; what a wrong one holds is never shown
SELECT * FROM try($$SELECT elt.create_source('src', conninfo => 'host=x options=-csearch_path=evil')$$);
SELECT * FROM try($$SELECT elt.create_source('src', conninfo => 'host=x replication=true')$$);
SELECT * FROM try($$SELECT elt.create_source('src', conninfo => 'password=''secret nonsense')$$);
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'], conninfo => 'host=x')$$);

-- who may
SET ROLE src_nobody;
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'])$$);
SET ROLE src_replication;
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['public.src_t'])$$);
SELECT * FROM try($$SELECT elt.create_source('src', conninfo => 'host=x')$$);
RESET ROLE;

-- nothing was left behind
SELECT count(*) FROM elt.sources;
SELECT count(*) FROM pg_publication WHERE pubname LIKE 'elt\_src%';

-- an existing one
SELECT elt.create_source('src', ARRAY['src_t', 'public.src_t'], snapshot => 'none') > 0;
SELECT elt.wait_for_source('src');
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_nokey'])$$);
SELECT * FROM try($$SELECT elt.add_table('src', 'src_t')$$);
SELECT * FROM try($$SELECT elt.add_table('src', 'nothing')$$);
SELECT * FROM try($$SELECT elt.add_table('nosource', 'src_t')$$);
SELECT * FROM try($$SELECT elt.add_table('src', 'elt.quarantine')$$);
SELECT * FROM try($$SELECT elt.remove_table('src', 'src_nokey')$$);
SELECT * FROM try($$SELECT elt.pause_source('nosource')$$);
SELECT * FROM try($$SELECT elt.resume_source('nosource')$$);
SELECT * FROM try($$SELECT elt.drop_source('nosource')$$);
SELECT * FROM try($$SELECT elt.drop_source(NULL)$$);
SELECT * FROM try($$SELECT elt.wait_for_source('nosource')$$);
SELECT * FROM try($$SELECT elt.wait_for_source('src', timeout => NULL)$$);
SELECT * FROM try($$INSERT INTO src_t VALUES (1); SELECT elt.wait_for_source('src')$$);

SET ROLE src_replication;
SELECT * FROM try($$SELECT elt.add_table('src', 'src_nokey')$$);
SELECT * FROM try($$SELECT elt.remove_table('src', 'src_t')$$);
SELECT * FROM try($$SELECT elt.pause_source('src')$$);
SELECT * FROM try($$SELECT elt.resume_source('src')$$);
SELECT * FROM try($$SELECT elt.drop_source('src')$$);
SELECT * FROM try($$SELECT elt.wait_for_source('src')$$);
RESET ROLE;

-- events
SELECT * FROM try($$SELECT elt.emit('', '{}')$$);
SELECT * FROM try($$SELECT elt.emit(NULL, '{}')$$);
SELECT * FROM try($$SELECT elt.emit('topic', NULL)$$);
SELECT * FROM try(format('SELECT elt.emit(%L, %L)', repeat('t', 256), '{}'));

-- a wait that cannot be met ends in time
\x off
SELECT elt.wait_for_source('src', 'FFFFFFFF/0', '100 ms');

-- raw staging that was kept is not overwritten
SELECT elt.drop_source('src', keep_raw => true);
\x on
SELECT * FROM try($$SELECT elt.create_source('src', ARRAY['src_t'])$$);
\x off
\t off
DROP TABLE elt_raw.src;
DROP SEQUENCE elt_raw."src$change_id";

-- the slot goes with the source
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM elt.dropped_sources);
		PERFORM pg_sleep(0.1);
	END LOOP;
END $$;
SELECT count(*) FROM elt.dropped_sources;
SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'elt\_src\_%';

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA elt FROM src_nobody, src_replication;
DROP FUNCTION try(text);
DROP TABLE src_t, src_nokey, src_unlogged;
DROP VIEW src_view;
DROP ROLE src_nobody, src_replication;
