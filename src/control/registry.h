/*
 * registry.h
 *	  Shared memory of elt: who runs, what they last did, whom to wake.
 */
#ifndef ELT_REGISTRY_H
#define ELT_REGISTRY_H

#include "access/xlogdefs.h"
#include "compat.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/proc.h"

#define ELT_ERROR_LEN	1024

typedef enum EltWorkerKind
{
	ELT_WORKER_NONE,
	ELT_WORKER_LAUNCHER,
	ELT_WORKER_SUPERVISOR,
	ELT_WORKER_CAPTURE,
	ELT_WORKER_CLEANER,			/* removes the slot of a dropped source */
	ELT_WORKER_SNAPSHOT,		/* copies tables of a source */
	ELT_WORKER_WATCH,			/* asks remote sources for their slots */
	ELT_WORKER_TRANSFORM
} EltWorkerKind;

/* What user code is at work on, see transform/attempt.c. */
typedef struct EltTrying
{
	int64		pipeline_id;	/* 0: no user code is at work */
	int64		first_change;
	int64		last_change;
	int64		at_change;		/* read last; 0: none yet */
	int			changes;
} EltTrying;

/*
 * One slot per worker.  The parent claims it before it registers the worker,
 * the worker attaches to it, and the parent releases it once it has read how
 * the worker ended.  Everything but the atomics is protected by the
 * registry's lock.
 */
typedef struct EltWorkerSlot
{
	EltWorkerKind kind;			/* ELT_WORKER_NONE: free */
	uint32		generation;		/* counts the slot's uses */
	Oid			dboid;
	int64		object_id;		/* capture: source_id; snapshot: see
								 * capture/snapshot_worker.h; transform:
								 * number in the pool */
	PGPROC	   *proc;			/* NULL: not attached (yet, or any more) */
	int			pid;
	bool		ended;			/* attached once and gone again */
	bool		finished;		/* it ended because there was nothing left to
								 * do */
	bool		stop_requested; /* finish the batch, then leave */
	TimestampTz claimed_at;
	TimestampTz started_at;
	char		last_error[ELT_ERROR_LEN];	/* why it ended, empty after a
											 * clean end */
	TimestampTz last_error_at;
	char		activity[NAMEDATALEN];	/* stat_workers.state */
	char		object_name[NAMEDATALEN];	/* source or pipeline at work */

	pg_atomic_uint64 changes;	/* changes moved since it started */
	pg_atomic_uint64 busy_us;	/* time spent on work, not waiting */
	pg_atomic_uint32 idle;		/* 1: sleeps and may be woken for work */

	/*
	 * transform workers only: written without the lock, to be read when it
	 * has ended
	 */
	EltTrying	trying;

	/* capture workers only */
	pg_atomic_uint64 received_lsn;
	pg_atomic_uint64 staged_lsn;	/* all commits up to here are in raw
									 * staging */
	pg_atomic_uint64 confirmed_lsn;
	pg_atomic_uint64 last_commit_ts;
	pg_atomic_uint64 staged_count;	/* counts local commits that staged
									 * something */
} EltWorkerSlot;

/* What a supervisor decided about its pool of transform workers. */
typedef struct EltPoolStatus
{
	int			mode;			/* EltAutoscaleMode */
	int			wanted;
	int			min_workers;
	int			max_workers;
	int			reason;			/* EltScaleReason */
	int			ceiling;
	double		backlog;
	double		arrival_rate;
	double		worker_rate;
	TimestampTz changed_at;		/* when "wanted" was last changed; 0: nothing
								 * is known yet */
} EltPoolStatus;

/* Set by elt_registry_attach in a worker, NULL elsewhere. */
extern EltWorkerSlot *elt_my_slot;

extern void elt_registry_request_shmem(void);
extern void elt_registry_init_shmem(void);
extern bool elt_registry_available(void);
extern int64 elt_registry_uptime_ms(void);
extern TimestampTz elt_registry_started_at(void);	/* this run of the server,
													 * also after a crash */

/* parents */
extern int	elt_registry_launch(EltWorkerKind kind, Oid dboid, int64 object_id, const char *object_name);
extern int	elt_registry_find(EltWorkerKind kind, Oid dboid, int64 object_id);
extern bool elt_registry_reap(int index, EltWorkerSlot *ended);
extern void elt_registry_request_stop(int index);
extern int	elt_registry_terminate(Oid dboid, bool with_supervisor);
extern void elt_registry_make_way(Oid dboid);

/* workers */
extern void elt_registry_attach(int index, EltWorkerKind kind);
extern void elt_registry_set_activity(const char *activity, const char *object_name);
extern bool elt_registry_join(const char *activity, const char *object_name, int max_workers);
extern bool elt_registry_stop_requested(void);
extern void elt_registry_ignore_stop(void);
extern void elt_registry_finish(void) pg_attribute_noreturn();

/* readers: a copy of slot "index", false where it is free */
extern int	elt_registry_size(void);
extern bool elt_registry_read(int index, EltWorkerSlot *copy);

/*
 * Wakes: the launcher, a database's supervisor (so that it looks at the
 * tables again), one idle transform worker of a database, or where the pool is
 * empty the supervisor, if it watches for work.
 */
extern void elt_registry_wake_launcher(void);
extern void elt_registry_wake(EltWorkerKind kind, Oid dboid, int64 object_id);
extern void elt_registry_wake_transform(Oid dboid);

/*
 * The supervisor's side: elt_registry_work counts the wakes for work so far;
 * after elt_registry_watch_work the next one that finds nobody in the pool
 * sets the supervisor's latch, once.
 */
extern uint64 elt_registry_work(void);
extern void elt_registry_watch_work(void);

extern void elt_registry_set_pool(const EltPoolStatus *status);
extern void elt_registry_get_pool(EltPoolStatus *status);

/*
 * Configuration generation of a database: counts commits that changed
 * sources or pipelines.  A worker that cached rows of these tables compares.
 * elt_config_changed() bumps it, and wakes the supervisor and all workers,
 * when the current transaction commits.
 */
extern uint64 elt_config_generation(Oid dboid);
extern void elt_config_changed(void);

/*
 * A database that somebody wants for himself: no supervisor is started in it
 * for some seconds.
 */
extern void elt_registry_vacate(Oid dboid);
extern bool elt_registry_is_vacated(Oid dboid);

#endif							/* ELT_REGISTRY_H */
