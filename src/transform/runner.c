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
 * Constraints are immediate, so that no deferred trigger is left to run under
 * the id that commits.  An error leaves through the caller's subtransaction,
 * which restores id and settings.
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
#include "storage/bufmgr.h"
#include "transform/runner.h"
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

#define BATCH_NAME		"elt_batch"
#define CHANGES \
	"WITH changes AS (SELECT b.*, COALESCE(b.after, b.before, b.key) AS record FROM " BATCH_NAME " AS b " \
	"WHERE elt.note_change(b.change_id)) "
#define SIZE_CLASSES	5		/* of a batch: below 8, 64, 512, 4096 changes, more */
#define MAX_CASTS		10		/* columns that are cheaper to fetch one by one */

typedef struct OutputColumn
{
	char	   *name;
	Oid			type;			/* of the output */
	Oid			target_type;
	char		identity;		/* attidentity */
	bool		in_key;
	Oid			equality;		/* of the key's index */
} OutputColumn;

typedef enum StatementKind
{
	STATEMENT_WRITE,			/* insert or upsert whole images */
	STATEMENT_DELETE,
	STATEMENT_UPDATE,			/* images that lack columns: where the row is there */
	STATEMENT_INSERT			/* images that lack columns: where it is not */
} StatementKind;

typedef struct Statement
{
	StatementKind kind;
	int			schema_version; /* 0 with a transform */
	Datum		unchanged;		/* text[] of columns that the images lack; 0: none */
	char	   *query;			/* NULL: there is nothing to do */
	SPIPlanPtr	plans[SIZE_CLASSES];
	BlockNumber blocks[SIZE_CLASSES];	/* of the target when the plan was made */
} Statement;

typedef struct Runner
{
	int64		pipeline_id;	/* hash key */
	int			version;
	uint64		generation;
	Oid			target;
	bool		valid;
	MemoryContext context;
	List	   *statements;
} Runner;

/* What is put aside while the owner is at work. */
typedef struct Scope
{
	Oid			user;
	int			sec_context;
	int			nest_level;
} Scope;

static HTAB *runners = NULL;
static int64 last_change = -1;	/* that elt_batch gave to a statement */

PG_FUNCTION_INFO_V1(elt_note_change);

static void enter_owner(const EltPipeline *pipeline, Scope *scope);
static void leave_owner(const Scope *scope);
static void pin_formats(void);
static void set_config(const char *name, const char *value);
static void fire_constraints_at_once(void);
static Runner *find_runner(const EltPipeline *pipeline);
static void reset_runner(Runner *runner);
static void forget_target(Datum arg, Oid relid);
static int	run_class(const EltPipeline *pipeline, const EltLogRow *row);
static bool same_run(const EltPipeline *pipeline, const EltLogRow *a, const EltLogRow *b);
static EltLogRow **order_by_run(const EltPipeline *pipeline, EltLogRow **rows, int nrows);
static int	compare_runs(const void *a, const void *b, void *arg);
static int64 apply_run(const EltPipeline *pipeline, Runner *runner, TupleDesc desc, EltLogRow **rows, int nrows);
static void register_batch(TupleDesc desc, EltLogRow **rows, int nrows);
static int64 execute(const EltPipeline *pipeline, Runner *runner, StatementKind kind,
					 const EltLogRow *row, int nrows);
static Statement *find_statement(const EltPipeline *pipeline, Runner *runner, StatementKind kind,
								 const EltLogRow *row);
static SPIPlanPtr find_plan(Runner *runner, Statement *statement, int nrows);
static SPIPlanPtr prepare(const char *query);
static char *build_statement(const EltPipeline *pipeline, StatementKind kind, List *columns);
static void append_names(StringInfo out, List *columns);
static void append_key_names(StringInfo out, List *columns);
static void append_key_match(StringInfo out, List *columns, const char *output);
static bool append_assignments(StringInfo out, List *columns, const char *output);
static char *source_of(const EltPipeline *pipeline, List *columns, bool keys_only);
static bool is_plain_type(Oid type);
static List *named_columns(const EltPipeline *pipeline, List *names, Datum unchanged);
static List *transform_columns(const EltPipeline *pipeline, Query **query);
static List *match_target(const EltPipeline *pipeline, List *columns);
static bool contains_name(Datum names, const char *name);
static void require_key_in_record(const EltPipeline *pipeline, const EltLogRow *row);

/* ---- the owner's scope ---- */

static void
enter_owner(const EltPipeline *pipeline, Scope *scope)
{
	fire_constraints_at_once();
	GetUserIdAndSecContext(&scope->user, &scope->sec_context);
	SetUserIdAndSecContext(pipeline->owner, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	scope->nest_level = NewGUCNestLevel();
	if (strstr(pipeline->search_path, "pg_temp") != NULL)
		set_config("search_path", pipeline->search_path);
	else
		set_config("search_path", psprintf("%s%spg_temp", pipeline->search_path,
										   pipeline->search_path[0] ? ", " : ""));
	if (elt_my_slot == NULL)
		pin_formats();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
leave_owner(const Scope *scope)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(false, scope->nest_level);
	SetUserIdAndSecContext(scope->user, scope->sec_context);
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
	Scope		scope;
	Runner	   *runner;
	int64		written = 0;
	int			start = 0;

	last_change = -1;
	enter_owner(pipeline, &scope);
	runner = find_runner(pipeline);
	if (!in_order)
		rows = order_by_run(pipeline, rows, nrows);
	while (start < nrows)
	{
		int			end = start + 1;

		while (end < nrows && same_run(pipeline, rows[start], rows[end]))
			end++;
		written += apply_run(pipeline, runner, desc, rows + start, end - start);
		start = end;
	}
	leave_owner(&scope);
	return written;
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
	PG_RETURN_BOOL(true);
}

int64
elt_runner_last_change(void)
{
	return last_change;
}

void
elt_runner_truncate(const EltPipeline *pipeline)
{
	Scope		scope;
	char	   *target = elt_target_name(pipeline);
	char	   *statement;

	/* an owner with no TRUNCATE right still has the means */
	if (pg_class_aclcheck(pipeline->target, pipeline->owner, ACL_TRUNCATE) == ACLCHECK_OK)
		statement = psprintf("TRUNCATE %s", target);
	else
		statement = psprintf("DELETE FROM %s", target);

	enter_owner(pipeline, &scope);
	if (SPI_execute(statement, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", statement);
	leave_owner(&scope);
}

/* The statements' kind that a change needs: deletes come first, see order_by_run. */
static int
run_class(const EltPipeline *pipeline, const EltLogRow *row)
{
	if (pipeline->append)
		return 1;
	if (row->op == ELT_OP_DELETE)
		return 0;
	return (row->unchanged != 0 && pipeline->transform == NULL) ? 2 : 1;
}

/* Whether two changes can go through one statement. */
static bool
same_run(const EltPipeline *pipeline, const EltLogRow *a, const EltLogRow *b)
{
	int			class = run_class(pipeline, a);

	return class == run_class(pipeline, b) &&
		(class != 2 ||
		 (VARSIZE_ANY(a->unchanged) == VARSIZE_ANY(b->unchanged) &&
		  memcmp(DatumGetPointer(a->unchanged), DatumGetPointer(b->unchanged), VARSIZE_ANY(a->unchanged)) == 0));
}

/*
 * Puts changes of different keys into the fewest runs.  Deletes go first:
 * what they free may be taken by what follows.
 */
static EltLogRow **
order_by_run(const EltPipeline *pipeline, EltLogRow **rows, int nrows)
{
	EltLogRow **ordered;
	bool		one_run = true;

	for (int i = 1; i < nrows && one_run; i++)
		one_run = same_run(pipeline, rows[0], rows[i]);
	if (one_run)
		return rows;
	ordered = palloc(nrows * sizeof(EltLogRow *));
	memcpy(ordered, rows, nrows * sizeof(EltLogRow *));
	qsort_arg(ordered, nrows, sizeof(EltLogRow *), compare_runs, unconstify(EltPipeline *, pipeline));
	return ordered;
}

static int
compare_runs(const void *a, const void *b, void *arg)
{
	const EltLogRow *left = *(EltLogRow *const *) a;
	const EltLogRow *right = *(EltLogRow *const *) b;
	int			class = run_class(arg, left);

	if (class != run_class(arg, right))
		return class - run_class(arg, right);
	if (class == 2)
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
apply_run(const EltPipeline *pipeline, Runner *runner, TupleDesc desc, EltLogRow **rows, int nrows)
{
	int64		written = 0;

	register_batch(desc, rows, nrows);
	switch (run_class(pipeline, rows[0]))
	{
		case 0:
			for (int i = 0; i < nrows && pipeline->transform == NULL; i++)
				require_key_in_record(pipeline, rows[i]);
			written = execute(pipeline, runner, STATEMENT_DELETE, rows[0], nrows);
			break;
		case 1:
			written = execute(pipeline, runner, STATEMENT_WRITE, rows[0], nrows);
			break;
		case 2:
			written = execute(pipeline, runner, STATEMENT_UPDATE, rows[0], nrows);
			if (written < nrows)
				written += execute(pipeline, runner, STATEMENT_INSERT, rows[0], nrows);
			break;
	}
	SPI_unregister_relation(BATCH_NAME);
	return written;
}

/* Shows the rows to SQL as elt_batch. */
static void
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

	enr->md.name = BATCH_NAME;
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = 3.0 * nrows;	/* the planner takes note_change() for a filter */
	enr->reldata = store;
	if (SPI_register_relation(enr) != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed");
}

static int64
execute(const EltPipeline *pipeline, Runner *runner, StatementKind kind, const EltLogRow *row, int nrows)
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
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a delete does not carry the target's key column \"%s\"", name),
					 errhint("Set REPLICA IDENTITY FULL on the source's table, or use its replica identity as the target's key.")));
	}
}

/* ---- runners: the kept plans of a pipeline ---- */

static Runner *
find_runner(const EltPipeline *pipeline)
{
	uint64		generation = elt_registry_available() ? elt_config_generation(MyDatabaseId) : 0;
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
	runner = hash_search(runners, &pipeline->pipeline_id, HASH_ENTER, &found);
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
find_statement(const EltPipeline *pipeline, Runner *runner, StatementKind kind, const EltLogRow *row)
{
	int			schema_version = pipeline->transform ? 0 : row->schema_version;
	Datum		unchanged = (kind == STATEMENT_UPDATE || kind == STATEMENT_INSERT) ? row->unchanged : 0;
	Statement  *statement;
	List	   *columns;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, runner->statements)
	{
		statement = lfirst(lc);
		if (statement->kind == kind && statement->schema_version == schema_version &&
			(statement->unchanged == 0) == (unchanged == 0) &&
			(unchanged == 0 ||
			 (VARSIZE_ANY(statement->unchanged) == VARSIZE_ANY(unchanged) &&
			  memcmp(DatumGetPointer(statement->unchanged), DatumGetPointer(unchanged), VARSIZE_ANY(unchanged)) == 0)))
			return statement;
	}

	if (pipeline->transform != NULL)
		columns = transform_columns(pipeline, NULL);
	else
		columns = named_columns(pipeline, elt_schema_columns(pipeline->source_id, pipeline->relation, schema_version), unchanged);

	old = MemoryContextSwitchTo(runner->context);
	statement = palloc0(sizeof(Statement));
	statement->kind = kind;
	statement->schema_version = schema_version;
	if (unchanged != 0)
	{
		statement->unchanged = PointerGetDatum(palloc(VARSIZE_ANY(unchanged)));
		memcpy(DatumGetPointer(statement->unchanged), DatumGetPointer(unchanged), VARSIZE_ANY(unchanged));
	}
	statement->query = build_statement(pipeline, kind, columns);
	runner->statements = lappend(runner->statements, statement);
	MemoryContextSwitchTo(old);
	return statement;
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
		SPIPlanPtr	plan = prepare(statement->query);

		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		statement->plans[class] = plan;
		statement->blocks[class] = blocks;
	}
	return statement->plans[class];
}

static SPIPlanPtr
prepare(const char *query)
{
	SPIPlanPtr	plan = SPI_prepare(query, 0, NULL);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	return plan;
}

/* ---- statements ---- */

/* NULL where a statement of this kind has nothing to do. */
static char *
build_statement(const EltPipeline *pipeline, StatementKind kind, List *columns)
{
	char	   *target = elt_target_name(pipeline);
	bool		overriding = false;
	StringInfoData out;
	ListCell   *lc;

	initStringInfo(&out);
	if (kind == STATEMENT_DELETE)
	{
		appendStringInfo(&out, CHANGES "DELETE FROM %s AS t USING (\n%s\n) AS o WHERE ",
						 target, source_of(pipeline, columns, true));
		append_key_match(&out, columns, "o");
		return out.data;
	}
	if (kind == STATEMENT_UPDATE)
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
	if (kind == STATEMENT_INSERT)
	{
		appendStringInfo(&out, " WHERE NOT EXISTS (SELECT FROM %s AS t WHERE ", target);
		append_key_match(&out, columns, "output");
		appendStringInfoChar(&out, ')');
	}
	if (!pipeline->append)
	{
		StringInfoData assignments;

		initStringInfo(&assignments);
		appendStringInfoString(&out, " ON CONFLICT (");
		append_key_names(&out, columns);
		if (kind == STATEMENT_WRITE && append_assignments(&assignments, columns, "excluded"))
			appendStringInfo(&out, ") DO UPDATE SET %s", assignments.data);
		else
			appendStringInfoString(&out, ") DO NOTHING");
	}
	return out.data;
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
			appendStringInfo(&out, "%s(record OPERATOR(pg_catalog.->>) %s)::%s AS %s", separator,
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
		appendStringInfo(&out, " FROM (SELECT pg_catalog.jsonb_populate_record(NULL::%s, record) AS r FROM changes OFFSET 0) AS s",
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
static List *
named_columns(const EltPipeline *pipeline, List *names, Datum unchanged)
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
static List *
transform_columns(const EltPipeline *pipeline, Query **query)
{
	SPIPlanPtr	plan = prepare(psprintf(CHANGES "SELECT * FROM (\n%s\n) AS output", pipeline->transform));
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

Query *
elt_runner_validate(const EltPipeline *pipeline, List *names)
{
	Scope		scope;
	MemoryContext caller = CurrentMemoryContext;
	Query	   *query = NULL;
	List	   *columns = NIL;
	Relation	raw = table_open(pipeline->raw_root, AccessShareLock);

	enter_owner(pipeline, &scope);
	register_batch(RelationGetDescr(raw), NULL, 0);
	if (pipeline->transform != NULL)
	{
		columns = transform_columns(pipeline, &query);
		MemoryContextSwitchTo(caller);
		query = copyObject(query);
	}
	else if (names != NIL)
		columns = named_columns(pipeline, names, 0);
	if (columns != NIL)
	{
		(void) prepare(build_statement(pipeline, STATEMENT_WRITE, columns));
		if (!pipeline->append)
			(void) prepare(build_statement(pipeline, STATEMENT_DELETE, columns));
	}
	leave_owner(&scope);
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
