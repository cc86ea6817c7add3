# Replays by the clock, with the real pg_cron: a schedule is set, changed and
# ended; scheduled replays run, as the role that asked for them, two of them at
# once without harm; one that fails says so in cron.job_run_details.  The clock
# of pg_cron ticks once a minute, so the file takes up to that long.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $sharedir = `$ENV{PG_CONFIG} --sharedir` if defined $ENV{PG_CONFIG};
$sharedir = `pg_config --sharedir` if !defined $sharedir;
chomp($sharedir);
plan skip_all => 'pg_cron is not installed' if !-e "$sharedir/extension/pg_cron.control";

my $node = elt_node('cron', "shared_preload_libraries = 'elt, pg_cron'", "cron.database_name = 'postgres'",
	'cron.use_background_workers = on', 'elt.max_workers = 2');

sub error_of
{
	my ($sql) = @_;
	my ($code, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	return $code == 0 ? 'no error' : $err;
}

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE SCHEMA dw;
CREATE ROLE joe LOGIN;
GRANT ALL ON SCHEMA dw TO joe;
GRANT EXECUTE ON FUNCTION elt.create_pipeline, elt.replay_quarantine, elt.schedule_replay TO joe;
CREATE TABLE item (id int PRIMARY KEY, v int);
CREATE TABLE dw.broken (id int PRIMARY KEY, v int CHECK (v > 0));
SELECT elt.create_source('s', ARRAY['item']);
EOS
$node->safe_psql('postgres', <<'EOS');
GRANT USAGE ON SCHEMA elt_raw TO joe;
GRANT SELECT ON elt_raw.s TO joe;
SELECT elt.create_pipeline('broken', 's', 'item', 'dw.broken', options => '{"breaker": false}');
SET ROLE joe;
CREATE TABLE dw.item (id int PRIMARY KEY, v int CONSTRAINT good CHECK (v > 0));
SELECT elt.create_pipeline('item', 's', 'item', 'dw.item', options => '{"breaker": false}');
RESET ROLE;
INSERT INTO item SELECT g, CASE WHEN g % 2 = 0 THEN -g ELSE g END FROM generate_series(1, 100) g;
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for('item', timeout => '180 s'), elt.wait_for('broken', timeout => '180 s')"), 't|t', 'half of the records are settled');
is($node->safe_psql('postgres', "SELECT pipeline, status, count(*) FROM elt.quarantine GROUP BY 1, 2 ORDER BY 1"),
	"broken|open|50\nitem|open|50", 'the other half is in quarantine');

# ---- without pg_cron in the database ----

my $refusal = error_of("SELECT elt.schedule_replay('item', '* * * * *')");
like($refusal, qr/0A000.*pg_cron is not installed in database "postgres"/s, 'without pg_cron a schedule is refused');
like($refusal, qr/CREATE EXTENSION pg_cron/, 'and the hint says what to do');

# ---- set, change, end ----

$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
like(error_of("SET ROLE joe; SELECT elt.schedule_replay('broken', '* * * * *')"), qr/42501.*must be owner of pipeline/s,
	'a pipeline of others cannot be scheduled');
like(error_of("SET ROLE joe; SELECT elt.schedule_replay('item', '* * * * *')"), qr/42501.*permission denied for schema cron/s,
	'who may not use pg_cron cannot schedule');
$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA cron TO joe');
like(error_of("SET ROLE joe; SELECT elt.schedule_replay('item', 'now and then')"), qr/invalid schedule/, 'a bad schedule is refused');
my $job = $node->safe_psql('postgres', "SET ROLE joe; SELECT elt.schedule_replay('item', '0 3 * * *')");
is($node->safe_psql('postgres', "SET ROLE joe; SELECT elt.schedule_replay('item', '* * * * *')"), $job, 'a second call changes the schedule');
is($node->safe_psql('postgres', "SELECT jobname, schedule, command, username, active FROM cron.job"),
	"elt replay item|* * * * *|SELECT * FROM elt.replay_quarantine(pipeline => 'item')|joe|t", 'the job is as it should be');
$node->safe_psql('postgres', "SELECT elt.schedule_replay('broken', '0 3 * * *')");
is($node->safe_psql('postgres', "SELECT elt.schedule_replay('broken', NULL)"), '', 'a schedule is ended');
is($node->safe_psql('postgres', "SELECT count(*) FROM cron.job WHERE jobname LIKE '%broken'"), '0', 'its job is gone');

# ---- it runs ----

# the cause of one is mended; what is wrong with the other is not of single records; a third overlaps with the first
$node->safe_psql('postgres', <<'EOS');
ALTER TABLE dw.item DROP CONSTRAINT good;
CREATE FUNCTION dw.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON dw.broken FOR EACH ROW EXECUTE FUNCTION dw.full();
SELECT elt.schedule_replay('broken', '* * * * *');
SELECT cron.schedule('again', '* * * * *', 'SELECT * FROM elt.replay_quarantine(''item'')');
EOS
ok(poll_perl(180, sub { $node->safe_psql('postgres',
		"SELECT count(*) FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')") >= 3 }), 'the jobs have run');
is($node->safe_psql('postgres', "SELECT status, count(DISTINCT resolved_by), count(*) FROM elt.quarantine WHERE pipeline = 'item' GROUP BY 1"),
	'replayed|1|50', 'a scheduled replay ran, and one of the two did all');
is($node->safe_psql('postgres', "SELECT count(*) FROM item NATURAL JOIN dw.item"), '100', 'the target equals the source');
is($node->safe_psql('postgres', "SELECT count(DISTINCT jobid) FROM cron.job_run_details JOIN cron.job USING (jobid) "
		. "WHERE jobname IN ('elt replay item', 'again') AND status = 'succeeded'"), '2', 'two at once do no harm');
is($node->safe_psql('postgres', "SELECT status || ': ' || (return_message ~ 'no space left') FROM cron.job_run_details JOIN cron.job USING (jobid) "
		. "WHERE jobname = 'elt replay broken' LIMIT 1"), 'failed: true', 'a failure shows in cron.job_run_details');
is($node->safe_psql('postgres', "SELECT status, retry_count, count(*) FROM elt.quarantine WHERE pipeline = 'broken' GROUP BY 1, 2"),
	'open|0|50', 'and its records are as they were');

$node->stop;
done_testing();
