/*
 * source.c
 *	  The SQL functions of sources.
 *
 * They work in the caller's transaction and only record what is wanted: the
 * workers make slots and copies after the commit, so that a rollback leaves
 * nothing behind and a slot, whose making waits for running transactions,
 * never waits for the caller's own.
 *
 * Rights.  The publication is made and changed as the caller, so PostgreSQL's
 * own rules say who may publish a table.  Capture itself goes past GRANT and
 * RLS, so a source takes REPLICATION or superuser, and one with a connection
 * string takes superuser.  Raw staging is readable by the source's owner.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "argument.h"
#include "capture/copy.h"
#include "capture/partition.h"
#include "capture/source.h"
#include "capture/snapshot_worker.h"
#include "capture/stream.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "compat.h"
#include "control/registry.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/message.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#define MAX_TOPIC_LENGTH	255

PG_FUNCTION_INFO_V1(elt_create_source);
PG_FUNCTION_INFO_V1(elt_add_table);
PG_FUNCTION_INFO_V1(elt_remove_table);
PG_FUNCTION_INFO_V1(elt_resync_table);
PG_FUNCTION_INFO_V1(elt_pause_source);
PG_FUNCTION_INFO_V1(elt_resume_source);
PG_FUNCTION_INFO_V1(elt_drop_source);
PG_FUNCTION_INFO_V1(elt_emit);
PG_FUNCTION_INFO_V1(elt_home);
PG_FUNCTION_INFO_V1(elt_created);

static void require_create_right(bool remote);
static void stop_capture(int64 source_id);
static char *make_publication(const char *name, ArrayType *tables);
static void check_publication(const char *publication);
static void run_as_caller(const char *command);
static Oid	published_table(const char *relation);
static void warn_without_identity(Oid relid);
static char *qualified_name(Oid relid);
static int64 insert_source(EltSource *source, const char *secret, Jsonb *options);
static void set_enabled(EltSource *source, bool enabled);
static char *captured_name(const EltSource *source, char *relation);
static bool is_published(const char *publication, Oid relid);
static bool table_is_captured(int64 source_id, const char *relation, const char *state);
static void set_table_state(int64 source_id, const char *relation, const char *state);
static void warn_of_settings(void);

/* ---- create ---- */

Datum
elt_create_source(PG_FUNCTION_ARGS)
{
	EltSource	source = {0};
	ArrayType  *tables = PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1);
	char	   *snapshot = elt_argument_text(fcinfo, 4, "snapshot");
	char	   *secret = NULL;
	Jsonb	   *options = PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5);

	source.name = elt_argument_text(fcinfo, 0, "name");
	source.conninfo = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	source.publication = PG_ARGISNULL(3) ? NULL : pstrdup(NameStr(*PG_GETARG_NAME(3)));
	source.owner = GetUserId();

	elt_source_require_preload();
	elt_argument_check_name(source.name, "source");
	require_create_right(source.conninfo != NULL);
	if (strcmp(snapshot, "initial") != 0 && strcmp(snapshot, "none") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for snapshot: \"%s\"", snapshot),
				 errhint("Known values: initial, none.")));
	source.snapshot = strcmp(snapshot, "initial") == 0;
	elt_source_check_options(options, &source, false);

	if (elt_catalog_source(source.name, true) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("source \"%s\" already exists", source.name),
				 errhint("Choose another name, or SELECT elt.drop_source(%s) first.", quote_literal_cstr(source.name))));
	if (OidIsValid(get_relname_relid(source.name, get_namespace_oid("elt_raw", false))))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("raw staging elt_raw.%s already exists", quote_identifier(source.name)),
				 errdetail("It was kept when an earlier source of this name was dropped."),
				 errhint("Choose another name, or rename or drop the table.")));

	if (source.conninfo != NULL)
	{
		source.conninfo = elt_stream_check_conninfo(source.conninfo, &secret);
		if (tables != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("tables cannot be given for a source with a conninfo"),
					 errhint("Make the publication at the source and name it: "
							 "CREATE PUBLICATION elt_%s FOR TABLE ... WITH (publish_via_partition_root = true)", source.name)));
		if (source.publication == NULL)
			source.publication = psprintf("elt_%s", source.name);
	}
	else if (source.publication != NULL)
	{
		if (tables != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("tables and publication cannot both be given"),
					 errhint("The table set is the publication: ALTER PUBLICATION %s ADD TABLE ...",
							 quote_identifier(source.publication))));
		check_publication(source.publication);
	}
	else
	{
		source.publication = make_publication(source.name, tables);
		source.own_publication = true;
	}
	if (source.conninfo == NULL)
		warn_of_settings();

	source.slot_name = elt_source_new_slot_name(source.name);
	source.source_id = insert_source(&source, secret, options);
	elt_partition_create_root(&source);
	elt_config_changed();
	PG_RETURN_INT64(source.source_id);
}

void
elt_source_require_preload(void)
{
	if (!elt_registry_available())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("elt is not preloaded, so no worker can run"),
				 errhint("Put this line into postgresql.conf and restart the server: shared_preload_libraries = 'elt'")));
}

static void
require_create_right(bool remote)
{
	if (remote && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to create a source with a conninfo")));
	if (!superuser() && !has_rolreplication(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to create a source"),
				 errdetail("Capture reads all rows of its tables, whatever GRANT and row security say."),
				 errhint("ALTER ROLE %s REPLICATION gives the right.",
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

/* Takes the options into the source.  changed: they are for one that is there. */
void
elt_source_check_options(Jsonb *options, EltSource *source, bool changed)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *key = NULL;

	source->partition_changes = elt_raw_partition_changes;
	if (options == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options must be a JSON object")));
	iterator = JsonbIteratorInit(&options->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			key = pnstrdup(value.val.string.val, value.val.string.len);
			if (strcmp(key, "raw_partition_changes") != 0 && strcmp(key, "raw_retention") != 0 &&
				strcmp(key, "failover") != 0 && strcmp(key, "slot_policy") != 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("unknown source option \"%s\"", key),
						 errhint("Known options: failover, raw_partition_changes, raw_retention, slot_policy.")));
			if (changed && (strcmp(key, "raw_partition_changes") == 0 || strcmp(key, "failover") == 0))
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("source option \"%s\" cannot be changed", key),
						 errdetail("It is chosen when the source is created.")));
		}
		else if (token == WJB_VALUE && strcmp(key, "failover") == 0)
		{
			if (value.type != jbvBool)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for source option \"%s\"", key),
						 errhint("It is true or false.")));
			source->failover = value.val.boolean;

			/*
			 * What is staged and what the slot knows to be staged would come
			 * to a standby of this cluster each by its own way, and after a
			 * promotion the slot might be ahead.
			 */
			if (source->failover && source->conninfo == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("source option \"%s\" is for sources with a conninfo", key),
						 errhint("A standby of this server can take over its tables only together with a new copy of them.")));
		}
		else if (token == WJB_VALUE && strcmp(key, "raw_retention") == 0)
		{
			if (changed && value.type == jbvNull)
				continue;
			if (value.type != jbvString)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for source option \"%s\"", key),
						 errhint("It is an interval in a string, such as \"30 days\", or \"-1\" for ever.")));
			/* raises what is no interval */
			(void) DirectFunctionCall3(interval_in, CStringGetDatum(pnstrdup(value.val.string.val, value.val.string.len)),
									   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
		}
		else if (token == WJB_VALUE && strcmp(key, "slot_policy") == 0)
		{
			char	   *policy = value.type == jbvString ?
			pnstrdup(value.val.string.val, value.val.string.len) : NULL;

			if (policy == NULL ? !(changed && value.type == jbvNull) :
				strcmp(policy, "alert") != 0 && strcmp(policy, "resync") != 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for source option \"%s\"", key),
						 errhint("Known values: alert, resync.")));
		}
		else if (token == WJB_VALUE)
		{
			Numeric		number = value.type == jbvNumeric ? value.val.numeric : NULL;
			bool		error = (number == NULL);

			if (!error)
				source->partition_changes = numeric_int4_opt_error(number, &error);
			if (error || source->partition_changes < 1024 || source->partition_changes > 1073741824)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for source option \"%s\"", key),
						 errhint("It is a number of changes from 1024 to 1073741824.")));
		}
	}
}

/* Makes the publication of a local source, as the caller; returns its name. */
static char *
make_publication(const char *name, ArrayType *tables)
{
	char	   *publication = psprintf("elt_%s", name);
	StringInfoData command;
	List	   *relids = NIL;
	ListCell   *cell;
	Datum	   *elements;
	bool	   *nulls;
	int			ntables;

	if (tables == NULL || ArrayGetNItems(ARR_NDIM(tables), ARR_DIMS(tables)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source \"%s\" has no tables", name),
				 errhint("Give tables => ARRAY['public.orders', ...], or publication => the name of a publication.")));
	if (OidIsValid(get_publication_oid(publication, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("publication \"%s\" already exists", publication),
				 errhint("To capture what it publishes give publication => %s and no tables.",
						 quote_literal_cstr(publication))));

	deconstruct_array(tables, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &ntables);
	initStringInfo(&command);
	appendStringInfo(&command, "CREATE PUBLICATION %s FOR TABLE ", quote_identifier(publication));
	for (int i = 0; i < ntables; i++)
	{
		Oid			relid;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("tables must not hold nulls")));
		relid = published_table(TextDatumGetCString(elements[i]));
		if (list_member_oid(relids, relid))
			continue;
		appendStringInfo(&command, "%s%s", relids != NIL ? ", " : "", qualified_name(relid));
		relids = lappend_oid(relids, relid);
	}
	appendStringInfoString(&command, " WITH (publish_via_partition_root = true)");
	run_as_caller(command.data);
	foreach(cell, relids)
		warn_without_identity(lfirst_oid(cell));
	return publication;
}

static void
check_publication(const char *publication)
{
	if (!OidIsValid(get_publication_oid(publication, true)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("publication \"%s\" does not exist", publication),
				 errhint("CREATE PUBLICATION %s FOR TABLE ... WITH (publish_via_partition_root = true), "
						 "or give tables => ARRAY[...] and let elt make one.", quote_identifier(publication))));
}

/* DDL with the caller's own rights. */
static void
run_as_caller(const char *command)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(command, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", command);
	SPI_finish();
}

static Oid
published_table(const char *relation)
{
	RangeVar   *name = makeRangeVarFromNameList(elt_qualified_name_list(relation));
	Oid			relid = RangeVarGetRelid(name, NoLock, true);
	char	   *schema;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s does not exist", relation),
				 errhint("Name it as schema.table; quote parts with capitals or blanks as in SQL.")));
	schema = get_namespace_name(get_rel_namespace(relid));
	if (schema != NULL && (strcmp(schema, "elt") == 0 || strcmp(schema, "elt_raw") == 0))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table %s belongs to elt and cannot be captured", relation)));
	return relid;
}

/* Publishing such a table makes UPDATE and DELETE fail in the application. */
static void
warn_without_identity(Oid relid)
{
	Relation	relation = RelationIdGetRelation(relid);

	if (relation == NULL)
		return;
	if (relation->rd_rel->relkind == RELKIND_RELATION &&
		relation->rd_rel->relreplident != REPLICA_IDENTITY_FULL &&
		!OidIsValid(RelationGetReplicaIndex(relation)))
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s has no replica identity: UPDATE and DELETE on it now fail", qualified_name(relid)),
				 errhint("Give it a primary key, or ALTER TABLE %s REPLICA IDENTITY FULL; "
						 "a table that only gets INSERTs needs neither.", qualified_name(relid))));
	RelationClose(relation);
}

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

/* Unique in the source's cluster, which other clusters may capture too. */
char *
elt_source_new_slot_name(const char *name)
{
	uint32		random;

	if (!pg_strong_random(&random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random number")));
	return psprintf("elt_%s_%08x", name, random);
}

static int64
insert_source(EltSource *source, const char *secret, Jsonb *options)
{
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID, TEXTOID, BOOLOID, TEXTOID, TEXTOID, JSONBOID, INT4OID};
	Datum		values[9];
	char		nulls[] = "         ";
	int64		source_id;
	EltSpi		spi;

	values[0] = CStringGetTextDatum(source->name);
	values[1] = ObjectIdGetDatum(source->owner);
	values[2] = source->conninfo ? CStringGetTextDatum(source->conninfo) : (Datum) 0;
	nulls[2] = source->conninfo ? ' ' : 'n';
	values[3] = CStringGetTextDatum(source->publication);
	values[4] = BoolGetDatum(source->own_publication);
	values[5] = CStringGetTextDatum(source->slot_name);
	values[6] = CStringGetTextDatum(source->snapshot ? "initial" : "none");
	values[7] = options ? JsonbPGetDatum(options) : (Datum) 0;
	nulls[7] = options ? ' ' : 'n';
	values[8] = Int32GetDatum(source->partition_changes);

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.sources (name, owner, conninfo, publication, own_publication, slot_name, "
				"snapshot, options, partition_changes, home) "
				"VALUES ($1, $2::regrole, $3, $4, $5, $6, $7, coalesce($8, '{}'), $9, elt.home()) "
				"RETURNING source_id", 9, types, values, nulls);
	source_id = elt_spi_int64(0, 1);
	if (secret != NULL)
	{
		Oid			secret_types[] = {INT8OID, TEXTOID};
		Datum		secret_values[] = {Int64GetDatum(source_id), CStringGetTextDatum(secret)};

		elt_spi_run("INSERT INTO elt.source_secrets (source_id, secret) VALUES ($1, $2)",
					2, secret_types, secret_values, NULL);
	}
	elt_spi_end(&spi);
	return source_id;
}

/* A source may be made before its server is set up: it starts once that is done. */
static void
warn_of_settings(void)
{
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("wal_level is below logical: the source waits"),
				 errhint("Put this line into postgresql.conf and restart the server: wal_level = logical")));
}

/* ---- tables ---- */

Datum
elt_add_table(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "source"));
	char	   *relation = elt_argument_text(fcinfo, 1, "relation");
	bool		snapshot = PG_ARGISNULL(2) || PG_GETARG_BOOL(2);

	if (source->conninfo == NULL)
	{
		Oid			relid = published_table(relation);

		relation = qualified_name(relid);

		/* one that was dropped and made anew is not published any more */
		if (table_is_captured(source->source_id, relation, NULL) && is_published(source->publication, relid))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("table %s is in source \"%s\" already", relation, source->name)));
		run_as_caller(psprintf("ALTER PUBLICATION %s ADD TABLE %s",
							   quote_identifier(source->publication), relation));
		warn_without_identity(relid);
	}
	else if (table_is_captured(source->source_id, relation, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table %s is in source \"%s\" already", relation, source->name),
				 errhint("Where it was dropped and made anew at the source, SELECT elt.resync_table(%s, %s).",
						 quote_literal_cstr(source->name), quote_literal_cstr(relation))));

	set_table_state(source->source_id, relation, "ready");
	if (snapshot)
		elt_copy_request(source->source_id, relation);
	elt_config_changed();
	PG_RETURN_VOID();
}

Datum
elt_remove_table(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "source"));
	char	   *relation = elt_argument_text(fcinfo, 1, "relation");

	relation = captured_name(source, relation);
	if (source->conninfo == NULL)
		run_as_caller(psprintf("ALTER PUBLICATION %s DROP TABLE %s",
							   quote_identifier(source->publication), relation));
	set_table_state(source->source_id, relation, "removed");
	elt_copy_cancel(source->source_id, relation);
	elt_config_changed();
	PG_RETURN_VOID();
}

Datum
elt_resync_table(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "source"));
	char	   *relation = elt_argument_text(fcinfo, 1, "relation");

	relation = captured_name(source, relation);
	if (!table_is_captured(source->source_id, relation, "ready"))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s is being copied already", relation),
				 errhint("SELECT * FROM elt.progress_snapshot shows how far it is.")));
	elt_copy_request(source->source_id, relation);
	elt_config_changed();
	PG_RETURN_VOID();
}

/* The name that a captured table has in source_tables. */
static char *
captured_name(const EltSource *source, char *relation)
{
	if (source->conninfo == NULL)
	{
		RangeVar   *name = makeRangeVarFromNameList(elt_qualified_name_list(relation));
		Oid			relid = RangeVarGetRelid(name, NoLock, true);

		if (OidIsValid(relid))
			relation = qualified_name(relid);
	}
	if (!table_is_captured(source->source_id, relation, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table %s is not in source \"%s\"", relation, source->name),
				 errhint("SELECT relation FROM elt.source_tables lists the tables.")));
	return relation;
}

static bool
is_published(const char *publication, Oid relid)
{
	Oid			types[] = {TEXTOID, OIDOID};
	Datum		values[] = {CStringGetTextDatum(publication), ObjectIdGetDatum(relid)};
	bool		published;
	EltSpi		spi;

	elt_spi_begin(&spi);
	published = elt_spi_run("SELECT FROM pg_publication_tables WHERE pubname = $1 "
							"AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', schemaname, tablename)) = $2",
							2, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return published;
}

/* In this state, or with NULL in any. */
static bool
table_is_captured(int64 source_id, const char *relation, const char *state)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), CStringGetTextDatum(relation), CStringGetTextDatum(state ? state : "")};
	bool		captured;
	EltSpi		spi;

	elt_spi_begin(&spi);
	captured = elt_spi_run("SELECT FROM elt.source_tables WHERE source_id = $1 AND relation = $2 AND state <> 'removed' "
						   "AND $3 IN ('', state)", 3, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return captured;
}

static void
set_table_state(int64 source_id, const char *relation, const char *state)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), CStringGetTextDatum(relation), CStringGetTextDatum(state)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.source_tables (source_id, relation, state, newly_published) VALUES ($1, $2, $3, true) "
				"ON CONFLICT (source_id, relation) DO UPDATE SET state = excluded.state, newly_published = true",
				3, types, values, NULL);
	elt_spi_end(&spi);
}

/* ---- pause, resume, drop ---- */

Datum
elt_pause_source(PG_FUNCTION_ARGS)
{
	set_enabled(elt_source_owned(elt_argument_text(fcinfo, 0, "name")), false);
	PG_RETURN_VOID();
}

Datum
elt_resume_source(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "name"));

	elt_source_require_preload();
	set_enabled(source, true);
	PG_RETURN_VOID();
}

/*
 * set_enabled
 *		A source that was restored from another cluster or database has no slot
 *		here: resuming it starts anew, with a new slot and, unless it was made
 *		without, new copies of its tables.
 */
static void
set_enabled(EltSource *source, bool enabled)
{
	Oid			types[] = {INT8OID, BOOLOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source->source_id), BoolGetDatum(enabled),
	CStringGetTextDatum(elt_source_new_slot_name(source->name))};
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (enabled && !source->at_home)
	{
		elt_spi_run("UPDATE elt.sources SET enabled = true, home = elt.home(), start_lsn = NULL, slot_name = $3, "
					"system_id = NULL, timeline = NULL, lost_at = NULL, lost_reason = NULL, paused_at = NULL, paused_lsn = NULL "
					"WHERE source_id = $1 AND $2", 3, types, values, NULL);
		elt_spi_run("UPDATE elt.source_tables SET sync_lsn = NULL, sync_snapshot = NULL WHERE source_id = $1",
					1, types, values, NULL);
		if (source->snapshot)
			elt_copy_request(source->source_id, NULL);
	}
	else
		elt_spi_run("UPDATE elt.sources s SET enabled = $2, "
					"paused_at = CASE WHEN NOT $2 THEN coalesce(s.paused_at, now()) END, "
					"paused_lsn = CASE WHEN NOT $2 THEN coalesce(s.paused_lsn, "
					"(SELECT o.current_lsn FROM elt.slot_state o WHERE o.source_id = s.source_id)) END "
					"WHERE s.source_id = $1", 2, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
}

Datum
elt_drop_source(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "name"));
	bool		keep_raw = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	char	   *pipelines;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT string_agg(name, ', ' ORDER BY name) FROM elt.pipelines WHERE source_id = $1",
				1, types, values, NULL);
	pipelines = elt_spi_text(&spi, 0, 1);
	elt_spi_end(&spi);
	if (pipelines != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("source \"%s\" is in use", source->name),
				 errdetail("Pipelines that read it: %s.", pipelines),
				 errhint("SELECT elt.drop_pipeline(...) for each of them first.")));

	stop_capture(source->source_id);
	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.dropped_sources (source_id, name, conninfo, slot_name) "
				"SELECT s.source_id, s.name, s.conninfo || coalesce(' ' || x.secret, ''), s.slot_name "
				"FROM elt.sources s LEFT JOIN elt.source_secrets x USING (source_id) WHERE s.source_id = $1",
				1, types, values, NULL);
	elt_spi_run("DELETE FROM elt.sources WHERE source_id = $1", 1, types, values, NULL);
	if (source->own_publication)
		elt_spi_execute(psprintf("DROP PUBLICATION IF EXISTS %s", quote_identifier(source->publication)));
	elt_spi_end(&spi);
	if (!keep_raw)
		elt_partition_drop_root(source->name);
	elt_config_changed();
	PG_RETURN_VOID();
}

/*
 * Ends the source's workers, and keeps them out until the end of the
 * transaction; a rollback starts them again.  They may be just about to start,
 * so they are asked until they are gone.
 */
static void
stop_capture(int64 source_id)
{
	while (!elt_catalog_lock_source(source_id, true))
	{
		for (int index = 0; index < elt_registry_size(); index++)
		{
			EltWorkerSlot slot;

			if (elt_registry_read(index, &slot) && slot.dboid == MyDatabaseId &&
				((slot.kind == ELT_WORKER_CAPTURE && slot.object_id == source_id) ||
				 (slot.kind == ELT_WORKER_SNAPSHOT && ELT_SNAPSHOT_SOURCE(slot.object_id) == source_id)))
				elt_registry_request_stop(index);
		}
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5, elt_wait_event("EltCaptureStop"));
		ResetLatch(MyLatch);
	}
}

/* The source of this name, which the caller must own. */
EltSource *
elt_source_owned(const char *name)
{
	EltSource  *source = elt_catalog_source(name, false);

	if (!has_privs_of_role(GetUserId(), source->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of source \"%s\"", name)));
	return source;
}

/* ---- messages ---- */

/*
 * elt_emit
 *		Writes an application-level event into WAL as part of the transaction.
 *		Every source of this database stages it as op m.
 */
Datum
elt_emit(PG_FUNCTION_ARGS)
{
	char	   *topic = elt_argument_text(fcinfo, 0, "topic");
	StringInfoData content;
	XLogRecPtr	lsn;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload must not be null")));
	if (topic[0] == '\0' || strlen(topic) > MAX_TOPIC_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a topic has 1 to %d bytes, not %zu", MAX_TOPIC_LENGTH, strlen(topic))));

	initStringInfo(&content);
	appendStringInfoString(&content, "{\"topic\": ");
	escape_json(&content, topic);
	appendStringInfoString(&content, ", \"payload\": ");
	(void) JsonbToCString(&content, &PG_GETARG_JSONB_P(1)->root, VARSIZE(PG_GETARG_JSONB_P(1)));
	if (!PG_ARGISNULL(2))
	{
		appendStringInfoString(&content, ", \"key\": ");
		(void) JsonbToCString(&content, &PG_GETARG_JSONB_P(2)->root, VARSIZE(PG_GETARG_JSONB_P(2)));
	}
	appendStringInfoChar(&content, '}');
	lsn = elt_log_message("elt", content.data, content.len, true);
	PG_RETURN_LSN(lsn);
}

/* ---- for the install script and the tables ---- */

/*
 * elt_home
 *		Names this cluster and database.  A row of elt.sources that carries
 *		another name was restored from elsewhere.
 */
Datum
elt_home(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT "/%u", GetSystemIdentifier(), MyDatabaseId)));
}

/* Called at the end of the install script: wakes the launcher at commit. */
Datum
elt_created(PG_FUNCTION_ARGS)
{
	elt_config_changed();
	PG_RETURN_VOID();
}
