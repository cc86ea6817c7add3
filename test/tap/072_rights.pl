# Rights over time, and what leaks: objects that somebody planted before elt was
# installed, an owner whose rights change while the pipeline runs, row data in
# the server's log, in notifications and in alerts.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('rights', 'elt.max_workers = 2', 'log_min_messages = debug1', 'log_error_verbosity = verbose',
	'log_statement = none', "elt.transform_time_limit = '2s'");

# ---- planted before elt was installed ----

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE mallory LOGIN;
GRANT CREATE ON DATABASE postgres TO mallory;
GRANT CREATE ON SCHEMA public TO mallory;
SET ROLE mallory;
CREATE TABLE public.trapped (who text, what text);
GRANT INSERT ON public.trapped TO PUBLIC;
CREATE FUNCTION public.trap(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.trapped VALUES (current_user, what);
	ALTER ROLE mallory SUPERUSER;
	RETURN true;
EXCEPTION WHEN insufficient_privilege THEN
	RETURN true;
END $$;
CREATE FUNCTION public.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap(''='') AND $1 OPERATOR(pg_catalog.=) $2';
CREATE FUNCTION public.eq(bigint, int) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap(''='') AND $1 OPERATOR(pg_catalog.=) $2';
CREATE FUNCTION public.cat(varchar, varchar) RETURNS text LANGUAGE sql AS 'SELECT CASE WHEN public.trap(''||'') THEN pg_catalog.concat($1, $2) END';
CREATE OPERATOR public.= (FUNCTION = public.eq, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR public.= (FUNCTION = public.eq, LEFTARG = bigint, RIGHTARG = int);
CREATE OPERATOR public.|| (FUNCTION = public.cat, LEFTARG = varchar, RIGHTARG = varchar);
CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT CASE WHEN public.trap(''now'') THEN pg_catalog.now() END';
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT CASE WHEN public.trap(''format'') THEN pg_catalog.format($1, $2) END';
CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE sql AS 'SELECT CASE WHEN public.trap(''quote_ident'') THEN pg_catalog.quote_ident($1) END';
CREATE FUNCTION public.pg_has_role(name, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap(''pg_has_role'')';
CREATE FUNCTION public.coalesced(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT 1';
CREATE TABLE public.sources (who int);
CREATE TABLE public.pg_class (oid oid, relname name);
EOS
$node->safe_psql('postgres', "SET ROLE mallory; CREATE SCHEMA elt");
my ($status, undef, $error) = $node->psql('postgres', 'CREATE EXTENSION elt');
isnt($status, 0, 'a schema that was made beforehand is not taken over');
like($error, qr/schema "elt" already exists/, 'and that is said');
$node->safe_psql('postgres', 'DROP SCHEMA elt');

# the path of all that follows begins with what was planted
$node->safe_psql('postgres', "ALTER DATABASE postgres SET search_path = public, pg_catalog");
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE dw.t (id int PRIMARY KEY, v text);
CREATE TABLE dw.target (id int PRIMARY KEY, v text);
SELECT elt.create_source('s', ARRAY['dw.t']) OPERATOR(pg_catalog.>) 0;
SELECT elt.create_pipeline('p', 's', 'dw.t', 'dw.target') OPERATOR(pg_catalog.>) 0;
INSERT INTO dw.t VALUES (1, 'one'), (2, 'two');
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for('p')"), 't', 'elt works under a path that begins with what somebody planted');
$node->safe_psql('postgres', <<'EOS');
SELECT pg_catalog.count(*) FROM elt.health();
SELECT pg_catalog.count(*) FROM elt.stat_sources;
SELECT pg_catalog.count(*) FROM elt.stat_pipelines;
SELECT pg_catalog.count(*) FROM elt.check_source('s');
SELECT elt.pause_pipeline('p'), elt.resume_pipeline('p');
SELECT elt.alter_pipeline('p', '{"time_limit": 5000}');
SELECT elt.purge_raw('s', 'dw.t', '{"id": 2}');
SELECT elt.add_table('s', 'public.sources'), elt.remove_table('s', 'public.sources');
CALL elt.replay('p');
EOS
is($node->safe_psql('postgres', "SELECT pg_catalog.string_agg(DISTINCT who, ' ') FROM public.trapped"), '', 'none of that is run');
is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) 'mallory'"), 'f', 'by nobody');
$node->safe_psql('postgres', <<'EOS');
ALTER DATABASE postgres RESET search_path;
DROP OWNED BY mallory;
DROP ROLE mallory;
EOS

# ---- an owner whose rights change ----

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE joe SUPERUSER;
CREATE ROLE ann;
CREATE SCHEMA joe AUTHORIZATION ann;
CREATE TABLE joe.target (id int PRIMARY KEY, v text);
CREATE TABLE joe.rates (factor int);
INSERT INTO joe.rates VALUES (1);
CREATE FUNCTION joe.clean(v text) RETURNS text LANGUAGE sql STABLE AS 'SELECT upper(v)';
REVOKE EXECUTE ON FUNCTION joe.clean FROM PUBLIC;
SET ROLE joe;
SELECT elt.create_pipeline('joe', 's', 'dw.t', 'joe.target',
	$$SELECT (record->>'id')::int * factor AS id, joe.clean(record->>'v') AS v FROM changes, joe.rates$$);
SELECT elt.wait_for('joe');
EOS
my $id = 10;
foreach my $case (
	[ 'no superuser any more', 'ALTER ROLE joe NOSUPERUSER', '42501', 'role "joe" may not read the changes of source "s"',
		'GRANT SELECT ON elt_raw.s TO joe; GRANT ALL ON ALL TABLES IN SCHEMA joe TO joe; GRANT USAGE ON SCHEMA joe TO joe; GRANT EXECUTE ON FUNCTION joe.clean TO joe' ],
	[ 'no right on a function', 'REVOKE EXECUTE ON FUNCTION joe.clean FROM joe', '42501', 'permission denied for function clean', 'GRANT EXECUTE ON FUNCTION joe.clean TO joe' ],
	[ 'no right on a table', 'REVOKE SELECT ON joe.rates FROM joe', '42501', 'permission denied for table rates', 'GRANT SELECT ON joe.rates TO joe' ],
	[ 'no right on the schema', 'REVOKE USAGE ON SCHEMA joe FROM joe', '42501', 'permission denied for schema joe', 'GRANT USAGE ON SCHEMA joe TO joe' ],
	[ 'a function that is gone', 'DROP FUNCTION joe.clean', '42883', 'function joe.clean\(text\) does not exist',
		"CREATE FUNCTION joe.clean(v text) RETURNS text LANGUAGE sql STABLE AS 'SELECT lower(v)'" ],
	[ 'a function with another signature', 'ALTER FUNCTION joe.clean RENAME TO cleaned', '42883', 'function joe.clean\(text\) does not exist',
		"CREATE FUNCTION joe.clean(v text, n int DEFAULT 1) RETURNS varchar LANGUAGE sql STABLE AS 'SELECT lower(v)'" ],
	[ 'a function that is volatile now', 'ALTER FUNCTION joe.clean VOLATILE', undef, undef, 'ALTER FUNCTION joe.clean STABLE' ])
{
	my ($what, $break, $sqlstate, $reason, $mend) = @$case;

	$id++;
	$node->safe_psql('postgres', $break);
	$node->safe_psql('postgres', "INSERT INTO dw.t VALUES ($id, 'Row')");
	poll_ok($node, "SELECT state = 'blocked' AND last_error ~ '^$sqlstate: .*$reason' FROM elt.stat_pipelines WHERE pipeline = 'joe'", "$what: blocked, with the reason")
	  if defined $sqlstate;
	$node->safe_psql('postgres', $mend);
	is($node->safe_psql('postgres', "SELECT elt.wait_for('joe', timeout => '60 s')"), 't', "$what: it goes on by itself");
}
$node->safe_psql('postgres', "ALTER ROLE joe RENAME TO joseph; INSERT INTO dw.t VALUES (99, 'Row')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('joe', timeout => '60 s')"), 't', 'an owner with another name is the same');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine"), '0', 'nothing was quarantined');
is($node->safe_psql('postgres', "SELECT string_agg(id || v, ' ' ORDER BY id) FROM joe.target WHERE id > 10"),
	'11ROW 12ROW 13ROW 14ROW 15row 16row 17row 99row', 'and nothing is missing');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('joe')");

# ---- row data ----

my $offset = -s $node->logfile;
my ($say, $told) = ("LISTEN elt_alerts;\n", '');
my $listener = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres') ], '<', \$say, '>', \$told, '2>&1');
$listener->pump while length $say;
$node->safe_psql('postgres', <<'EOS');
SELECT elt.drop_pipeline('p');
CREATE TABLE dw.leaky (id int PRIMARY KEY, v text);
CREATE FUNCTION dw.leak() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'this is the trigger''s own';
	CASE (NEW.id > 100)::int * (NEW.id % 10)
		WHEN 1 THEN RAISE EXCEPTION 'no %', NEW.v USING DETAIL = NEW.v, HINT = NEW.v;
		WHEN 2 THEN RAISE EXCEPTION 'no %', NEW.v USING ERRCODE = '23503', DETAIL = NEW.v;
		WHEN 3 THEN RAISE EXCEPTION 'no %', NEW.v USING ERRCODE = '23514', DETAIL = NEW.v, CONSTRAINT = 'c';
		WHEN 4 THEN RAISE EXCEPTION 'no %', NEW.v USING ERRCODE = '40001', DETAIL = NEW.v;
		WHEN 5 THEN RAISE EXCEPTION 'no %', NEW.v USING ERRCODE = 'XX000', DETAIL = NEW.v, HINT = NEW.v;
		WHEN 6 THEN PERFORM NEW.v::int;
		WHEN 7 THEN PERFORM pg_sleep(10);
		ELSE NULL;
	END CASE;
	RETURN NEW;
END $$;
CREATE TRIGGER leak BEFORE INSERT ON dw.leaky FOR EACH ROW EXECUTE FUNCTION dw.leak();
SELECT elt.create_pipeline('leaky', 's', 'dw.t', 'dw.leaky');
SELECT elt.create_alert_rule('open', 'SELECT count(*)::float8 AS value FROM elt.quarantine', 0);
EOS
# (4 alone: a transient error holds the whole batch)
$node->safe_psql('postgres', "INSERT INTO dw.t SELECT 100 + g, 'Geheimnis' || g FROM generate_series(1, 30) g WHERE g % 10 <> 4");
poll_ok($node, "SELECT count(*) = 18 FROM elt.quarantine", 'records of all kinds fail');
poll_ok($node, "SELECT count(DISTINCT sqlstate) = 6 FROM elt.quarantine", 'in six ways');
is($node->safe_psql('postgres', "SELECT bool_and(record->>'v' ~ 'Geheimnis') FROM elt.quarantine"), 't', 'quarantine has them as they came');
$node->safe_psql('postgres', "INSERT INTO dw.t VALUES (204, 'Geheimnis')");
poll_ok($node, "SELECT last_error LIKE '40001: %' FROM elt.stat_pipelines WHERE pipeline = 'leaky'", 'a transient error shows');
is($node->safe_psql('postgres', "SELECT last_error FROM elt.stat_pipelines WHERE pipeline = 'leaky'"), '40001: no Geheimnis', 'its owner has the message');
is($node->safe_psql('postgres', "CREATE ROLE watcher IN ROLE pg_monitor; SET ROLE watcher; SELECT last_error FROM elt.stat_pipelines WHERE pipeline = 'leaky'"),
	'40001', 'pg_monitor has the SQLSTATE');
$node->safe_psql('postgres', "ALTER TABLE dw.leaky DISABLE TRIGGER leak; ALTER TABLE dw.leaky ADD CONSTRAINT secret CHECK (v !~ 'Geheimnis') NOT VALID");
is($node->safe_psql('postgres', "SELECT elt.wait_for('leaky', timeout => '60 s')"), 't', 'it comes to its end');
$node->safe_psql('postgres', "SELECT elt.replay_quarantine('leaky')");
$node->safe_psql('postgres', "ALTER TABLE dw.leaky DROP CONSTRAINT secret; ALTER TABLE dw.leaky ALTER v TYPE int USING 1; INSERT INTO dw.t VALUES (208, 'Geheimnis')");
poll_ok($node, "SELECT count(*) = 1 FROM elt.quarantine WHERE key->>'id' = '208'", 'and another kind of failure');
poll_ok($node, "SELECT bool_or(notifications > 0) FROM elt.alerts WHERE rule = 'open'", 'an alert is told');
$say = "SELECT 'the end';\n\\q\n";
$listener->finish;
like($told, qr/Asynchronous notification "elt_alerts".*quarantine_ids/, 'somebody listens');
unlike($told, qr/Geheimnis/, 'no notification has row data');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.alerts a WHERE a::text ~ 'Geheimnis'"), '0', 'nor has an alert');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'Geheimnis' AND pid <> pg_backend_pid() AND backend_type LIKE 'elt %'"),
	'0', 'nor what workers show of themselves');
my $log = log_since($node, $offset);
like($log, qr/this is the trigger's own/, 'the log has what user code logs itself');
unlike($log, qr/Geheimnis/, 'and no row data');
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
