/*
 * raw_sql.c
 *	  The SQL functions about what raw staging keeps.
 *
 * raw_leaf_row reads the ends of a leaf without reading the leaf: it is in the
 * order of change_id (see raw.h), so its oldest row is in the first block that
 * has any, and its newest in the last.
 *
 * purge_raw erases the changes of one key.  What it may erase, and how, is in
 * elt.erase_raw(); here is who may ask for it: the owner of the source.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "argument.h"
#include "capture/partition.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "control/registry.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "raw.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MESSAGE_PREFIX	"message:"

PG_FUNCTION_INFO_V1(elt_raw_leaf_row);
PG_FUNCTION_INFO_V1(elt_set_raw_retention);
PG_FUNCTION_INFO_V1(elt_purge_raw);

static bool row_of_block(Relation leaf, BlockNumber block, bool newest, Datum *values);
static EltSource *owned_source(const char *name);

Datum
elt_raw_leaf_row(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	bool		newest = PG_GETARG_BOOL(1);
	Relation	leaf = try_table_open(relid, AccessShareLock);
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {true, true, true, true};
	BlockNumber blocks = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (leaf != NULL)
	{
		if (leaf->rd_rel->relkind != RELKIND_RELATION ||
			RelationGetNamespace(leaf) != get_namespace_oid("elt_raw", false) ||
			RelationGetDescr(leaf)->natts != ELT_RAW_NCOLUMNS)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is not a leaf of raw staging", RelationGetRelationName(leaf))));
		blocks = RelationGetNumberOfBlocks(leaf);
	}
	for (BlockNumber i = 0; i < blocks; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (row_of_block(leaf, newest ? blocks - 1 - i : i, newest, values))
		{
			memset(nulls, 0, sizeof(nulls));
			break;
		}
	}
	if (leaf != NULL)
		table_close(leaf, NoLock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* The row of a block with the lowest or the highest change_id; false where none is visible. */
static bool
row_of_block(Relation leaf, BlockNumber block, bool newest, Datum *values)
{
	TupleTableSlot *slot = table_slot_create(leaf, NULL);
	ItemPointerData first,
				last;
	TableScanDesc scan;
	int64		found = -1;

	ItemPointerSet(&first, block, 1);
	ItemPointerSet(&last, block, MaxOffsetNumber);
	scan = table_beginscan_tidrange(leaf, GetActiveSnapshot(), &first, &last);
	while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot))
	{
		int64		change_id;

		slot_getsomeattrs(slot, ELT_RAW_STAGED_AT);
		change_id = DatumGetInt64(slot->tts_values[ELT_RAW_CHANGE_ID - 1]);
		if (found >= 0 && (newest ? change_id < found : change_id > found))
			continue;
		found = change_id;
		values[0] = slot->tts_values[ELT_RAW_CHANGE_ID - 1];
		values[1] = slot->tts_values[ELT_RAW_COMMIT_LSN - 1];
		values[2] = slot->tts_values[ELT_RAW_COMMIT_TS - 1];
		values[3] = slot->tts_values[ELT_RAW_STAGED_AT - 1];
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found >= 0;
}

Datum
elt_set_raw_retention(PG_FUNCTION_ARGS)
{
	EltSource  *source = owned_source(elt_argument_text(fcinfo, 0, "source"));
	Oid			types[] = {INT8OID, INTERVALOID};
	Datum		values[2];
	char		nulls[] = "  ";
	EltSpi		spi;

	values[0] = Int64GetDatum(source->source_id);
	values[1] = PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.sources SET options = CASE WHEN $2 IS NULL THEN options - 'raw_retention' "
				"ELSE options || jsonb_build_object('raw_retention', $2::text) END WHERE source_id = $1",
				2, types, values, nulls);
	elt_spi_end(&spi);
	PG_RETURN_VOID();
}

Datum
elt_purge_raw(PG_FUNCTION_ARGS)
{
	EltSource  *source = owned_source(elt_argument_text(fcinfo, 0, "source"));
	char	   *relation = elt_argument_text(fcinfo, 1, "relation");
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, OIDOID, JSONBOID, NAMEOID, TEXTOID};
	Datum		values[7];
	char		nulls[] = "       ";
	Datum		result[2];
	bool		result_nulls[2] = {false, false};
	TupleDesc	desc;
	Oid			partition = InvalidOid;
	EltSpi		spi;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (PG_ARGISNULL(2) || !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(2)) || JB_ROOT_COUNT(PG_GETARG_JSONB_P(2)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key must be a JSON object with the key's columns"),
				 errhint("As raw staging has it, for example '{\"id\": 42}'.")));

	values[0] = Int64GetDatum(source->source_id);
	values[1] = CStringGetTextDatum(source->name);
	values[2] = CStringGetTextDatum(relation);
	values[4] = PG_GETARG_DATUM(2);
	values[5] = DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetUserId(), false)));
	values[6] = PG_ARGISNULL(3) ? (Datum) 0 : PG_GETARG_DATUM(3);
	nulls[6] = PG_ARGISNULL(3) ? 'n' : ' ';

	if (strncmp(relation, MESSAGE_PREFIX, strlen(MESSAGE_PREFIX)) == 0)
		partition = elt_partition_of_messages(source->name);
	else
	{
		Oid			find_types[] = {INT8OID, TEXTOID};
		Datum		find_values[] = {values[0], values[2]};

		elt_spi_begin(&spi);
		if (elt_spi_run("SELECT raw::oid FROM elt.source_tables WHERE source_id = $1 AND relation = $2 AND raw IS NOT NULL",
						2, find_types, find_values, NULL) > 0)
			partition = (Oid) elt_spi_int64(0, 1);
		elt_spi_end(&spi);
	}
	if (!OidIsValid(partition))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("source \"%s\" has no raw staging of %s", source->name, relation),
				 errhint("SELECT relation FROM elt.raw_staging WHERE source = %s lists what there is; messages are named message:<topic>.",
						 quote_literal_cstr(source->name))));
	values[3] = ObjectIdGetDatum(partition);

	elt_spi_begin(&spi);
	elt_spi_run("SELECT raw_rows, quarantine_rows FROM elt.erase_raw($1, $2, $3, $4::regclass, $5, $6, $7)",
				7, types, values, nulls);
	result[0] = Int64GetDatum(elt_spi_int64(0, 1));
	result[1] = Int64GetDatum(elt_spi_int64(0, 2));
	elt_spi_end(&spi);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), result, result_nulls)));
}

static EltSource *
owned_source(const char *name)
{
	EltSource  *source = elt_catalog_source(name, false);

	if (!has_privs_of_role(GetUserId(), source->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of source \"%s\"", name)));
	return source;
}
