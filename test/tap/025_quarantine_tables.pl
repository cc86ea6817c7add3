# The quarantine is three tables and a view.  The view has the columns that are
# promised, in each state of a change; resolving leaves the record where it is;
# a batch that is rolled back leaves nothing, one that is not leaves all of its
# failures, be they first or again; a dump carries all of it; and what goes,
# goes from all three.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('tables', 'elt.max_workers = 1', 'autovacuum = off');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE TABLE item (id int PRIMARY KEY, v int, pad text);
CREATE TABLE dw.parent (id int PRIMARY KEY);
CREATE TABLE dw.item (id int PRIMARY KEY, v int CONSTRAINT good CHECK (v >= 0), pad text);
CREATE TABLE dw.newest (id int PRIMARY KEY, v int CONSTRAINT good CHECK (v >= 0), pad text);
CREATE TABLE dw.child (id int PRIMARY KEY, v int REFERENCES dw.parent, pad text);
SELECT elt.create_source('s', ARRAY['item'], snapshot => 'none');
SELECT elt.create_pipeline('item', 's', 'item', 'dw.item', options => '{"breaker": false}');
SELECT elt.create_pipeline('newest', 's', 'item', 'dw.newest', ordering => 'supersede', options => '{"breaker": false}');
SELECT elt.create_pipeline('child', 's', 'item', 'dw.child', options => '{"breaker": false}');
EOS
poll_ok($node, "SELECT state = 'streaming' FROM elt.stat_sources", 'the source streams');
$node->safe_psql('postgres', "SELECT elt.pause_pipeline(name) FROM elt.pipelines");

sub sql { return $node->safe_psql('postgres', $_[0]); }

is(sql(q{SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'elt.quarantine'::regclass AND attnum > 0}),
	'quarantine_id pipeline_id pipeline version source change_id op key key_hash record patched_record before unchanged relation '
	  . 'schema_version commit_lsn lsn xid seq commit_ts staged_at step error_class sqlstate message detail hint context '
	  . 'schema_name table_name column_name constraint_name fingerprint status retry_count first_failed_at last_failed_at '
	  . 'next_retry_at resolved_at resolved_by note', 'the view has the columns that it always had');

# ---- a batch's failures are written at once, and all of them or none ----

sql('INSERT INTO item SELECT g, CASE WHEN g % 10 = 0 THEN -g ELSE g END, repeat(md5(g::text), 30) FROM generate_series(1, 3000) g');
sql("SELECT elt.wait_for_source('s', timeout => '180 s')");
is(sql("BEGIN; SELECT quarantined FROM elt.transform('item'); SELECT count(*) FROM elt.quarantine; ROLLBACK; "
	  . "SELECT (SELECT count(*) FROM elt.quarantine_records) + (SELECT count(*) FROM elt.quarantine_unresolved)"),
	"300\n300\n0", 'failures go with the transaction');
is(sql("SELECT quarantined FROM elt.transform('item')"), '300', 'a tenth fails');
is(sql(q{SELECT count(*), count(DISTINCT key), count(DISTINCT quarantine_id), bool_and((record->>'v')::int = -(key->>'id')::int),
	bool_and(length(record->>'pad') = 960), bool_and(sqlstate = '23514' AND constraint_name = 'good' AND status = 'open')
	FROM elt.quarantine WHERE pipeline = 'item'}), '300|300|300|t|t|t', 'each is in the quarantine once, with its record and its error');
is(sql("SELECT count(*) FROM dw.item"), '2700', 'and the others are in the target');
is(sql(q{SELECT count(*) FROM (SELECT change_id, lag(change_id) OVER (ORDER BY quarantine_id) AS before FROM elt.quarantine) q WHERE change_id < before}),
	'0', 'ids are given in the order of the changes');

# within one batch: what has just failed is superseded by what follows
sql('UPDATE item SET v = 7 WHERE id <= 100');
sql("SELECT elt.wait_for_source('s', timeout => '180 s')");
is(sql("SELECT quarantined, superseded FROM elt.transform('newest')"), '300|10', 'a newer image supersedes one that failed in the same batch');
is(sql("SELECT status, count(*), count(resolved_at), count(*) FILTER (WHERE note LIKE 'superseded by change %') FROM elt.quarantine "
	  . "WHERE pipeline = 'newest' GROUP BY 1 ORDER BY 1"), "open|290|0|0\nsuperseded|10|10|10", 'and the record says so');

# class dependency waits
my $quarantined = sql("SELECT quarantined FROM elt.transform('child')");
cmp_ok($quarantined, '>=', 3000, 'children without a parent fail');
is(sql("SELECT count(*) = $quarantined, bool_and(status = 'waiting' AND next_retry_at > first_failed_at AND error_class = 'dependency') FROM elt.quarantine WHERE pipeline = 'child'"),
	't|t', 'and wait');

# ---- resolving leaves the record where it is ----

sql('ALTER TABLE dw.item DROP CONSTRAINT good');
sql(q{CREATE TABLE places AS SELECT quarantine_id, ctid AS place, xmin::text AS writer FROM elt.quarantine_records});
is(sql("SELECT outcome, count(*) FROM elt.replay_quarantine('item', max_rows => 200) GROUP BY 1"), 'replayed|200', 'some are replayed');
is(sql(q{SELECT count(*) FROM places p JOIN elt.quarantine_records q USING (quarantine_id) WHERE q.ctid = place AND q.xmin::text = writer}),
	sql('SELECT count(*) FROM elt.quarantine_records'), 'no record was written anew');
is(sql(q{SELECT status, count(*), count(resolved_at), count(resolved_by), count(note) FROM elt.quarantine WHERE pipeline = 'item' GROUP BY 1 ORDER BY 1}),
	"open|100|0|0|0\nreplayed|200|200|200|0", 'the view tells the states apart');

# failing again: the record's error changes, its images do not
sql(q{ALTER TABLE dw.item ADD CONSTRAINT small CHECK (v > -2500) NOT VALID});
is(sql("SELECT outcome, count(*) FROM elt.replay_quarantine('item') GROUP BY 1 ORDER BY 1"), "failed|51\nreplayed|49", 'the next replay passes for some');
is(sql(q{SELECT count(*) FROM elt.quarantine WHERE status = 'open' AND constraint_name = 'small' AND retry_count = 1 AND last_failed_at > first_failed_at
	AND pipeline = 'item'}), '51', 'what fails again has the new error');
is(sql(q{SELECT constraint_name, changes FROM elt.quarantine_groups WHERE pipeline = 'item'}), 'small|51', 'so have the groups');
is(sql(q{SELECT count(*) FROM elt.quarantine_records q JOIN elt.quarantine_unresolved u USING (quarantine_id)
	WHERE (q.fingerprint, q.sqlstate) IS DISTINCT FROM (u.fingerprint, u.sqlstate)}), '0', 'and what is looked up');

# patched, then discarded or replayed: both notes are kept
sql(q{SELECT elt.patch_quarantine(min(quarantine_id), '{"v": 1}', 'first') FROM elt.quarantine WHERE pipeline = 'item' AND status = 'open'});
sql(q{SELECT elt.discard_quarantine(array_agg(quarantine_id), 'second') FROM (SELECT quarantine_id FROM elt.quarantine WHERE pipeline = 'item' AND status = 'open' ORDER BY 1 LIMIT 2) q});
is(sql(q{SELECT note, patched_record->>'v' FROM elt.quarantine WHERE status = 'discarded' ORDER BY quarantine_id}), "first; second|1\nsecond|", 'notes add up');
is(sql(q{SELECT count(*) FROM elt.quarantine_records WHERE quarantine_id NOT IN (SELECT quarantine_id FROM elt.quarantine)
	OR quarantine_id IN (SELECT quarantine_id FROM elt.quarantine_unresolved INTERSECT SELECT quarantine_id FROM elt.quarantine_resolved)}),
	'0', 'each record is in one state');

# ---- a dump carries it ----

my $digest = q{SELECT count(*), md5(string_agg(q::text, ',' ORDER BY quarantine_id)) FROM elt.quarantine q};
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'the database is dumped');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'and restored');
is($node->safe_psql('copy', $digest), sql($digest), 'with the quarantine as it was');
cmp_ok($node->safe_psql('copy', "SELECT nextval('elt.quarantine_records_quarantine_id_seq')"), '>', sql('SELECT max(quarantine_id) FROM elt.quarantine_records'),
	'and numbers go on behind it');

# ---- what goes, goes from all three ----

sql(q{SELECT elt.drop_pipeline('child')});
is(sql(q{SELECT count(*) FROM elt.quarantine_records q FULL JOIN elt.quarantine_unresolved u USING (quarantine_id) FULL JOIN elt.quarantine_resolved s USING (quarantine_id)
	WHERE coalesce(q.pipeline_id, u.pipeline_id, s.pipeline_id) NOT IN (SELECT pipeline_id FROM elt.pipelines)}), '0', 'a dropped pipeline leaves nothing');
sql("ALTER SYSTEM SET elt.quarantine_retention = '1s'");
sql('SELECT pg_reload_conf()');
poll_ok($node, 'SELECT count(*) = 0 FROM elt.quarantine_resolved', 'resolved ones go when their time is over');
is(sql(q{SELECT status, count(*) = (SELECT count(*) FROM elt.quarantine_records) FROM elt.quarantine GROUP BY 1}), 'open|t', 'with their records; the others stay');

done_testing();
