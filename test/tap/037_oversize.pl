# Values that no jsonb holds, and messages beyond measure: each is told by its
# size, written down, alerted, and what comes behind it comes.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('oversize', 'logical_decoding_work_mem = 64MB', 'default_toast_compression = lz4');
sub raw { return $node->safe_psql('postgres', $_[0]); }
my $images = q{(SELECT string_agg(k || '=' || left(v::text, 25), ' ' ORDER BY k COLLATE "C") FROM jsonb_each(jsonb_strip_nulls(after)) AS e(k, v) WHERE k <> 'id')};

raw(<<'EOS');
CREATE EXTENSION elt;
CREATE TABLE big (id int PRIMARY KEY, n int, t text, b bytea, j jsonb, "to%s'tal" text[], total text, v varbit);
CREATE TABLE target (id int PRIMARY KEY, n int, t text);
INSERT INTO big (id, t) VALUES (1, repeat('x', 140000000));
INSERT INTO big (id, b) VALUES (2, decode(repeat('ab', 70000000), 'hex'));
INSERT INTO big (id, "to%s'tal") VALUES (3, ARRAY[repeat('y', 140000000)]);
INSERT INTO big (id, t, total) VALUES (4, repeat('z', 70000000), repeat('z', 70000000));
INSERT INTO big (id, n, t, total) VALUES (5, 5, 'kept', repeat('k', 1000000));
-- one digit more than PostgreSQL can print
DO $$ DECLARE v varbit := B'1'; BEGIN FOR i IN 1 .. 30 LOOP v := v || v; END LOOP; INSERT INTO big (id, n, v) VALUES (6, 6, v); END $$;
INSERT INTO big (id, v) VALUES (7, B'101');
SELECT elt.create_source('shop', tables => ARRAY['public.big']);
SELECT elt.create_pipeline('p', 'shop', 'public.big', 'target');
SELECT elt.alter_alert_rule('oversize_value', evaluation_interval => '1 s');
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'a table with values beyond measure is copied');
is(raw("SELECT string_agg(format('%s %s', key->>'id', $images), E'\\n' ORDER BY change_id) FROM elt_raw.shop"),
	<<'EOS' =~ s/\n$//r, 'what is too large is told by its size');
1 t={"$oversize": 140000000}
2 b={"$oversize": 140000000}
3 to%s'tal={"$oversize": 140000002}
4 t={"$oversize": 70000000} total={"$oversize": 70000000}
5 n=5 t="kept" total="kkkkkkkkkkkkkkkkkkkkkkkk
6 n=6 v={"$oversize": 1073741823}
7 v="101"
EOS

# the stream: near the limit of 1 GB, more than a row may have, and unchanged
my ($capture) = workers($node, 'capture');
raw("DELETE FROM big WHERE id NOT IN (4, 13); INSERT INTO big (id, $_") foreach
	"t, b) VALUES (10, repeat('x', 300 * 1024 * 1024), '\\x00'); UPDATE big SET n = 1 WHERE id = 10",
	"b) VALUES (11, decode(repeat('cd', 100000000), 'hex'))",
	"t) VALUES (12, repeat('x', 900000000)); UPDATE big SET n = 1 WHERE id = 12",
	"t, total) VALUES (13, repeat('x', 70000000), repeat('x', 70000000)); UPDATE big SET n = 1 WHERE id = 13",
	"j) SELECT 14, to_jsonb(repeat('x', 40000000))",
	"\"to%s'tal\") SELECT 15, ARRAY[repeat('x', 20000000), NULL]",
	"j) SELECT 16, to_jsonb(array_fill(1e131071::numeric, ARRAY[9000]))";
raw("SELECT pg_logical_emit_message(true, 'elt', repeat('m', 100000000)); INSERT INTO big (id, t) VALUES (99, 'next')");
is(raw("SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'the stream goes on');
is(join(',', workers($node, 'capture')), $capture, 'with the same worker');
is(raw("SELECT string_agg(format('%s %s %s', coalesce(key->>'id', relation), op, CASE op WHEN 'm' THEN after::text ELSE $images END), E'\\n' ORDER BY change_id) FROM elt_raw.shop WHERE op IN ('c', 'u', 'm')"),
	<<'EOS' =~ s/\n$//r, 'inserts, updates that left the value alone, a message');
10 c b="\\x00" t={"$oversize": 314572800}
10 u b="\\x00" n=1 t={"$oversize": 314572800}
11 c b={"$oversize": 100000000}
12 c t={"$oversize": 900000000}
12 u n=1 t={"$oversize": 900000000}
13 c t="xxxxxxxxxxxxxxxxxxxxxxxx total={"$oversize": 70000000}
13 u n=1 t="xxxxxxxxxxxxxxxxxxxxxxxx total={"$oversize": 70000000}
14 c j={"$oversize": 40000008}
15 c to%s'tal="{xxxxxxxxxxxxxxxxxxxxxxx
16 c j={"$oversize": 1073741823}
elt m {"$oversize": 100000000}
99 c t="next"
EOS
is(raw('SELECT count(*) FROM elt_raw.shop WHERE unchanged IS NOT NULL'), '0', 'nothing is listed as unchanged');
is(raw("SELECT string_agg(format('%s %s %s %s', relation, coalesce(key->>'id', '-'), column_name, bytes), E'\\n' ORDER BY change_id, column_name) FROM elt.oversize_values"),
	<<'EOS' =~ s/\n$//r, 'each is written down once');
public.big 1 t 140000000
public.big 2 b 140000000
public.big 3 to%s'tal 140000002
public.big 4 t 70000000
public.big 4 total 70000000
public.big 6 v 1073741823
public.big 10 t 314572800
public.big 11 b 100000000
public.big 12 t 900000000
public.big 13 total 70000000
public.big 14 j 40000008
public.big 16 j 1073741823
elt - payload 100000000
EOS
is(raw("SELECT count(*) FROM elt.oversize_values o JOIN elt_raw.shop r USING (change_id, lsn, commit_lsn) WHERE r.key IS NOT DISTINCT FROM o.key"),
	'13', 'with the change it belongs to');
poll_ok($node, "SELECT count(*) = 7 FROM elt.alerts WHERE rule = 'oversize_value' AND state = 'firing' AND source = 'shop'", 'and alerted, by column');
is(raw("SELECT detail FROM elt.alerts WHERE rule = 'oversize_value' AND labels->>'column' = 'payload'"), '1 values of at most 95 MB', 'with the size');

# a pipeline by name does not put the stand-in into its target
is(raw("SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the pipeline goes on');
is(raw("SELECT string_agg(id || ' ' || left(t, 5), ', ' ORDER BY id) FROM target"), '13 xxxxx, 99 next', 'what can be applied is');
poll_ok($node, "SELECT string_agg(DISTINCT sqlstate || ' ' || message, ', ') = '22026 a value of column \"t\" was too large to be staged' "
	  . "FROM elt.quarantine WHERE key->>'id' = '4'", 'the rest is quarantined');
unlike(log_since($node), qr/leak/, 'and the files of large batches go');
$node->stop;
done_testing();
