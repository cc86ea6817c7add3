/*
 * newest.h
 *	  The newest change of each key, for a replay.
 */
#ifndef ELT_NEWEST_H
#define ELT_NEWEST_H

#include "transform/log.h"

typedef struct EltNewest EltNewest;

/* In the current memory context. */
extern EltNewest *elt_newest_create(void);

/* Notes a change, as elt_log_walk shows it; with known_only, only where its key is known. */
extern void elt_newest_note(EltNewest *newest, const EltLogRow *row, bool known_only);

/*
 * Whether a later change of the row's key was noted; *partial: whether that one
 * lacks columns, so that it needs what earlier images have.
 */
extern bool elt_newest_has_later(const EltNewest *newest, const EltLogRow *row, bool *partial);

/* How many keys have a newest change that lacks columns. */
extern int64 elt_newest_partials(const EltNewest *newest);

/* Whether it has taken the memory that maintenance_work_mem allows. */
extern bool elt_newest_is_full(const EltNewest *newest);

/* Forgets the keys of lanes from "end" on. */
extern void elt_newest_drop_lanes(EltNewest *newest, int nlanes, int end);

#endif							/* ELT_NEWEST_H */
