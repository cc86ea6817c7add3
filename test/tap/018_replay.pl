# Replays beside live traffic and in parallel: no target row ever goes back in
# time.  Replays that are killed, cancelled and resumed; their rate and their
# progress.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('replay', "shared_preload_libraries = 'elt'", 'elt.max_workers = 2');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE item (id int PRIMARY KEY, version int NOT NULL, note text);
INSERT INTO item SELECT g, 0, 'copied' FROM generate_series(1, 300) g;
CREATE SCHEMA dw;
CREATE TABLE dw.item (LIKE item INCLUDING ALL);
CREATE TABLE dw.backwards (id int, had int, got int);
CREATE FUNCTION dw.watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.version < OLD.version THEN
		INSERT INTO dw.backwards VALUES (NEW.id, OLD.version, NEW.version);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER watch BEFORE UPDATE ON dw.item FOR EACH ROW EXECUTE FUNCTION dw.watch();
SELECT elt.create_source('s', ARRAY['item']);
SELECT elt.create_pipeline('item', 's', 'item', 'dw.item', options => '{"batch_changes": 200}');
SELECT elt.wait_for('item', timeout => '180 s');
EOS

# Runs psql beside the test; its output is in the hash that is returned.
sub background
{
	my ($sql) = @_;
	my $run = { out => '', err => '' };

	$run->{handle} = IPC::Run::start(
		[ 'psql', '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $node->connstr('postgres'), '-c', $sql ],
		'>', \$run->{out}, '2>', \$run->{err});
	return $run;
}

sub newest_run
{
	my ($columns) = @_;
	return $node->safe_psql('postgres', "SELECT $columns FROM elt.replay_runs ORDER BY run_id DESC LIMIT 1");
}

# ---- beside live traffic, two at once ----

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/update.sql", "\\set id random(1, 300)\nUPDATE item SET version = version + 1 WHERE id = :id;\n");
append_to_file("$dir/replay.sql", "SET client_min_messages = warning;\nCALL elt.replay('item');\n");
my $load = pgbench_start($node, '-T', '600', '-f', "$dir/update.sql", '--rate=1500');
my $replays = pgbench_start($node, '-t', '2', '-c', '2', '-f', "$dir/replay.sql");
is(pgbench_finish($replays), 4, 'replays came to their end beside the load');
ok(!$replays->{handle}->result, 'no replay failed') or diag($replays->{err});
poll_ok($node, 'SELECT sum(version) > 1000 FROM item', 'the load was there');
pgbench_stop($node, $load);
is($node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s')"), 't', 'live changes got through');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.backwards'), '0', 'no row went back in time');
same_as_target($node, $node, 'item', 'dw.item');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.replay_runs WHERE state <> 'done'"), '0', 'all runs are done');

# ---- killed, twice ----

$node->safe_psql('postgres', "TRUNCATE dw.item");
my $total = staged($node, 's', 'item');
my $rate = int($total / 15);	# so that it is still at it when the second kill comes
my $run = background("CALL elt.replay('item', rate => $rate)");
foreach my $time ('first', 'second')
{
	poll_ok($node, "SELECT state = 'running' AND phase = 'apply' AND done - resumed_done > 0 FROM elt.replay_runs ORDER BY run_id DESC LIMIT 1",
		"the $time attempt is under way") or diag($run->{err});
	my ($pid, $done) = split(/\|/, newest_run('pid, done'));
	kill_hard($pid);
	$run->{handle}->finish;
	poll_ok($node, 'SELECT true', "the server is back after the $time kill");
	poll_ok($node, "SELECT state = 'interrupted' FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1",
		'the run shows as interrupted');
	cmp_ok(newest_run('done'), '>=', $done, 'what was done is kept');
	$run = background('CALL elt.resume_replay(' . newest_run('run_id') . ')');
}
$run->{handle}->finish;
ok(!$run->{handle}->result, 'the resumed replay came to its end') or diag($run->{err});
is(newest_run("state || ' ' || (done = total) || ' ' || (selected = applied + superseded)"), 'done true true', 'each change was counted once');
$node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s')");
same_as_target($node, $node, 'item', 'dw.item');

# ---- rate and progress ----

$node->safe_psql('postgres', 'CREATE ROLE watcher IN ROLE pg_monitor');
my $first = $node->safe_psql('postgres', "SELECT change_id FROM elt_raw.s ORDER BY change_id DESC OFFSET 399 LIMIT 1");
$run = background("CALL elt.replay('item', rate => 200, from_change => $first)");
poll_ok($node, "SELECT state = 'running' AND done > 0 AND done < total AND total = 400 AND rate > 0 AND eta > '0' "
	. 'FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1', 'progress is to be seen');
my ($seen) = newest_run('done');
poll_ok($node, "SELECT done > $seen FROM elt.progress_replay ORDER BY run_id DESC LIMIT 1", 'and it moves');
is($node->safe_psql('postgres', "SET ROLE watcher; SELECT count(*) > 0 FROM elt.progress_replay"), 't', 'pg_monitor sees it');
is($node->safe_psql('postgres', "SET ROLE watcher; SELECT count(*) FROM elt.replay_runs"), '0', 'but not what was asked for');
$run->{handle}->finish;
is(newest_run("state, done, finished_at - started_at >= '1.5 s'"), 'done|400|t', 'the rate was kept');

# ---- cancelled ----

$node->safe_psql('postgres', "TRUNCATE dw.item");
$run = background("CALL elt.replay('item', rate => 100)");
poll_ok($node, "SELECT state = 'running' AND done > 0 FROM elt.replay_runs ORDER BY run_id DESC LIMIT 1", 'a slow replay runs');
my ($stderr, $id) = ('', newest_run('run_id'));
$node->psql('postgres', "CALL elt.resume_replay($id)", stderr => \$stderr);
like($stderr, qr/replay $id is running/, 'a replay that runs is not resumed');
is($node->safe_psql('postgres', "SELECT elt.cancel_replay($id)"), 't', 'it is cancelled');
$run->{handle}->finish;
like($run->{err}, qr/ERROR:  57014: replay $id of pipeline "item" was cancelled.*resume_replay\($id\)/s, 'its session says so');
is(newest_run('state'), 'cancelled', 'and so does the run');
is($node->safe_psql('postgres', "SELECT elt.cancel_replay($id)"), 'f', 'it cannot be cancelled twice');

$run = background("CALL elt.resume_replay($id)");
poll_ok($node, "SELECT state = 'running' AND done > resumed_done FROM elt.replay_runs WHERE run_id = $id", 'it is resumed');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM elt.replay_runs WHERE run_id = $id");
$run->{handle}->finish;
like($run->{err}, qr/57014: canceling statement due to user request/, "a cancel request reaches it");
is(newest_run('state'), 'cancelled', 'and it is noted');

# the session that waits holds no snapshot, and no lock but on the procedure
$run = background("CALL elt.replay('item', rate => 1)");
poll_ok($node, "SELECT count(*) = 1 FROM elt.replay_runs r JOIN pg_stat_activity a USING (pid) "
	. "WHERE r.state = 'running' AND a.wait_event_type = 'Extension' AND a.backend_xmin IS NULL AND a.backend_xid IS NULL", 'a replay that waits holds nothing back');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks l JOIN elt.replay_runs r USING (pid) WHERE r.state = 'running' AND l.locktype IN ('relation', 'tuple')"), '0', 'nor locks any table');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('item')");
$run->{handle}->finish;
ok($run->{handle}->result, 'a replay ends when its pipeline is dropped');
like($run->{err}, qr/42704|57014/, 'and says why');

$node->stop;
done_testing();
