
# Kills a worker at each step of its work.  Locks that the test holds stop the
# worker at the step; then it is killed hard, which takes the server through a
# crash restart, and afterwards all must be as if nothing had happened.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('steps', 'fsync = on', 'wal_writer_delay = 10s', 'autovacuum = off');
my $kills = 0;

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
CREATE TABLE list (id int, v text);
INSERT INTO t SELECT g, 'copied' FROM generate_series(1, 100) g;
EOS
oracle_create($node);

# Stops a worker with a lock, in the middle of what $cause leads it to, and kills it.
sub kill_at
{
	my ($step, $kind, $lock, $cause) = @_;
	my $holder = $node->background_psql('postgres', on_error_stop => 1);
	my @pids;

	$holder->query_safe('BEGIN');
	$holder->query_safe($lock);
	$node->safe_psql('postgres', $cause) if defined $cause;
	my $caught = poll_perl(60, sub {
		@pids = split(/\n/, $node->safe_psql('postgres',
			"SELECT pid FROM pg_stat_activity a WHERE backend_type = 'elt $kind' AND "
			  . ($kind eq 'walsender' ? 'true' : 'cardinality(pg_blocking_pids(pid)) > 0')
			  . " OR '$kind' = 'capture' AND backend_type = 'elt capture' AND EXISTS (SELECT FROM pg_stat_activity w "
			  . "WHERE w.backend_type = 'walsender' AND w.application_name LIKE 'elt %' AND cardinality(pg_blocking_pids(w.pid)) > 0)"));
		return @pids > 0;
	});
	ok($caught, "$step: the $kind worker stands there");
	$kills += kill_hard($pids[0]) if $caught;
	$holder->{run}->kill_kill;
	ok(poll_perl(180, sub { accepts($node) }),
		"$step: the server is back");
	return;
}

sub all_is_right
{
	my ($step) = @_;
	is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', "$step: all is staged");
	same_as_source($node, $node, 's', 't');
	is($node->safe_psql('postgres',
			"SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_s\\_%'"), '1', "$step: one slot");
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE op = 'r'"), '100', "$step: copied once");
	return;
}

# the slot is being made: that waits for a transaction that has written
kill_at('before the slot is there', 'capture', 'SELECT pg_current_xact_id()',
	"SELECT elt.create_source('s', ARRAY['t'])");
all_is_right('before the slot is there');

# it is made and not recorded
$node->safe_psql('postgres', "SELECT elt.drop_source('s')");
nothing_left($node);
kill_at('before the slot is recorded', 'capture', 'LOCK TABLE elt.source_tables IN SHARE MODE',
	"SELECT elt.create_source('s', ARRAY['t'])");
all_is_right('before the slot is recorded');

# the copy is written and not committed
$node->safe_psql('postgres', "SELECT elt.drop_source('s')");
nothing_left($node);
kill_at('in the copy', 'snapshot', 'LOCK TABLE elt.schema_versions IN SHARE MODE',
	"SELECT elt.create_source('s', ARRAY['t'])");
all_is_right('in the copy');

# changes are staged and not committed: the second shape of the table waits for its version
$node->safe_psql('postgres', "INSERT INTO t VALUES (101, 'streamed'); UPDATE t SET v = 'changed' WHERE id < 10");
all_is_right('streaming');
kill_at('before the commit', 'capture', 'LOCK TABLE elt.schema_versions IN SHARE MODE', <<'EOS');
BEGIN;
INSERT INTO t SELECT g, 'first half' FROM generate_series(200, 5000) g;
ALTER TABLE t ADD COLUMN w int;
INSERT INTO t SELECT g, 'second half', g FROM generate_series(5001, 6000) g;
COMMIT;
EOS
all_is_right('before the commit');

# committed and not on disk: the WAL writer sleeps, so the crash takes it back
$node->safe_psql('postgres', "INSERT INTO t SELECT g, 'not flushed' FROM generate_series(7000, 7500) g");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'staged');
$kills += kill_hard((workers($node, 'capture'))[0]);
ok(poll_perl(180, sub { accepts($node) }), 'the server is back');
all_is_right('before the flush');

# on disk and not confirmed, or confirmed just now: a kill at any time after
for my $round (1 .. 2)
{
	my $id = 8000 + $round;
	$node->safe_psql('postgres', "INSERT INTO t VALUES ($id, 'confirmed')");
	my $lsn = $node->safe_psql('postgres', 'SELECT pg_switch_wal()');
	$node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')");
	poll_ok($node, "SELECT confirmed_lsn >= '$lsn' FROM elt.stat_sources", 'confirmed') if $round == 2;
	$kills += kill_hard((workers($node, $round == 1 ? 'walsender' : 'capture'))[0]);
	ok(poll_perl(180, sub { accepts($node) }), 'the server is back');
	all_is_right("around the confirmation, $round");
}

same_as_oracle($node, $node, 's', 'after all these');

# out of memory: the worker may not grow any more, and a large row comes
{
	my ($capture) = workers($node, 'capture');
	my ($pages) = split(/ /, slurp_file("/proc/$capture/statm"));
	system_or_bail('prlimit', "--pid=$capture", '--as=' . ($pages * 4096 + 1024 * 1024));
	$node->safe_psql('postgres', "INSERT INTO t VALUES (9000, repeat('large ', 4000000))");
	poll_ok($node, "SELECT last_error ~ 'memory' FROM elt.stat_sources", 'the worker ran out of memory');
	all_is_right('out of memory');
	isnt((workers($node, 'capture'))[0], $capture, 'by a new worker');
}

# a worker that has much to do leaves all the same when it is told to
{
	my ($capture) = workers($node, 'capture');
	kill('STOP', $capture);
	$node->safe_psql('postgres', <<'EOS');
SET synchronous_commit = off;
DO $$ BEGIN FOR i IN 100001 .. 200000 LOOP INSERT INTO t VALUES (i, 'queued'); COMMIT; END LOOP; END $$;
EOS
	$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
	kill('CONT', $capture);
	poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'elt capture'", 'the worker leaves');
	cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM elt_raw.s WHERE after @> '{"v": "queued"}'}), '<', 60000,
		'before it has staged all that waits');
	$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
	all_is_right('a backlog');
}

# a transform worker within a user's statement, and one before its commit
$node->safe_psql('postgres', <<'EOS');
ALTER TABLE target ADD COLUMN w int;
BEGIN;
SELECT elt.create_pipeline('p', 's', 'public.t', 'target'), elt.create_pipeline('l', 's', 'public.t', 'list', mode => 'append');
SELECT elt.pause_pipeline('p'), elt.pause_pipeline('l');
COMMIT;
EOS
kill_at('in the statement of a pipeline', 'transform', 'LOCK TABLE target IN SHARE MODE',
	"SELECT elt.resume_pipeline('p')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'settled');
same_as_target($node, $node, 't', 'target');
kill_at('before the commit of a batch', 'transform', 'LOCK TABLE elt.checkpoints IN SHARE MODE',
	"SELECT elt.resume_pipeline('l')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('l', timeout => '180 s')"), 't', 'settled');
is($node->safe_psql('postgres', 'SELECT count(*) FROM list'),
	$node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE op IN ('r', 'c', 'u')"), 'appended exactly once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', 'nothing is quarantined');

cmp_ok($kills, '>=', 9, "killed $kills times");
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('p'), elt.drop_pipeline('l')");
$node->safe_psql('postgres', "SELECT elt.drop_source('s')");
nothing_left($node);
$node->stop;
done_testing();
