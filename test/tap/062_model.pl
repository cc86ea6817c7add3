# Random changes of few keys, in transactions of several; poison that comes and
# goes; workers that are ended, killed and more or fewer; replays beside it.
# In the end each key's row and its whole history are those of a plain model in
# one thread, and no key ever went back to an older change.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant KEYS => 12;

my $rounds = $ENV{ELT_MODEL_ROUNDS} // 20;
my $seed = $ENV{ELT_SEED} // int(rand(1_000_000));
srand($seed);
note("ELT_SEED=$seed");

my $node = elt_node('model', "shared_preload_libraries = 'elt'", 'elt.batch_changes = 20');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v int, seq int);
CREATE SCHEMA dw;
CREATE TABLE dw.history (id int, v int, seq int, valid_from timestamptz, valid_to timestamptz, PRIMARY KEY (id, valid_from), CHECK (valid_from < valid_to));
CREATE TABLE dw.present (id int PRIMARY KEY, v int, seq int);

-- what is written to the present, in its order
CREATE TABLE dw.written (n bigserial, id int, seq int, op text);
CREATE FUNCTION dw.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO dw.written (id, seq, op) VALUES (COALESCE(new.id, old.id), COALESCE(new.seq, old.seq), tg_op);
	RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON dw.present FOR EACH ROW EXECUTE FUNCTION dw.note();
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('history', 's', 't', 'dw.history', mode => 'history', options => '{"breaker": false}');
SELECT elt.create_pipeline('present', 's', 't', 'dw.present', options => '{"breaker": false}');
EOS
$node->safe_psql('postgres', q{SELECT elt.wait_for_source('s', timeout => '180 s')});
my @pipelines = ('history', 'present');

# ---- the model: each key's committed states, undef where it is not there ----

my %states = map { $_ => [] } 1 .. KEYS;
my $seq = 0;

sub state_of { return $states{ $_[0] }[-1]; }

sub transaction
{
	my %now;
	my @statements;
	foreach (1 .. 1 + int(rand(5)))
	{
		my $id = 1 + int(rand(KEYS));
		my $there = exists $now{$id} ? $now{$id} : state_of($id);
		my $v = int(rand(70));
		$seq++;
		if ($there && rand() < 0.25)
		{
			push(@statements, "DELETE FROM t WHERE id = $id");
			$now{$id} = undef;
		}
		else
		{
			push(@statements, $there ? "UPDATE t SET v = $v, seq = $seq WHERE id = $id" : "INSERT INTO t VALUES ($id, $v, $seq)");
			$now{$id} = "$v,$seq";
		}
	}
	$node->safe_psql('postgres', join('; ', 'BEGIN', @statements, 'COMMIT'));
	foreach my $id (keys %now)
	{
		push(@{ $states{$id} }, $now{$id}) if defined($now{$id}) || defined(state_of($id));
	}
}

# ---- what happens beside it ----

sub run_beside
{
	my ($command) = @_;
	IPC::Run::run([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $command ],
		'<', \undef, '>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
}

sub end_a_worker
{
	my ($signal) = @_;
	my @pids = workers($node, 'transform');
	my $pid = $pids[ int(rand(@pids)) ];
	$signal eq 'KILL' ? kill_hard($pid) : kill($signal, $pid) if $pid;
	poll_perl(180, sub { accepts($node) }) or die 'the server did not come back';
}

my @events = (
	sub { run_beside("ALTER TABLE dw.$pipelines[rand(2)] ADD CONSTRAINT c$_[0] CHECK (v % 7 <> $_[0]) NOT VALID") },
	sub { run_beside("ALTER TABLE dw.$pipelines[rand(2)] DROP CONSTRAINT IF EXISTS c$_[0]") },
	sub { run_beside("SELECT elt.replay_quarantine('$pipelines[rand(2)]', max_rows => " . (1 + int(rand(20))) . ')') },
	sub { run_beside("CALL elt.replay('$pipelines[rand(2)]')") },
	sub { run_beside('SELECT elt.set_worker_bounds(' . int(rand(2)) . ', ' . (1 + int(rand(4))) . ')') },
	sub { end_a_worker('TERM') });

my $kills = 0;
foreach my $round (1 .. $rounds)
{
	transaction() foreach 1 .. 5 + int(rand(10));
	foreach my $event (@events)
	{
		$event->(int(rand(7))) if rand() < 0.3;
	}
	if ($round % 8 == 0)
	{
		end_a_worker('KILL');
		$kills++;
	}
}
cmp_ok($kills, '>', 0, 'workers were killed') if $rounds >= 8;

# ---- all is mended ----

foreach my $pipeline (@pipelines)
{
	$node->safe_psql('postgres', "ALTER TABLE dw.$pipeline DROP CONSTRAINT IF EXISTS c$_") foreach 0 .. 6;
	settled_ok($node, $pipeline, 60, "$pipeline has settled all");
	$node->safe_psql('postgres', "SELECT count(*) FROM elt.replay_quarantine('$pipeline', max_rows => 100000)");
	is($node->safe_psql('postgres', "SELECT quarantined_open + parked FROM elt.stat_pipelines WHERE pipeline = '$pipeline'"),
		0, "$pipeline: nothing is quarantined or parked");
}
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '>', 0, 'changes had failed');

my $present = join("\n", map { state_of($_) ? "$_|" . state_of($_) =~ s/,/|/r : () } 1 .. KEYS);
is($node->safe_psql('postgres', 'SELECT id, v, seq FROM dw.present ORDER BY id'), $present, "the present is the model's (ELT_SEED=$seed)");

# a version that does not end where the next one begins was deleted
my @history;
foreach my $id (1 .. KEYS)
{
	my @of_key = @{ $states{$id} };
	foreach my $i (0 .. $#of_key)
	{
		next unless defined $of_key[$i];
		my $end = $i == $#of_key ? 'present' : defined $of_key[ $i + 1 ] ? 'changed' : 'deleted';
		push(@history, "$id|" . ($of_key[$i] =~ s/,/|/r) . "|$end");
	}
}
my %versions = map { $_ => 1 } split(/\n/, $node->safe_psql('postgres', <<'EOS'));
SELECT id, v, seq, CASE WHEN valid_to IS NULL THEN 'present'
	WHEN lead(valid_from) OVER (PARTITION BY id ORDER BY valid_from) = valid_to THEN 'changed' ELSE 'deleted' END
FROM dw.history ORDER BY id, valid_from
EOS
my %expected = map { $_ => 1 } @history;
is(join(', ', grep { !$versions{$_} } @history), '', "no version is missing (ELT_SEED=$seed)");
is(join(', ', grep { !$expected{$_} } sort keys %versions), '', "nor is there another (ELT_SEED=$seed)");

is( $node->safe_psql('postgres', <<'EOS'), 0, "no key went back to an older change (ELT_SEED=$seed)");
SELECT count(*) FROM (SELECT seq < max(seq) OVER (PARTITION BY id ORDER BY n ROWS UNBOUNDED PRECEDING) AS back FROM dw.written) AS w WHERE back
EOS
$node->stop;
done_testing();
