/* Pipelines: from raw staging into targets. */

CREATE FUNCTION elt.create_pipeline(
	name text,
	source text,
	relation text,
	target regclass,
	transform text DEFAULT NULL,
	mode text DEFAULT 'upsert',
	key text[] DEFAULT NULL,
	ordering text DEFAULT 'strict',
	options jsonb DEFAULT '{}') RETURNS bigint
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_create_pipeline';
COMMENT ON FUNCTION elt.create_pipeline(text, text, text, regclass, text, text, text[], text, jsonb) IS
	'applies the changes of a relation (schema.table, or message:<topic>) to a table, by column name or through a SELECT over "changes", as the role that calls; returns the pipeline''s id. '
	'Options: lanes (16), batch_changes, max_workers, deletes and truncate (apply or ignore; append ignores truncate unless told), allow_volatile, unmarked_output, breaker (true), time_limit, weight (10), group (settles together with others of it)';

CREATE FUNCTION elt.replace_transform(name text, transform text) RETURNS int
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_replace_transform';
COMMENT ON FUNCTION elt.replace_transform(text, text) IS
	'gives a pipeline another transform (NULL: by column name) from its next batch on; returns the version. A blocked pipeline tries at once';

CREATE FUNCTION elt.alter_pipeline(
	name text,
	options jsonb DEFAULT NULL,
	target regclass DEFAULT NULL,
	ordering text DEFAULT NULL,
	relation text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_alter_pipeline';
COMMENT ON FUNCTION elt.alter_pipeline(text, jsonb, regclass, text, text) IS
	'changes options of a pipeline (a null member takes one back to its default), its target or its ordering, or follows its table to another name, from its next batch on. A blocked pipeline tries at once';

CREATE FUNCTION elt.drop_pipeline(name text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_drop_pipeline';
COMMENT ON FUNCTION elt.drop_pipeline(text) IS
	'removes a pipeline with its quarantine; the target and raw staging stay';

CREATE FUNCTION elt.pause_pipeline(name text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_pause_pipeline';
COMMENT ON FUNCTION elt.pause_pipeline(text) IS
	'stops the workers on a pipeline until resume_pipeline; elt.transform() still works on it';

CREATE FUNCTION elt.resume_pipeline(name text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_resume_pipeline';
COMMENT ON FUNCTION elt.resume_pipeline(text) IS
	'lets a paused pipeline go on, and a blocked one probe at once';

CREATE FUNCTION elt.transform(name text, max_changes int DEFAULT NULL,
	OUT read bigint, OUT written bigint, OUT quarantined bigint, OUT parked bigint,
	OUT superseded bigint, OUT "position" bigint) RETURNS record
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_transform';
COMMENT ON FUNCTION elt.transform(text, int) IS
	'works on a pipeline here and now, in this transaction; raises errors that are not of single changes. '
	'Each batch is a subtransaction: leave large backlogs to the workers';

/* What the view backlog asks for one pipeline. */
CREATE FUNCTION elt.pipeline_backlog(name text,
	OUT changes bigint, OUT bytes bigint, OUT oldest_commit_ts timestamptz, OUT eta interval) RETURNS record
	LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'elt_pipeline_backlog';
COMMENT ON FUNCTION elt.pipeline_backlog(text) IS
	'what waits in raw staging for a pipeline: counted where it is up to 2 MB, else estimated; eta by the workers'' rate so far';

/* Part of the statement that applies a batch, which runs as the pipeline's owner: it goes first, and is always true. */
CREATE FUNCTION elt.note_change(change_id bigint) RETURNS boolean
	LANGUAGE c STABLE STRICT COST 0.0001 AS 'MODULE_PATHNAME', 'elt_note_change';
COMMENT ON FUNCTION elt.note_change(bigint) IS
	'internal: remembers which change is at work, so that an error finds its change; always true';

/* What raw staging has of a value, as it was at the source. */

CREATE FUNCTION elt.field(record jsonb, name text) RETURNS text
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'elt_field';
COMMENT ON FUNCTION elt.field(jsonb, text) IS
	'a column of a staged image as text, like ->>; an error where only its size or its bytes were staged';

CREATE FUNCTION elt.populate(base anyelement, record jsonb) RETURNS anyelement
	LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'elt_populate';
COMMENT ON FUNCTION elt.populate(anyelement, jsonb) IS
	'a row of base''s type from a staged image, like jsonb_populate_record(); reads the strings that stand for what jsonb cannot hold, too';
