/*
 * transform_catalog.c
 *	  What the transform engine asks of elt's own tables, and writes there.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "control/registry.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "transform/summary.h"
#include "transform/transform_catalog.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define TOPIC_PREFIX	"message:"

static LOCKTAG queue_of(int64 pipeline_id);
static Datum int_array(const int *values, int n);

/* False where the pipeline is gone. */
bool
elt_pipeline_status(EltPipeline *pipeline, EltPipelineStatus *status)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	bool		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	found = elt_spi_run("SELECT left(p.state, 1), coalesce(p.next_probe_at <= clock_timestamp(), true), p.version, t.raw::oid, "
						"EXISTS (SELECT FROM elt.quarantine_unresolved q WHERE q.pipeline_id = p.pipeline_id) "
						"OR EXISTS (SELECT FROM elt.parked k WHERE k.pipeline_id = p.pipeline_id), "
						"coalesce(p.blocked_by = 'breaker', false), EXISTS (SELECT FROM elt.attempts a WHERE a.pipeline_id = p.pipeline_id) "
						"FROM elt.pipelines p "
						"LEFT JOIN elt.source_tables t ON t.source_id = p.source_id AND t.relation = p.relation "
						"WHERE p.pipeline_id = $1", 1, types, values, NULL) > 0;
	if (found)
	{
		status->state = elt_spi_text(&spi, 0, 1)[0];
		status->due = elt_spi_bool(0, 2);
		status->version = (int) elt_spi_int64(0, 3);
		status->raw = (Oid) elt_spi_int64(0, 4);
		status->unresolved = elt_spi_bool(0, 5);
		status->breaker = elt_spi_bool(0, 6);
		status->attempts = elt_spi_bool(0, 7);
	}
	elt_spi_end(&spi);
	if (found && elt_pipeline_topic(pipeline) != NULL)
		status->raw = elt_pipeline_raw(pipeline);
	return found;
}

/* Of several workers whose probes fail at the same time the first one says when the next is due. */
void
elt_pipeline_set_blocked(int64 pipeline_id, const ErrorData *error, bool breaker, int probes)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), CStringGetTextDatum(elt_summary(error)),
		Int32GetDatum(Min(300, 1 << Min(probes, 9))), CStringGetTextDatum(breaker ? "breaker" : "systemic"),
	CStringGetTextDatum(elt_summary_for_all(error))};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET state = 'blocked', last_error = $2, error_summary = $5, last_error_at = clock_timestamp(), "
				"blocked_by = CASE WHEN blocked_by = 'breaker' THEN blocked_by ELSE $4 END, "
				"blocked_since = coalesce(blocked_since, clock_timestamp()), "
				"next_probe_at = clock_timestamp() + make_interval(secs => $3), probes = probes + 1 "
				"WHERE pipeline_id = $1 AND state <> 'paused' "
				"AND (next_probe_at <= clock_timestamp()) IS NOT FALSE", lengthof(types), types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

void
elt_pipeline_set_running(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET state = 'running', blocked_by = NULL, blocked_since = NULL, "
				"next_probe_at = NULL, probes = 0, unblocked_at = clock_timestamp() "
				"WHERE pipeline_id = $1 AND state = 'blocked'", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

void
elt_pipeline_resume(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET state = CASE WHEN blocked_by IS NULL THEN 'running' ELSE 'blocked' END "
				"WHERE pipeline_id = $1 AND state = 'paused'", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_pipeline_probe_now(pipeline_id);
}

void
elt_pipeline_probe_now(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET next_probe_at = clock_timestamp(), probes = 0 "
				"WHERE pipeline_id = $1 AND state = 'blocked'", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

bool
elt_pipeline_hold_unblocked(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	bool		unblocked;
	EltSpi		spi;

	elt_spi_begin(&spi);
	unblocked = elt_spi_run("SELECT state FROM elt.pipelines WHERE pipeline_id = $1 FOR SHARE", 1, types, values, NULL) > 0 &&
		strcmp(elt_spi_text(&spi, 0, 1), "blocked") != 0;
	elt_spi_end(&spi);
	return unblocked;
}

void
elt_pipeline_note_truncate(int64 pipeline_id, TimestampTz at)
{
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), TimestampTzGetDatum(at)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET ignored_truncate_at = $2 WHERE pipeline_id = $1", 2, types, values, NULL);
	elt_spi_end(&spi);
}

void
elt_pipeline_note_error(int64 pipeline_id, const ErrorData *error)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), CStringGetTextDatum(elt_summary(error)),
	CStringGetTextDatum(elt_summary_for_all(error))};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET last_error = $2, error_summary = $3, last_error_at = clock_timestamp() "
				"WHERE pipeline_id = $1", lengthof(types), types, values, NULL);
	elt_spi_end(&spi);
}

void
elt_pipeline_set_target(const EltPipeline *pipeline)
{
	Oid			types[] = {INT8OID, OIDOID, TEXTOID, OIDOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), ObjectIdGetDatum(pipeline->target),
	CStringGetTextDatum(pipeline->target_name), ObjectIdGetDatum(pipeline->target_owner)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET target = $2, target_name = $3, target_owner = $4 WHERE pipeline_id = $1 "
				"AND (target, target_name, target_owner) IS DISTINCT FROM ($2::regclass, $3, $4::regrole)",
				4, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

const char *
elt_pipeline_topic(const EltPipeline *pipeline)
{
	if (strncmp(pipeline->relation, TOPIC_PREFIX, strlen(TOPIC_PREFIX)) != 0)
		return NULL;
	return pipeline->relation + strlen(TOPIC_PREFIX);
}

/* Where the pipeline's relation is staged; InvalidOid before its first change. */
Oid
elt_pipeline_raw(EltPipeline *pipeline)
{
	if (elt_pipeline_topic(pipeline) != NULL)
	{
		Oid			schema = get_namespace_oid("elt_raw", true);
		char	   *name = psprintf("%s$messages", pipeline->source);

		return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
	}
	if (!OidIsValid(pipeline->raw))
	{
		EltPipelineStatus status;

		if (elt_pipeline_status(pipeline, &status))
			pipeline->raw = status.raw;
	}
	return pipeline->raw;
}

int
elt_checkpoint_lease(int64 pipeline_id, int max_lanes, int *lanes, int64 *positions)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int64GetDatum(max_lanes)};
	uint64		rows;
	LOCKTAG		queue = queue_of(pipeline_id);
	EltSpi		spi;

	if (LockAcquire(&queue, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return 0;
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT lane, position FROM elt.checkpoints WHERE pipeline_id = $1 "
					   "ORDER BY position, lane LIMIT $2 FOR UPDATE SKIP LOCKED", 2, types, values, NULL);
	for (uint64 row = 0; row < rows && row < ELT_MAX_LANES; row++)
	{
		lanes[row] = (int) elt_spi_int64(row, 1);
		positions[row] = elt_spi_int64(row, 2);
	}
	elt_spi_end(&spi);
	LockRelease(&queue, RowExclusiveLock, false);
	return (int) Min(rows, ELT_MAX_LANES);
}

int64
elt_checkpoint_lock(int64 pipeline_id, const bool *wanted, bool wait, bool *held, int64 *positions)
{
	Oid			types[] = {INT8OID, INT4ARRAYOID};
	int			lanes[ELT_MAX_LANES];
	Datum		values[2];
	int			nlanes = 0;
	uint64		rows;
	int64		highest = -1;
	LOCKTAG		queue = queue_of(pipeline_id);
	EltSpi		spi;

	for (int lane = 0; lane < ELT_MAX_LANES; lane++)
	{
		held[lane] = false;
		if (wanted[lane])
			lanes[nlanes++] = lane;
	}
	values[0] = Int64GetDatum(pipeline_id);
	values[1] = int_array(lanes, nlanes);

	if (wait)
		(void) LockAcquire(&queue, ShareLock, false, false);
	elt_spi_begin(&spi);
	if (wait)
		rows = elt_spi_run("SELECT lane, position FROM elt.checkpoints WHERE pipeline_id = $1 AND lane = ANY ($2) "
						   "ORDER BY lane FOR UPDATE", 2, types, values, NULL);
	else
		rows = elt_spi_run("SELECT lane, position FROM elt.checkpoints WHERE pipeline_id = $1 AND lane = ANY ($2) "
						   "ORDER BY lane FOR UPDATE SKIP LOCKED", 2, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		int			lane = (int) elt_spi_int64(row, 1);

		held[lane] = true;
		positions[lane] = elt_spi_int64(row, 2);
		highest = Max(highest, positions[lane]);
	}
	elt_spi_end(&spi);
	if (wait)
		LockRelease(&queue, ShareLock, false);
	return highest;
}

void
elt_checkpoint_shut(int64 pipeline_id)
{
	LOCKTAG		queue = queue_of(pipeline_id);

	(void) LockAcquire(&queue, ShareLock, false, false);
}

void
elt_checkpoint_reopen(int64 pipeline_id)
{
	LOCKTAG		queue = queue_of(pipeline_id);

	(void) LockRelease(&queue, ShareLock, false);
}

int
elt_checkpoint_take_free(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT FROM elt.checkpoints WHERE pipeline_id = $1 ORDER BY lane FOR UPDATE SKIP LOCKED",
					   1, types, values, NULL);
	elt_spi_end(&spi);
	return (int) rows;
}

/*
 * The way to a pipeline's lanes.  A busy worker takes its lanes again at once,
 * before one that waits for them has woken up; so who waits shuts the others
 * out until all of its lanes are there.  Apart from the locks of sources and
 * of SQL's functions by the last field.
 */
static LOCKTAG
queue_of(int64 pipeline_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (pipeline_id >> 32), (uint32) pipeline_id, 4);
	return tag;
}

void
elt_checkpoint_settle(int64 pipeline_id, const int *lanes, int nlanes, int64 position,
					  XLogRecPtr settled_lsn, int64 changes_read, int64 rows_written)
{
	Oid			types[] = {INT8OID, INT4ARRAYOID, INT8OID, PG_LSNOID, INT8OID, INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), int_array(lanes, nlanes),
		Int64GetDatum(position), LSNGetDatum(settled_lsn), Int64GetDatum(changes_read),
	Int64GetDatum(rows_written), Int32GetDatum(lanes[0])};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.checkpoints SET position = $3, settled_lsn = coalesce($4, settled_lsn), "
				"changes_read = changes_read + CASE WHEN lane = $7 THEN $5 ELSE 0 END, "
				"rows_written = rows_written + CASE WHEN lane = $7 THEN $6 ELSE 0 END "
				"WHERE pipeline_id = $1 AND lane = ANY ($2)",
				7, types, values, settled_lsn == InvalidXLogRecPtr ? "   n   " : NULL);
	elt_spi_end(&spi);
}

void
elt_checkpoint_create(int64 pipeline_id, int lanes)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int32GetDatum(lanes)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.checkpoints (pipeline_id, lane) SELECT $1, generate_series(0, $2 - 1)",
				2, types, values, NULL);
	elt_spi_end(&spi);
}

/* Fills ELT_MAX_LANES positions; returns the number of lanes. */
int
elt_checkpoint_positions(int64 pipeline_id, int64 *positions)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT position FROM elt.checkpoints WHERE pipeline_id = $1 ORDER BY lane",
					   1, types, values, NULL);
	for (uint64 row = 0; row < rows && row < ELT_MAX_LANES; row++)
		positions[row] = elt_spi_int64(row, 1);
	elt_spi_end(&spi);
	return (int) Min(rows, ELT_MAX_LANES);
}

char *
elt_error_class(const EltPipeline *pipeline, int sqlerrcode)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(unpack_sql_state(sqlerrcode)), CStringGetTextDatum(pipeline->name)};
	char	   *class = NULL;
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT error_class FROM elt.error_classes WHERE starts_with($1, sqlstate_prefix) "
					"AND (pipeline = $2 OR pipeline IS NULL) "
					"ORDER BY length(sqlstate_prefix) DESC, pipeline NULLS LAST LIMIT 1", 2, types, values, NULL) > 0)
		class = elt_spi_text(&spi, 0, 1);
	elt_spi_end(&spi);
	return class ? class : pstrdup("systemic");
}

List *
elt_schema_columns(int64 source_id, const char *relation, int version)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID};
	Datum		values[] = {Int64GetDatum(source_id), CStringGetTextDatum(relation), Int32GetDatum(version)};
	List	   *columns = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT c.value->>'name' FROM (SELECT v.columns FROM elt.schema_versions v "
					   "WHERE v.source_id = $1 AND v.relation = $2 AND $3 IN (0, v.version) "
					   "ORDER BY v.version DESC LIMIT 1) AS v, jsonb_array_elements(v.columns) AS c",
					   3, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		char	   *name = elt_spi_text(&spi, row, 1);
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);

		columns = lappend(columns, name);
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);
	return columns;
}

static Datum
int_array(const int *values, int n)
{
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = Int32GetDatum(values[i]);
	return PointerGetDatum(construct_array(datums, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}
