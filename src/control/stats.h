/*
 * stats.h
 *	  What pipelines did lately, in shared memory.
 */
#ifndef ELT_STATS_H
#define ELT_STATS_H

#include "datatype/timestamp.h"

extern void elt_stats_request_shmem(void);
extern void elt_stats_init_shmem(void);

/* Notes a change that became visible latency_us after its commit. */
extern void elt_stats_latency(int64 pipeline_id, int64 latency_us, int changes);

/* Quantile (0..1) of the last one to two minutes in ms; -1: nothing known. */
extern double elt_stats_latency_quantile(int64 pipeline_id, double quantile);

/*
 * Adds what a batch that committed read, and how many of those failed; sums of
 * the last seconds (up to 300), and an end to what was counted so far.
 */
extern void elt_stats_note_outcomes(int64 pipeline_id, int64 read, int64 failed);
extern void elt_stats_outcomes(int64 pipeline_id, int seconds, int64 *read, int64 *failed);
extern void elt_stats_forget_outcomes(int64 pipeline_id);

/* Counts batches of any pipeline of the server in which a change failed. */
extern uint64 elt_stats_failed_batches(void);

/* When a quarantined change that waits is to be tried again; 0: none waits. */
extern void elt_stats_set_retry_at(int64 pipeline_id, TimestampTz at);
extern TimestampTz elt_stats_retry_at(int64 pipeline_id);

#endif							/* ELT_STATS_H */
