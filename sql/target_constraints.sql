-- Foreign keys, deferrable or not, unique and exclusion constraints of targets: what holds at the
-- source's commits arrives, and what the order of changes refuses at first comes through by itself.

SET client_min_messages = warning;
CREATE SCHEMA tcn;
CREATE EXTENSION IF NOT EXISTS btree_gist;
-- at the source all is checked at commit
CREATE TABLE tcn.node (id int PRIMARY KEY, parent int REFERENCES tcn.node DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tcn.seat (id int PRIMARY KEY, place text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tcn.booking (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (room WITH =, during WITH &&) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tcn.parent (id int PRIMARY KEY);
CREATE TABLE tcn.child (id int PRIMARY KEY, parent int NOT NULL REFERENCES tcn.parent ON DELETE CASCADE);
CREATE SCHEMA tcn_dw;
CREATE TABLE tcn_dw.node (LIKE tcn.node INCLUDING ALL, FOREIGN KEY (parent) REFERENCES tcn_dw.node DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE tcn_dw.node DROP CONSTRAINT node_parent_fkey, ADD FOREIGN KEY (parent) REFERENCES tcn_dw.node DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE tcn_dw.seat (id int PRIMARY KEY, place text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tcn_dw.booking (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (room WITH =, during WITH &&) DEFERRABLE);
CREATE TABLE tcn_dw.strict (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (room WITH =, during WITH &&));
CREATE TABLE tcn_dw.parent (id int PRIMARY KEY);
CREATE TABLE tcn_dw.child (id int PRIMARY KEY, parent int NOT NULL REFERENCES tcn_dw.parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tcn_dw.node_history (id int, parent int, valid_from timestamptz, valid_to timestamptz, PRIMARY KEY (id, valid_from),
	EXCLUDE USING gist (id WITH =, tstzrange(valid_from, valid_to) WITH &&));
SELECT elt.create_source('tcn', ARRAY['tcn.node', 'tcn.seat', 'tcn.booking', 'tcn.parent', 'tcn.child']) > 0 AS created;
SELECT elt.wait_for_source('tcn');
SELECT elt.create_pipeline('tcn_' || name, 'tcn', 'tcn.' || name, ('tcn_dw.' || name)::regclass) > 0 AS created
FROM unnest(ARRAY['node', 'seat', 'booking', 'parent', 'child']) AS name;
SELECT elt.create_pipeline('tcn_strict', 'tcn', 'tcn.booking', 'tcn_dw.strict') > 0 AS created;
SELECT elt.create_pipeline('tcn_node_history', 'tcn', 'tcn.node', 'tcn_dw.node_history', mode => 'history') > 0 AS created;
-- a unique index beside the key, and an exclusion constraint: what stands in the way now may be gone soon
INSERT INTO elt.error_classes (sqlstate_prefix, error_class, pipeline) SELECT s, 'dependency', p
FROM unnest(ARRAY['23505', '23P01']) s, unnest(ARRAY['tcn_seat', 'tcn_strict']) p;

-- waits until nothing is left to do: no change unresolved, and all tables the same
CREATE FUNCTION tcn.settled() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	name text;
	different text;
	differs boolean;
BEGIN
	FOR i IN 1..1200 LOOP
		different := NULL;
		FOREACH name IN ARRAY ARRAY['node', 'seat', 'booking', 'parent', 'child'] LOOP
			EXECUTE format('SELECT EXISTS ((TABLE tcn.%1$I EXCEPT TABLE tcn_dw.%1$I) UNION ALL (TABLE tcn_dw.%1$I EXCEPT TABLE tcn.%1$I))', name) INTO differs;
			IF differs THEN
				different := concat_ws(', ', different, name);
			END IF;
		END LOOP;
		EXIT WHEN different IS NULL AND NOT EXISTS (SELECT FROM elt.quarantine WHERE status = 'waiting' AND pipeline <> 'tcn_strict');
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN coalesce('different: ' || different, 'the same');
END $$;

-- children before their parents, in one transaction and across many lanes
BEGIN;
INSERT INTO tcn.node SELECT g, nullif((g + 1) % 50, 0) FROM generate_series(1, 49) g;
COMMIT;
-- places and times exchanged within a transaction
INSERT INTO tcn.seat VALUES (1, 'a'), (2, 'b'), (3, 'c');
INSERT INTO tcn.booking VALUES (1, 1, '[1,5)'), (2, 1, '[5,10)');
INSERT INTO tcn.parent SELECT g FROM generate_series(1, 20) g;
INSERT INTO tcn.child SELECT g, 1 + g % 20 FROM generate_series(1, 40) g;
SELECT tcn.settled();
UPDATE tcn.seat SET place = CASE id WHEN 1 THEN 'b' WHEN 2 THEN 'c' ELSE 'a' END;
BEGIN;
UPDATE tcn.booking SET during = '[6,10)' WHERE id = 1;
UPDATE tcn.booking SET during = '[1,6)' WHERE id = 2;
COMMIT;
BEGIN;
UPDATE tcn.node SET parent = 1 + id % 49;
COMMIT;
DELETE FROM tcn.parent WHERE id % 3 = 0;
SELECT elt.wait_for('tcn_strict');
SELECT tcn.settled();
-- a room that is free once another change has been applied
UPDATE tcn.booking SET during = '[20,30)' WHERE id = 1;
UPDATE tcn.booking SET during = '[6,10)' WHERE id = 2;
SELECT tcn.settled();
-- where the target checks row by row, two that exchange their times wait for each other; nothing else of them is lost
SELECT key->>'id' AS id, sqlstate, error_class, count(*) OVER () FROM elt.quarantine WHERE pipeline = 'tcn_strict' AND status IN ('open', 'waiting') ORDER BY change_id;
SELECT pipeline, status, message FROM elt.quarantine WHERE pipeline <> 'tcn_strict' AND status <> 'replayed';
-- a history whose versions a constraint keeps apart
SELECT elt.wait_for('tcn_node_history');
SELECT count(*) > 49 AS versions, count(*) FILTER (WHERE valid_to IS NULL) AS present FROM tcn_dw.node_history;
SELECT id, parent FROM tcn.node EXCEPT SELECT id, parent FROM tcn_dw.node_history WHERE valid_to IS NULL;

SELECT elt.drop_pipeline(name) FROM elt.pipelines WHERE name LIKE 'tcn%' ORDER BY name;
SELECT elt.drop_source('tcn');
DROP SCHEMA tcn, tcn_dw CASCADE;
