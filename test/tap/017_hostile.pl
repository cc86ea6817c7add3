# User code that hangs, ends its worker, or crashes the server: the change that
# does it ends in quarantine, all others arrive, and nothing of a session leaks
# to the next pipeline.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('hostile', 'elt.max_workers = 2', "elt.transform_time_limit = '1s'", 'deadlock_timeout = 200ms');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
CREATE TABLE calm (id int PRIMARY KEY, v text);
CREATE FUNCTION hostile(v text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
	CASE v
		WHEN 'sleeps' THEN PERFORM pg_sleep(1000);
		WHEN 'loops' THEN LOOP END LOOP;
		WHEN 'insists' THEN
			LOOP
				BEGIN
					PERFORM pg_sleep(1000);
				EXCEPTION WHEN query_canceled THEN
					NULL;
				END;
			END LOOP;
		WHEN 'grows' THEN PERFORM count(*) FROM generate_series(1, 1000000000) a, generate_series(1, 1000000000) b;
		WHEN 'terminates' THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(10);
		WHEN 'cancels' THEN
			IF pg_advisory_unlock(4711) THEN
				RETURN v;
			END IF;
			PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(10);
		WHEN 'slow' THEN PERFORM pg_sleep(0.01);
		ELSE
	END CASE;
	RETURN v;
END $$;
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'target', $$SELECT (record->>'id')::int AS id, hostile(record->>'v') AS v FROM changes$$,
	options => '{"breaker": false}');
SELECT elt.create_pipeline('calm', 's', 't', 'calm');
SELECT elt.wait_for_source('s', timeout => '180 s');
EOS

# Quarantined changes of pipeline p: id, class, SQLSTATE and step.
sub quarantined
{
	return $node->safe_psql('postgres',
		"SELECT key->>'id', error_class, sqlstate, step, message FROM elt.quarantine WHERE pipeline = 'p' ORDER BY change_id");
}

sub arrived
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', "$what: all is settled");
	is($node->safe_psql('postgres', "SELECT string_agg(t.id::text, ',') FROM t LEFT JOIN target USING (id) WHERE target.id IS NULL AND id NOT IN (SELECT (key->>'id')::int FROM elt.quarantine)"),
		'', "$what: the others are in the target");
	is($node->safe_psql('postgres', "SELECT elt.wait_for('calm', timeout => '180 s')"), 't', "$what: the other pipeline is not held up");
	poll_ok($node, 'SELECT count(*) = 0 FROM elt.attempts', "$what: no attempt is remembered");
}

# ---- time ----

my $id = 0;
foreach my $how (qw(sleeps loops grows))
{
	$id += 100;
	$node->safe_psql('postgres', "INSERT INTO t SELECT g, CASE WHEN g = $id + 40 THEN '$how' ELSE 'v' END FROM generate_series($id + 1, $id + 80) g");
	arrived($how);
}
is(quarantined(), join("\n", map { "${_}40|data|57014|transform|took longer than the time limit of 1000 ms" } 1 .. 3),
	'each change that takes too long is quarantined, and no other');

# a batch that is only big
$node->safe_psql('postgres', "INSERT INTO t SELECT g, 'slow' FROM generate_series(1001, 1500) g");
arrived('500 slow changes of 10 ms');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE sqlstate = '57014'"), '3', 'none of them is quarantined');

# a limit of the pipeline's own
$node->safe_psql('postgres', "SELECT elt.alter_pipeline('p', options => '{\"time_limit\": \"300 ms\"}')");
$node->safe_psql('postgres', "INSERT INTO t VALUES (1600, 'sleeps')");
arrived('a time limit of its own');
like(quarantined(), qr/1600\|data\|57014\|transform\|took longer than the time limit of 300 ms$/, 'the option goes before the setting');

# ---- a worker's end ----

my $offset = -s $node->logfile;
$node->safe_psql('postgres', "INSERT INTO t SELECT g, CASE WHEN g = 2040 THEN 'terminates' ELSE 'v' END FROM generate_series(2001, 2080) g");
arrived('terminates');
like(quarantined(), qr/\n2040\|data\|57P01\|transform\|this change ended its worker 2 times$/, 'a change that ended its worker twice is quarantined');
my $deaths = () = log_since($node, $offset) =~ /FATAL:  terminating background worker/g;
cmp_ok($deaths, '<=', 3, "$deaths workers ended");

# so is one that catches every cancel
$node->safe_psql('postgres', "INSERT INTO t SELECT g, CASE WHEN g = 2140 THEN 'insists' ELSE 'v' END FROM generate_series(2101, 2180) g");
arrived('insists');
like(quarantined(), qr/\n2140\|data\|57P01\|transform\|this change ended its worker 2 times$/, 'so is one that catches every cancel');

# a cancel means try again
$node->safe_psql('postgres', "INSERT INTO t VALUES (2200, 'cancels')");
poll_ok($node, "SELECT last_error LIKE '57014: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'a batch that is cancelled again and again says so');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE key->>'id' = '2200'"), '0', 'but is not quarantined');
$node->safe_psql('postgres', "SELECT elt.replace_transform('p', \$\$SELECT (record->>'id')::int AS id, nullif(record->>'v', 'cancels') AS v FROM changes\$\$)");
arrived('cancels');

# ---- the server's end ----

{
	$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION crash(v text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF v = 'crashes' THEN
		EXECUTE 'SELECT public.kill_me()';
	END IF;
	RETURN v;
END $$;
CREATE FUNCTION kill_me() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
	PERFORM pg_sleep(10);
END $$;
SELECT elt.replace_transform('p', $$SELECT (record->>'id')::int AS id, crash(record->>'v') AS v FROM changes$$);
INSERT INTO t SELECT g, CASE WHEN g = 3040 THEN 'crashes' ELSE 'v' END FROM generate_series(3001, 3080) g;
EOS
	ok(poll_perl(120, sub {
			my $out;
			$node->psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE key->>'id' = '3040'", stdout => \$out, stderr => \my $err, timeout => 20);
			return ($out || '') eq '1';
		}), 'a change that crashed the server again and again is quarantined') or diag($node->safe_psql('postgres', 'SELECT * FROM elt.attempts'));
	arrived('crashes');
	like(quarantined(), qr/\n3040\|data\|XX000\|transform\|this change ended its worker 2 times$/, 'with the reason');
	my $crashes = () = log_since($node, $offset) =~ /terminated by signal 9/g;
	cmp_ok($crashes, '<=', 7, "the server crashed $crashes times");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM calm'), $node->safe_psql('postgres', 'SELECT count(*) FROM t'),
	'the other pipeline has everything');
$node->stop;
done_testing();
