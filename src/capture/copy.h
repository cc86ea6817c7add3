/*
 * copy.h
 *	  Copies of tables beside the stream: the capture worker's side, and asking
 *	  for them.
 */
#ifndef ELT_COPY_H
#define ELT_COPY_H

#include "access/xlogdefs.h"
#include "capture/stage.h"
#include "catalog.h"

/*
 * Asks for a copy of a table of a source, or with relation NULL of all of
 * them, however far a copy is that is being made.  What readers have seen
 * stays, and the copy begins with a truncate.  In the caller's transaction;
 * elt_config_changed() is up to the caller.
 */
extern void elt_copy_request(int64 source_id, const char *relation);

/* Sees to it that nothing of a copy of this table goes on. */
extern void elt_copy_cancel(int64 source_id, const char *relation);

/*
 * For the capture worker, between source transactions and outside any local
 * one.
 *
 * elt_copy_discard_plan
 *		Gives up a copy that was planned and not aligned, because the stream
 *		begins anew: the source may have crashed since, and then the snapshot
 *		tells of transactions that never were.
 *
 * elt_copy_look
 *		Looks at what was asked for: holds the readers of tables that wait
 *		for a copy, cleans up after copies that were given up.  Returns the
 *		position that the stream must have passed for elt_copy_align, invalid
 *		where no copy waits for it.
 *
 * elt_copy_align
 *		Puts what was staged meanwhile before or behind the copy and lets the
 *		snapshot workers begin, where the position of the copy that waits now
 *		was passed.
 *
 * elt_copy_complete
 *		Seals tables that are copied in full, once it has given the rows that
 *		were staged meanwhile the large values that they lack.  The stage is
 *		to be refreshed before the next change.
 */
extern void elt_copy_discard_plan(const EltSource *source);
extern XLogRecPtr elt_copy_look(EltStage *stage, const EltSource *source);
extern void elt_copy_align(EltStage *stage, const EltSource *source, XLogRecPtr passed);
extern void elt_copy_complete(EltStage *stage, const EltSource *source);

#endif							/* ELT_COPY_H */
