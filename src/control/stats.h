/*
 * stats.h
 *	  How long changes take from their commit at the source to their commit
 *	  in the target: one histogram per pipeline, in shared memory.
 */
#ifndef ELT_STATS_H
#define ELT_STATS_H

extern void elt_stats_request_shmem(void);
extern void elt_stats_init_shmem(void);

/* Notes a change that became visible latency_us after its commit. */
extern void elt_stats_latency(int64 pipeline_id, int64 latency_us);

/* Quantile (0..1) of the last one to two minutes in ms; -1: nothing known. */
extern double elt_stats_latency_quantile(int64 pipeline_id, double quantile);

#endif							/* ELT_STATS_H */
