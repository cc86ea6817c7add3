/*
 * raw_ahead.h
 *	  The next leaves of raw staging, made before they are needed.
 */
#ifndef ELT_RAW_AHEAD_H
#define ELT_RAW_AHEAD_H

#include "nodes/pg_list.h"

/* Makes leaves for sources (of EltSource) that will soon need them; in a transaction of its own. */
extern void elt_raw_ahead_run(List *sources);

#endif							/* ELT_RAW_AHEAD_H */
