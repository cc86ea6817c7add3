/*
 * parts.h
 *	  Partitions that come, go or are emptied under tables that are captured
 *	  through their root.
 */
#ifndef ELT_PARTS_H
#define ELT_PARTS_H

#include "capture/stream.h"
#include "catalog.h"

/*
 * A look: lays the partitions of all such tables beside those of the look
 * before.  Of a local source in the caller's transaction; of a remote one,
 * whose WAL had got to "end" before, outside of one.
 *
 * elt_parts_look returns what the source refused, NULL where it did not; the
 * connection stays usable.
 */
extern void elt_parts_look_local(const EltSource *source);
extern char *elt_parts_look(const EltSource *source, EltStream *stream, XLogRecPtr end);

/*
 * For who plans a copy.  The first reads the partitions under the transaction
 * that is open at the source; the second, in the caller's transaction, makes
 * them what looks compare with.  names: a text[].
 */
extern char *elt_parts_read(const EltSource *source, EltStream *stream);
extern void elt_parts_base(int64 source_id, XLogRecPtr lsn, Datum names, const char *seen);

/* The stream told that a partition was truncated and its root was not. */
extern void elt_parts_truncated(int64 source_id, const char *relation, const char *partition, XLogRecPtr commit_lsn);

#endif							/* ELT_PARTS_H */
