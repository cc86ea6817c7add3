# Every type there is: what comes out of raw staging is what the source has,
# from a copy and from the stream, for each base type of pg_type, its array,
# and a domain, a composite and an array of composites over it.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('types');
my $psql = sub { return $node->safe_psql('postgres', $_[0]); };

# values by type; each is a literal of the type.  A type that is missing here
# fails the test below.
my %values = (
	bool => [qw(t f)],
	bytea => [ '\\x', '\\x00ff0a5c27', '\\x' . '00' x 50 ],
	char => [ 'a', '', ' ', '\\' ],
	name => [ 'n', 'a"b', ' ' ],
	int8 => [qw(-9223372036854775808 9223372036854775807 0 9007199254740993)],
	int2 => [qw(-32768 32767 0)],
	int4 => [qw(-2147483648 2147483647 -1)],
	text => [ '', ' ', 'NULL', 'null', '{}', "a\nb\tc\\d\"e'f", '\\N', '\\.', "\x01\x7f", 'true', '1', '{"$oversize": 1}', '%s%n', 'é😀' ],
	oid => [qw(0 4294967295)],
	xid => [qw(0 4294967295)],
	cid => [qw(0 4294967295)],
	tid => [ '(0,0)', '(4294967295,65535)' ],
	oidvector => [ '', '1 2 3' ],
	int2vector => [ '', '1 -2 3' ],
	xid8 => [qw(0 18446744073709551615)],
	json => [ '{"a":1,"a":2}', '{"a": [1.0, 1.00], "b": 1}', '"\\u0000"', '"\\ud800"', 'null', '-0', '[]', '""',
		'"null"', '"{\\"a\\":1,\\"a\\":2}"', '"\\"null\\""', '{"a": null}', 'true', '"[1]"', '0.10', '123456789012345678901234567890.5', '[' x 6000 . ']' x 6000 ],
	jsonb => [ '{"b":[1,{"c":null}],"a":1.50}', 'null', '"x"', '""', '"null"', '1e400', '[]', '{}', '0.000', '"\\u0001"', '[' x 3000 . ']' x 3000 ],
	xml => [ '<a b="c">d</a>', '', 'x &amp; y' ],
	point => [ '(1,2)', '(-0,1e-300)', '(Infinity,NaN)' ],
	lseg => ['[(1,2),(3,4)]'],
	path => [ '[(1,2),(3,4)]', '((1,2),(3,4))' ],
	box => ['(3,4),(1,2)'],
	polygon => ['((1,2),(3,4),(5,6))'],
	line => ['{1,2,3}'],
	circle => [ '<(1,2),3>', '<(1,2),Infinity>' ],
	float4 => [qw(3.4028235e+38 1e-45 -0 NaN Infinity -Infinity 0.1 16777217)],
	float8 => [qw(1.7976931348623157e+308 5e-324 -0 NaN Infinity -Infinity 0.1 9007199254740993 -1.5)],
	money => [ '12.34', '-92233720368547758.08', '0' ],
	macaddr => ['08:00:2b:01:02:03'],
	macaddr8 => ['08:00:2b:01:02:03:04:05'],
	inet => [qw(::1/64 10.1.2.3 10.1.2.3/8 ::ffff:1.2.3.4)],
	cidr => [qw(10.0.0.0/8 2001:db8::/32)],
	aclitem => ['=r/' . 'OWNER'],
	bpchar => [ 'ab   ', '', 'x' ],
	varchar => [ 'ab  ', '', 'NULL' ],
	date => [ '2024-02-29', 'infinity', '-infinity', '0044-03-15 BC', '5874897-12-31', '4713-01-01 BC' ],
	time => [qw(24:00:00 00:00:00 23:59:59.999999)],
	timestamp => [ '2024-02-29 12:34:56.789012', 'infinity', '-infinity', '0044-03-15 12:00:00 BC', '294276-12-31 23:59:59.999999', '4714-11-24 00:00:00 BC' ],
	timestamptz => [ '2024-02-29 12:34:56.789012+05:30', 'infinity', '-infinity', '0044-03-15 12:00:00+00 BC', '12024-01-01 00:00:00+00', '1883-01-01 00:00:00+00' ],
	interval => [ '1 year 2 mons -3 days 04:05:06.7', '-178000000 years', '00:00:00', '-00:00:00.000001', '2147483647 mons -2147483648 days' ],
	timetz => [qw(12:00:00.5+02 24:00:00-15:59 00:00:00+15:59:59)],
	bit => [qw(1 0)],
	varbit => [ '', '10', '1' x 70 ],
	numeric => [ '1' x 1000, '0.' . '0' x 500 . '1', qw(NaN Infinity -Infinity 0 0.000 -1.50 1.50), '9' x 300 . '.' . '9' x 300 ],
	refcursor => [ 'c', '' ],
	uuid => ['00000000-0000-0000-0000-00000000000a'],
	pg_lsn => [qw(0/0 FFFFFFFF/FFFFFFFF)],
	tsvector => [ "'a':1 'b':2A,3", '', "'it''s \\\\'" ],
	tsquery => [ "'a' & !'b' <2> 'c':*A", '' ],
	jsonpath => [ '$."a"[*]?(@ > 1)', 'strict $' ],
	txid_snapshot => ['10:20:10,14'],
	pg_snapshot => ['10:20:10,14'],
	int4range => [ 'empty', '[1,5)', '(,)', '[,3)' ],
	numrange => [ '[1.10,2.20)', 'empty', '(,)', '[NaN,NaN]', '[-Infinity,Infinity]' ],
	tsrange => ['["2024-01-01 00:00:00",infinity)'],
	tstzrange => ['["2024-01-01 00:00:00+00","2024-01-02 00:00:00+00"]'],
	daterange => [ '[2024-01-01,2024-02-01)', '[-infinity,infinity]' ],
	int8range => ['[1,9223372036854775807)'],
	int4multirange => [ '{[1,3),[5,7)}', '{}' ],
	nummultirange => ['{[1.0,3.0),(5,)}'],
	tsmultirange => ['{["2024-01-01 00:00:00","2024-01-02 00:00:00")}'],
	tstzmultirange => ['{["2024-01-01 00:00:00+00",)}'],
	datemultirange => ['{[2024-01-01,2024-02-01),[2025-01-01,)}'],
	int8multirange => ['{[1,3)}'],
	gtsvector => undef,	# no input function
	pg_node_tree => undef,
	pg_ndistinct => undef, pg_dependencies => undef, pg_mcv_list => undef, pg_brin_bloom_summary => undef, pg_brin_minmax_multi_summary => undef,
	hstore => [ '"a"=>"1", "b"=>NULL', '', '"x\\"y"=>"\\\\"' ],
	citext => [ 'MiXed', '' ],
	ltree => ['a.b.c'], lquery => ['a.*{1,2}.b'], ltxtquery => ['a & b*'],
	cube => [ '(1, 2),(3, 4)' ], seg => ['1 .. 2'], isbn => ['978-0-393-04002-9'], isbn13 => ['978-0-393-04002-9'], issn => ['1436-4522'],
	issn13 => ['977-1436-45200-8'], ean13 => ['978-0-393-04002-9'], ismn => ['M-060-11561-5'], ismn13 => ['979-0-060-11561-5'], upc => ['220356483481'],
	mood => [ 'sad', q{it's "ok", {really}} ],
	float8range => ['[1.5,-0]'],
	pair => ['(1,"a""b,(c)")'],
);
$values{float8range} = [ '[-1.5,0.1)', 'empty' ];
$values{$_} = ['-'] foreach qw(regproc regprocedure regoper regoperator regclass regcollation regtype regrole regnamespace regconfig regdictionary);
$values{$_} = ['0'] foreach qw(regoper regoperator);
$values{regclass} = [ 'pg_class', '-' ];
$values{regtype} = [ 'integer[]', '"char"' ];
$values{regconfig} = ['english'];
$values{regdictionary} = ['simple'];
$values{regcollation} = [ '"C"', '-' ];
$values{regnamespace} = ['pg_catalog'];

$psql->(<<'EOS');
CREATE EXTENSION elt;
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION seg; CREATE EXTENSION isn;
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", {really}');
CREATE TYPE float8range AS RANGE (subtype = float8);
CREATE TYPE pair AS (x int, "Y z" text);
EOS
my $owner = $psql->('SELECT current_user');
$values{aclitem} = ["=r/$owner"];

# every base, enum, range and multirange type that can be a column
my @types = split(/\n/, $psql->(<<'EOS'));
SELECT t.typname || '|' || format_type(t.oid, NULL) || '|' || (t.typarray <> 0) || '|' || (t.typreceive <> 0)
FROM pg_type t LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e' LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE t.typtype IN ('b', 'e', 'r', 'm') AND t.typisdefined AND NOT EXISTS (SELECT FROM pg_type a WHERE a.typarray = t.oid)
	AND t.typnamespace IN ('pg_catalog'::regnamespace, 'public'::regnamespace) AND coalesce(e.extname, '') <> 'elt'
ORDER BY 1
EOS
cmp_ok(scalar(@types), '>', 80, scalar(@types) . ' types');

my (@columns, @definitions, @missing);
foreach my $type (@types)
{
	my ($name, $sql, $array, $receive) = split(/\|/, $type);
	my $list = $values{$name};
	$list = ['{[1.5,2),(3,)}'] if $name eq 'float8multirange';
	if (!$list)
	{
		push @missing, $name if !exists $values{$name} && $name !~ /^(ghstore|ltree_gist|gbtree)/;
		next;
	}
	# a bare "char" and bit are of length 1
	$sql = '"char"' if $name eq 'char';
	$sql = 'bpchar' if $name eq 'bpchar';
	push @columns, { name => $name, sql => $sql, array => $array eq 'true', domain => $receive eq 'true', values => $list };
}
is(join(' ', @missing), '', 'the test has values of every type');

# One table per type: the value, its array, a domain, a composite, an array of
# composites, a composite with an array, a domain over the array
my (@tables, $ddl, $rows);
my $n = 0;
foreach my $column (@columns)
{
	my $table = 't' . $n++;
	my $type = $column->{sql};
	my $pseudo = $column->{array};

	# jsonb_populate_record fails on domains over types without a binary form
	my $domain = $column->{domain} ? "dom_$table" : $type;

	push @tables, $table;
	$column->{table} = $table;
	$ddl .= "CREATE DOMAIN dom_$table AS $type;\nCREATE TYPE com_$table AS (v $type" . ($pseudo ? ", a $type\[]" : '') . ", d $domain);\n";
	$ddl .= "CREATE TABLE $table (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v $type, d $domain, c com_$table, ca com_$table\[], da $domain\[]"
	  . ($pseudo ? ", a $type\[], a2 $type\[]" : '') . ");\n";
	$ddl .= "ALTER TABLE $table REPLICA IDENTITY FULL;\n" if $n % 3 == 0;
	foreach my $value (@{ $column->{values} }, undef)
	{
		my $literal = defined $value ? "'" . ($value =~ s/'/''/gr) . "'::$type" : "NULL::$type";
		$rows .= "INSERT INTO $table (v, d, c, ca, da" . ($pseudo ? ', a, a2' : '') . ") SELECT v, v, ROW(v" . ($pseudo ? ', ARRAY[v, NULL, v]' : '')
		  . ", v)::com_$table, ARRAY[ROW(v" . ($pseudo ? ", ARRAY[v]" : '') . ", NULL)::com_$table, NULL], ARRAY[v, NULL]::$domain\[]"
		  . ($pseudo ? ", ARRAY[v, NULL, v], ARRAY[[v, v], [v, NULL]]" : '') . " FROM (SELECT $literal AS v) x;\n";
	}
	# bounds of their own, three dimensions, none
	$rows .= "INSERT INTO $table (a, a2) SELECT a, ARRAY[[[v]], [[v]]] FROM (SELECT v, array_fill(v, ARRAY[2], ARRAY[-3]) AS a FROM $table LIMIT 1) x;\n"
	  . "INSERT INTO $table (a, a2) VALUES ('{}', NULL);\n" if $pseudo;
}
$node->safe_psql('postgres', $ddl);

# half of the rows come by the copy, the same ones again by the stream
$node->safe_psql('postgres', $rows);
$psql->("SELECT elt.create_source('shop', tables => ARRAY['" . join("', '", map { "public.$_" } @tables) . "'])");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the source streams');
poll_ok($node, "SELECT bool_and(state = 'ready') FROM elt.source_tables", 'all is copied');
$node->safe_psql('postgres', $rows);
is($psql->("SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'all is staged');

my $total = 0;
my @queries;
foreach my $column (@columns)
{
	my $table = $column->{table};
	my @names = ('v', 'd', 'c', 'ca', 'da', $column->{array} ? ('a', 'a2') : ());

	# whole rows, and scalars by a cast of their text (of a JSON string ->>
	# takes the quotes; text '-' is no regclass)
	my $by_cast = $column->{name} =~ /^jsonb?$|^regclass$/ ? 'true' : "t.v::text IS NOT DISTINCT FROM ((r.after->>'v')::$column->{sql})::text";
	push @queries, <<"EOS";
SELECT '$column->{name}', (SELECT count(*) FROM $table) = count(*) AND bool_and($by_cast), (
	SELECT string_agg(r.op::text || ' ' || w.key || ': ' || coalesce(left(w.value, 200), 'null') || ' came as ' || coalesce(left(h.value, 200), 'null'), '; ')
	FROM $table t
	JOIN elt_raw.shop r ON r.relation = 'public.$table' AND (r.after->>'id')::int = t.id,
	LATERAL elt.populate(NULL::$table, r.after) p,
	LATERAL (VALUES @{[join(', ', map { "('$_', t.$_\::text)" } @names)]}) AS w (key, value),
	LATERAL (VALUES @{[join(', ', map { "('$_', p.$_\::text)" } @names)]}) AS h (key, value)
	WHERE w.key = h.key AND w.value IS DISTINCT FROM h.value)
FROM $table t JOIN elt_raw.shop r ON r.relation = 'public.$table' AND (r.after->>'id')::int = t.id
EOS
	$total += @{ $column->{values} };
}
my ($out, $err);
$node->psql('postgres', join(";\n", @queries), stdout => \$out, stderr => \$err);
unlike($err, qr/ERROR/, 'all can be cast');
my @results = split(/\n/, $out);
is(scalar(@results), scalar(@columns), 'one result per type');
foreach my $result (@results)
{
	my ($name, $by_cast, $wrong) = split(/\|/, $result, 3);
	is("$by_cast $wrong", 't ', "$name: every value comes back");
}

# json is kept as JSON, so blanks, the order of members and the way a number is written are not
$psql->(q{CREATE TABLE j (id int PRIMARY KEY, j json, n json); ALTER PUBLICATION elt_shop ADD TABLE j;
	INSERT INTO j VALUES (1, ' { "b" : 1E+2 , "a" : [ 1.0,1.00 ] } ', ' null ')});
is($psql->("SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'json is staged');
is($psql->("SELECT (after->'j')::text || (after->'n')::text FROM elt_raw.shop WHERE relation = 'public.j'"),
	'{"a": [1.0, 1.00], "b": 100}" null "', 'json as JSON, its null as text');
$psql->('ALTER PUBLICATION elt_shop DROP TABLE j; DELETE FROM j');
is($psql->("SELECT count(*) FROM elt_raw.shop WHERE op = 'r'"), $psql->("SELECT count(*) FROM elt_raw.shop WHERE op = 'c' AND relation <> 'public.j'"), 'as many rows by the copy as by the stream');
diag("$total values of " . scalar(@columns) . ' types');

$psql->("SELECT elt.drop_source('shop')");
$node->stop;
done_testing();
