/*
 * replay.c
 *	  CALL elt.replay: a pipeline runs over raw staging again.
 *
 * A replay is a loop of transactions in the session that calls: scans, then
 * batches (replay_batch.c), each with the run's new position and counts
 * (replay_run.c).  So what ends a run takes back one batch at most, and
 * elt.resume_replay goes on from the last one; but to look for the newest
 * changes again costs another scan.
 *
 * Each piece of work is a subtransaction: an error ends it alone, and with it
 * whatever user, settings and SPI connections were entered; then the
 * transaction is rolled back, the run noted as failed (or cancelled, which a
 * cancel request is as well as elt.cancel_replay), and the error goes on to
 * the caller.  Transient errors are tried again first.  A dry run takes each
 * subtransaction back, and keeps the counts.
 *
 * Between two batches no snapshot is held and no lock but the one that CALL
 * has on its procedure.  There the replay waits, for its rate, and for as
 * long as the last batch took where live changes wait for the lanes: workers
 * do not wait for lanes, they look again when they are woken.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "argument.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "control/worker.h"
#include "elt.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "replay/replay.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "transform/batch.h"
#include "transform/pipeline.h"
#include "transform/runner.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_RETRIES		10
#define MIN_RETRY_MS	200		/* full jitter up to here, doubling ... */
#define MAX_RETRY_MS	10000	/* ... to here */

PG_FUNCTION_INFO_V1(elt_replay);
PG_FUNCTION_INFO_V1(elt_resume_replay);
PG_FUNCTION_INFO_V1(elt_cancel_replay);

static void require_top_level(FunctionCallInfo fcinfo, const char *name);
static EltReplay *create_replay(void);
static Jsonb *pack_arguments(FunctionCallInfo fcinfo);
static void check_range(const EltReplayRun *run);
static void check_filter(const EltReplay *replay);
static void bound_range(EltReplay *replay);
static void run(EltReplay *replay);
static void begin_transaction(void);
static void commit(EltReplay *replay);
static ErrorData *attempt(EltReplay *replay, void (*action) (EltReplay *replay), bool keep);
static void save(EltReplay *replay);
static void finish(EltReplay *replay);
static bool is_transient(const EltPipeline *pipeline, const ErrorData *error);
static void fail(EltReplay *replay, ErrorData *error) pg_attribute_noreturn();
static void wait_between(EltReplay *replay);
static void check_expression(const char *filter);
static void blame_filter(void *arg);

/* ---- SQL ---- */

Datum
elt_replay(PG_FUNCTION_ARGS)
{
	char	   *name = elt_argument_text(fcinfo, 0, "pipeline");
	EltReplay  *replay;
	EltReplayRun *run_row;

	require_top_level(fcinfo, "elt.replay");
	PreventCommandIfReadOnly("elt.replay()");
	replay = create_replay();
	run_row = &replay->run;
	run_row->pipeline = elt_pipeline_own(name)->name;
	run_row->arguments = pack_arguments(fcinfo);
	elt_replay_range_read(run_row);
	check_range(run_row);
	if (!PG_ARGISNULL(7) && run_row->rate <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate must be greater than zero: %d", run_row->rate),
				 errhint("It is in changes per second; leave it out for no limit.")));
	elt_replay_load(replay);
	elt_replay_check_kept(replay);
	elt_replay_prepare(replay);
	check_filter(replay);

	run_row->pipeline_id = replay->pipeline->pipeline_id;
	run_row->version = replay->pipeline->version;
	run_row->lane_end = replay->pipeline->lanes;
	run_row->position = Max(run_row->range.from_change, 1) - 1;
	run_row->last_change = PG_INT64_MAX;
	bound_range(replay);
	elt_replay_run_create(run_row);
	commit(replay);
	run(replay);
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
elt_resume_replay(PG_FUNCTION_ARGS)
{
	EltReplay  *replay;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"run_id\" must not be null"),
				 errhint("SELECT run_id, pipeline, state FROM elt.progress_replay lists the runs.")));
	require_top_level(fcinfo, "elt.resume_replay");
	PreventCommandIfReadOnly("elt.resume_replay()");
	replay = create_replay();
	elt_replay_run_read(PG_GETARG_INT64(0), &replay->run);
	(void) elt_pipeline_own(replay->run.pipeline);
	if (replay->run.alive)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("replay %lld is running", (long long) replay->run.run_id),
				 errhint("SELECT elt.cancel_replay(%lld) ends it.", (long long) replay->run.run_id)));
	if (replay->run.state == 'd')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replay %lld is done", (long long) replay->run.run_id),
				 errhint("CALL elt.replay to replay again.")));
	replay->run.version = 0;	/* the present one */
	elt_replay_load(replay);
	elt_replay_check_kept(replay);
	replay->run.version = replay->pipeline->version;
	elt_replay_prepare(replay);
	check_filter(replay);
	bound_range(replay);
	elt_replay_run_start(&replay->run);
	commit(replay);
	run(replay);
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
elt_cancel_replay(PG_FUNCTION_ARGS)
{
	EltReplayRun run;
	Oid			types[] = {INT8OID};
	Datum		values[1];
	bool		found;
	EltSpi		spi;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"run_id\" must not be null"),
				 errhint("SELECT run_id, pipeline, state FROM elt.progress_replay lists the runs.")));
	values[0] = PG_GETARG_DATUM(0);
	elt_replay_run_read(PG_GETARG_INT64(0), &run);
	(void) elt_pipeline_own(run.pipeline);
	elt_spi_begin(&spi);
	found = elt_spi_run("UPDATE elt.replay_runs SET state = 'cancelled', finished_at = clock_timestamp(), "
						"updated_at = clock_timestamp() WHERE run_id = $1 AND state = 'running'",
						1, types, values, NULL) > 0;
	elt_spi_end(&spi);
	PG_RETURN_BOOL(found);
}

static void
require_top_level(FunctionCallInfo fcinfo, const char *name)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run inside a transaction block", name),
				 errdetail("It commits each batch."),
				 errhint("CALL it as a statement of its own: not between BEGIN and COMMIT, nor together with others, nor from a function.")));
}

/* Connects SPI, whose memory lives until it is finished. */
static EltReplay *
create_replay(void)
{
	EltReplay  *replay;

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	replay = palloc0(sizeof(EltReplay));
	replay->context = CurrentMemoryContext;
	replay->group = AllocSetContextCreate(replay->context, "elt replay lanes", ALLOCSET_DEFAULT_SIZES);
	replay->step = AllocSetContextCreate(replay->context, "elt replay step", ALLOCSET_DEFAULT_SIZES);
	return replay;
}

/* ---- arguments ---- */

/* Those that were given, as elt.replay_runs stores them. */
static Jsonb *
pack_arguments(FunctionCallInfo fcinfo)
{
	Oid			types[] = {PG_LSNOID, PG_LSNOID, TIMESTAMPTZOID, TIMESTAMPTZOID, JSONBARRAYOID, TEXTOID,
	INT4OID, BOOLOID, INT8OID, INT8OID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1] = {0};
	Jsonb	   *arguments;
	bool		isnull;
	EltSpi		spi;

	for (int i = 0; i < lengthof(types); i++)
	{
		nulls[i] = PG_ARGISNULL(i + 1) ? 'n' : ' ';
		values[i] = PG_ARGISNULL(i + 1) ? (Datum) 0 : PG_GETARG_DATUM(i + 1);
	}
	elt_spi_begin(&spi);
	elt_spi_run("SELECT coalesce(jsonb_object_agg(a.key, a.value), '{}') FROM jsonb_each(jsonb_build_object("
				"'from_lsn', $1, 'to_lsn', $2, 'from_time', $3, 'to_time', $4, 'keys', $5, 'filter', $6, "
				"'rate', $7, 'dry_run', $8, 'from_change', $9, 'to_change', $10)) AS a WHERE a.value NOT IN ('null', 'false')",
				lengthof(types), types, values, nulls);
	arguments = DatumGetJsonbP(elt_spi_datum(&spi, 0, 1, &isnull));
	elt_spi_end(&spi);
	return arguments;
}

static void
check_range(const EltReplayRun *run)
{
	const EltReplayRange *range = &run->range;

	if (range->from_lsn > range->to_lsn || range->from_time > range->to_time || range->from_change > range->to_change)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a bound \"from\" is behind its bound \"to\""),
				 errhint("Both bounds are part of what is replayed; leave one out for no bound.")));
}

static void
check_filter(const EltReplay *replay)
{
	Relation	raw;

	if (replay->run.range.filter == NULL)
		return;
	raw = table_open(replay->pipeline->raw_root, AccessShareLock);
	check_expression(replay->run.range.filter);
	elt_runner_filter(replay->pipeline, replay->run.range.filter, RelationGetDescr(raw), NULL, 0, NULL);
	table_close(raw, NoLock);
}

/* What is settled after the run began is not for it. */
static void
bound_range(EltReplay *replay)
{
	EltReplayRun *run = &replay->run;
	int64		positions[ELT_MAX_LANES];
	int			lanes = elt_checkpoint_positions(run->pipeline_id, positions);
	int64		settled = 0;

	for (int lane = 0; lane < lanes; lane++)
		settled = Max(settled, positions[lane]);
	run->last_change = Min(run->last_change, settled);
	run->range.to_change = Min(run->range.to_change, run->last_change);
}

/* ---- the loop ---- */

static void
run(EltReplay *replay)
{
	TimestampTz start = elt_clock_now();
	int			retries = 0;

	while (!replay->finished)
	{
		TimestampTz batch_start = elt_clock_now();
		ErrorData  *error;
		long		due_ms = 0;

		begin_transaction();
		replay->backlog = false;
		error = attempt(replay, elt_replay_step, !replay->run.dry_run);
		if (error != NULL && retries < MAX_RETRIES && is_transient(replay->pipeline, error))
		{
			SPI_rollback();
			due_ms = 1 + (long) pg_prng_uint64_range(&pg_global_prng_state, 0,
													 Min(MAX_RETRY_MS, MIN_RETRY_MS << retries) - 1);
			retries++;
		}
		else
		{
			if (error == NULL && !replay->take_back)
				error = attempt(replay, save, true);
			if (error == NULL && replay->finished)
				error = attempt(replay, finish, true);
			if (error != NULL)
				fail(replay, error);
			commit(replay);
			retries = 0;
			if (replay->backlog)
			{
				elt_registry_wake_transform(MyDatabaseId);
				due_ms = TimestampDifferenceMilliseconds(batch_start, elt_clock_now());
			}
			if (replay->run.rate > 0 && !replay->finished)
				due_ms = Max(due_ms, TimestampDifferenceMilliseconds(elt_clock_now(),
																	 start + (TimestampTz) (replay->paced * USECS_PER_SEC / replay->run.rate)));
		}
		replay->wait_until = TimestampTzPlusMilliseconds(elt_clock_now(), due_ms);
		error = attempt(replay, wait_between, true);
		if (error != NULL)
			fail(replay, error);
	}
	ereport(NOTICE,
			(errmsg("replay %lld of pipeline \"%s\" is done%s", (long long) replay->run.run_id,
					replay->run.pipeline, replay->run.dry_run ? ", and took everything back" : ""),
			 errdetail("%lld changes selected, %lld rows written, %lld changes superseded, %lld quarantined, %lld skipped.",
					   (long long) replay->run.counts.selected, (long long) replay->run.counts.applied,
					   (long long) replay->run.counts.superseded, (long long) replay->run.counts.quarantined,
					   (long long) replay->run.counts.skipped)));
}

/* SPI has started it already. */
static void
begin_transaction(void)
{
	/* who waits for a lane must see where it stands afterwards */
	(void) set_config_option("transaction_isolation", "read committed", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	SetCurrentStatementStartTimestamp();
}

/* elt's own writes are marked, as a worker's are. */
static void
commit(EltReplay *replay)
{
	uint16		origin = elt_worker_mark_writes(replay->options.unmarked_output ? InvalidRepOriginId : DoNotReplicateId);

	PG_TRY();
	{
		SPI_commit();
	}
	PG_FINALLY();
	{
		elt_worker_mark_writes(origin);
	}
	PG_END_TRY();
}

/*
 * Does something in a subtransaction; returns the error that it raised, else
 * NULL.  Without "keep", and where the action asks for it, it is taken back.
 */
static ErrorData *
attempt(EltReplay *replay, void (*action) (EltReplay *replay), bool keep)
{
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	uint16		origin = elt_worker_mark_writes(DoNotReplicateId);

	elt_batch_set_at_work(true);
	BeginInternalSubTransaction(NULL);
	MemoryContextReset(replay->step);
	MemoryContextSwitchTo(replay->step);
	replay->take_back = false;
	PG_TRY();
	{
		action(replay);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(replay->context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error == NULL && keep && !replay->take_back)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(replay->context);
	CurrentResourceOwner = owner;
	elt_batch_set_at_work(false);
	elt_worker_mark_writes(origin);
	return error;
}

static void
save(EltReplay *replay)
{
	if (!elt_replay_run_save(&replay->run))
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("replay %lld of pipeline \"%s\" was cancelled",
						(long long) replay->run.run_id, replay->run.pipeline),
				 errhint("CALL elt.resume_replay(%lld) goes on with it.", (long long) replay->run.run_id)));
}

static void
finish(EltReplay *replay)
{
	elt_replay_run_end(replay->run.run_id, "done", NULL);
}

/* Of the errors that end a batch, those that may be gone the next time. */
static bool
is_transient(const EltPipeline *pipeline, const ErrorData *error)
{
	return error->sqlerrcode != ERRCODE_QUERY_CANCELED &&
		strcmp(elt_error_class(pipeline, error->sqlerrcode), "transient") == 0;
}

/* The run is noted as failed, and the error goes on to the caller. */
static void
fail(EltReplay *replay, ErrorData *error)
{
	SPI_rollback();
	elt_replay_run_end(replay->run.run_id,
					   error->sqlerrcode == ERRCODE_QUERY_CANCELED ? "cancelled" : "failed",
					   psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message));
	commit(replay);
	ReThrowError(error);
}

static void
wait_between(EltReplay *replay)
{
	for (;;)
	{
		long		left_ms = TimestampDifferenceMilliseconds(elt_clock_now(), replay->wait_until);

		CHECK_FOR_INTERRUPTS();
		if (left_ms <= 0)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left_ms, elt_wait_event("EltReplayThrottle"));
		ResetLatch(MyLatch);
	}
}

/* ---- filter ---- */

/* One expression, and nothing that would end the parentheses it is put into. */
static void
check_expression(const char *filter)
{
	ErrorContextCallback callback;
	List	   *statements;
	SelectStmt *select;

	callback.callback = blame_filter;
	callback.arg = unconstify(char *, filter);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	statements = raw_parser(filter, RAW_PARSE_PLPGSQL_EXPR);
	error_context_stack = callback.previous;

	select = castNode(SelectStmt, linitial_node(RawStmt, statements)->stmt);
	if (list_length(select->targetList) != 1 || linitial_node(ResTarget, select->targetList)->name != NULL ||
		select->distinctClause != NIL || select->fromClause != NIL || select->whereClause != NULL ||
		select->groupClause != NIL || select->havingClause != NULL || select->windowClause != NIL ||
		select->sortClause != NIL || select->limitOffset != NULL || select->limitCount != NULL ||
		select->lockingClause != NIL || select->op != SETOP_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the filter of a replay must be one expression"),
				 errhint("Write what could stand behind WHERE, such as record->>'country' = 'DE'.")));
}

/* The position is one in the filter, not in the statement that calls. */
static void
blame_filter(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
	errcontext("filter of a replay");
}
