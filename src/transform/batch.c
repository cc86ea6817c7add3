/*
 * batch.c
 *	  One batch of a pipeline: lease, read, apply, settle.
 *
 * A batch leases free lanes by locking their checkpoint rows, reads a window
 * of the log for the lanes that are furthest behind, applies it (isolate.c
 * tells what becomes of each change), and moves their checkpoints: one
 * transaction, so that each change leaves a pipeline in exactly one way
 * (applied, quarantined, or parked), whatever is killed when.
 *
 * Lanes: those leased that stand at the lowest position are worked on, up to
 * where the next of the leased lanes stands, so that lanes which different
 * workers moved come together again.  A truncate is a barrier: the window ends
 * before it, and it is applied once all lanes are leased at once and stand
 * right before it.
 *
 * Locking: nobody waits for a lane, so there is no deadlock over them.  Who
 * has a lane waits for the target's lock, which is taken before anything is
 * looked at and kept, so that the target stays what it is; and only then for
 * the row of elt.pipelines (drop_pipeline takes them in the same order).
 *
 * The target's lock is waited for a second at most, so that who holds it for
 * long keeps only this pipeline waiting.
 *
 * Failure: a batch that cannot go on is rolled back.  After a transient error
 * it is run again; after a systemic one, or when too much failed (breaker.c),
 * the pipeline is blocked.  A batch whose process ends is a matter of
 * attempt.c: right after the start of the server it therefore runs in two
 * transactions, of which the first announces the window.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/change.h"
#include "clock.h"
#include "control/stats.h"
#include "control/worker.h"
#include "guc.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "transform/attempt.h"
#include "transform/batch.h"
#include "transform/breaker.h"
#include "transform/give_up.h"
#include "transform/isolate.h"
#include "transform/runner.h"
#include "transform/target.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define TARGET_LOCK_TIMEOUT_MS	"1000"

typedef struct Batch
{
	EltWork		work;			/* must be first */
	EltBatchCounts counts;		/* of this batch */
	int			lanes[ELT_MAX_LANES];	/* leased, those furthest behind first */
	int64		positions[ELT_MAX_LANES];
	int			nlanes;
	int			ngroup;			/* the first of them, which stand at the same
								 * position */
	bool		announcing;		/* this is the first of two transactions */
	bool		announced;		/* this is the second */
	int64		first_announced;	/* change_ids */
	int64		last_announced;
	bool		dropped;		/* to be rolled back, and run again */
	bool		unblocked;		/* its commit ends the pipeline's block */
} Batch;

/*
 * After a batch that had to settle early, the next windows of its pipeline
 * are not longer than what it settled, and double with each success.
 */
static struct
{
	int64		pipeline_id;
	int			max_changes;
}			careful = {0, 0};

/* Whether a batch is at work in this session: user code may run, and call elt. */
static bool at_work = false;

static EltBatchEnd run(Batch *batch, int max_lanes, int64 max_changes);
static EltBatchEnd run_leased(Batch *batch, int64 max_changes);
static bool may_commit(Batch *batch);
static void lease(Batch *batch, int max_lanes);
static void group_lanes(Batch *batch);
static void read_window(Batch *batch, int64 max_changes);
static EltBatchEnd pass_barrier(Batch *batch);
static void truncate_target(EltWork *work);
static void cut_window(Batch *batch);
static void settle(Batch *batch);
static bool proves_well(const Batch *batch);
static void roll_back(void *arg);
static void note_unblocked(Batch *batch);

EltBatchEnd
elt_batch_run(EltPipeline *pipeline, int max_lanes, int64 max_changes,
			  EltBatchCounts *counts, bool own_transaction)
{
	volatile EltBatchEnd end = ELT_BATCH_DONE;
	Batch	   *batch;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "elt batch", ALLOCSET_DEFAULT_SIZES);
	uint16		origin = elt_worker_mark_writes(DoNotReplicateId);

	if (own_transaction)
		elt_worker_begin_work(pipeline->name);
	MemoryContextSwitchTo(context);
	batch = palloc0(sizeof(Batch));
	batch->work.pipeline = pipeline;
	batch->work.own_transaction = own_transaction;

	at_work = true;
	PG_TRY();
	{
		end = run(batch, max_lanes, max_changes);
	}
	PG_FINALLY();
	{
		at_work = false;
		elt_worker_mark_writes(origin);
	}
	PG_END_TRY();

	if (own_transaction)
	{
		if (end == ELT_BATCH_DONE || end == ELT_BATCH_MORE)
			pipeline->retries = 0;
		if (batch->work.window != NULL)
			elt_batch_note_latency(pipeline->pipeline_id, batch->work.window->rows, batch->work.settled);
		if (batch->unblocked)
			note_unblocked(batch);
		if (batch->counts.read > 0)
			elt_stats_note_outcomes(pipeline->pipeline_id, batch->counts.read, batch->work.quarantined);
	}
	counts->read += batch->counts.read;
	counts->written += batch->work.written;
	counts->quarantined += batch->work.quarantined;
	counts->parked += batch->work.parked;
	counts->superseded += batch->work.superseded;
	counts->position = batch->counts.position;
	counts->drained = batch->counts.drained;
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return end;
}

/*
 * elt_batch_require_none
 *		Raises where a batch is at work: what a transform or a trigger calls
 *		must not change the pipeline under it, nor start a batch inside it.
 */
void
elt_batch_require_none(const char *pipeline)
{
	if (at_work)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("pipeline \"%s\" cannot be changed or run inside a batch", pipeline),
				 errhint("Do not call elt from transforms, or from triggers of a target.")));
}

void
elt_batch_set_at_work(bool now)
{
	at_work = now;
}

/* Runs the batch to the end of its transaction, if that is its own. */
static EltBatchEnd
run(Batch *batch, int max_lanes, int64 max_changes)
{
	MemoryContext context = CurrentMemoryContext;
	EltBatchEnd end = ELT_BATCH_DONE;

	lease(batch, max_lanes);
	if (batch->nlanes > 0)
		end = run_leased(batch, max_changes);
	if (batch->announcing)
	{
		elt_worker_commit();
		elt_worker_begin_work(batch->work.pipeline->name);
		MemoryContextSwitchTo(context);
		batch->announcing = false;
		batch->announced = true;
		return run(batch, max_lanes, max_changes);
	}
	if (batch->work.error != NULL)
		return elt_give_up(&batch->work, roll_back, batch);
	if (batch->dropped)
	{
		roll_back(batch);
		return ELT_BATCH_RETRY;
	}
	if (batch->work.own_transaction)
	{
		if (batch->work.options.unmarked_output)
			elt_worker_mark_writes(InvalidRepOriginId);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
	}
	return end;
}

static EltBatchEnd
run_leased(Batch *batch, int64 max_changes)
{
	EltWork    *work = &batch->work;
	EltPipeline *pipeline = work->pipeline;
	ErrorData  *error;

	/*
	 * The lease came first: what others committed for these lanes is seen
	 * from here.
	 */
	if (!elt_pipeline_status(pipeline, &work->status) ||
		work->status.version != pipeline->version ||
		(work->own_transaction && work->status.state == 'p') ||
		(work->own_transaction && work->status.state == 'b' && !work->status.due))
		return ELT_BATCH_DONE;
	error = elt_isolate_try(work, elt_batch_hold_target);
	if (error != NULL)
	{
		elt_isolate_give_up(work, error);
		return ELT_BATCH_RETRY;
	}
	if (work->target_changed)
		elt_pipeline_set_target(pipeline);

	group_lanes(batch);
	read_window(batch, max_changes);
	if (work->window->position == work->after && work->window->barrier != NULL)
		return pass_barrier(batch);

	batch->counts.drained = work->window->at_end &&
		batch->nlanes == pipeline->lanes && batch->ngroup == batch->nlanes;
	batch->counts.position = work->window->position;
	if (work->window->position > work->after)
	{
		if (work->own_transaction && work->window->nrows > 0 && !batch->announced && elt_attempt_on_probation())
		{
			elt_attempt_announce(work);
			batch->announcing = true;
			batch->first_announced = work->window->rows[0]->change_id;
			batch->last_announced = work->window->rows[work->window->nrows - 1]->change_id;
			return ELT_BATCH_MORE;
		}
		if (batch->announced && !elt_attempt_hold_trial(work))
		{
			batch->dropped = true;
			return ELT_BATCH_RETRY;
		}
		if (!elt_isolate_apply(work) || !may_commit(batch))
			return ELT_BATCH_RETRY;
		batch->counts.read = work->settled;
		cut_window(batch);
		settle(batch);
		return batch->counts.drained ? ELT_BATCH_DONE : ELT_BATCH_MORE;
	}
	settle(batch);
	return batch->ngroup < batch->nlanes ? ELT_BATCH_MORE : ELT_BATCH_DONE;
}

/* Not where the breaker trips, nor where another batch has blocked the pipeline meanwhile. */
static bool
may_commit(Batch *batch)
{
	EltWork    *work = &batch->work;

	if (work->quarantined == 0 || !work->own_transaction)
		return true;
	if (elt_breaker_trips(work, true))
		return false;
	if (work->status.state != 'b' && !elt_pipeline_hold_unblocked(work->pipeline->pipeline_id))
	{
		batch->dropped = true;
		return false;
	}
	return true;
}

/* ---- lease and read ---- */

static void
lease(Batch *batch, int max_lanes)
{
	EltPipeline *pipeline = batch->work.pipeline;

	elt_options_read(pipeline->options, pipeline->append, &batch->work.options);
	batch->nlanes = elt_checkpoint_lease(pipeline->pipeline_id, Max(max_lanes, 1),
										 batch->lanes, batch->positions);
}

void
elt_batch_hold_target(EltWork *work)
{
	int			nest_level = NewGUCNestLevel();

	/* in a session it is the caller who decides how long to wait */
	if (work->own_transaction)
		(void) set_config_option("lock_timeout", TARGET_LOCK_TIMEOUT_MS, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	LockRelationOid(work->pipeline->target, RowExclusiveLock);
	work->target_changed = elt_target_follow(work->pipeline);
	AtEOXact_GUC(false, nest_level);
	elt_target_check(work->pipeline);
}

/* Brings the leased lanes in order of position, and counts those in front. */
static void
group_lanes(Batch *batch)
{
	for (int i = 1; i < batch->nlanes; i++)
	{
		int			lane = batch->lanes[i];
		int64		position = batch->positions[i];
		int			j = i;

		for (; j > 0 && batch->positions[j - 1] > position; j--)
		{
			batch->lanes[j] = batch->lanes[j - 1];
			batch->positions[j] = batch->positions[j - 1];
		}
		batch->lanes[j] = lane;
		batch->positions[j] = position;
	}
	batch->ngroup = 1;
	while (batch->ngroup < batch->nlanes && batch->positions[batch->ngroup] == batch->positions[0])
		batch->ngroup++;
}

static void
read_window(Batch *batch, int64 max_changes)
{
	EltWork    *work = &batch->work;
	bool		wanted[ELT_MAX_LANES] = {false};
	EltLogRequest request = {0};
	int			configured = work->options.batch_changes ? work->options.batch_changes : elt_batch_changes;
	bool		cut = (max_changes != 0);

	if (work->pipeline->batch_size > 0)
		configured = Min(configured, work->pipeline->batch_size);
	if (careful.pipeline_id == work->pipeline->pipeline_id &&
		(max_changes == 0 || max_changes > careful.max_changes))
		max_changes = careful.max_changes;
	work->after = batch->positions[0];
	for (int i = 0; i < batch->ngroup; i++)
		wanted[batch->lanes[i]] = true;
	request.raw = work->status.raw;
	request.topic = elt_pipeline_topic(work->pipeline);
	request.after = work->after;
	request.upto = batch->ngroup < batch->nlanes ? batch->positions[batch->ngroup] : PG_INT64_MAX;
	request.lanes = wanted;
	request.nlanes = work->pipeline->lanes;
	request.max_changes = (int) (max_changes > 0 ? Min(max_changes, configured) : configured);
	request.max_bytes = elt_batch_bytes_kb * (int64) 1024;
	request.whole_commits = !cut;
	request.one_schema_version = (work->pipeline->transform == NULL);
	if (elt_breaker_is_probe(work))
	{
		request.max_changes = Min(request.max_changes, ELT_BREAKER_PROBE_CHANGES);
		request.whole_commits = false;
	}
	if (work->status.attempts && work->own_transaction)
		elt_attempt_limit(work, &request);

	/*
	 * newer than the lease, so that it sees all that the positions are based
	 * on
	 */
	PushActiveSnapshot(GetTransactionSnapshot());
	work->window = elt_log_read(&request);
	PopActiveSnapshot();
}

/*
 * The window starts with a truncate: it is applied where all lanes are ours
 * and stand before it.  Lanes of others are waited for outside.
 */
static EltBatchEnd
pass_barrier(Batch *batch)
{
	EltWork    *work = &batch->work;
	EltPipeline *pipeline = work->pipeline;
	int64		change_id = work->window->barrier->change_id;
	int			had = batch->nlanes;

	if (batch->nlanes < pipeline->lanes)
	{
		/*
		 * Those that are locked already come again: a transaction does not
		 * skip its own locks.
		 */
		batch->nlanes = elt_checkpoint_lease(pipeline->pipeline_id, pipeline->lanes,
											 batch->lanes, batch->positions);
		if (batch->nlanes < pipeline->lanes)
			return ELT_BATCH_RETRY;
		group_lanes(batch);
		if (had < batch->nlanes && batch->positions[0] < change_id - 1)
			return ELT_BATCH_MORE;
	}
	if (batch->ngroup < batch->nlanes)
		return ELT_BATCH_MORE;	/* the rest stands behind the barrier: cannot
								 * be */

	if (work->options.apply_truncate)
	{
		ErrorData  *error = elt_isolate_try(work, truncate_target);

		if (error != NULL)
		{
			elt_isolate_give_up(work, error);
			return ELT_BATCH_RETRY;
		}
		if (pipeline->ordering != 'u')
			work->superseded += elt_quarantine_supersede_before(pipeline, change_id);
	}
	else if (work->options.alert_truncate)
		elt_pipeline_note_truncate(pipeline->pipeline_id, work->window->barrier->commit_ts);
	batch->counts.read = 1;
	batch->counts.position = change_id;
	work->window->position = change_id;
	work->window->settled_lsn = InvalidXLogRecPtr;
	settle(batch);
	return ELT_BATCH_MORE;
}

static void
truncate_target(EltWork *work)
{
	elt_runner_truncate(work->pipeline, work->window->barrier->commit_ts);
}

/* Where the window was not settled to its end, the rest is for the next batch. */
static void
cut_window(Batch *batch)
{
	EltWork    *work = &batch->work;
	EltLogWindow *window = work->window;

	if (careful.pipeline_id == work->pipeline->pipeline_id)
	{
		careful.max_changes *= 2;
		if (careful.max_changes >= elt_batch_changes)
			careful.pipeline_id = 0;
	}
	if (work->settled < window->nrows)
	{
		careful.pipeline_id = work->pipeline->pipeline_id;
		careful.max_changes = work->settled;
		window->position = work->settled > 0 ? window->rows[work->settled - 1]->change_id : work->after;
		window->settled_lsn = InvalidXLogRecPtr;
		batch->counts.drained = false;
		batch->counts.position = window->position;
	}
}

/* ---- settle or give up ---- */

static void
settle(Batch *batch)
{
	EltWork    *work = &batch->work;

	if (work->window->position > work->after)
		elt_checkpoint_settle(work->pipeline->pipeline_id, batch->lanes, batch->ngroup,
							  work->window->position, work->window->settled_lsn,
							  batch->counts.read, work->written);
	if (work->status.attempts || batch->announced)
		elt_attempt_forget(work->pipeline->pipeline_id);
	if (work->status.state == 'b' && proves_well(batch))
	{
		elt_pipeline_set_running(work->pipeline->pipeline_id);
		if (work->status.breaker)
			elt_breaker_release(work->pipeline->pipeline_id);
		batch->unblocked = true;
	}
}

/*
 * Not where nothing was tried while there is something to try: all was parked,
 * or is in lanes that others have.
 */
static bool
proves_well(const Batch *batch)
{
	const EltWork *work = &batch->work;

	if (work->status.breaker && !work->own_transaction)
		return false;
	return batch->counts.drained || batch->counts.read > work->parked;
}

static void
roll_back(void *arg)
{
	Batch	   *batch = arg;
	EltPipeline *pipeline = batch->work.pipeline;
	MemoryContext context = CurrentMemoryContext;

	memset(&batch->counts, 0, sizeof(batch->counts));
	memset(&batch->work, 0, sizeof(batch->work));
	batch->unblocked = false;
	AbortCurrentTransaction();
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(context);
	if (batch->announced)
	{
		elt_worker_begin_work(pipeline->name);
		MemoryContextSwitchTo(context);
		elt_attempt_withdraw(pipeline->pipeline_id, batch->first_announced, batch->last_announced);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
	}
}

/* After the commit: what failed before does not count any more, and what was held back is due. */
static void
note_unblocked(Batch *batch)
{
	EltWork    *work = &batch->work;

	if (!work->status.breaker)
		return;
	elt_stats_forget_outcomes(work->pipeline->pipeline_id);
	elt_stats_set_retry_at(work->pipeline->pipeline_id, elt_clock_now());
}

/*
 * After the commit: how long each change took from its commit at the source.
 * Copied rows were committed long before they were captured.
 */
void
elt_batch_note_latency(int64 pipeline_id, EltLogRow **rows, int nrows)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < nrows;)
	{
		int			n = 1;

		while (i + n < nrows && rows[i + n]->commit_ts == rows[i]->commit_ts && rows[i + n]->op == rows[i]->op)
			n++;
		if (rows[i]->op != ELT_OP_SNAPSHOT)
			elt_stats_latency(pipeline_id, Max(now - rows[i]->commit_ts, 0), n);
		i += n;
	}
}
