# A disk that fails: writes to the tablespace of a target, or of raw staging,
# end with EIO, or are cut short.  The pipeline is blocked and the capture worker
# tries again, nothing is quarantined, what is elsewhere goes on, and all comes
# right by itself once the disk does.
#
# Writes that make a file longer go through a library that is put before the C
# library's in all processes of the server; a file says how they fail.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $disk = "$dir/disk";
my $order = "$dir/order";
mkdir($disk) or die "mkdir: $!";

append_to_file("$dir/failing.c", <<'EOS');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Whether a file is on the disk that fails. */
static int
is_there(int fd)
{
	const char *disk = getenv("FAILING_DISK");
	char link[64], path[4096];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	if (disk == NULL || len < 0)
		return 0;
	path[len] = '\0';
	return strncmp(path, disk, strlen(disk)) == 0;
}

/* How to write what makes a file longer.  0: as usual; 'E': fail; 's': write a part only */
static char
order_for(int fd, off_t end)
{
	const char *file = getenv("FAILING_ORDER");
	struct stat st;
	char order = 0;
	int order_fd;

	if (file == NULL || !is_there(fd) || fstat(fd, &st) != 0 || end <= st.st_size)
		return 0;
	order_fd = open(file, O_RDONLY);
	if (order_fd < 0)
		return 0;
	if (read(order_fd, &order, 1) != 1)
		order = 0;
	close(order_fd);
	return order;
}

static off_t
length_of(const struct iovec *data, int n)
{
	off_t length = 0;

	while (n-- > 0)
		length += data[n].iov_len;
	return length;
}

#define PWRITE(name, off_type) \
ssize_t name(int fd, const void *data, size_t n, off_type at) \
{ \
	static ssize_t (*next) (int, const void *, size_t, off_type); \
	int saved = errno; \
	char order = order_for(fd, at + n); \
	errno = saved; \
	if (next == NULL) next = dlsym(RTLD_NEXT, #name); \
	if (order == 'E') { errno = EIO; return -1; } \
	return next(fd, data, order == 's' && n > 512 ? 512 : n, at); \
}
#define PWRITEV(name, off_type) \
ssize_t name(int fd, const struct iovec *data, int n, off_type at) \
{ \
	static ssize_t (*next) (int, const struct iovec *, int, off_type); \
	int saved = errno; \
	char order = order_for(fd, at + length_of(data, n)); \
	errno = saved; \
	if (next == NULL) next = dlsym(RTLD_NEXT, #name); \
	if (order == 'E') { errno = EIO; return -1; } \
	if (order == 's' && n > 0) { struct iovec part = {data->iov_base, data->iov_len > 512 ? 512 : data->iov_len}; return next(fd, &part, 1, at); } \
	return next(fd, data, n, at); \
}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

/* else files would grow past the failing writes */
int
posix_fallocate(int fd, off_t at, off_t len)
{
	static int (*next) (int, off_t, off_t);

	if (next == NULL) next = dlsym(RTLD_NEXT, "posix_fallocate");
	return is_there(fd) ? EOPNOTSUPP : next(fd, at, len);
}
EOS
plan skip_all => 'writes are made to fail on Linux only' if $^O ne 'linux';
plan skip_all => 'no C compiler'
  if system("cc -shared -fPIC -o $dir/failing.so $dir/failing.c -ldl >$dir/cc.log 2>&1") != 0;

my $node = PostgreSQL::Test::Cluster->new('failing_disk');
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', join("\n", 'max_wal_senders = 20', 'max_replication_slots = 20', 'autovacuum = off',
		'elt.max_workers = 2', "log_line_prefix = '%m [%p] %b %q%a '", ''));
{
	local %ENV = (%ENV, LD_PRELOAD => "$dir/failing.so", FAILING_DISK => $disk, FAILING_ORDER => $order);
	$node->start;
}
$node->safe_psql('postgres', "CREATE TABLESPACE failing LOCATION '$disk'");
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE target (id int PRIMARY KEY, v text) TABLESPACE failing;
CREATE TABLE calm (id int PRIMARY KEY, v text);
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'target');
SELECT elt.create_pipeline('calm', 's', 't', 'calm');
EOS
ok($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 'the pipeline is there');

sub fail_by
{
	my ($how) = @_;
	unlink($order);
	append_to_file($order, $how) if $how;
}

# what writes fail by => the SQLSTATE that PostgreSQL makes of it
my $id = 0;
my @faults = ([ 'E', 'EIO', '58030' ], [ 's', 'a short write', '53100' ]);
foreach my $fault (@faults)
{
	my ($how, $what, $sqlstate) = @$fault;
	fail_by($how);
	$node->safe_psql('postgres', "INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series($id + 1, $id + 2000) g");
	$id += 2000;
	poll_ok($node, "SELECT state = 'blocked' AND last_error LIKE '$sqlstate: %' FROM elt.stat_pipelines WHERE pipeline = 'p'", "$what blocks the pipeline");
	is($node->safe_psql('postgres', "SELECT elt.wait_for('calm', timeout => '180 s')"), 't', "$what: the other pipeline goes on");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), '0', "$what: nothing is quarantined");
	fail_by(undef);
	is($node->safe_psql('postgres', "SELECT elt.wait_for('p', timeout => '180 s')"), 't', "$what: all is settled once the disk is well");
	same_as_target($node, $node, 't', 'target');
}

# raw staging on the failing disk
$node->safe_psql('postgres', 'CREATE TABLE u (id int PRIMARY KEY, v text); CREATE TABLE u_target (LIKE u INCLUDING ALL)');
$node->safe_psql('postgres', "ALTER SYSTEM SET default_tablespace = 'failing'");
$node->reload;
$node->safe_psql('postgres', <<'EOS');
SELECT elt.create_source('u', ARRAY['u']);
SELECT elt.create_pipeline('u', 'u', 'u', 'u_target');
INSERT INTO u VALUES (0, 'first');
EOS
is($node->safe_psql('postgres', "SELECT elt.wait_for('u', timeout => '180 s')"), 't', 'a source is captured onto the disk');
$id = 0;
foreach my $fault (@faults)
{
	my ($how, $what, $sqlstate) = @$fault;
	my $before = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	fail_by($how);
	$node->safe_psql('postgres', "INSERT INTO u SELECT g, repeat(md5(g::text), 20) FROM generate_series($id + 1, $id + 2000) g");
	$id += 2000;
	poll_ok($node, "SELECT last_error LIKE '%could not extend file%' AND last_error_at > '$before' FROM elt.stat_sources WHERE source = 'u'",
		"$what of raw staging shows in stat_sources");
	fail_by(undef);
	is($node->safe_psql('postgres', "SELECT elt.wait_for('u', timeout => '180 s')"), 't', "$what: capture goes on by itself");
	same_as_target($node, $node, 'u', 'u_target');
	is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT key) FROM elt_raw.u"), '0', "$what: each change is staged once");
}
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();
