-- messages: transactional, with the prefix elt; anything may stand in them
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "key": {"id": 1}, "payload": {"state": "paid", "lines": [1, 2.50]}}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "payload": 5}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "key": null, "payload": null}');
SELECT 'other prefix' FROM pg_logical_emit_message(true, 'elt2', '{"topic": "orders", "payload": 6}');
SELECT 'not transactional' FROM pg_logical_emit_message(false, 'elt', '{"topic": "orders", "payload": 7}');
BEGIN;
SELECT 'rolled back' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "payload": 8}');
ROLLBACK;
-- forged
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', 'no json; DROP TABLE x');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": 1, "payload": 9}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "payload": 9, "more": true}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "topic": "x", "payload": 9}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '{"topic": "orders", "payload": "\u0000"}');
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', '\x00ff'::bytea);
SELECT 'sent' FROM pg_logical_emit_message(true, 'elt', repeat('[', 100000));
SELECT change - 'after' || jsonb_build_object('after', left(change->>'after', 60)) AS change
FROM (SELECT data::jsonb - '{xid,lsn,commit_lsn,commit_ts}'::text[] AS change FROM pg_logical_slot_get_changes('plugin_test', NULL, NULL)) AS c;
SELECT pg_drop_replication_slot('plugin_test');
