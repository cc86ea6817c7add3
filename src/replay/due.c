/*
 * due.c
 *	  Quarantined changes that wait, tried again by the clock.
 *
 * A worker that finds a pipeline's next retry due (in shared memory, which the
 * supervisor keeps in step with the tables) tries what waits, as many changes
 * as a batch has, in a transaction of its own.  For CLAIM_MS others keep off;
 * that is only to save them the trouble, for the lanes are locked in any case
 * (resolve.c).
 *
 * Failure: an error that is not of single changes is logged, and all is tried
 * again BACKOFF_MS later.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/stats.h"
#include "control/worker.h"
#include "guc.h"
#include "pgstat.h"
#include "replay/due.h"
#include "replay/resolve.h"
#include "replication/origin.h"
#include "transform/quarantine.h"
#include "transform/summary.h"
#include "utils/timestamp.h"

#define CLAIM_MS	5000		/* for how long other workers keep off what
								 * one of them tries */
#define AGAIN_MS	1000		/* until what was not free is tried again */
#define BACKOFF_MS	30000		/* after an error that is not of single
								 * changes */

static TimestampTz next_retry(int64 pipeline_id);

void
elt_due_run(EltPipeline *pipeline)
{
	EltResolveFilter filter = {0};
	EltResolve *resolve;
	ErrorData  *error = NULL;
	MemoryContext context = CurrentMemoryContext;
	uint16		origin = elt_worker_mark_writes(InvalidRepOriginId);
	TimestampTz now = elt_clock_now();
	TimestampTz next;
	bool		more = false;
	int			found = 0;

	elt_stats_set_retry_at(pipeline->pipeline_id, TimestampTzPlusMilliseconds(now, CLAIM_MS));
	filter.due = true;
	filter.heads = true;
	filter.max_rows = elt_batch_changes;

	elt_worker_begin_work(pipeline->name);
	MemoryContextSwitchTo(context);
	resolve = elt_resolve_find(pipeline, &filter, true);
	if (resolve != NULL)
	{
		found = elt_resolve_lock(resolve, false, filter.max_rows);
		more = (found == filter.max_rows);
		if (found > 0)
			error = elt_resolve_apply(resolve);
	}
	if (error == NULL)
	{
		next = elt_clock_of(next_retry(pipeline->pipeline_id));
		if (resolve != NULL && elt_resolve_marks_output(resolve))
			elt_worker_mark_writes(DoNotReplicateId);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
		now = elt_clock_now();
		if (next != 0 && next <= now)	/* lanes were not free, or there were
										 * too many */
			next = TimestampTzPlusMilliseconds(now, found == 0 ? CLAIM_MS : more ? 0 : AGAIN_MS);
	}
	else
	{
		AbortCurrentTransaction();
		pgstat_report_activity(STATE_IDLE, NULL);
		MemoryContextSwitchTo(context);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("pipeline \"%s\" could not try its waiting changes again: %s", pipeline->name, elt_summary_for_all(error))));
		next = TimestampTzPlusMilliseconds(elt_clock_now(), BACKOFF_MS);
	}
	elt_worker_mark_writes(origin);
	elt_stats_set_retry_at(pipeline->pipeline_id, next);
}

/* When the next of a pipeline's waiting changes is due; 0: none waits, or only for the pipeline to run again. */
static TimestampTz
next_retry(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	bool		isnull;
	Datum		next;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT min(next_retry_at) FROM elt.quarantine_unresolved WHERE pipeline_id = $1 AND status = 'waiting' "
				"AND next_retry_at < 'infinity'",
				1, types, values, NULL);
	next = elt_spi_datum(&spi, 0, 1, &isnull);
	elt_spi_end(&spi);
	return isnull ? 0 : DatumGetTimestampTz(next);
}

void
elt_due_refresh(void)
{
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT p.pipeline_id, (SELECT min(q.next_retry_at) FROM elt.quarantine_unresolved q "
					   "WHERE q.pipeline_id = p.pipeline_id AND q.status = 'waiting' AND q.next_retry_at < 'infinity') FROM elt.pipelines p", 0, NULL, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		int64		pipeline_id = elt_spi_int64(row, 1);
		bool		isnull;
		Datum		next = elt_spi_datum(&spi, row, 2, &isnull);

		if (!isnull)
			elt_quarantine_note_retry(pipeline_id, DatumGetTimestampTz(next));
	}
	elt_spi_end(&spi);
}
