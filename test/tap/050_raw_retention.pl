# Raw staging is kept for a time: old leaves go as a whole, those of quiet
# relations too, and never one that a pipeline, the quarantine, a replay, a copy
# or a reader needs.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('retention', 'elt.raw_retention = 1s', 'elt.max_workers = 1', 'elt.autoscale = off');
my $canaries = 0;
my $err;

sub sql { return $node->safe_psql('postgres', $_[0]) }

# A session that stays; sends one statement and waits for its output to match.
sub session
{
	my ($statement, $pattern) = @_;
	my $session = { in => "$statement\n", out => '', err => '' };
	$session->{handle} = IPC::Run::start([ 'psql', '-X', '-A', '-t', '-q', '-d', $node->connstr('postgres') ],
		'<', \$session->{in}, '>', \$session->{out}, '2>', \$session->{err});
	$session->{handle}->pump while length $session->{in};
	ok(poll_perl(180, sub { $session->{handle}->pump_nb; $session->{out} =~ $pattern }), "session: $statement")
	  if defined $pattern;
	return $session;
}

# Retention has had its look at everything: a row of a quiet source that was
# staged just now is old by then, and gone.
sub retention_ran
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$canaries++;
	sql("INSERT INTO canary VALUES ($canaries)");
	is(sql("SELECT elt.wait_for_source('birds', timeout => '180 s')"), 't', 'a canary is staged');
	poll_ok($node, "SELECT NOT EXISTS (SELECT FROM elt_raw.birds WHERE relation = 'public.canary')",
		'retention has run: the leaf of a quiet relation is gone');
}

sub kept { return sql("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.a' AND change_id <= $_[0]") }

# Who needs a leaf is said by the last look at it, which may have found the leaf locked.
sub needed_by_ok
{
	my ($who, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, "SELECT needed_by ~ '^$who' FROM elt.raw_staging WHERE source = 's' AND relation = 'public.a'", $what);
}

sql('CREATE EXTENSION elt');
alerts_soon($node);
sql('CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE canary (id int PRIMARY KEY);
	 CREATE TABLE a_target (id int PRIMARY KEY, v text CHECK (v IS DISTINCT FROM \'bad\'))');
sql(q{SELECT elt.create_source('birds', ARRAY['canary'], options => '{"raw_partition_changes": 1024}')});
sql(q{SELECT elt.create_source('s', ARRAY['a', 'b'], options => '{"raw_partition_changes": 1024, "raw_retention": "-1"}')});
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s') AND elt.wait_for_source('birds', timeout => '180 s')"), 't', 'both stream');
sql("SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
sql("SELECT elt.pause_pipeline('p')");
sql("INSERT INTO a SELECT i, 'v' FROM generate_series(1, 3000) i");
sql("INSERT INTO b SELECT i FROM generate_series(1, 3000) i");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'changes are staged');
my $last = sql("SELECT max(change_id) FROM elt_raw.s WHERE relation = 'public.a'");
cmp_ok(sql("SELECT leaves FROM elt.raw_staging WHERE relation = 'public.a'"), '>=', 3, 'in several leaves');

# ---- kept for ever ----

retention_ran();
is(kept($last), 3000, 'an override of -1 keeps raw staging for ever');
is(sql("SELECT retention IS NULL AND dropped_at IS NULL FROM elt.raw_staging WHERE relation = 'public.a'"), 't', 'and the view says so');
sql("SELECT elt.set_raw_retention('s', NULL)");
is(sql("SELECT retention FROM elt.raw_staging WHERE relation = 'public.a'"), '00:00:01', 'then it is as the setting says');

# ---- a pipeline ----

poll_ok($node, "SELECT upto_change > 0 AND leaves >= 3 FROM elt.raw_dropped WHERE relation = 'public.b'",
	'the leaves of a relation that no pipeline reads go');
poll_ok($node, "SELECT NOT EXISTS (SELECT FROM elt_raw.s WHERE relation = 'public.b')", 'all of them');
is(kept($last), 3000, 'those that a paused pipeline has still to read stay');
needed_by_ok('pipeline p, ', 'and the view says for whom');
sql("SELECT elt.pause_source('s')");
retention_ran();
is(kept($last), 3000, 'also while capture is stopped');
sql("SELECT elt.resume_source('s')");
sql('ALTER TABLE a_target RENAME COLUMN id TO gone');
sql("SELECT elt.resume_pipeline('p')");
poll_ok($node, "SELECT state = 'blocked' FROM elt.stat_pipelines", 'the pipeline blocks');
retention_ran();
is(kept($last), 3000, 'those that a blocked pipeline has still to read stay');

# ---- the quarantine ----

sql('ALTER TABLE a_target RENAME COLUMN gone TO id');
sql("SELECT elt.resume_pipeline('p')");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the pipeline goes on');
foreach my $value ('bad', 'good')
{
	sql("UPDATE a SET v = '$value' WHERE id = 1");
	is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', "$value is settled");
}
is(sql("SELECT count(*) || ' ' || (SELECT count(*) FROM elt.parked) FROM elt.quarantine WHERE status = 'open'"), '1 1',
	'a change is quarantined, another parked');
my $open = sql('SELECT change_id FROM elt.quarantine');
my $parked = sql('SELECT change_id FROM elt.parked');
poll_ok($node, "SELECT oldest_change > $last FROM elt.raw_staging WHERE relation = 'public.a'", 'what is settled goes');
retention_ran();
needed_by_ok("quarantined change $open of pipeline p", 'what is quarantined stays');
is(sql("SELECT count(*) FROM elt_raw.s WHERE change_id IN ($open, $parked)"), '2', 'with what is parked behind it');
like(sql("SELECT elt.raw_needed_by(source_id, 'public.a', $parked, $parked, 'F/0', '1 s') FROM elt.sources WHERE name = 's'"),
	qr/^parked change $parked of pipeline p/, 'which counts by itself');
sql("SELECT elt.discard_quarantine(ARRAY[quarantine_id], 'test') FROM elt.quarantine");
poll_ok($node, "SELECT NOT EXISTS (SELECT FROM elt_raw.s WHERE change_id IN ($open, $parked))", 'once that is resolved they go');
is(sql("SELECT v FROM a_target WHERE id = 1"), 'good', 'the parked one was applied');

# ---- a copy ----

like(sql("BEGIN; UPDATE elt.source_tables SET state = 'pending'; "
		. "SELECT elt.raw_needed_by(source_id, 'public.a', 1, 1, '0/0', '1 s') FROM elt.sources WHERE name = 's'; ROLLBACK"),
	qr/^the first copy/, 'nothing goes before the first copy is done');

# ---- a replay ----

sql("SELECT elt.set_raw_retention('s', '-1 s')");
sql("UPDATE a SET v = 'replayed' WHERE id <= 1500");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'settled');
sql("INSERT INTO b SELECT i FROM generate_series(4000, 6000) i");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'the next leaf is open');
my $first = sql("SELECT min(change_id) FROM elt_raw.s WHERE relation = 'public.a'");
$last = sql("SELECT max(change_id) FROM elt_raw.s WHERE relation = 'public.a'");
my $replay = session("CALL elt.replay('p', rate => 20);");
poll_ok($node, "SELECT count(*) = 1 FROM elt.progress_replay WHERE state = 'running' AND phase = 'apply'", 'a replay runs');
sql("SELECT elt.set_raw_retention('s', NULL)");
retention_ran();
needed_by_ok('replay [0-9]+ of pipeline p', 'what a replay needs stays');
is(sql("SELECT min(change_id) FROM elt_raw.s WHERE relation = 'public.a'"), $first, 'all of it');
sql("SELECT elt.cancel_replay(run_id) FROM elt.progress_replay WHERE state = 'running'");
$replay->{handle}->finish;
like(sql("SELECT elt.raw_needed_by(source_id, 'public.a', $first, $last, 'F/0', '1 h') FROM elt.sources WHERE name = 's'"),
	qr/^replay \d+ of pipeline p/, 'one that could be resumed counts as long as raw staging is kept');
poll_ok($node, "SELECT NOT EXISTS (SELECT FROM elt_raw.s WHERE relation = 'public.a' AND change_id <= $last)",
	'and is given up then');
my ($run) = sql("SELECT max(run_id) FROM elt.replay_runs");
isnt($node->psql('postgres', "CALL elt.resume_replay($run)", stderr => \$err), 0, 'it cannot be resumed any more');
like($err, qr/raw staging of public.a does not go back that far.*elt.raw_retention.*HINT/s, 'and says why');
my $upto = sql("SELECT upto_commit_ts FROM elt.raw_dropped WHERE relation = 'public.a'");
isnt($node->psql('postgres', "CALL elt.replay('p', from_time => '$upto'::timestamptz - interval '1 min')", stderr => \$err), 0,
	'nor can a replay begin before what is kept');
like($err, qr/does not go back that far.*What was committed up to \d{4}-/s, 'the error has the time');
is($node->psql('postgres', "CALL elt.replay('p')", stderr => \$err), 0, 'without a lower bound it replays what there is');
like($err, qr/NOTICE:  raw staging of public.a is kept from after \d{4}-/, 'and says from when on');
is($node->psql('postgres', "CALL elt.replay('p', from_time => now())", stderr => \$err), 0, 'later bounds are as ever');
unlike($err, qr/is kept from/, 'without a word about it');

# ---- a reader ----

sql("INSERT INTO a SELECT i, 'read' FROM generate_series(10000, 13000) i");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'settled');
my $reader = session("BEGIN; SELECT 'count ' || count(*) FROM elt_raw.s;", qr/count \d+/);
retention_ran();
my $slowest = 0;
for (1 .. 30)
{
	my $begin = time();
	sql("SET lock_timeout = '1s'; SELECT count(*) FROM elt_raw.s WHERE relation = 'public.a'");
	my $took = time() - $begin;
	$slowest = $took if $took > $slowest;
}
cmp_ok($slowest, '<', 15, 'beside a long reader others read on');
sql("INSERT INTO a VALUES (20000, 'beside')");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'and changes go through');
is(sql("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.a' AND after->>'v' = 'read'"), '3001', 'what is read stays');
$reader->{in} .= "COMMIT;\n\\q\n";
$reader->{handle}->finish;
poll_ok($node, "SELECT NOT EXISTS (SELECT FROM elt_raw.s WHERE after->>'v' = 'read')", 'once the reader is gone it goes');

# ---- somebody keeps raw staging to himself: the supervisor has more to do ----

$reader = session("BEGIN; LOCK TABLE elt_raw.s; SELECT 'locked';", qr/locked/);
poll_ok($node, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE backend_type = 'elt supervisor'", 'retention waits');
sql("SELECT elt.create_source('beside', ARRAY['b'], snapshot => 'none')");
poll_ok($node, "SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'capture' AND object_name = 'beside'", 'but not for long');
$reader->{in} .= "COMMIT;\n\\q\n";
$reader->{handle}->finish;
sql("SELECT elt.drop_source('beside')");

# ---- and all is well ----

sql("UPDATE a SET v = 'last' WHERE id % 7 = 0; DELETE FROM a WHERE id % 11 = 0");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the pipeline runs on');
same_as_target($node, $node, 'a', 'a_target');
$node->restart;
sql("INSERT INTO a VALUES (30000, 'again')");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'also after a restart');
same_as_target($node, $node, 'a', 'a_target');
unlike(log_since($node), qr/could not drop raw staging|could not open relation/, 'nothing went wrong on the way');

# ---- size ----

sql("ALTER SYSTEM SET elt.max_raw_size = '1MB'; ALTER SYSTEM SET elt.raw_retention = '1h'; SELECT pg_reload_conf()");
sql("INSERT INTO a SELECT i, repeat('x', 300) FROM generate_series(40000, 46000) i");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'staged');
poll_ok($node, "SELECT max(number) > max(present_number) AND max(number) = max(present_number) + count(*) FILTER (WHERE number > present_number) "
	  . "FROM elt.raw_leaves WHERE source = 's' AND relation = 'public.a'", 'the next leaves are there before they are needed');
poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'raw_size' AND state = 'firing' AND value > 1048576 AND threshold = 1048576 "
	  . "AND detail LIKE 'the largest: public.a of source s, %'", 'too much of it raises an alert');
sql('ALTER SYSTEM SET elt.max_raw_size = 0; SELECT pg_reload_conf()');
poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'raw_size' AND state = 'resolved'", 'without a limit it is resolved');

# ---- arguments and rights ----

foreach my $bad (qw("soon" 7 null))
{
	isnt($node->psql('postgres', qq{SELECT elt.create_source('x', ARRAY['a'], options => '{"raw_retention": $bad}')}, stderr => \$err), 0,
		"refused: raw_retention $bad");
}
sql('CREATE ROLE stranger');
isnt($node->psql('postgres', "GRANT EXECUTE ON FUNCTION elt.set_raw_retention TO stranger; SET ROLE stranger; SELECT elt.set_raw_retention('s', '1 s')", stderr => \$err), 0,
	'a stranger cannot shorten it');
like($err, qr/must be owner of source "s"/, 'and is told so');
isnt($node->psql('postgres', 'SET ROLE stranger; SELECT * FROM elt.raw_staging', stderr => \$err), 0, 'nor see it');
sql('GRANT pg_monitor TO stranger');
cmp_ok(sql('SET ROLE stranger; SELECT count(*) FROM elt.raw_staging'), '>', 0, 'pg_monitor can');

$node->stop;
done_testing();
