# The time of day of elt's server is set back by an hour, and ahead by two:
# nothing waits for it, no interval turns negative, no alert goes off, nothing
# is dropped before its time, and raw staging is in the order of the source's WAL.
use strict;
use warnings;

use EltTest;
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $work = PostgreSQL::Test::Utils::tempdir;
my $clock = "$work/clock.so";
my $file = "$work/seconds";
system('cc', '-shared', '-fPIC', '-o', $clock, dirname(__FILE__) . '/../lib/clock.c') == 0
  or plan(skip_all => 'no C compiler');

sub set_clock
{
	my ($seconds) = @_;
	my $out;
	open($out, '+<', $file) || open($out, '>', $file) or die "$file: $!";
	syswrite($out, pack('q', $seconds));
	close($out);
}
set_clock(0);

my $origin = elt_node('origin');
my $node;
{
	local $ENV{LD_PRELOAD} = $clock;
	local $ENV{CLOCK_FILE} = $file;
	$node = elt_node('clock', "elt.raw_retention = '90min'", 'elt.max_workers = 3', "elt.idle_timeout = '2s'",
		"elt.heartbeat_interval = '1s'", "elt.source_timeout = '4s'");
}
sub sql { return $node->safe_psql('postgres', $_[0]); }

$origin->safe_psql('postgres', 'CREATE TABLE b (id serial PRIMARY KEY, v text); CREATE PUBLICATION elt_far FOR TABLE b');
my $conninfo = 'host=' . $origin->host . ' port=' . $origin->port . ' dbname=postgres';
sql(<<"EOS");
CREATE EXTENSION elt;
CREATE TABLE a (id serial PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY, v text);
CREATE TABLE a_target (id int PRIMARY KEY, v text);
CREATE TABLE b_target (id int PRIMARY KEY, v text);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY REFERENCES parent);
CREATE TABLE blocked (id int PRIMARY KEY);
CREATE TABLE gate AS SELECT 1;
SELECT elt.create_source('s', ARRAY['a'], options => '{"raw_partition_changes": 4096}');
SELECT elt.create_source('far', conninfo => '$conninfo', options => '{"raw_partition_changes": 4096}');
SELECT elt.create_pipeline('a', 's', 'a', 'a_target');
SELECT elt.create_pipeline('b', 'far', 'public.b', 'b_target');
SELECT elt.create_pipeline('child', 's', 'a', 'child', 'SELECT (record->>''id'')::int AS id FROM changes', options => '{"breaker": false}');
SELECT elt.create_pipeline('blocked', 's', 'a', 'blocked', 'SELECT (record->>''id'')::int AS id FROM changes, public.gate');
SELECT elt.create_source('paused', ARRAY['gate']);
SELECT elt.create_alert_rule('many', 'SELECT count(*) AS value FROM public.b_target', 1000000);
EOS

is(sql("SELECT elt.wait_for_source('paused', timeout => '60 s')"), 't', 'a source streams');
sql("SELECT elt.pause_source('paused')");

sub goes_through
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("WITH n AS (INSERT INTO a (v) SELECT 'v' FROM generate_series(1, 3000) RETURNING id) INSERT INTO parent SELECT id FROM n");
	$origin->safe_psql('postgres', "INSERT INTO b (v) SELECT 'v' FROM generate_series(1, 3000); UPDATE b SET v = 'w' WHERE id % 7 = 0");
	foreach my $pipeline ('a', 'b', 'child')
	{
		is(sql("SELECT elt.wait_for('$pipeline', timeout => '60 s')"), 't', "$what, $pipeline settles");
	}
	same_as_target($node, $node, 'a', 'a_target');
	same_as_target($origin, $node, 'b', 'b_target');
	foreach my $source ('s', 'far')
	{
		is(sql("SELECT count(*) FROM (SELECT commit_lsn, lag(commit_lsn) OVER (ORDER BY change_id) AS before FROM elt_raw.$source WHERE op <> 'r') r "
			  . 'WHERE commit_lsn < before'), '0', "$source is staged in the order of its WAL");
	}
}

# What views show, number by number and interval by interval.
sub nothing_negative
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $view (qw(stat_sources stat_pipelines stat_pool stat_workers backlog raw_staging))
	{
		is(sql("SELECT coalesce(string_agg(key || '=' || value, ' '), '') FROM elt.$view v, jsonb_each_text(to_jsonb(v)) "
			  . "WHERE (value ~ '^-' OR value ~ '^[0-9]+(:[0-9]+)?:-' OR value = 'NaN') AND key NOT LIKE '%lsn%'"), '', "$what, nothing in $view is negative");
	}
	is(sql("SELECT count(*) FROM elt.scaling_log WHERE wanted < 0 OR backlog < 0"), '0', 'nor in scaling_log');
}

# Leaves a blocked pipeline and a waiting change behind, just before the clock is set.
my $orphan;
sub break_things
{
	sql('ALTER TABLE gate RENAME TO away');
	$orphan = sql('INSERT INTO a (v) VALUES (1) RETURNING id');
	poll_ok($node, "SELECT count(*) = 1 FROM elt.quarantine WHERE pipeline = 'child' AND status = 'waiting'", 'a change waits for what it depends on');
	poll_ok($node, "SELECT state = 'blocked' FROM elt.stat_pipelines WHERE pipeline = 'blocked'", 'a pipeline is blocked');
	poll_ok($node, "SELECT probes >= 2 FROM elt.pipelines WHERE name = 'blocked'", 'and probed');
	$origin->stop('immediate');
	poll_ok($node, "SELECT state = 'error' FROM elt.stat_sources WHERE source = 'far'", 'a source is gone');
}

sub mend_things
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time();
	sql('ALTER TABLE away RENAME TO gate');
	sql("INSERT INTO parent VALUES ($orphan)");
	$origin->start;
	poll_ok($node, "SELECT state = 'running' FROM elt.stat_pipelines WHERE pipeline = 'blocked'", "$what, the blocked pipeline goes on");
	poll_ok($node, "SELECT count(*) = 1 FROM child WHERE id = $orphan", 'the change is tried again');
	poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 'far'", 'the source is connected to again');
	cmp_ok(time() - $start, '<', 60, 'all soon');
}

sub fires_and_ends
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("SELECT elt.alter_alert_rule('many', threshold => 0)");
	poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'many' AND state = 'firing' AND notification_id IS NOT NULL", "$what, a rule fires and is told");
	sql("SELECT elt.alter_alert_rule('many', threshold => 1000000)");
	poll_ok($node, "SELECT count(*) = 0 FROM elt.alerts WHERE rule = 'many' AND state = 'firing'", 'and ends');
}

# An alert that goes off because of the clock would stay in the table.
sub no_other_alert
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql("SELECT coalesce(string_agg(DISTINCT rule || ' ' || coalesce(detail, ''), ', '), '') FROM elt.alerts "
		  . "WHERE rule NOT IN ('many', 'pipeline_blocked', 'source_disconnected', 'worker_crash_loop', 'quarantine_new') AND state <> 'pending'"),
		'', "$what, no alert goes off");
}

goes_through('before');
my $leaves = sql("SELECT count(*) FROM elt.raw_staging");
break_things();
set_clock(-3600);
mend_things('an hour back');
like(log_since($node), qr/the time of day was set back by 3[56]\d\d s/, 'which is said');
goes_through('an hour back');
fires_and_ends('an hour back');
nothing_negative('an hour back');
poll_ok($node, 'SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = \'elt transform\'', 'idle workers leave');

break_things();
set_clock(3600);
mend_things('two hours ahead');
goes_through('two hours ahead');
fires_and_ends('two hours ahead');
nothing_negative('two hours ahead');
no_other_alert('through all this');

# by the clock as it is now the first rows are an hour old, and they are kept for 90 minutes
is(sql('SELECT count(*) FROM elt.raw_dropped'), '0', 'no leaf is dropped before its time');
cmp_ok(sql('SELECT count(*) FROM elt.raw_staging'), '>=', $leaves, 'all are there');
set_clock(0);
goes_through('back again');
same_as_source($node, $node, 's', 'a');
same_as_source($origin, $node, 'far', 'b');

sql("SELECT elt.drop_pipeline(name) FROM elt.pipelines; SELECT elt.drop_source(name) FROM elt.sources");
nothing_left($node);
nothing_left($origin);
$node->stop;
$origin->stop;
done_testing();
