# Exactly once under fire: while pgbench writes, a random process of elt, or a
# walsender that serves it, is killed hard again and again, which takes the
# server through a crash restart, and the server is stopped at once and started
# in between.  Afterwards each committed change must be in raw staging exactly
# once and every target must equal its source.
#
#	ELT_CRASH_SECONDS	how long to kill, at least (default 12); longer until there
#						was a kill every 3 seconds on the average
#	ELT_CRASH_RESTARTS	immediate stops in between (default 2)
#	ELT_CRASH_SYNC		the application's synchronous_commit (default: on and off by turns)
#	ELT_CRASH_SEED		repeats the choice of victims
use strict;
use warnings;

use EltTest;
use List::Util qw(shuffle);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{ELT_CRASH_SECONDS} || 12;
my $restarts = $ENV{ELT_CRASH_RESTARTS} || 2;
my $seed = $ENV{ELT_CRASH_SEED} || int(rand(1_000_000));
# transactions that a run of pgbench commits before something ends it
use constant LEAST => 101;

my %killed;
my $kills = 0;
my $immediate = 0;
my $load;
my $loads = 0;

srand($seed);
note("ELT_CRASH_SEED=$seed");

my $node = elt_node('bank', 'fsync = on', 'elt.max_workers = 3');

$node->safe_psql('postgres', 'CREATE EXTENSION elt');
pgbench_init($node);
oracle_create($node);
$node->safe_psql('postgres', <<'EOS');
CREATE SCHEMA dw;
CREATE TABLE dw.accounts (LIKE pgbench_accounts INCLUDING ALL);
CREATE TABLE dw.branches (LIKE pgbench_branches INCLUDING ALL);
CREATE TABLE dw.tellers (LIKE pgbench_tellers INCLUDING ALL);
CREATE TABLE dw.history (LIKE pgbench_history INCLUDING ALL);
SELECT elt.create_source('bank', tables => ARRAY['public.pgbench_accounts', 'public.pgbench_branches',
	'public.pgbench_tellers', 'public.pgbench_history'], options => '{"raw_partition_changes": 16384}');
SELECT elt.create_pipeline(t, 'bank', 'public.pgbench_' || t, ('dw.' || t)::regclass,
	mode => CASE t WHEN 'history' THEN 'append' ELSE 'upsert' END)
FROM unnest(ARRAY['accounts', 'branches', 'tellers', 'history']) t;
EOS
# first while the tables are copied, and while nothing else writes
foreach my $kind (qw(capture walsender))
{
	my @pids;
	poll_perl(180, sub { @pids = workers($node, $kind) });
	$killed{"$kind in a copy"} += kill_hard($pids[0]) if @pids;
	poll_perl(180, sub { accepts($node) }) or die 'the server did not come back';
}
poll_ok($node, "SELECT count(*) = 4 FROM elt.source_tables WHERE state = 'ready'", 'the tables are copied');

start_load();
my $begin = time();
my $next_stop = $seconds / ($restarts + 1);
while (time() < $begin + $seconds || ($kills < $seconds / 3 && time() < $begin + 20 * $seconds))
{
	usleep(100_000 + rand(900_000));
	if (time() > $begin + $next_stop && $immediate < $restarts)
	{
		$node->stop('immediate');
		pgbench_finish($load);
		$node->start;
		$immediate++;
		$next_stop += $seconds / ($restarts + 1);
	}
	else
	{
		kill_one() or next;
		pgbench_finish($load);
		poll_perl(180, sub { accepts($node) }) or die 'the server did not come back';
	}
	start_load();
}
usleep(500_000);
pgbench_stop($node, $load);

cmp_ok($kills, '>=', $seconds / 3, "killed $kills processes: " . join(', ', map { "$killed{$_} $_" } sort keys %killed));
is($immediate, $restarts, "$immediate immediate stops, $loads runs of pgbench");
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM pgbench_history'), '>=', LEAST * $loads, 'the load was real');

is($node->safe_psql('postgres', "SELECT elt.wait_for_source('bank', timeout => '180 s')"), 't', 'all is staged');
foreach my $table (qw(accounts branches tellers history))
{
	is($node->safe_psql('postgres', "SELECT elt.wait_for('$table', timeout => '180 s')"), 't', "$table is settled");
}
is($node->safe_psql('postgres',
		"SELECT string_agg(relation || ' ' || n, ', ' ORDER BY relation) FROM (SELECT relation, count(*) AS n FROM elt_raw.bank WHERE op = 'r' GROUP BY 1) s"),
	'public.pgbench_accounts 100000, public.pgbench_branches 1, public.pgbench_tellers 10', 'each row was copied once');
sums_hold($node, $node, 'bank');
same_as_oracle($node, $node, 'bank', 'after all crashes');
foreach my $table (qw(accounts branches tellers history))
{
	same_as_source($node, $node, 'bank', "pgbench_$table");
	same_as_target($node, $node, "pgbench_$table", "dw.$table");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', 'no crash put a change into quarantine');

# the extension goes while all of it is at work
$load = pgbench_start($node, '-T', '600');
my $history = staged($node, 'bank', 'pgbench_history');
poll_ok($node, "SELECT count(*) > $history + 100 FROM dw.history", 'the load runs again');
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
nothing_left($node);
pgbench_stop($node, $load);
$node->stop;
done_testing();

sub start_load
{
	my $sync = $ENV{ELT_CRASH_SYNC} || ($loads % 2 ? 'off' : 'on');

	my $history = 'SELECT count(*) FROM pgbench_history';
	my $before = $node->safe_psql('postgres', $history);

	local $ENV{PGOPTIONS} = "-c synchronous_commit=$sync";
	$load = pgbench_start($node, '-T', $seconds + 600, '-R', '1500');
	$loads++;
	# however slow the machine: nobody is killed before there is a load
	poll_perl(180, sub { $node->safe_psql('postgres', $history) >= $before + LEAST }) or die 'pgbench does not get on';
}

# Kills one process; returns whether it found one.
sub kill_one
{
	my @kinds = shuffle(qw(capture capture capture walsender walsender transform transform supervisor launcher));

	foreach my $kind (@kinds)
	{
		my @pids = workers($node, $kind);
		next unless @pids;
		next unless kill_hard($pids[ rand(@pids) ]);
		$killed{$kind}++;
		$kills++;
		return 1;
	}
	return 0;
}
