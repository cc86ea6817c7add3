# Copies whose servers are stopped in the middle, and databases that are dropped
# while they are copied.  A copy goes on after a smart and a fast stop of elt's
# server, after an immediate stop of the source's, and after its connection was
# cut in the middle of a COPY; raw staging folds to the source, and no row is
# copied twice.  DROP DATABASE succeeds in the middle of a copy, prepared or not,
# and leaves nothing but what the README says.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Proxy;
use Test::More;

my $origin = elt_node('origin', "listen_addresses = '127.0.0.1'");
my $sink = elt_node('sink', 'elt.snapshot_workers = 2', 'max_worker_processes = 30', 'elt.snapshot_rate = 500kB');
append_to_file($origin->data_dir . '/pg_hba.conf', "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
$origin->reload;
my $proxy = Proxy->new(host => '127.0.0.1', port => $origin->port, directory => PostgreSQL::Test::Utils::tempdir);
my $user = $origin->safe_psql('postgres', 'SELECT current_user');
my $conninfo = 'host=127.0.0.1 port=' . $proxy->port . " dbname=postgres sslmode=disable gssencmode=disable user=$user";
my $tables = q{CREATE TABLE big (id int PRIMARY KEY, version int NOT NULL DEFAULT 0, filler text NOT NULL DEFAULT repeat('x', 300));
	CREATE TABLE later (id int PRIMARY KEY, version int NOT NULL DEFAULT 0, filler text NOT NULL DEFAULT repeat('x', 300))};
my $rows = 'INSERT INTO big (id) SELECT i FROM generate_series(1, 30000) i; INSERT INTO later (id) SELECT i FROM generate_series(1, 15000) i';

$origin->safe_psql('postgres', "$tables; CREATE PUBLICATION elt_far FOR TABLE big; $rows");
$sink->safe_psql('postgres', "$tables; CREATE EXTENSION elt");

sub progress
{
	my ($relation, $database) = @_;
	return $sink->safe_psql($database || 'postgres',
		qq{SELECT coalesce(max(done), 0) FROM elt.progress_snapshot WHERE "table" = 'public.$relation'});
}

sub copies_on
{
	my ($relation, $what, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $done = progress($relation, $database) + 500;
	return ok(poll_perl(60, sub { progress($relation, $database) >= $done }), "$what: $relation is copied on");
}

my $round = 0;
sub write_rows
{
	my ($relation) = @_;
	$round++;
	$origin->safe_psql('postgres', <<"EOS");
UPDATE $relation SET version = version + 1 WHERE id % 97 = $round;
DELETE FROM $relation WHERE id % 1009 = $round;
INSERT INTO $relation (id) SELECT 100000 + $round * 1000 + i FROM generate_series(1, 200) i;
UPDATE $relation SET id = -id WHERE id % 2003 = $round;
EOS
}

sub set_rate
{
	$sink->append_conf('postgresql.conf', "elt.snapshot_rate = $_[0]");
	$sink->reload;
}

# Stops elt's server; it must not wait for the copy.
sub stop_sink
{
	my ($mode) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time();
	$sink->stop($mode);
	cmp_ok(time() - $begin, '<', 20, "a $mode stop does not wait for a copy");
	$sink->start;
}

# ---- servers and connections ----

$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");
copies_on('big', 'at first');
foreach my $mode ('smart', 'fast')
{
	stop_sink($mode);
	write_rows('big');
	copies_on('big', "after a $mode stop of elt's server");
	write_rows('big');
}
$origin->stop('immediate');
poll_ok($sink, "SELECT state = 'error' AND last_error <> '' FROM elt.stat_sources", 'that the source is gone is shown');
$origin->start;
write_rows('big');
copies_on('big', 'after an immediate stop of the source');
foreach my $cut ([ 1, 'rst' ], [ 20000, 'fin' ])
{
	my $cuts = $proxy->cuts;
	$proxy->set(cut_at => [ @$cut, 'copy' ]);
	ok(poll_perl(60, sub { $proxy->cuts > $cuts }), "$cut->[1] after $cut->[0] bytes of a COPY");
	$proxy->set('pass');
	write_rows('big');
	copies_on('big', 'over a new connection');
}
set_rate(0);
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', timeout => '90 s')"), 't', 'the copy ends');
same_as_source($origin, $sink, 'far', 'big');
unlike(log_since($sink), qr/begins anew/, 'nothing was begun anew');

# a table that is added beside the stream
set_rate('500kB');
$origin->safe_psql('postgres', 'ALTER PUBLICATION elt_far ADD TABLE later');
$sink->safe_psql('postgres', "SELECT elt.add_table('far', 'public.later')");
copies_on('later', 'added');
stop_sink('fast');
write_rows($_) foreach ('later', 'big');
copies_on('later', 'after a fast stop');
$origin->stop('immediate');
$origin->start;
write_rows($_) foreach ('later', 'big');
copies_on('later', 'after an immediate stop of the source');
my $cuts = $proxy->cuts;
$proxy->set(cut_at => [ 5000, 'rst' ]);
write_rows('big');
ok(poll_perl(60, sub { $proxy->cuts > $cuts }), 'the stream beside the copy is cut');
$proxy->set('pass');
set_rate(0);
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', timeout => '90 s')"), 't', 'the copy ends');
same_as_source($origin, $sink, 'far', $_) foreach ('later', 'big');
is($sink->safe_psql('postgres', "SELECT count(*) - count(DISTINCT (relation, after->>'id')) FROM elt_raw.far WHERE op = 'r'"),
	'0', 'no row was copied twice');
is($sink->safe_psql('postgres', "SELECT count(*) - count(DISTINCT (commit_lsn, lsn, op)) FROM elt_raw.far WHERE op <> 'r'"),
	'0', 'no change was staged twice');
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps'), '0', 'and no gap');

# ---- databases that go ----

set_rate('300kB');
foreach my $how ('DROP EXTENSION before it', 'drop_source before it', 'nothing before it', 'WITH (FORCE)', 'a remote source')
{
	$sink->safe_psql('postgres', 'CREATE DATABASE doomed');
	$sink->safe_psql('doomed', "$tables; INSERT INTO big (id) SELECT i FROM generate_series(1, 10000) i; CREATE EXTENSION elt");
	$sink->safe_psql('doomed', $how eq 'a remote source' ?
		"SELECT elt.create_source('doomed', conninfo => '$conninfo', publication => 'elt_far')" :
		"SELECT elt.create_source('doomed', ARRAY['big', 'later'])");
	copies_on('big', "DROP DATABASE, $how", 'doomed');
	$sink->safe_psql('doomed', "SELECT elt.drop_source('doomed')") if $how =~ /^drop_source/;
	$sink->safe_psql('doomed', 'DROP EXTENSION elt CASCADE') if $how =~ /^DROP EXTENSION/;
	my ($offset, $err) = (-s $sink->logfile);
	is($sink->psql('postgres', 'DROP DATABASE doomed' . ($how =~ /FORCE/ ? ' WITH (FORCE)' : ''), stderr => \$err), 0,
		"DROP DATABASE in the middle of a copy, $how") or diag($err);
	poll_ok($sink, "SELECT count(*) = 0 FROM pg_replication_slots", 'no slot is left');
	poll_ok($sink, "SELECT count(*) = 1 FROM pg_replication_origin WHERE roname LIKE 'elt\\_%'", 'no origin but that of the other database');
	poll_ok($sink, "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'doomed'", 'no process');
	poll_ok($sink, "SELECT count(*) = 0 FROM pg_prepared_xacts", 'no prepared transaction');
	unlike(log_since($sink, $offset), qr/database \S+ does not exist/, 'nobody tries to get back in');
}

# the slot of a remote source lives elsewhere, as the README says
poll_ok($origin, "SELECT count(*) = 1 FROM pg_replication_slots WHERE NOT active", 'the slot at the remote server stays, and nobody uses it');
$origin->safe_psql('postgres', 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active');
$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
nothing_left($origin);
nothing_left($sink);
$proxy->stop;
$sink->stop;
$origin->stop;
done_testing();
