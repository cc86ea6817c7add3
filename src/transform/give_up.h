/*
 * give_up.h
 *	  What becomes of a pipeline whose batch cannot go on.
 */
#ifndef ELT_GIVE_UP_H
#define ELT_GIVE_UP_H

#include "transform/batch.h"
#include "transform/isolate.h"

/*
 * Calls roll_back, which must leave no transaction open, and writes down in
 * one of its own what work->error and work->error_class mean.  In the caller's
 * transaction that is the caller's decision: the error goes on to it.
 */
extern EltBatchEnd elt_give_up(const EltWork *work, void (*roll_back) (void *arg), void *arg);

#endif							/* ELT_GIVE_UP_H */
