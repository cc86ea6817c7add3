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
extern bool elt_blocked_keys_none(const EltBlockedKeys *blocked);
extern bool elt_blocked_keys_contain(const EltBlockedKeys *blocked, const EltLogRow *row);

/* change_ids that are quarantined and unresolved; at least those among the rows that are. */
extern int64 *elt_quarantine_unresolved(int64 pipeline_id, EltLogRow **rows, int nrows, int *count);

extern void elt_quarantine_park(const EltPipeline *pipeline, EltLogRow **rows, int nrows);

/*
 * Takes away what is parked behind the keys of these rows; returns how many
 * changes that were, and their change_ids, sorted.
 */
extern int	elt_quarantine_unpark(const EltPipeline *pipeline, EltLogRow **rows, int nrows, int64 **change_ids);

/* Marks older unresolved changes of these keys superseded; returns how many. */
extern int64 elt_quarantine_supersede(const EltPipeline *pipeline, EltLogRow **rows, int nrows);

/* The same for all that came before a truncate. */
extern int64 elt_quarantine_supersede_before(const EltPipeline *pipeline, int64 change_id);

/* Resolves quarantined changes, as far as they are still unresolved; returns how many were. */
extern int64 elt_quarantine_resolve(EltLogRow **rows, int nrows, const char *status, const char *by, const char *note);

/* Tells the workers that a change is due then; 0: that none is. */
extern void elt_quarantine_note_retry(int64 pipeline_id, TimestampTz retry_at);

extern bool elt_log_same_key(const EltLogRow *a, const EltLogRow *b);

#endif							/* ELT_QUARANTINE_H */
