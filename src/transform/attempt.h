/*
 * attempt.h
 *	  Changes that end their worker, or overrun the time limit.
 */
#ifndef ELT_ATTEMPT_H
#define ELT_ATTEMPT_H

#include "control/registry.h"
#include "transform/isolate.h"

/* What user code is at work on, in this worker's slot: between these two. */
extern void elt_attempt_begin(int64 pipeline_id, EltLogRow **rows, int nrows);
extern void elt_attempt_end(void);

/* The change that a statement reads just now; a macro's worth of work per change. */
static inline void
elt_attempt_at(int64 change_id)
{
	if (elt_my_slot != NULL)
		elt_my_slot->trying.at_change = change_id;
}

/*
 * In a batch whose pipeline has rows in elt.attempts: makes the request
 * shorter, and sets work->doomed where the next change is not to be tried.
 */
extern void elt_attempt_limit(EltWork *work, EltLogRequest *request);

/* Whether the server has started so lately that batches are announced. */
extern bool elt_attempt_on_probation(void);
extern void elt_attempt_announce(EltWork *work);
extern bool elt_attempt_hold_trial(const EltWork *work);

/* The announced batch was given up, which is no crash. */
extern void elt_attempt_withdraw(int64 pipeline_id, int64 first_change, int64 last_change);

/* The last attempt of this worker overran the time limit. */
extern void elt_attempt_note_overrun(int64 pipeline_id, const EltTrying *trying);
extern EltTrying elt_attempt_last(void);

/* For the supervisor: a worker has ended; if in the middle of user code, then notes it. */
extern void elt_attempt_note_end(const EltWorkerSlot *ended);

/* The pipeline is past these. */
extern void elt_attempt_forget(int64 pipeline_id);

/* The error that stands for the deaths of a change that is not tried any more. */
extern ErrorData *elt_attempt_error(const EltWork *work);

#endif							/* ELT_ATTEMPT_H */
