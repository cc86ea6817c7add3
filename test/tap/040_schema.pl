# Shapes of relations: DDL on tables that are written to and on quiet ones, what
# it changed, rewrites, renames, tables that take another's name, partitions that
# come and go; what pipelines see of it, and what alerts say.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('schema');

# The changes of the latest version of a relation, one line each, once all is staged.
sub latest
{
	my ($relation) = @_;

	$node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')");
	return $node->safe_psql('postgres', <<"EOS");
SELECT version || coalesce(' ' || nullif(string_agg(concat_ws(' ', c->>'change', c->>'column', c->>'from', c->>'to'), '; ' ORDER BY n), ''), '')
FROM (SELECT * FROM elt.schema_history WHERE relation = '$relation' ORDER BY version DESC LIMIT 1) h
LEFT JOIN jsonb_array_elements(changes) WITH ORDINALITY AS x (c, n) ON true GROUP BY version
EOS
}

# What a source does for itself every now and then: makes DDL seen that nobody writes after.
sub heartbeat
{
	$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(true, 'elt', '{"heartbeat": 1}')});
}

# One statement on its own, then a heartbeat: the version and what it says.
sub quiet
{
	my ($ddl, $relation) = @_;

	$node->safe_psql('postgres', $ddl);
	heartbeat();
	return latest($relation || 'public.t');
}

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TYPE pair AS (a int, b int);
CREATE TABLE t (id int PRIMARY KEY, v varchar(10), n int, p pair);
INSERT INTO t VALUES (1, 'one', 1, (1, 2)), (2, 'two', 2, NULL);
CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200);
CREATE TABLE other (id int PRIMARY KEY, v text);
SELECT elt.create_source('s', tables => ARRAY['t', 'part', 'other']);
EOS
is(latest('public.t'), '1', 'the copy has a first version');
is($node->safe_psql('postgres', q{SELECT columns->1->>'type', key, replica_identity, incarnation, rewritten, relid = 't'::regclass
	FROM elt.schema_history WHERE relation = 'public.t'}), 'character varying(10)|{id}|default|1|f|t', 'which tells the shape');
$node->safe_psql('postgres', "INSERT INTO t VALUES (3, 'three', 3); INSERT INTO part VALUES (1, 'a'), (101, 'b')");
is(latest('public.t'), '1', 'and the stream has the same');
is(latest('public.part'), '1', 'for a partitioned table too');

# ---- each kind of change, on a table to which nobody writes ----

is(quiet('ALTER TABLE t ADD COLUMN plain int'), '2 added plain integer', 'an added column');
is(quiet('ALTER TABLE t ADD COLUMN fast int NOT NULL DEFAULT 7'), '3 added fast integer', 'one with a constant default');
is($node->safe_psql('postgres', q{SELECT c->>'missing' FROM elt.schema_history, jsonb_array_elements(columns) c
	WHERE relation = 'public.t' AND version = 3 AND c->>'name' = 'fast'}), '7', 'whose value for older rows is known');
is(quiet('ALTER TABLE t RENAME COLUMN n TO m'), '4 renamed n n m', 'a renamed column');
is(quiet('ALTER TABLE t DROP COLUMN plain'), '5 dropped plain integer', 'a dropped column');
is(quiet('ALTER TABLE t ADD COLUMN plain int'), '6 added plain integer', 'one of the same name is another');
is(quiet('ALTER TABLE t ALTER v TYPE varchar(20)'), '7 retyped v character varying(10) character varying(20)', 'a longer type');
is(quiet('ALTER TABLE t REPLICA IDENTITY FULL'), '8 replica identity default full', 'a replica identity');
is(quiet('ALTER TABLE t REPLICA IDENTITY DEFAULT'), '9 replica identity full default', 'and back');
is(quiet('ALTER TYPE pair ADD ATTRIBUTE c text'), '10 retyped p public.pair c("a"i"b"i) public.pair c("a"i"b"i"c"s)', 'a field more in a composite type');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.resyncs_needed'), '0', 'nothing of that asks for a copy');

# ---- what rewrites and what does not ----

is(quiet('VACUUM FULL t'), '10 retyped p public.pair c("a"i"b"i) public.pair c("a"i"b"i"c"s)', 'VACUUM FULL is no change');
is(quiet('CLUSTER t USING t_pkey'), '10 retyped p public.pair c("a"i"b"i) public.pair c("a"i"b"i"c"s)', 'CLUSTER neither');
is($node->safe_psql('postgres', q{SELECT c->>'missing' FROM elt.schema_history, jsonb_array_elements(columns) c
	WHERE relation = 'public.t' AND version = 10 AND c->>'name' = 'fast'}), '7', 'and what older rows had stays known');
is(quiet('ALTER TABLE t ADD COLUMN late int; ALTER TABLE t ALTER late SET STATISTICS 10'), '11 added late integer', 'a setting of a column neither');
is(quiet('TRUNCATE other; INSERT INTO other VALUES (1)', 'public.other'), '1', 'TRUNCATE neither');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.resyncs_needed'), '0', 'nothing of that asks for a copy');
is(quiet('ALTER TABLE t ALTER m TYPE bigint'), '12 retyped m integer bigint; rewritten', 'another type rewrites');
is(quiet('ALTER TABLE t ALTER m TYPE bigint USING m + 1'), '13 rewritten', 'so does the same type, by an expression');
is(quiet('ALTER TABLE t ADD COLUMN r float8 DEFAULT random()'), '14 added r double precision; rewritten', 'and a default that is no constant');
is(quiet('ALTER TABLE t ADD COLUMN g bigint GENERATED ALWAYS AS (m * 2) STORED'), '15 added g bigint; rewritten', 'and a generated column');
is($node->safe_psql('postgres', 'SELECT source, relation, version, reason, call FROM elt.resyncs_needed'),
	q{s|public.t|15|rewritten|SELECT elt.resync_table('s', 'public.t')}, 'which asks for a copy');
is(quiet('ALTER TABLE part ALTER v TYPE varchar(30)', 'public.part'), '2 retyped v text character varying(30)', 'a partitioned table: a type of the same family');
is(quiet('ALTER TABLE part ADD COLUMN d int DEFAULT 5', 'public.part'), '3 added d integer', 'a constant default');
is($node->safe_psql('postgres', q{SELECT columns->2->>'missing' FROM elt.schema_history WHERE relation = 'public.part' AND version = 3}),
	'5', 'whose value the partitions know');
is(quiet('ALTER TABLE part ADD COLUMN r float8 DEFAULT random()', 'public.part'), '4 added r double precision; rewritten', 'a default that is no constant');
is(quiet('ALTER TABLE part ALTER d TYPE text', 'public.part'), '5 retyped d integer text; rewritten', 'another type');

$node->safe_psql('postgres', "ALTER PUBLICATION elt_s SET TABLE t, part, other (id)");
is(quiet("UPDATE other SET v = 'x'", 'public.other'), '2 dropped v text', 'a column that is published no more');
is(quiet("ALTER PUBLICATION elt_s SET TABLE t, part, other; UPDATE other SET v = 'x'", 'public.other'), '3 added v text; rewritten',
	'and one that is published again, of which values may be missing');

# ---- diff_schema ----

is($node->safe_psql('postgres', q{SELECT * FROM elt.diff_schema('s', 'public.t')}), "g|added||bigint\n|rewritten||", 'the last two versions');
is($node->safe_psql('postgres', q{SELECT * FROM elt.diff_schema('s', 'public.t', 1, 7)}),
	"v|retyped|character varying(10)|character varying(20)\nn|renamed|n|m\nfast|added||integer\nplain|added||integer", 'any two');
is($node->safe_psql('postgres', q{SELECT * FROM elt.diff_schema('s', 'public.t', 7, 7)}), '', 'a version and itself');
foreach my $bad ([ q{'s', 'public.t', 1, 99}, qr/has no schema version 99/ ], [ q{'s', 'public.none'}, qr/has no schema version of relation/ ],
	[ q{NULL, 'public.t'}, qr/must not be null/ ])
{
	my ($ret, $out, $err) = $node->psql('postgres', "SELECT * FROM elt.diff_schema($bad->[0])");
	like($err, $bad->[1], "diff_schema($bad->[0]) is refused");
}
$node->safe_psql('postgres', 'CREATE ROLE nobody');
my ($ret, $out, $err) = $node->psql('postgres', q{SET ROLE nobody; SELECT * FROM elt.diff_schema('s', 'public.t')});
like($err, qr/has no schema version/, 'and shows nothing to whom it does not concern');

# ---- in the middle of a transaction that writes ----

$node->safe_psql('postgres', <<'EOS');
BEGIN;
INSERT INTO other VALUES (10, 'before');
ALTER TABLE other ADD COLUMN a int DEFAULT 1;
INSERT INTO other VALUES (11, 'added', 2);
SAVEPOINT s;
ALTER TABLE other RENAME COLUMN a TO lost;
INSERT INTO other VALUES (12, 'lost', 3);
ROLLBACK TO s;
ALTER TABLE other RENAME COLUMN a TO b;
UPDATE other SET b = 5 WHERE id = 10;
ALTER TABLE other ALTER b TYPE text;
INSERT INTO other VALUES (13, 'retyped', 'x');
ALTER TABLE other DROP COLUMN b;
INSERT INTO other VALUES (14, 'dropped');
COMMIT;
EOS
is(latest('public.other'), '7 dropped b text', 'each shape in a transaction is a version');
is($node->safe_psql('postgres', q{SELECT schema_version, op, after::text FROM elt_raw.s WHERE relation = 'public.other' AND (key->>'id')::int >= 10 ORDER BY change_id}),
	join("\n", '3|c|{"v": "before", "id": 10}', '4|c|{"a": 2, "v": "added", "id": 11}', '5|u|{"b": 5, "v": "before", "id": 10}',
		'6|c|{"b": "x", "v": "retyped", "id": 13}', '7|c|{"v": "dropped", "id": 14}'), 'and each row names its own');

# ---- names: renamed, taken by another table, dropped and made anew ----

is(quiet('ALTER TABLE other RENAME TO moved', 'public.moved'), '1 renamed relation public.other public.moved', 'a renamed table');
is($node->safe_psql('postgres', 'SELECT relation, renamed_to FROM elt.renamed_relations'), 'public.other|public.moved', 'is told by its old name');
$node->safe_psql('postgres', "CREATE SCHEMA apart; BEGIN; INSERT INTO moved VALUES (20, 'x'); ALTER TABLE moved SET SCHEMA apart; INSERT INTO apart.moved VALUES (21, 'y'); COMMIT");
is(latest('apart.moved'), '1 renamed relation public.moved apart.moved', 'as is one in another schema');
is($node->safe_psql('postgres', q{SELECT relation, key->>'id' FROM elt_raw.s WHERE (key->>'id')::int IN (20, 21) ORDER BY change_id}),
	"public.moved|20\napart.moved|21", 'each row has the name of its moment');
is($node->safe_psql('postgres', 'SELECT relation, renamed_to FROM elt.renamed_relations ORDER BY relation'),
	"public.moved|apart.moved\npublic.other|public.moved", 'and each older name tells where it goes on');
is(quiet('ALTER SCHEMA apart RENAME TO elsewhere', 'elsewhere.moved'), '1 renamed relation apart.moved elsewhere.moved', 'a renamed schema is noticed too');
is(quiet('ALTER TABLE elsewhere.moved SET SCHEMA public; ALTER TABLE moved RENAME TO other', 'public.other'),
	'8 renamed relation elsewhere.moved public.other', 'and the way back');
is($node->safe_psql('postgres', q{SELECT count(*) FROM elt.resyncs_needed WHERE reason = 'replaced'}), '0', 'none of which is another table');

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE other_new (id int PRIMARY KEY, v text, extra int);
ALTER PUBLICATION elt_s ADD TABLE other_new;
INSERT INTO other_new VALUES (1, 'new', 1);
BEGIN;
ALTER TABLE other RENAME TO other_old;
ALTER TABLE other_new RENAME TO other;
COMMIT;
INSERT INTO other VALUES (2, 'newer', 2);
INSERT INTO other_old VALUES (30, 'late');
EOS
is(latest('public.other'), '9 renamed relation public.other_new public.other; replaced; added extra integer', 'a table that takes the name of another');
is(latest('public.other_old'), '1 renamed relation public.other public.other_old', 'which has a name of its own');
is($node->safe_psql('postgres', q{SELECT incarnation FROM elt.schema_history WHERE relation = 'public.other' ORDER BY version DESC LIMIT 1}), '2',
	'it is the name\'s second table');
is($node->safe_psql('postgres', q{SELECT reason FROM elt.resyncs_needed WHERE relation = 'public.other'}), 'replaced', 'and asks for a copy');
$node->safe_psql('postgres', <<'EOS');
DROP TABLE other_old;
CREATE TABLE other_old (id int PRIMARY KEY, v text);
ALTER PUBLICATION elt_s ADD TABLE other_old;
INSERT INTO other_old VALUES (1, 'again');
EOS
is(latest('public.other_old'), '2 replaced', 'dropped and made again');

# ---- a restart in between ----

$node->stop('immediate');
$node->start;
is(quiet('ALTER TABLE t ADD COLUMN after_restart int; INSERT INTO t (id) VALUES (50)'), '16 added after_restart integer', 'versions go on after a crash');
$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
$node->safe_psql('postgres', 'ALTER TABLE t ADD COLUMN while_paused int; INSERT INTO t (id) VALUES (51); ALTER TABLE t ADD COLUMN paused_2 int');
$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
is(latest('public.t'), '17 added while_paused integer', 'and after a pause, at each change its own');
is(quiet('SELECT 1'), '18 added paused_2 integer', 'DDL of the pause without a change comes with the next message');

# ---- a message costs nothing where nothing changed, and a forged one does no harm ----

my $versions = $node->safe_psql('postgres', 'SELECT count(*) FROM elt.schema_versions');
$node->safe_psql('postgres', q[SELECT pg_logical_emit_message(true, 'elt', m) FROM unnest(ARRAY['{"heartbeat": "x"}', '{"heartbeat"', '', '{"heartbeat": {"a": 1}}', 'R']) m]);
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(true, 'elt', decode('0052ff00', 'hex'))});
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'forged messages pass');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.schema_versions'), $versions, 'and say nothing of shapes');

# ---- rows that come and go with a partition ----

$node->safe_psql('postgres', 'CREATE DATABASE away');
$node->append_conf('postgresql.conf', 'elt.heartbeat_interval = 200ms');
$node->restart;

# The partitions of a table as last looked at, and what asks for a copy of it.
sub seen_soon
{
	my ($source, $names, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	poll_ok($node, qq{SELECT coalesce((SELECT string_agg(l->>'name', ' ' ORDER BY l->>'name') FROM jsonb_each(leaves) x (k, l)), '') = '$names'
		FROM elt.source_partitions JOIN elt.sources USING (source_id) WHERE name = '$source' AND leaves IS NOT NULL}, "$source: $what is seen");
	return;
}

sub asked
{
	my ($source) = @_;
	return $node->safe_psql('postgres', "SELECT concat_ws(' | ', reason, detail) FROM elt.resyncs_needed WHERE source = '$source' AND relation = 'public.root'");
}

foreach my $case ([ 'near', 'postgres' ], [ 'far', 'away' ])
{
	my ($source, $database) = @$case;
	my $at_source = sub { return $node->safe_psql($database, $_[0]) };
	my $asks_soon = sub {
		my ($detail, $what) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		poll_ok($node, "SELECT detail = '$detail' FROM elt.resyncs_needed WHERE source = '$source' AND reason = 'partitions'", "$source: $what asks for a copy");
	};
	my $copied = sub {
		my ($what) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		$node->safe_psql('postgres', "SELECT elt.resync_table('$source', 'public.root'); SELECT elt.wait_for_source('$source', timeout => '180 s')");
		is(asked($source), '', "$source: a copy settles $what");
		is($node->safe_psql('postgres', qq{SELECT string_agg(after->>'id', ' ' ORDER BY (after->>'id')::int) FROM elt_raw.$source
			WHERE relation = 'public.root' AND change_id > (SELECT max(change_id) FROM elt_raw.$source WHERE relation = 'public.root' AND op = 't')}),
			$at_source->("SELECT string_agg(id::text, ' ' ORDER BY id) FROM root"), "$source: and has the table's rows");
	};

	$at_source->(<<'EOS');
CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE r1 PARTITION OF root FOR VALUES FROM (10) TO (20);
CREATE TABLE r2 PARTITION OF root FOR VALUES FROM (20) TO (30);
INSERT INTO root VALUES (11), (21);
CREATE PUBLICATION by_root FOR TABLE root WITH (publish_via_partition_root = true);
EOS
	my $conninfo = $database eq 'away' ? $node->connstr($database) =~ s/'/''/gr : undef;
	$node->safe_psql('postgres', "SELECT elt.create_source('$source', publication => 'by_root'" . ($conninfo ? ", conninfo => '$conninfo'" : '') . ')');
	$node->safe_psql('postgres', "SELECT elt.wait_for_source('$source', timeout => '180 s')");
	seen_soon($source, 'public.r1 public.r2', 'what is there');

	# what brings or takes no row, or says so itself
	$at_source->('CREATE TABLE r3 (id int PRIMARY KEY); ALTER TABLE root ATTACH PARTITION r3 FOR VALUES FROM (30) TO (40)');
	seen_soon($source, 'public.r1 public.r2 public.r3', 'an empty partition that was attached');
	$at_source->('ALTER TABLE root DETACH PARTITION r3');
	seen_soon($source, 'public.r1 public.r2', 'and detached');
	$at_source->('CREATE TABLE r4 PARTITION OF root FOR VALUES FROM (40) TO (50); INSERT INTO root VALUES (41)');
	seen_soon($source, 'public.r1 public.r2 public.r4', 'one that was made in its place and written to');
	$at_source->('VACUUM FULL r1');
	my $file = $at_source->("SELECT pg_relation_filenode('r1')");
	poll_ok($node, qq{SELECT EXISTS (SELECT FROM elt.source_partitions, jsonb_each(leaves) l WHERE l.value->>'file' = '$file')}, "$source: another file is seen");
	$at_source->('TRUNCATE root; INSERT INTO root VALUES (12), (22), (42)');
	$node->safe_psql('postgres', "SELECT elt.wait_for_source('$source', timeout => '180 s')");
	is(asked($source), '', "$source: none of that asks for a copy");

	# what does, each by itself
	$at_source->(<<'EOS');
CREATE TABLE r5 (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE "R5 a" PARTITION OF r5 FOR VALUES FROM (50) TO (55);
CREATE TABLE r5b PARTITION OF r5 FOR VALUES FROM (55) TO (60);
INSERT INTO r5 VALUES (51);
ALTER TABLE root ATTACH PARTITION r5 FOR VALUES FROM (50) TO (60);
EOS
	$asks_soon->('attached: public."R5 a"', 'a partition that was attached with rows');
	$copied->('an attached partition');
	$at_source->('TRUNCATE r5');
	$asks_soon->('truncated: public."R5 a", public.r5b', 'a partition that was truncated alone');
	$copied->('a truncated partition');
	$at_source->('ALTER TABLE root DETACH PARTITION r4 CONCURRENTLY');
	$asks_soon->('detached: public.r4', 'a partition that was detached with rows');
	$copied->('a detached partition');
	$at_source->('ALTER TABLE root DETACH PARTITION r2; INSERT INTO r2 VALUES (23); ALTER TABLE root ATTACH PARTITION r2 FOR VALUES FROM (20) TO (30)');
	$asks_soon->('attached: public.r2', 'one that was away for a moment');
	$copied->('one that was away');
}

# one that comes while a copy is on its way, which has what its snapshot saw
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE r9 PARTITION OF root FOR VALUES FROM (1000) TO (50000);
INSERT INTO root SELECT generate_series(1000, 30000);
CREATE TABLE r6 (id int PRIMARY KEY);
INSERT INTO r6 VALUES (61);
ALTER SYSTEM SET elt.snapshot_rate = '300kB';
SELECT pg_reload_conf();
SELECT elt.resync_table('near', 'public.root');
EOS
poll_ok($node, "SELECT phase = 'copying' FROM elt.snapshot_passes", 'a copy is on its way');
$node->safe_psql('postgres', 'ALTER TABLE root ATTACH PARTITION r6 FOR VALUES FROM (60) TO (70)');
is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.snapshot_passes'), '1', 'and is, when a partition is attached');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET elt.snapshot_rate; SELECT pg_reload_conf()');
poll_ok($node, q{SELECT detail = 'attached: public.r6' FROM elt.resyncs_needed WHERE source = 'near'}, 'which asks for another');
$node->safe_psql('postgres', q{SELECT elt.resync_table('near', 'public.root'); SELECT elt.wait_for_source('near', timeout => '180 s')});
is(asked('near'), '', 'that settles it');

# one that is locked is measured later, and the supervisor does not wait for it
my $holder = $node->background_psql('postgres', on_error_stop => 1);
$holder->query_safe('CREATE TABLE r7 (id int PRIMARY KEY); INSERT INTO r7 VALUES (71)');
$holder->query_safe('BEGIN; ALTER TABLE root ATTACH PARTITION r7 FOR VALUES FROM (70) TO (80); COMMIT\; BEGIN\; LOCK TABLE r7');
foreach my $call (qw(pause resume))
{
	$node->safe_psql('postgres', "SELECT elt.${call}_source('near')");
	poll_ok($node, "SELECT (pid IS NULL) = ('$call' = 'pause') FROM elt.stat_sources WHERE source = 'near'", "beside a partition that is locked a ${call} goes through");
}
$holder->query_safe('COMMIT');
$holder->quit;
poll_ok($node, q{SELECT detail = 'attached: public.r7' FROM elt.resyncs_needed WHERE source = 'near'}, 'which asks for a copy once it is measured');
$node->safe_psql('postgres', q{SELECT elt.resync_table('near', 'public.root'); SELECT elt.wait_for_source('near', timeout => '180 s')});

# a table that is renamed goes on from the look before
$node->safe_psql('postgres', 'ALTER TABLE root RENAME TO tree; ALTER TABLE tree DETACH PARTITION r6; INSERT INTO tree VALUES (13)');
poll_ok($node, q{SELECT relation = 'public.tree' AND detail = 'detached: public.r6' FROM elt.resyncs_needed WHERE source = 'near'}, 'a table that was renamed meanwhile asks by its new name');
$node->safe_psql('postgres', 'ALTER TABLE tree RENAME TO root; INSERT INTO root VALUES (14)');
$node->safe_psql('postgres', q{SELECT elt.resync_table('near', 'public.root'); SELECT elt.wait_for_source('near', timeout => '180 s')});

# all at once, with a stop in between
$node->safe_psql('postgres', 'DROP TABLE r2; TRUNCATE r1');
poll_ok($node, q{SELECT detail = 'detached: public.r2; truncated: public.r1' FROM elt.resyncs_needed WHERE source = 'near' AND relation = 'public.root'}, 'all that happened is listed');
alerts_soon($node);
poll_ok($node, q{SELECT bool_or(detail LIKE '%elt.resync_table(%; detached: public.r2; truncated: public.r1') FROM elt.alerts
	WHERE rule = 'resync_needed' AND labels->>'source' = 'near' AND labels->>'reason' = 'partitions' AND state = 'firing'}, 'and alerted');
$node->restart;
$node->safe_psql('away', 'DROP TABLE r5');
poll_ok($node, q{SELECT detail = 'detached: public."R5 a", public.r5b' FROM elt.resyncs_needed WHERE source = 'far'}, 'a look goes on from the one before a restart');
is(asked('near'), 'partitions | detached: public.r2; truncated: public.r1', 'and what was found before stays');
$node->safe_psql('postgres', q{SELECT elt.resync_source('far'); SELECT elt.wait_for_source('far', timeout => '180 s')});
is(asked('far'), '', 'a source begun anew settles it too');

$node->stop;
done_testing();
