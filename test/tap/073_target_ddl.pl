# DDL on targets under load: columns, types, names, rewrites, indexes, constraints,
# partitions.  Each ends in success, or in a blocked pipeline that says why and
# goes on once that is mended; no record is quarantined, and in the end the
# targets are as their source.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('target_ddl', 'elt.max_workers = 2', 'deadlock_timeout = 100ms');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE SCHEMA attic;
CREATE TABLE t (id int PRIMARY KEY, v int, w text);
INSERT INTO t SELECT g, g, 'w' FROM generate_series(1, 2000) g;
CREATE TABLE dw.named (LIKE t INCLUDING ALL);
CREATE TABLE dw.made (id int PRIMARY KEY, v int, w text);
CREATE TABLE dw.parted (id int PRIMARY KEY, v int, w text) PARTITION BY RANGE (id);
CREATE TABLE dw.parted_1 PARTITION OF dw.parted FOR VALUES FROM (MINVALUE) TO (1001);
CREATE TABLE dw.parted_2 PARTITION OF dw.parted FOR VALUES FROM (1001) TO (MAXVALUE);
CREATE TABLE dw.past (id int, v int, w text, valid_from timestamptz, valid_to timestamptz, PRIMARY KEY (id, valid_from));
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('named', 's', 't', 'dw.named');
SELECT elt.create_pipeline('made', 's', 't', 'dw.made',
	$$SELECT (record->>'id')::int AS id, (record->>'v')::int AS v, record->>'w' AS w FROM changes$$);
SELECT elt.create_pipeline('parted', 's', 't', 'dw.parted');
SELECT elt.create_pipeline('past', 's', 't', 'dw.past', mode => 'history');
SELECT elt.wait_for('named'), elt.wait_for('made'), elt.wait_for('parted'), elt.wait_for('past');
EOS

my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, <<'EOS');
\set id random(1, 2000)
\set what random(1, 10)
\if :what = 1
DELETE FROM t WHERE id = :id;
\else
INSERT INTO t VALUES (:id, :id, 'new') ON CONFLICT (id) DO UPDATE SET v = t.v + 1, w = md5(t.v::text);
\endif
\sleep 2 ms
EOS
my $load = pgbench_start($node, '-f', $script, '-T', '600');

# Something arrives through a pipeline after this call.
sub goes_on
{
	my ($pipeline, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT elt.wait_for('$pipeline', timeout => '60 s')"), 't', "$what: what is committed by now is settled");
}

# ---- what the pipelines take without a word ----

foreach my $case (
	[ 'made', 'a column is added', 'ALTER TABLE dw.made ADD note text' ],
	[ 'made', 'one with a default for each row', 'ALTER TABLE dw.made ADD at timestamptz NOT NULL DEFAULT clock_timestamp()' ],
	[ 'made', 'it is dropped again', 'ALTER TABLE dw.made DROP at, DROP note' ],
	[ 'named', 'VACUUM FULL', 'VACUUM FULL dw.named' ],
	[ 'made', 'CLUSTER', 'CLUSTER dw.made USING made_pkey' ],
	[ 'named', 'REINDEX', 'REINDEX TABLE dw.named' ],
	[ 'named', 'REINDEX CONCURRENTLY', 'REINDEX TABLE CONCURRENTLY dw.named' ],
	[ 'made', 'an index, concurrently', 'CREATE INDEX CONCURRENTLY made_v ON dw.made (v)' ],
	[ 'made', 'without it, concurrently', 'DROP INDEX CONCURRENTLY dw.made_v' ],
	[ 'named', 'a wider type', 'ALTER TABLE dw.named ALTER v TYPE bigint' ],
	[ 'made', 'a wider type through a transform', 'ALTER TABLE dw.made ALTER v TYPE bigint' ],
	[ 'past', 'a wider type of a history', 'ALTER TABLE dw.past ALTER v TYPE numeric' ],
	[ 'named', 'another name', 'ALTER TABLE dw.named RENAME TO renamed' ],
	[ 'named', 'another schema', 'ALTER TABLE dw.renamed SET SCHEMA attic' ],
	[ 'named', 'back again', 'ALTER TABLE attic.renamed SET SCHEMA dw; ALTER TABLE dw.renamed RENAME TO named' ],
	[ 'made', 'another primary key index', 'CREATE UNIQUE INDEX made_id ON dw.made (id); ALTER TABLE dw.made DROP CONSTRAINT made_pkey, ADD PRIMARY KEY USING INDEX made_id' ],
	[ 'named', 'a constraint', 'ALTER TABLE dw.named ADD CONSTRAINT positive CHECK (v > 0) NOT VALID; ALTER TABLE dw.named VALIDATE CONSTRAINT positive' ],
	[ 'named', 'a trigger', 'CREATE FUNCTION dw.pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER pass BEFORE INSERT OR UPDATE ON dw.named FOR EACH ROW EXECUTE FUNCTION dw.pass()' ],
	[ 'named', 'no trigger', 'DROP TRIGGER pass ON dw.named' ],
	[ 'named', 'unlogged', 'ALTER TABLE dw.named SET UNLOGGED' ],
	[ 'named', 'logged', 'ALTER TABLE dw.named SET LOGGED' ],
	[ 'parted', 'a partition split', 'BEGIN; ALTER TABLE dw.parted DETACH PARTITION dw.parted_2; CREATE TABLE dw.parted_3 PARTITION OF dw.parted FOR VALUES FROM (1001) TO (1500); '
		  . 'CREATE TABLE dw.parted_4 PARTITION OF dw.parted FOR VALUES FROM (1500) TO (MAXVALUE); INSERT INTO dw.parted TABLE dw.parted_2; DROP TABLE dw.parted_2; COMMIT' ],
	[ 'parted', 'a column of all partitions', 'ALTER TABLE dw.parted ADD note text' ])
{
	my ($pipeline, $what, $ddl) = @$case;
	$node->safe_psql('postgres', $_) foreach ($ddl =~ /^CREATE FUNCTION/ || $ddl =~ /^BEGIN/ ? $ddl : split(/; /, $ddl));
	goes_on($pipeline, $what);
	is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines WHERE pipeline = '$pipeline'"), 'running', "$what: it runs");
}

# ---- what blocks them ----

foreach my $case (
	[ 'made', 'a column has another name', 'ALTER TABLE dw.made RENAME w TO x', '42703', 'ALTER TABLE dw.made RENAME x TO w' ],
	[ 'made', 'a column is gone', 'ALTER TABLE dw.made RENAME w TO y; ALTER TABLE dw.made DROP v', '42703', 'ALTER TABLE dw.made RENAME y TO w; ALTER TABLE dw.made ADD v bigint' ],
	[ 'named', 'the key has another name', 'ALTER TABLE dw.named RENAME id TO no', '42703', 'ALTER TABLE dw.named RENAME no TO id' ],
	[ 'named', 'the key is gone', 'ALTER TABLE dw.named DROP CONSTRAINT named_pkey', '42P10', 'ALTER TABLE dw.named ADD PRIMARY KEY (id)' ],
	[ 'made', 'a type that does not fit', 'ALTER TABLE dw.made ALTER w TYPE int USING 1', '42804', 'ALTER TABLE dw.made ALTER w TYPE text' ],
	[ 'past', 'a history without its times', 'ALTER TABLE dw.past RENAME valid_to TO ended', '42703', 'ALTER TABLE dw.past RENAME ended TO valid_to' ],
	[ 'named', 'row-level security', 'CREATE ROLE joe; ALTER TABLE dw.named ENABLE ROW LEVEL SECURITY; ALTER TABLE dw.named FORCE ROW LEVEL SECURITY', undef,
		'ALTER TABLE dw.named DISABLE ROW LEVEL SECURITY' ],
	[ 'made', 'a constraint that no row meets', "ALTER TABLE dw.made ADD CONSTRAINT never CHECK (id < 0) NOT VALID", '23514', 'ALTER TABLE dw.made DROP CONSTRAINT never' ])
{
	my ($pipeline, $what, $ddl, $sqlstate, $mend) = @$case;
	$node->safe_psql('postgres', $ddl);
	poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '$sqlstate: %' FROM elt.stat_pipelines WHERE pipeline = '$pipeline'", "$what: blocked, and says why")
	  if defined $sqlstate;
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status <> 'replayed' AND next_retry_at IS NULL"), '0', "$what: nothing is quarantined");
	$node->safe_psql('postgres', $mend);
	goes_on($pipeline, $what);
}

# ---- the end ----

$load->{handle}->signal('INT');
pgbench_finish($load);
goes_on($_, 'the end') foreach (qw(named made parted past));
poll_ok($node, "SELECT count(*) = 0 FROM elt.quarantine WHERE status IN ('open', 'waiting')", 'nothing is left in quarantine');
foreach my $target (qw(named parted))
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id, v, w FROM t EXCEPT SELECT id, v, w FROM dw.$target) x"), '0', "$target has the source's rows");
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id FROM dw.$target EXCEPT SELECT id FROM t) x"), '0', 'and no other');
}
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id, v, w FROM t EXCEPT SELECT id, v::int, w FROM dw.past WHERE valid_to IS NULL) x"), '0', 'the history has its present rows');
# what was dropped and made again has gaps that a replay fills
$node->safe_psql('postgres', "CALL elt.replay('made')");
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id, v, w FROM t EXCEPT SELECT id, v::int, w FROM dw.made) x"), '0', 'made has the source\'s rows after a replay');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id FROM dw.made EXCEPT SELECT id FROM t) x"), '0', 'and no other');
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
unlike(log_since($node), qr/elt \S+ (ERROR|FATAL): (?!.*administrator command)/, 'and no worker ended with an error');
$node->stop;
done_testing();
