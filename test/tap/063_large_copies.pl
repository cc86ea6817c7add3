# Large values that updates left alone, where the row that has them is hard to
# find: it came with a copy that was under way, or was stored inline until the
# table was rewritten.  And where the row that is found has another value than
# the table: it was rewritten in between.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('largecopies', 'elt.snapshot_workers = 2', 'max_worker_processes = 20');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE FUNCTION big(seed text, length int) RETURNS text LANGUAGE sql IMMUTABLE AS
	$$ SELECT left(string_agg(md5(seed || i), ''), length) FROM generate_series(1, length / 32 + 1) i $$;
CREATE TABLE quiet (id int PRIMARY KEY);
CREATE TABLE doc (id int PRIMARY KEY, n int NOT NULL, body text, extra text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL;
INSERT INTO doc SELECT i, 0, big('body' || i, 3000), big('extra' || i, 2500) FROM generate_series(1, 3000) i;
CREATE TABLE doc_target (id int PRIMARY KEY, n int NOT NULL, body text, extra text);
-- what is inline stays inline until somebody lowers the target
CREATE TABLE note (id int PRIMARY KEY, n int NOT NULL, body text) WITH (toast_tuple_target = 8160);
ALTER TABLE note ALTER body SET STORAGE EXTERNAL;
INSERT INTO note SELECT i, 0, big('note' || i, CASE WHEN i <= 10 THEN 9000 ELSE 3200 END) FROM generate_series(1, 20) i;
CREATE TABLE inline_only (id int PRIMARY KEY, n int NOT NULL, body text) WITH (toast_tuple_target = 8160);
ALTER TABLE inline_only ALTER body SET STORAGE EXTERNAL;
INSERT INTO inline_only SELECT i, 0, big('inline' || i, 2900) FROM generate_series(1, 10) i;
CREATE TABLE shout (id int PRIMARY KEY, n int NOT NULL, body text, other text);
ALTER TABLE shout ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
INSERT INTO shout SELECT i, 0, big('shout' || i, 4000), big('other' || i, 4000) FROM generate_series(1, 5) i;
SELECT elt.create_source('s', tables => ARRAY['public.quiet', 'public.note', 'public.inline_only', 'public.shout'],
	options => '{"raw_partition_changes": 4096}');
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the source streams');
poll_ok($node, "SELECT bool_and(state = 'ready') FROM elt.source_tables", 'its tables are copied');

# ---- a copy under updates of another column ----

# the copy is slow: every row is updated before it is there
slow_copy();
$node->safe_psql('postgres', "SELECT elt.add_table('s', 'public.doc'), elt.create_pipeline('doc', 's', 'public.doc', 'doc_target')");
copying();
foreach my $i (1 .. 3)
{
	$node->safe_psql('postgres', <<"EOS");
UPDATE doc SET n = n + 1 WHERE id % 3 = 0;
UPDATE doc SET extra = big('new extra $i' || id, 2600) WHERE id % 50 = $i;
UPDATE doc SET n = n + 1 WHERE id % 50 = $i;
UPDATE doc SET id = id + 10000 WHERE id % 100 = 90 + $i;
UPDATE doc SET n = n + 1 WHERE id > 10000;
DELETE FROM doc WHERE id % 100 = 80 + $i;
BEGIN;
UPDATE doc SET id = -1 WHERE id = $i * 100;
UPDATE doc SET id = $i * 100 WHERE id = $i * 100 + 1;
UPDATE doc SET id = $i * 100 + 1 WHERE id = -1;
COMMIT;
INSERT INTO doc VALUES (20000 + $i, 0, big('inserted $i', 4000), NULL);
UPDATE doc SET n = n + 1 WHERE id = 20000 + $i;
EOS
}
staged_so_far();
is(raw("SELECT state || ' ' || lacking FROM elt.source_tables WHERE relation = 'public.doc'"), 'pending true',
	'while it is copied, rows lack values that the copy will bring');
cmp_ok(raw("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.doc' AND unchanged IS NOT NULL"), '>', 100, 'many of them');
my $changes = raw("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.doc' AND op <> 'r'");
finish_copy('the first copy');
whole('a copy beside updates', 'doc');
is(raw("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.doc' AND op <> 'r'"), $changes, 'no change is lost or comes twice');
is(raw(<<'EOS'), '0', 'the changes are in the order of their commits');
SELECT count(*) FROM (SELECT (commit_lsn, lsn) < lag((commit_lsn, lsn)) OVER (ORDER BY change_id) AS back
	FROM elt_raw.s WHERE relation = 'public.doc' AND op <> 'r') c WHERE back
EOS
is(raw("SELECT elt.wait_for('doc', timeout => '60 s')"), 't', 'the pipeline settles');
same_as_target($node, $node, 'doc', 'doc_target');
is(raw("SELECT count(*) FROM elt.quarantine_records"), '0', 'nothing is quarantined');

# ---- once more, behind history, and with a crash while it is copied ----

slow_copy();
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.doc')");
copying();
$node->safe_psql('postgres', "UPDATE doc SET n = n + 1 WHERE id % 4 = 0; UPDATE doc SET id = -id WHERE id % 40 = 4");
staged_so_far();
$node->stop('immediate');
$node->start;
poll_ok($node, "SELECT state IN ('streaming', 'snapshot') FROM elt.stat_sources", 'the source streams again');
$node->safe_psql('postgres', 'UPDATE doc SET n = n + 1 WHERE id % 5 = 0');
finish_copy('the second copy');
staged_all();
whole('a copy behind history', 'doc', "change_id > (SELECT max(change_id) FROM elt_raw.s WHERE op = 't' AND relation = 'public.doc')");
is(raw("SELECT elt.wait_for('doc', timeout => '60 s')"), 't', 'the pipeline settles');
same_as_target($node, $node, 'doc', 'doc_target');

# ---- a rewrite between two updates that the copy sees ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE memo (id int PRIMARY KEY, n int NOT NULL, body text);
ALTER TABLE memo ALTER body SET STORAGE EXTERNAL;
ALTER PUBLICATION elt_s ADD TABLE memo;
INSERT INTO memo SELECT i, 0, big('memo' || i, 3000) FROM generate_series(1, 10) i;
EOS
staged_all();
my $writer = $node->background_psql('postgres', on_error_stop => 1);
$writer->query('BEGIN; LOCK TABLE memo IN ACCESS EXCLUSIVE MODE');
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.memo')");
poll_ok($node, "SELECT horizon IS NOT NULL FROM elt.source_tables WHERE relation = 'public.memo'", 'a copy is to begin');
$writer->query('UPDATE memo SET n = 1; CLUSTER memo USING memo_pkey; UPDATE memo SET n = 2; COMMIT');
$writer->quit;
finish_copy('the copy of a table that was just rewritten', 'memo');
whole('a rewrite before a copy', 'memo');

# ---- many copies in one pass: while one is completed the next ones end ----

$node->safe_psql('postgres', <<'EOS');
DO $$ BEGIN
	FOR i IN 1 .. 20 LOOP
		EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, n int NOT NULL, body text)', i);
		EXECUTE format('ALTER TABLE small_%s ALTER body SET STORAGE EXTERNAL', i);
		EXECUTE format('INSERT INTO small_%s SELECT id, 0, big(''small'' || id, 3000) FROM generate_series(1, 20) id', i);
	END LOOP;
END $$;
EOS
slow_copy();
$node->safe_psql('postgres', "SELECT elt.add_table('s', 'public.small_' || i) FROM generate_series(1, 20) i");
copying();
my $copies = $node->background_psql('postgres', on_error_stop => 1);
is($copies->query('BEGIN; SELECT count(*) > 10 FROM (SELECT FROM elt.snapshot_chunks FOR UPDATE SKIP LOCKED) c'), 't', 'most copies have to wait');
$node->safe_psql('postgres', "UPDATE small_$_ SET n = 1") foreach 1 .. 20;
staged_so_far();
cmp_ok(raw("SELECT count(*) FROM elt.source_tables WHERE relation LIKE 'public.small%' AND state = 'pending' AND lacking"), '>', 10,
	'as many tables have rows that lack values');
fast_copy();
$copies->query('COMMIT');
$copies->quit;
poll_ok($node, "SELECT count(*) = 20 FROM elt.source_tables WHERE relation LIKE 'public.small%' AND state = 'ready'", 'all are completed');
whole('many copies', 'small_1', 'true', 'small_10', 'small_20');

# ---- what was inline goes out of line without WAL ----

# large, then small; the small one is not flagged
$node->safe_psql('postgres', "UPDATE note SET n = n + 1; UPDATE note SET body = big('second' || id, 3100) WHERE id <= 5; UPDATE note SET body = NULL WHERE id = 6");
$node->safe_psql('postgres', "INSERT INTO quiet SELECT generate_series(1, 5000)");
$node->safe_psql('postgres', "UPDATE note SET body = big('third' || id, 3150) WHERE id = 1");
staged_all();
whole('before the rewrite', 'note', 'true', 'inline_only');
$node->safe_psql('postgres', $_) foreach ('ALTER TABLE note SET (toast_tuple_target = 128)', 'VACUUM FULL note',
	'ALTER TABLE inline_only SET (toast_tuple_target = 128)', 'VACUUM FULL inline_only');
cmp_ok(raw("SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'inline_only'::regclass"), '>', 0,
	'VACUUM FULL moves values out of line');
$node->safe_psql('postgres', 'UPDATE note SET n = n + 1; UPDATE inline_only SET n = n + 1');
staged_all();
whole('after VACUUM FULL', 'note', 'true', 'inline_only');
$node->safe_psql('postgres', 'BEGIN; UPDATE note SET n = n + 1; UPDATE note SET id = id + 100 WHERE id % 2 = 0; UPDATE note SET n = n + 1; COMMIT');
$node->restart;
$node->safe_psql('postgres', 'UPDATE note SET n = n + 1; UPDATE inline_only SET n = n + 1');
staged_all();
whole('and later', 'note', 'true', 'inline_only');
cmp_ok(raw(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'elt_raw'::regnamespace AND relname LIKE '%$i' AND relkind = 'i'}), '>=', 2,
	'leaves that were looked through have an index');
is(raw(<<'EOS'), '0', 'each of them is complete');
SET enable_seqscan = off;
SELECT count(*) FROM elt_raw.s r WHERE large IS NULL AND relation = 'public.note'
	AND NOT EXISTS (SELECT FROM elt_raw.s i WHERE i.large IS NULL AND i.relation = 'public.note' AND i.key_hash = r.key_hash AND i.change_id = r.change_id)
EOS

# twice in one transaction, and a truncate, which needs no search
my $indexes = raw(q{SELECT count(*) FROM pg_class WHERE relname LIKE '%$i'});
$node->safe_psql('postgres', "TRUNCATE note; INSERT INTO note VALUES (1, 0, big('after', 4000)); UPDATE note SET n = 1");
staged_all();
whole('after a truncate', 'note', "change_id > (SELECT max(change_id) FROM elt_raw.s WHERE op = 't' AND relation = 'public.note')");
is(raw(q{SELECT count(*) FROM pg_class WHERE relname LIKE '%$i'}), $indexes, 'a truncate has nothing looked through');

# ---- a rewrite that changes values ----

$node->safe_psql('postgres', "UPDATE shout SET n = n + 1; ALTER TABLE shout ALTER body TYPE text USING upper(body); UPDATE shout SET n = n + 1");
staged_all();
is(raw("SELECT DISTINCT unchanged, after ? 'body', after ? 'other' FROM elt_raw.s WHERE relation = 'public.shout' AND (after->>'n')::int = 2"),
	'{body,other}|f|f', 'values from before ALTER TYPE ... USING are not taken');
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.shout')");
finish_copy('the copy of a rewritten table', 'shout');
$node->safe_psql('postgres', 'UPDATE shout SET n = n + 1');
staged_all();
whole('a rewritten table that was copied', 'shout', "change_id > (SELECT max(change_id) FROM elt_raw.s WHERE op = 't' AND relation = 'public.shout')");

# another table of the same name, with rows that nobody staged
$node->safe_psql('postgres', <<'EOS');
DROP TABLE shout;
CREATE TABLE shout (id int PRIMARY KEY, n int NOT NULL, body text, other text);
ALTER TABLE shout ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
INSERT INTO shout SELECT i, 10, big('another' || i, 4000), big('table' || i, 4000) FROM generate_series(1, 5) i;
ALTER PUBLICATION elt_s ADD TABLE shout;
UPDATE shout SET n = 11;
EOS
staged_all();
is(raw("SELECT DISTINCT unchanged FROM elt_raw.s WHERE relation = 'public.shout' AND (after->>'n')::int = 11"), '{body,other}',
	'nor one of another table of the same name');

$node->safe_psql('postgres', "SELECT elt.drop_pipeline('doc'), elt.drop_source('s')");
is(raw('SELECT count(*) FROM elt.relation_files'), '0', 'a dropped source leaves nothing');
nothing_left($node);
$node->stop;
done_testing();

sub raw { return $node->safe_psql('postgres', $_[0]); }

sub staged_all
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(raw("SELECT elt.wait_for_source('s')"), 't', 'staged');
}

# While a table is copied nobody waits for its end.
sub staged_so_far
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $lsn = raw('SELECT pg_current_wal_insert_lsn()');
	poll_ok($node, "SELECT staged_lsn >= '$lsn' FROM elt.stat_sources", 'staged so far');
}

sub slow_copy
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET elt.snapshot_rate = '8kB'");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
}

sub fast_copy
{
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET elt.snapshot_rate');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
}

# Until some of its rows are there.
sub copying
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT count(*) > 0 FROM elt.snapshot_passes WHERE phase = 'copying'", 'it is being copied');
}

sub finish_copy
{
	my ($what, $table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$table ||= 'doc';
	fast_copy();
	poll_ok($node, "SELECT state = 'ready' AND NOT lacking FROM elt.source_tables WHERE relation = 'public.$table'", "$what ends");
}

# No image lacks a column, and the newest ones are the source's rows.
sub whole
{
	my ($what, $first, $where, @others) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$where ||= 'true';
	foreach my $table ($first, @others)
	{
		is(raw("SELECT count(*) FROM elt_raw.s WHERE relation = 'public.$table' AND unchanged IS NOT NULL AND $where"), '0',
			"$what: no image of $table lacks a column");
		same_as_source($node, $node, 's', $table);
	}
}
