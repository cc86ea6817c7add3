/*
 * large.c
 *	  Large values that an update left alone, found again in raw staging.
 *
 * PostgreSQL stores a large value out of line (TOAST), and an update that does
 * not touch it does not write it again: WAL has its address only.  So that an
 * image is whole nevertheless, the value is taken from the newest earlier row
 * of the log that has it.
 *
 * That row can be found because it was flagged.  The output plugin knows of
 * each value whether it was stored out of line, and tells on the wire; a row
 * with such values names their columns in "large".  Each leaf has an index on
 * (key_hash, change_id) of its flagged rows only.  It is maintained here, row
 * by row after the rows were written in bulk: a stream without large values
 * pays for nothing.
 *
 * A row that was filled is flagged too.  So as long as a value stays out of
 * line every row of its key is flagged, and the newest flagged row knows: it
 * has the value, or "unchanged" says that there was none to be found.  It is
 * looked for among the rows that wait to be written, then in the leaves, from
 * the newest to the oldest, and at last in elt.large_values, where retention
 * keeps values of leaves that it drops.
 *
 * What ends the search: deletes of a relation with flagged rows are flagged
 * themselves (with no column), and so are truncates, whose key_hash is 0.
 * A value is not taken where its column had another type then.
 *
 * Copied rows do not tell how they were stored.  In a table that has anything
 * out of line, every value that can be is flagged: none is missed, some are
 * flagged for nothing.  That does no harm, because a value only gets out of
 * line by an update whose WAL has it.
 *
 * A rewrite moves values without WAL: VACUUM FULL, or an ALTER TABLE, after
 * toast_tuple_target was lowered, stores out of line what was inline, and so
 * in rows that are not flagged.  elt.relation_files has the change_id at which
 * the relation was first seen with the file that it has.  A flagged row from
 * before that is not trusted: rows of the key from between the two are looked
 * for.  They have no index until then.  Each leaf in question gets one, once,
 * when it is first needed; the leaf that is being written is ended before
 * (stage.c), so that the index is complete for good.  What retention kept is
 * not used in that case: an image that was not flagged may be gone.
 *
 * A rewrite may also change values.  elt.same_columns tells which columns
 * still are what they were: none of a table that took the place of another
 * one, and after a rewrite those only whose definition it did not touch.
 *
 * While a table is copied, the row with the value may not be there yet.  What
 * is not found then is noted, and looked for once more at the end of the copy
 * (copy.c).  History from before a copy is not used: why the copy was asked
 * for may be that it is wrong.
 *
 * Locking: ACCESS SHARE on a leaf while it is looked at, so that retention can
 * drop leaves at any time.  The capture worker reads with SnapshotSelf: what
 * it has written itself counts, and nobody else changes rows of the log.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "capture/large.h"
#include "capture/partition.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "nodes/execnodes.h"
#include "partitioning/partdesc.h"
#include "raw.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Rows that wait, by key_hash: the newest, and the ones before it. */
typedef struct PendingRow
{
	TupleTableSlot *slot;
	struct PendingRow *older;
} PendingRow;

typedef struct PendingKey
{
	int32		key_hash;		/* hash key */
	PendingRow *newest;
} PendingKey;

/* What is known of the newest flagged row of a key. */
typedef struct Found
{
	char		op;
	int64		change_id;
	int			schema_version;
	Datum		after;			/* 0: null */
	Datum		names;			/* text[]: large; 0: it has every column */
	Datum		same;			/* text[]: columns that are what they were; 0:
								 * all */
} Found;

typedef enum Outcome
{
	FOUND,
	NOT_FOUND,
	NOT_SEARCHABLE				/* see elt_large_fill */
} Outcome;

/* Called for flagged rows with one key_hash, newest first; true ends the walk. */
typedef bool (*Visit) (Datum *values, bool *isnull, void *arg);

typedef struct KeySearch
{
	Jsonb	   *key;
	Found	   *found;
} KeySearch;

static Outcome look_up(EltLarge *large, const EltSource *source, const char *relation,
					   int schema_version, int32 key_hash, Jsonb *key, Found *found);
static bool find_pending(EltLarge *large, int32 key_hash, Jsonb *key, Found *found);
static bool walk_leaves(EltLarge *large, int32 key_hash, Visit visit, void *arg);
static int	list_leaves(EltLarge *large, Oid **leaves);
static bool scan_leaf(Relation leaf, Oid index_oid, ScanKeyData *conditions, int n, Visit visit, void *arg);
static bool walk_leaf(Relation leaf, Oid index, int32 key_hash, Visit visit, void *arg);
static bool is_key(Datum *values, bool *isnull, void *arg);
static bool is_truncate(Datum *values, bool *isnull, void *arg);
static bool walk_unflagged(EltLarge *large, int64 from, int32 key_hash, KeySearch *search);
static bool find_kept(const EltSource *source, const char *relation,
					  int32 key_hash, Jsonb *key, Found *found);
static int64 last_truncate(EltLarge *large);
static void look_for_any(EltLarge *large);
static bool set_found(Datum *values, bool *isnull, Found *found);
static Datum same_columns(const EltSource *source, const char *relation, int version, int now);
static bool contains(Datum names, const char *name, int length);
static bool take_value(const Found *found, const char *name, int length, JsonbValue *value);
static void unpack(JsonbValue *value);

void
elt_large_init(EltLarge *large, MemoryContext context)
{
	memset(large, 0, sizeof(EltLarge));
	large->truncated_at = -1;
	large->context = context;
}

/* ---- filling ---- */

bool
elt_large_fill(EltLarge *large, const EltSource *source, const EltRelation *relation,
			   int schema_version, EltRow *row, int32 key_hash, Jsonb *key)
{
	MemoryContext caller;
	Found		found;
	Outcome		outcome;
	int			nlarge = 0;
	int		   *columns;

	if (key == NULL)
		return true;
	MemoryContextReset(large->context);
	caller = MemoryContextSwitchTo(large->context);
	outcome = look_up(large, source, relation->name, schema_version, key_hash, key, &found);
	if (outcome != FOUND)
	{
		MemoryContextSwitchTo(caller);
		return outcome == NOT_FOUND;
	}

	row->staged = palloc(row->ncolumns * sizeof(JsonbValue));
	columns = palloc(row->ncolumns * sizeof(int));
	for (int i = 0, n = 0; i < row->ncolumns; i++)
	{
		const EltColumn *column = &relation->columns[i];

		if (n < row->nlarge && row->large[n] == i)
			columns[nlarge++] = row->large[n++];
		else if (row->fields[i] == ELT_FIELD_UNCHANGED &&
				 take_value(&found, column->name, column->name_length, &row->staged[i]))
		{
			unpack(&row->staged[i]);
			row->fields[i] = ELT_FIELD_STAGED;
			row->nunchanged--;
			columns[nlarge++] = i;
		}
	}
	memcpy(row->large, columns, nlarge * sizeof(int));
	row->nlarge = nlarge;
	MemoryContextSwitchTo(caller);
	return true;
}

bool
elt_large_fill_staged(EltLarge *large, const EltSource *source, const char *relation,
					  int schema_version, int32 key_hash, Jsonb *key,
					  Jsonb **after, ArrayType **unchanged, ArrayType **names)
{
	MemoryContext caller = CurrentMemoryContext;
	JsonbParseState *state = NULL;
	ArrayBuildState *still = NULL;
	ArrayBuildState *stored = NULL;
	JsonbIterator *iterator;
	JsonbValue	part;
	Datum	   *elements;
	Found		found;
	Outcome		outcome;
	int			n;

	if (key == NULL || *after == NULL)
		return true;
	MemoryContextReset(large->context);
	MemoryContextSwitchTo(large->context);
	outcome = look_up(large, source, relation, schema_version, key_hash, key, &found);
	MemoryContextSwitchTo(caller);
	if (outcome != FOUND)
		return outcome == NOT_FOUND;

	if (*names != NULL)
	{
		deconstruct_array(*names, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
		for (int i = 0; i < n; i++)
			stored = accumArrayResult(stored, elements[i], false, TEXTOID, caller);
	}

	/* the image as it is, without its end; then what is missing */
	iterator = JsonbIteratorInit(&(*after)->root);
	for (JsonbIteratorToken token = JsonbIteratorNext(&iterator, &part, true); token != WJB_END_OBJECT;
		 token = JsonbIteratorNext(&iterator, &part, true))
	{
		pushJsonbValue(&state, token, token == WJB_BEGIN_OBJECT ? NULL : &part);
	}
	deconstruct_array(*unchanged, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		JsonbValue	name;
		JsonbValue	value;

		name.type = jbvString;
		name.val.string.val = VARDATA_ANY(DatumGetPointer(elements[i]));
		name.val.string.len = VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i]));
		if (take_value(&found, name.val.string.val, name.val.string.len, &value))
		{
			pushJsonbValue(&state, WJB_KEY, &name);
			pushJsonbValue(&state, WJB_VALUE, &value);
			stored = accumArrayResult(stored, elements[i], false, TEXTOID, caller);
		}
		else
			still = accumArrayResult(still, elements[i], false, TEXTOID, caller);
	}
	*after = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	*unchanged = still != NULL ? DatumGetArrayTypeP(makeArrayResult(still, caller)) : NULL;
	if (stored != NULL)
		*names = DatumGetArrayTypeP(makeArrayResult(stored, caller));
	return true;
}

/*
 * Finds the row of a key that knows its large values; what it gives lives in
 * the current memory context.
 */
static Outcome
look_up(EltLarge *large, const EltSource *source, const char *relation,
		int schema_version, int32 key_hash, Jsonb *key, Found *found)
{
	KeySearch	search = {key, found};
	bool		kept = false;
	int64		from;

	memset(found, 0, sizeof(Found));
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!find_pending(large, key_hash, key, found) &&
		!walk_leaves(large, key_hash, is_key, &search))
		kept = find_kept(source, relation, key_hash, key, found);

	/* the file is another one: an image that is not flagged may be newer */
	from = Max(Max(found->change_id, last_truncate(large)) + 1, large->usable_from);
	if (from < large->changed_at)
	{
		if (large->held || !large->searchable)
		{
			PopActiveSnapshot();
			return large->held ? NOT_FOUND : NOT_SEARCHABLE;
		}
		if (!walk_unflagged(large, from, key_hash, &search) && kept)
			found->after = 0;	/* such an image may have been dropped */
	}

	if (found->after != 0 &&
		(found->op == ELT_OP_DELETE || found->change_id < Max(last_truncate(large), large->usable_from)))
		found->after = 0;
	if (found->after != 0 && found->schema_version != schema_version)
	{
		found->same = same_columns(source, relation, found->schema_version, schema_version);
		if (found->same == 0)
			found->after = 0;
	}
	PopActiveSnapshot();
	return found->after != 0 ? FOUND : NOT_FOUND;
}

/* Takes a column's value from a row that was found, where it has it. */
static bool
take_value(const Found *found, const char *name, int length, JsonbValue *value)
{
	return (found->names == 0 || contains(found->names, name, length)) &&
		(found->same == 0 || contains(found->same, name, length)) &&
		getKeyJsonValueFromContainer(&DatumGetJsonbP(found->after)->root, name, length, value) != NULL;
}

static bool
contains(Datum names, const char *name, int length)
{
	Datum	   *elements;
	int			n;
	bool		result = false;

	deconstruct_array(DatumGetArrayTypeP(names), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n && !result; i++)
		result = VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) == length &&
			memcmp(VARDATA_ANY(DatumGetPointer(elements[i])), name, length) == 0;
	return result;
}

/* Turns a container as it is stored into the tree that is written anew. */
static void
unpack(JsonbValue *value)
{
	JsonbParseState *state = NULL;
	JsonbValue *result = NULL;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	part;

	if (value->type != jbvBinary)
		return;
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &part, false)) != WJB_DONE)
		result = pushJsonbValue(&state, token, token < WJB_BEGIN_ARRAY ? &part : NULL);
	*value = *result;
}

/*
 * The columns whose values in an earlier version still hold, as a text[].  None
 * where the name was another table's in between, or the table had another name:
 * what was staged here is of other rows then, or not the newest of these.
 */
static Datum
same_columns(const EltSource *source, const char *relation, int version, int now)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation),
	Int32GetDatum(version), Int32GetDatum(now)};
	Datum		names = 0;
	bool		isnull = true;
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT elt.same_columns($1, $2, $3, $4)", 4, types, values, NULL) == 1)
		names = elt_spi_datum(&spi, 0, 1, &isnull);
	elt_spi_end(&spi);
	return isnull ? 0 : names;
}

/* ---- rows that wait to be written ---- */

void
elt_large_wait(EltLarge *large, TupleTableSlot *slot, MemoryContext context)
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	PendingRow *row = palloc(sizeof(PendingRow));
	int32		key_hash = DatumGetInt32(slot->tts_values[ELT_RAW_KEY_HASH - 1]);
	PendingKey *entry;
	bool		found;

	if (large->pending == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(int32);
		ctl.entrysize = sizeof(PendingKey);
		ctl.hcxt = context;
		large->pending = hash_create("elt large values", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(large->pending, &key_hash, HASH_ENTER, &found);
	row->slot = slot;
	row->older = found ? entry->newest : NULL;
	entry->newest = row;
	MemoryContextSwitchTo(caller);

	large->known = large->present = true;
	if (DatumGetChar(slot->tts_values[ELT_RAW_OP - 1]) == ELT_OP_TRUNCATE)
		large->truncated_at = DatumGetInt64(slot->tts_values[ELT_RAW_CHANGE_ID - 1]);
}

static bool
find_pending(EltLarge *large, int32 key_hash, Jsonb *key, Found *found)
{
	KeySearch	search = {key, found};
	PendingKey *entry = large->pending != NULL ?
	hash_search(large->pending, &key_hash, HASH_FIND, NULL) : NULL;

	for (PendingRow *row = entry != NULL ? entry->newest : NULL; row != NULL; row = row->older)
	{
		if (is_key(row->slot->tts_values, row->slot->tts_isnull, &search))
			return true;
	}
	return false;
}

/* ---- flags ---- */

ArrayType *
elt_large_flag(EltLarge *large, char op, const EltRelation *relation, const EltRow *row)
{
	if (row != NULL)
		return row->nlarge > 0 || row->nunchanged > 0 ?
			elt_column_names(relation, row->large, row->nlarge) : NULL;

	if (op == ELT_OP_DELETE && !large->known)
		look_for_any(large);
	return op == ELT_OP_TRUNCATE || (op == ELT_OP_DELETE && large->present) ?
		construct_empty_array(TEXTOID) : NULL;
}

void
elt_large_written(EltLarge *large, Relation leaf, TupleTableSlot **slots, int n)
{
	Relation	index;
	IndexInfo  *info;

	if (large->pending == NULL)
		return;
	large->pending = NULL;

	index = index_open(elt_partition_large_index(leaf), RowExclusiveLock);
	info = BuildIndexInfo(index);
	for (int i = 0; i < n; i++)
	{
		Datum		values[2];
		bool		isnull[2] = {false, false};

		if (slots[i]->tts_isnull[ELT_RAW_LARGE - 1])
			continue;
		values[0] = slots[i]->tts_values[ELT_RAW_KEY_HASH - 1];
		values[1] = slots[i]->tts_values[ELT_RAW_CHANGE_ID - 1];
		(void) index_insert(index, values, isnull, &slots[i]->tts_tid, leaf, UNIQUE_CHECK_NO, false, info);
	}
	index_close(index, NoLock);
}

/* ---- the leaves ---- */

/*
 * Goes through flagged rows, the newest first, until one is what is looked
 * for; leaves without any are passed by.  With visit NULL it ends at the first
 * leaf that has some.
 */
static bool
walk_leaves(EltLarge *large, int32 key_hash, Visit visit, void *arg)
{
	Oid		   *leaves;
	int			nleaves = list_leaves(large, &leaves);
	bool		found = false;

	for (int i = nleaves - 1; i >= 0 && !found; i--)
	{
		Relation	leaf = try_table_open(leaves[i], AccessShareLock);
		Oid			index = leaf != NULL ? elt_partition_large_index(leaf) : InvalidOid;

		if (OidIsValid(index))
			found = walk_leaf(leaf, index, key_hash, visit, arg);
		if (leaf != NULL)
			table_close(leaf, AccessShareLock);
	}
	return found;
}

static bool
walk_leaf(Relation leaf, Oid index_oid, int32 key_hash, Visit visit, void *arg)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	ScanKeyData equal;
	bool		any = RelationGetNumberOfBlocks(index) > 1; /* the first block is no
															 * row's */

	index_close(index, AccessShareLock);
	if (!any || visit == NULL)
		return any;
	ScanKeyInit(&equal, ELT_RAW_KEY_HASH, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(key_hash));
	return scan_leaf(leaf, index_oid, &equal, 1, visit, arg);
}

/* Goes through the rows of a leaf that an index has, backward. */
static bool
scan_leaf(Relation leaf, Oid index_oid, ScanKeyData *conditions, int n, Visit visit, void *arg)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	Datum		values[ELT_RAW_NCOLUMNS];
	bool		isnull[ELT_RAW_NCOLUMNS];
	SysScanDesc scan = systable_beginscan_ordered(leaf, index, SnapshotSelf, n, conditions);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext_ordered(scan, BackwardScanDirection)))
	{
		heap_deform_tuple(tuple, RelationGetDescr(leaf), values, isnull);
		found = visit(values, isnull, arg);
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	return found;
}

/*
 * Goes through the rows that are not flagged from a change_id to changed_at,
 * the newest first, to the first of the key.
 */
static bool
walk_unflagged(EltLarge *large, int64 from, int32 key_hash, KeySearch *search)
{
	Oid		   *leaves;
	int			nleaves = list_leaves(large, &leaves);
	bool		found = false;

	for (int i = nleaves - 1; i >= 0 && !found; i--)
	{
		Relation	leaf = try_table_open(leaves[i], AccessShareLock);

		if (leaf == NULL)
			continue;
		if (elt_partition_overlaps(leaf, from, large->changed_at))
		{
			ScanKeyData conditions[3];
			Oid			index = elt_partition_unflagged_index(leaf);

			if (!OidIsValid(index))
			{
				/* not while it is open here */
				char	   *name = pstrdup(RelationGetRelationName(leaf));

				table_close(leaf, NoLock);
				index = elt_partition_index_unflagged(name);
				leaf = table_open(leaves[i], AccessShareLock);
				if (large->alive != NULL)
					large->alive();
			}
			ScanKeyInit(&conditions[0], ELT_RAW_KEY_HASH, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(key_hash));
			ScanKeyInit(&conditions[1], ELT_RAW_CHANGE_ID, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from));
			ScanKeyInit(&conditions[2], ELT_RAW_CHANGE_ID, BTLessStrategyNumber, F_INT8LT,
						Int64GetDatum(large->changed_at));
			found = scan_leaf(leaf, index, conditions, lengthof(conditions), is_key, search);
		}
		table_close(leaf, AccessShareLock);
	}
	return found;
}

/* The log's leaves, in the order of their bounds. */
static int
list_leaves(EltLarge *large, Oid **leaves)
{
	Relation	partition = table_open(large->partition, AccessShareLock);
	PartitionDesc desc = RelationGetPartitionDesc(partition, true);
	int			n = desc->nparts;

	*leaves = palloc(Max(n, 1) * sizeof(Oid));
	memcpy(*leaves, desc->oids, n * sizeof(Oid));
	table_close(partition, AccessShareLock);
	return n;
}

/* Visit: of the key in question. */
static bool
is_key(Datum *values, bool *isnull, void *arg)
{
	KeySearch  *search = arg;
	Jsonb	   *key;

	if (isnull[ELT_RAW_KEY - 1] || DatumGetChar(values[ELT_RAW_OP - 1]) == ELT_OP_TRUNCATE)
		return false;
	key = DatumGetJsonbP(values[ELT_RAW_KEY - 1]);
	if (compareJsonbContainers(&key->root, &search->key->root) != 0)
		return false;
	return set_found(values, isnull, search->found);
}

/* Visit: a truncate; tells its change_id. */
static bool
is_truncate(Datum *values, bool *isnull, void *arg)
{
	if (DatumGetChar(values[ELT_RAW_OP - 1]) != ELT_OP_TRUNCATE)
		return false;
	*(int64 *) arg = DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]);
	return true;
}

/* Copies what the row's page may not hold for long. */
static bool
set_found(Datum *values, bool *isnull, Found *found)
{
	found->op = DatumGetChar(values[ELT_RAW_OP - 1]);
	found->change_id = DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]);
	found->schema_version = DatumGetInt32(values[ELT_RAW_SCHEMA_VERSION - 1]);
	found->after = isnull[ELT_RAW_AFTER - 1] ? 0 : JsonbPGetDatum(DatumGetJsonbPCopy(values[ELT_RAW_AFTER - 1]));
	found->names = isnull[ELT_RAW_LARGE - 1] ? 0 : PointerGetDatum(DatumGetArrayTypePCopy(values[ELT_RAW_LARGE - 1]));
	return true;
}

static int64
last_truncate(EltLarge *large)
{
	if (large->truncated_at < 0)
	{
		int64		change_id = 0;

		(void) walk_leaves(large, 0, is_truncate, &change_id);
		large->truncated_at = change_id;
	}
	return large->truncated_at;
}

static void
look_for_any(EltLarge *large)
{
	MemoryContext caller = MemoryContextSwitchTo(large->context);

	large->present = walk_leaves(large, 0, NULL, NULL);
	large->known = true;
	MemoryContextSwitchTo(caller);
}

/* ---- what retention has kept ---- */

static bool
find_kept(const EltSource *source, const char *relation,
		  int32 key_hash, Jsonb *key, Found *found)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, JSONBOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation),
	Int32GetDatum(key_hash), JsonbPGetDatum(key)};
	bool		isnull;
	bool		result;
	EltSpi		spi;

	elt_spi_begin(&spi);
	result = elt_spi_run("SELECT v.op, v.change_id, v.schema_version, v.columns, ARRAY(SELECT jsonb_object_keys(v.columns)) "
						 "FROM elt.large_values v JOIN elt.source_tables t USING (table_id) "
						 "WHERE t.source_id = $1 AND t.relation = $2 AND v.key_hash = $3 AND v.key = $4 "
						 "ORDER BY v.change_id DESC LIMIT 1",
						 4, types, values, NULL) == 1;
	if (result)
	{
		found->op = DatumGetChar(elt_spi_datum(&spi, 0, 1, &isnull));
		found->change_id = elt_spi_int64(0, 2);
		found->schema_version = DatumGetInt32(elt_spi_datum(&spi, 0, 3, &isnull));
		found->after = elt_spi_datum(&spi, 0, 4, &isnull);
		found->names = elt_spi_datum(&spi, 0, 5, &isnull);
	}
	elt_spi_end(&spi);
	return result;
}
