/*
 * clock.h
 *	  The clock for waits.
 *
 * The time of day may be set back or ahead at any moment.  What is waited for
 * inside elt (timeouts, backoffs, rates, the rounds of workers) therefore goes
 * by a clock that nobody sets.  It has the unit of TimestampTz, so that the
 * arithmetic is the same, and it is one for all processes of the machine, so
 * that it may stand in shared memory; but it begins somewhere, and its values
 * mean nothing to users and after a restart of the machine.
 *
 * Times that are shown or stored are times of day.  Where such a time is
 * waited for, elt_clock_of() says when that is, as things are now;
 * control/time_of_day.c looks after those that are in tables.
 */
#ifndef ELT_CLOCK_H
#define ELT_CLOCK_H

#include "portability/instr_time.h"
#include "utils/timestamp.h"

static inline TimestampTz
elt_clock_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (TimestampTz) INSTR_TIME_GET_MICROSEC(now);
}

/* 0 and the infinities stay what they are: never, and no time. */
static inline TimestampTz
elt_clock_of(TimestampTz at)
{
	if (at == 0 || TIMESTAMP_NOT_FINITE(at))
		return at;
	return elt_clock_now() + (at - GetCurrentTimestamp());
}

#endif
