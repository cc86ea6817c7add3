# elt.check_source() says what is wrong at a source, and what to do about it,
# before and after it breaks; and the connection may be encrypted.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $password = 'Zb4-quite_secret';
my $origin = elt_node('origin', "listen_addresses = '127.0.0.1'", 'max_replication_slots = 4');
my $sink = elt_node('sink');
my $conninfo = 'host=127.0.0.1 port=' . $origin->port . " dbname=postgres user=reader password=$password";

$origin->safe_psql('postgres', <<"EOS");
CREATE TABLE good (id int PRIMARY KEY);
CREATE TABLE keyless (a int);
CREATE TABLE hidden (id int PRIMARY KEY);
CREATE ROLE reader LOGIN PASSWORD '$password';
GRANT SELECT ON good, keyless TO reader;
EOS
my $hba = slurp_file($origin->data_dir . '/pg_hba.conf');
unlink($origin->data_dir . '/pg_hba.conf');
append_to_file($origin->data_dir . '/pg_hba.conf', "host all reader 127.0.0.1/32 scram-sha-256\n$hba");
$origin->reload;
$sink->safe_psql('postgres', 'CREATE EXTENSION elt');
my $offset = -s $sink->logfile;

# nothing is there yet, and a row says so for each thing
$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");
is(failed(), 'connection', 'a role that may not replicate cannot connect for it');
$origin->safe_psql('postgres', 'ALTER ROLE reader REPLICATION');
is(failed(), 'publication', 'what is missing has a row each');
like(hint('publication'), qr/^At the source: CREATE PUBLICATION elt_far FOR TABLE/, 'with a hint');
$origin->safe_psql('postgres', 'CREATE PUBLICATION elt_far FOR TABLE good, keyless, hidden');
is(failed(), 'replica identity,right to copy', 'tables that will not do');
is(detail('right to copy'), 'public.hidden cannot be read by this role, as a first copy has to', 'are named');
like(hint('replica identity'), qr/ALTER TABLE public.keyless REPLICA IDENTITY FULL/, 'with the command');
$origin->safe_psql('postgres', 'ALTER TABLE keyless REPLICA IDENTITY FULL; GRANT SELECT ON hidden TO reader');
poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'once that is done it streams');
is(failed(), '', 'and all checks pass');
is($sink->safe_psql('postgres', "SELECT string_agg(\"check\", ',') FROM elt.check_source('far') WHERE ok"),
	'connection,server version,encoding,wal_level,role,max_replication_slots,max_wal_senders,publication,'
	  . 'replica identity,row filters,unlogged tables,right to copy,identity,synchronous_standby_names,slot,plugin',
	'that are made');
like(detail('slot'), qr/plugin elt, database postgres, in use by process \d+, WAL reserved/, 'the slot is described');
like(detail('connection'), qr/^127.0.0.1 port \d+, database "postgres" as "reader", not encrypted$/, 'the connection, too');

# a row filter, and a standby that is our own worker
$origin->safe_psql('postgres', "ALTER PUBLICATION elt_far SET TABLE good WHERE (id > 5), keyless, hidden; "
	  . "SET synchronous_commit = local; ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()");
poll_ok($sink, "SELECT NOT ok FROM elt.check_source('far') WHERE \"check\" = 'synchronous_standby_names'",
	'commits that wait for a capture worker are noticed');
is(failed(), 'row filters,synchronous_standby_names', 'and row filters');
$origin->safe_psql('postgres', "SET synchronous_commit = local; ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()");
$origin->safe_psql('postgres', 'ALTER PUBLICATION elt_far SET TABLE good, keyless, hidden');

# no room for another slot
$origin->safe_psql('postgres', "SELECT pg_create_physical_replication_slot('p' || i) FROM generate_series(1, 3) i");
is(failed(), 'max_replication_slots', 'no slot is left for a copy');
like(hint('max_replication_slots'), qr/restart it: max_replication_slots = 14$/, 'with the line to set');
$origin->safe_psql('postgres', "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'physical'");

# encrypted
SKIP:
{
	my $openssl = `openssl version 2>/dev/null`;
	skip 'no openssl', 5 unless $openssl && $origin->safe_psql('postgres', "SELECT setting <> '' FROM pg_settings WHERE name = 'ssl_library'") eq 't';
	my $data = $origin->data_dir;
	my $ca = PostgreSQL::Test::Utils::tempdir;
	system_or_bail('openssl', 'req', '-new', '-x509', '-days', '2', '-nodes', '-subj', '/CN=127.0.0.1',
		'-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', "$data/server.key", '-out', "$data/server.crt");
	chmod(0600, "$data/server.key");
	system_or_bail('openssl', 'req', '-new', '-x509', '-days', '2', '-nodes', '-subj', '/CN=nobody',
		'-keyout', "$ca/other.key", '-out', "$ca/other.crt");
	$origin->append_conf('postgresql.conf', "ssl = on");
	$origin->reload;
	$sink->safe_psql('postgres', "SELECT elt.create_source('tls', conninfo => '$conninfo sslmode=verify-full sslrootcert=$data/server.crt', publication => 'elt_far')");
	poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 'tls'", 'a source streams over TLS');
	is($origin->safe_psql('postgres', "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'elt tls'"),
		't', 'which the server confirms');
	like(detail('connection', 'tls'), qr/encrypted: TLSv1\.\d/, 'and check_source shows');
	$sink->safe_psql('postgres', "SELECT elt.create_source('mitm', conninfo => '$conninfo sslmode=verify-full sslrootcert=$ca/other.crt', publication => 'elt_far')");
	like(detail('connection', 'mitm'), qr/certificate verify failed/, 'a server that cannot prove who it is is refused');
	poll_ok($sink, "SELECT state = 'error' AND last_error ~ 'certificate verify failed' FROM elt.stat_sources WHERE source = 'mitm'",
		'by the worker, too');
	$sink->safe_psql('postgres', "SELECT elt.drop_source('tls'), elt.drop_source('mitm')");
}

# what is not there
$origin->stop;
is(failed(), 'connection', 'a server that is away is a failed check');
like(detail('connection'), qr/could not connect to the source: .*Connection refused/, 'with the reason');
$origin->start;

# the password is nowhere
unlike(log_since($sink, $offset) =~ s/^.*create_source.*$//mgr, qr/\Q$password/, 'the password is not in the log');
is($sink->safe_psql('postgres', "SELECT count(*) FROM elt.check_source('far') c WHERE c::text LIKE '%' || 'quite_' || 'secret%'"), '0', 'nor in a check');
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump.sql';
$sink->command_ok([ 'pg_dump', '-f', $dump, '-d', $sink->connstr('postgres') ], 'pg_dump runs');
unlike(slurp_file($dump), qr/\Q$password/, 'nor in a dump');

my ($out, $err);
$sink->psql('postgres', "SELECT * FROM elt.check_source('nope')", stderr => \$err);
like($err, qr/source "nope" does not exist/, 'a source that does not exist is an error');
$sink->safe_psql('postgres', "CREATE ROLE joe; GRANT EXECUTE ON FUNCTION elt.check_source(text) TO joe");
$sink->psql('postgres', "SET ROLE joe; SELECT * FROM elt.check_source('far')", stderr => \$err);
like($err, qr/must be owner of source "far"/, 'who does not own it may not');

$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
nothing_left($origin);
nothing_left($sink);
$sink->stop;
$origin->stop;
done_testing();

sub failed
{
	return $sink->safe_psql('postgres', "SELECT string_agg(\"check\", ',') FROM elt.check_source('far') WHERE NOT ok");
}

sub detail
{
	my ($check, $source) = @_;
	$source ||= 'far';
	return $sink->safe_psql('postgres', "SELECT detail FROM elt.check_source('$source') WHERE \"check\" = '$check'");
}

sub hint
{
	my ($check) = @_;
	return $sink->safe_psql('postgres', "SELECT hint FROM elt.check_source('far') WHERE \"check\" = '$check'");
}
