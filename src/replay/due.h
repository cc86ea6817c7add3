/*
 * due.h
 *	  Quarantined changes that wait, tried again by the clock.
 */
#ifndef ELT_DUE_H
#define ELT_DUE_H

#include "catalog.h"

/* Tries what waits and is due, in a transaction of its own; for workers. */
extern void elt_due_run(EltPipeline *pipeline);

/* Tells shared memory what the tables say of when something is due. */
extern void elt_due_refresh(void);

#endif							/* ELT_DUE_H */
