/*
 * status.c
 *	  What runs, how far it is, and waiting until it is far enough.
 *
 * Read-only: the registry's shared memory as rows for the views, and the
 * wait functions, which poll what they wait for on the caller's latch.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "argument.h"
#include "capture/stream.h"
#include "catalog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "control/registry.h"
#include "control/stats.h"
#include "elt.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/message.h"
#include "storage/latch.h"
#include "transform/log.h"
#include "transform/transform_catalog.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define POLL_MS		2
#define WORKER_COLUMNS	16

PG_FUNCTION_INFO_V1(elt_library_version);
PG_FUNCTION_INFO_V1(elt_workers);
PG_FUNCTION_INFO_V1(elt_is_preloaded);
PG_FUNCTION_INFO_V1(elt_latency_quantile_ms);
PG_FUNCTION_INFO_V1(elt_pipeline_outcomes);
PG_FUNCTION_INFO_V1(elt_wait_for_source);
PG_FUNCTION_INFO_V1(elt_wait_for);

static void require_no_writes(const char *function);
static TimestampTz deadline_of(FunctionCallInfo fcinfo, int argument);
static XLogRecPtr present_position(const EltSource *source);
static bool wait_until_staged(const EltSource *source, XLogRecPtr lsn, TimestampTz deadline);
static bool wait_until_settled(EltPipeline *pipeline, TimestampTz deadline);
static bool nap_until(TimestampTz deadline);
static int64 settled_position(int64 pipeline_id);

/* ---- rows of the registry ---- */

Datum
elt_workers(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {
		[ELT_WORKER_LAUNCHER] = "launcher",
		[ELT_WORKER_SUPERVISOR] = "supervisor",
		[ELT_WORKER_CAPTURE] = "capture",
		[ELT_WORKER_CLEANER] = "cleaner",
		[ELT_WORKER_SNAPSHOT] = "snapshot",
		[ELT_WORKER_WATCH] = "watch",
		[ELT_WORKER_TRANSFORM] = "transform",
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		monitor = has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);

	InitMaterializedSRF(fcinfo, 0);
	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;
		Datum		values[WORKER_COLUMNS] = {0};
		bool		nulls[WORKER_COLUMNS] = {0};
		XLogRecPtr	lsns[3];
		TimestampTz last_commit;
		int64		age_us;

		if (!elt_registry_read(index, &slot))
			continue;
		values[0] = Int32GetDatum(slot.pid);
		nulls[0] = slot.proc == NULL;
		values[1] = CStringGetTextDatum(kinds[slot.kind]);
		values[2] = ObjectIdGetDatum(slot.dboid);
		nulls[2] = !OidIsValid(slot.dboid);
		values[3] = Int64GetDatum(slot.object_id);
		values[4] = CStringGetTextDatum(slot.object_name);
		nulls[4] = slot.object_name[0] == '\0' || !monitor;
		values[5] = CStringGetTextDatum(slot.ended ? "ended" : slot.activity);
		values[6] = TimestampTzGetDatum(slot.started_at);
		nulls[6] = slot.started_at == 0;
		values[7] = Int64GetDatum(pg_atomic_read_u64(&slot.changes));
		age_us = elt_clock_now() - slot.claimed_at;
		nulls[8] = slot.started_at == 0 || age_us <= 0;
		if (!nulls[8])
			values[8] = Float8GetDatum((double) pg_atomic_read_u64(&slot.busy_us) / age_us);
		values[9] = CStringGetTextDatum(slot.last_error);
		nulls[9] = slot.last_error[0] == '\0' || !monitor;
		values[10] = TimestampTzGetDatum(slot.last_error_at);
		nulls[10] = slot.last_error_at == 0;
		lsns[0] = pg_atomic_read_u64(&slot.received_lsn);
		lsns[1] = pg_atomic_read_u64(&slot.staged_lsn);
		lsns[2] = pg_atomic_read_u64(&slot.confirmed_lsn);
		for (int i = 0; i < 3; i++)
		{
			values[11 + i] = LSNGetDatum(lsns[i]);
			nulls[11 + i] = lsns[i] == InvalidXLogRecPtr;
		}
		last_commit = pg_atomic_read_u64(&slot.last_commit_ts);
		values[14] = TimestampTzGetDatum(last_commit);
		nulls[14] = last_commit == 0;
		values[15] = BoolGetDatum(pg_atomic_read_u32(&slot.idle) != 0);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
elt_is_preloaded(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(elt_registry_available());
}

Datum
elt_latency_quantile_ms(PG_FUNCTION_ARGS)
{
	double		quantile = elt_stats_latency_quantile(PG_GETARG_INT64(0), PG_GETARG_FLOAT8(1));

	if (quantile < 0)
		PG_RETURN_NULL();
	PG_RETURN_FLOAT8(quantile);
}

Datum
elt_pipeline_outcomes(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	int64		read;
	int64		failed;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	elt_stats_outcomes(PG_GETARG_INT64(0), PG_GETARG_INT32(1), &read, &failed);
	values[0] = Int64GetDatum(read);
	values[1] = Int64GetDatum(failed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- waiting ---- */

Datum
elt_wait_for_source(PG_FUNCTION_ARGS)
{
	TimestampTz deadline = deadline_of(fcinfo, 2);
	EltSource  *source;
	XLogRecPtr	lsn;
	char	   *name;

	name = elt_argument_text(fcinfo, 0, "source");
	require_no_writes("wait_for_source");
	source = elt_catalog_source(name, false);
	if (!has_privs_of_role(GetUserId(), source->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of source \"%s\"", source->name)));
	lsn = PG_ARGISNULL(1) ? present_position(source) : PG_GETARG_LSN(1);
	PG_RETURN_BOOL(wait_until_staged(source, lsn, deadline));
}

Datum
elt_wait_for(PG_FUNCTION_ARGS)
{
	TimestampTz deadline = deadline_of(fcinfo, 2);
	EltPipeline *pipeline;
	EltSource  *source;
	XLogRecPtr	lsn;
	char	   *name;

	name = elt_argument_text(fcinfo, 0, "pipeline");
	require_no_writes("wait_for");
	pipeline = elt_catalog_pipeline(name, false);
	if (!has_privs_of_role(GetUserId(), pipeline->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of pipeline \"%s\"", pipeline->name)));
	source = elt_catalog_source(pipeline->source, false);
	lsn = PG_ARGISNULL(1) ? present_position(source) : PG_GETARG_LSN(1);
	if (!wait_until_staged(source, lsn, deadline))
		PG_RETURN_BOOL(false);
	/* the relation may have got its partition meanwhile */
	pipeline = elt_catalog_pipeline(pipeline->name, false);
	PG_RETURN_BOOL(wait_until_settled(pipeline, deadline));
}

/* What the caller's own transaction wrote is not committed: nobody could ever settle it. */
static void
require_no_writes(const char *function)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("elt.%s() cannot be called in a transaction that has written", function),
				 errhint("Commit first, then wait.")));
}

static TimestampTz
deadline_of(FunctionCallInfo fcinfo, int argument)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("timeout must not be null")));
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(elt_clock_now()),
												   PG_GETARG_DATUM(argument)));
}

/*
 * present_position
 *		A position at the source behind all that is committed now.  Here a
 *		message to nobody is written, so that there is a record to reach and
 *		all before it is flushed; another server is asked.
 */
static XLogRecPtr
present_position(const EltSource *source)
{
	XLogRecPtr	lsn;

	if (source->conninfo == NULL)
	{
		lsn = elt_log_message("elt.wait", "", 0, false);
		XLogFlush(lsn);
	}
	else
	{
		EltStream  *stream = elt_stream_connect(source->conninfo, "elt wait");
		PGresult   *result = elt_stream_query(stream, "IDENTIFY_SYSTEM", PGRES_TUPLES_OK);

		lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(elt_stream_value(result, 0, 2))));
		PQclear(result);
		elt_stream_close(stream);
	}
	return lsn;
}

/* Waits for the stream to pass lsn, and for the copies that tables wait for. */
static bool
wait_until_staged(const EltSource *source, XLogRecPtr lsn, TimestampTz deadline)
{
	do
	{
		int			index = elt_registry_available() ?
		elt_registry_find(ELT_WORKER_CAPTURE, MyDatabaseId, source->source_id) : -1;
		EltWorkerSlot slot;

		if (index >= 0 && elt_registry_read(index, &slot) && slot.proc != NULL &&
			slot.object_id == source->source_id &&
			pg_atomic_read_u64(&slot.staged_lsn) >= lsn &&
			!elt_catalog_has_pending_copies(source->source_id))
			return true;
	} while (nap_until(deadline));
	return false;
}

static bool
wait_until_settled(EltPipeline *pipeline, TimestampTz deadline)
{
	int64		tail;

	PushActiveSnapshot(GetLatestSnapshot());
	tail = elt_log_tail(elt_pipeline_raw(pipeline));	/* 0: nothing was ever
														 * staged */
	PopActiveSnapshot();
	do
	{
		if (settled_position(pipeline->pipeline_id) >= tail)
			return true;
	} while (nap_until(deadline));
	return false;
}

static int64
settled_position(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	int64		position;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT min(position) FROM elt.checkpoints WHERE pipeline_id = $1", 1, types, values, NULL);
	position = elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	return position;
}

/* False once the deadline has passed. */
static bool
nap_until(TimestampTz deadline)
{
	if (elt_clock_now() >= deadline)
		return false;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS, elt_wait_event("EltWaitFor"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return true;
}

Datum
elt_library_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(ELT_VERSION));
}
