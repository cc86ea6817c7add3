
# DROP DATABASE and its like: elt's workers make room, and nothing stays.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('database');
$node->init(allows_streaming => 'logical');
$node->start;

sub make_database
{
	my ($name) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, 'CREATE EXTENSION elt; CREATE TABLE t (id int PRIMARY KEY)');
	$node->safe_psql($name, "SELECT elt.create_source('s', ARRAY['t'])");
	is($node->safe_psql($name, "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', "$name is captured");
	return;
}

sub state_of
{
	my ($name) = @_;
	return $node->safe_psql($name, 'SELECT state FROM elt.stat_sources');
}

make_database('one');
$node->safe_psql('postgres', 'CREATE ROLE stranger CREATEDB');
my $workers = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity WHERE datname = 'one'";
my $before = $node->safe_psql('postgres', $workers);
my ($code, $out, $err) = $node->psql('postgres', 'SET ROLE stranger; DROP DATABASE one');
isnt($code, 0, 'a stranger cannot drop it');
like($err, qr/must be owner of database one/, 'and is told so');
is($node->safe_psql('postgres', $workers), $before, 'the workers run on');

# a copy of it, and other names: the workers come back by themselves
$node->safe_psql('postgres', 'CREATE DATABASE copy_of_one TEMPLATE one');
$node->safe_psql('postgres', 'ALTER DATABASE one RENAME TO uno');
$node->safe_psql('uno', 'INSERT INTO t VALUES (1)');
is($node->safe_psql('uno', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'capture goes on');
is($node->safe_psql('uno', 'SELECT count(*) FROM elt_raw.s'), '1', 'exactly once');
is(state_of('copy_of_one'), 'paused', 'the copy does not capture by itself');

# resumed, the copy has a slot of its own
$node->safe_psql('copy_of_one', "SELECT elt.resume_source('s')");
is($node->safe_psql('copy_of_one', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'the copy is captured');
$node->safe_psql('copy_of_one', 'INSERT INTO t VALUES (7)');
is($node->safe_psql('copy_of_one', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'and goes on');
is($node->safe_psql('copy_of_one', "SELECT string_agg(op::text || (after->>'id'), ' ' ORDER BY change_id) FROM elt_raw.s"),
	'c7', 'with its own rows');

# and away, with capture running
$node->safe_psql('postgres', 'DROP DATABASE uno');
$node->safe_psql('postgres', 'DROP DATABASE copy_of_one WITH (FORCE)');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '0', 'no slot is left');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_origin'), '0', 'no origin is left');
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'elt%' AND backend_type <> 'elt launcher'"),
	'no worker is left');

# the same name again is a new database
make_database('one');
is(state_of('one'), 'streaming', 'and is captured');

$node->stop;
done_testing();
