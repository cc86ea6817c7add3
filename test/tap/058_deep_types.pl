# Types that nest deeper, or have more fields, than a type's code tells: a first
# copy and the stream stop at the same point, and what is below is a string.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('deep');
my $sql = "CREATE EXTENSION elt;\nCREATE TYPE n0 AS (x int);\n";

$sql .= "CREATE TYPE n$_ AS (x n" . ($_ - 1) . ");\n" foreach 1 .. 45;
# each level has the one below twice, in names that are long: 2^10 of the lowest
$sql .= "CREATE TYPE w0 AS (" . 'a' x 60 . " int);\n";
$sql .= "CREATE TYPE w$_ AS (" . 'a' x 60 . ' w' . ($_ - 1) . ', ' . 'b' x 60 . ' w' . ($_ - 1) . ");\n" foreach 1 .. 10;
$node->safe_psql('postgres', $sql . <<'EOS');
CREATE TABLE deep (id int PRIMARY KEY, v n45, w w10);
INSERT INTO deep VALUES (1, '("()")', '(,)');
SELECT elt.create_source('deep', ARRAY['public.deep']);
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the table is copied');
$node->safe_psql('postgres', 'INSERT INTO deep SELECT 2, v, w FROM deep');
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('deep', timeout => '180 s')"), 't', 'and streamed');
is($node->safe_psql('postgres', "SELECT string_agg(op::text, '' ORDER BY change_id), count(DISTINCT after - 'id'), count(DISTINCT schema_version) FROM elt_raw.deep"),
	'rc|1|1', 'both tell the same row, of the same shape');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM (SELECT (jsonb_populate_record(NULL::deep, after)).v FROM elt_raw.deep) AS r JOIN deep ON r.v::text = deep.v::text AND deep.id = 1"),
	'2', 'which is the row');
$node->stop;
done_testing();
