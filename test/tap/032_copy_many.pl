# Many tables, several workers, the rate, what happens to tables while they wait
# or are copied: no row, dropped, locked, truncated, rewritten, removed; a row
# filter and a column list; partitions; DROP of the source and of the extension.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('many', 'elt.snapshot_workers = 3', 'max_worker_processes = 20', 'autovacuum = off',
	'max_locks_per_transaction = 512', 'idle_in_transaction_session_timeout = 200ms');

# ---- many small tables ----

my $tables = 300;
$node->safe_psql('postgres', 'CREATE EXTENSION elt');
$node->safe_psql('postgres', <<"EOS");
CREATE SCHEMA many;
DO \$\$
BEGIN
	FOR i IN 1 .. $tables LOOP
		EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY, v text)', i);
		EXECUTE format('INSERT INTO many.t%s SELECT j, ''row'' FROM generate_series(1, %s) j', i, i % 5);
	END LOOP;
END \$\$;
EOS
my $start = time();
$node->safe_psql('postgres', "SELECT elt.create_source('many', tables => "
	  . "(SELECT array_agg(oid::regclass::text) FROM pg_class WHERE relnamespace = 'many'::regnamespace AND relkind = 'r'))");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('many', timeout => '180 s')"), 't', "$tables small tables are copied");
note(sprintf('%d tables in %.1f s', $tables, time() - $start));
is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT relation) FROM elt_raw.many WHERE op = 'r'"),
	(600) . '|' . (240), 'each row of each table that has any');
is($node->safe_psql('postgres', "SELECT count(DISTINCT sync_lsn) <= 3 FROM elt.source_tables"), 't', 'under few snapshots');
is($node->safe_psql('postgres', "SELECT sum(rows_copied), count(*) FROM elt.source_tables WHERE state = 'ready' AND horizon IS NULL"),
	"600|$tables", 'rows are counted');
$node->safe_psql('postgres', "SELECT elt.drop_source('many')");

# ---- several workers, the rate, partitions, filter and columns ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE wide (id int PRIMARY KEY, filler text NOT NULL DEFAULT repeat('x', 500));
INSERT INTO wide SELECT i FROM generate_series(1, 20000) i;
CREATE TABLE parts (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
CREATE TABLE parts_2 (v int, id int NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE parts_2_a PARTITION OF parts_2 FOR VALUES FROM (1000) TO (1500);
CREATE TABLE parts_2_b PARTITION OF parts_2 FOR VALUES FROM (1500) TO (2000);
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (1000) TO (2000);
INSERT INTO parts SELECT i, i * 2 FROM generate_series(0, 1999) i;
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE filtered (id int PRIMARY KEY, v int, secret text);
INSERT INTO filtered SELECT i, i % 10, 'secret' FROM generate_series(1, 100) i;
CREATE TABLE gone (id int PRIMARY KEY);
CREATE TABLE locked (id int PRIMARY KEY);
INSERT INTO locked VALUES (1);
CREATE TABLE emptied (id int PRIMARY KEY);
INSERT INTO emptied SELECT i FROM generate_series(1, 1000) i;
CREATE TABLE left_out (id int PRIMARY KEY, filler text NOT NULL DEFAULT repeat('x', 500));
INSERT INTO left_out SELECT i FROM generate_series(1, 10000) i;
CREATE PUBLICATION p FOR TABLE wide, parts, nothing, filtered (id, v) WHERE (v < 3), gone, locked, emptied, left_out
	WITH (publish_via_partition_root = true);
EOS
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 4MB');
$node->reload;

$node->safe_psql('postgres', <<'EOS');
BEGIN;
SELECT elt.create_source('s', publication => 'p', options => '{"raw_partition_changes": 1024}');
COMMIT;
EOS
poll_ok($node, "SELECT count(*) = 3 FROM elt.workers() WHERE kind = 'snapshot' AND pid IS NOT NULL", 'three workers copy');
poll_ok($node, "SELECT count(*) = 1 FROM elt.progress_snapshot WHERE \"table\" = 'public.wide' AND phase = 'copying' AND done > 0 "
	  . "AND total BETWEEN 15000 AND 25000 AND rate > 0 AND eta IS NOT NULL", 'progress_snapshot tells how far a table is');
is($node->safe_psql('postgres', "SELECT state FROM elt.stat_sources WHERE source = 's'"), 'snapshot', 'stat_sources too');
my $began = time();
poll_ok($node, "SELECT state = 'ready' FROM elt.source_tables WHERE relation = 'public.wide'", 'a large table is copied');
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'the others follow');
my %copied = map { split(/\|/, $_) } split(/\n/, $node->safe_psql('postgres',
	"SELECT relation, rows_copied FROM elt.source_tables JOIN elt.sources USING (source_id) WHERE name = 's'"));
is_deeply(\%copied, { 'public.wide' => 20000, 'public.parts' => 2000, 'public.nothing' => 0, 'public.filtered' => 30,
		'public.gone' => 0, 'public.locked' => 1, 'public.emptied' => 1000, 'public.left_out' => 10000 },
	'rows, by table: partitions by their root, a filter holds');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE relation = 'public.filtered' AND after ? 'secret'"), '0', 'and so does a column list');
same_as_source($node, $node, 's', $_) foreach qw(wide parts locked emptied left_out);
is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT change_id) FROM elt_raw.s"), '0', 'change_ids are given once');

# the rate: 10 MB at 2 MB/s take 5 s, less the burst of the last chunks
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 2MB');
$node->reload;
$began = time();
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.wide')");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'a copy at a limited rate');
cmp_ok(time() - $began, '>', 3.5, 'takes its time');

# a table that somebody locks does not keep others waiting
my $locker = $node->background_psql('postgres');
$locker->query_safe('SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE');
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.locked'), elt.resync_table('s', 'public.emptied')");
poll_ok($node, "SELECT count(*) = 1 FROM elt.progress_snapshot WHERE \"table\" = 'public.locked' AND phase = 'waiting' AND last_error LIKE '%lock%'",
	'a table that somebody locks waits');
poll_ok($node, "SELECT state = 'ready' FROM elt.source_tables WHERE relation = 'public.emptied'", 'another one does not');
$locker->query_safe('COMMIT');
$locker->quit;
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'it is copied when it is free');

# tables that change while they wait: paused, so that they do
$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
ok(poll_perl(180, sub { !workers($node, 'snapshot') && !workers($node, 'capture') }), 'a pause');
$node->safe_psql('postgres', <<'EOS');
SELECT elt.resync_table('s', 'public.' || t) FROM unnest(ARRAY['gone', 'emptied', 'left_out', 'parts', 'wide']) t;
DROP TABLE gone;
TRUNCATE emptied;
INSERT INTO emptied VALUES (7), (8);
ALTER TABLE left_out ADD COLUMN extra int DEFAULT 5;
UPDATE left_out SET extra = 6 WHERE id < 100;
CLUSTER left_out USING left_out_pkey;
TRUNCATE parts_2_a;
EOS
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 1MB');
$node->reload;
$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
poll_ok($node, "SELECT count(*) = 1 FROM elt.progress_snapshot WHERE \"table\" = 'public.gone' AND last_error LIKE '%does not exist%'",
	'a table that was dropped says so');

# removed in the middle of a resync: its history stays, the copy goes
poll_ok($node, "SELECT coalesce(max(done), 0) > 0 FROM elt.progress_snapshot WHERE \"table\" = 'public.wide'", 'a resync is at work');
$node->safe_psql('postgres', "SELECT elt.remove_table('s', 'public.wide')");
poll_ok($node, "SELECT horizon IS NULL FROM elt.source_tables WHERE relation = 'public.wide'", 'its table is removed');
is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE op = 'r') , count(*) FILTER (WHERE op = 't') FROM elt_raw.s WHERE relation = 'public.wide'"),
	'40000|1', 'what was whole stays, what was not is gone');
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 0');
$node->reload;
poll_ok($node, "SELECT count(*) = 1 FROM elt.progress_snapshot", 'all others are copied');
same_as_source($node, $node, 's', $_) foreach qw(parts emptied left_out);

# ---- a table whose rows cannot be read ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE broken (id int PRIMARY KEY, v int);
INSERT INTO broken VALUES (1, 1), (2, 0);
CREATE TABLE sound (id int PRIMARY KEY);
INSERT INTO sound SELECT i FROM generate_series(1, 10) i;
CREATE PUBLICATION b FOR TABLE broken WHERE (1 / v > 0), sound;
SELECT elt.create_source('b', publication => 'b');
EOS
poll_ok($node, "SELECT state = 'ready' AND rows_copied = 10 FROM elt.source_tables WHERE relation = 'public.sound'", 'a table that can be read is copied');
is($node->safe_psql('postgres', 'SELECT "table", phase, last_error FROM elt.progress_snapshot WHERE source = \'b\''),
	'public.broken|waiting|the copy from the source broke: division by zero', 'beside one that cannot, which says why');
$node->safe_psql('postgres', "ALTER PUBLICATION b SET TABLE broken, sound; UPDATE elt.source_tables SET copy_retry_at = NULL");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('b', timeout => '180 s')"), 't', 'until it can');
$node->safe_psql('postgres', "SELECT elt.drop_source('b')");

# ---- in the middle of a copy ----

$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 500kB');
$node->reload;
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.left_out')");
poll_ok($node, "SELECT coalesce(max(done), 0) > 0 FROM elt.progress_snapshot WHERE \"table\" = 'public.left_out'", 'one more copy is at work');
$node->safe_psql('postgres', "SELECT elt.drop_source('s')");
nothing_left($node);
$node->safe_psql('postgres', "SELECT elt.create_source('t', tables => ARRAY['public.wide', 'public.left_out'])");
poll_ok($node, "SELECT coalesce(max(done), 0) > 0 FROM elt.progress_snapshot", 'another source copies');
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
nothing_left($node);
poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'elt s%'", 'no worker stays after DROP EXTENSION');

$node->stop;
done_testing();
