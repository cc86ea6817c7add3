# A broken environment: full disks, locks that others hold for long, deadlocks,
# rights that are revoked.  No good record is quarantined, what can go on goes
# on, and all comes right by itself once the cause is gone.
#
#	ELT_SMALL_DISK	a small file system of its own, to be filled (run-tests
#					mounts one where it may)
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('environment', 'elt.max_workers = 2', 'deadlock_timeout = 100ms', 'autovacuum = off');
my $disk = $ENV{ELT_SMALL_DISK};

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
CREATE TABLE calm (id int PRIMARY KEY, v text);
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'target');
SELECT elt.create_pipeline('calm', 's', 't', 'calm');
SELECT elt.wait_for_source('s', timeout => '180 s');
EOS

my $id = 0;

# Inserts rows of some kB each.
sub insert_rows
{
	my ($count, $kb) = @_;
	$node->safe_psql('postgres',
		"INSERT INTO t SELECT g, (SELECT string_agg(md5(g || ' ' || n), '') FROM generate_series(1, @{[ $kb * 32 ]}) n) "
		  . "FROM generate_series($id + 1, $id + $count) g");
	$id += $count;
}

sub all_is_well
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', "$what: all is settled");
	is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines WHERE pipeline = 'p'"), 'running', "$what: the pipeline runs");
	same_as_target($node, $node, 't', 'target');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', "$what: nothing was quarantined");
}

# ---- a lock on the target ----

# who loses the deadlock below goes on
my $holder = $node->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('BEGIN; LOCK TABLE target');
insert_rows(100, 1);
is($node->safe_psql('postgres', "SELECT elt.wait_for('calm', timeout => '180 s')"), 't', 'another pipeline does not wait for a locked target');
poll_ok($node, "SELECT last_error LIKE '55P03: %' AND state = 'running' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'who waits for a lock says so');
poll_ok($node, "SELECT bool_and(xact_start IS NULL) FROM pg_stat_activity WHERE backend_type = 'elt transform'", 'and holds no transaction open between its tries');
$holder->query_safe('COMMIT');
all_is_well('a locked target');

# a row that somebody holds
$holder->query_safe('BEGIN; SELECT FROM target WHERE id = 1 FOR UPDATE');
$node->safe_psql('postgres', "UPDATE t SET v = 'held' WHERE id = 1");
is($node->safe_psql('postgres', "SELECT elt.wait_for('calm', timeout => '180 s')"), 't', 'another pipeline does not wait for a locked row');
poll_ok($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'elt transform' AND wait_event_type = 'Lock'", 'a worker waits for it');
$holder->query_safe('COMMIT');
all_is_well('a locked row');

# ---- a deadlock ----

my $offset = -s $node->logfile;
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE gate (id int);
INSERT INTO gate VALUES (1);
CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM gate FOR UPDATE;
	RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON target FOR EACH ROW EXECUTE FUNCTION pass_gate();
EOS
$holder->query_safe('BEGIN; SELECT FROM gate FOR UPDATE');
$node->safe_psql('postgres', "UPDATE t SET v = 'b' WHERE id = 2");
poll_ok($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'elt transform' AND wait_event_type = 'Lock'", 'a worker has a row, and waits for another');
$holder->{stdin} .= "SELECT FROM target WHERE id = 2 FOR UPDATE;\n";
$holder->{run}->pump_nb;
ok(poll_perl(180, sub { return log_since($node, $offset) =~ /deadlock detected/; }), 'somebody who has the other waits for the row: a deadlock');
$holder->{stdin} .= "\\q\n";
$holder->{run}->finish;
all_is_well('a deadlock');

# ---- rights, columns, constraints ----

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE joe;
CREATE TABLE joes (id int PRIMARY KEY, v text, more text);
GRANT SELECT ON elt_raw.s TO joe;
GRANT ALL ON joes TO joe;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO joe;
SET ROLE joe;
SELECT elt.create_pipeline('joe', 's', 't', 'joes', $$SELECT (record->>'id')::int AS id, left(record->>'v', 10) AS v, 'x' AS more FROM changes$$);
SELECT elt.wait_for('joe', timeout => '180 s');
EOS
foreach my $case (
	[ 'a revoked right', 'REVOKE UPDATE ON joes FROM joe', '42501', 'GRANT UPDATE ON joes TO joe' ],
	[ 'a dropped column', 'ALTER TABLE joes DROP more', '42703', 'ALTER TABLE joes ADD more text' ],
	[ 'another type', 'ALTER TABLE joes ALTER more TYPE int USING 1', '42804', 'ALTER TABLE joes ALTER more TYPE text' ],
	[ 'no key', 'ALTER TABLE joes DROP CONSTRAINT joes_pkey', '42P10', 'ALTER TABLE joes ADD PRIMARY KEY (id)' ],
	[ 'a lost table', 'DROP TABLE joes', '42P01', 'CREATE TABLE joes (id int PRIMARY KEY, v text, more text); GRANT ALL ON joes TO joe' ],
	[ 'a constraint that nothing meets', "ALTER TABLE joes ADD CONSTRAINT c CHECK (more = 'y') NOT VALID", '23514', 'ALTER TABLE joes DROP CONSTRAINT c' ])
{
	my ($what, $break, $sqlstate, $mend) = @$case;

	$node->safe_psql('postgres', $break);
	insert_rows(200, 1);
	poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '$sqlstate: %' FROM elt.stat_pipelines WHERE pipeline = 'joe'", "$what blocks");
	is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status = 'open'"), '0', "$what: nothing is quarantined");
	$node->safe_psql('postgres', $mend);
	is($node->safe_psql('postgres', "SELECT elt.wait_for('joe', timeout => '180 s')"), 't', "$what: it resumes by itself");
	is($node->safe_psql('postgres', "SELECT state FROM elt.stat_pipelines WHERE pipeline = 'joe'"), 'running', "$what: it runs again");
}
$node->safe_psql('postgres', "SELECT elt.drop_pipeline('joe')");

# ---- a full disk ----

SKIP:
{
	skip 'no small disk (ELT_SMALL_DISK)', 12 unless $disk && -d $disk;

	mkdir("$disk/tablespace") or die "mkdir: $!";
	$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disk/tablespace'");
	$node->safe_psql('postgres', 'ALTER TABLE target SET TABLESPACE small');
	my $ballast = "$disk/ballast";
	fill($ballast, 40);
	insert_rows(1500, 8);
	poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '53100: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", 'a full disk blocks the pipeline');
	is($node->safe_psql('postgres', "SELECT elt.wait_for('calm', timeout => '180 s')"), 't', 'the other one goes on');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', 'nothing is quarantined');
	poll_ok($node, "SELECT probes >= 2 FROM elt.pipelines WHERE name = 'p'", 'it is probed');
	unlink($ballast);
	$node->safe_psql('postgres', 'DELETE FROM t WHERE id % 2 = 0');
	poll_ok($node, "SELECT state = 'running' FROM elt.pipelines WHERE name = 'p'", 'it resumes by itself once there is room');
	all_is_well('a full disk');

	# raw staging: the capture worker tries again, and the slot keeps the WAL
	$node->safe_psql('postgres', 'CREATE TABLE u (id int PRIMARY KEY, v text); CREATE TABLE u_target (LIKE u INCLUDING ALL)');
	$node->safe_psql('postgres', "ALTER SYSTEM SET default_tablespace = 'small'");
	$node->reload;
	$node->safe_psql('postgres', <<'EOS');
SELECT elt.create_source('u', ARRAY['u']);
SELECT elt.create_pipeline('u', 'u', 'u', 'u_target');
SELECT elt.wait_for_source('u', timeout => '180 s');
EOS
	fill($ballast, 100);
	$node->safe_psql('postgres', "INSERT INTO u SELECT g, md5(g::text) FROM generate_series(1, 2000) g");
	poll_ok($node, "SELECT last_error ~ 'No space left' FROM elt.stat_sources WHERE source = 'u'", 'a full disk of raw staging shows in stat_sources');
	unlink($ballast);
	is($node->safe_psql('postgres', "SELECT elt.wait_for('u', timeout => '180 s')"), 't', 'capture goes on by itself');
	same_as_target($node, $node, 'u', 'u_target');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET default_tablespace');
}
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();

# Writes a file of so many MB, or as much as there is room for.
sub fill
{
	my ($file, $mb) = @_;
	open(my $out, '>', $file) or die "$file: $!";
	for (1 .. $mb * 16)
	{
		syswrite($out, 'x' x 65536) or last;
	}
	close($out);
	return;
}
