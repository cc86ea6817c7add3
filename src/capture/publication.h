/*
 * publication.h
 *	  Which relations are published, and how.
 */
#ifndef ELT_PUBLICATION_H
#define ELT_PUBLICATION_H

#include "nodes/bitmapset.h"
#include "utils/relcache.h"

typedef struct EltPublished
{
	bool		insert;
	bool		update;
	bool		delete;
	bool		truncate;
	Oid			relid;			/* under which it appears: itself or a
								 * partitioned table above it */
	Bitmapset  *columns;		/* attribute numbers of relid; NULL: all */
	char	   *filter;			/* over columns of relid, as
								 * pg_publication_rel has it; NULL: every row */
} EltPublished;

/*
 * Looks up how a relation is published by a publication, or by all there is
 * where publication is NULL, in the catalogs as the current snapshot shows
 * them.  Allocates in the current memory context.
 */
extern void elt_publication_lookup(const char *publication, Relation relation, EltPublished *published);

#endif							/* ELT_PUBLICATION_H */
