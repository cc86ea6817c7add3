/*
 * pool.c
 *	  The transform worker.
 *
 * Any worker of the pool works on any pipeline of its database, batch by
 * batch, as long as one of them has something new, and sleeps when none has.
 * Next is the one that has had the least of its time, over the pipeline's
 * weight: so one with a large backlog or a slow transform takes turns with the
 * others, and one that has little to do is served at once.  Batches are as
 * large as fits into elt.batch_time (batch_size.c).  Who commits to raw
 * staging wakes one idle worker; a worker that finds more than one batch wakes
 * the next.  How many there are, and when one leaves, is the supervisor's
 * business (scaler.c).
 *
 * Whether a pipeline has something new is seen from the end of its log,
 * compared with where the pipeline was last seen drained: that costs no lock
 * and no write.
 *
 * Users share these sessions one after the other.  What a user's code may
 * leave behind (advisory locks, prepared statements, cursors, listeners) is
 * dropped before another user's runs; a session that got a temporary schema
 * leaves, since that cannot be given back.
 *
 * Errors of users' SQL are outcomes of a batch, see batch.c, and so is
 * pg_cancel_backend(), which reaches nothing else here; any other error ends
 * the worker, and the supervisor starts it again.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/xact.h"
#include "catalog/namespace.h"
#include "clock.h"
#include "common/pg_prng.h"
#include "control/stats.h"
#include "control/worker.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "owner.h"
#include "portability/instr_time.h"
#include "replay/due.h"
#include "storage/ipc.h"
#include "transform/batch.h"
#include "transform/batch_size.h"
#include "transform/group.h"
#include "transform/log.h"
#include "transform/options.h"
#include "transform/transform_catalog.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MAX_NAP_MS			10000
#define UNDRAINED_NAP_MS	1000
#define LONG_BATCH_MS		20	/* after which others may have got something
								 * to do */
#define ALONE_S				0.1 /* work of one worker that is not shared */
#define MIN_RETRY_MS		200
#define MAX_RETRY_MS		60000
#define KEPT_BYTES			(64 * 1024 * 1024)

/* What this worker remembers of a pipeline. */
typedef struct Task
{
	EltPipeline *pipeline;
	List	   *group;			/* the first of a group: all pipelines of it;
								 * NIL: it has none, or another is the first */
	bool		held;			/* the first of its group works for it, or a
								 * member holds all */
	int			max_workers;	/* at this pipeline at a time; 0: all */
	int			weight;
	double		spent;			/* time on it in microseconds, over its weight */
	bool		served;			/* in this round */
	int			batch_changes;	/* 0: as the setting says */
	double		rate;			/* changes per second of the last batch; 0:
								 * not known */
	int64		tail;			/* end of its log, when last looked at */
	int64		drained_to;		/* settled up to here, in all lanes; -1: not
								 * known */
	bool		idle;			/* nothing to do here until the log grows, or
								 * others leave lanes behind */
	bool		all_lanes;		/* little is left: lease all that are free */
	TimestampTz due_at;			/* after an error: when to try again; 0: at
								 * once */
	int			retries;
} Task;

typedef struct Pool
{
	MemoryContext config;		/* the tasks; reset when pipelines change */
	MemoryContext round;
	uint64		generation;
	List	   *tasks;
	double		spent;			/* what the task had that ran last, before it */
	Oid			last_owner;		/* whose code ran last in this session */
} Pool;

static void keep_freed_memory(void);
static void load_tasks(Pool *pool);
static void form_groups(Pool *pool, List *pipelines);
static int64 find_tail(const Task *task);
static bool run_round(Pool *pool);
static Task *next_task(Pool *pool);
static bool look(Pool *pool);
static bool is_due(const Task *task, TimestampTz now);
static bool retry_is_due(const Task *task, TimestampTz now);
static void retry_waiting(Pool *pool, Task *task);
static bool run_task(Pool *pool, Task *task);
static void adapt_batch_size(Task *task, int64 read, double elapsed_ms);
static void leave_temporary_schema(void);
static void retry_undrained(Pool *pool);
static void clean_session(Pool *pool, Oid owner);
static int	lanes_to_lease(const Task *task);
static int	count_workers(void);
static TimestampTz retry_time(Task *task);
static long nap_ms(const Pool *pool);

void
elt_transform_main(Datum main_arg)
{
	Pool		pool = {0};

	elt_worker_start(main_arg, ELT_WORKER_TRANSFORM, "elt transform");
	keep_freed_memory();
	HOLD_CANCEL_INTERRUPTS();	/* see elt_isolate_try */
	pool.config = AllocSetContextCreate(TopMemoryContext, "elt tasks", ALLOCSET_DEFAULT_SIZES);
	pool.round = AllocSetContextCreate(TopMemoryContext, "elt round", ALLOCSET_DEFAULT_SIZES);
	pool.generation = PG_UINT64_MAX;

	do
	{
		while (run_round(&pool) && elt_worker_nap(0))
			;
		if (elt_registry_stop_requested())
			break;

		/* Announced before the last look, so that no wake is lost in between. */
		elt_registry_set_activity("idle", "");
		pg_atomic_write_u32(&elt_my_slot->idle, 1);
		pg_memory_barrier();
		if (look(&pool))
		{
			pg_atomic_write_u32(&elt_my_slot->idle, 0);
			continue;
		}

		/*
		 * Who has taken the flag down has set our latch, but a wait in that
		 * look, for a lock or for a block that is being added, used it up.
		 * Nobody would wake us again.
		 */
		if (pg_atomic_read_u32(&elt_my_slot->idle) == 0)
			continue;
		(void) elt_worker_nap(nap_ms(&pool));
		pg_atomic_write_u32(&elt_my_slot->idle, 0);
		retry_undrained(&pool);
	} while (elt_worker_nap(0));

	/* somebody else goes on with what is left, or the supervisor hears of it */
	elt_registry_set_activity("leaving", "");
	retry_undrained(&pool);
	if (look(&pool))
		elt_registry_wake_transform(MyDatabaseId);
}

/*
 * Each batch takes as much memory as the one before.  The C library would give
 * it back to the kernel in between, and clearing the pages again would cost a
 * tenth of the batch.
 */
static void
keep_freed_memory(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_MMAP_THRESHOLD, KEPT_BYTES / 2);
	(void) mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
#endif
}

/*
 * At most one batch for each pipeline that has something to do, those first
 * that have had the least of this worker's time; false where none had.  It
 * looks anew after a batch that took its time, since others may have something
 * by then.
 */
static bool
run_round(Pool *pool)
{
	bool		worked = false;
	ListCell   *lc;

	if (!look(pool))
		return false;
	foreach(lc, pool->tasks)
	{
		Task	   *task = lfirst(lc);

		task->served = false;
		if (!is_due(task, elt_clock_now()))
			task->spent = Max(task->spent, pool->spent);	/* idle time is not
															 * saved up */
		if (retry_is_due(task, elt_clock_now()) && elt_worker_nap(0))
			retry_waiting(pool, task);
	}
	for (;;)
	{
		Task	   *task = next_task(pool);
		TimestampTz start = elt_clock_now();

		if (task == NULL || !elt_worker_nap(0))
			break;
		task->served = true;
		pool->spent = task->spent;
		worked |= run_task(pool, task);
		task->spent += (double) (elt_clock_now() - start) / task->weight;
		if (TimestampDifferenceExceeds(start, elt_clock_now(), LONG_BATCH_MS))
			return true;
	}
	return worked;
}

static Task *
next_task(Pool *pool)
{
	Task	   *next = NULL;
	TimestampTz now = elt_clock_now();
	ListCell   *lc;

	foreach(lc, pool->tasks)
	{
		Task	   *task = lfirst(lc);

		if (!task->served && is_due(task, now) && (next == NULL || task->spent < next->spent))
			next = task;
	}
	return next;
}

/* Looks at the pipelines and the ends of their logs; true where there is work. */
static bool
look(Pool *pool)
{
	MemoryContext old;
	TimestampTz now = elt_clock_now();
	bool		work = false;
	ListCell   *lc;

	elt_worker_begin_work("looking for changes");
	MemoryContextReset(pool->round);
	old = MemoryContextSwitchTo(pool->round);
	if (pool->generation != elt_config_generation(MyDatabaseId))
		load_tasks(pool);
	foreach(lc, pool->tasks)
	{
		Task	   *task = lfirst(lc);
		int64		tail = task->held ? 0 : find_tail(task);

		if (tail != task->tail)
			task->idle = false;
		task->tail = tail;
		work |= is_due(task, now) || retry_is_due(task, now);
	}
	MemoryContextSwitchTo(old);
	elt_worker_commit();
	return work;
}

static void
load_tasks(Pool *pool)
{
	MemoryContext old;
	List	   *pipelines;
	ListCell   *lc;

	/* read before the tables, so that a change in between is seen again */
	pool->generation = elt_config_generation(MyDatabaseId);
	pool->tasks = NIL;
	MemoryContextReset(pool->config);
	old = MemoryContextSwitchTo(pool->config);
	pipelines = elt_catalog_pipelines();
	foreach(lc, pipelines)
	{
		EltPipeline *pipeline = lfirst(lc);
		EltPipelineOptions options;
		Task	   *task;

		if (pipeline->state == 'p')
			continue;
		task = palloc0(sizeof(Task));
		task->pipeline = pipeline;
		elt_options_read(pipeline->options, pipeline->append, &options);
		task->max_workers = options.max_workers;
		task->weight = options.weight;
		task->spent = pool->spent;
		task->batch_changes = options.batch_changes;
		pipeline->batch_size = elt_batch_time_ms > 0 ? ELT_BATCH_SIZE_FIRST : 0;
		task->drained_to = -1;
		if (pipeline->state == 'b')
			task->due_at = elt_clock_of(pipeline->next_probe_at);
		pool->tasks = lappend(pool->tasks, task);
	}
	form_groups(pool, pipelines);
	MemoryContextSwitchTo(old);
}

/* The first pipeline of a group works for all of it, once none is paused, and at the latest of their probes. */
static void
form_groups(Pool *pool, List *pipelines)
{
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, pool->tasks)
	{
		Task	   *task = lfirst(lc);

		if (task->held)
			continue;
		foreach(other, pipelines)
		{
			if (elt_group_is_same(task->pipeline, lfirst(other)))
			{
				task->group = lappend(task->group, lfirst(other));
				task->held = task->held || ((EltPipeline *) lfirst(other))->state == 'p';
			}
		}
		foreach(other, pool->tasks)
		{
			Task	   *follower = lfirst(other);

			if (follower == task || !list_member_ptr(task->group, follower->pipeline))
				continue;
			follower->held = true;
			task->due_at = Max(task->due_at, follower->due_at);
		}
	}
}

static int64
find_tail(const Task *task)
{
	int64		tail = 0;
	ListCell   *lc;

	if (task->group == NIL)
		return elt_log_tail(elt_pipeline_raw(task->pipeline));
	foreach(lc, task->group)
		tail = Max(tail, elt_log_tail(elt_pipeline_raw(lfirst(lc))));
	return tail;
}

/* A blocked pipeline is probed even if its log has not grown. */
static bool
is_due(const Task *task, TimestampTz now)
{
	if (task->held)
		return false;
	if (task->due_at != 0)
		return task->due_at <= now;
	return !task->idle && task->tail > task->drained_to;
}

/* Whether a change of its quarantine waits that is to be tried again now. */
static bool
retry_is_due(const Task *task, TimestampTz now)
{
	TimestampTz at = elt_stats_retry_at(task->pipeline->pipeline_id);

	return task->pipeline->state == 'r' && at != 0 && at <= now;
}

static void
retry_waiting(Pool *pool, Task *task)
{
	MemoryContext old;

	clean_session(pool, task->pipeline->owner);
	elt_registry_set_activity("retrying", task->pipeline->name);
	MemoryContextReset(pool->round);
	old = MemoryContextSwitchTo(pool->round);
	elt_due_run(task->pipeline);
	MemoryContextSwitchTo(old);
	leave_temporary_schema();
}

/* Runs a batch; true where there may be another at once. */
static bool
run_task(Pool *pool, Task *task)
{
	EltBatchCounts counts = {0};
	EltBatchEnd end;
	MemoryContext old;
	instr_time	start;
	instr_time	duration;

	if (pool->generation != elt_config_generation(MyDatabaseId))
		return true;			/* it may be paused: look again */
	if (!elt_registry_join("applying", task->pipeline->name, task->group ? 1 : task->max_workers))
	{
		task->idle = true;		/* until the log grows, or some time passed */
		return false;
	}
	clean_session(pool, task->pipeline->owner);
	INSTR_TIME_SET_CURRENT(start);
	MemoryContextReset(pool->round);
	old = MemoryContextSwitchTo(pool->round);
	if (task->group != NIL)
		end = elt_group_run(task->group, 0, &counts, true);
	else
		end = elt_batch_run(task->pipeline, lanes_to_lease(task), 0, &counts, true);
	MemoryContextSwitchTo(old);
	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, start);
	pg_atomic_fetch_add_u64(&elt_my_slot->changes, counts.read);
	pg_atomic_fetch_add_u64(&elt_my_slot->busy_us, INSTR_TIME_GET_MICROSEC(duration));

	adapt_batch_size(task, counts.read, INSTR_TIME_GET_MILLISEC(duration));
	if (counts.read > 0)
		task->rate = counts.read / Max(INSTR_TIME_GET_DOUBLE(duration), 1e-6);
	task->due_at = 0;
	switch (end)
	{
		case ELT_BATCH_MORE:
			task->retries = 0;
			task->all_lanes = false;
			if (count_workers() > 1)
				elt_registry_wake_transform(MyDatabaseId);
			break;
		case ELT_BATCH_DONE:
			task->retries = 0;
			task->idle = true;
			task->all_lanes = true;
			if (counts.drained)
				task->drained_to = counts.position;
			break;
		case ELT_BATCH_RETRY:
			task->due_at = retry_time(task);
			task->all_lanes = true;
			break;
		case ELT_BATCH_BLOCKED:

			/*
			 * the pipeline's row says when; it is read again, because it has
			 * changed
			 */
			break;
	}

	leave_temporary_schema();
	return end == ELT_BATCH_MORE;
}

static void
adapt_batch_size(Task *task, int64 read, double elapsed_ms)
{
	int			max = task->batch_changes > 0 ? task->batch_changes : elt_batch_changes;
	int			size = task->pipeline->batch_size;
	ListCell   *lc;

	if (elt_batch_time_ms == 0)
		size = 0;
	else
		size = elt_batch_size_next(size > 0 ? size : ELT_BATCH_SIZE_FIRST, read, elapsed_ms, elt_batch_time_ms, max);
	task->pipeline->batch_size = size;
	foreach(lc, task->group)
		((EltPipeline *) lfirst(lc))->batch_size = size;
}

/* What a user left in the temporary schema must not meet another user. */
static void
leave_temporary_schema(void)
{
	Oid			temp_namespace;
	Oid			temp_toast_namespace;

	GetTempNamespaceState(&temp_namespace, &temp_toast_namespace);
	if (OidIsValid(temp_namespace))
		elt_registry_finish();	/* and comes again at once */
}

/*
 * Lanes that others had when they were looked for may be free now, whatever
 * became of those others: whoever wakes looks again.
 */
static void
retry_undrained(Pool *pool)
{
	ListCell   *lc;

	foreach(lc, pool->tasks)
		((Task *) lfirst(lc))->idle = false;
}

/* Drops what the code of another user may have left in this session. */
static void
clean_session(Pool *pool, Oid owner)
{
	if (owner == pool->last_owner)
		return;
	if (OidIsValid(pool->last_owner))
	{
		elt_worker_begin("cleaning the session");
		elt_owner_clean_session();
		elt_worker_commit();
	}
	pool->last_owner = owner;
}

/*
 * All lanes where little is left: one batch, and no more than a moment's work
 * for one worker.  Else the fair share of a worker.
 */
static int
lanes_to_lease(const Task *task)
{
	int			lanes = task->pipeline->lanes;
	int			workers = count_workers();
	double		little = task->batch_changes > 0 ? task->batch_changes : elt_batch_changes;

	if (task->max_workers > 0)
		workers = Min(workers, task->max_workers);
	if (task->rate > 0)
		little = Min(little, task->rate * ALONE_S);
	if (workers <= 1 || task->all_lanes || (task->drained_to >= 0 && task->tail - task->drained_to <= little))
		return lanes;
	return (lanes + workers - 1) / workers;
}

/* How many transform workers this database has. */
static int
count_workers(void)
{
	int			workers = 0;

	for (int i = 0; i < elt_registry_size(); i++)
	{
		EltWorkerSlot slot;

		if (elt_registry_read(i, &slot) && slot.kind == ELT_WORKER_TRANSFORM &&
			slot.dboid == MyDatabaseId && slot.proc != NULL)
			workers++;
	}
	return workers;
}

/* Full jitter: anything up to 200 ms, doubling to 60 s. */
static TimestampTz
retry_time(Task *task)
{
	int			limit_ms = Min(MAX_RETRY_MS, MIN_RETRY_MS << Min(task->retries, 10));
	int			delay_ms = 1 + (int) pg_prng_uint64_range(&pg_global_prng_state, 0, limit_ms - 1);

	task->retries++;
	return TimestampTzPlusMilliseconds(elt_clock_now(), delay_ms);
}

/* Until the next retry, of a batch or of a quarantined change, or probe; at most MAX_NAP_MS; less where others have lanes. */
static long
nap_ms(const Pool *pool)
{
	TimestampTz now = elt_clock_now();
	long		nap = MAX_NAP_MS;
	ListCell   *lc;

	foreach(lc, pool->tasks)
	{
		Task	   *task = lfirst(lc);

		TimestampTz retry_at = elt_stats_retry_at(task->pipeline->pipeline_id);

		if (retry_at != 0 && task->pipeline->state == 'r')
			nap = Min(nap, Max(1, TimestampDifferenceMilliseconds(now, retry_at)));
		if (task->held)
			continue;
		if (task->due_at == 0 && task->tail > task->drained_to)
			nap = Min(nap, UNDRAINED_NAP_MS);
		if (task->due_at != 0)
			nap = Min(nap, Max(1, TimestampDifferenceMilliseconds(now, task->due_at)));
	}
	return nap;
}
