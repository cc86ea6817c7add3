/*
 * populate.c
 *	  What raw staging has of a value, as it was at the source.
 *
 * Raw staging keeps the text of what jsonb cannot hold, in a string: arrays
 * with bounds of their own, json with duplicate keys, and so on (see
 * capture/value.c).  jsonb_populate_record() takes such a string for an error,
 * or for a JSON string; here it goes through its type's input function.
 *
 * An object that stands for a value of which only the size or the bytes were
 * staged is a data error, so that the change is quarantined and does not put
 * the object's text into a target.  In a column of type json or jsonb it
 * cannot be told from a value.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "capture/value.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

typedef struct PopulateColumn
{
	Oid			base_type;
	Oid			ioparam;
	FmgrInfo	input;
} PopulateColumn;

typedef struct Populate
{
	Oid			type;
	TupleDesc	desc;
	PopulateColumn *columns;
	Datum	   *values;
	bool	   *isnull;

	/* for arrays and composites */
	FmgrInfo	populate_record;	/* jsonb_populate_record */
	HeapTuple	nothing;		/* a row of nulls */
	Datum	   *part_values;
	bool	   *part_isnull;
} Populate;

static Populate *prepare(FunctionCallInfo fcinfo, Oid type);
static Datum read_scalar(Populate *populate, int i, JsonbValue *value, bool *isnull);
static void read_containers(Populate *populate, Jsonb *record, const bool *wanted);
static void refuse_marker(JsonbContainer *container, const char *column, int length);

static inline bool
is_json(const PopulateColumn *column)
{
	return column->base_type == JSONOID || column->base_type == JSONBOID;
}

PG_FUNCTION_INFO_V1(elt_field);
PG_FUNCTION_INFO_V1(elt_populate);

Datum
elt_field(PG_FUNCTION_ARGS)
{
	Jsonb	   *record = PG_GETARG_JSONB_P(0);
	text	   *name = PG_GETARG_TEXT_PP(1);
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(record) ||
		getKeyJsonValueFromContainer(&record->root, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), &value) == NULL)
		PG_RETURN_NULL();

	switch (value.type)
	{
		case jbvNull:
			PG_RETURN_NULL();
		case jbvBool:
			PG_RETURN_TEXT_P(cstring_to_text(value.val.boolean ? "true" : "false"));
		case jbvString:
			PG_RETURN_TEXT_P(cstring_to_text_with_len(value.val.string.val, value.val.string.len));
		case jbvNumeric:
			PG_RETURN_TEXT_P(cstring_to_text(DatumGetCString(DirectFunctionCall1(numeric_out,
																				 NumericGetDatum(value.val.numeric)))));
		default:
			refuse_marker(value.val.binary.data, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
			PG_RETURN_TEXT_P(cstring_to_text(JsonbToCString(NULL, value.val.binary.data, value.val.binary.len)));
	}
}

Datum
elt_populate(PG_FUNCTION_ARGS)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	Populate   *populate = fcinfo->flinfo->fn_extra;
	HeapTupleHeader base = PG_ARGISNULL(0) ? NULL : PG_GETARG_HEAPTUPLEHEADER(0);
	Jsonb	   *record;
	bool	   *containers = NULL;

	if (populate == NULL || populate->type != type)
		populate = prepare(fcinfo, type);
	if (PG_ARGISNULL(1))
	{
		if (base == NULL)
			PG_RETURN_NULL();
		PG_RETURN_DATUM(PG_GETARG_DATUM(0));
	}
	record = PG_GETARG_JSONB_P(1);
	if (!JB_ROOT_IS_OBJECT(record))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a record is a JSON object"),
				 errhint("Give an image of raw staging, such as \"after\".")));

	if (base != NULL)
	{
		HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(base),.t_data = base};

		ItemPointerSetInvalid(&tuple.t_self);
		heap_deform_tuple(&tuple, populate->desc, populate->values, populate->isnull);
	}
	for (int i = 0; i < populate->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(populate->desc, i);
		const char *name = NameStr(att->attname);
		JsonbValue	value = {.type = jbvNull};

		if (att->attisdropped)
		{
			populate->isnull[i] = true;
			continue;
		}
		if (getKeyJsonValueFromContainer(&record->root, name, strlen(name), &value) == NULL && base != NULL)
			continue;
		if (value.type != jbvBinary)
			populate->values[i] = read_scalar(populate, i, &value, &populate->isnull[i]);
		else
		{
			if (!is_json(&populate->columns[i]))
				refuse_marker(value.val.binary.data, name, strlen(name));
			if (containers == NULL)
				containers = palloc0(sizeof(bool) * populate->desc->natts);
			containers[i] = true;
		}
	}
	if (containers != NULL)
		read_containers(populate, record, containers);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(populate->desc, populate->values, populate->isnull)));
}

/*
 * Works out how columns are read, for all calls of a statement.
 */
static Populate *
prepare(FunctionCallInfo fcinfo, Oid type)
{
	MemoryContext caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	Populate   *populate = palloc0(sizeof(Populate));
	TupleDesc	desc = type_is_rowtype(type) && get_typtype(type) == TYPTYPE_COMPOSITE ?
	lookup_rowtype_tupdesc_copy(type, -1) : NULL;

	if (desc == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the first argument of elt.populate() must be of a row type"),
				 errhint("Write NULL::schema.table.")));

	populate->desc = BlessTupleDesc(desc);
	populate->columns = palloc0(sizeof(PopulateColumn) * (desc->natts + 1));
	populate->values = palloc0(sizeof(Datum) * (desc->natts + 1));
	populate->isnull = palloc0(sizeof(bool) * (desc->natts + 1));
	populate->part_values = palloc0(sizeof(Datum) * (desc->natts + 1));
	populate->part_isnull = palloc(sizeof(bool) * (desc->natts + 1));
	memset(populate->part_isnull, true, sizeof(bool) * (desc->natts + 1));
	populate->nothing = heap_form_tuple(populate->desc, populate->part_values, populate->part_isnull);
	fmgr_info(F_JSONB_POPULATE_RECORD, &populate->populate_record);
	populate->populate_record.fn_expr = fcinfo->flinfo->fn_expr;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		PopulateColumn *column = &populate->columns[i];
		Oid			input;

		if (att->attisdropped)
			continue;
		column->base_type = getBaseType(att->atttypid);
		getTypeInputInfo(att->atttypid, &input, &column->ioparam);
		fmgr_info(input, &column->input);
	}
	populate->type = type;
	fcinfo->flinfo->fn_extra = populate;
	MemoryContextSwitchTo(caller);
	return populate;
}

/* Null goes through the input function too: a domain may refuse it. */
static Datum
read_scalar(Populate *populate, int i, JsonbValue *value, bool *isnull)
{
	PopulateColumn *column = &populate->columns[i];
	char	   *text = NULL;

	switch (value->type)
	{
		case jbvBool:
			text = value->val.boolean ? "true" : "false";

			break;
		case jbvNumeric:
			text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));

			break;
		case jbvString:
			text = pnstrdup(value->val.string.val, value->val.string.len);

			if (is_json(column) && !elt_json_is_text(value->val.string.val, value->val.string.len))
			{
				StringInfoData quoted;

				initStringInfo(&quoted);
				escape_json(&quoted, text);
				text = quoted.data;
			}
			break;
		default:
			break;
	}

	*isnull = text == NULL;

	return InputFunctionCall(&column->input, text, column->ioparam, TupleDescAttr(populate->desc, i)->atttypmod);
}

/*
 * Leaves arrays and composites to jsonb_populate_record, which sees nothing
 * else.
 */
static void
read_containers(Populate *populate, Jsonb *record, const bool *wanted)
{
	LOCAL_FCINFO(call, 2);
	JsonbParseState *state = NULL;
	HeapTupleHeader row;
	HeapTupleData tuple;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < populate->desc->natts; i++)
	{
		char	   *name = NameStr(TupleDescAttr(populate->desc, i)->attname);
		JsonbValue	key = {.type = jbvString};
		JsonbValue	value;

		if (!wanted[i])
			continue;
		key.val.string.val = name;
		key.val.string.len = strlen(name);
		pushJsonbValue(&state, WJB_KEY, &key);
		pushJsonbValue(&state, WJB_VALUE,
					   getKeyJsonValueFromContainer(&record->root, name, key.val.string.len, &value));
	}

	InitFunctionCallInfoData(*call, &populate->populate_record, 2, InvalidOid, NULL, NULL);
	call->args[0].value = heap_copy_tuple_as_datum(populate->nothing, populate->desc);
	call->args[0].isnull = false;
	call->args[1].value = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
	call->args[1].isnull = false;
	row = DatumGetHeapTupleHeader(FunctionCallInvoke(call));

	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;
	heap_deform_tuple(&tuple, populate->desc, populate->part_values, populate->part_isnull);
	for (int i = 0; i < populate->desc->natts; i++)
	{
		if (!wanted[i])
			continue;
		populate->values[i] = populate->part_values[i];
		populate->isnull[i] = populate->part_isnull[i];
	}
}

/*
 * Raises an error for what stands for a value that was not staged as it is.
 */
static void
refuse_marker(JsonbContainer *container, const char *column, int length)
{
	JsonbValue	value;

	if (!JsonContainerIsObject(container) || JsonContainerSize(container) != 1)
		return;
	if (getKeyJsonValueFromContainer(container, "$oversize", strlen("$oversize"), &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_LENGTH_MISMATCH),
				 errmsg("a value of column \"%.*s\" was too large to be staged", length, column),
				 errhint("See elt.oversize_values. Patch the record with elt.patch_quarantine(), or discard it.")));
	if (getKeyJsonValueFromContainer(container, "$bytes", strlen("$bytes"), &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("a value of column \"%.*s\" has no form in encoding \"%s\"", length, column, GetDatabaseEncodingName()),
				 errhint("Its bytes are staged. Patch the record with elt.patch_quarantine(), or discard it.")));
}
