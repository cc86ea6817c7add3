/*
 * snapshot.c
 *	  What a copy reads at the source: the shape of a table, and its rows.
 *
 * The rows come as text by COPY and are turned into JSON by the same code as
 * the stream's.  What the output plugin knows of types from the catalogs, the
 * copy asks the source for by SQL.  The publication's row filter and column
 * list hold for the copy too.
 *
 * Blocks are read by ranges of ctid, which the source (14 and later) does
 * without looking at others.
 */
#include "postgres.h"

#include "capture/copied.h"
#include "capture/snapshot.h"
#include "capture/value.h"
#include "control/registry.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static void append_type_code(EltStream *stream, StringInfo code, Oid type, int depth);
static PGresult *query(EltStream *stream, const char *format,...) pg_attribute_printf(2, 3);

/* ---- rows ---- */

void
elt_snapshot_copy_blocks(EltStream *stream, EltStage *stage, const EltCopyRange *range,
						 EltCopyCounts *counts)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext row_context = AllocSetContextCreate(caller_context, "elt snapshot row", ALLOCSET_DEFAULT_SIZES);
	EltRelation *relation = range->relation;
	EltCopied	copied;
	StringInfoData where;
	EltRow		row;
	char	   *from;
	char	   *line;
	int			length;

	elt_copied_prepare(&copied, stream, relation);
	elt_copied_create_row(&copied, &row);
	initStringInfo(&where);
	appendStringInfo(&where, "\"$row\".ctid >= '(" INT64_FORMAT ",0)' AND \"$row\".ctid < '(" INT64_FORMAT ",0)'",
					 range->first_block, range->end_block);
	if (range->filter != NULL)
	{
		appendStringInfoString(&where, " AND (");
		appendStringInfoString(&where, range->filter);
		appendStringInfoChar(&where, ')');
	}
	from = psprintf("ONLY %s", range->part);
	if (range->careful)
		elt_copied_search(&copied, stream, from, where.data);
	PQclear(elt_stream_query(stream, elt_copied_command(&copied, from, where.data), PGRES_COPY_OUT));

	counts->rows = counts->bytes = 0;
	MemoryContextSwitchTo(row_context);
	while ((line = elt_stream_copy_line(stream, &length)) != NULL)
	{
		counts->bytes += length;
		elt_copied_parse(&copied, line, length, &row);
		if (range->skip == NULL || !range->skip(range->skip_arg, elt_row_key(relation, &row)))
		{
			elt_stage_copied_row(stage, relation, &row);
			counts->rows++;
		}
		MemoryContextReset(row_context);
		CHECK_FOR_INTERRUPTS();
		if (elt_registry_stop_requested())
			elt_registry_finish();	/* rolls back; the blocks are copied again */
	}
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(row_context);
}

/* ---- its shape, by SQL ---- */

EltRelation *
elt_snapshot_describe(EltStream *stream, const EltSource *source, const char *name, char **filter)
{
	EltRelation *relation = palloc0(sizeof(EltRelation));
	const char *literal = elt_stream_literal(name);
	const char *publication = elt_stream_literal(source->publication);
	PGresult   *result;

	/*
	 * the view tells what holds, also of FOR TABLES IN SCHEMA; older servers
	 * have no filters
	 */
	result = query(stream,
				   "SELECT c.oid, (SELECT pg_catalog.to_jsonb(t) ->> 'rowfilter' FROM pg_catalog.pg_publication_tables t "
				   "WHERE t.pubname = %s AND t.schemaname = n.nspname AND t.tablename = c.relname LIMIT 1), "
				   "c.relreplident, c.relfilenode, c.relnatts "
				   "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
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
	*filter = PQgetisnull(result, 0, 1) ? NULL : pstrdup(elt_stream_value(result, 0, 1));
	relation->identity = elt_stream_value(result, 0, 2)[0];
	relation->filenode = strtoul(elt_stream_value(result, 0, 3), NULL, 10);
	relation->natts = strtoul(elt_stream_value(result, 0, 4), NULL, 10);
	PQclear(result);
	relation->name = pstrdup(name);

	result = query(stream,
				   "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid, "
				   "COALESCE(a.attnum = ANY (i.indkey), false), "
				   "a.attnum, a.xmin, a.atthasdef, (a.attmissingval::text::text[])[1] "
				   "FROM pg_catalog.pg_attribute a "
				   "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
				   "LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisvalid "
				   "AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END "
				   "LEFT JOIN (pg_catalog.pg_publication_rel pr JOIN pg_catalog.pg_publication p "
				   "ON p.oid = pr.prpubid AND p.pubname = %s) ON pr.prrelid = a.attrelid "
				   "WHERE a.attrelid = %u AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v' "
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
		column->number = strtoul(elt_stream_value(result, i, 4), NULL, 10);
		column->touched = strtoul(elt_stream_value(result, i, 5), NULL, 10);
		column->has_default = elt_stream_value(result, i, 6)[0] == 't';
		if (!PQgetisnull(result, i, 7) && PQgetlength(result, i, 7) <= 64 * 1024)
			column->missing = pstrdup(elt_stream_value(result, i, 7));
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
