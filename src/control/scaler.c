/*
 * scaler.c
 *	  How many transform workers a database has: measured, decided, written down.
 *
 * Once a second the supervisor measures: what the workers did (from the
 * registry), what came into the pipelines' logs and what waits there (a glance
 * at the ends of the logs, see elt_log_count), and asks autoscale.c.  The
 * answer is applied by starting and stopping workers; each change of it is a
 * row of elt.scaling_log.  Whatever the number, order per key is kept by
 * lanes.
 *
 * From nobody to the first worker it must not take a second.  While the pool
 * is empty the supervisor watches for work: who commits to raw staging and
 * finds no worker sets its latch (elt_registry_wake_transform).  It looks
 * whether a running pipeline has something to read, starts a worker at once,
 * and writes the decision down afterwards.  Where there was nothing to do,
 * since nobody reads the relation that changed, it watches again only a moment
 * later, so that a busy source does not keep it busy.
 *
 * A database where nothing happens costs nothing here: logs are looked at only
 * after somebody said that they grew, or while there is a backlog.  Probes of
 * blocked pipelines and retries of quarantined changes are demand when they
 * are due, and none before.
 *
 * The last worker processes of the server are not taken: parallel queries and
 * capture workers need some.  The first worker of a pool may have them.
 *
 * In mode advise the controller is asked all the same, and the pool is as
 * large as without it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "compat.h"
#include "control/alert.h"
#include "control/autoscale.h"
#include "control/scaler.h"
#include "control/stats.h"
#include "control/worker.h"
#include "guc.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "transform/log.h"
#include "transform/transform_catalog.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define ROUND_MS			1000
#define LOOK_AGAIN_MS		50	/* after work that was none of ours */
#define SPARE_PROCESSES		2
#define REPEAT_MS			600000	/* a hold that lasts is told again */
#define KEEP_ROWS			10000
#define ROWS_PER_CLEANING	100

/* The log of a pipeline, as last seen. */
typedef struct Watched
{
	EltPipeline *pipeline;
	int64		tail;			/* -1: not looked at yet */
	double		backlog;
} Watched;

/* Counters of a worker, as last seen. */
typedef struct Seen
{
	uint32		generation;
	uint64		changes;
	uint64		busy_us;
} Seen;

typedef struct Decision
{
	int			before;
	int			wanted;
	EltScaleReason reason;
	EltPoolStatus status;
	double		need;
	double		waiting_share;
} Decision;

static struct
{
	MemoryContext config;		/* pipelines; made anew when they change */
	List	   *watched;		/* of Watched; not those that are paused */
	int			bound_min;		/* of elt.set_worker_bounds; -1: not set */
	int			bound_max;
	bool		changed;		/* pipelines or bounds, since the last measure */

	bool		ready;			/* of which state was initialised */
	EltScaleState state;
	uint64		work;			/* elt_registry_work, when the logs were last
								 * looked at */
	TimestampTz measured_at;
	TimestampTz idle_until;		/* no need to look before, for work alone */
	Seen	   *seen;			/* by slot of the registry */
	int			pool;			/* workers that should run */
	EltPoolStatus status;

	bool		decided;		/* decision is to be written */
	Decision	decision;
	EltScaleReason told;		/* the last hold that was written, and when */
	TimestampTz told_at;
	int			rows_written;
}			scaler;

static void get_limits(EltScaleLimits *limits);
static bool is_active(const Watched *watched);
static bool anything_due(void);
static void measure(EltScaleMeasure *measure, TimestampTz now, bool look);
static void measure_workers(EltScaleMeasure *measure);
static bool waits_for_others(const PGPROC *proc);
static int	free_processes(int running);
static void measure_logs(EltScaleMeasure *measure);
static void measure_log(Watched *watched, EltScaleMeasure *measure);
static int	fixed_pool(const EltScaleMeasure *measure, const EltScaleLimits *limits, EltScaleReason *reason);
static void publish(const EltScaleLimits *limits, EltScaleReason reason, int running, TimestampTz now);
static void clean_log(void);

/* ---- what there is ---- */

void
elt_scaler_configure(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "elt scaler", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *pipelines = elt_catalog_pipelines();
	List	   *all = NIL;
	ListCell   *lc;
	ListCell   *before;

	foreach(lc, pipelines)
	{
		EltPipeline *pipeline = lfirst(lc);
		Watched    *watched;

		if (pipeline->state == 'p')
			continue;
		watched = palloc0(sizeof(Watched));
		watched->pipeline = pipeline;
		watched->tail = -1;
		foreach(before, scaler.watched)
		{
			Watched    *known = lfirst(before);

			if (known->pipeline->pipeline_id == pipeline->pipeline_id)
			{
				watched->tail = known->tail;
				watched->backlog = is_active(known) ? known->backlog : 0;
			}
		}
		all = lappend(all, watched);
	}
	elt_catalog_worker_bounds(&scaler.bound_min, &scaler.bound_max);
	MemoryContextSwitchTo(old);
	if (scaler.config != NULL)
		MemoryContextDelete(scaler.config);
	scaler.config = context;
	scaler.watched = all;
	scaler.changed = true;
}

static void
get_limits(EltScaleLimits *limits)
{
	limits->max_workers = scaler.bound_max >= 0 ? scaler.bound_max : elt_max_workers;
	limits->min_workers = scaler.bound_min >= 0 ? scaler.bound_min : elt_min_workers;

	limits->min_workers = Min(limits->min_workers, limits->max_workers);
	limits->upper_s = elt_target_backlog_s;
	limits->lower_s = elt_drained_backlog_ms / 1000.0;
	limits->catchup_s = elt_catchup_target_s;
	limits->scale_down_s = elt_scale_down_window_s;
	limits->idle_s = elt_idle_timeout_s;
}

static bool
is_active(const Watched *watched)
{
	return watched->pipeline->state == 'r';
}

/* Whether a probe of a blocked pipeline, or a retry of a quarantined change, is due. */
static bool
anything_due(void)
{
	TimestampTz now = elt_clock_now();
	TimestampTz today = GetCurrentTimestamp();
	ListCell   *lc;

	foreach(lc, scaler.watched)
	{
		Watched    *watched = lfirst(lc);
		TimestampTz retry_at = elt_stats_retry_at(watched->pipeline->pipeline_id);

		if (is_active(watched) ? retry_at != 0 && retry_at <= now : watched->pipeline->next_probe_at <= today)
			return true;
	}
	return false;
}

/* ---- deciding ---- */

/*
 * elt_scaler_round
 *		How many transform workers should run now.
 */
int
elt_scaler_round(void)
{
	TimestampTz now = elt_clock_now();
	double		now_s = (double) now / USECS_PER_SEC;
	EltScaleLimits limits;
	EltScaleMeasure measured = {0};
	EltScaleReason reason;
	EltScaleReason pool_reason;
	uint64		work = elt_registry_work();
	bool		came = (work != scaler.work);
	bool		first = !scaler.ready;
	bool		due;

	get_limits(&limits);
	if (first)
	{
		elt_autoscale_init(&scaler.state, now_s);
		scaler.seen = MemoryContextAllocZero(TopMemoryContext, elt_registry_size() * sizeof(Seen));
		scaler.ready = true;

		came = true;
	}
	due = anything_due();
	if (!TimestampDifferenceExceeds(scaler.measured_at, now, ROUND_MS - 50) && !scaler.changed &&
		!(scaler.pool == 0 && (due || (came && now >= scaler.idle_until))))
		return scaler.pool;

	measured.due = due;
	scaler.work = work;

	measure(&measured, now, came || scaler.changed);
	if (first)					/* workers of a supervisor before this one */
		scaler.state.wanted = Min(measured.running, ELT_SCALE_MAX_WORKERS);

	if (scaler.watched == NIL)
	{
		limits.min_workers = limits.max_workers = 0;
		(void) elt_autoscale(&scaler.state, &measured, &limits, now_s);
		scaler.pool = 0;

		reason = pool_reason = ELT_SCALE_NO_PIPELINE;
	}
	else if (elt_autoscale_mode == ELT_AUTOSCALE_OFF)
	{
		scaler.pool = scaler.state.wanted = fixed_pool(&measured, &limits, &reason);
		pool_reason = reason;
	}
	else
	{
		reason = pool_reason = elt_autoscale(&scaler.state, &measured, &limits, now_s);
		scaler.pool = scaler.state.wanted;

		if (elt_autoscale_mode == ELT_AUTOSCALE_ADVISE)
		{
			scaler.pool = fixed_pool(&measured, &limits, &pool_reason);
		}
	}
	if (scaler.pool == 0 && came)
		scaler.idle_until = TimestampTzPlusMilliseconds(now, LOOK_AGAIN_MS);
	scaler.changed = false;
	if (reason == ELT_SCALE_NO_PROCESS || pool_reason == ELT_SCALE_NO_PROCESS)
		elt_alert_note_no_room();

	publish(&limits, reason, measured.running, now);
	return scaler.pool;
}

/* All workers that are allowed, as far as the server can start them. */
static int
fixed_pool(const EltScaleMeasure *measure, const EltScaleLimits *limits, EltScaleReason *reason)
{
	int			startable = measure->running + measure->free_processes;

	*reason = limits->max_workers > startable ? ELT_SCALE_NO_PROCESS : ELT_SCALE_OFF;
	return Min(limits->max_workers, startable);
}

/*
 * elt_scaler_nap_ms
 *		How long the supervisor may sleep; a latch cuts it short.  Watches for
 *		work while nobody is there to see it.
 */
long
elt_scaler_nap_ms(void)
{
	bool		active = false;
	ListCell   *lc;

	foreach(lc, scaler.watched)
		active |= is_active((Watched *) lfirst(lc));
	if (!active || scaler.pool > 0)
		return ROUND_MS;
	if (elt_clock_now() < scaler.idle_until)
		return LOOK_AGAIN_MS;
	elt_registry_watch_work();
	return elt_registry_work() != scaler.work ? 1 : ROUND_MS;
}

/* ---- measuring ---- */

static void
measure(EltScaleMeasure *measure, TimestampTz now, bool look)
{
	ListCell   *lc;

	measure->seconds = scaler.measured_at == 0 ? 1 : (now - scaler.measured_at) / (double) USECS_PER_SEC;
	scaler.measured_at = now;

	measure_workers(measure);
	measure->free_processes = free_processes(measure->running);
	foreach(lc, scaler.watched)
		look |= ((Watched *) lfirst(lc))->backlog > 0;
	if (look && elt_autoscale_mode != ELT_AUTOSCALE_OFF)
		measure_logs(measure);
}

static void
measure_workers(EltScaleMeasure *measure)
{
	for (int i = 0; i < elt_registry_size(); i++)
	{
		EltWorkerSlot slot;
		Seen	   *seen = &scaler.seen[i];
		uint64		changes;
		uint64		busy_us;

		if (!elt_registry_read(i, &slot) || slot.kind != ELT_WORKER_TRANSFORM || slot.dboid != MyDatabaseId)
			continue;
		changes = pg_atomic_read_u64(&slot.changes);
		busy_us = pg_atomic_read_u64(&slot.busy_us);
		if (seen->generation != slot.generation)
		{
			seen->generation = slot.generation;
			seen->changes = seen->busy_us = 0;
		}
		measure->completed += changes - seen->changes;
		measure->busy_s += (busy_us - seen->busy_us) / 1e6;
		seen->changes = changes;
		seen->busy_us = busy_us;
		if (slot.ended)
			continue;
		measure->running++;
		if (slot.proc != NULL && waits_for_others(slot.proc))
			measure->waiting++;
	}
}

/* For a lock, or for WAL to be written: what more workers only make worse. */
static bool
waits_for_others(const PGPROC *proc)
{
	uint32		wait = *(volatile const uint32 *) &proc->wait_event_info;
	uint32		class = wait & 0xFF000000;

	return class == PG_WAIT_LOCK || class == PG_WAIT_LWLOCK || class == ELT_WAIT_BUFFER_PIN ||
		wait == WAIT_EVENT_WAL_WRITE || wait == WAIT_EVENT_WAL_SYNC;
}

/* Worker processes that the server can still start for the pool. */
static int
free_processes(int running)
{
	int			unused = 0;

	for (int i = 0; i < max_worker_processes; i++)
	{
		PGPROC	   *proc = GetPGProcByNumber(ELT_FIRST_WORKER_PROC + i);

		if (*(volatile int *) &proc->procLatch.owner_pid == 0)
			unused++;
	}
	if (running == 0)
		return Max(Min(unused, 1), unused - SPARE_PROCESSES);
	return Max(0, unused - SPARE_PROCESSES);
}

static void
measure_logs(EltScaleMeasure *measure)
{
	MemoryContext round;
	MemoryContext old;
	ListCell   *lc;

	elt_worker_begin("measuring the backlog");
	round = AllocSetContextCreate(CurrentMemoryContext, "elt measure", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(round);
	if (elt_worker_holds_extension())
	{
		foreach(lc, scaler.watched)
		{
			Watched    *watched = lfirst(lc);

			if (is_active(watched))
				measure_log(watched, measure);
		}
	}
	MemoryContextSwitchTo(old);
	elt_worker_commit();
}

/* What came into a pipeline's log, and what waits there. */
static void
measure_log(Watched *watched, EltScaleMeasure *measure)
{
	EltPipeline *pipeline = watched->pipeline;
	const char *topic = elt_pipeline_topic(pipeline);
	Oid			raw = elt_pipeline_raw(pipeline);
	int64		tail = elt_log_tail(raw);
	int64		positions[ELT_MAX_LANES];
	int64		first = PG_INT64_MAX;
	int			lanes;

	if (tail == watched->tail && watched->backlog <= 0 && !scaler.changed)
		return;
	if (watched->tail >= 0 && tail > watched->tail)
		measure->arrived += elt_log_count(raw, topic, watched->tail);
	watched->tail = tail;
	watched->backlog = 0;

	lanes = elt_checkpoint_positions(pipeline->pipeline_id, positions);
	for (int lane = 0; lane < lanes; lane++)
		first = Min(first, positions[lane]);
	if (first < tail)
		watched->backlog = elt_log_count(raw, topic, first) * elt_log_pending_share(positions, lanes, tail);
	measure->backlog += watched->backlog;
}

/* ---- telling ---- */

/* Shows the state of the pool, and notes a decision to be written. */
static void
publish(const EltScaleLimits *limits, EltScaleReason reason, int running, TimestampTz now)
{
	EltPoolStatus status = scaler.status;
	bool		first = (status.changed_at == 0);
	bool		hold = (reason == ELT_SCALE_NO_PROCESS || reason == ELT_SCALE_LOCKS);
	bool		tell = hold && (reason != scaler.told || TimestampDifferenceExceeds(scaler.told_at, now, REPEAT_MS));
	ListCell   *lc;

	status.mode = elt_autoscale_mode;
	status.wanted = scaler.state.wanted;

	status.min_workers = limits->min_workers;
	status.max_workers = limits->max_workers;
	status.reason = reason;
	status.ceiling = scaler.state.ceiling;
	status.arrival_rate = scaler.state.arrival_rate;
	status.worker_rate = scaler.state.worker_rate;

	status.backlog = 0;
	foreach(lc, scaler.watched)
		status.backlog += ((Watched *) lfirst(lc))->backlog;
	if (first || status.wanted != scaler.status.wanted)
		status.changed_at = GetCurrentTimestamp();

	if (tell)
	{
		scaler.told = reason;
		scaler.told_at = now;

		if (reason == ELT_SCALE_NO_PROCESS)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("elt does with fewer transform workers than it wants in database \"%s\"",
							elt_my_slot->object_name),
					 errdetail("%d run, and no background worker is free but %d that are left for parallel queries and capture workers.",
							   running, SPARE_PROCESSES),
					 errhint("Raise max_worker_processes in postgresql.conf (now %d) and restart the server, or lower elt.max_workers (now %d).",
							 max_worker_processes, limits->max_workers)));
	}
	if (elt_autoscale_mode != ELT_AUTOSCALE_OFF &&
		(tell || status.wanted != scaler.status.wanted))
	{
		scaler.decided = true;
		scaler.decision.before = running;
		scaler.decision.wanted = status.wanted;
		scaler.decision.reason = reason;
		scaler.decision.status = status;
		scaler.decision.need = scaler.state.need;
		scaler.decision.waiting_share = scaler.state.waiting_share;
	}
	if (memcmp(&status, &scaler.status, sizeof(status)) != 0)
	{
		scaler.status = status;

		elt_registry_set_pool(&status);
	}
}

void
elt_scaler_write_log(void)
{
	Decision   *decision = &scaler.decision;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, TEXTOID, INT8OID, INT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID,
	FLOAT8OID, INT8OID, FLOAT8OID};
	Datum		values[lengthof(types)];
	EltSpi		spi;

	if (!scaler.decided)
		return;
	scaler.decided = false;

	elt_worker_begin("writing down the number of workers");
	if (elt_worker_holds_extension())
	{
		values[0] = CStringGetTextDatum(decision->status.mode == ELT_AUTOSCALE_ON ? "on" : "advise");
		values[1] = Int64GetDatum(decision->before);
		values[2] = Int64GetDatum(decision->wanted);
		values[3] = CStringGetTextDatum(elt_scale_reason(decision->reason));
		values[4] = Int64GetDatum(decision->status.min_workers);
		values[5] = Int64GetDatum(decision->status.max_workers);
		values[6] = Float8GetDatum(decision->status.backlog);
		values[7] = Float8GetDatum(decision->status.arrival_rate);
		values[8] = Float8GetDatum(decision->status.worker_rate);
		values[9] = Float8GetDatum(decision->need);
		values[10] = Int64GetDatum(decision->status.ceiling);
		values[11] = Float8GetDatum(decision->waiting_share);
		elt_spi_begin(&spi);
		elt_spi_run("INSERT INTO elt.scaling_log (mode, workers_before, wanted, reason, min_workers, max_workers, backlog, "
					"arrival_rate, worker_rate, need, ceiling, waiting_share) "
					"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, nullif($9, 0), $10, nullif($11, 0), $12)",
					lengthof(types), types, values, NULL);
		if (scaler.rows_written++ % ROWS_PER_CLEANING == 0)
			clean_log();
		elt_spi_end(&spi);
	}
	elt_worker_commit();
}

static void
clean_log(void)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(KEEP_ROWS)};

	elt_spi_run("DELETE FROM elt.scaling_log WHERE at < now() - interval '30 days' "
				"OR scaling_id <= (SELECT max(scaling_id) FROM elt.scaling_log) - $1", 1, types, values, NULL);
}
