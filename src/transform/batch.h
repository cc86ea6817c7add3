/*
 * batch.h
 *	  Lease lanes of a pipeline, apply what waits there, settle it.
 */
#ifndef ELT_BATCH_H
#define ELT_BATCH_H

#include "catalog.h"

typedef enum EltBatchEnd
{
	ELT_BATCH_NOTHING,			/* nothing waits, or others hold the lanes */
	ELT_BATCH_SETTLED,			/* something was settled, and that was all */
	ELT_BATCH_MORE,				/* something was settled, and more waits */
	ELT_BATCH_RETRY,			/* rolled back, try again later (transient) */
	ELT_BATCH_BLOCKED			/* systemic error: the pipeline is blocked now */
} EltBatchEnd;

typedef struct EltBatchCounts
{
	int64		read;
	int64		written;
	int64		quarantined;
	int64		parked;
	int64		superseded;
	int64		position;		/* change_id up to which every lane is settled */
} EltBatchCounts;

#endif							/* ELT_BATCH_H */
