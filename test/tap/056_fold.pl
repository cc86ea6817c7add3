# Raw staging folded back is the source: a random workload of all types, of
# changes of shape, of savepoints, prepared transactions and several sessions,
# first in peace, then while tables are copied anew, then with crashes of both
# (see test/lib/Workload.pm).
#
#	ELT_FOLD_SEED		repeats the statements
#	ELT_FOLD_SECONDS	how long to write in peace (default 4), half of it beside copies, and then with crashes
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Workload;

my $seed = $ENV{ELT_FOLD_SEED} || int(rand(1_000_000));
my $seconds = $ENV{ELT_FOLD_SECONDS} || 4;
my $crashes = 0;
my $node = elt_node('fold', 'max_prepared_transactions = 10', 'elt.max_workers = 1');

$node->safe_psql('postgres', 'CREATE EXTENSION elt');
my $load = Workload->new($node, $seed);

$load->run($seconds);
$load->check('in peace');

$load->run($seconds / 2, sub { $load->resync });
$load->check('beside copies');

$load->interrupted;
srand($seed);
my $crash = sub {
	$load->resync if $crashes % 2;
	if ($crashes % 3 == 2)
	{
		$node->stop('immediate');
		$node->start;
		return ++$crashes;
	}
	my @pids = workers($node, $crashes % 3 ? 'walsender' : 'capture');
	my $killed = kill_hard($pids[0]);
	$crashes += $killed;
	return $killed;
};
$load->run($seconds, $crash, 2);
cmp_ok($crashes, '>', 1, "$crashes crashes");
$load->check('through crashes');

$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('fold_oracle'); DROP EXTENSION elt CASCADE");
nothing_left($node);
$node->stop;
done_testing();
