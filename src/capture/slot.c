/*
 * slot.c
 *	  The replication slot and the replication origin of a source, and the
 *	  cleaner: the worker that removes them once the source was dropped.
 *
 * The slot lives in the source's cluster and keeps its WAL; the origin lives
 * in this cluster and says how far raw staging has got.  Both outlive
 * transactions, so they are never made or removed by the SQL functions, but
 * by workers after the commit, and elt.dropped_sources remembers what is to
 * be removed until it is.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/slot.h"
#include "catalog.h"
#include "compat.h"
#include "control/worker.h"
#include "elt.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

/* the first whose standbys can keep slots, as PQserverVersion tells it */
#define FAILOVER_VERSION	170000

static void remove_slot(EltStream *stream, const char *slot_name);
static bool slot_exists(EltStream *stream, const char *slot_name);
static void check_slot_is_ours(EltStream *stream, const char *slot_name);
static XLogRecPtr parse_lsn(const char *text);

char *
elt_origin_name(int64 source_id)
{
	return psprintf("elt_%u_" INT64_FORMAT, MyDatabaseId, source_id);
}

XLogRecPtr
elt_slot_create(EltStream *stream, const char *slot_name, bool failover)
{
	PGresult   *result;
	XLogRecPtr	lsn;

	if (failover && elt_stream_server_version(stream) < FAILOVER_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("source option \"failover\" needs PostgreSQL 17 or later at the source"),
				 errdetail("The source's server is of version %d.", elt_stream_server_version(stream) / 10000),
				 errhint("Drop the source and create it without the option.")));
	if (slot_exists(stream, slot_name))
	{
		check_slot_is_ours(stream, slot_name);
		remove_slot(stream, slot_name);
	}
	result = elt_stream_query(stream,
							  psprintf("CREATE_REPLICATION_SLOT \"%s\" LOGICAL \"%s\" (SNAPSHOT 'nothing'%s)",
									   slot_name, ELT_LIBRARY, failover ? ", FAILOVER true" : ""),
							  PGRES_TUPLES_OK);
	lsn = parse_lsn(elt_stream_value(result, 0, 1));
	PQclear(result);
	return lsn;
}

void
elt_slot_remove(int64 source_id, const char *conninfo, const char *slot_name, bool throw)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		EltStream  *stream;

		/*
		 * On its own, because the source may be gone for good; it waits for a
		 * worker that is on its way out.
		 */
		elt_worker_begin("removing a replication origin");
		replorigin_drop_by_name(elt_origin_name(source_id), true, false);
		elt_worker_commit();

		elt_worker_begin("removing a replication slot");
		stream = elt_stream_connect(conninfo, "elt cleaner");
		if (slot_exists(stream, slot_name))
			remove_slot(stream, slot_name);
		elt_stream_close(stream);
		elt_worker_commit();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (throw || ProcDiePending)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not remove replication slot \"%s\": %s", slot_name, error->message),
				 errhint("Remove it by hand, or it keeps the source's WAL: SELECT pg_drop_replication_slot(%s)",
						 quote_literal_cstr(slot_name))));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* WAIT: until the walsender of a stream that was just closed has let go. */
static void
remove_slot(EltStream *stream, const char *slot_name)
{
	PQclear(elt_stream_query(stream, psprintf("DROP_REPLICATION_SLOT \"%s\" WAIT", slot_name),
							 PGRES_COMMAND_OK));
}

static bool
slot_exists(EltStream *stream, const char *slot_name)
{
	PGresult   *result;
	bool		exists;

	result = elt_stream_query(stream,
							  psprintf("SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
									   elt_stream_literal(slot_name)),
							  PGRES_TUPLES_OK);
	exists = PQntuples(result) > 0;
	PQclear(result);
	return exists;
}

/* Names are random, so this happens to nobody by chance; but what is not ours is not removed. */
static void
check_slot_is_ours(EltStream *stream, const char *slot_name)
{
	PGresult   *result;
	bool		ours;

	result = elt_stream_query(stream,
							  psprintf("SELECT COALESCE(plugin = '%s' AND database = pg_catalog.current_database(), false) "
									   "FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
									   ELT_LIBRARY, elt_stream_literal(slot_name)),
							  PGRES_TUPLES_OK);
	ours = PQntuples(result) == 0 || elt_stream_value(result, 0, 0)[0] == 't';
	PQclear(result);
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("replication slot \"%s\" at the source is of another plugin or database", slot_name),
				 errhint("Drop or rename it there, or drop this source and create it anew.")));
}

static XLogRecPtr
parse_lsn(const char *text)
{
	return DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(text)));
}

/* ---- the cleaner ---- */

void
elt_cleaner_main(Datum main_arg)
{
	ListCell   *cell;
	List	   *dropped = NIL;
	MemoryContext context;

	elt_worker_start(main_arg, ELT_WORKER_CLEANER, "elt cleaner");
	context = AllocSetContextCreate(TopMemoryContext, "elt cleaner", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	elt_worker_begin("reading the configuration");
	MemoryContextSwitchTo(context);
	if (elt_worker_holds_extension())
		dropped = elt_catalog_dropped_sources();
	elt_worker_commit();
	MemoryContextSwitchTo(context);

	foreach(cell, dropped)
	{
		EltDroppedSource *source = lfirst(cell);

		if (source->source_id != elt_my_slot->object_id)
			continue;
		elt_slot_remove(source->source_id, source->conninfo, source->slot_name, true);

		elt_worker_begin("forgetting a source");
		if (elt_worker_holds_extension())
			elt_catalog_forget_dropped(source->source_id);
		elt_config_changed();
		elt_worker_commit();
	}
	elt_registry_finish();
}
