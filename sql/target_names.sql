-- Targets, columns and pipelines with names that are hard to quote, in each mode and through a transform.

SET client_min_messages = warning;
CREATE SCHEMA "t.n ""s';--%s\$1";
CREATE TABLE "t.n ""s';--%s\$1"."a""b';--" ("i""d" int PRIMARY KEY, "%s" text, "back\slash" text, "$1" text, "select" text, "Case" int, "case" int,
	"a.b" text, "éàü€ключ" text, "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff123" text, " " text, "'; DROP TABLE x; --" text, "new
line" text, "tab	" text, "E'\x41'" text, "{}" text, "valid to" text);
SELECT elt.create_source('tn', ARRAY['"t.n ""s'';--%s\$1"."a""b'';--"']) > 0 AS created;
SELECT elt.wait_for_source('tn');
CREATE SCHEMA "dw %I""$$";
CREATE TABLE "dw %I""$$"."up ""sert'" (LIKE "t.n ""s';--%s\$1"."a""b';--" INCLUDING ALL);
CREATE TABLE "dw %I""$$"."soft%" (LIKE "t.n ""s';--%s\$1"."a""b';--" INCLUDING ALL, deleted_at timestamptz);
CREATE TABLE "dw %I""$$"."app\end" (LIKE "t.n ""s';--%s\$1"."a""b';--");
CREATE TABLE "dw %I""$$"."his$tory" (LIKE "t.n ""s';--%s\$1"."a""b';--", valid_from timestamptz, valid_to timestamptz, PRIMARY KEY ("i""d", valid_from));
CREATE TABLE "dw %I""$$"."Преобразование" (LIKE "t.n ""s';--%s\$1"."a""b';--" INCLUDING ALL);
SELECT elt.create_pipeline(name, 'tn', '"t.n ""s'';--%s\$1"."a""b'';--"', target::regclass, transform, mode, options => options) > 0 AS created
FROM (VALUES ('tn_upsert', '"dw %I""$$"."up ""sert''"', NULL, 'upsert', '{}'::jsonb),
	('tn_soft', '"dw %I""$$"."soft%"', NULL, 'upsert', '{"deletes": "soft"}'),
	('tn_append', '"dw %I""$$"."app\end"', NULL, 'append', '{}'),
	('tn_history', '"dw %I""$$"."his$tory"', NULL, 'history', '{}'),
	('tn_transform', '"dw %I""$$"."Преобразование"', $t$SELECT (record->>'i"d')::int AS "i""d", record->>'%s' AS "%s", record->>'E''\x41''' AS "E'\x41'",
		record->>'éàü€ключ' AS "éàü€ключ", $$ ' " \ %s $$ || (record->>' ') AS " " FROM changes -- a comment at the end$t$, 'upsert', '{}')) AS p (name, target, transform, mode, options);

INSERT INTO "t.n ""s';--%s\$1"."a""b';--" VALUES (1, '%s', '\', '$1', '"', 1, 2, '.', 'значение', 'x', ' ', '''; --', E'\n', E'\t', 'A', '{}', 'v'),
	(2, '%n%s', '\\', '$$', '''', 3, 4, '..', 'ü', 'y', '', '"', E'\\n', '', '', '[]', NULL);
UPDATE "t.n ""s';--%s\$1"."a""b';--" SET "Case" = "case", "%s" = '%d' WHERE "i""d" = 1;
DELETE FROM "t.n ""s';--%s\$1"."a""b';--" WHERE "i""d" = 2;
SELECT name, elt.wait_for(name) FROM (VALUES ('tn_upsert'), ('tn_soft'), ('tn_append'), ('tn_history'), ('tn_transform')) p (name);
(TABLE "t.n ""s';--%s\$1"."a""b';--" EXCEPT TABLE "dw %I""$$"."up ""sert'") UNION ALL (TABLE "dw %I""$$"."up ""sert'" EXCEPT TABLE "t.n ""s';--%s\$1"."a""b';--");
SELECT "i""d", "%s", "Case", "case", "E'\x41'", "éàü€ключ", deleted_at IS NOT NULL AS deleted FROM "dw %I""$$"."soft%" ORDER BY 1;
SELECT "i""d", "%s", "Case", "case", "E'\x41'", "éàü€ключ", valid_to IS NULL AS present FROM "dw %I""$$"."his$tory" ORDER BY 1, valid_from;
SELECT count(*) FROM "dw %I""$$"."app\end";
SELECT "i""d", "%s", "E'\x41'", "éàü€ключ", " " FROM "dw %I""$$"."Преобразование";
SELECT pipeline, sqlstate, message FROM elt.quarantine;
-- errors, replays, rights and truncates name them too
ALTER TABLE "dw %I""$$"."up ""sert'" ADD CONSTRAINT "c ""%s'" CHECK ("%s" <> 'bad');
INSERT INTO "t.n ""s';--%s\$1"."a""b';--" ("i""d", "%s") VALUES (3, 'bad');
SELECT elt.wait_for('tn_upsert');
SELECT message, schema_name, table_name, constraint_name, key FROM elt.quarantine;
SELECT elt.patch_quarantine(quarantine_id, '{"%s": "good"}') FROM elt.quarantine;
SELECT outcome, error FROM elt.replay_quarantine('tn_upsert');
SELECT "i""d", "%s" FROM "dw %I""$$"."up ""sert'" ORDER BY 1;
CALL elt.replay('tn_upsert', keys => ARRAY['{"i\"d": 1}'::jsonb]);
CALL elt.replay('tn_history', filter => $$record->>'i"d' = '1'$$);
TRUNCATE "t.n ""s';--%s\$1"."a""b';--";
SELECT elt.wait_for('tn_upsert');
SELECT count(*) FROM "dw %I""$$"."up ""sert'";
-- one that is renamed is the same; one that is made anew is found by its name
ALTER TABLE "dw %I""$$"."up ""sert'" RENAME TO "re""named %";
INSERT INTO "t.n ""s';--%s\$1"."a""b';--" ("i""d") VALUES (4);
SELECT elt.wait_for('tn_upsert');
DROP TABLE "dw %I""$$"."re""named %";
CREATE TABLE "dw %I""$$"."re""named %" (LIKE "t.n ""s';--%s\$1"."a""b';--" INCLUDING ALL);
INSERT INTO "t.n ""s';--%s\$1"."a""b';--" ("i""d") VALUES (5);
SELECT elt.wait_for('tn_upsert');
SELECT "i""d" FROM "dw %I""$$"."re""named %";

SELECT elt.drop_pipeline(name) FROM elt.pipelines WHERE name LIKE 'tn%' ORDER BY name;
SELECT elt.drop_source('tn');
DROP SCHEMA "t.n ""s';--%s\$1", "dw %I""$$" CASCADE;
