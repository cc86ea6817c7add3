# Alerts from cause to listener: ten sessions that LISTEN, the time it takes,
# how few notifications a flood of failures makes, what a listener that was
# away reads, a full queue, a failure that is rolled back, rules that hang, a
# worker that crashes, and what is shipped.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('alerts', "shared_preload_libraries = 'elt'", 'elt.max_workers = 2', 'elt.alert_time_limit = 300ms');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v int);
CREATE SCHEMA dw;
CREATE TABLE dw.t (id int PRIMARY KEY, v int CONSTRAINT small CHECK (v < 100));
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'dw.t', options => '{"breaker": false}');
EOS
is($node->safe_psql('postgres', q{SELECT elt.wait_for('p', timeout => '180 s')}), 't', 'the pipeline runs');

# ---- listeners ----

# A psql that listens; asked, it tells what came.
sub listener
{
	my $self = { in => '', out => '', err => '', got => [], asked => 0 };
	$self->{handle} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres') ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		IPC::Run::timeout(900));
	say_to($self, 'LISTEN elt_alerts;');
	received($self);
	return $self;
}

sub say_to
{
	my ($self, $text) = @_;
	$self->{in} .= "$text\n";
	$self->{handle}->pump while length $self->{in};
	return;
}

# All payloads so far.
sub received
{
	my ($self) = @_;
	my $mark = 'asked ' . ++$self->{asked};
	say_to($self, "SELECT '$mark';");
	# psql reads its socket only when a command ends: a second one takes what came with the first
	say_to($self, "SELECT '$mark again';");
	$self->{handle}->pump until $self->{out} =~ /^$mark again$/m;
	while ($self->{out} =~ s/^Asynchronous notification "elt_alerts" with payload "(.*)" received from server process with PID \d+\.$//m)
	{
		my $json = $1;
		push @{ $self->{got} }, { json => $json, at => time(), %{ JSON::PP->new->decode($json) } };
	}
	return @{ $self->{got} };
}

# Waits until a notification of a rule in a state has come; returns it.
sub hear
{
	my ($self, $rule, $state) = @_;
	my $found;
	poll_perl(180, sub {
		($found) = grep { $_->{rule} eq $rule && $_->{state} eq $state } received($self);
		return defined $found;
	});
	@{ $self->{got} } = grep { !defined $found || $_ != $found } @{ $self->{got} };
	return $found;
}

my @listeners = map { listener() } 1 .. 10;
my $first = $listeners[0];

# ---- error rate: cause, context, time ----

my $start = time();
$node->safe_psql('postgres', 'INSERT INTO t SELECT g, CASE WHEN g % 50 = 0 THEN 100 ELSE 1 END FROM generate_series(1, 1000) g');
my $rate = hear($first, 'error_rate', 'firing');
my $took = time() - $start;
ok(defined $rate, 'error_rate fires');
cmp_ok($took, '<', 20, sprintf('from the failing commit to the listener: %.2f s', $took));
is_deeply([ @$rate{qw(state severity pipeline source threshold count reason)} ],
	[ 'firing', 'critical', 'p', 's', 0.1, 1, 'new' ], 'it says what, where and how bad');
cmp_ok($rate->{value}, '>', 0.1, 'with the value');
is(scalar(@{ $rate->{quarantine_ids} }), 5, 'with five of the records');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE fingerprint = '$rate->{fingerprint}' AND quarantine_id IN ("
		  . join(',', @{ $rate->{quarantine_ids} }) . ')'), '5', 'which have its fingerprint');
like($rate->{alerts}[0]{detail}, qr/sqlstate 23514.*constraint small/, 'and the constraint');
unlike($rate->{json}, qr/"?v"?: 100|Failing row|\(\d+, 100\)/, 'but no data');
my $spike = hear($first, 'error_spike', 'firing');
is($spike->{value}, 20, 'a new error is a spike');
is($spike->{alerts}[0]{labels}{fingerprint}, $rate->{fingerprint}, 'told by its fingerprint');
foreach my $number (1 .. 9)
{
	my $heard = hear($listeners[$number], 'error_rate', 'firing');
	ok(defined $heard && $heard->{notification_id} == $rate->{notification_id}, "listener $number heard the same");
}
$_->{handle}->kill_kill foreach @listeners[ 1 .. 9 ];

# ---- a flood of failures is a handful of notifications ----

received($first);
@{ $first->{got} } = ();
$node->safe_psql('postgres', <<'EOS');
ALTER TABLE dw.t ADD COLUMN w int, ADD CONSTRAINT other CHECK (w IS NULL);
ALTER TABLE t ADD COLUMN w int;
INSERT INTO t SELECT g, CASE g % 2 WHEN 0 THEN 100 ELSE 1 END, CASE g % 2 WHEN 0 THEN NULL ELSE 1 END
FROM generate_series(10001, 20000) g;
EOS
is($node->safe_psql('postgres', q{SELECT elt.wait_for('p', timeout => '180 s')}), 't', 'ten thousand failures are settled');
ok(defined hear($first, 'error_spike', 'firing'), 'the second error is another spike');
ok(defined hear($first, 'schema_drift', 'firing'), 'and the new column was noticed');
my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine');
cmp_ok($count, '>=', 10000, "$count records are in quarantine");
my $told = $node->safe_psql('postgres', "SELECT last_value FROM elt.alert_notifications");
cmp_ok($told, '<=', 12, "$told notifications in all");

# ---- a blocked pipeline, and its end ----

$node->safe_psql('postgres', q{SELECT elt.alter_alert_rule('pipeline_blocked', group_interval => '0'); }
	  . q{SELECT elt.alter_alert_rule('rule_error', evaluation_interval => '1 s')});
$start = time();
$node->safe_psql('postgres', 'CREATE FUNCTION dw.fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE disk_full; END$$; '
	  . 'CREATE TRIGGER fail BEFORE INSERT ON dw.t FOR EACH ROW EXECUTE FUNCTION dw.fail(); INSERT INTO t VALUES (30001, 1)');
my $blocked = hear($first, 'pipeline_blocked', 'firing');
$took = time() - $start;
ok(defined $blocked && $blocked->{pipeline} eq 'p', sprintf('a blocked pipeline is told: after %.2f s', $took));
is($node->safe_psql('postgres', q{SELECT state FROM elt.stat_pipelines}), 'blocked', 'and it is');
$node->safe_psql('postgres', 'DROP TRIGGER fail ON dw.t; SELECT elt.resume_pipeline(\'p\')');
my $resolved = hear($first, 'pipeline_blocked', 'resolved');
is($resolved->{alert_id}, $blocked->{alert_id}, 'and that it is over');

# ---- a failure that is rolled back alerts nobody ----

$node->safe_psql('postgres', q{SELECT elt.pause_pipeline('p'); INSERT INTO t SELECT g, 100, NULL FROM generate_series(40001, 40200) g});
is($node->safe_psql('postgres', q{SELECT elt.wait_for_source('s', timeout => '180 s')}), 't', 'failures are staged');
$node->safe_psql('postgres', q{CREATE TABLE before_rollback AS SELECT count(*) AS n FROM elt.quarantine; }
	  . q{BEGIN; SELECT elt.transform('p'); ROLLBACK});
is($node->safe_psql('postgres', q{SELECT (SELECT count(*) FROM elt.quarantine) - n FROM before_rollback}), '0', 'the quarantine is rolled back');
is($node->safe_psql('postgres', q{SELECT elt.evaluate_alerts() IS NOT NULL; SELECT count(*) FROM elt.alerts a, elt.quarantine q }
		  . q{WHERE q.quarantine_id = ANY (a.quarantine_ids) AND q.change_id > (SELECT min(position) FROM elt.checkpoints)}), "t\n0",
	'and no alert knows of it');
$node->safe_psql('postgres', q{SELECT elt.resume_pipeline('p')});

# ---- rules of users: one hangs, one fails, one works ----

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE joe;
CREATE TABLE level (value float8);
GRANT SELECT ON level TO joe;
GRANT EXECUTE ON FUNCTION elt.create_alert_rule, elt.silence_alert, elt.ack_alert TO joe;
SET ROLE joe;
SELECT elt.create_alert_rule('hangs', 'SELECT count(*) AS value FROM pg_sleep(600)');
SELECT elt.create_alert_rule('locked', 'SELECT 1 AS value FROM pg_catalog.pg_class, pg_advisory_xact_lock(77)');
SELECT elt.create_alert_rule('fails', 'SELECT 1 / value AS value FROM level');
SELECT elt.create_alert_rule('high', 'SELECT value, session_user || '' '' || current_user AS roles FROM level', 10, repeat_interval => '1 s', group_interval => '0');
EOS
my $holder = $node->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('SELECT pg_advisory_lock(77)');
my @pids = workers($node, 'supervisor');
poll_ok($node, q{SELECT count(*) = 2 FROM elt.alert_rules WHERE rule IN ('hangs', 'locked') AND last_error LIKE '57014: canceling statement due to statement timeout'},
	'a rule that takes too long is stopped');
$node->safe_psql('postgres', 'INSERT INTO level VALUES (0)');
poll_ok($node, q{SELECT last_error = '22012: division by zero' FROM elt.alert_rules WHERE rule = 'fails'}, 'the error of a rule is kept');
$start = time();
$node->safe_psql('postgres', 'INSERT INTO level VALUES (20)');
my $high = hear($first, 'high', 'firing');
$took = time() - $start;
cmp_ok($took, '<', 20, sprintf('the other rule works on: %.2f s', $took));
like($high->{alerts}[0]{labels}{roles}, qr/ joe$/, 'as its owner');
is(join(',', workers($node, 'supervisor')), join(',', @pids), 'in the same supervisor');
ok(defined hear($first, 'rule_error', 'firing'), 'rules that fail are an alert too');
$holder->quit;

# ---- repeat, acknowledge, silence ----

my $again = hear($first, 'high', 'firing');
is($again->{reason}, 'repeat', 'it is repeated');
my $ack = $node->safe_psql('postgres', "SET ROLE joe; SELECT elt.ack_alert($high->{alert_id}, 'seen'); "
	  . "RESET ROLE; SELECT acked_by, ack_note FROM elt.alerts WHERE alert_id = $high->{alert_id}");
is($ack, "\njoe|seen", 'acknowledged');
# what was under way then has been told
my $acked = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
poll_ok($node, "SELECT query_start > '$acked' FROM pg_stat_activity WHERE backend_type = 'elt supervisor' AND query = 'evaluating alert rules'",
	'the rules are evaluated once more');
my $notifications = $node->safe_psql('postgres', "SELECT notifications FROM elt.alerts WHERE alert_id = $high->{alert_id}");
poll_ok($node, "SELECT clock_timestamp() > last_notified_at + interval '3 s' FROM elt.alerts WHERE alert_id = $high->{alert_id}",
	'three repetitions later');
is($node->safe_psql('postgres', "SELECT notifications FROM elt.alerts WHERE alert_id = $high->{alert_id}"), $notifications, 'nothing more is told');
$node->safe_psql('postgres', q{SET ROLE joe; SELECT elt.silence_alert('high', duration => '1 h', comment => 'test')});
$node->safe_psql('postgres', 'UPDATE level SET value = 0');
ok(defined hear($first, 'high', 'resolved'), 'its end is told all the same');
$node->safe_psql('postgres', 'UPDATE level SET value = 30');
poll_ok($node, q{SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'high' AND state = 'firing' AND silenced AND told IS NULL},
	'silenced: recorded, not told');
$node->safe_psql('postgres', q{SELECT elt.drop_alert_rule(rule) FROM elt.alert_rules WHERE NOT shipped});
poll_ok($node, q{SELECT count(*) = 0 FROM elt.alerts WHERE rule IN ('high', 'rule_error') AND state <> 'resolved'},
	'without the rule there is no alert');

# ---- a listener that was away; a queue that is full ----

my $last = $node->safe_psql('postgres', 'SELECT max(notification_id) FROM elt.alerts');
$first->{handle}->kill_kill;
$node->safe_psql('postgres', 'UPDATE level SET value = 0; '
	  . q{SELECT elt.create_alert_rule('away', 'SELECT value FROM level', 10, group_interval => '0')});
$node->safe_psql('postgres', 'UPDATE level SET value = 11');
poll_ok($node, q{SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'away' AND told = 'firing'}, 'nobody listens');
is($node->safe_psql('postgres', "SELECT rule, state FROM elt.alerts WHERE notification_id > $last AND rule = 'away' ORDER BY notification_id"),
	'away|firing', 'the table has what was missed');

# a session that listens in a transaction keeps the queue from being emptied;
# in another database, where it need not read it all in the end
my $sleeper = $node->background_psql('template1');
$sleeper->query_safe('LISTEN anything');
$sleeper->query_safe('BEGIN');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', q{SELECT count(pg_notify('anything', repeat('x', 7000) || g)) FROM generate_series(1, 4000) g});
$node->safe_psql('postgres', 'ALTER SYSTEM SET elt.alert_queue_limit = 0.1; SELECT pg_reload_conf()');
cmp_ok($node->safe_psql('postgres', 'SELECT pg_notification_queue_usage() * 100'), '>', 0.1, 'the queue is fuller than allowed');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (50001, 1); UPDATE level SET value = 0');
poll_ok($node, q{SELECT state = 'resolved' AND told = 'firing' FROM elt.alerts WHERE rule = 'away'}, 'an alert is over, and waits to be told');
ok(poll_perl(180, sub { return log_since($node, $offset) =~ /notification queue is too full/ }), 'the log says why');
is($node->safe_psql('postgres', q{SELECT elt.wait_for('p', timeout => '180 s')}), 't', 'pipelines do not notice');
my $late = listener();
$sleeper->query_safe('COMMIT');
$sleeper->quit;
my $told_late = hear($late, 'away', 'resolved');
ok(defined $told_late, 'told once there is room');
is($node->safe_psql('postgres', q{SELECT told FROM elt.alerts WHERE rule = 'away'}), 'resolved', 'and marked so');
is(() = log_since($node, $offset) =~ /notification queue is too full/g, 1, 'one line in the log');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET elt.alert_queue_limit; SELECT pg_reload_conf(); SELECT elt.drop_alert_rule('away')});

# ---- sources and workers ----

for my $round (1 .. 3)
{
	my ($capture) = workers($node, 'capture');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($capture)");
	poll_ok($node, "SELECT count(*) = 1 FROM elt.stat_sources WHERE state = 'streaming' AND pid <> $capture", "capture worker $round is back");
}
my $loop = hear($late, 'worker_crash_loop', 'firing');
is_deeply($loop->{alerts}[0]{labels}, { worker => 'capture', source => 's' }, 'a worker that fails again and again is told');
is($node->safe_psql('postgres', q{SELECT elt.evaluate_alerts() IS NOT NULL; SELECT state, absent_since IS NULL FROM elt.alerts WHERE rule = 'worker_crash_loop'}),
	"t\nfiring|t", 'and who evaluates by hand does not know better');

$node->safe_psql('postgres', q{SELECT elt.alter_alert_rule('source_disconnected', for_duration => '0', group_interval => '0')});
$node->safe_psql('postgres', q{UPDATE elt.sources SET conninfo = 'host=/nowhere'});
my ($capture) = workers($node, 'capture');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($capture)");
my $gone = hear($late, 'source_disconnected', 'firing');
is($gone->{source}, 's', 'a source without a stream is told');
$node->safe_psql('postgres', q{UPDATE elt.sources SET conninfo = NULL});

# ---- the server is stopped at once: what fires goes on firing ----

my $open = $node->safe_psql('postgres', q{SELECT alert_id FROM elt.alerts WHERE rule = 'error_rate' ORDER BY alert_id DESC LIMIT 1});
$late->{handle}->kill_kill;
my $before = $node->safe_psql('postgres', 'SELECT max(notification_id) FROM elt.alerts');
$node->stop('immediate');
$node->start;
poll_ok($node, q{SELECT count(*) = 0 FROM elt.alerts WHERE rule = 'source_disconnected' AND state <> 'resolved'}, 'evaluated again after a crash');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT notification_id FROM elt.alerts WHERE notification_id <= $before "
		  . "GROUP BY notification_id, rule) x"), $node->safe_psql('postgres',
		"SELECT count(DISTINCT notification_id) FROM elt.alerts WHERE notification_id <= $before"), 'no notification id is given out twice');

# ---- rights: only those concerned see alerts ----

is($node->safe_psql('postgres', q{SET ROLE joe; SELECT count(*) FROM elt.alerts WHERE pipeline = 'p'}), '0', 'others do not see them');
$node->safe_psql('postgres', q{UPDATE elt.pipelines SET owner = 'joe'});
cmp_ok($node->safe_psql('postgres', q{SET ROLE joe; SELECT count(*) FROM elt.alerts WHERE pipeline = 'p'}), '>', 0, 'the owner of the pipeline does');

$node->stop;
done_testing();
