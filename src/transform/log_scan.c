/*
 * log_scan.c
 *	  Reading raw staging: one relation's log, change by change.
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
 * While a table is copied its log has a horizon (elt.source_tables.horizon):
 * snapshot workers write behind it in no order, and the capture worker stages
 * what is to come after the copy.  Readers stop before it, all of them here.
 * It is read under the snapshot that the rows are read under, so whoever sees
 * it gone sees all that was written behind it.
 *
 * Locking: AccessShareLock on the relation's partition and on each leaf that
 * is read, kept until the end of the transaction, so that retention cannot
 * drop a leaf between the look at the partitions and the read.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "compat.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "storage/bufmgr.h"
#include "transform/log_scan.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static bool fill_block(EltLogScan *scan);
static bool next_tuple(EltLogScan *scan);
static void open_leaf(EltLogScan *scan);
static void close_leaf(EltLogScan *scan);
static void add_row(EltLogScan *scan);
static void look_at_key(EltLogScan *scan, EltLogRow *row);
static int	compare_rows(const void *a, const void *b);

static BlockNumber find_block(Relation leaf, int64 after);
static int64 first_change_id(Relation leaf, BlockNumber block);

EltLogScan *
elt_log_scan_begin(Oid raw, int64 after, const char *topic, const bool *lanes, int nlanes)
{
	EltLogScan *scan = palloc0(sizeof(EltLogScan));
	EltLogLeaf *leaves;
	int			nleaves;
	int			first = 0;

	scan->after = after;
	scan->topic = topic;
	scan->lanes = lanes;
	scan->nlanes = nlanes;
	scan->block = palloc(MaxHeapTuplesPerPage * sizeof(EltLogRow *));

	leaves = elt_log_leaves(raw, &nleaves);
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
EltLogRow *
elt_log_scan_next(EltLogScan *scan)
{
	while (scan->next >= scan->nblock)
	{
		if (!fill_block(scan))
			return NULL;
	}
	return scan->block[scan->next++];
}

void
elt_log_scan_end(EltLogScan *scan)
{
	if (scan->leaf != NULL)
		close_leaf(scan);
	if (scan->copy != NULL)
		ExecDropSingleTupleTableSlot(scan->copy);
}

/* Blocks from the position to the end of the log. */
BlockNumber
elt_log_scan_blocks(EltLogScan *scan)
{
	BlockNumber blocks = 0;

	for (int i = 0; i < scan->nleaves; i++)
	{
		Relation	leaf = table_open(scan->leaves[i].oid, AccessShareLock);

		blocks += elt_log_leaf_blocks(leaf, &scan->leaves[i]);
		if (i == 0)
			blocks -= find_block(leaf, scan->after);
		table_close(leaf, NoLock);
	}
	return blocks;
}

/* Reads the rows of one block, in order; false at the end of the log. */
static bool
fill_block(EltLogScan *scan)
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
next_tuple(EltLogScan *scan)
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
open_leaf(EltLogScan *scan)
{
	ItemPointerData first,
				last;

	EltLogLeaf *leaf = &scan->leaves[scan->next_leaf++];

	scan->leaf = table_open(leaf->oid, AccessShareLock);
	scan->slot = table_slot_create(scan->leaf, NULL);
	scan->end = leaf->end;
	ItemPointerSet(&first, find_block(scan->leaf, scan->after), 1);
	if (leaf->cut)
		ItemPointerSet(&last, find_block(scan->leaf, leaf->end - 1), MaxOffsetNumber);
	else
		ItemPointerSet(&last, MaxBlockNumber, MaxOffsetNumber);
	scan->scan = table_beginscan_tidrange(scan->leaf, GetActiveSnapshot(), &first, &last);
}

static void
close_leaf(EltLogScan *scan)
{
	table_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	table_close(scan->leaf, NoLock);
	scan->leaf = NULL;
	scan->pending = false;
}

/* Notes the slot's row, with its tuple where it is of a lane that is asked for. */
static void
add_row(EltLogScan *scan)
{
	TupleTableSlot *slot = scan->slot;
	EltLogRow  *row;
	Datum	   *values = slot->tts_values;

	slot_getsomeattrs(slot, ELT_RAW_RELATION);
	if (DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]) <= scan->after ||
		DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]) >= scan->end)
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
		elt_log_hold_values(row, scan->copy);
	}
}

static void
look_at_key(EltLogScan *scan, EltLogRow *row)
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
void
elt_log_hold_values(EltLogRow *row, TupleTableSlot *slot)
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

/* ---- leaves and blocks ---- */

/*
 * The leaves of a relation's log up to its horizon in order of change_id, NULL
 * where it has no log; locks the relation's partition.
 */
EltLogLeaf *
elt_log_leaves(Oid raw, int *nleaves)
{
	Relation	partition;
	PartitionDesc desc;
	PartitionBoundInfo bounds;
	EltLogLeaf *leaves;
	int64		horizon;

	*nleaves = 0;
	partition = OidIsValid(raw) ? try_relation_open(raw, AccessShareLock) : NULL;
	if (partition == NULL)
		return NULL;

	horizon = elt_log_horizon(raw);
	desc = RelationGetPartitionDesc(partition, true);
	leaves = palloc(Max(desc->nparts, 1) * sizeof(EltLogLeaf));
	bounds = desc->boundinfo;
	for (int i = 0; desc->nparts > 0 && i < bounds->ndatums; i++)
	{
		/*
		 * in a range partitioned table, indexes[i] is the partition that ends
		 * at datums[i], and begins at the datum before
		 */
		if (bounds->indexes[i] < 0)
			continue;
		if (i > 0 && bounds->kind[i - 1][0] == PARTITION_RANGE_DATUM_VALUE &&
			DatumGetInt64(bounds->datums[i - 1][0]) >= horizon)
			break;
		leaves[*nleaves].oid = desc->oids[bounds->indexes[i]];
		leaves[*nleaves].end = bounds->kind[i][0] == PARTITION_RANGE_DATUM_VALUE ?
			DatumGetInt64(bounds->datums[i][0]) : PG_INT64_MAX;
		leaves[*nleaves].cut = leaves[*nleaves].end > horizon;
		if (leaves[*nleaves].cut)
			leaves[*nleaves].end = horizon;
		(*nleaves)++;
	}
	relation_close(partition, NoLock);
	return leaves;
}

/*
 * The change_id that readers of a log stop before, under the active snapshot;
 * PG_INT64_MAX where no copy is made.
 */
int64
elt_log_horizon(Oid raw)
{
	Oid			schema = get_namespace_oid("elt", true);
	Oid			table_oid = get_relname_relid("source_tables", schema);
	Oid			index_oid = get_relname_relid("source_tables_raw", schema);
	int64		horizon = PG_INT64_MAX;
	Relation	table = OidIsValid(table_oid) ? try_relation_open(table_oid, AccessShareLock) : NULL;
	AttrNumber	raw_column;
	AttrNumber	horizon_column;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	if (table == NULL)
		return horizon;
	raw_column = get_attnum(table_oid, "raw");
	horizon_column = get_attnum(table_oid, "horizon");
	if (raw_column == InvalidAttrNumber || horizon_column == InvalidAttrNumber)
		elog(ERROR, "elt.source_tables lacks its columns");
	ScanKeyInit(&key, raw_column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(raw));
	scan = systable_beginscan(table, index_oid, OidIsValid(index_oid), GetActiveSnapshot(), 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, horizon_column, RelationGetDescr(table), &isnull);

		if (!isnull)
			horizon = Min(horizon, DatumGetInt64(value));
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	return horizon;
}

BlockNumber
elt_log_leaf_blocks(Relation relation, const EltLogLeaf *leaf)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(relation);

	return leaf->cut ? Min(blocks, find_block(relation, leaf->end - 1) + 1) : blocks;
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
