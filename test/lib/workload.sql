/*
 * A schema "fold" that is written to at random, for Workload.pm: tables of
 * several kinds, and functions that write to them and change them by what the
 * catalogs say of them at that moment.  Randomness is random()'s, so that
 * setseed() repeats a session.
 *
 * w.settings says what raw staging is relied on for (see Workload.pm), and
 * whether copies may have been interrupted: what is left of one is read under
 * a later snapshot, without the rows that changed in between.  The stream
 * tells these, and the first change of such a row is of a row that is not there.
 */
CREATE SCHEMA w;
CREATE SCHEMA fold;
CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;
CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;
CREATE TABLE w.settings (relid_known boolean, missing_known boolean, interrupted boolean NOT NULL DEFAULT false);
CREATE SEQUENCE w.names;

CREATE TYPE public.mood AS ENUM ('sad', 'it''s "ok"', '', 'ünïcode');
CREATE TYPE public.pt AS (x int, "Y z" text, t timestamp);
CREATE TYPE public.route AS (name text, p public.pt, tags text[]);
CREATE DOMAIN public.price AS numeric CHECK (value >= 0);
CREATE DOMAIN public.prices AS public.price[];

-- awkward values, by type
CREATE TABLE w.pool (type text PRIMARY KEY, literals text[] NOT NULL);
INSERT INTO w.pool VALUES
	('smallint', '{-32768,32767,0}'),
	('integer', '{-2147483648,2147483647,0,1,42}'),
	('bigint', '{-9223372036854775808,9223372036854775807,9007199254740993,0}'),
	('numeric', ARRAY['NaN', 'Infinity', '-Infinity', '0', '0.000', '-1.50', '12345678901234567890.123456789012345678901234567890', '1e-50', '1e60', repeat('9', 1000) || '.' || repeat('1', 500)]),
	('numeric(12,3)', '{0.000,-999999999.999,1.500,NaN}'),
	('real', '{NaN,Infinity,-0,0.1,3.4028235e38,1e-45}'),
	('double precision', '{NaN,-Infinity,-0,0.1,1e308,5e-324,123456789.123456789}'),
	('boolean', '{t,f}'),
	('text', ARRAY['', ' ', 'NULL', 'null', 'it''s "q" \ {,}()', E'tab\tline\nreturn\r\x01\x7f', 'ünïcode ☃ 𝄞', '\N', '\x00', 'unchanged-toast-datum', repeat('long ', 400)]),
	('character varying(40)', ARRAY['', 'a', '   spaces   ', 'B''101''']),
	('character(7)', ARRAY['', 'ab', 'x''y']),
	('"char"', ARRAY['c', '', '"']),
	('name', ARRAY['n', 'select', 'a"b']),
	('bytea', ARRAY['\x', '\x00ff', '\x' || repeat('5c27220a', 300)]),
	('date', ARRAY['2024-02-29', 'infinity', '-infinity', '0044-03-15 BC', '12024-01-01']),
	('time without time zone', '{24:00:00,00:00:00,12:34:56.789012}'),
	('time with time zone', '{12:00:00.5+02,23:59:59-15:59}'),
	('timestamp without time zone', ARRAY['2024-02-29 12:34:56.789012', 'infinity', '-infinity', '0044-03-15 12:00:00 BC']),
	('timestamp with time zone', ARRAY['2024-02-29 12:34:56+05:30', 'infinity', '12024-01-01 00:00:00+00', '0044-03-15 12:00:00+00 BC']),
	('interval', ARRAY['1 year 2 mons -3 days 04:05:06.7', '-00:00:00.000001', '178000000 years', '0']),
	('uuid', '{00000000-0000-0000-0000-000000000001,ffffffff-ffff-ffff-ffff-ffffffffffff}'),
	('json', ARRAY['{"b": [1, {"c": null}], "a": 1.50}', '{"a": 1, "a": 2}', ' [1, 1.0, -0] ', '["\u0000"]', '[1e1000000]', '[]', 'true']),
	('jsonb', ARRAY['{"b": [1, {"c": null}], "a": 1.50}', '"text"', '"{\"a\": 1}"', '[]', '{}', 'false', '1e400', '[[[[]]]]', '{"": {"": ""}}']),
	('inet', '{::1/64,10.0.0.1,255.255.255.255/8}'),
	('cidr', '{10.0.0.0/8,::/0}'),
	('macaddr', '{08:00:2b:01:02:03}'),
	('bit(5)', '{10101,00000}'),
	('bit varying', '{"",1,0101010101010101010101}'),
	('point', ARRAY['(1,2)', '(-0,1e300)']),
	('box[]', ARRAY['{(1,1),(0,0);(3,3),(2,2)}', '{}']),
	('circle', ARRAY['<(1,2),3>']),
	('polygon', ARRAY['((0,0),(1,1),(2,0))']),
	('int4range', ARRAY['[1,5)', 'empty', '(,)', '[3,)']),
	('numrange', ARRAY['[1.10,5.5]', 'empty', '(,0)']),
	('tstzrange', ARRAY['["2024-01-01 00:00:00+00",infinity)', '(,)']),
	('int4multirange', ARRAY['{[1,3),[5,7)}', '{}']),
	('xml', ARRAY['<a>1</a>', 'only text', '<a b="&lt;''">ü</a>']),
	('tsvector', ARRAY['a:1 b:2A', '''it''''s'':3', '']),
	('tsquery', ARRAY['a & !b', '''it''''s'':*']),
	('oid', '{0,4294967295}'),
	('pg_lsn', '{0/0,FFFFFFFF/FFFFFFFF}'),
	('money', '{12.34,-0.01}'),
	('integer[]', ARRAY['{}', '{1,NULL,3}', '{{1,2},{3,4}}', '[2:3]={1,2}', '{{{1}}}']),
	('text[]', ARRAY['{"a,b","c\"d","e\\f",NULL,"NULL","",null}', '{}', '{{a},{"{b}"}}', E'{"\\n\n"}']),
	('numeric[]', '{"{{1.10,2},{NaN,-0.5}}","{}"}'),
	('timestamp with time zone[]', ARRAY['{"2024-01-01 00:00:00+00",infinity}']),
	('jsonb[]', ARRAY['{"{\"a\": \"b,\\\"c\"}","[]"}', '{}']),
	('mood', ARRAY['sad', 'it''s "ok"', '', 'ünïcode']),
	('mood[]', ARRAY['{sad,"it''s \"ok\"",""}', '{}']),
	('pt', ARRAY['(1,"a""b,(c)","2024-01-01 00:00:00")', '(,,)', '(2,"",-infinity)']),
	('pt[]', ARRAY['{"(1,,)",NULL,"(2,\"\",-infinity)"}', '{}']),
	('route', ARRAY['("n ""m""","(3,""x\\\\y"",)","{p,""q r""}")', '(,,)']),
	('price', '{9.90,0,1e20}'),
	('prices', '{"{3.30,1.0}","{}"}'),
	('citext', '{ABC,abc,""}'),
	('hstore', ARRAY['"a"=>"1", "b"=>NULL', '', '"x \"y"=>"it''s"']);

-- text too long to stay in the row, and incompressible
CREATE FUNCTION w.long_text() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 70 + (random() * 100)::int)
$$;

-- what a statement writes into a column of a type: one of the pool or, one past
-- its end, null
CREATE FUNCTION w.expression(type text) RETURNS text LANGUAGE sql AS $$
	SELECT format('(%s(%L::text[])[1 + floor(random() * %s)]%s)::%s',
		CASE WHEN type IN ('text', 'citext') THEN 'CASE WHEN random() < 0.3 THEN w.long_text() ELSE ' END, literals, cardinality(literals) + 1,
		CASE WHEN type IN ('text', 'citext') THEN ' END' END, type)
	FROM w.pool WHERE pool.type = $1
$$;

CREATE FUNCTION w.random_type() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT type FROM w.pool ORDER BY random() LIMIT 1
$$;

-- the tables; "id" and "k" make keys, "n", "big" stay, the rest comes and goes
CREATE FUNCTION w.create_table(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CASE name
		WHEN 'wide' THEN
			EXECUTE (SELECT 'CREATE TABLE fold.wide (id int PRIMARY KEY, n int, big text, '
					|| string_agg(format('"t%s %s" %s', row_number, replace(type, '"', ''), type), ', ') || ')'
				FROM (SELECT type, row_number() OVER (ORDER BY type COLLATE "C") FROM w.pool) AS p);
		WHEN 'pair' THEN
			CREATE TABLE fold.pair (k text, n int, big text, id int, after jsonb, op text, PRIMARY KEY (id, k),
				twice numeric GENERATED ALWAYS AS (n::numeric * 2) STORED);
			ALTER TABLE fold.pair REPLICA IDENTITY FULL;
		WHEN 'heap' THEN
			CREATE TABLE fold.heap (id int, n int, big text);
			ALTER TABLE fold.heap REPLICA IDENTITY FULL;
		WHEN 'Odd "name"' THEN
			CREATE TABLE fold."Odd ""name""" (n int, big text, id int NOT NULL, "select" text, "a.b" int[]);
			CREATE UNIQUE INDEX ON fold."Odd ""name""" (id);
			EXECUTE (SELECT format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', indrelid::regclass, (SELECT relname FROM pg_class WHERE oid = indexrelid))
				FROM pg_index WHERE indrelid = 'fold."Odd ""name"""'::regclass);
		WHEN 'parts' THEN
			CREATE TABLE fold.parts (id int PRIMARY KEY, n int, big text, r int4range) PARTITION BY RANGE (id);
			CREATE TABLE fold.parts_low PARTITION OF fold.parts FOR VALUES FROM (MINVALUE) TO (60);
			-- with its columns in another order
			CREATE TABLE fold.parts_high (r int4range, big text, id int NOT NULL, gone int, n int);
			ALTER TABLE fold.parts_high DROP COLUMN gone;
			ALTER TABLE fold.parts ATTACH PARTITION fold.parts_high FOR VALUES FROM (60) TO (MAXVALUE);
	END CASE;
END $$;

CREATE FUNCTION w.random_table() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT (ARRAY['wide', 'wide', 'pair', 'pair', 'heap', 'Odd "name"', 'parts'])[1 + floor(random() * 7)]
$$;

CREATE FUNCTION w.random_key(name text) RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT '(1 + floor(random() * 120))::int'
$$;

-- columns of a table that can be written to, with an expression for each
CREATE FUNCTION w.columns(name text) RETURNS TABLE (col text, expr text, type text, fixed boolean) LANGUAGE sql VOLATILE AS $$
	SELECT quote_ident(attname),
		CASE attname WHEN 'id' THEN w.random_key(name)
			WHEN 'k' THEN '(ARRAY[''a'', '''', ''it''''s'', ''"ü"'', ''b c''])[1 + floor(random() * 5)]'
			ELSE w.expression(format_type(atttypid, atttypmod)) END,
		format_type(atttypid, atttypmod), attname IN ('id', 'k', 'n', 'big')
	FROM pg_attribute
	WHERE attrelid = format('fold.%I', name)::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
$$;

CREATE FUNCTION w.dml(name text DEFAULT w.random_table()) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tab		text := format('fold.%I', name);
	rows	int := 1 + floor(random() ^ 3 * 20);
	dice	float := random();
	key_columns	text := CASE name WHEN 'pair' THEN 'id, k' WHEN 'heap' THEN NULL ELSE 'id' END;
	picked	text := format('WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s ORDER BY random() LIMIT %s))', tab, rows);
	cols	text;
	exprs	text;
	assigned	text;
	merged	text;
	a		int := 1 + floor(random() * 120);
	b		int := 1 + floor(random() * 120);
BEGIN
	SELECT string_agg(col, ', '), string_agg(expr, ', ') INTO cols, exprs FROM w.columns(name);
	SELECT string_agg(col || ' = ' || expr, ', '), string_agg(col || ' = s.' || col, ', ') INTO assigned, merged
	FROM (SELECT * FROM w.columns(name) WHERE col NOT IN ('id', 'k') ORDER BY random() LIMIT 1 + floor(random() * 4)) AS c;
	-- partitions share their ctids
	IF name = 'parts' THEN
		picked := format('WHERE id IN (SELECT id FROM fold.parts ORDER BY random() LIMIT %s)', rows);
	END IF;

	IF dice < 0.35 THEN
		EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM generate_series(1, %s)%s', tab, cols, exprs, rows,
			CASE WHEN key_columns IS NOT NULL THEN ' ON CONFLICT DO NOTHING' ELSE '' END);
	ELSIF dice < 0.45 AND key_columns IS NOT NULL THEN
		EXECUTE format('INSERT INTO %s (%s) SELECT DISTINCT ON (%s) * FROM (SELECT %s FROM generate_series(1, %s)) AS s(%s) ON CONFLICT (%s) DO UPDATE SET %s',
			tab, cols, key_columns, exprs, rows, cols, key_columns, replace(merged, ' s.', ' EXCLUDED.'));
	ELSIF dice < 0.50 AND key_columns IS NOT NULL THEN
		EXECUTE format('MERGE INTO %s AS t USING (SELECT DISTINCT ON (%s) * FROM (SELECT %s FROM generate_series(1, %s)) AS s(%s)) AS s ON t.id = s.id%s '
			'WHEN MATCHED AND t.id %% 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET %s WHEN NOT MATCHED THEN INSERT (%s) VALUES (%s)',
			tab, key_columns, exprs, rows, cols, CASE name WHEN 'pair' THEN ' AND t.k = s.k' ELSE '' END, merged,
			cols, (SELECT string_agg('s.' || col, ', ') FROM w.columns(name)));
	ELSIF dice < 0.75 THEN
		EXECUTE format('UPDATE %s SET %s %s', tab, assigned, picked);
	ELSIF dice < 0.80 THEN
		-- to another key, and perhaps to another partition
		EXECUTE format('UPDATE %s SET id = %s, n = %s WHERE id = %s AND NOT EXISTS (SELECT FROM %1$s AS o WHERE o.id = %2$s)', tab, b, a, a);
	ELSIF dice < 0.84 THEN
		-- two rows change their key_columns
		EXECUTE format('UPDATE %s SET id = -1 WHERE id = %s', tab, a);
		EXECUTE format('UPDATE %s SET id = %s WHERE id = %s', tab, a, b);
		EXECUTE format('UPDATE %s SET id = %s WHERE id = -1', tab, b);
	ELSIF dice < 0.985 THEN
		EXECUTE format('DELETE FROM %s %s', tab, picked);
	ELSIF dice < 0.99 THEN
		EXECUTE format('TRUNCATE %s', tab);
	ELSE
		TRUNCATE fold.wide, fold.heap RESTART IDENTITY CASCADE;
	END IF;
END $$;

-- a change of the table as it is now
CREATE FUNCTION w.tell(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE (SELECT format('INSERT INTO fold.%I (%s) SELECT %s', name, string_agg(col, ', '),
			string_agg(CASE col WHEN 'id' THEN (1000 + nextval('w.names'))::text ELSE expr END, ', '))
		FROM w.columns(name));
END $$;

-- subtransactions, of which some fail
CREATE FUNCTION w.subtransactions() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 12 LOOP
		BEGIN
			PERFORM w.dml();
			IF random() < 0.4 THEN
				RAISE 'no';
			END IF;
		EXCEPTION WHEN raise_exception OR unique_violation THEN
			NULL;
		END;
	END LOOP;
END $$;

/*
 * Changes the shape of a table.  Where raw staging cannot tell what a change
 * of shape does to rows that are there (a rewrite tells no rows), the rows are
 * written anew, or where no key finds them truncated before.
 */
CREATE FUNCTION w.ddl(name text DEFAULT w.random_table()) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tab		text := format('fold.%I', name);
	keyed	boolean := name <> 'heap';
	kind	text := (ARRAY['add', 'add', 'add default', 'add default', 'add volatile', 'drop', 'drop', 'rename', 'retype',
		'identity', 'recreate', 'swap'])[1 + floor(random() * 12)];
	fresh_type	text := w.random_type();
	fresh	text := format('%I', (ARRAY['c', 'C "', 'ü.'])[1 + floor(random() * 3)] || nextval('w.names'));
	chosen	record;
	s		w.settings;
	spare	text := name || '_2';
BEGIN
	SELECT * INTO s FROM w.settings;
	-- a partitioned table has no value for rows that were there, its partitions do
	s.missing_known := s.missing_known AND name <> 'parts';
	SELECT * INTO chosen FROM w.columns(name) WHERE NOT fixed ORDER BY random() LIMIT 1;
	IF kind = 'identity' AND name NOT IN ('wide', 'pair') THEN
		kind := 'recreate';
	ELSIF kind = 'swap' AND name = 'parts' THEN
		kind := 'partition';
	ELSIF kind IN ('drop', 'rename', 'retype') AND chosen IS NULL THEN
		kind := 'add';
	END IF;
	EXECUTE format('LOCK %s IN ACCESS EXCLUSIVE MODE', tab);
	IF NOT keyed AND (kind IN ('retype', 'add volatile') OR kind = 'add default' AND NOT s.missing_known) THEN
		EXECUTE format('TRUNCATE %s', tab);
	ELSIF name IN ('wide', 'pair') AND (kind IN ('retype', 'add volatile') OR kind = 'add default' AND NOT s.missing_known) THEN
		-- an old image would be of the row as it is changed here
		EXECUTE format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', tab);
	END IF;
	CASE kind
		WHEN 'add' THEN
			EXECUTE format('ALTER TABLE %s ADD COLUMN %s %s', tab, fresh, fresh_type);
		WHEN 'add default' THEN
			EXECUTE format('ALTER TABLE %s ADD COLUMN %s %s DEFAULT %L', tab, fresh, fresh_type,
				(SELECT literals[1] FROM w.pool WHERE type = fresh_type));
			IF s.missing_known THEN
				-- a row of the new shape tells of it, before VACUUM FULL makes a rewrite of it
				PERFORM w.tell(name);
			ELSE
				EXECUTE format('UPDATE %s SET %s = %s', tab, fresh, w.expression(fresh_type));
			END IF;
		WHEN 'add volatile' THEN
			EXECUTE format('ALTER TABLE %s ADD COLUMN %s int DEFAULT (random() * 1000)::int', tab, fresh);
			EXECUTE format('UPDATE %s SET %s = (random() * 1000)::int', tab, fresh);
		WHEN 'drop' THEN
			EXECUTE format('ALTER TABLE %s DROP COLUMN %s', tab, chosen.col);
		WHEN 'rename' THEN
			EXECUTE format('ALTER TABLE %s RENAME COLUMN %s TO %s', tab, chosen.col, fresh);
			IF random() < 0.3 THEN
				EXECUTE format('UPDATE %s SET %s = %s', tab, fresh, chosen.expr);
			END IF;
		WHEN 'retype' THEN
			EXECUTE format('ALTER TABLE %s ALTER COLUMN %s DROP DEFAULT, ALTER COLUMN %2$s TYPE %3$s USING %4$s', tab, chosen.col, fresh_type, w.expression(fresh_type));
			EXECUTE format('UPDATE %s SET %s = %s', tab, chosen.col, w.expression(fresh_type));
		WHEN 'identity' THEN
			IF random() < 0.4 THEN
				-- inserts are all that is allowed then
				EXECUTE format('ALTER TABLE %s REPLICA IDENTITY NOTHING', tab);
				PERFORM w.tell(name);
			END IF;
			EXECUTE format('ALTER TABLE %s REPLICA IDENTITY %s', tab, CASE WHEN random() < 0.5 THEN 'FULL' ELSE 'DEFAULT' END);
		WHEN 'recreate' THEN
			IF NOT s.relid_known THEN
				EXECUTE format('TRUNCATE %s', tab);
			END IF;
			EXECUTE format('DROP TABLE %s', tab);
			PERFORM w.create_table(name);
		WHEN 'swap' THEN
			-- with the table that bore the name before, or is to bear it; both are written to
			EXECUTE format('ALTER TABLE %s RENAME TO %I', tab, name || '_3');
			IF to_regclass(format('fold.%I', spare)) IS NULL THEN
				PERFORM w.create_table(name);
			ELSE
				EXECUTE format('ALTER TABLE fold.%I RENAME TO %I', spare, name);
			END IF;
			EXECUTE format('UPDATE fold.%I SET n = 3 WHERE id < 30', name || '_3');
			EXECUTE format('ALTER TABLE fold.%I RENAME TO %I', name || '_3', spare);
			EXECUTE format('UPDATE fold.%I SET n = 2 WHERE id BETWEEN 20 AND 50', spare);
			EXECUTE format('DELETE FROM fold.%I WHERE id BETWEEN 50 AND 60', spare);
		WHEN 'partition' THEN
			-- its rows leave by deletes, since those of a partition that is detached do without
			DELETE FROM fold.parts WHERE id >= 60;
			ALTER TABLE fold.parts DETACH PARTITION fold.parts_high;
			ALTER TABLE fold.parts ATTACH PARTITION fold.parts_high FOR VALUES FROM (60) TO (MAXVALUE);
	END CASE;
END $$;

-- ---- raw staging folded back ----

CREATE TABLE w.folded (relation oid, n bigserial, key jsonb, image jsonb);
CREATE INDEX ON w.folded USING hash (key);
CREATE TABLE w.wrong (relation text, change_id bigint, what text);

CREATE FUNCTION w.project(image jsonb, names text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT COALESCE(jsonb_object_agg(key, value), '{}') FROM jsonb_each(image) WHERE key = ANY (names) AND value <> 'null'
$$;

-- images of one shape in another: columns are told by their numbers, and rows
-- that were there have in those that are new what the shape says
CREATE FUNCTION w.reshape(image jsonb, names jsonb, lost jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
	SELECT COALESCE(lost, '{}') || COALESCE(jsonb_object_agg(names->>key, value), '{}') FROM jsonb_each(image) WHERE names ? key
$$;

-- the columns of a version
CREATE FUNCTION w.shape(source text, rel text, version int) RETURNS jsonb LANGUAGE sql STABLE AS $$
	SELECT columns FROM elt.schema_versions AS v JOIN elt.sources AS s USING (source_id)
	WHERE s.name = source AND v.relation = rel AND v.version = $3
$$;

/*
 * Reads the log of a table in its order, by whatever names it has had, into
 * w.folded.  What cannot be (a row inserted that is there, one updated or
 * deleted that is not, an old image that is not what the row was) goes into
 * w.wrong.
 */
CREATE FUNCTION w.fold(source text, rel oid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r			record;
	version		text;
	shape		jsonb := '[]';
	fresh		jsonb;
	names		text[];
	renamed		jsonb;
	have		jsonb;
	moved		jsonb;				-- what a row was whose key is updated
	moved_lsn	pg_lsn;
	hits		int;
	unfilled	text[];
	name		text;				-- the relation's, so far
	doubtful	jsonb := '[]';		-- columns whose large values need not be filled in
	copied		bigint;				-- change_id of the last copy, where it may have been interrupted
	left_out	boolean;
BEGIN
	DELETE FROM w.folded WHERE relation = rel;
	FOR r IN EXECUTE format('SELECT l.* FROM elt_raw.%I AS l WHERE (relation, schema_version) IN (SELECT v.relation, v.version '
		'FROM elt.schema_versions AS v JOIN elt.sources AS s USING (source_id) WHERE s.name = $1 AND v.relid = $2) ORDER BY change_id', source) USING source, rel
	LOOP
		IF format('%s %s', r.schema_version, r.relation) IS DISTINCT FROM version THEN
			version := format('%s %s', r.schema_version, r.relation);
			fresh := w.shape(source, r.relation, r.schema_version);
			names := ARRAY(SELECT c->>'name' FROM jsonb_array_elements(fresh) AS c);
			SELECT jsonb_object_agg(o->>'name', n->>'name') INTO renamed
			FROM jsonb_array_elements(shape) AS o JOIN jsonb_array_elements(fresh) AS n ON o->'number' = n->'number';
			UPDATE w.folded SET image = w.reshape(image, COALESCE(renamed, '{}'), w.missing(shape, fresh)) WHERE relation = rel;
			SELECT COALESCE(jsonb_agg(DISTINCT n->'number'), '[]') || doubtful INTO doubtful
			FROM jsonb_array_elements(fresh) AS n LEFT JOIN jsonb_array_elements(shape) AS o ON o->'number' = n->'number'
			WHERE name <> r.relation OR o->>'name' <> n->>'name' OR o->>'type' <> n->>'type'
				OR (SELECT rewritten FROM elt.schema_versions AS v JOIN elt.sources AS s USING (source_id)
					WHERE s.name = source AND v.relation = r.relation AND v.version = r.schema_version);
			name := r.relation;
			-- rows that were staged without a key have one when the table has, and the other way round
			UPDATE w.folded SET key = (SELECT jsonb_object_agg(c->>'name', image->(c->>'name')) FROM jsonb_array_elements(fresh) AS c WHERE (c->>'key')::boolean)
			WHERE relation = rel AND key IS NULL = EXISTS (SELECT FROM jsonb_array_elements(fresh) AS c WHERE (c->>'key')::boolean);
			shape := fresh;
		END IF;
		unfilled := ARRAY(SELECT c->>'name' FROM jsonb_array_elements(fresh) AS c
			WHERE c->>'name' = ANY (r.unchanged) AND NOT doubtful @> jsonb_build_array(c->'number'));
		IF unfilled <> '{}' THEN
			INSERT INTO w.wrong VALUES (r.relation, r.change_id, 'left out as unchanged: ' || unfilled::text);
		END IF;
		IF r.op = 'r' OR r.xid = '0' THEN
			SELECT CASE WHEN interrupted THEN r.change_id END INTO copied FROM w.settings;
		ELSIF r.op = 't' THEN
			copied := NULL;
		END IF;
		IF r.op = 't' THEN
			DELETE FROM w.folded WHERE relation = rel;
			IF r.xid = '0' THEN
				-- what was staged while a copy ran may lack any
				SELECT jsonb_agg(n) INTO doubtful FROM generate_series(1, 1600) AS n;
			END IF;
			CONTINUE;
		END IF;

		IF r.op IN ('u', 'd') THEN
			IF r.key IS NOT NULL THEN
				DELETE FROM w.folded WHERE relation = rel AND key = r.key RETURNING image INTO have;
			ELSE
				DELETE FROM w.folded WHERE n = (SELECT n FROM w.folded WHERE relation = rel AND image = w.project(r.before, names) LIMIT 1)
				RETURNING image INTO have;
			END IF;
			GET DIAGNOSTICS hits = ROW_COUNT;
			left_out := false;
			IF hits = 0 AND copied IS NOT NULL AND r.key IS NOT NULL THEN
				EXECUTE format('SELECT NOT EXISTS (SELECT FROM elt_raw.%I WHERE relation = $1 AND key = $2 AND change_id BETWEEN $3 AND $4 - 1)', source)
					INTO left_out USING r.relation, r.key, copied, r.change_id;
			END IF;
			IF left_out THEN
				have := '{}';
			ELSIF hits <> 1 THEN
				INSERT INTO w.wrong VALUES (r.relation, r.change_id, format('%s of %s rows', r.op, hits));
				have := '{}';
			ELSIF r.before IS NOT NULL AND NOT have @> w.project(r.before, names) THEN
				INSERT INTO w.wrong VALUES (r.relation, r.change_id, 'the old image is not what the row was: ' || (SELECT string_agg(format('%s %s, was %s', key, left(value::text, 100), left((have->key)::text, 100)), '; ')
					FROM jsonb_each(w.project(r.before, names)) WHERE (have->key) IS DISTINCT FROM value));
			END IF;
		END IF;
		IF r.op IN ('c', 'r') AND r.key IS NOT NULL AND EXISTS (SELECT FROM w.folded WHERE relation = rel AND key = r.key) THEN
			INSERT INTO w.wrong VALUES (r.relation, r.change_id, r.op || ' of a row that is there');
		END IF;
		IF r.op IN ('u', 'c', 'r') THEN
			IF r.unchanged IS NOT NULL THEN
				IF r.op = 'c' THEN
					have := CASE WHEN moved_lsn = r.lsn THEN moved ELSE '{}' END;
				END IF;
				r.after := r.after || (SELECT COALESCE(jsonb_object_agg(u, have->u), '{}') FROM unnest(r.unchanged) AS u WHERE have ? u);
			END IF;
			INSERT INTO w.folded (relation, key, image) VALUES (rel, r.key, w.project(r.after, names));
		END IF;
		moved := have;
		moved_lsn := CASE WHEN r.op = 'd' THEN r.lsn END;
	END LOOP;
	-- the shape may have changed since the last row: what compares takes the columns of the table
END $$;

/*
 * The constants that columns are added with, as raw staging has them: by the
 * type, from a table with a column of each that is copied and never written
 * to.  (That its form is right the other tables prove.)
 */
CREATE TABLE w.forms (type text PRIMARY KEY, word text, value jsonb);

CREATE FUNCTION w.create_forms() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE (SELECT 'CREATE TABLE w.words AS SELECT ' || string_agg(format('format(''%%s'', %L::%s) AS "c%s"', literals[1], type, row_number), ', ')
		FROM (SELECT *, row_number() OVER (ORDER BY type COLLATE "C") FROM w.pool) AS p);
	EXECUTE (SELECT 'CREATE TABLE fold.forms AS SELECT ' || string_agg(format('%L::%s AS "c%s"', literals[1], type, row_number), ', ')
		FROM (SELECT *, row_number() OVER (ORDER BY type COLLATE "C") FROM w.pool) AS p);
END $$;

CREATE FUNCTION w.read_forms(source text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('INSERT INTO w.forms SELECT c->>''type'', (SELECT to_jsonb(f)->>(c->>''name'') FROM w.words AS f), '
		'r.after->(c->>''name'') FROM elt_raw.%I AS r, jsonb_array_elements(w.shape($1, relation, schema_version)) AS c '
		'WHERE relation = ''fold.forms''', source) USING source;
END $$;

-- what rows that were there before have of the columns that a shape added
CREATE FUNCTION w.missing(old_shape jsonb, new_shape jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_object_agg(n->>'name', f.value)
	FROM jsonb_array_elements(new_shape) AS n JOIN w.forms AS f ON f.type = n->>'type' AND f.word = n->>'missing'
	WHERE n ? 'missing' AND f.value <> 'null'
		AND NOT EXISTS (SELECT FROM jsonb_array_elements(old_shape) AS o WHERE o->'number' = n->'number')
$$;

/*
 * How the folded rows and the table's differ, column by column as text; no row
 * where they are equal.
 */
CREATE FUNCTION w.differences(source text, name text) RETURNS TABLE (side text, copies bigint, line text) LANGUAGE plpgsql AS $$
DECLARE
	tab		text := format('fold.%I', name);
	folded	text;
	own		text;
BEGIN
	-- json has no equality and one form in raw staging of many at the source
	SELECT string_agg(CASE WHEN atttypid = 'json'::regtype
				THEN format('CASE jsonb_typeof(f.image->%L) WHEN ''string'' THEN f.image->>%1$L WHEN ''null'' THEN NULL ELSE (f.image->%1$L)::text END', attname)
				ELSE format('CASE num_nulls((p.r).%1$I) WHEN 0 THEN format(''%%s'', (p.r).%1$I) END', attname) END, ', ' ORDER BY attnum),
		string_agg(CASE WHEN atttypid = 'json'::regtype THEN format('w.json_text(t.%I)', attname) ELSE format('CASE num_nulls(t.%1$I) WHEN 0 THEN format(''%%s'', t.%1$I) END', attname) END, ', ' ORDER BY attnum)
	INTO folded, own
	FROM pg_attribute WHERE attrelid = tab::regclass AND attnum > 0 AND NOT attisdropped;
	RETURN QUERY EXECUTE format(
		'WITH f AS (SELECT ARRAY[%1$s]::text AS line FROM w.folded AS f, LATERAL (SELECT jsonb_populate_record(NULL::%3$s, f.image - w.json_columns(%4$L)) AS r OFFSET 0) AS p WHERE f.relation = %4$L::regclass), '
		't AS (SELECT ARRAY[%2$s]::text AS line FROM %3$s AS t) '
		'(SELECT ''raw'', count(*), d.line FROM (TABLE f EXCEPT ALL TABLE t) AS d GROUP BY 3) UNION ALL '
		'(SELECT ''table'', count(*), d.line FROM (TABLE t EXCEPT ALL TABLE f) AS d GROUP BY 3)', folded, own, tab, tab);
END $$;

CREATE FUNCTION w.json_columns(tab text) RETURNS text[] LANGUAGE sql STABLE AS $$
	SELECT ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = tab::regclass AND attnum > 0 AND NOT attisdropped AND atttypid = 'json'::regtype)
$$;

-- json as raw staging has it: normalised, or where that would lose something as it is
CREATE FUNCTION w.json_text(j json) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN j::text IN ('{"a": 1, "a": 2}', ' [1, 1.0, -0] ', '["\u0000"]', '[1e1000000]') THEN j::text ELSE j::jsonb::text END
$$;

SELECT w.create_table(name) FROM unnest(ARRAY['wide', 'pair', 'heap', 'Odd "name"', 'parts']) AS name;
SELECT w.create_forms();
