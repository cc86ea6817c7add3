/*
 * log_scan.h
 *	  One relation's log, change by change; for log.c and backlog.c.
 */
#ifndef ELT_LOG_SCAN_H
#define ELT_LOG_SCAN_H

#include "access/tableam.h"
#include "transform/log.h"

typedef struct EltLogLeaf
{
	Oid			oid;
	int64		end;			/* change_ids of interest are below */
	bool		cut;			/* there may be others, from the log's horizon
								 * on */
} EltLogLeaf;

/* A scan over the rows behind a position, in order of change_id. */
typedef struct EltLogScan
{
	int64		after;
	const char *topic;
	EltLogLeaf *leaves;
	int			nleaves;
	int			next_leaf;
	Relation	leaf;			/* NULL: none open */
	int64		end;			/* of that one: rows from here on are left out */
	TableScanDesc scan;
	TupleTableSlot *slot;
	TupleTableSlot *copy;		/* looks into copied tuples */
	bool		pending;		/* slot holds the first row of the next block */
	EltLogRow **block;			/* rows of the current block, sorted */
	int			nblock;
	int			next;
	const bool *lanes;			/* which rows to copy; NULL: none ... */
	int			nlanes;
	const EltLogWalk *walk;		/* who looks at keys; NULL: nobody */
	EltLogWanted wanted;		/* ... but those that this is true of */
	void	   *wanted_arg;
	BlockNumber blocks_read;
} EltLogScan;

extern EltLogScan *elt_log_scan_begin(Oid raw, int64 after, const char *topic, const bool *lanes, int nlanes);

/* The next row behind the position, NULL at the end. */
extern EltLogRow *elt_log_scan_next(EltLogScan *scan);
extern void elt_log_scan_end(EltLogScan *scan);
extern BlockNumber elt_log_scan_blocks(EltLogScan *scan);

/*
 * The leaves of a log up to its horizon, in order of change_id; locks the
 * relation's partition.
 */
extern EltLogLeaf *elt_log_leaves(Oid raw, int *nleaves);

/* How many blocks of a leaf that is open are of interest. */
extern BlockNumber elt_log_leaf_blocks(Relation relation, const EltLogLeaf *leaf);

/* Points a row's values into its tuple. */
extern void elt_log_hold_values(EltLogRow *row, TupleTableSlot *slot);

#endif							/* ELT_LOG_SCAN_H */
