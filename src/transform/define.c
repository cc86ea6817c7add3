/*
 * define.c
 *	  Definitions of pipelines: create_pipeline, replace_transform,
 *	  alter_pipeline.
 *
 * All that can be known to be wrong is refused before anything is stored:
 * names, options, rights, the key, and the transform, which is parsed and
 * planned as its owner, against the target.
 *
 * A pipeline belongs to the role that makes it: the transform and the writes
 * run with that role's rights, whoever changes them later.
 *
 * A change of a definition waits for the batches that are under way, so that
 * nothing of the old definition commits after it.  It gives the pipeline a new
 * version, which is how workers see that what they hold is old.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "argument.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "control/registry.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parser.h"
#include "transform/caution.h"
#include "transform/group.h"
#include "transform/log.h"
#include "transform/options.h"
#include "transform/pipeline.h"
#include "transform/runner.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "transform/transform_catalog.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(elt_create_pipeline);
PG_FUNCTION_INFO_V1(elt_replace_transform);
PG_FUNCTION_INFO_V1(elt_alter_pipeline);

static void read_mode(EltPipeline *pipeline, const char *mode);
static char read_ordering(const char *ordering);
static void check_definition(EltPipeline *pipeline, const EltSource *source);
static char *find_relation(const EltSource *source, const char *relation);
static bool relation_is_known(const EltSource *source, const char *relation, char **known);
static void follow_relation(EltPipeline *pipeline, const char *relation);
static List *read_key(Datum key);
static void check_key(EltPipeline *pipeline);
static List *default_key(const EltPipeline *pipeline, Relation target);
static void check_history(const EltPipeline *pipeline, const EltPipelineOptions *options);
static void check_soft_deletes(const EltPipeline *pipeline);
static void require_time_column(const EltPipeline *pipeline, const char *name, const char *what);
static char *read_transform(const char *text);
static List *source_columns(const EltSource *source, const char *relation);
static EltPipeline *hold_definition(const char *name);
static void require_none_parked(const EltPipeline *pipeline, const char *reason);
static int64 store(const EltPipeline *pipeline, const char *mode, const char *ordering, int lanes);
static int	store_version(const EltPipeline *pipeline);
static const char *ordering_name(char ordering);

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

	if (PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"target\" must not be null"),
				 errhint("Name the table that the pipeline writes to.")));
	elt_argument_check_name(name, "pipeline");
	read_mode(pipeline, mode);
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
	pipeline->relation = find_relation(source, relation);
	pipeline->key = PG_ARGISNULL(6) ? NIL : read_key(PG_GETARG_DATUM(6));
	if (!PG_ARGISNULL(4))
		pipeline->transform = read_transform(text_to_cstring(PG_GETARG_TEXT_PP(4)));
	check_definition(pipeline, source);
	PG_RETURN_INT64(store(pipeline, mode, ordering, options.lanes));
}

Datum
elt_replace_transform(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = hold_definition(elt_argument_text(fcinfo, 0, "name"));
	int			version;

	pipeline->transform = PG_ARGISNULL(1) ? NULL : read_transform(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	check_definition(pipeline, elt_catalog_source(pipeline->source, false));
	version = store_version(pipeline);
	PG_RETURN_INT32(version);
}

Datum
elt_alter_pipeline(PG_FUNCTION_ARGS)
{
	EltPipeline *pipeline = hold_definition(elt_argument_text(fcinfo, 0, "name"));
	EltPipelineOptions options;

	if (!PG_ARGISNULL(1))
		pipeline->options = elt_options_merge(pipeline->options, PG_GETARG_JSONB_P(1));
	elt_options_read(pipeline->options, pipeline->append, &options);
	if (options.lanes != pipeline->lanes)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the lanes of a pipeline cannot be changed"),
				 errdetail("Pipeline \"%s\" has %d.", pipeline->name, pipeline->lanes),
				 errhint("Make a new pipeline with as many lanes as you need.")));
	if (!PG_ARGISNULL(2))
		pipeline->target = PG_GETARG_OID(2);
	if (!PG_ARGISNULL(3))
	{
		char		ordering = read_ordering(text_to_cstring(PG_GETARG_TEXT_PP(3)));

		if (pipeline->ordering == 's' && ordering != 's')
			require_none_parked(pipeline, "With another ordering they could overwrite newer ones.");
		pipeline->ordering = ordering;
	}
	if (!PG_ARGISNULL(4))
		follow_relation(pipeline, text_to_cstring(PG_GETARG_TEXT_PP(4)));
	check_definition(pipeline, elt_catalog_source(pipeline->source, false));
	(void) store_version(pipeline);
	PG_RETURN_VOID();
}

/* Raises what is wrong; fills in what was left out. */
static void
check_definition(EltPipeline *pipeline, const EltSource *source)
{
	EltPipelineOptions options;
	Query	   *query;

	elt_options_read(pipeline->options, pipeline->append, &options);
	elt_target_check(pipeline);
	if (pipeline->history)
		check_history(pipeline, &options);
	if (options.soft_deletes)
		check_soft_deletes(pipeline);
	check_key(pipeline);
	elt_group_check(pipeline);
	if (pipeline->transform == NULL && elt_pipeline_topic(pipeline) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a pipeline of messages needs a transform"),
				 errhint("Messages have no columns: name them, as in SELECT after->>'id' AS id FROM changes.")));

	query = elt_runner_validate(pipeline, pipeline->transform ? NIL : source_columns(source, pipeline->relation));
	if (query != NULL && !options.allow_volatile && contain_volatile_functions((Node *) query))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the transform of pipeline \"%s\" uses a volatile function", pipeline->name),
				 errdetail("A replay of raw staging would not give the same rows again."),
				 errhint("Use columns of changes such as commit_ts instead, or pass the option {\"allow_volatile\": true}.")));
	elt_caution(pipeline, source);
}

static void
read_mode(EltPipeline *pipeline, const char *mode)
{
	pipeline->append = strcmp(mode, "append") == 0;
	pipeline->history = strcmp(mode, "history") == 0;
	if (!pipeline->append && !pipeline->history && strcmp(mode, "upsert") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown mode \"%s\"", mode),
				 errhint("The modes are append, upsert and history.")));
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

/*
 * Lets a pipeline go on with the log of the name that its table has now.
 *
 * By hand, and not by itself, because a table that is renamed is as often one
 * that is put aside: where orders_new takes the place of orders, the pipeline
 * is to stay with the name, and only its owner can tell.
 *
 * Change ids ascend over all logs of a source, so the lanes' positions hold in
 * the new log too: what came after the rename is behind them.  What came before
 * has to be settled, because it is in the old log alone.  Rows of another table
 * that had the new name earlier are not this pipeline's: the positions are
 * moved past them.
 */
static void
follow_relation(EltPipeline *pipeline, const char *relation)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID};
	char	   *name = find_relation(elt_catalog_source(pipeline->source, false), relation);
	Datum		values[] = {Int64GetDatum(pipeline->source_id), CStringGetTextDatum(pipeline->relation),
	CStringGetTextDatum(name), CStringGetTextDatum(pipeline->name)};
	bool		isnull;
	int			version;
	int64		backlog;
	EltSpi		spi;

	if (strcmp(name, pipeline->relation) == 0)
		return;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT coalesce(min(n.version), 0) FROM elt.schema_versions n "
				"WHERE n.source_id = $1 AND n.relation = $3 AND n.changes @> "
				"jsonb_build_array(jsonb_build_object('change', 'renamed relation', 'from', $2)) AND "
				"n.relid IN (SELECT o.relid FROM elt.schema_versions o WHERE o.source_id = $1 AND o.relation = $2)",
				3, types, values, NULL);
	version = (int) elt_spi_int64(0, 1);
	elt_spi_run("SELECT b.changes FROM elt.pipeline_backlog($4) b", lengthof(types), types, values, NULL);
	(void) elt_spi_datum(&spi, 0, 1, &isnull);
	backlog = isnull ? 0 : elt_spi_int64(0, 1);
	elt_spi_end(&spi);

	if (version == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation %s is not the next name of the table of pipeline \"%s\"", name, pipeline->name),
				 errdetail("The pipeline reads %s. A table that was renamed more than once has a log for each name.",
						   pipeline->relation),
				 errhint("SELECT relation, renamed_to FROM elt.renamed_relations; for another table create another pipeline.")));
	if (backlog > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" has not settled all changes of %s", pipeline->name, pipeline->relation),
				 errdetail(INT64_FORMAT " changes wait under this name, and none of them is in the log of %s.",
						   backlog, name),
				 errhint("SELECT elt.wait_for(%s), then try again.", quote_literal_cstr(pipeline->name))));
	require_none_parked(pipeline, "They are in the log of the old name alone.");

	if (version > 1)
	{
		elt_spi_begin(&spi);
		elt_spi_execute(psprintf("UPDATE elt.checkpoints c SET position = greatest(c.position, r.last) "
								 "FROM (SELECT max(change_id) AS last FROM elt_raw.%s WHERE relation = %s AND schema_version < %d) r "
								 "WHERE c.pipeline_id = " INT64_FORMAT,
								 quote_identifier(pipeline->source), quote_literal_cstr(name), version,
								 pipeline->pipeline_id));
		elt_spi_end(&spi);
	}
	pipeline->relation = name;
}

/*
 * The relation's columns as far as they are known; NIL where they are not.
 * Of a local table whose shape was not captured yet the catalogs are asked,
 * whatever the caller may do with it: who may read raw staging sees them there.
 */
static List *
source_columns(const EltSource *source, const char *relation)
{
	List	   *columns = elt_schema_columns(source->source_id, relation, 0);
	List	   *names;
	Oid			table;
	Relation	open;

	if (columns != NIL || source->conninfo != NULL || strncmp(relation, "message:", 8) == 0)
		return columns;
	names = elt_qualified_name_list(relation);
	table = get_relname_relid(strVal(lsecond(names)), get_namespace_oid(strVal(linitial(names)), true));
	open = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;
	if (open == NULL)
		return NIL;
	for (int i = 0; i < RelationGetNumberOfAttributes(open); i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(open), i);

		if (!attribute->attisdropped)
			columns = lappend(columns, pstrdup(NameStr(attribute->attname)));
	}
	table_close(open, NoLock);
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
			pipeline->key = default_key(pipeline, target);
		if (pipeline->key == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("table \"%s\" has no primary key", RelationGetRelationName(target)),
					 errdetail("One that is deferrable does not do."),
					 errhint("Add one, name the columns of a unique index as key, or use mode append.")));
		if (!OidIsValid(elt_target_key_index(target, elt_target_unique_columns(pipeline))))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("table \"%s\" has no unique index over the pipeline's key%s", RelationGetRelationName(target),
							pipeline->history ? " and valid_from" : ""),
					 errdetail("An index that is partial, deferrable, invalid or over expressions does not do."),
					 errhint("CREATE UNIQUE INDEX on exactly the key columns, or use mode append.")));
	}
	table_close(target, NoLock);
}

/* The primary key; in a history without the time that tells versions apart. */
static List *
default_key(const EltPipeline *pipeline, Relation target)
{
	List	   *key = elt_target_primary_key(target);
	ListCell   *lc;

	foreach(lc, key)
	{
		if (pipeline->history && strcmp(lfirst(lc), ELT_VALID_FROM) == 0)
			key = foreach_delete_current(key, lc);
	}
	return key;
}

static void
check_history(const EltPipeline *pipeline, const EltPipelineOptions *options)
{
	require_time_column(pipeline, ELT_VALID_FROM, "a history");
	require_time_column(pipeline, ELT_VALID_TO, "a history");
	if (pipeline->ordering != 's')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a history needs the ordering strict"),
				 errdetail("Versions of a key follow one another."),
				 errhint("Leave out the ordering, or use mode upsert.")));
	if (options->soft_deletes)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a history does not take the option \"deletes\": \"soft\""),
				 errdetail("A delete ends the present version, and removes none."),
				 errhint("Leave out the option.")));
}

static void
check_soft_deletes(const EltPipeline *pipeline)
{
	if (pipeline->append)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("mode append does not take the option \"deletes\": \"soft\""),
				 errhint("Use mode upsert.")));
	require_time_column(pipeline, ELT_DELETED_AT, "a pipeline with the option \"deletes\": \"soft\"");
}

static void
require_time_column(const EltPipeline *pipeline, const char *name, const char *what)
{
	AttrNumber	attnum = get_attnum(pipeline->target, name);

	if (attnum <= 0 || get_atttype(pipeline->target, attnum) != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(attnum <= 0 ? ERRCODE_UNDEFINED_COLUMN : ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the target of %s needs a column \"%s\" of type timestamptz", what, name),
				 errhint("ALTER TABLE %s ADD COLUMN %s timestamptz", elt_target_name(pipeline), name)));
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

/* The pipeline as it is once no batch is under way, which it stays until the end of the transaction. */
static EltPipeline *
hold_definition(const char *name)
{
	elt_pipeline_lock(elt_pipeline_own(name));
	return elt_pipeline_own(name);
}

/* What is parked would come later than what no longer waits for it. */
static void
require_none_parked(const EltPipeline *pipeline, const char *reason)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id)};
	bool		parked;
	EltSpi		spi;

	elt_spi_begin(&spi);
	parked = elt_spi_run("SELECT FROM elt.parked WHERE pipeline_id = $1 LIMIT 1", 1, types, values, NULL) > 0;
	elt_spi_end(&spi);
	if (parked)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" has parked changes", pipeline->name),
				 errdetail_internal("%s", reason),
				 errhint("Resolve the quarantined changes that they wait for first; see elt.blocked_keys.")));
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
				"(name, source_id, relation, target, target_name, target_owner, transform, mode, key, ordering, options, lanes, owner, search_path) "
				"SELECT $1, $2, $3, c.oid, format('%I.%I', n.nspname, c.relname), c.relowner, "
				"$5, $6, $7, $8, $9, $10, $11, $12 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $4 RETURNING pipeline_id) "
				"SELECT pipeline_id FROM pipeline", lengthof(types), types, values, nulls);
	pipeline_id = elt_spi_int64(0, 1);
	elt_spi_run("INSERT INTO elt.pipeline_versions (pipeline_id, version, transform) "
				"SELECT pipeline_id, version, transform FROM elt.pipelines WHERE name = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_checkpoint_create(pipeline_id, lanes);
	elt_config_changed();
	return pipeline_id;
}

/* Stores what replace_transform and alter_pipeline can change, as a new version. */
static int
store_version(const EltPipeline *pipeline)
{
	Oid			types[] = {INT8OID, TEXTOID, OIDOID, JSONBOID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline->pipeline_id),
		pipeline->transform ? CStringGetTextDatum(pipeline->transform) : (Datum) 0,
		ObjectIdGetDatum(pipeline->target), JsonbPGetDatum(pipeline->options),
	CStringGetTextDatum(ordering_name(pipeline->ordering)), CStringGetTextDatum(pipeline->relation)};
	int			version;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("WITH changed AS (UPDATE elt.pipelines p SET version = p.version + 1, transform = $2, target = c.oid, "
				"target_name = format('%I.%I', n.nspname, c.relname), target_owner = c.relowner, options = $4, ordering = $5, relation = $6 "
				"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
				"WHERE p.pipeline_id = $1 AND c.oid = $3 RETURNING p.pipeline_id, p.version, p.transform), "
				"noted AS (INSERT INTO elt.pipeline_versions (pipeline_id, version, transform) SELECT * FROM changed RETURNING version) "
				"SELECT version FROM noted", lengthof(types), types, values, pipeline->transform ? NULL : " n    ");
	version = (int) elt_spi_int64(0, 1);

	/* what failed with the old definition may be well with this one */
	elt_spi_run("DELETE FROM elt.attempts WHERE pipeline_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_pipeline_probe_now(pipeline->pipeline_id);
	return version;
}

static const char *
ordering_name(char ordering)
{
	return ordering == 's' ? "strict" : ordering == 'p' ? "supersede" : "unordered";
}
