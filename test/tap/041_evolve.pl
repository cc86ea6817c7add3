# Pipelines through changes of the shape of what they read: columns that come,
# go and change their type; a table that is renamed, and a pipeline that follows
# it; a table that takes the place of another; what alerts tell of all that.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('evolve', 'max_prepared_transactions = 5');

# Waits until both pipelines have settled all.
sub settle
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT bool_and(elt.wait_for(name, timeout => '180 s')) FROM elt.pipelines"), 't', "settled: $_[0]");
}

sub alert
{
	my ($rule, $where, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT count(*) = 1 FROM elt.alerts WHERE rule = '$rule' AND $where", $what);
}

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, a int, b text);
CREATE TABLE by_name (id int PRIMARY KEY, a text, b text, c text);
CREATE TABLE by_sql (id int PRIMARY KEY, a text, c text);
SELECT elt.create_source('s', tables => ARRAY['t']);
SELECT elt.create_pipeline('n', 's', 'public.t', 'by_name');
SELECT elt.create_pipeline('q', 's', 'public.t', 'by_sql', transform => $$SELECT (record->>'id')::int AS id, record->>'a' AS a FROM changes$$);
INSERT INTO t VALUES (1, 1, 'b1'), (2, 2, 'b2');
EOS
alerts_soon($node);
settle('before');

# ---- columns come, change, go ----

$node->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (3, 3, 'b3'); ALTER TABLE t ADD COLUMN c text DEFAULT 'old', ADD COLUMN x int; INSERT INTO t VALUES (4, 4, 'b4', 'c4', 4); COMMIT");
settle('an added column');
is($node->safe_psql('postgres', 'SELECT * FROM by_name ORDER BY id'), "1|1|b1|\n2|2|b2|\n3|3|b3|\n4|4|b4|c4", 'a target that has it takes it, one that lacks another goes on');
is($node->safe_psql('postgres', 'SELECT id, a FROM by_sql ORDER BY id'), "1|1\n2|2\n3|3\n4|4", 'a transform does not mind');
is($node->safe_psql('postgres', "SELECT after->>'x' FROM elt_raw.s WHERE key->>'id' = '4'"), '4', 'the column waits in raw staging');
alert('schema_drift', q{labels->>'version' = '2' AND severity = 'info' AND detail = 'added c to text; added x to integer'}, 'and an alert tells of it');
$node->safe_psql('postgres', q{SELECT elt.replace_transform('q', $$SELECT (record->>'id')::int AS id, record->>'a' AS a, record->>'c' AS c FROM changes$$)});
$node->safe_psql('postgres', q{CALL elt.replay('q', from_time => '-infinity', to_time => 'infinity')});
is($node->safe_psql('postgres', 'SELECT * FROM by_sql ORDER BY id'), "1|1|\n2|2|\n3|3|\n4|4|c4", 'until the transform uses it, also for what was');

$node->safe_psql('postgres', "BEGIN; ALTER TABLE t ALTER a TYPE text USING 'text ' || a; INSERT INTO t VALUES (5, 'five', 'b5', 'c5'); COMMIT");
settle('a retyped column');
is($node->safe_psql('postgres', 'SELECT n.a, q.a FROM by_name n JOIN by_sql q USING (id) WHERE id = 5'), 'five|five', 'the new type comes through');
alert('schema_break', q{labels->>'version' = '3' AND detail = 'retyped a from integer to text; rewritten'}, 'an alert tells of it');
alert('resync_needed', q{state = 'firing' AND severity = 'critical' AND labels->>'reason' = 'rewritten' AND detail = 'SELECT elt.resync_table(''s'', ''public.t'')'}, 'and that old rows changed');

$node->safe_psql('postgres', "ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (6, 'six', 'c6'); UPDATE t SET a = 'four' WHERE id = 4");
settle('a dropped column');
is($node->safe_psql('postgres', 'SELECT * FROM by_name WHERE id IN (4, 6) ORDER BY id'), "4|four|b4|c4\n6|six||c6", 'by name: what is no longer there stays as it was');
is($node->safe_psql('postgres', 'SELECT a FROM by_sql WHERE id IN (4, 6) ORDER BY id'), "four\nsix", 'by a transform too');
$node->safe_psql('postgres', "ALTER TABLE t RENAME a TO aa; INSERT INTO t VALUES (7, 'seven', 'c7')");
settle('a renamed column');
is($node->safe_psql('postgres', 'SELECT n.a IS NULL, q.a IS NULL FROM by_name n JOIN by_sql q USING (id) WHERE id = 7'), 't|t', 'is another to both');
alert('schema_break', q{labels->>'version' = '5' AND detail = 'renamed a from a to aa'}, 'which the alert says');
$node->safe_psql('postgres', "ALTER TABLE t RENAME aa TO a; UPDATE t SET a = a WHERE id = 7");
settle('and back');
is($node->safe_psql('postgres', "SELECT string_agg(status, ',') FROM elt.quarantine"), '', 'nothing failed');
is($node->safe_psql('postgres', q{SELECT count(*) = count(DISTINCT labels) FROM elt.alerts WHERE rule IN ('schema_drift', 'schema_break')}), 't', 'each version was told once');

# ---- the table is renamed, and a pipeline follows it ----

$node->safe_psql('postgres', "SELECT elt.pause_pipeline('q')");
$node->safe_psql('postgres', "INSERT INTO t VALUES (8, 'eight'); BEGIN; INSERT INTO t VALUES (9, 'nine'); ALTER TABLE t RENAME TO t2; UPDATE t2 SET a = 'nine, later' WHERE id = 9; COMMIT; DELETE FROM t2 WHERE id = 1; INSERT INTO t2 VALUES (10, 'ten')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('n', timeout => '180 s')"), 't', 'the old name ends');
is($node->safe_psql('postgres', 'SELECT count(*), max(a) FILTER (WHERE id = 9) FROM by_name'), '9|nine', 'with the rename');
alert('relation_renamed', q{state = 'firing' AND pipeline = 'n' AND labels->>'renamed_to' = 'public.t2' AND detail = 'SELECT elt.alter_pipeline(''n'', relation => ''public.t2'')'},
	'an alert tells the pipeline and the call');
my ($ret, $out, $err) = $node->psql('postgres', "SELECT elt.alter_pipeline('q', relation => 'public.t2')");
like($err, qr/pipeline "q" has not settled all changes of public\.t.*DETAIL:.*wait under this name/s, 'a pipeline with a backlog has to settle it first');
$node->safe_psql('postgres', "SELECT elt.resume_pipeline('q')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('q', timeout => '180 s')"), 't', 'which it does');
$node->safe_psql('postgres', "SELECT elt.alter_pipeline(name, relation => 'public.t2') FROM elt.pipelines");
settle('under the new name');
is($node->safe_psql('postgres', 'SELECT string_agg(id || a, $$,$$ ORDER BY id) FROM by_name WHERE id > 8 OR id = 1'), '9nine, later,10ten', 'by name it went on where the old one ended');
is($node->safe_psql('postgres', 'SELECT string_agg(id || a, $$,$$ ORDER BY id) FROM by_sql WHERE id > 8 OR id = 1'), '9nine, later,10ten', 'by a transform too');
poll_ok($node, q{SELECT count(*) = 0 FROM elt.alerts WHERE rule = 'relation_renamed' AND state <> 'resolved'}, 'and the alert ends');
foreach my $bad ([ 'public.t', qr/does not capture|not the next name/ ], [ 'public.other', qr/does not capture relation/ ])
{
	($ret, $out, $err) = $node->psql('postgres', "SELECT elt.alter_pipeline('n', relation => '$bad->[0]')");
	like($err, $bad->[1], "it cannot be sent to $bad->[0]");
}

# ---- another table takes the name, under a pipeline that stays with the name ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE t2_new (id int PRIMARY KEY, a text, fresh text);
ALTER PUBLICATION elt_s ADD TABLE t2_new;
INSERT INTO t2_new SELECT id, a, 'moved' FROM t2;
BEGIN;
ALTER TABLE t2 RENAME TO t2_old;
ALTER TABLE t2_new RENAME TO t2;
COMMIT;
INSERT INTO t2 VALUES (11, 'eleven', 'new');
INSERT INTO t2_old VALUES (12, 'not for the name', 'c');
EOS
settle('the name went to another table');
is($node->safe_psql('postgres', 'SELECT string_agg(id || a, $$,$$ ORDER BY id) FROM by_sql WHERE id > 10'), '11eleven', 'the pipeline goes on with the name');
alert('resync_needed', q{state = 'firing' AND labels->>'relation' = 'public.t2' AND labels->>'reason' = 'replaced'}, 'and an alert says that rows came from elsewhere');
$node->safe_psql('postgres', "SELECT elt.alter_pipeline('q', relation => 'public.t2_old')");
$node->safe_psql('postgres', "INSERT INTO t2_old VALUES (13, 'thirteen', 'c')");
settle('a pipeline that goes with the table');
is($node->safe_psql('postgres', 'SELECT string_agg(id || a, $$,$$ ORDER BY id) FROM by_sql WHERE id > 10'), '11eleven,12not for the name,13thirteen', 'gets all of its log');

$node->stop;
done_testing();
