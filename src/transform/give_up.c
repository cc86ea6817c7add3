/*
 * give_up.c
 *	  What becomes of a pipeline whose batch cannot go on.
 *
 *	transient	it is run again; a pipeline that does not get on for a while
 *				shows why
 *	overrun		several changes took too long together: the next windows there
 *				are smaller, and come at once
 *	else		the pipeline is blocked, by what is wrong with its
 *				surroundings or by the breaker
 */
#include "postgres.h"

#include "control/worker.h"
#include "transform/attempt.h"
#include "transform/breaker.h"
#include "transform/give_up.h"
#include "transform/summary.h"

#define VISIBLE_RETRIES	3		/* in a row, before last_error tells */

static EltBatchEnd run_again(EltPipeline *pipeline, const ErrorData *error);
static EltBatchEnd block(EltPipeline *pipeline, const ErrorData *error, bool breaker, Datum fingerprints);
static EltBatchEnd shrink(EltPipeline *pipeline, const EltTrying *trying);

EltBatchEnd
elt_give_up(const EltWork *work, void (*roll_back) (void *arg), void *arg)
{
	/* the rollback may take the rest of the work along */
	EltPipeline *pipeline = work->pipeline;
	ErrorData  *error = work->error;
	const char *class = work->error_class;
	bool		breaker = strcmp(class, "breaker") == 0;
	Datum		fingerprints = breaker ? elt_breaker_fingerprints(work) : (Datum) 0;
	EltTrying	trying = elt_attempt_last();

	if (!work->own_transaction)
		ReThrowError(error);
	roll_back(arg);
	if (strcmp(class, "transient") == 0)
		return run_again(pipeline, error);
	if (strcmp(class, "overrun") == 0)
		return shrink(pipeline, &trying);
	return block(pipeline, error, breaker, fingerprints);
}

static EltBatchEnd
run_again(EltPipeline *pipeline, const ErrorData *error)
{
	MemoryContext context = CurrentMemoryContext;

	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("pipeline \"%s\" runs a batch again: %s", pipeline->name, elt_summary_for_all(error))));
	if (++pipeline->retries == VISIBLE_RETRIES)
	{
		elt_worker_begin_work(pipeline->name);
		MemoryContextSwitchTo(context);
		elt_pipeline_note_error(pipeline->pipeline_id, error);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
	}
	return ELT_BATCH_RETRY;
}

static EltBatchEnd
block(EltPipeline *pipeline, const ErrorData *error, bool breaker, Datum fingerprints)
{
	MemoryContext context = CurrentMemoryContext;

	if (pipeline->state != 'b')
		ereport(LOG,
				(errmsg("pipeline \"%s\" is blocked: %s", pipeline->name, elt_summary_for_all(error))));
	elt_worker_begin_work(pipeline->name);
	MemoryContextSwitchTo(context);
	elt_pipeline_set_blocked(pipeline->pipeline_id, error, breaker, pipeline->probes);
	if (breaker)
		elt_breaker_hold_back(pipeline->pipeline_id, pipeline->version, fingerprints);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return ELT_BATCH_BLOCKED;
}

static EltBatchEnd
shrink(EltPipeline *pipeline, const EltTrying *trying)
{
	MemoryContext context = CurrentMemoryContext;

	ereport(LOG,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("pipeline \"%s\" tries smaller batches: %d changes took longer than its time limit",
					pipeline->name, trying->changes)));
	elt_worker_begin_work(pipeline->name);
	MemoryContextSwitchTo(context);
	elt_attempt_note_overrun(pipeline->pipeline_id, trying);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return ELT_BATCH_MORE;
}
