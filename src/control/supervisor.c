/*
 * supervisor.c
 *	  The database process: starts and stops the workers of one database.
 *
 * The supervisor keeps what runs equal to what the tables ask for: a capture
 * worker per enabled source, snapshot workers while tables of it wait for a
 * copy (as many as have something to do), a cleaner per dropped source whose slot is still
 * there, and as many transform workers as the scaler says (scaler.c).  It
 * reads the tables when the configuration generation moved, and otherwise only
 * looks at the registry; so an idle round costs next to nothing.
 *
 * A worker that failed is started again by its own backoff, and its error is
 * written to elt.sources, where stat_sources and health() show it.  A worker
 * that was terminated by hand comes back too: pausing is what disables.
 *
 * After DROP EXTENSION has committed the supervisor ends all workers (a
 * capture worker removes its own slot), removes the slots and origins of
 * sources that were not running, and finishes.  A source that was restored
 * from another cluster or database (see elt.home()) is not started.
 *
 * Started anew beside running workers, it finds them in the registry.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/slot.h"
#include "capture/slot_watch.h"
#include "capture/snapshot_worker.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/alert.h"
#include "control/raw_ahead.h"
#include "control/raw_retention.h"
#include "control/retention.h"
#include "control/scaler.h"
#include "control/time_of_day.h"
#include "control/worker.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "replay/due.h"
#include "storage/latch.h"
#include "transform/attempt.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define REREAD_MS		60000
#define END_TIMEOUT_MS	20000
#define STOP_PAUSE_MS	100

/* What the tables ask for, as last read. */
typedef struct Wanted
{
	MemoryContext context;
	uint64		generation;
	TimestampTz read_at;
	List	   *sources;		/* of EltSource */
	List	   *dropped;		/* of EltDroppedSource */
} Wanted;

/* Restarts of one worker. */
typedef struct Child
{
	struct
	{
		EltWorkerKind kind;
		int64		object_id;
	}			key;
	EltBackoff	backoff;
	bool		warned;
} Child;

static Wanted wanted;
static int	pool_size;			/* transform workers that should run now */
static HTAB *children;

static bool wanted_is_stale(void);
static bool read_wanted(void);
static void one_round(void);
static void supervise_copies(EltSource *source);
static void supervise(EltWorkerKind kind, int64 object_id, const char *name, bool run);
static void stop_strangers(void);
static void note_capture_end(int64 source_id, EltWorkerSlot *ended);
static void check_version(void);
static int	end_workers(void);
static bool has_local_sources(void);
static long nap_ms(void);
static void clean_up_after_drop(void);

void
elt_supervisor_main(Datum main_arg)
{
	HASHCTL		ctl = {0};

	elt_worker_start(main_arg, ELT_WORKER_SUPERVISOR, "elt supervisor");
	ctl.keysize = sizeof(((Child *) NULL)->key);
	ctl.entrysize = sizeof(Child);
	children = hash_create("elt children", 32, &ctl, HASH_ELEM | HASH_BLOBS);
	wanted.context = AllocSetContextCreate(TopMemoryContext, "elt wanted", ALLOCSET_DEFAULT_SIZES);

	do
	{
		if (wanted_is_stale())
		{
			if (!read_wanted())
			{
				clean_up_after_drop();
				elt_registry_finish();
			}
		}
		one_round();
		elt_time_of_day_watch();
		elt_raw_ahead_run(wanted.sources);
		elt_alert_round();
		elt_retention_run();
		elt_raw_retention_run();
		elt_slot_watch_local(has_local_sources());
	} while (elt_worker_nap(nap_ms()));
}

/* ---- what is wanted ---- */

static bool
wanted_is_stale(void)
{
	return wanted.read_at == 0 ||
		wanted.generation != elt_config_generation(MyDatabaseId) ||
		TimestampDifferenceExceeds(wanted.read_at, elt_clock_now(), REREAD_MS);
}

/* False where the extension is gone: then what was read last stays. */
static bool
read_wanted(void)
{
	uint64		generation = elt_config_generation(MyDatabaseId);
	bool		exists;

	elt_worker_begin("reading the configuration");
	exists = elt_worker_holds_extension();
	if (exists)
	{
		MemoryContext old;

		check_version();
		MemoryContextReset(wanted.context);
		old = MemoryContextSwitchTo(wanted.context);
		wanted.sources = elt_catalog_sources();
		wanted.dropped = elt_catalog_dropped_sources();
		MemoryContextSwitchTo(old);
		elt_scaler_configure();
		elt_due_refresh();
		wanted.generation = generation;
		wanted.read_at = elt_clock_now();
	}
	elt_worker_commit();
	return exists;
}

/* ---- what runs ---- */

static void
one_round(void)
{
	ListCell   *cell;
	bool		remote = false;

	pool_size = elt_scaler_round();
	foreach(cell, wanted.sources)
	{
		EltSource  *source = lfirst(cell);

		supervise(ELT_WORKER_CAPTURE, source->source_id, source->name,
				  source->enabled && source->at_home && !source->lost);
		supervise_copies(source);
		remote |= source->conninfo != NULL && source->at_home;
	}
	supervise(ELT_WORKER_WATCH, 0, "", remote);
	foreach(cell, wanted.dropped)
	{
		EltDroppedSource *dropped = lfirst(cell);
		bool		capturing = elt_registry_find(ELT_WORKER_CAPTURE, MyDatabaseId, dropped->source_id) >= 0;

		supervise(ELT_WORKER_CLEANER, dropped->source_id, dropped->name, !capturing);
	}
	for (int number = 0; number < pool_size; number++)
		supervise(ELT_WORKER_TRANSFORM, number, "", true);
	stop_strangers();
	elt_scaler_write_log();		/* afterwards: no worker waits for that */
}

/* Who copies already is left to finish its chunk: the last one may be at work. */
static void
supervise_copies(EltSource *source)
{
	int			wanted_workers = source->enabled && source->at_home ?
	Min(source->copy_work, elt_snapshot_workers) : 0;

	for (int number = 0; number < elt_snapshot_workers; number++)
	{
		int64		object_id = ELT_SNAPSHOT_OBJECT(source->source_id, number);
		bool		there = elt_registry_find(ELT_WORKER_SNAPSHOT, MyDatabaseId, object_id) >= 0;

		if (there || number < wanted_workers)
			supervise(ELT_WORKER_SNAPSHOT, object_id, source->name,
					  number < wanted_workers || (there && wanted_workers > 0));
	}
}

/* Brings one worker nearer to what is wanted of it. */
static void
supervise(EltWorkerKind kind, int64 object_id, const char *name, bool run)
{
	int			index = elt_registry_find(kind, MyDatabaseId, object_id);
	Child		key = {0};
	Child	   *child;
	bool		found;

	key.key.kind = kind;
	key.key.object_id = object_id;
	child = hash_search(children, &key.key, HASH_ENTER, &found);
	if (!found)
	{
		memset(&child->backoff, 0, sizeof(child->backoff));
		child->warned = false;
	}

	if (index >= 0)
	{
		EltWorkerSlot ended;

		if (!elt_registry_reap(index, &ended))
		{
			if (!run)
				elt_registry_request_stop(index);
			return;
		}
		if (kind == ELT_WORKER_CAPTURE)
			note_capture_end(object_id, &ended);
		else if (kind == ELT_WORKER_SNAPSHOT)
			note_capture_end(ELT_SNAPSHOT_SOURCE(object_id), &ended);
		elt_attempt_note_end(&ended);
		if (ended.finished || ended.stop_requested)
		{
			/* who asked it to stop has a moment to say why */
			memset(&child->backoff, 0, sizeof(child->backoff));
			if (kind == ELT_WORKER_CAPTURE && ended.stop_requested)
				child->backoff.retry_at = TimestampTzPlusMilliseconds(elt_clock_now(), STOP_PAUSE_MS);
			wanted.read_at = 0; /* it finished because something changed */
			if (kind == ELT_WORKER_TRANSFORM)
				SetLatch(MyLatch);	/* and may be wanted again already */
			return;
		}
		elt_backoff_note_end(&child->backoff, &ended);
		elt_alert_note_failure(kind, name);
	}

	if (!run)
	{
		child->backoff.retry_at = 0;
		return;
	}
	if (!elt_backoff_is_due(&child->backoff))
		return;

	if (elt_registry_launch(kind, MyDatabaseId, object_id, name) >= 0)
	{
		child->warned = false;
		return;
	}
	if (kind == ELT_WORKER_SNAPSHOT && ELT_SNAPSHOT_NUMBER(object_id) > 0)
		return;					/* the first copies alone */
	elt_alert_note_no_room();
	if (!child->warned)
	{
		child->warned = true;
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for elt in database \"%s\"",
						elt_my_slot->object_name),
				 errdetail("Waiting: %s worker %s.",
						   kind == ELT_WORKER_CAPTURE ? "capture" :
						   kind == ELT_WORKER_CLEANER ? "cleaner" :
						   kind == ELT_WORKER_SNAPSHOT ? "snapshot" :
						   kind == ELT_WORKER_WATCH ? "watch" : "transform",
						   name[0] != '\0' ? name : "of the pool"),
				 errhint("Raise max_worker_processes in postgresql.conf (now %d) and restart the server.",
						 max_worker_processes)));
	}
}

/* Stops the workers of this database that nothing asks for any more. */
static void
stop_strangers(void)
{
	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;
		EltWorkerSlot ended;
		bool		keep = false;
		ListCell   *cell;

		if (!elt_registry_read(index, &slot) || slot.dboid != MyDatabaseId)
			continue;
		if (slot.kind == ELT_WORKER_TRANSFORM)
			keep = slot.object_id < pool_size;
		else if (slot.kind == ELT_WORKER_CAPTURE)
		{
			foreach(cell, wanted.sources)
				keep |= ((EltSource *) lfirst(cell))->source_id == slot.object_id;
		}
		else if (slot.kind == ELT_WORKER_SNAPSHOT)
		{
			foreach(cell, wanted.sources)
				keep |= ((EltSource *) lfirst(cell))->source_id == ELT_SNAPSHOT_SOURCE(slot.object_id);
			keep &= ELT_SNAPSHOT_NUMBER(slot.object_id) < elt_snapshot_workers;
		}
		else if (slot.kind == ELT_WORKER_CLEANER)
		{
			foreach(cell, wanted.dropped)
				keep |= ((EltDroppedSource *) lfirst(cell))->source_id == slot.object_id;
		}
		else
			keep = true;

		if (!keep && !elt_registry_reap(index, &ended))
			elt_registry_request_stop(index);
	}
}

/* What snapshot workers copied is counted with the copy. */
static void
note_capture_end(int64 source_id, EltWorkerSlot *ended)
{
	elt_worker_begin("recording the end of a worker");
	if (elt_worker_holds_extension())
		elt_catalog_note_capture_end(source_id,
									 ended->kind == ELT_WORKER_CAPTURE ? pg_atomic_read_u64(&ended->changes) : 0,
									 (TimestampTz) pg_atomic_read_u64(&ended->last_commit_ts),
									 ended->last_error, ended->last_error_at);
	elt_worker_commit();
}

/* Without the right tables none of the workers may go on, nor this one. */
static void
check_version(void)
{
	PG_TRY();
	{
		elt_worker_check_version();
	}
	PG_CATCH();
	{
		(void) end_workers();
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Asks all other workers of this database to end; returns how many there are still. */
static int
end_workers(void)
{
	int			alive = 0;

	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;
		EltWorkerSlot ended;

		if (!elt_registry_read(index, &slot) || slot.dboid != MyDatabaseId ||
			slot.kind == ELT_WORKER_SUPERVISOR)
			continue;
		elt_registry_request_stop(index);
		if (!elt_registry_reap(index, &ended))
			alive++;
	}
	return alive;
}

static bool
has_local_sources(void)
{
	ListCell   *cell;

	foreach(cell, wanted.sources)
	{
		EltSource  *source = lfirst(cell);

		if (source->conninfo == NULL && source->at_home)
			return true;
	}
	return false;
}

static long
nap_ms(void)
{
	long		scaler_ms = elt_scaler_nap_ms();
	long		watch_ms = has_local_sources() ? elt_slot_watch_ms() : -1;

	return watch_ms < 0 ? scaler_ms : scaler_ms < 0 ? watch_ms : Min(scaler_ms, watch_ms);
}

/* ---- DROP EXTENSION ---- */

/*
 * clean_up_after_drop
 *		Ends all workers and removes what the extension leaves outside its
 *		tables.  Capture workers remove the slots that they use; what is left
 *		belongs to sources that were paused.
 */
static void
clean_up_after_drop(void)
{
	TimestampTz start = elt_clock_now();
	ListCell   *cell;

	while (end_workers() > 0)
	{
		if (TimestampDifferenceExceeds(start, elt_clock_now(), END_TIMEOUT_MS))
			elt_registry_terminate(MyDatabaseId, false);
		(void) elt_worker_nap(100);
	}

	foreach(cell, wanted.sources)
	{
		EltSource  *source = lfirst(cell);

		if (source->at_home)
			elt_slot_remove(source->source_id, source->conninfo, source->slot_name, false);
	}
	foreach(cell, wanted.dropped)
	{
		EltDroppedSource *dropped = lfirst(cell);

		elt_slot_remove(dropped->source_id, dropped->conninfo, dropped->slot_name, false);
	}
}
