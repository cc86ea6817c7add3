# A bad deploy under load: the breaker blocks the pipeline instead of filling
# quarantine, the transform is corrected, the pipeline resumes by itself, and
# in the end nothing is missing.  Also: a few bad records among many good ones
# do not trip it, one error that is new does when it comes often enough, and
# who switches it off gets all in quarantine.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('breaker', 'elt.max_workers = 2');
my $good = q{SELECT (record->>'id')::int AS id, (record->>'v')::int AS v FROM changes};
my $bug = q{SELECT (record->>'id')::int AS id, ('x' || (record->>'v'))::int AS v FROM changes};

$node->safe_psql('postgres', <<"EOS");
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v int);
CREATE TABLE target (id int PRIMARY KEY, v int CHECK (v <> -1));
CREATE SEQUENCE ids;
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'target', \$\$$good\$\$);
SELECT elt.wait_for_source('s', timeout => '180 s');
EOS

# ---- a deploy that breaks every record ----

my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, "INSERT INTO t SELECT nextval('ids'), 7\n");
my $load = pgbench_start($node, '-f', $script, '-T', '600', '-R', '400');
poll_ok($node, 'SELECT count(*) > 100 FROM target', 'the load is real');
is($node->safe_psql('postgres', "SELECT elt.replace_transform('p', \$\$$bug\$\$)"), '2', 'a second version is deployed');
my $deployed = time();
poll_ok($node, "SELECT state = 'blocked' AND blocked_by = 'breaker' FROM elt.stat_pipelines", 'the breaker blocks the pipeline');
cmp_ok(time() - $deployed, '<', 10, 'soon');
like($node->safe_psql('postgres', 'SELECT last_error FROM elt.stat_pipelines'),
	qr/^22P02: breaker: \d+ of \d+ changes failed within 60 s, most with SQLSTATE 22P02 .*HINT: .*elt\.replace_transform.*elt\.alter_pipeline\('p'/,
	'last_error says what happened, and what to do');
unlike($node->safe_psql('postgres', 'SELECT last_error FROM elt.stat_pipelines'), qr/x7/, 'but not what the records hold');
my $quarantined = $node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine');
cmp_ok($quarantined, '<', 1000, "$quarantined records reached quarantine until then");
poll_ok($node, "SELECT count(*) = 0 FROM elt.quarantine WHERE status = 'open'", 'none of them is open: they wait for the pipeline');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE next_retry_at <> 'infinity'"), '0', 'as long as it takes');
poll_ok($node, 'SELECT probes >= 2 FROM elt.pipelines', 'it is probed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), $quarantined, 'probes quarantine nothing');

$node->safe_psql('postgres', "SELECT elt.resume_pipeline('p')");
poll_ok($node, "SELECT probes >= 1 AND state = 'blocked' FROM elt.pipelines", 'a resume only probes at once');
$node->safe_psql('postgres', "SELECT elt.pause_pipeline('p'); SELECT elt.resume_pipeline('p')");
poll_ok($node, "SELECT probes >= 1 AND state = 'blocked' FROM elt.pipelines", 'so it does after a pause');

is($node->safe_psql('postgres', "SELECT elt.replace_transform('p', \$\$$good\$\$)"), '3', 'the transform is corrected');
poll_ok($node, "SELECT state = 'running' AND blocked_by IS NULL FROM elt.stat_pipelines", 'the pipeline resumes by itself');
poll_ok($node, "SELECT count(*) = 0 FROM elt.quarantine WHERE status IN ('open', 'waiting') AND next_retry_at = 'infinity'",
	'what waited for that is due');
pgbench_stop($node, $load);
settled_ok($node, 'p', 60, 'all is settled');
poll_ok($node, "SELECT count(*) = 0 FROM elt.quarantine WHERE status IN ('open', 'waiting')", 'nothing is quarantined in the end');
is($node->safe_psql('postgres', 'SELECT status, count(*) FROM elt.quarantine GROUP BY 1'),
	$quarantined == 0 ? '' : "replayed|$quarantined", 'each record that was has been replayed');
poll_ok($node, 'SELECT count(*) = 0 FROM elt.parked', 'nor is one parked');
same_as_target($node, $node, 't', 'target');
is($node->safe_psql('postgres', <<'EOS'), '0', 'each record is in the target, or in quarantine');
SELECT count(*) FROM t LEFT JOIN target USING (id)
WHERE target.id IS NULL AND id NOT IN (SELECT (key->>'id')::int FROM elt.quarantine WHERE status <> 'replayed')
EOS

# ---- a few bad records among many ----

$node->safe_psql('postgres', <<"EOS");
CREATE TABLE few (id int PRIMARY KEY, v int CHECK (v <> -1));
SELECT elt.create_pipeline('few', 's', 't', 'few');
SELECT elt.wait_for('few', timeout => '180 s');
INSERT INTO t SELECT g, CASE WHEN g % 50 = 0 THEN -1 ELSE 1 END FROM generate_series(1000001, 1010000) g;
EOS
settled_ok($node, 'few', 30, '2 % bad records do not trip it');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE pipeline = 'few'"), '200', 'they are quarantined');

# ---- one error that is new, often, but below the share ----

$node->safe_psql('postgres', "INSERT INTO t SELECT g, CASE WHEN g % 30 = 0 THEN -1 ELSE 1 END FROM generate_series(2000001, 2040000) g");
# a probe may have ended it again by now; what it says stays
poll_ok($node, "SELECT last_error LIKE '23514: breaker: 1000 changes failed within 60 s with an error that is new%' FROM elt.stat_pipelines WHERE pipeline = 'few'",
	'a new error that came 1,000 times trips it');
settled_ok($node, 'few', 60, 'a probe finds few, and the pipeline goes on');
poll_ok($node, "SELECT bool_and(status = 'open') FROM elt.quarantine WHERE pipeline = 'few'", 'what waited was tried, failed again, and is open');
# such a failure is tried again only if it waited for the pipeline
poll_ok($node, "SELECT count(*) >= 900 FROM elt.quarantine WHERE pipeline = 'few' AND retry_count = 1", 'once');
is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines WHERE pipeline = 'few'"), 'running', 'that blocks nothing');

# ---- switched off ----

$node->safe_psql('postgres', "SELECT elt.alter_pipeline('few', options => '{\"breaker\": false}'); "
	  . 'INSERT INTO t SELECT g, CASE WHEN g % 2 = 0 THEN -1 ELSE 1 END FROM generate_series(3000001, 3002000) g');
settled_ok($node, 'few', 60, 'without a breaker it goes on');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE pipeline = 'few'"),
	$node->safe_psql('postgres', 'SELECT count(*) FROM t WHERE v = -1'), 'and each bad record is quarantined');
is($node->safe_psql('postgres', 'SELECT count(*) FROM few'),
	$node->safe_psql('postgres', 'SELECT count(*) FROM t WHERE v <> -1'), 'each good one is applied');
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal|exited with exit code 1/, 'no worker failed');
$node->stop;
done_testing();
