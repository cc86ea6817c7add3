# Resources that run out, and transactions that cannot be serialized: no good
# record is quarantined, the pipeline says what is wrong and goes on by itself
# when it is over.  A record that asks for more memory than there can be is that
# record's fault.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('systemic', 'elt.max_workers = 1', 'max_locks_per_transaction = 10', 'max_connections = 20', 'autovacuum = off');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE switch (how text);
INSERT INTO switch VALUES ('');
CREATE FUNCTION made(v text, how text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF how = 'memory' OR v = 'much' THEN
		RETURN md5(array_agg(repeat('x', 1000) || g)::text) FROM generate_series(1, 300000) g;
	ELSIF v = 'too much' THEN
		RETURN md5(repeat(repeat('x', 1000000), 2000));
	ELSIF v = 'far too much' THEN
		RETURN md5(string_agg(repeat('x', 100000000), '')) FROM generate_series(1, 12) g;
	ELSIF how = 'serialize' THEN
		RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
	END IF;
	RETURN v;
END $$;
CREATE TABLE dw.target (id int PRIMARY KEY, v text);
CREATE TABLE dw.parted (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'dw.target',
	$$SELECT (record->>'id')::int AS id, made(record->>'v', how) AS v FROM changes, switch$$);
DO $$
BEGIN
	FOR i IN 0..63 LOOP
		EXECUTE format('CREATE TABLE dw.parted_%s PARTITION OF dw.parted FOR VALUES WITH (MODULUS 64, REMAINDER %1$s)', i);
	END LOOP;
END $$;
SELECT elt.create_pipeline('parted', 's', 't', 'dw.parted');
SELECT elt.wait_for('p'), elt.wait_for('parted');
EOS

my $id = 0;

sub insert_rows
{
	my ($count) = @_;
	$node->safe_psql('postgres', "INSERT INTO t SELECT g, 'v' || g FROM generate_series($id + 1, $id + $count) g");
	$id += $count;
}

sub all_is_well
{
	my ($what, $bad) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $pipeline (qw(p parted))
	{
		is($node->safe_psql('postgres', "SELECT elt.wait_for('$pipeline', timeout => '90 s')"), 't', "$what: $pipeline is settled");
		is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines WHERE pipeline = '$pipeline'"), 'running', "$what: $pipeline runs");
	}
	is($node->safe_psql('postgres', "SELECT count(*) FROM t WHERE v LIKE 'v%' AND NOT EXISTS (SELECT FROM dw.target x WHERE x.id = t.id AND x.v = t.v)"),
		'0', "$what: no good record is missing");
	same_as_target($node, $node, 't', 'dw.parted');
	is($node->safe_psql('postgres', "SELECT string_agg(key->>'id' || ' ' || sqlstate, ', ' ORDER BY change_id) FROM elt.quarantine"), $bad // '', "$what: quarantine");
}

# ---- memory ----

# The worker may not get more than it has now and a little.
sub limit_memory
{
	my ($mb) = @_;
	my ($pid) = workers($node, 'transform');
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+)/m;
	my $limit = $mb ? ($kb + $mb * 1024) * 1024 : 'unlimited';
	system_or_bail('prlimit', '--pid', $pid, "--as=$limit:");
	return $pid;
}

$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(1, 1)');
poll_ok($node, "SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'transform' AND pid IS NOT NULL", 'a worker is there');
insert_rows(10);
all_is_well('before');
my $pid = limit_memory(150);
$node->safe_psql('postgres', "UPDATE switch SET how = 'memory'");
insert_rows(100);
poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '53200: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'memory that runs out blocks the pipeline');
is($node->safe_psql('postgres', "SELECT elt.wait_for('parted', timeout => '60 s')"), 't', 'the other one goes on');
poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'pipeline_blocked' AND pipeline = 'p' AND state = 'firing'", 'an alert says so');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine"), '0', 'nothing is quarantined');
$node->safe_psql('postgres', "UPDATE switch SET how = ''");
all_is_well('out of memory');
is(join(' ', workers($node, 'transform')), $pid, 'by the same worker');
# one record that needs more than the worker may have holds the pipeline as long as that is so, since the record is good
$node->safe_psql('postgres', "INSERT INTO t VALUES (1001, 'much')");
poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '53200: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'a record that needs more memory than there is blocks');
limit_memory(0);
all_is_well('memory again');
# what no server can make is the record's fault
$node->safe_psql('postgres', "INSERT INTO t VALUES (1002, 'too much'), (1003, 'vx'), (1004, 'far too much')");
insert_rows(10);
all_is_well('more than there can be', '1002 54000, 1004 54000');
$node->safe_psql('postgres', "SELECT elt.discard_quarantine(array_agg(quarantine_id), 'too large') FROM elt.quarantine; SELECT elt.set_worker_bounds(NULL, NULL)");

# ---- locks ----

my $hoarder = $node->background_psql('postgres', on_error_stop => 0);
$hoarder->query('SELECT count(pg_advisory_lock(g)) FROM generate_series(1, 100000) g');
like($hoarder->{stderr}, qr/out of shared memory/, 'somebody has all locks that there are');
# (but for some, or nobody could do anything)
$hoarder->query('SELECT count(pg_advisory_unlock(g)) FROM generate_series(1, 80) g');
insert_rows(200);
my $blocked = poll_perl(60, sub {
	my (undef, $out) = $node->psql('postgres', "SELECT state || ' ' || left(last_error, 5) FROM elt.pipelines WHERE name = 'parted'");
	return ($out // '') =~ /^blocked 53200/;
});
ok($blocked, 'locks that run out block the pipeline that needs many');
$hoarder->{stdin} = '';
$hoarder->quit;
all_is_well('out of locks', '1002 54000, 1004 54000');

# ---- transactions that cannot be serialized ----

$node->safe_psql('postgres', "UPDATE switch SET how = 'serialize'");
insert_rows(50);
poll_ok($node, "SELECT state = 'running' AND last_error LIKE '40001: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'what cannot be serialized is tried again, and says so');
$node->safe_psql('postgres', "UPDATE switch SET how = ''");
all_is_well('serialized', '1002 54000, 1004 54000');
# beside serializable sessions that write to the same rows
my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, <<'EOS');
\set id random(1, 20)
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM dw.target WHERE id < 30;
UPDATE dw.target SET v = v WHERE id = :id;
COMMIT;
UPDATE t SET v = v || '.' WHERE id = :id;
EOS
$node->safe_psql('postgres', "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
my $load = pgbench_start($node, '-f', $script, '-T', '5', '--max-tries', '0');
pgbench_finish($load);
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET default_transaction_isolation');
all_is_well('serializable sessions', '1002 54000, 1004 54000');
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
