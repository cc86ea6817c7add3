/*
 * batch_size.h
 *	  How many changes a batch should read: arithmetic, without clock or state.
 */
#ifndef ELT_BATCH_SIZE_H
#define ELT_BATCH_SIZE_H

/* The size that a pipeline's first batch in a process has, if as many are allowed. */
#define ELT_BATCH_SIZE_FIRST	100

/*
 * The size for the next batch, from 1 to max, after one of "size" that read
 * "changes" and took elapsed_ms.
 */
extern int	elt_batch_size_next(int size, double changes, double elapsed_ms, double target_ms, int max);

#endif							/* ELT_BATCH_SIZE_H */
