/*
 * runner.h
 *	  User SQL, run as the pipeline's owner.
 */
#ifndef ELT_RUNNER_H
#define ELT_RUNNER_H

#include "catalog.h"
#include "nodes/parsenodes.h"
#include "transform/log.h"

/*
 * Prepares all statements of a pipeline, so that what is wrong with them is
 * raised.  "columns" are those of the source, for a pipeline by column name;
 * NIL where they are not known yet.  Returns the transform's query, NULL for
 * a pipeline by column name.
 */
extern Query *elt_runner_validate(const EltPipeline *pipeline, List *columns);

/*
 * Applies changes to the target; returns the rows written.  in_order: changes
 * of one key may occur twice, so they are applied in their order.  Raises the
 * user's errors: call it in a subtransaction.
 */
extern int64 elt_runner_apply(const EltPipeline *pipeline, TupleDesc desc,
							  EltLogRow **rows, int nrows, bool in_order);

/*
 * For a replay.  elt_runner_output: the names of the pipeline's output
 * columns; "columns" as above.  elt_runner_filter: notes for which of the rows
 * a boolean expression over "changes" holds; without rows it only checks the
 * expression.  elt_runner_forget: deletes the target's rows that carry the
 * change_id of one of these.
 */
extern List *elt_runner_output(const EltPipeline *pipeline, List *columns);
extern void elt_runner_filter(const EltPipeline *pipeline, const char *filter, TupleDesc desc,
							  EltLogRow **rows, int nrows, bool *holds);
extern void elt_runner_forget(const EltPipeline *pipeline, TupleDesc desc, EltLogRow **rows, int nrows);

/* The change that the last statement was at when it failed, as far as can be told; -1: unknown. */
extern int64 elt_runner_last_change(void);

/* As a truncate at the source at that time does. */
extern void elt_runner_truncate(const EltPipeline *pipeline, TimestampTz at);

/* "transform" or "apply", as can be told from the error. */
extern const char *elt_runner_step(const EltPipeline *pipeline, const ErrorData *error);

#endif							/* ELT_RUNNER_H */
