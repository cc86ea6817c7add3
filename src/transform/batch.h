/*
 * batch.h
 *	  One batch of a pipeline: lease, read, apply, settle.
 */
#ifndef ELT_BATCH_H
#define ELT_BATCH_H

#include "catalog.h"
#include "transform/log.h"

typedef enum EltBatchEnd
{
	ELT_BATCH_DONE,				/* nothing is left that this process could do
								 * now */
	ELT_BATCH_MORE,				/* there may be more */
	ELT_BATCH_RETRY,			/* a transient error, or a barrier that others
								 * are before */
	ELT_BATCH_BLOCKED			/* the pipeline is blocked: wait until its
								 * next probe is due */
} EltBatchEnd;

typedef struct EltBatchCounts
{
	int64		read;
	int64		written;		/* rows of the target */
	int64		quarantined;
	int64		parked;
	int64		superseded;
	int64		position;		/* of the lanes that were settled last */
	bool		drained;		/* all lanes are settled up to position, the
								 * end of the log */
} EltBatchCounts;

/*
 * Works on one window of a pipeline; adds to counts.  max_lanes: how many
 * lanes to lease at most; max_changes: how many changes to read, 0: as
 * configured.  With own_transaction it runs in a transaction of its own (none
 * may be open), and errors of the user's SQL become outcomes.  Without, it
 * runs in the caller's, and raises what would be RETRY or BLOCKED.
 */
extern EltBatchEnd elt_batch_run(EltPipeline *pipeline, int max_lanes, int64 max_changes,
								 EltBatchCounts *counts, bool own_transaction);

extern void elt_batch_require_none(const char *pipeline);
extern void elt_batch_note_latency(int64 pipeline_id, EltLogRow **rows, int nrows);

/* For who applies changes beside elt_batch_run: tells whether that is going on. */
extern void elt_batch_set_at_work(bool now);

/* For elt_isolate_try: the target can be neither dropped nor altered until the end of the transaction. */
struct EltWork;
extern void elt_batch_hold_target(struct EltWork *work);

#endif							/* ELT_BATCH_H */
