/*
 * breaker.h
 *	  A flood of failures blocks the pipeline, instead of filling quarantine.
 */
#ifndef ELT_BREAKER_H
#define ELT_BREAKER_H

#include "transform/isolate.h"

/* A change of the batch failed and was quarantined. */
extern void elt_breaker_note(EltWork *work, const char *fingerprint, const ErrorData *error);

/*
 * Whether the batch must not commit: then work->error says why, and
 * work->error_class is "breaker".  Asked after failures, and once more when
 * the batch has settled what it can.
 */
extern bool elt_breaker_trips(EltWork *work, bool settled);

/* Whether a batch was the probe of a pipeline that the breaker has blocked. */
extern bool elt_breaker_is_probe(const EltWork *work);

#define ELT_BREAKER_PROBE_CHANGES	100

/* The errors of the flood: fingerprints as text[]. */
extern Datum elt_breaker_fingerprints(const EltWork *work);

/*
 * What the flood has quarantined so far waits until the pipeline runs again,
 * and then is due at once.
 */
extern void elt_breaker_hold_back(int64 pipeline_id, int version, Datum fingerprints);
extern void elt_breaker_release(int64 pipeline_id);

#endif							/* ELT_BREAKER_H */
