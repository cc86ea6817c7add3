# A slot that does not have what comes next: however that came about, the source
# is lost with a gap and an alert, nothing is made in its place by itself, and
# resync_source begins anew without leaving anything out.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

my $origin = elt_node('origin');
my $sink = elt_node('sink', "elt.heartbeat_interval = '500ms'");
my $conninfo = 'host=' . $origin->host . ' port=' . $origin->port . ' dbname=postgres';
my $id = 0;

$origin->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION elt_far FOR TABLE t');
$sink->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE EXTENSION elt');
alerts_soon($sink);
$sink->safe_psql('postgres', "SELECT elt.create_source('far', conninfo => '$conninfo')");
write_rows();
staged_all();

# dropped by somebody
$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
drop_slot();
write_rows();
is_lost('slot_missing', 'paused: the watch finds a slot that is gone');
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
is($sink->safe_psql('postgres', "SELECT state FROM elt.stat_sources"), 'lost', 'resume_source makes no slot in its place');
like($sink->safe_psql('postgres', "SELECT severity || ' ' || hint FROM elt.health() WHERE \"check\" = 'source far'"),
	qr/critical SELECT elt.resync_source\('far'\)/, 'health() says what to do');
resync();

# made anew by somebody, with another plugin
my $slot = slot();
$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
# the watch would find none, if it looked in between
my ($watch) = workers($sink, 'watch');
kill('STOP', $watch);
drop_slot();
$origin->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('$slot', 'test_decoding')");
kill('CONT', $watch);
write_rows();
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
is_lost('slot_foreign', 'the capture worker finds a slot of another plugin');
resync();
isnt(slot(), $slot, 'it gets a slot of another name');
is($origin->safe_psql('postgres', "SELECT plugin FROM pg_replication_slots WHERE slot_name = '$slot'"), 'test_decoding',
	'and the other one is left alone');
$origin->safe_psql('postgres', "SELECT pg_drop_replication_slot('$slot')");

# used by somebody
$slot = slot();
$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
let_go();
write_rows();
$origin->safe_psql('postgres', "SELECT pg_replication_slot_advance('$slot', pg_current_wal_lsn())");
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
is_lost('slot_ahead', 'a slot that somebody else moved on');
is($sink->safe_psql('postgres', 'SELECT from_lsn < to_lsn FROM elt.gaps WHERE resolved_at IS NULL'), 't', 'the gap has a range');
resync();
$origin->safe_psql('postgres', "SELECT pg_drop_replication_slot('$slot')");

# keepalives move a slot as well: that is no loss, also across a crash of ours
$origin->safe_psql('postgres', 'CREATE TABLE other AS SELECT generate_series(1, 50000) i; SELECT pg_switch_wal()');
my $lsn = $origin->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
poll_ok($origin, "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots", 'the slot moves on without changes');
$sink->stop('immediate');
$sink->start;
write_rows();
staged_all();
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps WHERE resolved_at IS NULL'), '0', 'which is no loss after a crash');

# invalidated
$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
let_go();
$origin->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1MB'");
$origin->reload;
write_rows();
foreach (1 .. 3)
{
	$origin->safe_psql('postgres', 'CREATE TABLE w (); DROP TABLE w; SELECT pg_switch_wal(); CHECKPOINT');
}
is_lost('slot_invalidated', 'max_slot_wal_keep_size was passed');
$origin->append_conf('postgresql.conf', "max_slot_wal_keep_size = -1");
$origin->reload;
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
resync();

# restored to the past, slot and all
$origin->stop;
my $copy = PostgreSQL::Test::Utils::tempdir;
PostgreSQL::Test::RecursiveCopy::copypath($origin->data_dir, "$copy/data");
$origin->start;
write_rows();
staged_all();
$origin->stop;
rename($origin->data_dir, "$copy/ahead") or die;
PostgreSQL::Test::RecursiveCopy::copypath("$copy/data", $origin->data_dir);
chmod(0700, $origin->data_dir);
$origin->start;
is_lost('source_behind', 'a source that was restored to the past');
write_rows();
resync();

# a new timeline, which begins before what was staged
$origin->stop;
PostgreSQL::Test::RecursiveCopy::copypath($origin->data_dir, "$copy/early");
$origin->start;
write_rows();
staged_all();
$origin->stop;
rename($origin->data_dir, "$copy/late") or die;
PostgreSQL::Test::RecursiveCopy::copypath("$copy/early", $origin->data_dir);
chmod(0700, $origin->data_dir);
append_to_file($origin->data_dir . '/standby.signal', '');
$origin->start;
$origin->promote;
write_rows() for 1 .. 3;
$origin->safe_psql('postgres', 'CREATE TABLE more AS SELECT generate_series(1, 10000) i');
is_lost('other_timeline', 'a source that took another turn');
resync();
cmp_ok($sink->safe_psql('postgres', 'SELECT timeline FROM elt.sources'), '>', 1, 'its timeline is known');

# another timeline that begins after it is the same history
staged_all();
$origin->stop;
append_to_file($origin->data_dir . '/standby.signal', '');
$origin->start;
$origin->promote;
write_rows();
staged_all();
is($sink->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps WHERE resolved_at IS NULL'), '0', 'a promotion that loses nothing is no loss');

# a standby at the address, for a while: nothing is lost, and it goes on with the primary
let_stop();
my $primary = $origin;
$primary->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby', port => $primary->port);
$standby->init_from_backup($primary, 'standby');
$standby->append_conf('postgresql.conf', "unix_socket_directories = '" . $primary->host . "'");
append_to_file($standby->data_dir . '/standby.signal', '');
$primary->stop;
$standby->start;
$sink->safe_psql('postgres', "SELECT elt.resume_source('far')");
poll_ok($sink, "SELECT state = 'error' AND last_error ~ 'is in recovery and has no replication slot.*HINT: .*target_session_attrs' FROM elt.stat_sources",
	'a standby that has no slot is no loss');
$standby->stop;
$primary->start;
write_rows();
staged_all();

# another server at the same address
$origin->stop;
rename($origin->data_dir, "$copy/first") or die;
my $other = PostgreSQL::Test::Cluster->new('other', port => $origin->port);
$other->init(allows_streaming => 'logical');
$other->append_conf('postgresql.conf', "unix_socket_directories = '" . $origin->host . "'\nmax_wal_senders = 20\n");
$other->start;
$origin = $other;
$origin->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION elt_far FOR TABLE t');
write_rows();
is_lost('other_system', 'another server');
resync();
# recovery to a point in time, of this database: the slot is ahead of it
prepare_recovery($sink);
write_rows();
staged_all();
my $end = $origin->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
poll_ok($origin, "SELECT confirmed_flush_lsn >= '$end' FROM pg_replication_slots", 'and confirmed');
$sink = recover($sink, 'sink_restored');
is_lost('slot_ahead', 'a recovery of this database to the past');
is($sink->safe_psql('postgres', "SELECT from_lsn < to_lsn AND to_lsn >= '$end' FROM elt.gaps WHERE resolved_at IS NULL"), 't',
	'the gap has the range of what was staged after that');
is($sink->safe_psql('postgres', q{SELECT count(*) FROM elt.health() WHERE "check" = 'source far' AND NOT ok AND hint ~ 'resync_source'}), '1',
	'health() says what to do');
write_rows();
resync();

# and of the source: its slot was in no backup, and it begins a timeline
prepare_recovery($origin);
write_rows();
staged_all();
$origin = recover($origin, 'origin_restored');
is_lost('other_timeline', 'a recovery of the source to the past');
resync();

is($sink->safe_psql('postgres', "SELECT string_agg(reason, ' ' ORDER BY detected_at) FROM elt.gaps WHERE resolved_how = 'resync_source'"),
	'slot_missing slot_foreign slot_ahead slot_invalidated source_behind other_timeline other_system slot_ahead other_timeline',
	'every loss is written down');

$sink->safe_psql('postgres', "SELECT elt.drop_source('far')");
nothing_left($sink);
nothing_left($origin);
$sink->stop;
$origin->stop;
done_testing();

sub write_rows
{
	$id++;
	$origin->safe_psql('postgres', "INSERT INTO t SELECT $id * 1000 + i, 'v' || i FROM generate_series(1, 10) i; "
		  . "UPDATE t SET v = v || 'x' WHERE id % 7 = 0");
}

# A base backup, changes after it, and a point to recover to behind them.
sub prepare_recovery
{
	my ($node) = @_;
	$node->enable_archiving;
	$node->restart;
	write_rows();
	staged_all();
	$node->backup('base');
	write_rows();
	staged_all();
	$node->safe_psql('postgres', "SELECT pg_create_restore_point('here')");
}

# The node as it was at that point, at the same address.
sub recover
{
	my ($node, $name) = @_;
	my $segment = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
	poll_ok($node, "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver", 'the archive has it');
	$node->stop;
	my $restored = PostgreSQL::Test::Cluster->new($name, port => $node->port);
	$restored->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
	$restored->append_conf('postgresql.conf', "unix_socket_directories = '" . $node->host . "'\n"
		  . "recovery_target_name = 'here'\nrecovery_target_action = 'promote'\n");
	$restored->start;
	poll_ok($restored, 'SELECT NOT pg_is_in_recovery()', "$name is recovered");
	return $restored;
}

sub slot
{
	return $sink->safe_psql('postgres', 'SELECT slot_name FROM elt.sources');
}

sub let_go
{
	poll_ok($origin, 'SELECT count(*) = 0 FROM pg_replication_slots WHERE active', 'the slot is free');
}

sub let_stop
{
	$sink->safe_psql('postgres', "SELECT elt.pause_source('far')");
	let_go();
}

sub drop_slot
{
	let_go();
	$origin->safe_psql('postgres', 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
}

sub staged_all
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $lsn = $origin->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
	poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'it streams');
	is($sink->safe_psql('postgres', "SELECT elt.wait_for_source('far', '$lsn', '180 s')"), 't', 'all is staged');

	# since the last copy: what came before may be of a history that is no more
	my $rows = "count(*) || ' ' || md5(string_agg(id || ' ' || v, ',' ORDER BY id))";
	is($sink->safe_psql('postgres', <<"EOS"), $origin->safe_psql('postgres', "SELECT $rows FROM t"), 'raw staging has what the source has');
WITH newest AS (
	SELECT DISTINCT ON (key) op, (after->>'id')::int AS id, after->>'v' AS v
	FROM elt_raw.far
	WHERE relation = 'public.t' AND op <> 't' AND change_id >= (
		SELECT coalesce(min(r.change_id), 0) FROM elt_raw.far r JOIN elt.source_tables t ON t.relation = r.relation AND t.sync_lsn = r.commit_lsn
		WHERE r.op = 'r')
	ORDER BY key, change_id DESC
)
SELECT $rows FROM newest WHERE op <> 'd'
EOS
}

sub is_lost
{
	my ($reason, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($sink, "SELECT state = 'lost' AND lost_reason = '$reason' AND pid IS NULL FROM elt.stat_sources", "$what: $reason")
	  or diag($sink->safe_psql('postgres', 'SELECT * FROM elt.stat_sources'));
	is($sink->safe_psql('postgres', 'SELECT source, reason, from_lsn IS NOT NULL FROM elt.gaps WHERE resolved_at IS NULL'),
		"far|$reason|t", 'one gap is written down');
	poll_ok($sink, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'slot_lost' AND state = 'firing' AND labels->>'source' = 'far'",
		'the alert fires');
}

sub resync
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$sink->safe_psql('postgres', "SELECT elt.resync_source('far')");
	poll_ok($sink, "SELECT state = 'streaming' FROM elt.stat_sources", 'resync_source begins anew');
	poll_ok($sink, 'SELECT count(*) = 0 FROM elt.gaps WHERE resolved_at IS NULL OR to_lsn IS NULL', 'the gap is closed');
	write_rows();
	staged_all();
	poll_ok($sink, "SELECT count(*) = 0 FROM elt.alerts WHERE rule = 'slot_lost' AND state = 'firing'", 'the alert is resolved');
}
