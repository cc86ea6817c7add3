/*
 * replay.h
 *	  A replay at work.
 */
#ifndef ELT_REPLAY_H
#define ELT_REPLAY_H

#include "replay/newest.h"
#include "replay/replay_run.h"
#include "transform/options.h"
#include "transform/transform_catalog.h"
#include "utils/hsearch.h"

typedef struct EltReplay
{
	EltReplayRun run;
	MemoryContext context;		/* for the whole replay */
	MemoryContext group;		/* for the present lanes */
	MemoryContext step;			/* for one transaction */
	EltPipeline *pipeline;		/* as this step has found it */
	EltPipelineOptions options;

	/* how an append is made repeatable; see elt_replay_prepare */
	bool		forget;			/* the target notes change_id */
	List	   *key;			/* else: the target's key */

	/* what is known of the present lanes */
	EltNewest  *newest;			/* NULL: nothing */
	int64		positions[ELT_MAX_LANES];	/* newest knows all up to here */
	int64		scanned;		/* the scan is here ... */
	int64		scan_end;		/* ... on its way to here */
	bool		counting;		/* the scan counts the total, too */
	int64		truncated_at;	/* the last truncate that was settled */
	char	   *truncates;		/* of a history: all of them, as a
								 * timestamptz[] */
	int64		read_to;		/* all up to here was read */
	HTAB	   *carried;		/* images that later, partial ones need */

	/* of this session's work on the run */
	int64		paced;			/* changes that count for the rate */
	int64		tried;
	int64		failed;
	int			max_changes;	/* of the next batch; 0: no limit */
	bool		take_back;		/* the batch is to be run again, smaller */
	bool		backlog;		/* live changes wait for the lanes */
	TimestampTz wait_until;		/* until the next transaction */
	bool		finished;
} EltReplay;

/* The pipeline of the run as it is now, made ready to be replayed; in the current context. */
extern void elt_replay_load(EltReplay *replay);

/* Decides how the pipeline can be replayed, and raises where it cannot. */
extern void elt_replay_prepare(EltReplay *replay);

/* Raises where raw staging does not have what the run asks for any more; keeps what it has until the transaction ends. */
extern void elt_replay_check_kept(const EltReplay *replay);

/* How many changes to work on at once: no more than these. */
extern int	elt_replay_pace(const EltReplay *replay, int max_changes);

/*
 * The next transaction's work.  Moves replay->run, which the caller stores;
 * leaves it as it was where it raises or asks to take back.
 */
extern void elt_replay_step(EltReplay *replay);

/* Tries some of the changes that were quarantined before; finishes the replay where there are none left. */
extern void elt_replay_retry_quarantined(EltReplay *replay);

/*
 * Remembers an image that a later one of its key may need; gives that later
 * one what it lacks, as far as those before it have it.
 */
extern void elt_replay_carry(EltReplay *replay, const EltLogRow *row);
extern EltLogRow *elt_replay_complete(EltReplay *replay, TupleDesc desc, EltLogRow *row);

#endif							/* ELT_REPLAY_H */
