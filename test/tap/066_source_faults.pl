# What goes wrong at a remote source while it is captured, and is said with what
# to do: elt taken out of output_plugin_libraries, wrong credentials, a dropped
# publication, a slot that holds catalog_xmin.  It goes on by itself once that is
# mended.  A passfile or a service keeps the password out of everything.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $password = 'Gr7_never-shown';
my $home = PostgreSQL::Test::Utils::tempdir;
my $origin = elt_node('origin', "listen_addresses = '127.0.0.1'", 'log_statement = all', 'log_min_messages = debug1', 'autovacuum = off');
my $sink;
my $port = $origin->port;

append_to_file("$home/pass", "127.0.0.1:$port:*:reader:$password\n");
append_to_file("$home/services", "[far]\nhost=127.0.0.1\nport=$port\ndbname=postgres\nuser=reader\npassword=$password\n");
chmod(0600, "$home/pass", "$home/services");
{
	local $ENV{PGSERVICEFILE} = "$home/services";
	$sink = elt_node('sink', 'log_statement = all', 'log_min_messages = debug1', "elt.heartbeat_interval = '500ms'");
}

sub sql { return $sink->safe_psql('postgres', $_[0]); }
sub there { return $origin->safe_psql('postgres', $_[0]); }

$origin->safe_psql('postgres', <<"EOS");
SET log_statement = none; SET log_min_messages = error; SET log_min_error_statement = panic;
CREATE ROLE reader LOGIN REPLICATION PASSWORD '$password';
CREATE TABLE t (id serial PRIMARY KEY, v text);
GRANT SELECT ON t TO reader;
CREATE PUBLICATION elt_far FOR TABLE t;
EOS
my $hba = slurp_file($origin->data_dir . '/pg_hba.conf');
sub set_hba
{
	my ($method) = @_;
	unlink($origin->data_dir . '/pg_hba.conf');
	append_to_file($origin->data_dir . '/pg_hba.conf', "host all reader 127.0.0.1/32 $method\n$hba");
	$origin->reload;
}
set_hba('scram-sha-256');
sql('CREATE EXTENSION elt; CREATE TABLE t (id int PRIMARY KEY, v text)');
sql("SELECT elt.alter_alert_rule('source_disconnected', for_duration => '0')");
sql(qq{SELECT elt.create_source('far', conninfo => 'host=127.0.0.1 port=$port dbname=postgres user=reader passfile=$home/pass')});
sql("SELECT elt.create_source('served', conninfo => 'service=far', publication => 'elt_far')");

sub captured
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	there("INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 20)");
	foreach my $source ('far', 'served')
	{
		poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = '$source'", "$what, $source streams");
		is(sql("SELECT elt.wait_for_source('$source', timeout => '60 s')"), 't', 'and is captured');
		same_as_source($origin, $sink, $source, 't');
	}
}

# state, health and alert say what is wrong; the expressions match the error
sub is_said
{
	my ($expression, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($sink, "SELECT count(*) = 2 FROM elt.stat_sources WHERE state = 'error' AND last_error ~ '$expression'", "$what: stat_sources says so")
	  or diag(sql('SELECT source, state, last_error FROM elt.stat_sources'));
	is(sql(qq{SELECT count(*) FROM elt.health() WHERE "check" ~ '^source ' AND NOT ok AND severity = 'critical' AND detail ~ '$expression' AND hint <> ''}),
		'2', 'so does health()');
	poll_ok($sink, "SELECT count(*) = 2 FROM elt.alerts WHERE rule = 'source_disconnected' AND state = 'firing'", 'and an alert fires');
}

sub is_over
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	captured($what);
	poll_ok($sink, "SELECT count(*) = 0 FROM elt.alerts WHERE rule = 'source_disconnected' AND state = 'firing'", 'and the alert is over');
	is(sql('SELECT count(*) FROM elt.gaps'), '0', 'without a gap');
}

sub end_walsenders
{
	there("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'");
}

captured('with passfile and service');

# ---- the plugin list of the source ----

SKIP:
{
	skip 'this server loads any plugin', 1 if there("SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'") eq '0';
	foreach my $way ('a reload', 'a restart')
	{
		$origin->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput'");
		$way eq 'a reload' ? $origin->reload : $origin->restart;
		end_walsenders();
		# a role that may not read the setting hears it from the server
		is_said(q{library "elt" may not be used as an output plugin.*HINT: .*output_plugin_libraries}, "elt is not named after $way");
		there("INSERT INTO t (v) VALUES ('meanwhile')");
		poll_ok($sink, "SELECT count(*) = 2 FROM elt.alerts WHERE rule = 'source_disconnected' AND state = 'firing' AND detail ~ 'its slot keeps \\d+ .*of WAL'",
			'with the WAL that is kept') or diag(sql("SELECT rule, state, detail FROM elt.alerts"));
		$origin->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput, elt'");
		$origin->reload;
		is_over("named again after $way");
	}
}

# ---- credentials ----

there("SET log_statement = none; ALTER ROLE reader PASSWORD 'another'");
end_walsenders();
is_said('password authentication failed.*HINT: .*does not accept these credentials', 'the password was changed');
there("SET log_statement = none; ALTER ROLE reader PASSWORD '$password'");
is_over('with the password again');
set_hba('reject');
end_walsenders();
is_said('pg_hba.conf rejects.*HINT: .*does not accept these credentials', 'pg_hba.conf rejects it');
set_hba('scram-sha-256');
is_over('let in again');
unlike(sql("SELECT string_agg(last_error, ' ') FROM elt.sources"), qr/\.c:\d|28P01|LOCATION/, 'the message is the plain one');

# ---- the publication ----

there('DROP PUBLICATION elt_far');
is_said('publication "elt_far" does not exist.*HINT: .*CREATE PUBLICATION elt_far', 'the publication is dropped');
is(sql("SET ROLE pg_monitor; SELECT count(*) FROM elt.stat_sources WHERE state = 'error' AND last_error ~ 'does not exist'"), '2',
	'which a role that monitors sees');
there("INSERT INTO t (v) VALUES ('unseen')");
there('CREATE PUBLICATION elt_far FOR TABLE t');
poll_ok($sink, "SELECT count(*) = 2 FROM elt.stat_sources WHERE state = 'streaming'", 'it is made anew');
foreach my $source ('far', 'served')
{
	is(sql("SELECT elt.wait_for_source('$source', timeout => '60 s')"), 't', "$source is captured");
	is(sql("SELECT count(*) FROM elt_raw.$source WHERE after->>'v' = 'unseen'"), '0', 'but for what was not published');
	sql("SELECT elt.resync_table('$source', 'public.t')");
}
is_over('copied again');

# ---- catalog_xmin ----

my $age = sql("SELECT catalog_xmin_age FROM elt.stat_sources WHERE source = 'far'");
cmp_ok($age, '>=', 0, 'the age of what the slot keeps of the catalogs is shown');
sql("SELECT elt.pause_source('far'), elt.pause_source('served')");
poll_ok($origin, 'SELECT count(*) = 0 FROM pg_replication_slots WHERE active', 'both are paused');
sql("SELECT elt.alter_alert_rule('slot_xmin_age', threshold => 1000)");
there('DO $$ BEGIN FOR i IN 1 .. 1100 LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$');
poll_ok($sink, "SELECT count(*) = 2 FROM elt.stat_sources WHERE catalog_xmin_age > 1000", 'it grows while the sources are paused');
poll_ok($sink, "SELECT count(*) = 2 FROM elt.alerts WHERE rule = 'slot_xmin_age' AND state = 'firing' AND value > 1000 AND hint ~ 'resume'", 'an alert fires');
is(sql(qq{SELECT count(*) FROM elt.health() WHERE "check" ~ '^source ' AND detail ~ 'paused' AND hint ~ 'resume_source'}), '2', 'health() says what to do');
sql("SELECT elt.resume_source('far'), elt.resume_source('served')");
captured('resumed');
poll_perl(60, sub { there('CHECKPOINT'); sql("SELECT count(*) FROM elt.alerts WHERE rule = 'slot_xmin_age' AND state = 'firing'") eq '0' });
is(sql("SELECT count(*) FROM elt.alerts WHERE rule = 'slot_xmin_age' AND state = 'firing'"), '0', 'and it is over');

# ---- the password is nowhere ----

foreach my $view (qw(sources stat_sources stat_workers alerts gaps source_slots), 'health()')
{
	is(sql("SELECT count(*) FROM elt.$view v WHERE strpos(v::text, 'Gr7_' || 'never') > 0"), '0', "it is not in $view");
}
is(sql("SELECT count(*) FROM elt.check_source('far') c WHERE strpos(c::text, 'Gr7_' || 'never') > 0"), '0', 'nor in check_source()');
foreach my $node ($sink, $origin)
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity a WHERE strpos(a::text, 'Gr7_' || 'never') > 0"), '0', 'nor in pg_stat_activity');
	unlike(slurp_file($node->logfile), qr/\Q$password/, 'nor in a log that has all');
}
my $dump = "$home/dump.sql";
system_or_bail('pg_dump', '-f', $dump, '-h', $sink->host, '-p', $sink->port, 'postgres');
unlike(slurp_file($dump), qr/\Q$password/, 'nor in a dump');
like(slurp_file($dump), qr/passfile='\Q$home\E\/pass'/, 'which has the name of the passfile');

sql("SELECT elt.drop_source('far'), elt.drop_source('served')");
nothing_left($origin);
nothing_left($sink);
$sink->stop;
$origin->stop;
done_testing();
