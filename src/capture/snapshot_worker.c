/*
 * snapshot_worker.c
 *	  Snapshot workers: they copy tables into raw staging, beside the stream.
 *
 * A source has up to elt.snapshot_workers of them while tables wait for a
 * copy.  The first leads: it begins passes, goes on with one that was
 * interrupted, and ends them (snapshot_pass.c); how a copy fits into the
 * stream is told in copy.c.  The others import its copier.  All of them
 * copy chunks:
 *
 *	claim ─► shape of the table, leaf ─► COPY ... WHERE ctid in range ─► commit
 *
 * A chunk is a range of blocks, copied in one local transaction, which locks
 * the chunk's row (others skip it), stages the rows and deletes the chunk.  So
 * a worker that dies leaves nothing half done, and what is done is not copied
 * again.
 *
 * Each worker writes leaves of its own, whose ids lie in the pass's range: so
 * the order of a leaf is one writer's order.  It begins a new leaf when a
 * chunk may not fit any more, and when it starts anew, since ids that an
 * aborted transaction used are not used again.  The leaf is made in a
 * transaction of its own: attaching it takes a lock that the capture worker
 * may need.
 *
 * The rows of a chunk wait for nobody, but elt.snapshot_rate makes a pause
 * after it, outside any local transaction.
 *
 * An error ends the worker and with it the source's transaction; the
 * supervisor starts it again.  A table whose rows cannot be copied is given
 * back and waits, so that the others get on.  Helpers go on under their snapshot when the
 * leader dies: what they read is exact all the same.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/copy.h"
#include "capture/copied.h"
#include "capture/partition.h"
#include "capture/print.h"
#include "capture/snapshot.h"
#include "capture/snapshot_pass.h"
#include "capture/snapshot_worker.h"
#include "clock.h"
#include "elt.h"
#include "capture/stage.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "control/worker.h"
#include "guc.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define WAIT_MS			200
#define LATER_MS		1000
#define SEAL_MS			200		/* between two looks for tables that are done */
#define FETCH_ROWS		10000

/* Key of a row: 128 bits of its jsonb form. */
typedef struct KeyHash
{
	uint64		low;
	uint64		high;
} KeyHash;

typedef struct Chunk
{
	int64		chunk_id;
	char	   *relation;
	char	   *part;
	int64		first_block;
	int64		end_block;
} Chunk;

typedef struct Copier
{
	EltSource  *source;
	int			number;			/* 0 leads */
	MemoryContext round_context;	/* reset after every round */
	EltStream  *stream;
	EltStage   *stage;
	int			run;			/* of the pass: that its transaction reads
								 * for; 0: none */
	bool		savepoint;		/* its transaction has one */
	int64		careful_chunk;	/* that could not be copied as others are */
	TimestampTz sealed_at;

	/* the table at hand */
	MemoryContext table_context;
	char	   *relation_name;	/* NULL: none */
	EltRelation *relation;
	char	   *filter;
	HTAB	   *changed;		/* keys that are left out; NULL: none */
	int64		next_id;
	int64		end_id;
} Copier;

static Copier copier;

static void read_source(void);
static void lead(void);
static void help(void);
static void join_run(const EltPass *pass);
static void set_run(int run);
static bool copy_chunk(const EltPass *pass);
static bool claim_chunk(Chunk *chunk);
static bool take_table(const char *relation, const EltPass *pass);
static void leave_table(void);
static void read_changed(const EltPass *pass);
static bool is_changed(void *arg, Jsonb *key);
static KeyHash hash_key(const Jsonb *key);
static void take_leaf(const EltPass *pass);
static bool try_carefully(const Chunk *chunk);
static void fail_chunk(const Chunk *chunk) pg_attribute_noreturn();
static void finish_chunk(const Chunk *chunk, const EltCopyCounts *counts);
static void keep_rate(TimestampTz start, int64 bytes);
static int	workers_at_it(void);
static void nap_or_leave(long ms);

void
elt_snapshot_main(Datum main_arg)
{
	elt_worker_start(main_arg, ELT_WORKER_SNAPSHOT, "elt snapshot");
	copier.round_context = AllocSetContextCreate(TopMemoryContext, "elt snapshot round", ALLOCSET_DEFAULT_SIZES);
	copier.table_context = AllocSetContextCreate(TopMemoryContext, "elt snapshot table", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(copier.round_context);
	elt_worker_mark_writes(DoNotReplicateId);

	copier.number = ELT_SNAPSHOT_NUMBER(elt_my_slot->object_id);
	elt_worker_begin("locking the source");
	(void) elt_catalog_lock_source(ELT_SNAPSHOT_SOURCE(elt_my_slot->object_id), false);
	elt_worker_commit();
	read_source();
	elt_registry_set_activity("copying", copier.source->name);
	copier.stage = elt_stage_create(copier.source);
	if (copier.number == 0)
		lead();
	else
		help();
	elt_registry_finish();
}

/* Reads the source's row; leaves where it is not to be copied. */
static void
read_source(void)
{
	elt_worker_begin_work("reading the configuration");
	MemoryContextSwitchTo(TopMemoryContext);
	copier.source = elt_catalog_source_by_id(ELT_SNAPSHOT_SOURCE(elt_my_slot->object_id));
	elt_worker_commit();
	MemoryContextSwitchTo(copier.round_context);
	if (copier.source == NULL || !copier.source->enabled || !copier.source->at_home)
		elt_registry_finish();
}

/* ---- leader, helpers ---- */

static void
lead(void)
{
	for (;;)
	{
		int64		source_id = copier.source->source_id;
		EltPass		pass;

		MemoryContextReset(copier.round_context);
		nap_or_leave(0);
		elt_pass_read(source_id, &pass);
		if (!pass.exists)
		{
			leave_table();
			if (copier.run != 0)	/* the capture worker gave the plan up */
				PQclear(elt_stream_query(copier.stream, "ROLLBACK", PGRES_COMMAND_OK));
			set_run(0);
			switch (elt_pass_plan(copier.source, &copier.stream))
			{
				case ELT_PASS_BEGUN:
					set_run(1);
					break;
				case ELT_PASS_LATER:
					nap_or_leave(LATER_MS);
					break;
				case ELT_PASS_NOTHING:
					return;
			}
			continue;
		}
		if (pass.run != copier.run && !pass.copying)
			elt_pass_discard(source_id);	/* its snapshot is gone */
		else if (pass.run != copier.run && pass.chunks)
		{
			set_run(0);
			if (elt_pass_resume(copier.source, &copier.stream, &pass))
				set_run(pass.run);
		}
		else if (!pass.copying)
			nap_or_leave(LATER_MS); /* whoever aligns it wakes us */
		else
		{
			bool		copied = pass.chunks && copy_chunk(&pass);

			if (!copied || TimestampDifferenceExceeds(copier.sealed_at, elt_clock_now(), SEAL_MS))
			{
				copier.sealed_at = elt_clock_now();
				if (elt_pass_seal(copier.source))
				{
					if (copier.run != 0)
						PQclear(elt_stream_query(copier.stream, "COMMIT", PGRES_COMMAND_OK));
					set_run(0);
				}
				else if (!copied)
					nap_or_leave(WAIT_MS);
			}
		}
	}
}

static void
help(void)
{
	for (;;)
	{
		EltPass		pass;

		MemoryContextReset(copier.round_context);
		nap_or_leave(0);
		elt_pass_read(copier.source->source_id, &pass);
		if (!pass.exists || !pass.copying)
			return;
		if (!pass.chunks)
			nap_or_leave(WAIT_MS);
		else
		{
			if (pass.run != copier.run)
				join_run(&pass);
			if (!copy_chunk(&pass))
				nap_or_leave(WAIT_MS);
		}
	}
}

/* Reads what the leader reads. */
static void
join_run(const EltPass *pass)
{
	leave_table();
	if (copier.stream != NULL)
		elt_stream_close(copier.stream);
	copier.stream = NULL;
	elt_pass_connect(copier.source, &copier.stream);
	PQclear(elt_stream_query(copier.stream, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", PGRES_COMMAND_OK));
	PQclear(elt_stream_query(copier.stream,
							 psprintf("SET TRANSACTION SNAPSHOT %s", elt_stream_literal(pass->exported)),
							 PGRES_COMMAND_OK));
	PQclear(elt_stream_query(copier.stream, "SET LOCAL row_security = off", PGRES_COMMAND_OK));
	set_run(pass->run);
}

/* A transaction at the source has begun, or ended. */
static void
set_run(int run)
{
	copier.run = run;
	copier.savepoint = false;
}

/* ---- chunks ---- */

/* Copies one chunk; false where none is to be had. */
static bool
copy_chunk(const EltPass *pass)
{
	TimestampTz start = elt_clock_now();
	EltCopyRange range = {0};
	EltCopyCounts counts;
	Chunk		chunk;
	volatile bool again = false;
	int64		most_rows;

	elt_worker_begin_work("copying a table");
	MemoryContextSwitchTo(copier.round_context);
	if (!claim_chunk(&chunk))
	{
		elt_worker_commit();
		MemoryContextSwitchTo(copier.round_context);
		return false;
	}

	/* prepared outside this transaction; then it is claimed again, or another */
	most_rows = Min((chunk.end_block - chunk.first_block) * MaxHeapTuplesPerPage, copier.source->partition_changes / 2);
	if (copier.relation_name == NULL || strcmp(copier.relation_name, chunk.relation) != 0)
	{
		elt_worker_commit();
		MemoryContextSwitchTo(copier.round_context);
		(void) take_table(chunk.relation, pass);
		return true;
	}
	if (copier.end_id - copier.next_id < most_rows)
	{
		elt_worker_commit();
		MemoryContextSwitchTo(copier.round_context);
		take_leaf(pass);
		return true;
	}

	range.relation = copier.relation;
	range.filter = copier.filter;
	range.part = chunk.part;
	range.first_block = chunk.first_block;
	range.end_block = chunk.end_block;
	range.careful = chunk.chunk_id == copier.careful_chunk;
	range.skip = copier.changed ? is_changed : NULL;
	if (!copier.savepoint)
		PQclear(elt_stream_query(copier.stream, "SAVEPOINT " ELT_COPIED_SAVEPOINT, PGRES_COMMAND_OK));
	copier.savepoint = true;
	elt_stage_use_ids(copier.stage, copier.next_id, copier.end_id);
	elt_stage_begin(copier.stage, InvalidTransactionId, pass->lsn, pass->taken_at);
	PG_TRY();
	{
		elt_snapshot_copy_blocks(copier.stream, copier.stage, &range, &counts);
		(void) elt_stage_finish(copier.stage);
	}
	PG_CATCH();
	{
		if (!try_carefully(&chunk))
			fail_chunk(&chunk);
		again = true;
	}
	PG_END_TRY();
	if (again)
		return true;
	finish_chunk(&chunk, &counts);
	elt_worker_commit();
	MemoryContextSwitchTo(copier.round_context);
	copier.next_id += counts.rows;

	pg_atomic_fetch_add_u64(&elt_my_slot->changes, counts.rows);
	pg_atomic_fetch_add_u64(&elt_my_slot->busy_us, elt_clock_now() - start);
	if (copier.number > 0)
		elt_registry_wake(ELT_WORKER_SNAPSHOT, MyDatabaseId, ELT_SNAPSHOT_OBJECT(copier.source->source_id, 0));
	keep_rate(start, counts.bytes);
	return true;
}

/* Locks the first chunk that nobody is at, until the end of the transaction. */
static bool
claim_chunk(Chunk *chunk)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(copier.source->source_id),
	CStringGetTextDatum(copier.relation_name ? copier.relation_name : "")};
	bool		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	/* of the table at hand, where there is one: its leaf is made already */
	found = elt_spi_run("SELECT chunk_id, relation, part, first_block, end_block FROM elt.snapshot_chunks "
						"WHERE source_id = $1 AND relation = $2 ORDER BY chunk_id LIMIT 1 FOR UPDATE SKIP LOCKED",
						2, types, values, NULL) > 0 ||
		elt_spi_run("SELECT chunk_id, relation, part, first_block, end_block FROM elt.snapshot_chunks "
					"WHERE source_id = $1 ORDER BY chunk_id LIMIT 1 FOR UPDATE SKIP LOCKED",
					1, types, values, NULL) > 0;
	if (found)
	{
		chunk->chunk_id = elt_spi_int64(0, 1);
		chunk->relation = elt_spi_text(&spi, 0, 2);
		chunk->part = elt_spi_text(&spi, 0, 3);
		chunk->first_block = elt_spi_int64(0, 4);
		chunk->end_block = elt_spi_int64(0, 5);
	}
	elt_spi_end(&spi);
	return found;
}

static void
finish_chunk(const Chunk *chunk, const EltCopyCounts *counts)
{
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, INT8OID, INT8OID};
	Datum		values[5];
	EltSpi		spi;

	values[0] = Int64GetDatum(chunk->chunk_id);
	values[1] = Int64GetDatum(copier.source->source_id);
	values[2] = CStringGetTextDatum(chunk->relation);
	values[3] = Int64GetDatum(counts->rows);
	values[4] = Int64GetDatum(chunk->end_block - chunk->first_block);
	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.snapshot_chunks WHERE chunk_id = $1", 1, types, values, NULL);
	elt_spi_run("UPDATE elt.snapshot_tables SET done = done + $4, blocks_done = blocks_done + $5, updated_at = clock_timestamp() "
				"WHERE source_id = $2 AND relation = $3", 5, types, values, NULL);
	elt_spi_end(&spi);
}

/*
 * Where the error at hand says that a value has no text (copied.c), gets ready
 * to copy the chunk once more, in another leaf: ids are not used again.
 */
static bool
try_carefully(const Chunk *chunk)
{
	ErrorData  *error;
	bool		result;

	MemoryContextSwitchTo(copier.round_context);
	error = CopyErrorData();
	result = chunk->chunk_id != copier.careful_chunk && elt_stream_in_error(copier.stream) &&
		elt_print_error(error->sqlerrcode, error->message);
	FreeErrorData(error);
	if (!result)
		return false;
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(copier.round_context);
	PQclear(elt_stream_query(copier.stream, "ROLLBACK TO SAVEPOINT " ELT_COPIED_SAVEPOINT, PGRES_COMMAND_OK));
	copier.careful_chunk = chunk->chunk_id;
	leave_table();
	elt_stage_abandon(copier.stage);
	return true;
}

/*
 * Ends the worker with the error at hand.  A table whose rows it is about is
 * given back first, or it would keep the others of the pass from being copied.
 */
static void
fail_chunk(const Chunk *chunk)
{
	ErrorData  *error;
	int			class;

	MemoryContextSwitchTo(copier.round_context);
	error = CopyErrorData();
	class = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (class == ERRCODE_DATA_EXCEPTION || class == ERRCODE_PROGRAM_LIMIT_EXCEEDED ||
		class == ERRCODE_TO_CATEGORY(ERRCODE_SYNTAX_ERROR) || class == ERRCODE_FEATURE_NOT_SUPPORTED)
	{
		FlushErrorState();
		AbortCurrentTransaction();
		elt_pass_give_back(copier.source->source_id, chunk->relation, error->message);
		ReThrowError(error);
	}
	PG_RE_THROW();
}

/* ---- the table at hand ---- */

/* Learns what copying this table takes; false where that is not possible any more. */
static bool
take_table(const char *relation, const EltPass *pass)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID};
	Datum		values[3];
	bool		same;
	EltSpi		spi;

	leave_table();
	MemoryContextSwitchTo(copier.table_context);
	copier.relation_name = pstrdup(relation);
	copier.relation = elt_snapshot_describe(copier.stream, copier.source, relation, &copier.filter);

	elt_worker_begin_work("copying a table");
	MemoryContextSwitchTo(copier.round_context);
	values[0] = Int64GetDatum(copier.source->source_id);
	values[1] = CStringGetTextDatum(relation);
	values[2] = Int32GetDatum(elt_pass_schema_version(copier.source->source_id, copier.relation, pass->lsn));
	elt_spi_begin(&spi);
	same = elt_spi_run("UPDATE elt.snapshot_tables SET schema_version = $3 "
					   "WHERE source_id = $1 AND relation = $2 AND coalesce(schema_version, $3) = $3",
					   3, types, values, NULL) > 0;
	elt_spi_end(&spi);
	if (!same)
		elt_copy_cancel(copier.source->source_id, relation);
	else if (pass->resumed != NULL)
		read_changed(pass);
	elt_worker_commit();
	MemoryContextSwitchTo(copier.round_context);
	if (!same)
		leave_table();
	return same;
}

static void
leave_table(void)
{
	if (copier.relation != NULL)
		elt_stage_free_relation(copier.relation->user_data);
	MemoryContextReset(copier.table_context);
	copier.relation_name = NULL;
	copier.relation = NULL;
	copier.filter = NULL;
	copier.changed = NULL;
	copier.next_id = copier.end_id = 0;
}

/* The keys of rows that the stream has in a state behind the pass's copier. */
static void
read_changed(const EltPass *pass)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(copier.source->source_id), CStringGetTextDatum(copier.relation_name)};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "elt changed keys", ALLOCSET_DEFAULT_SIZES);
	HASHCTL		ctl = {0};
	Portal		portal;
	char	   *raw;
	EltSpi		spi;

	ctl.keysize = ctl.entrysize = sizeof(KeyHash);
	ctl.hcxt = copier.table_context;
	copier.changed = hash_create("elt changed keys", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT c.relname::text FROM elt.source_tables t JOIN pg_catalog.pg_class c ON c.oid = t.raw "
				"WHERE t.source_id = $1 AND t.relation = $2", 2, types, values, NULL);
	raw = elt_spi_text(&spi, 0, 1);
	portal = SPI_cursor_open_with_args(NULL,
									   psprintf("SELECT key FROM elt_raw.%s WHERE change_id >= " INT64_FORMAT " AND xid <> 0 "
												"AND key IS NOT NULL AND elt.xid_is_visible(xid, %s)",
												quote_identifier(raw), pass->end_leaf * copier.source->partition_changes,
												quote_literal_cstr(pass->resumed)),
									   0, NULL, NULL, NULL, true, CURSOR_OPT_NO_SCROLL);
	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(context);
		for (uint64 row = 0; row < SPI_processed; row++)
		{
			bool		isnull;
			KeyHash		hash = hash_key(DatumGetJsonbP(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull)));

			(void) hash_search(copier.changed, &hash, HASH_ENTER, NULL);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	elt_spi_end(&spi);
	MemoryContextDelete(context);
}

static bool
is_changed(void *arg, Jsonb *key)
{
	KeyHash		hash;

	if (key == NULL)
		return false;
	hash = hash_key(key);
	return hash_search(copier.changed, &hash, HASH_FIND, NULL) != NULL;
}

static KeyHash
hash_key(const Jsonb *key)
{
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(key);
	KeyHash		hash;

	hash.low = hash_bytes_extended(bytes, VARSIZE_ANY_EXHDR(key), 0);
	hash.high = hash_bytes_extended(bytes, VARSIZE_ANY_EXHDR(key), hash.low);
	return hash;
}

/* Takes the next of the pass's leaves for the table at hand. */
static void
take_leaf(const EltPass *pass)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(copier.source->source_id), CStringGetTextDatum(copier.relation_name)};
	int			width = copier.source->partition_changes;
	int64		leaf = 0;
	EltSpi		spi;

	elt_worker_begin_work("making a partition");
	MemoryContextSwitchTo(copier.round_context);
	elt_spi_begin(&spi);
	if (elt_spi_run("UPDATE elt.snapshot_passes SET next_leaf = next_leaf + 1 WHERE source_id = $1 "
					"AND next_leaf < end_leaf RETURNING next_leaf - 1", 1, types, values, NULL) > 0)
		leaf = elt_spi_int64(0, 1);
	if (leaf > 0 && elt_spi_run("SELECT raw::oid FROM elt.source_tables WHERE source_id = $1 AND relation = $2 AND raw IS NOT NULL",
								2, types, values, NULL) > 0)
		(void) elt_partition_leaf(copier.source, (Oid) elt_spi_int64(0, 1), leaf * width);
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(copier.round_context);
	if (leaf == 0)
	{
		elt_pass_discard(copier.source->source_id);
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a copy into source \"%s\" was interrupted too often", copier.source->name),
				 errdetail("The change_ids that were set aside for it are used up."),
				 errhint("It begins anew by itself.")));
	}
	copier.next_id = leaf * width;
	copier.end_id = (leaf + 1) * width;
}

/* ---- rate ---- */

/* Waits until a chunk has taken the time that elt.snapshot_rate leaves it. */
static void
keep_rate(TimestampTz start, int64 bytes)
{
	int64		left_ms;

	do
	{
		int64		due_ms = elt_snapshot_rate_kb == 0 ? 0 :
		bytes * 1000 / 1024 / elt_snapshot_rate_kb * workers_at_it();

		left_ms = due_ms - (elt_clock_now() - start) / 1000;
		if (left_ms > 0)
			nap_or_leave(Min(left_ms, LATER_MS));
	} while (left_ms > 0);
}

static int
workers_at_it(void)
{
	int			count = 0;

	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;

		if (elt_registry_read(index, &slot) && slot.kind == ELT_WORKER_SNAPSHOT && slot.dboid == MyDatabaseId &&
			!slot.ended && ELT_SNAPSHOT_SOURCE(slot.object_id) == copier.source->source_id)
			count++;
	}
	return Max(count, 1);
}

static void
nap_or_leave(long ms)
{
	if (!elt_worker_nap(ms))
		elt_registry_finish();
}
