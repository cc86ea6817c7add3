-- Tables without a key, and keys that the source does not tell.

SET client_min_messages = warning;
CREATE TABLE tk_t (id int, v text);
ALTER TABLE tk_t REPLICA IDENTITY FULL;
CREATE TABLE tk_log (id int, v text);
CREATE TABLE tk_target (id int PRIMARY KEY, v text);
SELECT elt.create_source('tk', ARRAY['tk_t'], snapshot => 'none') > 0 AS created;
SELECT elt.wait_for_source('tk');
SELECT elt.create_pipeline('tk_log', 'tk', 'tk_t', 'tk_log', mode => 'append') > 0 AS created;
SELECT elt.create_pipeline('tk_target', 'tk', 'tk_t', 'tk_target', options => '{"lanes": 1}') > 0 AS created;
BEGIN;
INSERT INTO tk_t VALUES (1, 'a'), (1, 'a'), (2, 'b'), (3, 'c');
UPDATE tk_t SET v = 'b2' WHERE id = 2;
DELETE FROM tk_t WHERE id = 3;
INSERT INTO tk_t VALUES (3, 'c2');
DELETE FROM tk_t WHERE id = 2;
COMMIT;
SELECT elt.wait_for('tk_log'), elt.wait_for('tk_target');
TABLE tk_log ORDER BY id, v;
TABLE tk_target ORDER BY id;
SELECT count(*) FROM elt.quarantine;

-- the target's key is not the source's: a delete cannot find its row, and says so
CREATE TABLE tk_code (id int PRIMARY KEY, code text NOT NULL);
CREATE TABLE tk_by_code (code text PRIMARY KEY, id int);
SELECT elt.add_table('tk', 'tk_code', snapshot => false);
SELECT elt.create_pipeline('tk_code', 'tk', 'tk_code', 'tk_by_code') > 0 AS created;
INSERT INTO tk_code VALUES (1, 'x'), (2, 'y');
DELETE FROM tk_code WHERE id = 1;
SELECT elt.wait_for('tk_code');
TABLE tk_by_code ORDER BY code;
SELECT op, sqlstate, message, hint FROM elt.quarantine WHERE pipeline = 'tk_code';

SELECT elt.drop_pipeline(name) FROM elt.pipelines;
SELECT elt.drop_source('tk');
DROP TABLE tk_t, tk_log, tk_target, tk_code, tk_by_code;
