/*
 * copy.c
 *	  Copies of tables beside the stream: the capture worker's side.
 *
 * A table that waits for a copy is "pending".  Its copy goes like this, beside
 * the stream, which never stops:
 *
 * 1. The capture worker notices it and sets the table's horizon: readers stop
 *	  before the next change_id (elt_copy_look).  A table that was never staged
 *	  has horizon 0 from the start.  The stream goes on staging the table's
 *	  changes; nobody reads them yet.
 *
 * 2. A snapshot worker (snapshot_worker.c) opens a transaction at the source
 *	  whose snapshot is G.  W is the end of WAL a moment later.
 *
 * 3. When the stream has passed W, all that G sees has come through it, since
 *	  a transaction is visible only after its commit record was written.  And
 *	  all of it is on the source's disk, since the stream sends nothing else:
 *	  a crash there takes nothing back that the copy holds.  Now the capture
 *	  worker aligns (elt_copy_align), in one transaction.  It sets change_ids
 *	  [a, b) aside.  Of the rows behind the horizon, what G sees stays before
 *	  the copy where there is history to go on with; in a first copy it is
 *	  deleted, because the copy has it, and nobody may see a row twice.  What
 *	  G does not see moves to ids from b on, in its order, and all that comes
 *	  later gets such ids by itself.  Whether G sees a change is decided by its
 *	  transaction's id and not by LSNs, so there is neither gap nor overlap.
 *	  Rewriting rows is safe because readers are held.  A plan that waits
 *	  when the stream is begun anew is given up: if the source has crashed in
 *	  between, G may tell of transactions that the crash took back, whose ids
 *	  others have now.
 *
 * 4. Snapshot workers copy blocks of the table into [a, b).
 *
 * 5. When all is there, one transaction takes the horizon away (the "seal").
 *	  A copy of a table that had history begins with a truncate, so that
 *	  targets forget what is gone; they see it together with the rows.
 *
 * An update that leaves a large value alone is filled from the row before it
 * (large.c), which the copy may bring only later.  A row that lacks a value
 * behind the horizon marks its table as lacking, under a lock of the table's
 * row that lasts to the commit.  Such a table is sealed by the capture worker
 * (elt_copy_complete): from the first row that lacks one on, it stages what is
 * behind the copy once more, now that the copy is there.  All later rows too,
 * since the order of a key must stay, and they may lack the same value.  It is
 * the only one that stages live rows, so nothing comes in between.
 *
 * In a table that has history such a row is not filled from before the horizon
 * either: why the copy was asked for may be that the history is wrong.  Of
 * these rows, those that G sees are filled from it when the copy is aligned,
 * before the truncate that ends it, the others as above.
 *
 * The same when a copy that was aligned is given up and begun anew: its rows
 * carry xid 0, and the next alignment deletes them.
 *
 * Many tables are copied under one G, a "pass", so that a thousand small ones
 * cost a few snapshots and a few jumps of change_ids (each jump makes every
 * table that is written to begin a new leaf).
 *
 * Transactions that ran when a table was published may have written to it
 * before that; the stream leaves these changes out.  So the snapshot of a
 * table that was just published is taken after they have ended.
 *
 * Between tables the order of change_ids is the order of commits but for one
 * thing: the changes that transactions made to a table while it was aligned
 * come behind what others committed meanwhile to tables that were not.
 *
 * Locking: the row of elt.snapshot_passes is locked first, by who aligns, who
 * sets leaves aside and who ends a pass; then rows of elt.source_tables, then
 * elt.snapshot_chunks, then elt.snapshot_tables.
 */
#include "postgres.h"

#include "capture/copy.h"
#include "capture/partition.h"
#include "capture/snapshot_pass.h"
#include "catalog/pg_type.h"
#include "control/worker.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/tuplestore.h"

#define FETCH_ROWS	1000
#define MOVED_COLUMNS \
	"change_id, xid, commit_lsn, lsn, commit_ts, staged_at, seq, key_hash, schema_version, " \
	"op, relation, key, before, after, unchanged, large"
#define NMOVED		16

/* What is to be aligned. */
typedef struct Pass
{
	char	   *snapshot;		/* G */
	XLogRecPtr	lsn;			/* W */
	TimestampTz taken_at;
	int64		leaves;
} Pass;

/* A table of it. */
typedef struct CopiedTable
{
	char	   *relation;
	Oid			raw;			/* invalid: nothing was staged yet */
	int64		horizon;
	bool		resync;
} CopiedTable;

static void give_up(const char *raw, int64 horizon, bool resync);
static List *read_pass(const EltSource *source, XLogRecPtr passed, Pass *pass);
static void stage_truncate(EltStage *stage, const EltSource *source, const CopiedTable *table, const Pass *pass);
static void move_rows(EltStage *stage, List *tables, const Pass *pass, int64 end);
static void complete_rows(EltStage *stage, const char *relation, const char *raw, int64 from,
						  const char *condition, bool history);
static Tuplestorestate *read_rows(const char *rows, TupleDesc *desc);
static void read_row(const Datum *values, const bool *nulls, EltStagedRow *row);
static const char *rows_to_move(const CopiedTable *table, int64 end);
static void restage_row(EltStage *stage, HeapTuple tuple, TupleDesc desc);
static const char *raw_name(Oid raw);

/* ---- asking for copies ---- */

void
elt_copy_request(int64 source_id, const char *relation)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), relation ? CStringGetTextDatum(relation) : (Datum) 0};
	char		nulls[] = {' ', relation ? ' ' : 'n'};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.source_tables SET state = 'pending', sync_lsn = NULL, sync_snapshot = NULL, "
				"copy_error = NULL, copy_retry_at = NULL, "
				"resync = raw IS NOT NULL AND (horizon IS NULL OR resync), "
				"horizon = CASE WHEN raw IS NULL THEN 0 ELSE horizon END "
				"WHERE source_id = $1 AND relation = coalesce($2, relation) AND state <> 'removed'",
				2, types, values, nulls);
	elt_spi_end(&spi);
	elt_copy_cancel(source_id, relation);
}

void
elt_copy_cancel(int64 source_id, const char *relation)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), relation ? CStringGetTextDatum(relation) : (Datum) 0};
	char		nulls[] = {' ', relation ? ' ' : 'n'};
	EltSpi		spi;

	/* waits for chunks that are at work: for a moment */
	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.snapshot_chunks WHERE source_id = $1 AND relation = coalesce($2, relation)",
				2, types, values, nulls);
	elt_spi_run("DELETE FROM elt.snapshot_tables WHERE source_id = $1 AND relation = coalesce($2, relation)",
				2, types, values, nulls);
	elt_spi_end(&spi);
}

/* ---- noticing ---- */

void
elt_copy_discard_plan(const EltSource *source)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	EltSpi		spi;

	elt_worker_begin_work("giving up copies that were not begun");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT FROM elt.snapshot_passes WHERE source_id = $1 AND phase = 'planned' FOR UPDATE",
					1, types, values, NULL) > 0)
	{
		elt_copy_cancel(source->source_id, NULL);
		elt_spi_run("DELETE FROM elt.snapshot_passes WHERE source_id = $1", 1, types, values, NULL);
		elt_config_changed();
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

XLogRecPtr
elt_copy_look(EltStage *stage, const EltSource *source)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	uint64		rows;
	EltSpi		spi;

	elt_worker_begin_work("looking for tables to copy");
	MemoryContextSwitchTo(context);
	values[0] = Int64GetDatum(source->source_id);
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT FROM elt.source_tables WHERE source_id = $1 AND state = 'pending' AND horizon IS NULL LIMIT 1",
					1, types, values, NULL) > 0)
	{
		values[1] = Int64GetDatum(elt_stage_next_id(stage));
		elt_spi_run("UPDATE elt.source_tables SET horizon = $2 "
					"WHERE source_id = $1 AND state = 'pending' AND horizon IS NULL",
					2, types, values, NULL);
		elt_config_changed();
	}

	rows = elt_spi_run("UPDATE elt.source_tables SET horizon = NULL WHERE source_id = $1 AND state = 'removed' "
					   "AND horizon IS NOT NULL RETURNING raw::oid, resync, "
					   "(SELECT max(h.horizon) FROM elt.source_tables h WHERE h.table_id = source_tables.table_id)",
					   1, types, values, NULL);
	if (rows > 0)
	{
		SPITupleTable *removed = SPI_tuptable;

		for (uint64 row = 0; row < rows; row++)
		{
			bool		isnull;
			Oid			raw = DatumGetObjectId(SPI_getbinval(removed->vals[row], removed->tupdesc, 1, &isnull));
			bool		resync = DatumGetBool(SPI_getbinval(removed->vals[row], removed->tupdesc, 2, &isnull));
			int64		horizon = DatumGetInt64(SPI_getbinval(removed->vals[row], removed->tupdesc, 3, &isnull));

			if (OidIsValid(raw))
				give_up(raw_name(raw), horizon, resync);
		}
	}

	if (elt_spi_run("SELECT lsn FROM elt.snapshot_passes WHERE source_id = $1 AND phase = 'planned'",
					1, types, values, NULL) > 0)
	{
		bool		isnull;

		lsn = DatumGetLSN(elt_spi_datum(&spi, 0, 1, &isnull));
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return lsn;
}

/*
 * The table left the source while it was copied: of its history what stays is
 * what the stream brought; of a table that was copied for the first time that
 * would be changes without what they change.
 */
static void
give_up(const char *raw, int64 horizon, bool resync)
{
	elt_spi_execute(psprintf("DELETE FROM elt_raw.%s WHERE change_id >= " INT64_FORMAT "%s",
							 raw, horizon, resync ? " AND xid = 0" : ""));
}

/* ---- aligning ---- */

void
elt_copy_align(EltStage *stage, const EltSource *source, XLogRecPtr passed)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller_context, "elt alignment", ALLOCSET_DEFAULT_SIZES);
	Oid			types[] = {INT8OID, INT8OID, INT8OID};
	Datum		values[3];
	Pass		pass;
	List	   *tables;
	ListCell   *cell;
	int64		first;
	EltSpi		spi;

	elt_worker_begin_work("aligning a copy");
	MemoryContextSwitchTo(context);
	tables = read_pass(source, passed, &pass);
	if (pass.snapshot != NULL)
	{
		elt_stage_refresh(stage);	/* a truncate that it knows may go */
		foreach(cell, tables)
		{
			CopiedTable *table = lfirst(cell);

			/*
			 * what a copy that was given up left, before its truncate is
			 * staged again
			 */
			if (OidIsValid(table->raw))
			{
				elt_spi_begin(&spi);
				give_up(raw_name(table->raw), table->horizon, true);
				elt_spi_end(&spi);
			}
			else
				table->raw = elt_partition_of_relation(source, table->relation);
			if (table->resync)
			{
				complete_rows(stage, table->relation, raw_name(table->raw), table->horizon,
							  psprintf(" AND xid <> 0 AND elt.xid_is_visible(xid, %s)", quote_literal_cstr(pass.snapshot)), true);
				stage_truncate(stage, source, table, &pass);
			}
		}

		first = elt_stage_reserve_leaves(stage, pass.leaves);
		if (tables != NIL)
			move_rows(stage, tables, &pass, first * source->partition_changes);
		elt_stage_finish(stage);
		elt_stage_refresh(stage);

		values[0] = Int64GetDatum(source->source_id);
		values[1] = Int64GetDatum(first);
		values[2] = Int64GetDatum(first + pass.leaves);
		elt_spi_begin(&spi);
		elt_spi_run("UPDATE elt.snapshot_passes SET phase = 'copying', next_leaf = $2, end_leaf = $3 WHERE source_id = $1",
					3, types, values, NULL);
		elt_spi_end(&spi);
		elt_config_changed();
	}
	elt_worker_commit();
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(context);
}

/*
 * The pass that waits, locked, and its tables.  snapshot is NULL where none
 * does any more, or only a younger one than was seen, whose position was not
 * passed yet.
 */
static List *
read_pass(const EltSource *source, XLogRecPtr passed, Pass *pass)
{
	Oid			types[] = {INT8OID, LSNOID};
	Datum		values[] = {Int64GetDatum(source->source_id), LSNGetDatum(passed)};
	List	   *tables = NIL;
	uint64		rows;
	bool		isnull;
	EltSpi		spi;

	memset(pass, 0, sizeof(Pass));
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT snapshot::text, lsn, taken_at, leaves FROM elt.snapshot_passes "
					"WHERE source_id = $1 AND phase = 'planned' AND lsn <= $2 FOR UPDATE", 2, types, values, NULL) > 0)
	{
		pass->snapshot = elt_spi_text(&spi, 0, 1);
		pass->lsn = DatumGetLSN(elt_spi_datum(&spi, 0, 2, &isnull));
		pass->taken_at = DatumGetTimestampTz(elt_spi_datum(&spi, 0, 3, &isnull));
		pass->leaves = elt_spi_int64(0, 4);

		rows = elt_spi_run("SELECT c.relation, t.raw::oid, t.horizon, t.resync FROM elt.snapshot_tables c "
						   "JOIN elt.source_tables t USING (source_id, relation) WHERE c.source_id = $1 "
						   "ORDER BY t.table_id", 1, types, values, NULL);
		for (uint64 row = 0; row < rows; row++)
		{
			MemoryContext old = MemoryContextSwitchTo(spi.caller_context);
			CopiedTable *table = palloc(sizeof(CopiedTable));

			tables = lappend(tables, table);
			MemoryContextSwitchTo(old);
			table->relation = elt_spi_text(&spi, row, 1);
			table->raw = (Oid) elt_spi_int64(row, 2);
			table->horizon = elt_spi_int64(row, 3);
			table->resync = elt_spi_bool(row, 4);
		}
	}
	elt_spi_end(&spi);
	return tables;
}

/* The copy's first row: what was there before is gone. */
static void
stage_truncate(EltStage *stage, const EltSource *source, const CopiedTable *table, const Pass *pass)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(table->relation)};
	EltStagedRow row = {0};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT coalesce(max(version), 0) FROM elt.schema_versions WHERE source_id = $1 AND relation = $2",
				2, types, values, NULL);
	row.schema_version = (int32) elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	row.op = ELT_OP_TRUNCATE;
	row.commit_lsn = row.lsn = pass->lsn;
	row.commit_ts = pass->taken_at;
	row.staged_at = GetCurrentTimestamp();
	elt_stage_restage(stage, table->relation, &row);
}

/*
 * Of the rows behind the tables' horizons and before "end", stages those that
 * the snapshot does not see once more, behind the copy, and deletes them here;
 * in a first copy, those too that it sees.  All tables together: so the order
 * of commits holds between them too.
 */
static void
move_rows(EltStage *stage, List *tables, const Pass *pass, int64 end)
{
	const char *snapshot = quote_literal_cstr(pass->snapshot);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "elt moved rows", ALLOCSET_DEFAULT_SIZES);
	StringInfoData command;
	Portal		portal;
	ListCell   *cell;
	EltSpi		spi;

	initStringInfo(&command);
	foreach(cell, tables)
		appendStringInfo(&command,
						 "%sSELECT " MOVED_COLUMNS " %s AND NOT elt.xid_is_visible(xid, %s)",
						 foreach_current_index(cell) > 0 ? " UNION ALL " : "", rows_to_move(lfirst(cell), end), snapshot);
	appendStringInfoString(&command, " ORDER BY change_id");

	elt_spi_begin(&spi);
	portal = SPI_cursor_open_with_args(NULL, command.data, 0, NULL, NULL, NULL, true, CURSOR_OPT_NO_SCROLL);
	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(context);
		for (uint64 i = 0; i < SPI_processed; i++)
			restage_row(stage, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	foreach(cell, tables)
	{
		CopiedTable *table = lfirst(cell);

		elt_spi_execute(psprintf("DELETE %s%s", rows_to_move(table, end),
								 table->resync ? psprintf(" AND NOT elt.xid_is_visible(xid, %s)", snapshot) : ""));
	}
	elt_spi_end(&spi);
	MemoryContextDelete(context);
}

/* What the stream brought of a table behind its horizon. */
static const char *
rows_to_move(const CopiedTable *table, int64 end)
{
	return psprintf("FROM elt_raw.%s WHERE change_id >= " INT64_FORMAT " AND change_id < " INT64_FORMAT " AND xid <> 0",
					raw_name(table->raw), table->horizon, end);
}

static void
restage_row(EltStage *stage, HeapTuple tuple, TupleDesc desc)
{
	EltStagedRow row;
	Datum		values[NMOVED];
	bool		nulls[NMOVED];

	heap_deform_tuple(tuple, desc, values, nulls);
	read_row(values, nulls, &row);
	elt_stage_restage(stage, TextDatumGetCString(values[10]), &row);
}

/* From MOVED_COLUMNS. */
static void
read_row(const Datum *values, const bool *nulls, EltStagedRow *result)
{
	EltStagedRow row;

	row.xid = (TransactionId) DatumGetInt64(values[1]);
	row.commit_lsn = DatumGetLSN(values[2]);
	row.lsn = DatumGetLSN(values[3]);
	row.commit_ts = DatumGetTimestampTz(values[4]);
	row.staged_at = DatumGetTimestampTz(values[5]);
	row.seq = DatumGetInt32(values[6]);
	row.key_hash = DatumGetInt32(values[7]);
	row.schema_version = DatumGetInt32(values[8]);
	row.op = DatumGetChar(values[9]);
	row.key = nulls[11] ? NULL : DatumGetJsonbP(values[11]);
	row.before = nulls[12] ? NULL : DatumGetJsonbP(values[12]);
	row.after = nulls[13] ? NULL : DatumGetJsonbP(values[13]);
	row.unchanged = nulls[14] ? NULL : DatumGetArrayTypeP(values[14]);
	row.large = nulls[15] ? NULL : DatumGetArrayTypeP(values[15]);
	*result = row;
}

/* ---- completing ---- */

void
elt_copy_complete(EltStage *stage, const EltSource *source)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller_context, "elt completion", ALLOCSET_DEFAULT_SIZES);
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	SPITupleTable *tables;
	uint64		ntables;
	bool		sealed = false;
	EltSpi		spi;

	elt_worker_begin_work("completing a copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT FROM elt.source_tables WHERE source_id = $1 AND lacking LIMIT 1", 1, types, values, NULL) > 0)
	{
		elt_spi_run("SELECT FROM elt.snapshot_passes WHERE source_id = $1 FOR UPDATE", 1, types, values, NULL);
		ntables = elt_spi_run("UPDATE elt.source_tables t SET lacking = false FROM elt.snapshot_passes p JOIN elt.snapshot_tables c USING (source_id) "
							  "WHERE p.source_id = $1 AND p.phase = 'copying' AND t.source_id = $1 AND t.relation = c.relation "
							  "AND t.state = 'pending' AND t.lacking AND t.raw IS NOT NULL AND NOT EXISTS "
							  "(SELECT FROM elt.snapshot_chunks k WHERE k.source_id = $1 AND k.relation = c.relation) "
							  "RETURNING t.relation, t.raw::oid, p.end_leaf", 1, types, values, NULL);
		tables = SPI_tuptable;
		for (uint64 i = 0; i < ntables; i++)
		{
			bool		isnull;
			char	   *relation = SPI_getvalue(tables->vals[i], tables->tupdesc, 1);
			Oid			raw = DatumGetObjectId(SPI_getbinval(tables->vals[i], tables->tupdesc, 2, &isnull));
			int64		end_leaf = DatumGetInt64(SPI_getbinval(tables->vals[i], tables->tupdesc, 3, &isnull));

			complete_rows(stage, relation, raw_name(raw), end_leaf * source->partition_changes, "", false);
		}
		elt_stage_finish(stage);

		/* what nobody has staged, also with the copy, marked them again */
		if (ntables > 0)
		{
			for (uint64 i = 0; i < ntables; i++)
			{
				Oid			table_types[] = {INT8OID, TEXTOID};
				Datum		table_values[] = {values[0], CStringGetTextDatum(SPI_getvalue(tables->vals[i], tables->tupdesc, 1))};

				elt_spi_run("UPDATE elt.source_tables SET lacking = false WHERE source_id = $1 AND relation = $2 AND lacking",
							2, table_types, table_values, NULL);
			}
			sealed = elt_pass_seal_tables(source);
		}
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(context);
	if (sealed)
		elt_registry_wake_transform(MyDatabaseId);
}

/*
 * Stages rows from a change_id on once more, those that meet a condition, from
 * the first on that lacks a value.
 */
static void
complete_rows(EltStage *stage, const char *relation, const char *raw, int64 from,
			  const char *condition, bool history)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "elt completed rows", ALLOCSET_DEFAULT_SIZES);
	MemoryContext moved_context = AllocSetContextCreate(CurrentMemoryContext, "elt completed row", ALLOCSET_DEFAULT_SIZES);
	EltStagedRow moved;
	bool		waits = false;
	bool		isnull;
	Datum		first;
	EltSpi		spi;

	elt_spi_begin(&spi);
	/* and the row before it: a delete may be the other half of its change */
	elt_spi_execute(psprintf("WITH f AS (SELECT min(change_id) AS id FROM elt_raw.%s WHERE change_id >= " INT64_FORMAT
							 " AND unchanged IS NOT NULL%s) SELECT coalesce((SELECT max(r.change_id) FROM elt_raw.%s r, f "
							 "WHERE r.change_id >= " INT64_FORMAT " AND r.change_id < f.id%s), f.id) FROM f",
							 raw, from, condition, raw, from, condition));
	first = elt_spi_datum(&spi, 0, 1, &isnull);
	if (!isnull)
	{
		char	   *rows = psprintf("FROM elt_raw.%s WHERE change_id >= " INT64_FORMAT "%s", raw, DatumGetInt64(first), condition);
		TupleDesc	desc;
		Tuplestorestate *store = read_rows(rows, &desc);
		TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
		TupleTableSlot *moved_slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

		elt_spi_execute(psprintf("DELETE %s", rows));
		while (tuplestore_gettupleslot(store, true, false, slot))
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			EltStagedRow row;
			bool		same_change;

			slot_getallattrs(slot);
			read_row(slot->tts_values, slot->tts_isnull, &row);
			same_change = waits && row.op == ELT_OP_INSERT && row.xid == moved.xid && row.lsn == moved.lsn;
			if (waits && !same_change)
				elt_stage_restage(stage, relation, &moved);
			if (row.unchanged != NULL)
				elt_stage_complete(stage, relation, &row,
								   same_change ? moved.key_hash : row.key_hash,
								   same_change ? moved.key : row.key, history);
			if (same_change)
				elt_stage_restage(stage, relation, &moved);

			/*
			 * where the next row is this one under another key, its values
			 * are looked for before the delete is staged
			 */
			waits = row.op == ELT_OP_DELETE;
			if (waits)
			{
				MemoryContextReset(moved_context);
				MemoryContextSwitchTo(moved_context);
				ExecCopySlot(moved_slot, slot);
				slot_getallattrs(moved_slot);
				read_row(moved_slot->tts_values, moved_slot->tts_isnull, &moved);
			}
			else
				elt_stage_restage(stage, relation, &row);
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
			CHECK_FOR_INTERRUPTS();
		}
		if (waits)
			elt_stage_restage(stage, relation, &moved);
		ExecDropSingleTupleTableSlot(moved_slot);
		ExecDropSingleTupleTableSlot(slot);
		tuplestore_end(store);
	}
	elt_spi_end(&spi);
	MemoryContextDelete(moved_context);
	MemoryContextDelete(context);
}

/*
 * Reads MOVED_COLUMNS of rows in their order.  No cursor stays open: a leaf
 * that one has open cannot get an index.
 */
static Tuplestorestate *
read_rows(const char *rows, TupleDesc *desc)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	Portal		portal = SPI_cursor_open_with_args(NULL, psprintf("SELECT " MOVED_COLUMNS " %s ORDER BY change_id", rows),
												   0, NULL, NULL, NULL, true, CURSOR_OPT_NO_SCROLL);

	*desc = CreateTupleDescCopy(portal->tupDesc);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
			tuplestore_puttuple(store, SPI_tuptable->vals[i]);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	return store;
}

static const char *
raw_name(Oid raw)
{
	char	   *name = get_rel_name(raw);

	if (name == NULL)
		elog(ERROR, "cache lookup failed for relation %u", raw);
	return quote_identifier(name);
}
