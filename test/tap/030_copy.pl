# Copies beside the stream, under heavy writes to the copied keys: raw staging
# folds to the source at once for every reader, an append pipeline sees each row
# once, an upsert pipeline never goes back, locks at the source are the weakest,
# and resync_table does the same for a table that has a history.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('copy', 'elt.snapshot_workers = 2', 'max_worker_processes = 20', 'elt.idle_timeout = 5s');

# The load updates, deletes and inserts again the keys that are copied, inserts
# new ones, with savepoints, and counts versions up.  Each version is logged.
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE hot (id int PRIMARY KEY, version bigint NOT NULL, filler text NOT NULL DEFAULT repeat('x', 50));
CREATE TABLE entries (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
CREATE TABLE quiet (id int PRIMARY KEY);
CREATE SEQUENCE versions;
INSERT INTO hot SELECT i, 0 FROM generate_series(1, 30000) i;
INSERT INTO entries (v) SELECT i FROM generate_series(1, 30000) i;
CREATE TABLE hot_target (id int PRIMARY KEY, version bigint NOT NULL, filler text NOT NULL);
CREATE TABLE entries_target (id bigint, v int);
CREATE TABLE backwards (id int, old bigint, new bigint);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.version < OLD.version THEN
		INSERT INTO backwards VALUES (NEW.id, OLD.version, NEW.version);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER watch BEFORE UPDATE ON hot_target FOR EACH ROW EXECUTE FUNCTION watch();
ALTER TABLE hot_target ENABLE ALWAYS TRIGGER watch;
EOS
my $script = $node->basedir . '/load.sql';
append_to_file($script, <<'EOS');
\set id random(1, 30000)
\set other random(1, 30000)
\set new random(30001, 40000)
BEGIN;
UPDATE hot SET version = nextval('versions') WHERE id = :id;
SAVEPOINT a;
DELETE FROM hot WHERE id = :other;
INSERT INTO hot VALUES (:new, nextval('versions')) ON CONFLICT (id) DO UPDATE SET version = excluded.version;
ROLLBACK TO a;
SAVEPOINT b;
DELETE FROM hot WHERE id = :other;
INSERT INTO hot VALUES (:other, nextval('versions')) ON CONFLICT (id) DO UPDATE SET version = excluded.version;
RELEASE b;
INSERT INTO entries (v) VALUES (:id);
COMMIT;
EOS
$node->safe_psql('postgres', "SELECT elt.create_source('s', tables => ARRAY['public.quiet'], options => '{\"raw_partition_changes\": 16384}')");
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources WHERE source = 's'", 'a source streams');
my $load = pgbench_start($node, '-T', '600', '-f', $script);
poll_ok($node, 'SELECT count(*) > 30500 FROM entries', 'the load runs');

# a transaction that writes before the table is published, and commits after
# the copy could have begun
my $early = $node->background_psql('postgres');
$early->query_safe("BEGIN; INSERT INTO hot VALUES (100001, 1), (100002, 1)");
my $locks_wrong = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
  . "WHERE a.application_name = 'elt s snapshot' AND l.relation::regclass::text IN ('hot', 'hot_pkey', 'entries') AND l.mode <> 'AccessShareLock'";
$node->safe_psql('postgres', "SELECT elt.add_table('s', 'public.hot'), elt.create_pipeline('hot', 's', 'public.hot', 'hot_target')");
poll_ok($node, "SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'snapshot'", 'a snapshot worker comes');
is($node->safe_psql('postgres', q{SELECT phase, "table", done FROM elt.progress_snapshot}), 'waiting|public.hot|0',
	'the copy waits for the transaction that ran when the table was added');
is($node->safe_psql('postgres', "SELECT state FROM elt.stat_sources WHERE source = 's'"), 'snapshot', 'stat_sources shows it');
$early->query_safe('COMMIT');
$early->quit;
poll_ok($node, "SELECT count(*) >= 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
	  . "WHERE a.application_name = 'elt s snapshot' AND l.relation = 'hot'::regclass", 'the table is locked for the copy');
is($node->safe_psql('postgres', $locks_wrong), '0', 'in ACCESS SHARE mode only');
poll_ok($node, "SELECT state = 'ready' FROM elt.source_tables WHERE relation = 'public.hot'", 'it is copied');
is($node->safe_psql('postgres', $locks_wrong), '0', 'no stronger lock was taken');
$node->safe_psql('postgres', "SELECT elt.add_table('s', 'public.entries'), "
	  . "elt.create_pipeline('entries', 's', 'public.entries', 'entries_target', mode => 'append')");
poll_ok($node, "SELECT state = 'ready' FROM elt.source_tables WHERE relation = 'public.entries'", 'another one is copied');
my $before = $node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE op = 't'");
is($before, '0', 'a first copy has no truncate');

# once more, now that there is a history
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.hot')");
my ($ret, $out, $err) = $node->psql('postgres', "SELECT elt.resync_table('s', 'public.hot')");
like($err, qr/table public\.hot is being copied already/, 'one resync at a time');
($ret, $out, $err) = $node->psql('postgres', "SELECT elt.resync_table('s', 'public.no')");
like($err, qr/table public\.no is not in source "s"/, 'and of a table that is captured');
poll_ok($node, "SELECT state = 'ready' FROM elt.source_tables WHERE relation = 'public.hot'", 'the table is copied again');
pgbench_stop($node, $load);
is($node->safe_psql('postgres', "SELECT elt.wait_for('hot', timeout => '180 s') AND elt.wait_for('entries', timeout => '180 s')"), 't',
	'pipelines settle');
same_as_source($node, $node, 's', $_) foreach qw(hot entries);
same_as_target($node, $node, 'hot', 'hot_target');
same_as_target($node, $node, 'entries', 'entries_target');
is($node->safe_psql('postgres', 'SELECT count(*) FROM backwards'), '0', 'no older state came after a newer one');
is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT after->>'id') FROM elt_raw.s WHERE relation = 'public.entries'"), '0',
	'raw staging has each entry once');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE relation = 'public.hot' AND op = 't' AND xid = 0"), '1',
	'the second copy begins with a truncate');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE relation = 'public.hot' AND op NOT IN ('r', 't')"), '>', 100,
	'changes were staged beside the copies');
is($node->safe_psql('postgres', <<'EOS'), '0', 'versions of a key only grow in raw staging');
SELECT count(*) FROM (SELECT (after->>'version')::bigint < lag((after->>'version')::bigint) OVER (PARTITION BY key ORDER BY change_id) AS back
	FROM elt_raw.s WHERE relation = 'public.hot' AND op IN ('r', 'c', 'u')) v WHERE back
EOS
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.snapshot_passes') . $node->safe_psql('postgres', 'SELECT count(*) FROM elt.snapshot_chunks'),
	'00', 'nothing of the copies is left');
poll_ok($node, "SELECT count(*) = 0 FROM elt.workers() WHERE kind = 'snapshot'", 'snapshot workers leave');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.progress_snapshot'), '0', 'and the view is empty');

$node->stop;
done_testing();
