# Slots of the own server: waits that are shown, a consumer in the way, commits
# that must not wait for ourselves, and a server that is restored or promoted.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('home', "elt.heartbeat_interval = '500ms'", 'max_prepared_transactions = 5');
$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE EXTENSION elt; '
	  . 'CREATE PUBLICATION elt_shop FOR TABLE t');

# a slot waits for transactions that run: it is shown for which, and a source
# that is dropped meanwhile leaves nothing
$node->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (1, 'a'); PREPARE TRANSACTION 'slow one'");
$node->safe_psql('postgres', "SELECT elt.create_source('shop', publication => 'elt_shop')");
poll_ok($node, "SELECT state = 'starting' FROM elt.stat_sources", 'the slot is waited for');
poll_ok($node, "SELECT detail ~ 'waits for transactions that run now: prepared transaction ''slow one''' "
	  . "FROM elt.health() WHERE \"check\" = 'source shop'", 'and health() says for whom')
  or diag($node->safe_psql('postgres', 'SELECT * FROM elt.health(); SELECT * FROM elt.workers()'));
$node->safe_psql('postgres', "SELECT elt.drop_source('shop')");
nothing_left($node);
$node->safe_psql('postgres', "SELECT elt.create_source('shop', publication => 'elt_shop')");
$node->safe_psql('postgres', "COMMIT PREPARED 'slow one'");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'once it is over the source streams');

# somebody reads from the slot: we wait, say who it is, and do not kill
$node->safe_psql('postgres', "SELECT elt.pause_source('shop')");
poll_ok($node, 'SELECT count(*) = 0 FROM pg_replication_slots WHERE active', 'the slot is free');
my $slot = $node->safe_psql('postgres', 'SELECT slot_name FROM elt.sources');
my $reader = IPC::Run::start([ 'pg_recvlogical', '-d', $node->connstr('postgres'), '-S', $slot, '--start', '-f', '-', '-s', '0', '-F', '0' ],
	'>', \my $out, '2>', \my $err);
poll_ok($node, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active', 'somebody reads from the slot');
my $pid = $node->safe_psql('postgres', 'SELECT active_pid FROM pg_replication_slots');
$node->safe_psql('postgres', "SELECT elt.resume_source('shop')");
poll_ok($node, "SELECT state = 'error' AND last_error ~ 'is active for PID $pid' FROM elt.stat_sources", 'it is shown who');
is($node->safe_psql('postgres', "SELECT slot_active_pid FROM elt.stat_sources"), $pid, 'and not ended');
$reader->kill_kill;
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'afterwards we go on');
$node->safe_psql('postgres', "INSERT INTO t VALUES (2, 'b')");
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'and have missed nothing');

# our walsender counts as a standby of '*': our commits do not wait for it
$node->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
$node->reload;
poll_ok($node, "SELECT NOT ok FROM elt.health() WHERE \"check\" = 'synchronous_standby_names'", 'synchronous_standby_names that name us are reported');
$node->safe_psql('postgres', "SET synchronous_commit = local; INSERT INTO t VALUES (3, 'c')");
poll_ok($node, 'SELECT count(*) = 3 FROM elt_raw.shop', 'what we stage does not wait for ourselves');
$node->append_conf('postgresql.conf', "synchronous_standby_names = '\"elt shop\"'");
$node->reload;
poll_ok($node, "SELECT NOT ok AND detail ~ 'elt shop' FROM elt.health() WHERE \"check\" = 'synchronous_standby_names'", 'by name, too');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;

# a base backup has no slots, nor has a standby: once promoted the gap is known
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', "INSERT INTO t VALUES (4, 'd')");
$node->wait_for_catchup($standby);
$node->stop;
$standby->promote;
poll_ok($standby, "SELECT state = 'lost' AND lost_reason = 'slot_missing' FROM elt.stat_sources", 'promoted: the source is lost');
is($standby->safe_psql('postgres', 'SELECT reason, from_lsn IS NOT NULL, resolved_at FROM elt.gaps'), 'slot_missing|t|', 'with a gap');
$standby->safe_psql('postgres', "INSERT INTO t VALUES (5, 'e'); SELECT elt.resync_source('shop')");
poll_ok($standby, "SELECT state = 'streaming' FROM elt.stat_sources", 'resync_source begins anew there');
$standby->safe_psql('postgres', "INSERT INTO t VALUES (6, 'f')");
is($standby->safe_psql('postgres', "SELECT elt.wait_for_source('shop', timeout => '180 s')"), 't', 'it stages on');
same_as_source($standby, $standby, 'shop', 't');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM elt.gaps WHERE resolved_at IS NULL'), '0', 'the gap is closed');

$standby->safe_psql('postgres', "SELECT elt.drop_source('shop')");
nothing_left($standby);
$standby->stop;
done_testing();
