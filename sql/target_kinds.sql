-- What may be a target, what is refused, and what is warned of.

CREATE SCHEMA tk;
CREATE TABLE tk.t (id int PRIMARY KEY, region text, v text);
SELECT elt.create_source('tk', ARRAY['tk.t']) > 0 AS created;
SELECT elt.wait_for_source('tk');

CREATE TABLE tk.plain (id int PRIMARY KEY, region text, v text);
CREATE VIEW tk.view AS SELECT * FROM tk.plain;
CREATE MATERIALIZED VIEW tk.matview AS SELECT * FROM tk.plain;
CREATE SEQUENCE tk.sequence;
CREATE TEMP TABLE tk_temp (id int PRIMARY KEY, region text, v text);
CREATE TYPE tk.composite AS (id int);
CREATE INDEX tk_index ON tk.plain (v);
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.view');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.matview');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.sequence');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk_temp');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.composite');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.tk_index');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'pg_temp.tk_temp', mode => 'append');

-- a key that nothing enforces at once, or that is not there
CREATE TABLE tk.deferred (id int PRIMARY KEY DEFERRABLE, region text, v text);
CREATE TABLE tk.partial (id int, region text, v text);
CREATE UNIQUE INDEX ON tk.partial (id) WHERE region <> '';
CREATE TABLE tk.expression (id int, region text, v text);
CREATE UNIQUE INDEX ON tk.expression (lower(v));
CREATE TABLE tk.excluded (id int, region text, v text, EXCLUDE USING btree (id WITH =));
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.deferred');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.partial', key => '{id}');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.expression', key => '{v}');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.excluded', key => '{id}');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.excluded');

-- what goes wrong later, and in silence
CREATE UNLOGGED TABLE tk.unlogged (id int PRIMARY KEY, region text, v text);
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.unlogged') > 0 AS created;
SELECT elt.drop_pipeline('tk');
CREATE TABLE tk.wider (id int, region text, v text, PRIMARY KEY (region, id));
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.wider') > 0 AS created;
INSERT INTO tk.t VALUES (1, 'eu', 'v');
SELECT elt.wait_for('tk');
SELECT elt.alter_pipeline('tk', options => '{"time_limit": 1000}');
SELECT elt.drop_pipeline('tk');
-- not where the identity has it, or a transform says how
CREATE UNIQUE INDEX t_identity ON tk.t (id, region);
ALTER TABLE tk.t ALTER region SET NOT NULL, REPLICA IDENTITY USING INDEX t_identity;
INSERT INTO tk.t VALUES (2, 'eu', 'v');
SELECT elt.wait_for_source('tk');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.wider') > 0 AS created;
SELECT elt.wait_for('tk');
UPDATE tk.t SET region = 'us';
SELECT elt.wait_for('tk');
SELECT * FROM tk.wider ORDER BY id, region;
SELECT elt.drop_pipeline('tk');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.wider', $$SELECT (key->>'id')::int AS id, 'x'::text AS region, record->>'v' AS v FROM changes$$) > 0 AS created;
SELECT elt.drop_pipeline('tk');

-- row-level security: an owner whom it binds is refused, others have never to do with it
CREATE ROLE tk_joe;
CREATE ROLE tk_free BYPASSRLS;
CREATE ROLE tk_group;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO tk_joe, tk_free;
GRANT USAGE ON SCHEMA tk, elt_raw TO tk_joe, tk_free;
GRANT SELECT ON elt_raw.tk TO tk_joe, tk_free;
CREATE TABLE tk.bound (id int PRIMARY KEY, region text, v text);
ALTER TABLE tk.bound ENABLE ROW LEVEL SECURITY;
CREATE POLICY none ON tk.bound USING (false);
GRANT ALL ON tk.bound TO tk_joe, tk_free;
SET ROLE tk_joe;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound');
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound', mode => 'append');
SET ROLE tk_free;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound') > 0 AS bypasses;
SELECT elt.wait_for('tk');
RESET ROLE;
SELECT count(*) FROM tk.bound;
SELECT elt.drop_pipeline('tk');
-- the table's owner is bound where it is forced
ALTER TABLE tk.bound OWNER TO tk_joe;
SET ROLE tk_joe;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound') > 0 AS owns;
SELECT elt.drop_pipeline('tk');
ALTER TABLE tk.bound FORCE ROW LEVEL SECURITY;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound');
RESET ROLE;
-- through a role that it is a member of
ALTER TABLE tk.bound NO FORCE ROW LEVEL SECURITY, OWNER TO tk_group;
GRANT tk_group TO tk_joe;
SET ROLE tk_joe;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.bound') > 0 AS owns;
SELECT elt.drop_pipeline('tk');
RESET ROLE;
-- a partition's own policies are not asked when rows come through the root, and nothing hides what is there
CREATE TABLE tk.parted (id int PRIMARY KEY, region text, v text) PARTITION BY RANGE (id);
CREATE TABLE tk.part PARTITION OF tk.parted DEFAULT;
ALTER TABLE tk.part ENABLE ROW LEVEL SECURITY;
GRANT ALL ON tk.parted TO tk_joe;
SET ROLE tk_joe;
SELECT elt.create_pipeline('tk', 'tk', 'tk.t', 'tk.parted') > 0 AS created;
SELECT elt.wait_for('tk');
RESET ROLE;
SELECT count(*) FROM tk.parted;
SELECT elt.drop_pipeline('tk');

SELECT elt.drop_source('tk');
SET client_min_messages = warning;
DROP SCHEMA tk CASCADE;
DROP OWNED BY tk_joe, tk_free, tk_group;
DROP ROLE tk_joe, tk_free, tk_group;
