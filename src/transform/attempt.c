/*
 * attempt.c
 *	  Changes that end their worker, or overrun the time limit.
 *
 * An error is found where it happens, in the batch.  User code that ends its
 * process (pg_terminate_backend on itself, a crash of a C function), or runs
 * for too long, leaves no batch to look for the culprit in.  So it is written
 * down in elt.attempts which window of changes was tried at once, and the next
 * batches there are shorter, down to one change:
 *
 *	an overrun of the time limit	written by the worker itself, after the
 *					batch is rolled back.  A single change that overruns
 *					is quarantined at once (isolate.c)
 *	a worker that ended (FATAL)		written by the supervisor, from what the
 *					worker's slot in the registry says it was at
 *	a server that crashed			shared memory is gone, so for PROBATION_MS
 *					after a start each batch announces its window in a
 *					transaction before.  What is found announced by an
 *					earlier run of the server has ended it
 *
 * Where it is known which change was read last, the window is cut right before
 * and behind it; else it is a sixteenth of the one that failed.  A change that
 * has ended MAX_DEATHS workers or servers, once at least when it was tried
 * alone, is quarantined without another try.  What it ended as one of many
 * counts only where it was seen to be at work.  Rows are deleted once all lanes
 * are past them.
 *
 * A worker that an administrator ends in the middle of user code is taken for
 * one that its change has ended: that costs some short batches, and once alone
 * the change goes through.
 *
 * A server that crashes takes along what was announced, whoever was to blame.
 * So nobody else on the server applies an announced batch while a single
 * change is tried that was there when it crashed before: the lock of trials is
 * taken by that one alone, and shared by the others.  One that crashes for
 * another reason, such as a kill -9 of some session, counts against a change
 * only where it was just being tried alone, and one such time is not enough.
 *
 * Cost: per batch some stores into the slot, and none in tables: whether there
 * are rows is seen with the pipeline's status.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "control/worker.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "transform/attempt.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define PROBATION_MS	10000
#define MAX_DEATHS		2
#define SHRINK			16

static EltTrying last;			/* what was begun last */
static SubTransactionId begun_in;

static void end_of_subtransaction(SubXactEvent event, SubTransactionId subid,
								  SubTransactionId parent, void *arg);
static void note(int64 pipeline_id, const EltTrying *trying, bool death, const char *sqlstate);
static void note_crashes(int64 pipeline_id);

/* ---- in the worker ---- */

void
elt_attempt_begin(int64 pipeline_id, EltLogRow **rows, int nrows)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterSubXactCallback(end_of_subtransaction, NULL);
		registered = true;
	}
	begun_in = GetCurrentSubTransactionId();
	memset(&last, 0, sizeof(last));
	last.pipeline_id = pipeline_id;
	last.changes = nrows;
	last.first_change = PG_INT64_MAX;
	for (int i = 0; i < nrows; i++)
	{
		last.first_change = Min(last.first_change, rows[i]->change_id);
		last.last_change = Max(last.last_change, rows[i]->change_id);
	}
	if (elt_my_slot != NULL)
		elt_my_slot->trying = last;
}

void
elt_attempt_end(void)
{
	if (elt_my_slot != NULL)
	{
		last.at_change = elt_my_slot->trying.at_change;
		elt_my_slot->trying.pipeline_id = 0;
	}
}

/* An error has ended it, which is no death; a process that exits aborts too. */
static void
end_of_subtransaction(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && subid == begun_in && !proc_exit_inprogress)
		elt_attempt_end();
}

EltTrying
elt_attempt_last(void)
{
	return last;
}

void
elt_attempt_limit(EltWork *work, EltLogRequest *request)
{
	int64		pipeline_id = work->pipeline->pipeline_id;
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int64GetDatum(request->after)};
	int64		after = request->after;
	uint64		rows;
	EltSpi		spi;

	note_crashes(pipeline_id);
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT first_change, changes, coalesce(suspect, 0), "
					   "CASE WHEN deaths > 0 THEN deaths + (SELECT count(*) FROM elt.attempts w WHERE w.pipeline_id = a.pipeline_id "
					   "AND w.suspect = a.first_change AND w.changes > 1 AND w.deaths > 0) ELSE 0 END, sqlstate FROM elt.attempts a "
					   "WHERE pipeline_id = $1 AND last_change > $2 AND deaths + overruns > 0", 2, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		int64		first = elt_spi_int64(row, 1);
		int			changes = (int) elt_spi_int64(row, 2);
		int64		suspect = elt_spi_int64(row, 3);
		int			deaths = (int) elt_spi_int64(row, 4);
		int			max_changes;

		if (after < first - 1)
		{
			request->upto = Min(request->upto, first - 1);
			continue;
		}
		if (changes == 1 && deaths >= MAX_DEATHS)
		{
			work->doomed = first;
			work->deaths = deaths;
			strlcpy(work->death_sqlstate, elt_spi_text(&spi, row, 5), sizeof(work->death_sqlstate));
		}
		if (suspect == after + 1)
			max_changes = 1;
		else if (suspect > 0)
			max_changes = changes / 2;
		else
			max_changes = changes / SHRINK;
		work->suspected |= deaths > 0;
		if (suspect > after + 1)
			request->upto = Min(request->upto, suspect - 1);
		request->max_changes = Min(request->max_changes, Max(max_changes, 1));
		request->whole_commits = false;
	}
	elt_spi_end(&spi);
}

ErrorData *
elt_attempt_error(const EltWork *work)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));
	const char *state = work->death_sqlstate;

	error->elevel = ERROR;
	error->sqlerrcode = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
	error->message = psprintf("this change ended its worker %d times", work->deaths);
	error->detail = pstrdup("It was tried alone, and is not tried again by itself.");
	error->hint = pstrdup("Look for what the transform or a trigger of the target does to its session; the server's log shows how the workers ended.");
	return error;
}

void
elt_attempt_forget(int64 pipeline_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.attempts WHERE pipeline_id = $1 AND last_change <= "
				"(SELECT min(position) FROM elt.checkpoints WHERE pipeline_id = $1)", 1, types, values, NULL);
	elt_spi_end(&spi);
}

void
elt_attempt_note_overrun(int64 pipeline_id, const EltTrying *trying)
{
	note(pipeline_id, trying, false, "57014");
}

/* ---- after a worker's end ---- */

void
elt_attempt_note_end(const EltWorkerSlot *ended)
{
	if (ended->trying.pipeline_id == 0)
		return;
	elt_worker_begin("recording the end of a worker");
	if (elt_worker_holds_extension())
		note(ended->trying.pipeline_id, &ended->trying, true, ended->last_error[0] != '\0' ? "XX000" : "57P01");
	elt_worker_commit();
}

static void
note(int64 pipeline_id, const EltTrying *trying, bool death, const char *sqlstate)
{
	Oid			types[] = {INT8OID, INT8OID, INT8OID, INT4OID, INT8OID, INT4OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int64GetDatum(trying->first_change),
		Int64GetDatum(trying->last_change), Int32GetDatum(trying->changes), Int64GetDatum(trying->at_change),
	Int32GetDatum(death ? 1 : 0), CStringGetTextDatum(sqlstate)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.attempts AS a (pipeline_id, first_change, last_change, changes, suspect, deaths, overruns, sqlstate) "
				"SELECT pipeline_id, $2, $3, $4, nullif($5, 0), $6, 1 - $6, $7 FROM elt.pipelines WHERE pipeline_id = $1 FOR KEY SHARE "
				"ON CONFLICT (pipeline_id, first_change, last_change) DO UPDATE SET suspect = excluded.suspect, "
				"deaths = a.deaths + excluded.deaths, overruns = a.overruns + excluded.overruns, sqlstate = excluded.sqlstate, "
				"trying = NULL", 7, types, values, NULL);
	elt_spi_end(&spi);
}

/* ---- after a server's end ---- */

bool
elt_attempt_on_probation(void)
{
	return elt_registry_uptime_ms() < PROBATION_MS;
}

void
elt_attempt_announce(EltWork *work)
{
	EltLogWindow *window = work->window;
	Oid			types[] = {INT8OID, INT8OID, INT8OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(work->pipeline->pipeline_id), Int64GetDatum(window->rows[0]->change_id),
		Int64GetDatum(window->rows[window->nrows - 1]->change_id), Int32GetDatum(window->nrows),
	TimestampTzGetDatum(elt_registry_started_at())};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.attempts (pipeline_id, first_change, last_change, changes, sqlstate, trying) "
				"VALUES ($1, $2, $3, $4, 'XX000', $5) "
				"ON CONFLICT (pipeline_id, first_change, last_change) DO UPDATE SET trying = excluded.trying",
				5, types, values, NULL);
	elt_spi_end(&spi);
	ForceSyncCommit();			/* a crash must not take it along */
}

/*
 * Before an announced batch is applied, to the end of its transaction.  False
 * where another batch is on trial: to be tried again.
 */
bool
elt_attempt_hold_trial(const EltWork *work)
{
	LOCKTAG		tag;
	bool		on_trial = work->suspected && work->window->nrows == 1;

	SET_LOCKTAG_ADVISORY(tag, InvalidOid, 0, 0, 5);
	return LockAcquire(&tag, on_trial ? ExclusiveLock : ShareLock, false, !on_trial) != LOCKACQUIRE_NOT_AVAIL;
}

void
elt_attempt_withdraw(int64 pipeline_id, int64 first_change, int64 last_change)
{
	Oid			types[] = {INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(pipeline_id), Int64GetDatum(first_change), Int64GetDatum(last_change)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.attempts SET trying = NULL "
				"WHERE pipeline_id = $1 AND first_change = $2 AND last_change = $3 AND deaths + overruns > 0", 3, types, values, NULL);
	elt_spi_run("DELETE FROM elt.attempts "
				"WHERE pipeline_id = $1 AND first_change = $2 AND last_change = $3 AND deaths + overruns = 0", 3, types, values, NULL);
	elt_spi_end(&spi);
}

/*
 * What an earlier run of the server was at when it ended.  A run is known by
 * the time it began at, which is not compared: that time may be set back.
 */
static void
note_crashes(int64 pipeline_id)
{
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(pipeline_id), TimestampTzGetDatum(elt_registry_started_at())};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.attempts SET deaths = deaths + 1, sqlstate = 'XX000', trying = NULL "
				"WHERE (pipeline_id, first_change, last_change) IN "
				"(SELECT pipeline_id, first_change, last_change FROM elt.attempts "
				"WHERE pipeline_id = $1 AND trying <> $2 FOR UPDATE SKIP LOCKED)", 2, types, values, NULL);
	elt_spi_end(&spi);
}
