# Rows through the whole of capture, judged by test_decoding: what pg_regress
# cannot show (prepared transactions across restarts) and what is large (100,000
# subtransactions, 1,000 tables, 2,000 changes of a table's shape).
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = elt_node('rows', 'max_prepared_transactions = 5', 'max_locks_per_transaction = 256', 'autovacuum = off', 'fsync = off');

sub wait_staged
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', "staged: $what");
}

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE full_id (id int PRIMARY KEY, v text, n int);
ALTER TABLE full_id REPLICA IDENTITY FULL;
CREATE TABLE no_key (a int, b text);
CREATE TABLE shape (id int PRIMARY KEY, v text);
CREATE PUBLICATION pub FOR TABLE t, full_id, no_key, shape WITH (publish_via_partition_root = true);
SELECT elt.create_source('s', publication => 'pub', snapshot => 'none');
EOS
wait_staged('nothing yet');
oracle_create($node);

# ---- prepared transactions: once at commit, not at rollback, across restarts ----

$node->safe_psql('postgres', <<'EOS');
BEGIN; INSERT INTO t VALUES (1, 'prepared, committed'); PREPARE TRANSACTION 'p1';
BEGIN; INSERT INTO t VALUES (2, 'prepared, rolled back'); PREPARE TRANSACTION 'p2';
BEGIN; INSERT INTO t VALUES (3, 'after a crash'); SAVEPOINT s; INSERT INTO t VALUES (4, 'lost'); ROLLBACK TO s; PREPARE TRANSACTION 'p3';
BEGIN; SELECT 1; PREPARE TRANSACTION 'empty';
INSERT INTO t VALUES (5, 'meanwhile');
EOS
wait_staged('what is not prepared');
is($node->safe_psql('postgres', "SELECT string_agg(key->>'id', ',') FROM elt_raw.s"), '5', 'what is only prepared is not staged');
$node->safe_psql('postgres', "COMMIT PREPARED 'p1'");
$node->stop('immediate');
$node->start;
$node->safe_psql('postgres', "ROLLBACK PREPARED 'p2'");
$node->safe_psql('postgres', "COMMIT PREPARED 'p3'");
$node->safe_psql('postgres', "COMMIT PREPARED 'empty'");
wait_staged('after the crash');
is($node->safe_psql('postgres', "SELECT string_agg(key->>'id', ',' ORDER BY change_id) FROM elt_raw.s"), '5,1,3', 'each at its commit, once');

# ---- rows of every identity ----

$node->safe_psql('postgres', <<'EOS');
INSERT INTO full_id VALUES (1, 'a', 1), (2, 'b', 2);
UPDATE full_id SET v = NULL WHERE id = 1;
BEGIN;
UPDATE full_id SET id = 3 WHERE id = 1;
UPDATE full_id SET id = 1 WHERE id = 2;
UPDATE full_id SET id = 2 WHERE id = 3;
COMMIT;
DELETE FROM full_id WHERE id = 2;
INSERT INTO no_key VALUES (1, 'x'), (1, 'x');
MERGE INTO t USING (VALUES (5, 'merged'), (6, 'merged')) AS s (id, v) ON t.id = s.id
	WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v);
INSERT INTO t VALUES (6, 'conflict'), (7, 'new') ON CONFLICT (id) DO UPDATE SET v = excluded.v;
DO $$BEGIN
	FOR i IN 8 .. 12 LOOP
		BEGIN
			INSERT INTO t VALUES (i, 'sub');
			IF i % 2 = 0 THEN RAISE EXCEPTION 'lost'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END$$;
EOS
wait_staged('rows of every kind');
same_as_oracle($node, $node, 's', 'rows of every kind');

# ---- 100,000 subtransactions ----

my $start = time();
$node->safe_psql('postgres', <<'EOS');
DO $$BEGIN
	FOR i IN 1001 .. 101000 LOOP
		BEGIN
			INSERT INTO t VALUES (i, 'sub');
			IF i % 100 = 0 THEN RAISE EXCEPTION 'lost'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END$$;
EOS
my $written = time();
wait_staged('100,000 subtransactions');
note(sprintf('100,000 subtransactions: written in %.1f s, staged %.1f s later', $written - $start, time() - $written));
is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT key), count(DISTINCT xid) FROM elt_raw.s WHERE relation = 'public.t' AND (key->>'id')::int > 1000"),
	'99000|99000|1', 'are one transaction, without what was rolled back');

# ---- 2,000 changes of shape among writes ----

$start = time();
$node->safe_psql('postgres', <<'EOS');
DO $$BEGIN
	FOR i IN 1 .. 2000 LOOP
		IF i % 2 = 1 THEN ALTER TABLE shape ADD COLUMN extra int; ELSE ALTER TABLE shape DROP COLUMN extra; END IF;
		IF i % 20 = 1 THEN INSERT INTO shape (id, v, extra) VALUES (i, 'row', i); END IF;
		-- a table has room for 1,600 columns, dropped ones too
		IF i = 1000 THEN COMMIT; DROP TABLE shape; CREATE TABLE shape (id int PRIMARY KEY, v text); ALTER PUBLICATION pub ADD TABLE shape; END IF;
		IF i % 50 = 0 THEN COMMIT; END IF;
	END LOOP;
END$$;
EOS
$written = time();
wait_staged('2,000 changes of shape');
note(sprintf('2,000 changes of shape: written in %.1f s, staged %.1f s later', $written - $start, time() - $written));
is($node->safe_psql('postgres', "SELECT count(*), sum((after->>'extra')::int) = sum((after->>'id')::int) FROM elt_raw.s WHERE relation = 'public.shape'"),
	'100|t', 'each row in its own');
is($node->safe_psql('postgres', <<'EOS'), '100|2', 'and each version is one that rows have');
SELECT count(*), max(incarnation) FROM elt.schema_history h WHERE relation = 'public.shape'
	AND EXISTS (SELECT FROM elt_raw.s r WHERE r.relation = h.relation AND r.schema_version = h.version)
EOS

# ---- 1,000 tables in one transaction ----

$start = time();
$node->safe_psql('postgres', <<'EOS');
DO $$BEGIN
	FOR i IN 1 .. 1000 LOOP
		EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY, v text)', i);
	END LOOP;
	EXECUTE (SELECT 'ALTER PUBLICATION pub ADD TABLE ' || string_agg(format('many_%s', i), ', ') FROM generate_series(1, 1000) i);
	FOR i IN 1 .. 1000 LOOP
		EXECUTE format('INSERT INTO many_%s VALUES (1, %L), (2, NULL)', i, i);
	END LOOP;
END$$;
EOS
$written = time();
wait_staged('1,000 tables');
note(sprintf('1,000 tables in a transaction: written in %.1f s, staged %.1f s later', $written - $start, time() - $written));
is($node->safe_psql('postgres', <<'EOS'), '2000|1000|1000|1', 'each has its rows');
SELECT count(*), count(DISTINCT relation), count(*) FILTER (WHERE relation = 'public.many_' || (after->>'v')), count(DISTINCT xid)
FROM elt_raw.s WHERE relation LIKE 'public.many%'
EOS
$start = time();
$node->safe_psql('postgres', q{SELECT count(pg_logical_emit_message(true, 'other', i::text)) FROM generate_series(1, 1000) i; UPDATE many_1000 SET v = 'again' WHERE id = 2});
wait_staged('after that');

# ---- a row filter and a column list, by the whole way ----

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE filtered (id int PRIMARY KEY, region text, secret text);
ALTER PUBLICATION pub ADD TABLE filtered (id, region) WHERE (id > 100);
INSERT INTO filtered VALUES (1, 'eu', 's'), (101, 'us', 's');
UPDATE filtered SET id = id + 300;
UPDATE filtered SET id = 2 WHERE id = 301;
ALTER PUBLICATION pub DROP TABLE filtered;
INSERT INTO filtered VALUES (500, 'eu', 's');
EOS
wait_staged('filtered rows');
is($node->safe_psql('postgres', "SELECT string_agg(op::text || ':' || (key->>'id'), ' ' ORDER BY change_id), bool_or(after ? 'secret') FROM elt_raw.s WHERE relation = 'public.filtered'"),
	'c:101 c:301 d:101 c:401 d:301|f', 'a filter turns updates into inserts and deletes');

$node->stop;
done_testing();
