/*
 * snapshot.h
 *	  First copies of tables.
 */
#ifndef ELT_SNAPSHOT_H
#define ELT_SNAPSHOT_H

#include "capture/stage.h"
#include "capture/stream.h"
#include "catalog.h"

/*
 * Copies the tables of a source that wait for it, each in a transaction of
 * its own.  The stream must be connected and not started.
 */
extern void elt_snapshot_copy_pending(EltStream *stream, EltStage *stage, const EltSource *source);

#endif							/* ELT_SNAPSHOT_H */
