/*
 * statement.c
 *	  The SQL that applies a batch.
 *
 * One statement transforms and writes: an INSERT ... SELECT, with ON CONFLICT
 * for an upsert, or a DELETE ... USING.  The batch is there as the ephemeral
 * relation elt_batch; the transform sees it as "changes", which adds "record"
 * and notes each change as it is read (see elt_note_change).
 *
 * The text is parsed as the pipeline's owner, with the owner's search_path;
 * what it takes from catalogs is quoted, functions and operators are qualified.
 * SPI must be connected and elt_batch registered where a transform is looked at.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"

#define CHANGES \
	"WITH changes AS (SELECT b.*, COALESCE(b.after, b.before, b.key) AS record FROM " ELT_BATCH_RELATION " AS b " \
	"WHERE elt.note_change(b.change_id)) "
#define MAX_CASTS		10		/* columns that are cheaper to fetch one by
								 * one */

typedef struct OutputColumn
{
	char	   *name;
	Oid			type;			/* of the output */
	Oid			target_type;
	char		identity;		/* attidentity */
	bool		in_key;
	Oid			equality;		/* of the key's index */
} OutputColumn;

static void append_names(StringInfo out, List *columns);
static void append_key_names(StringInfo out, List *columns);
static void append_key_match(StringInfo out, List *columns, const char *output);
static bool append_assignments(StringInfo out, List *columns, const char *output);
static char *source_of(const EltPipeline *pipeline, List *columns, bool keys_only);
static bool is_plain_type(Oid type);
static List *match_target(const EltPipeline *pipeline, List *columns);
static bool contains_name(Datum names, const char *name);

SPIPlanPtr
elt_statement_prepare(const char *query)
{
	SPIPlanPtr	plan = SPI_prepare(query, 0, NULL);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	return plan;
}

/* NULL where a statement of this kind has nothing to do. */
char *
elt_statement_build(const EltPipeline *pipeline, EltStatementKind kind, List *columns)
{
	char	   *target = elt_target_name(pipeline);
	bool		overriding = false;
	StringInfoData out;
	ListCell   *lc;

	initStringInfo(&out);
	if (kind == ELT_STATEMENT_DELETE)
	{
		appendStringInfo(&out, CHANGES "DELETE FROM %s AS t USING (\n%s\n) AS o WHERE ",
						 target, source_of(pipeline, columns, true));
		append_key_match(&out, columns, "o");
		return out.data;
	}
	if (kind == ELT_STATEMENT_UPDATE)
	{
		appendStringInfo(&out, CHANGES "UPDATE %s AS t SET ", target);
		if (!append_assignments(&out, columns, "o"))
			return NULL;
		appendStringInfo(&out, " FROM (\n%s\n) AS o WHERE ", source_of(pipeline, columns, false));
		append_key_match(&out, columns, "o");
		return out.data;
	}

	foreach(lc, columns)
	{
		if (((OutputColumn *) lfirst(lc))->identity != '\0')
			overriding = true;
	}
	appendStringInfo(&out, "INSERT INTO %s (", target);
	append_names(&out, columns);
	appendStringInfo(&out, ")%s " CHANGES "SELECT ", overriding ? " OVERRIDING SYSTEM VALUE" : "");
	append_names(&out, columns);
	appendStringInfo(&out, " FROM (\n%s\n) AS output", source_of(pipeline, columns, false));
	if (kind == ELT_STATEMENT_INSERT)
	{
		appendStringInfo(&out, " WHERE NOT EXISTS (SELECT FROM %s AS t WHERE ", target);
		append_key_match(&out, columns, "output");
		appendStringInfoChar(&out, ')');
	}
	if (pipeline->key != NIL)
	{
		StringInfoData assignments;

		initStringInfo(&assignments);
		appendStringInfoString(&out, " ON CONFLICT (");
		append_key_names(&out, columns);
		if (kind == ELT_STATEMENT_WRITE && append_assignments(&assignments, columns, "excluded"))
			appendStringInfo(&out, ") DO UPDATE SET %s", assignments.data);
		else
			appendStringInfoString(&out, ") DO NOTHING");
	}
	return out.data;
}

char *
elt_statement_filter(const char *filter)
{
	return psprintf(CHANGES "SELECT change_id FROM changes WHERE (\n%s\n)", filter);
}

char *
elt_statement_forget(const EltPipeline *pipeline)
{
	return psprintf("DELETE FROM %s AS t USING " ELT_BATCH_RELATION " AS b "
					"WHERE t.change_id OPERATOR(pg_catalog.=) b.change_id", elt_target_name(pipeline));
}

List *
elt_statement_names(List *columns)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, columns)
		names = lappend(names, ((OutputColumn *) lfirst(lc))->name);
	return names;
}

static void
append_names(StringInfo out, List *columns)
{
	ListCell   *lc;

	foreach(lc, columns)
		appendStringInfo(out, "%s%s", foreach_current_index(lc) ? ", " : "",
						 quote_identifier(((OutputColumn *) lfirst(lc))->name));
}

static void
append_key_names(StringInfo out, List *columns)
{
	const char *separator = "";
	ListCell   *lc;

	foreach(lc, columns)
	{
		OutputColumn *column = lfirst(lc);

		if (column->in_key)
		{
			appendStringInfo(out, "%s%s", separator, quote_identifier(column->name));
			separator = ", ";
		}
	}
}

/* t.key = output.key, by the operators of the key's index. */
static void
append_key_match(StringInfo out, List *columns, const char *output)
{
	const char *separator = "";
	ListCell   *lc;

	foreach(lc, columns)
	{
		OutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (column->in_key)
		{
			appendStringInfoString(out, separator);
			generate_operator_clause(out, psprintf("t.%s", name), column->target_type, column->equality,
									 psprintf("%s.%s", output, name), column->type);
			separator = " AND ";
		}
	}
}

/* False where there is nothing to assign: only key columns. */
static bool
append_assignments(StringInfo out, List *columns, const char *output)
{
	const char *separator = "";
	ListCell   *lc;

	foreach(lc, columns)
	{
		OutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (column->in_key || column->identity == ATTRIBUTE_IDENTITY_ALWAYS)
			continue;
		appendStringInfo(out, "%s%s = %s.%s", separator, name, output, name);
		separator = ", ";
	}
	return separator[0] != '\0';
}

/*
 * The SELECT that makes target rows of changes.  By column name: a few plain
 * columns are cheapest to fetch one by one; many, or such as need more than
 * their text, come from the whole record in one pass.  OFFSET 0 keeps the
 * planner from making that pass once per column.
 */
static char *
source_of(const EltPipeline *pipeline, List *columns, bool keys_only)
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
		OutputColumn *column = lfirst(lc);

		if (keys_only && !column->in_key)
			continue;
		plain = plain && is_plain_type(column->target_type);
		count++;
	}

	initStringInfo(&out);
	foreach(lc, columns)
	{
		OutputColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		if (keys_only && !column->in_key)
			continue;
		if (plain && count <= MAX_CASTS)
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
		appendStringInfo(&out, " FROM (SELECT elt.populate(NULL::%s, record) AS r FROM changes OFFSET 0) AS s",
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

/* The target's columns that the source has too. */
List *
elt_statement_named_columns(const EltPipeline *pipeline, List *names, Datum unchanged)
{
	List	   *columns = NIL;
	ListCell   *lc;

	foreach(lc, names)
	{
		AttrNumber	attnum = get_attnum(pipeline->target, lfirst(lc));
		OutputColumn *column;

		if (attnum <= 0 || get_attgenerated(pipeline->target, attnum) != '\0' ||
			(unchanged != 0 && contains_name(unchanged, lfirst(lc))))
			continue;
		column = palloc0(sizeof(OutputColumn));
		column->name = lfirst(lc);
		column->type = get_atttype(pipeline->target, attnum);
		columns = lappend(columns, column);
	}
	if (columns == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("relation %s and table \"%s\" have no column name in common",
						pipeline->relation, get_rel_name(pipeline->target)),
				 errhint("Give the pipeline a transform.")));
	return match_target(pipeline, columns);
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
elt_statement_transform_columns(const EltPipeline *pipeline, Query **query)
{
	SPIPlanPtr	plan = elt_statement_prepare(psprintf(CHANGES "SELECT * FROM (\n%s\n) AS output", pipeline->transform));
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	List	   *columns = NIL;

	for (int i = 0; i < source->resultDesc->natts; i++)
	{
		OutputColumn *column = palloc0(sizeof(OutputColumn));

		column->name = pstrdup(NameStr(TupleDescAttr(source->resultDesc, i)->attname));
		column->type = TupleDescAttr(source->resultDesc, i)->atttypid;
		columns = lappend(columns, column);
	}
	if (query != NULL)
		*query = copyObject(linitial_node(Query, source->query_list));
	SPI_freeplan(plan);
	return match_target(pipeline, columns);
}

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
		OutputColumn *column = lfirst(lc);
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

	foreach(lc, pipeline->key)
	{
		OutputColumn *column = NULL;
		ListCell   *cell;

		foreach(cell, columns)
		{
			if (strcmp(((OutputColumn *) lfirst(cell))->name, lfirst(lc)) == 0)
				column = lfirst(cell);
		}
		if (column == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("the key column \"%s\" of table \"%s\" is not among the pipeline's output columns",
							(char *) lfirst(lc), RelationGetRelationName(target)),
					 pipeline->transform ? errhint("Add it to the transform's SELECT list.") :
					 errhint("Give the pipeline a transform, or a key that relation %s has.", pipeline->relation)));
		column->in_key = true;
		column->equality = elt_target_key_equality(target, pipeline->key, column->name);
	}
	table_close(target, NoLock);
	return columns;
}
