# The shipped rules that 015_alerts.pl has no cause for: what they see, and the
# end of it.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# room for launcher, supervisor, capture worker and one transform worker
my $node = elt_node('shipped', "shared_preload_libraries = 'elt'", 'max_worker_processes = 4',
	'max_logical_replication_workers = 0', 'max_parallel_workers = 0', 'elt.max_workers = 2', 'elt.min_workers = 2');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY);
CREATE TABLE target (id int PRIMARY KEY);
SELECT elt.create_source('s', ARRAY['t'], snapshot => 'none');
SELECT elt.create_pipeline('p', 's', 't', 'target');
SELECT elt.wait_for('p', timeout => '180 s');
INSERT INTO t SELECT g FROM generate_series(1, 100) g;
SELECT elt.alter_alert_rule(rule, threshold => 0, for_duration => '0', keep_firing_for => '0', group_interval => '0',
	evaluation_interval => '1 s')
FROM elt.alert_rules WHERE rule IN ('freshness', 'slot_retained_wal', 'slot_lost');
-- an alert that is told again and again: so all rules are evaluated each second
SELECT elt.create_alert_rule('clock', 'SELECT 1 AS value', repeat_interval => '1 s', group_interval => '0');
EOS

sub fires
{
	my ($rule, $labels, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = '$rule' AND state = 'firing' AND labels = '$labels' AND told = 'firing'", $what);
}

sub ends
{
	my ($rule, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT count(*) = 0 FROM elt.alerts WHERE rule = '$rule' AND state <> 'resolved'", $what);
}

fires('worker_budget_exhausted', '{}', 'a worker that finds no room is told');
is($node->safe_psql('postgres', 'SELECT reason, wanted FROM elt.scaling_log ORDER BY scaling_id DESC LIMIT 1'), 'no_process|1',
	'since the server cannot start what the scaler wants');
$node->safe_psql('postgres', 'ALTER SYSTEM SET elt.min_workers = 1; SELECT pg_reload_conf()');
ends('worker_budget_exhausted', 'and that it needs none any more');

$node->safe_psql('postgres', 'CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE disk_full; END$$; '
	  . 'CREATE TRIGGER fail BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION fail(); INSERT INTO t VALUES (101)');
fires('freshness', '{"pipeline": "p", "source": "s"}', 'a change that waits for too long is told');
is($node->safe_psql('postgres', q{SELECT count(*) FROM elt.shipped_alert_samples(ARRAY['backlog_drain_time'], now())}), '1',
	'and its backlog is looked at');
$node->safe_psql('postgres', q{DROP TRIGGER fail ON target; SELECT elt.resume_pipeline('p')});
ends('freshness', 'and that it has gone through');

fires('slot_retained_wal', '{"source": "s"}', 'WAL that a slot keeps is told');
is($node->safe_psql('postgres', q{SELECT sample->>'threshold' FROM elt.shipped_alert_samples(ARRAY['slot_retained_wal'], now())}),
	'10737418240', 'the threshold is 10 GB');
$node->safe_psql('postgres', q{ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; SELECT pg_reload_conf()});
poll_ok($node, q{SELECT (sample->>'threshold')::float8 = 512 * 1024 * 1024 FROM elt.shipped_alert_samples(ARRAY['slot_retained_wal'], now())},
	'or half of what the server lets slots keep');

is($node->safe_psql('postgres', q{SELECT count(*) FROM elt.shipped_alert_samples(ARRAY['slot_lost'], now())}), '0', 'the slot is there');
$node->safe_psql('postgres', q{SELECT elt.pause_source('s')});
poll_ok($node, q{SELECT count(*) = 1 FROM pg_replication_slots WHERE NOT active}, 'nobody uses the slot');
$node->safe_psql('postgres', q{SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots});
fires('slot_lost', '{"source": "s"}', 'a slot that is gone is told');
is($node->safe_psql('postgres', q{SELECT count(*) FROM elt.alerts WHERE rule = 'source_disconnected' AND state = 'firing'}), '0',
	'but a paused source is not disconnected');

# a rule that is disabled is silent at once; alerts as a whole can be switched off
$node->safe_psql('postgres', q{SELECT elt.alter_alert_rule('slot_lost', enabled => false)});
ends('slot_lost', 'a rule that is disabled has no alerts');

# DROP EXTENSION finds the supervisor evaluating, and leaves nothing
$node->safe_psql('postgres', q{SELECT elt.drop_pipeline('p'); SELECT elt.drop_source('s'); DROP EXTENSION elt});
nothing_left($node);
poll_ok($node, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'elt supervisor'}, 'no supervisor is left');

$node->stop;
done_testing();
