/*
 * mend.c
 *	  SQL functions on quarantined changes: replay, patch, discard.
 *
 * All work in the caller's transaction, on pipelines that the caller owns.
 * They wait for the lanes of the changes, so that no worker and no other
 * session is at work on the same keys (resolve.c).  That needs to see what
 * others have committed until then, hence READ COMMITTED.
 *
 * Several pipelines: first the lanes of all of them are locked, by
 * pipeline_id, and only then is anything applied.
 */
#include "postgres.h"

#include "access/xact.h"
#include "argument.h"
#include "catalog/pg_type.h"
#include "control/registry.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replay/resolve.h"
#include "transform/batch.h"
#include "transform/pipeline.h"
#include "transform/transform_catalog.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(elt_replay_quarantine);
PG_FUNCTION_INFO_V1(elt_patch_quarantine);
PG_FUNCTION_INFO_V1(elt_discard_quarantine);

static void require_current_view(const char *function);
static void read_filter(FunctionCallInfo fcinfo, EltResolveFilter *filter);
static List *pipelines_to_replay(FunctionCallInfo fcinfo);
static void replay(List *resolves, int max_rows, ReturnSetInfo *result);
static void replay_and_take_back(List *resolves, int max_rows, ReturnSetInfo *result);
static void lock_all(List *resolves, int max_rows);
static List *pipelines_of(Datum ids);

/* ---- replay ---- */

Datum
elt_replay_quarantine(PG_FUNCTION_ARGS)
{
	EltResolveFilter filter = {0};
	List	   *resolves = NIL;
	ListCell   *lc;

	require_current_view("elt.replay_quarantine()");
	read_filter(fcinfo, &filter);
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, pipelines_to_replay(fcinfo))
	{
		EltResolve *resolve = elt_resolve_find(lfirst(lc), &filter, false);

		if (resolve != NULL)
			resolves = lappend(resolves, resolve);
	}
	if (!PG_ARGISNULL(5) && PG_GETARG_BOOL(5))
		replay_and_take_back(resolves, filter.max_rows, (ReturnSetInfo *) fcinfo->resultinfo);
	else
		replay(resolves, filter.max_rows, (ReturnSetInfo *) fcinfo->resultinfo);
	return (Datum) 0;
}

static void
require_current_view(const char *function)
{
	PreventCommandIfReadOnly(function);
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s needs isolation level READ COMMITTED", function),
				 errdetail("It has to see what others have applied until it has the lanes."),
				 errhint("Call it in a transaction of its own.")));
}

static void
read_filter(FunctionCallInfo fcinfo, EltResolveFilter *filter)
{
	if (PG_ARGISNULL(4) || PG_GETARG_INT32(4) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero"),
				 errhint("Leave it out for 1000.")));
	filter->heads = true;
	filter->max_rows = PG_GETARG_INT32(4);
	filter->ids = PG_ARGISNULL(1) ? 0 : PointerGetDatum(PG_GETARG_ARRAYTYPE_P(1));
	filter->sqlstate = PG_ARGISNULL(2) ? 0 : PointerGetDatum(PG_GETARG_TEXT_PP(2));
	filter->fingerprint = PG_ARGISNULL(3) ? 0 : PointerGetDatum(PG_GETARG_TEXT_PP(3));
	filter->key = PG_ARGISNULL(6) ? 0 : JsonbPGetDatum(PG_GETARG_JSONB_P(6));
	filter->has_from_time = !PG_ARGISNULL(7);
	filter->from_time = PG_ARGISNULL(7) ? 0 : PG_GETARG_DATUM(7);
	filter->has_to_time = !PG_ARGISNULL(8);
	filter->to_time = PG_ARGISNULL(8) ? 0 : PG_GETARG_DATUM(8);
}

/* The one that is named, else all that the caller owns, by pipeline_id. */
static List *
pipelines_to_replay(FunctionCallInfo fcinfo)
{
	List	   *pipelines = NIL;
	ListCell   *lc;

	if (!PG_ARGISNULL(0))
		return list_make1(elt_pipeline_own(text_to_cstring(PG_GETARG_TEXT_PP(0))));
	foreach(lc, elt_catalog_pipelines())
	{
		EltPipeline *pipeline = lfirst(lc);

		elt_batch_require_none(pipeline->name);
		if (has_privs_of_role(GetUserId(), pipeline->owner))
			pipelines = lappend(pipelines, pipeline);
	}
	return pipelines;
}

static void
replay(List *resolves, int max_rows, ReturnSetInfo *result)
{
	ListCell   *lc;

	lock_all(resolves, max_rows);
	foreach(lc, resolves)
	{
		ErrorData  *error = elt_resolve_count(lfirst(lc)) > 0 ? elt_resolve_apply(lfirst(lc)) : NULL;

		if (error != NULL)
			ReThrowError(error);
		elt_resolve_put_outcomes(lfirst(lc), result->setResult, result->setDesc);
	}
}

static void
replay_and_take_back(List *resolves, int max_rows, ReturnSetInfo *result)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		replay(resolves, max_rows, result);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL)
		ReThrowError(error);
}

/* max_rows: of all together. */
static void
lock_all(List *resolves, int max_rows)
{
	ListCell   *lc;

	foreach(lc, resolves)
		max_rows -= elt_resolve_lock(lfirst(lc), true, max_rows);

	/* who found the way to the lanes closed may look again */
	if (resolves != NIL && elt_registry_available())
		elt_registry_wake_transform(MyDatabaseId);
}

/* ---- patch ---- */

Datum
elt_patch_quarantine(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID, JSONBOID, TEXTOID};
	char		nulls[] = "   ";
	Datum		values[3];
	Datum		ids;
	EltResolveFilter filter = {0};
	EltResolve *resolve;
	List	   *pipelines;
	bool		moved;
	EltSpi		spi;

	require_current_view("elt.patch_quarantine()");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("arguments \"id\" and \"record\" must not be null"),
				 errhint("Give the quarantine_id, and an object with the columns to change.")));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_ARGISNULL(2) ? 0 : PG_GETARG_DATUM(2);
	nulls[2] = PG_ARGISNULL(2) ? 'n' : ' ';
	if (!JB_ROOT_IS_OBJECT(DatumGetJsonbP(values[1])))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a patch must be a JSON object"),
				 errhint("Name the columns to change, as in {\"price\": 10}; null takes one away.")));

	ids = PointerGetDatum(construct_array(values, 1, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	pipelines = pipelines_of(ids);
	if (pipelines == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no quarantined change %lld", (long long) PG_GETARG_INT64(0)),
				 errhint("SELECT quarantine_id FROM elt.quarantine lists them.")));
	filter.ids = ids;
	filter.max_rows = 1;
	resolve = elt_resolve_find(linitial(pipelines), &filter, false);
	if (resolve == NULL || elt_resolve_lock(resolve, true, 1) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("quarantined change %lld is resolved already", (long long) PG_GETARG_INT64(0)),
				 errhint("Only open and waiting changes can be patched.")));

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.quarantine_records SET patched_record = elt.merge_patch(coalesce(patched_record, record), $2), "
				"patch_note = CASE WHEN $3 IS NULL THEN patch_note ELSE concat_ws('; ', patch_note, $3) END WHERE quarantine_id = $1 "
				"RETURNING EXISTS (SELECT FROM jsonb_object_keys(CASE jsonb_typeof(key) WHEN 'object' THEN key ELSE '{}' END) AS k (name) "
				"WHERE patched_record->k.name IS DISTINCT FROM record->k.name)", 3, types, values, nulls);
	moved = elt_spi_bool(0, 1);
	elt_spi_end(&spi);
	if (moved)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a patch must not change the key"),
				 errdetail("Order is kept per key: under another key the record could overwrite a newer one."),
				 errhint("Discard the change, and mend the row at the source.")));
	PG_RETURN_VOID();
}

/* ---- discard ---- */

Datum
elt_discard_quarantine(PG_FUNCTION_ARGS)
{
	EltResolveFilter filter = {0};
	List	   *resolves = NIL;
	int64		total = 0;
	char	   *reason;
	ListCell   *lc;

	require_current_view("elt.discard_quarantine()");
	reason = elt_argument_text(fcinfo, 1, "reason");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"ids\" must not be null"),
				 errhint("Give the quarantine_ids of the changes to give up.")));
	if (reason[strspn(reason, " \t\n")] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a reason must be given"),
				 errhint("It is kept in elt.quarantine.note.")));
	filter.ids = PointerGetDatum(PG_GETARG_ARRAYTYPE_P(0));
	filter.max_rows = PG_INT32_MAX;
	foreach(lc, pipelines_of(filter.ids))
	{
		EltResolve *resolve = elt_resolve_find(lfirst(lc), &filter, false);

		if (resolve != NULL)
			resolves = lappend(resolves, resolve);
	}
	lock_all(resolves, filter.max_rows);
	foreach(lc, resolves)
	{
		int64		discarded = 0;
		ErrorData  *error = elt_resolve_count(lfirst(lc)) > 0 ?
		elt_resolve_discard(lfirst(lc), reason, &discarded) : NULL;

		if (error != NULL)
			ReThrowError(error);
		total += discarded;
	}
	PG_RETURN_INT64(total);
}

/* The pipelines of quarantined changes, by pipeline_id; raises where one is not the caller's. */
static List *
pipelines_of(Datum ids)
{
	Oid			types[] = {INT8ARRAYOID};
	Datum		values[] = {ids};
	List	   *names = NIL;
	List	   *pipelines = NIL;
	uint64		rows;
	ListCell   *lc;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT p.name FROM elt.pipelines p WHERE p.pipeline_id IN "
					   "(SELECT q.pipeline_id FROM elt.quarantine_records q WHERE q.quarantine_id = ANY ($1)) ORDER BY p.pipeline_id",
					   1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		char	   *name = elt_spi_text(&spi, row, 1);
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);

		names = lappend(names, name);
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);
	foreach(lc, names)
		pipelines = lappend(pipelines, elt_pipeline_own(lfirst(lc)));
	return pipelines;
}
