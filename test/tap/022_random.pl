# Random failures and mending: constraints on the target come and go, and what
# is quarantined is replayed, the log too, while changes stream in and the
# number of workers changes.  In the end target and source are equal.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant ROUNDS => 25;

my $seed = $ENV{ELT_SEED} // int(rand(1_000_000));
srand($seed);
note("ELT_SEED=$seed");

my $node = elt_node('random', "shared_preload_libraries = 'elt'", 'elt.batch_changes = 50');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE t (id int PRIMARY KEY, v int, s text);
EOS
my %options = (
	strict => "ordering => 'strict'",
	supersede => "ordering => 'supersede'");
foreach my $name (sort keys %options)
{
	$node->safe_psql('postgres', "CREATE TABLE dw.$name (id int PRIMARY KEY, v int, s text)");
}
$node->safe_psql('postgres', q{SELECT elt.create_source('s', ARRAY['t'])});
foreach my $name (sort keys %options)
{
	$node->safe_psql('postgres', "SELECT elt.create_pipeline('$name', 's', 't', 'dw.$name', $options{$name}, options => '{\"breaker\": false}')");
}
$node->safe_psql('postgres', q{SELECT elt.wait_for_source('s', timeout => '180 s')});

sub change
{
	my $first = int(rand(300));
	my $last = $first + int(rand(30));
	my $value = int(rand(100));
	return (
		"INSERT INTO t SELECT g, $value + g % 7, repeat('x', g) FROM generate_series($first, $last) g ON CONFLICT (id) DO UPDATE SET v = excluded.v",
		"UPDATE t SET v = v + 1 WHERE id BETWEEN $first AND $last",
		"DELETE FROM t WHERE id BETWEEN $first AND $last",
		"UPDATE t SET id = id + 1000 WHERE id = $first AND NOT EXISTS (SELECT FROM t o WHERE o.id = $first + 1000)")[ int(rand(4)) ];
}

foreach my $round (1 .. ROUNDS)
{
	my @pipelines = sort keys %options;
	my $pipeline = $pipelines[ int(rand(@pipelines)) ];
	my $bad = int(rand(7));
	$node->safe_psql('postgres', join('; ', map { change() } 1 .. 6));
	my @sessions;
	foreach my $command (
		"ALTER TABLE dw.$pipeline ADD CONSTRAINT c$bad CHECK (v % 7 <> $bad) NOT VALID",
		"ALTER TABLE dw.$pipeline DROP CONSTRAINT IF EXISTS c$bad",
		"SELECT count(*) FROM elt.replay_quarantine('$pipeline', max_rows => " . (1 + int(rand(40))) . ')',
		"SELECT count(*) FROM elt.replay_quarantine('$pipeline', dry_run => true)",
		"CALL elt.replay('$pipeline')",
		"CALL elt.replay('$pipeline', filter => 'change_id % 3 = 0')",
		'SELECT elt.set_worker_bounds(' . int(rand(2)) . ', ' . (1 + int(rand(3))) . ')')
	{
		push(@sessions, $command) if rand() < 0.4;
	}

	# beside the workers, and beside more changes
	my @running = map {
		IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $_ ],
			'<', \undef, '>', '/dev/null', '2>', '/dev/null', IPC::Run::timeout(300))
	} @sessions;
	$node->safe_psql('postgres', join('; ', map { change() } 1 .. 3));
	# what fails there (a constraint twice, a replay that is cancelled) is only theirs
	$_->finish foreach @running;
}

# ---- all is mended ----

foreach my $name (sort keys %options)
{
	$node->safe_psql('postgres', "ALTER TABLE dw.$name DROP CONSTRAINT IF EXISTS c$_") foreach 0 .. 6;
}
foreach my $name (sort keys %options)
{
	settled_ok($node, $name, 30, "$name has settled all");
	$node->safe_psql('postgres', "SELECT count(*) FROM elt.replay_quarantine('$name', max_rows => 100000)");
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine JOIN elt.pipelines USING (pipeline_id) WHERE name = '$name' AND status IN ('open', 'waiting')"),
		0, 'nothing is quarantined');
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt.parked JOIN elt.pipelines USING (pipeline_id) WHERE name = '$name'"), 0, 'nor parked');
	my $differ = "SELECT count(*) FROM (SELECT * FROM t EXCEPT SELECT * FROM dw.$name) a FULL JOIN (SELECT * FROM dw.$name EXCEPT SELECT * FROM t) b USING (id)";
	is($node->safe_psql('postgres', $differ), 0, "target and source are equal (ELT_SEED=$seed)");
}
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '>', 0, 'changes had failed');
$node->stop;
done_testing();
