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

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "common/md5.h"
#include "control/stats.h"
#include "executor/tuptable.h"
#include "transform/quarantine.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MAX_TRIES	12			/* of a change that waits for a dependency */

/* What an error says, as parameters of SQL. */
#define NFACTS		13
#define FACT_TYPES	INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, \
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID

typedef struct ErrorFacts
{
	Datum		values[NFACTS];
	char		nulls[NFACTS];
	char	   *fingerprint;
} ErrorFacts;

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
static void read_facts(ErrorFacts *facts, const EltPipeline *pipeline, const ErrorData *error,
					   const char *error_class, const char *step);
static char *context_of(const ErrorData *error);
static TimestampTz insert(const EltPipeline *pipeline, TupleDesc desc, const EltLogRow *row, const ErrorFacts *facts);
static TimestampTz failed_again(const EltLogRow *row, const ErrorFacts *facts);
static TimestampTz returned_time(EltSpi *spi);
static int	compare_ids(const void *a, const void *b);
static Datum bigint_array(EltLogRow **rows, int nrows);
static Datum quarantine_id_array(EltLogRow **rows, int nrows);
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
elt_quarantine_add(const EltPipeline *pipeline, TupleDesc desc, EltLogRow *row,
				   const ErrorData *error, const char *error_class, const char *step)
{
	ErrorFacts	facts;
	TimestampTz retry_at;

	read_facts(&facts, pipeline, error, error_class, step);
	row->failed = true;
	if (row->quarantine_id != 0)
		retry_at = failed_again(row, &facts);
	else
		retry_at = insert(pipeline, desc, row, &facts);
	elt_quarantine_note_retry(pipeline->pipeline_id, retry_at);
	return facts.fingerprint;
}

static void
read_facts(ErrorFacts *facts, const EltPipeline *pipeline, const ErrorData *error,
		   const char *error_class, const char *step)
{
	Datum	   *values = facts->values;
	char	   *nulls = facts->nulls;

	facts->fingerprint = fingerprint_of(error, step);
	memset(nulls, ' ', NFACTS);
	values[0] = Int32GetDatum(pipeline->version);
	values[1] = CStringGetTextDatum(step);
	values[2] = CStringGetTextDatum(error_class);
	values[3] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[4] = CStringGetTextDatum(error->message ? error->message : "");
	values[5] = text_or_null(error->detail, &nulls[5]);
	values[6] = text_or_null(error->hint, &nulls[6]);
	values[7] = text_or_null(context_of(error), &nulls[7]);
	values[8] = text_or_null(error->schema_name, &nulls[8]);
	values[9] = text_or_null(error->table_name, &nulls[9]);
	values[10] = text_or_null(error->column_name, &nulls[10]);
	values[11] = text_or_null(error->constraint_name, &nulls[11]);
	values[12] = CStringGetTextDatum(facts->fingerprint);
}

/*
 * The context without the statement that elt made (statement.c): it would be
 * the greatest part of the row, and says nothing that the pipeline does not.
 */
static char *
context_of(const ErrorData *error)
{
	static const char statement[] = "SQL statement \"";
	char	   *context = error->context ? pstrdup(error->context) : NULL;
	char	   *marker = context ? strstr(context, "elt.note_change(b.change_id)") : NULL;
	char	   *end = marker ? strstr(marker, "\"\npipeline \"") : NULL;
	char	   *start = NULL;

	if (end == NULL)
		return context;
	for (char *found = strstr(context, statement); found != NULL && found < marker; found = strstr(found + 1, statement))
		start = found;
	if (start != NULL)
		memmove(start, end + 2, strlen(end + 2) + 1);
	return context;
}

/* Both return when the change is to be tried again; 0: not by itself. */
static TimestampTz
insert(const EltPipeline *pipeline, TupleDesc desc, const EltLogRow *row, const ErrorFacts *facts)
{
	Oid			types[] = {FACT_TYPES, INT8OID, TEXTOID, TEXTOID, JSONBOID,
		INT8OID, PG_LSNOID, PG_LSNOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, INT4OID, INT4OID,
	CHAROID, TEXTOID, JSONBOID, JSONBOID, TEXTARRAYOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	Datum		record = row->op != ELT_OP_DELETE ? row->after : row->before ? row->before : row->key;
	TimestampTz retry_at;
	EltSpi		spi;
	int			n = NFACTS;

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	memcpy(values, facts->values, sizeof(facts->values));
	memcpy(nulls, facts->nulls, sizeof(facts->nulls));
	values[n++] = Int64GetDatum(pipeline->pipeline_id);
	values[n++] = CStringGetTextDatum(pipeline->name);
	values[n++] = CStringGetTextDatum(pipeline->source);
	values[n] = record;
	nulls[n++] = record ? ' ' : 'n';

	/* the columns of raw staging in their order, but for the new image */
	ExecStoreMinimalTuple(row->tuple, slot, false);
	slot_getallattrs(slot);
	for (int column = 0; column < ELT_RAW_LARGE - 1; column++)
	{
		if (column == ELT_RAW_AFTER - 1)
			continue;
		values[n] = slot->tts_values[column];
		nulls[n++] = slot->tts_isnull[column] ? 'n' : ' ';
	}

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.quarantine (version, step, error_class, sqlstate, message, detail, hint, context, "
				"schema_name, table_name, column_name, constraint_name, fingerprint, pipeline_id, pipeline, source, record, "
				"change_id, commit_lsn, lsn, xid, commit_ts, staged_at, seq, key_hash, schema_version, "
				"op, relation, key, before, unchanged, status, next_retry_at) "
				"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, "
				"$18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, "
				"CASE $3 WHEN 'dependency' THEN 'waiting' ELSE 'open' END, "
				"CASE $3 WHEN 'dependency' THEN clock_timestamp() + interval '5 s' END) RETURNING next_retry_at",
				lengthof(types), types, values, nulls);
	retry_at = returned_time(&spi);
	elt_spi_end(&spi);
	ExecDropSingleTupleTableSlot(slot);
	return retry_at;
}

/* The wait doubles from 5 s to 1 h; after MAX_TRIES it is over. */
static TimestampTz
failed_again(const EltLogRow *row, const ErrorFacts *facts)
{
	Oid			types[] = {FACT_TYPES, INT8OID, INT4OID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	TimestampTz retry_at;
	EltSpi		spi;

	memcpy(values, facts->values, sizeof(facts->values));
	memcpy(nulls, facts->nulls, sizeof(facts->nulls));
	values[NFACTS] = Int64GetDatum(row->quarantine_id);
	values[NFACTS + 1] = Int32GetDatum(MAX_TRIES);
	strcpy(nulls + NFACTS, "  ");

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.quarantine SET version = $1, step = $2, error_class = $3, sqlstate = $4, message = $5, "
				"detail = $6, hint = $7, context = $8, schema_name = $9, table_name = $10, column_name = $11, "
				"constraint_name = $12, fingerprint = $13, retry_count = retry_count + 1, last_failed_at = clock_timestamp(), "
				"status = CASE WHEN $3 = 'dependency' AND retry_count + 1 < $15 THEN 'waiting' ELSE 'open' END, "
				"next_retry_at = CASE WHEN $3 = 'dependency' AND retry_count + 1 < $15 "
				"THEN clock_timestamp() + least(interval '5 s' * power(2, retry_count + 1), interval '1 h') END "
				"WHERE quarantine_id = $14 RETURNING next_retry_at", lengthof(types), types, values, nulls);
	retry_at = returned_time(&spi);
	elt_spi_end(&spi);
	return retry_at;
}

static TimestampTz
returned_time(EltSpi *spi)
{
	bool		isnull;
	Datum		value = elt_spi_datum(spi, 0, 1, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* A hint to the workers, who look for themselves: no harm if this is rolled back. */
void
elt_quarantine_note_retry(int64 pipeline_id, TimestampTz retry_at)
{
	TimestampTz noted = elt_stats_retry_at(pipeline_id);

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
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), key_hash_array(rows, nrows), key_array(rows, nrows)};
	int			n;
	EltSpi		spi;

	elt_spi_begin(&spi);
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
	Oid			types[] = {INT8ARRAYOID, TEXTOID, TEXTOID, TEXTOID};
	char		nulls[] = "    ";
	Datum		values[lengthof(types)];
	int64		resolved;
	EltSpi		spi;

	values[0] = quarantine_id_array(rows, nrows);
	values[1] = CStringGetTextDatum(status);
	values[2] = CStringGetTextDatum(by);
	values[3] = text_or_null(note, &nulls[3]);

	/*
	 * told from the resolved ones in a way that the indexes on the unresolved
	 * do not lure the planner
	 */
	elt_spi_begin(&spi);
	resolved = elt_spi_run("UPDATE elt.quarantine SET status = $2, resolved_at = now(), resolved_by = $3, "
						   "next_retry_at = NULL, note = CASE WHEN $4 IS NULL THEN note ELSE concat_ws('; ', note, $4) END "
						   "WHERE quarantine_id = ANY ($1) AND status NOT IN ('replayed', 'superseded', 'discarded')", 4, types, values, nulls);
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
	superseded = elt_spi_run("UPDATE elt.quarantine q SET status = 'superseded', resolved_at = now(), resolved_by = 'elt', "
							 "next_retry_at = NULL, note = concat_ws('; ', q.note, 'superseded by change ' || a.change_id) "
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
							 "next_retry_at = NULL, note = concat_ws('; ', note, 'superseded by truncate, change ' || $2) "
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
quarantine_id_array(EltLogRow **rows, int nrows)
{
	Datum	   *datums = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		datums[i] = Int64GetDatum(rows[i]->quarantine_id);
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
