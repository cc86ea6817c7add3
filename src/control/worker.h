/*
 * worker.h
 *	  What every worker of elt does: start, nap, transactions, leaving.
 */
#ifndef ELT_WORKER_H
#define ELT_WORKER_H

#include "control/registry.h"

/*
 * elt_worker_start
 *		Signals, attach to the registry, connect to the database (InvalidOid:
 *		to the shared catalogs only), pin the session's settings.
 */
extern void elt_worker_start(Datum main_arg, EltWorkerKind kind, const char *appname);

/*
 * elt_worker_nap
 *		Waits for the latch, at most nap_ms (-1: no limit; 0: only checks).
 *		False once the worker was asked to leave.
 */
extern bool elt_worker_nap(long nap_ms);

/* A transaction with an active snapshot, reported in pg_stat_activity. */
extern void elt_worker_begin(const char *activity);
extern void elt_worker_commit(void);

/*
 * Whether the extension is there; it cannot be dropped before the end of the
 * transaction then.
 */
extern bool elt_worker_holds_extension(void);

/* Raises where the extension is of another version than the library; needs a transaction. */
extern void elt_worker_check_version(void);

/*
 * As elt_worker_begin, for a transaction that works on elt's tables.  Holding
 * the extension first, it and DROP EXTENSION never wait for each other's locks
 * on tables.  Where the extension is gone the worker leaves; the supervisor
 * cleans up.
 */
extern void elt_worker_begin_work(const char *activity);

/*
 * elt's own writes carry an origin that the output plugin filters, so that
 * they never come back through a local source.  Returns the previous origin.
 */
extern uint16 elt_worker_mark_writes(uint16 origin);

/*
 * When a worker that ended may be started again: after 1 s, doubling to 60 s,
 * from the start again once it has been well for 60 s; a capture worker that
 * staged something was well.
 */
typedef struct EltBackoff
{
	int			failures;
	TimestampTz retry_at;
} EltBackoff;

extern void elt_backoff_note_end(EltBackoff *backoff, const EltWorkerSlot *ended);
extern bool elt_backoff_is_due(const EltBackoff *backoff);

#endif							/* ELT_WORKER_H */
