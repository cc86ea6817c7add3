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

/* Forgets what was read of the source's tables, because it may have changed. */
extern void elt_stage_refresh(EltStage *stage);

/* user_data of the decoder's relations is the stage's. */
extern void elt_stage_free_relation(void *user_data);

/* The source transaction that the next changes belong to. */
extern void elt_stage_begin(EltStage *stage, TransactionId xid, XLogRecPtr commit_lsn, TimestampTz commit_ts);

/* All of these need a local transaction. */

/* Notes what a relation looks like from here on, before any change of it. */
extern void elt_stage_relation(EltStage *stage, EltRelation *relation);
extern void elt_stage_change(EltStage *stage, EltChange *change);
extern void elt_stage_copied_row(EltStage *stage, EltRelation *relation, EltRow *row);

/*
 * Writes what is buffered and lets go of the tables; to be called before the
 * local transaction commits.  Returns how many changes it staged.
 */
extern int64 elt_stage_finish(EltStage *stage);

#endif							/* ELT_STAGE_H */
