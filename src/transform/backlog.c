/*
 * backlog.c
 *	  How much of a log waits: its end, and what is behind the positions of a
 *	  pipeline's lanes.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/tableam.h"
#include "capture/change.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "transform/log_scan.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define EXACT_BLOCKS	256		/* a backlog up to here is counted row by row */
#define SAMPLE_BLOCKS	32		/* a longer one is estimated from this many */
#define GLANCE_BLOCKS	8		/* and by who asks every second, from so few */

/*
 * elt_log_tail
 *		The newest change_id that is visible, 0 where there is none.  Reads
 *		from the end, so it is cheap.
 */
int64
elt_log_tail(Oid raw)
{
	EltLogLeaf *leaves;
	int			nleaves;
	int64		tail = 0;

	leaves = elt_log_leaves(raw, &nleaves);
	for (int i = nleaves - 1; i >= 0 && tail == 0; i--)
	{
		Relation	leaf = table_open(leaves[i].oid, AccessShareLock);
		TupleTableSlot *slot = table_slot_create(leaf, NULL);

		for (BlockNumber block = elt_log_leaf_blocks(leaf, &leaves[i]); block > 0 && tail == 0; block--)
		{
			ItemPointerData first,
						last;
			TableScanDesc scan;

			CHECK_FOR_INTERRUPTS();
			ItemPointerSet(&first, block - 1, 1);
			ItemPointerSet(&last, block - 1, MaxOffsetNumber);
			scan = table_beginscan_tidrange(leaf, GetActiveSnapshot(), &first, &last);
			while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot))
			{
				bool		isnull;
				int64		change_id = DatumGetInt64(slot_getattr(slot, ELT_RAW_CHANGE_ID, &isnull));

				if (change_id < leaves[i].end)
					tail = Max(tail, change_id);
			}
			table_endscan(scan);
		}
		ExecDropSingleTupleTableSlot(slot);
		table_close(leaf, NoLock);
	}
	return tail;
}

/*
 * elt_log_measure
 *		How much waits behind the positions of a pipeline's lanes: counted
 *		where it is little, estimated from the first blocks where it is much.
 */
void
elt_log_measure(Oid raw, const char *topic, const int64 *positions, int nlanes, EltLogBacklog *backlog)
{
	int64		after = PG_INT64_MAX;
	BlockNumber blocks;
	bool		exact;
	EltLogScan *scan;
	EltLogRow  *row;

	memset(backlog, 0, sizeof(EltLogBacklog));
	for (int lane = 0; lane < nlanes; lane++)
		after = Min(after, positions[lane]);

	scan = elt_log_scan_begin(raw, after, topic, NULL, nlanes);
	blocks = elt_log_scan_blocks(scan);
	exact = blocks <= EXACT_BLOCKS;

	while ((row = elt_log_scan_next(scan)) != NULL)
	{
		if (topic == NULL || row->op == ELT_OP_MESSAGE)
		{
			bool		pending = row->change_id > positions[row->key_hash & (nlanes - 1)];

			if (pending && backlog->oldest_commit_ts == 0)
				backlog->oldest_commit_ts = row->commit_ts;
			backlog->changes += !exact || pending;
		}
		pfree(row);
		if (!exact && scan->blocks_read > SAMPLE_BLOCKS)
			break;
	}
	if (!exact)
		backlog->changes = rint(backlog->changes * blocks / Max(scan->blocks_read, 1) *
								elt_log_pending_share(positions, nlanes, elt_log_tail(raw)));
	if (backlog->changes > 0)
		backlog->bytes = (double) blocks * BLCKSZ;
	elt_log_scan_end(scan);
}

/*
 * elt_log_pending_share
 *		Lanes stand at different places: of what is behind the last of them,
 *		each has still to do its share of the distance.  0: nothing is pending.
 */
double
elt_log_pending_share(const int64 *positions, int nlanes, int64 tail)
{
	int64		first = PG_INT64_MAX;
	double		share = 0;

	for (int lane = 0; lane < nlanes; lane++)
		first = Min(first, positions[lane]);
	for (int lane = 0; lane < nlanes && first < tail; lane++)
	{
		if (positions[lane] < tail)
			share += (double) (tail - positions[lane]) / (tail - first) / nlanes;
	}
	return share;
}

/*
 * elt_log_count
 *		About how many changes there are behind a position: a glance, whatever
 *		the length of the log.
 */
double
elt_log_count(Oid raw, const char *topic, int64 after)
{
	EltLogScan *scan = elt_log_scan_begin(raw, after, topic, NULL, 1);
	BlockNumber blocks = elt_log_scan_blocks(scan);
	double		count = 0;
	EltLogRow  *row;

	while ((row = elt_log_scan_next(scan)) != NULL)
	{
		if (topic == NULL || row->op == ELT_OP_MESSAGE)
			count++;
		pfree(row);
		if (scan->blocks_read >= GLANCE_BLOCKS && blocks > GLANCE_BLOCKS && scan->next >= scan->nblock)
		{
			count *= (double) blocks / scan->blocks_read;
			break;
		}
	}
	elt_log_scan_end(scan);
	return count;
}
