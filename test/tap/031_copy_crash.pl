# A copy that is interrupted goes on: by kill -9 of a snapshot worker and of the
# capture worker (which take the server through a crash restart), by the loss
# of its connection, and by a pause.  What was copied is not copied again, and
# raw staging folds to the source.  Where going on could not be exact the copy
# begins anew: a table that was rewritten, or has no key.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('copycrash', 'elt.snapshot_workers = 2', 'max_worker_processes = 20', 'fsync = on',
	'elt.snapshot_rate = 600kB');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE big (id int PRIMARY KEY, version int NOT NULL DEFAULT 0, filler text NOT NULL DEFAULT repeat('x', 300));
CREATE TABLE keyless (v int, filler text NOT NULL DEFAULT repeat('x', 300));
CREATE TABLE big_target (id int PRIMARY KEY, version int, filler text);
INSERT INTO big (id) SELECT i FROM generate_series(1, 50000) i;
INSERT INTO keyless SELECT i FROM generate_series(1, 20000) i;
EOS

sub progress
{
	my ($relation) = @_;
	return $node->safe_psql('postgres', qq{SELECT coalesce(max(done), 0) FROM elt.progress_snapshot WHERE "table" = '$relation'});
}

sub copies_until
{
	my ($relation, $done, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(poll_perl(60, sub { progress($relation) >= $done }), "$what: $done rows of $relation are copied");
}

sub kill_worker
{
	my ($kind) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($pid) = workers($node, $kind);
	ok($pid && kill('KILL', $pid), "a $kind worker is killed");
	poll_perl(60, sub { accepts($node) }) or die 'the server did not come back';
}

# changes of rows that are copied and of rows that are not, inserts and deletes
my $round = 0;
sub write_rows
{
	$round++;
	$node->safe_psql('postgres', <<"EOS");
UPDATE big SET version = version + 1 WHERE id % 97 = $round;
DELETE FROM big WHERE id % 1009 = $round;
INSERT INTO big (id) SELECT 100000 + $round * 1000 + i FROM generate_series(1, 200) i;
UPDATE big SET id = -id WHERE id % 2003 = $round;
EOS
}

$node->safe_psql('postgres', "SELECT elt.create_source('s', tables => ARRAY['public.big'])");
$node->safe_psql('postgres', "SELECT elt.create_pipeline('big', 's', 'public.big', 'big_target')");
copies_until('public.big', 2000, 'at first');
write_rows();

foreach my $kind (qw(snapshot capture snapshot))
{
	kill_worker($kind);
	cmp_ok(progress('public.big'), '>=', 2000, 'what is done stays done');
	write_rows();
	copies_until('public.big', progress('public.big') + 1000, "after the crash of a $kind worker");
	is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT after->>'id') FROM elt_raw.s WHERE op = 'r'"),
		'0', 'no row is copied twice');
	write_rows();
}
cmp_ok($node->safe_psql('postgres', 'SELECT run FROM elt.snapshot_passes'), '>=', 3, 'the same pass goes on');
is($node->safe_psql('postgres', 'SELECT count(*) FROM big_target'), '0', 'the target sees nothing before it is whole');

# the connections break, and a pause
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'elt s snapshot'");
write_rows();
copies_until('public.big', progress('public.big') + 1000, 'after the connections broke');
$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
ok(poll_perl(30, sub { !workers($node, 'snapshot') && !workers($node, 'capture') }), 'a pause stops them');
my $paused = progress('public.big');
write_rows();
$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
copies_until('public.big', $paused + 1000, 'after a pause');
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 0');
$node->reload;
is($node->safe_psql('postgres', "SELECT elt.wait_for('big', timeout => '90 s')"), 't', 'the copy ends');
write_rows();
is($node->safe_psql('postgres', "SELECT elt.wait_for('big', timeout => '60 s')"), 't', 'and the pipeline settles');
same_as_source($node, $node, 's', 'big');
same_as_target($node, $node, 'big', 'big_target');
is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT after->>'id') FROM elt_raw.s WHERE op = 'r'"), '0',
	'no row was copied twice');
unlike(log_since($node), qr/the copy of table public\.big begins anew/, 'and nothing was begun anew');

# no key: exact only from the beginning
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 1MB');
$node->reload;
$node->safe_psql('postgres', "SELECT elt.add_table('s', 'public.keyless')");
copies_until('public.keyless', 1000, 'without a key');
$node->safe_psql('postgres', 'INSERT INTO keyless SELECT i FROM generate_series(20001, 20500) i');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt snapshot'");
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 0');
$node->reload;
is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '60 s')"), 't', 'it is copied');
like(log_since($node), qr/the copy of table public\.keyless begins anew/, 'anew');
same_as_source($node, $node, 's', 'keyless');

# a table that is rewritten while its copy is interrupted
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 1MB');
$node->reload;
$node->safe_psql('postgres', "SELECT elt.resync_table('s', 'public.big')");
copies_until('public.big', 2000, 'a resync');
$node->safe_psql('postgres', "SELECT elt.pause_source('s')");
ok(poll_perl(30, sub { !workers($node, 'snapshot') }), 'it is interrupted');
$node->safe_psql('postgres', "ALTER TABLE big ADD COLUMN added int; VACUUM FULL big");
write_rows();
$node->safe_psql('postgres', "ALTER TABLE big_target ADD COLUMN added int");
$node->append_conf('postgresql.conf', 'elt.snapshot_rate = 0');
$node->reload;
$node->safe_psql('postgres', "SELECT elt.resume_source('s')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('big', timeout => '90 s')"), 't', 'the resync ends');
like(log_since($node), qr/the copy of table public\.big begins anew/, 'begun anew, since the table was rewritten');
same_as_source($node, $node, 's', 'big');
same_as_target($node, $node, 'big', 'big_target');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt_raw.s WHERE op = 't'"), '1', 'with one truncate');

$node->safe_psql('postgres', "SELECT elt.drop_pipeline('big'), elt.drop_source('s')");
nothing_left($node);
$node->stop;
done_testing();
