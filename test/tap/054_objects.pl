# What others do to the objects that elt works with: tables, schemas and roles
# that are renamed or dropped, a database that is copied, a server that is stopped in
# the middle of a copy.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('objects', 'elt.max_workers = 1');
my $err;

sub sql { return $node->safe_psql('postgres', $_[0]) }

# A change of the table that nobody touches goes through.
my $rows = 0;

sub goes_through
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$rows++;
	sql("INSERT INTO steady VALUES ($rows)");
	is(sql("SELECT elt.wait_for('steady', timeout => '180 s')"), 't', "$what: capture and transform go on");
	is(sql('SELECT count(*) FROM steady_target'), $rows, 'and nothing is lost');
}

sql('CREATE EXTENSION elt; CREATE SCHEMA shop');
sql('CREATE TABLE steady (id int PRIMARY KEY); CREATE TABLE steady_target (id int PRIMARY KEY)');
sql("CREATE TABLE shop.$_ (id int PRIMARY KEY, v text)") foreach qw(one two);
sql('CREATE TABLE one_target (id int PRIMARY KEY, v text)');
sql("SELECT elt.create_source('s', ARRAY['steady', 'shop.one', 'shop.two'])");
sql("SELECT elt.create_pipeline('steady', 's', 'public.steady', 'steady_target')");
sql("SELECT elt.create_pipeline('one', 's', 'shop.one', 'one_target')");
goes_through('at first');

# ---- source tables ----

sql("BEGIN; INSERT INTO shop.one VALUES (1, 'old name'); ALTER TABLE shop.one RENAME TO uno; INSERT INTO shop.uno VALUES (2, 'new name'); COMMIT");
goes_through('a source table is renamed');
is(sql("SELECT string_agg(relation || ' ' || (after->>'v'), ', ' ORDER BY change_id) FROM elt_raw.s WHERE relation LIKE 'shop.%'"),
	'shop.one old name, shop.uno new name', 'what it holds is staged under the name of its moment');
sql("BEGIN; INSERT INTO shop.two VALUES (1, 'last words'); DROP TABLE shop.two; COMMIT");
goes_through('a source table is dropped');
is(sql("SELECT after->>'v' FROM elt_raw.s WHERE relation = 'shop.two'"), 'last words', 'its last change is staged');
sql("BEGIN; UPDATE shop.uno SET v = 'gone' WHERE id = 1; DROP SCHEMA shop CASCADE; COMMIT");
goes_through('the schema of a source table is dropped');
is(sql("SELECT after->>'v' FROM elt_raw.s WHERE relation = 'shop.uno' ORDER BY change_id DESC LIMIT 1"), 'gone', 'its last change is staged, too');
sql("CREATE SCHEMA shop; CREATE TABLE shop.one (id int PRIMARY KEY, v text, w int)");
sql('ALTER PUBLICATION elt_s ADD TABLE shop.one');
sql("INSERT INTO shop.one VALUES (7, 'anew', 7)");
is(sql("SELECT elt.wait_for('one', timeout => '180 s')"), 't', 'a table made anew is captured');
is(sql('SELECT v FROM one_target WHERE id = 7'), 'anew', 'by the pipeline that was there');

sql("CREATE TABLE shop.two (id int PRIMARY KEY, v text, w int); INSERT INTO shop.two VALUES (5, 'before', 5)");
sql("SELECT elt.add_table('s', 'shop.two')");
is(sql("SELECT elt.wait_for_source('s', timeout => '60 s')"), 't', 'one that is made anew can be added');
sql("INSERT INTO shop.two VALUES (6, 'after', 6)");
is(sql("SELECT elt.wait_for_source('s', timeout => '60 s')"), 't', 'and is captured');
is(sql("SELECT string_agg(concat(op, after->>'id'), ' ' ORDER BY change_id) FROM elt_raw.s WHERE relation = 'shop.two'"),
	'c1 t r5 c6', 'what the old one had is truncated, what the new one had is copied');
isnt($node->psql('postgres', "SELECT elt.add_table('s', 'shop.two')", stderr => \$err), 0, 'once more it cannot be added');
like($err, qr/table shop.two is in source "s" already/, 'and that is said');

# ---- targets ----

sql('ALTER TABLE one_target RENAME TO renamed_target');
sql("INSERT INTO shop.one VALUES (8, 'renamed', 8)");
is(sql("SELECT elt.wait_for('one', timeout => '180 s')"), 't', 'a target that is renamed is written on');
is(sql('SELECT v FROM renamed_target WHERE id = 8'), 'renamed', 'under its new name');
sql('DROP TABLE renamed_target');
sql("INSERT INTO shop.one VALUES (9, 'dropped', 9)");
poll_ok($node, "SELECT state = 'blocked' AND last_error <> '' FROM elt.stat_pipelines WHERE pipeline = 'one'", 'without its target a pipeline blocks');
goes_through('a target is dropped');
sql("SELECT elt.drop_pipeline('one')");

# ---- owners ----

sql('CREATE ROLE joe LOGIN REPLICATION; CREATE SCHEMA joe AUTHORIZATION joe; GRANT CREATE ON DATABASE postgres TO joe');
sql('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO joe');
sql("SET ROLE joe; CREATE TABLE joe.t (id int PRIMARY KEY, v text); CREATE TABLE joe.t_target (id int PRIMARY KEY, v text);");
sql("SET ROLE joe; SELECT elt.create_source('joes', ARRAY['joe.t'])");
sql("SET ROLE joe; SELECT elt.create_pipeline('joes', 'joes', 'joe.t', 'joe.t_target')");
sql("INSERT INTO joe.t VALUES (1, 'joe')");
is(sql("SELECT elt.wait_for('joes', timeout => '180 s')"), 't', 'a source and a pipeline of a role run');
isnt($node->psql('postgres', 'DROP ROLE joe', stderr => \$err), 0, 'the role cannot be dropped beneath them');
like($err, qr/privileges for schema elt_raw/, 'since raw staging is its own to read');
sql('DROP OWNED BY joe CASCADE');
sql('REVOKE ALL ON DATABASE postgres FROM joe; DROP ROLE joe');
goes_through('an owner is dropped with all that was his');
like(sql(q{SELECT detail FROM elt.health() WHERE "check" = 'publication of source joes' AND NOT ok}), qr/nothing is captured/,
	'health() tells that his publication is gone');
is($node->psql('postgres', "SELECT * FROM elt.health(), elt.stat_pipelines, elt.backlog", stderr => \$err), 0, 'the views are readable') or diag($err);
is($node->psql('postgres', "SELECT elt.drop_pipeline('joes')", stderr => \$err), 0, 'his pipeline can be dropped') or diag($err);
is($node->psql('postgres', "SELECT elt.drop_source('joes')", stderr => \$err), 0, 'and his source') or diag($err);
poll_ok($node, 'SELECT count(*) = 1 FROM pg_replication_slots', 'with its slot');

# ---- a stop in the middle of a copy ----

sql("CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large SELECT i, repeat('x', 100) FROM generate_series(1, 100000) i");
foreach my $mode (qw(immediate fast))
{
	sql("CREATE TABLE large_$mode AS TABLE large; ALTER TABLE large_$mode ADD PRIMARY KEY (id)");
	sql("SELECT elt.add_table('s', 'public.large_$mode')");
	poll_ok($node, "SELECT state = 'snapshot' FROM elt.stat_sources WHERE source = 's'", 'a copy is on its way');
	$node->stop($mode);
	$node->start;
	sql("DELETE FROM large_$mode WHERE id % 3 = 0; UPDATE large_$mode SET v = 'y' WHERE id % 10 = 0");
	is(sql("SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', "after a stop $mode it is made");
	same_as_source($node, $node, 's', "large_$mode");
	goes_through("after a stop $mode");
}

# ---- a copy of the database ----

$node->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
goes_through('beside a copy of the database');
is($node->safe_psql('twin', "SELECT string_agg(state, ',') FROM elt.stat_sources"), 'paused', 'which does not capture');
$node->safe_psql('template1', 'DROP DATABASE twin WITH (FORCE)');
sql('DROP EXTENSION elt CASCADE');
nothing_left($node);

$node->stop;
done_testing();
