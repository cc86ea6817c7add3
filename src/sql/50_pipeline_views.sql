/* What pipelines do. */

CREATE VIEW elt.stat_pipelines WITH (security_barrier) AS
	SELECT p.name AS pipeline, p.state, p.version, c.settled_lsn,
		   b.changes AS backlog_changes, b.oldest_commit_ts AS oldest_pending_ts,
		   c.changes_read, c.rows_written, q.quarantined_open, k.parked,
		   elt.latency_quantile_ms(p.pipeline_id, 0.5) AS latency_p50_ms,
		   elt.latency_quantile_ms(p.pipeline_id, 0.99) AS latency_p99_ms,
		   CASE WHEN pg_has_role(p.owner::oid, 'USAGE') THEN p.last_error ELSE p.error_summary END AS last_error,
		   p.last_error_at, p.blocked_by
	FROM elt.pipelines p
	CROSS JOIN LATERAL elt.pipeline_backlog(p.name) b
	CROSS JOIN LATERAL (
		SELECT min(settled_lsn) AS settled_lsn,
			   sum(changes_read)::bigint AS changes_read, sum(rows_written)::bigint AS rows_written
		FROM elt.checkpoints WHERE pipeline_id = p.pipeline_id) c
	CROSS JOIN LATERAL (
		SELECT count(*) AS quarantined_open
		FROM elt.quarantine_unresolved WHERE pipeline_id = p.pipeline_id) q
	CROSS JOIN LATERAL (
		SELECT count(*) AS parked FROM elt.parked WHERE pipeline_id = p.pipeline_id) k
	WHERE elt.may_see(p.owner);
COMMENT ON VIEW elt.stat_pipelines IS 'one row per pipeline: its state, how far it is, what it did and what it could not do';

CREATE VIEW elt.backlog WITH (security_barrier) AS
	SELECT p.name AS pipeline, b.changes, b.bytes, b.oldest_commit_ts, b.eta
	FROM elt.pipelines p
	CROSS JOIN LATERAL elt.pipeline_backlog(p.name) b
	WHERE elt.may_see(p.owner);
COMMENT ON VIEW elt.backlog IS 'what waits in raw staging for each pipeline, and how long it will take';

-- keys are data: only for who owns the pipeline
CREATE VIEW elt.blocked_keys WITH (security_barrier) AS
	SELECT p.name AS pipeline, q.key, count(*) AS quarantined, k.parked,
		   min(q.change_id) AS first_change_id, min(q.first_failed_at) AS blocked_since,
		   k.oldest_parked_at,
		   k.parked > pg_catalog.current_setting('elt.max_parked_per_key')::bigint
			   AND pg_catalog.current_setting('elt.max_parked_per_key')::bigint > 0 AS overflow
	FROM elt.pipelines p
	JOIN elt.quarantine_unresolved q USING (pipeline_id)
	CROSS JOIN LATERAL (
		SELECT count(*) AS parked, min(k.parked_at) AS oldest_parked_at FROM elt.parked k
		WHERE k.pipeline_id = q.pipeline_id AND k.key_hash = q.key_hash AND k.key IS NOT DISTINCT FROM q.key) k
	WHERE p.ordering = 'strict' AND pg_catalog.pg_has_role(p.owner::oid, 'USAGE')
	GROUP BY p.name, q.key, q.key_hash, k.parked, k.oldest_parked_at;
COMMENT ON VIEW elt.blocked_keys IS 'keys whose changes are parked until their quarantined change is resolved; overflow: more than elt.max_parked_per_key';

CREATE VIEW elt.progress_replay WITH (security_barrier) AS
	SELECT r.run_id, r.pipeline, r.phase, r.done, r.total, s.rate,
		   CASE WHEN r.state = 'running' AND s.rate > 0 AND r.phase <> 'scan'
				THEN pg_catalog.make_interval(secs => greatest(r.total - r.done, 0) / s.rate) END AS eta,
		   CASE WHEN r.state = 'running' AND NOT elt.session_is_alive(r.pid, r.backend_start)
				THEN 'interrupted' ELSE r.state END AS state,
		   r.selected, r.applied, r.superseded, r.quarantined, r.skipped, r.dry_run,
		   r.started_at, r.updated_at, r.finished_at
	FROM elt.replay_runs r
	JOIN elt.pipelines p USING (pipeline_id)
	CROSS JOIN LATERAL (
		SELECT (r.done - r.resumed_done) / nullif(extract(epoch FROM r.updated_at - r.resumed_at), 0)::double precision AS rate) s
	WHERE elt.may_see(p.owner);
COMMENT ON VIEW elt.progress_replay IS 'one row per replay: phase, changes done of total, changes per second, time left, state';
