# Capture of the server's own database, under writes all the time: the first
# copies and the stream leave no gap and do not overlap, and the stream tells
# exactly what test_decoding tells.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('local');

$node->safe_psql('postgres', 'CREATE EXTENSION elt');
pgbench_init($node);
oracle_create($node);

my $load = pgbench_start($node, '-T', '900');
poll_ok($node, 'SELECT count(*) > 100 FROM pgbench_history', 'the load runs');

# two tables at first, the others one by one while the stream runs
$node->safe_psql('postgres',
	"SELECT elt.create_source('shop', tables => ARRAY['public.pgbench_accounts', 'public.pgbench_branches'])");
poll_ok($node, "SELECT count(*) > 300 FROM elt_raw.shop WHERE op = 'u'", 'the stream follows the copy');
foreach my $table ('public.pgbench_tellers', 'public.pgbench_history')
{
	$node->safe_psql('postgres', "SELECT elt.add_table('shop', '$table')");
	poll_ok($node, "SELECT count(*) > 0 FROM elt_raw.shop WHERE relation = '$table' AND op <> 'r'",
		"$table is copied and streamed");
}

# sources come and go beside it, whatever they are at when they are dropped
foreach my $round (1 .. 6)
{
	$node->safe_psql('postgres',
		"SELECT elt.create_source('flap', tables => ARRAY['public.pgbench_tellers', 'public.pgbench_accounts', 'public.pgbench_history'])");
	poll_ok($node, ("SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'capture' AND object_name = 'flap'",
			"SELECT state = 'snapshot' OR EXISTS (SELECT FROM elt_raw.flap) FROM elt.stat_sources WHERE source = 'flap'",
			"SELECT count(*) > 0 FROM elt_raw.flap WHERE op <> 'r'")[ $round % 3 ], "a source runs beside it: $round");
	$node->safe_psql('postgres', "SELECT elt.drop_source('flap')");
}
poll_ok($node, "SELECT count(*) = 0 FROM elt.dropped_sources", 'and their slots go');
pgbench_stop($node, $load);
my $transactions = $node->safe_psql('postgres', 'SELECT count(*) FROM pgbench_history');
cmp_ok($transactions, '>', 500, "pgbench ran $transactions transactions");

# a workload with all kinds of changes, while nothing else runs
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE "Odd ""name" (id int PRIMARY KEY, v text, n numeric, b boolean);
CREATE TABLE whole (a int, b text);
ALTER TABLE whole REPLICA IDENTITY FULL;
SELECT elt.add_table('shop', 'public."Odd ""name"', snapshot => false);
SELECT elt.add_table('shop', 'public.whole', snapshot => false);
EOS
foreach my $table ('public."Odd ""name"', 'public.whole')
{
	poll_ok($node, "SELECT count(*) = 1 FROM elt.source_tables WHERE relation = '$table' AND state = 'ready'",
		"$table is ready");
}
$node->safe_psql('postgres', <<'EOS');
INSERT INTO "Odd ""name" SELECT i, 'it''s \' || i, i / 8.0, i % 2 = 0 FROM generate_series(1, 500) i;
BEGIN;
UPDATE "Odd ""name" SET v = NULL WHERE id % 10 = 0;
SAVEPOINT a;
DELETE FROM "Odd ""name" WHERE id > 100;
ROLLBACK TO a;
UPDATE "Odd ""name" SET id = id + 1000 WHERE id > 490;
DELETE FROM "Odd ""name" WHERE id < 20;
COMMIT;
INSERT INTO whole SELECT i / 2, 'twice' FROM generate_series(1, 20) i;
UPDATE whole SET b = NULL WHERE a < 3;
DELETE FROM whole WHERE a = 9;
TRUNCATE whole;
INSERT INTO whole VALUES (1, 'after');
BEGIN; INSERT INTO whole VALUES (2, 'never'); ROLLBACK;
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'all is staged');

same_as_oracle($node, $node, 'shop', 'copies beside the stream');
same_as_source($node, $node, 'shop', $_)
  foreach qw(pgbench_accounts pgbench_branches pgbench_tellers pgbench_history);
same_as_source($node, $node, 'shop', '"Odd ""name"');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.shop WHERE op = 'r' AND relation = 'public.pgbench_accounts'"),
	'100000', 'each account is copied once');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM (SELECT commit_lsn < lag(commit_lsn) OVER (PARTITION BY relation ORDER BY change_id) AS back FROM elt_raw.shop WHERE op <> 'r') s WHERE back"),
	'0', 'change_ids of a table follow the order of commits');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM elt.source_tables t CROSS JOIN LATERAL (SELECT count(*) AS n FROM elt_raw.shop r "
		  . "WHERE r.relation = t.relation AND r.op <> 'r' AND elt.xid_is_visible(r.xid, t.sync_snapshot)) s WHERE s.n > 0"),
	'0', 'nothing that a copy has is staged again');

$node->safe_psql('postgres', "SELECT elt.drop_source('shop')");
nothing_left($node);
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'elt supervisor'",
	'the supervisor finishes');
$node->stop;
done_testing();
