# The network between source and capture breaks in every way, in the middle of
# transactions: nothing is lost or doubled, and what can be noticed is.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Proxy;
use Test::More;

my $origin = elt_node('origin', "listen_addresses = '127.0.0.1'", 'wal_sender_timeout = 0');
my $sink = elt_node('sink', "elt.heartbeat_interval = 0");
append_to_file($origin->data_dir . '/pg_hba.conf', "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
$origin->reload;
my $proxy = Proxy->new(host => '127.0.0.1', port => $origin->port, directory => PostgreSQL::Test::Utils::tempdir);
my $conninfo = 'host=127.0.0.1 port=' . $proxy->port . ' dbname=postgres sslmode=disable gssencmode=disable user='
  . $origin->safe_psql('postgres', 'SELECT current_user');

$origin->safe_psql('postgres', 'CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE PUBLICATION elt_far FOR TABLE t');
oracle_create($origin);
$sink->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE EXTENSION elt');
$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");
transaction(10);
staged_all('through the proxy');

# reset and closed, at bytes of every part of a transaction: the first ones, in
# the middle of a message, after some messages
foreach my $how ('rst', 'fin')
{
	foreach my $bytes ($how eq 'rst' ? (1, 100, 70001) : (30, 2000, 200000))
	{
		my $cuts = $proxy->cuts;
		$proxy->set(cut_at => [ $bytes, $how ]);
		transaction(1500);
		poll_ok_perl(sub { $proxy->cuts > $cuts }, "$how after $bytes bytes of the stream");
		$proxy->set('pass');
		staged_all("$how at $bytes");
	}
}
same_as_oracle($origin, $sink, 'far', 'through all cuts');

# one byte at a time, and half a second late
$proxy->set('dribble');
transaction(20);
staged_all('one byte at a time');
$proxy->set(delay => 500);
transaction(20);
staged_all('half a second late');
$proxy->set('pass');

# silence: noticed in time, though this source's wal_sender_timeout is 0; and no
# sooner, because a source that has nothing to say answers when it is asked
$sink->append_conf('postgresql.conf', "elt.source_timeout = '2s'");
$sink->reload;
transaction(5);
staged_all('with a short timeout');
my $accepted = $proxy->accepted;
my $since = time();
poll_perl(6, sub { 0 });
is($proxy->accepted, $accepted, 'a source that is only quiet keeps its connection');
my $offset = -s $sink->logfile;
$proxy->set('hole');
poll_ok_perl(sub { log_since($sink, $offset) =~ /the source has been silent for/ }, 'a network that is gone is noticed');
$proxy->set('pass');
transaction(5);
staged_all('when the network is back');
# the other side has to notice as well, or its walsender keeps the slot
$origin->append_conf('postgresql.conf', "wal_sender_timeout = '3s'");
$origin->reload;
my $cuts = $proxy->cuts;
$proxy->set(cut_at => [ 70001, 'hole' ]);
transaction(3000);
poll_ok_perl(sub { $proxy->cuts > $cuts }, 'the network goes in the middle of a message');
staged_all('and over a new connection all comes');

# nobody listens, for a while
$proxy->set('refuse');
workers_gone($origin);
transaction(10);
poll_ok($sink, "SELECT state = 'error' AND last_error <> '' FROM elt.stat_sources", 'that nobody answers is shown');
$proxy->set('pass');
staged_all('when somebody answers again');

# a capture worker that is away for longer than the source waits
$origin->append_conf('postgresql.conf', "wal_sender_timeout = '1s'");
$origin->reload;
my ($capture) = workers($sink, 'capture');
$offset = -s $origin->logfile;
kill 'STOP', $capture;
transaction(2000);
my $gone = poll_perl(60, sub { log_since($origin, $offset) =~ /terminating walsender process due to replication timeout/ });
kill 'CONT', $capture;
ok($gone, 'the source gives up on a worker that is stopped');
staged_all('which then takes up where it was');

# a worker that is slow is not given up: it has a twentieth of the time
$origin->append_conf('postgresql.conf', "wal_sender_timeout = '3s'");
$origin->reload;
$capture = (workers($sink, 'capture'))[0];
$offset = -s $origin->logfile;
$origin->safe_psql('postgres', "INSERT INTO t (v) SELECT repeat(md5(i::text), 100) FROM generate_series(1, 20000) i");
my $slowed = time() + 8;
while (time() < $slowed)
{
	kill 'STOP', $capture;
	select(undef, undef, undef, 0.38);
	kill 'CONT', $capture;
	select(undef, undef, undef, 0.02);
}
staged_all('by a slow worker');
unlike(log_since($origin, $offset), qr/due to replication timeout/, 'and the source was patient, because it heard from it');

same_as_oracle($origin, $sink, 'far', 'through everything');
is($sink->safe_psql('postgres', "SELECT count(*) - count(DISTINCT (commit_lsn, lsn, op)) FROM elt_raw.far WHERE op <> 'r'"),
	'0', 'no change is staged twice');
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps'), '0', 'and no gap');

$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
nothing_left($origin);
nothing_left($sink);
$proxy->stop;
$sink->stop;
$origin->stop;
done_testing();

sub transaction
{
	my ($rows) = @_;
	$origin->safe_psql('postgres', "INSERT INTO t (v) SELECT md5(i::text) || repeat('x', 100) FROM generate_series(1, $rows) i");
}

sub staged_all
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $count = $origin->safe_psql('postgres', 'SELECT count(*) FROM t');
	poll_ok($sink, "SELECT count(*) = $count FROM elt_raw.far", "$what: all is staged")
	  or diag($sink->safe_psql('postgres', "SELECT count(*), $count FROM elt_raw.far"));
}

sub poll_ok_perl
{
	my ($done, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(poll_perl(180, $done), $what);
}

sub workers_gone
{
	my ($node) = @_;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'");
}
