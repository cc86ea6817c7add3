/* What copies are at. */

CREATE VIEW elt.progress_snapshot WITH (security_barrier) AS
	SELECT s.name AS source, t.relation AS "table",
		   CASE WHEN c.relation IS NULL THEN 'waiting'
				WHEN p.phase = 'planned' THEN 'aligning' ELSE 'copying' END AS phase,
		   coalesce(c.done, 0) AS done, e.total, r.rate,
		   CASE WHEN r.rate > 0 THEN pg_catalog.make_interval(secs => greatest(e.total - c.done, 0) / r.rate) END AS eta,
		   t.resync, c.started_at, t.copy_error AS last_error
	FROM elt.source_tables t
	JOIN elt.sources s USING (source_id)
	LEFT JOIN elt.snapshot_passes p USING (source_id)
	LEFT JOIN elt.snapshot_tables c ON c.source_id = t.source_id AND c.relation = t.relation
	CROSS JOIN LATERAL (
		SELECT CASE WHEN c.blocks_done > 0 THEN (c.done::double precision / c.blocks_done * c.blocks)::bigint ELSE c.total END AS total) e
	CROSS JOIN LATERAL (
		SELECT (c.done - c.resumed_done) / nullif(extract(epoch FROM c.updated_at - c.resumed_at), 0)::double precision AS rate) r
	WHERE t.state = 'pending' AND elt.may_see(s.owner);
COMMENT ON VIEW elt.progress_snapshot IS
	'one row per table that waits for its copy or is being copied: phase, rows done of an estimated total, rows per second, time left';
