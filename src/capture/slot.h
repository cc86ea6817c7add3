/*
 * slot.h
 *	  The replication slot and the replication origin of a source.
 */
#ifndef ELT_SLOT_H
#define ELT_SLOT_H

#include "access/xlogdefs.h"
#include "capture/stream.h"

/* Name of a source's origin in this cluster, palloc'd. */
extern char *elt_origin_name(int64 source_id);

/*
 * Makes the slot and returns its first position.  One that is left from an
 * attempt that was not recorded is replaced.  With failover, standbys of the
 * source that synchronize slots keep it too.
 */
extern XLogRecPtr elt_slot_create(EltStream *stream, const char *slot_name, bool failover);

/*
 * Removes a source's slot and origin, where they exist.  An error is raised,
 * or with throw false logged as a warning.  Opens its own transactions.
 */
extern void elt_slot_remove(int64 source_id, const char *conninfo, const char *slot_name, bool throw);

#endif							/* ELT_SLOT_H */
