/*
 * quarantine.h
 *	  Changes that could not be applied, and those that wait behind them.
 */
#ifndef ELT_QUARANTINE_H
#define ELT_QUARANTINE_H

#include "catalog.h"
#include "transform/log.h"

/* The keys of a batch that have an unresolved change. */
typedef struct EltBlockedKeys EltBlockedKeys;

extern EltBlockedKeys *elt_blocked_keys_create(void);
extern void elt_blocked_keys_load(EltBlockedKeys *blocked, int64 pipeline_id, EltLogRow **rows, int nrows);
extern void elt_blocked_keys_add(EltBlockedKeys *blocked, const EltLogRow *row);
extern bool elt_blocked_keys_contain(const EltBlockedKeys *blocked, const EltLogRow *row);

/* change_ids that are quarantined and unresolved; at least those among the rows that are. */
extern int64 *elt_quarantine_unresolved(int64 pipeline_id, EltLogRow **rows, int nrows, int *count);

/* Returns the error's fingerprint. */
extern char *elt_quarantine_add(const EltPipeline *pipeline, const EltLogRow *row,
								const ErrorData *error, const char *error_class, const char *step);
extern void elt_quarantine_park(const EltPipeline *pipeline, EltLogRow **rows, int nrows);

/* Marks older unresolved changes of these keys superseded; returns how many. */
extern int64 elt_quarantine_supersede(const EltPipeline *pipeline, EltLogRow **rows, int nrows);

/* The same for all that came before a truncate. */
extern int64 elt_quarantine_supersede_before(const EltPipeline *pipeline, int64 change_id);

extern bool elt_log_same_key(const EltLogRow *a, const EltLogRow *b);

#endif							/* ELT_QUARANTINE_H */
