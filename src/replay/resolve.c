/*
 * resolve.c
 *	  Tries quarantined changes again, or gives them up.
 *
 * A quarantined change has all that raw staging had of it, so it is made into
 * a row of a window again and goes the way of any other (isolate.c).  What
 * fails again stays in its row of elt.quarantine, with the new error.
 *
 * Order per key:
 *
 *	strict		only the oldest unresolved change of a key is tried, since
 *				nothing newer of the key can have been applied: it is parked.
 *				Where it is resolved, what is parked behind it follows in its
 *				order, until the next failure
 *	supersede,	newer changes of the key may have been applied.  For an upsert
 *	unordered	the log is looked through from the oldest candidate to where
 *				its lane stands, and a change that has a newer one is
 *				superseded: nothing is overwritten
 *
 * Truncates supersede what was before them when they are applied (batch.c),
 * unless the order is unordered: then they are looked for in the log too.
 *
 * Locking: whoever holds a lane owns the order of its keys.  So the lanes of
 * the candidates are locked, in ascending order, before they are looked at;
 * they are looked for before that only to know their lanes.  Workers skip
 * lanes that are locked and never wait for one, so there is no deadlock over
 * them.  Then the target is held, as for a batch.  Two replays side by side
 * are one after the other: the second finds what the first has left.
 *
 * Failure: all is one transaction, of the caller or of a worker.  An error
 * that is not of single changes is for the whole of it.
 */
#include "postgres.h"

#include "access/table.h"
#include "capture/change.h"
#include "catalog/pg_type.h"
#include "control/worker.h"
#include "executor/tuptable.h"
#include "guc.h"
#include "miscadmin.h"
#include "replay/newer.h"
#include "replay/resolve.h"
#include "replication/origin.h"
#include "transform/batch.h"
#include "transform/isolate.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define MANY		1000		/* candidates, to look at before the lanes are
								 * locked */

typedef struct Candidate
{
	EltLogRow	row;			/* must be first; without a tuple */
	int64		bytes;
	int			place;			/* in outcomes */
} Candidate;

/* What is to be told of a change that was there once the lanes were locked. */
typedef struct Outcome
{
	int64		quarantine_id;
	bool		replayed;		/* false: the table says what became of it */
} Outcome;

struct EltResolve
{
	EltPipeline *pipeline;
	EltResolveFilter filter;
	EltPipelineOptions options;
	EltPipelineStatus status;
	bool		own_transaction;
	Candidate  *candidates;		/* in order of change_id */
	int			ncandidates;
	Outcome    *outcomes;		/* in order of change_id, too */
	int			noutcomes;
	bool		held[ELT_MAX_LANES];
	int64		positions[ELT_MAX_LANES];
	int64		position;		/* the highest of them */
};

static void select_candidates(EltResolve *resolve, int limit);
static void prepare_outcomes(EltResolve *resolve);
static void put_replayed(const Outcome *outcome, Tuplestorestate *store, TupleDesc desc);
static void note_replayed(EltResolve *resolve, const Candidate *candidates, int ncandidates, EltLogRow **rows, int nrows);
static ErrorData *hold_target(EltResolve *resolve);
static ErrorData *apply_all(EltResolve *resolve);
static ErrorData *apply_window(EltResolve *resolve, TupleTableSlot *slot, Candidate *candidates, int n);
static EltLogRow **load_rows(TupleTableSlot *slot, const Candidate *candidates, int *n);
static ErrorData *apply_rows(EltResolve *resolve, TupleDesc desc, EltLogRow **rows, int nrows, bool behind);
static ErrorData *drain(EltResolve *resolve, EltLogRow **rows, int nrows);
static int	end_of_commits(EltLogRow **rows, int nrows);
static void leave_out_superseded(EltResolve *resolve);
static bool is_upsert_without_parking(const EltResolve *resolve);
static const char *resolver(const EltResolve *resolve);

/* ---- which changes ---- */

EltResolve *
elt_resolve_find(EltPipeline *pipeline, const EltResolveFilter *filter, bool own_transaction)
{
	EltResolve *resolve = palloc0(sizeof(EltResolve));

	resolve->pipeline = pipeline;
	resolve->filter = *filter;
	resolve->own_transaction = own_transaction;

	/*
	 * whether there are many is seen without looking for the oldest of each
	 * key
	 */
	resolve->filter.heads = filter->heads && filter->max_rows < MANY;
	select_candidates(resolve, Min(filter->max_rows, MANY));
	if (resolve->filter.heads != filter->heads)
	{
		resolve->filter.heads = true;
		if (resolve->ncandidates < MANY)
			select_candidates(resolve, MANY);
	}
	return resolve->ncandidates > 0 ? resolve : NULL;
}

int
elt_resolve_count(const EltResolve *resolve)
{
	return resolve->ncandidates;
}

bool
elt_resolve_marks_output(const EltResolve *resolve)
{
	return !resolve->options.unmarked_output;
}

int
elt_resolve_lock(EltResolve *resolve, bool wait, int max_rows)
{
	bool		wanted[ELT_MAX_LANES] = {false};
	int			mask = resolve->pipeline->lanes - 1;
	int			n = 0;

	/* many are of all lanes, or nearly so */
	for (int lane = 0; lane <= mask; lane++)
		wanted[lane] = resolve->ncandidates >= MANY;
	for (int i = 0; i < resolve->ncandidates; i++)
		wanted[resolve->candidates[i].row.key_hash & mask] = true;
	resolve->position = elt_checkpoint_lock(resolve->pipeline->pipeline_id, wanted, wait,
											resolve->held, resolve->positions);

	/* as it stands now that nobody else is at it */
	resolve->pipeline = elt_catalog_pipeline(resolve->pipeline->name, true);
	if (resolve->pipeline == NULL ||
		!elt_pipeline_status(resolve->pipeline, &resolve->status))
		resolve->ncandidates = 0;
	else
	{
		resolve->pipeline->late = resolve->pipeline->history;
		elt_options_read(resolve->pipeline->options, resolve->pipeline->append, &resolve->options);
		select_candidates(resolve, max_rows);
	}
	for (int i = 0; i < resolve->ncandidates; i++)
	{
		if (resolve->held[resolve->candidates[i].row.key_hash & mask])
			resolve->candidates[n++] = resolve->candidates[i];
	}
	resolve->ncandidates = n;
	prepare_outcomes(resolve);
	return n;
}

static void
select_candidates(EltResolve *resolve, int limit)
{
	const EltResolveFilter *filter = &resolve->filter;
	Oid			types[] = {INT8OID, INT8ARRAYOID, TEXTOID, TEXTOID, JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	BOOLOID, BOOLOID, INT4OID};
	Datum		values[] = {Int64GetDatum(resolve->pipeline->pipeline_id), filter->ids, filter->sqlstate, filter->fingerprint,
		filter->key, filter->from_time, filter->to_time, BoolGetDatum(filter->due),
	BoolGetDatum(filter->heads && resolve->pipeline->ordering == 's'), Int32GetDatum(limit)};
	char		nulls[] = "          ";
	uint64		rows;
	EltSpi		spi;

	for (int i = 1; i <= 4; i++)
		nulls[i] = values[i] != 0 ? ' ' : 'n';
	nulls[5] = filter->has_from_time ? ' ' : 'n';
	nulls[6] = filter->has_to_time ? ' ' : 'n';

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT q.quarantine_id, q.change_id, q.key_hash, q.schema_version, q.bytes, q.key, q.ctid FROM elt.quarantine_unresolved q "
					   "WHERE q.pipeline_id = $1 "
					   "AND ($2 IS NULL OR q.quarantine_id = ANY ($2)) "
					   "AND ($3 IS NULL OR q.sqlstate = $3) AND ($4 IS NULL OR q.fingerprint = $4) "
					   "AND ($5 IS NULL OR q.key = $5) "
					   "AND ($6 IS NULL OR q.first_failed_at >= $6) AND ($7 IS NULL OR q.first_failed_at < $7) "
					   "AND (NOT $8 OR (q.status = 'waiting' AND q.next_retry_at <= clock_timestamp())) "
					   "AND (NOT $9 OR q.key_hash NOT IN (SELECT d.key_hash FROM elt.quarantine_unresolved d WHERE d.pipeline_id = $1 "
					   "GROUP BY d.key_hash HAVING count(*) > 1) "
					   "OR NOT EXISTS (SELECT FROM elt.quarantine_unresolved o WHERE o.pipeline_id = $1 "
					   "AND o.key_hash = q.key_hash AND o.key IS NOT DISTINCT FROM q.key "
					   "AND (o.change_id, o.quarantine_id) < (q.change_id, q.quarantine_id))) "
					   "ORDER BY q.change_id, q.quarantine_id LIMIT $10", lengthof(types), types, values, nulls);
	resolve->ncandidates = (int) rows;
	resolve->candidates = MemoryContextAllocExtended(spi.caller_context, Max(rows, 1) * sizeof(Candidate),
													 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (uint64 i = 0; i < rows; i++)
	{
		Candidate  *candidate = &resolve->candidates[i];
		bool		isnull;

		candidate->row.quarantine_id = elt_spi_int64(i, 1);
		candidate->row.change_id = elt_spi_int64(i, 2);
		candidate->row.key_hash = (int32) elt_spi_int64(i, 3);
		candidate->row.schema_version = (int32) elt_spi_int64(i, 4);
		candidate->bytes = elt_spi_int64(i, 5);
		candidate->row.key = elt_spi_datum(&spi, i, 6, &isnull);
		candidate->row.place = *(ItemPointer) DatumGetPointer(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 7, &isnull));
	}
	elt_spi_end(&spi);
}

/* ---- apply and discard ---- */

ErrorData *
elt_resolve_apply(EltResolve *resolve)
{
	uint16		origin = elt_worker_mark_writes(DoNotReplicateId);
	ErrorData  *volatile error = NULL;

	elt_batch_set_at_work(true);
	PG_TRY();
	{
		error = apply_all(resolve);
	}
	PG_FINALLY();
	{
		elt_batch_set_at_work(false);
		elt_worker_mark_writes(origin);
	}
	PG_END_TRY();
	return error;
}

ErrorData *
elt_resolve_discard(EltResolve *resolve, const char *reason, int64 *discarded)
{
	uint16		origin = elt_worker_mark_writes(DoNotReplicateId);
	EltLogRow **rows = palloc_extended(Max(resolve->ncandidates, 1) * sizeof(EltLogRow *), MCXT_ALLOC_HUGE);
	ErrorData  *volatile error = NULL;

	for (int i = 0; i < resolve->ncandidates; i++)
		rows[i] = &resolve->candidates[i].row;
	elt_batch_set_at_work(true);
	PG_TRY();
	{
		*discarded = elt_quarantine_resolve(rows, resolve->ncandidates, "discarded", resolver(resolve), reason);
		error = hold_target(resolve);
		if (error == NULL)
			error = drain(resolve, rows, resolve->ncandidates);
	}
	PG_FINALLY();
	{
		elt_batch_set_at_work(false);
		elt_worker_mark_writes(origin);
	}
	PG_END_TRY();
	return error;
}

static ErrorData *
hold_target(EltResolve *resolve)
{
	EltWork    *work = palloc0(sizeof(EltWork));

	work->pipeline = resolve->pipeline;
	work->options = resolve->options;
	work->own_transaction = resolve->own_transaction;
	return elt_isolate_try(work, elt_batch_hold_target);
}

/* Takes as many candidates at a time as a batch would. */
static ErrorData *
apply_all(EltResolve *resolve)
{
	int			configured = resolve->options.batch_changes ? resolve->options.batch_changes : elt_batch_changes;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "elt resolve window", ALLOCSET_DEFAULT_SIZES);
	ErrorData  *error = hold_target(resolve);
	Relation	raw;
	TupleTableSlot *slot;

	if (error != NULL)
		return error;
	leave_out_superseded(resolve);
	raw = table_open(resolve->pipeline->raw_root, AccessShareLock);
	slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(raw)), &TTSOpsMinimalTuple);
	table_close(raw, NoLock);

	for (int start = 0; start < resolve->ncandidates && error == NULL;)
	{
		Candidate  *first = &resolve->candidates[start];
		int64		bytes = first->bytes;
		int			n = 1;

		while (start + n < resolve->ncandidates && n < configured &&
			   bytes + first[n].bytes <= elt_batch_bytes_kb * (int64) 1024)
			bytes += first[n++].bytes;
		MemoryContextSwitchTo(context);
		error = apply_window(resolve, slot, first, n);
		MemoryContextSwitchTo(caller);
		if (error == NULL)
			MemoryContextReset(context);
		start += n;
	}
	ExecDropSingleTupleTableSlot(slot);
	return error;
}

static ErrorData *
apply_window(EltResolve *resolve, TupleTableSlot *slot, Candidate *candidates, int n)
{
	int			nrows = n;
	EltLogRow **rows = load_rows(slot, candidates, &nrows);
	int			npassed = 0;
	ErrorData  *error;

	CHECK_FOR_INTERRUPTS();
	error = apply_rows(resolve, slot->tts_tupleDescriptor, rows, nrows, false);
	if (error != NULL)
		return error;
	for (int i = 0; i < nrows; i++)
	{
		if (!rows[i]->failed)
			rows[npassed++] = rows[i];
	}
	if (npassed == 0)
		return NULL;
	if (is_upsert_without_parking(resolve))
		elt_quarantine_supersede(resolve->pipeline, rows, npassed);
	if (elt_quarantine_resolve(rows, npassed, "replayed", resolver(resolve), NULL) == npassed)
		note_replayed(resolve, candidates, n, rows, npassed);
	return drain(resolve, rows, npassed);
}

/* The quarantined changes as rows of raw staging, patched where they are. */
static EltLogRow **
load_rows(TupleTableSlot *slot, const Candidate *candidates, int *n)
{
	Oid			types[] = {INT8ARRAYOID};
	Datum		values[1];
	Datum	   *ids = palloc(*n * sizeof(Datum));
	int			at = 0;
	EltLogRow **rows;
	EltSpi		spi;

	for (int i = 0; i < *n; i++)
		ids[i] = Int64GetDatum(candidates[i].row.quarantine_id);
	values[0] = PointerGetDatum(construct_array(ids, *n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));

	/*
	 * One by one, in the order of the candidates: that needs no sort, which
	 * records of such a width would go to disk for
	 */
	elt_spi_begin(&spi);
	elt_spi_use_indexes();
	*n = (int) elt_spi_run("SELECT q.* FROM unnest($1) AS a (id) CROSS JOIN LATERAL ("
						   "SELECT q.change_id, q.commit_lsn, q.lsn, q.xid, q.commit_ts, q.staged_at, q.seq, q.key_hash, "
						   "q.schema_version, q.op, q.relation, q.key, "
						   "CASE WHEN q.op = 'd' THEN coalesce(q.patched_record, q.before) ELSE q.before END, "
						   "CASE WHEN q.op <> 'd' THEN coalesce(q.patched_record, q.record) END, "
						   "CASE WHEN q.patched_record IS NULL THEN q.unchanged ELSE "
						   "(SELECT array_agg(u.name) FROM unnest(q.unchanged) AS u (name) WHERE NOT q.patched_record ? u.name) END, "
						   "NULL::text[], q.quarantine_id FROM elt.quarantine_records q WHERE q.quarantine_id = a.id OFFSET 0) AS q", 1, types, values, NULL);
	MemoryContextSwitchTo(spi.caller_context);
	rows = palloc(Max(*n, 1) * sizeof(EltLogRow *));
	for (int i = 0; i < *n; i++)
	{
		Datum		columns[ELT_RAW_NCOLUMNS + 1];
		bool		nulls[ELT_RAW_NCOLUMNS + 1];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, columns, nulls);
		rows[i] = elt_log_form(slot, columns, nulls);
		rows[i]->quarantine_id = DatumGetInt64(columns[ELT_RAW_NCOLUMNS]);
		while (candidates[at].row.quarantine_id != rows[i]->quarantine_id)
			at++;
		rows[i]->place = candidates[at].row.place;
	}
	ExecClearTuple(slot);
	elt_spi_end(&spi);
	return rows;
}

/*
 * Applies rows in the order of change_id.  behind: other changes of their keys
 * may be unresolved, so that they may be parked.  By name, all of one window
 * have the same columns at the source.
 */
static ErrorData *
apply_rows(EltResolve *resolve, TupleDesc desc, EltLogRow **rows, int nrows, bool behind)
{
	for (int start = 0; start < nrows;)
	{
		EltWork    *work = palloc0(sizeof(EltWork));
		EltLogWindow *window = palloc0(sizeof(EltLogWindow));
		int			n = 1;

		while (start + n < nrows &&
			   (resolve->pipeline->transform != NULL || rows[start + n]->schema_version == rows[start]->schema_version))
			n++;
		window->desc = desc;
		window->rows = rows + start;
		window->nrows = n;
		work->pipeline = resolve->pipeline;
		work->options = resolve->options;

		/*
		 * these are no flood: the breaker would only keep them from being
		 * tried
		 */
		work->options.breaker = false;
		work->status = resolve->status;
		work->status.unresolved = behind;
		work->own_transaction = resolve->own_transaction;
		work->window = window;
		work->after = resolve->position;
		while (work->settled < n)
		{
			CHECK_FOR_INTERRUPTS();
			work->subtransactions = 0;
			if (!elt_isolate_apply(work))
				return work->error;
		}
		start += n;
	}
	return NULL;
}

/* Applies what is parked behind the keys of these rows; what fails holds up the rest of its key again. */
static ErrorData *
drain(EltResolve *resolve, EltLogRow **rows, int nrows)
{
	const char *topic = elt_pipeline_topic(resolve->pipeline);
	int64	   *change_ids;
	int			n;

	if (resolve->pipeline->ordering != 's' || nrows == 0)
		return NULL;
	n = elt_quarantine_unpark(resolve->pipeline, rows, nrows, &change_ids);
	for (int start = 0, found; start < n; start += found)
	{
		int			count = Min(n - start, elt_batch_changes);
		EltLogRow **parked = palloc(count * sizeof(EltLogRow *));
		TupleDesc	desc;
		ErrorData  *error;

		PushActiveSnapshot(GetTransactionSnapshot());
		found = elt_log_fetch(resolve->status.raw, topic, change_ids + start, count,
							  elt_batch_bytes_kb * (int64) 1024, parked, &desc);
		PopActiveSnapshot();
		if (resolve->pipeline->history && start + found < n)
			found = end_of_commits(parked, found);
		if (found == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("change %lld, which pipeline \"%s\" has parked, is not in raw staging",
							(long long) change_ids[start], resolve->pipeline->name),
					 errhint("Restore the partition of elt_raw.%s that held it.", quote_identifier(resolve->pipeline->source))));
		error = apply_rows(resolve, desc, parked, found, true);
		if (error != NULL)
			return error;
	}
	return NULL;
}

/* Of a transaction a history shows the end: one that may go on is left for later, if there is another before it. */
static int
end_of_commits(EltLogRow **rows, int nrows)
{
	int			end = nrows;

	while (end > 0 && rows[end - 1]->commit_lsn == rows[nrows - 1]->commit_lsn)
		end--;
	return end > 0 ? end : nrows;
}

/* ---- what has been superseded meanwhile ---- */

/* Marks the candidates that have a newer change which was applied, and leaves them out. */
static void
leave_out_superseded(EltResolve *resolve)
{
	EltNewerSearch search = {resolve->pipeline, &resolve->options, resolve->status.raw, resolve->positions, resolve->position};
	EltNewer   *newer;
	int			n = 0;

	search.changes = is_upsert_without_parking(resolve);
	search.truncates = resolve->options.apply_truncate && resolve->pipeline->ordering == 'u';
	if (resolve->ncandidates == 0 || !(search.changes || search.truncates))
		return;
	search.nrows = resolve->ncandidates;
	search.rows = palloc_extended(search.nrows * sizeof(EltLogRow *), MCXT_ALLOC_HUGE);
	for (int i = 0; i < search.nrows; i++)
		search.rows[i] = &resolve->candidates[i].row;
	newer = elt_newer_find(&search);

	for (int i = 0; i < resolve->ncandidates; i++)
	{
		if (newer[i].change_id != 0)
			elt_quarantine_resolve(&search.rows[i], 1, "superseded", "elt",
								   psprintf("superseded by %schange %lld", newer[i].truncate ? "truncate, " : "",
											(long long) newer[i].change_id));
		else
			resolve->candidates[n++] = resolve->candidates[i];
	}
	resolve->ncandidates = n;
}

/* Whether an older change could overwrite a newer one. */
static bool
is_upsert_without_parking(const EltResolve *resolve)
{
	return !resolve->pipeline->append && resolve->pipeline->ordering != 's';
}

/* ---- outcomes ---- */

static const char *
resolver(const EltResolve *resolve)
{
	return resolve->own_transaction ? "elt" : GetUserNameFromId(GetSessionUserId(), false);
}

static void
prepare_outcomes(EltResolve *resolve)
{
	resolve->noutcomes = resolve->ncandidates;
	resolve->outcomes = palloc_extended(Max(resolve->noutcomes, 1) * sizeof(Outcome), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < resolve->noutcomes; i++)
	{
		resolve->candidates[i].place = i;
		resolve->outcomes[i].quarantine_id = resolve->candidates[i].row.quarantine_id;
	}
}

/* The rows are of these candidates, in the same order. */
static void
note_replayed(EltResolve *resolve, const Candidate *candidates, int ncandidates, EltLogRow **rows, int nrows)
{
	for (int i = 0, row = 0; i < ncandidates && row < nrows; i++)
	{
		if (candidates[i].row.quarantine_id == rows[row]->quarantine_id)
		{
			resolve->outcomes[candidates[i].place].replayed = true;
			row++;
		}
	}
}

static void
put_replayed(const Outcome *outcome, Tuplestorestate *store, TupleDesc desc)
{
	Datum		values[] = {Int64GetDatum(outcome->quarantine_id), (Datum) 0, (Datum) 0};
	bool		nulls[] = {false, false, true};
	text	   *replayed;

	if (!outcome->replayed)
		return;
	replayed = cstring_to_text("replayed");
	values[1] = PointerGetDatum(replayed);
	tuplestore_putvalues(store, desc, values, nulls);
	pfree(replayed);
}

/* What was replayed is known, and not looked up. */
void
elt_resolve_put_outcomes(EltResolve *resolve, Tuplestorestate *store, TupleDesc desc)
{
	Oid			types[] = {INT8ARRAYOID};
	Datum		values[1];
	Datum	   *ids = palloc_extended(Max(resolve->noutcomes, 1) * sizeof(Datum), MCXT_ALLOC_HUGE);
	int			n = 0;
	int			next = 0;
	uint64		rows;
	EltSpi		spi;

	for (int i = 0; i < resolve->noutcomes; i++)
	{
		if (!resolve->outcomes[i].replayed)
			ids[n++] = Int64GetDatum(resolve->outcomes[i].quarantine_id);
	}
	values[0] = PointerGetDatum(construct_array(ids, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT q.quarantine_id, coalesce(s.status, 'failed'), CASE WHEN s.status IS NULL THEN q.message END "
					   "FROM unnest($1) AS a (id) JOIN elt.quarantine_records q ON q.quarantine_id = a.id "
					   "LEFT JOIN elt.quarantine_resolved s ON s.quarantine_id = a.id ORDER BY q.change_id, q.quarantine_id", 1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		Datum		columns[3];
		bool		nulls[3];

		heap_deform_tuple(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, columns, nulls);
		while (next < resolve->noutcomes && resolve->outcomes[next].quarantine_id != DatumGetInt64(columns[0]))
			put_replayed(&resolve->outcomes[next++], store, desc);
		next++;
		tuplestore_putvalues(store, desc, columns, nulls);
	}
	while (next < resolve->noutcomes)
		put_replayed(&resolve->outcomes[next++], store, desc);
	elt_spi_end(&spi);
}
