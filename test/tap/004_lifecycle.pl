# What starts, ends and comes back: settings that are missing or exhausted,
# processes that are terminated, cancelled or killed, stops of the server, and
# the extension itself, created and dropped, committed and rolled back.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('life', "shared_preload_libraries = ''", 'wal_level = replica', 'max_worker_processes = 4',
	'max_wal_senders = 1', 'max_replication_slots = 2', "output_plugin_libraries = 'pgoutput'",
	'elt.max_workers = 0');
my ($out, $err);

# ---- a server that is not set up ----

$node->safe_psql('postgres', 'CREATE EXTENSION elt');
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE a_target (LIKE a INCLUDING ALL);
EOS
isnt($node->psql('postgres', "SELECT elt.create_source('s', tables => ARRAY['public.a'])", stderr => \$err), 0,
	'without preload no source can be made');
like($err, qr/elt is not preloaded.*HINT:.*shared_preload_libraries = 'elt'/s, 'and the error says what to do');
like($node->safe_psql('postgres', q{SELECT hint FROM elt.health() WHERE "check" = 'preload' AND NOT ok}),
	qr/shared_preload_libraries = 'elt'/, 'so does health()');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'elt'");
$node->restart;
poll_ok($node, "SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'supervisor' AND state <> 'ended'",
	'an extension that was there before starts with the server');
$node->psql('postgres', "SELECT elt.create_source('s', tables => ARRAY['public.a'])", stderr => \$err);
like($err, qr/WARNING:.*wal_level/, 'a source is warned of wal_level');
poll_ok($node, q{SELECT state = 'error' AND last_error ~ 'wal_level = logical' FROM elt.stat_sources},
	'and waits, with the line to write');
like($node->safe_psql('postgres', q{SELECT hint FROM elt.health() WHERE "check" = 'wal_level' AND NOT ok}),
	qr/wal_level = logical/, 'health() has the line');

$node->append_conf('postgresql.conf', 'wal_level = logical');
# other users hold all there is: a supervisor, a walsender and both slots
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION elt');
$node->restart;
poll_ok($node, "SELECT count(*) = 2 FROM elt.workers() WHERE kind = 'supervisor' AND state <> 'ended'",
	'each database with the extension has its supervisor');
$node->safe_psql('postgres', "SELECT pg_create_physical_replication_slot('taken' || i) FROM generate_series(1, 2) i");
my ($in, $pipe_out) = ('', '');
my $sender = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres') . ' replication=database' ],
	'<', \$in, '>', \$pipe_out);
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_replication", 'the only walsender is taken');
foreach my $limit (qw(max_worker_processes max_wal_senders max_replication_slots))
{
	like($node->safe_psql('postgres', qq{SELECT hint FROM elt.health() WHERE "check" = '$limit' AND NOT ok}),
		qr/postgresql.conf.*$limit = \d+/, "health() tells that $limit is exhausted");
}
like(log_since($node), qr/WARNING:  no background worker is free for elt.*HINT:.*max_worker_processes/s, 'the log too');
my $warnings = () = log_since($node) =~ /no background worker is free/g;
cmp_ok($warnings, '<=', 2, 'once for each start of the supervisor');
$node->safe_psql('other', 'DROP EXTENSION elt CASCADE');
poll_ok($node, q{SELECT state = 'error' AND last_error ~ 'max_wal_senders' FROM elt.stat_sources},
	'a free worker is used by itself; then the walsender is missing');
$in .= "\\q\n";
$sender->finish;
poll_ok($node, q{SELECT state = 'error' AND last_error ~ 'output_plugin_libraries = .*elt' FROM elt.stat_sources},
	'a free walsender too; then the plugin is not allowed');
like($node->safe_psql('postgres', q{SELECT hint FROM elt.health() WHERE "check" = 'output_plugin_libraries' AND NOT ok}),
	qr/output_plugin_libraries = 'pgoutput, elt'/, 'health() has the line');
$node->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput, elt'");
$node->reload;
poll_ok($node, q{SELECT state = 'error' AND last_error ~ 'replication slots are in use' FROM elt.stat_sources},
	'after a reload it goes on by itself, and the slot is missing');
$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('taken' || i) FROM generate_series(1, 2) i");
$node->append_conf('postgresql.conf', join("\n", 'max_worker_processes = 16', 'max_wal_senders = 10',
		'max_replication_slots = 10', 'elt.max_workers = 2', 'elt.autoscale = off', ''));
$node->restart;
poll_ok($node, q{SELECT state = 'streaming' FROM elt.stat_sources}, 'with all that is needed it streams');
is($node->safe_psql('postgres', q{SELECT string_agg("check", ',') FROM elt.health() WHERE NOT ok}), '', 'and is healthy');

# ---- processes ----

$node->safe_psql('postgres', "SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
my $rows = 0;

# A row goes all the way, and no process is there twice.
sub goes_through
{
	my ($after) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$rows++;
	$node->safe_psql('postgres', "INSERT INTO a VALUES ($rows, 'x')");
	poll_ok($node, "SELECT count(*) = $rows FROM a_target", "a row goes through $after");
	poll_ok($node, "SELECT bool_and(n = 1) FROM (SELECT count(*) AS n FROM elt.workers() WHERE state <> 'ended' GROUP BY kind, dboid, object_id) w",
		"and nobody runs twice");
}

goes_through('at first');
poll_ok($node, "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'elt transform'", 'the pool is there');
my ($capture) = workers($node, 'capture');
foreach my $signal ('terminate', 'cancel')
{
	foreach my $kind (qw(supervisor transform capture walsender launcher))
	{
		my @before = workers($node, $kind);
		cmp_ok(scalar(@before), '>', 0, "there is a $kind");
		$node->safe_psql('postgres', "SELECT pg_${signal}_backend($_)") foreach @before;
		poll_ok($node,
			# a cancel may leave a worker where it is: there is nothing to cancel
			"SELECT count(*) = " . scalar(@before) . " FROM pg_stat_activity WHERE "
			  . ($signal eq 'terminate' ? 'pid NOT IN (' . join(',', @before) . ') AND ' : '')
			  . ($kind eq 'walsender' ? "backend_type = 'walsender'" : "backend_type = 'elt $kind'"),
			"$kind comes back after $signal");
		is(join(',', workers($node, 'capture')), $capture, 'a new supervisor adopts the running workers')
		  if $kind eq 'supervisor';
		goes_through("after $signal of $kind");
		($capture) = workers($node, 'capture');
	}
}
# both parents at once
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('elt launcher', 'elt supervisor')");
goes_through('without launcher and supervisor');
poll_ok($node, "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type IN ('elt launcher', 'elt supervisor')",
	'both come back');
goes_through('with new ones');

# a worker that cannot start is tried less and less often
$node->safe_psql('postgres', 'CREATE PUBLICATION gone FOR TABLE a');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', "BEGIN; SELECT elt.create_source('fails', publication => 'gone', snapshot => 'none'); DROP PUBLICATION gone; COMMIT");
poll_ok($node, q{SELECT state = 'error' AND last_error ~ 'publication "gone" does not exist' FROM elt.stat_sources WHERE source = 'fails'},
	'a source without its publication says so');
my $first = time();
poll_perl(20, sub { my $n = () = log_since($node, $offset) =~ /publication "gone" does not exist/g; $n >= 3 });
cmp_ok(time() - $first, '>', 2.5, 'it is tried at growing intervals');
$node->safe_psql('postgres', 'CREATE PUBLICATION gone FOR TABLE a');
poll_ok($node, q{SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 'fails'}, 'and starts once the publication is there');
$node->safe_psql('postgres', "SELECT elt.drop_source('fails')");
poll_ok($node, "SELECT count(*) = 1 FROM pg_replication_slots", 'its slot goes');

# ---- settings ----

foreach my $workers (3, 0, 1)
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET elt.max_workers = $workers");
	$node->reload;
	poll_ok($node, "SELECT count(*) = $workers FROM pg_stat_activity WHERE backend_type = 'elt transform'",
		"a reload makes the pool $workers");
}
my %settings = ('elt.batch_changes' => 5000, 'elt.batch_bytes' => "'1MB'", 'elt.raw_partition_changes' => 2048,
	'elt.local_conninfo' => "'host=" . $node->host . " port=" . $node->port . " user=" . getpwuid($<) . "'");
foreach my $name (sort keys %settings)
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET $name = $settings{$name}");
	$node->reload;
	(my $shown = $settings{$name}) =~ s/'//g;
	ok($node->poll_query_until('postgres', "SHOW $name", $shown), "a reload changes $name");
}
goes_through('with changed settings');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($capture)");
goes_through('with a capture worker that uses elt.local_conninfo');
foreach my $bad ('elt.max_workers = 1000', 'elt.batch_changes = 0', 'elt.batch_bytes = -1', 'elt.raw_partition_changes = 1',
	"elt.local_conninfo = 'nonsense'", 'elt.nonsense = 1')
{
	isnt($node->psql('postgres', "ALTER SYSTEM SET $bad", stderr => \$err), 0, "refused: $bad");
	like($err, qr/ERROR:.*elt\./, 'by its name');
}

# ---- pause and resume ----

$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
poll_ok($node, "SELECT s.state = 'paused' AND NOT r.active FROM elt.stat_sources s, pg_replication_slots r", 'a paused source lets its slot go');
$node->safe_psql('postgres', "INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(-200000, -1) i");
$rows += 200000;

# ---- stops of the server ----

$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_replication", 'a resumed source streams');
my $begin = time();
$node->stop('fast');
cmp_ok(time() - $begin, '<', 50, 'a fast stop with a backlog ends');
$node->start;
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_replication", 'it goes on');
$begin = time();
$node->stop('smart');
cmp_ok(time() - $begin, '<', 50, 'a smart stop does not wait for elt');
$node->start;
goes_through('after stops with a backlog');
is($node->safe_psql('postgres', "SELECT count(*) || ' ' || count(DISTINCT key) FROM elt_raw.s"), "$rows $rows",
	'each row was staged once');

my @pids = workers($node, '%');
cmp_ok(scalar(@pids), '>=', 5, 'all run');
$node->kill9;
ok(poll_perl(50, sub { !grep { kill(0, $_) } @pids }), 'without postmaster all leave soon');
$node->start;
goes_through('after the end of the postmaster');

# ---- the extension ----

$node->safe_psql('postgres', 'CREATE DATABASE rolled_back');
$node->safe_psql('rolled_back', 'BEGIN; CREATE EXTENSION elt; ROLLBACK');
is($node->safe_psql('rolled_back', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'elt supervisor' AND datname = current_database() AND xact_start IS NOT NULL"),
	'0', 'CREATE EXTENSION rolled back starts nothing');
$node->safe_psql('rolled_back', 'CREATE EXTENSION elt');
$node->safe_psql('rolled_back', 'CREATE TABLE a (id int PRIMARY KEY, v text)');
$node->safe_psql('rolled_back', "SELECT elt.create_source('s', tables => ARRAY['public.a'])");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'a second database has a source of the same name', 'rolled_back');
$node->safe_psql('rolled_back', "INSERT INTO a VALUES (1, 'second')");
is($node->safe_psql('rolled_back', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'its change is staged');
is($node->safe_psql('rolled_back', "SELECT string_agg(after->>'v', ',') FROM elt_raw.s"), 'second', 'and only its own');
($capture) = workers($node, 'capture');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION elt CASCADE; ROLLBACK');
goes_through('after a DROP EXTENSION that was rolled back');
$node->safe_psql('rolled_back', "BEGIN; SELECT elt.drop_source('s'); ROLLBACK");
$node->safe_psql('rolled_back', "INSERT INTO a VALUES (2, 'third')");
is($node->safe_psql('rolled_back', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'a drop_source that was rolled back changes nothing');
is($node->safe_psql('rolled_back', 'SELECT count(*) FROM elt_raw.s'), '2', 'and loses nothing');

$node->safe_psql('rolled_back', 'DROP EXTENSION elt CASCADE');
poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'rolled_back'", 'all leave a database without the extension');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_replication_slots WHERE database = 'rolled_back'"), '0', 'its slot is gone');
$node->safe_psql('postgres', 'DROP DATABASE rolled_back');
$node->safe_psql('postgres', 'DROP DATABASE other');
goes_through('beside a database that was dropped');

# with a paused source nobody but the supervisor knows the slot
$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_replication", 'the source pauses');
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
nothing_left($node);
is($node->safe_psql('postgres', "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text IN ('elt', 'elt_raw')) + (SELECT count(*) FROM pg_proc WHERE pronamespace::regnamespace::text = 'elt')"),
	'0', 'nothing is left in the schemas');
is($node->safe_psql('postgres', 'SELECT count(*) FROM a_target'), $rows, 'the target stays');
$node->safe_psql('postgres', 'CREATE EXTENSION elt');
poll_ok($node, "SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'supervisor' AND state <> 'ended'", 'it can be created again');
$node->safe_psql('postgres', "SELECT elt.create_source('s', publication => 'gone')");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'and captures again');
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
nothing_left($node);
$node->stop;
done_testing();
