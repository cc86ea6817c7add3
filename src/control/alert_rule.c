/*
 * alert_rule.c
 *	  Rules of users: their queries, and the SQL functions on rules, alerts and
 *	  silences.
 *
 * The query of a rule is user code.  It runs as the role that wrote it, with
 * the search_path stored then, and in a read-only transaction.  The SQL
 * functions pass the calling role to functions of the same purpose in the
 * install script, which run as the extension's owner and decide what that
 * role may do.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "argument.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "control/alert.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "owner.h"
#include "parser/parse_coerce.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

#define MAX_ROWS		1000

PG_FUNCTION_INFO_V1(elt_create_alert_rule);
PG_FUNCTION_INFO_V1(elt_alter_alert_rule);
PG_FUNCTION_INFO_V1(elt_drop_alert_rule);
PG_FUNCTION_INFO_V1(elt_silence_alert);
PG_FUNCTION_INFO_V1(elt_expire_silence);
PG_FUNCTION_INFO_V1(elt_ack_alert);
PG_FUNCTION_INFO_V1(elt_alert_rules_changed);

static void check_query(const char *query);
static void put_rule(FunctionCallInfo fcinfo, bool create);

/* ---- queries ---- */

Jsonb *
elt_alert_rule_query(const char *query, Oid owner, const char *search_path)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		was_read_only = XactReadOnly;
	EltOwnerScope scope;
	MemoryContext spi;
	Jsonb	   *rows = NULL;
	Datum		value;
	bool		isnull;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of the alert rule does not exist any more"),
				 errhint("Set its query again with elt.alter_alert_rule().")));

	/* an error takes this back with the caller's subtransaction */
	XactReadOnly = true;
	elt_owner_enter(owner, search_path, &scope);
	if (SPI_execute(psprintf("SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(sample)) "
							 "FROM (SELECT * FROM (\n%s\n) AS rule LIMIT %d) AS sample", query, MAX_ROWS + 1),
					true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "SPI_execute failed");
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	spi = MemoryContextSwitchTo(caller);
	if (!isnull)
		rows = DatumGetJsonbPCopy(value);
	MemoryContextSwitchTo(spi);
	elt_owner_leave(&scope);
	XactReadOnly = was_read_only;

	if (rows != NULL && JB_ROOT_COUNT(rows) > MAX_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the query of the alert rule returns more than %d rows", MAX_ROWS),
				 errhint("Aggregate them: each row is an alert of its own.")));
	return rows;
}

/* A rule's query is one SELECT that the caller can plan, with a numeric column "value". */
static void
check_query(const char *query)
{
	List	   *statements = raw_parser(query, RAW_PARSE_DEFAULT);
	EltOwnerScope scope;
	SPIPlanPtr	plan;
	TupleDesc	desc;
	bool		has_value = false;

	if (list_length(statements) != 1 || !IsA(linitial_node(RawStmt, statements)->stmt, SelectStmt))
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query of an alert rule must be one SELECT"),
				 errhint("Write a SELECT with a numeric column \"value\"; its other columns are labels.")));

	elt_owner_enter(GetUserId(), GetConfigOption("search_path", false, false), &scope);
	plan = SPI_prepare(psprintf("SELECT * FROM (\n%s\n) AS rule", query), 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	desc = ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->resultDesc;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (strcmp(NameStr(column->attname), "value") == 0)
			has_value = (TypeCategory(column->atttypid) == TYPCATEGORY_NUMERIC);
	}
	elt_owner_leave(&scope);

	if (!has_value)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the query of an alert rule must return a numeric column \"value\""),
				 errdetail("It is compared with the threshold."),
				 errhint("Write it like SELECT region, count(*) AS value FROM late_orders GROUP BY region.")));
}

/* ---- SQL functions ---- */

Datum
elt_create_alert_rule(PG_FUNCTION_ARGS)
{
	(void) elt_argument_text(fcinfo, 1, "query");
	put_rule(fcinfo, true);
	PG_RETURN_VOID();
}

Datum
elt_alter_alert_rule(PG_FUNCTION_ARGS)
{
	put_rule(fcinfo, false);
	PG_RETURN_VOID();
}

static void
put_rule(FunctionCallInfo fcinfo, bool create)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, FLOAT8OID, INTERVALOID, TEXTOID, TEXTOID, TEXTOID,
		INTERVALOID, INTERVALOID, INTERVALOID, INTERVALOID, BOOLOID, TEXTOID, BOOLOID
	};
	Datum		values[lengthof(types)] = {0};
	char		nulls[] = "               ";
	EltSpi		spi;

	(void) elt_argument_text(fcinfo, 0, "rule");
	if (!PG_ARGISNULL(1))
		check_query(text_to_cstring(PG_GETARG_TEXT_PP(1)));

	/*
	 * $1 who calls, $2.. as they were passed, then the search_path and what
	 * to do
	 */
	values[0] = ObjectIdGetDatum(GetUserId());
	for (int i = 0; i < 12; i++)
	{
		bool		given = i < PG_NARGS() && !PG_ARGISNULL(i);

		values[i + 1] = given ? PG_GETARG_DATUM(i) : (Datum) 0;
		nulls[i + 1] = given ? ' ' : 'n';
	}
	values[13] = CStringGetTextDatum(GetConfigOption("search_path", false, false));
	values[14] = BoolGetDatum(create);

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.put_alert_rule($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
				lengthof(types), types, values, nulls);
	elt_spi_end(&spi);
}

Datum
elt_drop_alert_rule(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId()), CStringGetTextDatum(elt_argument_text(fcinfo, 0, "rule"))};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.delete_alert_rule($1, $2)", 2, types, values, NULL);
	elt_spi_end(&spi);
	PG_RETURN_VOID();
}

Datum
elt_silence_alert(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, TEXTOID, JSONBOID, INTERVALOID, TEXTOID};
	Datum		values[lengthof(types)] = {ObjectIdGetDatum(GetUserId())};
	char		nulls[] = "     ";
	int64		silence_id;
	EltSpi		spi;

	for (int i = 0; i < 4; i++)
	{
		values[i + 1] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.put_silence($1, $2, $3, $4, $5)", lengthof(types), types, values, nulls);
	silence_id = elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	PG_RETURN_INT64(silence_id);
}

Datum
elt_expire_silence(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId()), PG_ARGISNULL(0) ? 0 : PG_GETARG_DATUM(0)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.end_silence($1, $2)", 2, types, values, PG_ARGISNULL(0) ? " n" : NULL);
	elt_spi_end(&spi);
	PG_RETURN_VOID();
}

Datum
elt_ack_alert(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, INT8OID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId()),
	PG_ARGISNULL(0) ? 0 : PG_GETARG_DATUM(0), PG_ARGISNULL(1) ? 0 : PG_GETARG_DATUM(1)};
	char		nulls[] = {' ', PG_ARGISNULL(0) ? 'n' : ' ', PG_ARGISNULL(1) ? 'n' : ' ', '\0'};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.put_ack($1, $2, $3)", 3, types, values, nulls);
	elt_spi_end(&spi);
	PG_RETURN_VOID();
}

/* Trigger: the supervisor reads the rules again when this commits. */
Datum
elt_alert_rules_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("elt.alert_rules_changed() is a trigger function")));
	elt_config_changed();
	return PointerGetDatum(NULL);
}
