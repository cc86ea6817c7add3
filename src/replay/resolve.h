/*
 * resolve.h
 *	  Tries quarantined changes again, or gives them up.
 */
#ifndef ELT_RESOLVE_H
#define ELT_RESOLVE_H

#include "catalog.h"
#include "utils/tuplestore.h"

/* Which of a pipeline's unresolved changes; a null filter lets all pass. */
typedef struct EltResolveFilter
{
	Datum		ids;			/* bigint[] */
	Datum		sqlstate;		/* text, as the next */
	Datum		fingerprint;
	Datum		key;			/* jsonb */
	Datum		from_time;		/* of the first failure: from here ... */
	Datum		to_time;		/* ... until before here */
	bool		has_from_time;	/* the others are null where they are 0 */
	bool		has_to_time;
	bool		due;			/* waiting, and it is time */
	bool		heads;			/* not those behind another of their key,
								 * where the order is strict */
	int			max_rows;		/* that are of interest */
} EltResolveFilter;

/* Changes of one pipeline on their way out of the quarantine. */
typedef struct EltResolve EltResolve;

/*
 * elt_resolve_find
 *		Looks for some of the changes, so that their lanes are known; NULL
 *		where there are none.
 *
 * elt_resolve_lock
 *		Locks their lanes until the end of the transaction, and looks for all
 *		of them, the oldest max_rows.
 *		Without "wait" leaves out those whose lane is not free.  Returns how
 *		many there are.
 *
 * elt_resolve_apply
 *		Applies them, and what is parked behind them.  Returns the error that
 *		stopped it, an error that is not of single changes; then the
 *		transaction must be rolled back.
 *
 * elt_resolve_discard
 *		Gives them up, and applies what is parked behind them.  The same.
 *
 * elt_resolve_put_outcomes
 *		Rows of quarantine_id, outcome, error.
 *
 * elt_resolve_marks_output
 *		Whether what it wrote is marked as not to be captured.
 */
extern EltResolve *elt_resolve_find(EltPipeline *pipeline, const EltResolveFilter *filter, bool own_transaction);
extern int	elt_resolve_lock(EltResolve *resolve, bool wait, int max_rows);
extern ErrorData *elt_resolve_apply(EltResolve *resolve);
extern ErrorData *elt_resolve_discard(EltResolve *resolve, const char *reason, int64 *discarded);
extern void elt_resolve_put_outcomes(EltResolve *resolve, Tuplestorestate *store, TupleDesc desc);
extern int	elt_resolve_count(const EltResolve *resolve);
extern bool elt_resolve_marks_output(const EltResolve *resolve);

#endif							/* ELT_RESOLVE_H */
