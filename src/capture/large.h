/*
 * large.h
 *	  Large values that an update left alone, found again in raw staging.
 */
#ifndef ELT_LARGE_H
#define ELT_LARGE_H

#include "capture/change.h"
#include "catalog.h"
#include "executor/tuptable.h"
#include "utils/hsearch.h"
#include "utils/relcache.h"

/* Of one log of a stage. */
typedef struct EltLarge
{
	Oid			partition;		/* the relation's, of raw staging */
	int64		truncated_at;	/* change_id of the newest truncate; -1: not
								 * looked for yet */
	bool		known;			/* whether "present" was looked for */
	bool		present;		/* some row of the log is flagged */
	int64		changed_at;		/* rows below were staged before the relation
								 * had the file that it has */
	bool		searchable;		/* these are in leaves that nobody writes */
	int64		usable_from;	/* values of rows below are no longer the
								 * source's */
	bool		held;			/* a copy is under way: what is not found now
								 * is looked for once more at its end */
	HTAB	   *pending;		/* flagged rows that wait to be written; NULL:
								 * none */
	MemoryContext context;		/* of the values found last */
	void		(*alive) (void);	/* called while much work is done, or NULL */
} EltLarge;

extern void elt_large_init(EltLarge *large, MemoryContext context);

/*
 * elt_large_fill
 *		Sets the unchanged fields of a row from the newest row of its key that
 *		knows; what was never staged stays unchanged.  The values last until
 *		the next call.  key and key_hash are those under which the row was
 *		staged before.  False where the rows below changed_at have to be made
 *		searchable first: nothing was done.
 *
 * elt_large_fill_staged
 *		The same for a row that was staged, and is about to be staged again.
 *		What it gives lives in the caller's memory context.
 */
extern bool elt_large_fill(EltLarge *large, const EltSource *source, const EltRelation *relation,
						   int schema_version, EltRow *row, int32 key_hash, Jsonb *key);
extern bool elt_large_fill_staged(EltLarge *large, const EltSource *source, const char *relation,
								  int schema_version, int32 key_hash, Jsonb *key,
								  Jsonb **after, ArrayType **unchanged, ArrayType **names);

/*
 * What a row's column "large" holds; NULL: the row is not flagged.  The row is
 * NULL for deletes and truncates.
 */
extern ArrayType *elt_large_flag(EltLarge *large, char op, const EltRelation *relation, const EltRow *row);

/*
 * elt_large_wait
 *		Notes a flagged row that waits in a slot, in the given memory context.
 *
 * elt_large_written
 *		Adds the flagged ones of rows that were written to the leaf's index,
 *		and forgets all that waited.
 */
extern void elt_large_wait(EltLarge *large, TupleTableSlot *slot, MemoryContext context);
extern void elt_large_written(EltLarge *large, Relation leaf, TupleTableSlot **slots, int n);

#endif							/* ELT_LARGE_H */
