/*
 * snapshot.c
 *	  First copies of tables.
 *
 * A temporary slot gives a snapshot that sees exactly what was committed
 * before a position S.  The tables are read under it with COPY and staged as
 * op r; then their state becomes "ready" and sync_lsn S, in the same local
 * transaction.  The stream, which is started afterwards from where it was,
 * leaves out changes of these tables that committed before S: the copy has
 * them.  So there is no gap and no overlap, whatever was written meanwhile,
 * and no older image comes after a newer one.
 *
 * The copy takes no lock stronger than ACCESS SHARE at the source.  A table
 * whose copy breaks off leaves nothing and waits for the next attempt, under
 * a new snapshot; tables that were finished stay.
 *
 * The rows come as text and are turned into JSON by the same code as the
 * stream's.  What the output plugin knows of types from the catalogs, the
 * copy asks the source for by SQL.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/slot.h"
#include "capture/snapshot.h"
#include "catalog/pg_type.h"
#include "control/worker.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

static List *pending_relations(const EltSource *source);
static int64 copy_table(EltStream *stream, EltStage *stage, const EltSource *source,
						const char *relation, XLogRecPtr lsn);
static EltRelation *describe(EltStream *stream, const EltSource *source, const char *name, bool *partitioned);
static void append_type_code(EltStream *stream, StringInfo code, Oid type, int depth);
static void parse_line(char *line, int length, EltRow *row);
static void mark_copied(const EltSource *source, const char *relation, XLogRecPtr lsn, int64 rows);
static PGresult *query(EltStream *stream, const char *format,...) pg_attribute_printf(2, 3);

void
elt_snapshot_copy_pending(EltStream *stream, EltStage *stage, const EltSource *source)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller_context, "elt snapshot", ALLOCSET_DEFAULT_SIZES);
	char	   *slot_name;
	List	   *relations;
	ListCell   *cell;
	XLogRecPtr	lsn;

	MemoryContextSwitchTo(context);
	relations = pending_relations(source);
	if (relations == NIL)
	{
		MemoryContextSwitchTo(caller_context);
		MemoryContextDelete(context);
		return;
	}

	elt_registry_set_activity("snapshot", source->name);
	slot_name = psprintf("%s_copy", source->slot_name);
	lsn = elt_slot_create_snapshot(stream, slot_name);
	foreach(cell, relations)
	{
		const char *relation = lfirst(cell);
		int64		rows;

		elt_worker_begin_work("copying a table");
		rows = copy_table(stream, stage, source, relation, lsn);
		mark_copied(source, relation, lsn, rows);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
		pg_atomic_fetch_add_u64(&elt_my_slot->changes, rows);
		elt_registry_wake_transform(MyDatabaseId);
		ereport(LOG,
				(errmsg("elt source \"%s\": copied table %s, " INT64_FORMAT " rows", source->name, relation, rows)));
	}
	PQclear(elt_stream_query(stream, "COMMIT", PGRES_COMMAND_OK));
	PQclear(elt_stream_query(stream, psprintf("DROP_REPLICATION_SLOT \"%s\"", slot_name), PGRES_COMMAND_OK));
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(context);
}

static List *
pending_relations(const EltSource *source)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	List	   *relations = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_worker_begin_work("looking for tables to copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT relation FROM elt.source_tables WHERE source_id = $1 AND state = 'pending' ORDER BY table_id",
					   1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		char	   *relation = elt_spi_text(&spi, row, 1);
		MemoryContext old = MemoryContextSwitchTo(context);

		relations = lappend(relations, relation);
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return relations;
}

static void
mark_copied(const EltSource *source, const char *relation, XLogRecPtr lsn, int64 rows)
{
	Oid			types[] = {INT8OID, TEXTOID, LSNOID, INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation),
	LSNGetDatum(lsn), Int64GetDatum(rows)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.source_tables SET state = 'ready', sync_lsn = $3, rows_copied = $4 "
				"WHERE source_id = $1 AND relation = $2 AND state = 'pending'",
				4, types, values, NULL);
	elt_spi_end(&spi);
}

/* ---- one table ---- */

static int64
copy_table(EltStream *stream, EltStage *stage, const EltSource *source, const char *relation_name, XLogRecPtr lsn)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext row_context = AllocSetContextCreate(caller_context, "elt snapshot row", ALLOCSET_DEFAULT_SIZES);
	bool		partitioned;
	EltRelation *relation = describe(stream, source, relation_name, &partitioned);
	StringInfoData command;
	EltRow		row;
	char	   *line;
	int			length;
	int64		rows = 0;

	initStringInfo(&command);
	appendStringInfoString(&command, "COPY (SELECT ");
	for (int i = 0; i < relation->ncolumns; i++)
		appendStringInfo(&command, "%s%s", i > 0 ? ", " : "", quote_identifier(relation->columns[i].name));
	appendStringInfo(&command, " FROM %s%s) TO STDOUT", partitioned ? "" : "ONLY ", relation_name);
	PQclear(elt_stream_query(stream, command.data, PGRES_COPY_OUT));

	row.ncolumns = relation->ncolumns;
	row.fields = palloc(Max(1, row.ncolumns) * sizeof(EltField));
	row.values = palloc(Max(1, row.ncolumns) * sizeof(char *));
	row.lengths = palloc(Max(1, row.ncolumns) * sizeof(int));
	elt_stage_begin(stage, InvalidTransactionId, lsn, GetCurrentTimestamp());
	MemoryContextSwitchTo(row_context);
	while ((line = elt_stream_copy_line(stream, &length)) != NULL)
	{
		(void) pg_verify_mbstr(GetDatabaseEncoding(), line, length, false);
		parse_line(line, length, &row);
		elt_stage_copied_row(stage, relation, &row);
		rows++;
		MemoryContextReset(row_context);
		CHECK_FOR_INTERRUPTS();
		if (elt_registry_stop_requested())
			proc_exit(0);		/* rolls back; the copy is made again */
	}
	MemoryContextSwitchTo(caller_context);
	elt_stage_finish(stage);
	elt_stage_free_relation(relation->user_data);
	MemoryContextDelete(row_context);
	return rows;
}

/* Splits a line of COPY's text format in place. */
static void
parse_line(char *line, int length, EltRow *row)
{
	char	   *in = line;
	char	   *end = line + length;

	if (end > in && end[-1] == '\n')
		end--;
	for (int i = 0; i < row->ncolumns; i++)
	{
		char	   *out = in;

		if (end - in >= 2 && in[0] == '\\' && in[1] == 'N')
		{
			row->fields[i] = ELT_FIELD_NULL;
			row->values[i] = NULL;
			row->lengths[i] = 0;
			in += 2;
		}
		else
		{
			row->fields[i] = ELT_FIELD_TEXT;
			row->values[i] = in;
			while (in < end && *in != '\t')
			{
				if (*in != '\\' || in + 1 == end)
				{
					*out++ = *in++;
					continue;
				}
				switch (in[1])
				{
					case 'b':
						*out++ = '\b';
						break;
					case 'f':
						*out++ = '\f';
						break;
					case 'n':
						*out++ = '\n';
						break;
					case 'r':
						*out++ = '\r';
						break;
					case 't':
						*out++ = '\t';
						break;
					case 'v':
						*out++ = '\v';
						break;
					default:
						*out++ = in[1];
				}
				in += 2;
			}
			row->lengths[i] = out - row->values[i];
		}
		if (i + 1 < row->ncolumns ? (in == end || *in != '\t') : in != end)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the source sent a line with another number of columns than %d", row->ncolumns)));
		in++;
	}
}

/* ---- its shape, by SQL ---- */

static EltRelation *
describe(EltStream *stream, const EltSource *source, const char *name, bool *partitioned)
{
	EltRelation *relation = palloc0(sizeof(EltRelation));
	const char *literal = elt_stream_literal(name);
	const char *publication = elt_stream_literal(source->publication);
	PGresult   *result;

	result = query(stream,
				   "SELECT c.oid, c.relkind = 'p', pr.prqual IS NOT NULL "
				   "FROM pg_catalog.pg_class c "
				   "LEFT JOIN (pg_catalog.pg_publication_rel pr JOIN pg_catalog.pg_publication p "
				   "ON p.oid = pr.prpubid AND p.pubname = %s) ON pr.prrelid = c.oid "
				   "WHERE c.oid = pg_catalog.to_regclass(%s)", publication, literal);
	if (PQntuples(result) != 1)
	{
		PQclear(result);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s does not exist at the source", name),
				 errhint("Where it was dropped, SELECT elt.remove_table(%s, %s).",
						 quote_literal_cstr(source->name), literal)));
	}
	relation->id = strtoul(elt_stream_value(result, 0, 0), NULL, 10);
	*partitioned = elt_stream_value(result, 0, 1)[0] == 't';
	if (elt_stream_value(result, 0, 2)[0] == 't')
	{
		PQclear(result);
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("publication \"%s\" has a row filter on table %s", source->publication, name),
				 errhint("elt captures whole tables; filter in the pipeline's transform.")));
	}
	PQclear(result);
	relation->name = pstrdup(name);

	result = query(stream,
				   "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid, "
				   "COALESCE(a.attnum = ANY (i.indkey), false) "
				   "FROM pg_catalog.pg_attribute a "
				   "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
				   "LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisvalid "
				   "AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END "
				   "LEFT JOIN (pg_catalog.pg_publication_rel pr JOIN pg_catalog.pg_publication p "
				   "ON p.oid = pr.prpubid AND p.pubname = %s) ON pr.prrelid = a.attrelid "
				   "WHERE a.attrelid = %u AND a.attnum > 0 AND NOT a.attisdropped "
				   "AND (pr.prattrs IS NULL OR a.attnum = ANY (pr.prattrs)) ORDER BY a.attnum",
				   publication, relation->id);
	relation->ncolumns = PQntuples(result);
	relation->columns = palloc0(Max(1, relation->ncolumns) * sizeof(EltColumn));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		EltColumn  *column = &relation->columns[i];
		StringInfoData code;

		initStringInfo(&code);
		append_type_code(stream, &code, strtoul(elt_stream_value(result, i, 2), NULL, 10), 0);
		column->name = pstrdup(elt_stream_value(result, i, 0));
		column->type_name = pstrdup(elt_stream_value(result, i, 1));
		column->type_code = code.data;
		column->in_key = elt_stream_value(result, i, 3)[0] == 't';
	}
	PQclear(result);
	elt_relation_finish(relation);
	return relation;
}

/* As elt_type_append_code does, for types of the source. */
static void
append_type_code(EltStream *stream, StringInfo code, Oid type, int depth)
{
	char		builtin = elt_type_builtin_code(type);
	PGresult   *result;

	if (builtin != '\0')
	{
		appendStringInfoChar(code, builtin);
		return;
	}
	if (elt_type_detail_ends(code->len, depth))
	{
		appendStringInfoChar(code, 's');
		return;
	}

	result = query(stream,
				   "SELECT t.typtype, t.typbasetype, t.typrelid, "
				   "CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc THEN t.typelem ELSE 0 END, "
				   "(SELECT e.typdelim FROM pg_catalog.pg_type e WHERE e.oid = t.typelem) "
				   "FROM pg_catalog.pg_type t WHERE t.oid = %u", type);
	if (PQntuples(result) != 1)
		appendStringInfoChar(code, 's');
	else if (elt_stream_value(result, 0, 0)[0] == 'd')
		append_type_code(stream, code, strtoul(elt_stream_value(result, 0, 1), NULL, 10), depth + 1);
	else if (elt_stream_value(result, 0, 0)[0] == 'c')
	{
		PGresult   *fields = query(stream,
								   "SELECT attname, atttypid FROM pg_catalog.pg_attribute "
								   "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
								   elt_stream_value(result, 0, 2));

		appendStringInfoString(code, "c(");
		for (int i = 0; i < PQntuples(fields); i++)
		{
			elt_type_append_field_name(code, elt_stream_value(fields, i, 0));
			append_type_code(stream, code, strtoul(elt_stream_value(fields, i, 1), NULL, 10), depth + 1);
		}
		appendStringInfoChar(code, ')');
		PQclear(fields);
	}
	else if (strcmp(elt_stream_value(result, 0, 3), "0") != 0)
	{
		appendStringInfoChar(code, 'a');
		appendStringInfoString(code, elt_stream_value(result, 0, 4));
		append_type_code(stream, code, strtoul(elt_stream_value(result, 0, 3), NULL, 10), depth + 1);
	}
	else
		appendStringInfoChar(code, 's');
	PQclear(result);
}

static PGresult *
query(EltStream *stream, const char *format,...)
{
	StringInfoData command;
	PGresult   *result;

	initStringInfo(&command);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&command, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&command, needed);
	}
	result = elt_stream_query(stream, command.data, PGRES_TUPLES_OK);
	pfree(command.data);
	return result;
}
