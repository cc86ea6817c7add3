/*
 * Rights.  What elt holds is as secret as the most secret table it captures:
 * nobody but the owner of the extension reads its tables; functions decide
 * themselves what a caller may do and are to be granted; views show a role
 * what it owns, and pg_monitor the state of all.
 */

REVOKE ALL ON ALL ROUTINES IN SCHEMA elt FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA elt FROM PUBLIC;
REVOKE ALL ON SCHEMA elt, elt_raw FROM PUBLIC;

GRANT USAGE ON SCHEMA elt TO PUBLIC;
GRANT SELECT ON elt.stat_pool, elt.scaling_log TO pg_monitor;
GRANT EXECUTE ON FUNCTION elt.health(), elt.is_preloaded(), elt.pool_status() TO pg_monitor;
-- the view calls them as the role that reads it
GRANT SELECT ON elt.raw_staging TO pg_monitor;
GRANT EXECUTE ON FUNCTION elt.raw_staging_status() TO pg_monitor;
GRANT SELECT ON elt.stat_workers, elt.stat_sources, elt.gaps, elt.stat_pipelines, elt.backlog, elt.blocked_keys,
	elt.quarantine_groups, elt.progress_replay, elt.progress_snapshot TO PUBLIC;

/* The views call these as the role that reads them. */
GRANT EXECUTE ON FUNCTION elt.may_see(oid), elt.home(), elt.workers(), elt.unpublished_error(name),
	elt.latency_quantile_ms(bigint, double precision), elt.pipeline_backlog(text),
	elt.session_is_alive(int, timestamptz) TO PUBLIC;

/* Shapes of relations show to who owns the source, or a pipeline of the relation. */
GRANT SELECT ON elt.schema_history, elt.resyncs_needed, elt.renamed_relations TO PUBLIC;
GRANT EXECUTE ON FUNCTION elt.diff_schema(text, text, int, int), elt.sees_relation(name, bigint, text),
	elt.compare_shapes(jsonb, jsonb), elt.compare_columns(jsonb, jsonb, boolean) TO PUBLIC;

/* Every pipeline's owner runs these. */
GRANT EXECUTE ON FUNCTION elt.note_change(bigint), elt.field(jsonb, text), elt.populate(anyelement, jsonb) TO PUBLIC;

/* Quarantined records are data of their pipeline's owner. */

CREATE FUNCTION elt.owns_pipeline(role name, pipeline_id bigint) RETURNS boolean
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$ SELECT EXISTS (SELECT FROM elt.pipelines p
						 WHERE p.pipeline_id = $2 AND pg_has_role($1, p.owner::oid, 'USAGE')) $$;
COMMENT ON FUNCTION elt.owns_pipeline(name, bigint) IS 'whether a role owns a pipeline, itself or through a role it is a member of';

ALTER TABLE elt.parked ENABLE ROW LEVEL SECURITY;
ALTER TABLE elt.replay_runs ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_pipelines ON elt.parked FOR SELECT USING (elt.owns_pipeline(current_user, pipeline_id));
CREATE POLICY own_pipelines ON elt.replay_runs FOR SELECT USING (elt.owns_pipeline(current_user, pipeline_id));
GRANT SELECT ON elt.quarantine, elt.parked, elt.replay_runs TO PUBLIC;
GRANT EXECUTE ON FUNCTION elt.owns_pipeline(name, bigint) TO PUBLIC;

/* Alerts show to whom they concern; the rules' texts to their owners and to pg_monitor. */

ALTER TABLE elt.alerts ENABLE ROW LEVEL SECURITY;
ALTER TABLE elt.silences ENABLE ROW LEVEL SECURITY;
ALTER TABLE elt.alert_rules ENABLE ROW LEVEL SECURITY;
CREATE POLICY concerned ON elt.alerts FOR SELECT USING (elt.sees_alert(current_user, rule, labels));
CREATE POLICY concerned ON elt.silences FOR SELECT USING (elt.sees_alert(current_user, rule, labels));
CREATE POLICY concerned ON elt.alert_rules FOR SELECT USING (
	shipped OR pg_catalog.pg_has_role('pg_monitor', 'USAGE') OR pg_catalog.pg_has_role(owner::oid, 'USAGE'));
GRANT SELECT ON elt.alerts, elt.silences, elt.alert_rules TO PUBLIC;
GRANT EXECUTE ON FUNCTION elt.sees_alert(name, text, jsonb) TO PUBLIC;

/* What a dump carries.  Raw staging is made of ordinary tables and goes with it. */

SELECT pg_catalog.pg_extension_config_dump('elt.sources', '');
SELECT pg_catalog.pg_extension_config_dump('elt.source_tables', '');
SELECT pg_catalog.pg_extension_config_dump('elt.schema_versions', '');
SELECT pg_catalog.pg_extension_config_dump('elt.raw_dropped', '');
SELECT pg_catalog.pg_extension_config_dump('elt.purges', '');
SELECT pg_catalog.pg_extension_config_dump('elt.purges_purge_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.pipelines', '');
SELECT pg_catalog.pg_extension_config_dump('elt.pipeline_versions', '');
SELECT pg_catalog.pg_extension_config_dump('elt.checkpoints', '');
SELECT pg_catalog.pg_extension_config_dump('elt.quarantine_records', '');
SELECT pg_catalog.pg_extension_config_dump('elt.quarantine_unresolved', '');
SELECT pg_catalog.pg_extension_config_dump('elt.quarantine_resolved', '');
SELECT pg_catalog.pg_extension_config_dump('elt.parked', '');
SELECT pg_catalog.pg_extension_config_dump('elt.large_values', '');
SELECT pg_catalog.pg_extension_config_dump('elt.relation_files', '');
SELECT pg_catalog.pg_extension_config_dump('elt.oversize_values', '');
SELECT pg_catalog.pg_extension_config_dump('elt.worker_bounds', '');
SELECT pg_catalog.pg_extension_config_dump('elt.error_classes', 'WHERE NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('elt.source_gaps', '');
SELECT pg_catalog.pg_extension_config_dump('elt.source_gaps_gap_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.sources_source_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.source_tables_table_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.pipelines_pipeline_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.quarantine_records_quarantine_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.alert_rules', 'WHERE tuned OR NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('elt.silences', '');
SELECT pg_catalog.pg_extension_config_dump('elt.silences_silence_id_seq', '');
-- alerts are found anew, but who keeps their numbers must not meet them again
SELECT pg_catalog.pg_extension_config_dump('elt.alerts_alert_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('elt.alert_notifications', '');

/* The workers start when this transaction commits. */

CREATE FUNCTION elt.created() RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_created';
SELECT elt.created();
DROP FUNCTION elt.created();
