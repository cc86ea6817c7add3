/*
 * batch.c
 *	  One batch of a pipeline: lease, read, apply, settle.
 *
 * A batch leases free lanes by locking their checkpoint rows, reads a window
 * of the log for the lanes that are furthest behind, applies it, and moves
 * their checkpoints: one transaction, so that each change leaves a pipeline in
 * exactly one way (applied, quarantined, or parked), whatever is killed when.
 *
 * Lanes: those leased that stand at the lowest position are worked on, up to
 * where the next of the leased lanes stands, so that lanes which different
 * workers moved come together again.  A truncate is a barrier: the window ends
 * before it, and it is applied once all lanes are leased at once and stand
 * right before it.  Nobody waits for a lane, so there is no deadlock.
 *
 * Errors: the window is applied in chunks, each a subtransaction, at first
 * the whole of it.  Where one fails, the change that was read last is the
 * suspect: what is before it is applied, then the suspect alone, and if that
 * fails it is quarantined.  Where suspecting does not help (a plan that reads
 * all before it writes, an error at the statement's end) the chunk is halved;
 * one of at most SINGLES changes is applied change by change.  Chunks grow
 * again with each success.  What an SQLSTATE means is in elt.error_classes:
 *
 *	transient			the batch is rolled back and run again
 *	data, dependency	quarantined
 *	systemic			classes 53 and 58 and 25006: the batch is rolled back
 *						and the pipeline blocked; other codes are data where
 *						changes of the same kind, written or deleted, pass:
 *						others of the batch, else settled ones, applied once
 *						more and rolled back
 *
 * A batch never leaves more than MAX_SUBTRANSACTIONS subtransactions that
 * wrote: it settles what it has done before it gets there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/change.h"
#include "control/stats.h"
#include "control/worker.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "transform/batch.h"
#include "transform/collapse.h"
#include "transform/log.h"
#include "transform/options.h"
#include "transform/quarantine.h"
#include "transform/runner.h"
#include "transform/target.h"
#include "transform/transform_catalog.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define SINGLES				32
#define MIN_CHUNK			16
#define MAX_SUSPECTS		3	/* in a row that did not help */
#define NEIGHBOURHOOD		256 /* change_ids to look for neighbours in */
#define MAX_TRIALS			8
#define MAX_SUBTRANSACTIONS	60

typedef enum ChangeKind
{
	KIND_WRITE,
	KIND_DELETE,
	KIND_COUNT
} ChangeKind;

typedef struct Failure
{
	EltLogRow  *row;
	ErrorData  *error;
	char	   *class;
} Failure;

typedef struct Batch
{
	EltPipeline *pipeline;
	EltPipelineOptions options;
	EltBatchCounts counts;		/* of this batch */
	bool		own_transaction;
	EltPipelineStatus status;
	int			lanes[ELT_MAX_LANES];	/* leased, those furthest behind first */
	int64		positions[ELT_MAX_LANES];
	int			nlanes;
	int			ngroup;			/* the first of them, which stand at the same
								 * position */
	EltLogWindow *window;
	int			settled;		/* rows of the window that are done with */
	EltBlockedKeys *blocked;
	int			subtransactions;
	bool		passed[KIND_COUNT];

	/* what is being tried */
	EltLogRow **rows;
	int			nrows;
	bool		in_order;
	bool		trial_passed;

	/* what the last failure means */
	int			sqlerrcode;
	char	   *class;

	/* why the batch cannot go on */
	ErrorData  *error;
	char	   *error_class;	/* "transient" or "systemic" */
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
static void lease(Batch *batch, int max_lanes);
static void group_lanes(Batch *batch);
static void read_window(Batch *batch, int64 max_changes);
static EltBatchEnd pass_barrier(Batch *batch);
static bool apply_window(Batch *batch);
static bool apply_chunk(Batch *batch, int start, int n, bool *failed);
static int	find_suspect(Batch *batch, int n);
static bool apply_singles(Batch *batch, int start, int n);
static int	select_rows(Batch *batch, int start, int n, EltLogRow **out, bool *in_order);
static bool is_ignored(const Batch *batch, const EltLogRow *row);
static bool is_parked(const Batch *batch, const EltLogRow *row);
static void park(Batch *batch, EltLogRow **rows, int nrows);
static void supersede(Batch *batch, EltLogRow **rows, int nrows);
static bool quarantine(Batch *batch, List *failures);
static bool neighbours_pass(Batch *batch, EltLogRow *row);
static ChangeKind kind_of(const Batch *batch, const EltLogRow *row);
static bool stops(Batch *batch, ErrorData *error);
static EltBatchEnd give_up(Batch *batch);
static void settle(Batch *batch);
static void note_latency(Batch *batch);
static ErrorData *try(Batch *batch, void (*work) (Batch *batch));
static void try_check(Batch *batch);
static void try_apply(Batch *batch);
static void try_trial(Batch *batch) pg_attribute_noreturn();
static void try_truncate(Batch *batch);
static void add_context(void *arg);

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
	batch->pipeline = pipeline;
	batch->own_transaction = own_transaction;

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
		note_latency(batch);
	counts->read += batch->counts.read;
	counts->written += batch->counts.written;
	counts->quarantined += batch->counts.quarantined;
	counts->parked += batch->counts.parked;
	counts->superseded += batch->counts.superseded;
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

/* Runs the batch to the end of its transaction, if that is its own. */
static EltBatchEnd
run(Batch *batch, int max_lanes, int64 max_changes)
{
	MemoryContext context = CurrentMemoryContext;
	EltBatchEnd end = ELT_BATCH_DONE;

	batch->error = try(batch, try_check);
	if (batch->error != NULL)
		batch->error_class = "systemic";
	else
	{
		lease(batch, max_lanes);
		if (batch->nlanes > 0)
			end = run_leased(batch, max_changes);
	}
	if (batch->error != NULL)
		return give_up(batch);
	if (batch->own_transaction)
	{
		if (batch->options.unmarked_output)
			elt_worker_mark_writes(InvalidRepOriginId);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
	}
	return end;
}

static EltBatchEnd
run_leased(Batch *batch, int64 max_changes)
{
	EltPipeline *pipeline = batch->pipeline;

	/*
	 * The lease came first: what others committed for these lanes is seen
	 * from here.
	 */
	if (!elt_pipeline_status(pipeline, &batch->status) ||
		batch->status.version != pipeline->version ||
		(batch->own_transaction && batch->status.state == 'p') ||
		(batch->own_transaction && batch->status.state == 'b' && !batch->status.due))
		return ELT_BATCH_DONE;

	group_lanes(batch);
	read_window(batch, max_changes);
	if (batch->window->position == batch->positions[0] && batch->window->barrier != NULL)
		return pass_barrier(batch);

	batch->counts.drained = batch->window->at_end &&
		batch->nlanes == pipeline->lanes && batch->ngroup == batch->nlanes;
	batch->counts.position = batch->window->position;
	if (batch->window->position == batch->positions[0])
	{
		if (batch->status.state == 'b')
			elt_pipeline_set_running(pipeline->pipeline_id);
		return batch->ngroup < batch->nlanes ? ELT_BATCH_MORE : ELT_BATCH_DONE;
	}

	if (!apply_window(batch))
		return ELT_BATCH_RETRY;
	settle(batch);
	return batch->counts.drained ? ELT_BATCH_DONE : ELT_BATCH_MORE;
}

/* ---- lease and read ---- */

static void
lease(Batch *batch, int max_lanes)
{
	elt_options_read(batch->pipeline->options, batch->pipeline->append, &batch->options);
	batch->nlanes = elt_checkpoint_lease(batch->pipeline->pipeline_id, Max(max_lanes, 1),
										 batch->lanes, batch->positions);
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
	bool		wanted[ELT_MAX_LANES] = {false};
	EltLogRequest request = {0};
	int			configured = batch->options.batch_changes ? batch->options.batch_changes : elt_batch_changes;

	if (careful.pipeline_id == batch->pipeline->pipeline_id &&
		(max_changes == 0 || max_changes > careful.max_changes))
		max_changes = careful.max_changes;
	for (int i = 0; i < batch->ngroup; i++)
		wanted[batch->lanes[i]] = true;
	request.raw = batch->status.raw;
	request.topic = elt_pipeline_topic(batch->pipeline);
	request.after = batch->positions[0];
	request.upto = batch->ngroup < batch->nlanes ? batch->positions[batch->ngroup] : PG_INT64_MAX;
	request.lanes = wanted;
	request.nlanes = batch->pipeline->lanes;
	request.max_changes = (int) (max_changes > 0 ? Min(max_changes, configured) : configured);
	request.max_bytes = elt_batch_bytes_kb * (int64) 1024;
	request.whole_commits = (max_changes == 0);
	request.one_schema_version = (batch->pipeline->transform == NULL);

	/*
	 * newer than the lease, so that it sees all that the positions are based
	 * on
	 */
	PushActiveSnapshot(GetTransactionSnapshot());
	batch->window = elt_log_read(&request);
	PopActiveSnapshot();
}

/*
 * The window starts with a truncate: it is applied where all lanes are ours
 * and stand before it.  Lanes of others are waited for outside.
 */
static EltBatchEnd
pass_barrier(Batch *batch)
{
	EltPipeline *pipeline = batch->pipeline;
	int64		change_id = batch->window->barrier->change_id;
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

	if (batch->options.apply_truncate)
	{
		ErrorData  *error = try(batch, try_truncate);

		if (error != NULL)
		{
			if (!stops(batch, error))
			{
				batch->error = error;
				batch->error_class = "systemic";
			}
			return ELT_BATCH_RETRY;
		}
		if (pipeline->ordering != 'u')
			batch->counts.superseded += elt_quarantine_supersede_before(pipeline, change_id);
	}
	batch->counts.read++;
	batch->counts.position = change_id;
	batch->window->position = change_id;
	batch->window->settled_lsn = InvalidXLogRecPtr;
	settle(batch);
	return ELT_BATCH_MORE;
}

/* ---- apply ---- */

/*
 * Applies the window, or as much of it as its subtransactions allow for; false
 * where the batch cannot go on.
 */
static bool
apply_window(Batch *batch)
{
	EltLogWindow *window = batch->window;
	int			chunk = Max(window->nrows, 1);
	int			suspect = -1;	/* the row that is likely to blame */
	int			nsuspects = 0;
	int			last_failure = 0;	/* row behind the last one to blame */

	batch->blocked = elt_blocked_keys_create();
	if (batch->status.unresolved && batch->pipeline->ordering != 'u' && window->nrows > 0)
		elt_blocked_keys_load(batch->blocked, batch->pipeline->pipeline_id, window->rows, window->nrows);

	while (batch->settled < window->nrows && batch->subtransactions < MAX_SUBTRANSACTIONS)
	{
		int			end = suspect >= 0 ? suspect : window->nrows;
		int			n = Min(chunk, end - batch->settled);
		bool		failed;

		if (n == 0)
		{
			/*
			 * all before the suspect is settled: alone it shows whether it
			 * was to blame
			 */
			if (!apply_singles(batch, suspect, 1))
				return false;
			batch->settled++;
			chunk = Max(MIN_CHUNK, 2 * (batch->settled - last_failure));
			last_failure = batch->settled;
			suspect = -1;
			nsuspects = 0;
			continue;
		}
		if (!apply_chunk(batch, batch->settled, n, &failed))
			return false;
		if (!failed)
		{
			batch->settled += n;
			chunk = Min(2 * (int64) chunk, window->nrows);
			continue;
		}
		suspect = find_suspect(batch, n);
		if (suspect >= 0 && nsuspects++ < MAX_SUSPECTS)
			continue;
		suspect = -1;
		if (n > SINGLES)
			chunk = Max(SINGLES, n / 2);
		else
		{
			if (batch->subtransactions + n > MAX_SUBTRANSACTIONS)
				break;
			if (!apply_singles(batch, batch->settled, n))
				return false;
			batch->settled += n;
			chunk = 2 * SINGLES;
			last_failure = batch->settled;
			nsuspects = 0;
		}
	}

	batch->counts.read = batch->settled;
	if (careful.pipeline_id == batch->pipeline->pipeline_id)
	{
		careful.max_changes *= 2;
		if (careful.max_changes >= elt_batch_changes)
			careful.pipeline_id = 0;
	}
	if (batch->settled < window->nrows)
	{
		/* the rest is for the next batch */
		careful.pipeline_id = batch->pipeline->pipeline_id;
		careful.max_changes = batch->settled;
		window->position = batch->settled > 0 ? window->rows[batch->settled - 1]->change_id : batch->positions[0];
		window->settled_lsn = InvalidXLogRecPtr;
		window->barrier = NULL;
		batch->counts.drained = false;
		batch->counts.position = window->position;
	}
	return true;
}

/* Applies a part of the window at once; *failed: it must be tried in smaller parts. */
static bool
apply_chunk(Batch *batch, int start, int n, bool *failed)
{
	EltLogRow **selected = palloc(n * sizeof(EltLogRow *));
	EltLogRow **parked = palloc(n * sizeof(EltLogRow *));
	bool		in_order;
	int			nselected = select_rows(batch, start, n, selected, &in_order);
	int			nparked = 0;
	ErrorData  *error = NULL;

	*failed = false;
	for (int i = start; i < start + n; i++)
	{
		if (!is_ignored(batch, batch->window->rows[i]) && is_parked(batch, batch->window->rows[i]))
			parked[nparked++] = batch->window->rows[i];
	}

	batch->rows = selected;
	batch->nrows = nselected;
	batch->in_order = in_order;
	if (nselected > 0)
		error = try(batch, try_apply);
	if (error != NULL)
	{
		*failed = true;
		return !stops(batch, error);
	}

	for (int i = 0; i < nselected; i++)
		batch->passed[kind_of(batch, selected[i])] = true;
	park(batch, parked, nparked);
	supersede(batch, selected, nselected);
	pfree(parked);
	return true;
}

/*
 * The change that was at work when the first n unsettled rows failed; -1 where
 * that is not known, or is of no use: whether a systemic code is data after
 * all takes neighbours.
 */
static int
find_suspect(Batch *batch, int n)
{
	int64		change_id = elt_runner_last_change();
	int			low = batch->settled;
	int			high = batch->settled + n - 1;

	if (strcmp(batch->class, "systemic") == 0)
		return -1;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (batch->window->rows[middle]->change_id < change_id)
			low = middle + 1;
		else
			high = middle;
	}
	return batch->window->rows[low]->change_id == change_id ? low : -1;
}

/* Applies a part of the window change by change, and quarantines what fails. */
static bool
apply_singles(Batch *batch, int start, int n)
{
	List	   *failures = NIL;

	for (int i = start; i < start + n; i++)
	{
		EltLogRow  *row = batch->window->rows[i];
		ErrorData  *error;

		if (is_ignored(batch, row))
			continue;
		if (is_parked(batch, row))
		{
			park(batch, &row, 1);
			continue;
		}
		batch->rows = &row;
		batch->nrows = 1;
		batch->in_order = true;
		error = try(batch, try_apply);
		if (error == NULL)
		{
			batch->passed[kind_of(batch, row)] = true;
			supersede(batch, &row, 1);
		}
		else
		{
			Failure    *failure;

			if (stops(batch, error))
				return false;
			failure = palloc(sizeof(Failure));
			failure->row = row;
			failure->error = error;
			failure->class = batch->class;
			failures = lappend(failures, failure);
			elt_blocked_keys_add(batch->blocked, row);
			if (batch->pipeline->ordering == 'p' && !quarantine(batch, list_make1(failure)))
				return false;
		}
	}
	return batch->pipeline->ordering == 'p' || quarantine(batch, failures);
}

/*
 * Quarantines the changes that failed; false where one of them failed with a
 * systemic code and none of its kind passes.
 */
static bool
quarantine(Batch *batch, List *failures)
{
	ListCell   *lc;

	foreach(lc, failures)
	{
		Failure    *failure = lfirst(lc);

		if (strcmp(failure->class, "systemic") == 0 && !neighbours_pass(batch, failure->row))
		{
			batch->error = failure->error;
			batch->error_class = failure->class;
			return false;
		}
		elt_quarantine_add(batch->pipeline, failure->row, failure->error,
						   strcmp(failure->class, "systemic") == 0 ? "data" : failure->class,
						   elt_runner_step(batch->pipeline, failure->error));
		batch->counts.quarantined++;
	}
	return true;
}

/* Whether changes like this one can be applied at present. */
static bool
neighbours_pass(Batch *batch, EltLogRow *row)
{
	bool	   *passed = &batch->passed[kind_of(batch, row)];
	bool		all[ELT_MAX_LANES];
	EltLogRequest request = {0};
	EltLogWindow *window;
	int			trials = 0;

	if (*passed)
		return true;
	memset(all, true, sizeof(all));
	request.raw = batch->status.raw;
	request.topic = elt_pipeline_topic(batch->pipeline);
	request.after = Max(batch->positions[0] - NEIGHBOURHOOD, 0);
	request.upto = batch->positions[0];
	request.lanes = all;
	request.nlanes = batch->pipeline->lanes;
	request.max_changes = NEIGHBOURHOOD;
	request.max_bytes = elt_batch_bytes_kb * (int64) 1024;
	PushActiveSnapshot(GetTransactionSnapshot());
	window = elt_log_read(&request);
	PopActiveSnapshot();

	for (int i = window->nrows - 1; i >= 0 && trials < MAX_TRIALS && !*passed; i--)
	{
		EltLogRow  *neighbour = window->rows[i];

		if (kind_of(batch, neighbour) != kind_of(batch, row) || is_ignored(batch, neighbour))
			continue;
		batch->rows = &neighbour;
		batch->nrows = 1;
		batch->in_order = true;
		batch->trial_passed = false;
		(void) try(batch, try_trial);
		*passed = batch->trial_passed;
		trials++;
	}
	return *passed;
}

/*
 * The changes of a part of the window that are to be applied: without those
 * that are ignored or parked, and for an upsert only the newest of each key.
 * Without keys there is no telling, so then they go in order.
 */
static int
select_rows(Batch *batch, int start, int n, EltLogRow **out, bool *in_order)
{
	EltLogRow **rows = palloc(n * sizeof(EltLogRow *));
	int			nrows = 0;

	*in_order = false;
	for (int i = start; i < start + n; i++)
	{
		EltLogRow  *row = batch->window->rows[i];

		if (is_ignored(batch, row) || is_parked(batch, row))
			continue;
		if (row->key == 0)
			*in_order = true;
		rows[nrows++] = row;
	}
	if (batch->pipeline->append || *in_order || nrows == 0)
		memcpy(out, rows, nrows * sizeof(EltLogRow *));
	else
		nrows = elt_collapse(batch->window->desc, rows, nrows, out);
	pfree(rows);
	return nrows;
}

static bool
is_ignored(const Batch *batch, const EltLogRow *row)
{
	if (row->op == ELT_OP_DELETE)
		return !batch->options.apply_deletes || (batch->pipeline->append && batch->pipeline->transform == NULL);
	return false;
}

static bool
is_parked(const Batch *batch, const EltLogRow *row)
{
	return batch->pipeline->ordering == 's' && elt_blocked_keys_contain(batch->blocked, row);
}

static void
park(Batch *batch, EltLogRow **rows, int nrows)
{
	if (nrows > 0)
		elt_quarantine_park(batch->pipeline, rows, nrows);
	batch->counts.parked += nrows;
}

/* Ordering supersede: a whole image that went through makes older failures of its key moot. */
static void
supersede(Batch *batch, EltLogRow **rows, int nrows)
{
	EltLogRow **whole;
	int			nwhole = 0;

	if (batch->pipeline->ordering != 'p')
		return;
	whole = palloc(Max(nrows, 1) * sizeof(EltLogRow *));
	for (int i = 0; i < nrows; i++)
	{
		if (rows[i]->key != 0 && rows[i]->unchanged == 0 && elt_blocked_keys_contain(batch->blocked, rows[i]))
			whole[nwhole++] = rows[i];
	}
	if (nwhole > 0)
		batch->counts.superseded += elt_quarantine_supersede(batch->pipeline, whole, nwhole);
	pfree(whole);
}

static ChangeKind
kind_of(const Batch *batch, const EltLogRow *row)
{
	return (row->op == ELT_OP_DELETE && !batch->pipeline->append) ? KIND_DELETE : KIND_WRITE;
}

/* ---- errors ---- */

/* True where the error is for the whole batch; else batch->class says what it means for a change. */
static bool
stops(Batch *batch, ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	if (batch->class == NULL || batch->sqlerrcode != error->sqlerrcode)
		batch->class = elt_error_class(error->sqlerrcode);
	batch->sqlerrcode = error->sqlerrcode;
	if (strcmp(batch->class, "transient") == 0 ||
		(strcmp(batch->class, "systemic") == 0 &&
		 (category == ERRCODE_INSUFFICIENT_RESOURCES || category == ERRCODE_SYSTEM_ERROR ||
		  error->sqlerrcode == ERRCODE_READ_ONLY_SQL_TRANSACTION)))
	{
		batch->error = error;
		batch->error_class = batch->class;
		return true;
	}
	return false;
}

/*
 * Rolls back.  In the caller's transaction that is the caller's decision, so
 * the error goes on to it.
 */
static EltBatchEnd
give_up(Batch *batch)
{
	EltPipeline *pipeline = batch->pipeline;
	ErrorData  *error = batch->error;
	MemoryContext context = CurrentMemoryContext;
	StringInfoData message;

	if (!batch->own_transaction)
		ReThrowError(error);

	memset(&batch->counts, 0, sizeof(batch->counts));
	batch->window = NULL;
	AbortCurrentTransaction();
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(context);
	if (strcmp(batch->error_class, "transient") == 0)
	{
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("pipeline \"%s\" runs a batch again: %s", pipeline->name, error->message)));
		return ELT_BATCH_RETRY;
	}

	initStringInfo(&message);
	appendStringInfo(&message, "%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
	if (error->hint != NULL)
		appendStringInfo(&message, " HINT: %s", error->hint);
	if (pipeline->state != 'b')
		ereport(LOG,
				(errmsg("pipeline \"%s\" is blocked: %s", pipeline->name, message.data)));
	elt_worker_begin_work(pipeline->name);
	MemoryContextSwitchTo(context);
	elt_pipeline_set_blocked(pipeline->pipeline_id, message.data, pipeline->probes);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return ELT_BATCH_BLOCKED;
}

/* Does work in a subtransaction; returns the error that it raised, else NULL. */
static ErrorData *
try(Batch *batch, void (*work) (Batch *batch))
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		ErrorContextCallback callback;

		callback.callback = add_context;
		callback.arg = batch;
		callback.previous = error_context_stack;
		error_context_stack = &callback;
		work(batch);
		error_context_stack = callback.previous;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	elt_worker_mark_writes(DoNotReplicateId);

	/* a caller who cancels means the whole; a shutdown is FATAL and does not come here */
	if (error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED && !batch->own_transaction)
		ReThrowError(error);
	return error;
}

static void
add_context(void *arg)
{
	Batch	   *batch = arg;

	if (batch->nrows == 1)
		errcontext("pipeline \"%s\", change %lld at %X/%X", batch->pipeline->name,
				   (long long) batch->rows[0]->change_id, LSN_FORMAT_ARGS(batch->rows[0]->commit_lsn));
	else
		errcontext("pipeline \"%s\"", batch->pipeline->name);
}

static void
try_check(Batch *batch)
{
	elt_target_check(batch->pipeline);
}

static void
try_apply(Batch *batch)
{
	int64		written;

	if (batch->options.unmarked_output)
		elt_worker_mark_writes(InvalidRepOriginId);
	written = elt_runner_apply(batch->pipeline, batch->window->desc, batch->rows, batch->nrows, batch->in_order);
	batch->counts.written += written;
	batch->subtransactions++;
}

/* Applies, and takes back. */
static void
try_trial(Batch *batch)
{
	elt_runner_apply(batch->pipeline, batch->window->desc, batch->rows, batch->nrows, batch->in_order);
	batch->trial_passed = true;
	ereport(ERROR,
			(errcode(ERRCODE_SUCCESSFUL_COMPLETION),
			 errmsg_internal("the trial is over")));
}

static void
try_truncate(Batch *batch)
{
	if (batch->options.unmarked_output)
		elt_worker_mark_writes(InvalidRepOriginId);
	elt_runner_truncate(batch->pipeline);
}

/* ---- settle ---- */

static void
settle(Batch *batch)
{
	if (batch->window->position > batch->positions[0])
		elt_checkpoint_settle(batch->pipeline->pipeline_id, batch->lanes, batch->ngroup,
							  batch->window->position, batch->window->settled_lsn,
							  batch->counts.read, batch->counts.written);
	if (batch->status.state == 'b')
		elt_pipeline_set_running(batch->pipeline->pipeline_id);
}

/*
 * After the commit: how long each change took from its commit at the source.
 * Copied rows were committed long before they were captured.
 */
static void
note_latency(Batch *batch)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; batch->window != NULL && i < batch->settled; i++)
	{
		EltLogRow  *row = batch->window->rows[i];

		if (row->op != ELT_OP_SNAPSHOT)
			elt_stats_latency(batch->pipeline->pipeline_id, Max(now - row->commit_ts, 0));
	}
}
