/*
 * identity.h
 *	  Whether a source is still the one that its slot was made in.
 */
#ifndef ELT_IDENTITY_H
#define ELT_IDENTITY_H

#include "capture/stream.h"
#include "catalog.h"

/* Why a source is lost, and the range of its WAL that is not staged. */
typedef struct EltLoss
{
	const char *reason;			/* elt.source_gaps.reason */
	char	   *detail;
	XLogRecPtr	from;
	XLogRecPtr	to;				/* Invalid: not known */
} EltLoss;

/* The system identifier, timeline and end of WAL of the server connected to. */
extern void elt_identity_read(EltStream *stream, char **system_id, TimeLineID *timeline, XLogRecPtr *end);

/*
 * Compares the server and the slot with what is recorded of them; "position"
 * is up to where all is staged.  False, with *loss filled, where the stream
 * cannot be taken up from there.  *timeline is the server's.
 */
extern bool elt_identity_check(EltStream *stream, const EltSource *source, XLogRecPtr position,
							   TimeLineID *timeline, EltLoss *loss);

/*
 * Writes a loss, or another timeline, down.  Needs a transaction; the workers
 * hear of a loss when it commits.
 */
extern void elt_identity_note_loss(const EltSource *source, const EltLoss *loss);
extern void elt_identity_note_timeline(const EltSource *source, TimeLineID timeline);

#endif							/* ELT_IDENTITY_H */
