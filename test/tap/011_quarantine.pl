# Quarantine under load: 1 % of the records are refused by the target, later
# changes of their keys are parked; the cause is mended while the load goes on,
# replays run side by side and are killed, and in the end every target equals
# its source and every change was applied once.  Records that wait for another
# row come through by themselves, also after a restart, and resolved rows go
# when their time is over.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = elt_node('quarantine', "shared_preload_libraries = 'elt'", 'elt.max_workers = 3', 'deadlock_timeout = 200ms');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE item (id int PRIMARY KEY, v int, n int);
CREATE TABLE dw.item (id int PRIMARY KEY, v int CONSTRAINT good CHECK (v >= 0), n int);
CREATE TABLE dw.log (change_id bigint, id int, v int CONSTRAINT good CHECK (v >= 0));
INSERT INTO item SELECT g, CASE WHEN g % 100 = 0 THEN -1 ELSE g END, 0 FROM generate_series(1, 2000) g;
SELECT elt.create_source('s', ARRAY['item']);
SELECT elt.create_pipeline('item', 's', 'item', 'dw.item', options => '{"batch_changes": 500}');
SELECT elt.create_pipeline('log', 's', 'item', 'dw.log',
	'SELECT change_id, (record->>''id'')::int AS id, (record->>''v'')::int AS v FROM changes', 'append', ordering => 'unordered');
EOS

# ---- poison in 1 % of the records, under load ----

my $load = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($load, <<'EOS');
\set id random(1, 2000)
\set poison random(1, 100)
UPDATE item SET v = CASE WHEN :poison = 1 THEN -1 ELSE abs(v) + 1 END, n = n + 1 WHERE id = :id;
EOS
my $run = pgbench_start($node, '-T', '600', '-f', $load);
poll_ok($node, "SELECT quarantined_open > 150 AND parked > 50 FROM elt.stat_pipelines WHERE pipeline = 'item'",
	'poison is quarantined, and what follows it is parked');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.replay_quarantine('item', max_rows => 20) WHERE outcome <> 'failed'"),
	'0', 'a replay before the cause is mended fails record by record');
is($node->safe_psql('postgres', "SELECT pipeline || ' ' || sqlstate || ' ' || constraint_name FROM elt.quarantine_groups ORDER BY 1"),
	"item 23514 good\nlog 23514 good", 'the failures read as one line per pipeline');

# beside busy workers a replay gets its lanes soon
my $start = time();
$node->safe_psql('postgres', "SELECT * FROM elt.replay_quarantine('item', max_rows => 100)");
my $took = time() - $start;
cmp_ok($took, '<', 50, sprintf('a replay beside busy workers takes %.2f s', $took));

# the cause is mended; two replays side by side, one of them killed twice
$node->safe_psql('postgres', 'ALTER TABLE dw.item DROP CONSTRAINT good; ALTER TABLE dw.log DROP CONSTRAINT good');
$node->safe_psql('postgres', "SELECT * FROM elt.replay_quarantine('item', max_rows => 10)");
pgbench_stop($node, $run);
$node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s'), elt.wait_for('log', timeout => '180 s')");

$node->safe_psql('postgres', <<'EOS');
-- slow enough to be killed
CREATE FUNCTION dw.slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.2);
	RETURN NULL;
END $$;
CREATE TRIGGER slow AFTER INSERT OR UPDATE ON dw.item FOR EACH STATEMENT EXECUTE FUNCTION dw.slow();
EOS
my $open = $node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status = 'open'");
cmp_ok($open, '>', 50, "$open changes are to be replayed");
foreach my $round (1 .. 2)
{
	my @sessions = map { replay_start() } 1 .. 2;
	poll_ok($node, "SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE 'SELECT elt.replay_quarantine(%' AND state = 'active'",
		"two replays run side by side, round $round");
	my $pid = $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT elt.replay_quarantine(%' AND wait_event = 'PgSleep' LIMIT 1");
	$pid ||= $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT elt.replay_quarantine(%' LIMIT 1");
	kill_hard($pid);
	IPC::Run::finish($_) foreach @sessions;
	ok(poll_perl(180, sub { accepts($node) }), "the server is back, round $round");
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status = 'open'"), $open,
		"what was killed has left no trace, round $round");
}
my @sessions = map { replay_start() } 1 .. 2;
IPC::Run::finish($_) foreach @sessions;
$node->safe_psql('postgres', 'DROP TRIGGER slow ON dw.item');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.replay_quarantine(max_rows => 100000)'), '0', 'two replays did it all');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.parked'), '0', 'nothing is parked any more');
same_as_target($node, $node, 'item', 'dw.item');
is($node->safe_psql('postgres', <<'EOS'), '0', 'every change was applied once');
SELECT count(*) FROM (SELECT change_id, (after->>'id')::int AS id, (after->>'v')::int AS v FROM elt_raw.s) AS r
FULL JOIN dw.log AS l USING (change_id, id, v) WHERE r.change_id IS NULL OR l.change_id IS NULL
EOS
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT change_id) FROM dw.log'), '0', 'none of them twice');
is($node->safe_psql('postgres', "SELECT status, resolved_by = current_user, count(*) > 0 FROM elt.quarantine GROUP BY 1, 2"),
	'replayed|t|t', 'who resolved them is known');

# ---- an application that is in the way ----

$node->safe_psql('postgres', "ALTER TABLE dw.item ADD CONSTRAINT good CHECK (v >= 0) NOT VALID");
$node->safe_psql('postgres', "UPDATE item SET v = -7 WHERE id IN (1, 2)");
$node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s')");
$node->safe_psql('postgres', "ALTER TABLE dw.item DROP CONSTRAINT good");
my $application = $node->background_psql('postgres');
$application->query_safe('BEGIN');
$application->query_safe('UPDATE dw.item SET v = v WHERE id = 2');
my ($code, $out, $err) = $node->psql('postgres',
	"SET lock_timeout = '100ms'; SELECT * FROM elt.replay_quarantine('item')");
isnt($code, 0, 'a replay that runs into a lock timeout fails as a whole');
like($err, qr/lock timeout/, 'and says why');
is($node->safe_psql('postgres', "SELECT count(*), sum(retry_count) FROM elt.quarantine WHERE status = 'open' AND pipeline = 'item'"), '2|0',
	'its records are as they were');
$application->query_safe('COMMIT');
$application->quit;
is($node->safe_psql('postgres', "SELECT outcome, count(*) FROM elt.replay_quarantine('item') GROUP BY 1"), 'replayed|2', 'and go through later');
same_as_target($node, $node, 'item', 'dw.item');

# ---- what waits for another row comes by itself ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE child (id int PRIMARY KEY, parent int, v text);
CREATE TABLE dw.parent (id int PRIMARY KEY);
CREATE TABLE dw.child (id int PRIMARY KEY, parent int REFERENCES dw.parent, v text);
SELECT elt.create_source('c', ARRAY['child']);
SELECT elt.create_pipeline('child', 'c', 'child', 'dw.child');
INSERT INTO child SELECT g, g, 'first' FROM generate_series(1, 3) g;
EOS
$node->safe_psql('postgres', "SELECT elt.wait_for_source('c', timeout => '180 s'), elt.wait_for('child', timeout => '180 s')");
$node->safe_psql('postgres', "UPDATE child SET v = 'second'");
$node->safe_psql('postgres', "SELECT elt.wait_for('child', timeout => '180 s')");
is($node->safe_psql('postgres', "SELECT waiting, (SELECT count(*) FROM elt.parked) FROM elt.quarantine_groups WHERE pipeline = 'child'"), '3|3',
	'children wait for their parents, and updates behind them');
$node->safe_psql('postgres', 'INSERT INTO dw.parent VALUES (1)');
poll_ok($node, "SELECT v = 'second' FROM dw.child WHERE id = 1", 'a child comes once its parent is there, with the update behind it');
is($node->safe_psql('postgres', "SELECT status, resolved_by, next_retry_at IS NULL FROM elt.quarantine WHERE pipeline = 'child' AND key->>'id' = '1'"),
	'replayed|elt|t', 'elt resolved it');
poll_ok($node, "SELECT count(*) = 2 FROM elt.quarantine WHERE pipeline = 'child' AND status = 'waiting' AND retry_count > 0 "
	  . "AND next_retry_at - last_failed_at BETWEEN '9.9 s' AND '41 s'", 'the others wait for longer each time');

# the last try is the last, and a restart forgets none
$node->safe_psql('postgres', <<'EOS');
UPDATE elt.quarantine_records SET retry_count = 11 WHERE pipeline = 'child' AND key->>'id' = '2';
UPDATE elt.quarantine_unresolved SET next_retry_at = now() WHERE key->>'id' IN ('2', '3');
INSERT INTO dw.parent VALUES (3);
EOS
$node->restart;
poll_ok($node, "SELECT v = 'second' FROM dw.child WHERE id = 3", 'after a restart what is due is tried');
poll_ok($node, "SELECT status = 'open' AND retry_count = 12 AND next_retry_at IS NULL FROM elt.quarantine "
	  . "WHERE pipeline = 'child' AND key->>'id' = '2'", 'after twelve tries a change is left to people');

# ---- retention ----

my $resolved = $node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE resolved_at IS NOT NULL");
cmp_ok($resolved, '>', 0, "$resolved rows are resolved");
$node->safe_psql('postgres', "ALTER SYSTEM SET elt.quarantine_retention = '1s'");
$node->reload;
poll_ok($node, "SELECT count(*) = 0 FROM elt.quarantine WHERE resolved_at IS NOT NULL", 'they go when their time is over');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine"), '1', 'what is not resolved stays');

$node->stop;
done_testing();

# A session that replays all there is to replay.
sub replay_start
{
	my ($out, $err) = ('', '');
	return IPC::Run::start(
		[ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-c', 'SELECT elt.replay_quarantine(max_rows => 100000)' ],
		'>', \$out, '2>', \$err);
}
