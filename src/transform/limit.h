/*
 * limit.h
 *	  How long a pipeline's SQL may run.
 */
#ifndef ELT_LIMIT_H
#define ELT_LIMIT_H

#include "transform/options.h"

/* The pipeline's time limit in ms, 0: none. */
extern int	elt_limit_ms(const EltPipelineOptions *options);

/*
 * From here the statements of this (sub)transaction are cancelled, with 57014,
 * once time_limit_ms have passed; 0: never.  Ends with elt_limit_disarm, or
 * with the abort of the (sub)transaction.
 */
extern void elt_limit_arm(int time_limit_ms);
extern void elt_limit_disarm(void);

/* Whether it was the limit that ended what was armed last. */
extern bool elt_limit_was_hit(void);

#endif							/* ELT_LIMIT_H */
