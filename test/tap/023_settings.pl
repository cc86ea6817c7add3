# Settings that somebody gives to the database or to the role: elt's processes
# have their own, so that nothing stops, and the same text means the same value.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('settings');

$node->safe_psql('postgres', <<'EOS_SQL');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE t (id int PRIMARY KEY, at timestamptz, span interval, f float8, b bytea, price numeric);
CREATE TABLE dw.t (LIKE t INCLUDING ALL);
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 'public.t', 'dw.t');
INSERT INTO t VALUES (1, '2026-01-02 03:04:05.678+09', '1 mon -2 days', 0.1::float8 + 0.2, '\x00ff', 1.50);
EOS_SQL
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'a change goes through');

my %hostile = (
	statement_timeout => '1ms', lock_timeout => '1ms', idle_in_transaction_session_timeout => '1ms',
	default_transaction_read_only => 'on', default_transaction_isolation => 'serializable',
	default_transaction_deferrable => 'on', search_path => 'nowhere', DateStyle => 'German, DMY',
	IntervalStyle => 'sql_standard', TimeZone => 'Asia/Kathmandu', extra_float_digits => '-15',
	bytea_output => 'escape', row_security => 'off', check_function_bodies => 'off',
	session_replication_role => 'replica', synchronous_commit => 'off');

# the test's own sessions say what they want; that goes before the database's settings
my @own = map { my ($name) = $_; "-c $name=" . ($name eq 'search_path' ? 'public' : $node->safe_psql('postgres', "SELECT replace(current_setting('$name'), ' ', E'\\\\ ')")) }
  grep { !/session_replication_role/ } sort keys %hostile;
$ENV{PGOPTIONS} = join(' ', @own, '-c session_replication_role=origin');
$node->safe_psql('postgres', "ALTER DATABASE postgres SET $_ = " . ($_ eq 'DateStyle' ? $hostile{$_} : "'$hostile{$_}'")) foreach sort keys %hostile;
is($node->safe_psql('postgres', "SHOW statement_timeout"), '0', 'a session of this test has its own settings');

# all of elt starts anew under these settings
my @before = workers($node, '%');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'elt %'");
ok(poll_perl(180, sub { my %old = map { $_ => 1 } @before; my @now = workers($node, 'capture'); @now && !grep { $old{$_} } @now; }),
	'the capture worker has started anew');
$node->safe_psql('postgres', <<'EOS_SQL');
INSERT INTO t SELECT g, now() + g * interval '1 hour', g * interval '1 day 2 hours', g / 3.0::float8, decode(to_hex(4096 + g), 'hex'), g / 7.0
FROM generate_series(2, 2000) g;
UPDATE t SET price = price + 1 WHERE id % 3 = 0;
EOS_SQL
is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', 'changes go through');
is($node->safe_psql('postgres', 'SELECT count(*) FROM (TABLE t EXCEPT TABLE dw.t) AS x'), '0', 'with their values');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', 'and none is quarantined');
is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines"), 'running', 'the pipeline runs');

$node->stop;
done_testing();
