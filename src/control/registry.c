/*
 * registry.c
 *	  Shared memory of elt: who runs, what they last did, whom to wake.
 *
 * The registry is an array of worker slots, one for each background worker
 * that the server can have.  A slot goes through these states:
 *
 *	free ──launch──► claimed ──attach──► running ──exit──► ended ──reap──► free
 *	                    └────────────(never started)────────────┘
 *
 * The parent (the launcher for supervisors, a supervisor for all else) claims
 * and reaps; the worker attaches, and detaches when it exits, however it
 * exits.  A parent that was restarted finds the children of its predecessor
 * in the registry: there is one running slot at most per (kind, database,
 * object), so nothing is started twice.  A worker that dies hard takes the
 * server through a crash restart, which empties the registry.
 *
 * Locking: one LWLock protects all but the atomics of a slot.  It is held for
 * copies and for SetLatch only, never across the registration of a worker,
 * catalog access or a wait.
 *
 * The configuration generation of a database counts the commits that changed
 * its sources or pipelines.  Workers compare it with what they last saw.
 */
#include "postgres.h"

#include "access/xact.h"
#include "clock.h"
#include "control/registry.h"
#include "elt.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define MAX_DATABASES		64	/* more than these share a counter */
#define VACATE_MS			10000
#define START_TIMEOUT_MS	60000	/* a claimed slot whose worker never came */

typedef struct DatabaseConfig
{
	Oid			dboid;
	uint64		generation;
	TimestampTz vacated_at;		/* 0: not */
	EltPoolStatus pool;
	pg_atomic_uint64 work;		/* counts wakes for work */
	pg_atomic_uint32 watched;	/* 1: the supervisor wants to hear of work
								 * that nobody is there for */
} DatabaseConfig;

typedef struct Registry
{
	LWLock	   *lock;
	int			nslots;
	TimestampTz started_at;		/* when this shared memory was made */
	TimestampTz started_clock;	/* the same by elt_clock_now() */
	DatabaseConfig databases[MAX_DATABASES];	/* the last one is shared */
	EltWorkerSlot slots[FLEXIBLE_ARRAY_MEMBER];
} Registry;

EltWorkerSlot *elt_my_slot = NULL;

static Registry *registry = NULL;
static bool config_change_pending = false;

static Size registry_shmem_size(void);
static int	claim_slot(EltWorkerKind kind, Oid dboid, int64 object_id, const char *object_name, uint32 *generation);
static int	find_slot(EltWorkerKind kind, Oid dboid, int64 object_id);
static bool is_over(const EltWorkerSlot *slot);
static void release_slot(EltWorkerSlot *slot);
static void detach(int code, Datum arg);
static void remember_error(ErrorData *edata);
static DatabaseConfig *database_config(Oid dboid);
static DatabaseConfig *claim_database_config(Oid dboid);
static void config_xact_callback(XactEvent event, void *arg);

static emit_log_hook_type previous_emit_log_hook = NULL;

/* ---- size, init ---- */

static Size
registry_shmem_size(void)
{
	return add_size(offsetof(Registry, slots),
					mul_size(sizeof(EltWorkerSlot), max_worker_processes));
}

void
elt_registry_request_shmem(void)
{
	RequestAddinShmemSpace(registry_shmem_size());
	RequestNamedLWLockTranche("elt", 1);
}

void
elt_registry_init_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	registry = ShmemInitStruct("elt registry", registry_shmem_size(), &found);
	if (!found)
	{
		memset(registry, 0, registry_shmem_size());
		registry->lock = &(GetNamedLWLockTranche("elt"))->lock;
		registry->nslots = max_worker_processes;
		for (int i = 0; i < MAX_DATABASES; i++)
		{
			pg_atomic_init_u64(&registry->databases[i].work, 0);
			pg_atomic_init_u32(&registry->databases[i].watched, 0);
		}
		registry->started_at = GetCurrentTimestamp();
		registry->started_clock = elt_clock_now();
		for (int i = 0; i < registry->nslots; i++)
		{
			EltWorkerSlot *slot = &registry->slots[i];

			pg_atomic_init_u64(&slot->changes, 0);
			pg_atomic_init_u64(&slot->busy_us, 0);
			pg_atomic_init_u32(&slot->idle, 0);
			pg_atomic_init_u64(&slot->received_lsn, 0);
			pg_atomic_init_u64(&slot->staged_lsn, 0);
			pg_atomic_init_u64(&slot->confirmed_lsn, 0);
			pg_atomic_init_u64(&slot->last_commit_ts, 0);
			pg_atomic_init_u64(&slot->staged_count, 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

/* False where the library was not preloaded, so that no worker can run. */
bool
elt_registry_available(void)
{
	return registry != NULL;
}

/* -infinity where the library was not preloaded. */
int64
elt_registry_uptime_ms(void)
{
	return registry != NULL ? (elt_clock_now() - registry->started_clock) / 1000 : PG_INT64_MAX;
}

TimestampTz
elt_registry_started_at(void)
{
	return registry != NULL ? registry->started_at : DT_NOBEGIN;
}

/* ---- find, launch ---- */

/*
 * elt_registry_launch
 *		Starts a worker; returns its slot, or -1 where the server has no room
 *		for one more or where such a worker runs already.
 */
int
elt_registry_launch(EltWorkerKind kind, Oid dboid, int64 object_id, const char *object_name)
{
	static const struct
	{
		const char *type;
		const char *function;
	}			workers[] = {
		[ELT_WORKER_SUPERVISOR] = {"elt supervisor", "elt_supervisor_main"},
		[ELT_WORKER_CAPTURE] = {"elt capture", "elt_capture_main"},
		[ELT_WORKER_CLEANER] = {"elt cleaner", "elt_cleaner_main"},
		[ELT_WORKER_SNAPSHOT] = {"elt snapshot", "elt_snapshot_main"},
		[ELT_WORKER_WATCH] = {"elt watch", "elt_watch_main"},
		[ELT_WORKER_TRANSFORM] = {"elt transform", "elt_transform_main"},
	};
	BackgroundWorker worker = {0};
	uint32		generation;
	int			index = claim_slot(kind, dboid, object_id, object_name, &generation);

	if (index < 0)
		return -1;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = Int32GetDatum(index);
	strlcpy(worker.bgw_library_name, ELT_LIBRARY, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, workers[kind].function, sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, workers[kind].type, sizeof(worker.bgw_type));
	if (object_name[0] != '\0')
		snprintf(worker.bgw_name, sizeof(worker.bgw_name), "%s %s", workers[kind].type, object_name);
	else
		strlcpy(worker.bgw_name, workers[kind].type, sizeof(worker.bgw_name));
	memcpy(worker.bgw_extra, &generation, sizeof(generation));

	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
	{
		LWLockAcquire(registry->lock, LW_EXCLUSIVE);
		if (registry->slots[index].generation == generation)
			release_slot(&registry->slots[index]);
		LWLockRelease(registry->lock);
		return -1;
	}
	return index;
}

/* Returns the slot of a worker that is claimed, runs or waits to be reaped; -1: none. */
int
elt_registry_find(EltWorkerKind kind, Oid dboid, int64 object_id)
{
	int			index;

	LWLockAcquire(registry->lock, LW_SHARED);
	index = find_slot(kind, dboid, object_id);
	LWLockRelease(registry->lock);
	return index;
}

static int
find_slot(EltWorkerKind kind, Oid dboid, int64 object_id)
{
	for (int i = 0; i < registry->nslots; i++)
	{
		EltWorkerSlot *slot = &registry->slots[i];

		if (slot->kind == kind && slot->dboid == dboid && slot->object_id == object_id)
			return i;
	}
	return -1;
}

static int
claim_slot(EltWorkerKind kind, Oid dboid, int64 object_id, const char *object_name, uint32 *generation)
{
	int			index = -1;

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	if (find_slot(kind, dboid, object_id) < 0)
	{
		for (int i = 0; i < registry->nslots && index < 0; i++)
			if (registry->slots[i].kind == ELT_WORKER_NONE)
				index = i;
	}
	if (index >= 0)
	{
		EltWorkerSlot *slot = &registry->slots[index];

		slot->kind = kind;
		slot->generation++;
		slot->dboid = dboid;
		slot->object_id = object_id;
		slot->proc = NULL;
		slot->pid = 0;
		slot->ended = false;
		slot->finished = false;
		slot->stop_requested = false;
		slot->claimed_at = elt_clock_now();
		slot->started_at = 0;
		slot->last_error[0] = '\0';
		slot->last_error_at = 0;
		memset(&slot->trying, 0, sizeof(slot->trying));
		strlcpy(slot->activity, "starting", sizeof(slot->activity));
		strlcpy(slot->object_name, object_name, sizeof(slot->object_name));
		pg_atomic_write_u64(&slot->changes, 0);
		pg_atomic_write_u64(&slot->busy_us, 0);
		pg_atomic_write_u32(&slot->idle, 0);
		pg_atomic_write_u64(&slot->received_lsn, 0);
		pg_atomic_write_u64(&slot->staged_lsn, 0);
		pg_atomic_write_u64(&slot->confirmed_lsn, 0);
		pg_atomic_write_u64(&slot->last_commit_ts, 0);
		pg_atomic_write_u64(&slot->staged_count, 0);
		*generation = slot->generation;
	}
	LWLockRelease(registry->lock);
	return index;
}

/*
 * elt_registry_reap
 *		Frees the slot of a worker that has ended (or never came) and gives a
 *		last copy of it; false where it runs or is free.
 */
bool
elt_registry_reap(int index, EltWorkerSlot *ended)
{
	EltWorkerSlot *slot = &registry->slots[index];
	bool		over;

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	over = is_over(slot);
	if (over)
	{
		*ended = *slot;
		release_slot(slot);
	}
	LWLockRelease(registry->lock);
	return over;
}

static bool
is_over(const EltWorkerSlot *slot)
{
	if (slot->kind == ELT_WORKER_NONE)
		return false;
	if (slot->ended)
		return true;
	return slot->proc == NULL &&
		TimestampDifferenceExceeds(slot->claimed_at, elt_clock_now(), START_TIMEOUT_MS);
}

static void
release_slot(EltWorkerSlot *slot)
{
	slot->kind = ELT_WORKER_NONE;
	slot->proc = NULL;
	slot->pid = 0;
}

/* ---- attach, detach ---- */

/*
 * elt_registry_attach
 *		Takes the slot that the parent claimed; exits where it is not ours any
 *		more.  The launcher has no parent: it passes -1 and claims its own.
 */
void
elt_registry_attach(int index, EltWorkerKind kind)
{
	EltWorkerSlot *slot;
	uint32		generation;

	if (registry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("elt must be loaded via shared_preload_libraries")));

	if (index < 0)
	{
		EltWorkerSlot predecessor;

		index = elt_registry_find(kind, InvalidOid, 0);
		if (index >= 0 && !elt_registry_reap(index, &predecessor))
			proc_exit(0);
		index = claim_slot(kind, InvalidOid, 0, "", &generation);
		if (index < 0)
			proc_exit(1);
	}
	else
		memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	slot = &registry->slots[index];
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	if (slot->kind != kind || slot->generation != generation || slot->proc != NULL || slot->ended)
	{
		LWLockRelease(registry->lock);
		proc_exit(0);
	}
	slot->proc = MyProc;
	slot->pid = MyProcPid;
	slot->started_at = GetCurrentTimestamp();
	LWLockRelease(registry->lock);

	elt_my_slot = slot;
	before_shmem_exit(detach, (Datum) 0);
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = remember_error;
}

static void
detach(int code, Datum arg)
{
	Oid			dboid = elt_my_slot->dboid;
	EltWorkerKind kind = elt_my_slot->kind;

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	elt_my_slot->proc = NULL;
	elt_my_slot->ended = true;
	LWLockRelease(registry->lock);
	elt_my_slot = NULL;

	if (kind == ELT_WORKER_SUPERVISOR)
		elt_registry_wake_launcher();
	else if (kind != ELT_WORKER_LAUNCHER)
		elt_registry_wake(ELT_WORKER_SUPERVISOR, dboid, 0);
}

/*
 * remember_error
 *		Keeps the error that ends this worker in its slot, for the parent and
 *		for stat_workers.  Runs while an error is being reported: it must not
 *		fail, nor wait for the lock that the error may have been raised under.
 */
static void
remember_error(ErrorData *edata)
{
	if (edata->elevel >= ERROR && edata->sqlerrcode != ERRCODE_ADMIN_SHUTDOWN &&
		elt_my_slot != NULL && LWLockConditionalAcquire(registry->lock, LW_EXCLUSIVE))
	{
		char	   *summary = elt_my_slot->last_error;
		Size		used = strlcpy(summary, edata->message ? edata->message : "unknown error", ELT_ERROR_LEN);

		if (edata->detail != NULL && used < ELT_ERROR_LEN)
			used += snprintf(summary + used, ELT_ERROR_LEN - used, " (%s)", edata->detail);
		if (edata->hint != NULL && used < ELT_ERROR_LEN)
			snprintf(summary + used, ELT_ERROR_LEN - used, " HINT: %s", edata->hint);
		elt_my_slot->last_error_at = GetCurrentTimestamp();
		LWLockRelease(registry->lock);
	}
	if (previous_emit_log_hook)
		previous_emit_log_hook(edata);
}

void
elt_registry_set_activity(const char *activity, const char *object_name)
{
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	strlcpy(elt_my_slot->activity, activity, sizeof(elt_my_slot->activity));
	if (object_name != NULL)
		strlcpy(elt_my_slot->object_name, object_name, sizeof(elt_my_slot->object_name));
	LWLockRelease(registry->lock);
}

/*
 * elt_registry_join
 *		The same, unless max_workers (0: any number) of our kind and database
 *		are at it already; false then.
 */
bool
elt_registry_join(const char *activity, const char *object_name, int max_workers)
{
	int			others = 0;

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	for (int i = 0; max_workers > 0 && i < registry->nslots; i++)
	{
		EltWorkerSlot *slot = &registry->slots[i];

		if (slot != elt_my_slot && slot->kind == elt_my_slot->kind && slot->dboid == elt_my_slot->dboid &&
			slot->proc != NULL && strcmp(slot->object_name, object_name) == 0 &&
			strcmp(slot->activity, activity) == 0)
			others++;
	}
	if (max_workers == 0 || others < max_workers)
	{
		strlcpy(elt_my_slot->activity, activity, sizeof(elt_my_slot->activity));
		strlcpy(elt_my_slot->object_name, object_name, sizeof(elt_my_slot->object_name));
	}
	LWLockRelease(registry->lock);
	return max_workers == 0 || others < max_workers;
}

bool
elt_registry_stop_requested(void)
{
	/* one byte, written once by the parent before it sets our latch */
	return elt_my_slot != NULL && elt_my_slot->stop_requested;
}

/* A worker that leaves anyway ends what it is about. */
void
elt_registry_ignore_stop(void)
{
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	elt_my_slot->stop_requested = false;
	LWLockRelease(registry->lock);
}

/*
 * elt_registry_finish
 *		Leaves for good: the parent does not start this worker again until the
 *		configuration asks for it.
 */
void
elt_registry_finish(void)
{
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	elt_my_slot->finished = true;
	LWLockRelease(registry->lock);
	proc_exit(0);
}

/* ---- wake, stop ---- */

void
elt_registry_request_stop(int index)
{
	EltWorkerSlot *slot = &registry->slots[index];

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	if (slot->kind != ELT_WORKER_NONE)
	{
		slot->stop_requested = true;
		if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
	}
	LWLockRelease(registry->lock);
}

/*
 * elt_registry_terminate
 *		Sends SIGTERM to the workers of a database; returns how many are still
 *		there.
 */
int
elt_registry_terminate(Oid dboid, bool with_supervisor)
{
	int			count = 0;

	LWLockAcquire(registry->lock, LW_SHARED);
	for (int i = 0; i < registry->nslots; i++)
	{
		EltWorkerSlot *slot = &registry->slots[i];

		if (slot->kind == ELT_WORKER_NONE || slot->dboid != dboid || slot->ended ||
			(slot->kind == ELT_WORKER_SUPERVISOR && !with_supervisor))
			continue;
		count++;
		if (slot->proc != NULL)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(registry->lock);
	return count;
}

/*
 * elt_registry_make_way
 *		Ends what holds the extension in a database: transform workers after
 *		their batch, since user code may be at work, all others at once.  Their
 *		parent starts them again, for as long as they are wanted.
 */
void
elt_registry_make_way(Oid dboid)
{
	if (registry == NULL)
		return;
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	for (int i = 0; i < registry->nslots; i++)
	{
		EltWorkerSlot *slot = &registry->slots[i];

		if (slot->kind == ELT_WORKER_NONE || slot->dboid != dboid || slot->ended || slot->proc == NULL ||
			slot->kind == ELT_WORKER_SUPERVISOR)
			continue;
		slot->stop_requested = true;
		SetLatch(&slot->proc->procLatch);
		if (slot->kind != ELT_WORKER_TRANSFORM)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(registry->lock);
}

void
elt_registry_wake_launcher(void)
{
	elt_registry_wake(ELT_WORKER_LAUNCHER, InvalidOid, 0);
}

void
elt_registry_wake(EltWorkerKind kind, Oid dboid, int64 object_id)
{
	int			index;

	if (registry == NULL)
		return;
	LWLockAcquire(registry->lock, LW_SHARED);
	index = find_slot(kind, dboid, object_id);
	if (index >= 0 && registry->slots[index].proc != NULL)
		SetLatch(&registry->slots[index].proc->procLatch);
	LWLockRelease(registry->lock);
}

/*
 * elt_registry_wake_transform
 *		Wakes one idle transform worker of a database.  Taking its idle flag
 *		down here keeps two wakes from hitting the same worker.  One that was
 *		told to leave does not count; one that starts looks for itself.
 */
void
elt_registry_wake_transform(Oid dboid)
{
	DatabaseConfig *config;
	bool		there = false;
	uint32		watched = 1;

	LWLockAcquire(registry->lock, LW_SHARED);
	config = database_config(dboid);
	pg_atomic_fetch_add_u64(&config->work, 1);
	for (int i = 0; i < registry->nslots; i++)
	{
		EltWorkerSlot *slot = &registry->slots[i];
		uint32		idle = 1;

		if (slot->kind != ELT_WORKER_TRANSFORM || slot->dboid != dboid || slot->ended || slot->stop_requested)
			continue;
		there = true;
		if (slot->proc != NULL && pg_atomic_compare_exchange_u32(&slot->idle, &idle, 0))
		{
			SetLatch(&slot->proc->procLatch);
			break;
		}
	}
	if (!there && pg_atomic_compare_exchange_u32(&config->watched, &watched, 0))
	{
		int			index = find_slot(ELT_WORKER_SUPERVISOR, dboid, 0);

		if (index >= 0 && registry->slots[index].proc != NULL)
			SetLatch(&registry->slots[index].proc->procLatch);
	}
	LWLockRelease(registry->lock);
}

uint64
elt_registry_work(void)
{
	uint64		work;

	LWLockAcquire(registry->lock, LW_SHARED);
	work = pg_atomic_read_u64(&database_config(MyDatabaseId)->work);
	LWLockRelease(registry->lock);
	return work;
}

/* Who calls looks at elt_registry_work once more afterwards, before it sleeps. */
void
elt_registry_watch_work(void)
{
	LWLockAcquire(registry->lock, LW_SHARED);
	pg_atomic_write_u32(&database_config(MyDatabaseId)->watched, 1);
	LWLockRelease(registry->lock);
	pg_memory_barrier();
}

/* ---- status of the pool ---- */

void
elt_registry_set_pool(const EltPoolStatus *status)
{
	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	claim_database_config(MyDatabaseId)->pool = *status;
	LWLockRelease(registry->lock);
}

void
elt_registry_get_pool(EltPoolStatus *status)
{
	DatabaseConfig *config;

	memset(status, 0, sizeof(EltPoolStatus));
	if (registry == NULL)
		return;
	LWLockAcquire(registry->lock, LW_SHARED);
	config = database_config(MyDatabaseId);
	if (config->dboid == MyDatabaseId)
		*status = config->pool;
	LWLockRelease(registry->lock);
}

/* ---- read ---- */

int
elt_registry_size(void)
{
	return registry ? registry->nslots : 0;
}

bool
elt_registry_read(int index, EltWorkerSlot *copy)
{
	LWLockAcquire(registry->lock, LW_SHARED);
	*copy = registry->slots[index];
	LWLockRelease(registry->lock);
	return copy->kind != ELT_WORKER_NONE;
}

/* ---- configuration generation ---- */

uint64
elt_config_generation(Oid dboid)
{
	uint64		generation;

	LWLockAcquire(registry->lock, LW_SHARED);
	generation = database_config(dboid)->generation;
	LWLockRelease(registry->lock);
	return generation;
}

/*
 * elt_config_changed
 *		Tells the workers, when this transaction commits, that sources or
 *		pipelines of this database are not what they were.
 */
void
elt_config_changed(void)
{
	static bool registered = false;

	if (registry == NULL)
		return;
	if (!registered)
	{
		RegisterXactCallback(config_xact_callback, NULL);
		registered = true;
	}
	config_change_pending = true;
}

static void
config_xact_callback(XactEvent event, void *arg)
{
	if (!config_change_pending)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		DatabaseConfig *config;

		LWLockAcquire(registry->lock, LW_EXCLUSIVE);
		config = claim_database_config(MyDatabaseId);
		config->generation++;
		for (int i = 0; i < registry->nslots; i++)
		{
			EltWorkerSlot *slot = &registry->slots[i];

			if (slot->proc != NULL &&
				((slot->kind != ELT_WORKER_NONE && slot->dboid == MyDatabaseId) ||
				 slot->kind == ELT_WORKER_LAUNCHER))
				SetLatch(&slot->proc->procLatch);
		}
		LWLockRelease(registry->lock);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		config_change_pending = false;
}

void
elt_registry_vacate(Oid dboid)
{
	DatabaseConfig *config;

	LWLockAcquire(registry->lock, LW_EXCLUSIVE);
	config = claim_database_config(dboid);
	config->vacated_at = elt_clock_now();
	LWLockRelease(registry->lock);
}

bool
elt_registry_is_vacated(Oid dboid)
{
	TimestampTz vacated_at;

	LWLockAcquire(registry->lock, LW_SHARED);
	vacated_at = database_config(dboid)->vacated_at;
	LWLockRelease(registry->lock);
	return vacated_at != 0 &&
		!TimestampDifferenceExceeds(vacated_at, elt_clock_now(), VACATE_MS);
}

/* The entry of a database, else the first free one, else the shared one. */
static DatabaseConfig *
database_config(Oid dboid)
{
	for (int i = 0; i < MAX_DATABASES - 1; i++)
	{
		DatabaseConfig *config = &registry->databases[i];

		if (config->dboid == dboid || config->dboid == InvalidOid)
			return config;
	}
	return &registry->databases[MAX_DATABASES - 1];
}

/* The same, and kept for that database; wants the lock in exclusive mode. */
static DatabaseConfig *
claim_database_config(Oid dboid)
{
	DatabaseConfig *config = database_config(dboid);

	if (config->dboid == InvalidOid && config != &registry->databases[MAX_DATABASES - 1])
		config->dboid = dboid;
	return config;
}
