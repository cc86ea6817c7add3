# A source's server, or who sits in between, sends what no server sends: broken
# lengths, messages that end too soon, positions that go backwards, keepalives
# and notices without end, errors in the stream, noise.  The capture worker
# survives it or is started again after a pause; memory and the log stay small,
# nothing is executed, and afterwards raw staging has each change once.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Proxy;
use Test::More;

my $origin = elt_node('origin', "listen_addresses = '127.0.0.1'");
my $sink = elt_node('sink', "elt.source_timeout = '3s'", "elt.heartbeat_interval = 0");
append_to_file($origin->data_dir . '/pg_hba.conf', "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
$origin->reload;
my $proxy = Proxy->new(host => '127.0.0.1', port => $origin->port, directory => PostgreSQL::Test::Utils::tempdir);
my $conninfo = 'host=127.0.0.1 port=' . $proxy->port . ' dbname=postgres sslmode=disable gssencmode=disable user='
  . $origin->safe_psql('postgres', 'SELECT current_user');

$origin->safe_psql('postgres', 'CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE PUBLICATION elt_far FOR TABLE t');
$sink->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE EXTENSION elt');
$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");

sub captured
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$origin->safe_psql('postgres', "INSERT INTO t (v) SELECT md5(i::text) FROM generate_series(1, 50) i");
	my $count = $origin->safe_psql('postgres', 'SELECT count(*) FROM t');
	poll_ok($sink, "SELECT count(*) = $count FROM elt_raw.far", "$what: all is staged, once");
}
captured('before');
my ($supervisor) = workers($sink, 'supervisor');
my $offset = -s $sink->logfile;

# messages of a server, and what goes into CopyData
sub message { return pack('aN', $_[0], 4 + length($_[1])) . $_[1] }
sub data { return message('d', $_[0]) }
sub keepalive { return data(pack('aQ>Q>C', 'k', $_[0], 0, $_[1])) }
sub change { return data(pack('aQ>Q>Q>', 'w', $_[0], $_[0], 0) . $_[1]) }
sub refusal { return message($_[0], "SERROR\0VERROR\0C" . $_[1] . "\0M" . $_[2] . "\0\0") }

# The stream that begins next is this.
sub attack
{
	my ($bytes, $times, $then) = @_;
	$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
	poll_perl(60, sub { !workers($sink, 'capture') });
	$proxy->set(inject => [ unpack('H*', $bytes), $times, $then ]);
	$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
}

srand(7);
my $noise = join('', map { chr(int(rand(256))) } 1 .. 4000);
my @attacks = (
	[ 'a negative length', pack('aN', 'd', 0xffffffff), 1, 'close' ],
	[ 'a length below that of itself', pack('aN', 'd', 2), 1, 'close' ],
	[ 'a length of 2 GB', pack('aN', 'd', 0x7fffffff) . 'x' x 100000, 1, 'close' ],
	[ 'a length of 2 GB that is silent then', pack('aN', 'd', 0x7ffffff0) . 'x' x 1000, 1, 'hold' ],
	[ 'a message that ends too soon', pack('aN', 'd', 1000) . 'w' . 'x' x 10, 1, 'close' ],
	[ 'a head that ends too soon', data('w' . 'x' x 5), 1, 'close' ],
	[ 'a keepalive that ends too soon', data('k'), 1, 'close' ],
	[ 'an unknown kind of CopyData', data('z' . 'x' x 100), 1, 'close' ],
	[ 'an unknown kind of message', message("\xee", 'x' x 100), 1, 'close' ],
	[ 'a change that is noise', change(1, $noise), 1, 'close' ],
	[ 'a change of nothing', change(1, ''), 10, 'close' ],
	[ 'noise', $noise, 1, 'close' ],
	[ 'positions that go backwards', join('', map { keepalive(1000 - $_, 0) } 1 .. 900), 1, 'close' ],
	[ 'keepalives without end', keepalive(1, 0), 200000, 'hold' ],
	[ 'keepalives that want an answer each', keepalive(1, 1), 5000, 'hold' ],
	[ 'notices without end', refusal('N', '00000', 'x' x 500), 20000, 'hold' ],
	[ 'rows where none are asked for', message('D', pack('n', 65535) . $noise), 100, 'close' ],
	[ 'another answer to a query', message('T', pack('n', 30000)) . message('C', "SELECT 1\0") . message('Z', 'I'), 1, 'close' ],
	[ 'errors without end', refusal('E', 'XX000', 'no' x 100), 5000, 'close' ],
	[ 'an error with a broken SQLSTATE, and format characters', refusal('E', 'too long', '%s%n%s%n' x 50), 1, 'close' ],
	[ 'an error that is not text', refusal('E', "42\xff\xfe1", "\xff\xfe\x80" x 20), 1, 'close' ],
	[ 'the end of the stream', message('c', ''), 1, 'close' ]);
foreach my $attack (@attacks)
{
	my ($what, $bytes, $times, $then) = @$attack;
	my $cuts = $proxy->cuts;
	my $peak = 0;
	attack($bytes, $times, $then);
	ok(poll_perl(60, sub { $proxy->cuts > $cuts }), "sent: $what");
	foreach my $pid (workers($sink, 'capture'))
	{
		my $mb = rss_anon_mb($pid);
		$peak = $mb if $mb > $peak;
	}
	captured($what);
	foreach my $pid (workers($sink, 'capture'))
	{
		my $mb = rss_anon_mb($pid);
		$peak = $mb if $mb > $peak;
	}
	cmp_ok($peak, '<', 100, sprintf('in %d MB', $peak));
}
is((workers($sink, 'supervisor'))[0], $supervisor, 'the server never went through a crash restart');
cmp_ok((-s $sink->logfile) - $offset, '<', 200_000, 'the log stays small');
unlike(log_since($sink, $offset), qr/terminated by signal|PANIC|server process/, 'nobody crashed');
same_as_source($origin, $sink, 'far', 't');
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps'), '0', 'no gap');

# while it floods a worker can be stopped
my $cuts = $proxy->cuts;
attack(keepalive(1, 0), 400000, 'hold');
ok(poll_perl(60, sub { $proxy->cuts > $cuts }), 'keepalives without end');
$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
ok(poll_perl(20, sub { !workers($sink, 'capture') }), 'a pause stops a worker that is flooded');
$proxy->set('pass');
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
captured('resumed');

# a position from beyond is believed, for nobody else knows the source's; but what comes of it is found out
$cuts = $proxy->cuts;
attack(keepalive(0x70000000 << 32, 1), 1, 'hold');
ok(poll_perl(60, sub { $proxy->cuts > $cuts }), 'sent: a position from beyond');
poll_ok($sink, "SELECT state = 'lost' FROM elt.stat_sources", 'the source is lost');
is($sink->safe_psql('postgres', "SELECT count(*) FROM elt.gaps WHERE resolved_at IS NULL"), '1', 'which is written down');
$proxy->set('pass');
$origin->safe_psql('postgres', "INSERT INTO t (v) VALUES ('after')");
$sink->safe_psql('postgres', "SELECT elt.resync_source('far')");
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', timeout => '60 s')"), 't', 'a resync mends it');
same_as_source($origin, $sink, 'far', 't');

$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
nothing_left($origin);
nothing_left($sink);
$proxy->stop;
$sink->stop;
$origin->stop;
done_testing();
