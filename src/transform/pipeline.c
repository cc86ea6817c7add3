/*
 * pipeline.c
 *	  The life of a pipeline after its definition (see define.c), and what the
 *	  views ask about it.
 *
 * A pipeline's owner, members of that role, and superusers may change it.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "argument.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "compat.h"
#include "control/registry.h"
#include "elt.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "transform/batch.h"
#include "transform/group.h"
#include "transform/log.h"
#include "transform/pipeline.h"
#include "transform/transform_catalog.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(elt_drop_pipeline);
PG_FUNCTION_INFO_V1(elt_pause_pipeline);
PG_FUNCTION_INFO_V1(elt_resume_pipeline);
PG_FUNCTION_INFO_V1(elt_transform);
PG_FUNCTION_INFO_V1(elt_pipeline_backlog);

#define PAUSE_WAIT_MS	5000	/* for batches under way */
#define PAUSE_POLL_MS	5

static bool wait_for_batches(const EltPipeline *pipeline);
static bool may_see(const EltPipeline *pipeline);
static double pool_rate(void);

Datum
elt_drop_pipeline(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"));
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	EltSpi		spi;

	elt_pipeline_lock(pipeline);
	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.pipelines WHERE pipeline_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	PG_RETURN_VOID();
}

Datum
elt_pause_pipeline(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"));
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	EltSpi		spi;

	if (!wait_for_batches(pipeline))
		ereport(WARNING,
				(errmsg("a batch of pipeline \"%s\" is still under way", pipeline->name),
				 errdetail("It will be the last one.")));
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET state = 'paused', next_probe_at = NULL, probes = 0 "
				"WHERE pipeline_id = $1 AND state <> 'paused'", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	PG_RETURN_VOID();
}

/*
 * Who has paused a pipeline expects that nobody works on it afterwards.  So
 * its lanes are ours until the commit, but not at any price: a batch that
 * hangs is a reason to pause.  False if one is still at it.
 */
static bool
wait_for_batches(const EltPipeline *pipeline)
{
	TimestampTz start = elt_clock_now();
	bool		all;

	elt_checkpoint_shut(pipeline->pipeline_id);
	while (!(all = elt_checkpoint_take_free(pipeline->pipeline_id) == pipeline->lanes) &&
		   !TimestampDifferenceExceeds(start, elt_clock_now(), PAUSE_WAIT_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PAUSE_POLL_MS, elt_wait_event("EltPauseDone"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	elt_checkpoint_reopen(pipeline->pipeline_id);
	return all;
}

Datum
elt_resume_pipeline(PG_FUNCTION_ARGS)
{
	elt_pipeline_resume(elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"))->pipeline_id);
	PG_RETURN_VOID();
}

/* The pipeline, if the caller may change it. */
EltPipeline *
elt_pipeline_own(const char *name)
{
	EltPipeline *pipeline = elt_catalog_pipeline(name, false);

	elt_batch_require_none(name);
	if (!has_privs_of_role(GetUserId(), pipeline->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of pipeline \"%s\"", name),
				 errhint("Its owner, members of that role, and superusers may do this.")));
	return pipeline;
}

/* The lanes before anything else, as batches do, so that neither waits for the other. */
void
elt_pipeline_lock(const EltPipeline *pipeline)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT FROM elt.checkpoints WHERE pipeline_id = $1 ORDER BY lane FOR UPDATE", 1, types, values, NULL);
	elt_spi_end(&spi);
}

/*
 * elt_transform
 *		Works on a pipeline here and now, in the caller's transaction, until
 *		nothing is left or max_changes are read.  A pipeline of a group brings
 *		the whole group along.
 */
Datum
elt_transform(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"));
	int64		limit = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	EltBatchCounts counts = {0};
	EltBatchEnd end = ELT_BATCH_MORE;
	List	   *group = elt_group_of(pipeline);
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};

	if (!PG_ARGISNULL(1) && limit <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_changes must be greater than zero: %lld", (long long) limit),
				 errhint("Leave it out to work on all that is there.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PreventCommandIfReadOnly("elt.transform()");

	while (end == ELT_BATCH_MORE && (limit == 0 || counts.read < limit))
	{
		CHECK_FOR_INTERRUPTS();
		if (group != NIL)
			end = elt_group_run(group, limit ? limit - counts.read : 0, &counts, false);
		else
			end = elt_batch_run(pipeline, pipeline->lanes, limit ? limit - counts.read : 0, &counts, false);
	}

	values[0] = Int64GetDatum(counts.read);
	values[1] = Int64GetDatum(counts.written);
	values[2] = Int64GetDatum(counts.quarantined);
	values[3] = Int64GetDatum(counts.parked);
	values[4] = Int64GetDatum(counts.superseded);
	values[5] = Int64GetDatum(counts.position);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- what the views show ---- */

Datum
elt_pipeline_backlog(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_catalog_pipeline(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	EltLogBacklog backlog = {0};
	int64		positions[ELT_MAX_LANES];
	double		rate = pool_rate();
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {true, true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (pipeline != NULL && may_see(pipeline))
	{
		int			lanes = elt_checkpoint_positions(pipeline->pipeline_id, positions);

		if (lanes > 0)
			elt_log_measure(elt_pipeline_raw(pipeline), elt_pipeline_topic(pipeline), positions, lanes, &backlog);
		values[0] = Int64GetDatum((int64) backlog.changes);
		values[1] = Int64GetDatum((int64) backlog.bytes);
		values[2] = TimestampTzGetDatum(backlog.oldest_commit_ts);
		nulls[0] = nulls[1] = false;
		nulls[2] = (backlog.oldest_commit_ts == 0);
		if (backlog.changes == 0 || rate > 0)
		{
			values[3] = DirectFunctionCall7(make_interval, 0, 0, 0, 0, 0, 0,
											Float8GetDatum(backlog.changes == 0 ? 0 : rint(backlog.changes / rate)));
			nulls[3] = false;
		}
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

static bool
may_see(const EltPipeline *pipeline)
{
	return has_privs_of_role(GetUserId(), pipeline->owner) ||
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

/* Changes per second of the database's transform workers, while they were at work. */
static double
pool_rate(void)
{
	double		rate = 0;

	for (int i = 0; i < elt_registry_size(); i++)
	{
		EltWorkerSlot slot;

		if (elt_registry_read(i, &slot) && slot.kind == ELT_WORKER_TRANSFORM && slot.dboid == MyDatabaseId)
		{
			uint64		busy_us = pg_atomic_read_u64(&slot.busy_us);

			if (busy_us > 0)
				rate += pg_atomic_read_u64(&slot.changes) * 1e6 / busy_us;
		}
	}
	return rate;
}
