/*
 * What waits for a time of day, after the clock was set back: see control/time_of_day.c.
 * The bounds are those of who wrote these times: a probe comes after 5 min at
 * most, a quarantined change after 5 s that double to 1 h.
 */

CREATE FUNCTION elt.pull_times() RETURNS boolean
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	present CONSTANT timestamptz := clock_timestamp();
	pulled boolean := false;
BEGIN
	UPDATE elt.quarantine_unresolved u SET next_retry_at = present
	FROM (SELECT q.quarantine_id FROM elt.quarantine_unresolved q
		  JOIN elt.quarantine_records r USING (quarantine_id)
		  WHERE q.status = 'waiting' AND q.next_retry_at < 'infinity'
			AND q.next_retry_at > present + least(interval '5 s' * power(2, least(r.retry_count, 20)), interval '1 h')
		  FOR UPDATE OF q SKIP LOCKED) far
	WHERE u.quarantine_id = far.quarantine_id;
	pulled := pulled OR FOUND;

	UPDATE elt.pipelines p SET next_probe_at = present
	FROM (SELECT pipeline_id FROM elt.pipelines
		  WHERE next_probe_at > present + interval '1 s' * least(300, power(2, least(probes, 9)))
		  FOR UPDATE SKIP LOCKED) far
	WHERE p.pipeline_id = far.pipeline_id;
	pulled := pulled OR FOUND;

	UPDATE elt.alerts a SET started_at = least(a.started_at, present), absent_since = least(a.absent_since, present),
		fired_at = least(a.fired_at, present), last_notified_at = least(a.last_notified_at, present),
		updated_at = least(a.updated_at, present)
	FROM (SELECT alert_id FROM elt.alerts
		  WHERE state <> 'resolved' AND greatest(started_at, absent_since, fired_at, last_notified_at, updated_at) > present
		  FOR UPDATE SKIP LOCKED) far
	WHERE a.alert_id = far.alert_id;
	UPDATE elt.alert_rules r SET last_notified_at = present
	FROM (SELECT rule FROM elt.alert_rules WHERE last_notified_at > present FOR UPDATE SKIP LOCKED) far
	WHERE r.rule = far.rule;

	-- a slot that seems to be younger than what was seen of it is not judged
	UPDATE elt.sources s SET slot_made_at = least(s.slot_made_at, present), paused_at = least(s.paused_at, present)
	FROM (SELECT source_id FROM elt.sources WHERE greatest(slot_made_at, paused_at) > present FOR NO KEY UPDATE SKIP LOCKED) far
	WHERE s.source_id = far.source_id;
	UPDATE elt.source_tables t SET copy_retry_at = present
	FROM (SELECT table_id FROM elt.source_tables WHERE copy_retry_at > present + interval '1 min' FOR NO KEY UPDATE SKIP LOCKED) far
	WHERE t.table_id = far.table_id;
	RETURN pulled;
END $$;
COMMENT ON FUNCTION elt.pull_times() IS
	'internal: brings nearer the times in elt''s tables that are farther away than they can have been put, because the clock was set back';
