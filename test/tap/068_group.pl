# Pipelines with the option "group": nobody sees half of a source transaction,
# foreign keys between targets hold, and what fails in one of them is
# quarantined there, while the rest of its transaction is applied with it.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = elt_node('group', "shared_preload_libraries = 'elt'", 'elt.max_workers = 3', 'elt.autoscale = off', 'track_commit_timestamp = on');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE customer (id int PRIMARY KEY, total int NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer, amount int NOT NULL);
CREATE TABLE line (order_id int REFERENCES orders, n int, amount int NOT NULL, PRIMARY KEY (order_id, n));
CREATE INDEX ON orders (customer);
INSERT INTO customer SELECT g, 0 FROM generate_series(1, 50) g;
INSERT INTO orders SELECT g, 1 + g % 50, 0 FROM generate_series(1, 3000) g;
INSERT INTO line SELECT g, 1, 0 FROM generate_series(1, 3000) g;
CREATE SCHEMA dw;
CREATE TABLE dw.customer (id int PRIMARY KEY, total int NOT NULL);
CREATE TABLE dw.orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES dw.customer, amount int NOT NULL);
CREATE INDEX ON dw.orders (customer);
CREATE TABLE dw.line (order_id int REFERENCES dw.orders, n int, amount int NOT NULL CHECK (amount <> -1), PRIMARY KEY (order_id, n));
-- children first, so that the order is elt's doing
SELECT elt.create_source('shop', ARRAY['line', 'orders', 'customer']);
SELECT elt.create_pipeline('line', 'shop', 'line', 'dw.line', options => '{"group": "shop", "batch_changes": 200, "lanes": 4}');
SELECT elt.create_pipeline('orders', 'shop', 'orders', 'dw.orders', options => '{"group": "shop", "batch_changes": 300}');
SELECT elt.create_pipeline('customer', 'shop', 'customer', 'dw.customer', options => '{"group": "shop"}');
EOS

sub drained
{
	my ($what) = @_;
	my $all = join(' AND ', map { "elt.wait_for('$_', timeout => '60 s')" } qw(line orders customer));
	is($node->safe_psql('postgres', "SELECT $all"), 't', "$what: all is settled");
}

# Whether the targets are what the tables are.
sub same
{
	my ($what) = @_;
	my $count = join(' + ', map { "(SELECT count(*) FROM ((TABLE $_ EXCEPT TABLE dw.$_) UNION ALL (TABLE dw.$_ EXCEPT TABLE $_)) AS d)" } qw(customer orders line));
	is($node->safe_psql('postgres', "SELECT $count"), 0, "$what: the targets are the same as the tables");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM elt.quarantine'), 0, "$what: nothing was ever quarantined");
}

drained('copy');
same('copy');

# Each transaction moves an amount through all three tables; sums of the target
# must agree in every snapshot.  Orders come and go, with their lines, and
# lines move from an order to another that is new, while the old one goes.
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/work.sql", <<'EOS');
\set o random(1, 3000)
\set c random(1, 50)
\set a random(1, 100)
\set n random(2, 9)
\set new random(100000, 900000000)
BEGIN;
SELECT pg_advisory_xact_lock(1);
INSERT INTO line VALUES (:o, :n, :a) ON CONFLICT (order_id, n) DO UPDATE SET amount = line.amount + :a;
UPDATE orders SET amount = amount + :a WHERE id = :o;
UPDATE customer SET total = total + :a WHERE id = (SELECT customer FROM orders WHERE id = :o);
INSERT INTO orders VALUES (:new, :c, :a) ON CONFLICT DO NOTHING;
INSERT INTO line VALUES (:new, 1, :a) ON CONFLICT DO NOTHING;
UPDATE customer SET total = (SELECT sum(amount) FROM orders WHERE customer = :c) WHERE id = :c;
DELETE FROM line WHERE order_id = (SELECT max(id) FROM orders WHERE customer = :c AND id >= 100000) AND :a % 3 = 0;
UPDATE customer SET total = total - (SELECT amount FROM orders WHERE id = (SELECT max(id) FROM orders WHERE customer = :c AND id >= 100000)) WHERE id = :c AND :a % 3 = 0;
DELETE FROM orders WHERE id = (SELECT max(id) FROM orders WHERE customer = :c AND id >= 100000) AND :a % 3 = 0;
COMMIT;
EOS
my $load = pgbench_start($node, '-T', '6', '-f', "$dir/work.sql");
my $looks = 0;
my $halves = 0;
my $seen = 0;
my $before = '';
my $end = time() + 5;
while (time() < $end)
{
	my ($half, $sum) = split(/\|/, $node->safe_psql('postgres', <<'EOS'));
SELECT (SELECT count(*) FROM dw.orders o WHERE amount <> (SELECT coalesce(sum(amount), 0) FROM dw.line WHERE order_id = o.id))
	+ (SELECT count(*) FROM dw.customer c WHERE total <> (SELECT coalesce(sum(amount), 0) FROM dw.orders WHERE customer = c.id)),
	(SELECT sum(total) FROM dw.customer)
EOS
	$halves += $half;
	$seen++ if $sum ne $before;
	$before = $sum;
	$looks++;
}
my $done = pgbench_finish($load);
ok($done > 20, "the load ran: $done transactions");
is($halves, 0, "none of $looks looks saw half of a transaction");
ok($seen > 5, "the looks saw $seen states of the targets");
drained('load');
same('load');

# More than a window holds, in one transaction of the source.
$node->safe_psql('postgres', <<'EOS');
BEGIN;
INSERT INTO customer VALUES (1000, 5000);
INSERT INTO orders SELECT 1000000000 + g, 1000, 1 FROM generate_series(1, 5000) g;
INSERT INTO line SELECT 1000000000 + g, 1, 1 FROM generate_series(1, 5000) g;
COMMIT;
EOS
drained('large');
same('large');
is($node->safe_psql('postgres', "SELECT count(DISTINCT pg_xact_commit_timestamp(xmin)) FROM (SELECT xmin FROM dw.orders WHERE customer = 1000
	UNION ALL SELECT xmin FROM dw.line WHERE order_id > 1000000000) AS t"), 1, 'large: applied in one transaction');
$node->safe_psql('postgres', 'BEGIN; DELETE FROM line WHERE order_id > 1000000000; DELETE FROM orders WHERE customer = 1000; DELETE FROM customer WHERE id = 1000; COMMIT');
drained('large delete');
same('large delete');

# A line moves to another order while its own is deleted, and parents come with their children.
$node->safe_psql('postgres', <<'EOS');
BEGIN; INSERT INTO customer VALUES (2000, 0); INSERT INTO orders VALUES (4000, 2000, 0), (4001, 2000, 0); COMMIT;
BEGIN; INSERT INTO orders VALUES (5000, 2000, 0); INSERT INTO line VALUES (5000, 5, 0); COMMIT;
BEGIN; INSERT INTO orders VALUES (5001, 2000, 0); UPDATE line SET order_id = 5001 WHERE order_id = 5000; DELETE FROM orders WHERE id = 5000; COMMIT;
BEGIN; UPDATE orders SET customer = 3 WHERE customer = 2000; DELETE FROM customer WHERE id = 2000; COMMIT;
EOS
drained('moves');
same('moves');

# A truncate of two, parents named first.
$node->safe_psql('postgres', 'BEGIN; UPDATE customer SET total = 0; TRUNCATE orders, line; INSERT INTO orders VALUES (1, 1, 0); INSERT INTO line VALUES (1, 1, 0); COMMIT');
drained('truncate');
same('truncate');

# What one member cannot take is quarantined there; the rest of its transaction is applied with it.
$node->safe_psql('postgres', <<'EOS');
INSERT INTO customer SELECT g, 0 FROM generate_series(3001, 3100) g;
BEGIN; INSERT INTO orders VALUES (7000, 1, -1); INSERT INTO line VALUES (7000, 1, -1), (7000, 2, 5); COMMIT;
EOS
drained('bad record');
$node->safe_psql('postgres', <<'EOS');
UPDATE line SET amount = 7 WHERE order_id = 7000 AND n = 1;
INSERT INTO line VALUES (7000, 3, 6);
EOS
drained('after it');
is($node->safe_psql('postgres', 'SELECT pipeline, status, sqlstate, key->>\'n\' FROM elt.quarantine'), 'line|open|23514|1', 'one change is quarantined');
is($node->safe_psql('postgres', 'SELECT pipeline, parked FROM elt.blocked_keys'), 'line|1', 'and the next one of its key parked');
is($node->safe_psql('postgres', 'SELECT string_agg(n || \':\' || amount, \' \' ORDER BY n) FROM dw.line WHERE order_id = 7000'), '2:5 3:6', 'the others are applied');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT pg_xact_commit_timestamp(xmin)) FROM (SELECT xmin FROM dw.orders WHERE id = 7000 UNION ALL SELECT xmin FROM dw.line WHERE order_id = 7000 AND n = 2) AS t'),
	1, 'its transaction with one of ours');
$node->safe_psql('postgres', "SELECT elt.discard_quarantine((SELECT array_agg(quarantine_id) FROM elt.quarantine), 'test')");
poll_ok($node, 'SELECT count(*) = 0 FROM elt.parked', 'what was parked is applied');
is($node->safe_psql('postgres', 'SELECT amount FROM dw.line WHERE order_id = 7000 AND n = 1'), 7, 'with its value');

# A member that is paused, or blocked, holds all.
$node->safe_psql('postgres', "SELECT elt.pause_pipeline('orders')");
$node->safe_psql('postgres', 'INSERT INTO customer VALUES (8000, 0)');
$node->safe_psql('postgres', "SELECT elt.wait_for_source('shop')");
is($node->safe_psql('postgres', "SELECT elt.wait_for('customer', timeout => '1 s')"), 'f', 'a paused member holds the group');
is($node->safe_psql('postgres', 'SELECT (elt.transform(\'line\')).read'), 1, 'elt.transform of a member works on the group');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.customer WHERE id = 8000'), 1, 'and applies what another has');
$node->safe_psql('postgres', "SELECT elt.resume_pipeline('orders')");
$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION dw.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON dw.orders FOR EACH ROW EXECUTE FUNCTION dw.full();
EOS
$node->safe_psql('postgres', 'BEGIN; INSERT INTO customer VALUES (8001, 0); INSERT INTO orders VALUES (8001, 8001, 0); COMMIT');
poll_ok($node, "SELECT state = 'blocked' FROM elt.stat_pipelines WHERE pipeline = 'orders'", 'a member is blocked');
is($node->safe_psql('postgres', "SELECT string_agg(state, ' ' ORDER BY pipeline) FROM elt.stat_pipelines WHERE pipeline <> 'orders'"), 'running running', 'and only that');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.customer WHERE id = 8001'), 0, 'the transaction is not applied to another');
$node->safe_psql('postgres', 'DROP TRIGGER full_disk ON dw.orders');
drained('unblocked');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.orders WHERE id = 8001'), 1, 'then all of it');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status NOT IN ('discarded')"), 0, 'and nothing is quarantined');

# One leaves, the others go on; it comes back, and catches up.
$node->safe_psql('postgres', "SELECT elt.alter_pipeline('line', '{\"group\": null}')");
$node->safe_psql('postgres', "SELECT elt.pause_pipeline('line')");
$node->safe_psql('postgres', 'BEGIN; INSERT INTO orders VALUES (9000, 1, 1); INSERT INTO line VALUES (9000, 1, 1); COMMIT');
is($node->safe_psql('postgres', "SELECT elt.wait_for('orders')"), 't', 'the group goes on without one that left');
$node->safe_psql('postgres', "SELECT elt.alter_pipeline('line', '{\"group\": \"shop\"}'), elt.resume_pipeline('line')");
drained('back');
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.line WHERE order_id = 9000'), 1, 'it caught up');

# A replay of one member, the others settled; and a crash in the middle of the load.
$node->safe_psql('postgres', "DELETE FROM dw.line WHERE order_id = 9000; CALL elt.replay('line')");
is($node->safe_psql('postgres', 'SELECT count(*) FROM dw.line WHERE order_id = 9000'), 1, 'a member is replayed');
$node->safe_psql('postgres', 'DELETE FROM line; DELETE FROM orders; UPDATE customer SET total = 0; INSERT INTO orders SELECT g, 1 + g % 50, 0 FROM generate_series(1, 3000) g');
$load = pgbench_start($node, '-t', '400', '-f', "$dir/work.sql");
usleep(500_000);
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt transform'");
pgbench_finish($load);
$node->stop('immediate');
$node->start;
drained('crash');
my $count = join(' + ', map { "(SELECT count(*) FROM ((TABLE $_ EXCEPT TABLE dw.$_) UNION ALL (TABLE dw.$_ EXCEPT TABLE $_)) AS d)" } qw(customer orders line));
is($node->safe_psql('postgres', "SELECT $count"), 0, 'crash: the targets are the same as the tables');
is($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine WHERE status <> 'discarded'"), 0, 'crash: nothing is quarantined');

# A change that ends its worker is found, whatever group it is in.  (Right after a start members may go apart for it.)
poll_ok($node, "SELECT now() > pg_postmaster_start_time() + '11 s'", 'the server is up for a while');
$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION dw.die() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.amount = 666 THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(10);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER die BEFORE INSERT ON dw.line FOR EACH ROW EXECUTE FUNCTION dw.die();
INSERT INTO customer VALUES (10000, 0);
BEGIN; INSERT INTO orders VALUES (10000, 10000, 0); INSERT INTO line VALUES (10000, 1, 1), (10000, 2, 666), (10000, 3, 3); COMMIT;
INSERT INTO customer VALUES (10001, 0);
EOS
drained('deadly');
is($node->safe_psql('postgres', "SELECT pipeline, status, key->>'n' FROM elt.quarantine WHERE status <> 'discarded'"), 'line|open|2', 'deadly: the change is quarantined, and no other');
is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM dw.line WHERE order_id = 10000), (SELECT count(*) FROM dw.customer WHERE id >= 10000)'), '2|2', 'deadly: the others are applied');

$node->stop;
done_testing();
