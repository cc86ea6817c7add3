/*
 * retention.c
 *	  What is kept for a time only: resolved rows of elt.quarantine (for raw
 *	  staging see raw_retention.c).
 *
 * The supervisor calls in each of its rounds.  Once a minute (more often where
 * rows are kept for less), and when the setting has changed, rows beyond it are deleted, at most
 * MAX_ROWS in a transaction; as long as there are that many it goes on with
 * the next round, so that the supervisor is never away for long.
 *
 * Locking: the rows themselves; resolved ones are of no interest to anybody
 * who waits.  Failure: an error ends the supervisor, and it starts again.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/retention.h"
#include "control/worker.h"
#include "guc.h"
#include "utils/timestamp.h"

#define PERIOD_MS	60000
#define MAX_ROWS	10000

static uint64 delete_resolved(int age_s);

void
elt_retention_run(void)
{
	static TimestampTz due_at = 0;
	static int	last_age_s = -1;
	TimestampTz now = elt_clock_now();
	int			age_s = elt_quarantine_retention_s;
	uint64		deleted;

	if (age_s == last_age_s && now < due_at)
		return;
	last_age_s = age_s;
	due_at = TimestampTzPlusMilliseconds(now, Min(PERIOD_MS, Max(age_s, 1) * INT64CONST(1000)));
	if (age_s < 0)
		return;

	elt_worker_begin("deleting what is not kept any longer");
	if (elt_worker_holds_extension())
	{
		deleted = delete_resolved(age_s);
		if (deleted == MAX_ROWS)
			due_at = now;
	}
	elt_worker_commit();
}

static uint64
delete_resolved(int age_s)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(age_s), Int32GetDatum(MAX_ROWS)};
	uint64		deleted;
	EltSpi		spi;

	elt_spi_begin(&spi);
	deleted = elt_spi_run("WITH gone AS (DELETE FROM elt.quarantine_resolved WHERE quarantine_id IN "
						  "(SELECT q.quarantine_id FROM elt.quarantine_resolved q "
						  "WHERE q.resolved_at < now() - make_interval(secs => $1) LIMIT $2 FOR UPDATE SKIP LOCKED) "
						  "RETURNING quarantine_id) "
						  "DELETE FROM elt.quarantine_records q USING gone WHERE q.quarantine_id = gone.quarantine_id", 2, types, values, NULL);
	elt_spi_end(&spi);
	return deleted;
}
