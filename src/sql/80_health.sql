/* One list of all that must be right for elt to run, with what to do where it is not. */

CREATE FUNCTION elt.health(
	OUT "check" text, OUT ok boolean, OUT severity text, OUT detail text, OUT hint text) RETURNS SETOF record
	LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
	WITH setting AS (
		SELECT coalesce(max(s.setting) FILTER (WHERE s.name = 'wal_level'), '') AS wal_level,
			   max(s.setting) FILTER (WHERE s.name = 'shared_preload_libraries') AS preload,
			   max(s.setting) FILTER (WHERE s.name = 'output_plugin_libraries') AS plugins,
			   max(s.setting) FILTER (WHERE s.name = 'synchronous_standby_names') AS standbys,
			   max(s.setting::int) FILTER (WHERE s.name = 'max_replication_slots') AS slots,
			   max(s.setting::int) FILTER (WHERE s.name = 'max_wal_senders') AS senders,
			   max(s.setting::int) FILTER (WHERE s.name = 'max_worker_processes') AS processes
		FROM pg_settings s
		WHERE s.name IN ('wal_level', 'shared_preload_libraries', 'output_plugin_libraries', 'synchronous_standby_names',
						 'max_replication_slots', 'max_wal_senders', 'max_worker_processes')
	), used AS (
		SELECT (SELECT count(*) FROM pg_replication_slots) AS slots,
			   (SELECT count(*) FROM pg_stat_replication) AS senders,
			   (SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN
				('client backend', 'walsender', 'walreceiver', 'startup', 'checkpointer', 'background writer',
				 'walwriter', 'archiver', 'autovacuum launcher', 'autovacuum worker')) AS processes,
			   (SELECT count(*) FROM elt.sources WHERE conninfo IS NULL) AS local_sources
	)
	SELECT 'preload', elt.is_preloaded(), 'critical',
		   format('shared_preload_libraries is "%s"', preload),
		   CASE WHEN NOT elt.is_preloaded() THEN
			format('Put this line into postgresql.conf and restart the server: shared_preload_libraries = ''%s''',
				   concat_ws(', ', nullif(preload, ''), 'elt')) END
	FROM setting
	UNION ALL
	SELECT 'version', e.extversion = elt.library_version(), 'critical',
		   format('the library is of version %s, the extension of version %s', elt.library_version(), e.extversion),
		   CASE WHEN e.extversion <> elt.library_version() THEN
			'ALTER EXTENSION elt UPDATE, where the library is newer; restart the server, where it has been replaced by a newer one since' END
	FROM pg_extension e WHERE e.extname = 'elt'
	UNION ALL
	SELECT 'wal_level', wal_level = 'logical' OR local_sources = 0, 'critical',
		   format('wal_level is "%s"; %s source(s) read this server', wal_level, local_sources),
		   CASE WHEN wal_level <> 'logical' AND local_sources > 0 THEN
			'Put this line into postgresql.conf and restart the server: wal_level = logical' END
	FROM setting, used
	UNION ALL
	SELECT 'output_plugin_libraries',
		   coalesce('elt' = ANY (regexp_split_to_array(replace(plugins, '"', ''), '\s*,\s*')), true) OR local_sources = 0,
		   'critical',
		   coalesce(format('output_plugin_libraries is "%s"', plugins), 'this server loads any output plugin'),
		   CASE WHEN NOT coalesce('elt' = ANY (regexp_split_to_array(replace(plugins, '"', ''), '\s*,\s*')), true)
					 AND local_sources > 0 THEN
			format('Put this line into postgresql.conf and reload it: output_plugin_libraries = ''%s''',
				   concat_ws(', ', nullif(plugins, ''), 'elt')) END
	FROM setting, used
	UNION ALL
	SELECT 'max_replication_slots', setting.slots > used.slots, 'warning',
		   format('%s of %s replication slots are used', used.slots, setting.slots),
		   CASE WHEN setting.slots <= used.slots THEN
			format('Put this line into postgresql.conf and restart the server: max_replication_slots = %s', used.slots + 10) END
	FROM setting, used
	UNION ALL
	SELECT 'max_wal_senders', setting.senders > used.senders, 'warning',
		   format('%s of %s wal senders are used', used.senders, setting.senders),
		   CASE WHEN setting.senders <= used.senders THEN
			format('Put this line into postgresql.conf and restart the server: max_wal_senders = %s', used.senders + 10) END
	FROM setting, used
	UNION ALL
	SELECT 'max_worker_processes', setting.processes > used.processes, 'warning',
		   format('%s of %s background workers are used', used.processes, setting.processes),
		   CASE WHEN setting.processes <= used.processes THEN
			format('Put this line into postgresql.conf and restart the server: max_worker_processes = %s', used.processes + 8) END
	FROM setting, used
	UNION ALL
	SELECT 'synchronous_standby_names',
		   local_sources = 0 OR standbys !~ '\*' AND NOT EXISTS (
				SELECT FROM elt.sources x WHERE x.conninfo IS NULL AND strpos(lower(standbys), lower('elt ' || x.name)) > 0), 'warning',
		   format('synchronous_standby_names is "%s"', standbys),
		   CASE WHEN local_sources > 0 AND (standbys ~ '\*' OR EXISTS (
				SELECT FROM elt.sources x WHERE x.conninfo IS NULL AND strpos(lower(standbys), lower('elt ' || x.name)) > 0)) THEN
			'Name the standbys one by one and reload: with * a capture worker counts as one, and commits wait for it' END
	FROM setting, used
	UNION ALL
	SELECT 'supervisor', w.pid IS NOT NULL, 'critical',
		   coalesce('runs with pid ' || w.pid, 'no supervisor runs in this database'),
		   CASE WHEN w.pid IS NULL THEN 'It starts within seconds once elt is preloaded and a background worker is free; see the server''s log.' END
	FROM (SELECT 1) one
	LEFT JOIN elt.workers() w ON w.kind = 'supervisor' AND w.state <> 'ended'
		AND w.dboid = (SELECT oid FROM pg_database WHERE datname = current_database())
	UNION ALL
	SELECT 'workers', b.min <= b.max AND p.reason IS DISTINCT FROM 'no_process', 'warning',
		   format('%s transform worker(s) wanted (%s); from %s to %s, autoscale is %s',
				  p.wanted, p.reason, least(b.min, b.max), b.max, p.mode),
		   CASE WHEN b.min > b.max THEN
				format('The least number of workers, %s, is above the greatest, %s, which applies: '
					   'set elt.min_workers and elt.max_workers, or elt.set_worker_bounds().', b.min, b.max)
				WHEN p.reason = 'no_process' THEN
				format('More are wanted, but the server has no background worker to spare. Put this line into postgresql.conf '
					   'and restart the server: max_worker_processes = %s', setting.processes + p.max_workers) END
	FROM setting, elt.pool_status() p,
		 (SELECT coalesce(w.min_workers, current_setting('elt.min_workers', true)::int) AS min,
				 coalesce(w.max_workers, current_setting('elt.max_workers', true)::int) AS max
		  FROM (SELECT 1) one LEFT JOIN elt.worker_bounds w ON true) b
	WHERE p.wanted IS NOT NULL
	UNION ALL
	SELECT format('source %s', s.source), s.state IN ('streaming', 'snapshot'),
		   CASE WHEN s.state IN ('starting', 'paused') THEN 'warning' ELSE 'critical' END,
		   concat_ws('; ', s.state, CASE WHEN s.state NOT IN ('streaming', 'snapshot', 'paused') THEN s.last_error END,
					 -- of a remote source only its own server knows for whom
					 (SELECT 'makes its slot, which waits for transactions that run now'
							|| coalesce(': ' || (SELECT string_agg(a.waits, ', ')
												 FROM (SELECT 'process ' || a.pid AS waits FROM pg_stat_activity a
													   WHERE a.backend_xid IS NOT NULL
													   UNION ALL
													   SELECT format('prepared transaction %L', x.gid) FROM pg_prepared_xacts x) a
												 WHERE EXISTS (SELECT FROM elt.sources l WHERE l.name = s.source AND l.conninfo IS NULL)), '')
					  FROM elt.workers() w WHERE w.pid = s.pid AND w.state = 'making a slot'),
					 CASE WHEN s.state = 'paused' THEN 'the source keeps ' || pg_size_pretty(s.retained_wal_bytes) || ' of WAL for it'
							|| coalesce(', growing by ' || pg_size_pretty(s.pause_bytes_per_second) || ' per second', '')
							|| coalesce('; the slot is lost in ' || s.pause_time_left, '') END),
		   CASE WHEN s.state = 'paused' THEN format('SELECT elt.resume_source(%L)', s.source)
				WHEN s.state = 'lost' THEN format('SELECT elt.resync_source(%L) makes a new slot and copies all tables again; '
					'elt.gaps says what was lost.', s.source)
				WHEN s.state IN ('starting', 'error') THEN 'It is tried again by itself, at most a minute apart, once the cause is mended.' END
	FROM elt.stat_sources s
	UNION ALL
	SELECT format('publication of source %s', s.name), false, 'critical',
		   format('publication %s does not exist, so nothing is captured', s.publication),
		   format('CREATE PUBLICATION %I FOR TABLE … WITH (publish_via_partition_root = true); what was written without it is not staged',
				  s.publication)
	FROM elt.sources s
	JOIN elt.slot_state r ON r.source_id = s.source_id
	WHERE s.enabled AND NOT r.published
	UNION ALL
	SELECT format('dropped source %s', d.name), false, 'warning',
		   format('slot %s is still to be removed', d.slot_name),
		   format('It is tried again by itself; the slot keeps the source''s WAL until then. '
				  'Where the source is gone for good: DELETE FROM elt.dropped_sources WHERE source_id = %s', d.source_id)
	FROM elt.dropped_sources d
	UNION ALL
	SELECT format('pipeline %s', p.name), p.state = 'running',
		   CASE p.state WHEN 'blocked' THEN 'critical' ELSE 'warning' END,
		   concat_ws('; ', p.state, CASE WHEN p.state = 'blocked' THEN p.error_summary END),
		   CASE p.state WHEN 'blocked' THEN 'Its position holds; it is tried again by itself, at most 5 minutes apart, once the cause is mended.'
						WHEN 'paused' THEN format('SELECT elt.resume_pipeline(%L)', p.name) END
	FROM elt.pipelines p
$$;
COMMENT ON FUNCTION elt.health() IS 'all that must be right for elt to run: one row per check, with the line that mends it';

