/*
 * slot_watch.c
 *	  Looks after slots: what they hold, heartbeats, elt.max_slot_lag.
 *
 * Slots of local sources are looked after by the supervisor, in SQL and
 * without a connection.  For remote ones there is the watch: one worker per
 * database, as long as it has a remote source, with one ordinary connection
 * to each of them.  It goes on where no capture worker runs, because it is
 * then that a slot endangers its server.  What it sees goes to
 * elt.source_slots; what is to be done about it says elt.judge_slot().
 *
 * A heartbeat is a logical message, which needs no table and no right.  The
 * keepalives of the stream let a slot move on too; but they come only once
 * the walsender has caught up, and a source that writes a message also proves
 * that it takes commits.  One is written where the source's WAL grew and
 * nothing was staged since the last one, while a capture worker streams.  The
 * output plugin leaves it out: anybody can write one, and it is no data.
 *
 * With each look goes one at the partitions of published roots (parts.c).
 *
 * Failure: a source that does not answer within TIMEOUT_MS is asked again
 * later, ever later up to MAX_PAUSE_MS; the others wait for it meanwhile.  What
 * is known of it stays, with the time it is from.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/parts.h"
#include "capture/slot_watch.h"
#include "capture/stream.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "compat.h"
#include "control/worker.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define WATCH_MS		10000
#define MAX_PAUSE_MS	60000
#define TIMEOUT_MS		5000
#define HEARTBEAT_BYTES	1024	/* of WAL since the last one: more than the
								 * noise of an idle server */

/* What a heartbeat depends on. */
typedef struct Heartbeat
{
	TimestampTz at;
	XLogRecPtr	end;			/* of the source's WAL then */
	uint64		staged_count;
	int			pid;			/* of the capture worker */
} Heartbeat;

/* A remote source under watch. */
typedef struct Watched
{
	EltSource  *source;
	EltStream  *stream;			/* NULL: not connected */
	TimestampTz due_at;
	TimestampTz asked_at;		/* for what was seen last */
	int			failures;
	bool		parts_refused;	/* its partitions could not be looked at */
	Heartbeat	heartbeat;
} Watched;

static List *watched = NIL;
static MemoryContext watch_context;

static long period_ms(void);
static bool wants_heartbeat(Heartbeat *heartbeat, int64 source_id, XLogRecPtr end);
static bool capture_state(int64 source_id, EltWorkerSlot *slot);
static void read_sources(void);
static void forget(Watched *entry);
static void look_at(Watched *entry);
static void look(Watched *entry);
static char *note(Watched *entry, const char *error, const char *state);

/* How often slots are looked at: as often as heartbeats may be due, in bounds. */
static long
period_ms(void)
{
	return elt_heartbeat_interval_ms > 0 ? Max(200, Min(WATCH_MS, elt_heartbeat_interval_ms)) : WATCH_MS;
}

/* ---- heartbeats ---- */

static bool
wants_heartbeat(Heartbeat *heartbeat, int64 source_id, XLogRecPtr end)
{
	TimestampTz now = elt_clock_now();
	EltWorkerSlot slot;
	uint64		staged_count;
	bool		wanted;

	if (elt_heartbeat_interval_ms == 0 || !capture_state(source_id, &slot) ||
		strcmp(slot.activity, "streaming") != 0)
		return false;
	staged_count = pg_atomic_read_u64(&slot.staged_count);
	if (heartbeat->pid != slot.pid || heartbeat->staged_count != staged_count)
	{
		heartbeat->pid = slot.pid;
		heartbeat->staged_count = staged_count;
		heartbeat->at = now;
		heartbeat->end = end;
		return false;
	}
	wanted = end >= heartbeat->end + HEARTBEAT_BYTES &&
		TimestampDifferenceExceeds(heartbeat->at, now, elt_heartbeat_interval_ms);
	if (wanted)
	{
		heartbeat->at = now;
		heartbeat->end = end;
	}
	return wanted;
}

static bool
capture_state(int64 source_id, EltWorkerSlot *slot)
{
	int			index = elt_registry_find(ELT_WORKER_CAPTURE, MyDatabaseId, source_id);

	return index >= 0 && elt_registry_read(index, slot) && slot->proc != NULL;
}

/* ---- local sources ---- */

static TimestampTz local_due_at = 0;

void
elt_slot_watch_local(bool has_sources)
{
	static List *heartbeats = NIL;	/* of Watched, without source and stream */
	TimestampTz now = elt_clock_now();
	List	   *sources;
	ListCell   *cell;
	bool		wanted = false;

	if (!has_sources || now < local_due_at)
		return;
	local_due_at = TimestampTzPlusMilliseconds(now, period_ms());
	if (RecoveryInProgress())
		return;

	elt_worker_begin("looking after slots");
	if (elt_worker_holds_extension())
	{
		XLogRecPtr	end = GetXLogInsertRecPtr();
		EltSpi		spi;

		elt_spi_begin(&spi);
		elt_spi_run("SELECT elt.watch_local_slots()", 0, NULL, NULL, NULL);
		elt_spi_end(&spi);
		sources = elt_catalog_sources();
		foreach(cell, sources)
		{
			EltSource  *source = lfirst(cell);
			Heartbeat  *heartbeat = NULL;
			ListCell   *other;

			if (source->conninfo != NULL)
				continue;
			if (source->at_home)
				elt_parts_look_local(source);
			foreach(other, heartbeats)
			{
				Watched    *entry = lfirst(other);

				if (entry->source->source_id == source->source_id)
					heartbeat = &entry->heartbeat;
			}
			if (heartbeat == NULL)
			{
				MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
				Watched    *entry = palloc0(sizeof(Watched));

				entry->source = palloc0(sizeof(EltSource));
				entry->source->source_id = source->source_id;
				heartbeats = lappend(heartbeats, entry);
				MemoryContextSwitchTo(old);
				heartbeat = &entry->heartbeat;
			}
			wanted |= wants_heartbeat(heartbeat, source->source_id, end);
		}
		/* one for all sources of this database */
		if (wanted)
			(void) elt_log_message("elt", ELT_HEARTBEAT "true}", strlen(ELT_HEARTBEAT "true}"), true);
	}
	elt_worker_commit();
}

long
elt_slot_watch_ms(void)
{
	return Max(1, TimestampDifferenceMilliseconds(elt_clock_now(), local_due_at));
}

/* ---- remote sources: the watch ---- */

void
elt_watch_main(Datum main_arg)
{
	uint64		generation = 0;
	bool		read = false;
	MemoryContext round_context;

	elt_worker_start(main_arg, ELT_WORKER_WATCH, "elt watch");
	watch_context = AllocSetContextCreate(TopMemoryContext, "elt watch", ALLOCSET_DEFAULT_SIZES);
	round_context = AllocSetContextCreate(TopMemoryContext, "elt watch round", ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		ListCell   *cell;
		long		nap_ms = MAX_PAUSE_MS;

		MemoryContextSwitchTo(round_context);
		if (!read || generation != elt_config_generation(MyDatabaseId))
		{
			generation = elt_config_generation(MyDatabaseId);
			read_sources();
			read = true;
		}
		foreach(cell, watched)
		{
			Watched    *entry = lfirst(cell);

			if (entry->due_at <= elt_clock_now())
				look_at(entry);
			nap_ms = Min(nap_ms, TimestampDifferenceMilliseconds(elt_clock_now(), entry->due_at));
		}
		MemoryContextReset(round_context);
		if (!elt_worker_nap(Max(nap_ms, 1)))
			break;
	}
	while (watched != NIL)
	{
		forget(linitial(watched));
		watched = list_delete_first(watched);
	}
	elt_registry_finish();
}

/* Connections of sources that stay as they are stay open. */
static void
read_sources(void)
{
	List	   *sources = NIL;
	List	   *kept = NIL;
	ListCell   *cell;
	ListCell   *other;
	MemoryContext context;
	MemoryContext old;

	elt_worker_begin_work("reading the configuration");
	context = AllocSetContextCreate(TopMemoryContext, "elt watched sources", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	sources = elt_catalog_sources();
	MemoryContextSwitchTo(old);
	elt_worker_commit();

	MemoryContextSwitchTo(context);
	foreach(cell, sources)
	{
		EltSource  *source = lfirst(cell);
		Watched    *entry = palloc0(sizeof(Watched));

		if (source->conninfo == NULL || !source->at_home)
			continue;
		foreach(other, watched)
		{
			Watched    *known = lfirst(other);

			if (known->source->source_id != source->source_id ||
				strcmp(known->source->conninfo, source->conninfo) != 0)
				continue;
			*entry = *known;
			known->stream = NULL;
		}
		entry->source = source;
		entry->due_at = 0;
		kept = lappend(kept, entry);
	}
	foreach(other, watched)
		forget(lfirst(other));
	MemoryContextDelete(watch_context);
	watch_context = context;
	watched = kept;
}

static void
forget(Watched *entry)
{
	if (entry->stream != NULL)
		elt_stream_close(entry->stream);
	entry->stream = NULL;
}

/* As look; a source that cannot be asked is left alone for a while. */
static void
look_at(Watched *entry)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		look(entry);
		entry->failures = 0;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (ProcDiePending)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		forget(entry);
		(void) note(entry, error->message, NULL);
		entry->failures = Min(entry->failures + 1, 6);
		entry->due_at = TimestampTzPlusMilliseconds(elt_clock_now(),
													Min(MAX_PAUSE_MS, period_ms() << (entry->failures - 1)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* No transaction is open while the source is asked. */
static void
look(Watched *entry)
{
	const char *slot_name = elt_stream_literal(entry->source->slot_name);
	PGresult   *result;
	char	   *state;
	char	   *action;
	char	   *refused;
	XLogRecPtr	end;
	bool		in_recovery;

	entry->due_at = TimestampTzPlusMilliseconds(elt_clock_now(), period_ms());
	if (entry->stream == NULL)
	{
		elt_registry_set_activity("connecting", entry->source->name);
		entry->stream = elt_stream_connect_sql(entry->source->conninfo, "elt watch", TIMEOUT_MS);
		elt_registry_set_activity("running", NULL);
	}
	entry->asked_at = GetCurrentTimestamp();
	result = elt_stream_query(entry->stream,
							  psprintf("SELECT pg_catalog.json_build_object("
									   "'current_lsn', e.lsn, 'in_recovery', e.in_recovery, 'slot_name', r.slot_name, "
									   "'plugin', r.plugin, 'database', r.database, 'active_pid', r.active_pid, "
									   "'restart_lsn', r.restart_lsn, 'confirmed_flush_lsn', r.confirmed_flush_lsn, "
									   "'wal_status', r.wal_status, 'safe_wal_size', r.safe_wal_size, "
									   "'catalog_xmin_age', pg_catalog.age(r.catalog_xmin), "
									   "'published', EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = %s)), "
									   "e.lsn, e.in_recovery "
									   "FROM (SELECT pg_catalog.pg_is_in_recovery(), CASE WHEN pg_catalog.pg_is_in_recovery() "
									   "THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END) "
									   "AS e(in_recovery, lsn) "
									   "LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = %s",
									   elt_stream_literal(entry->source->publication), slot_name),
							  PGRES_TUPLES_OK);
	state = pstrdup(elt_stream_value(result, 0, 0));
	end = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(elt_stream_value(result, 0, 1))));
	in_recovery = elt_stream_value(result, 0, 2)[0] == 't';
	PQclear(result);

	action = note(entry, NULL, state);
	if (action != NULL && strcmp(action, "drop") == 0)
	{
		PQclear(elt_stream_query(entry->stream,
								 psprintf("SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots "
										  "WHERE slot_name = %s AND active_pid IS NOT NULL", slot_name),
								 PGRES_TUPLES_OK));
		PQclear(elt_stream_query(entry->stream,
								 psprintf("SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
										  "WHERE slot_name = %s AND active_pid IS NULL", slot_name),
								 PGRES_TUPLES_OK));
		entry->due_at = TimestampTzPlusMilliseconds(elt_clock_now(), 200);	/* to see that it is
																			 * gone */
		return;
	}
	if (!in_recovery && wants_heartbeat(&entry->heartbeat, entry->source->source_id, end))
		PQclear(elt_stream_query(entry->stream,
								 "SELECT pg_catalog.pg_logical_emit_message(true, 'elt', '" ELT_HEARTBEAT "true}')",
								 PGRES_TUPLES_OK));

	refused = elt_parts_look(entry->source, entry->stream, end);
	if (refused != NULL && !entry->parts_refused)
		ereport(LOG,
				(errmsg("elt source \"%s\": could not look at partitions: %s", entry->source->name, refused)));
	entry->parts_refused = refused != NULL;
}

static char *
note(Watched *entry, const char *error, const char *state)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(entry->source->source_id),
		error ? CStringGetTextDatum(error) : (Datum) 0, state ? CStringGetTextDatum(state) : (Datum) 0,
	TimestampTzGetDatum(entry->asked_at)};
	char		nulls[] = {' ', error ? ' ' : 'n', state ? ' ' : 'n', ' ', '\0'};
	char	   *action;
	EltSpi		spi;

	elt_worker_begin_work("noting the state of a slot");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.note_slot($1, $2, $3::jsonb, $4)", 4, types, values, nulls);
	action = elt_spi_text(&spi, 0, 1);
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return action;
}
