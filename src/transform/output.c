/*
 * output.c
 *	  The output columns of a pipeline, and the SELECT that makes them of
 *	  changes.
 *
 * They are the columns that target and source have in common, or those of
 * the transform.  What a mode needs beside is of the same list: the time a
 * version of a row begins (mode history), and the time the row was deleted
 * (option deletes: soft); by column name both are the commit's, a transform
 * names them itself.
 *
 * Raises what does not match the target.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "transform/options.h"
#include "transform/output.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"

#define MAX_CASTS		10		/* columns that are cheaper to fetch one by
								 * one */
#define DELETED_AT_OF_CHANGE \
	"CASE WHEN op OPERATOR(pg_catalog.=) 'd' THEN commit_ts END"

static EltOutputColumn *make_column(const EltPipeline *pipeline, const char *name, const char *expression);
static bool is_plain_type(Oid type);
static bool contains_name(Datum names, const char *name);
static List *match_target(const EltPipeline *pipeline, List *columns);
static void check_own_columns(const EltPipeline *pipeline, List *columns);
static void mark_key(const EltPipeline *pipeline, Relation target, List *columns);
static EltOutputColumn *find_column(List *columns, const char *name);

/* The target's columns that the source has too. */
List *
elt_output_named(const EltPipeline *pipeline, List *names, Datum unchanged)
{
	List	   *columns = NIL;
	bool		soft_deletes = elt_pipeline_deletes_softly(pipeline);
	ListCell   *lc;

	foreach(lc, names)
	{
		const char *name = lfirst(lc);
		AttrNumber	attnum = get_attnum(pipeline->target, name);

		if (attnum <= 0 || get_attgenerated(pipeline->target, attnum) != '\0' ||
			(unchanged != 0 && contains_name(unchanged, name)) ||
			(pipeline->history && (strcmp(name, ELT_VALID_FROM) == 0 || strcmp(name, ELT_VALID_TO) == 0)) ||
			(soft_deletes && strcmp(name, ELT_DELETED_AT) == 0))
			continue;
		columns = lappend(columns, make_column(pipeline, name, NULL));
	}
	if (columns == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("relation %s and table \"%s\" have no column name in common",
						pipeline->relation, get_rel_name(pipeline->target)),
				 errhint("Give the pipeline a transform.")));
	if (pipeline->history)
		columns = lappend(columns, make_column(pipeline, ELT_VALID_FROM, "commit_ts"));
	if (soft_deletes)
		columns = lappend(columns, make_column(pipeline, ELT_DELETED_AT, DELETED_AT_OF_CHANGE));
	return match_target(pipeline, columns);
}

static EltOutputColumn *
make_column(const EltPipeline *pipeline, const char *name, const char *expression)
{
	EltOutputColumn *column = palloc0(sizeof(EltOutputColumn));

	column->name = pstrdup(name);
	column->type = expression ? TIMESTAMPTZOID : get_atttype(pipeline->target, get_attnum(pipeline->target, name));
	column->expression = expression;
	return column;
}

static bool
contains_name(Datum names, const char *name)
{
	Datum	   *elements;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(names), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		if (strcmp(TextDatumGetCString(elements[i]), name) == 0)
			return true;
	}
	return false;
}

/* The columns that the transform gives. SPI is connected, elt_batch registered. */
List *
elt_output_transform(const EltPipeline *pipeline, Query **query)
{
	SPIPlanPtr	plan = elt_statement_prepare(psprintf("WITH changes AS (" ELT_CHANGES ") SELECT * FROM (\n%s\n) AS output",
													  pipeline->transform));
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	List	   *columns = NIL;

	for (int i = 0; i < source->resultDesc->natts; i++)
	{
		EltOutputColumn *column = palloc0(sizeof(EltOutputColumn));

		column->name = pstrdup(NameStr(TupleDescAttr(source->resultDesc, i)->attname));
		column->type = TupleDescAttr(source->resultDesc, i)->atttypid;
		columns = lappend(columns, column);
	}
	if (query != NULL)
		*query = copyObject(linitial_node(Query, source->query_list));
	SPI_freeplan(plan);
	return match_target(pipeline, columns);
}

/* ---- against the target ---- */

/* Adds what the target says of each column; raises where it does not know it. */
static List *
match_target(const EltPipeline *pipeline, List *columns)
{
	Relation	target = table_open(pipeline->target, AccessShareLock);
	StringInfoData unknown;
	ListCell   *lc;

	initStringInfo(&unknown);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		AttrNumber	attnum = get_attnum(pipeline->target, column->name);

		if (attnum <= 0)
		{
			appendStringInfo(&unknown, "%s\"%s\"", unknown.len > 0 ? ", " : "", column->name);
			continue;
		}
		column->target_type = TupleDescAttr(RelationGetDescr(target), attnum - 1)->atttypid;
		column->identity = TupleDescAttr(RelationGetDescr(target), attnum - 1)->attidentity;
	}
	if (unknown.len > 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the transform's output has columns that table \"%s\" has not", RelationGetRelationName(target)),
				 errdetail("Unknown columns: %s.", unknown.data),
				 errhint("Name each output column as the target's column, with AS.")));
	check_own_columns(pipeline, columns);
	mark_key(pipeline, target, columns);
	table_close(target, NoLock);
	return columns;
}

/* Times that the mode needs of a transform, or sets itself. */
static void
check_own_columns(const EltPipeline *pipeline, List *columns)
{
	if (pipeline->history && find_column(columns, ELT_VALID_FROM) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the transform of a history gives no column \"%s\"", ELT_VALID_FROM),
				 errdetail("It tells since when a version of a row holds."),
				 errhint("Add commit_ts AS %s to its SELECT list.", ELT_VALID_FROM)));
	if (pipeline->history && find_column(columns, ELT_VALID_TO) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("the transform of a history gives column \"%s\"", ELT_VALID_TO),
				 errdetail("A version ends where the next one begins: the pipeline sets it."),
				 errhint("Leave it out of the transform's SELECT list.")));
	if (elt_pipeline_deletes_softly(pipeline) && find_column(columns, ELT_DELETED_AT) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the transform of a pipeline with the option \"deletes\": \"soft\" gives no column \"%s\"", ELT_DELETED_AT),
				 errhint("Add %s AS %s to its SELECT list.", "CASE WHEN op = 'd' THEN commit_ts END", ELT_DELETED_AT)));
}

static void
mark_key(const EltPipeline *pipeline, Relation target, List *columns)
{
	List	   *unique = elt_target_unique_columns(pipeline);
	ListCell   *lc;

	foreach(lc, pipeline->key)
	{
		EltOutputColumn *column = find_column(columns, lfirst(lc));

		if (column == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("the key column \"%s\" of table \"%s\" is not among the pipeline's output columns",
							(char *) lfirst(lc), RelationGetRelationName(target)),
					 pipeline->transform ? errhint("Add it to the transform's SELECT list.") :
					 errhint("Give the pipeline a transform, or a key that relation %s has.", pipeline->relation)));
		column->in_key = true;
		column->equality = elt_target_key_equality(target, unique, column->name);
	}
}

static EltOutputColumn *
find_column(List *columns, const char *name)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		if (strcmp(((EltOutputColumn *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	}
	return NULL;
}

/* ---- the SELECT ---- */

/*
 * The SELECT that makes target rows of changes.  By column name: a few plain
 * columns are cheapest to fetch one by one; many, or such as need more than
 * their text, come from the whole record in one pass.  OFFSET 0 keeps the
 * planner from making that pass once per column.
 */
char *
elt_output_select(const EltPipeline *pipeline, List *columns, bool keys_only)
{
	StringInfoData out;
	const char *separator = "SELECT ";
	int			count = 0;
	bool		plain = true;
	ListCell   *lc;

	if (pipeline->transform != NULL)
		return pipeline->transform;

	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);

		if (column->expression != NULL || (keys_only && !column->in_key))
			continue;
		plain = plain && is_plain_type(column->target_type);
		count++;
	}

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (keys_only && !column->in_key && column->expression == NULL)
			continue;
		if (column->expression != NULL)
			appendStringInfo(&out, "%s%s AS %s", separator, column->expression, name);
		else if (plain && count <= MAX_CASTS)
			appendStringInfo(&out, "%selt.field(record, %s)::%s AS %s", separator,
							 quote_literal_cstr(column->name),
							 format_type_extended(column->target_type, -1,
												  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY),
							 name);
		else
			appendStringInfo(&out, "%s(s.r).%s AS %s", separator, name, name);
		separator = ", ";
	}
	if (plain && count <= MAX_CASTS)
		appendStringInfoString(&out, " FROM changes");
	else
		appendStringInfo(&out, " FROM (SELECT elt.populate(NULL::%s, record) AS r, op, commit_ts FROM changes OFFSET 0) AS s",
						 elt_target_name(pipeline));
	return out.data;
}

/* A type whose value is the JSON scalar's text, read by its input function. */
static bool
is_plain_type(Oid type)
{
	char		category;
	bool		preferred;

	if (get_typtype(type) == TYPTYPE_ENUM)
		return true;
	if (get_typtype(type) != TYPTYPE_BASE || type == JSONOID || type == JSONBOID || type == XMLOID)
		return false;
	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_NUMERIC || category == TYPCATEGORY_STRING ||
		category == TYPCATEGORY_DATETIME || category == TYPCATEGORY_TIMESPAN ||
		category == TYPCATEGORY_BOOLEAN || category == TYPCATEGORY_NETWORK ||
		type == UUIDOID || type == BYTEAOID;
}

/* ---- lists of columns ---- */

List *
elt_output_names(List *columns)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, columns)
		names = lappend(names, ((EltOutputColumn *) lfirst(lc))->name);
	return names;
}

char *
elt_output_list(List *columns, EltOutputWhich which, const char *prefix)
{
	StringInfoData out;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);

		if (!elt_output_is(column, which))
			continue;
		appendStringInfo(&out, "%s%s%s", separator, prefix, quote_identifier(column->name));
		separator = ", ";
	}
	return out.data;
}

bool
elt_output_is(const EltOutputColumn *column, EltOutputWhich which)
{
	switch (which)
	{
		case ELT_OUTPUT_ALL:
			return true;
		case ELT_OUTPUT_KEY:
			return column->in_key;
		case ELT_OUTPUT_VALUES:
			break;
	}
	return !column->in_key && strcmp(column->name, ELT_VALID_FROM) != 0;
}

/* t.key = output.key, by the operators of the key's index. */
char *
elt_output_key_match(List *columns, const char *output)
{
	StringInfoData out;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (column->in_key)
		{
			appendStringInfoString(&out, separator);
			generate_operator_clause(&out, psprintf("t.%s", name), column->target_type, column->equality,
									 psprintf("%s.%s", output, name), column->type);
			separator = " AND ";
		}
	}
	return out.data;
}

/* NULL where there is nothing to assign: only key columns. */
char *
elt_output_assignments(List *columns, const char *output)
{
	StringInfoData out;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, columns)
	{
		EltOutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (column->in_key || column->identity == ATTRIBUTE_IDENTITY_ALWAYS)
			continue;
		appendStringInfo(&out, "%s%s = %s.%s", separator, name, output, name);
		separator = ", ";
	}
	return separator[0] != '\0' ? out.data : NULL;
}

bool
elt_output_overrides_identity(List *columns)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		if (((EltOutputColumn *) lfirst(lc))->identity != '\0')
			return true;
	}
	return false;
}
