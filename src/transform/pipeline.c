/*
 * pipeline.c
 *	  Definitions of pipelines, and their SQL functions.
 *
 * All that can be known to be wrong when a pipeline is made is refused then:
 * names, options, rights, the key, and the transform, which is parsed and
 * planned as its owner, against the target, before anything is stored.
 *
 * A pipeline belongs to the role that makes it: the transform and the writes
 * run with that role's rights.  Its owner, members of that role, and
 * superusers may change it.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "argument.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "control/registry.h"
#include "elt.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parser.h"
#include "transform/batch.h"
#include "transform/log.h"
#include "transform/options.h"
#include "transform/runner.h"
#include "transform/target.h"
#include "transform/transform_catalog.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(elt_create_pipeline);
PG_FUNCTION_INFO_V1(elt_drop_pipeline);
PG_FUNCTION_INFO_V1(elt_pause_pipeline);
PG_FUNCTION_INFO_V1(elt_resume_pipeline);
PG_FUNCTION_INFO_V1(elt_transform);
PG_FUNCTION_INFO_V1(elt_pipeline_backlog);


static bool read_mode(const char *mode);
static char read_ordering(const char *ordering);
static char *find_relation(const EltSource *source, const char *relation);
static bool relation_is_known(const EltSource *source, const char *relation, char **known);
static List *read_key(Datum key);
static void warn_of_target_owner(const EltPipeline *pipeline);
static void check_key(EltPipeline *pipeline);
static char *read_transform(const char *text);
static List *source_columns(const EltSource *source, const char *relation);
static int64 store(const EltPipeline *pipeline, const char *mode, const char *ordering, int lanes);
static bool may_see(const EltPipeline *pipeline);
static void set_state(int64 pipeline_id, const char *state);
static double pool_rate(void);

Datum
elt_create_pipeline(PG_FUNCTION_ARGS)
{
	char	   *name = elt_argument_text(fcinfo, 0, "name");
	char	   *source_name = elt_argument_text(fcinfo, 1, "source");
	char	   *relation = elt_argument_text(fcinfo, 2, "relation");
	char	   *mode = elt_argument_text(fcinfo, 5, "mode");
	char	   *ordering = elt_argument_text(fcinfo, 7, "ordering");
	EltPipeline *pipeline = palloc0(sizeof(EltPipeline));
	EltPipelineOptions options;
	EltSource  *source;
	Query	   *query;

	if (PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"target\" must not be null"),
				 errhint("Name the table that the pipeline writes to.")));
	elt_argument_check_name(name, "pipeline");
	pipeline->append = read_mode(mode);
	pipeline->ordering = read_ordering(ordering);
	pipeline->options = PG_ARGISNULL(8) ? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))) :
		PG_GETARG_JSONB_P(8);
	elt_options_read(pipeline->options, pipeline->append, &options);
	if (elt_catalog_pipeline(name, true) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipeline \"%s\" exists already", name),
				 errhint("Choose another name, or drop it first with elt.drop_pipeline.")));

	source = elt_catalog_source(source_name, false);
	pipeline->name = name;
	pipeline->source_id = source->source_id;
	pipeline->source = source->name;
	pipeline->raw_root = get_relname_relid(source->name, get_namespace_oid("elt_raw", false));
	pipeline->target = PG_GETARG_OID(3);
	pipeline->lanes = options.lanes;
	pipeline->owner = GetUserId();
	pipeline->search_path = pstrdup(GetConfigOption("search_path", false, false));
	pipeline->version = 1;
	pipeline->state = 'r';
	if (!OidIsValid(pipeline->raw_root))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("raw staging of source \"%s\" does not exist", source->name),
				 errhint("Drop the source and create it again.")));

	elt_target_check(pipeline);
	warn_of_target_owner(pipeline);
	pipeline->relation = find_relation(source, relation);
	pipeline->key = PG_ARGISNULL(6) ? NIL : read_key(PG_GETARG_DATUM(6));
	check_key(pipeline);
	if (!PG_ARGISNULL(4))
		pipeline->transform = read_transform(text_to_cstring(PG_GETARG_TEXT_PP(4)));
	else if (elt_pipeline_topic(pipeline) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a pipeline of messages needs a transform"),
				 errhint("Messages have no columns: name them, as in SELECT after->>'id' AS id FROM changes.")));

	query = elt_runner_validate(pipeline, pipeline->transform ? NIL : source_columns(source, pipeline->relation));
	if (query != NULL && !options.allow_volatile && contain_volatile_functions((Node *) query))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the transform of pipeline \"%s\" uses a volatile function", name),
				 errdetail("A replay of raw staging would not give the same rows again."),
				 errhint("Use columns of changes such as commit_ts instead, or pass the option {\"allow_volatile\": true}.")));

	PG_RETURN_INT64(store(pipeline, mode, ordering, options.lanes));
}

static bool
read_mode(const char *mode)
{
	if (strcmp(mode, "append") == 0)
		return true;
	if (strcmp(mode, "history") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mode \"history\" is not supported yet"),
				 errhint("Use append to keep every version as a row of its own, or upsert to keep the newest.")));
	if (strcmp(mode, "upsert") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown mode \"%s\"", mode),
				 errhint("The modes are append and upsert.")));
	return false;
}

static char
read_ordering(const char *ordering)
{
	if (strcmp(ordering, "strict") == 0)
		return 's';
	if (strcmp(ordering, "supersede") == 0)
		return 'p';
	if (strcmp(ordering, "unordered") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown ordering \"%s\"", ordering),
				 errhint("The orderings are strict, supersede and unordered.")));
	return 'u';
}

/* ---- the relation of the source ---- */

/* The relation as source_tables has it: schema.table, quoted where SQL asks for it. */
static char *
find_relation(const EltSource *source, const char *relation)
{
	List	   *names;
	char	   *normal;
	char	   *known = NULL;

	if (strncmp(relation, "message:", 8) == 0 && relation[8] != '\0')
		return pstrdup(relation);

	names = elt_qualified_name_list(relation);
	if (list_length(names) == 2)
		normal = quote_qualified_identifier(strVal(linitial(names)), strVal(lsecond(names)));
	else if (list_length(names) == 1)
	{
		Oid			relid = source->conninfo ? InvalidOid : RelnameGetRelid(strVal(linitial(names)));
		char	   *schema = OidIsValid(relid) ? get_namespace_name(get_rel_namespace(relid)) : "public";

		normal = quote_qualified_identifier(schema, strVal(linitial(names)));
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("\"%s\" is not the name of a table", relation),
				 errhint("Write it as schema.table, or as message:<topic> for messages.")));

	if (!relation_is_known(source, normal, &known))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("source \"%s\" does not capture relation %s", source->name, normal),
				 known ? errdetail("It captures %s.", known) : 0,
				 errhint("Add it with ALTER PUBLICATION %s ADD TABLE %s at the source; messages are named message:<topic>.",
						 quote_identifier(source->publication), normal)));
	return normal;
}

/*
 * A remote source tells its relations when capture first reaches it: until
 * then any is taken.
 */
static bool
relation_is_known(const EltSource *source, const char *relation, char **known)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, BOOLOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation),
	CStringGetTextDatum(source->publication), BoolGetDatum(source->conninfo == NULL)};
	bool		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("WITH known AS ("
				"SELECT relation FROM elt.source_tables WHERE source_id = $1 AND state <> 'removed' "
				"UNION SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE $4 AND pubname = $3) "
				"SELECT EXISTS (SELECT FROM known WHERE relation = $2) OR NOT ($4 OR EXISTS (SELECT FROM known)), "
				"(SELECT string_agg(relation, ', ' ORDER BY relation) FROM (SELECT relation FROM known ORDER BY relation LIMIT 10) AS first)",
				4, types, values, NULL);
	found = elt_spi_bool(0, 1);
	*known = elt_spi_text(&spi, 0, 2);
	elt_spi_end(&spi);
	return found;
}

/* The relation's columns as far as they are known; NIL where they are not. */
static List *
source_columns(const EltSource *source, const char *relation)
{
	List	   *columns = elt_schema_columns(source->source_id, relation, 0);
	RangeVar   *name;
	Relation	table;

	if (columns != NIL || source->conninfo != NULL)
		return columns;
	name = makeRangeVarFromNameList(elt_qualified_name_list(relation));
	table = table_openrv_extended(name, AccessShareLock, true);
	if (table == NULL)
		return NIL;
	for (int i = 0; i < RelationGetNumberOfAttributes(table); i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(table), i);

		if (!attribute->attisdropped)
			columns = lappend(columns, pstrdup(NameStr(attribute->attname)));
	}
	table_close(table, NoLock);
	return columns;
}

/* ---- key and transform ---- */

static List *
read_key(Datum key)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	List	   *names = NIL;

	deconstruct_array(DatumGetArrayTypeP(key), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a key column must not be null"),
					 errhint("Pass the names of the target's key columns.")));
		names = lappend(names, TextDatumGetCString(elements[i]));
	}
	return names;
}

/* What a table's owner attaches to it runs as the pipeline's owner. */
static void
warn_of_target_owner(const EltPipeline *pipeline)
{
	Relation	target = table_open(pipeline->target, AccessShareLock);
	Oid			owner = target->rd_rel->relowner;

	if (superuser_arg(pipeline->owner) && !superuser_arg(owner))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("triggers, defaults and constraints of table \"%s\" will run with a superuser's rights",
						RelationGetRelationName(target)),
				 errdetail("The table belongs to role \"%s\", who is no superuser and may add some.",
						   GetUserNameFromId(owner, false)),
				 errhint("Create the pipeline as that role.")));
	table_close(target, NoLock);
}

/* An upsert needs a key that a unique index enforces; an append has none. */
static void
check_key(EltPipeline *pipeline)
{
	Relation	target = table_open(pipeline->target, AccessShareLock);
	ListCell   *lc;

	foreach(lc, pipeline->key)
	{
		if (get_attnum(pipeline->target, lfirst(lc)) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of table \"%s\" does not exist",
							(char *) lfirst(lc), RelationGetRelationName(target)),
					 errhint("Name columns of the target.")));
	}
	if (pipeline->append)
		pipeline->key = NIL;
	else
	{
		if (pipeline->key == NIL)
			pipeline->key = elt_target_primary_key(target);
		if (pipeline->key == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("table \"%s\" has no primary key", RelationGetRelationName(target)),
					 errhint("Add one, name the columns of a unique index as key, or use mode append.")));
		if (!OidIsValid(elt_target_key_index(target, pipeline->key)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("table \"%s\" has no unique index over the pipeline's key", RelationGetRelationName(target)),
					 errdetail("An index that is partial, deferrable, invalid or over expressions does not do."),
					 errhint("CREATE UNIQUE INDEX on exactly the key columns, or use mode append.")));
	}
	table_close(target, NoLock);
}

/* The text of the transform, which must be one plain SELECT, without what follows it. */
static char *
read_transform(const char *text)
{
	List	   *statements = raw_parser(text, RAW_PARSE_DEFAULT);
	RawStmt    *raw = list_length(statements) == 1 ? linitial_node(RawStmt, statements) : NULL;
	SelectStmt *select = raw && IsA(raw->stmt, SelectStmt) ? (SelectStmt *) raw->stmt : NULL;
	SelectStmt *leaf = select;
	ListCell   *lc;

	while (leaf != NULL && leaf->op != SETOP_NONE)
		leaf = leaf->larg;
	if (select == NULL || leaf->intoClause != NULL || select->lockingClause != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("a transform must be one SELECT"),
				 errdetail("It may neither write, nor lock, nor consist of several statements."),
				 errhint("Write a SELECT over changes, such as SELECT (record->>'id')::bigint AS id FROM changes.")));
	if (select->withClause != NULL)
	{
		foreach(lc, select->withClause->ctes)
		{
			if (!IsA(((CommonTableExpr *) lfirst(lc))->ctequery, SelectStmt))
				ereport(ERROR,
						(errcode(ERRCODE_SYNTAX_ERROR),
						 errmsg("a transform must not write"),
						 errdetail("Its WITH clause has a statement that is not a SELECT."),
						 errhint("Let the pipeline write to its target, and triggers to others.")));
		}
	}
	return raw->stmt_len > 0 ? pnstrdup(text +raw->stmt_location, raw->stmt_len) :
		pstrdup(text +raw->stmt_location);
}

static int64
store(const EltPipeline *pipeline, const char *mode, const char *ordering, int lanes)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, OIDOID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID,
	JSONBOID, INT4OID, OIDOID, TEXTOID};
	Datum	   *keys = palloc(Max(list_length(pipeline->key), 1) * sizeof(Datum));
	char		nulls[] = "            ";
	Datum		values[lengthof(types)];
	int64		pipeline_id;
	EltSpi		spi;
	ListCell   *lc;

	foreach(lc, pipeline->key)
		keys[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	values[0] = CStringGetTextDatum(pipeline->name);
	values[1] = Int64GetDatum(pipeline->source_id);
	values[2] = CStringGetTextDatum(pipeline->relation);
	values[3] = ObjectIdGetDatum(pipeline->target);
	values[4] = pipeline->transform ? CStringGetTextDatum(pipeline->transform) : (Datum) 0;
	nulls[4] = pipeline->transform ? ' ' : 'n';
	values[5] = CStringGetTextDatum(mode);
	values[6] = PointerGetDatum(construct_array(keys, list_length(pipeline->key), TEXTOID, -1, false, TYPALIGN_INT));
	values[7] = CStringGetTextDatum(ordering);
	values[8] = JsonbPGetDatum(pipeline->options);
	values[9] = Int32GetDatum(lanes);
	values[10] = ObjectIdGetDatum(pipeline->owner);
	values[11] = CStringGetTextDatum(pipeline->search_path);

	elt_spi_begin(&spi);
	elt_spi_run("WITH pipeline AS (INSERT INTO elt.pipelines "
				"(name, source_id, relation, target, transform, mode, key, ordering, options, lanes, owner, search_path) "
				"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING pipeline_id) "
				"SELECT pipeline_id FROM pipeline", lengthof(types), types, values, nulls);
	pipeline_id = elt_spi_int64(0, 1);
	elt_spi_run("INSERT INTO elt.pipeline_versions (pipeline_id, version, transform) "
				"SELECT pipeline_id, version, transform FROM elt.pipelines WHERE name = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_checkpoint_create(pipeline_id, lanes);
	elt_config_changed();
	return pipeline_id;
}

/* ---- the rest of a pipeline's life ---- */

Datum
elt_drop_pipeline(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"));
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	EltSpi		spi;

	/* the lanes first, as batches do, so that neither waits for the other */
	elt_spi_begin(&spi);
	elt_spi_run("SELECT FROM elt.checkpoints WHERE pipeline_id = $1 ORDER BY lane FOR UPDATE", 1, types, values, NULL);
	elt_spi_run("DELETE FROM elt.pipelines WHERE pipeline_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	PG_RETURN_VOID();
}

Datum
elt_pause_pipeline(PG_FUNCTION_ARGS)
{
	set_state(elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"))->pipeline_id, "paused");
	PG_RETURN_VOID();
}

Datum
elt_resume_pipeline(PG_FUNCTION_ARGS)
{
	set_state(elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"))->pipeline_id, "running");
	PG_RETURN_VOID();
}

static void
set_state(int64 pipeline_id, const char *state)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), CStringGetTextDatum(state)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.pipelines SET state = $2, blocked_since = NULL, next_probe_at = NULL, probes = 0 "
				"WHERE pipeline_id = $1 AND state <> $2", 2, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

EltPipeline *
elt_pipeline_own(const char *name)
{
	EltPipeline *pipeline = elt_catalog_pipeline(name, false);

	elt_batch_require_none(name);
	if (!has_privs_of_role(GetUserId(), pipeline->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of pipeline \"%s\"", name),
				 errhint("Its owner, members of that role, and superusers may do this.")));
	return pipeline;
}

/*
 * elt_transform
 *		Works on a pipeline here and now, in the caller's transaction, until
 *		nothing is left or max_changes are read.
 */
Datum
elt_transform(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_pipeline_own(elt_argument_text(fcinfo, 0, "name"));
	int64		limit = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	EltBatchCounts counts = {0};
	EltBatchEnd end = ELT_BATCH_MORE;
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};

	if (!PG_ARGISNULL(1) && limit <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_changes must be greater than zero: %lld", (long long) limit),
				 errhint("Leave it out to work on all that is there.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PreventCommandIfReadOnly("elt.transform()");

	while (end == ELT_BATCH_MORE && (limit == 0 || counts.read < limit))
	{
		CHECK_FOR_INTERRUPTS();
		end = elt_batch_run(pipeline, pipeline->lanes, limit ? limit - counts.read : 0, &counts, false);
	}

	values[0] = Int64GetDatum(counts.read);
	values[1] = Int64GetDatum(counts.written);
	values[2] = Int64GetDatum(counts.quarantined);
	values[3] = Int64GetDatum(counts.parked);
	values[4] = Int64GetDatum(counts.superseded);
	values[5] = Int64GetDatum(counts.position);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- what the views show ---- */

Datum
elt_pipeline_backlog(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = elt_catalog_pipeline(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	EltLogBacklog backlog = {0};
	int64		positions[ELT_MAX_LANES];
	double		rate = pool_rate();
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {true, true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (pipeline != NULL && may_see(pipeline))
	{
		int			lanes = elt_checkpoint_positions(pipeline->pipeline_id, positions);

		if (lanes > 0)
			elt_log_measure(elt_pipeline_raw(pipeline), elt_pipeline_topic(pipeline), positions, lanes, &backlog);
		values[0] = Int64GetDatum((int64) backlog.changes);
		values[1] = Int64GetDatum((int64) backlog.bytes);
		values[2] = TimestampTzGetDatum(backlog.oldest_commit_ts);
		nulls[0] = nulls[1] = false;
		nulls[2] = (backlog.oldest_commit_ts == 0);
		if (backlog.changes == 0 || rate > 0)
		{
			values[3] = DirectFunctionCall7(make_interval, 0, 0, 0, 0, 0, 0,
											Float8GetDatum(backlog.changes == 0 ? 0 : rint(backlog.changes / rate)));
			nulls[3] = false;
		}
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

static bool
may_see(const EltPipeline *pipeline)
{
	return has_privs_of_role(GetUserId(), pipeline->owner) ||
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

/* Changes per second of the database's transform workers, while they were at work. */
static double
pool_rate(void)
{
	double		rate = 0;

	for (int i = 0; i < elt_registry_size(); i++)
	{
		EltWorkerSlot slot;

		if (elt_registry_read(i, &slot) && slot.kind == ELT_WORKER_TRANSFORM && slot.dboid == MyDatabaseId)
		{
			uint64		busy_us = pg_atomic_read_u64(&slot.busy_us);

			if (busy_us > 0)
				rate += pg_atomic_read_u64(&slot.changes) * 1e6 / busy_us;
		}
	}
	return rate;
}
