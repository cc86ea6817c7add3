/* Quarantined changes: what they are, and how they leave. */

CREATE FUNCTION elt.replay_quarantine(
	pipeline text DEFAULT NULL,
	ids bigint[] DEFAULT NULL,
	sqlstate text DEFAULT NULL,
	fingerprint text DEFAULT NULL,
	max_rows int DEFAULT 1000,
	dry_run boolean DEFAULT false,
	key jsonb DEFAULT NULL,
	from_time timestamptz DEFAULT NULL,
	to_time timestamptz DEFAULT NULL,
	OUT quarantine_id bigint, OUT outcome text, OUT error text) RETURNS SETOF record
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_replay_quarantine';
COMMENT ON FUNCTION elt.replay_quarantine(text, bigint[], text, text, int, boolean, jsonb, timestamptz, timestamptz) IS
	'tries quarantined changes again, the oldest first, and what is parked behind them; outcomes: replayed, failed, superseded. '
	'Times are those of the first failure. Without a pipeline: all that the caller owns';

CREATE FUNCTION elt.patch_quarantine(id bigint, record jsonb, note text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_patch_quarantine';
COMMENT ON FUNCTION elt.patch_quarantine(bigint, jsonb, text) IS
	'puts a merge patch (RFC 7396) on a quarantined record, or on what earlier patches made of it; the original stays';

CREATE FUNCTION elt.discard_quarantine(ids bigint[], reason text) RETURNS bigint
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_discard_quarantine';
COMMENT ON FUNCTION elt.discard_quarantine(bigint[], text) IS
	'gives quarantined changes up and applies what is parked behind them; returns how many were discarded';

/* As RFC 7396 has it: members are put in or replaced, null takes one away, objects are merged. */
CREATE FUNCTION elt.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
	LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF jsonb_typeof(patch) IS DISTINCT FROM 'object' THEN
		RETURN patch;
	END IF;
	IF jsonb_typeof(target) IS DISTINCT FROM 'object' THEN
		target := '{}';
	END IF;
	RETURN target - ARRAY(SELECT jsonb_object_keys(patch)) ||
		coalesce((SELECT jsonb_object_agg(m.key, elt.merge_patch(target->m.key, m.value))
				  FROM jsonb_each(patch) AS m WHERE m.value <> 'null'), '{}');
END $$;
COMMENT ON FUNCTION elt.merge_patch(jsonb, jsonb) IS 'a JSON value with a merge patch (RFC 7396) put on it';

/* Through pg_cron, which need not be there when this is created. */
CREATE FUNCTION elt.schedule_replay(pipeline text, schedule text) RETURNS bigint
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	job_name text := 'elt replay ' || pipeline;
	job_id bigint;
BEGIN
	IF pipeline IS NULL THEN
		RAISE EXCEPTION 'argument "pipeline" must not be null'
			USING ERRCODE = 'null_value_not_allowed', HINT = 'Name the pipeline whose quarantined changes are to be replayed.';
	END IF;
	-- the job will do this as the same role: what keeps it from that is raised here
	PERFORM elt.replay_quarantine(pipeline => schedule_replay.pipeline, ids => '{}');
	IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron') THEN
		RAISE EXCEPTION 'pg_cron is not installed in database "%"', current_database()
			USING ERRCODE = 'feature_not_supported',
				DETAIL = 'Schedules of replays are kept and run by pg_cron.',
				HINT = format('Install it (on Debian: postgresql-15-cron), add pg_cron to shared_preload_libraries, set cron.database_name = %L, '
							  'restart, and CREATE EXTENSION pg_cron. Or let any scheduler run SELECT * FROM elt.replay_quarantine(%L).',
							  current_database(), pipeline);
	END IF;
	IF schedule IS NULL THEN
		EXECUTE 'SELECT cron.unschedule(j.jobname) FROM cron.job AS j WHERE j.jobname = $1 AND j.username = current_user' USING job_name;
		RETURN NULL;
	END IF;
	EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO job_id
		USING job_name, schedule, format('SELECT * FROM elt.replay_quarantine(pipeline => %L)', pipeline);
	RETURN job_id;
END $$;
COMMENT ON FUNCTION elt.schedule_replay(text, text) IS
	'lets pg_cron replay a pipeline''s quarantined changes by a schedule (cron syntax) as the role that calls; NULL ends that; returns the job''s id';

-- messages hold what was in the records: only for who owns the pipeline
CREATE VIEW elt.quarantine_groups WITH (security_barrier) AS
	SELECT p.name AS pipeline, g.fingerprint, g.sqlstate, g.step, g.constraint_name, g.changes, g.open, g.waiting,
		   g.first_failed_at, g.last_failed_at, m.message, s.sample_ids
	FROM elt.pipelines p
	CROSS JOIN LATERAL (
		SELECT u.fingerprint, q.sqlstate, q.step, q.constraint_name, count(*) AS changes,
			   count(*) FILTER (WHERE u.status = 'open') AS open, count(*) FILTER (WHERE u.status = 'waiting') AS waiting,
			   min(u.first_failed_at) AS first_failed_at, max(q.last_failed_at) AS last_failed_at, min(u.quarantine_id) AS first_id
		FROM elt.quarantine_unresolved u
		JOIN elt.quarantine_records q USING (quarantine_id)
		WHERE u.pipeline_id = p.pipeline_id
		GROUP BY u.fingerprint, q.sqlstate, q.step, q.constraint_name) g
	CROSS JOIN LATERAL (
		SELECT q.message FROM elt.quarantine_records q WHERE q.quarantine_id = g.first_id) m
	CROSS JOIN LATERAL (
		SELECT ARRAY(SELECT u.quarantine_id FROM elt.quarantine_unresolved u
					 WHERE u.pipeline_id = p.pipeline_id AND u.fingerprint = g.fingerprint
					 ORDER BY u.quarantine_id LIMIT 5) AS sample_ids) s
	WHERE pg_catalog.pg_has_role(p.owner::oid, 'USAGE');
COMMENT ON VIEW elt.quarantine_groups IS
	'unresolved quarantined changes by error: how many, since when, one of the messages, and up to five quarantine_ids';
