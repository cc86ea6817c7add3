/*
 * isolate.h
 *	  Applies a window of changes, and finds those that cannot be applied.
 */
#ifndef ELT_ISOLATE_H
#define ELT_ISOLATE_H

#include "catalog.h"
#include "transform/failure.h"
#include "transform/log.h"
#include "transform/options.h"
#include "transform/quarantine.h"
#include "transform/transform_catalog.h"

typedef enum EltChangeKind
{
	ELT_CHANGE_WRITE,
	ELT_CHANGE_DELETE,
	ELT_CHANGE_KINDS
} EltChangeKind;

/* Failures of the batch with the same error, and what the breaker counts. */
typedef struct EltFlood
{
	char		fingerprint[33];
	int			sqlerrcode;
	int64		failed;
	bool		known;			/* the pipeline has had it before */
} EltFlood;

typedef struct EltBreaker
{
	bool		loaded;
	int64		read;			/* before the batch */
	int64		failed;
	int			nfloods;
	EltFlood	floods[8];
} EltBreaker;

/* A window on its way into the target. */
typedef struct EltWork
{
	EltPipeline *pipeline;
	EltPipelineOptions options;
	EltPipelineStatus status;
	bool		own_transaction;
	EltLogWindow *window;
	int64		after;			/* position before the window */
	bool		target_changed; /* another table, or another name */

	/* what became of it */
	int			settled;		/* rows that are done with, from the first on */
	int64		written;		/* rows of the target */
	int64		quarantined;
	int64		parked;
	int64		superseded;

	/* why it cannot go on; NULL: it can */
	ErrorData  *error;
	const char *error_class;	/* "transient", "systemic", "breaker" or
								 * "overrun" (of the time limit, by several
								 * changes) */
	EltBreaker	breaker;

	/* see attempt.c: the window may have ended a worker, or a server ... */
	bool		suspected;

	/* ... a change that is not to be tried; 0: none */
	int64		doomed;
	int			deaths;
	char		death_sqlstate[6];

	/* isolate.c's own: what is being tried ... */
	EltLogRow **rows;
	int			nrows;
	int			tried;			/* rows, when it last failed */
	bool		in_order;
	bool		trial_passed;
	/* ... what has been learnt ... */
	EltBlockedKeys *blocked;
	EltFailures failures;		/* that are not in the tables yet */
	int			subtransactions;	/* that wrote */
	bool		passed[ELT_CHANGE_KINDS];	/* one of its kind, just now */
	EltLogRow  *last_passed[ELT_CHANGE_KINDS];	/* in this batch */
	/* ... and what the last failure means for a change */
	int			sqlerrcode;
	const char *class;
} EltWork;

/*
 * Applies the window, or as much of it as one transaction should hold: each
 * of the first "settled" rows is applied, ignored, quarantined or parked.
 * False where the batch cannot go on.
 */
extern bool elt_isolate_apply(EltWork *work);

/* Does something in a subtransaction; returns the error that it raised, else NULL. */
extern ErrorData *elt_isolate_try(EltWork *work, void (*attempt) (EltWork *work));

/* Notes that the batch cannot go on: an error that is not of single changes. */
extern void elt_isolate_give_up(EltWork *work, ErrorData *error);

/*
 * For who applies the windows of several pipelines at once (group.c):
 *
 * elt_isolate_divide
 *		What of the window is to be applied, deletes apart from writes where
 *		they need not be in order, and what is parked.
 *
 * elt_isolate_passed
 *		It was applied: parks, supersedes, and settles the window.
 *
 * elt_isolate_stops
 *		True where an error is for the whole batch, as work->error and
 *		work->error_class say; else work->class tells what it means for a
 *		change.
 */
typedef struct EltIsolateParts
{
	EltLogRow **deletes;
	int			ndeletes;
	EltLogRow **writes;
	int			nwrites;
	bool		in_order;		/* the writes must be applied in their order */
	EltLogRow **parked;
	int			nparked;
} EltIsolateParts;

extern EltIsolateParts *elt_isolate_divide(EltWork *work);
extern void elt_isolate_passed(EltWork *work, const EltIsolateParts *parts);
extern bool elt_isolate_stops(EltWork *work, ErrorData *error);

#endif							/* ELT_ISOLATE_H */
