/*
 * failure.c
 *	  Changes that have just failed, on their way into quarantine.
 *
 * What is known of a failure is put together when it happens, and written
 * when the batch is done with its window: a statement for all of them, which
 * sees them as the relation "failed".  A flood would else cost a statement for
 * each record, as much as trying the record did.  They wait in a tuplestore,
 * so memory is bounded.
 *
 * Until they are written the tables do not know of them; the batch itself
 * does (isolate.c), and whoever asks the tables in the middle of a batch
 * writes them first.  They are written in the transaction that moves the
 * checkpoint, so that a change leaves the pipeline in one way only; if that is
 * rolled back, nothing has happened.
 *
 * A change that was quarantined before and has failed again (resolve.c) keeps
 * its record; the facts of the new error take the place of the old ones.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/tupdesc.h"
#include "capture/change.h"
#include "catalog/pg_type.h"
#include "common/md5.h"
#include "executor/tuptable.h"
#include "guc.h"
#include "transform/failure.h"
#include "transform/quarantine.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define MAX_TRIES	12			/* of a change that waits for a dependency */

/* The columns of "failed": what an error says, and what raw staging has of the change. */
static const struct
{
	const char *name;
	Oid			type;
}			columns[] = {
	{"version", INT4OID},
	{"step", TEXTOID},
	{"error_class", TEXTOID},
	{"sqlstate", TEXTOID},
	{"message", TEXTOID},
	{"detail", TEXTOID},
	{"hint", TEXTOID},
	{"context", TEXTOID},
	{"schema_name", TEXTOID},
	{"table_name", TEXTOID},
	{"column_name", TEXTOID},
	{"constraint_name", TEXTOID},
	{"fingerprint", TEXTOID},
#define NFACTS		13
	{"record", JSONBOID},
	/* in the order of raw staging, without the new image */
	{"change_id", INT8OID},
	{"commit_lsn", PG_LSNOID},
	{"lsn", PG_LSNOID},
	{"xid", INT8OID},
	{"commit_ts", TIMESTAMPTZOID},
	{"staged_at", TIMESTAMPTZOID},
	{"seq", INT4OID},
	{"key_hash", INT4OID},
	{"schema_version", INT4OID},
	{"op", CHAROID},
	{"relation", TEXTOID},
	{"key", JSONBOID},
	{"before", JSONBOID},
	{"unchanged", TEXTARRAYOID}
};

typedef struct ErrorFacts
{
	Datum		values[NFACTS];
	bool		nulls[NFACTS];
	char	   *fingerprint;
} ErrorFacts;

static void read_facts(ErrorFacts *facts, const EltPipeline *pipeline, const ErrorData *error,
					   const char *error_class, const char *step);
static char *context_of(const ErrorData *error);
static void put(EltFailures *failures, TupleDesc desc, const EltLogRow *row, const ErrorFacts *facts);
static void failed_again(const EltPipeline *pipeline, const EltLogRow *row, const ErrorFacts *facts);
static void note_retry(const EltPipeline *pipeline, EltSpi *spi);
static char *fingerprint_of(const ErrorData *error, const char *step);
static void append_blanked(StringInfo out, const char *message);
static Datum text_or_null(const char *value, bool *null);

char *
elt_failure_add(EltFailures *failures, const EltPipeline *pipeline, TupleDesc desc, EltLogRow *row,
				const ErrorData *error, const char *error_class, const char *step)
{
	ErrorFacts	facts;

	read_facts(&facts, pipeline, error, error_class, step);
	row->failed = true;
	if (row->quarantine_id != 0)
		failed_again(pipeline, row, &facts);
	else
		put(failures, desc, row, &facts);
	return facts.fingerprint;
}

static void
read_facts(ErrorFacts *facts, const EltPipeline *pipeline, const ErrorData *error,
		   const char *error_class, const char *step)
{
	Datum	   *values = facts->values;
	bool	   *nulls = facts->nulls;

	facts->fingerprint = fingerprint_of(error, step);
	memset(nulls, false, sizeof(facts->nulls));
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

static void
put(EltFailures *failures, TupleDesc desc, const EltLogRow *row, const ErrorFacts *facts)
{
	Datum		values[lengthof(columns)];
	bool		nulls[lengthof(columns)];
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	int			n = NFACTS;

	if (failures->desc == NULL)
	{
		failures->desc = CreateTemplateTupleDesc(lengthof(columns));
		for (int i = 0; i < lengthof(columns); i++)
			TupleDescInitEntry(failures->desc, i + 1, columns[i].name, columns[i].type, -1, 0);
	}
	if (failures->store == NULL)
		failures->store = tuplestore_begin_heap(false, false, elt_batch_bytes_kb);

	memcpy(values, facts->values, sizeof(facts->values));
	memcpy(nulls, facts->nulls, sizeof(facts->nulls));
	values[n] = row->op != ELT_OP_DELETE ? row->after : row->before ? row->before : row->key;
	nulls[n] = values[n] == 0;
	n++;
	ExecStoreMinimalTuple(row->tuple, slot, false);
	slot_getallattrs(slot);
	for (int column = 0; column < ELT_RAW_LARGE - 1; column++)
	{
		if (column == ELT_RAW_AFTER - 1)
			continue;
		values[n] = slot->tts_values[column];
		nulls[n++] = slot->tts_isnull[column];
	}
	Assert(n == lengthof(columns));
	tuplestore_putvalues(failures->store, failures->desc, values, nulls);
	failures->count++;
	ExecDropSingleTupleTableSlot(slot);
}

void
elt_failures_write(EltFailures *failures, const EltPipeline *pipeline)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id), CStringGetTextDatum(pipeline->name),
	CStringGetTextDatum(pipeline->source)};
	EltSpi		spi;

	if (failures->store == NULL)
		return;
	elt_spi_begin(&spi);
	elt_spi_show("failed", failures->desc, failures->store, failures->count);
	elt_spi_run("WITH added AS (INSERT INTO elt.quarantine_records (version, step, error_class, sqlstate, message, detail, hint, "
				"context, schema_name, table_name, column_name, constraint_name, fingerprint, pipeline_id, pipeline, source, record, "
				"change_id, commit_lsn, lsn, xid, commit_ts, staged_at, seq, key_hash, schema_version, "
				"op, relation, key, before, unchanged) "
				"SELECT version, step, error_class, sqlstate, message, detail, hint, "
				"context, schema_name, table_name, column_name, constraint_name, fingerprint, $1, $2, $3, record, "
				"change_id, commit_lsn, lsn, xid, commit_ts, staged_at, seq, key_hash, schema_version, "
				"op, relation, key, before, unchanged FROM failed "
				"RETURNING quarantine_id, change_id, first_failed_at, key_hash, schema_version, sqlstate, fingerprint, key, "
				"error_class = 'dependency' AS waits, coalesce(pg_column_size(record), 0) + coalesce(pg_column_size(before), 0) AS bytes), "
				"queued AS (INSERT INTO elt.quarantine_unresolved (quarantine_id, pipeline_id, change_id, first_failed_at, next_retry_at, "
				"key_hash, schema_version, bytes, status, sqlstate, fingerprint, key) "
				"SELECT quarantine_id, $1, change_id, first_failed_at, CASE WHEN waits THEN clock_timestamp() + interval '5 s' END, "
				"key_hash, schema_version, bytes, CASE WHEN waits THEN 'waiting' ELSE 'open' END, sqlstate, fingerprint, key "
				"FROM added RETURNING next_retry_at) "
				"SELECT min(next_retry_at) FROM queued", lengthof(types), types, values, NULL);
	note_retry(pipeline, &spi);
	elt_spi_end(&spi);
	tuplestore_end(failures->store);
	failures->store = NULL;
	failures->count = 0;
}

/* The wait doubles from 5 s to 1 h; after MAX_TRIES it is over. */
static void
failed_again(const EltPipeline *pipeline, const EltLogRow *row, const ErrorFacts *facts)
{
	Oid			types[NFACTS + 2];
	Datum		values[NFACTS + 2];
	char		nulls[NFACTS + 3];
	EltSpi		spi;

	for (int i = 0; i < NFACTS; i++)
	{
		types[i] = columns[i].type;
		values[i] = facts->values[i];
		nulls[i] = facts->nulls[i] ? 'n' : ' ';
	}
	types[NFACTS] = INT8OID;
	values[NFACTS] = Int64GetDatum(row->quarantine_id);
	types[NFACTS + 1] = INT4OID;
	values[NFACTS + 1] = Int32GetDatum(MAX_TRIES);
	strcpy(nulls + NFACTS, "  ");

	elt_spi_begin(&spi);
	elt_spi_run("WITH tried AS (UPDATE elt.quarantine_records SET version = $1, step = $2, error_class = $3, sqlstate = $4, message = $5, "
				"detail = $6, hint = $7, context = $8, schema_name = $9, table_name = $10, column_name = $11, "
				"constraint_name = $12, fingerprint = $13, retry_count = retry_count + 1, last_failed_at = clock_timestamp() "
				"WHERE quarantine_id = $14 RETURNING retry_count, error_class = 'dependency' AND retry_count < $15 AS waits) "
				"UPDATE elt.quarantine_unresolved SET sqlstate = $4, fingerprint = $13, "
				"status = CASE WHEN waits THEN 'waiting' ELSE 'open' END, "
				"next_retry_at = CASE WHEN waits THEN clock_timestamp() + least(interval '5 s' * power(2, retry_count), interval '1 h') END "
				"FROM tried WHERE quarantine_id = $14 RETURNING next_retry_at", lengthof(types), types, values, nulls);
	note_retry(pipeline, &spi);
	elt_spi_end(&spi);
}

/* The statement returned when the earliest of its changes is to be tried again. */
static void
note_retry(const EltPipeline *pipeline, EltSpi *spi)
{
	bool		isnull;
	Datum		retry_at = elt_spi_datum(spi, 0, 1, &isnull);

	if (!isnull)
		elt_quarantine_note_retry(pipeline->pipeline_id, DatumGetTimestampTz(retry_at));
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
text_or_null(const char *value, bool *null)
{
	*null = (value == NULL);
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}
