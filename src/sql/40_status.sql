/* What runs, and waiting for it. */

CREATE FUNCTION elt.is_preloaded() RETURNS boolean
	LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'elt_is_preloaded';
COMMENT ON FUNCTION elt.is_preloaded() IS 'whether the server has elt in shared_preload_libraries, so that workers can run';

CREATE FUNCTION elt.library_version() RETURNS text
	LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'elt_library_version';
COMMENT ON FUNCTION elt.library_version() IS 'the version of the install script that the loaded library fits; nothing runs where the extension is of another';

CREATE FUNCTION elt.latency_quantile_ms(pipeline_id bigint, quantile double precision) RETURNS double precision
	LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'elt_latency_quantile_ms';
COMMENT ON FUNCTION elt.latency_quantile_ms(bigint, double precision) IS
	'quantile (0 to 1) of the time from commit at the source to commit in the target, in ms, over the last one to two minutes';

CREATE FUNCTION elt.pipeline_outcomes(pipeline_id bigint, seconds int, OUT read bigint, OUT failed bigint) RETURNS record
	LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'elt_pipeline_outcomes';
COMMENT ON FUNCTION elt.pipeline_outcomes(bigint, int) IS
	'changes that a pipeline read in the last seconds (up to 300), and how many of them failed';

CREATE FUNCTION elt.workers(
	OUT pid int, OUT kind text, OUT dboid oid, OUT object_id bigint, OUT object_name text, OUT state text,
	OUT started_at timestamptz, OUT changes bigint, OUT busy_ratio double precision,
	OUT last_error text, OUT last_error_at timestamptz,
	OUT received_lsn pg_lsn, OUT staged_lsn pg_lsn, OUT confirmed_lsn pg_lsn,
	OUT last_commit_ts timestamptz, OUT idle boolean) RETURNS SETOF record
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_workers';
COMMENT ON FUNCTION elt.workers() IS 'the workers of the whole server, as shared memory has them; see the views stat_workers and stat_sources';

CREATE FUNCTION elt.wait_for_source(source text, lsn pg_lsn DEFAULT NULL, timeout interval DEFAULT '30 s') RETURNS boolean
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_wait_for_source';
COMMENT ON FUNCTION elt.wait_for_source(text, pg_lsn, interval) IS
	'waits until all up to lsn (default: all that is committed now) is in raw staging; false when the timeout passed first';

CREATE FUNCTION elt.wait_for(pipeline text, lsn pg_lsn DEFAULT NULL, timeout interval DEFAULT '30 s') RETURNS boolean
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_wait_for';
COMMENT ON FUNCTION elt.wait_for(text, pg_lsn, interval) IS
	'waits until a pipeline has settled all up to lsn (default: all that is committed now); false when the timeout passed first';

/* Whether the caller may see the state of what a role owns. */
CREATE FUNCTION elt.may_see(owner oid) RETURNS boolean
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
	AS $$ SELECT pg_has_role(owner, 'USAGE') OR pg_has_role('pg_monitor', 'USAGE') $$;
COMMENT ON FUNCTION elt.may_see(oid) IS 'whether the caller may see the state of what this role owns: its members and pg_monitor';

CREATE VIEW elt.stat_workers WITH (security_barrier) AS
	SELECT w.pid, w.kind, d.datname,
		   CASE WHEN w.kind IN ('capture', 'snapshot', 'cleaner') THEN w.object_name END AS source,
		   CASE WHEN w.kind = 'transform' THEN w.object_name END AS pipeline,
		   w.state, w.started_at, w.changes, w.busy_ratio, w.last_error
	FROM elt.workers() w
	LEFT JOIN pg_catalog.pg_database d ON d.oid = w.dboid
	WHERE pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW elt.stat_workers IS 'one row per elt process of the server, for pg_monitor';

CREATE FUNCTION elt.unpublished_error(publication name) RETURNS text
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('publication "%s" does not exist at the source: what is written now is not captured '
				  'HINT: Make it there: CREATE PUBLICATION %I FOR TABLE ... WITH (publish_via_partition_root = true). '
				  'What was written in between comes with elt.resync_table() of the tables.', publication, publication)
$$;
COMMENT ON FUNCTION elt.unpublished_error(name) IS 'internal: what is said of a source whose publication was dropped';

CREATE VIEW elt.stat_sources WITH (security_barrier) AS
	SELECT s.name AS source,
		   CASE WHEN s.lost_at IS NOT NULL OR r.wal_status = 'lost' THEN 'lost'
				WHEN NOT s.enabled OR s.home <> elt.home() THEN 'paused'
				WHEN w.state = 'streaming' AND NOT r.published THEN 'error'
				WHEN w.state = 'streaming' AND EXISTS (SELECT FROM elt.source_tables t
					WHERE t.source_id = s.source_id AND t.state = 'pending') THEN 'snapshot'
				WHEN w.state = 'streaming' THEN w.state
				WHEN w.state = 'making a slot' THEN 'starting'
				WHEN w.pid IS NOT NULL AND w.last_error IS NULL AND s.last_error IS NULL THEN 'starting'
				WHEN s.last_error IS NOT NULL THEN 'error'
				ELSE 'starting' END AS state,
		   w.pid, w.received_lsn, w.staged_lsn,
		   coalesce(w.confirmed_lsn, r.confirmed_flush_lsn) AS confirmed_lsn,
		   CASE WHEN s.conninfo IS NULL AND NOT pg_catalog.pg_is_in_recovery()
				THEN greatest(0, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(),
															coalesce(w.staged_lsn, r.confirmed_flush_lsn)))
				ELSE greatest(0, pg_catalog.pg_wal_lsn_diff(w.received_lsn, w.staged_lsn)) END::bigint AS lag_bytes,
		   greatest(0, pg_catalog.pg_wal_lsn_diff(r.current_lsn, r.restart_lsn))::bigint AS retained_wal_bytes,
		   s.changes_staged + coalesce(w.changes, 0) AS changes_staged,
		   w.last_commit_ts,
		   CASE WHEN s.enabled AND s.lost_at IS NULL AND NOT r.published THEN elt.unpublished_error(s.publication) ELSE s.last_error END AS last_error,
		   CASE WHEN s.enabled AND s.lost_at IS NULL AND NOT r.published THEN r.checked_at ELSE s.last_error_at END AS last_error_at,
		   r.wal_status, r.safe_wal_size,
		   CASE WHEN r.confirmed_flush_lsn >= r.current_lsn THEN interval '0'
				WHEN r.slot_name IS NOT NULL THEN
					greatest(interval '0', pg_catalog.now() - coalesce(w.last_commit_ts, s.last_commit_ts, s.created_at)) END AS slot_age,
		   r.catalog_xmin_age, r.checked_at AS slot_checked_at, r.active_pid AS slot_active_pid,
		   s.lost_reason, s.lost_at, c.bytes_per_second::bigint AS pause_bytes_per_second, c.time_left AS pause_time_left
	FROM elt.sources s
	LEFT JOIN elt.workers() w
		ON w.kind = 'capture' AND w.object_id = s.source_id AND w.state <> 'ended'
		AND w.dboid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
	LEFT JOIN elt.slot_state r ON r.source_id = s.source_id
	LEFT JOIN elt.pause_costs c ON c.source_id = s.source_id
	WHERE elt.may_see(s.owner);
COMMENT ON VIEW elt.stat_sources IS 'one row per source: what it does and how far it is';

