/*
 * copied.c
 *	  What a copy must know of values that the stream is told by the output
 *	  plugin: which are large, too large, or no text here.
 *
 * A copy comes as text by COPY, and an error of COPY would come again at every
 * attempt.  So:
 *
 * Large.  COPY does not tell how a value was stored.  Where the table's TOAST
 * relation has any page, a value counts as stored out of line if it can be:
 * its type has a variable length, and it is longer than a TOAST pointer
 * (LARGE_FROM; of types whose text may be shorter than what is stored, any).
 *
 * Too large.  A line of COPY must stay below 1 GB, and rows of more than
 * ELT_ROW_BYTES_MAX are not staged as they are.  Where the TOAST relation is
 * large enough for such a row, the source measures the values first: of a row
 * that is too large together, values above an equal share are left out, and
 * one more column tells their sizes.  Text and bytea are measured without
 * being read; other types are, where they are large, by their text.
 *
 * Without a text.  Of some values the source cannot produce the text (print.c),
 * nor therefore measure it.  The copy fails, and is made once more, carefully:
 * the values are found by trying, many at a time and ever fewer where that
 * fails, and every value of these rows is measured by its text.
 *
 * No text here.  The lines come in the encoding of the source, and each value
 * is converted here.
 */
#include "postgres.h"

#include "capture/copied.h"
#include "capture/print.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/*
 * The shortest value that TOAST moves has 21 bytes; in another encoding they
 * may become fewer.
 */
#define LARGE_FROM			12

/* stored bytes of a value whose text may be beyond measure */
#define PRINTED_FROM		128

/* what can hold a row that is too large, compressed as well as can be (lz4) */
#define TOAST_BYTES_MIN		(ELT_ROW_BYTES_MAX / 2 / 255)

static char *column_kinds(EltStream *stream, const EltRelation *relation);
static void make_select(EltCopied *copied, bool measured);
static char *measure_column(const EltCopied *copied, const char *column, int i);
static char *size_expression(const char *column, char kind, int from);
static void find_unprintable(EltStream *stream, const char *test, PGresult *rows, int first, int end, StringInfo found);
static bool can_print(EltStream *stream, const char *test, PGresult *rows, int first, int end);
static void leave_out(const EltCopied *copied, EltRow *row);
static void split_line(char *line, int length, EltRow *row);

void
elt_copied_prepare(EltCopied *copied, EltStream *stream, EltRelation *relation)
{
	PGresult   *result;
	int64		toast_bytes;
	char	   *kinds;

	memset(copied, 0, sizeof(EltCopied));
	copied->relation = relation;

	result = elt_stream_query(stream, "SHOW server_encoding", PGRES_TUPLES_OK);
	copied->encoding_name = pstrdup(elt_stream_value(result, 0, 0));
	PQclear(result);
	elt_encoding_set(&copied->encoding, pg_char_to_encoding(copied->encoding_name), GetDatabaseEncoding());

	result = elt_stream_query(stream,
							  psprintf("SELECT COALESCE(sum(pg_catalog.pg_relation_size(c.reltoastrelid)), 0)::bigint "
									   "FROM pg_catalog.pg_class c WHERE c.reltoastrelid <> 0 AND (c.oid = %u OR c.oid IN "
									   "(SELECT relid FROM pg_catalog.pg_partition_tree(%u)))",
									   relation->id, relation->id), PGRES_TUPLES_OK);
	toast_bytes = strtoll(elt_stream_value(result, 0, 0), NULL, 10);
	PQclear(result);

	kinds = column_kinds(stream, relation);
	for (int i = 0; i < relation->ncolumns; i++)
	{
		if (toast_bytes > 0 && kinds[i] != '\0')
			relation->columns[i].large_from = kinds[i] == 'o' ? 1 : LARGE_FROM;
	}
	copied->kinds = kinds;
	make_select(copied, toast_bytes >= TOAST_BYTES_MIN);
}

/*
 * Tells of each column what is stored: t text, b bytea, j other types that are
 * their own text, o others; \0 what is never large.
 */
static char *
column_kinds(EltStream *stream, const EltRelation *relation)
{
	char	   *kinds = palloc0(relation->ncolumns + 1);
	PGresult   *result;

	result = elt_stream_query(stream,
							  psprintf("SELECT a.attname, CASE "
									   "WHEN b.oid IN (25, 1042, 1043) THEN 't' WHEN b.oid = 17 THEN 'b' "
									   "WHEN b.oid IN (114, 142) THEN 'j' ELSE 'o' END "
									   "FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
									   "JOIN pg_catalog.pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END "
									   "WHERE a.attrelid = %u AND a.attnum > 0 AND NOT a.attisdropped "
									   "AND t.typlen = -1 AND t.typstorage <> 'p'", relation->id), PGRES_TUPLES_OK);
	for (int n = 0; n < PQntuples(result); n++)
	{
		for (int i = 0; i < relation->ncolumns; i++)
		{
			if (strcmp(elt_stream_value(result, n, 0), relation->columns[i].name) == 0)
				kinds[i] = *elt_stream_value(result, n, 1);
		}
	}
	PQclear(result);
	return kinds;
}

/* Makes the SELECT, which measures the values or does not. */
static void
make_select(EltCopied *copied, bool measured)
{
	const EltRelation *relation = copied->relation;
	const char *kinds = measured ? copied->kinds : NULL;
	StringInfoData columns;
	StringInfoData measures;
	StringInfoData total;
	StringInfoData sizes;
	int			nlarge = 0;
	int			share;

	for (int i = 0; kinds != NULL && i < relation->ncolumns; i++)
		nlarge += kinds[i] != '\0';
	share = ELT_ROW_BYTES_MAX / Max(nlarge, 1);
	copied->measured = nlarge > 0;

	initStringInfo(&columns);
	initStringInfo(&measures);
	initStringInfo(&total);
	initStringInfo(&sizes);
	for (int i = 0; i < relation->ncolumns; i++)
	{
		char	   *column = psprintf("\"$row\".%s", quote_identifier(relation->columns[i].name));

		if (i > 0)
			appendStringInfoString(&columns, ", ");
		if (kinds != NULL && kinds[i] != '\0')
		{
			char	   *size = psprintf("\"$size\".c%d", i);

			appendStringInfo(&measures, "%s%s AS c%d", measures.len > 0 ? ", " : "",
							 measure_column(copied, column, i), i);
			appendStringInfo(&columns, "CASE WHEN \"$all\".total <= %d OR %s <= %d THEN %s END",
							 ELT_ROW_BYTES_MAX, size, share, column);
			appendStringInfo(&total, "%sCOALESCE(%s, 0)", total.len > 0 ? " + " : "", size);
			appendStringInfo(&sizes, ", CASE WHEN %s > %d THEN '%d:' || %s END", size, share, i, size);
		}
		else
			appendStringInfoString(&columns, column);
	}
	if (copied->measured)
	{
		appendStringInfo(&columns, ", CASE WHEN \"$all\".total > %d THEN pg_catalog.concat_ws(' '%s) END",
						 ELT_ROW_BYTES_MAX, sizes.data);
		/* OFFSET 0: measured once, and added up once */
		copied->measure = psprintf(", LATERAL (SELECT %s OFFSET 0) AS \"$size\""
								   ", LATERAL (SELECT %s OFFSET 0) AS \"$all\" (total)",
								   measures.data, total.data);
	}
	else
		copied->measure = "";
	copied->columns = columns.data;
}

static char *
measure_column(const EltCopied *copied, const char *column, int i)
{
	char	   *size = size_expression(column, copied->kinds[i], copied->unprintable != NULL ? 0 : TOAST_BYTES_MIN);

	if (copied->unprintable == NULL || copied->unprintable[i] == NULL)
		return size;
	return psprintf("CASE WHEN \"$row\".ctid = ANY (%s::pg_catalog.tid[]) THEN %zu::bigint ELSE %s END",
					copied->unprintable[i], ELT_UNPRINTABLE_SIZE, size);
}

/*
 * The bytes that a column's text needs, as near as can be told without the
 * text: a stored value of some size may be 255 times as long.  Values of fewer
 * stored bytes than "from" count as nothing.
 */
static char *
size_expression(const char *column, char kind, int from)
{
	switch (kind)
	{
		case 't':
			return psprintf("pg_catalog.octet_length(%s)::bigint", column);
		case 'b':
			return psprintf("pg_catalog.octet_length(%s) * 2::bigint", column);
		case 'j':
			return psprintf("CASE WHEN pg_catalog.pg_column_size(%s) < %d THEN 0 "
							"ELSE pg_catalog.octet_length(%s::pg_catalog.text)::bigint END",
							column, from, column);
		default:
			return psprintf("CASE WHEN pg_catalog.pg_column_size(%s) < %d THEN 0 "
							"WHEN pg_catalog.pg_column_size(%s) > %d THEN pg_catalog.pg_column_size(%s) * 2::bigint "
							"ELSE pg_catalog.octet_length(%s::pg_catalog.text)::bigint END",
							column, from, column, ELT_ROW_BYTES_MAX / 2, column, column);
	}
}

/* ---- values without a text ---- */

void
elt_copied_search(EltCopied *copied, EltStream *stream, const char *from, const char *where)
{
	const EltRelation *relation = copied->relation;

	copied->unprintable = palloc0(relation->ncolumns * sizeof(char *));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		const char *column = psprintf("\"$row\".%s", quote_identifier(relation->columns[i].name));
		StringInfoData command;
		StringInfoData found;
		PGresult   *rows;

		if (copied->kinds[i] != 'o' && copied->kinds[i] != 'j')
			continue;
		initStringInfo(&command);
		appendStringInfo(&command, "SELECT \"$row\".ctid FROM %s AS \"$row\" WHERE pg_catalog.pg_column_size(%s) >= %d AND ",
						 from, column, PRINTED_FROM);
		appendStringInfoString(&command, where);
		rows = elt_stream_query(stream, command.data, PGRES_TUPLES_OK);

		/* as it is measured */
		resetStringInfo(&command);
		appendStringInfo(&command, "SELECT pg_catalog.max(%s) FROM %s AS \"$row\" WHERE \"$row\".ctid = ANY ",
						 size_expression(column, copied->kinds[i], 0), from);
		initStringInfo(&found);
		if (PQntuples(rows) > 0)
			find_unprintable(stream, command.data, rows, 0, PQntuples(rows), &found);
		PQclear(rows);
		if (found.len > 0)
			copied->unprintable[i] = psprintf("'{%s}'", found.data);
	}
	make_select(copied, true);
}

static void
find_unprintable(EltStream *stream, const char *test, PGresult *rows, int first, int end, StringInfo found)
{
	int			middle = first + (end - first) / 2;

	if (can_print(stream, test, rows, first, end))
		return;
	if (end - first == 1)
		appendStringInfo(found, "%s\"%s\"", found->len > 0 ? "," : "", elt_stream_value(rows, first, 0));
	else
	{
		find_unprintable(stream, test, rows, first, middle, found);
		find_unprintable(stream, test, rows, middle, end, found);
	}
}

static bool
can_print(EltStream *stream, const char *test, PGresult *rows, int first, int end)
{
	StringInfoData command;
	char		sqlstate[6];
	char	   *error;

	initStringInfo(&command);
	appendStringInfo(&command, "%s ('{", test);
	for (int row = first; row < end; row++)
		appendStringInfo(&command, "%s\"%s\"", row > first ? "," : "", elt_stream_value(rows, row, 0));
	appendStringInfoString(&command, "}'::pg_catalog.tid[])");
	error = elt_stream_try(stream, command.data, sqlstate);
	pfree(command.data);
	if (error == NULL)
		return true;
	if (!elt_print_error(MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]), error))
		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4])),
				 errmsg("the source refused a command: %s", error)));
	PQclear(elt_stream_query(stream, "ROLLBACK TO SAVEPOINT " ELT_COPIED_SAVEPOINT, PGRES_COMMAND_OK));
	return false;
}

char *
elt_copied_command(const EltCopied *copied, const char *from, const char *where)
{
	StringInfoData command;

	/* no format: names may hold anything */
	initStringInfo(&command);
	appendStringInfoString(&command, "COPY (SELECT ");
	appendStringInfoString(&command, copied->columns);
	appendStringInfoString(&command, " FROM ");
	appendStringInfoString(&command, from);
	appendStringInfoString(&command, " AS \"$row\"");
	appendStringInfoString(&command, copied->measure);
	if (where != NULL)
	{
		appendStringInfoString(&command, " WHERE ");
		appendStringInfoString(&command, where);
	}
	appendStringInfo(&command, ") TO STDOUT (ENCODING %s)", quote_literal_cstr(copied->encoding_name));
	return command.data;
}

/* ---- rows ---- */

void
elt_copied_create_row(const EltCopied *copied, EltRow *row)
{
	int			n = copied->relation->ncolumns + 1;

	memset(row, 0, sizeof(EltRow));
	row->fields = palloc(n * sizeof(EltField));
	row->values = palloc(n * sizeof(char *));
	row->lengths = palloc(n * sizeof(int));
	row->large = palloc(n * sizeof(int));
}

void
elt_copied_parse(const EltCopied *copied, char *line, int length, EltRow *row)
{
	const EltRelation *relation = copied->relation;

	row->ncolumns = relation->ncolumns + (copied->measured ? 1 : 0);
	split_line(line, length, row);
	row->nlarge = row->noversize = 0;
	row->ncolumns = relation->ncolumns;
	if (copied->measured && row->fields[relation->ncolumns] == ELT_FIELD_TEXT)
		leave_out(copied, row);

	for (int i = 0; i < row->ncolumns; i++)
	{
		const char *text = row->values[i];
		Size		size = row->lengths[i];

		if (row->fields[i] == ELT_FIELD_OVERSIZE)
		{
			row->large[row->nlarge++] = i;
			row->noversize++;
			continue;
		}
		if (row->fields[i] != ELT_FIELD_TEXT)
			continue;
		if (relation->columns[i].large_from > 0 && size >= relation->columns[i].large_from)
			row->large[row->nlarge++] = i;
		if (!elt_encoding_convert(&copied->encoding, &text, &size))
			row->fields[i] = ELT_FIELD_BYTES;
		row->values[i] = text;

		row->lengths[i] = (int) size;
	}
	if (length > ELT_ROW_BYTES_MAX / 4)
		elt_row_limit(row);
}

/*
 * Marks what the source left out: pairs of a column and its size.
 */
static void
leave_out(const EltCopied *copied, EltRow *row)
{
	char	   *cursor = pnstrdup(row->values[copied->relation->ncolumns],
								  row->lengths[copied->relation->ncolumns]);

	while (*cursor != '\0')
	{
		unsigned long column = strtoul(cursor, &cursor, 10);
		long long	size;

		if (*cursor++ != ':')
			break;
		size = strtoll(cursor, &cursor, 10);
		if (column >= copied->relation->ncolumns || size < 0)
			break;
		row->fields[column] = ELT_FIELD_OVERSIZE;
		row->lengths[column] = (int) Min(size, PG_INT32_MAX);
		if (*cursor == ' ')
			cursor++;
	}
}

/*
 * Splits a line into its fields, in place.
 */
static void
split_line(char *line, int length, EltRow *row)
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
