# What a slot holds is known and shown, running or paused, here or far away; a
# quiet table holds nothing; and elt.max_slot_lag keeps the source safe.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $origin = elt_node('origin', "elt.heartbeat_interval = '500ms'");
my $sink = elt_node('sink', "elt.heartbeat_interval = '500ms'");
my $conninfo = 'host=' . $origin->host . ' port=' . $origin->port . ' dbname=postgres';

$origin->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE busy (v text); '
	  . 'CREATE PUBLICATION elt_far FOR TABLE t; CREATE EXTENSION elt');
$origin->safe_psql('postgres', "INSERT INTO t VALUES (1, 'a')");
$origin->safe_psql('postgres', "CREATE DATABASE neighbour");
$sink->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE EXTENSION elt');
alerts_soon($_) foreach $origin, $sink;
$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");
$origin->safe_psql('postgres', "SELECT elt.create_source('near', publication => 'elt_far')");
my @both = ([ $sink, 'far' ], [ $origin, 'near' ]);

foreach (@both)
{
	my ($node, $source) = @$_;
	poll_ok($node, "SELECT state = 'streaming' AND retained_wal_bytes IS NOT NULL AND wal_status = 'reserved' "
		  . "AND catalog_xmin_age IS NOT NULL AND slot_age IS NOT NULL AND slot_active_pid IS NOT NULL FROM elt.stat_sources",
		"$source: what its slot holds is shown");
}

# an idle table beside a busy server holds no WAL: 200 MB are written in another
# database and in tables that are not published, and neither slot keeps 40 MB
$origin->safe_psql('neighbour', 'CREATE TABLE w AS SELECT repeat(md5(i::text), 30) v FROM generate_series(1, 100000) i');
$origin->safe_psql('postgres', 'INSERT INTO busy SELECT repeat(md5(i::text), 30) v FROM generate_series(1, 100000) i; CHECKPOINT');
foreach (@both)
{
	my ($node, $source) = @$_;
	poll_ok($node, "SELECT retained_wal_bytes < 40000000 FROM elt.stat_sources", "$source: a quiet table holds no WAL");
}
cmp_ok($sink->safe_psql('postgres', 'SELECT max(retained_wal_bytes) FROM elt.stat_sources'), '<', 40_000_000, 'as measured');
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt_raw.far'), '1', 'heartbeats are not staged');
my $heartbeats = "SELECT count(*) > 0 FROM pg_logical_slot_peek_changes('seen', NULL, NULL) WHERE data ~ 'prefix: elt, .*heartbeat'";
$origin->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('seen', 'test_decoding')");
$origin->safe_psql('postgres', 'INSERT INTO busy SELECT md5(i::text) FROM generate_series(1, 1000) i');
poll_ok($origin, $heartbeats, 'but written');
$origin->safe_psql('postgres', "SELECT pg_drop_replication_slot('seen')");

# forged ones do no harm, nor what only looks like one
$origin->safe_psql('postgres', <<'EOS');
SELECT pg_logical_emit_message(true, 'elt', '{"heartbeat":'), pg_logical_emit_message(true, 'elt', '{"heartbeat": {"lsn": "FFFFFFFF/0"}}'),
	pg_logical_emit_message(false, 'elt', '{"heartbeat":true}'), elt.emit('heartbeat', '{"heartbeat": true}')
EOS
$origin->safe_psql('postgres', "INSERT INTO t VALUES (2, 'b')");
my $lsn = $origin->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', '$lsn', '180 s')"), 't', 'forged heartbeats stop nothing');
is($sink->safe_psql('postgres', "SELECT string_agg(relation || ' ' || op::text, ', ' ORDER BY change_id) FROM elt_raw.far"),
	'public.t r, heartbeat m, public.t c', 'and a message of a user is a message');

# a pause costs, and says what
$origin->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1GB'");
$origin->reload;
foreach (@both)
{
	my ($node, $source) = @$_;
	$node->safe_psql('postgres', "SELECT elt.pause_source('$source')");
}
$origin->safe_psql('postgres', 'INSERT INTO busy SELECT repeat(md5(i::text), 30) v FROM generate_series(1, 30000) i');
foreach (@both)
{
	my ($node, $source) = @$_;
	poll_ok($node, "SELECT state = 'paused' AND retained_wal_bytes > 30000000 AND pause_bytes_per_second > 0 "
		  . "AND pause_time_left > interval '0' AND safe_wal_size > 0 FROM elt.stat_sources", "$source: a pause says what it costs")
	  or diag($node->safe_psql('postgres', 'SELECT * FROM elt.stat_sources'));
	like($node->safe_psql('postgres', "SELECT detail FROM elt.health() WHERE \"check\" = 'source $source'"),
		qr/^paused; the source keeps \d+ MB of WAL for it, growing by .* per second; the slot is lost in /, "$source: health() says so, too");
}

# beyond elt.max_slot_lag: an alert, or no slot
foreach (@both)
{
	my ($node, $source) = @$_;
	$node->append_conf('postgresql.conf', "elt.max_slot_lag = '20MB'");
	$node->reload;
	poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'slot_retained_wal' AND state = 'firing' AND labels->>'source' = '$source'",
		"$source: WAL beyond elt.max_slot_lag is an alert");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps'), '0', "$source: and no more, by default");
	$node->safe_psql('postgres', "SELECT elt.alter_source('$source', '{\"slot_policy\": \"resync\"}')");
	poll_ok($node, "SELECT state = 'lost' AND lost_reason = 'max_slot_lag' FROM elt.stat_sources", "$source: with policy resync the source is lost");
	poll_ok($origin, "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_$source%'", "$source: and its slot is gone");
	is($node->safe_psql('postgres', 'SELECT reason, from_lsn < to_lsn, resolved_at IS NULL FROM elt.gaps'), 'max_slot_lag|t|t',
		"$source: the gap is written down");
	$node->safe_psql('postgres', "SELECT elt.resume_source('$source')");
	poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", "$source: once resumed it begins anew by itself");
	poll_ok($node, "SELECT resolved_how = 'resync by slot_policy' AND resolved_at IS NOT NULL FROM elt.gaps", "$source: and the gap is closed");
}

# also where the worker is there and hangs
my $holder = $sink->background_psql('postgres', on_error_stop => 1);
$holder->query_safe("BEGIN; LOCK TABLE elt_raw.far; SELECT format('LOCK TABLE %s', raw) FROM elt.source_tables WHERE raw IS NOT NULL \\gexec");
$origin->safe_psql('postgres', "INSERT INTO t SELECT i, 'c' FROM generate_series(10, 3000) i");
$origin->safe_psql('postgres', 'INSERT INTO busy SELECT repeat(md5(i::text), 30) v FROM generate_series(1, 30000) i');
poll_ok($sink, "SELECT count(*) = 2 FROM elt.gaps WHERE reason = 'max_slot_lag'", 'a worker that hangs does not save the slot');
poll_ok($origin, "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_far%'", 'which goes');
$holder->query_safe('ROLLBACK');
$holder->quit;
poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'and comes again when it can');
$lsn = $origin->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', '$lsn', '180 s')"), 't', 'all is staged');
same_as_source($origin, $sink, 'far', 't');

$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
$origin->safe_psql('postgres', "SELECT elt.drop_source('near')");
nothing_left($origin);
nothing_left($sink);
$sink->stop;
$origin->stop;
done_testing();
