/*
 * relation.h
 *	  Published relations, as the output plugin sees them: what is known of
 *	  each, and how its tuples become rows.
 */
#ifndef ELT_RELATION_H
#define ELT_RELATION_H

#include "access/htup.h"
#include "capture/change.h"
#include "capture/filter.h"
#include "capture/publication.h"
#include "utils/relcache.h"

typedef struct EltPublishedColumn EltPublishedColumn;

typedef struct EltPublishedRelation
{
	Oid			relid;			/* hash key */
	bool		valid;
	bool		gone;			/* it was dropped */
	bool		user_types;		/* has columns of types that may be altered */
	EltPublished published;
	EltRelation *relation;		/* NULL where nothing is published */
	char	   *partition;		/* its own name, where it appears under a
								 * table above it; else NULL */
	EltPublishedColumn *columns;	/* of relation's columns */
	EltFilter  *filter;			/* NULL: every row is published */
	MemoryContext context;		/* of all these */

	/* the plugin's own: what it last sent of it */
	bool		sent;			/* reset when the relation may have changed */
	StringInfoData description;
} EltPublishedRelation;

/* A row and the memory of its integers, for reuse. */
typedef struct EltRowBuffer
{
	EltRow		row;
	char		(*integers)[24];
} EltRowBuffer;

typedef struct EltRelationCache EltRelationCache;

/*
 * One cache can be in use at a time; it ends with elt_relation_cache_end or
 * with its memory context.  Texts are converted to the client's encoding if
 * convert is set.
 */
extern EltRelationCache *elt_relation_cache_create(MemoryContext context, const char *publication, bool convert);
extern void elt_relation_cache_end(EltRelationCache *cache);

/* What is known of a relation, in the catalogs as the current snapshot shows them. */
extern EltPublishedRelation *elt_relation_cache_find(EltRelationCache *cache, Relation relation);

/*
 * Finds a relation that was found before and may have changed since; NULL
 * where there is none (any more).  Its entry tells whether it has.  The caller
 * goes on until NULL: what is found is not found again.  Costs nothing while no
 * relation has changed.
 */
extern EltPublishedRelation *elt_relation_cache_refresh(EltRelationCache *cache);

extern void elt_row_buffer_create(EltRowBuffer *buffer);

/*
 * Turns a tuple into the texts of the published columns.  They live in the
 * tuple, in the buffer or in the current memory context.  Of a tuple that
 * holds the replica identity only, the other columns are absent.
 */
extern void elt_row_buffer_fill(EltRowBuffer *buffer, EltRelationCache *cache,
								EltPublishedRelation *entry, HeapTuple tuple,
								TupleDesc desc, bool identity_only);

#endif							/* ELT_RELATION_H */
