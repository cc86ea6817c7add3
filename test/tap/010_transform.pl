# The transform side against a model: random transactions (inserts, updates,
# deletes, new keys, truncates, rolled back savepoints, large ones, rows that a
# target refuses) run through pipelines of all modes and orderings, while
# workers are terminated, cancelled, added and taken away, pipelines come and
# go, a target is altered, and the server is stopped at once.  Afterwards raw
# staging says what each target, elt.quarantine and elt.parked must hold.
#
#	ELT_TRANSFORM_SECONDS	how long (default 20)
#	ELT_TRANSFORM_SEED		repeats the choices, as far as the load is concerned
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{ELT_TRANSFORM_SECONDS} || 20;
my $seed = $ENV{ELT_TRANSFORM_SEED} || int(rand(1_000_000_000));
my $load;
srand($seed);
diag("ELT_TRANSFORM_SEED=$seed");

my $node = elt_node('transform', "shared_preload_libraries = 'elt'", 'elt.max_workers = 3', 'deadlock_timeout = 200ms');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE item (id int PRIMARY KEY, v int, note text);
CREATE TABLE pair (a int, b int, v int, body text, PRIMARY KEY (a, b));
ALTER TABLE pair ALTER body SET STORAGE EXTERNAL;
CREATE TABLE loose (x bigserial, v int);
ALTER TABLE loose REPLICA IDENTITY FULL;
INSERT INTO item SELECT g, g, 'copied' FROM generate_series(1, 100) g;

CREATE SCHEMA dw;
CREATE TABLE dw.item_strict (id int PRIMARY KEY, v int CHECK (v >= 0), note text, twice int);
CREATE TABLE dw.item_supersede (id int PRIMARY KEY, v int CHECK (v >= 0), shout text) PARTITION BY HASH (id);
CREATE TABLE dw.item_supersede_0 PARTITION OF dw.item_supersede FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE dw.item_supersede_1 PARTITION OF dw.item_supersede FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE dw.item_log (change_id bigint, id int, v int CHECK (v >= 0));
CREATE TABLE dw.pair_strict (LIKE pair INCLUDING ALL, CHECK (v >= 0));
CREATE TABLE dw.loose_log (x bigint, v int CHECK (v >= 0));
CREATE TABLE dw.scrap (id int PRIMARY KEY, v int CHECK (v >= 0));
-- a target whose trigger writes, and sometimes fails for no reason of the row's
CREATE TABLE dw.touched (id int, at timestamptz DEFAULT now());
CREATE FUNCTION dw.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF random() < 0.0003 THEN
		RAISE EXCEPTION 'try again' USING ERRCODE = (ARRAY['40001', '40P01', '55P03'])[1 + (random() * 2)::int];
	END IF;
	NEW.twice := NEW.id * 2;
	INSERT INTO dw.touched (id) VALUES (NEW.id);
	RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON dw.item_strict FOR EACH ROW EXECUTE FUNCTION dw.touch();

SELECT elt.create_source('s', ARRAY['item', 'pair', 'loose'], options => '{"raw_partition_changes": 4096}');
SELECT elt.create_pipeline('item_strict', 's', 'item', 'dw.item_strict', options => '{"batch_changes": 100, "lanes": 8, "breaker": false}');
SELECT elt.create_pipeline('item_supersede', 's', 'item', 'dw.item_supersede',
	'SELECT (record->>''id'')::int AS id, (record->>''v'')::int AS v, upper(record->>''note'') AS shout FROM changes',
	ordering => 'supersede', options => '{"batch_changes": 7, "lanes": 4, "breaker": false}');
SELECT elt.create_pipeline('item_log', 's', 'item', 'dw.item_log',
	'SELECT change_id, (record->>''id'')::int AS id, (record->>''v'')::int AS v FROM changes', 'append', options => '{"breaker": false}');
SELECT elt.create_pipeline('pair_strict', 's', 'pair', 'dw.pair_strict', options => '{"batch_changes": 300, "breaker": false}');
SELECT elt.create_pipeline('loose_log', 's', 'loose', 'dw.loose_log', mode => 'append', ordering => 'unordered', options => '{"breaker": false}');

-- one transaction at random; what it cannot do because of others it rolls back
CREATE FUNCTION act(choice int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k int := 1 + (random() * 199)::int;
	other int := 1 + (random() * 199)::int;
	val int := CASE WHEN k % 10 = 0 AND random() < 0.1 THEN -1 ELSE (random() * 1000)::int END;
BEGIN
	CASE
		WHEN choice < 25 THEN INSERT INTO item VALUES (k, val, 'n' || val) ON CONFLICT (id) DO UPDATE SET v = excluded.v;
		WHEN choice < 40 THEN UPDATE item SET v = val, note = 'u' || val WHERE id = k;
		WHEN choice < 45 THEN UPDATE item SET id = other WHERE id = k;
		WHEN choice < 53 THEN DELETE FROM item WHERE id = k;
		WHEN choice < 70 THEN INSERT INTO pair VALUES (k, other % 3, val, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100 * (k % 2))))
			ON CONFLICT (a, b) DO UPDATE SET v = excluded.v;
		WHEN choice < 80 THEN UPDATE pair SET v = val WHERE a = k;
		WHEN choice < 84 THEN UPDATE pair SET b = b + 3 WHERE a = k;
		WHEN choice < 88 THEN DELETE FROM pair WHERE a = k;
		WHEN choice < 96 THEN INSERT INTO loose (v) VALUES (val);
		WHEN choice < 98 THEN UPDATE loose SET v = val WHERE x = (SELECT max(x) FROM loose) - k;
		WHEN choice < 99 THEN DELETE FROM loose WHERE x = (SELECT max(x) FROM loose) - k;
		ELSE NULL;
	END CASE;
END $$;
CREATE FUNCTION work(seed int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	rare float;
BEGIN
	PERFORM setseed(seed / 1000000.0);
	rare := random();
	FOR i IN 1 .. 1 + (random() * 5)::int LOOP
		BEGIN
			PERFORM act((random() * 99)::int);
			IF random() < 0.1 THEN
				RAISE EXCEPTION 'rolled back';
			END IF;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	BEGIN
		IF rare < 0.002 THEN TRUNCATE item;
		ELSIF rare < 0.004 THEN TRUNCATE pair;
		ELSIF rare < 0.008 THEN UPDATE item SET v = abs(v) + 1;
		ELSIF rare < 0.010 THEN INSERT INTO loose (v) SELECT g FROM generate_series(1, 3000) g;
		END IF;
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
END $$;
EOS
my @pipelines = qw(item_strict item_supersede item_log pair_strict loose_log);

my $script = PostgreSQL::Test::Utils::tempdir() . '/work.sql';
append_to_file($script, "\\set seed random(1, 1000000)\nSELECT work(:seed)\n");

my ($terminated, $cancelled, $scrapped, $altered, $stopped) = (0, 0, 0, 0, 0);
start_load();
my $begin = time();
while (time() < $begin + $seconds)
{
	my $choice = int(rand(8));
	my $out;

	usleep(100_000 + rand(500_000));
	if (!$stopped && time() > $begin + $seconds / 2)
	{
		$node->stop('immediate');
		pgbench_finish($load);
		$node->start;
		start_load();
		$stopped++;
	}
	elsif ($choice == 0 && $terminated < 4)
	{
		$node->psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt transform' ORDER BY random() LIMIT 1", stdout => \$out);
		$terminated++ if ($out || '') eq 't';
	}
	elsif ($choice <= 2)
	{
		# while one is at work, else the signal means nothing to it
		for (1 .. 20)
		{
			$node->psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'elt transform' AND query NOT LIKE 'looking%' AND state = 'active' ORDER BY random() LIMIT 1", stdout => \$out);
			last if ($out || '') eq 't';
		}
		$cancelled++ if ($out || '') eq 't';
	}
	elsif ($choice == 3)
	{
		$node->safe_psql('postgres', 'ALTER SYSTEM SET elt.max_workers = ' . (1 + int(rand(4))));
		$node->reload;
	}
	elsif ($choice == 4)
	{
		$node->safe_psql('postgres', "SELECT elt.create_pipeline('scrap', 's', 'item', 'dw.scrap', options => '{\"breaker\": false}')");
		usleep(rand(500_000));
		my ($code, undef, $err) = $node->psql('postgres', "SELECT elt.drop_pipeline('scrap')");
		is($err, '', 'a pipeline is dropped while workers are at it') if $code != 0;
		$scrapped++;
	}
	elsif ($choice == 5)
	{
		$node->safe_psql('postgres', 'ALTER TABLE dw.pair_strict ADD more' . $altered++ . ' int');
	}
	else
	{
		my $name = $pipelines[ rand(@pipelines) ];
		$node->safe_psql('postgres', "SELECT elt.pause_pipeline('$name')");
		usleep(rand(300_000));
		$node->safe_psql('postgres', "SELECT elt.resume_pipeline('$name')");
	}
}
poll_ok($node, "SELECT count(*) > 100 * $seconds FROM elt_raw.s", 'the load was real');
pgbench_stop($node, $load);
note("terminated $terminated, cancelled $cancelled, scrapped $scrapped, altered $altered");

is($node->safe_psql('postgres', "SELECT elt.wait_for_source('s', timeout => '180 s')"), 't', 'all is staged');
foreach my $name (@pipelines)
{
	is($node->safe_psql('postgres', "SELECT elt.wait_for('$name', timeout => '180 s')"), 't', "$name is settled")
	  or diag($node->safe_psql('postgres', "SELECT * FROM elt.pipelines WHERE name = '$name'"));
}

# ---- the model ----

# What a key's row must be if all its changes were applied, and what waits.
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE log AS
SELECT change_id, op, relation, key, after,
	   -- what a new key left behind in WAL, no target can know
	   (after->>'v')::int < 0 OR (op = 'c' AND unchanged IS NOT NULL) AS bad,
	   change_id > coalesce(max(change_id) FILTER (WHERE op = 't') OVER (PARTITION BY relation), 0) AS lives
FROM elt_raw.s;
CREATE INDEX ON log (relation, key);
CREATE TABLE failed AS
SELECT p.name, q.change_id, q.key, q.key_hash, q.sqlstate FROM elt.quarantine q JOIN elt.pipelines p USING (pipeline_id) WHERE q.status IN ('open', 'waiting');
CREATE TABLE waiting AS
SELECT p.name, k.change_id, k.key FROM elt.parked k JOIN elt.pipelines p USING (pipeline_id);
ANALYZE log, failed, waiting;
EOS
is_none('check violations, and rows that lack large values, are all that is ever quarantined',
	"SELECT sqlstate, count(*) FROM elt.quarantine WHERE sqlstate <> '23514' AND NOT (sqlstate = '22004' AND pipeline = 'pair_strict') GROUP BY 1");
is_none('a change is quarantined or parked once', <<'EOS');
SELECT name, change_id, count(*) FROM (SELECT name, change_id FROM failed UNION ALL SELECT name, change_id FROM waiting) s GROUP BY 1, 2 HAVING count(*) > 1
EOS
is_none('each raw row was read once', <<'EOS');
SELECT name, relation, read, staged
FROM (SELECT p.name, p.relation, sum(c.changes_read) AS read FROM elt.pipelines p JOIN elt.checkpoints c USING (pipeline_id) GROUP BY 1, 2) a
JOIN (SELECT relation, count(*) AS staged FROM log GROUP BY 1) b USING (relation)
WHERE read <> staged AND name <> 'scrap'
EOS
foreach my $case ([ 'item_strict', 'item', 'id', 'id, v, note' ], [ 'pair_strict', 'pair', 'a, b', 'a, b, v, body' ])
{
	my ($name, $table, $key, $columns) = @$case;

	is_none("$name: one open failure per key, of a bad change", <<"EOS");
SELECT f.key, count(*) FROM failed f JOIN log USING (change_id) WHERE name = '$name' GROUP BY 1 HAVING count(*) > 1 OR NOT bool_and(bad AND lives)
EOS
	is_none("$name: what follows a failure of its key is parked, and nothing else", <<"EOS");
SELECT * FROM (SELECT change_id FROM waiting WHERE name = '$name') w
FULL JOIN (SELECT l.change_id FROM failed f JOIN log l ON l.relation = 'public.$table' AND l.key = f.key AND l.change_id > f.change_id
	WHERE f.name = '$name') l USING (change_id)
WHERE w IS NULL OR l IS NULL
EOS
	is_none("$name: the target is the source, but for keys that failed", <<"EOS");
SELECT * FROM (SELECT jsonb_build_object(@{[ join(', ', map { "'$_', $_" } split(/, /, $key)) ]}) AS key, s FROM (SELECT $columns FROM public.$table) s) s
FULL JOIN (SELECT jsonb_build_object(@{[ join(', ', map { "'$_', $_" } split(/, /, $key)) ]}) AS key, t FROM (SELECT $columns FROM dw.$name) t) t USING (key)
WHERE s::text IS DISTINCT FROM t::text AND key NOT IN (SELECT key FROM failed WHERE name = '$name')
EOS
	is_none("$name: keys that failed stand right before their failure", <<"EOS");
SELECT * FROM (
	SELECT f.key, (SELECT CASE WHEN l.op <> 'd' THEN (l.after->>'v')::int END FROM log l
		WHERE l.relation = 'public.$table' AND l.key = f.key AND l.change_id < f.change_id AND l.lives ORDER BY change_id DESC LIMIT 1) AS v
	FROM failed f WHERE f.name = '$name') f
LEFT JOIN (SELECT jsonb_build_object(@{[ join(', ', map { "'$_', $_" } split(/, /, $key)) ]}) AS key, v FROM dw.$name) t USING (key)
WHERE f.v IS DISTINCT FROM t.v
EOS
}
is_none('item_supersede: the newest change of a key is open where it is bad', <<'EOS');
SELECT * FROM (SELECT key, max(change_id) AS change_id FROM failed WHERE name = 'item_supersede' GROUP BY 1) f
FULL JOIN (SELECT * FROM (SELECT DISTINCT ON (key) key, change_id, bad FROM log WHERE relation = 'public.item' AND op <> 't' AND lives ORDER BY key, change_id DESC) n
	WHERE bad) l USING (key, change_id)
WHERE f IS NULL OR l IS NULL
EOS
is_none('item_supersede: the target is the source, but for keys that failed', <<'EOS');
SELECT * FROM (SELECT id, v, upper(note) AS shout FROM item) s FULL JOIN dw.item_supersede t USING (id)
WHERE (s.v, s.shout) IS DISTINCT FROM (t.v, t.shout) AND id NOT IN (SELECT (key->>'id')::int FROM failed WHERE name = 'item_supersede')
EOS
is_none('item_log: the first bad change of a key failed, the rest of it is parked', <<'EOS');
WITH first AS (SELECT key, min(change_id) AS change_id FROM log WHERE relation = 'public.item' AND bad GROUP BY 1)
SELECT * FROM first FULL JOIN (SELECT * FROM failed WHERE name = 'item_log') f USING (key, change_id) WHERE first IS NULL OR f IS NULL
EOS
is_none('item_log: every other change is there once', <<'EOS');
SELECT change_id, count(*) FROM (
	SELECT change_id FROM dw.item_log UNION ALL
	SELECT change_id FROM failed WHERE name = 'item_log' UNION ALL
	SELECT change_id FROM waiting WHERE name = 'item_log') t
FULL JOIN (SELECT change_id FROM log WHERE relation = 'public.item' AND op <> 't') l USING (change_id)
GROUP BY change_id, t IS NULL, l IS NULL HAVING count(*) > 1 OR t IS NULL OR l IS NULL
EOS
is_none('loose_log: every good row is there, and no more', <<'EOS');
WITH want AS (SELECT (after->>'x')::bigint AS x, (after->>'v')::int AS v FROM log WHERE relation = 'public.loose' AND op <> 'd' AND NOT bad)
(SELECT * FROM want EXCEPT ALL SELECT * FROM dw.loose_log) UNION ALL (SELECT * FROM dw.loose_log EXCEPT ALL SELECT * FROM want)
EOS
is($node->safe_psql('postgres', "SELECT count(*) FROM failed WHERE name = 'loose_log'"),
	$node->safe_psql('postgres', "SELECT count(*) FROM log WHERE relation = 'public.loose' AND bad"), 'loose_log: every bad row failed');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM elt.quarantine"), '>', 0, 'some rows were bad');
unlike(log_since($node), qr/PANIC|TRAP|terminated by signal/, 'nothing crashed');
$node->stop;
done_testing();

sub start_load
{
	$load = pgbench_start($node, '-f', $script, '-T', $seconds + 600, '-R', '300', '--random-seed', $seed);
}

# A query that shows what contradicts the model gives nothing.
sub is_none
{
	my ($what, $query) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	(my $found = $node->safe_psql('postgres', "SELECT * FROM ($query) q LIMIT 10")) =~ s/\w{80,}/.../g;
	is($found, '', $what);
}
