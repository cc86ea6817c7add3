/*
 * isolate.c
 *	  Applies a window of changes, and finds those that cannot be applied.
 *
 * The window is applied in chunks, each a subtransaction, at first the whole
 * of it.  Where one fails, the change that was read last is the suspect: what
 * is before it is applied, then the suspect alone, and if that fails it is
 * quarantined.  Where suspecting does not help (a plan that reads all before
 * it writes, an error at the statement's end) the chunk is halved; one of at
 * most SINGLES changes is applied change by change.
 *
 * A chunk that fails has done the work before the suspect in vain, so chunks
 * are as long as the failures are apart allows: where one change in G fails,
 * chunks of c changes cost some G / c subtransactions more for each failure, of
 * START_COST changes each, and waste c / 2 changes.  That is least where c is
 * the root of 2 * START_COST * G.  G is learnt from the failures, also for the
 * windows that follow; where they stay away chunks grow with each success.
 *
 * Order per key: with ordering strict, changes of a key that has an
 * unresolved one, be it of this window or of an earlier one, are parked; with
 * supersede, a whole image that goes through makes the older ones moot.  An
 * upsert needs only the newest image of each key of a chunk (see collapse.c).
 *
 * What an SQLSTATE means is in elt.error_classes:
 *
 *	transient			the batch is given up, to be run again
 *	data, dependency	the change is quarantined
 *	systemic			classes 53 and 58 and 25006: the batch is given up and
 *						the pipeline blocked.  Others are data where changes
 *						of the same kind, written or deleted, pass at the same
 *						time: others that are tried one by one with it, else
 *						neighbours, applied and rolled back
 *
 * A change that overruns the time limit by itself is quarantined; where
 * several do together the batch is given up, and the next ones are smaller
 * (attempt.c).  A change that has ended its worker too often is not tried.
 *
 * A transaction should not hold more than MAX_SUBTRANSACTIONS subtransactions
 * that wrote: before there are more, the rest is left to the next batch.  So
 * it is where the batch has taken longer than the time limit.  Both wait for
 * the end of a source transaction, up to twice as many subtransactions.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "capture/change.h"
#include "clock.h"
#include "commands/prepare.h"
#include "control/worker.h"
#include "guc.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "transform/attempt.h"
#include "transform/breaker.h"
#include "transform/collapse.h"
#include "transform/isolate.h"
#include "transform/limit.h"
#include "transform/runner.h"
#include "transform/summary.h"
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
#define START_COST			12	/* of a statement in a subtransaction, in
								 * changes applied by a longer one */

typedef struct Failure
{
	EltLogRow  *row;
	ErrorData  *error;
	const char *class;
} Failure;

/* How far apart the failures of a pipeline are, in the windows that this process saw last. */
static struct
{
	int64		pipeline_id;
	int			gap;			/* in changes; 0: none failed */
}			failing = {0, 0};

static bool apply_window(EltWork *work);
static void load_blocked_keys(EltWork *work);
static int	rest_of_commit(const EltWork *work);
static int	chunk_between(int gap);
static bool apply_chunk(EltWork *work, int n, bool *failed);
static int	find_suspect(EltWork *work, int n);
static bool apply_singles(EltWork *work, int n);
static bool quarantine(EltWork *work, List *failures);
static bool neighbours_pass(EltWork *work, EltLogRow *row);
static bool trial_passes(EltWork *work, EltLogRow *row, EltChangeKind kind);
static int	select_rows(EltWork *work, int n, EltLogRow **out, bool *in_order);
static bool is_ignored(const EltWork *work, const EltLogRow *row);
static bool is_parked(const EltWork *work, const EltLogRow *row);
static void park(EltWork *work, EltLogRow **rows, int nrows);
static void supersede(EltWork *work, EltLogRow **rows, int nrows);
static void note_passed(EltWork *work, EltLogRow **rows, int nrows);
static EltChangeKind kind_of(const EltWork *work, const EltLogRow *row);
static bool stops_overrun(EltWork *work, ErrorData *error);
static bool takes_long(const EltWork *work, TimestampTz start);
static ErrorData *try_rows(EltWork *work, EltLogRow **rows, int nrows, bool in_order);
static void apply(EltWork *work);
static void apply_and_take_back(EltWork *work) pg_attribute_noreturn();
static void add_context(void *arg);

bool
elt_isolate_apply(EltWork *work)
{
	if (!apply_window(work))
		return false;
	elt_failures_write(&work->failures, work->pipeline);
	return true;
}

static bool
apply_window(EltWork *work)
{
	EltLogWindow *window = work->window;
	int			gap = failing.pipeline_id == work->pipeline->pipeline_id ? failing.gap : 0;
	int			chunk = Min(gap > 0 ? chunk_between(gap) : PG_INT32_MAX, Max(window->nrows, 1));
	int			suspect = -1;	/* the row that is likely to blame */
	int			nsuspects = 0;
	int			nfailures = 0;
	int			last_failure = 0;	/* row behind the last one to blame */
	TimestampTz start = elt_clock_now();

	if (work->pipeline->history && work->settled == 0)
		elt_collapse_transactions(window->desc, window->rows, window->nrows);
	load_blocked_keys(work);
	if (work->doomed != 0 && window->nrows == 1)
		return apply_singles(work, 1);

	while (work->settled < window->nrows)
	{
		int			end = suspect >= 0 ? suspect : window->nrows;
		int			n = Min(chunk, end - work->settled);
		bool		failed;

		if (work->subtransactions >= MAX_SUBTRANSACTIONS || takes_long(work, start))
		{
			int			rest = rest_of_commit(work);

			if (rest == 0 || work->subtransactions >= 2 * MAX_SUBTRANSACTIONS)
				break;
			n = Min(n, rest);
		}
		if (n == 0)
		{
			/*
			 * all before the suspect is settled: alone it shows whether it
			 * was to blame
			 */
			if (!apply_singles(work, 1))
				return false;
			gap = nfailures++ == 0 && gap == 0 ? work->settled : (3 * gap + work->settled - last_failure) / 4;
			chunk = chunk_between(gap);
			last_failure = work->settled;
			suspect = -1;
			nsuspects = 0;
			continue;
		}
		if (!apply_chunk(work, n, &failed))
			return false;
		if (!failed)
		{
			if (work->settled - last_failure >= 2 * (int64) gap)
				chunk = Min(2 * (int64) chunk, window->nrows);
			continue;
		}
		suspect = find_suspect(work, n);
		if (suspect >= 0 && nsuspects++ < MAX_SUSPECTS)
			continue;
		suspect = -1;
		if (n > SINGLES)
			chunk = Max(SINGLES, n / 2);
		else
		{
			if (work->subtransactions + n > MAX_SUBTRANSACTIONS && rest_of_commit(work) == 0)
				break;
			if (!apply_singles(work, n))
				return false;
			chunk = 2 * SINGLES;
			last_failure = work->settled;
			nsuspects = 0;
		}
	}
	failing.pipeline_id = work->pipeline->pipeline_id;
	failing.gap = nfailures > 0 ? gap : 0;
	return true;
}

static void
load_blocked_keys(EltWork *work)
{
	EltLogWindow *window = work->window;

	work->blocked = elt_blocked_keys_create();
	if (work->status.unresolved && work->pipeline->ordering != 'u' && window->nrows > 0)
		elt_blocked_keys_load(work->blocked, work->pipeline->pipeline_id, window->rows, window->nrows);
}

EltIsolateParts *
elt_isolate_divide(EltWork *work)
{
	EltLogWindow *window = work->window;
	EltIsolateParts *parts = palloc0(sizeof(EltIsolateParts));
	EltLogRow **selected = palloc(Max(window->nrows, 1) * sizeof(EltLogRow *));
	int			nselected;

	load_blocked_keys(work);
	parts->parked = palloc(Max(window->nrows, 1) * sizeof(EltLogRow *));
	parts->deletes = palloc(Max(window->nrows, 1) * sizeof(EltLogRow *));
	parts->writes = palloc(Max(window->nrows, 1) * sizeof(EltLogRow *));
	nselected = select_rows(work, window->nrows, selected, &parts->in_order);
	for (int i = 0; i < window->nrows; i++)
	{
		if (!is_ignored(work, window->rows[i]) && is_parked(work, window->rows[i]))
			parts->parked[parts->nparked++] = window->rows[i];
	}
	for (int i = 0; i < nselected; i++)
	{
		if (kind_of(work, selected[i]) == ELT_CHANGE_DELETE && !parts->in_order &&
			!work->pipeline->history && !work->options.soft_deletes)
			parts->deletes[parts->ndeletes++] = selected[i];
		else
			parts->writes[parts->nwrites++] = selected[i];
	}
	return parts;
}

void
elt_isolate_passed(EltWork *work, const EltIsolateParts *parts)
{
	park(work, parts->parked, parts->nparked);
	supersede(work, parts->deletes, parts->ndeletes);
	supersede(work, parts->writes, parts->nwrites);
	work->settled += work->window->nrows;
}

/*
 * How many changes of the source transaction that is settled in part are still
 * to come; 0 where it does not end in this window anyway.
 */
static int
rest_of_commit(const EltWork *work)
{
	EltLogWindow *window = work->window;
	int			next = work->settled;

	while (next > 0 && next < window->nrows && window->rows[next]->commit_lsn == window->rows[next - 1]->commit_lsn)
		next++;
	if (next == window->nrows && window->settled_lsn == InvalidXLogRecPtr)
		return 0;
	return next - work->settled;
}

/* How many changes to apply at once where one in so many fails. */
static int
chunk_between(int gap)
{
	return Max(MIN_CHUNK, (int) sqrt(2.0 * START_COST * gap));
}

/* Applies the next n rows at once; *failed: they must be tried in smaller parts. */
static bool
apply_chunk(EltWork *work, int n, bool *failed)
{
	EltLogRow **rows = work->window->rows + work->settled;
	EltLogRow **selected = palloc(n * sizeof(EltLogRow *));
	EltLogRow **parked = palloc(n * sizeof(EltLogRow *));
	bool		in_order;
	int			nselected = select_rows(work, n, selected, &in_order);
	int			nparked = 0;

	*failed = false;
	for (int i = 0; i < n && !elt_blocked_keys_none(work->blocked); i++)
	{
		if (!is_ignored(work, rows[i]) && is_parked(work, rows[i]))
			parked[nparked++] = rows[i];
	}

	if (nselected > 0)
	{
		ErrorData  *error = try_rows(work, selected, nselected, in_order);

		if (error != NULL)
		{
			*failed = true;
			return !elt_isolate_stops(work, error);
		}
	}

	note_passed(work, selected, nselected);
	park(work, parked, nparked);
	supersede(work, selected, nselected);
	pfree(parked);
	pfree(selected);
	work->settled += n;
	return true;
}

/* Keeps the last one of each kind, if it is among the last few. */
static void
note_passed(EltWork *work, EltLogRow **rows, int nrows)
{
	for (int i = Max(nrows - NEIGHBOURHOOD, 0); i < nrows; i++)
		work->last_passed[kind_of(work, rows[i])] = rows[i];
}

/*
 * The change that was at work when the next n rows failed; -1 where that is
 * not known, or is of no use: whether a systemic code is data after all takes
 * neighbours.
 */
static int
find_suspect(EltWork *work, int n)
{
	int64		change_id = elt_runner_last_change();
	int			low = work->settled;
	int			high = work->settled + n - 1;

	if (strcmp(work->class, "systemic") == 0)
		return -1;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (work->window->rows[middle]->change_id < change_id)
			low = middle + 1;
		else
			high = middle;
	}
	return work->window->rows[low]->change_id == change_id ? low : -1;
}

/* Applies the next n rows one by one, and quarantines what fails. */
static bool
apply_singles(EltWork *work, int n)
{
	List	   *failures = NIL;

	memset(work->passed, false, sizeof(work->passed));
	for (int i = 0; i < n; i++)
	{
		EltLogRow  *row = work->window->rows[work->settled + i];
		ErrorData  *error;

		if (is_ignored(work, row))
			continue;
		if (is_parked(work, row))
		{
			park(work, &row, 1);
			continue;
		}
		if (row->change_id == work->doomed)
			error = elt_attempt_error(work);
		else
			error = try_rows(work, &row, 1, true);
		if (error == NULL)
		{
			work->passed[kind_of(work, row)] = true;
			work->last_passed[kind_of(work, row)] = row;
			supersede(work, &row, 1);
		}
		else
		{
			Failure    *failure;

			if (row->change_id != work->doomed && elt_isolate_stops(work, error))
				return false;
			failure = palloc(sizeof(Failure));
			failure->row = row;
			failure->error = error;
			failure->class = row->change_id == work->doomed ? "data" : work->class;
			elt_blocked_keys_add(work->blocked, row);

			/* what supersedes it may follow at once */
			if (work->pipeline->ordering != 'p')
				failures = lappend(failures, failure);
			else if (!quarantine(work, list_make1(failure)))
				return false;

			/* it has taken all the time that a batch should take */
			if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
				n = i + 1;
		}
	}
	if (!quarantine(work, failures))
		return false;
	work->settled += n;
	return true;
}

/*
 * Quarantines the changes that failed; false where one of them failed with a
 * systemic code and none of its kind passes, or where there are too many.
 */
static bool
quarantine(EltWork *work, List *failures)
{
	ListCell   *lc;

	foreach(lc, failures)
	{
		Failure    *failure = lfirst(lc);
		bool		systemic = strcmp(failure->class, "systemic") == 0;

		if (systemic && !neighbours_pass(work, failure->row))
		{
			work->error = failure->error;
			work->error_class = failure->class;
			return false;
		}
		elt_breaker_note(work, elt_failure_add(&work->failures, work->pipeline, work->window->desc, failure->row,
											   failure->error, systemic ? "data" : failure->class,
											   elt_runner_step(work->pipeline, failure->error)),
						 failure->error);
		work->quarantined++;
	}
	return failures == NIL || !elt_breaker_trips(work, false);
}

/*
 * Whether changes like this one can be applied at present.  Those of the
 * batch that passed before do not tell: what they needed may be gone since.
 * Tried are the last of them, what follows in the window, and what is near it
 * in any lane.
 */
static bool
neighbours_pass(EltWork *work, EltLogRow *row)
{
	EltLogWindow *window = work->window;
	EltChangeKind kind = kind_of(work, row);
	bool		all[ELT_MAX_LANES];
	EltLogRequest request = {0};
	int			trials = 0;

	if (work->passed[kind] ||
		(work->last_passed[kind] != NULL && trial_passes(work, work->last_passed[kind], kind)))
		return true;
	for (int i = work->settled; i < window->nrows && trials < MAX_TRIALS; i++)
	{
		if (window->rows[i]->change_id <= row->change_id || kind_of(work, window->rows[i]) != kind ||
			is_ignored(work, window->rows[i]) || elt_blocked_keys_contain(work->blocked, window->rows[i]))
			continue;
		if (trial_passes(work, window->rows[i], kind))
			return true;
		trials++;
	}

	memset(all, true, sizeof(all));
	request.raw = work->status.raw;
	request.topic = elt_pipeline_topic(work->pipeline);
	request.after = Max(row->change_id - NEIGHBOURHOOD, 0);
	request.upto = row->change_id + NEIGHBOURHOOD;
	request.lanes = all;
	request.nlanes = work->pipeline->lanes;
	request.max_changes = 2 * NEIGHBOURHOOD;
	request.max_bytes = elt_batch_bytes_kb * (int64) 1024;
	PushActiveSnapshot(GetTransactionSnapshot());
	window = elt_log_read(&request);
	PopActiveSnapshot();

	trials = 0;
	for (int i = window->nrows - 1; i >= 0 && trials < MAX_TRIALS; i--)
	{
		if (window->rows[i]->change_id == row->change_id ||
			kind_of(work, window->rows[i]) != kind || is_ignored(work, window->rows[i]))
			continue;
		if (trial_passes(work, window->rows[i], kind))
			return true;
		trials++;
	}
	return false;
}

static bool
trial_passes(EltWork *work, EltLogRow *row, EltChangeKind kind)
{
	work->rows = &row;
	work->nrows = 1;
	work->in_order = true;
	work->trial_passed = false;
	(void) elt_isolate_try(work, apply_and_take_back);
	work->nrows = 0;
	if (work->trial_passed)
		work->passed[kind] = true;
	return work->trial_passed;
}

/* ---- ways that a change leaves ---- */

/*
 * Of the next n rows those that are to be applied: without what is ignored or
 * parked, and for an upsert only the newest of each key.  Without keys there
 * is no telling, so then they go in order.
 */
static int
select_rows(EltWork *work, int n, EltLogRow **out, bool *in_order)
{
	EltLogRow **rows = palloc(n * sizeof(EltLogRow *));
	int			nrows = 0;

	*in_order = false;
	for (int i = 0; i < n; i++)
	{
		EltLogRow  *row = work->window->rows[work->settled + i];

		if (is_ignored(work, row) || is_parked(work, row))
			continue;
		if (row->key == 0)
			*in_order = true;
		rows[nrows++] = row;
	}
	if (work->pipeline->append || work->pipeline->history || *in_order || nrows == 0)
		memcpy(out, rows, nrows * sizeof(EltLogRow *));
	else
		nrows = elt_collapse(work->window->desc, rows, nrows, out, work->options.soft_deletes);
	pfree(rows);
	return nrows;
}

static bool
is_ignored(const EltWork *work, const EltLogRow *row)
{
	if (row->moot)
		return true;
	if (row->op == ELT_OP_DELETE)
		return !work->options.apply_deletes || (work->pipeline->append && work->pipeline->transform == NULL);
	return false;
}

static bool
is_parked(const EltWork *work, const EltLogRow *row)
{
	return work->pipeline->ordering == 's' && elt_blocked_keys_contain(work->blocked, row);
}

static void
park(EltWork *work, EltLogRow **rows, int nrows)
{
	if (nrows > 0)
		elt_quarantine_park(work->pipeline, rows, nrows);
	work->parked += nrows;
}

/* Ordering supersede: a whole image that went through makes older failures of its key moot. */
static void
supersede(EltWork *work, EltLogRow **rows, int nrows)
{
	EltLogRow **whole;
	int			nwhole = 0;

	if (work->pipeline->ordering != 'p' || nrows == 0)
		return;
	whole = palloc(nrows * sizeof(EltLogRow *));
	for (int i = 0; i < nrows; i++)
	{
		if (rows[i]->key != 0 && rows[i]->unchanged == 0 && elt_blocked_keys_contain(work->blocked, rows[i]))
			whole[nwhole++] = rows[i];
	}
	if (nwhole > 0)
	{
		elt_failures_write(&work->failures, work->pipeline);
		work->superseded += elt_quarantine_supersede(work->pipeline, whole, nwhole);
	}
	pfree(whole);
}

static EltChangeKind
kind_of(const EltWork *work, const EltLogRow *row)
{
	return (row->op == ELT_OP_DELETE && !work->pipeline->append) ? ELT_CHANGE_DELETE : ELT_CHANGE_WRITE;
}

/* ---- errors ---- */

/* True where the error is for the whole batch; else work->class says what it means for a change. */
bool
elt_isolate_stops(EltWork *work, ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && work->tried > 0 && elt_limit_was_hit())
		return stops_overrun(work, error);
	if (work->class == NULL || work->sqlerrcode != error->sqlerrcode)
		work->class = elt_error_class(work->pipeline, error->sqlerrcode);
	work->sqlerrcode = error->sqlerrcode;
	if (strcmp(work->class, "transient") == 0 ||
		(strcmp(work->class, "systemic") == 0 &&
		 (category == ERRCODE_INSUFFICIENT_RESOURCES || category == ERRCODE_SYSTEM_ERROR ||
		  error->sqlerrcode == ERRCODE_READ_ONLY_SQL_TRANSACTION)))
	{
		work->error = error;
		work->error_class = work->class;
		return true;
	}
	return false;
}

/* The time limit: a single change is to blame, many together may be innocent. */
static bool
stops_overrun(EltWork *work, ErrorData *error)
{
	error->message = psprintf("took longer than the time limit of %d ms", elt_limit_ms(&work->options));
	error->hint = pstrdup("Correct the transform or the target's triggers, or raise the option time_limit with elt.alter_pipeline.");
	work->class = "data";
	work->sqlerrcode = 0;
	if (work->tried == 1)
		return false;
	work->error = error;
	work->error_class = "overrun";
	return true;
}

/* Several subtransactions, each within the limit, are not to add up to many times of it. */
static bool
takes_long(const EltWork *work, TimestampTz start)
{
	int			limit_ms = elt_limit_ms(&work->options);

	return work->own_transaction && work->settled > 0 && limit_ms > 0 &&
		TimestampDifferenceExceeds(start, elt_clock_now(), limit_ms);
}

void
elt_isolate_give_up(EltWork *work, ErrorData *error)
{
	work->tried = 0;
	if (!elt_isolate_stops(work, error))
	{
		work->error = error;
		work->error_class = "systemic";
	}
}

ErrorData *
elt_isolate_try(EltWork *work, void (*attempt) (EltWork *work))
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	/*
	 * a worker is cancelled here only, where that means to try again; an
	 * error resets the hold
	 */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	if (work->own_transaction)
		RESUME_CANCEL_INTERRUPTS();
	PG_TRY();
	{
		ErrorContextCallback callback;

		callback.callback = add_context;
		callback.arg = work;
		callback.previous = error_context_stack;
		error_context_stack = &callback;
		if (work->options.unmarked_output)
			elt_worker_mark_writes(InvalidRepOriginId);
		attempt(work);
		error_context_stack = callback.previous;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		elt_summary_note_origin(error);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();

		/* not undone by that, so another try would fail for them */
		if (work->own_transaction)
			DropAllPreparedStatements();
	}
	PG_END_TRY();
	if (work->own_transaction)
		HOLD_CANCEL_INTERRUPTS();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	elt_worker_mark_writes(DoNotReplicateId);

	/*
	 * a caller who cancels means the whole; a shutdown is FATAL and does not
	 * come here
	 */
	if (error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED && !work->own_transaction)
		ReThrowError(error);
	return error;
}

static ErrorData *
try_rows(EltWork *work, EltLogRow **rows, int nrows, bool in_order)
{
	ErrorData  *error;

	work->rows = rows;
	work->nrows = nrows;
	work->tried = nrows;
	work->in_order = in_order;
	error = elt_isolate_try(work, apply);
	work->nrows = 0;
	return error;
}

static void
apply(EltWork *work)
{
	work->written += elt_runner_apply(work->pipeline, work->window->desc, work->rows, work->nrows, work->in_order);
	work->subtransactions++;
}

static void
apply_and_take_back(EltWork *work)
{
	elt_runner_apply(work->pipeline, work->window->desc, work->rows, work->nrows, work->in_order);
	work->trial_passed = true;
	ereport(ERROR,
			(errcode(ERRCODE_SUCCESSFUL_COMPLETION),
			 errmsg_internal("the trial is over")));
}

static void
add_context(void *arg)
{
	EltWork    *work = arg;

	if (work->nrows == 1)
		errcontext("pipeline \"%s\", change %lld at %X/%X", work->pipeline->name,
				   (long long) work->rows[0]->change_id, LSN_FORMAT_ARGS(work->rows[0]->commit_lsn));
	else
		errcontext("pipeline \"%s\"", work->pipeline->name);
}
