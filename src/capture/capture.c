/*
 * capture.c
 *	  The capture worker: the replication stream of one source into its raw
 *	  staging, exactly once.
 *
 * Life of the worker:
 *
 *	connect ─► slot (made once) ─► stream ──┐
 *	                                  ▲     │ configuration changed: read it again,
 *	                                  └─────┘ look for tables that wait for a copy
 *
 * Copies are made by snapshot workers beside the stream; what the capture
 * worker does for them is in copy.c.
 *
 * Exactly once.  The source has a replication origin in this cluster.  The
 * position of the last source commit that a local transaction holds goes into
 * that transaction's commit record (replorigin_session_origin_lsn), so rows
 * and progress are one, even though commits do not wait for the disk.  On
 * start the stream is asked for from the origin's position; the slot only
 * keeps WAL, and is confirmed up to what is flushed here and no further.  The
 * origin's position is never behind what the slot was confirmed to, also where
 * nothing was to be staged; a slot that is further was used by somebody else,
 * and identity.c tells.
 *
 * A local transaction holds whole source transactions: as many as have
 * arrived, up to COMMIT_CHANGES changes or COMMIT_MS.  A source transaction
 * of any size is staged as it arrives, in bounded memory, and becomes visible
 * at its commit.
 *
 * All rows that the worker writes carry DoNotReplicateId, which the output
 * plugin filters before they are queued; only the commit carries the origin.
 *
 * No transaction is open while the worker waits for the network between
 * source transactions.  An error ends the worker; the supervisor starts it
 * again.  When the source is gone from the tables the worker finishes (the
 * cleaner removes the slot); when the extension is gone it removes the slot
 * itself, because nobody else knows it any more.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "capture/copy.h"
#include "capture/identity.h"
#include "capture/slot.h"
#include "capture/stage.h"
#include "capture/stream.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "compat.h"
#include "control/worker.h"
#include "elt.h"
#include "guc.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define COMMIT_CHANGES		20000	/* changes, at the next source commit */
#define COMMIT_MS			50	/* age of the local transaction, likewise */
#define FEEDBACK_MS			1000	/* between two reports of progress under
									 * load */
#define KEEPALIVE_MS		10000	/* between two reports when nothing moves */
#define FLUSH_POLL_MS		200 /* while commits are not yet on disk */
#define PERSIST_BYTES		(1024 * 1024)	/* of a source's WAL without a
											 * change of ours, before it is
											 * let go */

/* A local commit that may not be on disk yet. */
typedef struct UnflushedCommit
{
	dlist_node	node;
	XLogRecPtr	local_end;
	XLogRecPtr	remote_end;
} UnflushedCommit;

typedef struct Capture
{
	EltSource  *source;
	MemoryContext source_context;	/* what source points to */
	MemoryContext round_context;	/* reset after every message */
	uint64		generation;
	EltStream  *stream;
	EltStage   *stage;
	EltDecoder *decoder;
	RepOriginId origin;

	bool		in_transaction; /* a local one is open */
	bool		in_source_transaction;	/* begun and not committed by the
										 * stream */
	TimestampTz transaction_start;
	int64		changes;		/* in the local transaction */

	XLogRecPtr	received;		/* the stream is processed up to here */
	XLogRecPtr	align_lsn;		/* a copy is aligned once that is passed;
								 * invalid: none waits */
	XLogRecPtr	last_end;		/* of the last source commit in the local
								 * transaction */
	TimestampTz last_commit_ts;
	XLogRecPtr	last_local_end;
	dlist_head	unflushed;
	XLogRecPtr	confirmed;		/* last reported as flushed */
	TimestampTz reported_at;
	TimestampTz persisted_at;
	bool		worked;			/* on messages, since the last report */
	bool		asked;			/* for a sign of life */
	instr_time	asked_at;
} Capture;

static Capture capture;

static void lock_source(void);
static void read_source(void);
static void leave(void) pg_attribute_noreturn();
static void connect_source(void);
static void check_identity(void);
static void make_slot(void);
static void reset_origin(void);
static void set_up_origin(void);
static void stream_changes(void);
static void look_at_copies(void);
static void stay_alive(void);
static void process_message(char *data, int length);
static void open_transaction(void);
static void commit_batch(void);
static XLogRecPtr flushed_position(void);
static void report_progress(bool force);
static long nap_ms(void);
static void persist_position(XLogRecPtr position);
static void watch_silence(void);

void
elt_capture_main(Datum main_arg)
{
	elt_worker_start(main_arg, ELT_WORKER_CAPTURE, "elt capture");
	capture.source_context = AllocSetContextCreate(TopMemoryContext, "elt source", ALLOCSET_SMALL_SIZES);
	capture.round_context = AllocSetContextCreate(TopMemoryContext, "elt capture round", ALLOCSET_DEFAULT_SIZES);
	dlist_init(&capture.unflushed);
	MemoryContextSwitchTo(capture.round_context);

	lock_source();
	read_source();
	set_up_origin();
	capture.stage = elt_stage_create(capture.source);
	elt_stage_set_alive(capture.stage, stay_alive);
	for (;;)
	{
		connect_source();
		stream_changes();
		elt_stream_close(capture.stream);
	}
}

/* ---- configuration ---- */

/*
 * lock_source
 *		Keeps drop_source out, until this worker is gone: else the two would
 *		wait for each other's locks on raw staging and on elt's tables.
 */
static void
lock_source(void)
{
	elt_worker_begin("locking the source");
	(void) elt_catalog_lock_source(elt_my_slot->object_id, false);
	elt_worker_commit();
	MemoryContextSwitchTo(capture.round_context);
}

/*
 * read_source
 *		Reads the source's row; leaves where it is not to be captured any more.
 */
static void
read_source(void)
{
	EltSource  *source = NULL;
	bool		extension;

	capture.generation = elt_config_generation(MyDatabaseId);
	elt_worker_begin("reading the configuration");
	MemoryContextSwitchTo(capture.round_context);
	extension = elt_worker_holds_extension();
	if (extension)
	{
		MemoryContext context = AllocSetContextCreate(TopMemoryContext, "elt source", ALLOCSET_SMALL_SIZES);

		MemoryContextSwitchTo(context);
		source = elt_catalog_source_by_id(elt_my_slot->object_id);
		MemoryContextSwitchTo(capture.round_context);
		if (source != NULL)
		{
			MemoryContextDelete(capture.source_context);
			capture.source_context = context;
			capture.source = source;
		}
	}
	elt_worker_commit();
	MemoryContextSwitchTo(capture.round_context);

	if (!extension)
	{
		if (capture.stream != NULL)
			elt_stream_close(capture.stream);
		capture.stream = NULL;
		if (capture.source != NULL)
		{
			if (capture.origin != InvalidRepOriginId)
			{
				replorigin_session_reset();
				replorigin_session_origin = InvalidRepOriginId;
			}
			elt_registry_ignore_stop();
			elt_slot_remove(capture.source->source_id, capture.source->conninfo,
							capture.source->slot_name, false);
		}
	}
	if (source == NULL || !source->enabled || !source->at_home || source->lost)
		leave();
}

static void
leave(void)
{
	if (capture.in_transaction)
		AbortCurrentTransaction();
	elt_registry_finish();
}

static void
set_up_origin(void)
{
	char	   *name;

	elt_worker_begin("setting up the origin");
	name = elt_origin_name(capture.source->source_id);
	capture.origin = replorigin_by_name(name, true);
	if (capture.origin == InvalidRepOriginId)
		capture.origin = replorigin_create(name);
	elt_origin_setup(capture.origin);
	elt_worker_commit();
	MemoryContextSwitchTo(capture.round_context);
	elt_worker_mark_writes(DoNotReplicateId);
}

static void
connect_source(void)
{
	elt_registry_set_activity("starting", capture.source->name);
	elt_worker_begin("connecting to the source");
	MemoryContextSwitchTo(capture.round_context);
	capture.stream = elt_stream_connect(capture.source->conninfo,
										psprintf("elt %s", capture.source->name));
	elt_stream_check_server(capture.stream);
	elt_worker_commit();
	MemoryContextSwitchTo(capture.round_context);
	if (capture.source->start_lsn == InvalidXLogRecPtr)
		make_slot();
	else
		check_identity();
}

/*
 * check_identity
 *		Leaves where the stream cannot be taken up from where it was: what
 *		comes next is for somebody to decide, see resync_source.
 */
static void
check_identity(void)
{
	EltSource  *source = capture.source;
	TimeLineID	timeline;
	EltLoss		loss;

	if (elt_identity_check(capture.stream, source,
						   Max(replorigin_session_get_progress(false), source->start_lsn), &timeline, &loss))
	{
		if (timeline != source->timeline)
		{
			elt_worker_begin_work("recording the source's timeline");
			elt_identity_note_timeline(source, timeline);
			elt_worker_commit();
			MemoryContextSwitchTo(capture.round_context);
			source->timeline = timeline;
		}
		return;
	}
	elt_stream_close(capture.stream);
	capture.stream = NULL;
	elt_worker_begin_work("recording a loss");
	elt_identity_note_loss(source, &loss);
	elt_worker_commit();
	ereport(WARNING,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("source \"%s\" is lost: %s", source->name, loss.detail),
			 errdetail("All up to %X/%X is staged.", LSN_FORMAT_ARGS(loss.from)),
			 errhint("SELECT elt.resync_source(%s) makes a new slot and copies all tables again.",
					 quote_literal_cstr(source->name))));
	leave();
}

/*
 * make_slot
 *		Makes the slot, then records it together with the tables that the
 *		publication has.  A crash in between leaves a slot that the next
 *		attempt replaces.
 */
static void
make_slot(void)
{
	EltSource  *source = capture.source;
	XLogRecPtr	lsn;
	const char *publication = elt_stream_literal(source->publication);
	Oid			types[] = {INT8OID, LSNOID, TEXTOID, BOOLOID, TEXTOID, INT8OID};
	Datum		values[6];
	char	   *system_id;
	TimeLineID	timeline;
	XLogRecPtr	end;
	PGresult   *result;
	EltSpi		spi;

	elt_registry_set_activity("making a slot", source->name);
	reset_origin();

	result = elt_stream_query(capture.stream,
							  psprintf("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = %s", publication),
							  PGRES_TUPLES_OK);
	if (PQntuples(result) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("publication \"%s\" does not exist at the source", source->publication),
				 errhint("Make it there: CREATE PUBLICATION %s FOR TABLE ... WITH (publish_via_partition_root = true)",
						 quote_identifier(source->publication))));
	PQclear(result);
	elt_identity_read(capture.stream, &system_id, &timeline, &end);
	lsn = elt_slot_create(capture.stream, source->slot_name, source->failover);
	result = elt_stream_query(capture.stream,
							  psprintf("SELECT pg_catalog.format('%%I.%%I', schemaname, tablename) "
									   "FROM pg_catalog.pg_publication_tables WHERE pubname = %s "
									   "AND schemaname NOT IN ('elt', 'elt_raw')", publication),
							  PGRES_TUPLES_OK);

	elt_worker_begin_work("recording the slot");
	values[0] = Int64GetDatum(source->source_id);
	values[1] = LSNGetDatum(lsn);
	values[2] = (Datum) 0;
	values[3] = BoolGetDatum(source->snapshot);
	values[4] = CStringGetTextDatum(system_id);
	values[5] = Int64GetDatum(timeline);
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.sources SET start_lsn = $2, slot_made_at = clock_timestamp(), system_id = $5, timeline = $6 WHERE source_id = $1",
				6, types, values, "  n   ");
	elt_spi_run("UPDATE elt.source_gaps SET to_lsn = $2 WHERE source_id = $1 AND resolved_at IS NULL",
				2, types, values, NULL);
	for (int i = 0; i < PQntuples(result); i++)
	{
		values[2] = CStringGetTextDatum(elt_stream_value(result, i, 0));
		elt_spi_run("INSERT INTO elt.source_tables (source_id, relation, state, horizon, sync_lsn) "
					"VALUES ($1, $3, CASE WHEN $4 THEN 'pending' ELSE 'ready' END, CASE WHEN $4 THEN 0 END, $2) "
					"ON CONFLICT (source_id, relation) DO NOTHING",
					4, types, values, NULL);
	}
	elt_spi_end(&spi);
	elt_config_changed();		/* there may be something to copy */
	elt_worker_commit();
	MemoryContextSwitchTo(capture.round_context);
	PQclear(result);
	source->start_lsn = lsn;
	source->system_id = MemoryContextStrdup(capture.source_context, system_id);
	source->timeline = timeline;
}

/*
 * reset_origin
 *		A new slot begins a new count of positions, perhaps on another server:
 *		the old one must not hide what comes.
 */
static void
reset_origin(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &capture.unflushed)
	{
		dlist_delete(iter.cur);
		pfree(dlist_container(UnflushedCommit, node, iter.cur));
	}
	capture.last_end = InvalidXLogRecPtr;
	if (replorigin_session_get_progress(false) == InvalidXLogRecPtr)
		return;

	elt_worker_begin_work("resetting the origin");
	replorigin_session_reset();
	replorigin_session_origin = InvalidRepOriginId;
	replorigin_drop_by_name(elt_origin_name(capture.source->source_id), true, false);
	elt_worker_commit();
	set_up_origin();
}

/* ---- the stream ---- */

/*
 * stream_changes
 *		Stages what the stream brings, until the source is to begin anew.
 */
static void
stream_changes(void)
{
	/* flushed first, because the slot is about to be confirmed up to there */
	XLogRecPtr	start = Max(replorigin_session_get_progress(true), capture.source->start_lsn);
	MemoryContext decoder_context = AllocSetContextCreate(TopMemoryContext, "elt decoder", ALLOCSET_DEFAULT_SIZES);
	instr_time	busy_since;

	capture.decoder = elt_decoder_create(decoder_context, elt_stage_free_relation);
	capture.received = start;
	capture.confirmed = InvalidXLogRecPtr;
	capture.asked = false;
	elt_stream_start(capture.stream, capture.source->slot_name, capture.source->publication, start);
	pg_atomic_write_u64(&elt_my_slot->staged_lsn, start);
	elt_registry_set_activity("streaming", capture.source->name);
	elt_copy_discard_plan(capture.source);
	look_at_copies();
	INSTR_TIME_SET_CURRENT(busy_since);

	for (;;)
	{
		char	   *data;
		int			length;
		XLogRecPtr	wal_end = InvalidXLogRecPtr;
		bool		reply_requested = false;
		instr_time	now;

		CHECK_FOR_INTERRUPTS();
		switch (elt_stream_receive(capture.stream, &data, &length, &wal_end, &reply_requested))
		{
			case ELT_STREAM_DATA:
				capture.worked = true;
				process_message(data, length);
				break;

			case ELT_STREAM_KEEPALIVE:
				if (!capture.in_source_transaction)
				{
					if (capture.in_transaction)
						commit_batch();
					capture.received = Max(capture.received, wal_end);
					pg_atomic_write_u64(&elt_my_slot->staged_lsn, capture.received);
				}
				pg_atomic_write_u64(&elt_my_slot->received_lsn, wal_end);
				report_progress(reply_requested);
				break;

			case ELT_STREAM_NOTHING:
				if (capture.in_transaction && !capture.in_source_transaction)
					commit_batch();
				report_progress(false);
				watch_silence();
				if (elt_registry_stop_requested() ||
					(!capture.in_transaction &&
					 capture.generation != elt_config_generation(MyDatabaseId)))
					break;
				INSTR_TIME_SET_CURRENT(now);
				INSTR_TIME_SUBTRACT(now, busy_since);
				pg_atomic_fetch_add_u64(&elt_my_slot->busy_us, INSTR_TIME_GET_MICROSEC(now));
				(void) elt_stream_wait(capture.stream, nap_ms());
				INSTR_TIME_SET_CURRENT(busy_since);
				break;

			case ELT_STREAM_END:
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("the source ended the stream")));
		}
		report_progress(false);

		/*
		 * Looked at after every message, because a backlog may leave no time
		 * to wait.  Of a source transaction that has come in part nothing
		 * stays: however large it is, it comes again.
		 */
		if (!elt_worker_nap(0))
		{
			if (capture.in_transaction && !capture.in_source_transaction)
				commit_batch();
			leave();
		}
		if (!capture.in_transaction && capture.generation != elt_config_generation(MyDatabaseId))
		{
			read_source();
			elt_stage_refresh(capture.stage);
			if (capture.source->start_lsn == InvalidXLogRecPtr)
				break;
			look_at_copies();
		}
		if (!capture.in_transaction && capture.align_lsn != InvalidXLogRecPtr &&
			capture.received >= capture.align_lsn)
		{
			elt_copy_align(capture.stage, capture.source, capture.received);
			capture.align_lsn = InvalidXLogRecPtr;
		}
		if (!capture.in_transaction)
			MemoryContextReset(capture.round_context);
	}
	MemoryContextDelete(decoder_context);
}

static void
look_at_copies(void)
{
	capture.align_lsn = elt_copy_look(capture.stage, capture.source);
	elt_copy_complete(capture.stage, capture.source);
	elt_stage_refresh(capture.stage);
}

/* Staging a change takes long: the source must not take that for silence. */
static void
stay_alive(void)
{
	capture.worked = true;
	report_progress(false);
}

static void
process_message(char *data, int length)
{
	EltEvent	event;

	elt_decoder_read(capture.decoder, data, length);
	while (elt_decoder_next(capture.decoder, &event))
	{
		switch (event.kind)
		{
			case ELT_EVENT_BEGIN:
				if (!capture.in_transaction)
					open_transaction();
				capture.in_source_transaction = true;
				elt_stage_begin(capture.stage, event.xid, event.commit_lsn, event.commit_ts);
				capture.last_commit_ts = event.commit_ts;
				break;

			case ELT_EVENT_RELATION:
				elt_stage_relation(capture.stage, event.change.relation);
				break;

			case ELT_EVENT_CHANGE:
				if (!capture.in_source_transaction)
					ereport(ERROR,
							(errcode(ERRCODE_PROTOCOL_VIOLATION),
							 errmsg("the source sent a change outside a transaction")));
				elt_stage_change(capture.stage, &event.change);
				capture.changes++;
				break;

			case ELT_EVENT_COMMIT:
				capture.in_source_transaction = false;
				capture.last_end = event.end_lsn;
				if (capture.in_transaction &&
					(capture.changes >= COMMIT_CHANGES ||
					 TimestampDifferenceExceeds(capture.transaction_start, elt_clock_now(), COMMIT_MS)))
					commit_batch();
				break;
		}
	}
}

static void
open_transaction(void)
{
	elt_worker_begin_work("staging changes");
	MemoryContextSwitchTo(capture.round_context);
	capture.in_transaction = true;
	capture.transaction_start = elt_clock_now();
	capture.changes = 0;
}

static void
commit_batch(void)
{
	int64		staged = elt_stage_finish(capture.stage);
	bool		wrote = TransactionIdIsValid(GetTopTransactionIdIfAny());

	elt_worker_mark_writes(capture.origin);
	replorigin_session_origin_lsn = capture.last_end;
	replorigin_session_origin_timestamp = capture.last_commit_ts;
	elt_worker_commit();
	elt_worker_mark_writes(DoNotReplicateId);
	MemoryContextSwitchTo(capture.round_context);
	capture.in_transaction = false;

	if (wrote)
	{
		UnflushedCommit *commit = MemoryContextAlloc(TopMemoryContext, sizeof(UnflushedCommit));

		capture.last_local_end = XactLastCommitEnd;
		commit->local_end = XactLastCommitEnd;
		commit->remote_end = capture.last_end;
		dlist_push_tail(&capture.unflushed, &commit->node);
	}
	capture.received = Max(capture.received, capture.last_end);
	pg_atomic_write_u64(&elt_my_slot->received_lsn, capture.received);
	pg_atomic_write_u64(&elt_my_slot->staged_lsn, capture.received);
	pg_atomic_write_u64(&elt_my_slot->last_commit_ts, capture.last_commit_ts);
	pg_atomic_fetch_add_u64(&elt_my_slot->changes, staged);
	if (staged > 0)
	{
		pg_atomic_fetch_add_u64(&elt_my_slot->staged_count, 1);
		elt_registry_wake_transform(MyDatabaseId);
	}
}

/* ---- progress to the source ---- */

/*
 * flushed_position
 *		How far the source may forget: all that came before is on disk here.
 */
static XLogRecPtr
flushed_position(void)
{
	XLogRecPtr	local_flush = GetFlushRecPtr(NULL);
	XLogRecPtr	flushed = capture.confirmed;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &capture.unflushed)
	{
		UnflushedCommit *commit = dlist_container(UnflushedCommit, node, iter.cur);

		if (commit->local_end > local_flush)
			return flushed;
		flushed = Max(flushed, commit->remote_end);
		dlist_delete(iter.cur);
		pfree(commit);
	}
	return capture.in_transaction ? flushed : Max(flushed, capture.received);
}

static void
report_progress(bool force)
{
	TimestampTz now = elt_clock_now();
	bool		due = TimestampDifferenceExceeds(capture.reported_at, now, FEEDBACK_MS);
	XLogRecPtr	flushed;

	if (!force && !due)
		return;
	flushed = flushed_position();
	if (flushed > replorigin_session_get_progress(false))
	{
		if (force || flushed - replorigin_session_get_progress(false) >= PERSIST_BYTES ||
			TimestampDifferenceExceeds(capture.persisted_at, now, KEEPALIVE_MS))
		{
			persist_position(flushed);
			capture.persisted_at = now;
		}
		else
			flushed = Max(capture.confirmed, replorigin_session_get_progress(false));
	}

	/* who works for long says so: the source gives up on who does not */
	if (!force && !capture.worked && flushed == capture.confirmed &&
		!TimestampDifferenceExceeds(capture.reported_at, now, KEEPALIVE_MS))
		return;

	elt_stream_feedback(capture.stream, Max(capture.received, flushed), flushed, false);
	capture.confirmed = flushed;
	capture.reported_at = now;
	capture.worked = false;
	pg_atomic_write_u64(&elt_my_slot->confirmed_lsn, flushed);
}

/*
 * persist_position
 *		The origin's position never falls behind what the slot is confirmed to,
 *		or nobody could tell later whether somebody else has used the slot.
 *		Commits move it; where nothing is to be staged this record does.
 */
static void
persist_position(XLogRecPtr position)
{
	xl_replorigin_set record = {0};
	XLogRecPtr	end;

	record.remote_lsn = position;
	record.node_id = capture.origin;
	record.force = false;
	XLogBeginInsert();
	XLogRegisterData((char *) &record, sizeof(record));
	XLogSetRecordFlags(XLOG_MARK_UNIMPORTANT);	/* an idle server stays idle */
	end = XLogInsert(RM_REPLORIGIN_ID, XLOG_REPLORIGIN_SET);
	replorigin_session_advance(position, end);
	XLogFlush(end);
}

/*
 * watch_silence
 *		A network that is gone says nothing, and neither does a source whose
 *		wal_sender_timeout is 0.  Halfway it is asked for a sign of life.
 */
static void
watch_silence(void)
{
	long		silence_ms = elt_stream_silence_ms(capture.stream);
	long		half_ms = elt_source_timeout_ms / 2;

	if (elt_source_timeout_ms == 0 || silence_ms < half_ms)
		capture.asked = false;
	else if (!capture.asked)
	{
		XLogRecPtr	flushed = Max(capture.confirmed, Min(flushed_position(), replorigin_session_get_progress(false)));

		elt_stream_feedback(capture.stream, Max(capture.received, flushed), flushed, true);
		capture.confirmed = flushed;
		capture.asked = true;
		INSTR_TIME_SET_CURRENT(capture.asked_at);
	}
	else
	{
		instr_time	passed;

		INSTR_TIME_SET_CURRENT(passed);
		INSTR_TIME_SUBTRACT(passed, capture.asked_at);
		if (INSTR_TIME_GET_MILLISEC(passed) >= half_ms)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the source has been silent for %ld ms", silence_ms),
					 errhint("The connection is made anew; elt.source_timeout is %d ms.", elt_source_timeout_ms)));
	}
}

static long
nap_ms(void)
{
	bool		unconfirmed = !dlist_is_empty(&capture.unflushed) ||
	capture.confirmed < Min(capture.received, replorigin_session_get_progress(false));
	long		ms = unconfirmed ? FLUSH_POLL_MS : KEEPALIVE_MS;

	return elt_source_timeout_ms > 0 ? Min(ms, Max(elt_source_timeout_ms / 4, 10)) : ms;
}
