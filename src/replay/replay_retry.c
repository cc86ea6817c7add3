/*
 * replay_retry.c
 *	  The end of a replay: changes that were quarantined before it began.
 *
 * Those that the replay selects are tried again, as by elt.replay_quarantine,
 * with what is parked behind them; some at a time, in the order in which they
 * were quarantined.  What the replay itself has quarantined is not: it would
 * fail again.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "guc.h"
#include "replay/replay.h"
#include "transform/batch.h"
#include "transform/runner.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define QUARANTINE_CHANGES	1000	/* that are tried at once */

static bool *select_quarantined(EltReplay *replay, const int64 *change_ids, int n);
static void retry(EltReplay *replay, Datum *quarantine_ids, int n);
static int	compare_int64(const void *a, const void *b);

void
elt_replay_retry_quarantined(EltReplay *replay)
{
	EltReplayRun *run = &replay->run;
	int			limit = elt_replay_pace(replay, QUARANTINE_CHANGES);
	Oid			types[] = {INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(run->pipeline_id), Int64GetDatum(run->range.from_change),
		Int64GetDatum(run->range.to_change), Int64GetDatum(run->position), Int64GetDatum(run->run_id),
	Int64GetDatum(limit)};
	int			n;
	int64	   *change_ids;
	Datum	   *quarantine_ids;
	bool	   *selected;
	int			nselected = 0;
	int64		last;
	EltSpi		spi;

	elt_spi_begin(&spi);
	n = (int) elt_spi_run("SELECT q.quarantine_id, q.change_id FROM elt.quarantine_unresolved q "
						  "WHERE q.pipeline_id = $1 AND q.change_id BETWEEN $2 AND $3 "
						  "AND q.quarantine_id > $4 "
						  "AND q.first_failed_at < (SELECT r.started_at FROM elt.replay_runs r WHERE r.run_id = $5) "
						  "ORDER BY q.quarantine_id LIMIT $6", lengthof(types), types, values, NULL);
	change_ids = MemoryContextAlloc(spi.caller_context, Max(n, 1) * sizeof(int64));
	quarantine_ids = MemoryContextAlloc(spi.caller_context, Max(n, 1) * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		quarantine_ids[i] = Int64GetDatum(elt_spi_int64(i, 1));
		change_ids[i] = elt_spi_int64(i, 2);
	}
	elt_spi_end(&spi);
	if (n == 0)
	{
		replay->finished = true;
		return;
	}

	last = DatumGetInt64(quarantine_ids[n - 1]);
	selected = select_quarantined(replay, change_ids, n);
	for (int i = 0; i < n; i++)
	{
		if (selected[i])
			quarantine_ids[nselected++] = quarantine_ids[i];
	}
	if (nselected > 0)
		retry(replay, quarantine_ids, nselected);
	replay->paced += nselected;
	run->position = last;
}

/* Which of these changes the bounds, keys and filter select, by what raw staging has of them. */
static bool *
select_quarantined(EltReplay *replay, const int64 *change_ids, int n)
{
	EltReplayRange *range = &replay->run.range;
	bool	   *selected = palloc0(n * sizeof(bool));
	int64	   *sorted = palloc(n * sizeof(int64));
	EltLogRow **rows = palloc(n * sizeof(EltLogRow *));
	bool	   *holds = palloc0(n * sizeof(bool));
	TupleDesc	desc;
	int			done = 0;

	memcpy(sorted, change_ids, n * sizeof(int64));
	qsort(sorted, n, sizeof(int64), compare_int64);
	while (done < n)
	{
		int			nrows = elt_log_fetch(elt_pipeline_raw(replay->pipeline), elt_pipeline_topic(replay->pipeline),
										  sorted + done, n - done, elt_batch_bytes_kb * (int64) 1024, rows, &desc);
		int			ncandidates = 0;

		for (int i = 0; i < nrows; i++)
		{
			if (elt_replay_range_contains(range, rows[i]) && elt_replay_range_matches_key(range, rows[i]->key))
				rows[ncandidates++] = rows[i];
		}
		for (int i = 0; i < ncandidates; i++)
			holds[i] = (range->filter == NULL);
		if (range->filter != NULL && ncandidates > 0)
			elt_runner_filter(replay->pipeline, range->filter, desc, rows, ncandidates, holds);
		for (int i = 0; i < ncandidates; i++)
		{
			for (int j = 0; holds[i] && j < n; j++)
				selected[j] = selected[j] || change_ids[j] == rows[i]->change_id;
		}

		/*
		 * raw staging has lost the one that fetching ended at, if it got
		 * nowhere
		 */
		done += Max(nrows, 1);
	}
	return selected;
}

static void
retry(EltReplay *replay, Datum *quarantine_ids, int n)
{
	Oid			types[] = {TEXTOID, INT8ARRAYOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(replay->pipeline->name),
		PointerGetDatum(construct_array(quarantine_ids, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)),
	Int32GetDatum(n)};
	EltSpi		spi;

	/* it is a batch of its own, not one inside of a batch */
	elt_batch_set_at_work(false);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT count(*) FILTER (WHERE q.outcome = 'replayed'), count(*) FILTER (WHERE q.outcome = 'superseded') "
				"FROM elt.replay_quarantine(pipeline => $1, ids => $2, max_rows => $3) AS q", 3, types, values, NULL);
	replay->run.counts.applied += elt_spi_int64(0, 1);
	replay->run.counts.superseded += elt_spi_int64(0, 2);
	elt_spi_end(&spi);
	elt_batch_set_at_work(true);
}

static int
compare_int64(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}
