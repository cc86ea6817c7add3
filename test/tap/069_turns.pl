# How workers share their time, and where batches end: a slow pipeline beside
# fast ones, weights, a target that is locked for long, whole source
# transactions, and the bound on what is parked behind a key.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = elt_node('turns', "shared_preload_libraries = 'elt'", 'elt.max_workers = 1', 'elt.autoscale = off',
	'track_commit_timestamp = on', 'elt.max_parked_per_key = 5');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE big (id int PRIMARY KEY, tag int, v int);
CREATE TABLE small (id int PRIMARY KEY, v int);
CREATE SCHEMA dw;
CREATE TABLE dw.slow (id int PRIMARY KEY);
CREATE TABLE dw.heavy (id int PRIMARY KEY);
CREATE TABLE dw.whole (id int PRIMARY KEY, tag int, v int CHECK (v <> 0));
CREATE TABLE dw.fast1 (LIKE small INCLUDING ALL);
CREATE TABLE dw.fast2 (LIKE small INCLUDING ALL);
CREATE TABLE dw.fast3 (LIKE small INCLUDING ALL);
CREATE FUNCTION dw.nap(id int, seconds float) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN PERFORM pg_sleep(seconds); RETURN id; END $$;
SELECT elt.create_source('s', ARRAY['big', 'small'], snapshot => 'none');
SELECT elt.create_pipeline('fast' || g, 's', 'small', ('dw.fast' || g)::regclass) FROM generate_series(1, 3) g;
EOS
$node->safe_psql('postgres', "SELECT elt.wait_for_source('s')");

# The longest time from a commit to all three fast targets, of so many.
my $id = 0;
sub freshness
{
	my ($times) = @_;
	my $longest = 0;

	foreach (1 .. $times)
	{
		$id++;
		$node->safe_psql('postgres', "INSERT INTO small VALUES ($id, 1)");
		my $start = time();
		poll_perl(60, sub {
				$node->safe_psql('postgres', "SELECT count(*) FROM (SELECT FROM dw.fast1 WHERE id = $id UNION ALL SELECT FROM dw.fast2 WHERE id = $id UNION ALL SELECT FROM dw.fast3 WHERE id = $id) AS f") eq '3';
			});
		my $took = time() - $start;
		$longest = $took if $took > $longest;
	}
	return $longest;
}
sub read_by
{
	my ($pipeline) = @_;
	return $node->safe_psql('postgres', "SELECT sum(changes_read) FROM elt.checkpoints JOIN elt.pipelines USING (pipeline_id) WHERE name = '$pipeline'");
}

# ---- a slow pipeline: 30 s of work, at 10 ms for each change ----

my $alone = freshness(2);
$node->safe_psql('postgres', <<'EOS');
INSERT INTO big SELECT g, g / 7, 1 FROM generate_series(1, 3000) g;
SELECT elt.create_pipeline('slow', 's', 'big', 'dw.slow', 'SELECT dw.nap((record->>''id'')::int, 0.01) AS id FROM changes', options => '{"allow_volatile": true}');
EOS
poll_ok($node, "SELECT count(*) > 0 FROM dw.slow", 'the slow pipeline has begun');
my $beside = freshness(5);
cmp_ok($beside, '<', 5, sprintf('beside the slow one fast ones are at most %.1f s old (alone %.1f s)', $beside, $alone));
my $read = read_by('slow');
cmp_ok($read, '<', 3000, "the slow one was still at it, at $read changes");
poll_ok($node, "SELECT sum(changes_read) > $read FROM elt.checkpoints JOIN elt.pipelines USING (pipeline_id) WHERE name = 'slow'", 'and went on');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('slow')");

# ---- weights: both have work all the time ----

$node->safe_psql('postgres', <<'EOS');
TRUNCATE dw.slow;
BEGIN;
SELECT elt.create_pipeline('light', 's', 'big', 'dw.slow', 'SELECT dw.nap((record->>''id'')::int, 0.002) AS id FROM changes', options => '{"allow_volatile": true, "batch_changes": 20}');
SELECT elt.create_pipeline('heavy', 's', 'big', 'dw.heavy', 'SELECT dw.nap((record->>''id'')::int, 0.002) AS id FROM changes', options => '{"allow_volatile": true, "batch_changes": 20, "weight": 50}');
COMMIT;
EOS
poll_ok($node, "SELECT sum(changes_read) > 1000 FROM elt.checkpoints JOIN elt.pipelines USING (pipeline_id) WHERE name = 'heavy'", 'the heavier one is ahead');
my ($light, $heavy) = (read_by('light'), read_by('heavy'));
cmp_ok($light, '>', 0, "the lighter one took part: $light to $heavy");
cmp_ok($light, '<', $heavy / 2, 'with less');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('light'), elt.drop_pipeline('heavy')");

# ---- a target that somebody locks for long ----

$node->safe_psql('postgres', "TRUNCATE dw.slow; SELECT elt.create_pipeline('locked', 's', 'small', 'dw.slow', 'SELECT (record->>''id'')::int AS id FROM changes')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('locked')"), 't', 'all is settled');
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE dw.slow IN ACCESS EXCLUSIVE MODE');
my $locked = freshness(4);
cmp_ok($locked, '<', 10, sprintf('beside a locked target the others are at most %.1f s old', $locked));
poll_ok($node, "SELECT last_error LIKE '55P03%' FROM elt.stat_pipelines WHERE pipeline = 'locked'", 'the locked one says why it waits');
$holder->query_safe('COMMIT');
$holder->quit;
is($node->safe_psql('postgres', "SELECT elt.wait_for('locked', timeout => '60 s')"), 't', 'then it goes on');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.slow'), $id, 'with all of it');
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('locked')");

# ---- batches end with source transactions, also where changes fail ----

my $script = PostgreSQL::Test::Utils::tempdir() . '/whole.sql';
append_to_file($script, "\\set tag random(10000, 900000000)\nINSERT INTO big SELECT :tag + g, :tag, CASE WHEN (:tag + g) % 20 = 0 THEN 0 ELSE 1 END FROM generate_series(1, 7) g ON CONFLICT DO NOTHING;\n");
$node->safe_psql('postgres', "TRUNCATE big; SELECT elt.wait_for_source('s')");
pgbench_finish(pgbench_start($node, '-t', '150', '-f', $script));
$node->safe_psql('postgres', "SELECT elt.create_pipeline('whole', 's', 'big', 'dw.whole', options => '{\"batch_changes\": 100, \"breaker\": false}')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('whole', timeout => '60 s')"), 't', 'all is settled');
is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT tag FROM dw.whole GROUP BY tag HAVING count(DISTINCT pg_xact_commit_timestamp(xmin)) > 1) AS t'),
	0, 'no source transaction was applied in parts');
cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT pg_xact_commit_timestamp(xmin)) FROM dw.whole'), '>', 10, 'by many batches');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), $node->safe_psql('postgres', 'SELECT count(*) FROM big WHERE v = 0'), 'what fails is quarantined');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.whole'), $node->safe_psql('postgres', 'SELECT count(*) FROM big WHERE v <> 0'), 'the rest is applied');

# ---- what is parked behind a key ----

$node->safe_psql('postgres', "INSERT INTO big VALUES (1, 1, 0), (2, 2, 0)");
$node->safe_psql('postgres', "SELECT elt.wait_for('whole')");
$node->safe_psql('postgres', join(';', map { "UPDATE big SET tag = $_, v = 1 WHERE id = 1" } (1 .. 8)) . '; UPDATE big SET v = 1 WHERE id = 2');
$node->safe_psql('postgres', "SELECT elt.wait_for('whole')");
is($node->safe_psql('postgres', "SELECT string_agg(concat_ws(' ', key->>'id', parked, overflow, oldest_parked_at IS NOT NULL), '; ' ORDER BY parked) FROM elt.blocked_keys WHERE parked > 0"),
	'2 1 f t; 1 8 t t', 'blocked_keys says where it is too much');
is($node->safe_psql('postgres', "SELECT sample->>'pipeline', sample->>'value', sample->>'detail' FROM elt.shipped_alert_samples(ARRAY['parked_overflow'], now())"),
	'whole|8|1 key(s) of the pipeline have more than 5 parked changes', 'an alert tells of it');
$node->safe_psql('postgres', "SELECT elt.discard_quarantine((SELECT array_agg(quarantine_id) FROM elt.quarantine WHERE key->>'id' IN ('1', '2')), 'test')");
poll_ok($node, 'SELECT count(*) = 0 FROM elt.parked', 'all of it follows in the end');
is($node->safe_psql('postgres', 'SELECT tag FROM dw.whole WHERE id = 1'), 8, 'in its order');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.shipped_alert_samples(ARRAY['parked_overflow'], now())"), 0, 'and the alert ends');

$node->stop;
done_testing();
