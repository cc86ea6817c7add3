/*
 * failure.h
 *	  Changes that have just failed, on their way into quarantine.
 */
#ifndef ELT_FAILURE_H
#define ELT_FAILURE_H

#include "catalog.h"
#include "transform/log.h"
#include "utils/tuplestore.h"

/* Failures of a batch that are not in the tables yet; zeroed: none. */
typedef struct EltFailures
{
	TupleDesc	desc;
	Tuplestorestate *store;		/* NULL: none */
	int			count;
} EltFailures;

/*
 * elt_failure_add
 *		Records a failure: of a change from the log by a new row, which comes
 *		with the next elt_failures_write, of a quarantined one in its row.
 *		desc describes the row's tuple.  Returns the error's fingerprint.
 *
 * elt_failures_write
 *		Writes what was added.  Who asks the tables about the batch at hand
 *		calls it before, and so does the batch at its end.
 */
extern char *elt_failure_add(EltFailures *failures, const EltPipeline *pipeline, TupleDesc desc, EltLogRow *row,
							 const ErrorData *error, const char *error_class, const char *step);
extern void elt_failures_write(EltFailures *failures, const EltPipeline *pipeline);

#endif							/* ELT_FAILURE_H */
