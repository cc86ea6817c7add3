-- Option "group": pipelines that settle together.

SET client_min_messages = warning;
CREATE TABLE gr_parent (id int PRIMARY KEY, v int);
CREATE TABLE gr_child (id int PRIMARY KEY, parent int REFERENCES gr_parent);
CREATE TABLE gr_other (id int PRIMARY KEY);
CREATE TABLE gr_to_parent (id int PRIMARY KEY, v int UNIQUE);
CREATE TABLE gr_to_child (id int PRIMARY KEY, parent int REFERENCES gr_to_parent CHECK (parent <> 99));
CREATE ROLE gr_joe;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elt TO gr_joe;
SELECT elt.create_source('gr', ARRAY['gr_child', 'gr_parent'], snapshot => 'none') > 0 AS created;
SELECT elt.create_source('gr2', ARRAY['gr_other'], snapshot => 'none') > 0 AS created;
SELECT elt.create_pipeline('gr_child', 'gr', 'gr_child', 'gr_to_child', options => '{"group": "family"}') > 0 AS created;
SELECT elt.create_pipeline('gr_parent', 'gr', 'gr_parent', 'gr_to_parent') > 0 AS created;
SELECT elt.pause_pipeline('gr_child'), elt.pause_pipeline('gr_parent');

-- what a group cannot be
SELECT elt.alter_pipeline('gr_parent', '{"group": 1}');
SELECT elt.alter_pipeline('gr_parent', '{"group": ""}');
SELECT elt.create_pipeline('gr_other', 'gr2', 'gr_other', 'gr_other', options => '{"group": "family"}');
GRANT USAGE ON SCHEMA elt_raw TO gr_joe;
GRANT SELECT ON elt_raw.gr TO gr_joe;
GRANT ALL ON gr_to_parent TO gr_joe;
SET ROLE gr_joe;
SELECT elt.create_pipeline('gr_joe', 'gr', 'public.gr_parent', 'public.gr_to_parent', options => '{"group": "family"}');
RESET ROLE;
SELECT elt.alter_pipeline('gr_parent', '{"group": "family"}');
SELECT elt.wait_for_source('gr');

-- one call works on all; parents come before children, whatever the order at the source
BEGIN;
INSERT INTO gr_parent VALUES (1, 10), (2, 20);
INSERT INTO gr_child VALUES (1, 1), (2, 2), (3, 2);
COMMIT;
SELECT elt.wait_for_source('gr');
SELECT read, written, quarantined, parked FROM elt.transform('gr_child');
-- a child leaves a parent that goes, and its value goes to another
BEGIN;
INSERT INTO gr_parent VALUES (3, 30);
UPDATE gr_child SET parent = 3 WHERE parent = 1;
DELETE FROM gr_parent WHERE id = 1;
INSERT INTO gr_parent VALUES (4, 10);
COMMIT;
SELECT elt.wait_for_source('gr');
SELECT read, written, quarantined, parked FROM elt.transform('gr_parent');
TABLE gr_to_parent ORDER BY id;
TABLE gr_to_child ORDER BY id;
-- what fails alone is quarantined alone, in the middle of a transaction
BEGIN;
INSERT INTO gr_parent VALUES (99, 99), (5, 50);
INSERT INTO gr_child VALUES (4, 99), (5, 5);
COMMIT;
INSERT INTO gr_child VALUES (6, 5);
SELECT elt.wait_for_source('gr');
SELECT read, written, quarantined, parked FROM elt.transform('gr_child');
SELECT pipeline, key, sqlstate, status FROM elt.quarantine WHERE pipeline IN ('gr_child', 'gr_parent');
TABLE gr_to_child ORDER BY id;
-- a truncate of both
TRUNCATE gr_parent, gr_child;
INSERT INTO gr_parent VALUES (7, 70);
SELECT elt.wait_for_source('gr');
SELECT read, written, quarantined, parked FROM elt.transform('gr_parent');
TABLE gr_to_parent ORDER BY id;
TABLE gr_to_child ORDER BY id;

SELECT elt.drop_pipeline('gr_child'), elt.drop_pipeline('gr_parent');
SELECT elt.drop_source('gr'), elt.drop_source('gr2');
DROP TABLE gr_parent, gr_child, gr_other, gr_to_parent, gr_to_child;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elt FROM gr_joe;
DROP OWNED BY gr_joe;
DROP ROLE gr_joe;
