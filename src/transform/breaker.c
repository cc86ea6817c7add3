/*
 * breaker.c
 *	  A flood of failures blocks the pipeline, instead of filling quarantine.
 *
 * Single bad records are quarantined; when a deploy broke everything, each
 * record looks bad.  The breaker trips when
 *
 *	- more than 5 % of at least 100 changes failed within 60 s, or
 *	- one error (fingerprint) that is new to the pipeline came 1,000 times
 *	  within 60 s; new: all older records of it, if any, were replayed.
 *
 * Counted is what batches that committed report in shared memory, and the
 * batch at hand; failures of the class dependency too.  When it trips, the
 * batch at hand is rolled back and the pipeline blocked.  What the flood has
 * put into quarantine until then gets the status waiting: due when the
 * pipeline runs again, so that in the end nothing is quarantined for the
 * deploy's sake.
 *
 * A probe reads ELT_BREAKER_PROBE_CHANGES and passes when at most 5 % of those
 * that it tried fail.  After that the count starts anew.
 *
 * Locking: a batch with failures locks the pipeline's row in share mode before
 * it commits (batch.c), so it either sees the pipeline blocked and is rolled
 * back, or has committed before, and its records are held back with the rest.
 *
 * Cost: none in a batch without failures; a look into shared memory in others,
 * and a query where 1,000 changes failed within 60 s.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "control/stats.h"
#include "transform/breaker.h"
#include "utils/array.h"
#include "utils/builtins.h"

#define SECONDS			60
#define MIN_CHANGES		100
#define MAX_SHARE		20		/* one of so many */
#define SAME_FAILURES	1000

static bool same_flood_trips(EltWork *work, EltFlood *flood, bool settled);
static bool probe_trips(EltWork *work);
static bool trip(EltWork *work, const char *what, const EltFlood *flood);
static const EltFlood *largest_flood(const EltWork *work);
static int64 count_recent(int64 pipeline_id, const char *fingerprint);
static bool is_known(int64 pipeline_id, const char *fingerprint);

void
elt_breaker_note(EltWork *work, const char *fingerprint, const ErrorData *error)
{
	EltBreaker *breaker = &work->breaker;
	EltFlood   *flood = NULL;

	for (int i = 0; i < breaker->nfloods && flood == NULL; i++)
	{
		if (strcmp(breaker->floods[i].fingerprint, fingerprint) == 0)
			flood = &breaker->floods[i];
	}
	if (flood == NULL)
	{
		if (breaker->nfloods == lengthof(breaker->floods))
			return;				/* many errors: their share tells */
		flood = &breaker->floods[breaker->nfloods++];
		strlcpy(flood->fingerprint, fingerprint, sizeof(flood->fingerprint));
		flood->sqlerrcode = error->sqlerrcode;
	}
	flood->failed++;
}

bool
elt_breaker_trips(EltWork *work, bool settled)
{
	EltBreaker *breaker = &work->breaker;
	int64		read;
	int64		failed;

	if (!work->own_transaction || !work->options.breaker || work->quarantined == 0)
		return false;
	if (elt_breaker_is_probe(work))
		return settled && probe_trips(work);
	if (!breaker->loaded)
	{
		elt_stats_outcomes(work->pipeline->pipeline_id, SECONDS, &breaker->read, &breaker->failed);
		breaker->loaded = true;
	}

	/* before all is settled it trips only where it would in any case */
	read = breaker->read + (settled ? work->settled : work->window->nrows);
	failed = breaker->failed + work->quarantined;
	if (read >= MIN_CHANGES && failed * MAX_SHARE > read)
		return trip(work, psprintf("%lld of %lld changes failed within %d s",
								   (long long) failed, (long long) read, SECONDS), largest_flood(work));
	for (int i = 0; failed >= SAME_FAILURES && i < breaker->nfloods; i++)
	{
		if (same_flood_trips(work, &breaker->floods[i], settled))
			return trip(work, psprintf("%d changes failed within %d s with an error that is new here",
									   SAME_FAILURES, SECONDS), &breaker->floods[i]);
	}
	return false;
}

static bool
same_flood_trips(EltWork *work, EltFlood *flood, bool settled)
{
	int64		pipeline_id = work->pipeline->pipeline_id;

	if (flood->known || (!settled && flood->failed < SAME_FAILURES))
		return false;
	elt_failures_write(&work->failures, work->pipeline);
	if (count_recent(pipeline_id, flood->fingerprint) < SAME_FAILURES)
		return false;
	flood->known = is_known(pipeline_id, flood->fingerprint);
	return !flood->known;
}

static bool
probe_trips(EltWork *work)
{
	int64		tried = work->settled - work->parked;

	if (work->quarantined * MAX_SHARE <= tried)
		return false;
	return trip(work, psprintf("%lld of %lld changes of a probe failed",
							   (long long) work->quarantined, (long long) tried), largest_flood(work));
}

bool
elt_breaker_is_probe(const EltWork *work)
{
	return work->own_transaction && work->status.state == 'b' && work->status.breaker && work->options.breaker;
}

/* No row data: messages of errors are left to elt.quarantine. */
static bool
trip(EltWork *work, const char *what, const EltFlood *flood)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->elevel = ERROR;
	error->sqlerrcode = flood->sqlerrcode;
	error->message = psprintf("breaker: %s, most with SQLSTATE %s (fingerprint %s)",
							  what, unpack_sql_state(flood->sqlerrcode), flood->fingerprint);
	error->hint = psprintf("Correct the transform with elt.replace_transform, or the target: the pipeline then resumes by itself. "
						   "To quarantine such records instead: elt.alter_pipeline(%s, options => '{\"breaker\": false}').",
						   quote_literal_cstr(work->pipeline->name));
	work->error = error;
	work->error_class = "breaker";
	return true;
}

static const EltFlood *
largest_flood(const EltWork *work)
{
	const EltFlood *largest = &work->breaker.floods[0];

	for (int i = 1; i < work->breaker.nfloods; i++)
	{
		if (work->breaker.floods[i].failed > largest->failed)
			largest = &work->breaker.floods[i];
	}
	return largest;
}

/* With those of this batch; counts up to SAME_FAILURES. */
static int64
count_recent(int64 pipeline_id, const char *fingerprint)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), CStringGetTextDatum(fingerprint),
	Int32GetDatum(SECONDS), Int32GetDatum(SAME_FAILURES)};
	int64		count;
	EltSpi		spi;

	elt_spi_begin(&spi);
	count = elt_spi_run("SELECT FROM elt.quarantine_records q JOIN elt.pipelines p USING (pipeline_id) "
						"WHERE q.pipeline_id = $1 AND q.fingerprint = $2 "
						"AND q.first_failed_at > greatest(now() - make_interval(secs => $3), p.unblocked_at) LIMIT $4",
						4, types, values, NULL);
	elt_spi_end(&spi);
	return count;
}

static bool
is_known(int64 pipeline_id, const char *fingerprint)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), CStringGetTextDatum(fingerprint), Int32GetDatum(SECONDS)};
	bool		known;
	EltSpi		spi;

	elt_spi_begin(&spi);
	known = elt_spi_run("SELECT FROM elt.quarantine_unresolved WHERE pipeline_id = $1 AND fingerprint = $2 "
						"AND first_failed_at <= now() - make_interval(secs => $3) "
						"UNION ALL SELECT FROM elt.quarantine_resolved s JOIN elt.quarantine_records q USING (quarantine_id) "
						"WHERE s.pipeline_id = $1 AND s.status <> 'replayed' AND q.fingerprint = $2 "
						"AND q.first_failed_at <= now() - make_interval(secs => $3) LIMIT 1", 3, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return known;
}

/* ---- what was quarantined before it tripped ---- */

Datum
elt_breaker_fingerprints(const EltWork *work)
{
	Datum		fingerprints[lengthof(work->breaker.floods)];

	for (int i = 0; i < work->breaker.nfloods; i++)
		fingerprints[i] = CStringGetTextDatum(work->breaker.floods[i].fingerprint);
	return PointerGetDatum(construct_array(fingerprints, work->breaker.nfloods, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * In the transaction that blocks the pipeline, after its row was updated: that
 * has waited for the batches that hold the row, and keeps others off.
 */
void
elt_breaker_hold_back(int64 pipeline_id, int version, Datum fingerprints)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTARRAYOID, INT4OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int32GetDatum(version), fingerprints, Int32GetDatum(SECONDS)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.quarantine_unresolved u SET status = 'waiting', next_retry_at = 'infinity' "
				"FROM elt.pipelines p, elt.quarantine_records q "
				"WHERE p.pipeline_id = $1 AND p.blocked_by = 'breaker' AND u.pipeline_id = $1 AND q.version = $2 "
				"AND q.quarantine_id = u.quarantine_id AND u.status = 'open' AND u.fingerprint = ANY ($3) "
				"AND u.first_failed_at > p.blocked_since - make_interval(secs => $4)", 4, types, values, NULL);
	elt_spi_end(&spi);
}

void
elt_breaker_release(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.quarantine_unresolved SET next_retry_at = now() "
				"WHERE pipeline_id = $1 AND status = 'waiting' AND next_retry_at = 'infinity'", 1, types, values, NULL);
	elt_spi_end(&spi);
}
