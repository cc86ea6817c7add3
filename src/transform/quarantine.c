/*
 * quarantine.c
 *	  Changes that could not be applied, and those that wait behind them.
 *
 * A row of elt.quarantine holds the original record with all facts of the
 * error, a row of elt.parked only names a change: its record is in raw
 * staging.  Both are written in the transaction that moves the checkpoint, so
 * a change is never applied and quarantined, nor neither.
 *
 * A key is its hash together with its jsonb form, byte by byte.  Rows of
 * tables without a key are the same where their hash, which is of the whole
 * row then, is the same.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "common/md5.h"
#include "transform/quarantine.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

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
static Datum bigint_array(EltLogRow **rows, int nrows);
static Datum key_hash_array(EltLogRow **rows, int nrows);
static Datum op_array(EltLogRow **rows, int nrows);
static Datum key_array(EltLogRow **rows, int nrows);
static char *fingerprint_of(const ErrorData *error, const char *step);
static void append_blanked(StringInfo out, const char *message);
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

/* Adds the keys among those of the rows that have an unresolved change. */
void
elt_blocked_keys_load(EltBlockedKeys *blocked, int64 pipeline_id, EltLogRow **rows, int nrows)
{
	Oid			types[] = {INT8OID, INT4ARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), key_hash_array(rows, nrows)};
	uint64		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	found = elt_spi_run("SELECT key_hash, key FROM elt.quarantine WHERE pipeline_id = $1 "
						"AND status IN ('open', 'waiting') AND key_hash = ANY ($2) "
						"UNION SELECT key_hash, key FROM elt.parked WHERE pipeline_id = $1 AND key_hash = ANY ($2)",
						2, types, values, NULL);
	for (uint64 i = 0; i < found; i++)
	{
		EltLogRow	row = {0};
		bool		isnull;

		row.key_hash = (int32) elt_spi_int64(i, 1);
		row.key = elt_spi_datum(&spi, i, 2, &isnull);
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
elt_blocked_keys_contain(const EltBlockedKeys *blocked, const EltLogRow *row)
{
	BlockedEntry *entry = hash_search(blocked->table, &row->key_hash, HASH_FIND, NULL);
	ListCell   *lc;

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
	*count = (int) elt_spi_run("SELECT change_id FROM elt.quarantine WHERE pipeline_id = $1 "
							   "AND status IN ('open', 'waiting') AND key_hash = ANY ($2)", 2, types, values, NULL);
	change_ids = MemoryContextAlloc(spi.caller_context, Max(*count, 1) * sizeof(int64));
	for (int i = 0; i < *count; i++)
		change_ids[i] = elt_spi_int64(i, 1);
	elt_spi_end(&spi);
	return change_ids;
}

/* ---- writes ---- */

char *
elt_quarantine_add(const EltPipeline *pipeline, const EltLogRow *row,
				   const ErrorData *error, const char *error_class, const char *step)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, TEXTOID, INT8OID, CHAROID, JSONBOID, INT4OID,
		JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	char	   *fingerprint = fingerprint_of(error, step);
	Datum		record = row->after ? row->after : row->before ? row->before : row->key;
	EltSpi		spi;

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[0] = Int64GetDatum(pipeline->pipeline_id);
	values[1] = CStringGetTextDatum(pipeline->name);
	values[2] = Int32GetDatum(pipeline->version);
	values[3] = CStringGetTextDatum(pipeline->source);
	values[4] = Int64GetDatum(row->change_id);
	values[5] = CharGetDatum(row->op);
	values[6] = row->key;
	nulls[6] = row->key ? ' ' : 'n';
	values[7] = Int32GetDatum(row->key_hash);
	values[8] = record;
	nulls[8] = record ? ' ' : 'n';
	values[9] = CStringGetTextDatum(step);
	values[10] = CStringGetTextDatum(error_class);
	values[11] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[12] = CStringGetTextDatum(error->message ? error->message : "");
	values[13] = text_or_null(error->detail, &nulls[13]);
	values[14] = text_or_null(error->hint, &nulls[14]);
	values[15] = text_or_null(error->context, &nulls[15]);
	values[16] = text_or_null(error->schema_name, &nulls[16]);
	values[17] = text_or_null(error->table_name, &nulls[17]);
	values[18] = text_or_null(error->column_name, &nulls[18]);
	values[19] = text_or_null(error->constraint_name, &nulls[19]);
	values[20] = CStringGetTextDatum(fingerprint);

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.quarantine (pipeline_id, pipeline, version, source, change_id, op, key, key_hash, "
				"record, step, error_class, sqlstate, message, detail, hint, context, schema_name, table_name, "
				"column_name, constraint_name, fingerprint, status, next_retry_at) "
				"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, "
				"CASE $11 WHEN 'dependency' THEN 'waiting' ELSE 'open' END, "
				"CASE $11 WHEN 'dependency' THEN now() + interval '5 s' END)",
				lengthof(types), types, values, nulls);
	elt_spi_end(&spi);
	return fingerprint;
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

int64
elt_quarantine_supersede(const EltPipeline *pipeline, EltLogRow **rows, int nrows)
{
	Oid			types[] = {INT8OID, INT8ARRAYOID, INT4ARRAYOID, JSONBARRAYOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), bigint_array(rows, nrows),
	key_hash_array(rows, nrows), key_array(rows, nrows)};
	int64		superseded;
	EltSpi		spi;

	elt_spi_begin(&spi);
	superseded = elt_spi_run("UPDATE elt.quarantine q SET status = 'superseded', resolved_at = now(), resolved_by = 'elt', "
							 "note = 'superseded by change ' || a.change_id "
							 "FROM unnest($2, $3, $4) AS a (change_id, key_hash, key) "
							 "WHERE q.pipeline_id = $1 AND q.status IN ('open', 'waiting') AND q.key_hash = a.key_hash "
							 "AND q.key = a.key AND q.change_id < a.change_id", 4, types, values, NULL);
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
	superseded = elt_spi_run("UPDATE elt.quarantine SET status = 'superseded', resolved_at = now(), resolved_by = 'elt', "
							 "note = 'superseded by truncate, change ' || $2 "
							 "WHERE pipeline_id = $1 AND status IN ('open', 'waiting') AND change_id < $2",
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

/*
 * Same error, other literals: same fingerprint.  What is in the message
 * between quotes or parentheses, and every number, is blanked; the names that
 * the error carries in fields of their own are not.
 */
static char *
fingerprint_of(const ErrorData *error, const char *step)
{
	StringInfoData text;
	char	   *sum = palloc(2 * 16 + 1);
	const char *problem = NULL;

	initStringInfo(&text);
	appendStringInfo(&text, "%s/%s/%s/%s/%s/%s/", unpack_sql_state(error->sqlerrcode), step,
					 error->schema_name ? error->schema_name : "",
					 error->table_name ? error->table_name : "",
					 error->column_name ? error->column_name : "",
					 error->constraint_name ? error->constraint_name : "");
	append_blanked(&text, error->message ? error->message : "");
	if (!pg_md5_hash(text.data, text.len, sum, &problem))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute the fingerprint of an error: %s", problem)));
	return sum;
}

static void
append_blanked(StringInfo out, const char *message)
{
	while (*message)
	{
		char		close = *message == '(' ? ')' : *message;
		const char *end;

		if ((*message == '"' || *message == '\'' || *message == '(') &&
			(end = strchr(message + 1, close)) != NULL)
		{
			appendStringInfoChar(out, '?');
			message = end + 1;
		}
		else if (isdigit((unsigned char) *message))
		{
			appendStringInfoChar(out, '?');
			while (isdigit((unsigned char) *message) || *message == '.')
				message++;
		}
		else
			appendStringInfoChar(out, *message++);
	}
}

static Datum
text_or_null(const char *value, char *null)
{
	*null = value ? ' ' : 'n';
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}
