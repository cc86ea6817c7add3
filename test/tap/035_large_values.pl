# Large values that updates left alone: raw staging has them in every image,
# from whatever row was the last to bring them.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('large');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
-- a value of its own per row and version, which does not compress
CREATE FUNCTION big(seed text, length int) RETURNS text LANGUAGE sql IMMUTABLE AS
	$$ SELECT left(string_agg(md5(seed || i), ''), length) FROM generate_series(1, length / 32 + 1) i $$;
CREATE TABLE doc (id int PRIMARY KEY, n int, body text, extra jsonb, bin bytea, tags text[]);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
INSERT INTO doc SELECT i, 0, big('copied' || i, 4000), jsonb_build_object('a', big('x' || i, 9000), 'b', jsonb_build_array(1, null, '{}')),
	convert_to(big('y' || i, 5000), 'UTF8'), ARRAY[big('z' || i, 6000), NULL, 'q"'] FROM generate_series(1, 20) i;
-- small values out of line
CREATE TABLE tiny (id int PRIMARY KEY, n int, a text, b text, c numeric) WITH (toast_tuple_target = 128);
ALTER TABLE tiny ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL;
INSERT INTO tiny VALUES (1, 0, big('a', 60), big('b', 60), repeat('1234567890', 12)::numeric);
CREATE TABLE clean (id int PRIMARY KEY, v text);
INSERT INTO clean SELECT i, 'short' FROM generate_series(1, 10) i;
CREATE TABLE full_identity (id int PRIMARY KEY, n int, body text);
ALTER TABLE full_identity REPLICA IDENTITY FULL, ALTER body SET STORAGE EXTERNAL;
CREATE TABLE parted (id int PRIMARY KEY, n int, body text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
INSERT INTO parted VALUES (1, 0, big('p', 5000));
SELECT elt.create_source('shop', tables => ARRAY['public.doc', 'public.tiny', 'public.clean', 'public.full_identity', 'public.parted'],
	options => '{"raw_partition_changes": 4096}');
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the source streams');
staged_all('the copy');
is(raw("SELECT count(*) FROM elt_raw.shop WHERE op = 'r' AND relation = 'public.clean' AND large IS NOT NULL"), '0',
	'copied rows of a table without large values are not flagged');

# ---- what a copy brought, one update per row and again ----

$node->safe_psql('postgres', 'UPDATE doc SET n = n + 1; UPDATE tiny SET n = n + 1; UPDATE parted SET n = n + 1');
staged_all('an update of another column');
whole('values come from the copy');
$node->safe_psql('postgres', 'BEGIN; UPDATE doc SET n = n + 1; UPDATE doc SET n = n + 1; UPDATE tiny SET n = n + 1; COMMIT');
staged_all('updates in one transaction');
whole('values come from rows that wait to be written');

# ---- one of several values changes, gets small, null, large again ----

foreach my $step ("body = big('second', 3000)", "body = 'small', n = n + 1", 'n = n + 1', "body = NULL", 'n = n + 1',
	"body = big('third', 30000), extra = NULL", 'n = n + 1', "extra = to_jsonb(big('fourth', 4000))", 'n = n + 1',
	"extra = to_jsonb(ARRAY[big('fifth', 4000)])", 'n = n + 1')
{
	$node->safe_psql('postgres', "UPDATE doc SET $step WHERE id <= 5");
}
staged_all('values that change');
whole('a value is the one that held');
is(raw("SELECT count(*) FROM elt_raw.shop WHERE unchanged IS NOT NULL"), '0', 'nothing is listed as unchanged');

# ---- keys move, rows go and come, tables are emptied ----

$node->safe_psql('postgres', <<'EOS');
UPDATE doc SET id = id + 100 WHERE id = 6;
UPDATE doc SET n = n + 1 WHERE id = 106;
BEGIN;
UPDATE doc SET id = 1007 WHERE id = 7;
UPDATE doc SET id = 7 WHERE id = 8;
UPDATE doc SET id = 8 WHERE id = 1007;
UPDATE doc SET n = n + 1 WHERE id IN (7, 8);
COMMIT;
DELETE FROM doc WHERE id = 9;
INSERT INTO doc VALUES (9, 0, 'short', NULL, NULL, NULL);
UPDATE doc SET n = n + 1 WHERE id = 9;
INSERT INTO doc VALUES (10, 1, big('conflict', 5000), NULL, NULL, NULL)
	ON CONFLICT (id) DO UPDATE SET n = doc.n + 100;
INSERT INTO full_identity VALUES (1, 0, big('f', 4000));
UPDATE full_identity SET n = 1;
ALTER TABLE full_identity REPLICA IDENTITY DEFAULT;
UPDATE full_identity SET n = 2;
UPDATE parted SET id = 150;
UPDATE parted SET n = n + 1;
BEGIN;
UPDATE doc SET body = big('never', 5000) WHERE id = 11;
SAVEPOINT s;
UPDATE doc SET body = big('never too', 5000) WHERE id = 12;
ROLLBACK TO s;
UPDATE doc SET n = n + 1 WHERE id = 12;
ROLLBACK;
UPDATE doc SET n = n + 1 WHERE id IN (11, 12);
EOS
staged_all('keys that move');
whole('a row takes its values along');

# ---- over leaves, and a restart in between ----

$node->safe_psql('postgres', "UPDATE clean SET v = v || i FROM generate_series(1, 10) i; UPDATE clean SET v = 'x'") foreach 1 .. 3;
$node->safe_psql('postgres', "INSERT INTO clean SELECT i, 'fill' FROM generate_series(100, 12000) i");
staged_all('other rows fill leaves');
$node->restart('immediate');
$node->safe_psql('postgres', 'UPDATE doc SET n = n + 1; UPDATE tiny SET n = n + 1; DELETE FROM doc WHERE id = 20');
staged_all('updates after a crash');
whole('values come from older leaves');
cmp_ok(raw("SELECT count(*) FROM pg_inherits i JOIN elt.source_tables t ON t.raw = i.inhparent WHERE t.relation = 'public.doc'"),
	'>', 1, 'the log has several leaves');
is(raw("SELECT large FROM elt_raw.shop WHERE op = 'd' AND relation = 'public.doc' ORDER BY change_id DESC LIMIT 1"), '{}',
	'deletes of a relation with large values are flagged');

# ---- retention drops the leaves that have the values ----

foreach my $relation (qw(doc tiny parted full_identity))
{
	my @leaves = split(/\n/, raw("SELECT inhrelid::regclass FROM pg_inherits i JOIN elt.source_tables t ON t.raw = i.inhparent "
		  . "WHERE t.relation = 'public.$relation' ORDER BY inhrelid"));
	$node->safe_psql('postgres', "BEGIN; SET LOCAL ROLE NONE; SELECT elt.keep_large_values('$_'); DROP TABLE $_; COMMIT") foreach @leaves;
}
is(raw("SELECT count(*) FROM elt_raw.shop WHERE relation = 'public.doc'"), '0', 'no raw row is left');
is(raw("SELECT count(*) FROM elt.large_values v JOIN elt.source_tables t USING (table_id) WHERE relation = 'public.doc'"),
	raw("SELECT count(*) FROM doc WHERE length(body) > 2000 OR extra IS NOT NULL OR bin IS NOT NULL"),
	'the newest large values of each row are kept, and none of rows that are gone');
$node->safe_psql('postgres', 'UPDATE doc SET n = n + 1; UPDATE tiny SET n = n + 1; UPDATE parted SET n = n + 1; UPDATE full_identity SET n = n + 1');
staged_all('updates after retention');
whole('values come from what retention kept');
my $kept = raw('SELECT count(*) FROM elt.large_values');
my @again = split(/\n/, raw("SELECT inhrelid::regclass FROM pg_inherits i JOIN elt.source_tables t ON t.raw = i.inhparent "
	  . "WHERE t.relation = 'public.doc' ORDER BY inhrelid"));
$node->safe_psql('postgres', "BEGIN; SELECT elt.keep_large_values('$_'); DROP TABLE $_; COMMIT") foreach @again;
is(raw('SELECT count(*) FROM elt.large_values'), $kept, 'what is kept takes the place of what was kept before');

# ---- a truncate, and values that nobody ever staged ----

$node->safe_psql('postgres', "TRUNCATE doc; INSERT INTO doc (id, n, body) VALUES (1, 1, big('new', 4000)); UPDATE doc SET n = 2");
staged_all('a truncate');
is(raw("SELECT string_agg((after->'extra')::text, ' ') FROM elt_raw.shop WHERE relation = 'public.doc' AND op IN ('c', 'u') AND change_id > "
		  . "(SELECT max(change_id) FROM elt_raw.shop WHERE op = 't')"), 'null null', 'nothing comes from before a truncate');
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE late (id int PRIMARY KEY, n int, a text, b text);
ALTER TABLE late ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
INSERT INTO late VALUES (1, 0, big('a', 4000), big('b', 4000));
ALTER PUBLICATION elt_shop ADD TABLE late;
UPDATE late SET n = 1;
UPDATE late SET a = big('c', 4000);
UPDATE late SET n = 2;
ALTER TABLE late ADD COLUMN x int;
UPDATE late SET n = 3;
ALTER TABLE late ALTER a TYPE bytea USING '\x00'::bytea || convert_to(a, 'UTF8');
UPDATE late SET n = 4;
EOS
staged_all('a table that joined without a copy');
is(raw("SELECT string_agg(coalesce(unchanged::text, '-') || (after ? 'a')::text, ' ' ORDER BY change_id) FROM elt_raw.shop WHERE relation = 'public.late'"),
	'{a,b}false {b}true {b}true {b}true {a,b}false',
	'what was never staged, or not since its type changed, is listed as unchanged');
# ---- a name that two tables bear in turn, and a table that is away for a while ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE swap_a (id int PRIMARY KEY, n int, body text);
CREATE TABLE swap_b (LIKE swap_a INCLUDING ALL);
ALTER TABLE swap_a ALTER body SET STORAGE EXTERNAL;
ALTER TABLE swap_b ALTER body SET STORAGE EXTERNAL;
INSERT INTO swap_a VALUES (1, 0, big('of a', 4000));
INSERT INTO swap_b VALUES (1, 0, big('of b', 4000));
SELECT elt.add_table('shop', 'public.swap_a'), elt.add_table('shop', 'public.swap_b');
EOS
poll_ok($node, "SELECT count(*) = 2 FROM elt.source_tables WHERE relation LIKE 'public.swap%' AND state = 'ready'", 'two more tables are copied');
$node->safe_psql('postgres', 'UPDATE swap_a SET n = 1; UPDATE swap_b SET n = 1');
$node->safe_psql('postgres', <<'EOS');
BEGIN;
ALTER TABLE swap_a RENAME TO swap_c;
ALTER TABLE swap_b RENAME TO swap_a;
ALTER TABLE swap_c RENAME TO swap_b;
COMMIT;
UPDATE swap_a SET n = 2;
UPDATE swap_b SET n = 2;
EOS
staged_all('two tables that change their names');
is(raw("SELECT relation, unchanged, after FROM elt_raw.shop WHERE relation LIKE 'public.swap%' AND after->>'n' = '2' ORDER BY relation"),
	qq(public.swap_a|{body}|{"n": 2, "id": 1}\npublic.swap_b|{body}|{"n": 2, "id": 1}), 'no row gets a value of the table that bore its name before');
$node->safe_psql('postgres', <<'EOS');
UPDATE swap_a SET n = 3, body = big('before', 4000);
ALTER TABLE swap_a RENAME TO swap_c;
UPDATE swap_c SET body = big('away', 4000);
ALTER TABLE swap_c RENAME TO swap_a;
UPDATE swap_a SET n = 4;
UPDATE swap_a SET n = 5, body = big('again', 4000);
UPDATE swap_a SET n = 6;
EOS
staged_all('a table that had another name for a while');
is(raw(<<'EOS'), "3|before|\n4||{body}\n5|again|\n6|again|", 'a value is not taken from before the table was away');
SELECT after->>'n', (SELECT seed FROM unnest('{before,away,again}'::text[]) AS seed WHERE big(seed, 4000) = after->>'body'), unchanged
FROM elt_raw.shop WHERE relation = 'public.swap_a' AND (after->>'n')::int > 2 ORDER BY change_id
EOS

$node->safe_psql('postgres', "SELECT elt.drop_source('shop')");
is(raw('SELECT count(*) FROM elt.large_values'), '0', 'a dropped source leaves nothing');
nothing_left($node);
$node->stop;
done_testing();

sub raw { return $node->safe_psql('postgres', $_[0]); }

sub staged_all
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 'shop'", "$_[0]: streaming");
	is(raw("SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', "$_[0]: staged");
}

# No image lacks a column, and the newest ones are the source's rows.
sub whole
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(raw("SELECT count(*) FROM elt_raw.shop WHERE op IN ('r', 'c', 'u') AND unchanged IS NOT NULL"), '0', "$what: no image lacks a column");
	same_newest($what, $_) foreach qw(doc tiny parted full_identity);
}

sub same_newest
{
	my ($what, $table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(raw(<<"EOS"), '0', "$what: $table");
WITH newest AS (
	SELECT DISTINCT ON (key) key, op, after FROM elt_raw.shop WHERE relation = 'public.$table' ORDER BY key, change_id DESC
), t AS (
	SELECT (jsonb_populate_record(NULL::$table, after)).* FROM newest WHERE op <> 'd'
)
SELECT count(*) FROM (SELECT t::text FROM t EXCEPT SELECT s::text FROM $table s) x
EOS
}
