# DROP EXTENSION beside workers that are at work, the versions of library and
# extension, and what a server without elt in shared_preload_libraries says.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('dropped', 'elt.max_workers = 1');
my ($err, $in);

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub supervised
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'elt supervisor'", $_[0]);
}

# ---- created and dropped in one transaction, in every combination ----

sql('CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE a_target (id int PRIMARY KEY, v text)');
sql('BEGIN; CREATE EXTENSION elt; DROP EXTENSION elt; COMMIT');
nothing_left($node);
is(sql("SELECT count(*) FROM pg_namespace WHERE nspname IN ('elt', 'elt_raw')"), '0', 'created and dropped: no schema is left');
sql('BEGIN; CREATE EXTENSION elt; DROP EXTENSION elt; CREATE EXTENSION elt; COMMIT');
supervised('created, dropped and created: it runs');
sql("SELECT elt.create_source('s', ARRAY['a'])");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'and captures');
my ($capture) = workers($node, 'capture');
my $slot = sql('SELECT slot_name FROM pg_replication_slots');

foreach my $end ('ROLLBACK', 'ROLLBACK TO here; COMMIT')
{
	sql("BEGIN; SAVEPOINT here; DROP EXTENSION elt CASCADE; $end");
	sql("INSERT INTO a SELECT coalesce(max(id), 0) + 1, 'x' FROM a");
	is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', "dropped and taken back by $end: capture goes on");
}
is(sql('SELECT count(*) FROM elt_raw.s'), sql('SELECT count(*) FROM a'), 'each row is staged once');
is(sql('SELECT slot_name FROM pg_replication_slots'), $slot, 'through the same slot');

# the source of the old extension must not live on in the new one, which gives out the same numbers
sql('BEGIN; DROP EXTENSION elt CASCADE; CREATE EXTENSION elt; COMMIT');
poll_ok($node, 'SELECT count(*) = 0 FROM pg_replication_slots', 'dropped and created in one transaction: the old slot goes');
poll_ok($node, "SELECT count(*) = 0 FROM pg_replication_origin WHERE roname LIKE 'elt%'", 'and the old origin');
supervised('it runs');
is(sql('DROP PUBLICATION elt_s; SELECT count(*) FROM elt.sources'), '0', 'with nothing in it');
sql("SELECT elt.create_source('s', ARRAY['a'])");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'it captures');
is(sql('SELECT count(*) FROM elt_raw.s'), sql('SELECT count(*) FROM a'), 'all of the table');

# ---- while a large transaction of the source is staged ----

sql("SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the pipeline runs');
sql("INSERT INTO a SELECT i, repeat('x', 200) FROM generate_series(1000, 200000) i");
poll_ok($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'elt capture' AND backend_xid IS NOT NULL",
	'a large transaction is being staged');
my $begin = time();
sql("SET lock_timeout = '5s'; BEGIN; DROP EXTENSION elt CASCADE; ROLLBACK");
cmp_ok(time() - $begin, '<', 3, 'DROP EXTENSION does not wait for it');
is(sql("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'taken back, capture begins the transaction anew');
same_as_target($node, $node, 'a', 'a_target');
is(sql("SELECT count(*) - count(DISTINCT key) FROM elt_raw.s"), '0', 'and stages it once');

sql("UPDATE a SET v = 'y'");
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'elt capture' AND state = 'active' AND query = 'staging changes'",
	'another one is being staged');
# somebody without the right to drop disturbs nobody
sql('CREATE ROLE stranger');
($capture) = workers($node, 'capture');
isnt($node->psql('postgres', 'SET ROLE stranger; DROP EXTENSION elt CASCADE', stderr => \$err), 0, 'a stranger cannot drop it');
like($err, qr/must be owner of extension elt/, 'and is told so');
is(join(',', workers($node, 'capture')), $capture, 'and the workers run on');
$begin = time();
sql("SET lock_timeout = '5s'; DROP EXTENSION elt CASCADE");
cmp_ok(time() - $begin, '<', 30, 'the owner can, at once');
nothing_left($node);
is(sql('SELECT count(*) FROM a_target'), sql('SELECT count(*) FROM a'), 'the target stays');

# ---- versions ----

sql('DROP PUBLICATION IF EXISTS elt_s; CREATE EXTENSION elt');
sql("SELECT elt.create_source('s', ARRAY['a'], snapshot => 'none')");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'it captures again');
is(sql(q{SELECT ok FROM elt.health() WHERE "check" = 'version'}), 't', 'library and extension are of one version');
sql("UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'elt'");
sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt supervisor'");
poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'elt capture'",
	'with an extension of another version nothing runs');
like(log_since($node), qr/elt supervisor ERROR:  elt's library is of version 1\.0, but extension elt in database "postgres" is of version 0\.9.*HINT:.*ALTER EXTENSION elt UPDATE/s,
	'and the log says why');
like(sql(q{SELECT hint FROM elt.health() WHERE "check" = 'version' AND NOT ok}), qr/ALTER EXTENSION elt UPDATE/, 'so does health()');
sql("INSERT INTO a VALUES (-1, 'waits')");
sql("UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'elt'");
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'with the right one it goes on');
is(sql("SELECT count(*) FROM elt_raw.s WHERE after->>'id' = '-1'"), '1', 'and nothing is lost');

# ---- not preloaded any more ----

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
isnt($node->psql('postgres', "SELECT elt.create_source('t', ARRAY['a_target'])", stderr => \$err), 0, 'without preload no source is made');
like($err, qr/elt is not preloaded.*HINT:.*shared_preload_libraries = 'elt'/s, 'and the error says what to do');
like(sql('SELECT state FROM elt.stat_sources'), qr/^(starting|error)$/, 'the views are readable');
sql("INSERT INTO a VALUES (-2, 'waits')");
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'elt'");
$node->restart;
is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'preloaded again it goes on');
is(sql("SELECT count(*) FROM elt_raw.s WHERE after->>'id' = '-2'"), '1', 'and nothing is lost');

$node->stop;
done_testing();
