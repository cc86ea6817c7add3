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
	Datum		names;			/* text[]: large */
} Found;

/* Called for flagged rows with one key_hash, newest first; true ends the walk. */
typedef bool (*Visit) (Datum *values, bool *isnull, void *arg);

typedef struct KeySearch
{
	Jsonb	   *key;
	Found	   *found;
} KeySearch;

static bool find_pending(EltLarge *large, int32 key_hash, Jsonb *key, Found *found);
static bool walk_leaves(EltLarge *large, int32 key_hash, Visit visit, void *arg);
static bool walk_leaf(Relation leaf, Oid index, int32 key_hash, Visit visit, void *arg);
static bool is_key(Datum *values, bool *isnull, void *arg);
static bool is_truncate(Datum *values, bool *isnull, void *arg);
static bool find_kept(const EltSource *source, const EltRelation *relation,
					  int32 key_hash, Jsonb *key, Found *found);
static int64 last_truncate(EltLarge *large);
static void look_for_any(EltLarge *large);
static bool set_found(Datum *values, bool *isnull, Found *found);
static Datum same_columns(const EltSource *source, const EltRelation *relation, int version, int now);
static bool contains(Datum names, const EltColumn *column);
static void unpack(JsonbValue *value);

void
elt_large_init(EltLarge *large, Oid partition, MemoryContext context)
{
	memset(large, 0, sizeof(EltLarge));
	large->partition = partition;
	large->truncated_at = -1;
	large->context = context;
}

/* ---- filling ---- */

void
elt_large_fill(EltLarge *large, const EltSource *source, const EltRelation *relation,
			   int schema_version, EltRow *row, int32 key_hash, Jsonb *key)
{
	MemoryContext caller;
	Found		found = {0};
	KeySearch	search = {key, &found};
	Datum		same = 0;
	int			nlarge = 0;
	int		   *columns;

	if (key == NULL)
		return;
	MemoryContextReset(large->context);
	caller = MemoryContextSwitchTo(large->context);
	PushActiveSnapshot(GetTransactionSnapshot());

	if (!find_pending(large, key_hash, key, &found) &&
		!walk_leaves(large, key_hash, is_key, &search))
		(void) find_kept(source, relation, key_hash, key, &found);

	if (found.after == 0 || found.op == ELT_OP_DELETE || found.change_id < last_truncate(large))
	{
		PopActiveSnapshot();
		MemoryContextSwitchTo(caller);
		return;
	}
	if (found.schema_version != schema_version)
		same = same_columns(source, relation, found.schema_version, schema_version);

	row->staged = palloc(row->ncolumns * sizeof(JsonbValue));
	columns = palloc(row->ncolumns * sizeof(int));
	for (int i = 0, n = 0; i < row->ncolumns; i++)
	{
		const EltColumn *column = &relation->columns[i];

		if (n < row->nlarge && row->large[n] == i)
			columns[nlarge++] = row->large[n++];
		else if (row->fields[i] == ELT_FIELD_UNCHANGED && contains(found.names, column) &&
				 (found.schema_version == schema_version || (same != 0 && contains(same, column))) &&
				 getKeyJsonValueFromContainer(&DatumGetJsonbP(found.after)->root, column->name,
											  column->name_length, &row->staged[i]) != NULL)
		{
			unpack(&row->staged[i]);
			row->fields[i] = ELT_FIELD_STAGED;
			row->nunchanged--;
			columns[nlarge++] = i;
		}
	}
	memcpy(row->large, columns, nlarge * sizeof(int));
	row->nlarge = nlarge;
	PopActiveSnapshot();
	MemoryContextSwitchTo(caller);
}

static bool
contains(Datum names, const EltColumn *column)
{
	Datum	   *elements;
	int			n;
	bool		result = false;

	deconstruct_array(DatumGetArrayTypeP(names), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n && !result; i++)
		result = VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) == column->name_length &&
			memcmp(VARDATA_ANY(DatumGetPointer(elements[i])), column->name, column->name_length) == 0;
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
 * The columns that had the same type in an earlier version, as a text[].  None
 * where the name was another table's in between, or the table had another name:
 * what was staged here is of other rows then, or not the newest of these.
 */
static Datum
same_columns(const EltSource *source, const EltRelation *relation, int version, int now)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation->name),
	Int32GetDatum(version), Int32GetDatum(now)};
	Datum		names = 0;
	bool		isnull = true;
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT array_agg(c->>'name') FROM elt.schema_versions v, jsonb_array_elements(v.columns) c "
					"WHERE v.source_id = $1 AND v.relation = $2 AND v.version = $3 AND EXISTS "
					"(SELECT FROM elt.schema_versions w, jsonb_array_elements(w.columns) d "
					"WHERE w.source_id = $1 AND w.relation = $2 AND w.version = $4 "
					"AND d->>'name' = c->>'name' AND d->>'type' = c->>'type' AND d->'number' = c->'number') "
					"AND NOT EXISTS (SELECT FROM elt.schema_versions b WHERE b.source_id = $1 AND b.relation = $2 "
					"AND b.version > $3 AND b.version <= $4 "
					"AND (b.relid <> v.relid OR b.changes @> '[{\"change\": \"renamed relation\"}]'))",
					4, types, values, NULL) == 1)
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
	Relation	partition = table_open(large->partition, AccessShareLock);
	PartitionDesc desc = RelationGetPartitionDesc(partition, true);
	int			nleaves = desc->nparts;
	Oid		   *leaves = palloc(Max(nleaves, 1) * sizeof(Oid));
	bool		found = false;

	/* these come in the order of their bounds */
	memcpy(leaves, desc->oids, nleaves * sizeof(Oid));
	table_close(partition, AccessShareLock);

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
	bool		found = false;

	/* the first block is no row's */
	if (RelationGetNumberOfBlocks(index) > 1)
	{
		if (visit == NULL)
			found = true;
		else
		{
			Datum		values[ELT_RAW_NCOLUMNS];
			bool		isnull[ELT_RAW_NCOLUMNS];
			ScanKeyData equal;
			SysScanDesc scan;
			HeapTuple	tuple;

			ScanKeyInit(&equal, ELT_RAW_KEY_HASH, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(key_hash));
			scan = systable_beginscan_ordered(leaf, index, SnapshotSelf, 1, &equal);
			while (!found &&
				   HeapTupleIsValid(tuple = systable_getnext_ordered(scan, BackwardScanDirection)))
			{
				heap_deform_tuple(tuple, RelationGetDescr(leaf), values, isnull);
				found = visit(values, isnull, arg);
			}
			systable_endscan_ordered(scan);
		}
	}
	index_close(index, AccessShareLock);
	return found;
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
	found->names = PointerGetDatum(DatumGetArrayTypePCopy(values[ELT_RAW_LARGE - 1]));
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
find_kept(const EltSource *source, const EltRelation *relation,
		  int32 key_hash, Jsonb *key, Found *found)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, JSONBOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation->name),
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
