/*
 * filter.h
 *	  Row filters of publications.
 */
#ifndef ELT_FILTER_H
#define ELT_FILTER_H

#include "access/htup.h"
#include "utils/relcache.h"

typedef struct EltFilter EltFilter;

/*
 * Prepares the expression of a publication for the tuples of a relation, which
 * appears as "shown": itself or the partitioned table above it, to which the
 * expression belongs.  It lives in the current memory context.
 */
extern EltFilter *elt_filter_create(const char *expression, Relation shown, Relation relation);

/* Tells whether the filter lets a row through.  desc is that of the tuple. */
extern bool elt_filter_row(EltFilter *filter, HeapTuple tuple, TupleDesc desc);

/*
 * The same for both rows of an update.  Out-of-line values that the update
 * left alone are taken from the old row, where WAL has them.
 */
extern void elt_filter_update(EltFilter *filter, HeapTuple old, HeapTuple new, TupleDesc desc,
							  bool *old_passes, bool *new_passes);

#endif							/* ELT_FILTER_H */
