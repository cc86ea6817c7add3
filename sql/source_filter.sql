-- Row filters and column lists of a publication, in the copy and in the stream.

SET client_min_messages = warning;
CREATE TABLE sf_t (id int PRIMARY KEY, kind text NOT NULL, secret text);
ALTER TABLE sf_t REPLICA IDENTITY FULL;
INSERT INTO sf_t SELECT g, CASE WHEN g % 2 = 0 THEN 'kept' ELSE 'left out' END, 'secret ' || g FROM generate_series(1, 6) g;
CREATE TABLE sf_list (id int PRIMARY KEY, v text, secret text);
INSERT INTO sf_list VALUES (1, 'one', 'secret');
CREATE PUBLICATION sf_pub FOR TABLE sf_t WHERE (kind = 'kept'), sf_list (id, v);
SELECT elt.create_source('sf', publication => 'sf_pub') > 0 AS created;
SELECT elt.wait_for_source('sf');
CREATE TABLE sf_target (id int PRIMARY KEY, kind text, secret text);
SELECT elt.create_pipeline('sf', 'sf', 'sf_t', 'sf_target') > 0 AS created;
SELECT elt.wait_for('sf');
SELECT op, after FROM elt_raw.sf WHERE relation = 'public.sf_t' ORDER BY change_id;
INSERT INTO sf_t VALUES (7, 'left out', 'x'), (8, 'kept', 'y');
UPDATE sf_t SET kind = 'left out' WHERE id = 2;
UPDATE sf_t SET kind = 'kept' WHERE id = 1;
DELETE FROM sf_t WHERE id IN (3, 4);
INSERT INTO sf_list VALUES (2, 'two', 'secret');
SELECT elt.wait_for_source('sf');
SELECT op, key, after->>'kind' AS kind FROM elt_raw.sf WHERE relation = 'public.sf_t' AND op <> 'r' ORDER BY change_id;
SELECT op, after FROM elt_raw.sf WHERE relation = 'public.sf_list' ORDER BY change_id;
SELECT elt.wait_for('sf');
SELECT id, kind FROM sf_target ORDER BY id;

SELECT elt.drop_pipeline('sf');
SELECT elt.drop_source('sf');
DROP PUBLICATION sf_pub;
DROP TABLE sf_t, sf_list, sf_target;
