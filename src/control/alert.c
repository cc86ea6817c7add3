/*
 * alert.c
 *	  Evaluates alert rules and tells what they found.
 *
 * Part of the supervisor, so never of a transaction that applies changes.  A
 * round has up to three kinds of transactions: one evaluates the shipped rules
 * that are due and stores the alerts' states, one each does so for a rule of
 * a user, and one sends the notifications and marks what it told.  The table
 * elt.alerts is the truth: what could not be sent stays due.
 *
 * An idle database must cost nothing.  Shipped rules that follow from events
 * (a failed change, a blocked pipeline, a worker that ended) are evaluated
 * when such an event was seen, when an alert's time has come to move to the next
 * state or to be told, and otherwise every QUIET_MS, as are the rules about ages and
 * sizes.  A round with nothing due has no transaction.
 *
 * Locking: evaluations of a database exclude each other by an advisory lock
 * that SQL cannot take, held to the end of the transaction.  Notification ids
 * are given out under it, so they become visible in order.
 *
 * Failure: a user's query that fails or takes too long costs its rule a
 * growing pause and is noted in elt.alert_rules; any other error ends the
 * round, is logged, and the next round waits longer.  A query that catches its
 * cancel and goes on ends the process (limit.c): on its way out that disables
 * the rule, or the next supervisor would end the same way.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "common/hashfn.h"
#include "control/alert.h"
#include "control/stats.h"
#include "control/worker.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "owner.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "transform/limit.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define QUIET_MS			10000	/* between evaluations without a reason */
#define PAUSE_MS			200 /* between evaluations, whatever happens */
#define ROUND_LIMIT_MS		10000	/* for statements of elt's own */
#define MAX_PAUSE_MS		60000	/* after errors */
#define MAX_RULE_PAUSE_MS	300000
#define CRASH_WINDOW_MS		300000
#define CRASHES_KEPT		16
#define NO_ROOM_MS			5000	/* how long a want of processes counts */
#define STUBBORN_MS			1000	/* from the first cancel to the next */

typedef struct AlertRule
{
	char	   *name;
	char	   *query;			/* NULL: shipped */
	Oid			owner;
	char	   *search_path;
	int64		interval_ms;
	bool		failed;			/* last_error is set */
	int			failures;		/* in a row */
	TimestampTz due_at;
} AlertRule;

/* The latest ends of one worker that were failures. */
typedef struct WorkerFailures
{
	EltWorkerKind kind;
	char		name[NAMEDATALEN];
	TimestampTz at[CRASHES_KEPT];	/* ring */
	int			next;
} WorkerFailures;

/* What is remembered from round to round. */
typedef struct Evaluation
{
	MemoryContext context;		/* of rules */
	List	   *rules;			/* of AlertRule */
	uint64		generation;		/* when they were read */
	bool		loaded;
	bool		moved;			/* something happened since the last
								 * evaluation */
	uint32		workers;		/* what the workers looked like */
	uint64		failed_batches;
	TimestampTz next_at;		/* when an alert is to move or to be told; 0:
								 * none */
	TimestampTz evaluated_at;
	TimestampTz quiet_until;	/* without a reason, no evaluation before */
	TimestampTz retry_at;		/* after an error */
	TimestampTz notify_retry_at;
	int			errors;			/* in a row */
	bool		queue_full;
	TimestampTz no_room_at;
	List	   *crashes;		/* of WorkerFailures */
} Evaluation;

static Evaluation alerts;

/* The user's rule whose query runs in this process, for disable_rule. */
static const char *running_rule = NULL;

PG_FUNCTION_INFO_V1(elt_evaluate_alerts);

static void forget_times(void);
static bool is_due(TimestampTz now);
static bool is_time(TimestampTz now);
static uint32 workers_signature(void);
static void evaluate(TimestampTz now);
static bool begin(const char *activity);
static bool lock(bool wait);
static void load_rules(void);
static bool evaluate_shipped(TimestampTz at, bool all);
static bool is_about_workers(const AlertRule *rule);
static char *worker_samples(void);
static bool evaluate_user_rule(AlertRule *rule, TimestampTz at);
static void disable_rule(int code, Datum arg);
static void note_rule_end(AlertRule *rule, const ErrorData *error);
static void note_result(EltSpi *spi, bool *due);
static void notify(TimestampTz now);
static void arm(int limit_ms);
static void disarm(void);

/* ---- a round ---- */

void
elt_alert_round(void)
{
	static bool registered = false;
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext caller = CurrentMemoryContext;

	if (!registered)
		before_shmem_exit(disable_rule, (Datum) 0);
	registered = true;
	if (!elt_alerts || elt_clock_now() < alerts.retry_at || !is_due(now))
		return;

	PG_TRY();
	{
		evaluate(now);
		if (alerts.errors > 0)
			ereport(LOG, (errmsg("alert rules are evaluated again")));
		alerts.errors = 0;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		disarm();
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(caller);
		pgstat_report_activity(STATE_IDLE, NULL);
		if (alerts.errors++ == 0)
			ereport(LOG,
					(errmsg("could not evaluate alert rules: %s", error->message),
					 errhint("This is tried again, less often each time. SELECT elt.evaluate_alerts() shows the error in full.")));
		alerts.retry_at = TimestampTzPlusMilliseconds(elt_clock_now(),
													  Min(MAX_PAUSE_MS, 1000 << Min(alerts.errors, 6)));
		alerts.moved = true;

		FreeErrorData(error);
	}
	PG_END_TRY();
}

/*
 * Times of alerts are times of day, because they are told.  A clock that was
 * set back is no reason to wait for it to get there again.
 */
static void
forget_times(void)
{
	ListCell   *cell;

	alerts.next_at = alerts.quiet_until = alerts.notify_retry_at = 0;
	foreach(cell, alerts.rules)
		((AlertRule *) lfirst(cell))->due_at = 0;
}

/* Whether a rule is to be evaluated now; looks at shared memory only. */
static bool
is_due(TimestampTz now)
{
	uint64		generation = elt_config_generation(MyDatabaseId);
	uint64		failed_batches = elt_stats_failed_batches();
	uint32		workers = workers_signature();
	ListCell   *cell;

	if (!alerts.loaded || alerts.generation != generation || alerts.failed_batches != failed_batches ||
		alerts.workers != workers)
		alerts.moved = true;
	alerts.failed_batches = failed_batches;
	alerts.workers = workers;

	if (alerts.generation != generation)
	{
		alerts.generation = generation;
		alerts.loaded = false;
	}
	if (now < alerts.evaluated_at)
		forget_times();
	else if (!TimestampDifferenceExceeds(alerts.evaluated_at, now, PAUSE_MS))
		return false;
	if (!alerts.loaded || alerts.moved || is_time(now))
		return true;
	foreach(cell, alerts.rules)
	{
		AlertRule  *rule = lfirst(cell);

		if (rule->query != NULL && rule->due_at <= now)
			return true;
	}
	return false;
}

/* Whether shipped rules are to be evaluated although nothing happened. */
static bool
is_time(TimestampTz now)
{
	return now >= alerts.quiet_until || (alerts.next_at != 0 && now >= alerts.next_at);
}

/* Changes when a worker of this database comes, goes, or begins to stream. */
static uint32
workers_signature(void)
{
	uint32		signature = 0;

	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;

		if (!elt_registry_read(index, &slot) || slot.dboid != MyDatabaseId)
			continue;
		signature = hash_combine(signature, hash_uint32(slot.pid + slot.kind + slot.ended));
		if (slot.kind == ELT_WORKER_CAPTURE)
			signature = hash_combine(signature, string_hash(slot.activity, sizeof(slot.activity)));
	}
	return signature;
}

static void
evaluate(TimestampTz now)
{
	bool		due = false;
	bool		moved = alerts.moved;
	ListCell   *cell;

	if (!begin("evaluating alert rules"))
		return;
	alerts.moved = false;
	alerts.evaluated_at = now;

	arm(ROUND_LIMIT_MS);
	if (!alerts.loaded)
		load_rules();
	if (moved || is_time(now))
		due = evaluate_shipped(now, false);
	disarm();
	elt_worker_commit();

	foreach(cell, alerts.rules)
	{
		AlertRule  *rule = lfirst(cell);

		if (rule->query == NULL || rule->due_at > now)
			continue;
		if (!begin("evaluating an alert rule"))
			return;
		due |= evaluate_user_rule(rule, now);
		elt_worker_commit();
		elt_worker_begin("cleaning the session");
		elt_owner_clean_session();
		elt_worker_commit();
	}

	if (due && now >= alerts.notify_retry_at)
		notify(now);
}

/*
 * A transaction that holds the lock; false where somebody else evaluates, or
 * where the extension is gone, which the supervisor's main loop looks after.
 */
static bool
begin(const char *activity)
{
	elt_worker_begin(activity);
	if (elt_worker_holds_extension() && lock(false))
		return true;
	elt_worker_commit();
	return false;
}

static bool
lock(bool wait)
{
	LOCKTAG		tag;

	/* the functions of SQL use the last field's values 1 and 2, sources use 3 */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, 4);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* ---- rules ---- */

/* Reads the rules anew; those that were there keep their time. */
static void
load_rules(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "elt alert rules", ALLOCSET_SMALL_SIZES);
	List	   *rules = NIL;
	uint64		nrows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	spi.caller_context = context;
	nrows = elt_spi_run("SELECT rule, query, owner::oid, search_path, "
						"(extract(epoch FROM evaluation_interval) * 1000)::bigint, last_error IS NOT NULL "
						"FROM elt.alert_rules WHERE enabled ORDER BY rule", 0, NULL, NULL, NULL);
	for (uint64 row = 0; row < nrows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		AlertRule  *rule = palloc0(sizeof(AlertRule));
		ListCell   *cell;

		rules = lappend(rules, rule);
		MemoryContextSwitchTo(old);
		rule->name = elt_spi_text(&spi, row, 1);
		rule->query = elt_spi_text(&spi, row, 2);
		rule->owner = (Oid) elt_spi_int64(row, 3);
		rule->search_path = elt_spi_text(&spi, row, 4);
		rule->interval_ms = elt_spi_int64(row, 5);
		rule->failed = elt_spi_bool(row, 6);
		foreach(cell, alerts.rules)
		{
			AlertRule  *before = lfirst(cell);

			/* a query that was changed is tried at once */
			if (strcmp(before->name, rule->name) == 0 &&
				(rule->query == NULL || (before->query != NULL && strcmp(before->query, rule->query) == 0)))
			{
				rule->failures = before->failures;
				rule->due_at = before->due_at;
			}
		}
	}
	elt_spi_end(&spi);

	if (alerts.context != NULL)
		MemoryContextDelete(alerts.context);
	alerts.context = context;
	alerts.rules = rules;
	alerts.loaded = true;
}

/*
 * evaluate_shipped
 *		Evaluates the shipped rules that are due, or all; true where there is
 *		something to tell.
 */
static bool
evaluate_shipped(TimestampTz at, bool all)
{
	Oid			types[] = {TEXTARRAYOID, TEXTOID, TIMESTAMPTZOID};
	Datum	   *names = palloc(Max(1, list_length(alerts.rules)) * sizeof(Datum));
	Datum		values[3];
	int			count = 0;
	bool		due;
	EltSpi		spi;
	ListCell   *cell;

	foreach(cell, alerts.rules)
	{
		AlertRule  *rule = lfirst(cell);

		/*
		 * what follows events is due with them; its interval is the
		 * supervisor's nap
		 */
		if (rule->query != NULL ||
			(!all && rule->due_at > at && rule->interval_ms >= QUIET_MS) ||
			(elt_my_slot == NULL && is_about_workers(rule)))
			continue;
		rule->due_at = TimestampTzPlusMilliseconds(at, rule->interval_ms);
		names[count++] = CStringGetTextDatum(rule->name);
	}
	alerts.quiet_until = TimestampTzPlusMilliseconds(at, QUIET_MS);

	values[0] = PointerGetDatum(construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = CStringGetTextDatum(worker_samples());
	values[2] = TimestampTzGetDatum(at);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT next_at, due FROM elt.evaluate_shipped_alerts($1, $2::jsonb, $3)", 3, types, values, NULL);
	note_result(&spi, &due);
	elt_spi_end(&spi);
	return due;
}

/* Another session does not know what the supervisor knows. */
static bool
is_about_workers(const AlertRule *rule)
{
	return strcmp(rule->name, "worker_crash_loop") == 0 || strcmp(rule->name, "worker_budget_exhausted") == 0;
}

/* Reads what both kinds of evaluation return. */
static void
note_result(EltSpi *spi, bool *due)
{
	bool		isnull;
	Datum		next_at = elt_spi_datum(spi, 0, 1, &isnull);

	alerts.next_at = isnull ? 0 : DatumGetTimestampTz(next_at);

	*due = elt_spi_bool(0, 2);
}

/*
 * evaluate_user_rule
 *		Runs a user's rule; what goes wrong with it is noted and goes no
 *		further.  True where there is something to tell.
 */
static bool
evaluate_user_rule(AlertRule *rule, TimestampTz at)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool due = false;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		Oid			types[] = {TEXTOID, JSONBOID, TIMESTAMPTZOID};
		Datum		values[3];
		Jsonb	   *rows;
		bool		tell;
		EltSpi		spi;

		arm(elt_alert_time_limit_ms);
		if (elt_my_slot != NULL)
		{
			elt_limit_arm(elt_alert_time_limit_ms + STUBBORN_MS);
			running_rule = rule->name;
		}
		PushActiveSnapshot(GetTransactionSnapshot());
		rows = elt_alert_rule_query(rule->query, rule->owner, rule->search_path);
		PopActiveSnapshot();
		running_rule = NULL;
		elt_limit_disarm();
		disarm();

		values[0] = CStringGetTextDatum(rule->name);
		values[1] = rows != NULL ? JsonbPGetDatum(rows) : DirectFunctionCall1(jsonb_in, CStringGetDatum("[]"));
		values[2] = TimestampTzGetDatum(at);
		elt_spi_begin(&spi);
		elt_spi_run("SELECT next_at, due FROM elt.evaluate_user_alerts($1, $2, $3)", 3, types, values, NULL);
		note_result(&spi, &tell);
		elt_spi_end(&spi);
		due = tell;

		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		running_rule = NULL;
		elt_limit_disarm();
		disarm();
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		/* who evaluates by hand may want an end of it */
		if (elt_my_slot == NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_END_TRY();

	note_rule_end(rule, error);
	rule->due_at = TimestampTzPlusMilliseconds(at, rule->failures == 0 ? rule->interval_ms :
											   Min(rule->interval_ms << Min(rule->failures, 20),
												   Max(rule->interval_ms, MAX_RULE_PAUSE_MS)));
	return due;
}

/* The process ends: because of the rule whose query it is at, if it would not be cancelled. */
static void
disable_rule(int code, Datum arg)
{
	const char *rule = running_rule;
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	EltSpi		spi;

	running_rule = NULL;
	if (rule == NULL || !elt_limit_was_hit())
		return;
	disarm();
	AbortOutOfAnyTransaction();
	ereport(LOG,
			(errmsg("alert rule \"%s\" is disabled: its query cannot be cancelled", rule),
			 errhint("Take out what catches query_canceled, then elt.alter_alert_rule(rule, enabled => true).")));
	elt_worker_begin("disabling an alert rule");
	values[0] = CStringGetTextDatum(rule);
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.alert_rules SET enabled = false, last_error_at = clock_timestamp(), "
				"last_error = '57014: disabled: the query catches its cancel and goes on' WHERE rule = $1",
				1, types, values, NULL);
	elt_spi_end(&spi);
	elt_worker_commit();
}

/* Writes a rule's error, once per error and when it is over. */
static void
note_rule_end(AlertRule *rule, const ErrorData *error)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(rule->name)};
	EltSpi		spi;

	rule->failures = error ? rule->failures + 1 : 0;
	if (rule->failures > 1 || (error == NULL && !rule->failed))
		return;
	rule->failed = (error != NULL);
	if (error != NULL)
		values[1] = CStringGetTextDatum(psprintf("%s: %s", unpack_sql_state(error->sqlerrcode),
												 error->message ? error->message : "unknown error"));
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.alert_rules SET last_error = $2, "
				"last_error_at = CASE WHEN $2 IS NULL THEN last_error_at ELSE clock_timestamp() END "
				"WHERE rule = $1", 2, types, values, error ? NULL : " n");
	elt_spi_end(&spi);
}

/* ---- what the supervisor itself knows ---- */

void
elt_alert_note_failure(EltWorkerKind kind, const char *name)
{
	WorkerFailures *worker = NULL;
	ListCell   *cell;

	foreach(cell, alerts.crashes)
	{
		WorkerFailures *known = lfirst(cell);

		if (known->kind == kind && strcmp(known->name, name) == 0)
			worker = known;
	}
	if (worker == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		worker = palloc0(sizeof(WorkerFailures));
		worker->kind = kind;
		strlcpy(worker->name, name, sizeof(worker->name));
		alerts.crashes = lappend(alerts.crashes, worker);

		MemoryContextSwitchTo(old);
	}
	worker->at[worker->next] = elt_clock_now();
	worker->next = (worker->next + 1) % CRASHES_KEPT;
	alerts.moved = true;
}

/* Said again each round while it lasts: only the beginning is news. */
void
elt_alert_note_no_room(void)
{
	TimestampTz now = elt_clock_now();

	if (alerts.no_room_at == 0 || TimestampDifferenceExceeds(alerts.no_room_at, now, NO_ROOM_MS))
		alerts.moved = true;
	alerts.no_room_at = now;
}

/* The samples of the rules about workers, as a JSON array. */
static char *
worker_samples(void)
{
	TimestampTz now = elt_clock_now();
	StringInfoData json;
	const char *separator = "";
	ListCell   *cell;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	foreach(cell, alerts.crashes)
	{
		WorkerFailures *worker = lfirst(cell);
		bool		capture = (worker->kind == ELT_WORKER_CAPTURE);
		int			count = 0;

		for (int i = 0; i < CRASHES_KEPT; i++)
			count += worker->at[i] != 0 && !TimestampDifferenceExceeds(worker->at[i], now, CRASH_WINDOW_MS);
		if (count == 0)
		{
			alerts.crashes = foreach_delete_current(alerts.crashes, cell);

			pfree(worker);
			continue;
		}
		appendStringInfo(&json, "%s{\"rule\": \"worker_crash_loop\", \"sample\": {\"value\": %d, \"worker\": \"%s\"",
						 separator, count,
						 capture ? "capture" : worker->kind == ELT_WORKER_CLEANER ? "cleaner" :
						 worker->kind == ELT_WORKER_SNAPSHOT ? "snapshot" :
						 worker->kind == ELT_WORKER_WATCH ? "watch" : "transform");
		if (worker->name[0] != '\0')
		{
			appendStringInfoString(&json, ", \"source\": ");
			escape_json(&json, worker->name);
		}
		appendStringInfoString(&json, "}}");
		separator = ", ";
	}
	if (alerts.no_room_at != 0 && !TimestampDifferenceExceeds(alerts.no_room_at, now, NO_ROOM_MS))
		appendStringInfo(&json, "%s{\"rule\": \"worker_budget_exhausted\", \"sample\": {\"value\": 1, "
						 "\"detail\": \"max_worker_processes is %d\"}}", separator, max_worker_processes);
	appendStringInfoChar(&json, ']');
	return json.data;
}

/* ---- telling ---- */

/*
 * notify
 *		Sends what is due.  The commit is forced to disk: a notification that
 *		was heard is never taken back by a crash, nor its id given out again.
 */
static void
notify(TimestampTz now)
{
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(now)};
	bool		full;
	EltSpi		spi;

	/* if this fails or the server cannot take it, not at once again */
	alerts.notify_retry_at = TimestampTzPlusMilliseconds(now, QUIET_MS);

	if (!begin("sending notifications"))
		return;
	arm(ROUND_LIMIT_MS);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.notify_alerts($1) IS NULL", 1, types, values, NULL);
	full = elt_spi_bool(0, 1);
	elt_spi_end(&spi);
	disarm();
	ForceSyncCommit();
	elt_worker_commit();

	if (full && !alerts.queue_full)
		ereport(LOG,
				(errmsg("alerts wait because the server's notification queue is too full"),
				 errhint("A session that listens in a long transaction keeps the queue from being emptied; "
						 "elt.alerts has what waits.")));
	alerts.queue_full = full;

	if (!full)
		alerts.notify_retry_at = 0;
}

/* ---- time limits ---- */

/* Only a client's session arms statement_timeout by itself. */
static void
arm(int limit_ms)
{
	if (elt_my_slot != NULL)
		enable_timeout_after(STATEMENT_TIMEOUT, limit_ms);
}

static void
disarm(void)
{
	if (elt_my_slot == NULL)
		return;
	disable_timeout(STATEMENT_TIMEOUT, true);
	/* it may have gone off with nobody left to notice */
	if (get_timeout_indicator(STATEMENT_TIMEOUT, true))
		QueryCancelPending = false;
}

/* ---- by hand ---- */

/*
 * elt_evaluate_alerts
 *		All rules at once, in the caller's transaction, as of a time.
 */
Datum
elt_evaluate_alerts(PG_FUNCTION_ARGS)
{
	TimestampTz at = PG_GETARG_TIMESTAMPTZ(0);
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(at)};
	Datum		payloads;
	bool		isnull;
	EltSpi		spi;
	ListCell   *cell;

	/* what it returns is of all, and so is what it does as of a time */
	if (!has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to evaluate the alert rules of all"),
				 errhint("Members of pg_monitor may; the supervisor does it by itself.")));
	(void) lock(true);
	PushActiveSnapshot(GetLatestSnapshot());
	load_rules();
	(void) evaluate_shipped(at, true);
	foreach(cell, alerts.rules)
	{
		AlertRule  *rule = lfirst(cell);

		if (rule->query != NULL)
			(void) evaluate_user_rule(rule, at);
	}
	PopActiveSnapshot();

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.notify_alerts($1)", 1, types, values, NULL);
	payloads = elt_spi_datum(&spi, 0, 1, &isnull);
	elt_spi_end(&spi);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(payloads);
}
