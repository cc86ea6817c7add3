# Other majors of PostgreSQL: a server of another one as the source and as the
# reader, where ELT_OTHER_MAJOR names one that runs (make test-matrix does); what
# newer majors bring; and versions of elt itself that do not fit.
#
# ELT_OTHER_MAJOR is a directory with the Unix socket of port 5432.  elt is
# preloaded there, and the role of this user's name is superuser.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @tables = qw(pgbench_accounts pgbench_branches pgbench_tellers pgbench_history every_type);
my $other_socket = $ENV{ELT_OTHER_MAJOR};
my $node = elt_node('majors');
my $major = int($node->safe_psql('postgres', 'SHOW server_version_num') / 10000);

# What a table of one server is made of; the rows are in the statements.
my $every_type = <<'EOS';
CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
CREATE TYPE pair AS (a int, b text[]);
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE TABLE every_type (id int PRIMARY KEY, i2 int2, i8 int8, n numeric, f4 float4, f8 float8, b bool, m money, t text,
	v varchar(20), c char(5), nm name, by bytea, ts timestamp, tz timestamptz, d date, tm time, tmz timetz, iv interval,
	u uuid, ip inet, ci cidr, mac macaddr, bits varbit, j json, jb jsonb, x xml, tsv tsvector, pt point, po polygon,
	r int4range, mr nummultirange, ia int[], ta text[], e mood, p pair, pa pair[], dom positive, lsn pg_lsn, long text,
	stored int GENERATED ALWAYS AS (id * 2) STORED);
EOS
my $row = <<'EOS';
-32768, 9223372036854775807, 12345678901234567890.123456789, 'NaN', '-0', true, '12.34', E'line\nbreak "q" \\ é',
	'varchar', 'c', 'name', '\x00ff', '-infinity', '2024-02-29 12:00:00.000001+02', '4713-01-01 BC', '24:00:00', '01:02:03+05:30',
	'1 year 2 mons -3 days 04:05:06.7', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03',
	B'10110', '{"a": 1, "a":  [null]}', '{"z": 1e2, "é": "\u00e9"}', '<a>1</a>', 'a:1A b:2', '(1,-0)', '((0,0),(1,1),(2,0))',
	'[1,10)', '{[1.5,2),[3,)}', '[2:3]={NULL,7}', '{"",NULL,"a,b","NULL"}', 'it''s ok', ROW(1, '{x,NULL}'), ARRAY[ROW(2, NULL)::pair, NULL],
	0.5, '16/B374D848'
EOS

sub create_tables
{
	my ($server) = @_;
	pgbench_init($server);
	$server->safe_psql('postgres', $every_type);
	$server->safe_psql('postgres', 'CREATE EXTENSION elt');
}

# One server captures from the other: copies and stream, with a load, types,
# unchanged out-of-line values, and a schema that changes in a transaction.
sub capture_between
{
	my ($origin, $sink, $name) = @_;
	my %version = map { ($_ => $_->safe_psql('postgres', "SELECT split_part(current_setting('server_version'), '.', 1)")) } $origin, $sink;
	my $what = "from $version{$origin} to $version{$sink}";

	create_tables($_) foreach $origin, $sink;
	isnt($version{$origin}, $version{$sink}, "$what: the majors differ");
	$origin->safe_psql('postgres', <<"EOS");
INSERT INTO every_type VALUES (1, $row, repeat('x', 3));
INSERT INTO every_type (id) VALUES (2);
CREATE PUBLICATION elt_$name FOR TABLE @{[ join(', ', @tables) ]};
EOS
	oracle_create($origin);
	# a directory that both see: the node's own may be in a root of its own
	$sink->safe_psql('postgres', "SELECT elt.create_source('$name', conninfo => 'host=$other_socket port=" . $origin->port
		  . " dbname=postgres')");
	my $load = pgbench_start($origin, '-T', '600');
	poll_ok($sink, "SELECT count(*) > 100 FROM elt_raw.$name WHERE op = 'u'", "$what: copies and stream");
	$origin->safe_psql('postgres', <<"EOS");
INSERT INTO every_type VALUES (3, $row, (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 1000) g));
INSERT INTO every_type (id) VALUES (4);
UPDATE every_type SET t = 'again' WHERE id IN (1, 4);
UPDATE every_type SET id = 5 WHERE id = 2;
DELETE FROM every_type WHERE id = 4;
BEGIN;
ALTER TABLE every_type ADD added int DEFAULT 7;
INSERT INTO every_type VALUES (6, $row, 'short');
COMMIT;
EOS
	$sink->safe_psql('postgres', 'ALTER TABLE every_type ADD added int DEFAULT 7');
	pgbench_stop($origin, $load);
	is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('$name', timeout => '180 s')"), 't', "$what: all is staged");
	same_as_oracle($origin, $sink, $name, $what, map { "public.$_" } grep { !/every_type/ } @tables);
	# the default of the new column is not in rows that were staged before it came
	$origin->safe_psql('postgres', 'UPDATE every_type SET t = t || t, added = id');
	is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('$name', timeout => '180 s')"), 't', "$what: all is staged once more");
	$origin->safe_psql('postgres', "UPDATE every_type SET long = 'y' WHERE id = 3");
	$sink->safe_psql('postgres', "SELECT elt.wait_for_source('$name', timeout => '180 s')");
	same_as_source($origin, $sink, $name, $_) foreach @tables;

	$sink->safe_psql('postgres', "SELECT elt.drop_source('$name')");
	poll_ok($origin, "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_%'", "$what: the slot goes with the source");
	$origin->safe_psql('postgres', "SELECT pg_drop_replication_slot('oracle'); DROP PUBLICATION elt_$name");
	$_->safe_psql('postgres', 'DROP EXTENSION elt; DROP TABLE ' . join(', ', @tables) . '; DROP TYPE mood, pair; DROP DOMAIN positive')
	  foreach $origin, $sink;
}

SKIP:
{
	skip 'ELT_OTHER_MAJOR names no server', 1 if !defined $other_socket;
	my $other = bless { _host => $other_socket, _port => 5432, _name => 'other' }, ref($node);

	$node->append_conf('postgresql.conf', "unix_socket_directories = '" . $node->host . ", $other_socket'");
	$node->restart;
	capture_between($other, $node, 'there');
	capture_between($node, $other, 'back');
}

# a reader that speaks another version of the change stream is refused at once
$node->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('versions', 'elt')");
my ($code, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT count(*) FROM pg_logical_slot_peek_binary_changes('versions', "
	  . "NULL, NULL, 'format', 'batch', 'publication', 'p', 'version', '0')");
like($err, qr/0A000: the reader asks for version 0 of elt's change stream, and elt here speaks version \d+\n.*HINT:  Install the same version/s,
	'a reader of another version of elt is refused');
$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('versions')");

# 17: waits have names
$node->safe_psql('postgres', 'CREATE EXTENSION elt');
my $waits = $major >= 17 ? 'EltNap' : 'Extension';
poll_ok($node, "SELECT wait_event_type = 'Extension' AND wait_event = '$waits' FROM pg_stat_activity WHERE backend_type = 'elt launcher'",
	"an idle worker waits as $waits");

# 18: virtual columns are in no WAL, and no copy has them either; publications
# say whether they give stored ones, and elt takes these either way
my $virtual = $major >= 18 ? ', w int GENERATED ALWAYS AS (a * 3) VIRTUAL' : '';
$node->safe_psql('postgres', <<"EOS");
CREATE TABLE generated (a int PRIMARY KEY, s int GENERATED ALWAYS AS (a * 2) STORED$virtual, z text);
INSERT INTO generated (a, z) VALUES (1, 'copied');
SELECT elt.create_source('generated', tables => ARRAY['generated']);
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'a table with generated columns is captured');
$node->safe_psql('postgres', "INSERT INTO generated (a, z) VALUES (2, 'streamed')");
$node->safe_psql('postgres', "SELECT elt.wait_for_source('generated', timeout => '180 s')");
is($node->safe_psql('postgres', 'SELECT op, after FROM elt_raw.generated ORDER BY change_id'),
	qq(r|{"a": 1, "s": 2, "z": "copied"}\nc|{"a": 2, "s": 4, "z": "streamed"}), 'what is computed when it is read is left out, by copy and stream alike');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.schema_versions WHERE relation = 'public.generated'"), '1', 'in one schema version');
$node->safe_psql('postgres', "SELECT elt.drop_source('generated')");
nothing_left($node);

# 17: the slot of a source with the option "failover" lives on with a standby that is promoted
my $sink = elt_node('sink');
$sink->safe_psql('postgres', 'CREATE EXTENSION elt');
my $primary = elt_node('primary');
$primary->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION elt_far FOR TABLE t; INSERT INTO t VALUES (1)');

if ($major < 17)
{
	$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '" . $primary->connstr('postgres') =~ s/'/''/gr . "', "
		  . "options => '{\"failover\": true}')");
	poll_ok($sink, "SELECT state = 'error' AND last_error ~ 'failover.* needs PostgreSQL 17' FROM elt.stat_sources", 'failover needs 17 at the source');
	is($primary->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '0', 'and no other slot is made instead');
}
else
{
	$primary->safe_psql('postgres', "SELECT pg_create_physical_replication_slot('standby')");
	$primary->append_conf('postgresql.conf', "synchronized_standby_slots = 'standby'");
	$primary->reload;
	$primary->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', join("\n", "primary_conninfo = '" . $primary->connstr . " dbname=postgres'",
			"primary_slot_name = 'standby'", 'hot_standby_feedback = on', 'sync_replication_slots = on', "synchronized_standby_slots = ''", ''));
	$standby->start;

	$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => 'host=" . $primary->host . ',' . $standby->host
		  . ' port=' . $primary->port . ',' . $standby->port . " dbname=postgres target_session_attrs=read-write', options => '{\"failover\": true}')");
	poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'a source with the option failover');
	$primary->safe_psql('postgres', 'INSERT INTO t VALUES (2)');
	poll_ok($sink, "SELECT count(*) = 2 FROM elt_raw.far", 'it is captured');
	poll_ok($standby, "SELECT synced AND NOT temporary AND invalidation_reason IS NULL FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_%'", 'the standby keeps its slot');

	$primary->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(3, 1000)');
	$primary->wait_for_catchup($standby);
	$primary->stop('immediate');
	$standby->promote;
	$standby->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1001, 1500)');
	poll_ok($sink, "SELECT count(*) >= 1500 FROM elt_raw.far", 'capture goes on from the promoted standby');
	is($sink->safe_psql('postgres', "SELECT count(*), count(DISTINCT after->>'id'), sum((after->>'id')::int) FROM elt_raw.far"), '1500|1500|1125750',
		'each change once, none missing');
}

done_testing();
