# pg_dump and pg_restore: configuration and raw staging come along, sources come
# back paused with a hint, no secret is in a dump, and who resumes goes on.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('dumped', 'elt.max_workers = 1', 'elt.raw_retention = 1s');
my $other = elt_node('other', 'elt.max_workers = 1', 'elt.raw_retention = 1s');
my $dir = PostgreSQL::Test::Utils::tempdir;

sub sql { return $node->safe_psql('postgres', $_[0]) }

sql('CREATE EXTENSION elt');
sql('CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE a_target (id int PRIMARY KEY, v text)');
# what is dumped must still be there, and what was dropped is told
sql(q{SELECT elt.create_source('s', ARRAY['a'], options => '{"raw_retention": "1 day"}')});
sql(sprintf(q{SELECT elt.create_source('far', conninfo => 'host=%s port=%s dbname=postgres password=hunter2 user=%s', publication => 'elt_s', snapshot => 'none')},
		$node->host, $node->port, scalar getpwuid($<)));
sql("SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
sql("INSERT INTO a SELECT i, 'v' || i FROM generate_series(1, 500) i");
is(sql("SELECT elt.wait_for('p')"), 't', 'changes went through');
sql("INSERT INTO elt.raw_dropped SELECT source_id, 'public.a', 0, '0/1', '2001-01-01' FROM elt.sources WHERE name = 's'");

my @files = (
	[ 'plain', '-f', "$dir/plain.sql" ],
	[ 'custom', '-Fc', '-f', "$dir/custom.dump" ],
	[ 'parallel', '-Fd', '-j', '2', '-f', "$dir/parallel" ],
	[ 'schema_only', '-Fc', '-s', '-f', "$dir/schema_only.dump" ]);
foreach my $file (@files)
{
	my ($name, @options) = @$file;
	command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), @options ], "a dump: $name");
}
unlike(slurp_file("$dir/plain.sql"), qr/hunter2/, 'no password is in it');

# Restores a dump into a new database and looks at what came.
sub restored
{
	my ($server, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $data = $name ne 'schema_only';
	my $at = $server == $node ? 'the same cluster' : 'another cluster';

	$server->safe_psql('postgres', "CREATE DATABASE $name");
	if ($name eq 'plain')
	{
		command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $server->connstr($name), '-f', "$dir/plain.sql" ],
			"$name is restored into $at");
	}
	elsif ($name eq 'parallel')
	{
		# an archive does not say that elt's tables depend on each other: these go first, one by one
		foreach my $part ([ '--section=pre-data' ], [ '--section=data', '-n', 'elt' ],
			[ '--section=data', '-N', 'elt', '-j', '2' ], [ '--section=post-data', '-j', '2' ])
		{
			command_ok([ 'pg_restore', '-e', @$part, '-d', $server->connstr($name), "$dir/parallel" ], "@$part is restored into $at");
		}
	}
	else
	{
		command_ok([ 'pg_restore', '-e', '-d', $server->connstr($name), "$dir/$name.dump" ], "$name is restored into $at");
	}
	poll_ok($server, "SELECT count(*) = 1 FROM elt.workers() w JOIN pg_database d ON d.oid = w.dboid "
		  . "WHERE w.kind = 'supervisor' AND d.datname = '$name'", 'a supervisor is there', $name);
	is($server->safe_psql($name, "SELECT string_agg(source || ' ' || state, ', ' ORDER BY source) FROM elt.stat_sources"),
		$data ? 'far paused, s paused' : '', $data ? 'sources are paused' : 'without data no source');
	is($server->safe_psql($name, "SELECT count(*) FROM pg_stat_activity WHERE datname = '$name' AND backend_type = 'elt capture'"), '0',
		'and nothing captures');
	is($server->safe_psql($name, 'SELECT count(*) FROM elt.source_secrets'), '0', 'no password came along');
	return unless $data;
	like($server->safe_psql($name, q{SELECT hint FROM elt.health() WHERE "check" = 'source s'}), qr/elt\.resume_source\('s'\)/,
		'health() says what to do');
	is($server->safe_psql($name, 'SELECT count(*) FROM elt_raw.s'), '500', 'raw staging is there');
	is($server->safe_psql($name, "SELECT count(*) FROM elt.raw_dropped WHERE relation = 'public.a' AND upto_lsn = '0/1'"), '1', 'and how far it was dropped');
	same_as($server, $name, 'a_target');
}

# Rows of a table are those of the source's.
sub same_as
{
	my ($server, $name, $table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $sum = q{SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM };
	is($server->safe_psql($name, "$sum $table t"), $server->safe_psql($name, "$sum a t"), "$table equals the source");
}

restored($node, 'plain');
restored($other, 'custom');
restored($other, 'parallel');
restored($other, 'schema_only');

# what is restored keeps its raw staging, however old, until it is resumed
$other->safe_psql('custom', "SELECT elt.set_raw_retention('s', '1 s')");
$other->safe_psql('custom', "DROP PUBLICATION IF EXISTS elt_birds; CREATE TABLE canary (id int PRIMARY KEY)");
$other->safe_psql('custom', q{SELECT elt.create_source('birds', ARRAY['canary'])});
$other->safe_psql('custom', 'INSERT INTO canary VALUES (1)');
is($other->safe_psql('custom', "SELECT elt.wait_for_source('birds')"), 't', 'a new source runs beside the restored ones');
poll_ok($other, 'SELECT count(*) = 0 FROM elt_raw.birds', 'retention runs', 'custom');
is($other->safe_psql('custom', 'SELECT count(*) FROM elt_raw.s'), '500', 'but what was restored and not resumed stays');
$other->safe_psql('custom', "SELECT elt.set_raw_retention('s', '1 day')");

foreach my $case ([ $node, 'plain' ], [ $other, 'custom' ], [ $other, 'parallel' ])
{
	my ($server, $name) = @$case;
	$server->safe_psql($name, "SELECT elt.drop_source('far')");
	$server->safe_psql($name, "INSERT INTO a VALUES (1001, 'missed')");
	$server->safe_psql($name, "SELECT elt.resume_source('s')");
	is($server->safe_psql($name, "SELECT elt.wait_for_source('s', timeout => '60 s')"), 't', "$name: resumed");
	$server->safe_psql($name, "INSERT INTO a VALUES (1002, 'seen'); UPDATE a SET v = 'changed' WHERE id % 2 = 0; DELETE FROM a WHERE id % 5 = 0");
	is($server->safe_psql($name, "SELECT elt.wait_for('p', timeout => '60 s')"), 't', 'and transformed');
	is($server->safe_psql($name, "SELECT count(*) FROM a_target WHERE v = 'seen' OR v = 'changed'"),
		$server->safe_psql($name, "SELECT count(*) FROM a WHERE v = 'seen' OR v = 'changed'"), 'changes since then arrive');
	is($server->safe_psql($name, 'SELECT count(*) - count(DISTINCT change_id) FROM elt_raw.s'), '0', 'under new numbers');
	$server->safe_psql($name, 'DROP EXTENSION elt CASCADE');
}
$node->safe_psql('postgres', 'DROP DATABASE plain');
is(sql("SELECT string_agg(slot_name::text, ',') = (SELECT slot_name FROM elt.sources WHERE name = 's') FROM pg_replication_slots WHERE slot_name LIKE 'elt_s%'"),
	't', 'the slot of the database that was dumped is untouched');
$other->safe_psql('postgres', "DROP DATABASE $_") foreach qw(custom parallel schema_only);
nothing_left($other);

# somebody who may not read elt's tables gets no dump of them
sql('CREATE ROLE reader LOGIN');
command_fails_like([ 'pg_dump', '-U', 'reader', '-d', $node->connstr('postgres') ],
	qr/permission denied/, 'a dump takes the right to read raw staging');

$node->stop;
$other->stop;
done_testing();
