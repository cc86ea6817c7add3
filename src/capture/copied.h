/*
 * copied.h
 *	  What a copy must know of values that the stream is told by the output
 *	  plugin: which are large, too large, or no text here.
 */
#ifndef ELT_COPIED_H
#define ELT_COPIED_H

#include "capture/change.h"
#include "capture/encoding.h"
#include "capture/stream.h"

typedef struct EltCopied
{
	EltRelation *relation;
	bool		measured;		/* one more column tells what was left out */
	EltEncoding encoding;		/* of the source, to ours */
	const char *encoding_name;
	char	   *kinds;			/* by column: see copied.c */
	char	  **unprintable;	/* by column: ctids of rows, as an array's
								 * text, or NULL; NULL: not searched for */
	char	   *columns;		/* of the SELECT to be copied */
	char	   *measure;		/* goes behind its FROM */
} EltCopied;

/*
 * Asks the source, in the transaction of the copy, what may be large in a
 * relation; sets large_from of its columns.
 */
extern void elt_copied_prepare(EltCopied *copied, EltStream *stream, EltRelation *relation);

/*
 * Looks for values of a table's rows whose text the source cannot produce,
 * and has them left out: where a copy of these rows failed for that reason.
 * The source's transaction has a savepoint of this name.
 */
#define ELT_COPIED_SAVEPOINT	"elt_chunk"
extern void elt_copied_search(EltCopied *copied, EltStream *stream, const char *from, const char *where);

/*
 * The command that copies a table ("ONLY s.t"), or of its rows, to be called
 * "$row", those that fulfil a condition; where may be NULL.
 */
extern char *elt_copied_command(const EltCopied *copied, const char *from, const char *where);

/* A row for elt_copied_parse. */
extern void elt_copied_create_row(const EltCopied *copied, EltRow *row);

/*
 * Splits a line of COPY's text format, in place, into a row as the stream
 * would bring it.
 */
extern void elt_copied_parse(const EltCopied *copied, char *line, int length, EltRow *row);

#endif							/* ELT_COPIED_H */
