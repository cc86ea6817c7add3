/*
 * collapse.h
 *	  Of several changes of a key, what is left to apply.
 */
#ifndef ELT_COLLAPSE_H
#define ELT_COLLAPSE_H

#include "transform/log.h"

/*
 * Puts the newest image of each key into "out" (room for nrows) and returns
 * how many there are.  All rows must have a key.
 */
extern int	elt_collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out);

/* The same where deletes only mark rows: the last image that a delete marks is kept before it. */
extern int	elt_collapse_soft(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out);

/*
 * The same for a history: the newest image of each key in each transaction.
 * One that seems no newer than the one before it gets a time behind it.
 */
extern int	elt_collapse_versions(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out);

#endif							/* ELT_COLLAPSE_H */
