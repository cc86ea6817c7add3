-- options are checked
SET client_min_messages = warning;
SELECT 'slot' FROM pg_create_logical_replication_slot('plugin_test', 'elt');
\set get 'SELECT data FROM pg_logical_slot_get_changes(''plugin_test'', NULL, NULL'
:get, 'format', 'xml');
:get, 'publication', '');
:get, 'include-xids', '1');
:get, 'format', 'batch');
-- binary output
:get, 'format', 'batch', 'publication', 'p');
SELECT count(*) FROM pg_logical_slot_get_binary_changes('plugin_test', NULL, NULL, 'format', 'batch', 'publication', 'p');
:get, 'format', 'json');
SELECT pg_drop_replication_slot('plugin_test');
