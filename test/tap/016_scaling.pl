# The pool of transform workers follows the load: nobody while nothing happens,
# the first at once when something comes, more for a backlog, and gone again.
# Order per key holds while workers come, go and die: the target refuses a row
# that is older than what it has.  Where the server has no worker process left,
# elt does with fewer.
#
#	ELT_SCALING_SECONDS	how long workers come and go under load (default 12)
#	ELT_SCALING_SEED	repeats the choices
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{ELT_SCALING_SECONDS} || 12;
my $seed = $ENV{ELT_SCALING_SEED} || int(rand(1_000_000));
srand($seed);
note("ELT_SCALING_SEED=$seed");

my $node = elt_node('scaling', 'elt.idle_timeout = 0');
my $pool_is_empty = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'elt transform'";
my $newest_is_idle = "SELECT (SELECT wanted = 0 AND reason = 'idle' FROM elt.scaling_log ORDER BY scaling_id DESC LIMIT 1)";
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE item (id int PRIMARY KEY, version bigint NOT NULL DEFAULT 1, written_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE other (id int PRIMARY KEY);
CREATE SCHEMA dw;
CREATE TABLE dw.item (LIKE item INCLUDING INDEXES, applied_at timestamptz DEFAULT clock_timestamp());
-- the judge: an older image over a newer one is refused, and would be in quarantine
CREATE FUNCTION dw.judge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.version < OLD.version THEN
		RAISE EXCEPTION 'version goes back';
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER judge BEFORE UPDATE ON dw.item FOR EACH ROW EXECUTE FUNCTION dw.judge();
SELECT elt.create_source('s', ARRAY['item', 'other'], snapshot => 'none', options => '{"raw_partition_changes": 65536}');
SELECT elt.create_pipeline('item', 's', 'item', 'dw.item', options => '{"batch_changes": 200}');
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the source streams');

# ---- from nobody to the first worker ----

my $cold = 6;
foreach my $id (1 .. $cold)
{
	$node->poll_query_until('postgres', $pool_is_empty) or die 'the worker does not leave';
	$node->safe_psql('postgres', "INSERT INTO item (id) VALUES ($id)");
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM dw.item WHERE id = $id") or die "row $id does not come";
}
poll_ok($node, "SELECT count(*) = $cold FROM elt.scaling_log WHERE workers_before = 0 AND wanted = 1 AND reason = 'work'",
	"each of $cold rows found nobody and started a worker");
my ($median, $worst) = split(/\|/, $node->safe_psql('postgres', <<'EOS'));
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ms)::int, max(ms)::int
FROM (SELECT extract(epoch FROM applied_at - written_at) * 1000 AS ms FROM dw.item) t
EOS
diag("from commit to target with no worker there: median $median ms, worst $worst ms");
cmp_ok($median, '<', 500, 'it does not wait for the next round of the supervisor');
poll_ok($node, "SELECT wanted = 0 AND workers = 0 AND reason = 'idle' FROM elt.stat_pool", 'an idle database has no transform worker');
# decisions are applied first and written down then
poll_ok($node, $newest_is_idle, 'and says so in the log of decisions');

# what nobody reads starts nobody
my $rows = $node->safe_psql('postgres', 'SELECT count(*) FROM elt.scaling_log');
$node->safe_psql('postgres', "INSERT INTO other VALUES ($_)") foreach 1 .. 20;
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'changes of a table that no pipeline reads are staged');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.scaling_log'), $rows, 'and no worker starts for them');

# ---- bounds ----

is($node->safe_psql('postgres', "SELECT 'elt.worker_bounds'::regclass = ANY (extconfig) FROM pg_extension WHERE extname = 'elt'"), 't',
	'a dump carries the bounds');
foreach my $case ([ '2, 1', qr/min 2 is above max 1/ ], [ '-1, NULL', qr/min is not from 0 to 64: -1/ ], [ 'NULL, 65', qr/max is not from 0 to 64: 65/ ])
{
	my ($code, undef, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT elt.set_worker_bounds($case->[0])");
	like($err, qr/22023: $case->[1]/, "set_worker_bounds($case->[0]) is refused");
}
$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(3, NULL)');
poll_ok($node, "SELECT workers = 3 AND wanted = 3 AND min_workers = 3 AND reason = 'min_workers' FROM elt.stat_pool", 'a minimum is kept without load');
$node->restart;
poll_ok($node, "SELECT workers = 3 FROM elt.stat_pool", 'after a restart too');
$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(NULL, NULL)');
poll_ok($node, "SELECT workers = 0 AND min_workers = 0 AND max_workers = 4 FROM elt.stat_pool", 'null gives it back to the settings');
$node->append_conf('postgresql.conf', 'elt.min_workers = 5');
$node->reload;
poll_ok($node, "SELECT workers = 4 AND min_workers = 4 FROM elt.stat_pool", 'elt.min_workers counts as elt.max_workers where it is above');
poll_ok($node, "SELECT NOT ok FROM elt.health() WHERE \"check\" = 'workers'", 'health() says so');
$node->append_conf('postgresql.conf', "elt.min_workers = 0\nelt.autoscale = advise");
$node->reload;
poll_ok($node, "SELECT workers = 4 AND wanted = 0 AND mode = 'advise' FROM elt.stat_pool", 'advise: the pool is full, what is wanted is told');
poll_ok($node, "SELECT wanted = 0 AND mode = 'advise' AND reason = 'idle' FROM elt.scaling_log ORDER BY scaling_id DESC LIMIT 1", 'and written down');
$node->append_conf('postgresql.conf', "elt.autoscale = off");
$node->reload;
poll_ok($node, "SELECT workers = 4 AND mode = 'off' AND reason = 'off' FROM elt.stat_pool", 'off: the pool is full');
$node->append_conf('postgresql.conf', "elt.autoscale = on");
$node->reload;
poll_ok($node, $pool_is_empty, 'on: it is empty again');

# ---- a probe is demand when it is due ----

$node->safe_psql('postgres', 'ALTER TABLE dw.item RENAME TO item_away; CREATE VIEW dw.item AS SELECT 1 AS id');
$node->safe_psql('postgres', 'ALTER TABLE dw.item_away ADD CONSTRAINT broken CHECK (1 / (id - 100) > -100 AND pg_read_file(id::text) IS NULL) NOT VALID');
$node->safe_psql('postgres', 'INSERT INTO item (id) VALUES (500)');
poll_ok($node, "SELECT state = 'blocked' FROM elt.pipelines WHERE name = 'item'", 'the pipeline is blocked');
poll_ok($node, $pool_is_empty, 'nobody waits for its probe');
poll_ok($node, "SELECT count(*) > 1 FROM elt.scaling_log WHERE reason = 'retry'", 'a worker comes when a probe is due');
$node->safe_psql('postgres', 'ALTER TABLE dw.item_away DROP CONSTRAINT broken; DROP VIEW dw.item; ALTER TABLE dw.item_away RENAME TO item');
poll_ok($node, 'SELECT count(*) = 1 FROM dw.item WHERE id = 500', 'and resumes the pipeline once the cause is gone');

# ---- order per key while workers come, go and die ----

$node->append_conf('postgresql.conf', "elt.idle_timeout = 1");
$node->reload;
my $script = PostgreSQL::Test::Utils::tempdir() . '/update.sql';
append_to_file($script, <<'EOS');
\set id random(1, 300)
INSERT INTO item (id) VALUES (:id) ON CONFLICT (id) DO UPDATE SET version = item.version + 1;
\set id random(1, 300)
UPDATE item SET version = version + 1 WHERE id BETWEEN :id AND :id + 20;
EOS
my %done = map { $_ => 0 } qw(bounds setting pause terminate kill);
my $load = pgbench_start($node, '-f', $script, '-T', '900', '-R', '150');
my $begin = time();
while (time() < $begin + $seconds || $done{kill} < 1)
{
	my $choice = int(rand(10));

	usleep(100_000 + rand(300_000));
	if ($choice < 5)
	{
		my $min = int(rand(5));
		$node->safe_psql('postgres', "SELECT elt.set_worker_bounds($min, " . ($min + int(rand(2))) . ')');
		$done{bounds}++;
	}
	elsif ($choice < 7)
	{
		$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(NULL, NULL)');
		$node->safe_psql('postgres', 'ALTER SYSTEM SET elt.max_workers = ' . (1 + int(rand(6))));
		$node->reload;
		$done{setting}++;
	}
	elsif ($choice < 9)
	{
		$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt transform'");
		$done{terminate}++;
	}
	elsif ($done{kill} < 2)
	{
		my @pids = workers($node, 'transform') or next;
		next unless kill_hard($pids[ rand(@pids) ]);
		$done{kill}++;
		pgbench_finish($load);
		poll_perl(180, sub { accepts($node) }) or die 'the server did not come back';
		$load = pgbench_start($node, '-f', $script, '-T', '900', '-R', '150');
	}
}
poll_ok($node, "SELECT sum(version) > 500 * $seconds FROM item", 'the load was real');
pgbench_stop($node, $load);
note(join(', ', map { "$_ $done{$_}" } sort keys %done));
$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(2, 4)');
is($node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s')"), 't', 'all is settled');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', 'no older image came over a newer one');
is($node->safe_psql('postgres', 'SELECT count(*) FROM item s FULL JOIN dw.item t USING (id) WHERE s.version IS DISTINCT FROM t.version'), '0',
	'the target is the source');

# ---- a pipeline may have fewer than the pool ----

$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(4, 4)');
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE dw.other (id int PRIMARY KEY);
CREATE FUNCTION dw.alone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NOT pg_try_advisory_xact_lock(1) THEN
		RAISE EXCEPTION 'not alone';
	END IF;
	PERFORM pg_sleep(0.01);
	RETURN NULL;
END $$;
CREATE TRIGGER alone BEFORE INSERT ON dw.other FOR EACH STATEMENT EXECUTE FUNCTION dw.alone();
SELECT elt.create_pipeline('other', 's', 'other', 'dw.other', options => '{"batch_changes": 50, "max_workers": 1}');
INSERT INTO other SELECT generate_series(1001, 5000);
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for('other', timeout => '180 s')"), 't', 'a pipeline with max_workers 1 drains');
is($node->safe_psql('postgres', "SELECT (SELECT count(*) FROM dw.other) = (SELECT count(*) FROM other) AND (SELECT count(*) = 0 FROM elt.quarantine)"), 't',
	'no two workers of four were at it together');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('other')");

# ---- a backlog makes it grow, its end makes it shrink ----

$node->safe_psql('postgres', "ALTER SYSTEM SET elt.max_workers = 4");
$node->append_conf('postgresql.conf', join("\n", 'elt.catchup_target = 1', 'elt.drained_backlog = 100', 'elt.scale_down_window = 1', ''));
$node->reload;
$node->safe_psql('postgres', 'SELECT elt.set_worker_bounds(NULL, NULL)');
poll_ok($node, "SELECT workers = 0 FROM elt.stat_pool", 'nobody is there');
$node->poll_query_until('postgres', "SELECT (SELECT wanted = 0 FROM elt.scaling_log ORDER BY scaling_id DESC LIMIT 1)") or die 'the decision is not written';
my $last = $node->safe_psql('postgres', 'SELECT max(scaling_id) FROM elt.scaling_log');
# each change takes a while
$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION dw.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON dw.item FOR EACH ROW EXECUTE FUNCTION dw.slow();
INSERT INTO item (id) SELECT g FROM generate_series(10001, 16000) g;
EOS
poll_ok($node, "SELECT workers = 4 AND wanted = 4 FROM elt.stat_pool", 'a backlog makes the pool grow');
poll_ok($node, 'SELECT count(*) = 6000 FROM dw.item WHERE id > 10000', 'it drains');
poll_ok($node, 'SELECT workers = 0 FROM elt.stat_pool', 'and the workers leave');
poll_ok($node, $newest_is_idle, 'which is written down');
like($node->safe_psql('postgres', "SELECT string_agg(wanted || ' ' || reason, ', ' ORDER BY scaling_id) FROM elt.scaling_log WHERE scaling_id > $last"),
	qr/^1 work, .*\b4 (?:backlog|arrival|target_backlog)\b.*, 0 idle$/, 'each decision has its reason');
unlike(log_since($node), qr/PANIC|TRAP/, 'nothing crashed by itself');
$node->stop;

# ---- no worker process to spare ----

# launcher, supervisor, capture worker and the launcher of subscriptions leave two
my $small = elt_node('small', 'max_worker_processes = 6', 'elt.min_workers = 4', 'max_parallel_workers_per_gather = 2',
	'parallel_setup_cost = 0', 'parallel_tuple_cost = 0', 'min_parallel_table_scan_size = 0');
$small->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE a (id int PRIMARY KEY);
CREATE TABLE a_target (LIKE a INCLUDING INDEXES);
SELECT elt.create_source('s', ARRAY['a'], snapshot => 'none');
SELECT elt.create_pipeline('p', 's', 'a', 'a_target');
EOS
# without a snapshot, what was written before the slot was there is not captured
poll_ok($small, "SELECT state = 'streaming' FROM elt.stat_sources", 'capture finds a process');
$small->safe_psql('postgres', 'INSERT INTO a SELECT generate_series(1, 5000)');
poll_ok($small, 'SELECT count(*) = 5000 FROM a_target', 'work goes on');
poll_ok($small, "SELECT workers = 1 AND wanted = 1 AND reason = 'no_process' FROM elt.stat_pool", 'with one worker, and the reason is told');
poll_ok($small, "SELECT count(*) > 0 FROM elt.scaling_log WHERE reason = 'no_process'", 'in the log of decisions too');
poll_ok($small, "SELECT NOT ok AND detail ~ 'no_process' FROM elt.health() WHERE \"check\" = 'workers'", 'and by health()');
my ($supervisor) = workers($small, 'supervisor');
my $ticks = ticks($supervisor);
my $until = time() + 3;
my $launched = $small->safe_psql('postgres', 'EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT count(*) FROM a');
like($launched, qr/Workers Launched: 1/, 'a parallel query gets a worker');
poll_perl(4, sub { time() > $until });
cmp_ok(ticks($supervisor) - $ticks, '<=', 60, 'the supervisor does not try again and again');
my $warnings = () = log_since($small) =~ /does with fewer transform workers/g;
is($warnings, 1, 'the server log says so once');
# the pool leaves room for one more capture worker
$small->safe_psql('postgres', "CREATE TABLE b (id int PRIMARY KEY); SELECT elt.create_source('t', ARRAY['b'], snapshot => 'none')");
poll_ok($small, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 't'", 'capture is not starved by the pool');
$small->stop;
done_testing();

# CPU time of a process in ticks of 10 ms.
sub ticks
{
	my ($pid) = @_;
	my $stat = slurp_file("/proc/$pid/stat");
	$stat =~ s/^.*\) //;
	return (split(/ /, $stat))[11] + (split(/ /, $stat))[12];
}
