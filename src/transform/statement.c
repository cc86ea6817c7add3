/*
 * statement.c
 *	  The SQL that applies a batch.
 *
 * One statement transforms and writes: an INSERT ... SELECT, with ON CONFLICT
 * for an upsert, or a DELETE ... USING; what a history takes is in history.c.
 * The batch is there as the ephemeral relation elt_batch; the transform sees
 * it as "changes", which adds "record" and notes each change as it is read
 * (see elt_note_change).
 *
 * The text is parsed as the pipeline's owner, with the owner's search_path;
 * what it takes from catalogs is quoted, functions and operators are qualified.
 * SPI must be connected and elt_batch registered where a transform is looked at.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "transform/options.h"
#include "transform/output.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "utils/builtins.h"

#define WITH_CHANGES "WITH changes AS (" ELT_CHANGES ") "

static char *delete_statement(const EltPipeline *pipeline, List *columns);

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
	char	   *assignments;
	StringInfoData out;

	initStringInfo(&out);
	if (kind == ELT_STATEMENT_DELETE)
		return delete_statement(pipeline, columns);
	if (kind == ELT_STATEMENT_UPDATE)
	{
		assignments = elt_output_assignments(columns, "o");
		if (assignments == NULL)
			return NULL;
		return psprintf(WITH_CHANGES "UPDATE %s AS t SET %s FROM (\n%s\n) AS o WHERE %s",
						target, assignments, elt_output_select(pipeline, columns, false),
						elt_output_key_match(columns, "o"));
	}

	appendStringInfo(&out, "INSERT INTO %s (%s)%s " WITH_CHANGES "SELECT %s FROM (\n%s\n) AS output",
					 target, elt_output_list(columns, ELT_OUTPUT_ALL, ""),
					 elt_output_overrides_identity(columns) ? " OVERRIDING SYSTEM VALUE" : "",
					 elt_output_list(columns, ELT_OUTPUT_ALL, ""), elt_output_select(pipeline, columns, false));
	if (kind == ELT_STATEMENT_INSERT)
		appendStringInfo(&out, " WHERE NOT EXISTS (SELECT FROM %s AS t WHERE %s)", target,
						 elt_output_key_match(columns, "output"));
	if (pipeline->key != NIL)
	{
		appendStringInfo(&out, " ON CONFLICT (%s) DO ", elt_output_list(columns, ELT_OUTPUT_KEY, ""));
		assignments = kind == ELT_STATEMENT_WRITE ? elt_output_assignments(columns, "excluded") : NULL;
		if (assignments != NULL)
			appendStringInfo(&out, "UPDATE SET %s", assignments);
		else
			appendStringInfoString(&out, "NOTHING");
	}
	return out.data;
}

static char *
delete_statement(const EltPipeline *pipeline, List *columns)
{
	char	   *target = elt_target_name(pipeline);
	char	   *select = elt_output_select(pipeline, columns, true);
	char	   *match = elt_output_key_match(columns, "o");

	if (elt_pipeline_deletes_softly(pipeline))
		return psprintf(WITH_CHANGES "UPDATE %s AS t SET " ELT_DELETED_AT " = o." ELT_DELETED_AT " FROM (\n%s\n) AS o WHERE %s",
						target, select, match);
	return psprintf(WITH_CHANGES "DELETE FROM %s AS t USING (\n%s\n) AS o WHERE %s", target, select, match);
}

char *
elt_statement_filter(const char *filter)
{
	return psprintf(WITH_CHANGES "SELECT change_id FROM changes WHERE (\n%s\n)", filter);
}

char *
elt_statement_forget(const EltPipeline *pipeline)
{
	return psprintf("DELETE FROM %s AS t USING " ELT_BATCH_RELATION " AS b "
					"WHERE t.change_id OPERATOR(pg_catalog.=) b.change_id", elt_target_name(pipeline));
}

/* What a truncate at the source, at that time, means for the target. */
char *
elt_statement_truncate(const EltPipeline *pipeline, bool may_truncate, const char *at)
{
	char	   *target = elt_target_name(pipeline);

	if (pipeline->history)
		return psprintf("UPDATE %s SET " ELT_VALID_TO " = GREATEST(%s::pg_catalog.timestamptz, "
						ELT_VALID_FROM " OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval) WHERE " ELT_VALID_TO " IS NULL",
						target, quote_literal_cstr(at));
	if (elt_pipeline_deletes_softly(pipeline))
		return psprintf("UPDATE %s SET " ELT_DELETED_AT " = %s WHERE " ELT_DELETED_AT " IS NULL",
						target, quote_literal_cstr(at));
	/* an owner with no TRUNCATE right still has the means */
	return psprintf(may_truncate ? "TRUNCATE %s" : "DELETE FROM %s", target);
}
