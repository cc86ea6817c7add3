-- a value comes back from JSON as it went in
\set VERBOSITY terse
SET client_min_messages = warning;
-- what the session has does not matter for what is decoded
SET datestyle = 'German';
SET timezone = 'Asia/Kolkata';
SET intervalstyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = -5;
CREATE TYPE plugin_mood AS ENUM ('sad', 'it''s "ok"');
CREATE TYPE plugin_point AS (x int, "Y z" text, t timestamp);
CREATE TYPE plugin_line AS (name text, p plugin_point, tags text[]);
CREATE DOMAIN plugin_price AS numeric CHECK (value >= 0);
CREATE DOMAIN plugin_prices AS plugin_price[];
CREATE TABLE types (
	id int PRIMARY KEY,
	i2 int2, i4 int4, i8 int8, num numeric, f4 float4, f8 float8, b bool, txt text, vc varchar, bp char(5), nm name, ch "char",
	bin bytea, d date, tm time, tmtz timetz, ts timestamp, tstz timestamptz, iv interval, u uuid, j json, jb jsonb,
	ip inet, bits bit(3), vb varbit, pt point, bx box[], r int4range, mr int4multirange, en plugin_mood, x xml, tsv tsvector, o oid, mny money,
	ia int[], ta text[], na numeric[], tsa timestamptz[], ja jsonb[], ea plugin_mood[], iv2 int2vector,
	co plugin_point, ca plugin_point[], ln plugin_line, dm plugin_price, dma plugin_price[], dmd plugin_prices
);
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
INSERT INTO types VALUES (1,
	-32768, 2147483647, -9223372036854775808, 12345678901234567890.123456789012345678901234567890, 1.5, 0.1, true, 'it''s "q" \', '', 'ab', 'n', 'c',
	'\x00ff', '2024-02-29', '24:00:00', '12:00:00.5+02', '2024-02-29 12:34:56.789012', '2024-02-29 12:34:56+05:30', '1 year 2 mons -3 days 04:05:06.7', '00000000-0000-0000-0000-000000000001', '{"b": [1, {"c": null}], "a": 1.50}', '{"b": [1, {"c": null}], "a": 1.50}',
	'::1/64', '101', '10', '(1,2)', '{(1,1),(0,0);(3,3),(2,2)}', '[1,5)', '{[1,3),[5,7)}', 'it''s "ok"', '<a>1</a>', 'a:1 b:2', 4294967295, '12.34',
	'{1,NULL,3}', '{"a,b","c\"d","e\\f",NULL,"NULL","",null}', '{{1.10,2},{NaN,-0.5}}', '{"2024-01-01 00:00:00+00",infinity}', array['{"a": "b,\"c\\"}', '[]', 'null']::jsonb[], '{sad,"it''s \"ok\""}', '1 2 3',
	(1, 'a"b,(c)', '2024-01-01'), array[(1, NULL, NULL), NULL, (2, '', '-infinity')]::plugin_point[], ('n "m"', (3, E'x\\y', NULL), '{p,"q r"}'), 9.90, '{1.0,2.50}', '{3.30}');
INSERT INTO types (id, i8, num, f4, f8, ts, tstz, d, j, jb, ia, ta, co) VALUES
	(2, 9223372036854775807, 'NaN', 'NaN', '-Infinity', 'infinity', '-infinity', 'infinity', '"\u0000"', '"a\u0001"', '[2:3]={1,2}', '{}', NULL),
	(3, 0, 'Infinity', '-0', '-0', '0044-03-15 12:00:00 BC', '12024-01-01 00:00:00+00', '0044-03-15 BC', '{"a": 1, "a": 2}', '[]', '{}', '{{a},{b}}', ROW(NULL, NULL, NULL)),
	(4, -1, -0.000, 3.4028235e38, 1e308, '2024-01-01 00:00:00', NULL, NULL, ' [1, 1.0, -0] ', '1e400', '{{{1}}}', NULL, NULL),
	(5, 1, 1e-50, 1e-45, 5e-324, NULL, NULL, NULL, '[1e1000000]', '"x"', NULL, NULL, NULL),
	(6, 1, 1e50, NULL, NULL, NULL, NULL, NULL, 'null', 'null', NULL, NULL, NULL),
	(7, NULL, 0, NULL, NULL, NULL, NULL, NULL, (repeat('[', 5000) || repeat(']', 5000))::json, (repeat('[', 3000) || repeat(']', 3000))::jsonb, NULL, NULL, NULL);
CREATE TEMP TABLE documents AS
	SELECT (data::jsonb->'after'->>'id')::int AS id, data::jsonb->'after' AS after
	FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL);
SELECT key, value FROM documents, jsonb_each(after) WHERE id = 1 ORDER BY key COLLATE "C";
SELECT id, key, left(value::text, 60) AS value FROM documents, jsonb_each(after)
WHERE id > 1 AND value <> 'null' AND key <> 'id' ORDER BY id, key COLLATE "C";
SHOW datestyle;
SHOW timezone;
RESET datestyle;
RESET timezone;
RESET intervalstyle;
RESET bytea_output;
SET extra_float_digits = 1;
-- the whole row: nothing differs
SELECT id, key AS differs, was, is_now
FROM (SELECT t.id, a.key, a.value AS was, b.value AS is_now
	FROM types AS t JOIN documents USING (id),
		jsonb_populate_record(t, '{"ia": null, "j": null}') AS original,
		elt.populate(NULL::types, after - '{ia,j}'::text[]) AS rebuilt,
		LATERAL (SELECT key, value FROM json_each_text(row_to_json(original))) AS a
		JOIN LATERAL (SELECT key, value FROM json_each_text(row_to_json(rebuilt))) AS b USING (key)
	WHERE t.id < 7) AS x
WHERE was IS DISTINCT FROM is_now;
-- what stays a string is the text itself
SELECT id, t.ia::text = CASE jsonb_typeof(after->'ia') WHEN 'string' THEN after->>'ia' ELSE (SELECT r.ia::text FROM jsonb_populate_record(NULL::types, jsonb_build_object('ia', after->'ia')) AS r) END AS ia,
	CASE jsonb_typeof(after->'j') WHEN 'string' THEN t.j::text = after->>'j' ELSE t.j::jsonb = after->'j' END AS j,
	t.num IS NOT DISTINCT FROM (after->>'num')::numeric AS num, t.f8::text IS NOT DISTINCT FROM (after->>'f8')::float8::text AS f8,
	t.ts IS NOT DISTINCT FROM (after->>'ts')::timestamp AS ts, t.tstz IS NOT DISTINCT FROM (after->>'tstz')::timestamptz AS tstz
FROM types AS t JOIN documents USING (id) ORDER BY id;
-- text beyond ASCII
INSERT INTO types (id, txt, ta) SELECT -1, t, ARRAY[t] FROM convert_from('\xc3a920f09f9880', 'UTF8') AS t;
SELECT after->>'txt' = t AND after->'ta'->>0 = t AS same
FROM (SELECT data::jsonb->'after' AS after FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL)) AS d,
	convert_from('\xc3a920f09f9880', 'UTF8') AS t;
-- a type altered between two changes
ALTER TYPE plugin_mood ADD VALUE 'glad';
INSERT INTO types (id, en) VALUES (8, 'glad');
ALTER TYPE plugin_mood RENAME VALUE 'glad' TO 'happy';
UPDATE types SET i2 = 1 WHERE id = 8;
DROP TABLE types;
CREATE TABLE types (id int, co plugin_point);
INSERT INTO types VALUES (9, (1, 'a', NULL));
ALTER TABLE types DROP COLUMN co;
ALTER TYPE plugin_point ADD ATTRIBUTE w int;
ALTER TABLE types ADD COLUMN co plugin_point;
INSERT INTO types VALUES (10, (1, 'a', NULL, 5));
SELECT data::jsonb->>'op' AS op, jsonb_strip_nulls(data::jsonb->'after') AS after FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL);
DROP TABLE types;
DROP TYPE plugin_mood, plugin_line, plugin_point;
DROP DOMAIN plugin_prices, plugin_price;
SELECT pg_drop_replication_slot('plugin_test');
