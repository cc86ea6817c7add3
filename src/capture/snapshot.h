/*
 * snapshot.h
 *	  What a copy reads at the source: the shape of a table, and its rows.
 */
#ifndef ELT_SNAPSHOT_H
#define ELT_SNAPSHOT_H

#include "capture/stage.h"
#include "capture/stream.h"
#include "catalog.h"

/* Whether the row with this key (NULL: it has none) is left out. */
typedef bool (*EltCopySkip) (void *arg, Jsonb *key);

/* Blocks of a table, or of a partition of it. */
typedef struct EltCopyRange
{
	EltRelation *relation;
	const char *filter;			/* the publication's, NULL: none */
	const char *part;			/* the table that holds the rows, quoted */
	int64		first_block;
	int64		end_block;		/* exclusive */
	bool		careful;		/* some row has a value without a text */
	EltCopySkip skip;			/* NULL: all rows are wanted */
	void	   *skip_arg;
} EltCopyRange;

typedef struct EltCopyCounts
{
	int64		rows;
	int64		bytes;			/* as they came */
} EltCopyCounts;

/*
 * The shape of a table as it is published, in the current memory context, and
 * the row filter (NULL: none).  Raises where there is no such table.
 */
extern EltRelation *elt_snapshot_describe(EltStream *stream, const EltSource *source, const char *name,
										  char **filter);

/*
 * Stages the rows of some blocks as the connection's transaction sees them, in
 * the local transaction that is open, after elt_stage_begin.
 */
extern void elt_snapshot_copy_blocks(EltStream *stream, EltStage *stage, const EltCopyRange *range,
									 EltCopyCounts *counts);

#endif							/* ELT_SNAPSHOT_H */
