/*
 * stage.h
 *	  Changes into raw staging, in bulk.
 */
#ifndef ELT_STAGE_H
#define ELT_STAGE_H

#include "capture/change.h"
#include "catalog.h"

typedef struct EltStage EltStage;

extern EltStage *elt_stage_create(const EltSource *source);

/* Has a function called from time to time where staging a change takes long. */
extern void elt_stage_set_alive(EltStage *stage, void (*alive) (void));

/* Forgets what was read of the source's tables, because it may have changed. */
extern void elt_stage_refresh(EltStage *stage);

/* Forgets what was staged in a local transaction that was rolled back. */
extern void elt_stage_abandon(EltStage *stage);

/* user_data of the decoder's relations is the stage's. */
extern void elt_stage_free_relation(void *user_data);

/* The source transaction that the next changes belong to. */
extern void elt_stage_begin(EltStage *stage, TransactionId xid, XLogRecPtr commit_lsn, TimestampTz commit_ts);

/* All of these need a local transaction. */

/* Notes what a relation looks like from here on, before any change of it. */
extern void elt_stage_relation(EltStage *stage, EltRelation *relation);
extern void elt_stage_change(EltStage *stage, EltChange *change);
extern void elt_stage_copied_row(EltStage *stage, EltRelation *relation, EltRow *row);

/* A row that is staged once more, under a new change_id. */
typedef struct EltStagedRow
{
	TransactionId xid;
	XLogRecPtr	commit_lsn;
	XLogRecPtr	lsn;
	TimestampTz commit_ts;
	TimestampTz staged_at;
	int32		seq;
	int32		key_hash;
	int32		schema_version;
	char		op;
	Jsonb	   *key;			/* NULL: null, as in the next three */
	Jsonb	   *before;
	Jsonb	   *after;
	ArrayType  *unchanged;
	ArrayType  *large;
} EltStagedRow;

extern void elt_stage_restage(EltStage *stage, const char *relation, const EltStagedRow *row);

/*
 * Looks for the values that a staged row lacks, under the key given: that of
 * the row, or the one that it had before it moved; with history also before
 * the copy that is being made.  In the current memory context.  The stage is
 * to be refreshed afterwards.
 */
extern void elt_stage_complete(EltStage *stage, const char *relation, EltStagedRow *row,
							   int32 key_hash, Jsonb *key, bool history);

/*
 * The change_id of the next row.  All ids given out so far, in this source,
 * are below.
 */
extern int64 elt_stage_next_id(EltStage *stage);

/*
 * Sets leaves aside for a copy: returns the number of the first of them.  The
 * stage's own rows come behind them from here on.
 */
extern int64 elt_stage_reserve_leaves(EltStage *stage, int64 nleaves);

/* From here on ids come from first (inclusive) to end (exclusive). */
extern void elt_stage_use_ids(EltStage *stage, int64 first, int64 end);

/*
 * Writes what is buffered and lets go of the tables; to be called before the
 * local transaction commits.  Returns how many changes it staged.
 */
extern int64 elt_stage_finish(EltStage *stage);

#endif							/* ELT_STAGE_H */
