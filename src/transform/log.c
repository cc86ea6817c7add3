/*
 * log.c
 *	  Reading raw staging: windows of one relation's log.
 *
 * A relation's log is a set of leaves, one after the other by change_id, and
 * a leaf is a heap in the order of change_id: one process appends to it, and
 * never to an earlier block.  So a reader finds its place by a binary search
 * over the first change_ids of blocks, and reads on by TID range.  There is no
 * index to maintain, and a window costs what its rows cost, whatever the
 * length of the log.
 *
 * Within a block the order may be broken, since pruning what an aborted
 * transaction left frees line pointers that later rows take.  Therefore rows
 * are looked at a block at a time, sorted.  The search looks at line pointers
 * irrespective of visibility: dead rows keep the order too.
 *
 * The writer commits in the order of change_id, so any snapshot sees a prefix
 * of the log, and what a window has passed over can never become visible.
 *
 * Locking: AccessShareLock on the relation's partition and on each leaf that
 * is read, kept until the end of the transaction, so that retention cannot
 * drop a leaf between the look at the partitions and the read.
 */
#include "postgres.h"

#include <math.h>

#include "access/detoast.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "capture/change.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "storage/bufmgr.h"
#include "transform/log.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_PASSED_OVER	1000000 /* changes of other lanes in one window */
#define EXACT_BLOCKS	256		/* a backlog up to here is counted row by row */
#define SAMPLE_BLOCKS	32		/* a longer one is estimated from this many */
#define GLANCE_BLOCKS	8		/* and by who asks every second, from so few */
#define FETCH_GAP		2048	/* change_ids that are read over rather than
								 * searched behind */

/* How full a window is. */
typedef struct Filling
{
	int64		bytes;
	int64		passed_over;
	XLogRecPtr	last_lsn;		/* commit of the last change */
} Filling;

typedef struct Leaf
{
	Oid			oid;
	int64		end;			/* change_ids are below */
} Leaf;

/* A scan over the rows behind a position, in order of change_id. */
typedef struct LogScan
{
	int64		after;
	const char *topic;
	Leaf	   *leaves;
	int			nleaves;
	int			next_leaf;
	Relation	leaf;			/* NULL: none open */
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
} LogScan;

static LogScan *scan_begin(Oid raw, int64 after, const char *topic, const bool *lanes, int nlanes);
static EltLogRow *scan_next(LogScan *scan);
static void scan_end(LogScan *scan);
static BlockNumber count_blocks(LogScan *scan);
static bool fill_block(LogScan *scan);
static bool next_tuple(LogScan *scan);
static void open_leaf(LogScan *scan);
static void close_leaf(LogScan *scan);
static void add_row(LogScan *scan);
static void look_at_key(LogScan *scan, EltLogRow *row);
static int	compare_rows(const void *a, const void *b);
static Leaf *list_leaves(Oid raw, int *nleaves);
static BlockNumber find_block(Relation leaf, int64 after);
static int64 first_change_id(Relation leaf, BlockNumber block);
static void hold_values(EltLogRow *row, TupleTableSlot *slot);
static bool accept_row(const EltLogRequest *request, EltLogWindow *window, EltLogRow *row,
					   Filling *filling);
static void append_row(EltLogWindow *window, EltLogRow *row);

/*
 * elt_log_read
 *		Reads the changes of some lanes behind a position.
 */
EltLogWindow *
elt_log_read(const EltLogRequest *request)
{
	EltLogWindow *window = palloc0(sizeof(EltLogWindow));
	LogScan    *scan = scan_begin(request->raw, request->after, request->topic,
								  request->lanes, request->nlanes);
	Filling		filling = {0};
	EltLogRow  *row;

	window->position = request->after;
	window->desc = scan->copy ? CreateTupleDescCopy(scan->copy->tts_tupleDescriptor) : NULL;
	while ((row = scan_next(scan)) != NULL)
	{
		if (!accept_row(request, window, row, &filling))
			break;
		if (row->tuple == NULL)
			pfree(row);
	}
	window->at_end = (row == NULL);

	/* Who stands at upto has seen the log that far. */
	if (row == NULL && request->upto < PG_INT64_MAX)
		window->position = Max(window->position, request->upto);

	/*
	 * The commit that the window ends in is settled only if nothing of it
	 * follows.
	 */
	if (row == NULL || row->commit_lsn != filling.last_lsn)
		window->settled_lsn = filling.last_lsn;
	scan_end(scan);
	return window;
}

/* Takes the next change into the window; false where the window ends before it. */
static bool
accept_row(const EltLogRequest *request, EltLogWindow *window, EltLogRow *row,
		   Filling *filling)
{
	bool		full = window->nrows >= request->max_changes ||
	filling->bytes >= request->max_bytes || filling->passed_over >= MAX_PASSED_OVER;
	bool		overfull = window->nrows >= 4 * (int64) request->max_changes ||
	filling->bytes >= 4 * request->max_bytes || filling->passed_over >= 4 * MAX_PASSED_OVER;

	if (row->change_id > request->upto)
	{
		window->position = request->upto;
		return false;
	}
	if (full && (!request->whole_commits || overfull || row->commit_lsn != filling->last_lsn))
		return false;
	if (row->op == ELT_OP_TRUNCATE)
	{
		window->position = row->change_id - 1;
		window->barrier = row;
		return false;
	}
	if (row->tuple != NULL)
	{
		if (request->one_schema_version && window->nrows > 0 &&
			row->schema_version != window->rows[0]->schema_version)
			return false;
		append_row(window, row);
		filling->bytes += row->tuple->t_len;
	}
	else
		filling->passed_over++;
	window->position = row->change_id;
	filling->last_lsn = row->commit_lsn;
	return true;
}

static void
append_row(EltLogWindow *window, EltLogRow *row)
{
	int			n = window->nrows;

	if (n == 0)
		window->rows = palloc(64 * sizeof(EltLogRow *));
	else if (n >= 64 && (n & (n - 1)) == 0)
		window->rows = repalloc_huge(window->rows, 2 * (Size) n * sizeof(EltLogRow *));
	window->rows[window->nrows++] = row;
}

/*
 * elt_log_tail
 *		The newest change_id that is visible, 0 where there is none.  Reads
 *		from the end, so it is cheap.
 */
int64
elt_log_tail(Oid raw)
{
	Leaf	   *leaves;
	int			nleaves;
	int64		tail = 0;

	leaves = list_leaves(raw, &nleaves);
	for (int i = nleaves - 1; i >= 0 && tail == 0; i--)
	{
		Relation	leaf = table_open(leaves[i].oid, AccessShareLock);
		TupleTableSlot *slot = table_slot_create(leaf, NULL);

		for (BlockNumber block = RelationGetNumberOfBlocks(leaf); block > 0 && tail == 0; block--)
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

				tail = Max(tail, DatumGetInt64(slot_getattr(slot, ELT_RAW_CHANGE_ID, &isnull)));
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
	LogScan    *scan;
	EltLogRow  *row;

	memset(backlog, 0, sizeof(EltLogBacklog));
	for (int lane = 0; lane < nlanes; lane++)
		after = Min(after, positions[lane]);

	scan = scan_begin(raw, after, topic, NULL, nlanes);
	blocks = count_blocks(scan);
	exact = blocks <= EXACT_BLOCKS;

	while ((row = scan_next(scan)) != NULL)
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
	scan_end(scan);
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
	LogScan    *scan = scan_begin(raw, after, topic, NULL, 1);
	BlockNumber blocks = count_blocks(scan);
	double		count = 0;
	EltLogRow  *row;

	while ((row = scan_next(scan)) != NULL)
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
	scan_end(scan);
	return count;
}

int64
elt_log_walk(const EltLogWalk *walk)
{
	LogScan    *scan = scan_begin(walk->raw, walk->after, walk->topic, NULL, 1);
	int64		position = walk->after;
	int64		count = 0;
	EltLogRow  *row;

	scan->walk = walk;
	while ((row = scan_next(scan)) != NULL && row->change_id <= walk->upto && count < walk->max_changes)
	{
		if (row->op != '\0')
			walk->visit(walk->arg, row);
		position = row->change_id;
		count++;
		pfree(row);
	}
	if (row == NULL || row->change_id > walk->upto)
		position = walk->upto;
	scan_end(scan);
	return position;
}

uint64
elt_log_key_fingerprint(Datum key)
{
	struct varlena *stored = (struct varlena *) DatumGetPointer(key);
	struct varlena *value;
	uint64		fingerprint;

	if (stored == NULL)
		return 0;
	value = pg_detoast_datum_packed(stored);
	fingerprint = hash_bytes_extended((const unsigned char *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), 0);
	if (value != stored)
		pfree(value);
	return fingerprint;
}

/* What elt_log_fetch looks for. */
typedef struct Wanted
{
	const int64 *change_ids;
	int			n;
} Wanted;

static bool
is_wanted(const EltLogRow *row, void *arg)
{
	Wanted	   *wanted = arg;
	int			low = 0;
	int			high = wanted->n - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;

		if (wanted->change_ids[middle] == row->change_id)
			return true;
		if (wanted->change_ids[middle] < row->change_id)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return false;
}

/* Reads on from one to the next where they are near, else searches anew. */
int
elt_log_fetch(Oid raw, const char *topic, const int64 *change_ids, int n,
			  int64 max_bytes, EltLogRow **rows, TupleDesc *desc)
{
	Wanted		wanted = {change_ids, n};
	int64		bytes = 0;
	int			found = 0;
	bool		on = true;

	*desc = NULL;
	while (on && found < n)
	{
		LogScan    *scan = scan_begin(raw, change_ids[found] - 1, topic, NULL, 1);
		bool		near = true;
		EltLogRow  *row;

		scan->wanted = is_wanted;
		scan->wanted_arg = &wanted;
		if (*desc == NULL && scan->copy != NULL)
			*desc = CreateTupleDescCopy(scan->copy->tts_tupleDescriptor);
		while (on && near && found < n)
		{
			row = scan_next(scan);
			if (row == NULL || row->change_id > change_ids[found])
				on = false;
			else if (row->change_id < change_ids[found] || row->tuple == NULL)
			{
				near = change_ids[found] - row->change_id <= FETCH_GAP;
				pfree(row);
			}
			else
			{
				rows[found++] = row;
				bytes += row->tuple->t_len;
				on = bytes < max_bytes;
			}
		}
		scan_end(scan);
	}
	return found;
}

void
elt_log_visit(Oid raw, const char *topic, int64 after, int64 upto,
			  EltLogWanted wanted, EltLogVisit visit, void *arg)
{
	LogScan    *scan = scan_begin(raw, after, topic, NULL, 1);
	EltLogRow  *row;

	scan->wanted = wanted;
	scan->wanted_arg = arg;
	while ((row = scan_next(scan)) != NULL && row->change_id <= upto)
	{
		if (row->tuple != NULL)
		{
			visit(row, arg);
			pfree(row->tuple);
		}
		pfree(row);
	}
	scan_end(scan);
}

EltLogRow *
elt_log_form(TupleTableSlot *slot, Datum *values, bool *nulls)
{
	EltLogRow  *row = palloc0(sizeof(EltLogRow));

	row->change_id = DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]);
	row->commit_lsn = DatumGetLSN(values[ELT_RAW_COMMIT_LSN - 1]);
	row->commit_ts = DatumGetTimestampTz(values[ELT_RAW_COMMIT_TS - 1]);
	row->key_hash = DatumGetInt32(values[ELT_RAW_KEY_HASH - 1]);
	row->schema_version = DatumGetInt32(values[ELT_RAW_SCHEMA_VERSION - 1]);
	row->op = DatumGetChar(values[ELT_RAW_OP - 1]);
	row->tuple = elt_form_minimal_tuple(slot->tts_tupleDescriptor, values, nulls);
	ExecStoreMinimalTuple(row->tuple, slot, false);
	hold_values(row, slot);
	return row;
}

/* A copy of a row with another image. */
EltLogRow *
elt_log_replace(TupleDesc desc, const EltLogRow *row, Datum after, Datum unchanged)
{
	EltLogRow  *copy = palloc(sizeof(EltLogRow));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	Datum		values[ELT_RAW_NCOLUMNS];
	bool		nulls[ELT_RAW_NCOLUMNS];

	ExecStoreMinimalTuple(row->tuple, slot, false);
	slot_getallattrs(slot);
	memcpy(values, slot->tts_values, sizeof(values));
	memcpy(nulls, slot->tts_isnull, sizeof(nulls));
	values[ELT_RAW_AFTER - 1] = after;
	nulls[ELT_RAW_AFTER - 1] = (after == 0);
	values[ELT_RAW_UNCHANGED - 1] = unchanged;
	nulls[ELT_RAW_UNCHANGED - 1] = (unchanged == 0);

	*copy = *row;
	copy->tuple = elt_form_minimal_tuple(desc, values, nulls);
	ExecStoreMinimalTuple(copy->tuple, slot, false);
	hold_values(copy, slot);
	ExecDropSingleTupleTableSlot(slot);
	return copy;
}

/* ---- scan ---- */

static LogScan *
scan_begin(Oid raw, int64 after, const char *topic, const bool *lanes, int nlanes)
{
	LogScan    *scan = palloc0(sizeof(LogScan));
	Leaf	   *leaves;
	int			nleaves;
	int			first = 0;

	scan->after = after;
	scan->topic = topic;
	scan->lanes = lanes;
	scan->nlanes = nlanes;
	scan->block = palloc(MaxHeapTuplesPerPage * sizeof(EltLogRow *));

	leaves = list_leaves(raw, &nleaves);
	while (first < nleaves && leaves[first].end <= after + 1)
		first++;
	scan->leaves = leaves + first;
	scan->nleaves = nleaves - first;
	if (leaves != NULL)
	{
		Relation	partition = relation_open(raw, NoLock);

		scan->copy = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(partition)),
											  &TTSOpsMinimalTuple);
		relation_close(partition, NoLock);
	}
	return scan;
}

/* The next row behind the position, NULL at the end. */
static EltLogRow *
scan_next(LogScan *scan)
{
	while (scan->next >= scan->nblock)
	{
		if (!fill_block(scan))
			return NULL;
	}
	return scan->block[scan->next++];
}

static void
scan_end(LogScan *scan)
{
	if (scan->leaf != NULL)
		close_leaf(scan);
	if (scan->copy != NULL)
		ExecDropSingleTupleTableSlot(scan->copy);
}

/* Blocks from the position to the end of the log. */
static BlockNumber
count_blocks(LogScan *scan)
{
	BlockNumber blocks = 0;

	for (int i = 0; i < scan->nleaves; i++)
	{
		Relation	leaf = table_open(scan->leaves[i].oid, AccessShareLock);

		blocks += RelationGetNumberOfBlocks(leaf);
		if (i == 0)
			blocks -= find_block(leaf, scan->after);
		table_close(leaf, NoLock);
	}
	return blocks;
}

/* Reads the rows of one block, in order; false at the end of the log. */
static bool
fill_block(LogScan *scan)
{
	BlockNumber block;
	bool		sorted = true;

	scan->nblock = 0;
	scan->next = 0;
	if (!scan->pending && !next_tuple(scan))
		return false;

	CHECK_FOR_INTERRUPTS();
	scan->pending = false;
	block = ItemPointerGetBlockNumber(&scan->slot->tts_tid);
	for (;;)
	{
		add_row(scan);
		if (scan->nblock > 1 &&
			scan->block[scan->nblock - 1]->change_id < scan->block[scan->nblock - 2]->change_id)
			sorted = false;
		if (!table_scan_getnextslot_tidrange(scan->scan, ForwardScanDirection, scan->slot))
		{
			close_leaf(scan);
			break;
		}
		if (ItemPointerGetBlockNumber(&scan->slot->tts_tid) != block)
		{
			scan->pending = true;
			break;
		}
	}
	if (!sorted)
		qsort(scan->block, scan->nblock, sizeof(EltLogRow *), compare_rows);
	scan->blocks_read++;
	return true;
}

/* Moves on to the first visible tuple of the leaf, or of those behind it. */
static bool
next_tuple(LogScan *scan)
{
	for (;;)
	{
		if (scan->leaf == NULL)
		{
			if (scan->next_leaf >= scan->nleaves)
				return false;
			open_leaf(scan);
		}
		if (table_scan_getnextslot_tidrange(scan->scan, ForwardScanDirection, scan->slot))
			return true;
		close_leaf(scan);
	}
}

static void
open_leaf(LogScan *scan)
{
	ItemPointerData first,
				last;

	scan->leaf = table_open(scan->leaves[scan->next_leaf++].oid, AccessShareLock);
	scan->slot = table_slot_create(scan->leaf, NULL);
	ItemPointerSet(&first, find_block(scan->leaf, scan->after), 1);
	ItemPointerSet(&last, MaxBlockNumber, MaxOffsetNumber);
	scan->scan = table_beginscan_tidrange(scan->leaf, GetActiveSnapshot(), &first, &last);
}

static void
close_leaf(LogScan *scan)
{
	table_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	table_close(scan->leaf, NoLock);
	scan->leaf = NULL;
	scan->pending = false;
}

/* Notes the slot's row, with its tuple where it is of a lane that is asked for. */
static void
add_row(LogScan *scan)
{
	TupleTableSlot *slot = scan->slot;
	EltLogRow  *row;
	Datum	   *values = slot->tts_values;

	slot_getsomeattrs(slot, ELT_RAW_RELATION);
	if (DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]) <= scan->after)
		return;

	row = palloc0(sizeof(EltLogRow));
	row->change_id = DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]);
	row->commit_lsn = DatumGetLSN(values[ELT_RAW_COMMIT_LSN - 1]);
	row->commit_ts = DatumGetTimestampTz(values[ELT_RAW_COMMIT_TS - 1]);
	row->key_hash = DatumGetInt32(values[ELT_RAW_KEY_HASH - 1]);
	row->schema_version = DatumGetInt32(values[ELT_RAW_SCHEMA_VERSION - 1]);
	row->op = DatumGetChar(values[ELT_RAW_OP - 1]);
	scan->block[scan->nblock++] = row;

	if (scan->topic != NULL)
	{
		text	   *relation = DatumGetTextPP(values[ELT_RAW_RELATION - 1]);

		if (VARSIZE_ANY_EXHDR(relation) != strlen(scan->topic) ||
			memcmp(VARDATA_ANY(relation), scan->topic, strlen(scan->topic)) != 0)
		{
			row->op = '\0';		/* of another topic: neither read nor counted */
			return;
		}
	}
	if (scan->walk != NULL)
		look_at_key(scan, row);
	if ((scan->lanes != NULL && scan->lanes[row->key_hash & (scan->nlanes - 1)]) ||
		(scan->wanted != NULL && scan->wanted(row, scan->wanted_arg)))
	{
		row->tuple = ExecCopySlotMinimalTuple(slot);
		ExecStoreMinimalTuple(row->tuple, scan->copy, false);
		hold_values(row, scan->copy);
	}
}

static void
look_at_key(LogScan *scan, EltLogRow *row)
{
	bool		isnull;
	Datum		key = slot_getattr(scan->slot, ELT_RAW_KEY, &isnull);

	row->fingerprint = isnull ? 0 : elt_log_key_fingerprint(key);
	row->partial = !slot_attisnull(scan->slot, ELT_RAW_UNCHANGED);
	row->matches = scan->walk->matches == NULL || (!isnull && scan->walk->matches(scan->walk->arg, key));
}

/*
 * Points a row's values into its tuple.  Values that are compressed or out of
 * line are fetched first, once for all who look at them later.
 */
static void
hold_values(EltLogRow *row, TupleTableSlot *slot)
{
	static const int columns[] = {ELT_RAW_AFTER, ELT_RAW_KEY, ELT_RAW_BEFORE, ELT_RAW_UNCHANGED};
	MinimalTuple stored = row->tuple;
	void	   *fetched[lengthof(columns)];
	int			nfetched = 0;

	slot_getallattrs(slot);
	for (int i = 0; i < lengthof(columns); i++)
	{
		int			at = columns[i] - 1;
		struct varlena *value = (struct varlena *) DatumGetPointer(slot->tts_values[at]);

		if (slot->tts_isnull[at] ||
			!(VARATT_IS_EXTERNAL(value) || VARATT_IS_COMPRESSED(value)) ||
			(columns[i] == ELT_RAW_BEFORE && !slot->tts_isnull[ELT_RAW_AFTER - 1]))
			continue;
		fetched[nfetched] = detoast_attr(value);
		slot->tts_values[at] = PointerGetDatum(fetched[nfetched++]);
	}
	if (nfetched > 0)
	{
		row->tuple = elt_form_minimal_tuple(slot->tts_tupleDescriptor, slot->tts_values, slot->tts_isnull);
		ExecStoreMinimalTuple(row->tuple, slot, false);
		slot_getallattrs(slot);
		pfree(stored);
		while (nfetched > 0)
			pfree(fetched[--nfetched]);
	}

	row->key = slot->tts_isnull[ELT_RAW_KEY - 1] ? 0 : slot->tts_values[ELT_RAW_KEY - 1];
	row->before = slot->tts_isnull[ELT_RAW_BEFORE - 1] ? 0 : slot->tts_values[ELT_RAW_BEFORE - 1];
	row->after = slot->tts_isnull[ELT_RAW_AFTER - 1] ? 0 : slot->tts_values[ELT_RAW_AFTER - 1];
	row->unchanged = slot->tts_isnull[ELT_RAW_UNCHANGED - 1] ? 0 : slot->tts_values[ELT_RAW_UNCHANGED - 1];
}

static int
compare_rows(const void *a, const void *b)
{
	int64		left = (*(EltLogRow *const *) a)->change_id;
	int64		right = (*(EltLogRow *const *) b)->change_id;

	return (left > right) - (left < right);
}

/* ---- leaves and blocks ---- */

/*
 * The leaves of a relation's log in order of change_id, NULL where it has no
 * log; locks the relation's partition.
 */
static Leaf *
list_leaves(Oid raw, int *nleaves)
{
	Relation	partition;
	PartitionDesc desc;
	PartitionBoundInfo bounds;
	Leaf	   *leaves;

	*nleaves = 0;
	partition = OidIsValid(raw) ? try_relation_open(raw, AccessShareLock) : NULL;
	if (partition == NULL)
		return NULL;

	desc = RelationGetPartitionDesc(partition, true);
	leaves = palloc(Max(desc->nparts, 1) * sizeof(Leaf));
	bounds = desc->boundinfo;
	for (int i = 0; desc->nparts > 0 && i < bounds->ndatums; i++)
	{
		/*
		 * in a range partitioned table, indexes[i] is the partition that ends
		 * at datums[i]
		 */
		if (bounds->indexes[i] < 0)
			continue;
		leaves[*nleaves].oid = desc->oids[bounds->indexes[i]];
		leaves[*nleaves].end = bounds->kind[i][0] == PARTITION_RANGE_DATUM_VALUE ?
			DatumGetInt64(bounds->datums[i][0]) : PG_INT64_MAX;
		(*nleaves)++;
	}
	relation_close(partition, NoLock);
	return leaves;
}

/* The block from where rows behind "after" are to be found. */
static BlockNumber
find_block(Relation leaf, int64 after)
{
	BlockNumber low = 0;
	BlockNumber end = RelationGetNumberOfBlocks(leaf);
	BlockNumber high = end;

	/*
	 * invariant: blocks from high on start behind "after"; the block low does
	 * not, or is 0
	 */
	while (high - low > 1)
	{
		BlockNumber middle = low + (high - low) / 2;
		BlockNumber probe = middle;
		int64		change_id = first_change_id(leaf, probe);

		while (change_id < 0 && ++probe < high)
			change_id = first_change_id(leaf, probe);	/* an empty block */
		if (change_id >= 0 && change_id <= after)
			low = probe;
		else
			high = middle;
	}
	return low;
}

/* The lowest change_id in a block, -1 where it holds none. */
static int64
first_change_id(Relation leaf, BlockNumber block)
{
	Buffer		buffer = ReadBuffer(leaf, block);
	Page		page;
	int64		lowest = -1;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	if (!PageIsNew(page))
	{
		for (OffsetNumber offset = FirstOffsetNumber; offset <= PageGetMaxOffsetNumber(page); offset++)
		{
			ItemId		item = PageGetItemId(page, offset);

			if (ItemIdIsNormal(item))
			{
				HeapTupleData tuple;
				int64		change_id;
				bool		isnull;

				tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
				tuple.t_len = ItemIdGetLength(item);
				tuple.t_tableOid = RelationGetRelid(leaf);
				ItemPointerSet(&tuple.t_self, block, offset);
				change_id = DatumGetInt64(heap_getattr(&tuple, ELT_RAW_CHANGE_ID, RelationGetDescr(leaf), &isnull));
				if (lowest < 0 || change_id < lowest)
					lowest = change_id;
			}
		}
	}
	UnlockReleaseBuffer(buffer);
	return lowest;
}
