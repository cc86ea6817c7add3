/*
 * Alerts: rules, what they found, silences.
 *
 * The supervisor evaluates the rules (src/control/alert.c) and calls the
 * internal functions at the end of this file: samples of the shipped rules go
 * through store_alert_samples() into elt.alerts, and notify_alerts() tells
 * what is new there, in a transaction of its own.
 */

CREATE TABLE elt.alert_rules (
	rule				text PRIMARY KEY CHECK (rule ~ '^[a-z_][a-z0-9_]{0,62}$'),
	description			text NOT NULL DEFAULT '',
	query				text,						-- NULL: shipped, see shipped_alert_samples()
	threshold			double precision,			-- a value above it fires; NULL: the row's own threshold, or each row
	for_duration		interval NOT NULL DEFAULT '0' CHECK (for_duration BETWEEN '0' AND '1 year'),
	keep_firing_for		interval NOT NULL DEFAULT '0' CHECK (keep_firing_for BETWEEN '0' AND '1 year'),
	repeat_interval		interval NOT NULL DEFAULT '4 h' CHECK (repeat_interval BETWEEN '1 s' AND '1 year'),
	group_interval		interval NOT NULL DEFAULT '10 s' CHECK (group_interval BETWEEN '0' AND '1 year'),
	evaluation_interval	interval NOT NULL DEFAULT '1 s' CHECK (evaluation_interval BETWEEN '1 s' AND '1 day'),
	severity			text NOT NULL DEFAULT 'warning' CHECK (severity IN ('info', 'warning', 'critical')),
	hint				text,
	enabled				boolean NOT NULL DEFAULT true,
	shipped				boolean NOT NULL GENERATED ALWAYS AS (query IS NULL) STORED,
	tuned				boolean NOT NULL DEFAULT false,	-- a shipped rule that was changed: a dump carries it
	owner				regrole,					-- of a user's rule: its query runs as this role
	search_path			text,						-- as it was when the query was set
	last_error			text,						-- of its latest evaluation; NULL: it succeeded
	last_error_at		timestamptz,
	last_notified_at	timestamptz,
	CHECK ((query IS NULL) = (owner IS NULL) AND (query IS NULL) = (search_path IS NULL))
);
COMMENT ON TABLE elt.alert_rules IS 'when to alert: shipped rules, which may be tuned, and rules of users';

INSERT INTO elt.alert_rules
	(rule, severity, threshold, for_duration, keep_firing_for, evaluation_interval, description, hint) VALUES
	('error_rate', 'critical', NULL, '0', '0', '1 s',
	 'percent of a pipeline''s changes that failed in 5 minutes, of at least 100 (threshold: elt.error_rate_threshold)',
	 'See elt.quarantine for the fingerprint, mend the cause, then replay what is quarantined.'),
	('error_spike', 'warning', NULL, '0', '1 min', '1 s',
	 'one error''s failures in the last minute (up to 2,000): at least 10, and more than 10 times its mean per minute over the hour before',
	 'See elt.quarantine for the fingerprint; a new error often comes with a deploy.'),
	('pipeline_blocked', 'critical', NULL, '0', '0', '1 s',
	 'seconds that a pipeline has been blocked by an error of its environment',
	 'Mend what elt.stat_pipelines.last_error says; the pipeline resumes by itself, elt.resume_pipeline() tries at once.'),
	('freshness', 'warning', 300, '30 s', '0', '10 s',
	 'age in seconds of the oldest change that waits for a pipeline',
	 'See elt.backlog and elt.stat_workers: more workers (elt.max_workers), a faster transform, or a lock on the target.'),
	('backlog_drain_time', 'warning', 600, '1 min', '1 min', '10 s',
	 'seconds that the workers would need for a pipeline''s backlog at their present rate',
	 'Raise elt.max_workers, or see elt.stat_workers for what holds them.'),
	('source_disconnected', 'critical', NULL, '30 s', '0', '1 s',
	 'an enabled source has no capture worker that streams, or its publication does not exist',
	 'See elt.health() and elt.stat_sources.last_error; it is tried again by itself.'),
	('slot_retained_wal', 'warning', NULL, '0', '0', '10 s',
	 'bytes of WAL that a source''s slot keeps (threshold: 10 GB, half of max_slot_wal_keep_size, or elt.max_slot_lag)',
	 'Let capture catch up, or drop the source, before the disk is full or the slot is lost.'),
	('slot_lost', 'critical', NULL, '0', '0', '10 s',
	 'a source''s slot is gone or has lost the WAL it needs',
	 'elt.gaps says what was lost and why; SELECT elt.resync_source(...) makes a new slot and copies all tables again.'),
	('slot_xmin_age', 'warning', 200000000, '0', '0', '10 s',
	 'transactions since the oldest one whose catalog rows a source''s slot keeps from being vacuumed away',
	 'Let capture catch up, resume the source, or drop it: a server whose transaction ids run out stops.'),
	('worker_crash_loop', 'critical', 2, '0', '1 min', '1 s',
	 'how often a worker failed in 5 minutes',
	 'See the server''s log and elt.stat_sources.last_error.'),
	('worker_budget_exhausted', 'warning', NULL, '5 s', '0', '1 s',
	 'a worker is wanted and cannot be started, because the server has no background worker free for it',
	 'Raise max_worker_processes in postgresql.conf and restart the server.'),
	('raw_size', 'warning', NULL, '0', '0', '1 min',
	 'bytes of raw staging in this database (threshold: elt.max_raw_size)',
	 'See elt.raw_staging for what keeps it; shorten elt.raw_retention, or elt.set_raw_retention() of the source.'),
	('schema_drift', 'info', NULL, '0', '0', '10 s',
	 'the new version of the columns of a relation that a pipeline reads, for 10 minutes; detail says what changed',
	 'Compare it (elt.diff_schema) with the transform and the target.'),
	('schema_break', 'warning', NULL, '0', '0', '10 s',
	 'the same where a column was dropped, renamed or retyped, or the key changed',
	 'Compare it (elt.diff_schema) with the transform and the target; a transform finds such a column missing, or with values of the new type.'),
	('resync_needed', 'critical', NULL, '0', '0', '10 s',
	 'the version of a relation whose rows were rewritten, came or went with a partition, or whose name went to another table, until it is copied anew',
	 'SELECT elt.resync_table(source, relation); elt.resyncs_needed has the call for each.'),
	('relation_renamed', 'warning', NULL, '0', '0', '10 s',
	 'a pipeline reads a relation whose table goes on under another name, so that it gets nothing more',
	 'elt.alter_pipeline(name, relation => the new name) lets it go on where the old name ended.'),
	('truncate_ignored', 'warning', NULL, '0', '0', '10 s',
	 'a source''s table was truncated and the pipeline is told not to follow, for a day',
	 'Truncate the target by hand if it is to follow, and CALL elt.replay for what came after.'),
	('parked_overflow', 'warning', NULL, '0', '0', '1 min',
	 'changes parked behind one key (threshold: elt.max_parked_per_key)',
	 'See elt.blocked_keys where overflow is true: replay, patch or discard the quarantined change that the key waits for.'),
	('oversize_value', 'warning', NULL, '0', '0', '10 s',
	 'values of a column that were too large to be staged, in the last 10 minutes',
	 'See elt.oversize_values: raw staging has their size only. Leave the column out of the publication, or fetch the values from the source.'),
	('rule_error', 'warning', NULL, '0', '0', '10 s',
	 'the query of an alert rule fails',
	 'See elt.alert_rules.last_error.');

/*
 * A restored row takes the place of the shipped one, and what is changed in a
 * shipped one counts as tuned, which is what a dump looks for.
 */
CREATE FUNCTION elt.keep_alert_rule() RETURNS trigger
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF tg_op = 'INSERT' THEN
		DELETE FROM elt.alert_rules WHERE rule = new.rule AND query IS NULL;
	ELSIF new.query IS NULL THEN
		new.tuned := true;
	END IF;
	RETURN new;
END $$;
COMMENT ON FUNCTION elt.keep_alert_rule() IS 'internal: trigger of elt.alert_rules';

CREATE FUNCTION elt.alert_rules_changed() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'elt_alert_rules_changed';
COMMENT ON FUNCTION elt.alert_rules_changed() IS 'internal: trigger of elt.alert_rules that tells the supervisor';

CREATE TRIGGER keep_alert_rule
	BEFORE INSERT OR UPDATE OF description, threshold, for_duration, keep_firing_for, repeat_interval, group_interval,
		evaluation_interval, severity, hint, enabled ON elt.alert_rules
	FOR EACH ROW EXECUTE FUNCTION elt.keep_alert_rule();
CREATE TRIGGER alert_rules_changed
	AFTER INSERT OR DELETE OR UPDATE OF query, owner, description, threshold, for_duration, keep_firing_for, repeat_interval,
		group_interval, evaluation_interval, severity, hint, enabled ON elt.alert_rules
	FOR EACH STATEMENT EXECUTE FUNCTION elt.alert_rules_changed();

CREATE TABLE elt.alerts (
	alert_id			bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
	rule				text NOT NULL,
	labels				jsonb NOT NULL,				-- tells the instances of a rule apart; values are strings
	pipeline			text GENERATED ALWAYS AS (labels->>'pipeline') STORED,
	source				text GENERATED ALWAYS AS (labels->>'source') STORED,
	state				text NOT NULL CHECK (state IN ('pending', 'firing', 'resolved')),
	severity			text NOT NULL,
	value				double precision,
	threshold			double precision,
	fingerprint			text,						-- of the error, where there is one
	quarantine_ids		bigint[],					-- a few of the records that failed
	detail				text,
	hint				text,
	started_at			timestamptz NOT NULL,		-- pending since
	fired_at			timestamptz,
	absent_since		timestamptz,				-- firing only for keep_firing_for any more
	resolved_at			timestamptz,
	updated_at			timestamptz NOT NULL,		-- when value and what follows it were read
	silenced			boolean NOT NULL DEFAULT false,
	acked_by			name,
	acked_at			timestamptz,
	ack_note			text,
	told				text CHECK (told IN ('firing', 'resolved')),	-- the state that the last notification told
	notification_id		bigint,						-- of that notification; they ascend
	last_notified_at	timestamptz,
	notifications		int NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX alerts_unresolved ON elt.alerts (rule, labels) WHERE state <> 'resolved';
CREATE INDEX alerts_untold ON elt.alerts (rule) WHERE state = 'resolved' AND told = 'firing';
CREATE INDEX alerts_notification ON elt.alerts (notification_id);
CREATE INDEX alerts_resolved ON elt.alerts (resolved_at) WHERE state = 'resolved';
COMMENT ON TABLE elt.alerts IS 'what the rules found: one unresolved row per rule and labels, and the resolved ones of 30 days';

CREATE SEQUENCE elt.alert_notifications;

CREATE TABLE elt.silences (
	silence_id			bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
	rule				text,						-- NULL: any
	labels				jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),	-- contained in the alert's
	author				name NOT NULL,
	comment				text,
	starts_at			timestamptz NOT NULL DEFAULT now(),
	expires_at			timestamptz NOT NULL,
	CHECK (expires_at >= starts_at)
);
COMMENT ON TABLE elt.silences IS 'alerts that are recorded but not told, until when, and by whose will';

/* What is to be told: alerts that fire and were not told, or are due again, and ends of what was told. */
CREATE VIEW elt.alert_news WITH (security_barrier) AS
	SELECT a.alert_id, a.rule, a.state,
		   CASE WHEN a.state = 'resolved' THEN 'resolved' WHEN a.told IS NULL THEN 'new' ELSE 'repeat' END AS reason,
		   greatest(CASE WHEN a.state = 'firing' AND a.told IS NOT NULL
						 THEN a.last_notified_at + coalesce(r.repeat_interval, '4 h') END,
					r.last_notified_at + r.group_interval,
					coalesce(a.resolved_at, a.fired_at)) AS due_at
	FROM elt.alerts a
	LEFT JOIN elt.alert_rules r ON r.rule = a.rule
	WHERE (a.state = 'firing' AND NOT a.silenced AND (a.told IS NULL OR a.acked_at IS NULL))
		OR (a.state = 'resolved' AND a.told = 'firing');
COMMENT ON VIEW elt.alert_news IS 'internal: what the next notifications will tell, and when';

/* ---- for users ---- */

CREATE FUNCTION elt.create_alert_rule(
	rule text,
	query text,
	threshold double precision DEFAULT NULL,
	for_duration interval DEFAULT '0',
	severity text DEFAULT 'warning',
	hint text DEFAULT NULL,
	description text DEFAULT NULL,
	keep_firing_for interval DEFAULT '0',
	repeat_interval interval DEFAULT '4 h',
	group_interval interval DEFAULT '10 s',
	evaluation_interval interval DEFAULT '1 s') RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_create_alert_rule';
COMMENT ON FUNCTION elt.create_alert_rule(text, text, double precision, interval, text, text, text, interval, interval, interval, interval) IS
	'alerts for each row of a SELECT whose "value" is above the threshold; the other columns are labels. It runs as the role that calls, read-only';

CREATE FUNCTION elt.alter_alert_rule(
	rule text,
	query text DEFAULT NULL,
	threshold double precision DEFAULT NULL,
	for_duration interval DEFAULT NULL,
	severity text DEFAULT NULL,
	hint text DEFAULT NULL,
	description text DEFAULT NULL,
	keep_firing_for interval DEFAULT NULL,
	repeat_interval interval DEFAULT NULL,
	group_interval interval DEFAULT NULL,
	evaluation_interval interval DEFAULT NULL,
	enabled boolean DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_alter_alert_rule';
COMMENT ON FUNCTION elt.alter_alert_rule(text, text, double precision, interval, text, text, text, interval, interval, interval, interval, boolean) IS
	'changes what is not null; who sets the query becomes the rule''s owner. Of a shipped rule all but the query may be changed, by the database''s owner';

CREATE FUNCTION elt.drop_alert_rule(rule text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_drop_alert_rule';
COMMENT ON FUNCTION elt.drop_alert_rule(text) IS
	'removes a rule of a user and resolves its alerts; a shipped rule can only be disabled';

CREATE FUNCTION elt.silence_alert(
	rule text DEFAULT NULL,
	labels jsonb DEFAULT '{}',
	duration interval DEFAULT '1 h',
	comment text DEFAULT NULL) RETURNS bigint
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_silence_alert';
COMMENT ON FUNCTION elt.silence_alert(text, jsonb, interval, text) IS
	'keeps alerts of a rule (NULL: of any) that have these labels from being told, from now on for a duration; returns the silence''s id';

CREATE FUNCTION elt.expire_silence(silence_id bigint) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_expire_silence';
COMMENT ON FUNCTION elt.expire_silence(bigint) IS 'ends a silence now';

CREATE FUNCTION elt.ack_alert(alert_id bigint, note text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_ack_alert';
COMMENT ON FUNCTION elt.ack_alert(bigint, text) IS 'takes an alert on: it is not repeated; its end is told';

/* ---- who may ---- */

CREATE FUNCTION elt.sees_alert(role name, rule text, labels jsonb) RETURNS boolean
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
	SELECT pg_has_role($1, 'pg_monitor', 'USAGE')
		OR pg_has_role($1, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE')
		OR EXISTS (SELECT FROM elt.pipelines p WHERE p.name = $3->>'pipeline' AND pg_has_role($1, p.owner::oid, 'USAGE'))
		OR EXISTS (SELECT FROM elt.sources s WHERE s.name = $3->>'source' AND pg_has_role($1, s.owner::oid, 'USAGE'))
		OR EXISTS (SELECT FROM elt.alert_rules r WHERE r.rule = $2 AND r.owner IS NOT NULL AND pg_has_role($1, r.owner::oid, 'USAGE'))
$$;
COMMENT ON FUNCTION elt.sees_alert(name, text, jsonb) IS
	'whether alerts of a rule with these labels concern a role: pg_monitor, the owners of the database, the pipeline, the source, the rule';

/* ---- internal: called by the C functions of the same names, with the role that called them ---- */

CREATE FUNCTION elt.put_alert_rule(caller oid, rule text, query text, threshold double precision, for_duration interval,
	severity text, hint text, description text, keep_firing_for interval, repeat_interval interval, group_interval interval,
	evaluation_interval interval, enabled boolean, search_path text, create_new boolean) RETURNS void
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old elt.alert_rules;
BEGIN
	SELECT * INTO old FROM elt.alert_rules r WHERE r.rule = $2 FOR UPDATE;
	IF create_new THEN
		IF old.rule IS NOT NULL THEN
			RAISE duplicate_object USING MESSAGE = format('alert rule "%s" already exists', $2),
				HINT = 'Choose another name, or change it with elt.alter_alert_rule().';
		ELSIF $2 !~ '^[a-z_][a-z0-9_]{0,62}$' THEN
			RAISE invalid_name USING MESSAGE = format('invalid alert rule name: "%s"', $2),
				DETAIL = 'A name has 1 to 63 characters of a-z, 0-9 and _, with no digit first.',
				HINT = 'Choose a name like late_orders.';
		END IF;
	ELSE
		PERFORM elt.require_alert_rule($1, $2);
		IF old.shipped AND $3 IS NOT NULL THEN
			RAISE object_not_in_prerequisite_state USING MESSAGE = format('the query of shipped alert rule "%s" cannot be changed', $2),
				HINT = 'Disable it with elt.alter_alert_rule(rule, enabled => false), and create a rule of your own.';
		END IF;
	END IF;
	IF $6 NOT IN ('info', 'warning', 'critical') THEN
		RAISE invalid_parameter_value USING MESSAGE = format('unknown severity "%s"', $6),
			HINT = 'The severities are info, warning and critical.';
	ELSIF $5 NOT BETWEEN '0' AND '1 year' OR $9 NOT BETWEEN '0' AND '1 year' OR $11 NOT BETWEEN '0' AND '1 year'
		OR $10 NOT BETWEEN '1 s' AND '1 year' OR $12 NOT BETWEEN '1 s' AND '1 day' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'an interval of the alert rule is out of range',
			DETAIL = 'for_duration, keep_firing_for and group_interval are 0 to 1 year, repeat_interval 1 s to 1 year, evaluation_interval 1 s to 1 day.',
			HINT = 'Leave an interval out to keep its default.';
	END IF;

	IF create_new THEN
		INSERT INTO elt.alert_rules (rule, query, owner, search_path, threshold, for_duration, severity, hint, description,
				keep_firing_for, repeat_interval, group_interval, evaluation_interval)
		VALUES ($2, $3, $1, $14, $4, coalesce($5, '0'), coalesce($6, 'warning'), $7, coalesce($8, ''),
				coalesce($9, '0'), coalesce($10, '4 h'), coalesce($11, '10 s'), coalesce($12, '1 s'));
	ELSE
		UPDATE elt.alert_rules r SET
			query = coalesce($3, r.query),
			owner = CASE WHEN $3 IS NULL THEN r.owner ELSE $1 END,
			search_path = CASE WHEN $3 IS NULL THEN r.search_path ELSE $14 END,
			threshold = coalesce($4, r.threshold), for_duration = coalesce($5, r.for_duration),
			severity = coalesce($6, r.severity), hint = coalesce($7, r.hint), description = coalesce($8, r.description),
			keep_firing_for = coalesce($9, r.keep_firing_for), repeat_interval = coalesce($10, r.repeat_interval),
			group_interval = coalesce($11, r.group_interval), evaluation_interval = coalesce($12, r.evaluation_interval),
			enabled = coalesce($13, r.enabled)
		WHERE r.rule = $2;
	END IF;
END $$;
COMMENT ON FUNCTION elt.put_alert_rule(oid, text, text, double precision, interval, text, text, text, interval, interval, interval, interval, boolean, text, boolean) IS
	'internal: stores what create_alert_rule() and alter_alert_rule() are told';

CREATE FUNCTION elt.require_alert_rule(caller oid, rule text) RETURNS elt.alert_rules
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	found_rule elt.alert_rules;
BEGIN
	SELECT * INTO found_rule FROM elt.alert_rules r WHERE r.rule = $2;
	IF found_rule.rule IS NULL THEN
		RAISE undefined_object USING MESSAGE = format('alert rule "%s" does not exist', $2),
			HINT = 'SELECT rule FROM elt.alert_rules lists the rules.';
	ELSIF NOT pg_has_role($1, coalesce(found_rule.owner::oid, (SELECT datdba FROM pg_database WHERE datname = current_database())), 'USAGE') THEN
		RAISE insufficient_privilege USING MESSAGE = format('must be owner of alert rule "%s"', $2),
			HINT = 'A shipped rule belongs to the owner of the database.';
	END IF;
	RETURN found_rule;
END $$;
COMMENT ON FUNCTION elt.require_alert_rule(oid, text) IS 'internal: a rule that the caller may change, or an error';

CREATE FUNCTION elt.delete_alert_rule(caller oid, rule text) RETURNS void
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	IF (elt.require_alert_rule($1, $2)).shipped THEN
		RAISE object_not_in_prerequisite_state USING MESSAGE = format('alert rule "%s" is shipped and cannot be dropped', $2),
			HINT = 'Disable it with elt.alter_alert_rule(rule, enabled => false).';
	END IF;
	DELETE FROM elt.alert_rules r WHERE r.rule = $2;
END $$;
COMMENT ON FUNCTION elt.delete_alert_rule(oid, text) IS 'internal: see drop_alert_rule()';

CREATE FUNCTION elt.put_silence(caller oid, rule text, labels jsonb, duration interval, comment text) RETURNS bigint
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	id bigint;
BEGIN
	IF $2 IS NOT NULL AND NOT EXISTS (SELECT FROM elt.alert_rules r WHERE r.rule = $2) THEN
		RAISE undefined_object USING MESSAGE = format('alert rule "%s" does not exist', $2),
			HINT = 'SELECT rule FROM elt.alert_rules lists the rules.';
	ELSIF $3 IS NULL OR jsonb_typeof($3) <> 'object'
		OR EXISTS (SELECT FROM jsonb_each($3) l WHERE jsonb_typeof(l.value) <> 'string') THEN
		RAISE invalid_parameter_value USING MESSAGE = 'labels must be an object whose values are strings',
			HINT = 'Pass labels like {"pipeline": "orders"}; {} stands for all.';
	ELSIF $4 IS NULL OR $4 <= '0' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'duration must be greater than zero',
			HINT = 'A silence ends by itself: pass how long it is to last, such as 1 h.';
	ELSIF NOT elt.sees_alert(pg_get_userbyid($1), $2, $3) THEN
		RAISE insufficient_privilege USING MESSAGE = 'these alerts are not yours to silence',
			HINT = 'Name a pipeline or source of yours in the labels, or a rule of yours; members of pg_monitor may silence any.';
	END IF;
	INSERT INTO elt.silences (rule, labels, author, comment, starts_at, expires_at)
	SELECT $2, $3, pg_get_userbyid($1), $5, t, t + $4 FROM clock_timestamp() AS t
	RETURNING silence_id INTO id;
	RETURN id;
END $$;
COMMENT ON FUNCTION elt.put_silence(oid, text, jsonb, interval, text) IS 'internal: see silence_alert()';

CREATE FUNCTION elt.end_silence(caller oid, silence_id bigint) RETURNS void
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	silence elt.silences;
BEGIN
	SELECT * INTO silence FROM elt.silences s WHERE s.silence_id = $2 FOR UPDATE;
	IF silence.silence_id IS NULL THEN
		RAISE undefined_object USING MESSAGE = format('silence %s does not exist', $2),
			HINT = 'SELECT silence_id FROM elt.silences lists the silences.';
	ELSIF NOT elt.sees_alert(pg_get_userbyid($1), silence.rule, silence.labels) THEN
		RAISE insufficient_privilege USING MESSAGE = format('silence %s is not yours to end', $2),
			HINT = 'Members of pg_monitor may end any.';
	END IF;
	UPDATE elt.silences s SET expires_at = greatest(clock_timestamp(), starts_at)
	WHERE s.silence_id = $2 AND expires_at > clock_timestamp();
END $$;
COMMENT ON FUNCTION elt.end_silence(oid, bigint) IS 'internal: see expire_silence()';

CREATE FUNCTION elt.put_ack(caller oid, alert_id bigint, note text) RETURNS void
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	alert elt.alerts;
BEGIN
	SELECT * INTO alert FROM elt.alerts a WHERE a.alert_id = $2;
	-- an alert that the caller may not see is none
	IF alert.alert_id IS NULL OR NOT elt.sees_alert(pg_get_userbyid($1), alert.rule, alert.labels) THEN
		RAISE undefined_object USING MESSAGE = format('alert %s does not exist', $2),
			HINT = 'SELECT alert_id, rule, state FROM elt.alerts lists the alerts.';
	END IF;
	UPDATE elt.alerts a SET acked_by = pg_get_userbyid($1), acked_at = clock_timestamp(), ack_note = $3
	WHERE a.alert_id = $2 AND a.state <> 'resolved';
	IF NOT found THEN
		RAISE object_not_in_prerequisite_state USING MESSAGE = format('alert %s is resolved', $2),
			HINT = 'Only an alert that is pending or firing can be acknowledged.';
	END IF;
END $$;
COMMENT ON FUNCTION elt.put_ack(oid, bigint, text) IS 'internal: see ack_alert()';

/*
 * ---- internal: evaluation, under the lock that src/control/alert.c holds ----
 *
 * These run again and again over little: planning each time would cost most.
 */

/* The commonest error among a pipeline's latest failures, or one of them, and some of its records. */
CREATE FUNCTION elt.alert_failures(pipeline_id bigint, since timestamptz, fingerprint text,
	OUT sample_fingerprint text, OUT quarantine_ids bigint[], OUT detail text) RETURNS record
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
	SELECT f.fingerprint, (array_agg(f.quarantine_id ORDER BY f.quarantine_id))[1:5],
		   -- names and codes only: messages quote values
		   concat_ws(', ', 'sqlstate ' || min(f.sqlstate), 'step ' || min(f.step), 'table ' || min(f.table_name),
					 'column ' || min(f.column_name), 'constraint ' || min(f.constraint_name))
	INTO sample_fingerprint, quarantine_ids, detail
	FROM (SELECT q.fingerprint, q.quarantine_id, q.sqlstate, q.step, q.table_name, q.column_name, q.constraint_name
		  FROM elt.quarantine_records q
		  WHERE q.pipeline_id = $1 AND q.first_failed_at >= $2
		  ORDER BY q.first_failed_at DESC LIMIT 1000) f
	WHERE $3 IS NULL OR f.fingerprint = $3
	GROUP BY f.fingerprint ORDER BY count(*) DESC, f.fingerprint LIMIT 1;
END $$;
COMMENT ON FUNCTION elt.alert_failures(bigint, timestamptz, text) IS
	'internal: what an alert says about the failures of a pipeline since a time';

CREATE FUNCTION elt.shipped_alert_samples(rules text[], at timestamptz) RETURNS TABLE (rule text, sample jsonb)
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
	home_id text := elt.home();
	keep_bytes float8;
BEGIN
	IF 'error_rate' = ANY (rules) THEN
		RETURN QUERY SELECT 'error_rate', jsonb_build_object('pipeline', p.name, 'source', s.name,
				'value', round(100.0 * o.failed / o.read, 4), 'threshold', t.threshold) || to_jsonb(f)
			FROM elt.pipelines p
			JOIN elt.sources s ON s.source_id = p.source_id
			CROSS JOIN LATERAL elt.pipeline_outcomes(p.pipeline_id, 300) o
			CROSS JOIN LATERAL (SELECT coalesce(r.threshold, current_setting('elt.error_rate_threshold')::float8) AS threshold
								FROM elt.alert_rules r WHERE r.rule = 'error_rate') t
			CROSS JOIN LATERAL elt.alert_failures(p.pipeline_id, at - interval '5 min', NULL) f
			WHERE o.failed > 0 AND o.read >= 100 AND 100.0 * o.failed / o.read > t.threshold;
	END IF;

	IF 'error_spike' = ANY (rules) THEN
		-- the newest rows do, so that a flood costs no more than a trickle: what came
		-- in the last minute, against the rate of the hour before as far as these reach
		RETURN QUERY SELECT 'error_spike', jsonb_build_object('pipeline', p.name, 'source', p.source,
				'fingerprint', m.fingerprint, 'value', m.failed) || to_jsonb(f) - 'sample_fingerprint'
			FROM (SELECT p.pipeline_id, p.name, s.name AS source
				  FROM elt.pipelines p
				  JOIN elt.sources s ON s.source_id = p.source_id
				  CROSS JOIN LATERAL elt.pipeline_outcomes(p.pipeline_id, 65) o
				  WHERE o.failed >= 10) p
			CROSS JOIN LATERAL (
				SELECT q.fingerprint, count(*) AS failed
				FROM (SELECT fingerprint FROM elt.quarantine_records
					  WHERE pipeline_id = p.pipeline_id AND first_failed_at >= at - interval '1 min'
					  ORDER BY first_failed_at DESC LIMIT 2000) q
				GROUP BY q.fingerprint HAVING count(*) >= 10 ORDER BY count(*) DESC LIMIT 20) m
			CROSS JOIN LATERAL (
				SELECT count(*) FILTER (WHERE q.fingerprint = m.fingerprint) AS failed,
					   CASE WHEN count(*) < 5000 THEN 60
							ELSE greatest(1, extract(epoch FROM at - min(q.first_failed_at)) / 60 - 1) END AS minutes
				FROM (SELECT fingerprint, first_failed_at FROM elt.quarantine_records
					  WHERE pipeline_id = p.pipeline_id
						AND first_failed_at >= at - interval '61 min' AND first_failed_at < at - interval '1 min'
					  ORDER BY first_failed_at DESC LIMIT 5000) q) before
			CROSS JOIN LATERAL elt.alert_failures(p.pipeline_id, at - interval '1 min', m.fingerprint) f
			WHERE m.failed > 10 * before.failed / before.minutes;
	END IF;

	IF 'pipeline_blocked' = ANY (rules) THEN
		RETURN QUERY SELECT 'pipeline_blocked', jsonb_build_object('pipeline', p.name, 'source', s.name,
				'value', greatest(0, round(extract(epoch FROM at - p.blocked_since))),
				'detail', format('blocked since %s, tried %s time(s)', p.blocked_since, p.probes))
			FROM elt.pipelines p
			JOIN elt.sources s ON s.source_id = p.source_id
			WHERE p.state = 'blocked';
	END IF;

	IF 'truncate_ignored' = ANY (rules) THEN
		RETURN QUERY SELECT 'truncate_ignored', jsonb_build_object('pipeline', p.name, 'source', s.name, 'value', 1,
				'detail', format('%s was truncated at %s', p.relation, p.ignored_truncate_at))
			FROM elt.pipelines p
			JOIN elt.sources s ON s.source_id = p.source_id
			WHERE p.ignored_truncate_at > at - interval '1 day';
	END IF;

	IF rules && ARRAY['freshness', 'backlog_drain_time'] THEN
		RETURN QUERY SELECT m.rule, jsonb_build_object('pipeline', p.name, 'source', s.name, 'value', round(m.value),
				'detail', format('%s changes wait, the oldest is of %s', b.changes, b.oldest_commit_ts))
			FROM elt.pipelines p
			JOIN elt.sources s ON s.source_id = p.source_id
			CROSS JOIN LATERAL elt.pipeline_backlog(p.name) b
			CROSS JOIN LATERAL (VALUES ('freshness', extract(epoch FROM at - b.oldest_commit_ts)),
									   ('backlog_drain_time', extract(epoch FROM b.eta))) AS m (rule, value)
			WHERE p.state <> 'paused' AND b.changes > 0 AND m.value IS NOT NULL AND m.rule = ANY (rules);
	END IF;

	IF 'source_disconnected' = ANY (rules) THEN
		RETURN QUERY SELECT 'source_disconnected', jsonb_build_object('source', s.name, 'value', 1,
				'detail', concat_ws('; ', CASE WHEN NOT r.published THEN format('publication %I does not exist', s.publication) END,
					'its slot keeps ' || pg_size_pretty(greatest(0, pg_wal_lsn_diff(r.current_lsn, r.restart_lsn))) || ' of WAL'))
			FROM elt.sources s
			LEFT JOIN elt.slot_state r ON r.source_id = s.source_id
			WHERE s.enabled AND s.home = home_id AND s.lost_at IS NULL
				AND (NOT r.published OR NOT EXISTS (SELECT FROM elt.workers() w
								WHERE w.kind = 'capture' AND w.object_id = s.source_id AND w.state IN ('streaming', 'snapshot')
									AND w.dboid = (SELECT oid FROM pg_database WHERE datname = current_database())));
	END IF;

	IF rules && ARRAY['slot_retained_wal', 'slot_lost', 'slot_xmin_age'] THEN
		SELECT CASE WHEN setting::float8 > 0 THEN setting::float8 * 1024 * 1024 END INTO keep_bytes
		FROM pg_settings WHERE name = 'max_slot_wal_keep_size';
		-- of a remote source: what is retained and what is still safe are its max_slot_wal_keep_size
		RETURN QUERY SELECT m.rule, jsonb_build_object('source', s.name, 'value', m.value, 'detail', m.detail)
				|| CASE m.rule WHEN 'slot_retained_wal' THEN
					jsonb_build_object('threshold', least(10 * 1024.0 ^ 3,
						CASE WHEN s.conninfo IS NULL THEN keep_bytes ELSE r.retained + r.safe_wal_size END / 2,
						nullif(pg_size_bytes(current_setting('elt.max_slot_lag', true)), -1))) ELSE '{}' END
			FROM elt.sources s
			LEFT JOIN (SELECT o.*, greatest(0, pg_wal_lsn_diff(o.current_lsn, o.restart_lsn)) AS retained
					   FROM elt.slot_state o) r ON r.source_id = s.source_id
			LEFT JOIN elt.pause_costs c ON c.source_id = s.source_id
			CROSS JOIN LATERAL (VALUES
				('slot_retained_wal', r.retained,
				 concat_ws('; ', 'slot ' || s.slot_name, CASE WHEN NOT s.enabled THEN 'the source is paused' END,
						   'growing by ' || pg_size_pretty(c.bytes_per_second::bigint) || ' per second',
						   'lost in ' || c.time_left)),
				('slot_xmin_age', r.catalog_xmin_age::numeric, 'slot ' || s.slot_name),
				('slot_lost', CASE WHEN s.lost_at IS NOT NULL THEN 1 END,
				 concat_ws(': ', s.lost_reason, s.last_error)))
				AS m (rule, value, detail)
			WHERE s.home = home_id AND (s.start_lsn IS NOT NULL OR m.rule = 'slot_lost') AND m.value IS NOT NULL AND m.rule = ANY (rules);
	END IF;

	-- counted only where there is enough to matter; keys are data, and are not told
	IF 'parked_overflow' = ANY (rules) AND current_setting('elt.max_parked_per_key')::bigint > 0
		AND EXISTS (SELECT FROM elt.parked OFFSET current_setting('elt.max_parked_per_key')::bigint) THEN
		RETURN QUERY SELECT 'parked_overflow', jsonb_build_object('pipeline', p.name, 'source', s.name, 'value', k.largest,
				'threshold', k.threshold, 'detail', format('%s key(s) of the pipeline have more than %s parked changes', k.keys, k.threshold))
			FROM (SELECT o.pipeline_id, t.threshold, max(o.parked) AS largest, count(*) AS keys
				  FROM (SELECT coalesce(r.threshold, current_setting('elt.max_parked_per_key')::double precision) AS threshold
						FROM elt.alert_rules r WHERE r.rule = 'parked_overflow') t,
					   LATERAL (SELECT c.pipeline_id, count(*) AS parked FROM elt.parked c
								GROUP BY c.pipeline_id, c.key_hash HAVING count(*) > t.threshold) o
				  GROUP BY o.pipeline_id, t.threshold) k
			JOIN elt.pipelines p USING (pipeline_id)
			JOIN elt.sources s ON s.source_id = p.source_id;
	END IF;

	IF 'raw_size' = ANY (rules) AND pg_size_bytes(current_setting('elt.max_raw_size')) > 0 THEN
		RETURN QUERY SELECT 'raw_size', jsonb_build_object('value', sum(z.bytes), 'threshold', t.threshold,
				'detail', 'the largest: ' || string_agg(format('%s of source %s, %s', z.relation, z.source, pg_size_pretty(z.bytes)), '; '
					ORDER BY z.bytes DESC) FILTER (WHERE z.rank <= 5))
			FROM (SELECT l.source, l.relation, sum(pg_total_relation_size(l.leaf)) AS bytes,
						 rank() OVER (ORDER BY sum(pg_total_relation_size(l.leaf)) DESC) AS rank
				  FROM elt.raw_leaves l GROUP BY l.source, l.relation) z,
				 (SELECT coalesce(r.threshold, pg_size_bytes(current_setting('elt.max_raw_size'))) AS threshold
				  FROM elt.alert_rules r WHERE r.rule = 'raw_size') t
			GROUP BY t.threshold
			HAVING sum(z.bytes) > t.threshold;
	END IF;

	IF rules && ARRAY['schema_drift', 'schema_break', 'resync_needed', 'relation_renamed'] THEN
		RETURN QUERY SELECT * FROM elt.schema_alert_samples(rules, at);
	END IF;

	IF 'oversize_value' = ANY (rules) THEN
		RETURN QUERY SELECT 'oversize_value', jsonb_build_object('source', o.source, 'relation', o.relation, 'column', o.column_name,
				'value', count(*), 'detail', format('%s values of at most %s', count(*), pg_size_pretty(max(o.bytes))))
			FROM elt.oversize_values o WHERE o.staged_at > at - interval '10 min'
			GROUP BY o.source, o.relation, o.column_name;
	END IF;

	IF 'rule_error' = ANY (rules) THEN
		RETURN QUERY SELECT 'rule_error', jsonb_build_object('failing_rule', r.rule, 'value', 1)
			FROM elt.alert_rules r WHERE r.enabled AND r.last_error IS NOT NULL;
	END IF;
END $$;
COMMENT ON FUNCTION elt.shipped_alert_samples(text[], timestamptz) IS
	'internal: the queries of the shipped rules, but for those about workers, whom the supervisor itself knows';

/* Evaluates shipped rules; "workers" are the samples that the supervisor knows. */
CREATE FUNCTION elt.evaluate_shipped_alerts(rules text[], workers jsonb, at timestamptz, OUT next_at timestamptz, OUT due boolean) RETURNS record
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
	samples jsonb;
BEGIN
	SELECT coalesce(jsonb_agg(jsonb_build_object('rule', s.rule, 'sample', s.sample)), '[]') INTO samples
	FROM elt.shipped_alert_samples(rules, at) s;
	SELECT s.next_at, s.due INTO next_at, due FROM elt.store_alert_samples(rules, samples || workers, at) s;
END $$;
COMMENT ON FUNCTION elt.evaluate_shipped_alerts(text[], jsonb, timestamptz) IS 'internal: one evaluation of shipped rules';

CREATE FUNCTION elt.evaluate_user_alerts(rule text, rows jsonb, at timestamptz, OUT next_at timestamptz, OUT due boolean) RETURNS record
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
	samples jsonb;
BEGIN
	SELECT coalesce(jsonb_agg(jsonb_build_object('rule', $1, 'sample', e)), '[]') INTO samples
	FROM jsonb_array_elements($2) e;
	SELECT s.next_at, s.due INTO next_at, due FROM elt.store_alert_samples(ARRAY[$1], samples, at) s;
END $$;
COMMENT ON FUNCTION elt.evaluate_user_alerts(text, jsonb, timestamptz) IS 'internal: stores what the query of a user''s rule returned';

/*
 * Moves the states of the alerts of these rules, given all that their queries
 * returned.  A row that a session holds (ack_alert in an open transaction) is
 * left for the next time: nobody can hold up the supervisor.
 */
CREATE FUNCTION elt.store_alert_samples(rules text[], samples jsonb, at timestamptz, OUT next_at timestamptz, OUT due boolean) RETURNS record
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
	DELETE FROM elt.alerts WHERE state = 'resolved' AND resolved_at < at - interval '30 days';
	IF samples = '[]' AND NOT EXISTS (SELECT FROM elt.alerts WHERE state <> 'resolved')
		AND NOT EXISTS (SELECT FROM elt.alerts WHERE state = 'resolved' AND told = 'firing')
	THEN
		due := false;
		RETURN;
	END IF;

	WITH sample AS MATERIALIZED (
		SELECT DISTINCT ON (x.rule, x.labels) x.*
		FROM (SELECT r.rule, r.severity, r.for_duration, coalesce(e->'sample'->>'hint', r.hint) AS hint,
					 (SELECT coalesce(jsonb_object_agg(l.key, l.value), '{}') FROM jsonb_each_text(e->'sample') l
					  WHERE l.value IS NOT NULL AND l.key NOT IN
						('value', 'threshold', 'quarantine_ids', 'sample_fingerprint', 'detail', 'hint')) AS labels,
					 (e->'sample'->>'value')::float8 AS value,
					 coalesce(r.threshold, (e->'sample'->>'threshold')::float8) AS threshold,
					 coalesce(e->'sample'->>'fingerprint', e->'sample'->>'sample_fingerprint') AS fingerprint,
					 CASE WHEN jsonb_typeof(e->'sample'->'quarantine_ids') = 'array'
						  THEN (SELECT array_agg(i::bigint) FROM jsonb_array_elements_text(e->'sample'->'quarantine_ids') i)
						  END AS quarantine_ids,
					 e->'sample'->>'detail' AS detail
			  FROM jsonb_array_elements(samples) e
			  JOIN elt.alert_rules r ON r.rule = e->>'rule'
			  WHERE r.enabled AND r.rule = ANY (rules)) x
		WHERE x.value IS NOT NULL AND (x.threshold IS NULL OR x.value > x.threshold)
		ORDER BY x.rule, x.labels, x.value DESC
	), seen AS (
		UPDATE elt.alerts a SET
			state = n.new_state,
			fired_at = CASE WHEN a.state = 'pending' AND n.new_state = 'firing' THEN at ELSE a.fired_at END,
			absent_since = NULL, updated_at = at, severity = n.severity, value = n.value, threshold = n.threshold,
			fingerprint = n.fingerprint, quarantine_ids = n.quarantine_ids, detail = n.detail, hint = n.hint
		FROM (SELECT o.alert_id, s.*,
					 CASE WHEN o.state = 'pending' AND at >= o.started_at + s.for_duration THEN 'firing' ELSE o.state END AS new_state
			  FROM elt.alerts o
			  JOIN sample s ON s.rule = o.rule AND s.labels = o.labels
			  WHERE o.state <> 'resolved'
				AND ((o.state = 'pending' AND at >= o.started_at + s.for_duration)
					OR o.absent_since IS NOT NULL
					OR ((o.value, o.threshold, o.severity, o.quarantine_ids) IS DISTINCT FROM
						(s.value, s.threshold, s.severity, s.quarantine_ids) AND at >= o.updated_at + interval '10 s'))
			  FOR UPDATE OF o SKIP LOCKED) n
		WHERE a.alert_id = n.alert_id
	), begun AS (
		INSERT INTO elt.alerts (rule, labels, state, severity, value, threshold, fingerprint, quarantine_ids, detail, hint,
								started_at, fired_at, updated_at)
		SELECT s.rule, s.labels, CASE WHEN s.for_duration > '0' THEN 'pending' ELSE 'firing' END, s.severity, s.value, s.threshold,
			   s.fingerprint, s.quarantine_ids, s.detail, s.hint, at, CASE WHEN s.for_duration > '0' THEN NULL ELSE at END, at
		FROM sample s
		WHERE NOT EXISTS (SELECT FROM elt.alerts a WHERE a.rule = s.rule AND a.labels = s.labels AND a.state <> 'resolved')
		ON CONFLICT (rule, labels) WHERE state <> 'resolved' DO NOTHING
	), absent AS (
		SELECT a.alert_id, a.state, coalesce(a.absent_since, at) AS absent_since,
			   NOT coalesce(r.enabled, false) OR at >= coalesce(a.absent_since, at) + r.keep_firing_for AS is_over
		FROM elt.alerts a
		LEFT JOIN elt.alert_rules r ON r.rule = a.rule
		WHERE a.state <> 'resolved'
			AND (NOT coalesce(r.enabled, false)
				OR (r.rule = ANY (rules)
					AND NOT EXISTS (SELECT FROM sample s WHERE s.rule = a.rule AND s.labels = a.labels)))
			AND (a.state = 'pending' OR a.absent_since IS NULL OR NOT coalesce(r.enabled, false)
				OR at >= a.absent_since + r.keep_firing_for)
		FOR UPDATE OF a SKIP LOCKED
	), dropped AS (
		DELETE FROM elt.alerts a USING absent g WHERE a.alert_id = g.alert_id AND g.state = 'pending'
	)
	UPDATE elt.alerts a SET
		state = CASE WHEN g.is_over THEN 'resolved' ELSE a.state END,
		resolved_at = CASE WHEN g.is_over THEN at END,
		absent_since = g.absent_since
	FROM absent g
	WHERE a.alert_id = g.alert_id AND g.state = 'firing';

	UPDATE elt.alerts a SET silenced = NOT a.silenced
	FROM (SELECT o.alert_id FROM elt.alerts o
		  WHERE o.state <> 'resolved' AND o.silenced <> EXISTS (
				SELECT FROM elt.silences s
				WHERE (s.rule IS NULL OR s.rule = o.rule) AND o.labels @> s.labels AND s.starts_at <= at AND s.expires_at > at)
		  FOR UPDATE OF o SKIP LOCKED) n
	WHERE a.alert_id = n.alert_id;

	-- what is overdue is left to the look that is taken now and then in any case
	next_at := (SELECT min(n.at)
				FROM (SELECT a.started_at + r.for_duration FROM elt.alerts a JOIN elt.alert_rules r ON r.rule = a.rule
					  WHERE a.state = 'pending'
					  UNION ALL
					  SELECT a.absent_since + r.keep_firing_for FROM elt.alerts a JOIN elt.alert_rules r ON r.rule = a.rule
					  WHERE a.state = 'firing'
					  UNION ALL
					  SELECT due_at FROM elt.alert_news) AS n (at)
				WHERE n.at > store_alert_samples.at);
	due := EXISTS (SELECT FROM elt.alert_news n WHERE n.due_at <= at);
END $$;
COMMENT ON FUNCTION elt.store_alert_samples(text[], jsonb, timestamptz) IS
	'internal: moves alerts through pending, firing and resolved; says when one is next to move or to be told, and whether there is something to tell';

/* One notification as JSON; less of it, until it fits into the 7,999 bytes that NOTIFY takes. */
CREATE FUNCTION elt.alert_payload(notification_id bigint, reason text, alert_ids bigint[], at timestamptz) RETURNS jsonb
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
	shown int;
	text_limit int;
	payload jsonb;
BEGIN
	FOREACH shown IN ARRAY ARRAY[5, 3, 1, 0] LOOP
		FOREACH text_limit IN ARRAY ARRAY[1000, 200, 60] LOOP
			SELECT jsonb_build_object(
					'notification_id', $1, 'reason', $2, 'at', $4, 'count', cardinality($3),
					'alert_id', a.alert_id, 'rule', a.rule, 'state', a.state, 'severity', a.severity,
					'pipeline', left(a.pipeline, text_limit), 'source', left(a.source, text_limit),
					'value', a.value, 'threshold', a.threshold, 'fingerprint', left(a.fingerprint, text_limit),
					'quarantine_ids', coalesce(a.quarantine_ids[1:5], '{}'), 'hint', left(a.hint, text_limit),
					'firing', (SELECT count(*) FROM elt.alerts f WHERE f.rule = a.rule AND f.state = 'firing'),
					'alerts', (SELECT coalesce(jsonb_agg(jsonb_build_object(
									'alert_id', i.alert_id, 'labels', CASE WHEN length(i.labels::text) <= text_limit THEN i.labels END,
									'value', i.value, 'threshold', i.threshold, 'detail', left(i.detail, text_limit),
									'quarantine_ids', coalesce(i.quarantine_ids[1:5], '{}'),
									'fired_at', i.fired_at, 'resolved_at', i.resolved_at) ORDER BY i.alert_id), '[]')
							   FROM elt.alerts i WHERE i.alert_id = ANY ($3[1:shown])))
			INTO payload
			FROM elt.alerts a WHERE a.alert_id = $3[1];
			IF octet_length(payload::text) <= 7999 THEN
				RETURN payload;
			END IF;
		END LOOP;
	END LOOP;
	-- names of nothing but control characters and the like
	RETURN payload - '{pipeline,source,fingerprint,hint}'::text[];
END $$;
COMMENT ON FUNCTION elt.alert_payload(bigint, text, bigint[], timestamptz) IS
	'internal: the JSON of one notification, in less than 8,000 bytes';

/*
 * Tells what is due: one notification per rule and state.  What is told is
 * marked in the same transaction.
 */
CREATE FUNCTION elt.notify_alerts(at timestamptz) RETURNS jsonb
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
	channel text := current_setting('elt.alert_channel');
	payloads jsonb := '[]';
	payload jsonb;
	news record;
	ids bigint[];
	id bigint;
BEGIN
	-- a listener in a long transaction keeps the queue from being emptied
	IF channel <> '' AND pg_notification_queue_usage() * 100 >= current_setting('elt.alert_queue_limit')::float8 THEN
		RETURN NULL;
	END IF;
	FOR news IN
		SELECT n.rule, n.state, bool_or(n.reason = 'repeat') AS repeats
		FROM elt.alert_news n WHERE n.due_at <= at GROUP BY n.rule, n.state ORDER BY n.rule, n.state
	LOOP
		-- a repetition tells the whole group
		ids := ARRAY(SELECT alert_id FROM elt.alerts
					 WHERE alert_id IN (SELECT n.alert_id FROM elt.alert_news n
										WHERE n.rule = news.rule AND n.state = news.state AND (news.repeats OR n.due_at <= at))
					 ORDER BY alert_id FOR UPDATE SKIP LOCKED);
		CONTINUE WHEN ids = '{}';
		id := nextval('elt.alert_notifications');
		payload := elt.alert_payload(id, CASE WHEN news.repeats THEN 'repeat' WHEN news.state = 'firing' THEN 'new' ELSE 'resolved' END, ids, at);
		IF channel <> '' THEN
			PERFORM pg_notify(channel, payload::text);
		END IF;
		UPDATE elt.alerts SET told = state, notification_id = id, last_notified_at = at, notifications = notifications + 1
		WHERE alert_id = ANY (ids);
		UPDATE elt.alert_rules SET last_notified_at = at WHERE rule = news.rule;
		payloads := payloads || payload;
	END LOOP;
	RETURN payloads;
END $$;
COMMENT ON FUNCTION elt.notify_alerts(timestamptz) IS
	'internal: sends the notifications that are due and returns them; NULL while the server''s queue is too full';

CREATE FUNCTION elt.evaluate_alerts(at timestamptz DEFAULT clock_timestamp()) RETURNS jsonb
	LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'elt_evaluate_alerts';
COMMENT ON FUNCTION elt.evaluate_alerts(timestamptz) IS
	'evaluates all rules here and now, as of a time, and returns the notifications that it sends; for trying rules out where elt.alerts is off';

