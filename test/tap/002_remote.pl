# Capture of another server: the same judges as for the own database, while the
# source is stopped and started, by asking and at once, in the middle; and its
# password is nowhere to be seen.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $password = 'Tr0ub4dor_3';
my $origin = elt_node('origin', 'log_statement = all');
my $sink = elt_node('sink', 'log_statement = all', 'log_error_verbosity = verbose', 'log_min_error_statement = panic');

pgbench_init($origin);
oracle_create($origin);
$origin->safe_psql('postgres', <<"EOS");
SET log_statement = none;
SET password_encryption = 'scram-sha-256';
CREATE ROLE reader LOGIN REPLICATION PASSWORD 'another';
GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
CREATE PUBLICATION elt_far FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history;
EOS
# the first line that fits decides: keep only ours
my $hba = slurp_file($origin->data_dir . '/pg_hba.conf');
unlink($origin->data_dir . '/pg_hba.conf');
append_to_file($origin->data_dir . '/pg_hba.conf',
	"local all reader scram-sha-256\nlocal replication reader scram-sha-256\n" . $hba);
$origin->reload;

# the tables' shapes, for the judges
system_or_bail('pgbench', '-i', '-q', '-I', 't', '-h', $sink->host, '-p', $sink->port, 'postgres');
my $conninfo = "host=" . $origin->host . " port=" . $origin->port . " dbname=postgres user=reader";
my $offset = -s $sink->logfile;

$sink->safe_psql('postgres', 'CREATE EXTENSION elt');

my $load = pgbench_start($origin, '-T', '60');
poll_ok($origin, 'SELECT count(*) > 100 FROM pgbench_history', 'the load runs');

# what is wrong is said, tried again, and goes on once it is mended over there
$sink->safe_psql('postgres',
	"SET log_statement = none; SELECT elt.create_source('far', conninfo => '$conninfo password=$password')");
poll_ok($sink, "SELECT state = 'error' AND last_error ~ 'password authentication failed' FROM elt.stat_sources",
	'a wrong password is shown as the source\'s error');
like($sink->safe_psql('postgres', "SELECT severity || detail FROM elt.health() WHERE \"check\" = 'source far'"),
	qr/critical.*password authentication failed/s, 'and by health()');
$origin->safe_psql('postgres', "SET log_statement = none; ALTER ROLE reader PASSWORD '$password'");
poll_ok($sink, "SELECT count(*) > 100 FROM elt_raw.far WHERE op = 'u'", 'copies and stream come by themselves');
stop_load();

# the source goes and comes back
foreach my $mode ('fast', 'immediate')
{
	$load = pgbench_start($origin, '-T', '60');
	my $count = staged($sink, 'far', 'pgbench_history');
	poll_ok($sink, "SELECT count(*) > $count + 100 FROM elt_raw.far WHERE relation = 'public.pgbench_history'",
		'changes flow');
	my $begin = time();
	$origin->stop($mode);
	cmp_ok(time() - $begin, '<', 10, "a source that elt reads stops: $mode");
	pgbench_finish($load);
	poll_ok($sink, "SELECT state = 'error' AND last_error IS NOT NULL AND last_error_at IS NOT NULL FROM elt.stat_sources",
		'the source is reported to be away');
	$origin->start;
	poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'it comes back by itself');
}
$load = pgbench_start($origin, '-t', '50');
is(pgbench_finish($load), '150', 'the load runs once more');
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far')"), 't', 'all is staged');

same_as_oracle($origin, $sink, 'far', 'through two restarts of the source');
same_as_source($origin, $sink, 'far', "pgbench_$_") foreach qw(accounts branches tellers history);

# the password
is($sink->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%' || 'Tr0ub4' || 'dor%'"),
	'0', 'the password is not in pg_stat_activity');
is($sink->safe_psql('postgres', "SELECT count(*) FROM elt.stat_sources s WHERE s::text LIKE '%Tr0ub4' || 'dor%'"),
	'0', 'nor in stat_sources');
is($sink->safe_psql('postgres', "SELECT count(*) FROM elt.health() h WHERE h::text LIKE '%Tr0ub4' || 'dor%'"),
	'0', 'nor in health()');
my ($out, $err);
$sink->psql('postgres', "SET log_statement = none; SELECT elt.create_source('bad', conninfo => 'host= password=$password =x')",
	stdout => \$out, stderr => \$err);
like($err, qr/invalid connection string/, 'a broken connection string is refused');
unlike($err =~ s/LINE 1:.*//sr, qr/Tr0ub4dor/, 'without repeating it');
unlike(log_since($sink, $offset), qr/Tr0ub4dor/, 'the password is not in the log here');
unlike(log_since($origin, 0), qr/Tr0ub4dor/, 'nor in the log there');

# while the source is away, its drop is remembered
$origin->stop;
$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
poll_ok($sink, "SELECT count(*) = 1 FROM elt.health() WHERE \"check\" = 'dropped source far' AND NOT ok",
	'a slot that waits for its source is reported');
$origin->start;
nothing_left($origin);
nothing_left($sink);
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.dropped_sources'), '0', 'and forgotten once it is gone');

$origin->stop;
$sink->stop;
done_testing();

sub stop_load
{
	$load->{handle}->signal('INT');
	pgbench_finish($load);
}
