/*
 * runner.c
 *	  User SQL, run as the pipeline's owner.
 *
 * A batch is handed to SQL as the ephemeral relation elt_batch, which has raw
 * staging's columns; the transform sees it as "changes", with "record" added.
 * One statement transforms and writes the batch, so that the planner sees the
 * whole and no row is copied twice.
 *
 * Security: everything a user may have written (transform, triggers,
 * defaults, constraints, casts, operators) runs under the owner's id with
 * SECURITY_LOCAL_USERID_CHANGE, so that SET ROLE cannot get back, at a GUC
 * nest level that is thrown away, with the search_path stored at creation.
 * Nothing may be left to run under the id that commits: constraints are
 * immediate, and SECURITY_RESTRICTED_OPERATION refuses what would defer
 * triggers again, hold a cursor, or leave temporary tables and prepared
 * statements to whoever uses the session next.  (A superuser has nothing to
 * gain, and is not restricted.)  An error leaves through the caller's
 * subtransaction, which restores id and settings.
 *
 * Plans are kept for the session.  They are dropped when pipelines change
 * and when the target does.  A plan is made for a size of batch and a size of
 * target; where one of them has grown a lot the planner is asked again.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "capture/change.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "control/registry.h"
#include "control/worker.h"
#include "elt.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "owner.h"
#include "storage/bufmgr.h"
#include "transform/attempt.h"
#include "transform/limit.h"
#include "transform/output.h"
#include "transform/runner.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "transform/transform_catalog.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#define LOCK_TIMEOUT_MS	"5000"	/* of user code in a worker */
#define SIZE_CLASSES	5		/* of a batch: below 8, 64, 512, 4096 changes,
								 * more */

/* What decides on the statement that a change needs. */
typedef struct RunRules
{
	bool		append;
	bool		history;
	bool		soft_deletes;
	bool		by_name;
} RunRules;

/* Kinds of statements, in the order in which they run; see run_class. */
typedef enum RunClass
{
	RUN_DELETE,
	RUN_WRITE,
	RUN_PARTIAL,				/* images that lack columns */
	RUN_VERSIONS,
	RUN_SOFT_DELETE
} RunClass;

typedef struct Statement
{
	EltStatementKind kind;
	int			schema_version; /* 0 with a transform */
	Datum		unchanged;		/* text[] of columns that the images lack; 0:
								 * none */
	char	   *truncates;		/* as in the pipeline; "": none */
	char	   *query;			/* NULL: there is nothing to do */
	SPIPlanPtr	plans[SIZE_CLASSES];
	BlockNumber blocks[SIZE_CLASSES];	/* of the target when the plan was
										 * made */
} Statement;

typedef struct Runner
{
	int64		pipeline_id;	/* hash key; negative: of a replay that takes
								 * other statements */
	int			version;
	uint64		generation;
	Oid			target;
	bool		valid;
	MemoryContext context;
	List	   *statements;
} Runner;

static HTAB *runners = NULL;
static int64 last_change = -1;	/* that elt_batch gave to a statement */

PG_FUNCTION_INFO_V1(elt_note_change);

static void enter_owner(const EltPipeline *pipeline, EltOwnerScope *scope);
static void pin_formats(void);
static void set_config(const char *name, const char *value);
static void fire_constraints_at_once(void);
static int	time_limit(const EltPipeline *pipeline);
static Runner *find_runner(const EltPipeline *pipeline);
static void reset_runner(Runner *runner);
static void forget_target(Datum arg, Oid relid);
static RunClass run_class(const RunRules *rules, const EltLogRow *row);
static bool same_run(const RunRules *rules, const EltLogRow *a, const EltLogRow *b);
static bool same_names(Datum a, Datum b);
static EltLogRow **order_by_run(const RunRules *rules, EltLogRow **rows, int nrows);
static int	compare_runs(const void *a, const void *b, void *arg);
static int64 apply_run(const EltPipeline *pipeline, const RunRules *rules, Runner *runner, TupleDesc desc,
					   EltLogRow **rows, int nrows);
static Tuplestorestate *register_batch(TupleDesc desc, EltLogRow **rows, int nrows);
static void forget_batch(Tuplestorestate *store);
static int64 execute(const EltPipeline *pipeline, Runner *runner, EltStatementKind kind,
					 const EltLogRow *row, int nrows);
static Statement *find_statement(const EltPipeline *pipeline, Runner *runner, EltStatementKind kind,
								 const EltLogRow *row);
static List *kept_columns(const EltPipeline *pipeline, List *names, List *columns);
static SPIPlanPtr find_plan(Runner *runner, Statement *statement, int nrows);
static void require_key_in_record(const EltPipeline *pipeline, const EltLogRow *row);
static void require_whole_image(const EltLogRow *row);

/* ---- the owner's scope ---- */

static void
enter_owner(const EltPipeline *pipeline, EltOwnerScope *scope)
{
	elt_owner_enter(pipeline->owner, pipeline->search_path, scope);
	if (elt_my_slot == NULL)
		pin_formats();
	else
		set_config("lock_timeout", LOCK_TIMEOUT_MS);
}

/* The same text means the same value in every session: workers pin these at start. */
static void
pin_formats(void)
{
	set_config("DateStyle", "ISO, YMD");
	set_config("IntervalStyle", "postgres");
	set_config("TimeZone", "UTC");
	set_config("extra_float_digits", "1");
	set_config("bytea_output", "hex");
	set_config("xmloption", "content");
}

static void
set_config(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Under the caller's id, so that what the caller's transaction has deferred
 * so far does not run as the pipeline's owner.
 */
static void
fire_constraints_at_once(void)
{
	ConstraintsSetStmt *statement = makeNode(ConstraintsSetStmt);

	AfterTriggerSetState(statement);
}

/* ---- apply ---- */

int64
elt_runner_apply(const EltPipeline *pipeline, TupleDesc desc, EltLogRow **rows, int nrows, bool in_order)
{
	EltOwnerScope scope;
	RunRules	rules = {pipeline->append, pipeline->history, elt_pipeline_deletes_softly(pipeline), pipeline->transform == NULL};
	Runner	   *runner;
	int64		written = 0;
	int			start = 0;

	last_change = -1;
	fire_constraints_at_once();
	elt_limit_arm(time_limit(pipeline));
	elt_attempt_begin(pipeline->pipeline_id, rows, nrows);
	enter_owner(pipeline, &scope);
	runner = find_runner(pipeline);
	if (!in_order && !pipeline->history)
		rows = order_by_run(&rules, rows, nrows);
	while (start < nrows)
	{
		int			end = start + 1;

		while (end < nrows && same_run(&rules, rows[start], rows[end]))
			end++;
		written += apply_run(pipeline, &rules, runner, desc, rows + start, end - start);
		start = end;
	}
	elt_owner_leave(&scope);
	elt_attempt_end();
	elt_limit_disarm();
	return written;
}

/* In a worker; a session has its statement_timeout. */
static int
time_limit(const EltPipeline *pipeline)
{
	EltPipelineOptions options;

	if (elt_my_slot == NULL)
		return 0;
	elt_options_read(pipeline->options, pipeline->append, &options);
	return elt_limit_ms(&options);
}

/*
 * elt_note_change
 *		Notes the change that a statement reads: when it fails, that is the
 *		one at work, unless the plan read ahead.
 */
Datum
elt_note_change(PG_FUNCTION_ARGS)
{
	last_change = PG_GETARG_INT64(0);
	elt_attempt_at(last_change);
	PG_RETURN_BOOL(true);
}

int64
elt_runner_last_change(void)
{
	return last_change;
}

void
elt_runner_truncate(const EltPipeline *pipeline, TimestampTz at)
{
	EltOwnerScope scope;
	bool		may_truncate = pg_class_aclcheck(pipeline->target, pipeline->owner, ACL_TRUNCATE) == ACLCHECK_OK &&
	!elt_target_is_referenced(pipeline->target);
	char	   *statement = elt_statement_truncate(pipeline, may_truncate, timestamptz_to_str(at));

	fire_constraints_at_once();
	elt_limit_arm(time_limit(pipeline));
	enter_owner(pipeline, &scope);
	if (SPI_execute(statement, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", statement);
	elt_owner_leave(&scope);
	elt_limit_disarm();
}

/* ---- replay ---- */

List *
elt_runner_output(const EltPipeline *pipeline, List *names)
{
	EltOwnerScope scope;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext spi;
	Relation	raw = table_open(pipeline->raw_root, AccessShareLock);
	List	   *columns;
	List	   *output = NIL;
	ListCell   *lc;

	enter_owner(pipeline, &scope);
	(void) register_batch(RelationGetDescr(raw), NULL, 0);
	if (pipeline->transform != NULL)
		columns = elt_output_transform(pipeline, NULL);
	else
		columns = elt_output_named(pipeline, names, 0);
	columns = elt_output_names(columns);
	spi = MemoryContextSwitchTo(caller);
	foreach(lc, columns)
		output = lappend(output, pstrdup(lfirst(lc)));
	MemoryContextSwitchTo(spi);
	elt_owner_leave(&scope);
	table_close(raw, NoLock);
	return output;
}

void
elt_runner_filter(const EltPipeline *pipeline, const char *filter, TupleDesc desc,
				  EltLogRow **rows, int nrows, bool *holds)
{
	EltOwnerScope scope;
	Tuplestorestate *batch;
	char	   *query = elt_statement_filter(filter);
	int			found = 0;

	fire_constraints_at_once();
	enter_owner(pipeline, &scope);
	batch = register_batch(desc, rows, nrows);
	if (nrows == 0)
		(void) elt_statement_prepare(query);
	else if (SPI_execute(query, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute failed: %s", query);

	/* they come in the order of the batch, unless the plan has changed it */
	for (uint64 i = 0; nrows > 0 && i < SPI_processed; i++)
	{
		bool		isnull;
		int64		change_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

		for (int tried = 0; tried < nrows && rows[found]->change_id != change_id; tried++)
			found = (found + 1) % nrows;
		holds[found] = true;
	}
	forget_batch(batch);
	elt_owner_leave(&scope);
}

void
elt_runner_forget(const EltPipeline *pipeline, TupleDesc desc, EltLogRow **rows, int nrows)
{
	EltOwnerScope scope;
	Tuplestorestate *batch;
	char	   *statement = elt_statement_forget(pipeline);

	fire_constraints_at_once();
	enter_owner(pipeline, &scope);
	batch = register_batch(desc, rows, nrows);
	if (SPI_execute(statement, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "SPI_execute failed: %s", statement);
	forget_batch(batch);
	elt_owner_leave(&scope);
}

/* ---- one run of changes ---- */

/* Deletes come first, see order_by_run; those that mark a row follow its last image. */
static RunClass
run_class(const RunRules *rules, const EltLogRow *row)
{
	if (rules->append)
		return RUN_WRITE;
	if (rules->history)
		return RUN_VERSIONS;
	if (row->op == ELT_OP_DELETE)
		return rules->soft_deletes ? RUN_SOFT_DELETE : RUN_DELETE;
	return (row->unchanged != 0 && rules->by_name) ? RUN_PARTIAL : RUN_WRITE;
}

/* Whether two changes can go through one statement. */
static bool
same_run(const RunRules *rules, const EltLogRow *a, const EltLogRow *b)
{
	RunClass	class = run_class(rules, a);

	if (class != run_class(rules, b))
		return false;

	/*
	 * rows without a key may be of the same one, and an UPDATE takes any of
	 * them
	 */
	if (class == RUN_PARTIAL && (a->key == 0 || b->key == 0))
		return false;
	return !(class == RUN_PARTIAL || (class == RUN_VERSIONS && rules->by_name)) ||
		same_names(a->unchanged, b->unchanged);
}

static bool
same_names(Datum a, Datum b)
{
	if (a == 0 || b == 0)
		return a == b;
	return VARSIZE_ANY(a) == VARSIZE_ANY(b) &&
		memcmp(DatumGetPointer(a), DatumGetPointer(b), VARSIZE_ANY(a)) == 0;
}

/*
 * Puts changes of different keys into the fewest runs.  Deletes go first:
 * what they free may be taken by what follows.
 */
static EltLogRow **
order_by_run(const RunRules *rules, EltLogRow **rows, int nrows)
{
	EltLogRow **ordered;
	bool		one_run = true;

	for (int i = 1; i < nrows && one_run; i++)
		one_run = same_run(rules, rows[0], rows[i]);
	if (one_run)
		return rows;
	ordered = palloc(nrows * sizeof(EltLogRow *));
	memcpy(ordered, rows, nrows * sizeof(EltLogRow *));
	qsort_arg(ordered, nrows, sizeof(EltLogRow *), compare_runs, unconstify(RunRules *, rules));
	return ordered;
}

static int
compare_runs(const void *a, const void *b, void *arg)
{
	const EltLogRow *left = *(EltLogRow *const *) a;
	const EltLogRow *right = *(EltLogRow *const *) b;
	RunClass	class = run_class(arg, left);

	if (class != run_class(arg, right))
		return (int) class - (int) run_class(arg, right);
	if (class == RUN_PARTIAL)
	{
		Size		size = VARSIZE_ANY(left->unchanged);
		int			order;

		if (size != VARSIZE_ANY(right->unchanged))
			return size < VARSIZE_ANY(right->unchanged) ? -1 : 1;
		order = memcmp(DatumGetPointer(left->unchanged), DatumGetPointer(right->unchanged), size);
		if (order != 0)
			return order;
	}
	return (left->change_id > right->change_id) - (left->change_id < right->change_id);
}

static int64
apply_run(const EltPipeline *pipeline, const RunRules *rules, Runner *runner, TupleDesc desc,
		  EltLogRow **rows, int nrows)
{
	Tuplestorestate *batch = register_batch(desc, rows, nrows);
	int64		written = 0;

	switch (run_class(rules, rows[0]))
	{
		case RUN_DELETE:
		case RUN_SOFT_DELETE:
			for (int i = 0; i < nrows && pipeline->transform == NULL; i++)
				require_key_in_record(pipeline, rows[i]);
			written = execute(pipeline, runner, ELT_STATEMENT_DELETE, rows[0], nrows);
			break;
		case RUN_WRITE:
			written = execute(pipeline, runner, ELT_STATEMENT_WRITE, rows[0], nrows);
			break;
		case RUN_PARTIAL:
			for (int i = 0; i < nrows; i++)
				require_whole_image(rows[i]);
			written = execute(pipeline, runner, ELT_STATEMENT_UPDATE, rows[0], nrows);
			if (written < nrows)
				written += execute(pipeline, runner, ELT_STATEMENT_INSERT, rows[0], nrows);
			break;
		case RUN_VERSIONS:
			for (int i = 0; i < nrows && pipeline->transform == NULL; i++)
			{
				if (rows[i]->op == ELT_OP_DELETE)
					require_key_in_record(pipeline, rows[i]);
			}
			written = execute(pipeline, runner, ELT_STATEMENT_VERSIONS, rows[0], nrows);
			break;
	}
	forget_batch(batch);
	return written;
}

/* Shows the rows to SQL as elt_batch. */
static Tuplestorestate *
register_batch(TupleDesc desc, EltLogRow **rows, int nrows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	Tuplestorestate *store = tuplestore_begin_heap(false, false, 5 * elt_batch_bytes_kb);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

	for (int i = 0; i < nrows; i++)
	{
		ExecStoreMinimalTuple(rows[i]->tuple, slot, false);
		tuplestore_puttupleslot(store, slot);
	}
	ExecDropSingleTupleTableSlot(slot);

	enr->md.name = ELT_BATCH_RELATION;
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = 3.0 * nrows;	/* the planner takes note_change() for
										 * a filter */
	enr->reldata = store;
	if (SPI_register_relation(enr) != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed");
	return store;
}

/* What was too much for memory is in a file. */
static void
forget_batch(Tuplestorestate *store)
{
	SPI_unregister_relation(ELT_BATCH_RELATION);
	tuplestore_end(store);
}

static int64
execute(const EltPipeline *pipeline, Runner *runner, EltStatementKind kind, const EltLogRow *row, int nrows)
{
	Statement  *statement = find_statement(pipeline, runner, kind, row);
	int			result;

	if (statement->query == NULL)
		return 0;
	result = SPI_execute_plan(find_plan(runner, statement, nrows), NULL, NULL, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	return (int64) SPI_processed;
}

/* Without the key, a delete would silently find nothing. */
static void
require_key_in_record(const EltPipeline *pipeline, const EltLogRow *row)
{
	Datum		image = row->before ? row->before : row->key;
	ListCell   *lc;

	foreach(lc, pipeline->key)
	{
		char	   *name = lfirst(lc);

		if (image == 0 ||
			getKeyJsonValueFromContainer(&DatumGetJsonbP(image)->root, name, strlen(name), NULL) == NULL)
		{
			last_change = row->change_id;
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a delete does not carry the target's key column \"%s\"", name),
					 errhint("Set REPLICA IDENTITY FULL on the source's table, or use its replica identity as the target's key.")));
		}
	}
}

/*
 * A row that got another key lacks the large values that it took along: the
 * target has no row of the new key to keep them.
 */
static void
require_whole_image(const EltLogRow *row)
{
	if (row->op == ELT_OP_INSERT)
	{
		last_change = row->change_id;
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a row that changed its key does not carry its large values"),
				 errdetail("Their columns are listed in \"unchanged\"."),
				 errhint("Set REPLICA IDENTITY FULL on the source's table, and update the row there.")));
	}
}

/* ---- runners: the kept plans of a pipeline ---- */

static Runner *
find_runner(const EltPipeline *pipeline)
{
	uint64		generation = elt_registry_available() ? elt_config_generation(MyDatabaseId) : 0;
	bool		replayed = pipeline->late || (pipeline->append && pipeline->key != NIL);
	int64		id = replayed ? -pipeline->pipeline_id : pipeline->pipeline_id;
	Runner	   *runner;
	bool		found;

	if (runners == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(int64);
		ctl.entrysize = sizeof(Runner);
		runners = hash_create("elt runners", 16, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(forget_target, (Datum) 0);
	}
	runner = hash_search(runners, &id, HASH_ENTER, &found);
	if (!found)
	{
		runner->context = NULL;
		runner->statements = NIL;
		runner->valid = false;
	}
	if (!runner->valid || runner->version != pipeline->version ||
		runner->generation != generation || runner->target != pipeline->target)
	{
		reset_runner(runner);
		runner->version = pipeline->version;
		runner->generation = generation;
		runner->target = pipeline->target;
		runner->valid = true;
	}
	return runner;
}

static void
reset_runner(Runner *runner)
{
	ListCell   *lc;

	foreach(lc, runner->statements)
	{
		Statement  *statement = lfirst(lc);

		for (int i = 0; i < SIZE_CLASSES; i++)
		{
			if (statement->plans[i] != NULL)
				SPI_freeplan(statement->plans[i]);
		}
	}
	runner->statements = NIL;
	if (runner->context != NULL)
		MemoryContextDelete(runner->context);
	runner->context = AllocSetContextCreate(CacheMemoryContext, "elt runner", ALLOCSET_SMALL_SIZES);
}

/* Relcache callback: statements are built from the target's columns. */
static void
forget_target(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Runner	   *runner;

	hash_seq_init(&status, runners);
	while ((runner = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || runner->target == relid)
			runner->valid = false;
	}
}

static Statement *
find_statement(const EltPipeline *pipeline, Runner *runner, EltStatementKind kind, const EltLogRow *row)
{
	int			schema_version = pipeline->transform ? 0 : row->schema_version;
	Datum		unchanged = kind == ELT_STATEMENT_UPDATE || kind == ELT_STATEMENT_INSERT ||
	(kind == ELT_STATEMENT_VERSIONS && pipeline->transform == NULL) ? row->unchanged : 0;
	Statement  *statement;
	List	   *names = NIL;
	List	   *columns;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, runner->statements)
	{
		statement = lfirst(lc);
		if (statement->kind == kind && statement->schema_version == schema_version &&
			strcmp(statement->truncates, pipeline->truncates ? pipeline->truncates : "") == 0 &&
			same_names(statement->unchanged, unchanged))
			return statement;
	}

	if (pipeline->transform != NULL)
		columns = elt_output_transform(pipeline, NULL);
	else
	{
		names = elt_schema_columns(pipeline->source_id, pipeline->relation, schema_version);
		columns = elt_output_named(pipeline, names, unchanged);
	}

	old = MemoryContextSwitchTo(runner->context);
	statement = palloc0(sizeof(Statement));
	statement->kind = kind;
	statement->schema_version = schema_version;
	statement->truncates = pstrdup(pipeline->truncates ? pipeline->truncates : "");
	if (unchanged != 0)
	{
		statement->unchanged = PointerGetDatum(palloc(VARSIZE_ANY(unchanged)));
		memcpy(DatumGetPointer(statement->unchanged), DatumGetPointer(unchanged), VARSIZE_ANY(unchanged));
	}
	if (kind == ELT_STATEMENT_VERSIONS)
		statement->query = elt_history_statement(pipeline, columns, kept_columns(pipeline, names, columns));
	else
		statement->query = elt_statement_build(pipeline, kind, columns);
	runner->statements = lappend(runner->statements, statement);
	MemoryContextSwitchTo(old);
	return statement;
}

/* Of these columns of the source, those of the target that the images lack. */
static List *
kept_columns(const EltPipeline *pipeline, List *names, List *columns)
{
	List	   *kept = NIL;
	List	   *whole;
	ListCell   *lc;

	if (names == NIL)
		return NIL;
	whole = elt_output_names(elt_output_named(pipeline, names, 0));
	foreach(lc, whole)
	{
		bool		given = false;
		ListCell   *cell;

		foreach(cell, columns)
			given = given || strcmp(((EltOutputColumn *) lfirst(cell))->name, lfirst(lc)) == 0;
		if (!given)
			kept = lappend(kept, lfirst(lc));
	}
	return kept;
}

static SPIPlanPtr
find_plan(Runner *runner, Statement *statement, int nrows)
{
	int			class = 0;
	BlockNumber blocks = 0;

	for (int size = 8; nrows >= size && class < SIZE_CLASSES - 1; size *= 8)
		class++;
	if (get_rel_relkind(runner->target) == RELKIND_RELATION)
	{
		Relation	target = relation_open(runner->target, AccessShareLock);

		blocks = RelationGetNumberOfBlocks(target);
		relation_close(target, NoLock);
	}
	if (statement->plans[class] != NULL && blocks / 2 > Max(statement->blocks[class], 32))
	{
		SPI_freeplan(statement->plans[class]);
		statement->plans[class] = NULL;
	}
	if (statement->plans[class] == NULL)
	{
		SPIPlanPtr	plan = elt_statement_prepare(statement->query);

		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		statement->plans[class] = plan;
		statement->blocks[class] = blocks;
	}
	return statement->plans[class];
}

Query *
elt_runner_validate(const EltPipeline *pipeline, List *names)
{
	EltOwnerScope scope;
	MemoryContext caller = CurrentMemoryContext;
	Query	   *query = NULL;
	List	   *columns = NIL;
	Relation	raw = table_open(pipeline->raw_root, AccessShareLock);

	enter_owner(pipeline, &scope);
	(void) register_batch(RelationGetDescr(raw), NULL, 0);
	if (pipeline->transform != NULL)
	{
		columns = elt_output_transform(pipeline, &query);
		MemoryContextSwitchTo(caller);
		query = copyObject(query);
	}
	else if (names != NIL)
		columns = elt_output_named(pipeline, names, 0);
	if (columns != NIL && pipeline->history)
		(void) elt_statement_prepare(elt_history_statement(pipeline, columns, NIL));
	else if (columns != NIL)
	{
		(void) elt_statement_prepare(elt_statement_build(pipeline, ELT_STATEMENT_WRITE, columns));
		if (!pipeline->append)
			(void) elt_statement_prepare(elt_statement_build(pipeline, ELT_STATEMENT_DELETE, columns));
	}
	elt_owner_leave(&scope);
	table_close(raw, NoLock);
	return query;
}

const char *
elt_runner_step(const EltPipeline *pipeline, const ErrorData *error)
{
	bool		apply;
	Relation	target;

	if (error->table_name != NULL || error->constraint_name != NULL ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_CARDINALITY_VIOLATION)
		return "apply";

	/* else it is the target's fault only if one of its triggers was at work */
	target = try_relation_open(pipeline->target, AccessShareLock);
	if (target == NULL)
		return "apply";
	apply = false;
	for (int i = 0; target->trigdesc != NULL && error->context != NULL && i < target->trigdesc->numtriggers; i++)
	{
		char	   *function = get_func_name(target->trigdesc->triggers[i].tgfoid);

		if (function != NULL && strstr(error->context, function) != NULL)
			apply = true;
	}
	relation_close(target, NoLock);
	return apply ? "apply" : "transform";
}
