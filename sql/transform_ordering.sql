-- What becomes of later changes of a key whose change was quarantined.

SET client_min_messages = warning;
CREATE TABLE to_t (id int PRIMARY KEY, v text);
CREATE TABLE to_strict (id int PRIMARY KEY, v text CONSTRAINT to_good CHECK (v NOT LIKE 'bad%'));
CREATE TABLE to_supersede (LIKE to_strict INCLUDING ALL);
CREATE TABLE to_unordered (LIKE to_strict INCLUDING ALL);
CREATE TABLE to_append (LIKE to_strict INCLUDING CONSTRAINTS);
SELECT elt.create_source('to', ARRAY['to_t']) > 0 AS created;
SELECT elt.wait_for_source('to');
SELECT elt.create_pipeline('to_strict', 'to', 'to_t', 'to_strict') > 0 AS created;
SELECT elt.create_pipeline('to_supersede', 'to', 'to_t', 'to_supersede', ordering => 'supersede') > 0 AS created;
SELECT elt.create_pipeline('to_unordered', 'to', 'to_t', 'to_unordered', ordering => 'unordered') > 0 AS created;
SELECT elt.create_pipeline('to_append', 'to', 'to_t', 'to_append', mode => 'append', options => '{"breaker": false}') > 0 AS created;

-- a failure, with others around it, in one batch and over several
INSERT INTO to_t SELECT g, CASE g WHEN 50 THEN 'bad' WHEN 99 THEN 'bad too' ELSE 'good' END FROM generate_series(1, 100) g;
SELECT elt.wait_for(p) FROM unnest(ARRAY['to_strict', 'to_supersede', 'to_unordered', 'to_append']) p;
UPDATE to_t SET v = 'mended' WHERE id IN (50, 98);
DELETE FROM to_t WHERE id IN (97, 99);
SELECT elt.wait_for(p) FROM unnest(ARRAY['to_strict', 'to_supersede', 'to_unordered', 'to_append']) p;
UPDATE to_t SET v = 'bad again' WHERE id IN (50, 1);
SELECT elt.wait_for(p) FROM unnest(ARRAY['to_strict', 'to_supersede', 'to_unordered', 'to_append']) p;
UPDATE to_t SET v = 'mended again' WHERE id IN (50, 1);
SELECT elt.wait_for(p) FROM unnest(ARRAY['to_strict', 'to_supersede', 'to_unordered', 'to_append']) p;

SELECT 'to_strict', count(*), string_agg(id || ' ' || v, ', ' ORDER BY id) FILTER (WHERE v <> 'good') FROM to_strict
UNION ALL SELECT 'to_supersede', count(*), string_agg(id || ' ' || v, ', ' ORDER BY id) FILTER (WHERE v <> 'good') FROM to_supersede
UNION ALL SELECT 'to_unordered', count(*), string_agg(id || ' ' || v, ', ' ORDER BY id) FILTER (WHERE v <> 'good') FROM to_unordered
UNION ALL SELECT 'to_append', count(*), string_agg(id || ' ' || v, ', ' ORDER BY id, v) FILTER (WHERE v <> 'good') FROM to_append;
SELECT pipeline, key, op, record->>'v' AS v, status, step, error_class, sqlstate, constraint_name FROM elt.quarantine ORDER BY pipeline, change_id;
SELECT p.name, k.key, k.op FROM elt.parked k JOIN elt.pipelines p USING (pipeline_id) ORDER BY 1, change_id;
SELECT pipeline, key, quarantined, parked FROM elt.blocked_keys ORDER BY 1, 2;
-- each change left in exactly one way
SELECT pipeline, changes_read, quarantined_open, parked FROM elt.stat_pipelines ORDER BY 1;
-- same error, other values: one fingerprint
SELECT count(DISTINCT fingerprint) FROM elt.quarantine WHERE pipeline = 'to_strict';

-- a truncate settles what came before it
TRUNCATE to_t;
INSERT INTO to_t VALUES (50, 'new');
SELECT elt.wait_for(p) FROM unnest(ARRAY['to_strict', 'to_supersede']) p;
TABLE to_strict;
TABLE to_supersede;
SELECT pipeline, status, count(*) FROM elt.quarantine WHERE pipeline IN ('to_strict', 'to_supersede') GROUP BY 1, 2 ORDER BY 1, 2;
SELECT count(*) FROM elt.parked k JOIN elt.pipelines p USING (pipeline_id) WHERE p.name = 'to_strict';

-- a dependency is quarantined as waiting
CREATE TABLE to_parent (id int PRIMARY KEY);
ALTER TABLE to_strict ADD FOREIGN KEY (id) REFERENCES to_parent NOT VALID;
INSERT INTO to_t VALUES (51, 'orphan');
SELECT elt.wait_for('to_strict');
SELECT key, status, error_class, sqlstate, next_retry_at > first_failed_at AS retried FROM elt.quarantine WHERE status = 'waiting' AND pipeline = 'to_strict';

-- many failures in one transaction: all others arrive
INSERT INTO to_t SELECT g, CASE WHEN g % 10 = 0 THEN 'bad ' || g ELSE 'good' END FROM generate_series(1001, 4000) g;
SELECT elt.wait_for('to_append');
SELECT v LIKE 'bad%' AS bad, count(*) FROM to_append WHERE id > 1000 GROUP BY 1;
SELECT count(*), count(DISTINCT key), count(DISTINCT fingerprint) FROM elt.quarantine WHERE pipeline = 'to_append' AND (key->>'id')::int > 1000;

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('to');
DROP TABLE to_t, to_strict, to_supersede, to_unordered, to_append, to_parent;
