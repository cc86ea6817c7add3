/*
 * worker.c
 *	  What every worker of elt does: start, nap, transactions, leaving.
 *
 * A worker's main function reads: start, prepare, while (elt_worker_nap(ms))
 * one_round().  SIGTERM aborts what runs and leaves (ProcessInterrupts raises
 * FATAL); a stop that the parent requested through the registry lets the
 * round finish.  An error that is not a user's leaves by exiting; the parent
 * starts the worker again, later each time.
 *
 * Sessions are pinned: what ALTER ROLE or ALTER DATABASE set for people
 * (formats, timeouts, isolation, read-only) must not reach a worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_extension.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "control/worker.h"
#include "elt.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define HEALTHY_MS		60000
#define MAX_BACKOFF_S	60

static void pin_settings(void);

void
elt_worker_start(Datum main_arg, EltWorkerKind kind, const char *appname)
{
	EltWorkerSlot slot;
	int			index = (kind == ELT_WORKER_LAUNCHER) ? -1 : DatumGetInt32(main_arg);

	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	elt_registry_attach(index, kind);
	slot = *elt_my_slot;
	if (OidIsValid(slot.dboid))
		BackgroundWorkerInitializeConnectionByOid(slot.dboid, InvalidOid, 0);
	else
		BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pin_settings();
	pgstat_report_appname(appname);
	elt_registry_set_activity("running", NULL);
}

static void
pin_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			pins[] = {
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"xmloption", "content"},
		{"lc_monetary", "C"},
		{"row_security", "on"},
		{"check_function_bodies", "on"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"synchronous_commit", "off"},
	};

	/*
	 * Commits need not wait for the disk: progress is part of the same commit
	 * record, so a crash takes both back.
	 */
	for (int i = 0; i < lengthof(pins); i++)
		SetConfigOption(pins[i].name, pins[i].value, PGC_SUSET, PGC_S_SESSION);
}

bool
elt_worker_nap(long nap_ms)
{
	if (nap_ms != 0 && !elt_registry_stop_requested())
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (nap_ms > 0 ? WL_TIMEOUT : 0),
						 nap_ms, elt_wait_event("EltNap"));
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	return !elt_registry_stop_requested();
}

void
elt_worker_begin(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, activity);
}

void
elt_worker_commit(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * elt_worker_holds_extension
 *		One that was dropped and made anew is not the one that this worker
 *		knows, and has other sources by the same numbers.
 */
bool
elt_worker_holds_extension(void)
{
	static Oid	known = InvalidOid;
	Oid			extension = get_extension_oid("elt", true);

	if (!OidIsValid(extension) || (OidIsValid(known) && extension != known))
		return false;
	LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
	if (get_extension_oid("elt", true) != extension)
		return false;
	known = extension;
	return true;
}

void
elt_worker_check_version(void)
{
	char	   *version = NULL;
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT extversion FROM pg_extension WHERE extname = 'elt'", 0, NULL, NULL, NULL) > 0)
		version = elt_spi_text(&spi, 0, 1);
	elt_spi_end(&spi);
	if (version != NULL && strcmp(version, ELT_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("elt's library is of version %s, but extension elt in database \"%s\" is of version %s",
						ELT_VERSION, get_database_name(MyDatabaseId), version),
				 errdetail("Nothing is captured or transformed until they are the same."),
				 errhint("ALTER EXTENSION elt UPDATE where the library is newer; "
						 "restart the server where the library of the extension's version is installed already.")));
}

void
elt_worker_begin_work(const char *activity)
{
	elt_worker_begin(activity);
	if (!elt_worker_holds_extension())
		elt_registry_finish();
}

uint16
elt_worker_mark_writes(uint16 origin)
{
	uint16		previous = replorigin_session_origin;

	replorigin_session_origin = origin;
	return previous;
}

void
elt_backoff_note_end(EltBackoff *backoff, const EltWorkerSlot *ended)
{
	TimestampTz now = elt_clock_now();
	int			seconds;
	int			jitter_ms = 0;

	/* what broke a stream that had got on was the way, and may be gone by now */
	if ((ended->started_at != 0 && TimestampDifferenceExceeds(ended->claimed_at, now, HEALTHY_MS)) ||
		(ended->kind == ELT_WORKER_CAPTURE && pg_atomic_read_u64(unconstify(pg_atomic_uint64 *, &ended->changes)) > 0))
		backoff->failures = 0;
	seconds = Min(MAX_BACKOFF_S, 1 << Min(backoff->failures, 6));

	/* many that lost the same server do not all come back at once */
	if (backoff->failures > 0)
		jitter_ms = (int) (pg_prng_uint64_range(&pg_global_prng_state, 0, seconds * 250));
	backoff->failures++;
	backoff->retry_at = TimestampTzPlusMilliseconds(now, seconds * 1000 - jitter_ms);
}

bool
elt_backoff_is_due(const EltBackoff *backoff)
{
	return backoff->retry_at <= elt_clock_now();
}
