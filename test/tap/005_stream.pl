# The stream under stress: slots that have to wait, stalled processes, time
# limits, large and aborted transactions, changes of tables and publications
# while it runs, and an idle system that must come to rest.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = elt_node('stream', 'wal_sender_timeout = 2s', 'logical_decoding_work_mem = 64kB',
	'max_prepared_transactions = 5', 'checkpoint_timeout = 1h');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE unpublished (id int, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
EOS

# ---- a slot waits for transactions that run ----

$node->safe_psql('postgres', "BEGIN; INSERT INTO unpublished VALUES (0, 'long'); PREPARE TRANSACTION 'long'");
$node->safe_psql('postgres', "SELECT elt.create_source('waits', tables => ARRAY['public.t'])");
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'",
	'making the slot waits for a transaction');
is($node->safe_psql('postgres', "SELECT state || '|' || coalesce(last_error, '') FROM elt.stat_sources"), 'starting|',
	'and the source is seen to wait');
my ($capture) = workers($node, 'capture');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($capture)");
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'elt capture' AND pid <> $capture",
	'the wait can be terminated');
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'",
	'and starts again');
$node->safe_psql('postgres', "SELECT elt.drop_source('waits')");
nothing_left($node);

$node->safe_psql('postgres', "SELECT elt.create_source('st', tables => ARRAY['public.t'])");
poll_ok($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'",
	'another source waits');
$node->safe_psql('postgres', "COMMIT PREPARED 'long'");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'and streams once the transaction is over');
$node->safe_psql('postgres', q{SELECT elt.create_pipeline('p', 'st', 'public.t', 'target')});
oracle_create($node);

# ---- the capture worker stands still ----

$node->safe_psql('postgres', "INSERT INTO t SELECT i, 'before' FROM generate_series(1, 1000) i");
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'rows go through');
($capture) = workers($node, 'capture');
kill('STOP', $capture);
$node->safe_psql('postgres', "UPDATE t SET v = 'meanwhile'; DELETE FROM t WHERE id > 990");
my $dropped = $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication');
kill('CONT', $capture);
ok($dropped, 'the walsender gives up a worker that stands still');
poll_ok($node, "SELECT count(*) = 2000 + 10 FROM elt_raw.st WHERE op <> 'r'", 'it resumes');
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'and all goes through');

# ---- a large transaction, with parts that are rolled back ----

($capture) = workers($node, 'capture');
my ($walsender) = workers($node, 'walsender');
my %peak = ($capture => 0, $walsender => 0);
my $large = $node->safe_psql('postgres', <<'EOS');
BEGIN;
INSERT INTO t SELECT i, 'large' FROM generate_series(2001, 102000) i;
SAVEPOINT a;
INSERT INTO t SELECT i, 'never' FROM generate_series(200001, 230000) i;
ROLLBACK TO a;
INSERT INTO t SELECT i, 'large' FROM generate_series(102001, 152000) i;
SAVEPOINT b;
UPDATE t SET v = 'large too' WHERE id BETWEEN 2001 AND 52000;
RELEASE b;
DO $$ BEGIN FOR i IN 1 .. 200 LOOP BEGIN INSERT INTO t VALUES (300000 + i, 'sub'); IF i % 2 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;
COMMIT;
BEGIN;
INSERT INTO t SELECT i, 'never' FROM generate_series(400001, 450000) i;
ROLLBACK;
SELECT count(*) FROM t;
EOS
is($large, 990 + 150000 + 100, 'the large transaction is in the table');
ok( poll_perl(180, sub {
		foreach my $pid (keys %peak)
		{
			my $mb = rss_anon_mb($pid);
			$peak{$pid} = $mb if $mb > $peak{$pid};
		}
		return $node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.st WHERE op <> 'r'") >= 2010 + 200100;
	}), 'the large transaction is staged');
cmp_ok($peak{$capture}, '>', 0, 'memory was measured');
cmp_ok($peak{$capture}, '<', 128, "the capture worker used $peak{$capture} MB");
cmp_ok($peak{$walsender}, '<', 128, "the walsender used $peak{$walsender} MB");
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.st WHERE after->>'v' = 'never'"), '0',
	'nothing that was rolled back is staged');
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'it is settled');
is(join(',', workers($node, 'capture')), $capture, 'by the same worker');

# ---- two-phase commit, messages, changing shapes ----

$node->safe_psql('postgres', <<'EOS');
BEGIN; INSERT INTO t VALUES (500001, 'two'); PREPARE TRANSACTION 'yes';
BEGIN; INSERT INTO t VALUES (500002, 'never'); PREPARE TRANSACTION 'no';
COMMIT PREPARED 'yes';
ROLLBACK PREPARED 'no';
BEGIN;
INSERT INTO t VALUES (500003, 'before the message');
SELECT elt.emit('order.paid', '{"id": 1, "sum": 10.50}', '{"id": 1}');
DELETE FROM t WHERE id = 500003;
COMMIT;
BEGIN; SELECT elt.emit('order.paid', '{"never": true}'); ROLLBACK;
SELECT elt.emit('order.paid', '"last"');
ALTER TABLE t ADD COLUMN n numeric DEFAULT 7.50;
UPDATE t SET n = 1 WHERE id = 1;
INSERT INTO t VALUES (500004, NULL, 2);
BEGIN;
ALTER TABLE t RENAME COLUMN n TO m;
UPDATE t SET m = 3 WHERE id = 2;
ALTER TABLE t DROP COLUMN m;
UPDATE t SET v = 'narrow' WHERE id = 3;
COMMIT;
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('st', timeout => '180 s')"), 't', 'all is staged');
is($node->safe_psql('postgres',
		"SELECT string_agg(relation || ' ' || coalesce(key::text, '-') || ' ' || after::text, ', ' ORDER BY change_id) FROM elt_raw.st WHERE op = 'm'"),
	'order.paid {"id": 1} {"id": 1, "sum": 10.50}, order.paid - "last"', 'messages come with their transaction');
is($node->safe_psql('postgres',
		"SELECT string_agg(op::text, '' ORDER BY change_id) FROM elt_raw.st WHERE xid = (SELECT xid FROM elt_raw.st WHERE op = 'm' LIMIT 1)"),
	'cmd', 'and in its order');
is($node->safe_psql('postgres',
		"SELECT string_agg((SELECT string_agg(c->>'name', ' ' ORDER BY n) FROM jsonb_array_elements(columns) WITH ORDINALITY AS e(c, n)), ', ' ORDER BY version) "
		  . "FROM elt.schema_versions WHERE relation = 'public.t'"),
	'id v, id v n, id v m, id v', 'each change of shape is a schema version');
is($node->safe_psql('postgres',
		"SELECT string_agg(after::text, ' ' ORDER BY change_id) FROM elt_raw.st WHERE op = 'u' AND change_id > (SELECT max(change_id) FROM elt_raw.st WHERE op = 'm')"),
	'{"n": 1, "v": "meanwhile", "id": 1} {"m": 3, "v": "meanwhile", "id": 2} {"v": "narrow", "id": 3}',
	'changes carry the columns of their moment');

# ---- the publication changes ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE joins (id int PRIMARY KEY);
INSERT INTO joins VALUES (1);
ALTER PUBLICATION elt_st ADD TABLE joins;
INSERT INTO joins VALUES (2);
EOS
poll_ok($node, "SELECT string_agg(after->>'id', ',') = '2' FROM elt_raw.st WHERE relation = 'public.joins'",
	'a table that joins the publication is captured from there');
$node->safe_psql('postgres', <<'EOS');
ALTER PUBLICATION elt_st DROP TABLE joins;
INSERT INTO joins VALUES (3);
ALTER PUBLICATION elt_st ADD TABLE joins;
INSERT INTO joins VALUES (4);
EOS
poll_ok($node, "SELECT string_agg(after->>'id', ',' ORDER BY change_id) = '2,4' FROM elt_raw.st WHERE relation = 'public.joins'",
	'while it is out it is not');

same_as_oracle($node, $node, 'st', 'through all of this', 'public.t');
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the pipeline is settled');
same_as_target($node, $node, 't', 'target');
$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('oracle')");

# ---- a long transaction that the publication does not have ----

$node->append_conf('postgresql.conf', 'wal_sender_timeout = 2s');
$node->reload;
$node->safe_psql('postgres', "INSERT INTO unpublished SELECT i, 'x' FROM generate_series(1, 1500000) i");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('st', timeout => '180 s')"), 't', 'it is passed by');
is(join(',', workers($node, 'capture')), $capture, 'within wal_sender_timeout');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.st WHERE relation = 'public.unpublished'"), '0', 'and not staged');
$node->append_conf('postgresql.conf', 'wal_sender_timeout = 10s');
$node->reload;

# ---- another database is busy, this one idle ----

$node->safe_psql('postgres', 'CREATE DATABASE busy');
$node->safe_psql('busy', "CREATE TABLE b AS SELECT i, repeat('b', 200) AS v FROM generate_series(1, 100000) i");
my $lsn = $node->lsn('flush');
$node->safe_psql('busy', 'CHECKPOINT');
poll_ok($node, "SELECT confirmed_flush_lsn >= '$lsn' AND restart_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name LIKE 'elt_st_%'",
	'the slot lets go of what another database wrote');
poll_ok($node, "SELECT retained_wal_bytes < 1000000 AND lag_bytes < 1000000 FROM elt.stat_sources", 'and stat_sources shows it');

# ---- at rest, with a publication that has everything ----

$node->safe_psql('postgres', <<'EOS');
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT elt.create_source('everything', publication => 'everything');
EOS
poll_ok($node, "SELECT count(*) = 2 FROM elt.stat_sources WHERE state = 'streaming'", 'a second source streams');
$node->safe_psql('postgres', "INSERT INTO t VALUES (600001, 'everywhere')");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('everything', timeout => '180 s') AND elt.wait_for('p', timeout => '180 s')"), 't', 'a change goes through both');
is($node->safe_psql('postgres', "SELECT string_agg(relation || op::text, ' ') FROM elt_raw.everything WHERE op <> 'r'"), 'public.tc',
	'and nothing that elt wrote comes back');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.source_tables WHERE relation ~ '^elt'"), '0', 'nor is copied');
my ($last, $since) = ('', time());
ok( poll_perl(180, sub {
		my $now = $node->lsn('insert');
		($last, $since) = ($now, time()) if $now ne $last;
		return time() - $since > 3;
	}), 'an idle system writes no WAL');

# ---- the WAL of a source is removed ----

my $slot = $node->safe_psql('postgres', "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'elt_st_%'");
$node->safe_psql('postgres', "SELECT elt.pause_source('st')");
poll_ok($node, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'a source is paused');
$node->append_conf('postgresql.conf', 'max_slot_wal_keep_size = 1MB');
$node->reload;
$node->safe_psql('postgres', "INSERT INTO t VALUES (700001, 'lost')");
$node->safe_psql('postgres', "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)); SELECT pg_switch_wal()") foreach 1 .. 3;
$node->safe_psql('postgres', 'CHECKPOINT');
poll_ok($node, "SELECT state = 'lost' FROM elt.stat_sources WHERE source = 'st'", 'a slot whose WAL is removed is shown as lost');
like($node->safe_psql('postgres', q{SELECT severity || ' ' || hint FROM elt.health() WHERE "check" = 'source st' AND NOT ok}),
	qr/^critical .*elt\.resync_source/, 'and by health()');
$node->safe_psql('postgres', "SELECT elt.resume_source('st')");
poll_ok($node, "SELECT state = 'lost' AND last_error IS NOT NULL FROM elt.stat_sources WHERE source = 'st'", 'resuming it fails');
is($node->safe_psql('postgres', "SELECT string_agg(slot_name || wal_status, '') FROM pg_replication_slots WHERE slot_name LIKE 'elt_st_%'"),
	"${slot}lost", 'and makes no new slot that hides the gap');

# ---- the end ----

$node->safe_psql('postgres', "SELECT elt.drop_pipeline('p'); SELECT elt.drop_source(source) FROM elt.stat_sources");
nothing_left($node);
$node->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
$node->stop;
done_testing();
