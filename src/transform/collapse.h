/*
 * collapse.h
 *	  Of several changes of a key, what is left to apply.
 */
#ifndef ELT_COLLAPSE_H
#define ELT_COLLAPSE_H

#include "transform/log.h"

/*
 * Puts the newest image of each key into "out" (room for nrows) and returns
 * how many there are.  All rows must have a key.  Where deletes only mark
 * rows, the last image that a delete marks is kept before it.
 */
extern int	elt_collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out, bool soft_deletes);

/*
 * For a history: what a later change of the same key and transaction follows
 * is moot, since nobody ever saw it.  A change that seems no newer than the one
 * before it gets a time behind it.
 */
extern void elt_collapse_transactions(TupleDesc desc, EltLogRow **rows, int nrows);

#endif							/* ELT_COLLAPSE_H */
