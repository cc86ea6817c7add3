# A hot standby with elt preloaded is quiet and readable; promoted, it says what
# it lacks and captures anew.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = elt_node('primary', 'elt.max_workers = 1');
my $err;

$primary->safe_psql('postgres', 'CREATE EXTENSION elt');
alerts_soon($primary);
$primary->safe_psql('postgres', 'CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE a_target (id int PRIMARY KEY, v text)');
$primary->safe_psql('postgres', "SELECT elt.create_source('s', ARRAY['a'])");
$primary->safe_psql('postgres', "SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
$primary->safe_psql('postgres', "INSERT INTO a SELECT i, 'v' FROM generate_series(1, 100) i");
is($primary->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'changes went through');

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', "INSERT INTO a VALUES (101, 'later')");
is($primary->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'the primary goes on');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('write'));

# ---- standby ----

is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'elt%'"), '0', 'no worker runs on a standby');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM elt_raw.s'), '101', 'raw staging is readable');
foreach my $view (qw(stat_sources stat_pipelines stat_workers backlog raw_staging alerts quarantine_groups progress_replay stat_pool))
{
	is($standby->psql('postgres', "SELECT count(*) FROM elt.$view", stderr => \$err), 0, "so is $view")
	  or diag($err);
}
is($standby->psql('postgres', 'SELECT count(*) FROM elt.health()', stderr => \$err), 0, 'and health()') or diag($err);
foreach my $statement ("SELECT elt.create_source('x', ARRAY['a'])", "SELECT elt.pause_source('s')", "SELECT elt.transform('p')",
	"CALL elt.replay('p')", "SELECT elt.purge_raw('s', 'public.a', '{\"id\": 1}')", "SELECT elt.set_raw_retention('s', '1 s')")
{
	isnt($standby->psql('postgres', $statement, stderr => \$err), 0, "refused: $statement");
	like($err, qr/read-only transaction|during recovery/, 'since it is a standby');
}
unlike(slurp_file($standby->logfile), qr/elt (launcher|supervisor|capture|transform) (ERROR|FATAL)/, 'nothing fails there');

# ---- promotion ----

$primary->stop('fast');
$standby->promote;
poll_ok($standby, "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type IN ('elt launcher', 'elt supervisor')", 'promoted, elt starts');
poll_ok($standby, q{SELECT state IN ('error', 'lost') AND last_error ~ 'slot' FROM elt.stat_sources}, 'the slot did not come along, and it says so');
poll_ok($standby, q{SELECT NOT ok AND severity = 'critical' AND hint <> '' FROM elt.health() WHERE "check" = 'source s'}, 'so does health(), with what to do');
poll_ok($standby, q{SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'slot_lost' AND state = 'firing'}, 'and an alert fires');
$standby->safe_psql('postgres', "INSERT INTO a VALUES (102, 'promoted'); DELETE FROM a WHERE id = 1");
# the way that needs nothing but the documented functions
$standby->safe_psql('postgres', "SELECT elt.pause_pipeline('p'); SELECT elt.drop_pipeline('p')");
$standby->safe_psql('postgres', "SELECT elt.drop_source('s')");
$standby->safe_psql('postgres', 'TRUNCATE a_target');
$standby->safe_psql('postgres', "SELECT elt.create_source('s', ARRAY['a'])");
$standby->safe_psql('postgres', "SELECT elt.create_pipeline('p', 's', 'public.a', 'a_target')");
is($standby->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'made anew it captures');
$standby->safe_psql('postgres', "UPDATE a SET v = 'on' WHERE id = 2");
is($standby->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'and goes on');
same_as_target($standby, $standby, 'a', 'a_target');
$standby->safe_psql('postgres', 'DROP EXTENSION elt CASCADE');
nothing_left($standby);

$standby->stop;
done_testing();
