/*
 * catalog.c
 *	  elt's own tables, as seen from C.
 *
 * Statements on elt's tables run as the extension's owner: callers of elt's
 * functions hold no rights on the tables, the functions themselves decide
 * what a caller may do.  The search_path is pinned, and nothing but elt's own
 * tables is touched between elt_spi_begin and elt_spi_end, so that no code of
 * a user ever runs in between.
 *
 * An error leaves through the abort of the (sub)transaction, which restores
 * the user and the settings and ends the SPI connection.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

typedef struct PlanEntry
{
	const char *query;			/* hash key: the literal's address */
	SPIPlanPtr	plan;
} PlanEntry;

static HTAB *plans = NULL;

#define SOURCE_COLUMNS \
	"s.source_id, s.name, s.owner::oid, " \
	"s.conninfo || coalesce((SELECT ' ' || x.secret FROM elt.source_secrets x WHERE x.source_id = s.source_id), ''), " \
	"s.publication::text, s.own_publication, " \
	"s.slot_name::text, s.snapshot = 'initial', s.enabled, s.home = elt.home(), s.start_lsn, s.partition_changes, " \
	"coalesce((s.options->>'failover')::bool, false), elt.copy_work(s.source_id), " \
	"s.system_id, coalesce(s.timeline, 0), s.lost_at IS NOT NULL"

#define PIPELINE_COLUMNS \
	"p.pipeline_id, p.name, p.source_id, s.name, p.relation, t.raw::oid, " \
	"to_regclass(pg_catalog.format('elt_raw.%I', s.name))::oid, p.target::oid, p.transform, " \
	"p.mode, p.key, CASE p.ordering WHEN 'strict' THEN 's' WHEN 'supersede' THEN 'p' ELSE 'u' END, " \
	"p.options, p.lanes, p.owner::oid, p.search_path, p.version, left(p.state, 1), p.next_probe_at, p.probes, p.target_name, p.target_owner::oid"

#define PIPELINE_TABLES \
	"elt.pipelines p JOIN elt.sources s USING (source_id) " \
	"LEFT JOIN elt.source_tables t ON t.source_id = p.source_id AND t.relation = p.relation"

static SPIPlanPtr plan_find(const char *query, int nargs, const Oid *types);
static EltSource *source_from_row(EltSpi *spi, uint64 row);
static EltPipeline *pipeline_from_row(EltSpi *spi, uint64 row);

EltSource *
elt_catalog_source(const char *name, bool missing_ok)
{
	EltSource  *source = NULL;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT " SOURCE_COLUMNS " FROM elt.sources s WHERE s.name = $1", 1, types, values, NULL) > 0)
		source = source_from_row(&spi, 0);
	elt_spi_end(&spi);

	if (source == NULL && !missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("source \"%s\" does not exist", name),
				 errhint("SELECT source FROM elt.stat_sources lists the sources.")));
	return source;
}

/* Returns NULL where there is no such source (any more). */
EltSource *
elt_catalog_source_by_id(int64 source_id)
{
	EltSource  *source = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT " SOURCE_COLUMNS " FROM elt.sources s WHERE s.source_id = $1", 1, types, values, NULL) > 0)
		source = source_from_row(&spi, 0);
	elt_spi_end(&spi);
	return source;
}

List *
elt_catalog_sources(void)
{
	List	   *sources = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT " SOURCE_COLUMNS " FROM elt.sources s ORDER BY s.source_id", 0, NULL, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		EltSource  *source = source_from_row(&spi, row);
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);

		sources = lappend(sources, source);
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);
	return sources;
}

bool
elt_catalog_has_pending_copies(int64 source_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source_id)};
	bool		pending;
	EltSpi		spi;

	elt_spi_begin(&spi);
	pending = elt_spi_run("SELECT FROM elt.source_tables WHERE source_id = $1 AND state = 'pending' LIMIT 1",
						  1, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return pending;
}

List *
elt_catalog_dropped_sources(void)
{
	List	   *sources = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT source_id, name, conninfo, slot_name::text FROM elt.dropped_sources",
					   0, NULL, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);
		EltDroppedSource *source = palloc(sizeof(EltDroppedSource));

		sources = lappend(sources, source);
		MemoryContextSwitchTo(old);
		source->source_id = elt_spi_int64(row, 1);
		source->name = elt_spi_text(&spi, row, 2);
		source->conninfo = elt_spi_text(&spi, row, 3);
		source->slot_name = elt_spi_text(&spi, row, 4);
	}
	elt_spi_end(&spi);
	return sources;
}

bool
elt_catalog_lock_source(int64 source_id, bool exclusive)
{
	LOCKTAG		tag;

	/*
	 * Other locks of a session would not survive an error, nor be released at
	 * exit; the functions of SQL use the last field's values 1 and 2.
	 */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (source_id >> 32), (uint32) source_id, 3);
	return LockAcquire(&tag, exclusive ? AccessExclusiveLock : ShareLock, !exclusive, exclusive) !=
		LOCKACQUIRE_NOT_AVAIL;
}

void
elt_catalog_forget_dropped(int64 source_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.dropped_sources WHERE source_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
}

/* Adds up what a capture worker staged, and keeps its error, if it had one. */
void
elt_catalog_note_capture_end(int64 source_id, int64 changes, TimestampTz last_commit_ts,
							 const char *error, TimestampTz error_at)
{
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(source_id), Int64GetDatum(changes),
	CStringGetTextDatum(error), TimestampTzGetDatum(error_at), TimestampTzGetDatum(last_commit_ts)};
	char		nulls[] = {' ', ' ', ' ', ' ', last_commit_ts == 0 ? 'n' : ' ', '\0'};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.sources SET changes_staged = changes_staged + $2, "
				"last_error = CASE WHEN $3 = '' THEN last_error ELSE $3 END, "
				"last_error_at = CASE WHEN $3 = '' THEN last_error_at ELSE $4 END, "
				"last_commit_ts = coalesce($5, last_commit_ts) "
				"WHERE source_id = $1", 5, types, values, nulls);
	elt_spi_end(&spi);
}

void
elt_catalog_worker_bounds(int *min_workers, int *max_workers)
{
	EltSpi		spi;

	*min_workers = *max_workers = -1;
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT coalesce(min_workers, -1), coalesce(max_workers, -1) FROM elt.worker_bounds", 0, NULL, NULL, NULL) > 0)
	{
		*min_workers = (int) elt_spi_int64(0, 1);
		*max_workers = (int) elt_spi_int64(0, 2);
	}
	elt_spi_end(&spi);
}

EltPipeline *
elt_catalog_pipeline(const char *name, bool missing_ok)
{
	EltPipeline *pipeline = NULL;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT " PIPELINE_COLUMNS " FROM " PIPELINE_TABLES " WHERE p.name = $1", 1, types, values, NULL) > 0)
		pipeline = pipeline_from_row(&spi, 0);
	elt_spi_end(&spi);

	if (pipeline == NULL && !missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipeline \"%s\" does not exist", name),
				 errhint("SELECT pipeline FROM elt.stat_pipelines lists the pipelines.")));
	return pipeline;
}

List *
elt_catalog_pipelines(void)
{
	List	   *pipelines = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT " PIPELINE_COLUMNS " FROM " PIPELINE_TABLES " ORDER BY p.pipeline_id", 0, NULL, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		EltPipeline *pipeline = pipeline_from_row(&spi, row);
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);

		pipelines = lappend(pipelines, pipeline);
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);
	return pipelines;
}

static EltSource *
source_from_row(EltSpi *spi, uint64 row)
{
	EltSource  *source = MemoryContextAllocZero(spi->caller_context, sizeof(EltSource));
	Datum		start_lsn;
	bool		isnull;

	source->source_id = elt_spi_int64(row, 1);
	source->name = elt_spi_text(spi, row, 2);
	source->owner = (Oid) elt_spi_int64(row, 3);
	source->conninfo = elt_spi_text(spi, row, 4);
	source->publication = elt_spi_text(spi, row, 5);
	source->own_publication = elt_spi_bool(row, 6);
	source->slot_name = elt_spi_text(spi, row, 7);
	source->snapshot = elt_spi_bool(row, 8);
	source->enabled = elt_spi_bool(row, 9);
	source->at_home = elt_spi_bool(row, 10);
	source->partition_changes = (int) elt_spi_int64(row, 12);
	source->failover = elt_spi_bool(row, 13);
	source->copy_work = (int) elt_spi_int64(row, 14);
	source->system_id = elt_spi_text(spi, row, 15);
	source->timeline = (TimeLineID) elt_spi_int64(row, 16);
	source->lost = elt_spi_bool(row, 17);
	start_lsn = elt_spi_datum(spi, row, 11, &isnull);
	source->start_lsn = isnull ? InvalidXLogRecPtr : DatumGetLSN(start_lsn);
	return source;
}

static EltPipeline *
pipeline_from_row(EltSpi *spi, uint64 row)
{
	EltPipeline *pipeline = MemoryContextAllocZero(spi->caller_context, sizeof(EltPipeline));
	MemoryContext old;
	const char *mode;
	Datum		value;
	Datum	   *keys;
	int			nkeys;
	bool		isnull;

	pipeline->pipeline_id = elt_spi_int64(row, 1);
	pipeline->name = elt_spi_text(spi, row, 2);
	pipeline->source_id = elt_spi_int64(row, 3);
	pipeline->source = elt_spi_text(spi, row, 4);
	pipeline->relation = elt_spi_text(spi, row, 5);
	pipeline->raw = (Oid) elt_spi_int64(row, 6);
	pipeline->raw_root = (Oid) elt_spi_int64(row, 7);
	pipeline->target = (Oid) elt_spi_int64(row, 8);
	pipeline->transform = elt_spi_text(spi, row, 9);
	mode = elt_spi_text(spi, row, 10);
	pipeline->append = strcmp(mode, "append") == 0;
	pipeline->history = strcmp(mode, "history") == 0;
	value = elt_spi_datum(spi, row, 11, &isnull);
	pipeline->ordering = elt_spi_text(spi, row, 12)[0];
	pipeline->options = DatumGetJsonbP(elt_spi_datum(spi, row, 13, &isnull));
	pipeline->lanes = (int) elt_spi_int64(row, 14);
	pipeline->owner = (Oid) elt_spi_int64(row, 15);
	pipeline->search_path = elt_spi_text(spi, row, 16);
	pipeline->version = (int) elt_spi_int64(row, 17);
	pipeline->state = elt_spi_text(spi, row, 18)[0];
	pipeline->probes = (int) elt_spi_int64(row, 20);
	pipeline->target_name = elt_spi_text(spi, row, 21);
	pipeline->target_owner = (Oid) elt_spi_int64(row, 22);

	old = MemoryContextSwitchTo(spi->caller_context);
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &keys, NULL, &nkeys);
	for (int i = 0; i < nkeys; i++)
		pipeline->key = lappend(pipeline->key, TextDatumGetCString(keys[i]));
	MemoryContextSwitchTo(old);

	value = elt_spi_datum(spi, row, 19, &isnull);
	pipeline->next_probe_at = isnull ? 0 : DatumGetTimestampTz(value);
	return pipeline;
}

/* ---- SPI ---- */

void
elt_spi_begin(EltSpi *spi)
{
	spi->caller_context = CurrentMemoryContext;
	GetUserIdAndSecContext(&spi->save_user, &spi->save_sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   spi->save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	spi->save_nest_level = NewGUCNestLevel();
	elt_restrict_search_path();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
elt_spi_end(EltSpi *spi)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(false, spi->save_nest_level);
	SetUserIdAndSecContext(spi->save_user, spi->save_sec_context);
}

uint64
elt_spi_run(const char *query, int nargs, const Oid *types, Datum *values, const char *nulls)
{
	bool		own_snapshot = !ActiveSnapshotSet();
	int			result;

	if (own_snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	result = SPI_execute_plan(plan_find(query, nargs, types), values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s: %s", SPI_result_code_string(result), query);
	if (own_snapshot)
		PopActiveSnapshot();
	return SPI_processed;
}

void
elt_spi_use_indexes(void)
{
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
elt_spi_show(const char *name, TupleDesc desc, Tuplestorestate *rows, int nrows)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	relation->md.name = pstrdup(name);
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = nrows;
	relation->reldata = rows;
	if (SPI_register_relation(relation) != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed");
}

void
elt_spi_execute(const char *statements)
{
	int			result;

	result = SPI_execute(statements, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute failed: %s: %s", SPI_result_code_string(result), statements);
}

static SPIPlanPtr
plan_find(const char *query, int nargs, const Oid *types)
{
	PlanEntry  *entry;
	bool		found;

	if (plans == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(const char *);
		ctl.entrysize = sizeof(PlanEntry);
		plans = hash_create("elt plans", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}

	entry = hash_search(plans, &query, HASH_ENTER, &found);
	if (!found)
		entry->plan = NULL;
	if (entry->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(query, nargs, unconstify(Oid *, types));

		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s: %s", SPI_result_code_string(SPI_result), query);
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed: %s", query);
		entry->plan = plan;
	}
	return entry->plan;
}

char *
elt_spi_text(EltSpi *spi, uint64 row, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(spi->caller_context, value) : NULL;
}

int64
elt_spi_int64(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		return 0;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, column))
	{
		case INT8OID:
			return DatumGetInt64(value);
		case INT4OID:
			return DatumGetInt32(value);
		case OIDOID:
			return DatumGetObjectId(value);
		default:
			elog(ERROR, "column %d is not an integer", column);
	}
}

bool
elt_spi_bool(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return !isnull && DatumGetBool(value);
}

Datum
elt_spi_datum(EltSpi *spi, uint64 row, int column, bool *isnull)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], desc, column, isnull);
	int16		typlen;
	bool		typbyval;
	MemoryContext old;

	if (*isnull)
		return (Datum) 0;
	get_typlenbyval(SPI_gettypeid(desc, column), &typlen, &typbyval);
	if (typbyval)
		return value;
	old = MemoryContextSwitchTo(spi->caller_context);
	if (typlen == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	else
		value = datumCopy(value, typbyval, typlen);
	MemoryContextSwitchTo(old);
	return value;
}
