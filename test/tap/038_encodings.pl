# Sources in other encodings, and none: what has a form here is converted, the
# rest comes as its bytes; nothing is lost and nothing stops the stream.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('encodings');
sub raw { return $node->safe_psql($_[1] || 'postgres', $_[0]); }

raw("CREATE DATABASE \"$_\" ENCODING '$_' LOCALE 'C' TEMPLATE template0") foreach qw(LATIN1 SQL_ASCII EUC_JP UTF8);
my $conninfo = "host=" . $node->host . " port=" . $node->port;

# ---- into UTF8 ----

# bytes, so that psql has no part in it
my %rows = (
	LATIN1 => [ '\\xe9', '\\xfc62756e67', '\\x616263' ],
	SQL_ASCII => [ '\\xc3a9', '\\xfffe41', '\\x616263' ],
	# JIS X 0208, one that is in no Unicode, ASCII
	EUC_JP => [ '\\xc6fc', '\\xf5a1', '\\x616263' ],
);
my %names = (LATIN1 => 'latin', SQL_ASCII => 'ascii', EUC_JP => 'japan');

raw('CREATE EXTENSION elt', 'UTF8');
foreach my $encoding (sort keys %rows)
{
	raw(<<"EOS", $encoding);
CREATE TABLE t (id int PRIMARY KEY, v text, n int, a text[], big text, j json);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
CREATE FUNCTION add(first int) RETURNS void LANGUAGE sql AS \$f\$
	INSERT INTO t SELECT first + i, v, 0, ARRAY[v, NULL], repeat(v, 3000), to_json(v)
	FROM (SELECT i, convert_from(b, '$encoding') AS v FROM (VALUES @{[join(', ', map { "($_, '$rows{$encoding}[$_ - 1]'::bytea)" } 1 .. 3)]}) AS u(i, b)) x
\$f\$;
SELECT add(0);
CREATE PUBLICATION elt_$names{$encoding} FOR TABLE t;
EOS
	raw("SELECT elt.create_source('$names{$encoding}', conninfo => '$conninfo dbname=$encoding')", 'UTF8');
	poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = '$names{$encoding}'", "$encoding: copied", 'UTF8');
	raw("SELECT add(10); UPDATE t SET n = 1; DO \$\$ BEGIN PERFORM pg_logical_emit_message(true, 'elt', v) FROM t WHERE id = 2; END \$\$", $encoding);
	is(raw("SELECT elt.wait_for_source('$names{$encoding}', timeout => '180 s')", 'UTF8'), 't', "$encoding: streamed");
}
my $seen = q{SELECT string_agg(format('%s %s %s', key->>'id', op, CASE WHEN after->'v' ? '$bytes' THEN 'bytes ' || (after->'v'->>'$bytes') ELSE convert_to(after->>'v', 'UTF8')::text END), ', ' ORDER BY change_id)
	FROM elt_raw.SOURCE WHERE op IN ('r', 'c')};
is(raw($seen =~ s/SOURCE/latin/r, 'UTF8'), '1 r \\xc3a9, 2 r \\xc3bc62756e67, 3 r \\x616263, 11 c \\xc3a9, 12 c \\xc3bc62756e67, 13 c \\x616263', 'LATIN1 is converted');
is(raw($seen =~ s/SOURCE/ascii/r, 'UTF8'), '1 r \\xc3a9, 2 r bytes \\xfffe41, 3 r \\x616263, 11 c \\xc3a9, 12 c bytes \\xfffe41, 13 c \\x616263',
	'SQL_ASCII is taken as UTF8, and what is not comes as bytes');
is(raw($seen =~ s/SOURCE/japan/r, 'UTF8'), '1 r \\xe697a5, 2 r bytes \\xf5a1, 3 r \\x616263, 11 c \\xe697a5, 12 c bytes \\xf5a1, 13 c \\x616263',
	'what has no equivalent comes as bytes');
is(raw("SELECT convert_to(after->'a'->>0, 'UTF8')::text || (after->>'j') FROM elt_raw.latin WHERE key->>'id' = '11' AND op = 'c'", 'UTF8'), "\\xc3a9\xc3\xa9",
	'within arrays and json too');
foreach my $source (qw(latin ascii japan))
{
	is(raw("SELECT count(*) FROM elt_raw.$source u JOIN elt_raw.$source c ON c.key = u.key AND c.op IN ('r', 'c') WHERE u.op = 'u' AND u.unchanged IS NULL AND u.after->'big' = c.after->'big' AND u.after->'v' = c.after->'v'", 'UTF8'),
		'6', "$source: values left alone are filled, bytes too");
}
is(raw("SELECT string_agg(after::text, ' ' ORDER BY commit_lsn) FROM elt_raw.ascii WHERE op = 'm'", 'UTF8'), '"\\\\xfffe41"', 'a message that is no text comes as bytes');

# a pipeline by name refuses bytes, and takes the rest
raw("CREATE TABLE target (id int PRIMARY KEY, v text); SELECT elt.create_pipeline('p', 'ascii', 'public.t', 'target')", 'UTF8');
is(raw("SELECT elt.wait_for('p', timeout => '180 s')", 'UTF8'), 't', 'a pipeline runs');
is(raw("SELECT string_agg(id::text, ' ' ORDER BY id) FROM target", 'UTF8'), '1 3 11 13', 'it applies what is text');
is(raw("SELECT DISTINCT sqlstate || ' ' || message FROM elt.quarantine", 'UTF8'), '22021 a value of column "v" has no form in encoding "UTF8"', 'and quarantines the rest');
raw("SELECT elt.patch_quarantine(quarantine_id, '{\"v\": \"mended\"}') FROM elt.quarantine WHERE key->>'id' = '2'; SELECT elt.replay_quarantine('p')", 'UTF8');
is(raw("SELECT v FROM target WHERE id = 2", 'UTF8'), 'mended', 'where it can be mended');

# names that are no text here
raw(q{DO $$ BEGIN EXECUTE format('CREATE TABLE named (id int PRIMARY KEY, %I int)', convert_from('\x63ff', 'SQL_ASCII')); END $$;
	ALTER PUBLICATION elt_ascii ADD TABLE named; INSERT INTO named VALUES (1, 2)}, 'SQL_ASCII');
is(raw("SELECT elt.wait_for_source('ascii', timeout => '180 s')", 'UTF8'), 't', 'a name that is no text does not stop the stream');
is(raw("SELECT after FROM elt_raw.ascii WHERE relation = 'public.named'", 'UTF8'), '{"id": 1, "c\\\\xff": 2}', 'it is written with its bytes');

# ---- into other encodings ----

raw(q{CREATE TABLE u (id int PRIMARY KEY, v text, j jsonb); INSERT INTO u SELECT 1, convert_from('\xc3a9', 'UTF8'), to_jsonb(convert_from('\xc3a9', 'UTF8'));
	INSERT INTO u SELECT 2, convert_from('\xe697a5', 'UTF8'), to_jsonb(convert_from('\xe697a5', 'UTF8')); CREATE PUBLICATION elt_utf FOR TABLE u}, 'UTF8');
foreach my $encoding (qw(LATIN1 SQL_ASCII))
{
	raw("CREATE EXTENSION elt; SELECT elt.create_source('utf', conninfo => '$conninfo dbname=UTF8')", $encoding);
	poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", "a database in $encoding copies", $encoding);
	raw('UPDATE u SET v = v || v', 'UTF8');
	is(raw("SELECT elt.wait_for_source('utf', timeout => '180 s')", $encoding), 't', 'and streams');
	my $rows = raw("SELECT string_agg(op::text || ' ' || CASE WHEN after->'v' ? '\$bytes' THEN 'bytes ' || (after->'v'->>'\$bytes') ELSE (after->>'v')::bytea::text END, ', ' ORDER BY change_id) FROM elt_raw.utf", $encoding);
	is($rows, $encoding eq 'LATIN1' ? 'r \\xe9, r bytes \\xe697a5, u \\xe9e9, u bytes \\xe697a5e697a5' : 'r \\xc3a9, r \\xe697a5, u \\xc3a9c3a9, u \\xe697a5e697a5', "into $encoding");
	raw("SELECT elt.drop_source('utf'); DROP EXTENSION elt CASCADE", $encoding);
	raw("UPDATE u SET v = left(v, 1)", 'UTF8');
}
$node->stop;
done_testing();
