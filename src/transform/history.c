/*
 * history.c
 *	  The SQL of mode history: every version of a row is kept, with the time
 *	  from which and the time to which it was the present one (slowly changing
 *	  dimension, type 2).
 *
 * The versions of a key are a line of time cut at marks: a version begins at
 * its valid_from and ends at the next mark, be that the beginning of another
 * version or a delete.  What a batch brings are new marks.  So one rule
 * serves the newest changes as well as late ones, and gives the same when it
 * is applied twice: after the marks of a batch are added to those of the
 * versions that they touch, each version's valid_to is the mark after its
 * valid_from.
 *
 * The present version has no valid_to.  A delete at the time a version began
 * takes it away: both are of one transaction, and nobody ever saw it.  Of
 * several changes of a key in one transaction only the last is given here
 * (collapse.c).
 *
 * A truncate ends all present versions (elt_statement_truncate); for late
 * changes it is one more mark of every key.
 *
 * Live changes are never older than what is there, whatever the source's
 * clock did: where they seem to be they are moved behind it, by as little as
 * will do.  In a replay, of the log or of quarantined changes, they are what
 * they say (pipeline->late).
 *
 * The index of the target is over the key and valid_from; one over the key
 * WHERE valid_to IS NULL makes long histories fast.
 */
#include "postgres.h"

#include "nodes/value.h"
#include "transform/output.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "utils/builtins.h"

/* names in the statement that no column of a user has */
#define AT		"\"elt: at\""
#define KIND	"\"elt: kind\""
#define UNTIL	"\"elt: until\""
#define FIRST	"\"elt: first\""

static char *nulls_for(List *columns, List *kept);
static char *values_of(List *columns, List *kept, const char *prefix);
static char *with_comma(char *list);
static char *casted_keys(List *columns);
static char *same_key(List *columns, const char *left, const char *right);

char *
elt_history_statement(const EltPipeline *pipeline, List *columns, List *kept)
{
	char	   *target = elt_target_name(pipeline);
	char	   *select = elt_output_select(pipeline, columns, false);
	char	   *keys = elt_output_list(columns, ELT_OUTPUT_KEY, "");
	char	   *t_keys = elt_output_list(columns, ELT_OUTPUT_KEY, "t.");
	char	   *e_keys = elt_output_list(columns, ELT_OUTPUT_KEY, "e.");
	char	   *own_values = with_comma(elt_output_list(columns, ELT_OUTPUT_VALUES, ""));
	char	   *values = values_of(columns, kept, "");
	char	   *nulls = nulls_for(columns, kept);
	char	   *truncates = "";
	StringInfoData out;
	ListCell   *lc;

	if (pipeline->truncates != NULL)
		truncates = psprintf(" UNION ALL SELECT %s%s, 'e', x.at FROM (SELECT DISTINCT %s FROM \"elt: dated\") AS e, "
							 "pg_catalog.unnest(%s::pg_catalog.timestamptz[]) AS x (at)",
							 keys, nulls, keys, quote_literal_cstr(pipeline->truncates));
	initStringInfo(&out);

	/* what the transform makes of the batch */
	appendStringInfo(&out,
					 "WITH \"elt: written\" AS (WITH changes AS (" ELT_CHANGES " AND b.op OPERATOR(pg_catalog.<>) 'd') "
					 "SELECT * FROM (\n%s\n) AS output), "
					 "\"elt: deleted\" AS (WITH changes AS (" ELT_CHANGES " AND b.op OPERATOR(pg_catalog.=) 'd') "
					 "SELECT * FROM (\n%s\n) AS output), ", select, elt_output_select(pipeline, columns, true));
	appendStringInfo(&out,
					 "\"elt: events\" AS (SELECT %s%s, valid_from::pg_catalog.timestamptz AS " AT ", 'w' AS " KIND " FROM \"elt: written\" "
					 "UNION ALL SELECT %s", casted_keys(columns), own_values, casted_keys(columns));
	foreach(lc, columns)
	{
		if (elt_output_is(lfirst(lc), ELT_OUTPUT_VALUES))
			appendStringInfoString(&out, ", NULL");
	}
	appendStringInfoString(&out, ", valid_from::pg_catalog.timestamptz, 'd' FROM \"elt: deleted\"), ");

	/* behind what is there; with the columns that an image lacks from there */
	appendStringInfo(&out, "\"elt: dated\" AS MATERIALIZED (SELECT %s%s", e_keys,
					 with_comma(elt_output_list(columns, ELT_OUTPUT_VALUES, "e.")));
	foreach(lc, kept)
		appendStringInfo(&out, ", t.%s", quote_identifier(lfirst(lc)));
	appendStringInfo(&out, ", e." KIND ", e." AT "%s AS " AT " FROM (SELECT *, pg_catalog.min(" AT ") OVER (PARTITION BY %s) AS " FIRST
					 " FROM \"elt: events\") AS e LEFT JOIN %s AS t ON %s AND t.valid_to IS NULL), ",
					 pipeline->late ? "" :
					 " OPERATOR(pg_catalog.+) CASE WHEN t.valid_from OPERATOR(pg_catalog.>) e." FIRST
					 " THEN (t.valid_from OPERATOR(pg_catalog.-) e." FIRST ") OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval"
					 " ELSE '0'::pg_catalog.interval END",
					 keys, target, elt_output_key_match(columns, "e"));

	/* the versions that may end elsewhere now, and all marks of these keys */
	appendStringInfo(&out,
					 "\"elt: touched\" AS MATERIALIZED (SELECT %s, t.valid_from, t.valid_to FROM (SELECT %s, pg_catalog.min(" AT ") AS " FIRST
					 " FROM \"elt: dated\" GROUP BY %s) AS e JOIN %s AS t ON %s "
					 "AND (t.valid_to IS NULL OR t.valid_to OPERATOR(pg_catalog.>) e." FIRST ")), ",
					 t_keys, keys, keys, target, elt_output_key_match(columns, "e"));
	appendStringInfo(&out,
					 "\"elt: marks\" AS MATERIALIZED (SELECT *, pg_catalog.first_value(" AT ") OVER (PARTITION BY %s ORDER BY " AT
					 " GROUPS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS " UNTIL " FROM ("
					 "SELECT %s%s, " KIND ", " AT " FROM \"elt: dated\" "
					 "UNION ALL SELECT %s%s, 't', valid_from FROM \"elt: touched\" "
					 "UNION ALL SELECT %s%s, 'e', valid_to FROM \"elt: touched\" WHERE valid_to IS NOT NULL%s) AS m), ",
					 keys, keys, values, keys, nulls, keys, nulls, truncates);

	/*
	 * The insert waits for the other two, or a constraint that forbids
	 * versions to overlap would see the old ends.
	 */
	appendStringInfo(&out,
					 "\"elt: removed\" AS (DELETE FROM %s AS t USING \"elt: marks\" AS e WHERE e." KIND " OPERATOR(pg_catalog.=) 'd' "
					 "AND %s AND t.valid_from OPERATOR(pg_catalog.=) e." AT " RETURNING 1), ",
					 target, elt_output_key_match(columns, "e"));
	appendStringInfo(&out,
					 "\"elt: ended\" AS (UPDATE %s AS t SET valid_to = e." UNTIL " FROM \"elt: marks\" AS e WHERE e." KIND " OPERATOR(pg_catalog.=) 't' "
					 "AND %s AND t.valid_from OPERATOR(pg_catalog.=) e." AT " AND t.valid_to IS DISTINCT FROM e." UNTIL
					 " AND NOT EXISTS (SELECT FROM \"elt: dated\" AS d WHERE %s AND d." AT " OPERATOR(pg_catalog.=) e." AT ") RETURNING 1) ",
					 target, elt_output_key_match(columns, "e"), same_key(columns, "d", "e"));
	appendStringInfo(&out,
					 "INSERT INTO %s (%s%s, valid_from, valid_to)%s SELECT %s%s, " AT ", " UNTIL " FROM \"elt: marks\" WHERE " KIND " OPERATOR(pg_catalog.=) 'w' "
					 "AND (SELECT pg_catalog.count(*) FROM \"elt: removed\") OPERATOR(pg_catalog.>=) 0 "
					 "AND (SELECT pg_catalog.count(*) FROM \"elt: ended\") OPERATOR(pg_catalog.>=) 0 "
					 "ON CONFLICT (%s, valid_from) DO UPDATE SET ",
					 target, keys, values, elt_output_overrides_identity(columns) ? " OVERRIDING SYSTEM VALUE" : "",
					 keys, values, keys);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);

		if (elt_output_is(column, ELT_OUTPUT_VALUES) && column->identity != 'a')
			appendStringInfo(&out, "%s = excluded.%s, ", quote_identifier(column->name), quote_identifier(column->name));
	}
	appendStringInfoString(&out, "valid_to = excluded.valid_to");
	return out.data;
}

/* ", a, b": the columns that are no key, and those kept. */
static char *
values_of(List *columns, List *kept, const char *prefix)
{
	StringInfoData out;
	ListCell   *lc;

	initStringInfo(&out);
	appendStringInfoString(&out, with_comma(elt_output_list(columns, ELT_OUTPUT_VALUES, prefix)));
	foreach(lc, kept)
		appendStringInfo(&out, ", %s%s", prefix, quote_identifier(lfirst(lc)));
	return out.data;
}

/* ", NULL" for each of them. */
static char *
nulls_for(List *columns, List *kept)
{
	StringInfoData out;
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		if (elt_output_is(lfirst(lc), ELT_OUTPUT_VALUES))
			appendStringInfoString(&out, ", NULL");
	}
	foreach(lc, kept)
		appendStringInfoString(&out, ", NULL");
	return out.data;
}

static char *
with_comma(char *list)
{
	return list[0] != '\0' ? psprintf(", %s", list) : list;
}

/* The key as the target has it, so that it is grouped by what the index takes for equal. */
static char *
casted_keys(List *columns)
{
	StringInfoData out;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (!column->in_key)
			continue;
		appendStringInfo(&out, "%s%s::%s AS %s", separator, name,
						 format_type_extended(column->target_type, -1, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY),
						 name);
		separator = ", ";
	}
	return out.data;
}

static char *
same_key(List *columns, const char *left, const char *right)
{
	StringInfoData out;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (!column->in_key)
			continue;
		appendStringInfoString(&out, separator);
		generate_operator_clause(&out, psprintf("%s.%s", left, name), column->target_type, column->equality,
								 psprintf("%s.%s", right, name), column->target_type);
		separator = " AND ";
	}
	return out.data;
}
