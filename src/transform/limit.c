/*
 * limit.c
 *	  How long a pipeline's SQL may run.
 *
 * Background workers have no statement_timeout: only a client's session arms
 * it.  So there is a timeout of our own, which cancels what runs as
 * pg_cancel_backend() would, and says afterwards that it was the cause.  User
 * code that catches the cancel and goes on gets another one after a second,
 * and after one more the worker ends, as by pg_terminate_backend(), which
 * cannot be caught (see attempt.c for what follows).
 *
 * An abort disarms, whoever handles it: a limit that outlived its statement
 * would cancel another one.  The subtransactions that user code makes inside
 * (an EXCEPTION block of PL/pgSQL) do not.
 */
#include "postgres.h"

#include "access/xact.h"
#include "guc.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "transform/limit.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define REPEAT_MS	1000
#define MAX_CANCELS	2

static TimeoutId timeout = MAX_TIMEOUTS;	/* not registered */
static bool armed = false;
static SubTransactionId armed_in;
static volatile sig_atomic_t hit = 0;	/* how often */

static void time_is_up(void);
static void end_of_subtransaction(SubXactEvent event, SubTransactionId subid,
								  SubTransactionId parent, void *arg);
static void end_of_transaction(XactEvent event, void *arg);

int
elt_limit_ms(const EltPipelineOptions *options)
{
	return options->time_limit_ms >= 0 ? options->time_limit_ms : elt_transform_time_limit_ms;
}

void
elt_limit_arm(int time_limit_ms)
{
	if (timeout == MAX_TIMEOUTS)
	{
		timeout = RegisterTimeout(USER_TIMEOUT, time_is_up);
		RegisterSubXactCallback(end_of_subtransaction, NULL);
		RegisterXactCallback(end_of_transaction, NULL);
	}
	hit = 0;
	if (time_limit_ms == 0)
		return;
	armed = true;
	armed_in = GetCurrentSubTransactionId();
	enable_timeout_every(timeout, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), time_limit_ms), REPEAT_MS);
}

void
elt_limit_disarm(void)
{
	if (!armed)
		return;
	armed = false;
	disable_timeout(timeout, false);

	/* what came too late is not for the next statement */
	if (hit > 0)
		QueryCancelPending = false;
}

bool
elt_limit_was_hit(void)
{
	return hit > 0;
}

/* Runs in a signal handler. */
static void
time_is_up(void)
{
	if (hit++ < MAX_CANCELS)
		QueryCancelPending = true;
	else
		ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

static void
end_of_subtransaction(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && subid == armed_in)
		elt_limit_disarm();
}

static void
end_of_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		elt_limit_disarm();
}
