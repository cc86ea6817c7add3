/*
 * quarantine.c
 *	  Changes that could not be applied, and those that wait behind them.
 *
 * A row of elt.quarantine_records holds the original record with all facts of
 * the error (failure.c writes it); a row of elt.parked only names a change: its
 * record is in raw staging.  Both are written in the transaction that moves
 * the checkpoint, so a change is never applied and quarantined, nor neither.
 *
 * As long as a record is open or waiting it has a row in
 * elt.quarantine_unresolved, afterwards one in elt.quarantine_resolved.  The
 * move costs a deletion and an append of narrow rows; the record, which is
 * wide, is not written anew.
 *
 * A key is its hash together with its jsonb form, byte by byte.  Rows of
 * tables without a key are the same where their hash, which is of the whole
 * row then, is the same.
 */
#include "postgres.h"

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/stats.h"
#include "transform/quarantine.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

typedef struct BlockedEntry
{
	int32		key_hash;		/* hash key */
	List	   *rows;			/* of EltLogRow: only the key is set */
} BlockedEntry;

struct EltBlockedKeys
{
	HTAB	   *table;
	MemoryContext context;
};

static BlockedEntry *entry_of(EltBlockedKeys *blocked, int32 key_hash);
static int	compare_ids(const void *a, const void *b);
static Datum bigint_array(EltLogRow **rows, int nrows);
static Datum quarantine_id_array(EltLogRow **rows, int nrows);
static Datum place_array(EltLogRow **rows, int nrows);
static Datum key_hash_array(EltLogRow **rows, int nrows);
static Datum op_array(EltLogRow **rows, int nrows);
static Datum key_array(EltLogRow **rows, int nrows);
static Datum text_or_null(const char *value, char *null);

EltBlockedKeys *
elt_blocked_keys_create(void)
{
	EltBlockedKeys *blocked = palloc(sizeof(EltBlockedKeys));
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(BlockedEntry);
	ctl.hcxt = CurrentMemoryContext;
	blocked->context = CurrentMemoryContext;
	blocked->table = hash_create("elt blocked keys", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return blocked;
}

/*
 * Adds the keys among those of the rows that have an unresolved change.  Mostly
 * the pipeline has few of them: then they are all taken, which costs less than
 * to ask for each of the rows.
 */
void
elt_blocked_keys_load(EltBlockedKeys *blocked, int64 pipeline_id, EltLogRow **rows, int nrows)
{
	int			few = Max(nrows / 4, 100);
	Oid			types[] = {INT8OID, INT4OID};
	Oid			hash_types[] = {INT8OID, INT4ARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int32GetDatum(few)};
	uint64		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_use_indexes();
	found = elt_spi_run("SELECT key_hash, key FROM elt.quarantine_unresolved WHERE pipeline_id = $1 "
						"UNION ALL SELECT key_hash, key FROM elt.parked WHERE pipeline_id = $1 LIMIT $2",
						2, types, values, NULL);
	if (found == few)
	{
		values[1] = key_hash_array(rows, nrows);
		found = elt_spi_run("SELECT k.* FROM (SELECT DISTINCT unnest($2)) AS a (key_hash) CROSS JOIN LATERAL ("
							"SELECT u.key_hash, u.key FROM elt.quarantine_unresolved u WHERE u.pipeline_id = $1 AND u.key_hash = a.key_hash "
							"UNION SELECT p.key_hash, p.key FROM elt.parked p WHERE p.pipeline_id = $1 AND p.key_hash = a.key_hash) AS k",
							2, hash_types, values, NULL);
	}
	for (uint64 i = 0; i < found; i++)
	{
		EltLogRow	row = {0};
		bool		isnull;

		row.key_hash = (int32) elt_spi_int64(i, 1);
		row.key = elt_spi_datum(&spi, i, 2, &isnull);
		if (!elt_blocked_keys_contain(blocked, &row))
			elt_blocked_keys_add(blocked, &row);
	}
	elt_spi_end(&spi);
}

/* The row's key must live as long as the set. */
void
elt_blocked_keys_add(EltBlockedKeys *blocked, const EltLogRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(blocked->context);
	BlockedEntry *entry = entry_of(blocked, row->key_hash);
	EltLogRow  *copy = palloc0(sizeof(EltLogRow));

	copy->key_hash = row->key_hash;
	copy->key = row->key;
	entry->rows = lappend(entry->rows, copy);
	MemoryContextSwitchTo(old);
}

bool
elt_blocked_keys_none(const EltBlockedKeys *blocked)
{
	return hash_get_num_entries(blocked->table) == 0;
}

bool
elt_blocked_keys_contain(const EltBlockedKeys *blocked, const EltLogRow *row)
{
	BlockedEntry *entry;
	ListCell   *lc;

	if (elt_blocked_keys_none(blocked))
		return false;
	entry = hash_search(blocked->table, &row->key_hash, HASH_FIND, NULL);
	if (entry == NULL)
		return false;
	foreach(lc, entry->rows)
	{
		if (elt_log_same_key(lfirst(lc), row))
			return true;
	}
	return false;
}

static BlockedEntry *
entry_of(EltBlockedKeys *blocked, int32 key_hash)
{
	bool		found;
	BlockedEntry *entry = hash_search(blocked->table, &key_hash, HASH_ENTER, &found);

	if (!found)
		entry->rows = NIL;
	return entry;
}

bool
elt_log_same_key(const EltLogRow *a, const EltLogRow *b)
{
	struct varlena *left = (struct varlena *) DatumGetPointer(a->key);
	struct varlena *right = (struct varlena *) DatumGetPointer(b->key);

	if (a->key_hash != b->key_hash || (left == NULL) != (right == NULL))
		return false;
	return left == NULL ||
		(VARSIZE_ANY_EXHDR(left) == VARSIZE_ANY_EXHDR(right) &&
		 memcmp(VARDATA_ANY(left), VARDATA_ANY(right), VARSIZE_ANY_EXHDR(left)) == 0);
}

int64 *
elt_quarantine_unresolved(int64 pipeline_id, EltLogRow **rows, int nrows, int *count)
{
	Oid			types[] = {INT8OID, INT4ARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), key_hash_array(rows, nrows)};
	int64	   *change_ids;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_use_indexes();
	*count = (int) elt_spi_run("SELECT u.change_id FROM (SELECT DISTINCT unnest($2)) AS a (key_hash) CROSS JOIN LATERAL ("
							   "SELECT u.change_id FROM elt.quarantine_unresolved u "
							   "WHERE u.pipeline_id = $1 AND u.key_hash = a.key_hash OFFSET 0) AS u", 2, types, values, NULL);
	change_ids = MemoryContextAlloc(spi.caller_context, Max(*count, 1) * sizeof(int64));
	for (int i = 0; i < *count; i++)
		change_ids[i] = elt_spi_int64(i, 1);
	elt_spi_end(&spi);
	return change_ids;
}

/* ---- writes ---- */

/* A hint to the workers, who look for themselves: no harm if this is rolled back. */
void
elt_quarantine_note_retry(int64 pipeline_id, TimestampTz retry_at)
{
	TimestampTz noted = elt_stats_retry_at(pipeline_id);

	retry_at = elt_clock_of(retry_at);
	if (retry_at != 0 && (noted == 0 || retry_at < noted))
		elt_stats_set_retry_at(pipeline_id, retry_at);
}

void
elt_quarantine_park(const EltPipeline *pipeline, EltLogRow **rows, int nrows)
{
	Oid			types[] = {INT8OID, INT8ARRAYOID, INT4ARRAYOID, JSONBARRAYOID, CHARARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), bigint_array(rows, nrows),
	key_hash_array(rows, nrows), key_array(rows, nrows), op_array(rows, nrows)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.parked (pipeline_id, change_id, key_hash, key, op) "
				"SELECT $1, * FROM unnest($2, $3, $4, $5)", 5, types, values, NULL);
	elt_spi_end(&spi);
}

int
elt_quarantine_unpark(const EltPipeline *pipeline, EltLogRow **rows, int nrows, int64 **change_ids)
{
	Oid			types[] = {INT8OID, INT4ARRAYOID, JSONBARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), (Datum) 0, (Datum) 0};
	int			n;
	EltSpi		spi;

	*change_ids = NULL;
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT FROM elt.parked WHERE pipeline_id = $1 LIMIT 1", 1, types, values, NULL) == 0)
	{
		elt_spi_end(&spi);
		return 0;
	}
	values[1] = key_hash_array(rows, nrows);
	values[2] = key_array(rows, nrows);
	n = (int) elt_spi_run("DELETE FROM elt.parked k USING (SELECT DISTINCT * FROM unnest($2, $3)) AS a (key_hash, key) "
						  "WHERE k.pipeline_id = $1 AND k.key_hash = a.key_hash AND k.key IS NOT DISTINCT FROM a.key "
						  "RETURNING k.change_id", 3, types, values, NULL);
	*change_ids = MemoryContextAllocHuge(spi.caller_context, Max(n, 1) * sizeof(int64));
	for (int i = 0; i < n; i++)
		(*change_ids)[i] = elt_spi_int64(i, 1);
	elt_spi_end(&spi);
	qsort(*change_ids, n, sizeof(int64), compare_ids);
	return n;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

int64
elt_quarantine_resolve(EltLogRow **rows, int nrows, const char *status, const char *by, const char *note)
{
	Oid			types[] = {INT8ARRAYOID, TEXTOID, TEXTOID, TEXTOID, TIDARRAYOID};
	char		nulls[] = "     ";
	Datum		values[lengthof(types)];
	int64		resolved;
	EltSpi		spi;

	values[0] = quarantine_id_array(rows, nrows);
	values[1] = CStringGetTextDatum(status);
	values[2] = CStringGetTextDatum(by);
	values[3] = text_or_null(note, &nulls[3]);
	values[4] = place_array(rows, nrows);

	/*
	 * no place is taken by another row while the snapshot is held that it was
	 * found under
	 */
	elt_spi_begin(&spi);
	elt_spi_use_indexes();
	resolved = elt_spi_run("WITH gone AS (DELETE FROM elt.quarantine_unresolved WHERE ctid = ANY ($5) "
						   "RETURNING quarantine_id, pipeline_id, change_id) "
						   "INSERT INTO elt.quarantine_resolved (quarantine_id, pipeline_id, change_id, resolved_at, status, resolved_by, note) "
						   "SELECT quarantine_id, pipeline_id, change_id, now(), $2, $3, $4 FROM gone", lengthof(types), types, values, nulls);

	/*
	 * a row that was updated meanwhile, as the breaker's holding back does,
	 * is somewhere else
	 */
	if (resolved < nrows)
		resolved += elt_spi_run("WITH gone AS (DELETE FROM elt.quarantine_unresolved WHERE quarantine_id = ANY ($1) "
								"RETURNING quarantine_id, pipeline_id, change_id) "
								"INSERT INTO elt.quarantine_resolved (quarantine_id, pipeline_id, change_id, resolved_at, status, resolved_by, note) "
								"SELECT quarantine_id, pipeline_id, change_id, now(), $2, $3, $4 FROM gone", 4, types, values, nulls);
	elt_spi_end(&spi);
	return resolved;
}

int64
elt_quarantine_supersede(const EltPipeline *pipeline, EltLogRow **rows, int nrows)
{
	Oid			types[] = {INT8OID, INT8ARRAYOID, INT4ARRAYOID, JSONBARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), bigint_array(rows, nrows),
	key_hash_array(rows, nrows), key_array(rows, nrows)};
	int64		superseded;
	EltSpi		spi;

	elt_spi_begin(&spi);
	superseded = elt_spi_run("WITH gone AS (DELETE FROM elt.quarantine_unresolved u USING unnest($2, $3, $4) AS a (change_id, key_hash, key) "
							 "WHERE u.pipeline_id = $1 AND u.key_hash = a.key_hash AND u.key = a.key AND u.change_id < a.change_id "
							 "RETURNING u.quarantine_id, u.pipeline_id, u.change_id, a.change_id AS newer) "
							 "INSERT INTO elt.quarantine_resolved (quarantine_id, pipeline_id, change_id, resolved_at, status, resolved_by, note) "
							 "SELECT quarantine_id, pipeline_id, change_id, now(), 'superseded', 'elt', 'superseded by change ' || newer FROM gone",
							 4, types, values, NULL);
	elt_spi_end(&spi);
	return superseded;
}

int64
elt_quarantine_supersede_before(const EltPipeline *pipeline, int64 change_id)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), Int64GetDatum(change_id)};
	int64		superseded;
	EltSpi		spi;

	elt_spi_begin(&spi);
	superseded = elt_spi_run("WITH gone AS (DELETE FROM elt.quarantine_unresolved WHERE pipeline_id = $1 AND change_id < $2 "
							 "RETURNING quarantine_id, change_id) "
							 "INSERT INTO elt.quarantine_resolved (quarantine_id, pipeline_id, change_id, resolved_at, status, resolved_by, note) "
							 "SELECT quarantine_id, $1, change_id, now(), 'superseded', 'elt', 'superseded by truncate, change ' || $2 FROM gone",
							 2, types, values, NULL);
	superseded += elt_spi_run("DELETE FROM elt.parked WHERE pipeline_id = $1 AND change_id < $2",
							  2, types, values, NULL);
	elt_spi_end(&spi);
	return superseded;
}

static Datum
bigint_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = Int64GetDatum(rows[i]->change_id);
	return PointerGetDatum(construct_array(datums, nrows, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum
quarantine_id_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = Int64GetDatum(rows[i]->quarantine_id);
	return PointerGetDatum(construct_array(datums, nrows, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum
place_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = PointerGetDatum(&rows[i]->place);
	return PointerGetDatum(construct_array(datums, nrows, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
}

static Datum
key_hash_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = Int32GetDatum(rows[i]->key_hash);
	return PointerGetDatum(construct_array(datums, nrows, INT4OID, 4, true, TYPALIGN_INT));
}

static Datum
op_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = CharGetDatum(rows[i]->op);
	return PointerGetDatum(construct_array(datums, nrows, CHAROID, 1, true, TYPALIGN_CHAR));
}

static Datum
key_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));
	bool	   *nulls = palloc(nrows * sizeof(bool));
	int			lower = 1;

	for (int i = 0; i < nrows; i++)
	{
		datums[i] = rows[i]->key;
		nulls[i] = (rows[i]->key == 0);
	}
	return PointerGetDatum(construct_md_array(datums, nulls, 1, &nrows, &lower, JSONBOID, -1, false, TYPALIGN_INT));
}

static Datum
text_or_null(const char *value, char *null)
{
	*null = value ? ' ' : 'n';
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}
